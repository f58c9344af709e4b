"""What the proxy knows of Kinesis and DynamoDB: their refusals, and which shard a record or an item belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final
from zlib import crc32

import orjson

from lab.faults.decide import Kind
from lab.messages import Asked, Said

# The namespace that each service puts before the names of its errors; Kinesis has none.
_OWN: Final = {"dynamodb": "com.amazonaws.dynamodb.v20120810#"}
_EVERYBODYS: Final = "com.amazon.coral.service#"
_STAMP: Final = "%Y%m%dT%H%M%SZ"  # as in X-Amz-Date
THROTTLED: Final = "ProvisionedThroughputExceededException"
FAILED: Final = "InternalFailure"
# Parts of a DynamoDB table that are throttled apart from each other.
PARTITIONS: Final = 4
# How far the time of a request may be off.
SKEW_S_MAX: Final = 300.0

Ask = Callable[[Asked], Awaitable[Said]]


def refusal(kind: Kind, request: Asked, aws_now: float, *, busy: bool = False) -> Said:
    """The answer to a request that is refused as a whole. `busy`: the other one of two ways to fail."""
    own = _OWN.get(request.service, "")
    if kind in ("throttled", "shard_throttled"):
        return _error(400, own + THROTTLED, "The rate is above what the shard or the table takes.")
    if kind == "keys_expired":
        return _error(
            400, _EVERYBODYS + "ExpiredTokenException", "The security token included in the request is expired"
        )
    if kind == "clock_skewed":
        return _error(400, _EVERYBODYS + "InvalidSignatureException", _skew(request, aws_now))
    assert kind in ("failed_before", "failed_after"), kind
    if busy:
        return _error(503, "ServiceUnavailable", "The request has failed due to a temporary failure of the server.")
    return _error(500, own + ("InternalServerError" if own else FAILED), "Internal server error")


def _error(status: int, reason: str, message: str) -> Said:
    return Said.of({"__type": reason, "message": message}, status)


def _skew(request: Asked, aws_now: float) -> str:
    """As both services word it."""
    stamp, now = request.headers.get("x-amz-date", ""), _stamp(aws_now)
    if skew_s(request, aws_now) > 0:
        limit = _stamp(aws_now + SKEW_S_MAX)
        return f"Signature not yet current: {stamp} is still later than {limit} ({now} + 5 min.)"
    return f"Signature expired: {stamp} is now earlier than {_stamp(aws_now - SKEW_S_MAX)} ({now} - 5 min.)"


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime(_STAMP)


def skew_s(request: Asked, aws_now: float) -> float:
    """How far the request's time is ahead of AWS's; 0 where it names none."""
    try:
        named = datetime.strptime(request.headers.get("x-amz-date", ""), _STAMP).replace(tzinfo=UTC)
    except ValueError:
        return 0.0
    return named.timestamp() - aws_now


class Shards:
    """Which shard a record goes to, and which part of a table an item lies in; learned by asking the service."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._ranges: dict[str, list[tuple[int, int, str]]] = {}  # stream → (first and last hash key, shard)
        self._keys: dict[str, str] = {}  # table → the attribute of its partition key

    async def of_records(self, request: Asked, payload: Mapping[str, Any]) -> list[str]:
        """The shard of each record of a PutRecords."""
        stream = _stream(payload)
        if stream not in self._ranges:
            self._ranges[stream] = await self._open_ranges(request, stream)
        return [_shard_of(record, self._ranges[stream]) for record in payload["Records"]]

    def learn(self, payload: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> None:
        """Records went to these shards: one that is new says that the stream was resharded."""
        known = {shard for _, _, shard in self._ranges.get(_stream(payload), ())}
        if {answer["ShardId"] for answer in answers if "ShardId" in answer} - known:
            self._ranges.pop(_stream(payload), None)

    async def of_item(self, request: Asked) -> str | None:
        """partition-0 to partition-3, by the partition key; None where the request is not for one item."""
        payload = request.payload()
        item = payload.get("Key") or payload.get("Item")
        table = payload.get("TableName")
        if item is None or table is None:
            return None
        if table not in self._keys:
            answer = await self._ask(_other(request, "DescribeTable", {"TableName": table}))
            if answer.status != 200:
                return None
            schema = answer.payload["Table"]["KeySchema"]
            self._keys[table] = next(key["AttributeName"] for key in schema if key["KeyType"] == "HASH")
        return f"partition-{crc32(orjson.dumps(item.get(self._keys[table]))) % PARTITIONS}"

    async def _open_ranges(self, request: Asked, stream: str) -> list[tuple[int, int, str]]:
        answer = await self._ask(_other(request, "ListShards", {"StreamName": stream}))
        if answer.status != 200:
            return []
        open_shards = [
            (shard["HashKeyRange"], shard["ShardId"])
            for shard in answer.payload["Shards"]
            if shard["SequenceNumberRange"].get("EndingSequenceNumber") is None
        ]
        return [(int(keys["StartingHashKey"]), int(keys["EndingHashKey"]), shard) for keys, shard in open_shards]


def _other(request: Asked, action: str, payload: Mapping[str, Any]) -> Asked:
    """Another request by the same client. Its signature is not this one's, which no stand-in minds."""
    target = request.headers["x-amz-target"].partition(".")[0] + "." + action
    return replace(request, headers={**request.headers, "x-amz-target": target}, body=orjson.dumps(payload))


def _stream(payload: Mapping[str, Any]) -> str:
    return str(payload.get("StreamName") or payload.get("StreamARN", "").rpartition("/")[2])


def _shard_of(record: Mapping[str, Any], ranges: Sequence[tuple[int, int, str]]) -> str:
    """Empty where nobody knows."""
    given = record.get("ExplicitHashKey")
    hashed = hashlib.md5(record["PartitionKey"].encode(), usedforsecurity=False).digest()
    key = int(given) if given else int.from_bytes(hashed, "big")
    return next((shard for first, last, shard in ranges if first <= key <= last), "")


def without(request: Asked, payload: Mapping[str, Any], refused: Collection[int]) -> Asked:
    """The PutRecords request less some of its records."""
    kept = [record for number, record in enumerate(payload["Records"]) if number not in refused]
    return replace(request, body=orjson.dumps({**payload, "Records": kept}))


def joined(
    count: int, refused: Mapping[int, str], deleted: Mapping[int, str], stored: Sequence[Mapping[str, Any]]
) -> Said:
    """The answer to a PutRecords of which some records (number → the error's name) were refused, others (number →
    shard) deleted.
    """
    rest = iter(stored)
    answers = [
        {"ErrorCode": refused[number], "ErrorMessage": "Not stored."}
        if number in refused
        else {"SequenceNumber": "0", "ShardId": deleted[number]}
        if number in deleted
        else next(rest)
        for number in range(count)
    ]
    failed = sum("ErrorCode" in answer for answer in answers)
    return Said.of({"FailedRecordCount": failed, "Records": answers})
