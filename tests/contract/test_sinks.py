"""Each sink passes the contract of ports.Sink."""

import io
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import orjson
import pytest

from tests.contract.sink_contract import LANES, USERS, LimitedSinkContract, SinkContract, State, upsert
from upwell.aws import AwsService
from upwell.clock import SystemClock
from upwell.envelope import ReceivedEvent, unpack_record
from upwell.errors import TransientError
from upwell.model import ChangeEvent
from upwell.ports import Sink
from upwell.sinks.dynamodb import DynamoDbSink
from upwell.sinks.kinesis import Format, KinesisSink
from upwell.sinks.stdout import StdoutSink
from upwell.streams.kinesis import KinesisStream

REGION = "eu-west-1"
NOBODY = "http://127.0.0.1:1"  # a port that no one listens on
READY_S = 20.0


def make_stream(service: AwsService, shards: int) -> str:
    """A new stream that takes records."""
    stream = f"test-{uuid.uuid4().hex[:12]}"
    service.call("CreateStream", {"StreamName": stream, "ShardCount": shards})
    sink = KinesisSink("shop", stream, LANES, service)
    deadline = time.monotonic() + READY_S
    while True:
        try:
            sink.prepare([])
        except TransientError:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        else:
            return stream


def records(service: AwsService, stream: str) -> Iterator[bytes]:
    """All records of a stream whose shards were never split."""
    reader = KinesisStream(service, stream)
    for shard in reader.shards():
        iterator: str | None = reader.iterator(shard.id, None)
        while iterator is not None:
            read = reader.records(iterator)
            yield from (data for _, data in read.records)
            iterator = None if read.at_tip else read.next_iterator


class TestPackedKinesisSink(LimitedSinkContract):
    form: Format = "packed"

    @pytest.fixture
    def sink(self, kinesis_endpoint: str) -> Iterator[Sink]:
        self.service = AwsService("kinesis", REGION, endpoint_url=kinesis_endpoint)
        self.stream = make_stream(self.service, 2)
        sink = KinesisSink("shop", self.stream, LANES, self.service, format=self.form)
        yield sink
        sink.close()

    @pytest.fixture
    def unreachable(self) -> Sink:
        return KinesisSink("shop", "s", LANES, AwsService("kinesis", REGION, endpoint_url=NOBODY), format=self.form)

    @pytest.fixture
    def too_large(self) -> ChangeEvent:
        return upsert(77, 1000, note="x" * 1_048_576)

    def arrived(self, sink: Sink) -> State:
        events = (
            item
            for data in records(self.service, self.stream)
            for item in unpack_record(data).items
            if isinstance(item, ReceivedEvent)
        )
        return newest(
            (event.version.hex(), event.key[0], None if event.operation == "d" else event.values[1:])
            for event in events
        )


class TestCloudEventsKinesisSink(TestPackedKinesisSink):
    form: Format = "cloudevents"

    def arrived(self, sink: Sink) -> State:
        return newest(map(of_cloud_event, records(self.service, self.stream)))


class TestDynamoDbSink(LimitedSinkContract):
    @pytest.fixture
    def sink(self, dynamodb_endpoint: str) -> Iterator[Sink]:
        service = AwsService("dynamodb", REGION, endpoint_url=dynamodb_endpoint)
        sink = DynamoDbSink(service, SystemClock(), table_prefix=f"test-{uuid.uuid4().hex[:12]}-")
        yield sink
        sink.close()

    @pytest.fixture
    def unreachable(self) -> Sink:
        sink = DynamoDbSink(AwsService("dynamodb", REGION, endpoint_url=NOBODY), SystemClock(), table_prefix="test-")
        with pytest.raises(TransientError):
            sink.prepare([USERS])
        return sink

    @pytest.fixture
    def too_large(self) -> ChangeEvent:
        return upsert(77, 1000, note="x" * 409_600)

    def arrived(self, sink: Sink) -> State:
        assert isinstance(sink, DynamoDbSink)
        return {row[0]: (row[1], row[2]) for row in sink.rows(USERS)}  # type: ignore[misc]  # values of any type


class TestStdoutSink(SinkContract):
    @pytest.fixture
    def sink(self) -> Sink:
        self.stream = io.BytesIO()
        return StdoutSink("shop", self.stream)

    @pytest.fixture
    def unreachable(self) -> Sink:
        class Full(io.BytesIO):
            def write(self, data: Any) -> int:
                if data:
                    raise OSError(28, "No space left on device")
                return 0

        return StdoutSink("shop", Full())

    def arrived(self, sink: Sink) -> State:
        return newest(map(of_cloud_event, self.stream.getvalue().splitlines()))


def of_cloud_event(data: bytes) -> tuple[str, int, Any]:
    event = orjson.loads(data)
    assert event["specversion"] == "1.0"
    row = event["data"].get("row")
    return event["data"]["version"], event["data"]["key"]["id"], row and [row["email"], row["note"]]


def newest(events: Iterable[tuple[str, Any, Any]]) -> State:
    """What a reader keeps who goes by versions. A key's events must come in their order, apart from repeats."""
    kept: dict[Any, tuple[str, Any]] = {}
    seen: set[tuple[str, Any]] = set()
    for version, number, row in events:
        if (version, number) in seen:
            continue
        assert version >= kept.get(number, ("", None))[0], "an older event came after a newer one"
        seen.add((version, number))
        kept[number] = (version, row)
    return {number: tuple(row) for number, (_, row) in kept.items() if row is not None}
