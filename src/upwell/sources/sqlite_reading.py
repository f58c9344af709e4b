# ruff: noqa: S608 - names are quoted by quoted(), values travel as parameters
"""How one SQLite table is read: the queries of windows and chunks, and what becomes of their rows.

SQLite compares keys by the primary key's collation, the wire compares them byte for byte. So a row counts as the row
of a logged key only where both keys' bytes are equal: after an update from 'a' to 'A' in a NOCASE column there is
no row 'a' any more.
"""

from __future__ import annotations

import marshal
import sqlite3
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import orjson

from upwell.model import Cursor, Rejection
from upwell.sources.sqlite_catalog import KeyColumn, Table, quoted
from upwell.sources.sqlite_rows import Encoder, Stored, known_key

_ROWIDS = ("rowid", "_rowid_", "oid")  # each may also be the name of a column
_ROWS_MAX = 2**48  # what fits a database file of SQLite's greatest size, about
_NULL_KEY = "NULL in the primary key: such a row can't be told from others"


class TableReader:
    """The queries and encoders of one table, made once for each schema."""

    def __init__(self, table: Table) -> None:
        self.table = table
        schema = table.schema
        self._indexes = schema.key_indexes
        self._row = Encoder([c.kind for c in schema.columns], [c.name for c in schema.columns])
        key_columns = [schema.columns[index] for index in self._indexes]
        self._key = Encoder([c.kind for c in key_columns], [c.name for c in key_columns])
        self._columns = ", ".join(f"r.{quoted(c.name)}" for c in schema.columns)
        self.window_query = self._window_query()  # parameters: after this id, up to this id, the table's name

    def _window_query(self) -> str:
        numbers = range(len(self.table.key))
        keys = ", ".join(f"k{n}" for n in numbers)
        typed = "".join(f", typeof(k{n})" for n, column in enumerate(self.table.key) if column.typed)
        same = " AND ".join(f"{_compared(column)} = l.k{n}" for n, column in enumerate(self.table.key))
        # Of a group with one max(), SQLite takes the other columns from the row that has it.
        newest = (
            f"SELECT max(id) AS id, op, at, {keys} FROM _upwell_log WHERE id > ? AND id <= ? AND tbl = ? "
            f"GROUP BY {keys}{typed}"
        )
        logged = ", ".join(f"l.k{n}" for n in numbers)
        return (
            f"SELECT l.id, l.op, l.at, {logged}, {self._columns} "
            f"FROM ({newest}) AS l LEFT JOIN {quoted(self.table.name)} AS r ON {same}"
        )

    def chunk_query(self, cursor: Cursor | None, limit: int) -> tuple[str, tuple[Any, ...]]:
        """The SQL and its parameters for `limit` rows after the cursor, in the key's order."""
        condition, parameters = ("", ()) if cursor is None else self._after(_cursor_values(cursor))
        order = ", ".join(self._ordered())
        sql = f"SELECT {self._columns} FROM {quoted(self.table.name)} AS r{condition} ORDER BY {order} LIMIT ?"
        return sql, (*parameters, limit)

    def _after(self, values: list[tuple[str, Any]]) -> tuple[str, tuple[Any, ...]]:
        columns = self._ordered()
        marks = [mark for mark, _ in values]
        if all(value is not None for _, value in values):
            row, bound = f"({', '.join(columns)})", f"({', '.join(marks)})"
            # SQLite searches no index for rows of values with explicit collations, but for the first alone it does.
            first = "" if self.table.key_in_order else f"{columns[0]} >= {marks[0]} AND "
            parameters = [value for _, value in values]
            return f" WHERE {first}{row} > {bound}", (*parameters[: len(first) and 1], *parameters)
        # NULL comes first in SQLite's order, and no comparison with it is ever true: spell the order out.
        terms: list[str] = []
        bound_values: list[Any] = []
        for n, (mark, value) in enumerate(values):
            equal = [f"{columns[i]} IS {marks[i]}" for i in range(n)]
            greater = f"{columns[n]} IS NOT NULL" if value is None else f"{columns[n]} > {mark}"
            terms.append(" AND ".join([*equal, greater]))
            bound_values += [values[i][1] for i in range(n)] + ([] if value is None else [value])
        return " WHERE " + " OR ".join(f"({term})" for term in terms), tuple(bound_values)

    def _ordered(self) -> list[str]:
        """The key's columns in a form that is ordered as the primary key's index is."""
        if self.table.key_in_order:
            return [f"r.{quoted(column.name)}" for column in self.table.key]
        return [_compared(column) for column in self.table.key]

    def cursor_after(self, row: Sequence[Stored]) -> Cursor:
        """The cursor of a chunk that ends with this row."""
        return Cursor(orjson.dumps([_typed(row[index]) for index in self._indexes]).decode())

    def encode_window(
        self, rows: Sequence[Sequence[Any]], rejected: list[Rejection]
    ) -> Iterator[tuple[int, str, str, bytes, bytes | None]]:
        """(log id, operation, time, key, row or None where there is none) of each key of a window's query."""
        if not rows:
            return
        columns = list(zip(*rows, strict=True))
        first_value = 3 + len(self._indexes)
        ids, operations, times = columns[:3]
        logged, stored = columns[3:first_value], columns[first_value:]
        keys, unfit_keys = self._key.encode_columns(logged)
        stored_keys, _ = self._key.encode_columns([stored[index] for index in self._indexes])
        encoded, unfit_rows = self._row.encode_columns(stored)
        for n, key in enumerate(keys):
            if key is None or (b"null" in key and None in [column[n] for column in logged]):
                # What was never published needs no delete; NULL may be of a time when the key had fewer columns.
                if operations[n] != "d" and (key is None or self.table.key_may_be_null):
                    values = [column[n] for column in logged]
                    rejected.append(self._rejection(values, unfit_keys.get(n, _NULL_KEY)))
            elif stored_keys[n] != key:
                yield ids[n], operations[n], times[n], key, None
            elif n in unfit_rows:
                rejected.append(Rejection(self.table.schema.table, key.decode(), unfit_rows[n]))
            else:
                yield ids[n], operations[n], times[n], key, encoded[n]

    def encode_chunk(self, rows: Sequence[Sequence[Stored]]) -> tuple[list[tuple[bytes, bytes]], list[Rejection]]:
        """(key, row) of each row of a chunk's query, and those that can't be published."""
        if not rows:
            return [], []
        columns = list(zip(*rows, strict=True))
        key_columns = [columns[index] for index in self._indexes]
        keys, unfit_keys = self._key.encode_columns(key_columns)
        encoded, unfit_rows = self._row.encode_columns(columns)
        nulls = {n for column in key_columns for n in _nulls(column)} if self.table.key_may_be_null else set()
        rejected = []
        for n in sorted(unfit_keys.keys() | unfit_rows.keys() | nulls):
            reason = _NULL_KEY if n in nulls else unfit_rows[n]
            rejected.append(self._rejection([column[n] for column in key_columns], reason))
        if not rejected:
            return list(zip(keys, encoded, strict=True)), []  # type: ignore[arg-type] # None only where rejected
        kept = [
            (key, row)
            for n, (key, row) in enumerate(zip(keys, encoded, strict=True))
            if key is not None and row is not None and n not in nulls
        ]
        return kept, rejected

    def _rejection(self, key: Sequence[Stored], reason: str) -> Rejection:
        return Rejection(self.table.schema.table, known_key(key), reason)

    def estimate(self, connection: sqlite3.Connection) -> int | None:
        """About how many rows: ANALYZE's count, else the range of rowids; None where neither is there."""
        name = self.table.name
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_stat1'").fetchone():
            found = connection.execute("SELECT max(CAST(stat AS INTEGER)) FROM sqlite_stat1 WHERE tbl = ?", (name,))
            (rows,) = found.fetchone()
            if rows is not None:
                return int(rows)
        rowid = next((each for each in _ROWIDS if each not in map(str.lower, self.table.all_columns)), None)
        if not self.table.rowid or rowid is None:
            return None
        ends = f"SELECT (SELECT max({rowid}) FROM {quoted(name)}), (SELECT min({rowid}) FROM {quoted(name)})"
        last, first = connection.execute(ends).fetchone()
        if last is None:
            return 0
        rows = int(last) - int(first) + 1
        return rows if rows <= _ROWS_MAX else None  # ids at random, say: the range tells nothing


def fetch(
    connection: sqlite3.Connection, sql: str, parameters: Sequence[Any], bytes_max: int | None = None
) -> tuple[list[Any], bool]:
    """(rows, whether these are all): where they have more than `bytes_max`, only those up to the one that exceeds it.

    Text that is no UTF-8 comes with surrogates in the place of the bytes that are none.
    """
    try:
        return _bounded(connection.execute(sql, parameters), bytes_max)
    except sqlite3.OperationalError as error:
        # Raised by Python, not by SQLite, and with the text in its message, which must go nowhere.
        if not str(error).startswith("Could not decode to UTF-8"):
            raise
    connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
    try:
        return _bounded(connection.execute(sql, parameters), bytes_max)
    finally:
        connection.text_factory = str


def _bounded(cursor: sqlite3.Cursor, bytes_max: int | None) -> tuple[list[Any], bool]:
    if bytes_max is None:
        return cursor.fetchall(), True
    rows: list[Any] = []
    keep, dumps, size = rows.append, marshal.dumps, 0
    for row in cursor:
        keep(row)
        # The quickest way to a row's size, for it is one call: a twentieth of what reading and encoding it takes.
        size += len(dumps(row))
        if size > bytes_max:
            cursor.close()
            return rows, False
    return rows, True


def _compared(column: KeyColumn) -> str:
    """A key's column, compared and ordered as the primary key's index does."""
    return f"r.{quoted(column.name)} COLLATE {quoted(column.collation)}"


def _nulls(column: Sequence[Stored]) -> list[int]:
    return [n for n, value in enumerate(column) if value is None] if None in column else []


def _typed(value: Stored) -> Any:
    """A key's value in a cursor's JSON, so that it comes back with its storage class."""
    if isinstance(value, bytes):
        return {"blob": value.hex()}
    if isinstance(value, str) and not value.isascii():
        return {"text": value.encode("utf-8", "surrogateescape").hex()}
    # JSON's shortest form of a float comes back as the same float, but for infinities.
    return {"real": repr(value)} if isinstance(value, float) else value


def _cursor_values(cursor: Cursor) -> list[tuple[str, Any]]:
    """(how SQL takes the parameter, the parameter) of each value of a cursor."""
    values: list[tuple[str, Any]] = []
    for value in orjson.loads(cursor):
        match value:
            case {"blob": digits}:
                values.append(("?", bytes.fromhex(digits)))
            case {"text": digits}:
                # As bytes: text that is no UTF-8 can't be bound as text.
                values.append(("CAST(? AS TEXT)", bytes.fromhex(digits)))
            case {"real": digits}:
                values.append(("?", float(digits)))
            case plain:
                values.append(("?", plain))
    return values
