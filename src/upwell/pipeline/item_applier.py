"""Applying a batch of records to a target without transactions: effectively once, in order of each row.

The rows are guarded one by one: an item refuses what is older than itself. So a batch may be cut short between any two
writes and come again, or be applied by two at once. What is known of a lane is saved last, when all that it stands for
is durable: the rows, the dead letters, the request for a repair, the resyncs that ended.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from typing import Final

from upwell.claims import Claims
from upwell.errors import TransientError
from upwell.failpoints import failpoint
from upwell.heartbeat import HEARTBEAT_TABLE
from upwell.model import ChangeEvent, DeadLetter, Marker, TableSchema, pack_version
from upwell.pipeline.applier import Plan, plan, repair_of
from upwell.pipeline.incoming import Applied, Incoming, Record, as_sent, parts
from upwell.ports import Clock, ItemSink, LaneStore, Parcel

# What a call left over is sent again at once, so that one throttled item does not bring the whole batch again.
SENDS_MAX: Final = 6
SENDS_S: Final = 10.0  # an answer that does not come at all takes longer than that
BACKOFF_FIRST_S: Final = 0.05
BACKOFF_MAX_S: Final = 2.0


class ItemApplier:
    """Applies batches of one pipeline to items. Threads may share it, each with its own batch."""

    def __init__(
        self,
        pipeline: str,
        sink: ItemSink,
        lanes: LaneStore,
        clock: Clock,
        rng: random.Random,
        claims: Claims | None = None,
        sweep_s: float | None = None,
    ) -> None:
        """`claims`: where rows wait that were too large for the stream. `sweep_s`: for how long one batch may sweep;
        then it comes again, and goes on from there.
        """
        self._pipeline = pipeline
        self._sink = sink
        self._lanes = lanes
        self._clock = clock
        self._rng = rng
        self._incoming = Incoming(pipeline, clock, claims)
        self._sweep_s = sweep_s
        self._ready: frozenset[str] = frozenset()  # hashes of schemas that the sink knows
        self._preparing = threading.Lock()

    def apply(self, data: Sequence[bytes]) -> Applied:
        """All of `data`, the records of a batch in order.

        Raises TransientError, or OperatorError where a person must act: some of it may be done, and the same again is
        right.
        """
        applied = Applied()
        records, letters = self._incoming.decoded(data, applied)
        failpoint("items.decoded")
        for part in parts(records):
            with self._incoming.with_rows(part) as (whole, lost):
                self._apply(whole, lost, letters, applied)
            letters = []
        if letters:
            self._apply([], {}, letters, applied)
        return applied

    def _apply(
        self, records: Sequence[Record], lost: dict[str, str], letters: list[DeadLetter], applied: Applied
    ) -> None:
        states = self._lanes.lanes(self._pipeline, sorted({record.lane for record in records}))
        failpoint("items.lanes_read")
        work = plan(records, states)
        self._prepare(list(work.schemas.values()))
        for table, resync in sorted(work.opened.items()):
            self._lanes.open_resync(self._pipeline, table, resync)
        failpoint("items.opened")
        letters.extend(self._incoming.lost_letters(work.lost, lost))
        rows, beats = _apart(work)
        for events in rows:
            letters.extend(self._write(events))
        failpoint("items.written")
        if letters:
            self._lanes.add_dead_letters(self._pipeline, letters)
            failpoint("items.letters_kept")
        if work.losses:
            request = repair_of(work.losses)
            self._lanes.ask_repair(self._pipeline, request)
            applied.alarm = request.reason
        for marker in work.closed:
            applied.swept += self._close(marker)
        for events in beats:  # they vouch for all of the above
            self._write(events)
        failpoint("items.before_save")
        moved = {lane: state for lane, state in work.states.items() if state != states[lane]}
        self._lanes.save_lanes(self._pipeline, moved)
        failpoint("items.saved")
        applied.skipped += work.skipped
        applied.dead_letters += len(letters)
        applied.holes += len(work.losses)

    def _prepare(self, schemas: Sequence[TableSchema]) -> None:
        new = [schema for schema in schemas if schema.hash not in self._ready]
        if new:
            with self._preparing:
                self._sink.prepare(new)
                self._ready |= {schema.hash for schema in new}

    def _write(self, events: Sequence[ChangeEvent]) -> list[DeadLetter]:
        """Events of different keys, in whatever order; what is refused for what it holds."""
        letters: list[DeadLetter] = []
        parcels: list[Parcel] = []
        taken = 0
        while taken < len(events):
            parcels.append(self._sink.pack(0, 0, 0, None, events[taken:]))
            taken += parcels[-1].taken
            if len(parcels) == self._sink.parcels_max or taken == len(events):
                self._send(parcels)
                for parcel in parcels:
                    letters += [
                        self._incoming.letter(refused.event, refused.reason)
                        for refused in parcel.rejected
                        if refused.event is not None
                    ]
                parcels = []
        return letters

    def _send(self, parcels: Sequence[Parcel]) -> None:
        """Until all is durable or refused. Raises TransientError where again and again nothing more gets through.

        As long as something does, the rest is not given up: all would be written anew, and a table that takes less than
        a batch in this time would never be done.
        """
        left = [parcel for parcel in parcels if parcel.body]
        sends, began, size = 0, self._clock.monotonic(), sum(parcel.size for parcel in left)
        while left:
            try:
                answers = self._sink.send(left)
            except TransientError as error:
                failure = error
            else:
                failed = [(parcel, answer) for parcel, answer in zip(left, answers, strict=True) if answer is not None]
                if not failed:
                    return
                left, failure = [parcel for parcel, _ in failed], failed[0][1]
            before, size = size, sum(parcel.size for parcel in left)
            if size < before:
                sends, began = 0, self._clock.monotonic()
            sends += 1
            if sends == SENDS_MAX or self._clock.monotonic() - began > SENDS_S:
                raise failure
            self._clock.sleep(self._rng.random() * min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0**sends))

    def _close(self, marker: Marker) -> int:
        """The lane's part of a resync has ended; with the last lane's, what is older than the resync goes."""
        sweep = self._lanes.close_lane(self._pipeline, marker)
        failpoint("items.closed")
        if sweep is None:
            return 0
        before, cursor, swept = pack_version(marker.resync, 0, 0), sweep.cursor, 0
        began = self._clock.monotonic()
        while True:
            buried, cursor = self._sink.sweep_page(marker.schema, before, cursor)
            failpoint("items.swept")
            swept += buried
            self._lanes.swept(self._pipeline, marker, cursor)
            if cursor is None:
                return swept
            if self._sweep_s is not None and self._clock.monotonic() - began > self._sweep_s:
                raise TransientError(
                    f"Rows of {marker.schema.table} that the source no longer has are still being removed.",
                    code="UW-DD-009",
                )


def _apart(work: Plan) -> tuple[list[list[ChangeEvent]], list[list[ChangeEvent]]]:
    """What is to be written, group after group, and the heartbeats likewise, which come last."""
    rows: list[list[ChangeEvent]] = []
    beats: list[list[ChangeEvent]] = []
    for fold in work.folds:
        events = [as_sent(event) for event in fold.events.values()]
        rows.append([event for event in events if event.schema.table != HEARTBEAT_TABLE])
        beats.append([event for event in events if event.schema.table == HEARTBEAT_TABLE])
    return rows, beats
