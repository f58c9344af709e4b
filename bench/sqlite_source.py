"""Chunks and windows of an SQLite file beside a plain reading loop: python -m bench.sqlite_source.

The plain loop reads the same rows with one SELECT and does nothing with them: what the driver alone costs. The ratio
is its CPU time per row over ours. What the triggers cost a writer is measured by the same inserts without them.
"""

import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from upwell.clock import SystemClock
from upwell.model import TableName, TableSelection
from upwell.sources.sqlite import SqliteSource
from upwell.sources.sqlite_setup import track

ROWS = 100_000
ROUNDS = 3
CHUNK_ROWS = 2_000
WINDOW_EVENTS = 5_000

# 14 columns, about 240 bytes as text.
CREATE = """
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INT, status TEXT, amount DECIMAL(12,2), tax REAL, currency TEXT,
  email TEXT UNIQUE, street TEXT, city TEXT, zip TEXT, country TEXT, note TEXT, created DATETIME, digest BLOB)
"""
INSERT = f"INSERT INTO orders VALUES ({', '.join('?' * 14)})"


def row(number: int) -> tuple[object, ...]:
    """The row with this key."""
    return (
        *(number, number % 9973, "shipped", number / 8, number / 7, "EUR", f"customer{number}@example.com"),
        *("Some Street 17, back building", "Castrop-Rauxel", "44575", "DE", None if number % 3 else "ring twice"),
        *("2026-01-31 10:00:00.123456", number.to_bytes(16, "big")),
    )


def measured(label: str, work: Callable[[], int], plain_us: float = 0.0) -> float:
    """Prints rows a second and CPU µs a row, the best of some rounds; returns the latter."""
    best, rate = float("inf"), 0.0
    for _ in range(ROUNDS):
        wall, cpu = time.perf_counter(), time.process_time()
        count = work()
        us = (time.process_time() - cpu) / count * 1e6
        best, rate = min(best, us), max(rate, count / (time.perf_counter() - wall))
    ratio = f"{plain_us / best:8.2f}" if plain_us else ""
    print(f"{label:34}{rate:12,.0f}/s{best:8.2f} µs CPU{ratio}")
    return best


def fill(path: str, first: int, count: int) -> int:
    """Inserts rows in transactions of 1000."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    for start in range(first, first + count, 1000):
        connection.execute("BEGIN")
        connection.executemany(INSERT, map(row, range(start, start + 1000)))
        connection.execute("COMMIT")
    connection.close()
    return count


def writes(folder: str) -> None:
    """What an insert costs without and with the triggers."""
    costs = []
    for tracked in (False, True):
        path = f"{folder}/writes{tracked}.db"
        sqlite3.connect(path, isolation_level=None).execute(CREATE).connection.close()
        if tracked:
            track(path, [TableSelection(TableName("", "*"))])
        starts = iter(range(0, ROWS, ROWS // ROUNDS))
        label = f"insert, {'with' if tracked else 'without'} triggers"
        costs.append(measured(label, lambda p=path, s=starts: fill(p, next(s), ROWS // ROUNDS // 1000 * 1000)))  # type: ignore[misc]
    print(f"{'':34}the triggers cost a writer {costs[1] - costs[0]:.2f} µs a row")


def run() -> None:
    """Prints one line for each way of reading; the last column is the ratio to the plain loop."""
    with tempfile.TemporaryDirectory() as folder:
        writes(folder)
        path = str(Path(folder) / "reads.db")
        sqlite3.connect(path, isolation_level=None).execute(CREATE).connection.close()
        selections = [TableSelection(TableName("", "*"))]
        track(path, selections)
        source = SqliteSource(path, tables=selections, clock=SystemClock())
        began, _ = source.start(None, 1)
        fill(path, 0, ROWS)
        plain = sqlite3.connect(path)
        plain_us = measured("plain SELECT", lambda: sum(1 for _ in plain.execute("SELECT * FROM orders")))
        plain.close()

        def windows() -> int:
            position, count, more = began, 0, True
            while more:
                window = source.changes(position, WINDOW_EVENTS, 0.0)
                position, more, count = window.position, window.more, count + len(window.events)
            return count

        def chunks() -> int:
            schema, cursor, count = source.tables()[0], None, 0
            while True:
                chunk = source.chunk(schema, cursor, CHUNK_ROWS)
                assert chunk is not None
                cursor, count = chunk.cursor, count + len(chunk.rows)
                if cursor is None:
                    return count

        measured(f"windows of {WINDOW_EVENTS}", windows, plain_us)
        measured(f"chunks of {CHUNK_ROWS}", chunks, plain_us)
        source.close()


if __name__ == "__main__":
    run()
