"""What upwell relies on of Kinesis, for whatever stands in for it, and for Kinesis itself.

Written from AWS's API reference, with boto3 as the client. Where a stand-in does otherwise its class names that in
`deviations`, and the suite asserts what it does instead: nothing is skipped. A stream of two shards serves most
tests, because AWS takes half a minute to make one.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, ClassVar, Literal

import pytest
from botocore.exceptions import ClientError

from tests.acceptance.compare import kinesis_client

Deviation = Literal[
    "never throttles",
    "calls of 5 MiB at most",
    "data of 1 MiB beside the key",
    "reads of any size",
    "always at the tip",
    "no child shards",
    "lists all shards at once",
    "no UpdateShardCount",
]

HASH_KEYS = 2**128
MIB = 1024 * 1024
# AWS makes and changes streams in half a minute, sometimes in more.
READY_S = 180.0
READ_S = 30.0


class _Service:
    """A stream of its own in the service under test, and what the tests do with it."""

    deviations: ClassVar[frozenset[Deviation]] = frozenset()

    @pytest.fixture(scope="class")
    @classmethod
    def endpoint(cls) -> Iterator[str]:
        """The service's URL."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def client(cls, endpoint: str) -> Any:
        # One attempt: what is refused must be seen. What botocore would refuse by itself must be sent.
        return kinesis_client(endpoint, retries={"total_max_attempts": 1}, parameter_validation=False)

    @pytest.fixture(scope="class")
    @classmethod
    def new_stream(cls, client: Any) -> Iterator[Callable[[int], str]]:
        names: list[str] = []

        def create(shards: int) -> str:
            names.append(f"upwell-test-{uuid.uuid4().hex[:12]}")
            client.create_stream(StreamName=names[-1], ShardCount=shards)
            await_active(client, names[-1])
            return names[-1]

        yield create
        for name in names:
            client.delete_stream(StreamName=name)

    @pytest.fixture(scope="class")
    @classmethod
    def stream(cls, new_stream: Callable[[int], str]) -> str:
        return new_stream(2)


def await_active(client: Any, stream: str) -> None:
    _await(lambda: bool(summary(client, stream)["StreamStatus"] == "ACTIVE"), f"the stream {stream} is not active")


def await_gone(client: Any, stream: str) -> None:
    missing = "ResourceNotFoundException"
    _await(lambda: refused(lambda: summary(client, stream)) == missing, f"the stream {stream} is still there")


def _await(condition: Callable[[], bool], otherwise: str) -> None:
    """Asks more and more seldom: AWS allows few descriptions a second."""
    deadline, pause_s = time.monotonic() + READY_S, 0.01
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(pause_s)
        pause_s = min(2.0, 2 * pause_s)


def summary(client: Any, stream: str) -> Any:
    return client.describe_stream_summary(StreamName=stream)["StreamDescriptionSummary"]


def shards(client: Any, stream: str) -> list[Any]:
    """By id."""
    return sorted(client.list_shards(StreamName=stream)["Shards"], key=lambda shard: str(shard["ShardId"]))


def open_shards(client: Any, stream: str) -> list[Any]:
    """By hash key."""
    found = [shard for shard in shards(client, stream) if "EndingSequenceNumber" not in shard["SequenceNumberRange"]]
    return sorted(found, key=hash_keys)


def hash_keys(shard: Any) -> tuple[int, int]:
    return int(shard["HashKeyRange"]["StartingHashKey"]), int(shard["HashKeyRange"]["EndingHashKey"])


def record(data: bytes, at: int | None = None, key: str = "k") -> dict[str, Any]:
    """`at`: its explicit hash key."""
    return {"Data": data, "PartitionKey": key, **({} if at is None else {"ExplicitHashKey": str(at)})}


def put(client: Any, stream: str, records: Sequence[dict[str, Any]]) -> list[Any]:
    """Each record's answer; all must have been taken. AWS may need a second for that."""
    deadline = time.monotonic() + READ_S
    results: dict[int, Any] = {}
    left = dict(enumerate(records))
    while left:
        answer = client.put_records(StreamName=stream, Records=list(left.values()))
        for number, result in zip(list(left), answer["Records"], strict=True):
            if "ErrorCode" not in result:
                results[number] = result
                del left[number]
        assert time.monotonic() < deadline, f"{len(left)} records were not taken"
        if left:
            time.sleep(0.5)
    return [results[number] for number in range(len(records))]


def iterator(client: Any, stream: str, shard: str, kind: str, **start: Any) -> str:
    place = {"StreamName": stream, "ShardId": shard, "ShardIteratorType": kind}
    return str(_in_time(partial(client.get_shard_iterator, **place, **start))["ShardIterator"])


def get(client: Any, iterator: str, limit: int = 10_000) -> Any:
    """One read."""
    return _in_time(partial(client.get_records, ShardIterator=iterator, Limit=limit))


def _in_time(call: Callable[[], Any]) -> Any:
    """The answer, where AWS throttles after the wait that it asks for: five a second from a shard."""
    deadline = time.monotonic() + READ_S
    while True:
        try:
            return call()
        except ClientError as error:
            if error.response["Error"]["Code"] != "ProvisionedThroughputExceededException":
                raise
            assert time.monotonic() < deadline, "throttled all the time"
            time.sleep(0.3)


def read(client: Any, start: str, count: int) -> list[Any]:
    """`count` records from an iterator on, which may take several reads; more than that is a failure."""
    deadline = time.monotonic() + READ_S
    found: list[Any] = []
    position: str | None = start
    while len(found) < count and position is not None:
        answer = get(client, position)
        found += answer["Records"]
        position = answer.get("NextShardIterator")
        assert time.monotonic() < deadline, f"{len(found)} of {count} records after {READ_S:.0f} s"
    assert len(found) == count
    return found


def read_to_end(client: Any, start: str) -> tuple[list[Any], Any]:
    """All records of a closed shard, and the last answer, which has no iterator."""
    deadline = time.monotonic() + READ_S
    found: list[Any] = []
    answer = get(client, start)
    while True:
        found += answer["Records"]
        if answer.get("NextShardIterator") is None:
            return found, answer
        assert time.monotonic() < deadline, "a closed shard without an end"
        answer = get(client, answer["NextShardIterator"])


def refused(call: Callable[[], Any]) -> str:
    """The name of the error; empty where there was none."""
    try:
        call()
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return ""


class KinesisServiceContract(_Service):
    """Streams, shards, records, iterators."""

    def expired_iterator(self, client: Any, stream: str, shard: str) -> str:
        """An iterator that is older than five minutes; AWS's own can only be waited for."""
        old = iterator(client, stream, shard, "TRIM_HORIZON")
        time.sleep(310)
        return old

    # --- streams and shards ---------------------------------------------------------------------------------------

    def test_a_stream_is_described(self, client: Any, stream: str) -> None:
        found = summary(client, stream)
        assert found["StreamName"] == stream
        assert found["OpenShardCount"] == 2
        assert found["RetentionPeriodHours"] == 24
        assert abs(found["StreamCreationTimestamp"] - datetime.now(UTC)) < timedelta(minutes=10)

    def test_a_second_stream_of_the_name_is_refused(self, client: Any, stream: str) -> None:
        assert refused(lambda: client.create_stream(StreamName=stream, ShardCount=1)) == "ResourceInUseException"

    @pytest.mark.parametrize("name", ["", "s" * 129, "a/b", "ä"])
    def test_a_stream_has_a_plain_name(self, client: Any, name: str) -> None:
        refusal = refused(lambda: client.create_stream(StreamName=name, ShardCount=1))
        assert refusal in ("ValidationException", "InvalidArgumentException")

    def test_what_is_not_there_is_refused_by_name(self, client: Any, stream: str) -> None:
        name = f"upwell-test-none-{uuid.uuid4().hex[:12]}"
        records = [record(b"x")]
        for call in (
            lambda: client.describe_stream_summary(StreamName=name),
            lambda: client.list_shards(StreamName=name),
            lambda: client.put_records(StreamName=name, Records=records),
            lambda: iterator(client, name, "shardId-000000000000", "LATEST"),
        ):
            assert refused(call) == "ResourceNotFoundException"
        with pytest.raises(ClientError) as missing:
            iterator(client, stream, "shardId-000000000077", "LATEST")
        assert missing.value.response["Error"]["Code"] == "ResourceNotFoundException"
        # By these words a missing shard is told from a missing stream.
        assert "Shard shardId-000000000077 in stream" in missing.value.response["Error"]["Message"]

    def test_the_shards_share_the_hash_keys(self, client: Any, stream: str) -> None:
        first, second = shards(client, stream)
        assert [first["ShardId"], second["ShardId"]] == ["shardId-000000000000", "shardId-000000000001"]
        assert [hash_keys(first), hash_keys(second)] == [(0, HASH_KEYS // 2 - 1), (HASH_KEYS // 2, HASH_KEYS - 1)]
        for shard in (first, second):
            assert "ParentShardId" not in shard
            assert int(shard["SequenceNumberRange"]["StartingSequenceNumber"]) > 0

    def test_shards_are_listed_in_pages(self, client: Any, stream: str) -> None:
        page = client.list_shards(StreamName=stream, MaxResults=1)
        if "lists all shards at once" in self.deviations:
            assert len(page["Shards"]) == 2
            assert "NextToken" not in page
            return
        assert [shard["ShardId"] for shard in page["Shards"]] == ["shardId-000000000000"]
        # The token knows the stream; its name beside it is refused.
        both = {"NextToken": page["NextToken"], "StreamName": stream}
        assert refused(lambda: client.list_shards(**both)) == "InvalidArgumentException"
        rest = client.list_shards(NextToken=page["NextToken"], MaxResults=1)
        assert [shard["ShardId"] for shard in rest["Shards"]] == ["shardId-000000000001"]
        assert "NextToken" not in rest

    def test_the_retention_period_can_be_raised(self, client: Any, stream: str) -> None:
        client.increase_stream_retention_period(StreamName=stream, RetentionPeriodHours=25)
        await_active(client, stream)
        assert summary(client, stream)["RetentionPeriodHours"] == 25
        client.decrease_stream_retention_period(StreamName=stream, RetentionPeriodHours=24)
        await_active(client, stream)

    def test_a_stream_made_anew_knows_no_numbers_of_the_old_one(self, client: Any, stream: str) -> None:
        name = f"upwell-test-{uuid.uuid4().hex[:12]}"
        numbers = []
        for _ in range(2):
            client.create_stream(StreamName=name, ShardCount=1)
            await_active(client, name)
            numbers += [result["SequenceNumber"] for result in put(client, name, [record(b"x")])]
            old = {"StartingSequenceNumber": numbers[0]}
            refusal = refused(partial(iterator, client, name, "shardId-000000000000", "AFTER_SEQUENCE_NUMBER", **old))
            assert refusal == ("" if len(numbers) == 1 else "InvalidArgumentException")
            client.delete_stream(StreamName=name)
            await_gone(client, name)
            time.sleep(1.1)  # kinesalite's clock has whole seconds

    # --- writing --------------------------------------------------------------------------------------------------

    def test_each_record_is_answered_in_its_place(self, client: Any, stream: str) -> None:
        places = [0, HASH_KEYS - 1, HASH_KEYS // 2 - 1, HASH_KEYS // 2, 1]
        answer = client.put_records(StreamName=stream, Records=[record(b"x", at) for at in places])
        assert answer["FailedRecordCount"] == 0
        found = [result["ShardId"][-1] for result in answer["Records"]]
        assert found == ["0", "1", "0", "1", "0"]
        assert len({result["SequenceNumber"] for result in answer["Records"]}) == 5

    def test_without_an_explicit_hash_key_the_partition_keys_md5_decides(self, client: Any, stream: str) -> None:
        keys = [f"lane-{number:04}" for number in range(20)]
        results = put(client, stream, [record(b"x", key=key) for key in keys])
        wanted = [int(hashlib.md5(key.encode()).hexdigest()[0], 16) // 8 for key in keys]  # noqa: S324
        assert [int(result["ShardId"][-1]) for result in results] == wanted
        assert set(wanted) == {0, 1}

    @pytest.mark.parametrize(
        ("at", "name"),
        [(str(HASH_KEYS), "InvalidArgumentException"), ("abc", "ValidationException")],
    )
    def test_a_hash_key_that_is_none_is_refused(self, client: Any, stream: str, at: str, name: str) -> None:
        wrong = {**record(b"x"), "ExplicitHashKey": at}
        assert refused(lambda: client.put_records(StreamName=stream, Records=[wrong])) == name

    def test_up_to_five_hundred_records_a_call(self, client: Any, stream: str) -> None:
        records = [record(b"x", number * 2**119) for number in range(501)]
        assert len(put(client, stream, records[:500])) == 500
        for many in ([], records):
            refusal = refused(partial(client.put_records, StreamName=stream, Records=many))
            assert refusal in ("ValidationException", "InvalidArgumentException")

    def test_a_record_has_up_to_a_mebibyte_with_its_key(self, client: Any, stream: str) -> None:
        largest = bytes(MIB - len("lane-0001"))
        (result,) = put(client, stream, [record(largest, 0, "lane-0001")])
        place = {"StartingSequenceNumber": result["SequenceNumber"]}
        (back,) = read(client, iterator(client, stream, result["ShardId"], "AT_SEQUENCE_NUMBER", **place), 1)
        assert back["Data"] == largest
        beyond = refused(lambda: client.put_records(StreamName=stream, Records=[record(bytes(MIB + 1), 0)]))
        assert beyond in ("ValidationException", "InvalidArgumentException")
        with_key = refused(lambda: client.put_records(StreamName=stream, Records=[record(bytes(MIB), 0)]))
        if "data of 1 MiB beside the key" in self.deviations:
            assert with_key == ""
        else:
            assert with_key in ("ValidationException", "InvalidArgumentException")

    def test_a_call_has_up_to_ten_mebibytes(self, client: Any, stream: str) -> None:
        def call(size: int) -> str:
            records = [record(bytes(size // 20), number * 2**123) for number in range(20)]
            return refused(lambda: client.put_records(StreamName=stream, Records=records))

        assert call(5 * MIB - 200) == ""  # what the sink uses; a shard may throttle, which is no refusal
        if "calls of 5 MiB at most" in self.deviations:
            assert call(8 * MIB) == "413"
        else:
            assert call(8 * MIB) == ""
            assert call(11 * MIB) in ("ValidationException", "InvalidArgumentException")

    @pytest.mark.parametrize("key", ["", "k" * 257])
    def test_a_partition_key_has_one_to_256_characters(self, client: Any, stream: str, key: str) -> None:
        wrong = [record(b"x", 0, key)]
        refusal = refused(lambda: client.put_records(StreamName=stream, Records=wrong))
        assert refusal in ("ValidationException", "InvalidArgumentException")

    # --- reading --------------------------------------------------------------------------------------------------

    def test_what_was_acknowledged_in_order_is_read_in_order(self, client: Any, stream: str) -> None:
        start = iterator(client, stream, "shardId-000000000001", "LATEST")
        sent, numbers = [], []
        for number in range(12):
            sent += [b"a%d\x00\xff" % number, b"b%d" % number]
            numbers += put(client, stream, [record(data, HASH_KEYS - 1) for data in sent[-2:]])
        found = read(client, start, 24)
        # Within one call AWS promises no order, and has no need to: upwell never sends two of a lane at once.
        calls = [{each["Data"] for each in found[place : place + 2]} for place in range(0, 24, 2)]
        assert calls == [set(sent[place : place + 2]) for place in range(0, 24, 2)]
        sequences = [int(each["SequenceNumber"]) for each in found]
        assert sequences == sorted(set(sequences))
        assert set(sequences) == {int(result["SequenceNumber"]) for result in numbers}
        assert {each["PartitionKey"] for each in found} == {"k"}

    def test_an_iterator_starts_where_it_is_told(self, client: Any, stream: str) -> None:
        shard = "shardId-000000000000"
        before = datetime.now(UTC)
        time.sleep(1.1)  # kinesalite's clock has whole seconds
        numbers = [put(client, stream, [record(b"%d" % number, 0)])[0]["SequenceNumber"] for number in range(4)]

        def data(kind: str, count: int, **start: Any) -> list[bytes]:
            return [each["Data"] for each in read(client, iterator(client, stream, shard, kind, **start), count)]

        second = {"StartingSequenceNumber": numbers[1]}
        assert data("AT_SEQUENCE_NUMBER", 3, **second) == [b"1", b"2", b"3"]
        assert data("AFTER_SEQUENCE_NUMBER", 2, **second) == [b"2", b"3"]
        assert data("AT_TIMESTAMP", 4, Timestamp=before + timedelta(seconds=0.5)) == [b"0", b"1", b"2", b"3"]
        everything = iterator(client, stream, shard, "TRIM_HORIZON")
        assert read_until(client, everything, b"3")[-4:] == [b"0", b"1", b"2", b"3"]
        newest = iterator(client, stream, shard, "LATEST")
        put(client, stream, [record(b"4", 0)])
        assert [each["Data"] for each in read(client, newest, 1)] == [b"4"]

    def test_a_number_of_another_place_is_refused(self, client: Any, stream: str) -> None:
        (elsewhere,) = put(client, stream, [record(b"x", HASH_KEYS - 1)])
        for number in ("12", "no number", elsewhere["SequenceNumber"]):
            start = {"StartingSequenceNumber": number}
            refusal = refused(
                partial(iterator, client, stream, "shardId-000000000000", "AFTER_SEQUENCE_NUMBER", **start)
            )
            assert refusal in ("InvalidArgumentException", "ValidationException")

    def test_an_iterator_that_is_none_or_too_old_is_refused_by_name(self, client: Any, stream: str) -> None:
        assert refused(lambda: client.get_records(ShardIterator="x" * 200)) == "InvalidArgumentException"
        old = self.expired_iterator(client, stream, "shardId-000000000000")
        assert refused(lambda: client.get_records(ShardIterator=old)) == "ExpiredIteratorException"

    def test_a_read_takes_a_limit_and_goes_on_after_it(self, client: Any, stream: str) -> None:
        start = iterator(client, stream, "shardId-000000000000", "LATEST")
        for number in range(3):
            put(client, stream, [record(b"%d" % number, 0)])
        first = read_some(client, start, limit=2)
        assert [each["Data"] for each in first["Records"]] == [b"0", b"1"]
        if "always at the tip" in self.deviations:
            assert first["MillisBehindLatest"] == 0
        else:
            assert first["MillisBehindLatest"] > 0
        arrived = first["Records"][0]["ApproximateArrivalTimestamp"]
        assert abs(arrived - datetime.now(UTC)) < timedelta(minutes=1)
        rest = read_some(client, first["NextShardIterator"], limit=10_000)
        assert [each["Data"] for each in rest["Records"]] == [b"2"]
        tip = get(client, rest["NextShardIterator"])
        assert (tip["Records"], tip["MillisBehindLatest"]) == ([], 0)
        assert tip["NextShardIterator"]
        assert refused(lambda: client.get_records(ShardIterator=start, Limit=10_001)) in (
            "ValidationException",
            "InvalidArgumentException",
        )

    def test_a_read_has_up_to_ten_mebibytes(self, client: Any, new_stream: Callable[[int], str]) -> None:
        stream = new_stream(1)
        for _ in range(3):
            put(client, stream, [record(bytes(MIB - 1)) for _ in range(4)])
        answer = get(client, iterator(client, stream, "shardId-000000000000", "TRIM_HORIZON"))
        if "reads of any size" in self.deviations:
            assert len(answer["Records"]) == 12
        else:
            assert 0 < len(answer["Records"]) <= 10
            rest = read(client, answer["NextShardIterator"], 12 - len(answer["Records"]))
            assert all(len(each["Data"]) == MIB - 1 for each in rest)

    # --- resharding -----------------------------------------------------------------------------------------------

    def test_a_split_shard_ends_and_has_two_children(self, client: Any, new_stream: Callable[[int], str]) -> None:
        stream = new_stream(1)
        parent = "shardId-000000000000"
        latest = iterator(client, stream, parent, "LATEST")
        (result,) = put(client, stream, [record(b"before", 1)])
        at = HASH_KEYS // 3
        client.split_shard(StreamName=stream, ShardToSplit=parent, NewStartingHashKey=str(at))
        await_active(client, stream)
        closed, *children = shards(client, stream)
        assert int(closed["SequenceNumberRange"]["EndingSequenceNumber"]) > int(result["SequenceNumber"])
        assert [child["ParentShardId"] for child in children] == [parent, parent]
        assert [hash_keys(child) for child in open_shards(client, stream)] == [(0, at - 1), (at, HASH_KEYS - 1)]

        low, high = (child["ShardId"] for child in open_shards(client, stream))
        after = put(client, stream, [record(b"low", at - 1), record(b"high", at)])
        assert [each["ShardId"] for each in after] == [low, high]
        for start in (latest, iterator(client, stream, parent, "TRIM_HORIZON")):
            found, end = read_to_end(client, start)
            assert [each["Data"] for each in found] == [b"before"]
            self.check_children(end, {low, high}, [parent])
        beyond = {"StartingSequenceNumber": result["SequenceNumber"]}
        found, _ = read_to_end(client, iterator(client, stream, parent, "AFTER_SEQUENCE_NUMBER", **beyond))
        assert found == []
        for shard, data in ((low, b"low"), (high, b"high")):
            (only,) = read(client, iterator(client, stream, shard, "TRIM_HORIZON"), 1)
            assert only["Data"] == data

    def test_merged_shards_end_and_have_one_child(self, client: Any, new_stream: Callable[[int], str]) -> None:
        stream = new_stream(2)
        one, other = (shard["ShardId"] for shard in shards(client, stream))
        put(client, stream, [record(b"one", 0), record(b"other", HASH_KEYS - 1)])
        client.merge_shards(StreamName=stream, ShardToMerge=one, AdjacentShardToMerge=other)
        await_active(client, stream)
        assert summary(client, stream)["OpenShardCount"] == 1
        (child,) = open_shards(client, stream)
        assert (child["ParentShardId"], child["AdjacentParentShardId"]) == (one, other)
        assert hash_keys(child) == (0, HASH_KEYS - 1)
        for parent, data in ((one, b"one"), (other, b"other")):
            found, end = read_to_end(client, iterator(client, stream, parent, "TRIM_HORIZON"))
            assert [each["Data"] for each in found] == [data]
            self.check_children(end, {child["ShardId"]}, [one, other])
        results = put(client, stream, [record(b"a", 0), record(b"b", HASH_KEYS - 1)])
        assert {result["ShardId"] for result in results} == {child["ShardId"]}

    def check_children(self, end: Any, children: set[str], parents: list[str]) -> None:
        if "no child shards" in self.deviations:
            assert "ChildShards" not in end
            return
        assert {child["ShardId"] for child in end["ChildShards"]} == children
        assert all(sorted(child["ParentShards"]) == parents for child in end["ChildShards"])

    def test_the_number_of_shards_is_doubled_and_halved(self, client: Any, new_stream: Callable[[int], str]) -> None:
        stream = new_stream(2)

        def resize(count: int) -> None:
            client.update_shard_count(StreamName=stream, TargetShardCount=count, ScalingType="UNIFORM_SCALING")

        if "no UpdateShardCount" in self.deviations:
            assert refused(lambda: resize(4)) == "UnknownOperationException"
            return
        for count in (4, 2):
            resize(count)
            await_active(client, stream)
            found = [hash_keys(shard) for shard in open_shards(client, stream)]
            assert [first for first, _ in found] == [number * HASH_KEYS // count for number in range(count)]
            put(client, stream, [record(b"%d" % number, number * 2**124) for number in range(16)])
        seen = [
            each["Data"]
            for shard in shards(client, stream)
            if "EndingSequenceNumber" in shard["SequenceNumberRange"]
            for each in read_to_end(client, iterator(client, stream, shard["ShardId"], "TRIM_HORIZON"))[0]
        ]
        assert sorted(seen) == sorted(b"%d" % number for number in range(16))


def read_until(client: Any, start: str, last: bytes) -> list[bytes]:
    """The data of all records up to the one that ends with `last`."""
    deadline = time.monotonic() + READ_S
    found: list[bytes] = []
    while not found or found[-1] != last:
        assert time.monotonic() < deadline, "the last record does not come"
        answer = get(client, start)
        found += [each["Data"] for each in answer["Records"]]
        start = answer["NextShardIterator"]
    return found


def read_some(client: Any, start: str, limit: int) -> Any:
    """The first answer that has records: AWS gives empty ones too."""
    deadline = time.monotonic() + READ_S
    while not (answer := get(client, start, limit))["Records"]:
        assert time.monotonic() < deadline, "no records come"
        start = answer["NextShardIterator"]
    return answer


class KinesisThrottlingContract(_Service):
    """What a shard takes and gives in a second, and how it says that it takes no more."""

    def test_beyond_a_mebibyte_a_second_single_records_are_refused(self, client: Any, stream: str) -> None:
        refusals: list[Any] = []
        others: list[Any] = []
        for _ in range(3):
            records = [*(record(bytes(MIB // 2), 0) for _ in range(5)), record(b"x", HASH_KEYS - 1)]
            answer = client.put_records(StreamName=stream, Records=records)
            failed = [result for result in answer["Records"] if "ErrorCode" in result]
            assert answer["FailedRecordCount"] == len(failed)
            others.append(answer["Records"][-1])
            refusals += failed
        # The other shard takes what is for it.
        assert all("ErrorCode" not in result and result["ShardId"].endswith("1") for result in others)
        if "never throttles" in self.deviations:
            assert refusals == []
            return
        assert refusals
        assert {result["ErrorCode"] for result in refusals} == {"ProvisionedThroughputExceededException"}
        assert all(result["ErrorMessage"] and "SequenceNumber" not in result for result in refusals)

    def test_beyond_a_thousand_records_a_second_they_are_refused(self, client: Any, stream: str) -> None:
        time.sleep(1.5)  # until the shard's second is whole again
        failed = 0
        for _ in range(5):
            answer = client.put_records(StreamName=stream, Records=[record(b"x", HASH_KEYS - 1)] * 500)
            failed += answer["FailedRecordCount"]
        assert (failed == 0) == ("never throttles" in self.deviations)

    def test_beyond_five_reads_a_second_they_are_refused(self, client: Any, stream: str) -> None:
        start = iterator(client, stream, "shardId-000000000001", "LATEST")
        names = {refused(lambda: client.get_records(ShardIterator=start)) for _ in range(20)}
        if "never throttles" in self.deviations:
            assert names == {""}
        else:
            assert names == {"", "ProvisionedThroughputExceededException"}

    def test_after_much_was_read_the_next_read_waits(self, client: Any, new_stream: Callable[[int], str]) -> None:
        stream = new_stream(1)
        for _ in range(2):
            put(client, stream, [record(bytes(MIB - 1)) for _ in range(4)])
        start = iterator(client, stream, "shardId-000000000000", "TRIM_HORIZON")
        first = get(client, start)
        size = sum(len(each["Data"]) for each in first["Records"])
        name = refused(lambda: client.get_records(ShardIterator=start))
        if "never throttles" in self.deviations:
            assert name == ""
        else:
            assert size > 2 * MIB
            assert name == "ProvisionedThroughputExceededException"
