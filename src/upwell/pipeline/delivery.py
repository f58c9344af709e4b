"""The only retry loop of the publisher: lanes in order, at most one parcel of a lane unacknowledged.

`Delivery` decides and does no I/O: what to send next, what a failure means, which windows are durable. Threads of
`DeliveryThreads` do the sending; the simulation drives the same `Delivery` with its own clock.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from zlib import crc32

from upwell.errors import TransientError, UpwellError
from upwell.failpoints import failpoint
from upwell.model import ChangeEvent, LaneItem, Rejection
from upwell.pipeline.troubles import Troubles, forget_frames
from upwell.ports import Clock, Parcel, Sink

log = logging.getLogger("upwell.publisher")

# Full jitter: a wait is drawn from 0 to the backoff, which doubles from the first to the last of these.
BACKOFF_FIRST_S = 0.1
# A shard's limits count anew each second: lanes that waited longer would leave it idle.
BACKOFF_LANE_MAX_S = 5.0
BACKOFF_SERVICE_MAX_S = 10.0
# A lane that has just been served waits this long for company, so that a steady trickle makes few records.
LANE_REST_S = 0.02
# A lane with this much waiting does not rest: it fills records by itself.
LANE_REST_BYTES_MAX = 64 * 1024
# How much of a lane's queue is offered to the sink to pack at a time.
PACK_ITEMS_MAX = 4096
# How many parcels may be on a detour at a time: the senders left over serve the other lanes, also where the other
# service hangs.
DETOURS_MAX = 2
# What an event weighs in memory beyond its bytes: measured, CPython 3.11.
EVENT_OVERHEAD_BYTES = 300
# What a window weighs beyond its events, with its mark: likewise.
WINDOW_OVERHEAD_BYTES = 1000

Mark = TypeVar("Mark")


@dataclass(slots=True)
class _Pending(Generic[Mark]):
    """A window on its way: durable when nothing of it is outstanding and all windows before it are durable."""

    mark: Mark
    outstanding: int


@dataclass(slots=True)
class _Lane(Generic[Mark]):
    number: int
    last: tuple[int, int]  # the last acknowledged (term, sequence)
    queue: list[LaneItem] = field(default_factory=list)
    queue_bytes: int = 0
    segments: deque[tuple[_Pending[Mark], int]] = field(default_factory=deque)  # whose items the queue holds, in order
    parcel: Parcel | None = None
    in_flight: bool = False
    on_detour: bool = False
    ready_at: float = 0.0
    failures: int = 0
    sent_size: int = 0  # the parcel's, when it was last sent


class Delivery(Generic[Mark]):
    """What is on its way to the sink. Thread-safe; times are `Clock.monotonic` seconds."""

    def __init__(
        self,
        sink: Sink,
        *,
        term: int,
        lanes: int,
        acknowledged: Mapping[int, tuple[int, int]],
        pending_bytes_max: int,
        rng: random.Random,
    ) -> None:
        """`acknowledged`: lane → last acknowledged (term, sequence), from the checkpoint."""
        self._sink = sink
        self._term = term
        self._rng = rng
        self._lanes: list[_Lane[Mark]] = [_Lane(n, acknowledged.get(n, (0, 0))) for n in range(lanes)]
        self._windows: deque[_Pending[Mark]] = deque()
        self._pending_bytes = 0
        self._pending_bytes_max = pending_bytes_max
        self._rejected: list[Rejection] = []
        self._service_failures = 0
        self._service_ready_at = 0.0
        self._start = 0  # the lane that is looked at first: every lane gets its turn
        self._detours = 0  # in flight
        self._failure: UpwellError | None = None
        self.last_error: TransientError | None = None
        self.changed = threading.Condition()

    def offer(self, items: Sequence[LaneItem], mark: Mark) -> None:
        """Take a window over; `mark` is given back by `collect` when it and all before it are durable."""
        with self.changed:
            if not items and self._windows:
                # As durable as what is before it: so that a source that moves on without events for us fills no
                # memory, however long the destination is away.
                self._windows[-1].mark = mark
                return
            window = _Pending(mark, len(items))
            self._windows.append(window)
            self._pending_bytes += WINDOW_OVERHEAD_BYTES
            by_lane: dict[int, list[LaneItem]] = {}
            lanes = len(self._lanes)
            for item in items:
                # lanes.lane_of, written out: this is the hot loop.
                if isinstance(item, ChangeEvent):
                    key = item.schema.lane_key(item.key) if item.schema.loose else item.key
                    number = crc32(key, item.schema.lane_seed) % lanes
                else:
                    number = item.lane
                if number in by_lane:
                    by_lane[number].append(item)
                else:
                    by_lane[number] = [item]
            for number, group in by_lane.items():
                lane = self._lanes[number]
                size = sum(map(_weight, group))
                lane.queue.extend(group)
                lane.queue_bytes += size
                lane.segments.append((window, len(group)))
                self._pending_bytes += size
            self.changed.notify_all()

    def take(self, now: float) -> list[Parcel]:
        """The next call's parcels; empty where nothing may be sent yet. Each must be settled or failed."""
        with self.changed:
            if now < self._service_ready_at or self._failure is not None:
                return []
            taken: list[Parcel] = self._take_detour(now)
            size = 0
            count = len(self._lanes)
            for offset in range(0 if taken else count):
                lane = self._lanes[(self._start + offset) % count]
                if lane.in_flight or not (lane.parcel or lane.queue) or not self._rested(lane, now):
                    continue
                parcel = lane.parcel or self._pack(lane)
                if parcel.detour:
                    continue
                if taken and size + parcel.size > self._sink.call_bytes_max:
                    break
                lane.in_flight = True
                lane.sent_size = parcel.size
                size += parcel.size
                taken.append(parcel)
                if len(taken) == self._sink.parcels_max:
                    break
            self._start = (self._start + max(1, len(taken))) % count
            taken = taken or self._take_detour(now)  # one that was packed just now
        if taken:
            failpoint("delivery.packed")
        return taken

    def _take_detour(self, now: float) -> list[Parcel]:
        """A parcel that goes to another service first, which may be slow or away: nothing else waits for it."""
        if self._detours < DETOURS_MAX:
            for lane in self._lanes[self._start :] + self._lanes[: self._start]:
                if lane.parcel and lane.parcel.detour and not lane.in_flight and now >= lane.ready_at:
                    lane.in_flight = lane.on_detour = True
                    lane.sent_size = lane.parcel.size
                    self._detours += 1
                    return [lane.parcel]
        return []

    def _arrived(self, lane: _Lane[Mark]) -> None:
        """Its parcel is no longer in flight."""
        self._detours -= lane.on_detour
        lane.in_flight = lane.on_detour = False

    def _rested(self, lane: _Lane[Mark], now: float) -> bool:
        if now >= lane.ready_at:
            return True
        return lane.parcel is None and lane.failures == 0 and lane.queue_bytes >= LANE_REST_BYTES_MAX

    def _pack(self, lane: _Lane[Mark]) -> Parcel:
        last_term, last_seq = lane.last
        first = last_term != self._term
        parcel = self._sink.pack(
            lane.number,
            self._term,
            1 if first else last_seq + 1,
            lane.last if first else None,
            lane.queue[:PACK_ITEMS_MAX],
        )
        lane.parcel = parcel
        return parcel

    def settle(self, parcels: Sequence[Parcel], answers: Sequence[TransientError | None], now: float) -> None:
        """The sink answered for each parcel."""
        with self.changed:
            if not all(parcel.detour for parcel in parcels):  # which came no farther than the other service
                self._service_failures = 0
                self._service_ready_at = 0.0
            for parcel, error in zip(parcels, answers, strict=True):
                lane = self._lanes[parcel.lane]
                self._arrived(lane)
                if error is None:
                    self._acknowledge(lane, parcel, now)
                else:
                    self.last_error = error
                    lane.ready_at = now + self._backoff(lane.failures, BACKOFF_LANE_MAX_S)
                    # Where a part of it got through the pace is about right: else a throttled lane would wait for
                    # half a minute with a few writes left.
                    some = parcel.size < lane.sent_size
                    lane.failures = max(1, lane.failures - 1) if some else lane.failures + 1
            if not any(lane.failures for lane in self._lanes):
                self.last_error = None
            self.changed.notify_all()
        failpoint("delivery.settled")

    def fail(self, parcels: Sequence[Parcel], error: UpwellError, now: float) -> None:
        """The whole call failed; whether its parcels arrived is unknown. Not transient: nothing more is sent."""
        with self.changed:
            for parcel in parcels:
                self._arrived(self._lanes[parcel.lane])
            if isinstance(error, TransientError):
                self.last_error = error
                if now >= self._service_ready_at:  # calls that fail together are one failure
                    self._service_ready_at = now + self._backoff(self._service_failures, BACKOFF_SERVICE_MAX_S)
                    self._service_failures += 1
            else:
                self._failure = error
            self.changed.notify_all()

    def _backoff(self, failures: int, max_s: float) -> float:
        return self._rng.random() * min(max_s, BACKOFF_FIRST_S * 2.0 ** min(failures, 30))

    def _acknowledge(self, lane: _Lane[Mark], parcel: Parcel, now: float) -> None:
        self._rejected.extend(parcel.rejected)
        if parcel.body is not None or len(parcel.rejected) < parcel.taken:
            lane.last = (parcel.term, parcel.seq)
        size = sum(map(_weight, lane.queue[: parcel.taken]))
        del lane.queue[: parcel.taken]
        lane.queue_bytes -= size
        self._pending_bytes -= size
        left = parcel.taken
        while left:
            window, count = lane.segments.popleft()
            done = min(left, count)
            window.outstanding -= done
            left -= done
            if done < count:
                lane.segments.appendleft((window, count - done))
        lane.parcel = None
        lane.failures = 0
        lane.ready_at = now + LANE_REST_S

    def collect(self) -> tuple[Mark | None, list[Rejection]]:
        """The newest mark whose window and all before it are durable, once; and what the sink refused since.

        The caller keeps the refused events as dead letters before it saves the mark. Raises what ended the sending.
        """
        with self.changed:
            if self._failure is not None:
                raise self._failure
            mark: Mark | None = None
            while self._windows and self._windows[0].outstanding == 0:
                mark = self._windows.popleft().mark
                self._pending_bytes -= WINDOW_OVERHEAD_BYTES
            rejected, self._rejected = self._rejected, []
            return mark, rejected

    def acknowledged(self) -> dict[int, tuple[int, int]]:
        """lane → last acknowledged (term, sequence), of the lanes that have one."""
        with self.changed:
            return {lane.number: lane.last for lane in self._lanes if lane.last != (0, 0)}

    @property
    def full(self) -> bool:
        """Whether so much is under way that reading must pause."""
        return self._pending_bytes >= self._pending_bytes_max

    @property
    def pending_bytes(self) -> int:
        """Memory held by what is under way, about."""
        return self._pending_bytes

    @property
    def idle(self) -> bool:
        """Whether everything offered has been collected."""
        return not self._windows

    def wake_at(self, now: float) -> float | None:
        """When `take` may have something, at the earliest; None: not before the next `offer` or answer."""
        with self.changed:
            times = [
                now if lane.parcel is None and lane.queue_bytes >= LANE_REST_BYTES_MAX else lane.ready_at
                for lane in self._lanes
                if not lane.in_flight and (lane.parcel or lane.queue) and not self._waits_for_detours(lane)
            ]
            return max(min(times), self._service_ready_at) if times else None

    def _waits_for_detours(self, lane: _Lane[Mark]) -> bool:
        return self._detours >= DETOURS_MAX and lane.parcel is not None and lane.parcel.detour


def _weight(item: LaneItem) -> int:
    if isinstance(item, ChangeEvent):
        return EVENT_OVERHEAD_BYTES + len(item.key) + (0 if item.row is None else len(item.row))
    return EVENT_OVERHEAD_BYTES


_CALLS = "calls"  # any sender's success means that the way is open to all


class DeliveryThreads:
    """Threads that send what a Delivery hands out, several calls at a time: they hide the wire's latency."""

    def __init__(self, delivery: Delivery[Mark], sink: Sink, clock: Clock, threads: int) -> None:
        self._delivery = delivery
        self._sink = sink
        self._clock = clock
        self._stopping = False
        self._troubles = Troubles(log, clock, "the destination answers again")
        self._crash: BaseException | None = None
        self._threads = [threading.Thread(target=self._work, name=f"sender-{n}", daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def check(self) -> None:
        """Raise what made a thread crash: a bug, to be seen."""
        if self._crash is not None:
            raise self._crash

    def stop(self, timeout_s: float) -> None:
        """Take no further call; wait for those in flight."""
        self._stopping = True
        with self._delivery.changed:
            self._delivery.changed.notify_all()
        deadline = self._clock.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - self._clock.monotonic()))

    def _work(self) -> None:
        try:
            while not self._stopping:
                parcels = self._delivery.take(self._clock.monotonic())
                if parcels:
                    self._send(parcels)
                else:
                    self._wait()
        except BaseException as error:
            self._crash = error
            with self._delivery.changed:
                self._delivery.changed.notify_all()

    def _send(self, parcels: list[Parcel]) -> None:
        sendable = [parcel for parcel in parcels if parcel.body is not None]
        try:
            answers = self._sink.send(sendable) if sendable else []
        except UpwellError as error:
            if isinstance(error, TransientError):
                self._troubles.met(_CALLS, error)
            self._delivery.fail(parcels, error, self._clock.monotonic())
            return
        failpoint("delivery.sent")
        self._note(answers)
        left = iter(answers)
        self._delivery.settle(
            parcels,
            [None if parcel.body is None else next(left) for parcel in parcels],
            self._clock.monotonic(),
        )

    def _note(self, answers: Sequence[TransientError | None]) -> None:
        """As long as anything gets through, what does not is a lane's own affair."""
        failed = [error for error in answers if error is not None]
        for error in failed:
            forget_frames(error)
        if len(failed) < len(answers):
            self._troubles.over(_CALLS)
        elif failed:
            self._troubles.met(_CALLS, failed[0])

    def _wait(self) -> None:
        with self._delivery.changed:
            now = self._clock.monotonic()
            wake_at = self._delivery.wake_at(now)
            if not self._stopping and (wake_at is None or wake_at > now):
                self._delivery.changed.wait(1.0 if wake_at is None else min(1.0, wake_at - now))
