"""An event source mapping of Lambda for Kinesis, by AWS's published rules, with a real handler and real environments.

It reads a Kinesis over the wire, and hands batches to environments, in this process or each in one of its own. What
AWS says, and what is done here:

* A call gets a batch when it has `batch_size` records, or 6 MB, or when the window is over.
  https://docs.aws.amazon.com/lambda/latest/dg/invocation-eventsourcemapping.html#invocation-eventsourcemapping-batching
* One batch of a shard at a time, or as many as the parallelization factor says; then by partition key, so that the
  order of each key holds. https://docs.aws.amazon.com/lambda/latest/dg/with-kinesis.html
* An error of the function, a timeout among them: the same records again; nothing behind them meanwhile. With bisect the
  batch is halved, which uses up no attempt. After `retries_max`, or when records are older than `age_max_s`, they are
  given up, and the destination on failure is told which; what they hold is not in there.
  https://docs.aws.amazon.com/lambda/latest/dg/kinesis-on-failure-destination.html
* ReportBatchItemFailures: everything from the lowest sequence number in the answer comes again, and nothing before it.
  No answer, an empty one, an empty list: all is well. An identifier that is empty, missing or not of the batch: all of
  it failed. https://docs.aws.amazon.com/lambda/latest/dg/services-kinesis-batchfailurereporting.html
* A shard's children are read when all of the shard has been processed.
  https://docs.aws.amazon.com/lambda/latest/dg/services-kinesis-parameters.html
* "At least once": a batch may come again though it succeeded, also late, beside others of its shard, in another
  environment. https://docs.aws.amazon.com/lambda/latest/dg/invocation-eventsourcemapping.html

How soon AWS retries is not published; here it is at once, and then twice as long each time up to a second.
"""

from __future__ import annotations

import base64
import random
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Protocol, Self

from tests.acceptance.compare import kinesis_client

PAYLOAD_BYTES_MAX: Final = 6 * 1024 * 1024
_ENVELOPE_BYTES: Final = 500  # of a record in an event, beside its data
_POLL_S: Final = 0.05
_READ_MAX: Final = 1000
_BACKOFF_MAX_S: Final = 1.0


class FunctionError(Exception):
    """The function raised, was timed out, or its environment is gone."""


class Environment(Protocol):
    """Where a handler runs; one call at a time."""

    def invoke(self, event: Mapping[str, Any], timeout_s: float) -> Any:
        """The handler's answer. Raises FunctionError."""

    @property
    def alive(self) -> bool: ...

    def kill(self) -> None:
        """At once, whoever uses it; its call fails."""

    def close(self) -> None:
        """Its last user is done with it."""


@dataclass
class Context:
    """What a handler is told of its call."""

    ends_at: float  # of time.monotonic

    def get_remaining_time_in_millis(self) -> int:
        return max(0, int((self.ends_at - time.monotonic()) * 1000))


@dataclass
class Local:
    """A handler in this process. It can't be killed."""

    handler: Callable[[dict[str, Any], Any], Any]
    alive: bool = True

    def invoke(self, event: Mapping[str, Any], timeout_s: float) -> Any:
        try:
            return self.handler(dict(event), Context(time.monotonic() + timeout_s))
        except Exception as error:
            raise FunctionError(type(error).__name__) from error

    def kill(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Settings:
    """As the mapping has them in AWS; -1 is without a bound."""

    batch_size: int = 100
    window_s: float = 0.0
    parallelization: int = 1
    bisect: bool = True
    report_failures: bool = True
    retries_max: int = -1
    age_max_s: float = -1
    timeout_s: float = 60.0  # the function's


@dataclass(frozen=True)
class Record:
    """A record of a shard."""

    shard: str
    key: str
    sequence: str
    data: bytes
    arrived: float

    @property
    def size(self) -> int:
        """In an event, in bytes."""
        return len(self.data) * 4 // 3 + _ENVELOPE_BYTES

    def wire(self, stream: str) -> dict[str, Any]:
        """As it stands in an event."""
        return {
            "kinesis": {
                "kinesisSchemaVersion": "1.0",
                "partitionKey": self.key,
                "sequenceNumber": self.sequence,
                "data": base64.b64encode(self.data).decode(),
                "approximateArrivalTimestamp": self.arrived,
            },
            "eventSource": "aws:kinesis",
            "eventVersion": "1.0",
            "eventID": f"{self.shard}:{self.sequence}",
            "eventName": "aws:kinesis:record",
            "awsRegion": "eu-central-1",
            "eventSourceARN": f"arn:aws:kinesis:eu-central-1:000000000000:stream/{stream}",
        }


@dataclass
class _Waiting:
    """Records that were read and not yet processed: of a shard, or of one part of its keys."""

    records: deque[Record] = field(default_factory=deque)
    busy: bool = False
    since: float = 0.0  # when the first of them came here
    changed: threading.Condition = field(default_factory=threading.Condition)

    def add(self, record: Record) -> None:
        with self.changed:
            if not self.records:
                self.since = time.monotonic()
            self.records.append(record)
            self.changed.notify_all()

    @property
    def empty(self) -> bool:
        return not self.records and not self.busy


class EventSourceMapping:
    """The mapping, from the `with` statement's beginning to its end; it goes on where an earlier one of it ended."""

    def __init__(
        self,
        endpoint: str,
        stream: str,
        start: Callable[[], Environment],
        settings: Settings,
        *,
        again: float = 0.0,
        seed: int = 0,
    ) -> None:
        """`start` makes an environment. `again`: how often a batch that succeeded comes once more, some time later."""
        self._stream = stream
        self._start = start
        self._settings = settings
        self._again = again
        self._chance = random.Random(seed)
        self._client = kinesis_client(endpoint, max_pool_connections=50)
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._idle: list[Environment] = []
        self._lock = threading.Lock()
        self._shards: dict[str, list[_Waiting]] = {}
        self._ended: set[str] = set()  # shards that were processed to their end
        self.busy: list[Environment] = []
        self.on_failure: list[dict[str, Any]] = []
        self.calls = 0
        self.errors = 0
        self.partial = 0  # answers that named a record
        self.repeated = 0  # batches that came once more though they had succeeded
        self.crash: BaseException | None = None

    def __enter__(self) -> Self:
        self._run(self._follow)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(self._settings.timeout_s + 10)
        for environment in self._idle:
            environment.close()
        self._client.close()
        if error is None and self.crash is not None:
            raise self.crash

    def kill_one(self) -> bool:
        """An environment that is at work is gone; False: none is."""
        with self._lock:
            alive = [environment for environment in self.busy if environment.alive]
        if alive:
            self._chance.choice(alive).kill()
        return bool(alive)

    # --- reading --------------------------------------------------------------------------------------------------

    def _run(self, work: Callable[..., None], *arguments: Any) -> None:
        def run() -> None:
            try:
                work(*arguments)
            except BaseException as error:
                self.crash = error
                self._stopping.set()

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _follow(self) -> None:
        """Start what may be read: a shard whose parents were processed to their end, or are not listed any more."""
        while not self._stopping.is_set():
            listed = self._client.list_shards(StreamName=self._stream)["Shards"]
            ids = {shard["ShardId"] for shard in listed}
            for shard in listed:
                parents = {shard.get("ParentShardId"), shard.get("AdjacentParentShardId")} & ids
                if shard["ShardId"] not in self._shards and parents <= self._ended:
                    parts = [_Waiting() for _ in range(self._settings.parallelization)]
                    self._shards[shard["ShardId"]] = parts
                    self._run(self._read, shard["ShardId"], parts)
                    for part in parts:
                        self._run(self._process, shard["ShardId"], part)
            self._stopping.wait(0.2)

    def _read(self, shard: str, parts: list[_Waiting]) -> None:
        place = {"StreamName": self._stream, "ShardId": shard, "ShardIteratorType": "TRIM_HORIZON"}
        iterator = self._client.get_shard_iterator(**place)["ShardIterator"]
        while not self._stopping.is_set():
            if sum(len(part.records) for part in parts) < 2 * self._settings.batch_size * len(parts):
                answer = self._client.get_records(ShardIterator=iterator, Limit=_READ_MAX)
                for wire in answer["Records"]:
                    record = _record(shard, wire)
                    parts[zlib.crc32(record.key.encode()) % len(parts)].add(record)
                iterator = answer.get("NextShardIterator")
            if iterator is None:
                break
            self._stopping.wait(_POLL_S)
        while not self._stopping.is_set() and not all(part.empty for part in parts):
            self._stopping.wait(_POLL_S)
        if not self._stopping.is_set():
            self._ended.add(shard)

    # --- processing -----------------------------------------------------------------------------------------------

    def _process(self, shard: str, part: _Waiting) -> None:
        while not self._stopping.is_set() and shard not in self._ended:
            batch = self._batch(part)
            if batch:
                self._deliver(shard, batch)
                part.busy = False

    def _batch(self, part: _Waiting) -> list[Record]:
        """The next one, when it is full or its window is over; nothing: look again."""
        with part.changed:
            if not part.records:
                part.changed.wait(_POLL_S)
                return []
            batch: list[Record] = []
            size = 0
            for record in part.records:
                if len(batch) == self._settings.batch_size or (batch and size + record.size > PAYLOAD_BYTES_MAX):
                    break
                batch.append(record)
                size += record.size
            full = len(batch) < len(part.records) or len(batch) == self._settings.batch_size
            if not full and time.monotonic() < part.since + self._settings.window_s:
                part.changed.wait(_POLL_S)
                return []
            part.busy = True
            for _ in batch:
                part.records.popleft()
            part.since = time.monotonic()
            return batch

    def _deliver(self, shard: str, batch: list[Record]) -> None:
        """Again and again, until all of it is processed or given up."""
        settings = self._settings
        pending = deque([(batch, 0)])
        failures = 0
        while pending and not self._stopping.is_set():
            records, retries = pending.popleft()
            old = [each for each in records if 0 <= settings.age_max_s < time.time() - each.arrived]
            if old:
                self._give_up(shard, old, "RecordAgeExceeded", retries)
                records = [each for each in records if each not in old]
            if not records:
                continue
            left, raised = self._call(records)
            if not left:
                failures = 0
                self._perhaps_again(records)
                continue
            if len(left) < len(records):
                self._perhaps_again(records[: -len(left)])
            if raised and settings.bisect and len(left) > 1:
                middle = len(left) // 2
                pending.extendleft([(left[middle:], retries), (left[:middle], retries)])
            elif 0 <= settings.retries_max <= retries:
                self._give_up(shard, left, "RetryAttemptsExhausted", retries + 1)
                continue
            else:
                pending.appendleft((left, retries + 1))
            failures += 1
            self._stopping.wait(min(_BACKOFF_MAX_S, 0.02 * 2.0 ** min(failures, 10)))

    def _call(self, records: Sequence[Record]) -> tuple[list[Record], bool]:
        """What is to come again, and whether the function failed."""
        event = {"Records": [record.wire(self._stream) for record in records]}
        try:
            answer = self._invoke(event)
        except FunctionError:
            return list(records), True
        if not self._settings.report_failures or not answer or not answer.get("batchItemFailures"):
            return [], False
        self.partial += 1
        sequences = [record.sequence for record in records]
        reported = [item.get("itemIdentifier") for item in answer["batchItemFailures"]]
        if not set(reported) <= set(sequences):
            return list(records), False
        return list(records[min(map(sequences.index, reported)) :]), False

    def _invoke(self, event: Mapping[str, Any]) -> Any:
        with self._lock:
            while self._idle and not self._idle[-1].alive:
                self._idle.pop().close()
            environment = self._idle.pop() if self._idle else self._start()
            self.busy.append(environment)
            self.calls += 1
        try:
            return environment.invoke(event, self._settings.timeout_s)
        except FunctionError:
            self.errors += 1
            raise
        finally:
            with self._lock:
                self.busy.remove(environment)
                if environment.alive:
                    self._idle.append(environment)
                else:
                    environment.close()

    def _perhaps_again(self, records: Sequence[Record]) -> None:
        with self._lock:
            if self._chance.random() >= self._again:
                return
            later_s = self._chance.choice((0.0, 0.3, 2.0))

        def repeat() -> None:
            self._stopping.wait(later_s)
            self.repeated += 1
            with suppress(FunctionError):
                self._invoke({"Records": [record.wire(self._stream) for record in records]})

        self._run(repeat)

    def _give_up(self, shard: str, records: Sequence[Record], condition: str, calls: int) -> None:
        self.on_failure.append(
            {
                "requestContext": {"condition": condition, "approximateInvokeCount": calls},
                "KinesisBatchInfo": {
                    "shardId": shard,
                    "startSequenceNumber": records[0].sequence,
                    "endSequenceNumber": records[-1].sequence,
                    "batchSize": len(records),
                },
            }
        )


def _record(shard: str, wire: Mapping[str, Any]) -> Record:
    arrived = wire["ApproximateArrivalTimestamp"].timestamp()
    return Record(shard, wire["PartitionKey"], wire["SequenceNumber"], wire["Data"], arrived)
