"""Chunks and windows of SQL Server beside the driver alone, and beside a tap: python -m bench.sqlserver_source [ROWS].

The driver alone reads the same rows with one SELECT and does nothing with them. A tap, as the Singer specification has
it, reads row by row and writes a JSON message for each. The server is the stand-in of lab/sqlserver, which is slower
than SQL Server: of what is printed only this process's CPU time per row, and its ratio, say something.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from decimal import Decimal
from typing import Any

import mssql_python

from lab.parts import StandinSqlServer
from tests.acceptance.sqlserver_client import SqlServerConnection
from tests.sqlserver_databases import in_database
from upwell.clock import SystemClock
from upwell.model import Cursor, TableName, TableSelection
from upwell.sources.sqlserver import SqlServerSource
from upwell.sources.sqlserver_session import Address, MssqlPython

CHUNK_ROWS = 5_000
WINDOW_EVENTS = 5_000
TRANSACTION_ROWS = 1_000

# 14 columns, about 240 bytes as text.
CREATE = """
CREATE TABLE orders (id bigint PRIMARY KEY, customer int, status varchar(20), amount decimal(12,2), tax float,
  currency char(3), email nvarchar(80), street nvarchar(80), city nvarchar(40), zip varchar(10), country char(2),
  note nvarchar(200), created datetime2(6), digest varbinary(16))
"""
CHANGES = """
SELECT ct.SYS_CHANGE_VERSION, ct.SYS_CHANGE_OPERATION, ct.id, t.* FROM CHANGETABLE(CHANGES orders, 0) AS ct
LEFT JOIN orders AS t ON t.id = ct.id ORDER BY ct.SYS_CHANGE_VERSION, ct.id
"""


def fill(url: str, count: int) -> None:
    """Rows, a thousand a transaction."""
    with closing(SqlServerConnection(url)) as connection:
        for start in range(0, count, TRANSACTION_ROWS):
            rows = ", ".join(
                f"({n}, {n % 9973}, 'shipped', {n / 8:.2f}, {n / 7}, 'EUR', 'customer{n}@example.com', "
                f"'Some Street 17, back building', 'Castrop-Rauxel', '44575', 'DE', 'ring twice', "
                f"'2026-01-31 10:00:00.123456', 0x{n:032x})"
                for n in range(start, min(start + TRANSACTION_ROWS, count))
            )
            connection.execute(f"INSERT INTO orders VALUES {rows}")


def measured(label: str, work: Callable[[], int], count: int, plain_us: float = 0.0) -> float:
    """Prints rows a second and CPU µs a row; returns the latter."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    us = (time.process_time() - cpu) / count * 1e6
    assert found == count, f"{label}: {found} of {count} rows"
    ratio = f"{plain_us / us:8.2f}" if plain_us else ""
    print(f"{label:34}{count / (time.perf_counter() - wall):12,.0f}/s{us:8.2f} µs CPU{ratio}", flush=True)
    return us


def driver_alone(url: str, sql: str) -> int:
    """Reads and forgets."""
    with closing(MssqlPython().connect(*_place(url))) as connection:
        return sum(1 for _ in _rows(connection, sql))


def tap(url: str, sql: str) -> int:
    """A message for each row, written nowhere."""
    count = 0
    with closing(MssqlPython().connect(*_place(url))) as connection:
        cursor = connection.cursor()
        cursor.execute(sql)
        names = [column[0] for column in cursor.description]
        while (row := cursor.fetchone()) is not None:
            record = {name: _as_json(value) for name, value in zip(names, row, strict=True)}
            extracted = datetime.datetime.now(datetime.UTC).isoformat()
            json.dumps({"type": "RECORD", "stream": "orders", "record": record, "time_extracted": extracted})
            count += 1
    return count


def _as_json(value: Any) -> Any:
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    return value.hex() if isinstance(value, bytes) else value


def _rows(connection: mssql_python.Connection, sql: str) -> Iterator[Sequence[Any]]:
    cursor = connection.cursor()
    cursor.execute(sql)
    yield from cursor


def _place(url: str) -> tuple[Address, str, int | None]:
    address = Address.parse(url)
    return address, address.host, address.port


def snapshot(source: SqlServerSource) -> int:
    """All chunks of the table."""
    (schema,) = source.tables()
    cursor: Cursor | None = None
    count = 0
    while True:
        chunk = source.chunk(schema, cursor, CHUNK_ROWS)
        assert chunk is not None, "nobody alters the table"
        count += len(chunk.rows)
        if chunk.cursor is None:
            return count
        cursor = chunk.cursor


def windows(source: SqlServerSource, began: Any) -> int:
    """All windows after a position."""
    position, count = began, 0
    while True:
        window = source.changes(position, WINDOW_EVENTS, 0)
        position = window.position
        count += len(window.events)
        if not window.more:
            return count


def run(count: int) -> None:
    """The last column is the ratio to the driver alone: its CPU time per row over that of the line."""
    with StandinSqlServer() as server:
        url = in_database(server.url, "bench")
        with closing(SqlServerConnection(server.url)) as connection:
            connection.execute("CREATE DATABASE bench")
        with closing(SqlServerConnection(url)) as connection:
            connection.execute(CREATE)
            connection.execute("ALTER DATABASE bench SET CHANGE_TRACKING = ON")
            connection.execute("ALTER TABLE orders ENABLE CHANGE_TRACKING WITH (TRACK_COLUMNS_UPDATED = ON)")
        with closing(_source(url)) as source:
            began, _ = source.start(None, 1)
            fill(url, count)
            plain = measured("driver alone, table", lambda: driver_alone(url, "SELECT * FROM orders"), count)
            measured("tap, table", lambda: tap(url, "SELECT * FROM orders"), count, plain)
            measured("snapshot in chunks", lambda: snapshot(source), count, plain)
            plain = measured("driver alone, changes", lambda: driver_alone(url, CHANGES), count)
            measured("tap, changes", lambda: tap(url, CHANGES), count, plain)
            measured("windows", lambda: windows(source, began), count, plain)


def _source(url: str) -> SqlServerSource:
    everything = [TableSelection(TableName("", "*"))]
    return SqlServerSource(url, tables=everything, pipeline="bench", clock=SystemClock(), driver="mssql-python")


if __name__ == "__main__":
    run(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
