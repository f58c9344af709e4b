"""A transaction of a million rows, which for SQL Server is one version: the publisher is killed five times in its
middle, goes on each time where it was, in bounded memory, and in the end both sides hold the same.

Where it was: the place inside the version that the checkpoint has. How much was sent twice is counted in the stream:
who began the version anew each time would send it three times over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from lab.parts import StandinKinesis, StandinSqlServer
from tests.acceptance.compare import stream_records
from tests.acceptance.pipelines import Pipeline, Program, explained, through_kinesis
from tests.acceptance.sqlserver_losses import run_sql
from tests.acceptance.workload import connect
from tests.proofs import Figures, Servers
from tests.proofs.memory import memory_mb
from tests.sqlserver_databases import in_database
from upwell.sources.sqlserver_place import Place

KEYS: Final = {"big": ("id",)}
BEFORE: Final = 1_000  # rows that are there already, with keys below 0: the transaction changes them
AT_ONCE: Final = 250_000  # rows of a statement
COMPARED_AT_ONCE: Final = 50_000


@dataclass(frozen=True)
class Size:
    """How much."""

    rows: int  # inserted by the transaction
    kills: int
    bound_mb: int  # what the publisher may have resident
    twice_max: float  # of the rows, that may be sent more than once
    within_s: float  # for each step


SMALL: Final = Size(rows=200_000, kills=2, bound_mb=300, twice_max=0.4, within_s=120)
FULL: Final = Size(rows=1_000_000, kills=5, bound_mb=300, twice_max=0.2, within_s=900)


def run(servers: Servers, folder: Path, size: Size) -> Figures:
    """Through Kinesis to PostgreSQL."""
    with StandinSqlServer() as server, StandinKinesis() as kinesis, servers.databases(1) as (target,):
        source = _new_tables(server.url, target)
        pipeline = through_kinesis(
            folder, source_url=source, target_url=target, kinesis_endpoint=kinesis.url, keys=KEYS
        )
        with closing(pipeline), explained(pipeline):
            pipeline.run("track")
            pipeline.once_through()
            before = _sent(pipeline, kinesis.url)
            run_sql(source, "BEGIN", "UPDATE big SET state = 1", *_inserts(size.rows), "COMMIT")
            reading = Reading(pipeline, size, _version(source))
            began = time.monotonic()
            reading.interrupted()
            took_s = time.monotonic() - began
            twice = _sent(pipeline, kinesis.url) - before - size.rows - BEFORE
            pipeline.once("subscribe", size.within_s)
            _assert_equal(source, target, size.rows)
            pipeline.assert_no_dead_letters()
            pipeline.assert_no_holes()
    assert twice >= 0, f"{-twice:,} rows were never sent"
    assert twice <= size.twice_max * size.rows, f"{twice:,} rows were sent twice: it began the version anew"
    return {
        "rows of one version": f"{size.rows + BEFORE:,}, in {took_s:.0f} s",
        "killed behind row": ", ".join(f"{key:,}" for key in reading.killed_at),
        "rows sent twice": f"{twice:,}",
        "publisher, peak": f"{reading.peak_mb:.0f} MB",
        "rows wrong, dead letters, holes": "0, 0, 0",
    }


@dataclass
class Reading:
    """The publisher, on its way through the version."""

    pipeline: Pipeline
    size: Size
    version: int
    peak_mb: float = 0.0

    def __post_init__(self) -> None:
        self.killed_at: list[int] = []  # the place inside the version that was saved: the last key behind it

    def interrupted(self) -> None:
        """All of it is published, by one process more than were killed."""
        for number in range(1, self.size.kills + 1):
            goal = self.size.rows * number // (self.size.kills + 1)
            publisher = self.pipeline.start("publish")
            self._watch(publisher, lambda goal=goal: self._inside() >= goal)  # type: ignore[misc]
            publisher.kill()
            self.killed_at.append(self._inside())
            assert self.killed_at[-1] <= self.size.rows, "it was over, and no place inside it had been saved by then"
        publisher = self.pipeline.start("publish")
        self._watch(publisher, lambda: self._inside() > self.size.rows)
        publisher.stop()

    def _watch(self, publisher: Program, until: Callable[[], bool]) -> None:
        """Its memory; and that the saved place never goes back."""
        last, deadline = self._inside(), time.monotonic() + self.size.within_s
        while not until():
            here = self._inside()
            assert here >= last, f"the saved place went back from row {last:,} to {here:,}"
            assert publisher.running, f"{publisher.log.name} ended by itself"
            assert time.monotonic() < deadline, f"no further than row {here:,} after {self.size.within_s:.0f} s"
            last, self.peak_mb = here, max(self.peak_mb, memory_mb(publisher, "VmHWM"))
            time.sleep(0.02)
        assert self.peak_mb <= self.size.bound_mb, f"{self.peak_mb:.0f} MB resident; {self.size.bound_mb} MB allowed"

    def _inside(self) -> int:
        """The last key behind the saved place; below all keys where the version has not begun, above all when it is
        over.
        """
        state = self.pipeline.state()
        checkpoint = state.load()
        state.release()
        assert checkpoint is not None, "the publisher has saved nothing yet"
        assert checkpoint.position is not None, "it has no position"
        place = Place.parse(checkpoint.position)
        if place.done >= self.version:
            return self.size.rows + 1
        if place.inside is None:
            return -BEFORE - 1
        assert place.done == self.version - 1, f"inside of version {place.done + 1}, not of {self.version}"
        return int(orjson.loads(place.inside.key)[0])


def _new_tables(server: str, target: str) -> str:
    """The URL of the source."""
    source = in_database(server, "big")
    run_sql(server, "CREATE DATABASE big")
    run_sql(
        source,
        "ALTER DATABASE big SET ALLOW_SNAPSHOT_ISOLATION ON",
        "CREATE TABLE big (id bigint PRIMARY KEY, state int NOT NULL, note nvarchar(60))",
        f"INSERT INTO big SELECT value, 0, N'before' FROM GENERATE_SERIES(-{BEFORE}, -1)",
    )
    with closing(connect(target)) as there:
        there.execute("CREATE TABLE big (id bigint PRIMARY KEY, state int NOT NULL, note text)")
    return source


def _inserts(rows: int) -> Iterator[str]:
    for first in range(1, rows + 1, AT_ONCE):
        numbers = f"GENERATE_SERIES({first}, {min(first + AT_ONCE - 1, rows)})"
        yield f"INSERT INTO big SELECT value, 1, REPLICATE(N'row ', 12) FROM {numbers}"


def _version(source: str) -> int:
    with closing(connect(source)) as connection:
        return int(connection.execute("SELECT CHANGE_TRACKING_CURRENT_VERSION()").fetchone()[0])


def _sent(pipeline: Pipeline, kinesis: str) -> int:
    """Rows in the stream."""
    return sum(len(record.events) for record in stream_records(kinesis, pipeline.name))


def _assert_equal(source: str, target: str, rows: int) -> None:
    """Some rows at a time: they are many."""
    with closing(connect(source)) as here, closing(connect(target)) as there:
        for first in range(-BEFORE, rows + 1, COMPARED_AT_ONCE):
            part = (
                f"SELECT id, state, note FROM big WHERE id >= {first} AND id < {first + COMPARED_AT_ONCE} ORDER BY id"
            )
            expected, found = (_rows(each, part) for each in (here, there))
            assert len(expected) == min(COMPARED_AT_ONCE, rows + 1 - first) - (first < 0), "the source has other rows"
            assert expected == found, f"rows from {first} on differ: {len(expected)} here, {len(found)} there"


def _rows(connection: Any, sql: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in connection.execute(sql).fetchall()]
