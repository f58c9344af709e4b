"""The event source mapping of the tests keeps AWS's rules: see tests/esm.py, which cites them."""

from __future__ import annotations

import base64
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.acceptance.compare import kinesis_client
from tests.acceptance.pipelines import create_stream
from tests.esm import PAYLOAD_BYTES_MAX, EventSourceMapping, Local, Settings

AWAIT_S = 30.0


@dataclass
class Function:
    """A handler that remembers its calls; `answer` decides what it says of the texts it was given."""

    answer: Callable[[list[str]], Any] = lambda texts: None
    calls: list[list[str]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    at_once: int = 0
    at_once_max: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, event: dict[str, Any], context: Any) -> Any:
        texts = [base64.b64decode(record["kinesis"]["data"]).decode() for record in event["Records"]]
        with self.lock:
            self.calls.append(texts)
            self.events.append(event)
            self.at_once += 1
            self.at_once_max = max(self.at_once, self.at_once_max)
        try:
            return self.answer(texts)
        finally:
            with self.lock:
                self.at_once -= 1

    @property
    def seen(self) -> list[str]:
        return [text for call in self.calls for text in call]


@dataclass
class Stream:
    endpoint: str
    name: str
    client: Any

    def put(self, *texts: str, key: str = "k") -> None:
        for text in texts:
            self.client.put_record(StreamName=self.name, Data=text.encode(), PartitionKey=key)

    def mapped(self, function: Function, settings: Settings, **chaos: Any) -> EventSourceMapping:
        return EventSourceMapping(self.endpoint, self.name, lambda: Local(function), settings, **chaos)


@pytest.fixture
def stream(kinesis_endpoint: str) -> Iterator[Stream]:
    name = f"esm-{uuid.uuid4().hex[:10]}"
    create_stream(kinesis_endpoint, name, 1)
    client = kinesis_client(kinesis_endpoint)
    yield Stream(kinesis_endpoint, name, client)
    client.close()


def awaited(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + AWAIT_S
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def sequences(event: dict[str, Any]) -> list[str]:
    return [record["kinesis"]["sequenceNumber"] for record in event["Records"]]


def named(function: Function, text: str) -> dict[str, Any]:
    """The answer that this record failed."""
    texts, event = function.calls[-1], function.events[-1]
    return {"batchItemFailures": [{"itemIdentifier": sequences(event)[texts.index(text)]}]}


TEN = [str(n) for n in range(10)]


def test_batches_are_of_the_size_at_most_in_order(stream: Stream) -> None:
    stream.put(*TEN)
    function = Function()
    with stream.mapped(function, Settings(batch_size=4)):
        awaited(lambda: len(function.seen) == 10)
    assert function.seen == TEN
    assert max(map(len, function.calls)) <= 4
    record = function.events[0]["Records"][0]
    assert record["eventSource"] == "aws:kinesis"
    assert record["eventID"].startswith("shardId-")
    assert record["kinesis"].keys() == {
        "kinesisSchemaVersion", "partitionKey", "sequenceNumber", "data", "approximateArrivalTimestamp",
    }  # fmt: skip


def test_a_window_gathers_what_comes(stream: Stream) -> None:
    function = Function()
    with stream.mapped(function, Settings(batch_size=100, window_s=1.5)):
        for text in TEN:
            stream.put(text)
            time.sleep(0.02)
        awaited(lambda: len(function.seen) == 10)
    assert len(function.calls) <= 2


def test_a_call_gets_6_mb_at_most(stream: Stream) -> None:
    large = "x" * 1_000_000
    stream.put(*[large] * 8)
    function = Function()
    with stream.mapped(function, Settings(batch_size=100, window_s=1.0)):
        awaited(lambda: len(function.seen) == 8)
    assert max(sum(len(text) * 4 // 3 for text in call) for call in function.calls) <= PAYLOAD_BYTES_MAX


def test_an_error_brings_the_same_records_again_and_nothing_passes_them(stream: Stream) -> None:
    stream.put(*TEN)
    left = [3]

    def fail(texts: list[str]) -> None:
        if "2" in texts and left[0]:
            left[0] -= 1
            raise RuntimeError

    function = Function(fail)
    with stream.mapped(function, Settings(batch_size=5, bisect=False)):
        awaited(lambda: function.calls.count(TEN[5:]) == 1)
    assert function.calls.count(TEN[:5]) == 4
    assert function.calls.index(TEN[5:]) == len(function.calls) - 1


def test_bisect_halves_until_the_record_stands_alone_and_uses_up_no_attempt(stream: Stream) -> None:
    stream.put(*TEN)

    def fail(texts: list[str]) -> None:
        if "6" in texts:
            raise RuntimeError

    function = Function(fail)
    with stream.mapped(function, Settings(batch_size=10, window_s=0.5, retries_max=0)) as mapping:
        awaited(lambda: "9" in [text for call in function.calls if "6" not in call for text in call])
    [given_up] = mapping.on_failure
    assert given_up["requestContext"]["condition"] == "RetryAttemptsExhausted"
    assert given_up["KinesisBatchInfo"]["batchSize"] == 1
    done = [text for call in function.calls if "6" not in call for text in call]
    assert done == [text for text in TEN if text != "6"]


def test_retries_that_are_used_up_tell_the_destination_on_failure_which_records_but_not_what_they_hold(
    stream: Stream,
) -> None:
    stream.put("poison", "good")

    def fail(texts: list[str]) -> None:
        if "poison" in texts:
            raise RuntimeError

    function = Function(fail)
    with stream.mapped(function, Settings(batch_size=1, retries_max=2)) as mapping:
        awaited(lambda: "good" in function.seen)
    assert function.seen == ["poison"] * 3 + ["good"]
    [given_up] = mapping.on_failure
    assert given_up["requestContext"]["approximateInvokeCount"] == 3
    assert "poison" not in str(given_up)


def test_records_that_are_too_old_are_given_up(stream: Stream) -> None:
    stream.put("old")

    def fail(texts: list[str]) -> None:
        if "old" in texts:
            raise RuntimeError

    function = Function(fail)
    with stream.mapped(function, Settings(age_max_s=2.0)) as mapping:
        awaited(lambda: bool(mapping.on_failure))
        stream.put("new")
        awaited(lambda: "new" in function.seen)
    assert mapping.on_failure[0]["requestContext"]["condition"] == "RecordAgeExceeded"


def test_what_is_reported_comes_again_from_the_lowest_on(stream: Stream) -> None:
    stream.put(*TEN)
    function = Function()
    left = [2]

    def report(texts: list[str]) -> Any:
        if "4" in texts and left[0]:
            left[0] -= 1
            failures = [named(function, text)["batchItemFailures"][0] for text in ("8", "4")]
            return {"batchItemFailures": failures}
        return {"batchItemFailures": []}

    function.answer = report
    with stream.mapped(function, Settings(batch_size=10, window_s=0.5)) as mapping:
        awaited(lambda: len(function.calls) == 3)
    assert function.calls == [TEN, TEN[4:], TEN[4:]]
    assert (mapping.partial, mapping.errors) == (2, 0)


@pytest.mark.parametrize(
    "answer",
    [
        {"batchItemFailures": [{"itemIdentifier": ""}]},
        {"batchItemFailures": [{"itemIdentifier": None}]},
        {"batchItemFailures": [{"sequence": "1"}]},
        {"batchItemFailures": [{"itemIdentifier": "of another batch"}]},
    ],
)
def test_an_identifier_that_is_none_fails_all(stream: Stream, answer: Any) -> None:
    stream.put("a", "b")
    answers = [answer, {}]
    function = Function(lambda texts: answers.pop(0) if answers else None)
    with stream.mapped(function, Settings(window_s=0.5)):
        awaited(lambda: len(function.calls) == 2)
    assert function.calls == [["a", "b"]] * 2


@pytest.mark.parametrize("answer", [None, {}, {"batchItemFailures": None}, {"batchItemFailures": []}])
def test_these_answers_mean_that_all_is_well(stream: Stream, answer: Any) -> None:
    stream.put("a")
    function = Function(lambda texts: answer)
    with stream.mapped(function, Settings()):
        awaited(lambda: len(function.calls) == 1)
        stream.put("b")
        awaited(lambda: len(function.calls) == 2)
    assert function.seen == ["a", "b"]


def test_what_is_reported_counts_only_where_it_is_turned_on(stream: Stream) -> None:
    stream.put("a")
    function = Function()
    function.answer = lambda texts: named(function, texts[0])
    with stream.mapped(function, Settings(report_failures=False)):
        awaited(lambda: len(function.calls) == 1)
        stream.put("b")
        awaited(lambda: "b" in function.seen)
    assert function.seen == ["a", "b"]


def test_one_batch_of_a_shard_at_a_time_or_as_many_as_the_factor_says_in_order_of_each_key(stream: Stream) -> None:
    for factor in (1, 4):
        name = f"{stream.name}-{factor}"
        create_stream(stream.endpoint, name, 1)
        other = Stream(stream.endpoint, name, stream.client)
        for text in TEN:
            for key in "abcdef":
                other.put(f"{key}{text}", key=key)

        def slowly(texts: list[str]) -> None:
            time.sleep(0.02)

        function = Function(slowly)
        with other.mapped(function, Settings(batch_size=3, parallelization=factor)):
            awaited(lambda: len(function.seen) == 60)  # noqa: B023
        for key in "abcdef":
            assert [text[1] for text in function.seen if text[0] == key] == TEN
        assert (function.at_once_max > 1) == (factor > 1)
        assert function.at_once_max <= factor


def test_children_wait_for_their_parents(stream: Stream) -> None:
    stream.put(*TEN)
    stream.client.split_shard(
        StreamName=stream.name, ShardToSplit="shardId-000000000000", NewStartingHashKey=str(2**127)
    )
    stream.client.get_waiter("stream_exists").wait(StreamName=stream.name, WaiterConfig={"Delay": 1})
    stream.put("child")
    held = threading.Event()
    function = Function(lambda texts: held.wait(AWAIT_S) and None)
    with stream.mapped(function, Settings(batch_size=5)):
        awaited(lambda: len(function.calls) == 1)
        time.sleep(0.5)
        assert function.seen == TEN[:5]
        held.set()
        awaited(lambda: "child" in function.seen)
    assert function.seen == [*TEN, "child"]


def test_what_succeeded_may_come_again_late(stream: Stream) -> None:
    stream.put(*TEN)
    function = Function()
    with stream.mapped(function, Settings(batch_size=1), again=1.0) as mapping:
        awaited(lambda: len(function.seen) == 20)
    assert mapping.repeated == 10
    assert sorted(function.seen) == sorted(TEN * 2)
    assert function.seen != sorted(function.seen), "all of it came in order"
