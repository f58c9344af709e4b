# ruff: noqa: S608 - names are quoted by quoted(), values travel as parameters
"""How one SQL Server table is read: the statements of pages of changes and of chunks, and what becomes of their rows.

Rows are compared and ordered by the server, in the order of the key's index; the key of the last row comes back as the
parameter of the next statement. CHANGETABLE tells keys as change tracking first saw them: under a collation without
case that may be another spelling than the row's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

import orjson

from upwell.errors import OperatorError
from upwell.model import Cursor, Kind, Rejection, Was
from upwell.sources.sqlserver_catalog import ServerColumn, Table
from upwell.sources.sqlserver_session import PARAMETER, quoted
from upwell.sources.sqlserver_types import Parameter

PAGE_ROWS_MAX: Final = 50_000
PORTION_ROWS_MAX: Final = 1_000  # fetched at a time: fewer where rows are long
# What a row costs in Python beside its JSON: an event, its key, its numbers.
ROW_OVERHEAD_BYTES: Final = 400
_FIRST_PORTION: Final = 8
_BEFORE_KEY: Final = 5  # version, creation version, operation, mask, context

_UNFIT: Final = "text that is not valid Unicode"
_WAS: Final[dict[str, Was]] = {"I": "insert", "U": "update", "D": "update"}  # a row that is there was not deleted

Statement = tuple[str, tuple[Parameter, ...]]
Rows = list[Sequence[Any]]


class Found(NamedTuple):
    """A key that changed, with its row as it is now."""

    version: int
    tracked: str  # JSON of the key as change tracking tells it: where reading goes on
    key: bytes  # JSON of the key as the row has it; of a deleted row as change tracking tells it
    row: bytes | None  # None: the row is gone
    was: Was
    mask: bytes | None  # of the columns that changed; None: any may have
    context: bytes | None  # what the writer said of itself: SYS_CHANGE_CONTEXT


class TableReader:
    """The statements and the encoding of one table, made once for each schema."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._key_indexes = table.schema.key_indexes
        self._keys = len(table.key)
        self._finish = [column.type.finish for column in table.columns]
        self._finish_key = [column.type.finish for column in table.key]
        self._columns = ", ".join(_fetched("t", column) for column in table.columns)
        self.changed_columns: dict[bytes, tuple[str, ...] | None] = {}  # mask → the columns that it is about

    # --- statements -----------------------------------------------------------------------------------------------

    def page_query(self, since: int, after: tuple[int, str] | None, *, seek: bool) -> Statement:
        """What changed after version `since`, by version and key; or only what follows `after`, (version, key).

        Its rows are those of `found`.
        """
        name, forced = self.table.sql, ", FORCESEEK" if seek else ""
        keys = ", ".join(_fetched("ct", column) for column in self.table.key)
        same = " AND ".join(f"t.{quoted(c.name)} = ct.{quoted(c.name)}" for c in self.table.key)
        order = ", ".join(f"ct.{quoted(column.name)}" for column in self.table.key)
        where, parameters = "", list[Parameter]([since])
        if after is not None:
            condition, beyond = self._beyond("ct", after[1], [False] * self._keys)
            version = f"ct.SYS_CHANGE_VERSION > {PARAMETER} OR (ct.SYS_CHANGE_VERSION = {PARAMETER} AND {condition})"
            where, parameters = f" WHERE {version}", [since, after[0], after[0], *beyond]
        return (
            f"SELECT TOP ({PAGE_ROWS_MAX}) ct.SYS_CHANGE_VERSION, ct.SYS_CHANGE_CREATION_VERSION, "
            f"ct.SYS_CHANGE_OPERATION, ct.SYS_CHANGE_COLUMNS, ct.SYS_CHANGE_CONTEXT, {keys}, {self._columns} "
            f"FROM CHANGETABLE(CHANGES {name}, {PARAMETER}{forced}) AS ct LEFT JOIN {name} AS t ON {same}{where} "
            f"ORDER BY ct.SYS_CHANGE_VERSION, {order}"
        ), tuple(parameters)

    def chunk_query(self, cursor: Cursor | None, limit: int) -> Statement:
        """`limit` rows after the cursor in the order of the key's index."""
        directions = zip(self.table.key, self.table.descending, strict=True)
        order = ", ".join(f"t.{quoted(column.name)}{' DESC' if down else ''}" for column, down in directions)
        where, parameters = "", tuple[Parameter, ...]()
        if cursor is not None:
            condition, parameters = self._beyond("t", cursor, self.table.descending)
            where = f" WHERE {condition}"
        return (
            f"SELECT TOP ({int(limit)}) {self._columns} FROM {self.table.sql} AS t{where} ORDER BY {order}"
        ), parameters

    def mask_query(self, mask: bytes) -> Statement:
        """Whether each column is in the mask: a row of 0 and 1, for the columns that are published."""
        asked = ", ".join(f"CHANGE_TRACKING_IS_COLUMN_IN_MASK({c.id}, {PARAMETER})" for c in self.table.columns)
        return f"SELECT {asked}", (mask,) * len(self.table.columns)

    def spellings_query(self, limit: int) -> Statement | None:
        """The keys that change tracking spells otherwise than the rows do: both keys, as `spellings` takes them."""
        differs = [
            f"CONVERT(varbinary(max), ct.{quoted(c.name)}) <> CONVERT(varbinary(max), t.{quoted(c.name)})"
            for c in self.table.key
            if c.type.kind in (Kind.TEXT, Kind.BYTES)
        ]
        if not differs:
            return None
        keys = ", ".join(_fetched(alias, column) for alias in ("ct", "t") for column in self.table.key)
        same = " AND ".join(f"t.{quoted(c.name)} = ct.{quoted(c.name)}" for c in self.table.key)
        name = self.table.sql
        return (
            f"SELECT TOP ({int(limit)}) {keys} FROM CHANGETABLE(CHANGES {name}, NULL) AS ct JOIN {name} AS t ON {same} "
            f"WHERE {' OR '.join(differs)}"
        ), ()

    def spellings(self, rows: Rows) -> dict[str, str]:
        """JSON of the key as change tracking tells it → as the row has it."""
        columns = list(zip(*rows, strict=True))
        tracked, unfit = self._encoded(columns[: self._keys], self._finish_key)
        stored, unfit_too = self._encoded(columns[self._keys :], self._finish_key)
        pairs = zip(tracked, stored, strict=True)
        return {a.decode(): b.decode() for n, (a, b) in enumerate(pairs) if n not in unfit | unfit_too}

    def _beyond(self, alias: str, key: str, descending: Sequence[bool]) -> tuple[str, tuple[Parameter, ...]]:
        """The condition that a row's key comes after this one, with its parameters."""
        columns = self.table.key
        values = [c.type.parameter_value(v) for c, v in zip(columns, orjson.loads(key), strict=True)]
        names = [f"{alias}.{quoted(column.name)}" for column in columns]
        marks = [column.type.parameter(PARAMETER) for column in columns]
        signs = ["<" if down else ">" for down in descending]
        terms, parameters = [], list[Parameter]()
        for n in range(len(columns)):
            equal = [f"{names[i]} = {marks[i]}" for i in range(n)]
            terms.append("(" + " AND ".join([*equal, f"{names[n]} {signs[n]} {marks[n]}"]) + ")")
            parameters += values[: n + 1]
        if len(terms) == 1:
            return terms[0], tuple(parameters)
        # The index is searched by a bound on its first column; a disjunction alone would be a scan.
        return f"({names[0]} {signs[0]}= {marks[0]} AND ({' OR '.join(terms)}))", (values[0], *parameters)

    # --- rows -----------------------------------------------------------------------------------------------------

    def found(self, rows: Rows, rejected: list[Rejection]) -> list[Found]:
        """The rows of a page's statement, without those whose row is gone though it was not deleted: that comes yet."""
        columns = list(zip(*rows, strict=True))
        versions, _, operations, masks, contexts = columns[:_BEFORE_KEY]
        tracked, unfit = self._encoded(columns[_BEFORE_KEY : _BEFORE_KEY + self._keys], self._finish_key)
        stored = columns[_BEFORE_KEY + self._keys :]
        encoded, unfit_rows = self._encoded(stored, self._finish)
        keys = tracked  # which is how the row spells it too
        if self.table.loose:
            keys, _ = self._encoded([stored[index] for index in self._key_indexes], self._finish_key)
        there = stored[self._key_indexes[0]]
        result = []
        for n, operation in enumerate(operations):
            if n in unfit or (there[n] is not None and n in unfit_rows):
                rejected.append(self._rejection(tracked[n] or keys[n]))
            elif there[n] is not None:
                result.append(
                    Found(versions[n], tracked[n].decode(), keys[n], encoded[n], _WAS[operation], masks[n], contexts[n])
                )
            elif operation == "D":
                key = tracked[n]
                result.append(Found(versions[n], key.decode(), key, None, "delete", None, contexts[n]))
        return result

    def place_of(self, row: Sequence[Any]) -> tuple[int, str]:
        """(version, key) of a row of a page's statement: where the next page starts. Raises OperatorError."""
        return row[0], self._one_key(row[_BEFORE_KEY : _BEFORE_KEY + self._keys])

    def keyed(self, rows: Rows, rejected: list[Rejection]) -> list[tuple[bytes, bytes]]:
        """(key, row) of each row of a chunk's statement."""
        columns = list(zip(*rows, strict=True))
        encoded, unfit = self._encoded(columns, self._finish)
        keys, _ = self._encoded([columns[index] for index in self._key_indexes], self._finish_key)
        rejected.extend(self._rejection(keys[n]) for n in sorted(unfit))
        pairs = zip(keys, encoded, strict=True)
        return list(pairs) if not unfit else [pair for n, pair in enumerate(pairs) if n not in unfit]

    def cursor_after(self, row: Sequence[Any]) -> Cursor:
        """The cursor of a chunk that ends with this row. Raises OperatorError."""
        return Cursor(self._one_key([row[index] for index in self._key_indexes]))

    def _one_key(self, values: Sequence[Any]) -> str:
        keys, unfit = self._encoded([(value,) for value in values], self._finish_key)
        if unfit:
            raise OperatorError(
                f"Reading {self.table.name} can't go on beyond a key that is not valid Unicode.",
                code="UW-MS-046",
                remedy="Correct that key: half of a surrogate pair stands in it.",
            )
        return keys[0].decode()

    def _encoded(
        self, columns: Sequence[Sequence[Any]], finish: Sequence[Callable[..., Any]]
    ) -> tuple[list[bytes], set[int]]:
        """Each row's JSON array; and those, by their place, that have none: theirs is empty."""
        ready = [done(column) for done, column in zip(finish, columns, strict=True)]
        rows = zip(*ready, strict=True)
        try:
            return [_dumps(row) for row in rows], set()
        except orjson.JSONEncodeError:
            pass
        encoded, unfit = [], set()
        for n, row in enumerate(zip(*ready, strict=True)):
            try:
                encoded.append(_dumps(row))
            except orjson.JSONEncodeError:
                encoded.append(b"")
                unfit.add(n)
        return encoded, unfit

    def _rejection(self, key: bytes) -> Rejection:
        return Rejection(self.table.schema.table, key.decode() or "[?]", _UNFIT)


def _fetched(alias: str, column: ServerColumn) -> str:
    return column.type.select(f"{alias}.{quoted(column.name)}")


def _dumps(row: tuple[Any, ...], dumps: Callable[..., bytes] = orjson.dumps) -> bytes:
    # Copied: orjson makes its result in a buffer of pages, which a row would keep, and hand back one by one.
    return b"%b" % dumps(row)


def take_portions(rows: Iterator[Sequence[Any]], take: Callable[[Rows], int], bytes_max: int) -> bool:
    """Hand the rows to `take`, some at a time, until it has returned `bytes_max` bytes. True: those were all rows.

    A portion is as large as rows have been of late: nobody knows how long the next one is before it is there.
    """
    count, size, portion = 0, 0, _FIRST_PORTION
    while size < bytes_max:
        taken = list(islice(rows, portion))
        if taken:
            size += take(taken)
            count += len(taken)
        if len(taken) < portion:
            return True
        fitting = (bytes_max - size) * count // max(size, 1)
        portion = max(1, min(PORTION_ROWS_MAX, 4 * portion, fitting))
    return False
