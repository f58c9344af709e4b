"""The change event publisher: source → mapping → lanes → sink → acknowledged → checkpoint → source.confirm.

`Publisher.step` does one bounded piece of work and returns, so that a test or the simulation can run it piece by
piece; pipeline/service.py repeats it. Nothing here knows a database, a service or the time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from upwell.clock import iso_time
from upwell.envelope import letter_payload
from upwell.errors import OperatorError, PositionLost, TransientError
from upwell.failpoints import failpoint
from upwell.heartbeat import HEARTBEAT
from upwell.lanes import DEFAULT_LANES
from upwell.mapping import Mapping
from upwell.model import (
    HIGHEST_ORDINAL,
    UPSERT,
    ChangeEvent,
    Checkpoint,
    Chunk,
    DeadLetter,
    LaneItem,
    Marker,
    Position,
    Rejection,
    TablePhase,
    TableProgress,
    TableSchema,
    Window,
    pack_version,
    unpack_version,
)
from upwell.pipeline.delivery import Delivery
from upwell.pipeline.heartbeats import Heartbeats
from upwell.pipeline.progress import Progress, advanced, begun, initial_tables, next_epoch, resync_reason
from upwell.pipeline.snapshot import DeliveredKeys, rows_to_send
from upwell.ports import Clock, ControlChannel, Request, Sink, Source, StateStore

RENEW_EVERY_S = 1.0
REQUESTS_EVERY_S = 1.0
REPAIRS_EVERY_S = 10.0
SWEEP_AGAIN_S = 5.0
# How long a request that a publisher before this one left behind may take to be carried out. Where its event is lost
# to the source it is not sent again, and a sweep that came before it would not find what it writes.
SWEEP_AFTER_START_S = 60.0
# While something is under way, a read of the source may not keep its acknowledgement waiting for longer.
READ_WAIT_BUSY_S = 0.02

Background = Callable[[Callable[[], Any]], "Future[Any]"]


@dataclass(frozen=True)
class PublisherSettings:
    """The publisher's limits, each with its unit."""

    pipeline: str
    lanes: int = DEFAULT_LANES
    on_gap: Literal["resync", "halt"] = "resync"
    window_events_max: int = 5_000
    chunk_rows_max: int = 5_000
    pending_bytes_max: int = 48 * 1024 * 1024
    checkpoint_every_s: float = 0.5
    poll_interval_s: float = 1.0
    heartbeat_s: float | None = None  # how often the other end is told how old its data is; None: never


class Publisher:
    """One pipeline's publisher. One thread uses it; whoever drives `delivery` does the sending."""

    delivery: Delivery[Progress]

    def __init__(
        self,
        settings: PublisherSettings,
        *,
        source: Source,
        sink: Sink,
        state: StateStore,
        mapping: Mapping,
        clock: Clock,
        rng: random.Random,
        background: Background,
        control: ControlChannel | None = None,
    ) -> None:
        """`background` runs what may take long (sweeps, asking for repair requests) beside the reading."""
        self._settings = settings
        self._source = source
        self._sink = sink
        self._state = state
        self._mapping = mapping
        self._clock = clock
        self._rng = rng
        self._background = background
        self._control = control
        self._sources: dict[str, TableSchema] = {}  # the tables as the source has them
        self._delivered = DeliveredKeys()
        self._remembered: frozenset[str] = frozenset()  # the tables whose keys `_delivered` has
        self._held: Chunk | None = None
        self._chunk_number = 0  # the offer that held the last chunk: the next chunk waits until that is saved
        self._saved_number = 0
        self._unsaved: Progress | None = None  # acknowledged, not yet in the checkpoint
        self._refused: list[Rejection] = []  # by the sink, not yet among the dead letters
        self._saved: Progress | None = None  # what was last put into the checkpoint
        self._started = False  # the source reads on from the frontier, in the checkpoint's epoch
        self._complete = True  # the last window did not end inside a transaction
        self._highest_commit = 0  # of any event offered: a chunk stamped below it would look old
        self._predecessor = 0  # a publisher before this one may have delivered up to this commit, checkpoint or not
        self._asked: list[tuple[Request, bool]] = []  # requests that the next resync answers; True: by a subscriber
        self._sweeping: tuple[str, TableProgress, Future[int]] | None = None
        self._repairs: Future[Sequence[Request]] | None = None
        self._renew_at = 0.0
        self._requests_at = self._repairs_at = self._sweep_at = self._checkpoint_at = 0.0
        self._heartbeats = None
        if settings.heartbeat_s is not None:
            every_lane = sink.carries_markers
            self._heartbeats = Heartbeats(
                settings.pipeline, settings.lanes, settings.heartbeat_s, clock, every_lane=every_lane
            )
        self.caught_up = False  # the source had nothing more and all of it is in the checkpoint
        self.last_gap = ""

    # --- starting ---------------------------------------------------------------------------------------------

    @property
    def fresh(self) -> bool:
        """Nothing is known of an earlier start."""
        return self._state.load() is None

    def open(self) -> None:
        """Take the lease, the checkpoint and the source's position; a gap found here begins a resync."""
        now = self._clock.now()
        self._opened_at = self._clock.monotonic()
        self._lease = self._state.acquire(now)
        saved = self._state.load() or Checkpoint(epoch=next_epoch(0, now), term=0)
        self._sources = {schema.table: schema for schema in self._source.tables()}
        tables = initial_tables({table: self._mapping.snapshot(table) for table in self._sources}, saved.tables)
        self._save(replace(saved, term=self._lease.term, tables=tables))
        self._frontier = Progress(saved.epoch, saved.position or Position(""), saved.commit, tables, saved.schemas)
        self.delivery = Delivery(
            self._sink,
            term=self._lease.term,
            lanes=self._settings.lanes,
            acknowledged=saved.lanes,
            pending_bytes_max=self._settings.pending_bytes_max,
            rng=self._rng,
        )
        self._adopt(self._sources.values())
        if self._heartbeats is not None:
            self._sink.prepare([HEARTBEAT])
        if any(table.phase != TablePhase.STREAM for table in saved.tables.values()):
            self._sweep_at = self._opened_at + SWEEP_AFTER_START_S
        self._start()
        self._predecessor = self._source.head()

    def close(self) -> None:
        """Save what was acknowledged and let go of the lease."""
        self._collect()
        self._save_acknowledged()
        self._state.release()

    def stand_by(self) -> None:
        """Another publisher has taken over: save nothing more."""
        self._state.release()

    def _adopt(self, schemas: Iterable[TableSchema]) -> None:
        """The sink learns the schemas; a table whose rows may have changed without an event is to be resynced."""
        known = dict(self._frontier.schemas)
        mapped = [self._mapping.schema(schema) for schema in schemas]
        self._sink.prepare(mapped)
        for schema in mapped:
            old = known.get(schema.table)
            reason = None if old is None else resync_reason(old, schema)
            if reason is not None:
                self._want(schema.table, reason)
            known[schema.table] = schema
        self._frontier = replace(self._frontier, schemas=known)

    def _want(self, table: str, reason: str) -> None:
        """A resync of the table is to begin. Part of the progress: who saves the position that made it necessary,
        and dies, must not forget it.
        """
        if table in self._sources and self._mapping.snapshot(table):
            known = self._frontier.tables.get(table, TableProgress(TablePhase.STREAM))
            wanting = replace(known, wanted=reason)
            self._frontier = replace(self._frontier, tables={**self._frontier.tables, table: wanting})

    @property
    def _wanted(self) -> dict[str, str]:
        """table → why a resync is to begin."""
        return {name: table.wanted for name, table in self._frontier.tables.items() if table.wanted}

    def _start(self) -> None:
        """Have the source read on from the frontier, or from now where nothing connects to what was published."""
        self._started = False
        try:
            if self._checkpoint.position is None:
                position, commit = self._source.start(None, self._checkpoint.epoch)
                failpoint("publisher.start.position_taken")
                self._save(replace(self._checkpoint, position=position, commit=commit))
                self._highest_commit = self._predecessor = 0
            else:
                position, commit = self._source.start(self._frontier.position, self._checkpoint.epoch)
        except PositionLost as lost:
            self._position_lost(lost)
            return
        self._frontier = replace(self._frontier, epoch=self._checkpoint.epoch, position=position, commit=commit)
        self._complete = self._started = True
        self._forget_chunk()
        if self._heartbeats is not None:
            self._heartbeats.forget()
        self._open_resyncs()

    def _position_lost(self, lost: PositionLost) -> None:
        """A gap: the tables concerned are resynced, the others go on where they were."""
        self._started = False
        self._sweep_at = max(self._sweep_at, self._opened_at + SWEEP_AFTER_START_S)
        if self._settings.on_gap == "halt" and not self._state.requests():
            raise OperatorError(
                f"{lost.message} Publishing is halted, as `source.on_gap: halt` says.",
                code="UW-PB-001",
                remedy="Run `upwell resync` to have the tables read again, then start the publisher.",
            ) from lost
        self.last_gap = lost.message
        for table in self._sources if lost.tables is None else lost.tables:
            self._want(table, lost.message)
        if lost.tables is None:
            self._raise_epoch(replace(self._checkpoint, position=None, schemas=self._frontier.schemas))
        self._start()

    def head(self) -> int:
        """The commit number that is reached when all that is committed at the source now has been published."""
        return self._source.head()

    @property
    def checkpoint(self) -> Checkpoint:
        """What is saved."""
        return self._checkpoint

    @property
    def done(self) -> Progress | None:
        """How far everything is durable and saved; None before anything was."""
        return self._frontier if self.delivery.idle and self._unsaved is None else self._saved

    def reached(self, commit: int) -> bool:
        """Whether everything up to `commit`, and every snapshot, is durable at the destination and saved."""
        return self.caught_up and self._frontier.commit >= commit

    # --- one step ---------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """One bounded piece of work. False: there is nothing to do until something under way is acknowledged."""
        self._renew()
        self._collect()
        self._take_requests()
        self._sweep()
        if not self._started:
            self._start()
        if self._wanted and self._between_transactions() and self._frontier.commit >= self._predecessor:
            # A new epoch begins when all of the old one is durable, else old states would be read again as new.
            if not self.delivery.idle or self._unsaved is not None:
                self._checkpoint_at = 0.0
                return False
            self._begin_resyncs()
        if self.delivery.full:
            return False
        try:
            window = self._source.changes(
                self._frontier.position, self._settings.window_events_max, self._read_wait_s()
            )
        except PositionLost as lost:
            self._position_lost(lost)
            return True
        except TransientError:
            self._forget_chunk()
            raise
        failpoint("publisher.read")
        self._started = False  # a window that an error keeps from being offered would be lost: read it again
        self._publish(window)
        self._started = True
        self._snapshot()
        self._beat()
        durable = self.delivery.idle and self._unsaved is None
        self.caught_up = not window.more and durable and not self._beat_waits and not self._busy_tables()
        return True

    def _renew(self) -> None:
        """One that was stopped for a while, and has a successor, learns it before it does anything else."""
        now = self._clock.monotonic()
        if now >= self._renew_at:
            self._state.renew(self._lease)
            self._renew_at = now + RENEW_EVERY_S

    def _between_transactions(self) -> bool:
        """Nothing of a transaction has been offered whose rest is still to come, be it read again from its start."""
        return self._complete and self._frontier.commit >= self._highest_commit

    def _read_wait_s(self) -> float:
        busy = not self.delivery.idle or self._unsaved is not None or self._busy_tables()
        # Where all has just been saved, that is to be seen before the next heartbeat is due.
        busy = busy or not (self.caught_up or self._beat_waits)
        return READ_WAIT_BUSY_S if busy else self._settings.poll_interval_s

    def _busy_tables(self) -> bool:
        return bool(self._wanted) or any(t.phase != TablePhase.STREAM for t in self._frontier.tables.values())

    def _publish(self, window: Window) -> None:
        if window.schemas:
            self._sources.update((schema.table, schema) for schema in window.schemas)
            for schema in window.schemas:
                if schema.table not in self._frontier.tables:
                    self._want(schema.table, "first snapshot")
            self._adopt(window.schemas)
            self._forget_chunk()  # it was read with the schema of before
        for table, reason in window.resync:
            self._want(table, reason)
            self._forget_chunk()
        if window.rejected:
            self._keep(window.rejected)
        if self._remembered:
            self._delivered.remember(window.events, self._remembered)
        self._complete = window.complete
        if window.complete and not window.more:
            self._frontier = replace(self._frontier, seen_at=self._clock.now())
        if not window.events and window.position == self._frontier.position and not window.schemas:
            self._frontier = replace(self._frontier, commit=window.commit)
            return
        events = self._mapping.events(window.events)
        for table, reason in self._mapping.take_resyncs():
            self._want(table, reason)
        failpoint("publisher.mapped")
        if window.events:
            self._highest_commit = max(self._highest_commit, unpack_version(window.events[-1].version)[1])
        self._offer(events, position=window.position, commit=window.commit)
        failpoint("publisher.offered")

    @property
    def _beat_waits(self) -> bool:
        return self._heartbeats is not None and self._heartbeats.waiting

    def _beat(self) -> None:
        if self._heartbeats is None or not self._started or not self._between_transactions():
            return
        rows = self._heartbeats.due(self._source.head, self._frontier, self.done, self._sources.keys())
        if rows:
            self._offer(rows, events=self._frontier.events)  # they are none of the source's

    def _offer(self, items: Sequence[LaneItem], **changed: Any) -> None:
        last = items[-1] if items else None
        known: dict[str, Any] = {
            "number": self._frontier.number + 1,
            "events": self._frontier.events + len(items),
            "time": last.time if isinstance(last, ChangeEvent) and last.was != "read" else self._frontier.time,
        }
        self._frontier = replace(self._frontier, **(known | changed))
        self.delivery.offer(items, self._frontier)

    # --- what came back ---------------------------------------------------------------------------------------

    def _collect(self) -> None:
        mark, rejected = self.delivery.collect()
        self._refused.extend(rejected)
        if mark is not None and mark.epoch == self._checkpoint.epoch:
            self._unsaved = mark
            failpoint("publisher.acknowledged")
        if self._refused:
            self._keep(self._refused)
            self._refused.clear()
        if self._unsaved is None:
            return
        chunk_done = self._saved_number < self._chunk_number <= self._unsaved.number
        if chunk_done or self._clock.monotonic() >= self._checkpoint_at:
            self._save_acknowledged()

    def _save_acknowledged(self) -> None:
        done = self._unsaved
        if done is None:
            return
        self._save(advanced(self._checkpoint, done, self.delivery.acknowledged()))
        self._saved_number, self._unsaved, self._saved = done.number, None, done
        self._checkpoint_at = self._clock.monotonic() + self._settings.checkpoint_every_s
        failpoint("publisher.checkpoint.saved")
        self._source.confirm(done.position)
        failpoint("publisher.confirmed")

    def _save(self, checkpoint: Checkpoint) -> None:
        self._state.save(checkpoint, self._lease)
        self._checkpoint = checkpoint

    def _keep(self, rejected: Sequence[Rejection]) -> None:
        """Dead letters are durable before the checkpoint can pass them."""
        now = iso_time(self._clock.now())
        self._state.add_dead_letters([dead_letter(self._settings.pipeline, each, now) for each in rejected])
        failpoint("publisher.dead_letters.kept")

    # --- resyncs ----------------------------------------------------------------------------------------------

    def _take_requests(self) -> None:
        now = self._clock.monotonic()
        if now >= self._requests_at:
            self._requests_at = now + REQUESTS_EVERY_S
            self._ask_for(self._state.requests(), repair=False)
        if self._control is None:
            return
        if self._repairs is not None and self._repairs.done():
            repairs, self._repairs = self._repairs, None
            if not isinstance(repairs.exception(), TransientError):
                self._ask_for(repairs.result(), repair=True)
        elif self._repairs is None and now >= self._repairs_at:
            control, pipeline = self._control, self._settings.pipeline
            self._repairs_at = now + REPAIRS_EVERY_S
            self._repairs = self._background(lambda: control.poll(pipeline))

    def _ask_for(self, requests: Sequence[Request], *, repair: bool) -> None:
        known = {request.id for request, _ in self._asked}
        for request in requests:
            if request.id in known:
                continue
            self._asked.append((request, repair))
            for table in self._sources if request.table is None else [request.table]:
                self._want(table, request.reason)
        if self._asked and not self._wanted:
            self._finish_requests()  # they name no table of this pipeline

    def _finish_requests(self) -> None:
        for request, repair in self._asked:
            if repair and self._control is not None:
                self._control.finish(self._settings.pipeline, request)
            elif not repair:
                self._state.finish(request)
        self._asked.clear()
        self._repairs = None  # what is being polled may still hold what has just been answered

    def _begin_resyncs(self) -> None:
        self._raise_epoch(advanced(self._checkpoint, self._frontier, self.delivery.acknowledged()))
        self._start()

    def _raise_epoch(self, checkpoint: Checkpoint) -> None:
        """Begin the resyncs that are wanted, with the new epoch as their id: saved before an event carries it."""
        self._started = False
        epoch = next_epoch(self._checkpoint.epoch, self._clock.now())
        tables = dict(self._frontier.tables)
        for table, reason in self._wanted.items():
            estimate = self._source.estimate(table)
            tables[table] = replace(begun(tables[table], epoch, reason), estimate=estimate)
        self._save(replace(checkpoint, epoch=epoch, tables=tables))
        failpoint("publisher.start.epoch_saved")
        self._unsaved = None
        self._chunk_number = 0  # a chunk of the epoch before is not waited for: it will not be saved
        self._frontier = replace(self._frontier, epoch=epoch, tables=tables)
        self._finish_requests()
        failpoint("publisher.requests.finished")

    def _open_resyncs(self) -> None:
        """Before anything else of a resync's epoch, its opening markers: what a change brings counts as found, so that
        a chunk may leave it out.
        """
        tables = dict(self._frontier.tables)
        items: list[LaneItem] = []
        for name, table in tables.items():
            if table.phase == TablePhase.SNAPSHOT and not table.opened:
                items.extend(self._markers(self._frontier.schemas[name], table.resync, "open"))
                tables[name] = replace(table, opened=True)
        if items:
            withdrawn = [] if self._heartbeats is None else self._heartbeats.withdrawal(self._frontier)
            self._offer([*withdrawn, *items], tables=tables)

    def _snapshot(self) -> None:
        """Read the next chunk of the first table that needs one, and send it when its time has come."""
        pending = [name for name, table in self._frontier.tables.items() if table.phase == TablePhase.SNAPSHOT]
        if not pending or self._wanted:
            if self._remembered:
                self._forget_chunk()
            return
        if not frozenset(pending) <= self._remembered or self._delivered.overflowed:
            self._forget_chunk()
            self._source.start_chunks()
            self._remembered = frozenset(pending)
        table = pending[0]
        if self._held is None:
            cursor = self._frontier.tables[table].cursor
            self._held = self._source.chunk(self._sources[table], cursor, self._settings.chunk_rows_max)
            failpoint("publisher.chunk.read")
        elif self._may_send(self._held):
            held, self._held = self._held, None
            self._send_chunk(held)

    def _may_send(self, chunk: Chunk) -> bool:
        """The stream has passed all that the chunk contains, stands between two transactions, and the chunk before
        is in the checkpoint: a crash repeats one chunk at most.
        """
        return (
            self._between_transactions()
            and self._frontier.commit >= chunk.commit
            and self._chunk_number <= self._saved_number
        )

    def _send_chunk(self, chunk: Chunk) -> None:
        table = chunk.schema.table
        if chunk.schema != self._sources[table]:
            self._sources[table] = chunk.schema
            self._adopt([chunk.schema])
        rows = rows_to_send(chunk, self._delivered)
        if rows is None or table in self._wanted:
            return
        self._delivered.forget_contained(chunk)
        schema = self._mapping.schema(chunk.schema)
        progress = self._frontier.tables[table]
        version = pack_version(self._checkpoint.epoch, self._frontier.commit, HIGHEST_ORDINAL)
        items: list[LaneItem] = [
            ChangeEvent(schema, UPSERT, version, chunk.time, key, row, "read")
            for key, row in self._mapping.rows(chunk.schema, list(rows))
        ]
        phase = TablePhase.SNAPSHOT
        if chunk.cursor is None:
            items.extend(self._markers(schema, progress.resync, "close"))
            phase = TablePhase.STREAM if self._sink.carries_markers else TablePhase.SWEEP
        if chunk.rejected:
            self._keep(chunk.rejected)
        after = replace(progress, phase=phase, cursor=chunk.cursor, rows=progress.rows + len(chunk.rows))
        self._offer(items, tables={**self._frontier.tables, table: after})
        self._chunk_number = self._frontier.number
        failpoint("publisher.chunk.offered")

    def _markers(self, schema: TableSchema, resync: int, phase: Literal["open", "close"]) -> list[LaneItem]:
        if not self._sink.carries_markers:
            return []
        lanes = self._settings.lanes
        return [Marker(schema, resync, phase, lanes, lane) for lane in range(lanes)]

    def _forget_chunk(self) -> None:
        self._held = None
        self._delivered.clear()
        self._remembered = frozenset()

    def _sweep(self) -> None:
        """Once all rows of a table are durable, have the sink remove what is older, beside the reading."""
        if self._sweeping is not None:
            self._end_sweep()
            return
        if self._clock.monotonic() < self._sweep_at:
            return
        for name, table in self._checkpoint.tables.items():
            # Once it is swept, the frontier says so, and the checkpoint soon will.
            if table.phase == TablePhase.SWEEP and table == self._frontier.tables.get(name):
                sweep = partial(self._sink.sweep, self._checkpoint.schemas[name], pack_version(table.resync, 0, 0))
                self._sweeping = name, table, self._background(sweep)
                return

    def _end_sweep(self) -> None:
        assert self._sweeping is not None
        name, swept, future = self._sweeping
        if not future.done():
            return
        self._sweeping = None
        if isinstance(future.exception(), TransientError):
            self._sweep_at = self._clock.monotonic() + SWEEP_AGAIN_S
            return
        future.result()
        failpoint("publisher.swept")
        # A table that has begun another resync meanwhile, or wants one, needs a sweep of its own.
        if self._frontier.tables[name] == swept:
            self._offer([], tables={**self._frontier.tables, name: replace(swept, phase=TablePhase.STREAM)})


def dead_letter(pipeline: str, rejection: Rejection, now: str) -> DeadLetter:
    """A refused event as it is kept."""
    event = rejection.event
    payload = b"" if event is None else letter_payload(pipeline, event)
    version = "" if event is None else event.version.hex()
    return DeadLetter(0, rejection.table, rejection.key, version, rejection.reason, now, payload)
