"""Applying a batch of records to a relational target: effectively once, in order, in one transaction.

Decode, drop what is below the watermark, fold each key's events to the newest, then one transaction: lock the lanes'
watermarks, write, note what a resync found, move the watermarks. Who feeds the batches is unknown here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from upwell.claims import Claims
from upwell.envelope import ReceivedEvent
from upwell.errors import Rejected, UniqueConflict
from upwell.failpoints import failpoint
from upwell.heartbeat import HEARTBEAT_TABLE, vouches
from upwell.model import (
    DELETE,
    HIGHEST_ORDINAL,
    UPSERT,
    DeadLetter,
    Marker,
    TableSchema,
    Value,
    pack_version,
    unpack_version,
)
from upwell.pipeline.incoming import Applied, Incoming, Record, as_sent, parts
from upwell.ports import Clock, LaneState, Request, ResyncState, Target, TargetTransaction

# What begins the id of a request for repair; the rest is the newest epoch of which something is missing.
HOLES_AFTER: Final = "holes-after-"
# Among a lane's resyncs, in the place of a table: the newest that may have lost records in this lane.
DAMAGED: Final = ""

Key = tuple[Value, ...]
# Writes rows; which of them are refused, by their place, where the target can tell.
Write = Callable[[TableSchema, Sequence[Sequence[Value]]], Mapping[int, Rejected] | None]


@dataclass(slots=True)
class Fold:
    """The newest event of each key, of events that can be written together."""

    events: dict[tuple[str, Key], ReceivedEvent] = field(default_factory=dict)

    def add(self, event: ReceivedEvent) -> bool:
        """False: the event can't be merged with the one before it; it belongs to the next fold."""
        # SQLite has keys 1 and 1.0 in columns without a type: two on the wire, and one to Python.
        key = event.key if event.schema.dialect != "sqlite" else tuple(map(repr, event.key))
        address = event.schema.table, key
        before = self.events.get(address)
        # A delete may have a partial schema too: a row that left its filter.
        if before is not None and event.schema.partial and event.operation == UPSERT:
            if before.operation == DELETE:
                return True  # the row is gone: there is nothing that a partial event could change
            merged = _merged(before, event)
            if merged is None:
                return False
            event = merged
        self.events[address] = event
        return True


def _merged(before: ReceivedEvent, partial: ReceivedEvent) -> ReceivedEvent | None:
    """A row with the values that a later partial event changed; None where it holds columns that the row lacks."""
    at = {column.name: index for index, column in enumerate(before.schema.columns)}
    values = list(before.values)
    for column, value in zip(partial.schema.columns, partial.values, strict=True):
        if column.name not in at:
            return None
        values[at[column.name]] = value
    return partial._replace(schema=before.schema, values=values)


@dataclass(slots=True)
class Plan:
    """What of a batch is new, decided under the lanes' locks."""

    states: dict[int, LaneState]
    folds: list[Fold] = field(default_factory=lambda: [Fold()])
    schemas: dict[str, TableSchema] = field(default_factory=dict)  # hash → of all that is to be written
    noting: dict[tuple[str, Key], int] = field(default_factory=dict)  # upserts that follow an opening marker
    opened: dict[str, int] = field(default_factory=dict)  # table → newest resync opened in this batch
    closed: list[Marker] = field(default_factory=list)
    tables: set[str] = field(default_factory=set)
    losses: list[tuple[int, str]] = field(default_factory=list)  # (the newest epoch that may be concerned, a sentence)
    lost: list[ReceivedEvent] = field(default_factory=list)  # whose claimed rows can't be had
    skipped: int = 0


def plan(records: Iterable[Record], states: dict[int, LaneState]) -> Plan:
    """Decides, purely; `states` are not changed, the plan's are what they become."""
    result = Plan({lane: replace(state, resyncs=dict(state.resyncs)) for lane, state in states.items()})
    for record in records:
        state = result.states[record.lane]
        seen, now = (state.term, state.seq), (record.term, record.seq)
        if record.term < state.term:
            # By a publisher that has lost its lease. Its successor sends all of it again, all that may be missing
            # before it included, unless it was acknowledged: then it was here before the successor's first record.
            result.skipped += len(record.items)
            continue
        hole = _count(state, record)
        if hole is not None:
            _lose(result, state, record, hole)
        for item in record.items:
            if isinstance(item, Marker):
                _mark(result, state, item)
            elif item.version < state.version:
                result.skipped += 1
                if now > seen and unpack_version(item.version)[2] == HIGHEST_ORDINAL:
                    _lose(result, state, record, _overtaken(record))
            elif _is_too_early(state, item):
                state.version = item.version
            else:
                _take(result, state, item)
    return result


def _is_too_early(state: LaneState, event: ReceivedEvent) -> bool:
    """A heartbeat, while something of its lane is missing: the data stays as old as it was."""
    damaged = state.resyncs.get(DAMAGED, 0)
    return event.schema.table == HEARTBEAT_TABLE and not vouches(event.schema, event.values, damaged)


def _lose(result: Plan, state: LaneState, record: Record, sentence: str) -> None:
    """Something of the lane is missing, before or in this record: of no newer epoch, since a lane's epochs never fall.

    A resync that it may be part of must not end, or it would remove what the lost records held.
    """
    epochs = [item.resync if isinstance(item, Marker) else unpack_version(item.version)[0] for item in record.items]
    newest = max(*epochs, unpack_version(state.version)[0])
    state.resyncs[DAMAGED] = newest
    result.losses.append((newest, sentence))


def _take(result: Plan, state: LaneState, event: ReceivedEvent) -> None:
    state.version = event.version
    if event.claim is not None:
        result.lost.append(event)
    elif not result.folds[-1].add(event):
        result.folds.append(Fold())
        result.folds[-1].add(event)
    table = event.schema.table
    result.schemas[event.schema.hash] = event.schema
    result.tables.add(table)
    address = table, event.key
    resync = state.resyncs.get(table)
    if resync is not None and event.operation == UPSERT:
        result.noting[address] = resync
    else:
        result.noting.pop(address, None)


def _mark(result: Plan, state: LaneState, marker: Marker) -> None:
    table = marker.schema.table
    result.schemas[marker.schema.hash] = marker.schema
    result.tables.add(table)
    if marker.phase == "close":
        if state.resyncs.get(table) == marker.resync > state.resyncs.get(DAMAGED, 0):
            result.closed.append(marker)
    elif marker.resync > state.resyncs.get(table, 0):
        # One that is not newer is a record that landed late. What is older than the resync is of the past from here
        # on, even where the lane has nothing newer yet: read again, it would pass for something that was found.
        state.resyncs[table] = marker.resync
        state.version = max(state.version, pack_version(marker.resync, 0, 0))
        result.opened[table] = max(marker.resync, result.opened.get(table, 0))


def _count(state: LaneState, record: Record) -> str | None:
    """Follow the lane's sequence; a sentence where records are missing before this one."""
    seen = (state.term, state.seq)
    now = (record.term, record.seq)
    if now <= seen:
        return None  # sent again
    state.term, state.seq = now
    if record.term == seen[0]:
        missing = record.seq != seen[1] + 1
    else:
        before = (0, 0) if record.after is None else record.after
        missing = record.seq != 1 or before > seen
    if not missing:
        return None
    return f"Lane {record.lane}: records are missing before term {now[0]}, sequence {now[1]}; seen was {seen}."


def _overtaken(record: Record) -> str:
    """A new record's snapshot rows are below the watermark, and nothing else will bring them.

    That can't be while publishers keep to their lease: a chunk is stamped with a commit that nobody has gone beyond.
    One that does not may do it in a lane where its successor has sent nothing yet.
    """
    return f"A publisher without the lease went on: term {record.term}'s snapshot came too late in lane {record.lane}."


def repair_of(losses: Sequence[tuple[int, str]]) -> Request:
    """One request for all losses that the same next resync answers: it is of a newer epoch."""
    newest, sentence = max(losses)
    return Request(f"{HOLES_AFTER}{newest}", None, sentence)


def repaired(request: str, resyncs: Sequence[ResyncState]) -> bool:
    """Whether these resyncs, the newest of each table, have brought back what the request (its id) is about."""
    newest = request.removeprefix(HOLES_AFTER)
    if not newest.isdecimal():
        return False
    return bool(resyncs) and all(resync.resync > int(newest) and not resync.active for resync in resyncs)


class Applier:
    """Applies batches of one pipeline to a target. Threads may share it, each with its own batch."""

    def __init__(self, pipeline: str, target: Target, clock: Clock, claims: Claims | None = None) -> None:
        """`claims`: where rows wait that were too large for the stream."""
        self._pipeline = pipeline
        self._target = target
        self._incoming = Incoming(pipeline, clock, claims)

    def apply(self, data: Sequence[bytes]) -> Applied:
        """One transaction for all of `data`, the records of a batch in order; several where claimed rows are many.

        Raises TransientError: nothing or, if the answer to the commit was lost, all of it happened; the same again
        is right in both cases. Raises OperatorError where a person must act.
        """
        applied = Applied()
        records, letters = self._incoming.decoded(data, applied)
        failpoint("subscriber.decoded")
        for part in parts(records):
            with self._incoming.with_rows(part) as (whole, lost):
                self._transaction(whole, lost, letters, applied)
            letters = []
        if letters:
            self._transaction([], {}, letters, applied)
        return applied

    def _transaction(
        self, records: Sequence[Record], lost: dict[str, str], letters: list[DeadLetter], applied: Applied
    ) -> None:
        with self._target.begin() as txn:
            self._apply(txn, records, lost, letters, applied)
            failpoint("applier.before_commit")
        failpoint("applier.committed")

    def _apply(
        self,
        txn: TargetTransaction,
        records: Sequence[Record],
        lost: dict[str, str],
        letters: list[DeadLetter],
        applied: Applied,
    ) -> None:
        states = txn.lock_lanes(self._pipeline, sorted({record.lane for record in records}))
        failpoint("applier.locked")
        work = plan(records, states)
        resyncs = txn.lock_resyncs(
            self._pipeline,
            sorted(work.tables),
            sorted(work.opened.keys() | {marker.schema.table for marker in work.closed}),
        )
        for schema in sorted(work.schemas.values(), key=lambda schema: schema.table):
            txn.ensure_table(schema)  # in one order: it may lock
        self._open(txn, work, resyncs)
        letters.extend(self._incoming.lost_letters(work.lost, lost))
        for fold in work.folds:
            letters.extend(self._write(txn, fold))
        failpoint("applier.written")
        self._note(txn, work, resyncs)
        failpoint("applier.noted")
        applied.swept += self._close(txn, work, resyncs)
        if letters:
            txn.add_dead_letters(self._pipeline, letters)
        if work.losses:
            applied.alarm = self._repair(txn, work)
        txn.save_lanes(self._pipeline, work.states)
        applied.skipped += work.skipped
        applied.dead_letters += len(letters)
        applied.holes += len(work.losses)

    def _write(self, txn: TargetTransaction, fold: Fold) -> list[DeadLetter]:
        """Deletes before upserts, so that a unique value is free before it is taken again."""
        groups: dict[tuple[str, str], list[ReceivedEvent]] = {}
        for event in fold.events.values():
            groups.setdefault((event.operation, event.schema.hash), []).append(event)
        letters: list[DeadLetter] = []
        for operation in (DELETE, UPSERT):
            for (kind, _), events in groups.items():
                if kind == operation:
                    events.sort(key=_sort_key)
                    write = txn.delete if operation == DELETE else self._upserting(txn)
                    for event, error in _bisected(write, events):
                        letters.append(self._incoming.letter(as_sent(event), error.message))
        return letters

    @staticmethod
    def _upserting(txn: TargetTransaction) -> Write:
        def upsert(schema: TableSchema, rows: Sequence[Sequence[Value]]) -> Mapping[int, Rejected]:
            try:
                return txn.upsert(schema, rows)
            except UniqueConflict:
                # Two rows that swap a unique value are a normal outcome: neither can go first.
                return txn.replace(schema, rows)

        return upsert

    def _open(self, txn: TargetTransaction, work: Plan, resyncs: dict[str, ResyncState]) -> None:
        for table, resync in work.opened.items():
            known = resyncs.get(table)
            if known is None or resync > known.resync:
                resyncs[table] = ResyncState(resync, active=True)
                txn.save_resync(self._pipeline, table, resyncs[table])

    def _note(self, txn: TargetTransaction, work: Plan, resyncs: dict[str, ResyncState]) -> None:
        keys: dict[str, list[Key]] = {}
        for (table, key), resync in work.noting.items():
            state = resyncs.get(table)
            if state is not None and state.active and state.resync == resync:
                keys.setdefault(table, []).append(key)
        schemas = {schema.table: schema for schema in work.schemas.values()}
        for table, found in keys.items():
            txn.note(self._pipeline, schemas[table], resyncs[table].resync, found)

    def _close(self, txn: TargetTransaction, work: Plan, resyncs: dict[str, ResyncState]) -> int:
        swept = 0
        for marker in work.closed:
            state = resyncs.get(marker.schema.table)
            if state is None or not state.active or state.resync != marker.resync:
                continue
            state.closed.add(marker.lane)
            if len(state.closed) == marker.lanes:
                swept += txn.sweep(self._pipeline, marker.schema, marker.resync)
                state.active = False
                failpoint("applier.swept")
            txn.save_resync(self._pipeline, marker.schema.table, state)
        return swept

    def _repair(self, txn: TargetTransaction, work: Plan) -> str:
        """Which rows the lost records held is unknown, so all tables are to be read again. Returns the alarm."""
        request = repair_of(work.losses)
        txn.ask_repair(self._pipeline, request)
        return request.reason


def _sort_key(event: ReceivedEvent) -> list[tuple[str, str]]:
    """Any order will do as long as every transaction uses the same one: it keeps them from deadlocks."""
    return [(type(value).__name__, str(value)) for value in event.key]


def _bisected(write: Write, events: list[ReceivedEvent]) -> list[tuple[ReceivedEvent, Rejected]]:
    """Write all that can be written; what is refused by itself, with the reason."""
    try:
        refused = write(events[0].schema, [event.values for event in events]) or {}
    except Rejected as error:
        if len(events) == 1:
            return [(events[0], error)]
        middle = len(events) // 2
        return _bisected(write, events[:middle]) + _bisected(write, events[middle:])
    return [(events[place], error) for place, error in sorted(refused.items())]
