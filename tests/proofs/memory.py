"""Memory is bounded by configuration: not by the size of a table, of a transaction, of a row, of a backlog.

Real processes, with `limits.memory` as it says below; resident memory as the kernel counts it (VmHWM, VmRSS).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg

from bench.stub import stub
from lab.parts import StandinKinesis
from tests.acceptance.pipelines import Pipeline, Program, explained, into_dynamodb, through_kinesis
from tests.proofs import Figures, Servers
from upwell.app.demo.internet import Internet

MB = 1_000_000
KEYS = {"big": ("id",)}


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    limit_mb: int  # limits.memory
    bound_mb: int  # what a process may have resident
    wide_bound_mb: int  # with wide rows, of which several copies are on their way at once
    rows: int  # of the table
    transaction_rows: int  # changed by one transaction
    row_bytes: int
    single_changes: int  # one a transaction, while the Internet is down
    wide_rows: int
    waiting_rows: int  # as wide, while the Internet is down
    wide_bytes: int
    items: int  # in DynamoDB, while the Internet is down
    item_bytes: int
    waiting_updates: int  # of those rows, while the Internet is down
    drain: bool  # whether what waited for the Internet is sent afterwards
    broken_s: int  # for so long each call to Kinesis is broken off
    within_s: float  # for each step


SMALL = Size(100, 160, 180, 15_000, 15_000, 2_000, 300, 20, 120, 900_000, 3_000, 50_000, 4, False, 5, 60)
FULL = Size(300, 300, 300, 2_000_000, 1_000_000, 120, 60_000, 200, 600, 900_000, 6_000, 100_000, 1, True, 60, 1_800)


def run(servers: Servers, folder: Path, size: Size) -> Figures:
    """The ways through which much can come at once."""
    figures: dict[str, str] = {"limits.memory": f"{size.limit_mb} MB"}
    for part in (_large_transactions, _wide_rows, _sqlite, _dynamodb):
        place = folder / part.__name__.strip("_")
        place.mkdir()
        part(servers, place, size, figures)
    return figures


# --- PostgreSQL → Kinesis → PostgreSQL ----------------------------------------------------------------------------


def _large_transactions(servers: Servers, folder: Path, size: Size, figures: dict[str, str]) -> None:
    with _to_postgres(servers, folder, size) as (pipeline, _, internet, way_to_target):
        _run_sql(pipeline.source_url, f"INSERT INTO big {_generated(size.rows, size.row_bytes)}")
        with pipeline.running() as (publisher, subscriber):
            _await(lambda: _same(pipeline), size.within_s, "the snapshot")
            _note(figures, f"snapshot of {size.rows:,} rows", size, publisher, subscriber)
            way_to_target.cut()
            _run_sql(pipeline.source_url, f"UPDATE big SET state = state + 1 WHERE id <= {size.transaction_rows}")
            _await(
                lambda: _published(pipeline, publisher, size.transaction_rows),
                size.within_s,
                "the transaction's way out",
            )
            _note(
                figures, f"one transaction of {size.transaction_rows:,} rows, target down", size, publisher, subscriber
            )
            way_to_target.restore()
            _await(lambda: _same(pipeline), size.within_s, "the backlog")
            _note(figures, f"backlog of {size.transaction_rows:,} events", size, publisher, subscriber)
            internet.cut()
            _change_one_by_one(pipeline.source_url, size.single_changes)
            for _ in range(size.waiting_updates):
                _run_sql(pipeline.source_url, f"UPDATE big SET state = state + 1 WHERE id <= {size.transaction_rows}")
            _await_flat(publisher)
            _note(figures, "Internet down while changes go on", size, publisher, subscriber)
            if size.drain:
                internet.restore()
                _await(lambda: _same(pipeline), size.within_s, "what waited for the Internet")
                _note(figures, "and drained afterwards", size, publisher, subscriber)


def _wide_rows(servers: Servers, folder: Path, size: Size, figures: dict[str, str]) -> None:
    size = replace(size, bound_mb=size.wide_bound_mb)
    what = f"{size.wide_bytes / MB:.1f} MB each"
    with _to_postgres(servers, folder, size) as (pipeline, kinesis, internet, _):
        _run_sql(pipeline.source_url, f"INSERT INTO big {_generated(size.wide_rows, size.wide_bytes)}")
        with pipeline.running() as (publisher, subscriber):
            _await(lambda: _same(pipeline), size.within_s, "the wide rows")
            _note(figures, f"{size.wide_rows} rows of {what}, read", size, publisher, subscriber)
            internet.cut()
            more = _generated(size.waiting_rows, size.wide_bytes, after=size.wide_rows)
            _run_sql(pipeline.source_url, f"INSERT INTO big {more}")
            _await_flat(publisher)
            _note(figures, f"{size.waiting_rows} rows of {what} wait", size, publisher, subscriber)
            if size.drain:
                internet.restore()
                _await(lambda: _same(pipeline), size.within_s, "the wide rows that waited")
                _note(figures, f"{size.waiting_rows} rows of {what}, drained", size, publisher, subscriber)
            internet.restore()
            kinesis.kill()  # so that connections are made, and break while a request is being sent
            more = _generated(size.waiting_rows, size.wide_bytes, after=size.wide_rows + size.waiting_rows)
            _run_sql(pipeline.source_url, f"INSERT INTO big {more}")
            time.sleep(size.broken_s)
            _note(figures, f"rows of {what}, each call broken off, for {size.broken_s} s", size, publisher, subscriber)


@contextmanager
def _to_postgres(
    servers: Servers, folder: Path, size: Size
) -> Iterator[tuple[Pipeline, StandinKinesis, Internet, Internet]]:
    """With Kinesis, the way to it and the way to the target, to be cut."""
    with (
        servers.databases(2) as (source, target),
        StandinKinesis() as kinesis,  # kinesalite ends for lack of memory where this much goes through it
        closing(Internet(_port(kinesis.url))) as internet,
        closing(Internet(_port(target))) as way_to_target,
    ):
        for url in (source, target):
            _run_sql(url, "CREATE TABLE big (id bigint PRIMARY KEY, state bigint NOT NULL, note text)")
        _run_sql(source, "CREATE TABLE unpublished (id bigserial PRIMARY KEY)")
        pipeline = through_kinesis(
            folder, source_url=source, target_url=target, kinesis_endpoint=internet.url, keys=KEYS
        )
        pipeline.configuration["subscriber"]["target"] = _by_way_of(target, way_to_target)
        pipeline.configuration["limits"] = {"memory": f"{size.limit_mb} MB"}
        pipeline.write_configuration()
        pipeline.run("track")
        with closing(pipeline), explained(pipeline):
            yield pipeline, kinesis, internet, way_to_target
            pipeline.assert_no_dead_letters()


def _generated(rows: int, row_bytes: int, after: int = 0) -> str:
    """SQL: rows of about that size."""
    note = f"repeat(md5(id::text), {row_bytes // 32})"
    return f"SELECT id, 0, {note} FROM generate_series({after + 1}, {after + rows}) AS id"


def _change_one_by_one(url: str, count: int) -> None:
    """A transaction each, and one that concerns nobody in between."""
    with psycopg.connect(url, autocommit=True) as connection:
        for number in range(count):
            connection.execute("UPDATE big SET state = state + 1 WHERE id = %s", [number % 1000 + 1])
            connection.execute("INSERT INTO unpublished DEFAULT VALUES")


def _same(pipeline: Pipeline) -> bool:
    """Whether both ends hold the same, computed by the databases: the rows are too many to be compared here."""
    return _sum(pipeline.source_url) == _sum(pipeline.target_url)


def _sum(url: str) -> object:
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT count(*), sum(hashtextextended(big::text, 0)) FROM big").fetchone()


def _published(pipeline: Pipeline, publisher: Program, events: int) -> bool:
    """Whether it has read so many changes and has nothing more to do."""
    state = pipeline.state()
    status = state.status() or {}
    state.release()
    if status.get("process") != publisher.pid:
        return False
    return bool(status.get("caught_up") and status["events"] >= events and not status["pending_bytes"])


# --- SQLite, DynamoDB ---------------------------------------------------------------------------------------------


def _sqlite(servers: Servers, folder: Path, size: Size, figures: dict[str, str]) -> None:
    """To a Kinesis that takes everything and keeps nothing."""
    path = folder / "source.db"
    with closing(sqlite3.connect(path)) as source, stub() as endpoint:
        source.execute("PRAGMA journal_mode = WAL")
        source.execute("CREATE TABLE big (id INTEGER PRIMARY KEY, state INTEGER NOT NULL, note TEXT)")
        _fill_sqlite(source, 1, size.rows, size.row_bytes)
        pipeline = through_kinesis(
            folder, source_url=str(path), target_url="", kinesis_endpoint=servers.kinesis, keys=KEYS
        )
        pipeline.configuration["destination"]["kinesis"]["endpoint_url"] = endpoint
        del pipeline.configuration["subscriber"]
        pipeline.configuration["limits"] = {"memory": f"{size.limit_mb} MB"}
        pipeline.write_configuration()
        with closing(pipeline), explained(pipeline):
            pipeline.run("track")
            _once(pipeline, figures, f"SQLite: snapshot of {size.rows:,} rows", size)
            source.execute("UPDATE big SET state = state + 1 WHERE id <= ?", (size.transaction_rows,))
            source.commit()
            _once(pipeline, figures, f"SQLite: one transaction of {size.transaction_rows:,} rows", size)
            _fill_sqlite(source, size.rows + 1, size.waiting_rows, size.wide_bytes)
            wide = f"{size.waiting_rows} rows of {size.wide_bytes / MB:.1f} MB"
            _once(pipeline, figures, f"SQLite: {wide}, changed", size)
            pipeline.ask_for_resync()
            _once(pipeline, figures, f"SQLite: {wide}, read", size)


def _fill_sqlite(source: sqlite3.Connection, first: int, rows: int, row_bytes: int) -> None:
    source.execute(
        "WITH RECURSIVE n(id) AS (SELECT ? UNION ALL SELECT id + 1 FROM n WHERE id < ?) "
        "INSERT INTO big SELECT id, 0, hex(randomblob(?)) FROM n",
        (first, first + rows - 1, row_bytes // 2),
    )
    source.commit()


def _dynamodb(servers: Servers, folder: Path, size: Size, figures: dict[str, str]) -> None:
    """Large items while DynamoDB can't be reached: what is packed and can't be sent."""
    path = folder / "source.db"
    internet = Internet(_port(servers.dynamodb))
    with closing(sqlite3.connect(path)) as source:
        source.execute("PRAGMA journal_mode = WAL")
        source.execute("CREATE TABLE big (id INTEGER PRIMARY KEY, state INTEGER NOT NULL, note TEXT)")
        pipeline = into_dynamodb(folder, source_url=str(path), dynamodb_endpoint=internet.url)
        pipeline.configuration["tables"] = {"big": {}}
        pipeline.configuration["limits"] = {"memory": f"{size.limit_mb} MB"}
        pipeline.write_configuration()
        with closing(pipeline), explained(pipeline):
            pipeline.run("track")
            pipeline.once("publish")
            with pipeline.running() as (publisher,):
                _await(lambda: _published(pipeline, publisher, 0), size.within_s, "the start")
                internet.cut()
                _fill_sqlite(source, 1, size.items, size.item_bytes)
                _await_flat(publisher)
                _note(
                    figures, f"DynamoDB: {size.items:,} items of {size.item_bytes / 1000:.0f} kB wait", size, publisher
                )
                if size.drain:
                    internet.restore()
                    _await(lambda: _published(pipeline, publisher, size.items), size.within_s, "the items")
                    _note(figures, "DynamoDB: and drained afterwards", size, publisher)
            pipeline.assert_no_dead_letters()
    internet.close()


# --- measuring ----------------------------------------------------------------------------------------------------


def _once(pipeline: Pipeline, figures: dict[str, str], what: str, size: Size) -> None:
    """`upwell publish --once`, watched until it ends."""
    program = pipeline.start("publish", "--once")
    peak, deadline = 0.0, time.monotonic() + size.within_s
    while program.running:
        peak = max(peak, memory_mb(program, "VmHWM"))
        assert time.monotonic() < deadline, f"{what}: not done within {size.within_s} s"
        time.sleep(0.02)
    code = program.wait(1)
    assert code == 0, f"{what}: upwell publish --once ended with {code}"
    _check(figures, f"{what}: publisher, peak", peak, size)


def _note(
    figures: dict[str, str], what: str, size: Size, publisher: Program, subscriber: Program | None = None
) -> None:
    """The most that each has had since the last look, and what it has now."""
    for role, program in (("publisher", publisher), ("subscriber", subscriber)):
        if program is not None:
            peak, now = memory_mb(program, "VmHWM"), memory_mb(program, "VmRSS")
            Path(f"/proc/{program.pid}/clear_refs").write_text("5")  # VmHWM begins anew
            _check(figures, f"{what}: {role}, peak", peak, size)
            figures[f"{what}: {role}, at the end"] = f"{now:.0f} MB"


def _check(figures: dict[str, str], what: str, peak: float, size: Size) -> None:
    figures[what] = f"{peak:.0f} MB"
    assert peak > 10, f"{what} was not measured"
    assert peak <= size.bound_mb, f"{what}: {peak:.0f} MB resident; {size.bound_mb} MB allowed"


def memory_mb(program: Program, which: str) -> float:
    """A figure of /proc/PID/status; 0 where the process has just ended."""
    try:
        status = Path(f"/proc/{program.pid}/status").read_text()
    except FileNotFoundError:
        return 0.0
    found = [line.split()[1] for line in status.splitlines() if line.startswith(which)]
    return int(found[0]) * 1024 / MB if found else 0.0


def _await_flat(program: Program) -> None:
    """Returns when it takes no more memory than before, for a while."""
    deadline = time.monotonic() + 60
    most, since = 0.0, time.monotonic()
    while time.monotonic() - since < 2:
        now = memory_mb(program, "VmRSS")
        if now > most + 1:
            most, since = now, time.monotonic()
        assert time.monotonic() < deadline, f"memory grows on and on: {now:.0f} MB"
        time.sleep(0.1)


def _await(condition: Callable[[], bool], within_s: float, what: str) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not there within {within_s:.0f} s"
        time.sleep(0.2)


def _run_sql(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


def _port(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


def _by_way_of(url: str, way: Internet) -> str:
    """The same database through another port of this machine."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{_port(way.url)}"))
