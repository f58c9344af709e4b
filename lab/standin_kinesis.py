"""A stand-in for Kinesis in memory: fast, and if wanted it throttles as AWS does.

python lab/standin_kinesis.py PORT [--limits SHARE] [--change-s SECONDS]. Written from AWS's API reference
(docs.aws.amazon.com/kinesis/latest/APIReference); tests/contract/kinesis_service_contract.py says what is relied on.
Enhanced fan-out, encryption, consumers and tags are not there; what a request asks for beyond it is refused.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import itertools
import re
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Any, Final, Literal

import orjson

from lab.standin import ACCOUNT, NOT_KNOWN, REGION, Actions, Allowance, Refusal, Request, arguments, only, serve

HASH_KEYS: Final = 2**128
RECORD_BYTES_MAX: Final = 1024 * 1024  # data and partition key
CALL_BYTES_MAX: Final = 10 * 1024 * 1024
CALL_RECORDS_MAX: Final = 500
READ_BYTES_MAX: Final = 10 * 1024 * 1024
READ_RECORDS_MAX: Final = 10_000
ITERATOR_S: Final = 300.0
LIST_SHARDS_MAX: Final = 1000
ON_DEMAND_SHARDS: Final = 4
# Of a shard, a second.
WRITE_BYTES: Final = 1024 * 1024
WRITE_RECORDS: Final = 1000
READ_BYTES: Final = 2 * 1024 * 1024
READ_CALLS: Final = 5
# A sequence number is 56 digits that rise over the whole life of a stream's name: the stream's creation in
# milliseconds, a counter, and the shard in the last bits, as with AWS.
_CREATED_SHIFT: Final = 80
_COUNT_SHIFT: Final = 16
_SEQUENCE_BASE: Final = 49 * 10**54
_STREAM_NAME: Final = re.compile(r"[a-zA-Z0-9_.-]{1,128}")

Status = Literal["CREATING", "ACTIVE", "UPDATING", "DELETING"]


class Shard:
    """A shard and its records, oldest first, in parallel lists."""

    def __init__(self, number: int, first: int, last: int, parents: tuple[str, ...], opened: int, limits: float):
        self.id = f"shardId-{number:012}"
        self.number = number
        self.first, self.last = first, last  # the hash keys that it takes
        self.parents = parents
        self.opened = opened
        self.closed: int | None = None
        self.children: list[Shard] = []
        self.sequences: list[int] = []
        self.arrived: list[float] = []
        self.records: list[tuple[str, str]] = []  # (data in base64, partition key)
        self._sizes: list[int] = []
        self._write_bytes, self._write_records = Allowance(WRITE_BYTES * limits), Allowance(WRITE_RECORDS * limits)
        self._read_bytes, self._read_calls = Allowance(READ_BYTES * limits), Allowance(READ_CALLS * limits)
        self._iterators = Allowance(READ_CALLS * limits)

    def accepts(self, size: int) -> bool:
        """Whether its write limits leave room for a record; if so it is counted."""
        if not (self._write_bytes.has(size) and self._write_records.has(1)):
            return False
        self._write_bytes.take(size)
        self._write_records.take(1)
        return True

    def add(self, sequence: int, data: str, partition_key: str, size: int, now: float) -> None:
        self.sequences.append(sequence)
        self.arrived.append(now)
        self.records.append((data, partition_key))
        self._sizes.append(size)

    def give_iterator(self) -> bool:
        """Whether one more iterator may be given in this second."""
        given = self._iterators.has(1)
        self._iterators.take(given)
        return given

    def read(self, position: int, limit: int) -> tuple[int, int] | None:
        """Which records to answer with, as (start, end); None: throttled."""
        if not (self._read_calls.has(1) and (not self._read_bytes.per_s or self._read_bytes.left() > 0)):
            return None
        start = end = bisect_left(self.sequences, position)
        size = 0
        while end < len(self.records) and end - start < limit and size + self._sizes[end] <= READ_BYTES_MAX:
            size += self._sizes[end]
            end += 1
        self._read_calls.take(1)
        self._read_bytes.take(size)
        return start, end

    def forget(self, until: float) -> None:
        """Drop what is past the retention period."""
        count = bisect_right(self.arrived, until)
        for each in (self.sequences, self.arrived, self.records, self._sizes):
            del each[:count]

    def described(self) -> dict[str, Any]:
        parents = dict(zip(("ParentShardId", "AdjacentParentShardId"), self.parents, strict=False))
        numbers = {"StartingSequenceNumber": str(self.opened)}
        if self.closed is not None:
            numbers["EndingSequenceNumber"] = str(self.closed)
        keys = {"StartingHashKey": str(self.first), "EndingHashKey": str(self.last)}
        return {"ShardId": self.id, **parents, "HashKeyRange": keys, "SequenceNumberRange": numbers}


class Stream:
    """A stream: which shard a hash key belongs to, and how its shards come and go."""

    def __init__(self, name: str, shards: int, mode: str, limits: float) -> None:
        self.name, self.mode, self.limits = name, mode, limits
        self.created = time.time()
        self.status: Status = "CREATING"
        self.retention_h = 24
        self.shards: list[Shard] = []
        self.open: list[Shard] = []  # by hash key
        self._firsts: list[int] = []
        self._base = _SEQUENCE_BASE + (int(self.created * 1000) << _CREATED_SHIFT)
        self._count = itertools.count()
        cuts = [number * HASH_KEYS // shards for number in range(shards + 1)]
        self._change([], [self._new(first, after - 1, ()) for first, after in itertools.pairwise(cuts)])

    def next_sequence(self, shard: int) -> int:
        return self._base + (next(self._count) << _COUNT_SHIFT) + shard

    def came_from(self, sequence: int, shard: Shard) -> bool:
        """Whether this may be the number of a record of that shard."""
        return sequence >= shard.opened and (sequence - self._base) % 2**_COUNT_SHIFT == shard.number

    def shard_of(self, hash_key: int) -> Shard:
        return self.open[bisect_right(self._firsts, hash_key) - 1]

    def shard(self, name: str) -> Shard:
        for shard in self.shards:
            if shard.id == name:
                return shard
        message = f"Shard {name} in stream {self.name} under account {ACCOUNT} does not exist"
        raise Refusal("ResourceNotFoundException", message)

    def split(self, parent: Shard, at: int) -> None:
        children = [self._new(parent.first, at - 1, (parent.id,)), self._new(at, parent.last, (parent.id,))]
        self._change([parent], children)

    def merge(self, one: Shard, other: Shard) -> None:
        left, right = sorted((one, other), key=lambda shard: shard.first)
        self._change([one, other], [self._new(left.first, right.last, (one.id, other.id))])

    def resize(self, shards: int) -> None:
        """To so many shards of one size: splits at the new borders, then merges of what lies between two of them."""
        cuts = [number * HASH_KEYS // shards for number in range(shards)]
        for cut in cuts:
            shard = self.shard_of(cut)
            if shard.first != cut:
                self.split(shard, cut)
        for cut in cuts:
            while (shard := self.shard_of(cut)).last + 1 not in (*cuts, HASH_KEYS):
                self.merge(shard, self.shard_of(shard.last + 1))

    def listed(self) -> list[Shard]:
        """All of them, less what is past the retention period; AWS lists no closed shard that is empty by that."""
        for shard in self.shards:
            shard.forget(time.time() - self.retention_h * 3600)
        return self.shards

    def _new(self, first: int, last: int, parents: tuple[str, ...]) -> Shard:
        number = len(self.shards)
        shard = Shard(number, first, last, parents, self.next_sequence(number), self.limits)
        self.shards.append(shard)
        return shard

    def _change(self, parents: list[Shard], children: list[Shard]) -> None:
        for parent in parents:
            parent.closed = self.next_sequence(parent.number)
            parent.children = children
        self.open = sorted([shard for shard in self.open if shard not in parents] + children, key=lambda s: s.first)
        self._firsts = [shard.first for shard in self.open]


class Kinesis:
    """The service: `actions` by their names with AWS."""

    def __init__(self, limits: float, change_s: float) -> None:
        self._limits, self._change_s = limits, change_s
        self._streams: dict[str, Stream] = {}
        self.actions: Actions = {
            "CreateStream": self.create_stream,
            "DeleteStream": self.delete_stream,
            "ListStreams": self.list_streams,
            "DescribeStreamSummary": self.describe_stream_summary,
            "DescribeStream": self.describe_stream,
            "IncreaseStreamRetentionPeriod": self.increase_stream_retention_period,
            "DecreaseStreamRetentionPeriod": self.decrease_stream_retention_period,
            "ListShards": self.list_shards,
            "SplitShard": self.split_shard,
            "MergeShards": self.merge_shards,
            "UpdateShardCount": self.update_shard_count,
            "PutRecord": self.put_record,
            "PutRecords": self.put_records,
            "GetShardIterator": self.get_shard_iterator,
            "GetRecords": self.get_records,
        }

    # --- streams --------------------------------------------------------------------------------------------------

    def create_stream(self, request: Request) -> dict[str, Any]:
        only(request, "StreamName", "ShardCount", "StreamModeDetails")
        name = request["StreamName"]
        if name in self._streams:
            raise Refusal("ResourceInUseException", f"Stream {name} under account {ACCOUNT} already exists.")
        if not _STREAM_NAME.fullmatch(name):
            raise _invalid("streamName", "Member must satisfy regular expression pattern: [a-zA-Z0-9_.-]+")
        mode = request.get("StreamModeDetails", {}).get("StreamMode", "PROVISIONED")
        shards = ON_DEMAND_SHARDS if mode == "ON_DEMAND" else request["ShardCount"]
        self._streams[name] = stream = Stream(name, shards, mode, self._limits)
        self._after_change(stream, lambda: None)
        return {}

    def delete_stream(self, request: Request) -> dict[str, Any]:
        only(request, "StreamName", "StreamARN", "EnforceConsumerDeletion")
        stream = self._stream(request)
        stream.status = "DELETING"
        asyncio.get_running_loop().call_later(self._change_s, self._streams.pop, stream.name)
        return {}

    def list_streams(self, request: Request) -> dict[str, Any]:
        only(request, "Limit")
        return {"StreamNames": sorted(self._streams), "HasMoreStreams": False}

    def describe_stream_summary(self, request: Request) -> dict[str, Any]:
        only(request, "StreamName", "StreamARN")
        stream = self._stream(request)
        return {"StreamDescriptionSummary": {**_described(stream), "OpenShardCount": len(stream.open)}}

    def describe_stream(self, request: Request) -> dict[str, Any]:
        only(request, "StreamName", "StreamARN", "Limit")
        stream = self._stream(request)
        shards, limit = stream.listed(), request.get("Limit", 100)
        some = {"Shards": [shard.described() for shard in shards[:limit]], "HasMoreShards": len(shards) > limit}
        return {"StreamDescription": {**_described(stream), **some}}

    def increase_stream_retention_period(self, request: Request) -> dict[str, Any]:
        return self._retain(request, at_least=True)

    def decrease_stream_retention_period(self, request: Request) -> dict[str, Any]:
        return self._retain(request, at_least=False)

    def _retain(self, request: Request, *, at_least: bool) -> dict[str, Any]:
        only(request, "StreamName", "StreamARN", "RetentionPeriodHours")
        stream, hours = self._stream(request), request["RetentionPeriodHours"]
        allowed = range(stream.retention_h, 8761) if at_least else range(24, stream.retention_h + 1)
        if hours not in allowed:
            raise Refusal("InvalidArgumentException", f"The retention period can't become {hours} hours.")
        stream.retention_h = hours
        return {}

    # --- shards ---------------------------------------------------------------------------------------------------

    def list_shards(self, request: Request) -> dict[str, Any]:
        only(request, "StreamName", "StreamARN", "MaxResults", "NextToken", "ExclusiveStartShardId", "ShardFilter")
        if "NextToken" in request:
            if "StreamName" in request or "StreamARN" in request:
                raise Refusal("InvalidArgumentException", "NextToken and StreamName cannot be provided together.")
            name, start, kind = base64.b64decode(request["NextToken"]).decode().split("/")
            stream = self._stream({"StreamName": name})
        else:
            stream, start = self._stream(request), request.get("ExclusiveStartShardId", "")
            wanted = request.get("ShardFilter", {"Type": "FROM_TRIM_HORIZON"})
            only(wanted, "Type", "ShardId")
            kind, start = wanted["Type"], wanted.get("ShardId", start)
        shards = [shard for shard in _filtered(stream.listed(), kind) if shard.id > start]
        page = shards[: request.get("MaxResults", LIST_SHARDS_MAX)]
        answer: dict[str, Any] = {"Shards": [shard.described() for shard in page]}
        if len(page) < len(shards):
            answer["NextToken"] = base64.b64encode(f"{stream.name}/{page[-1].id}/{kind}".encode()).decode()
        return answer

    def split_shard(self, request: Request) -> dict[str, Any]:
        only(request, "StreamName", "StreamARN", "ShardToSplit", "NewStartingHashKey")
        stream = self._changeable(request)
        shard, at = _open_shard(stream, request["ShardToSplit"]), int(request["NewStartingHashKey"])
        if not shard.first < at <= shard.last:
            raise Refusal("InvalidArgumentException", f"NewStartingHashKey {at} is not inside of shard {shard.id}.")
        self._after_change(stream, lambda: stream.split(shard, at))
        return {}

    def merge_shards(self, request: Request) -> dict[str, Any]:
        only(request, "StreamName", "StreamARN", "ShardToMerge", "AdjacentShardToMerge")
        stream = self._changeable(request)
        one = _open_shard(stream, request["ShardToMerge"])
        other = _open_shard(stream, request["AdjacentShardToMerge"])
        if one.last + 1 != other.first and other.last + 1 != one.first:
            raise Refusal("InvalidArgumentException", f"Shards {one.id} and {other.id} are not adjacent.")
        self._after_change(stream, lambda: stream.merge(one, other))
        return {}

    def update_shard_count(self, request: Request) -> dict[str, Any]:
        only(request, "StreamName", "StreamARN", "TargetShardCount", "ScalingType")
        stream, target = self._changeable(request), request["TargetShardCount"]
        current = len(stream.open)
        if not (current + 1) // 2 <= target <= 2 * current:
            raise Refusal("LimitExceededException", f"{current} shards may become half or twice as many, not {target}.")
        self._after_change(stream, lambda: stream.resize(target))
        return {"StreamName": stream.name, "CurrentShardCount": current, "TargetShardCount": target}

    # --- records --------------------------------------------------------------------------------------------------

    def put_record(self, request: Request) -> dict[str, Any]:
        only(request, "StreamName", "StreamARN", "Data", "PartitionKey", "ExplicitHashKey", "SequenceNumberForOrdering")
        stream = self._stream(request, usable=True)
        shard, sequence = self._put(stream, request, _record_size(request, 0), time.time())
        if sequence is None:
            raise Refusal("ProvisionedThroughputExceededException", _rate_exceeded(stream, shard))
        return {"ShardId": shard.id, "SequenceNumber": str(sequence)}

    def put_records(self, request: Request) -> bytes:
        only(request, "StreamName", "StreamARN", "Records")
        stream, records = self._stream(request, usable=True), request["Records"]
        if not 1 <= len(records) <= CALL_RECORDS_MAX:
            raise _invalid("records", f"Member must have length between 1 and {CALL_RECORDS_MAX}")
        sizes = [_record_size(record, number) for number, record in enumerate(records)]
        if sum(sizes) > CALL_BYTES_MAX:
            raise Refusal("InvalidArgumentException", f"Records size exceeds {CALL_BYTES_MAX:,} bytes")
        now = time.time()
        results = []
        failed = 0
        for record, size in zip(records, sizes, strict=True):
            shard, sequence = self._put(stream, record, size, now)
            if sequence is None:
                failed += 1
                results.append(
                    f'{{"ErrorCode":"ProvisionedThroughputExceededException",'
                    f'"ErrorMessage":"{_rate_exceeded(stream, shard)}"}}'
                )
            else:
                results.append(f'{{"SequenceNumber":"{sequence}","ShardId":"{shard.id}"}}')
        return f'{{"FailedRecordCount":{failed},"Records":[{",".join(results)}]}}'.encode()

    def _put(self, stream: Stream, record: Request, size: int, now: float) -> tuple[Shard, int | None]:
        """The record's shard, and its number there; None: throttled."""
        key, explicit = record["PartitionKey"], record.get("ExplicitHashKey")
        hash_key = int(hashlib.md5(key.encode()).hexdigest(), 16) if explicit is None else int(explicit)  # noqa: S324
        shard = stream.shard_of(hash_key)
        if not shard.accepts(size):
            return shard, None
        sequence = stream.next_sequence(shard.number)
        shard.add(sequence, record["Data"], key, size, now)
        return shard, sequence

    def get_shard_iterator(self, request: Request) -> dict[str, Any]:
        names = ("ShardId", "ShardIteratorType", "StartingSequenceNumber", "Timestamp")
        only(request, "StreamName", "StreamARN", *names)
        stream = self._stream(request, usable=True)
        shard = stream.shard(request["ShardId"])
        if not shard.give_iterator():
            raise Refusal("ProvisionedThroughputExceededException", _rate_exceeded(stream, shard))
        return {"ShardIterator": _iterator(stream, shard, _position(stream, shard, request))}

    def get_records(self, request: Request) -> bytes:
        only(request, "ShardIterator", "Limit", "StreamARN")
        limit = request.get("Limit", READ_RECORDS_MAX)
        if not 1 <= limit <= READ_RECORDS_MAX:
            raise _invalid("limit", f"Member must have value between 1 and {READ_RECORDS_MAX}")
        name, shard_id, position = _opened(request["ShardIterator"])
        stream = self._stream({"StreamName": name}, usable=True)
        shard = stream.shard(shard_id)
        now = time.time()
        shard.forget(now - stream.retention_h * 3600)
        part = shard.read(position, limit)
        if part is None:
            raise Refusal("ProvisionedThroughputExceededException", _rate_exceeded(stream, shard))
        start, end = part
        records = [
            {"SequenceNumber": str(sequence), "ApproximateArrivalTimestamp": arrived, "Data": data, "PartitionKey": key}
            for sequence, arrived, (data, key) in zip(
                shard.sequences[start:end], shard.arrived[start:end], shard.records[start:end], strict=True
            )
        ]
        at_tip = end == len(shard.records)
        answer: dict[str, Any] = {"Records": records}
        answer["MillisBehindLatest"] = 0 if at_tip else max(1, int((now - shard.arrived[end]) * 1000))
        if at_tip and shard.closed is not None:
            answer["ChildShards"] = [_child(child) for child in shard.children]
        else:
            following = shard.sequences[end - 1] + 1 if end > start else position
            answer["NextShardIterator"] = _iterator(stream, shard, following)
        return orjson.dumps(answer)

    # --- what they share ------------------------------------------------------------------------------------------

    def _stream(self, request: Request, *, usable: bool = False) -> Stream:
        name = request.get("StreamName") or request.get("StreamARN", "").rpartition("/")[2]
        stream = self._streams.get(name)
        if stream is None or (usable and stream.status in ("CREATING", "DELETING")):
            raise Refusal("ResourceNotFoundException", f"Stream {name} under account {ACCOUNT} not found.")
        return stream

    def _changeable(self, request: Request) -> Stream:
        stream = self._stream(request)
        if stream.status != "ACTIVE":
            message = f"Stream {stream.name} under account {ACCOUNT} not ACTIVE, instead in state {stream.status}"
            raise Refusal("ResourceInUseException", message)
        return stream

    def _after_change(self, stream: Stream, change: Callable[[], None]) -> None:
        """Reading and writing go on meanwhile, by the shards as they were."""

        def done() -> None:
            change()
            if stream.status != "DELETING":
                stream.status = "ACTIVE"

        if stream.status != "CREATING":
            stream.status = "UPDATING"
        asyncio.get_running_loop().call_later(self._change_s, done)


def _described(stream: Stream) -> dict[str, Any]:
    return {
        "StreamName": stream.name,
        "StreamARN": f"arn:aws:kinesis:{REGION}:{ACCOUNT}:stream/{stream.name}",
        "StreamStatus": stream.status,
        "StreamModeDetails": {"StreamMode": stream.mode},
        "RetentionPeriodHours": stream.retention_h,
        "StreamCreationTimestamp": stream.created,
        "EnhancedMonitoring": [{"ShardLevelMetrics": []}],
        "EncryptionType": "NONE",
    }


def _filtered(shards: list[Shard], kind: str) -> list[Shard]:
    """Those of a ShardFilter; how far AFTER_SHARD_ID goes, its ShardId says."""
    listed = {shard.id for shard in shards}
    chosen: dict[str, Callable[[Shard], bool]] = {
        "FROM_TRIM_HORIZON": lambda shard: True,
        "AFTER_SHARD_ID": lambda shard: True,
        "AT_TRIM_HORIZON": lambda shard: listed.isdisjoint(shard.parents),
        "AT_LATEST": lambda shard: shard.closed is None,
    }
    if kind not in chosen:
        raise Refusal(NOT_KNOWN, f"the stand-in does not know the ShardFilter {kind}", status=501)
    return [shard for shard in shards if chosen[kind](shard)]


def _open_shard(stream: Stream, name: str) -> Shard:
    shard = stream.shard(name)
    if shard.closed is not None:
        raise Refusal("InvalidArgumentException", f"Shard {name} in stream {stream.name} is closed.")
    return shard


def _child(shard: Shard) -> dict[str, Any]:
    described = shard.described()
    return {"ShardId": shard.id, "ParentShards": list(shard.parents), "HashKeyRange": described["HashKeyRange"]}


def _record_size(record: Request, number: int) -> int:
    """Checks a record of a request; data and partition key in bytes."""
    place = f"records.{number + 1}.member"
    key, explicit = record.get("PartitionKey"), record.get("ExplicitHashKey")
    try:
        size = len(binascii.a2b_base64(record["Data"], strict_mode=True))
    except (KeyError, TypeError, ValueError):
        raise Refusal("SerializationException", "") from None
    if not isinstance(key, str) or not 1 <= len(key) <= 256:
        raise _invalid(f"{place}.partitionKey", "Member must have length between 1 and 256")
    if explicit is not None:
        if not explicit.isdecimal() or (explicit[0] == "0" and explicit != "0") or len(explicit) > 39:
            raise _invalid(f"{place}.explicitHashKey", "Member must satisfy regular expression pattern: 0|([1-9]\\d*)")
        if int(explicit) >= HASH_KEYS:
            raise Refusal("InvalidArgumentException", f"Invalid ExplicitHashKey: {explicit} is not below 2^128.")
    size += len(key.encode())
    if size > RECORD_BYTES_MAX:
        raise _invalid(f"{place}.data", f"Member must have length less than or equal to {RECORD_BYTES_MAX}")
    return size


def _position(stream: Stream, shard: Shard, request: Request) -> int:
    """The lowest sequence number that an iterator of the kind wanted reads."""
    kind: str = request["ShardIteratorType"]
    if kind == "TRIM_HORIZON":
        return 0
    if kind == "LATEST":
        return stream.next_sequence(shard.number)
    if kind == "AT_TIMESTAMP":
        at = float(request["Timestamp"])
        if at > time.time():
            raise Refusal("InvalidArgumentException", f"The timestampInMillis parameter {at} is in the future.")
        index = bisect_left(shard.arrived, at)
        return shard.sequences[index] if index < len(shard.sequences) else stream.next_sequence(shard.number)
    if kind not in ("AT_SEQUENCE_NUMBER", "AFTER_SEQUENCE_NUMBER"):
        raise _invalid("shardIteratorType", "Member must satisfy enum value set")
    number: str = request.get("StartingSequenceNumber", "")
    if not number.isdecimal() or not stream.came_from(int(number), shard):
        raise Refusal(
            "InvalidArgumentException",
            f"StartingSequenceNumber {number} used in GetShardIterator on shard {shard.id} in stream {stream.name} "
            f"under account {ACCOUNT} is invalid because it did not come from this stream.",
        )
    return int(number) + (kind == "AFTER_SEQUENCE_NUMBER")


def _iterator(stream: Stream, shard: Shard, position: int, made: float | None = None) -> str:
    words = f"{time.time() if made is None else made}/{stream.name}/{shard.id}/{position}"
    return base64.b64encode(words.encode()).decode()


def _opened(iterator: str) -> tuple[str, str, int]:
    """What `_iterator` put in: (stream, shard, position)."""
    try:
        made, name, shard, position = base64.b64decode(iterator, validate=True).decode().split("/")
        age_s, at = time.time() - float(made), int(position)
    except ValueError:
        raise Refusal("InvalidArgumentException", "Invalid ShardIterator.") from None
    if age_s > ITERATOR_S:
        raise Refusal("ExpiredIteratorException", f"Iterator expired: it is {age_s:.0f} s old.")
    return name, shard, at


def _rate_exceeded(stream: Stream, shard: Shard) -> str:
    return f"Rate exceeded for shard {shard.id} in stream {stream.name} under account {ACCOUNT}."


def _invalid(member: str, constraint: str) -> Refusal:
    message = f"1 validation error detected: Value at '{member}' failed to satisfy constraint: {constraint}"
    return Refusal("ValidationException", message)


if __name__ == "__main__":
    told = arguments("A stand-in for Kinesis.").parse_args()
    serve("Kinesis_20131202", Kinesis(told.limits, told.change_s).actions, told.port)
