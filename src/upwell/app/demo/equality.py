"""Whether both sides hold the same rows: read from each by itself, compared value by value."""

from __future__ import annotations

import base64
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from upwell.app.demo.databases import TABLES
from upwell.app.demo.databases import Connection as ShopConnection
from upwell.aws import JsonService
from upwell.aws_errors import ResourceMissing

if TYPE_CHECKING:
    from psycopg import Connection

KEY_COLUMNS: Final = {"customers": 1, "products": 1, "orders": 1, "order_lines": 2}  # the first ones are the key

Row = tuple[object, ...]
Rows = Mapping[Row, Row]  # by key
Tables = Mapping[str, Rows]


@dataclass(frozen=True)
class TableEquality:
    """A table on both sides."""

    source: int  # rows
    target: int
    differing: int  # rows that are missing, superfluous, or have another value

    @property
    def equal(self) -> bool:
        return self.differing == 0


@dataclass(frozen=True)
class Equality:
    """All tables at about the same moment."""

    tables: Mapping[str, TableEquality]
    target: Tables = field(repr=False)
    lag_s: float  # for how long the oldest change that has not arrived has been in the source; 0 where all have

    @property
    def differing(self) -> int:
        return sum(table.differing for table in self.tables.values())

    @property
    def equal(self) -> bool:
        return self.differing == 0


def compare(read_source: Callable[[], Tables], read_target: Callable[[], Tables]) -> Equality:
    """Read the source, the target, and the source again, because people go on working meanwhile.

    A row of the target is right when it is as either reading of the source has it.
    """
    before, at = read_source(), time.time()
    target = read_target()
    after = read_source()
    tables: dict[str, TableEquality] = {}
    oldest = at
    for name in TABLES:
        keys = before[name].keys() | after[name].keys() | target[name].keys()
        missing = [key for key in keys if target[name].get(key) not in (before[name].get(key), after[name].get(key))]
        tables[name] = TableEquality(len(after[name]), len(target[name]), len(missing))
        for key in missing:
            row = before[name].get(key)
            if row is not None and row == after[name].get(key):  # else it is in the middle of being changed
                oldest = min(oldest, _changed_at(row))
    return Equality(tables, target, at - oldest)


def read_shop(connection: ShopConnection) -> Tables:
    """One consistent cut of the shop's database."""
    with connection.transaction(reading=True):
        return {name: _rows(name, connection.rows(_select(name))) for name in TABLES}


def read_aurora(connection: Connection[tuple[Any, ...]]) -> Tables:
    """One consistent cut of the target; a table that is not there yet has no rows."""
    found = connection.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
    present = {name for (name,) in found}
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        return {
            name: _rows(name, connection.execute(_select(name).encode())) if name in present else {} for name in TABLES
        }


def read_dynamodb(service: JsonService, prefix: str) -> Tables:
    """The items of the tables, tombstones left out; a table that is not there yet has no rows."""
    return {name: _rows(name, _items(service, prefix + name, _COLUMNS[name])) for name in TABLES}


def _select(table: str) -> str:
    return f"SELECT {', '.join(_COLUMNS[table])} FROM {table}"


def _items(service: JsonService, table: str, columns: list[str]) -> Iterator[Row]:
    request: dict[str, Any] = {"TableName": table, "ConsistentRead": True}
    while True:
        try:
            page = service.call("Scan", request)
        except ResourceMissing:
            return
        for item in page["Items"]:
            if "_upwell_deleted" not in item:
                yield tuple(_from_attribute(item.get(column)) for column in columns)
        if "LastEvaluatedKey" not in page:
            return
        request["ExclusiveStartKey"] = page["LastEvaluatedKey"]


def _from_attribute(attribute: Mapping[str, Any] | None) -> object:
    if attribute is None:
        return None
    ((type_, value),) = attribute.items()
    if type_ == "N":
        return Decimal(value)
    return base64.b64decode(value) if type_ == "B" else value


def _rows(table: str, rows: Iterable[Sequence[object]]) -> Rows:
    key = KEY_COLUMNS[table]
    return {row[:key]: row for row in (tuple(map(_plain, values)) for values in rows)}


def _plain(value: object) -> object:
    """Numbers and moments compare by value: each side has them in types of its own."""
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    return Decimal(repr(value)) if isinstance(value, (int, float)) else value


def _changed_at(row: Row) -> float:
    """The last column of each table."""
    return datetime.fromisoformat(str(row[-1])).replace(tzinfo=UTC).timestamp()


def _columns(statement: str) -> list[str]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(statement)
        ((name,),) = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return [column for (column,) in connection.execute("SELECT name FROM pragma_table_info(?)", (name,))]


_COLUMNS: Final = {name: _columns(statement) for name, statement in TABLES.items()}
