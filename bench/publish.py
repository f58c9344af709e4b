"""The whole publisher in one process against a Kinesis stub that answers at once: python -m bench.publish [ROWS].

PostgreSQL snapshot and stream, SQLite snapshot and changes; beside each a plain loop that reads the same rows and
does nothing with them: the limit.
"""

from __future__ import annotations

import random
import resource
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg

from bench.stub import stub
from lab.parts import PostgresCluster
from upwell.aws import AwsService
from upwell.clock import SystemClock
from upwell.mapping import Mapping
from upwell.model import TableName, TableSelection
from upwell.pipeline.publisher import Publisher, PublisherSettings
from upwell.pipeline.service import run_publisher
from upwell.ports import Source
from upwell.sinks.kinesis import KinesisSink
from upwell.sources.postgres import PostgresSource
from upwell.sources.sqlite import SqliteSource
from upwell.sources.sqlite_setup import track
from upwell.state.sqlite import SqliteState

TRANSACTION_ROWS = 1000
COLUMNS = (
    "id int primary key, customer int, email text, name text, street text, city text, country char(2), "
    "balance numeric(12,2), score float8, active boolean, visits int, born date, updated_at timestamptz, note text"
)
SQLITE_COLUMNS = COLUMNS.replace("id int primary", "id integer primary").replace("timestamptz", "text")
ROW = (
    "{i}, {i} * 7 % 1000, 'customer' || {i} || '@example.com', 'Customer Number ' || {i}, "
    "'Some Street 17, back building', 'Castrop-Rauxel', 'DE', 1234.56 + {i}, {i} / 7.0, {true}, {i} % 1000, "
    "'1980-02-29', '2026-01-31 10:00:00.123456', 'lorem ipsum dolor sit amet consectetur adipisici elit, sed eiusmod'"
)


@contextmanager
def measured(what: str, count: int) -> Iterator[None]:
    """Prints events a second and this process's CPU time per event."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"{what:28} {count / wall:10,.0f} events/s {cpu / count * 1e6:7.1f} CPU us/event  peak {memory} MB", flush=True
    )


def publish(make: Callable[[], Source], state_path: Path, url: str) -> None:
    """`upwell publish --once`, with the parts given."""
    clock, rng = SystemClock(), random.Random(1)
    service = AwsService("kinesis", "eu-west-1", endpoint_url=url)
    sink = KinesisSink("bench", "bench", 64, service)
    source = make()
    with ThreadPoolExecutor(1) as pool:
        publisher = Publisher(
            PublisherSettings("bench"),
            source=source,
            sink=sink,
            state=SqliteState(str(state_path), "bench"),
            mapping=Mapping([], dialect="postgresql"),
            clock=clock,
            rng=rng,
            background=pool.submit,
        )
        run_publisher(publisher, sink, clock, stop=threading.Event(), rng=rng, report=lambda _: None, once=True)
    source.close()
    sink.close()


def postgres(rows: int, folder: Path, url: str) -> None:
    """Snapshot and stream, each beside its plain reading loop."""
    with PostgresCluster() as cluster:
        database = cluster.create_database("bench")
        with psycopg.connect(database, autocommit=True) as sql:
            sql.execute(f"create table orders ({COLUMNS})")
            row = ROW.format(i="i", true="true").replace("'1980-02-29'", "date '1980-02-29'")
            row = row.replace("'2026-01-31 10:00:00.123456'", "timestamptz '2026-01-31 10:00:00.123456'")
            sql.execute(f"insert into orders select {row} from generate_series(1, {rows}) i")
            sql.execute("vacuum analyze orders")
            sql.execute("create publication bench for table orders with (publish_via_partition_root = true)")
            with measured("PostgreSQL COPY, counted", rows), sql.cursor().copy("copy orders to stdout") as copy:
                assert sum(1 for _ in copy.rows()) == rows
            selection = TableSelection(TableName("public", "orders"))

            def make() -> Source:
                return PostgresSource(
                    database, tables=[selection], slot="bench", publication="bench", clock=SystemClock()
                )

            with measured("PostgreSQL snapshot", rows):
                publish(make, folder / "pg.db", url)
            sql.execute("select pg_create_logical_replication_slot('plain', 'pgoutput')")
            for start in range(1, rows, TRANSACTION_ROWS):
                sql.execute(
                    f"update orders set visits = visits + 1 where id >= {start} and id < {start + TRANSACTION_ROWS}"
                )
            with measured("pgoutput, counted", rows):
                assert read_plainly(database) >= rows
            with measured("PostgreSQL stream", rows):
                publish(make, folder / "pg.db", url)


def read_plainly(database: str) -> int:
    """The row messages in the slot `plain`, read over the replication protocol and counted."""
    with psycopg.connect(database, autocommit=True) as sql:
        end = sql.execute("select pg_current_wal_flush_lsn()::text").fetchone()
        assert end is not None
    connection = psycopg.pq.PGconn.connect(f"{database}?replication=database".encode())
    connection.exec_(b"START_REPLICATION SLOT plain LOGICAL 0/0 (proto_version '1', publication_names 'bench')")
    high, low = end[0].split("/")
    until = int(high, 16) << 32 | int(low, 16)
    count = 0
    while True:
        size, received = connection.get_copy_data(0)
        assert size > 0
        data = bytes(received)
        if data[:1] == b"k":
            if int.from_bytes(data[1:9], "big") >= until:
                break
        elif data[25:26] in b"IUD":
            count += 1
    connection.finish()
    return count


def sqlite(rows: int, folder: Path, url: str) -> None:
    """Snapshot and changes, each beside its plain reading loop."""
    path = folder / "shop.db"
    sql = sqlite3.connect(path)
    sql.execute("pragma journal_mode = wal")
    sql.execute(f"create table orders ({SQLITE_COLUMNS})")
    row = ROW.format(i="value", true="1")
    sql.execute(
        f"with recursive n(value) as (select 1 union all select value + 1 from n where value < {rows}) "
        f"insert into orders select {row} from n"
    )
    sql.commit()
    with measured("SQLite select, counted", rows):
        assert sum(1 for _ in sql.execute("select * from orders order by id")) == rows
    selection = TableSelection(TableName("main", "orders"))

    def make() -> Source:
        return SqliteSource(str(path), tables=[selection], clock=SystemClock())

    track(str(path), [selection])
    with measured("SQLite snapshot", rows):
        publish(make, folder / "sqlite.db", url)
    for start in range(1, rows, TRANSACTION_ROWS):
        with sql:
            sql.execute(
                f"update orders set visits = visits + 1 where id >= {start} and id < {start + TRANSACTION_ROWS}"
            )
    with measured("SQLite changes", rows):
        publish(make, folder / "sqlite.db", url)


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 300_000
    with tempfile.TemporaryDirectory() as name, stub() as endpoint:
        postgres(count, Path(name), endpoint)
        sqlite(count, Path(name), endpoint)
