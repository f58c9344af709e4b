"""How fast the PostgreSQL source reads, beside the limit: a plain loop that takes the same messages and drops them.

    python -m bench.postgres_source [--rows 200000] [--rounds 3]

14 columns, 240 bytes a row as text. The snapshot is read in chunks of 5,000 rows; the stream is 60 % updates,
30 % inserts and 10 % deletes in transactions of 1,000. CPU is this process's; the server has the other core.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import psycopg

from lab.parts import PostgresCluster
from upwell.clock import SystemClock
from upwell.model import Cursor, TableName, TableSelection
from upwell.sources.pgoutput import parse_lsn
from upwell.sources.postgres import PostgresSource
from upwell.sources.postgres_session import ReplicationConnection
from upwell.sources.postgres_setup import track

CHUNK_ROWS = 5_000
WINDOW_EVENTS = 5_000
TRANSACTION_ROWS = 1_000
TABLES = (TableSelection(TableName("public", "orders")),)

CREATE = """
CREATE TABLE orders (
    id integer PRIMARY KEY, customer bigint, status text, total numeric(12,2), tax numeric(12,4),
    weight double precision, paid boolean, ordered date, created timestamptz, updated timestamp,
    reference uuid, lines smallint, address text, remark text)"""
ROW = """
    n, n * 7919::bigint, (ARRAY['new','paid','sent'])[1 + n % 3], (n % 100000) / 100.0, n / 7.0,
    n / 3.0, n % 2 = 0, date '2020-01-01' + n % 2000, timestamptz '2026-01-01Z' + n * interval '1.001s',
    timestamp '2026-01-01' + n * interval '1.001s', md5(n::text)::uuid, n % 9,
    'Harbour Lane ' || n || ', 4th floor, Zürich',
    'please leave the parcel with the neighbours of number ' || n % 100"""

Measured = tuple[int, float, float]  # rows, seconds, seconds of CPU


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with PostgresCluster() as cluster, cluster.connect() as connection:
        url = cluster.url()
        connection.execute(CREATE.encode())
        track(url, tables=TABLES, slot="upwell", publication="upwell")
        fill(connection, arguments.rows)
        report("snapshot", arguments.rounds, lambda: plain_snapshot(url), lambda: snapshot(url))
        names = iter(f"copy_{number}" for number in range(1_000))
        report(
            "stream",
            arguments.rounds,
            lambda: plain_stream(url, copied_slot(connection, next(names))),
            lambda: stream(url, copied_slot(connection, next(names)), connection),
        )


def fill(connection: psycopg.Connection[tuple[object, ...]], rows: int) -> None:
    for first in range(0, rows, TRANSACTION_ROWS):
        last = first + TRANSACTION_ROWS - 1
        kinds = ["i"] * 3 + ["u"] * 6 + ["d"] if first else ["i"] * 10
        with connection.transaction():
            if first == 0:
                connection.execute(f"INSERT INTO orders SELECT {ROW} FROM generate_series(0, {rows}) n".encode())
            for tenth, kind in enumerate(kinds):
                low = first + tenth * TRANSACTION_ROWS // 10
                high = low + TRANSACTION_ROWS // 10 - 1
                if kind == "u":
                    connection.execute(
                        f"UPDATE orders SET total = total + 1 WHERE id BETWEEN {low} AND {high}".encode()
                    )
                elif kind == "d":
                    connection.execute(f"DELETE FROM orders WHERE id BETWEEN {low} AND {high}".encode())
                elif first:
                    shift = f"generate_series({rows + low}, {rows + min(high, last)}) n"
                    connection.execute(
                        f"INSERT INTO orders SELECT {ROW} FROM {shift} ON CONFLICT (id) DO NOTHING".encode()
                    )
    connection.execute("VACUUM ANALYZE orders")


def copied_slot(connection: psycopg.Connection[tuple[object, ...]], name: str) -> str:
    connection.execute("SELECT pg_copy_logical_replication_slot('upwell', %s)", [name])
    return name


def plain_snapshot(url: str) -> Measured:
    rows = 0
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        began, cpu = time.monotonic(), time.process_time()
        with cursor.copy("COPY (SELECT * FROM ONLY orders ORDER BY id) TO STDOUT") as copy:
            for _ in copy:
                rows += 1
        return rows, time.monotonic() - began, time.process_time() - cpu


def snapshot(url: str) -> Measured:
    source = PostgresSource(url, tables=TABLES, slot="upwell", publication="upwell", clock=SystemClock())
    (schema,) = source.tables()
    source.start_chunks()
    cursor: Cursor | None = None
    rows = 0
    began, cpu = time.monotonic(), time.process_time()
    while True:
        chunk = source.chunk(schema, cursor, CHUNK_ROWS)
        assert chunk is not None, "nothing else is in progress"
        rows += len(chunk.rows)
        cursor = chunk.cursor
        if cursor is None:
            break
    measured = rows, time.monotonic() - began, time.process_time() - cpu
    source.close()
    return measured


def plain_stream(url: str, slot: str) -> Measured:
    """Until a second has passed without a message, which does not count."""
    connection = ReplicationConnection(url)
    connection.start(slot, 0, "upwell")
    rows = 0
    began, cpu = last, last_cpu = time.monotonic(), time.process_time()
    while True:
        message = connection.receive()
        if message is not None:
            if message[0] == ord("w") and message[25] in b"IUD":
                rows += 1
                if rows % 1000 == 0:
                    last, last_cpu = time.monotonic(), time.process_time()
        elif not connection.wait(1.0):
            break
    connection.close()
    return rows, last - began, last_cpu - cpu


def stream(url: str, slot: str, connection: psycopg.Connection[tuple[object, ...]]) -> Measured:
    source = PostgresSource(url, tables=TABLES, slot=slot, publication="upwell", clock=SystemClock())
    position, _ = source.start(None, 1)
    row = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone()
    assert row is not None
    end = parse_lsn(str(row[0]))
    rows = 0
    began, cpu = last, last_cpu = time.monotonic(), time.process_time()
    while True:
        window = source.changes(position, WINDOW_EVENTS, 1.0)
        position = window.position
        rows += len(window.events)
        if window.events:
            last, last_cpu = time.monotonic(), time.process_time()
        elif window.commit >= end - 1:
            break
    source.close()
    return rows, last - began, last_cpu - cpu


def report(name: str, rounds: int, limit: Callable[[], Measured], ours: Callable[[], Measured]) -> None:
    speeds: dict[str, list[float]] = {"plain": [], "upwell": []}
    for _ in range(rounds):
        for who, measure in (("plain", limit), ("upwell", ours)):
            rows, seconds, cpu = measure()
            speeds[who].append(rows / seconds)
            print(f"{name:9} {who:7} {rows:8} rows {rows / seconds:10,.0f} rows/s {cpu / rows * 1e6:6.2f} µs CPU a row")
    ratio = statistics.median(speeds["upwell"]) / statistics.median(speeds["plain"])
    print(f"{name:9} upwell reads at {ratio:.0%} of the plain loop's speed")


if __name__ == "__main__":
    main()
