"""Kinesis at its limits, its partial failures, and streams that are split and merged."""

import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from tests.fake_aws import Request, fake_service, ok, refused
from upwell.aws import AwsService
from upwell.envelope import PACKED_BYTES_MAX, ReceivedEvent, unpack_record
from upwell.errors import OperatorError, TransientError
from upwell.lanes import explicit_hash_key, partition_key
from upwell.model import ChangeEvent, Column, Kind, TableSchema, pack_version
from upwell.sinks.kinesis import CALL_BYTES_MAX, RECORD_BYTES_MAX, KinesisSink
from upwell.streams.kinesis import ITERATOR_EXPIRED, SHARD_GONE, KinesisStream

REGION = "eu-west-1"
READY_S = 20.0
NOTES = TableSchema(
    "public.notes", (Column("id", "integer", Kind.INT), Column("note", "text", Kind.TEXT)), ("id",), "postgresql"
)


def event(number: int, note: str, commit: int = 1) -> ChangeEvent:
    row = orjson.dumps([number, note])
    return ChangeEvent(NOTES, "u", pack_version(1, commit, 0), "2026-01-31T10:00:00Z", b"[%d]" % number, row, "insert")


@pytest.fixture
def service(kinesis_endpoint: str) -> Iterator[AwsService]:
    service = AwsService("kinesis", REGION, endpoint_url=kinesis_endpoint)
    yield service
    service.close()


@pytest.fixture
def stream(service: AwsService) -> str:
    name = f"test-{uuid.uuid4().hex[:12]}"
    service.call("CreateStream", {"StreamName": name, "ShardCount": 1})
    await_active(service, name)
    return name


def await_active(service: AwsService, stream: str) -> None:
    deadline = time.monotonic() + READY_S
    status = ""
    while status != "ACTIVE":
        assert time.monotonic() < deadline
        answer = service.call("DescribeStreamSummary", {"StreamName": stream})
        status = answer["StreamDescriptionSummary"]["StreamStatus"]
        time.sleep(0.01)


def read_all(stream: KinesisStream) -> Iterator[bytes]:
    """Every shard to its tip or end, parents before children."""
    for shard in stream.shards():
        iterator: str | None = stream.iterator(shard.id, None)
        while iterator is not None:
            read = stream.records(iterator)
            yield from (data for _, data in read.records)
            iterator = None if read.at_tip and not shard.closed else read.next_iterator


def notes(data: list[bytes]) -> list[Any]:
    return [item.values[1] for each in data for item in unpack_record(each).items if isinstance(item, ReceivedEvent)]


class TestLimits:
    def test_a_record_of_exactly_the_limit_goes_and_one_byte_more_does_not(
        self, service: AwsService, stream: str
    ) -> None:
        sink = KinesisSink("shop", stream, 4, service)
        spare = RECORD_BYTES_MAX - sink.pack(0, 1, 1, None, [event(1, "")]).size
        largest = sink.pack(0, 1, 1, None, [event(1, "x" * spare)])
        assert largest.size == RECORD_BYTES_MAX
        assert sink.send([largest]) == [None]
        assert notes(list(read_all(KinesisStream(service, stream)))) == ["x" * spare]
        beyond = sink.pack(0, 1, 1, None, [event(1, "x" * (spare + 1))])
        assert beyond.body is None
        assert f"{RECORD_BYTES_MAX + 1:,} bytes" in beyond.rejected[0].reason

    def test_records_are_packed_to_a_quarter_of_that(self, service: AwsService, stream: str) -> None:
        sink = KinesisSink("shop", stream, 4, service)
        items = [event(number, "x" * 1000) for number in range(2000)]
        seq = 0
        while items:
            seq += 1
            parcel = sink.pack(0, 1, seq, None, items)
            assert parcel.size <= PACKED_BYTES_MAX
            assert parcel.size > PACKED_BYTES_MAX * 0.95 or parcel.taken == len(items)
            del items[: parcel.taken]
        assert seq < 10

    def test_a_large_event_travels_alone(self, service: AwsService, stream: str) -> None:
        sink = KinesisSink("shop", stream, 4, service)
        items = [event(1, "a"), event(2, "b" * 300_000), event(3, "c")]
        assert [sink.pack(0, 1, 1, None, items[start:]).taken for start in range(3)] == [1, 1, 1]

    def test_a_call_of_five_hundred_records_is_taken(self, service: AwsService, stream: str) -> None:
        sink = KinesisSink("shop", stream, 512, service)
        parcels = [sink.pack(lane, 1, 1, None, [event(lane, f"n{lane}")]) for lane in range(sink.parcels_max)]
        assert list(sink.send(parcels)) == [None] * 500
        assert sorted(notes(list(read_all(KinesisStream(service, stream))))) == sorted(f"n{n}" for n in range(500))

    def test_a_call_of_five_mebibytes_is_taken(self, service: AwsService, stream: str) -> None:
        sink = KinesisSink("shop", stream, 8, service)
        spare = RECORD_BYTES_MAX - sink.pack(0, 1, 1, None, [event(1, "")]).size
        parcels = [sink.pack(lane, 1, 1, None, [event(1, "x" * spare)]) for lane in range(5)]
        assert sum(parcel.size for parcel in parcels) == CALL_BYTES_MAX
        assert list(sink.send(parcels)) == [None] * 5

    def test_compressed_records_are_measured_as_they_travel(self, service: AwsService, stream: str) -> None:
        sink = KinesisSink("shop", stream, 4, service, compression="zstd")
        parcel = sink.pack(0, 1, 1, None, [event(1, "x" * 2_000_000)])
        assert parcel.size < 10_000
        assert sink.send([parcel]) == [None]
        assert notes(list(read_all(KinesisStream(service, stream)))) == ["x" * 2_000_000]


class TestAnswers:
    """What kinesalite never gives: throttles, and calls that fail in part."""

    @pytest.mark.parametrize("seed", range(3))
    def test_each_parcel_gets_its_records_answer(self, seed: int) -> None:
        reasons = [None, "ProvisionedThroughputExceededException", "InternalFailure"]

        def partly(request: Request) -> bytes:
            results = [
                {"SequenceNumber": "1", "ShardId": "s"}
                if reason is None
                else {"ErrorCode": reason, "ErrorMessage": "m"}
                for reason in (reasons[(number + seed) % 3] for number in range(len(request.payload["Records"])))
            ]
            failed = sum("ErrorCode" in result for result in results)
            return ok({"FailedRecordCount": failed, "Records": results})

        with fake_service(partly) as fake:
            sink = KinesisSink("shop", "s", 16, AwsService("kinesis", REGION, endpoint_url=fake.url))
            parcels = [sink.pack(lane, 1, 1, None, [event(lane, "n")]) for lane in range(16)]
            parcels[5].body = None  # all its events were rejected
            answers = sink.send(parcels)
            sent = [lane for lane in range(16) if lane != 5]
            assert answers[5] is None
            for place, lane in enumerate(sent):
                reason = reasons[(place + seed) % 3]
                answer = answers[lane]
                assert (answer is None) is (reason is None)
                assert answer is None or answer.throttled is (reason == reasons[1])
            records = fake.requests[0].payload["Records"]
            assert [record["PartitionKey"] for record in records] == [partition_key(lane) for lane in sent]
            assert [record["ExplicitHashKey"] for record in records] == [explicit_hash_key(lane, 16) for lane in sent]
            sink.close()

    def test_a_throttled_call_is_transient_and_says_so(self) -> None:
        with fake_service(lambda request: refused("LimitExceededException")) as fake:
            sink = KinesisSink("shop", "s", 4, AwsService("kinesis", REGION, endpoint_url=fake.url))
            with pytest.raises(TransientError) as raised:
                sink.send([sink.pack(0, 1, 1, None, [event(1, "n")])])
            assert raised.value.throttled
            sink.close()

    @pytest.mark.parametrize(
        ("reason", "code"),
        [
            ("ResourceNotFoundException", "UW-KS-001"),
            ("ValidationException", "UW-KS-004"),
            ("AccessDeniedException", "UW-AWS-004"),
            ("KMSDisabledException", "UW-AWS-021"),
        ],
    )
    def test_what_only_a_person_can_mend_stops_it_with_a_remedy(self, reason: str, code: str) -> None:
        with fake_service(lambda request: refused(reason)) as fake:
            sink = KinesisSink("shop", "orders", 4, AwsService("kinesis", REGION, endpoint_url=fake.url))
            with pytest.raises(OperatorError) as raised:
                sink.send([sink.pack(0, 1, 1, None, [event(1, "n")])])
            assert raised.value.code == code
            assert raised.value.remedy
            sink.close()

    @pytest.mark.parametrize(
        ("status", "error"),
        [("CREATING", TransientError), ("DELETING", OperatorError), ("UPDATING", None), ("ACTIVE", None)],
    )
    def test_it_waits_for_a_stream_that_is_being_made(self, status: str, error: type[Exception] | None) -> None:
        with fake_service(lambda request: ok({"StreamDescriptionSummary": {"StreamStatus": status}})) as fake:
            sink = KinesisSink("shop", "orders", 4, AwsService("kinesis", REGION, endpoint_url=fake.url))
            if error is None:
                sink.prepare([NOTES])
            else:
                with pytest.raises(error):
                    sink.prepare([NOTES])
            sink.close()

    def test_who_may_only_write_is_not_stopped_by_the_check(self) -> None:
        with fake_service(lambda request: refused("AccessDeniedException")) as fake:
            sink = KinesisSink("shop", "orders", 4, AwsService("kinesis", REGION, endpoint_url=fake.url))
            sink.prepare([NOTES])
            assert [request.action for request in fake.requests] == ["DescribeStreamSummary"]
            sink.close()

    def test_an_iterator_that_ran_out_is_told_apart(self) -> None:
        with fake_service(lambda request: refused("ExpiredIteratorException")) as fake:
            stream = KinesisStream(AwsService("kinesis", REGION, endpoint_url=fake.url), "s")
            with pytest.raises(TransientError) as raised:
                stream.records("old")
            assert raised.value.code == ITERATOR_EXPIRED
            stream.close()

    def test_an_empty_answer_before_the_tip_is_not_the_tip(self) -> None:
        answers: Iterator[tuple[list[Any], int]] = iter([([], 5000), ([], 0)])

        def gap(request: Request) -> bytes:
            records, behind_ms = next(answers)
            return ok({"Records": records, "NextShardIterator": "next", "MillisBehindLatest": behind_ms})

        with fake_service(gap) as fake:
            stream = KinesisStream(AwsService("kinesis", REGION, endpoint_url=fake.url), "s")
            first, second = stream.records("i"), stream.records("i")
            assert (first.at_tip, first.behind_ms, second.at_tip) == (False, 5000, True)
            stream.close()

    def test_shards_are_listed_over_many_pages(self) -> None:
        def page(request: Request) -> bytes:
            number = int(request.payload.get("NextToken", "0"))
            assert ("StreamName" in request.payload) is (number == 0)  # not allowed beside a token
            shard = {"ShardId": f"shardId-{number:012}", "SequenceNumberRange": {"StartingSequenceNumber": "1"}}
            return ok({"Shards": [shard], **({"NextToken": str(number + 1)} if number < 4 else {})})

        with fake_service(page) as fake:
            stream = KinesisStream(AwsService("kinesis", REGION, endpoint_url=fake.url), "s")
            assert [shard.id for shard in stream.shards()] == [f"shardId-{number:012}" for number in range(5)]
            stream.close()


class TestStream:
    def test_reading_goes_on_after_a_sequence_number(self, service: AwsService, stream: str) -> None:
        sink, reader = KinesisSink("shop", stream, 4, service), KinesisStream(service, stream)
        for number in range(5):
            sink.send([sink.pack(0, 1, number + 1, None, [event(1, f"n{number}", number)])])
        (shard,) = reader.shards()
        first = reader.records(reader.iterator(shard.id, None), limit=2)
        assert notes([data for _, data in first.records]) == ["n0", "n1"]
        assert not first.at_tip
        rest = reader.records(reader.iterator(shard.id, first.records[-1][0]))
        assert notes([data for _, data in rest.records]) == ["n2", "n3", "n4"]
        assert rest.next_iterator is not None
        assert rest.arrived is not None
        assert abs(rest.arrived - time.time()) < 60
        assert reader.records(rest.next_iterator).at_tip

    def test_split_and_merged_the_lanes_stay_whole_and_in_order(self, service: AwsService, stream: str) -> None:
        lanes, rounds = 16, 4
        sink, reader = KinesisSink("shop", stream, lanes, service), KinesisStream(service, stream)

        def send(round_: int) -> None:
            for step in range(3):
                commit = round_ * 3 + step + 1
                parcels = [
                    sink.pack(lane, 1, commit, None, [event(lane, f"{commit}", commit)]) for lane in range(lanes)
                ]
                assert not any(sink.send(parcels))

        send(0)
        split_at = str(2**128 // 3)  # in the midst of a lane's share
        (first,) = reader.shards()
        service.call("SplitShard", {"StreamName": stream, "ShardToSplit": first.id, "NewStartingHashKey": split_at})
        await_active(service, stream)
        send(1)
        left, right = [shard for shard in reader.shards() if not shard.closed]
        assert left.parents == right.parents == (first.id,)
        merge = {"StreamName": stream, "ShardToMerge": left.id, "AdjacentShardToMerge": right.id}
        service.call("MergeShards", merge)
        await_active(service, stream)
        send(2)
        (merged,) = [shard for shard in reader.shards() if not shard.closed]
        assert set(merged.parents) == {left.id, right.id}
        again = {"StreamName": stream, "ShardToSplit": merged.id, "NewStartingHashKey": str(2**127)}
        service.call("SplitShard", again)
        await_active(service, stream)
        send(3)

        listed = reader.shards()
        for shard in listed:
            earlier = [other.id for other in listed[: listed.index(shard)]]
            assert set(shard.parents) <= set(earlier)
        seen: defaultdict[int, list[int]] = defaultdict(list)
        for data in read_all(reader):
            record = unpack_record(data)
            seen[record.lane].append(record.seq)
        assert seen == {lane: list(range(1, rounds * 3 + 1)) for lane in range(lanes)}

    def test_a_closed_shard_comes_to_an_end(self, service: AwsService, stream: str) -> None:
        reader = KinesisStream(service, stream)
        (shard,) = reader.shards()
        service.call("SplitShard", {"StreamName": stream, "ShardToSplit": shard.id, "NewStartingHashKey": str(2**127)})
        await_active(service, stream)
        assert reader.shards()[0].closed
        read = reader.records(reader.iterator(shard.id, None))
        deadline = time.monotonic() + READY_S
        while read.next_iterator is not None:  # the stand-in needs a second look to see the end
            assert time.monotonic() < deadline
            read = reader.records(read.next_iterator)
        assert read.records == []
        assert read.at_tip

    def test_what_is_not_there_is_told(self, service: AwsService, stream: str) -> None:
        with pytest.raises(OperatorError) as missing:
            KinesisStream(service, "no-such-stream").shards()
        assert missing.value.code == "UW-KS-001"
        assert "create-stream --stream-name no-such-stream" in missing.value.remedy
        with pytest.raises(TransientError) as gone:
            KinesisStream(service, stream).iterator("shardId-000000000099", None)
        assert gone.value.code == SHARD_GONE
        with pytest.raises(OperatorError) as foreign:
            KinesisStream(service, stream).iterator("shardId-000000000000", "12")
        assert foreign.value.code == "UW-KS-012"
