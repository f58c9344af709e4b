"""The change event subscriber as a service on one machine: all shards of a stream, parents before children.

A thread for each shard that may be read: fetch, apply in one transaction, save the shard's checkpoint. The
checkpoint may lag what was applied; the watermarks in the target make the repeat harmless.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Protocol, TypeVar

from upwell.errors import TransientError
from upwell.failpoints import failpoint
from upwell.pipeline.incoming import Applied, batches, bytes_in_memory
from upwell.pipeline.troubles import Troubles
from upwell.ports import Clock, ShardCheckpoints

log = logging.getLogger("upwell.subscriber")

# Kinesis allows five reads a second from a shard.
READ_EVERY_S = 0.2
# A read asks for as many records as are about so large, by the last read: a shard gives 2 MiB a second, but after a
# pause up to 10 MiB at once, and stand-ins know no bound.
READ_BYTES = 4 * 1024 * 1024
READ_RECORDS_MAX = 500
READ_RECORDS_FIRST = 16  # of up to 256 KiB
READ_GROWTH_MAX = 4
# What a shard takes of the memory while it is read and applied, about: measured, with short rows, which take most.
WORKING_BYTES = 50 * 1000**2
WORKING_SHARDS = 4
SHARDS_EVERY_S = 10.0
# How far the stream's clock may lag ours when the end "as of now" is looked for under uninterrupted writes.
CLOCKS_DIFFER_S = 10.0
REPAIRS_EVERY_S = 5.0
WAIT_TO_WORK_S = 0.5  # between two looks at whether to stop
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


class Applies(Protocol):
    """Applies a batch to a target: Applier, or ItemApplier. Threads share it."""

    def apply(self, data: Sequence[bytes]) -> Applied: ...


@dataclass(slots=True)
class Totals:
    """What the subscriber did since it started; the fields of Applied, summed."""

    events: int = 0
    skipped: int = 0
    dead_letters: int = 0
    swept: int = 0
    holes: int = 0
    foreign: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, applied: Applied) -> None:
        """Count a batch that was committed."""
        with self.lock:
            for each in fields(applied):
                if each.name != "alarm":
                    setattr(self, each.name, getattr(self, each.name) + getattr(applied, each.name))


@dataclass(slots=True)
class _Place:
    """Where the reading of a shard stands."""

    after: str | None  # the last sequence number applied
    iterator: str | None = None
    limit: int = READ_RECORDS_FIRST

    def start_anew(self) -> None:
        """After a failure: the iterator may have expired; a new one after the last applied record is always right."""
        self.iterator = None
        self.limit = max(1, self.limit // 2)  # or the answer was too large to be read


class Subscriber:
    """Reads all shards of a stream and applies what they hold, until told to stop."""

    def __init__(
        self,
        name: str,
        *,
        stream: RecordStream,
        applier: Applies,
        checkpoints: ShardCheckpoints,
        relay_repairs: Callable[[], None],
        clock: Clock,
        rng: random.Random,
        stop: threading.Event,
        read_every_s: float = READ_EVERY_S,
        working_shards: int = WORKING_SHARDS,
    ) -> None:
        """`name`: what its checkpoints are kept under. `relay_repairs` hands requests for repair to the publisher, now
        and then.

        `working_shards`: how many are read and applied at the same time. Each of the others holds nothing in memory.
        """
        self._name = name
        self._stream = stream
        self._applier = applier
        self._checkpoints = checkpoints
        self._relay_repairs = relay_repairs
        self._clock = clock
        self._rng = rng
        self._stop = stop
        self._read_every_s = read_every_s
        self._working = threading.BoundedSemaphore(working_shards)
        self._until: float | None = None  # with `once`: what came in later need not be read
        self._finished: set[str] = set()  # shards read to their end, or with `once` to the end as of now
        self._workers: dict[str, threading.Thread] = {}
        self._progress: dict[str, str | None] = {}
        self._changed = threading.Event()
        self._damaged = threading.Event()  # a repair has just been asked for
        self._crash: BaseException | None = None
        self.totals = Totals()
        self.troubles = Troubles(log, clock, "the trouble is over")

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
                        if not self._damaged.is_set():
                            return
                        self._changed.set()  # once more, after the repair was handed over
                if now >= repairs_at or self._damaged.is_set():
                    self._damaged.clear()
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
        place = _Place(self._progress.get(shard))
        failures = 0
        while not self._stop.is_set():
            started = self._clock.monotonic()
            try:
                if self._read_once(shard, place):
                    return
                self._well_again()
                failures = 0
            except TransientError as error:
                place.start_anew()
                self._back_off(error, failures)
                failures += 1
                continue
            self._clock.sleep(max(0.0, started + self._read_every_s - self._clock.monotonic()))

    def _read_once(self, shard: str, place: _Place) -> bool:
        """Read and apply once, when it is this shard's turn; True: it was read to its end.

        One attempt: what can't be applied is let go of and read again, so that a shard that waits for something which
        is away, such as a row in S3, keeps neither its turn nor memory from the others.
        """
        while not self._working.acquire(timeout=WAIT_TO_WORK_S):
            if self._stop.is_set():
                return True
        try:
            iterator = place.iterator or self._stream.iterator(shard, place.after)
            read = self._stream.records(iterator, place.limit)
            failpoint("subscriber.fetched")
            place.limit = _next_limit(read.records, place.limit)
            self._apply(shard, read.records, place)
        finally:
            self._working.release()
        place.iterator = read.next_iterator
        if place.iterator is not None and not self._is_enough(read):
            return False
        if not self._stop.is_set():
            self._finish(shard, ended=place.iterator is None)
        return True

    def _is_enough(self, read: Read) -> bool:
        if self._until is None:
            return False
        return read.at_tip or (read.arrived is not None and read.arrived >= self._until)

    def _finish(self, shard: str, *, ended: bool) -> None:
        if ended:
            self._retried(partial(self._checkpoints.save, self._name, shard, None))
            failpoint("subscriber.shard.finished")
        self._finished.add(shard)

    def _apply(self, shard: str, records: Sequence[tuple[str, bytes]], place: _Place) -> None:
        """Apply in batches; the place moves with each."""
        for batch in batches(records):
            applied = self._applier.apply([each for _, each in batch])
            self.totals.add(applied)
            if applied.alarm:
                log.warning("%s All tables are to be read again; the publisher is asked to.", applied.alarm)
                self._damaged.set()
            place.after = batch[-1][0]
            self._checkpoints.save(self._name, shard, place.after)
            failpoint("subscriber.checkpoint.saved")

    def _retried(self, work: Callable[[], T], attempts_max: int | None = None) -> T | None:
        """All but the shards' reading: again until it works. None: told to stop, or out of attempts, before."""
        failures = 0
        while True:
            try:
                done = work()
            except TransientError as error:
                self._back_off(error, failures)
                failures += 1
                if self._stop.is_set() or failures == attempts_max:
                    return None
            else:
                self._well_again()
                return done

    def _well_again(self) -> None:
        self.troubles.over(threading.current_thread().name)

    def _back_off(self, error: TransientError, failures: int) -> None:
        self.troubles.met(threading.current_thread().name, error)
        self._clock.sleep(self._rng.random() * min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(failures, 30)))


def _next_limit(records: Sequence[tuple[str, bytes]], limit: int) -> int:
    """How many records to ask for, after a read that was to give `limit` of them."""
    if not records:
        return limit
    average = sum(bytes_in_memory(data) for _, data in records) / len(records)
    return max(1, min(READ_RECORDS_MAX, READ_GROWTH_MAX * limit, int(READ_BYTES / average)))
