"""Bugs to plant in the real code, or in the fakes where the rule is an adapter's: the simulation must find each one.

Each takes away one rule of docs/delivery.md; its docstring says which. `planted(name)` plants one for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Final
from unittest import mock

from tests.simulation import checks
from tests.simulation.direct import Items
from tests.simulation.source import SimSource
from tests.simulation.state import SimState
from tests.simulation.target import SimTarget, SimTransaction
from upwell.errors import TransientError
from upwell.model import LOWEST_VERSION, UPSERT, ChangeEvent, TablePhase, pack_version, unpack_version
from upwell.pipeline import applier, publisher, snapshot
from upwell.pipeline.applier import Applier
from upwell.pipeline.delivery import Delivery
from upwell.pipeline.heartbeats import Heartbeats, _Asked
from upwell.pipeline.publisher import Publisher
from upwell.ports import Request

Patch = AbstractContextManager[Any]
BUGS: Final[dict[str, Callable[[], Patch]]] = {}


def planted(name: str | None, bugs: Mapping[str, Callable[[], Patch]] = BUGS) -> Patch:
    """The named bug, for as long as the context lasts."""
    return nullcontext() if name is None else bugs[name]()


def bug(plant: Callable[[], Patch]) -> Callable[[], Patch]:
    """Registers a bug under its function's name."""
    BUGS[plant.__name__.replace("_", "-")] = plant
    return plant


def instead(owner: Any, name: str, new: Any) -> Patch:
    """`new` in the place of what the owner has."""
    return mock.patch.object(owner, name, new)


def around(owner: Any, name: str, make: Callable[[Any], Any]) -> Patch:
    """What `make` makes of the original, in its place."""
    return mock.patch.object(owner, name, make(getattr(owner, name)))


# --- nothing lost ---------------------------------------------------------------------------------------------------


@bug
def checkpoint_before_delivery() -> Patch:
    """The checkpoint moves when an event is read, not when it is acknowledged."""

    def collect(original: Any) -> Any:
        def collecting(self: Publisher) -> None:
            original(self)
            self._unsaved = self._frontier
            self._save_acknowledged()

        return collecting

    return around(Publisher, "_collect", collect)


@bug
def confirm_before_checkpoint() -> Patch:
    """The source may free its log before the checkpoint is saved."""

    def early(original: Any) -> Any:
        def saving(self: Publisher) -> None:
            if self._unsaved is not None:
                self._source.confirm(self._unsaved.position)
            original(self)

        return saving

    return around(Publisher, "_save_acknowledged", early)


@bug
def dead_letter_after_checkpoint() -> Patch:
    """What the sink refused is kept at the next occasion, after the checkpoint has passed it."""

    def late(original: Any) -> Any:
        def keeping(self: Publisher, rejected: Any) -> None:
            earlier, self.__dict__["waiting"] = self.__dict__.get("waiting", []), list(rejected)
            original(self, earlier)

        return keeping

    return around(Publisher, "_keep", late)


@bug
def refused_event_forgotten() -> Patch:
    """What the sink refused is forgotten where the state store is away for a moment."""

    def careless(original: Any) -> Any:
        def keeping(self: Publisher, rejected: Any) -> None:
            try:
                original(self, rejected)
            except TransientError:
                self._refused.clear()
                raise

        return keeping

    return around(Publisher, "_keep", careless)


@bug
def window_lost_by_error() -> Patch:
    """After an error between reading and offering, the publisher reads on behind the window."""

    def careless(original: Any) -> Any:
        def publishing(self: Publisher, window: Any) -> None:
            try:
                original(self, window)
            except TransientError:
                self._frontier = replace(self._frontier, position=window.position, commit=window.commit)
                self._started = True
                raise

        return publishing

    return around(Publisher, "_publish", careless)


@bug
def wanted_resync_forgotten() -> Patch:
    """A TRUNCATE, or a column with a default, is remembered in memory only."""

    def forgetful(original: Any) -> Any:
        def advanced(*arguments: Any) -> Any:
            checkpoint = original(*arguments)
            tables = {name: replace(table, wanted="") for name, table in checkpoint.tables.items()}
            return replace(checkpoint, tables=tables)

        return advanced

    return around(publisher, "advanced", forgetful)


# --- order per key --------------------------------------------------------------------------------------------------


def _overtaken(self: Any, parcel: Any) -> None:
    """The parcel's items go to the end of their lane's queue."""
    lane = self._lanes[parcel.lane]
    if lane.parcel is parcel:
        lane.queue[:] = lane.queue[parcel.taken :] + lane.queue[: parcel.taken]
        lane.parcel = None


@bug
def retry_overtaken() -> Patch:
    """When a call fails, what waits behind its parcels goes first."""

    def careless(original: Any) -> Any:
        def failing(self: Any, parcels: Any, *rest: Any) -> None:
            original(self, parcels, *rest)
            for parcel in parcels:
                _overtaken(self, parcel)

        return failing

    return around(Delivery, "fail", careless)


@bug
def partial_failure_overtaken() -> Patch:
    """When some parcels of a call fail, they are sent again behind what waits."""

    def careless(original: Any) -> Any:
        def settling(self: Any, parcels: Any, answers: Any, now: float) -> None:
            original(self, parcels, answers, now)
            for parcel, answer in zip(parcels, answers, strict=True):
                if answer is not None:
                    _overtaken(self, parcel)

        return settling

    return around(Delivery, "settle", careless)


@bug
def two_parcels_of_a_lane() -> Patch:
    """A lane's next parcel goes before the answer for the one before."""

    def hasty(original: Any) -> Any:
        def taking(self: Any, now: float) -> Any:
            taken = original(self, now)
            for parcel in taken:
                lane = self._lanes[parcel.lane]
                if len(lane.queue) > parcel.taken:
                    ahead = self._sink.pack(
                        parcel.lane, parcel.term, parcel.seq + 1, None, lane.queue[parcel.taken : parcel.taken + 1]
                    )
                    if ahead.body is not None:
                        self._sink.send([ahead])
            return taken

        return taking

    return around(Delivery, "take", hasty)


@bug
def unbounded_memory() -> Patch:
    """Reading goes on, however much is under way."""
    return instead(Delivery, "full", False)


# --- applied once ---------------------------------------------------------------------------------------------------


@bug
def no_watermark() -> Patch:
    """Everything is applied, whatever was applied before."""

    def blind(original: Any) -> Any:
        def plan(records: Any, states: Any) -> Any:
            return original(records, {n: replace(state, version=LOWEST_VERSION) for n, state in states.items()})

        return plan

    return around(applier, "plan", blind)


@bug
def equal_version_skipped() -> Patch:
    """What equals the watermark is skipped, as what is below it."""

    def strict(original: Any) -> Any:
        def plan(records: Any, states: Any) -> Any:
            above = {n: replace(state, version=_next(state.version)) for n, state in states.items()}
            work = original(records, above)
            for n, state in work.states.items():
                if state.version == above[n].version:
                    state.version = states[n].version
            return work

        return plan

    return around(applier, "plan", strict)


def _next(version: bytes) -> bytes:
    return (int.from_bytes(version) + 1).to_bytes(16)


@bug
def watermark_not_locked() -> Patch:
    """The watermarks are those from before another subscriber's commit."""

    def commit(original: Any) -> Any:
        def committing(self: SimTarget, after: Any) -> None:
            before = dict(self.tables.lanes)
            original(self, after)
            self.tables.__dict__["lanes_before"] = before

        return committing

    def copied(original: Any) -> Any:
        def copying(self: Any) -> Any:
            copy = original(self)
            copy.__dict__["lanes_before"] = self.__dict__.get("lanes_before", {})
            return copy

        return copying

    def lock(original: Any) -> Any:
        def locking(self: SimTransaction, pipeline: str, lanes: Any) -> Any:
            found = original(self, pipeline, lanes)
            before = self.tables.__dict__["lanes_before"]
            return {n: replace(before.get(n, state), resyncs=dict(state.resyncs)) for n, state in found.items()}

        return locking

    from tests.simulation.target import Tables

    return _all(
        around(SimTarget, "_commit", commit),
        around(Tables, "copied", copied),
        around(SimTransaction, "lock_lanes", lock),
    )


@contextmanager
def _all(*patches: Patch) -> Iterator[None]:
    with patches[0], patches[1], patches[2] if len(patches) > 2 else nullcontext():
        yield


@bug
def opening_leaves_watermark() -> Patch:
    """An opening marker does not move the watermark."""
    return instead(applier, "pack_version", lambda *_: LOWEST_VERSION)


@bug
def partial_replaces_row() -> Patch:
    """In a fold, a partial event takes the place of the whole row before it."""
    return instead(applier, "_merged", lambda before, partial: partial)


@bug
def partial_as_nulls() -> Patch:
    """The columns that a partial event lacks are written as NULL."""

    def new(original: Any) -> Any:
        def rows(self: SimTransaction, schema: Any, values: Any) -> Any:
            changes = original(self, schema, values)
            if not schema.partial:
                return changes
            names = {column.name for column in schema.columns}
            return [(key, {n: v if n in names else None for n, v in row.items()}) for key, row in changes]

        return rows

    return around(SimTransaction, "_new", new)


@bug
def no_replace() -> Patch:
    """A unique conflict is taken for poison."""
    return instead(Applier, "_upserting", staticmethod(lambda txn: txn.upsert))


@bug
def evicted_row_stays_away() -> Patch:
    """A row that made way for an older event of another lane does not come back."""
    return instead(SimTransaction, "end", lambda self: None)


# --- loss is proven ---------------------------------------------------------------------------------------------------


@bug
def hole_not_counted() -> Patch:
    """Missing records are not missed."""

    def deaf(original: Any) -> Any:
        def count(state: Any, record: Any) -> None:
            original(state, record)

        return count

    return around(applier, "_count", deaf)


@bug
def hole_before_term_not_counted() -> Patch:
    """The first record of a term is believed to follow what came before."""

    def trusting(original: Any) -> Any:
        def count(state: Any, record: Any) -> Any:
            hole = original(state, record)
            return None if record.seq == 1 else hole

        return count

    return around(applier, "_count", trusting)


@bug
def sweep_despite_hole() -> Patch:
    """A resync that lost records still removes what it did not find."""

    def careless(original: Any) -> Any:
        def mark(work: Any, state: Any, marker: Any) -> None:
            state.resyncs.pop(applier.DAMAGED, None)
            original(work, state, marker)

        return mark

    return around(applier, "_mark", careless)


@bug
def one_repair_for_all_holes() -> Patch:
    """A hole is not reported where one was reported before, answered or not."""
    return instead(SimTransaction, "ask_repair", lambda self, pipeline, request: _ask_once(self, request))


def _ask_once(transaction: SimTransaction, request: Request) -> None:
    if not transaction.tables.repairs:
        transaction.tables.repairs[request.id] = request


@bug
def earlier_term_applied() -> Patch:
    """What a publisher without the lease sent is applied where its successor has been heard already."""

    def careless(original: Any) -> Any:
        def plan(records: Any, states: Any) -> Any:
            work = original([], states)
            for record in records:
                state = work.states[record.lane]
                term, state.term = state.term, min(state.term, record.term)
                more = original([record], work.states)
                more.states[record.lane].term = max(term, record.term)
                work = _joined(work, more)
            return work

        return plan

    return around(applier, "plan", careless)


def _joined(work: Any, more: Any) -> Any:
    more.folds = [*work.folds, *more.folds]
    for name in ("schemas", "noting", "opened"):
        setattr(more, name, {**getattr(work, name), **getattr(more, name)})
    more.closed = [*work.closed, *more.closed]
    more.tables = work.tables | more.tables
    more.losses = [*work.losses, *more.losses]
    more.skipped += work.skipped
    return more


# --- no travel back in time, snapshots --------------------------------------------------------------------------------


@bug
def chunk_not_held() -> Patch:
    """A chunk goes out before the stream has come as far as what it contains."""
    return instead(
        Publisher,
        "_may_send",
        lambda self, chunk: self._between_transactions() and self._chunk_number <= self._saved_number,
    )


@bug
def newer_keys_not_dropped() -> Patch:
    """A chunk's rows go out though the stream has said something newer."""
    return instead(publisher, "rows_to_send", lambda chunk, delivered: chunk.rows)


@bug
def partial_newer_dropped() -> Patch:
    """A chunk's row is dropped though what is newer was partial."""

    def careless(original: Any) -> Any:
        def newer(self: Any, chunk: Any) -> Any:
            return dict.fromkeys(original(self, chunk), False)

        return newer

    return around(snapshot.DeliveredKeys, "newer_than", careless)


@bug
def chunk_stamped_low() -> Patch:
    """A chunk's rows are stamped without the highest ordinal."""
    return instead(publisher, "HIGHEST_ORDINAL", 0)


@bug
def chunk_numbered() -> Patch:
    """A chunk's rows are numbered one by one."""

    def numbered(original: Any) -> Any:
        def offer(self: Any, items: Any, mark: Any) -> None:
            changed = []
            for number, item in enumerate(items):
                if isinstance(item, ChangeEvent) and item.was == "read":
                    epoch, commit, _ = unpack_version(item.version)
                    item = item._replace(version=pack_version(epoch, commit, 1000 + number))
                changed.append(item)
            original(self, changed, mark)

        return offer

    return around(Delivery, "offer", numbered)


@bug
def chunk_inside_transaction() -> Patch:
    """A chunk goes out though the window before it ended inside a transaction."""
    return instead(Publisher, "_between_transactions", lambda self: True)


@bug
def chunks_without_barrier() -> Patch:
    """After a start, a chunk may lack what was delivered before it."""

    def start(self: SimSource) -> None:
        self._barrier = frozenset()

    return instead(SimSource, "start_chunks", start)


# --- resyncs and epochs -----------------------------------------------------------------------------------------------


@bug
def no_sweep() -> Patch:
    """A resync removes nothing."""
    return _all(
        instead(SimTransaction, "sweep", lambda *_: 0),
        instead(Items, "sweep", lambda *_: 0),
    )


@bug
def opened_with_first_chunk() -> Patch:
    """A resync is opened only when its first chunk goes out."""

    def late(original: Any) -> Any:
        def sending(self: Publisher, chunk: Any) -> None:
            opening(self)
            original(self, chunk)

        return sending

    opening = Publisher._open_resyncs
    return _all(instead(Publisher, "_open_resyncs", lambda self: None), around(Publisher, "_send_chunk", late))


@bug
def noted_before_opening() -> Patch:
    """A lane's keys are noted though the opening marker has not come in that lane."""

    def eager(original: Any) -> Any:
        def note(self: Applier, txn: Any, work: Any, resyncs: Any) -> None:
            for fold in work.folds:
                for (table, key), event in fold.events.items():
                    if event.operation == UPSERT and table in resyncs:
                        work.noting[table, key] = resyncs[table].resync
            original(self, txn, work, resyncs)

        return note

    return around(Applier, "_note", eager)


@bug
def epoch_not_raised() -> Patch:
    """What can't be compared with what was published carries the same epoch."""
    return instead(publisher, "next_epoch", lambda previous, now: previous or int(now))


@bug
def epoch_sent_before_saved() -> Patch:
    """A new epoch is saved with the first checkpoint that follows."""

    def hasty(original: Any) -> Any:
        def raising(self: Publisher, checkpoint: Any) -> None:
            with mock.patch.object(self, "_save", lambda new: setattr(self, "_checkpoint", new)):
                original(self, checkpoint)

        return raising

    return around(Publisher, "_raise_epoch", hasty)


@bug
def unfenced_save() -> Patch:
    """Who lost the lease still saves, and raises epochs."""

    def open_(original: Any) -> Any:
        def save(self: SimState, checkpoint: Any, lease: Any) -> None:
            original(self, checkpoint, replace(lease, term=self.term))

        return save

    return around(SimState, "save", open_)


@bug
def resync_at_start_at_once() -> Patch:
    """A resync that is wanted at the start does not wait for what was delivered beyond the checkpoint."""
    return instead(SimSource, "head", lambda self: 0)


@bug
def any_sweep_ends_a_resync() -> Patch:
    """A sweep that was begun for the resync before ends the one that is under way."""

    def careless(original: Any) -> Any:
        def ending(self: Publisher) -> None:
            assert self._sweeping is not None
            name, _, future = self._sweeping
            self._sweeping = name, self._frontier.tables[name], future
            if self._frontier.tables[name].phase == TablePhase.SWEEP:
                original(self)
            elif future.done():
                self._sweeping = None

        return ending

    return around(Publisher, "_end_sweep", careless)


# --- a direct destination ---------------------------------------------------------------------------------------------


@bug
def write_without_guard() -> Patch:
    """An item is overwritten by what is older."""
    return instead(Items, "guarded", False)


@bug
def delete_without_tombstone() -> Patch:
    """A delete leaves nothing behind that would stop a late write."""
    return instead(Items, "tombstones", False)


# --- how old the data is --------------------------------------------------------------------------------------------


@bug
def heartbeat_before_head() -> Patch:
    """A heartbeat says that all is there up to now, before all that the source had was read."""
    return instead(_Asked, "commit", property(lambda asked: 0, lambda asked, commit: None))


@bug
def heartbeat_before_durable() -> Patch:
    """Into a destination without lanes' order a heartbeat goes before what it speaks of is durable."""
    return instead(Heartbeats, "_is_true", lambda self, asked, frontier, done: frontier.commit >= asked.commit)


@bug
def heartbeat_despite_hole() -> Patch:
    """A heartbeat counts in a lane of which records are missing."""
    return instead(applier, "vouches", lambda schema, row, damaged: True)


@bug
def heartbeat_across_resyncs() -> Patch:
    """Lanes that have a resync behind them are believed about those that do not: it may have ended another one."""

    def believing(original: Any) -> Any:
        return lambda rows: original([{**row, "newest_resync": 0} for row in rows])

    return around(checks, "freshness", believing)


@bug
def opening_withdraws_nothing() -> Patch:
    """A resync begins, and puts an end to another one, while the heartbeat before it still says that all is there."""
    return instead(Heartbeats, "withdrawal", lambda self, frontier: [])
