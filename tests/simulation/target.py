"""A relational target: tables with a unique column, and the product's own tables, in transactions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from tests.simulation.dice import Dice
from tests.simulation.source import REFUSED, Row
from upwell.errors import Rejected, TransientError, UniqueConflict
from upwell.heartbeat import HEARTBEAT_TABLE
from upwell.model import DeadLetter, TableSchema, Value
from upwell.ports import LaneState, Request, ResyncState

Key = tuple[Value, ...]
Rows = dict[Key, Row]


@dataclass
class Tables:
    """All that the target stores."""

    rows: dict[str, Rows] = field(default_factory=dict)
    evicted: dict[str, Rows] = field(default_factory=dict)  # rows that made way for another row's unique value
    lanes: dict[int, LaneState] = field(default_factory=dict)
    resyncs: dict[str, ResyncState] = field(default_factory=dict)
    notes: dict[str, set[tuple[int, Key]]] = field(default_factory=dict)
    letters: dict[tuple[str, str, str], DeadLetter] = field(default_factory=dict)
    repairs: dict[str, Request] = field(default_factory=dict)

    def visible(self, table: str) -> Rows:
        """The table's rows. One that made way counts as there: it is on its way to its next state."""
        return {**self.evicted.get(table, {}), **self.rows.get(table, {})}

    def copied(self) -> Tables:
        """For a transaction to work on. Rows and requests are never changed in place."""
        return Tables(
            rows={table: dict(rows) for table, rows in self.rows.items()},
            evicted={table: dict(rows) for table, rows in self.evicted.items()},
            lanes=dict(self.lanes),
            resyncs={table: copy.deepcopy(state) for table, state in self.resyncs.items()},
            notes={table: set(notes) for table, notes in self.notes.items()},
            letters=dict(self.letters),
            repairs=dict(self.repairs),
        )


class SimTarget:
    """See ports.Target."""

    def __init__(self, dice: Dice, seen: Callable[[str, Key, Row | None], None]) -> None:
        """`seen` is told what a reader sees from now on."""
        self.tables = Tables()
        self.handed_over: set[str] = set()  # ids of repair requests
        self._dice = dice
        self._seen = seen

    @contextmanager
    def begin(self) -> Iterator[SimTransaction]:
        transaction = SimTransaction(self.tables.copied(), self._dice)
        yield transaction
        transaction.end()
        self._commit(transaction.tables)
        if self._dice.hit("target.answer_lost"):
            raise TransientError("The connection broke at commit.")

    def _commit(self, after: Tables) -> None:
        before, self.tables = self.tables, after
        # A heartbeat speaks of the other rows, which are seen at the same time.
        for table in sorted(after.rows, key=lambda table: table == HEARTBEAT_TABLE):
            old, new = before.visible(table), after.visible(table)
            for key in old.keys() | new.keys():
                if old.get(key) != new.get(key):
                    self._seen(table, key, new.get(key))

    def close(self) -> None:
        pass


class SimTransaction:
    """See ports.TargetTransaction."""

    def __init__(self, tables: Tables, dice: Dice) -> None:
        self.tables = tables
        self._dice = dice

    def _work(self) -> None:
        if self._dice.hit("target.away"):
            raise TransientError("A deadlock, a failover, a lost connection.")

    def end(self) -> None:
        """What the commit does: rows that made way come back where their unique value is free again."""
        self._work()
        for table, waiting in self.tables.evicted.items():
            for key, row in list(waiting.items()):
                if self._holder(table, key, row) is None:
                    self.tables.rows[table][key] = waiting.pop(key)

    def lock_lanes(self, pipeline: str, lanes: Sequence[int]) -> dict[int, LaneState]:
        self._work()
        known = self.tables.lanes
        return {n: replace(s, resyncs=dict(s.resyncs)) for n in lanes for s in [known.setdefault(n, LaneState())]}

    def save_lanes(self, pipeline: str, states: Mapping[int, LaneState]) -> None:
        self._work()
        self.tables.lanes.update(states)

    def lock_resyncs(self, pipeline: str, shared: Sequence[str], exclusive: Sequence[str]) -> dict[str, ResyncState]:
        self._work()
        return {t: copy.deepcopy(self.tables.resyncs[t]) for t in (*shared, *exclusive) if t in self.tables.resyncs}

    def save_resync(self, pipeline: str, table: str, state: ResyncState) -> None:
        self._work()
        self.tables.resyncs[table] = copy.deepcopy(state)
        notes = self.tables.notes.setdefault(table, set())
        self.tables.notes[table] = {(resync, key) for resync, key in notes if resync >= state.resync}

    def ensure_table(self, schema: TableSchema) -> None:
        self.tables.rows.setdefault(schema.table, {})
        self.tables.evicted.setdefault(schema.table, {})

    # --- rows ---------------------------------------------------------------------------------------------------

    def upsert(self, schema: TableSchema, rows: Sequence[Sequence[Value]]) -> Mapping[int, Rejected]:
        told: dict[int, Rejected] = {}
        if len(rows) % 2 == 0:  # now it can tell which rows it refuses, now it can't
            told = {
                place: Rejected("The value is refused.") for place, row in enumerate(rows) if _is_refused(schema, row)
            }
            rows = [row for place, row in enumerate(rows) if place not in told]
        with self._statement():
            for key, row in self._new(schema, rows):
                waiting = self.tables.evicted[schema.table]
                if self._holder(schema.table, key, row) is not None:
                    raise UniqueConflict("Another row holds the unique value.")
                waiting.pop(key, None)
                self.tables.rows[schema.table][key] = row
        return told

    def replace(self, schema: TableSchema, rows: Sequence[Sequence[Value]]) -> Mapping[int, Rejected]:
        with self._statement():
            table, waiting = self.tables.rows[schema.table], self.tables.evicted[schema.table]
            changes = self._new(schema, rows)
            for key, _ in changes:
                table.pop(key, None)
                waiting.pop(key, None)
            for key, row in changes:
                holder = self._holder(schema.table, key, row)
                if holder in dict(changes):
                    raise UniqueConflict("Two of the rows have the same unique value.")
                if holder is not None:
                    waiting[holder] = table.pop(holder)
                table[key] = row
        return {}

    def _new(self, schema: TableSchema, rows: Sequence[Sequence[Value]]) -> list[tuple[Key, Row]]:
        """What the rows are to become; without those that a partial event does not find."""
        names = [column.name for column in schema.columns]
        table, waiting = self.tables.rows[schema.table], self.tables.evicted[schema.table]
        changes = []
        for values in rows:
            row = dict(zip(names, values, strict=True))
            key = tuple(row[name] for name in schema.key)
            before = table.get(key, waiting.get(key))
            if _is_refused(schema, values):
                raise Rejected("The value is refused.")
            if before is not None:
                changes.append((key, {**before, **row}))
            elif not schema.partial:
                changes.append((key, row))
        return changes

    def _holder(self, table: str, key: Key, row: Row) -> Key | None:
        """The key of another row that has the row's unique value."""
        if row.get("u") is None:
            return None
        return next(
            (other for other, r in self.tables.rows[table].items() if r["u"] == row["u"] and other != key), None
        )

    @contextmanager
    def _statement(self) -> Iterator[None]:
        """What is refused leaves no trace."""
        self._work()
        rows = {table: dict(kept) for table, kept in self.tables.rows.items()}
        evicted = {table: dict(kept) for table, kept in self.tables.evicted.items()}
        try:
            yield
        except Rejected:
            self.tables.rows, self.tables.evicted = rows, evicted
            raise

    def delete(self, schema: TableSchema, keys: Sequence[Sequence[Value]]) -> None:
        self._work()
        for key in keys:
            self.tables.rows[schema.table].pop(tuple(key), None)
            self.tables.evicted[schema.table].pop(tuple(key), None)

    # --- resyncs, dead letters, repairs -----------------------------------------------------------------------------

    def note(self, pipeline: str, schema: TableSchema, resync: int, keys: Sequence[Sequence[Value]]) -> None:
        self._work()
        self.tables.notes.setdefault(schema.table, set()).update((resync, tuple(key)) for key in keys)

    def sweep(self, pipeline: str, schema: TableSchema, resync: int) -> int:
        self._work()
        found = {key for noted, key in self.tables.notes.pop(schema.table, set()) if noted == resync}
        swept = 0
        for rows in (self.tables.rows[schema.table], self.tables.evicted[schema.table]):
            for key in rows.keys() - found:
                del rows[key]
                swept += 1
        return swept

    def add_dead_letters(self, pipeline: str, letters: Sequence[DeadLetter]) -> None:
        self._work()
        for letter in letters:
            self.tables.letters[letter.table, letter.key, letter.version] = letter

    def ask_repair(self, pipeline: str, request: Request) -> None:
        self._work()
        self.tables.repairs.setdefault(request.id, request)


def _is_refused(schema: TableSchema, values: Sequence[Value]) -> bool:
    names = [column.name for column in schema.columns]
    return "big" in names and str(values[names.index("big")]).startswith(REFUSED)
