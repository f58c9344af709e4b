"""The change event subscriber as a service on one machine: all shards of a stream, parents before children.

A thread for each shard that may be read: fetch, apply in one transaction, save the shard's checkpoint. The
checkpoint may lag what was applied; the watermarks in the target make the repeat harmless.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Protocol, TypeVar

from upwell.errors import TransientError
from upwell.failpoints import failpoint
from upwell.pipeline.applier import Applied, Applier
from upwell.ports import Clock, ShardCheckpoints

# Kinesis allows five reads a second from a shard.
READ_EVERY_S = 0.2
# A read's limit. Kinesis itself stops at 10 MiB; stand-ins do not, and a record may have 256 KiB and more.
READ_RECORDS_MAX = 500
# What goes into one transaction of the target.
BATCH_BYTES_MAX = 8 * 1024 * 1024
SHARDS_EVERY_S = 10.0
# How far the stream's clock may lag ours when the end "as of now" is looked for under uninterrupted writes.
CLOCKS_DIFFER_S = 10.0
REPAIRS_EVERY_S = 5.0
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 10.0

T = TypeVar("T")


class Shard(Protocol):
    """A shard of a stream; it may be read only after its parents, where they are still listed."""

    @property
    def id(self) -> str: ...
    @property
    def parents(self) -> Sequence[str]: ...


class Read(Protocol):
    """What one read of a shard gave."""

    @property
    def records(self) -> Sequence[tuple[str, bytes]]:
        """(sequence number, data), in order."""

    @property
    def next_iterator(self) -> str | None:
        """None: the shard is closed and was read to its end."""

    @property
    def at_tip(self) -> bool:
        """There was nothing to read when asked."""

    @property
    def arrived(self) -> float | None:
        """When the last of the records came into the stream, in seconds since 1970 by the stream's clock."""


class RecordStream(Protocol):
    """Where a subscriber reads. Threads share it; one attempt, errors as in errors.py."""

    def shards(self) -> Sequence[Shard]: ...
    def iterator(self, shard: str, after: str | None) -> str: ...
    def records(self, iterator: str, limit: int) -> Read: ...


@dataclass(slots=True)
class Totals:
    """What the subscriber did since it started; the fields of Applied, summed."""

    events: int = 0
    skipped: int = 0
    dead_letters: int = 0
    swept: int = 0
    holes: int = 0
    foreign: int = 0
    last_error: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, applied: Applied) -> None:
        """Count a batch that was committed."""
        with self.lock:
            for each in fields(applied):
                setattr(self, each.name, getattr(self, each.name) + getattr(applied, each.name))


class Subscriber:
    """Reads all shards of a stream and applies what they hold, until told to stop."""

    def __init__(
        self,
        name: str,
        *,
        stream: RecordStream,
        applier: Applier,
        checkpoints: ShardCheckpoints,
        relay_repairs: Callable[[], None],
        clock: Clock,
        rng: random.Random,
        stop: threading.Event,
        read_every_s: float = READ_EVERY_S,
    ) -> None:
        """`name` is the stream's; `relay_repairs` hands requests for repair to the publisher, now and then."""
        self._name = name
        self._stream = stream
        self._applier = applier
        self._checkpoints = checkpoints
        self._relay_repairs = relay_repairs
        self._clock = clock
        self._rng = rng
        self._stop = stop
        self._read_every_s = read_every_s
        self._until: float | None = None  # with `once`: what came in later need not be read
        self._finished: set[str] = set()  # shards read to their end, or with `once` to the end as of now
        self._workers: dict[str, threading.Thread] = {}
        self._progress: dict[str, str | None] = {}
        self._changed = threading.Event()
        self._crash: BaseException | None = None
        self.totals = Totals()

    def run(self, *, once: bool = False) -> None:
        """Until stopped; with `once` until the stream's end as of now. Raises what a person must act on."""
        self._until = self._clock.now() + CLOCKS_DIFFER_S if once else None
        self._progress = self._retried(lambda: self._checkpoints.load(self._name)) or {}
        self._finished = {shard for shard, sequence in self._progress.items() if sequence is None}
        repairs_at = shards_at = 0.0
        try:
            while not self._stop.is_set():
                now = self._clock.monotonic()
                if self._changed.is_set() or now >= shards_at:
                    self._changed.clear()
                    shards_at = now + SHARDS_EVERY_S
                    shards = self._retried(self._stream.shards)
                    if shards is not None and self._start_workers(shards) and once:
                        return
                if now >= repairs_at:
                    repairs_at = now + REPAIRS_EVERY_S
                    self._retried(self._relay_repairs, attempts_max=1)
                if self._crash is not None:
                    return
                self._changed.wait(0.1)
        finally:
            if self._crash is not None or once:
                self._stop.set()
            for worker in list(self._workers.values()):
                worker.join()
            if self._crash is not None:
                raise self._crash

    def _start_workers(self, shards: Sequence[Shard]) -> bool:
        """Start what may be read now. True: every shard has been read to its end."""
        listed = {shard.id for shard in shards}
        for shard in shards:
            waiting = [parent for parent in shard.parents if parent in listed and parent not in self._finished]
            if shard.id in self._finished or shard.id in self._workers or waiting:
                continue
            worker = threading.Thread(target=self._work, args=(shard.id,), name=shard.id, daemon=True)
            self._workers[shard.id] = worker
            worker.start()
        return listed <= self._finished

    def _work(self, shard: str) -> None:
        try:
            self._read_shard(shard)
        except BaseException as error:
            self._crash = error
        finally:
            self._changed.set()

    def _read_shard(self, shard: str) -> None:
        after = self._progress.get(shard)
        iterator: str | None = None
        failures = 0
        while not self._stop.is_set():
            started = self._clock.monotonic()
            try:
                iterator = iterator or self._stream.iterator(shard, after)
                read = self._stream.records(iterator, READ_RECORDS_MAX)
            except TransientError as error:
                # The iterator may have expired; a new one after the last applied record is always right.
                iterator = None
                self._back_off(error, failures)
                failures += 1
                continue
            failures = 0
            failpoint("subscriber.fetched")
            after = self._apply(shard, read.records, after)
            iterator = read.next_iterator
            if iterator is None or self._is_enough(read):
                if not self._stop.is_set():
                    self._finish(shard, ended=iterator is None)
                return
            self._clock.sleep(max(0.0, started + self._read_every_s - self._clock.monotonic()))

    def _is_enough(self, read: Read) -> bool:
        if self._until is None:
            return False
        return read.at_tip or (read.arrived is not None and read.arrived >= self._until)

    def _finish(self, shard: str, *, ended: bool) -> None:
        if ended:
            self._retried(partial(self._checkpoints.save, self._name, shard, None))
            failpoint("subscriber.shard.finished")
        self._finished.add(shard)

    def _apply(self, shard: str, records: Sequence[tuple[str, bytes]], after: str | None) -> str | None:
        """Apply in batches; returns the last sequence number applied."""
        for batch in _batches(records):
            data = [each for _, each in batch]
            applied = self._retried(partial(self._applier.apply, data))
            if applied is None:
                return after  # told to stop while the target is away
            self.totals.add(applied)
            after = batch[-1][0]
            self._retried(partial(self._checkpoints.save, self._name, shard, after))
            failpoint("subscriber.checkpoint.saved")
        return after

    def _retried(self, work: Callable[[], T], attempts_max: int | None = None) -> T | None:
        """The only retry loop of the subscriber. None: told to stop, or out of attempts, before it worked."""
        failures = 0
        while True:
            try:
                return work()
            except TransientError as error:
                self._back_off(error, failures)
                failures += 1
                if self._stop.is_set() or failures == attempts_max:
                    return None

    def _back_off(self, error: TransientError, failures: int) -> None:
        self.totals.last_error = str(error)
        self._clock.sleep(self._rng.random() * min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(failures, 30)))


def _batches(records: Sequence[tuple[str, bytes]]) -> list[list[tuple[str, bytes]]]:
    """The records in order, cut so that no batch is above BATCH_BYTES_MAX, single records apart."""
    batches: list[list[tuple[str, bytes]]] = []
    size = 0
    for record in records:
        size += len(record[1])
        if not batches or size > BATCH_BYTES_MAX:
            batches.append([])
            size = len(record[1])
        batches[-1].append(record)
    return batches
