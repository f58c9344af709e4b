"""A database as PostgreSQL is: a log of transactions, and tables whose readers see a commit before or after it.

A transaction gets its number when it begins, its place in the log when it commits, and is seen by other sessions
from then on or, as behind a synchronous standby, only some time later. Its rows stay locked until then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson

from tests.simulation.dice import Dice, SimClock
from upwell.errors import PositionLost, TransientError
from upwell.model import (
    DELETE,
    UPSERT,
    ChangeEvent,
    Chunk,
    Column,
    Cursor,
    Kind,
    Operation,
    Position,
    Rejection,
    TableSchema,
    Value,
    Was,
    Window,
    pack_version,
)

Row = dict[str, Value]
Address = tuple[str, int]  # table, id
STILL: Final = "public.still"  # nobody writes to this table once the simulation has begun
FILTERED: Final = "public.idle"
FILTER: Final = "u IS NOT NULL"
TIME: Final = "2026-01-31T10:00:00.000000Z"
# What `big` begins with: a value too large to be repeated by the log, and values that can't go all the way.
LARGE, UNREADABLE, TOO_LARGE, REFUSED = "large", "unreadable", "too-large", "refused"
POISON: Final = (UNREADABLE, TOO_LARGE, REFUSED)


def table_schema(table: str) -> TableSchema:
    """A table's schema before anybody adds a column."""
    columns = (
        Column("id", "bigint", Kind.INT),
        Column("n", "bigint", Kind.INT),  # counts the states of all rows: which of two is newer
        Column("u", "text", Kind.TEXT),  # unique
        Column("big", "text", Kind.TEXT),
    )
    return TableSchema(table, columns, ("id",), "postgresql")


def poison(row: Row | None) -> bool:
    """Whether the row can't go all the way."""
    return row is not None and str(row["big"]).startswith(POISON)


@dataclass(slots=True)
class Change:
    """One row's change in the log."""

    table: str
    id: int
    row: Row | None
    was: Was
    partial: bool = False  # `big` is not repeated


@dataclass(slots=True)
class Transaction:
    """What was, or is being, done together."""

    xid: int
    changes: list[Change] = field(default_factory=list)
    truncated: str | None = None
    altered: TableSchema | None = None
    commit: int = 0


class Database:
    """The user's database, and the truth about it."""

    def __init__(self, dice: Dice, clock: SimClock, tables: Sequence[str], ids: int, *, filtered: bool) -> None:
        """`filtered`: only those rows of FILTERED that pass FILTER are to leave."""
        self._dice = dice
        self._clock = clock
        self.filtered = filtered
        self._ids = ids
        self.incarnation = 1
        self.lsn = 100
        self.xid = 10
        self.schemas = {table: table_schema(table) for table in tables}
        self.seen: dict[str, dict[int, Row]] = {table: {} for table in tables}  # by other sessions
        self.newest: dict[str, dict[int, Row]] = {table: {} for table in tables}  # with what is committed but not seen
        self.log: list[Transaction] = []
        self.kept_after = self.lsn  # the log before and at this is gone
        self.tables_lost: list[tuple[str, int]] = []  # (table, lsn): its changes before and at it are gone
        self.open: list[Transaction] = []
        self.unseen: list[Transaction] = []  # committed
        self.history: dict[Address, list[Row | None]] = {}  # every state that a row was in; None: there was none
        self.since: dict[Address, list[float]] = {}  # when each of these states began
        self.poisoned: set[Address] = set()
        self._states = 0
        self._backup: tuple[int, dict[str, TableSchema], dict[str, dict[int, Row]]] | None = None

    # --- writers ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Somebody begins a transaction of one to four changes."""
        rng = self._dice.rng
        transaction = Transaction(self._next_xid())
        work = {table: dict(rows) for table, rows in self.newest.items()}
        locked = self._locked()
        for _ in range(rng.choice((1, 1, 2, 4))):
            tables = [table for table in self.schemas if table != STILL]
            table = rng.choices(tables, [4, *[1] * (len(tables) - 1)])[0]
            self._change(transaction, table, work[table], locked)
        if transaction.changes:
            self.open.append(transaction)

    def _locked(self) -> set[Address]:
        return {(c.table, c.id) for t in (*self.open, *self.unseen) for c in t.changes}

    def _taken(self, table: str, rows: dict[int, Row]) -> set[Value]:
        """Unique values that nobody may take: a transaction under way may still give them up, or take them."""
        pending = {c.row["u"] for t in (*self.open, *self.unseen) for c in t.changes if c.table == table and c.row}
        return {row["u"] for row in rows.values()} | {row["u"] for row in self.newest[table].values()} | pending

    def _change(self, txn: Transaction, table: str, rows: dict[int, Row], locked: set[Address]) -> None:
        rng = self._dice.rng
        free = [id_ for id_ in range(1, self._ids + 1) if (table, id_) not in locked]
        there = [id_ for id_ in free if id_ in rows]
        absent = [id_ for id_ in free if id_ not in rows]
        kind = rng.choice(("insert", "insert", "update", "update", "update", "delete", "move", "swap", "again"))
        if kind == "insert" and absent:
            self._put(txn, table, rows, rng.choice(absent), self._new_row(table, rows), "insert")
        elif kind == "update" and there:
            self._update(txn, table, rows, rng.choice(there))
        elif kind == "delete" and there:
            self._put(txn, table, rows, rng.choice(there), None, "delete")
        elif kind == "move" and there and absent:
            old = rng.choice(there)
            row = rows[old]
            self._put(txn, table, rows, old, None, "delete")
            self._put(txn, table, rows, rng.choice(absent), dict(row), "insert")
        elif kind == "swap" and len(there) > 1:
            one, other = rng.sample(there, 2)
            first, second = rows[one]["u"], rows[other]["u"]
            if rng.random() < 0.5:
                self._put(txn, table, rows, one, {**rows[one], "u": None}, "update", keep_big=True)
            self._put(txn, table, rows, other, {**rows[other], "u": first}, "update", keep_big=True)
            self._put(txn, table, rows, one, {**rows[one], "u": second}, "update", keep_big=True)
        elif kind == "again" and there:
            id_ = rng.choice(there)
            self._put(txn, table, rows, id_, None, "delete")
            self._put(txn, table, rows, id_, self._new_row(table, rows), "insert")

    def _new_row(self, table: str, rows: dict[int, Row]) -> Row:
        row: Row = {"u": self._free_unique(table, rows), "big": self._big()}
        for column in self.schemas[table].columns[4:]:
            row[column.name] = "given"
        return row

    def _free_unique(self, table: str, rows: dict[int, Row]) -> Value:
        taken = self._taken(table, rows)
        free = [u for u in "abcdef" if u not in taken]
        return self._dice.rng.choice(free) if free and self._dice.rng.random() < 0.8 else None

    def _big(self) -> str:
        for kind in POISON:
            if self._dice.hit(f"poison.{kind.replace('-', '_')}"):
                return f"{kind} {self._states}"
        return f"{self._dice.rng.choice((LARGE, 'small'))} {self._states}"

    def _update(self, txn: Transaction, table: str, rows: dict[int, Row], id_: int) -> None:
        row = dict(rows[id_])
        kind = self._dice.rng.choice(("n", "u", "big"))
        if kind == "u":
            row["u"] = self._free_unique(table, rows)
        elif kind == "big":
            row["big"] = self._big()
        self._put(txn, table, rows, id_, row, "update", keep_big=kind != "big")

    def _put(
        self,
        txn: Transaction,
        table: str,
        rows: dict[int, Row],
        id_: int,
        row: Row | None,
        was: Was,
        *,
        keep_big: bool = False,
    ) -> None:
        if row is None:
            del rows[id_]
        else:
            self._states += 1
            row = rows[id_] = {**row, "id": id_, "n": self._states}
            if poison(row):
                self.poisoned.add((table, id_))
        # The log does not repeat a large value that did not change.
        partial = keep_big and row is not None and str(row["big"]).startswith((LARGE, *POISON))
        txn.changes.append(Change(table, id_, row, was, partial))

    def commit(self, transaction: Transaction) -> None:
        """It is in the log; whether others see it at once is a matter of luck."""
        self.open.remove(transaction)
        self._append(transaction)
        for change in transaction.changes:
            self._set(self.newest, change)
            self.remember(change.table, change.id, change.row)
        self.unseen.append(transaction)
        if not self._dice.hit("source.slow_commit"):
            self.show(transaction)

    def _append(self, transaction: Transaction) -> None:
        self.lsn += self._dice.rng.choice((1, 1, 3))
        transaction.commit = self.lsn
        self.log.append(transaction)

    def show(self, transaction: Transaction) -> None:
        """From now on everybody sees it."""
        self.unseen.remove(transaction)
        for change in transaction.changes:
            self._set(self.seen, change)

    @staticmethod
    def _set(rows: dict[str, dict[int, Row]], change: Change) -> None:
        if change.row is None:
            rows[change.table].pop(change.id, None)
        else:
            rows[change.table][change.id] = change.row

    def remember(self, table: str, id_: int, row: Row | None) -> None:
        """A new state in the row's history, as who sees only the rows that leave has it."""
        leaves = row is not None and self.leaves(table, row)
        self.history.setdefault((table, id_), [None]).append(row if leaves else None)
        self.since.setdefault((table, id_), [0.0]).append(self._clock.now())

    def leaves(self, table: str, row: Row) -> bool:
        """Whether the row passes the filter: FILTER, in Python."""
        return not (self.filtered and table == FILTERED) or row["u"] is not None

    def _next_xid(self) -> int:
        self.xid += 1
        return self.xid

    def settle(self) -> None:
        """All transactions end."""
        while self.open:
            self.commit(self.open[0])
        while self.unseen:
            self.show(self.unseen[0])

    def touch(self, table: str, ids: Sequence[int]) -> None:
        """A transaction that changes these rows, or makes them."""
        self.settle()
        transaction = Transaction(self._next_xid())
        rows = dict(self.newest[table])
        for id_ in ids:
            row = {**self._new_row(table, rows), "u": None}
            self._put(transaction, table, rows, id_, row, "update" if id_ in rows else "insert")
        self.open.append(transaction)
        self.commit(transaction)
        self.settle()

    # --- what happens to a database -------------------------------------------------------------------------------

    def truncate(self, table: str) -> None:
        """TRUNCATE: the log says so, row by row it does not."""
        self.settle()
        transaction = Transaction(self._next_xid(), truncated=table)
        self._append(transaction)
        for id_ in list(self.newest[table]):
            self.remember(table, id_, None)
        self.newest[table].clear()
        self.seen[table].clear()

    def add_column(self, table: str, *, default: bool) -> None:
        """ALTER TABLE ADD COLUMN: with a default, rows change and the log does not tell."""
        self.settle()
        schema = self.schemas[table]
        name = f"extra{len(schema.columns)}"
        column = Column(name, "text", Kind.TEXT, has_default=default)
        self.schemas[table] = replace(schema, columns=(*schema.columns, column))
        for id_, row in self.newest[table].items():
            changed: Row = {**row, name: "default" if default else None}
            self.newest[table][id_] = self.seen[table][id_] = changed
            self.remember(table, id_, changed)
        self._append(Transaction(self._next_xid(), altered=self.schemas[table]))

    def add_table(self, table: str) -> None:
        """A table with rows that no log ever told of."""
        self.settle()
        self.schemas[table] = table_schema(table)
        rows: dict[int, Row] = {}
        for id_ in range(1, self._dice.rng.randrange(2, self._ids)):
            self._states += 1
            rows[id_] = {"id": id_, "n": self._states, "u": None, "big": f"{LARGE} {id_}"}
            self.remember(table, id_, rows[id_])
        self.newest[table] = rows
        self.seen[table] = dict(rows)

    def lose_log(self) -> None:
        """The log up to now is gone: retention, a dropped slot."""
        self.kept_after = self.lsn

    def lose_table(self, table: str) -> None:
        """The changes of one table up to now are gone: its tracking was off for a while."""
        self.settle()
        self.tables_lost.append((table, self.lsn))

    def back_up(self) -> None:
        """What `restore` brings back."""
        self.settle()
        self._backup = self.lsn, dict(self.schemas), {table: dict(rows) for table, rows in self.newest.items()}

    def restore(self) -> bool:
        """Back to the backup; the clock runs over the same numbers once more. False: there is none."""
        if self._backup is None or self._backup[1].keys() != self.schemas.keys():
            return False
        lsn, schemas, rows = self._backup
        self._begin_anew(lsn)
        self.schemas = dict(schemas)
        for table, before in self.newest.items():
            for id_ in before.keys() | rows[table].keys():
                if before.get(id_) != rows[table].get(id_):
                    self.remember(table, id_, rows[table].get(id_))
        self.newest = {table: dict(kept) for table, kept in rows.items()}
        self.seen = {table: dict(kept) for table, kept in rows.items()}
        return True

    def replace_server(self) -> None:
        """The same rows on another server, whose clock begins at the beginning."""
        self.settle()
        self._begin_anew(10)

    def _begin_anew(self, lsn: int) -> None:
        self.incarnation += 1
        self.lsn = self.kept_after = lsn
        self.log.clear()
        self.open.clear()
        self.unseen.clear()
        self.tables_lost.clear()
        self._backup = None


def event_of(change: Change, schema: TableSchema, version: bytes, xid: int) -> ChangeEvent:
    """The change as the source makes it."""
    key = orjson.dumps([change.id])
    if change.row is None:
        return ChangeEvent(schema, DELETE, version, TIME, key, None, change.was, xid)
    if change.partial:
        schema = schema.without(frozenset({"big"}))
    operation: Operation = UPSERT
    return ChangeEvent(schema, operation, version, TIME, key, encoded(schema, change.row), change.was, xid)


def encoded(schema: TableSchema, row: Row) -> bytes:
    """The row as the wire has it; a column that it lacks had no value when it was written."""
    return orjson.dumps([row.get(column.name) for column in schema.columns])


class SimSource:
    """One connection to the database: what a publisher process has. See ports.Source."""

    def __init__(self, database: Database, dice: Dice, tables: Sequence[str], started: Any, confirmed: Any) -> None:
        """`started` and `confirmed` are told what the publisher did, to check it."""
        self._database = database
        self._dice = dice
        self._tables = list(tables)
        self._started = started
        self._confirmed = confirmed
        self._epoch = 0
        self._next: Position | None = None  # what `changes` must be asked for; None: `start` first
        self._inside = 0  # how many events of the transaction at `_next` have been returned
        self._barrier: frozenset[int] | None = None
        self._told: set[tuple[str, int]] = set()
        self._schemas: dict[str, TableSchema] = {}

    @contextmanager
    def _connected(self) -> Iterator[None]:
        if self._dice.hit("source.away"):
            raise TransientError("The source is away.")
        yield

    def tables(self) -> Sequence[TableSchema]:
        with self._connected():
            return [self._database.schemas[table] for table in self._tables]

    def start(self, position: Position | None, epoch: int) -> tuple[Position, int]:
        self._next = None
        with self._connected():
            database = self._database
            self._schemas = {table: database.schemas[table] for table in self._tables}
            if position is None:
                self._next = self._position(database.lsn)
            else:
                self._check(position)
                self._next = position
            self._epoch = epoch
            self._inside = 0
            self._barrier = None
            self._started(self._next, epoch, fresh=position is None)
            return self._next, _lsn(self._next)

    def _position(self, lsn: int) -> Position:
        return Position(f"{self._database.incarnation}/{lsn}")

    def _check(self, position: Position) -> None:
        database = self._database
        if not position.startswith(f"{database.incarnation}/"):
            raise PositionLost("The database is not what it was.")
        if _lsn(position) < database.kept_after:
            raise PositionLost("The log has gone.")
        for lost in database.tables_lost:
            table, lsn = lost
            if table in self._tables and _lsn(position) < lsn and lost not in self._told:
                self._told.add(lost)
                raise PositionLost(f"The changes of {table} have gone.", tables=[table])

    def changes(self, after: Position, limit: int, wait_s: float) -> Window:
        assert self._next is not None, "start comes first"
        assert after == self._next, f"asked for {after} instead of {self._next}"
        with self._connected():
            try:
                self._check(after)
            except PositionLost:
                self._next = None
                raise
            return self._window(after, limit)

    def _window(self, after: Position, limit: int) -> Window:
        database, rng = self._database, self._dice.rng
        window = Window(events=[], position=after, commit=_lsn(after))
        todo = [t for t in database.log if t.commit > _lsn(after)]
        for transaction in todo:
            if self._dice.hit("source.slow_log") or len(window.events) >= limit:
                break
            if transaction.truncated in self._tables:
                window.resync.append((str(transaction.truncated), "truncated"))
            if transaction.altered is not None and transaction.altered.table in self._tables:
                window.schemas.append(transaction.altered)
                self._schemas[transaction.altered.table] = transaction.altered
            if not self._add(window, transaction, limit):
                window.complete = False
                break
            window.commit = transaction.commit
            window.position = self._position(transaction.commit)
        else:
            window.commit = max(window.commit, database.lsn)
            if rng.random() < 0.3:
                window.position = self._position(database.lsn)
        window.more = window.commit < database.lsn
        self._next = window.position
        return window

    def _add(self, window: Window, transaction: Transaction, limit: int) -> bool:
        """False: the rest of the transaction does not fit."""
        for ordinal, change in enumerate(transaction.changes[self._inside :], self._inside):
            if len(window.events) >= limit:
                return False
            self._inside += 1
            if change.table not in self._tables or self._is_lost(change.table, transaction.commit):
                continue
            if change.row is not None and not change.partial and str(change.row["big"]).startswith(UNREADABLE):
                window.rejected.append(_unreadable(change.table, change.id))
                continue
            version = pack_version(self._epoch, transaction.commit, ordinal)
            schema = self._schema_at(change.table, transaction.commit)
            window.events.append(event_of(change, schema, version, transaction.xid))
        self._inside = 0
        return True

    def _is_lost(self, table: str, commit: int) -> bool:
        return any(name == table and commit <= lsn for name, lsn in self._database.tables_lost)

    def _schema_at(self, table: str, commit: int) -> TableSchema:
        altered = [t.altered for t in self._database.log if t.altered is not None and t.commit <= commit]
        of_table = [schema for schema in altered if schema.table == table]
        if of_table:
            return of_table[-1]
        later = [t for t in self._database.log if t.altered is not None and t.altered.table == table]
        schema = self._database.schemas[table]
        return replace(schema, columns=schema.columns[: len(schema.columns) - len(later)])

    def head(self) -> int:
        with self._connected():
            return self._database.lsn

    def start_chunks(self) -> None:
        with self._connected():
            self._barrier = self._under_way()

    def _under_way(self) -> frozenset[int]:
        return frozenset(t.xid for t in (*self._database.open, *self._database.unseen))

    def chunk(self, schema: TableSchema, cursor: Cursor | None, limit: int) -> Chunk | None:
        assert self._barrier is not None, "start_chunks comes first"
        with self._connected():
            database = self._database
            under_way = self._under_way()
            if self._barrier & under_way or self._schemas[schema.table] != database.schemas[schema.table]:
                return None
            schema = database.schemas[schema.table]
            after = 0 if cursor is None else int(cursor)
            found = sorted(item for item in database.seen[schema.table].items() if item[0] > after)
            last = len(found) <= limit and self._dice.rng.random() < 0.9
            found = found[:limit]
            next_xid = database.xid
            return Chunk(
                schema=schema,
                rows=[(orjson.dumps([i]), encoded(schema, r)) for i, r in found if not _is_unreadable(r)],
                cursor=None if last or not found else Cursor(str(found[-1][0])),
                commit=database.lsn,
                contains=lambda xid: xid <= next_xid and xid not in under_way,
                time=TIME,
                rejected=[_unreadable(schema.table, i) for i, r in found if _is_unreadable(r)],
            )

    def estimate(self, table: str) -> int | None:
        with self._connected():
            return len(self._database.seen[table])

    def confirm(self, position: Position) -> None:
        self._confirmed(position)
        if position.startswith(f"{self._database.incarnation}/"):
            self._database.kept_after = max(self._database.kept_after, _lsn(position))
        with self._connected():
            pass

    def health(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


def _lsn(position: Position) -> int:
    return int(position.split("/")[1])


def _is_unreadable(row: Row) -> bool:
    return str(row["big"]).startswith(UNREADABLE)


def _unreadable(table: str, id_: int) -> Rejection:
    return Rejection(table, orjson.dumps([id_]).decode(), "its value can't be read")
