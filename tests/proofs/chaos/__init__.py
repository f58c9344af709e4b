"""All faults at once, at random: in the end, and at every pause, each target equals its source; no row went back in
time, nothing became a dead letter, no alarm was false.

Two pipelines run side by side, each behind a fault proxy that spoils requests all the time: PostgreSQL → Kinesis →
PostgreSQL and SQLite → DynamoDB, or both of them from SQL Server. Meanwhile programs are killed, frozen and doubled,
the Internet goes away, databases crash, refuse to write or forget, tables are truncated and altered, records are
deleted, shards come and go. SQL Server, which is the stand-in of lab/sqlserver, cleans up what was not read, is
restored, fails over, answers as a secondary; tracking goes off and on.

`make chaos ARGS="--source sqlserver --minutes 15 --seed 7"`; a seed repeats what is done, as far as processes can be
repeated.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from lab.faults import FaultProxy
from lab.part import Part
from lab.parts import PostgresCluster, StandinSqlServer
from tests.acceptance.compare import kinesis_client
from tests.acceptance.pipelines import into_dynamodb, new_seed, through_kinesis, with_changes
from tests.acceptance.sqlserver_losses import run_sql
from tests.acceptance.workload import create_tables
from tests.proofs import Figures, Servers
from tests.proofs.chaos.sides import EAGER, PATIENT, Side, Size
from tests.proofs.chaos.sources import PostgresToPostgres, SqliteToDynamoDb, SqlServerToDynamoDb, SqlServerToPostgres
from tests.proofs.resharding import Stream
from tests.sqlserver_databases import in_database
from upwell.sources.sqlserver_marker import CREATE_SQL

Source = Literal["postgresql", "sqlserver"]

SMALL: Final = Size(run_s=10, pause_every_s=60, pace_s=(0.1, 0.6), writes_per_s=20, ledger_rows=300, large_rows=1_000)
FULL: Final = Size(
    run_s=1800, pause_every_s=60, pace_s=(0.2, 2.5), writes_per_s=20, ledger_rows=1_500, large_rows=4_000
)


def run(servers: Servers, folder: Path, size: Size, source: Source = "postgresql") -> Figures:
    """The databases that crash are this run's own; Kinesis and DynamoDB may be shared."""
    seed = new_seed()
    print(f"UPWELL_TEST_SEED={seed}, logs in {folder}", flush=True)
    with ExitStack() as stack:
        chaos = Chaos(random.Random(seed), size)
        target = PostgresCluster()
        if source == "postgresql":
            postgres = PostgresCluster()
            _start(stack, postgres, target)
            sides = (
                _into_postgres(servers, folder, seed, size, target, PostgresToPostgres, postgres),
                _into_dynamodb(servers, folder, seed, size, SqliteToDynamoDb),
            )
        else:
            one, other = StandinSqlServer(), StandinSqlServer()
            _start(stack, one, other, target)
            sides = (
                _into_postgres(servers, folder, seed, size, target, SqlServerToPostgres, one),
                _into_dynamodb(servers, folder, seed, size, SqlServerToDynamoDb, other),
            )
        for side in sides:
            chaos.sides.append(stack.enter_context(side))
        chaos.run()
        return chaos.figures()


def _start(stack: ExitStack, *parts: Part) -> None:
    for part in parts:
        stack.callback(part.close)
        part.launch()
    for part in parts:
        part.await_ready()


@contextmanager
def _into_postgres(
    servers: Servers,
    folder: Path,
    seed: int,
    size: Size,
    target: PostgresCluster,
    kind: type[PostgresToPostgres | SqlServerToPostgres],
    server: PostgresCluster | StandinSqlServer,
) -> Iterator[Side]:
    place = folder / "relational"
    place.mkdir()
    source_url, target_url = _new_source(server, snapshots=True), target.create_database("target")
    create_tables(target_url)
    with (
        FaultProxy(servers.kinesis, seed=seed) as wire,
        FaultProxy(servers.dynamodb, seed=seed) as control,
        closing(kinesis_client(servers.kinesis)) as client,
    ):
        pipeline = through_kinesis(place, source_url=source_url, target_url=target_url, kinesis_endpoint=wire.url)
        pipeline.configuration["destination"]["kinesis"]["control_table"] = f"{pipeline.name}-control"
        pipeline.environ["AWS_ENDPOINT_URL_DYNAMODB"] = control.url
        pipeline.upwell = with_changes(EAGER)
        pipeline.write_configuration()
        stream = Stream(client, pipeline.name, random.Random(seed), at_once=False)
        made: dict[str, Any] = {"server": server, "target": target, "stream": stream}
        side = kind("relational", pipeline, [wire, control], seed, size, **made)
        with side.set_up():
            yield side


@contextmanager
def _into_dynamodb(
    servers: Servers,
    folder: Path,
    seed: int,
    size: Size,
    kind: type[SqliteToDynamoDb | SqlServerToDynamoDb],
    server: StandinSqlServer | None = None,
) -> Iterator[Side]:
    place = folder / "serverless"
    place.mkdir()
    source = _new_source(server, snapshots=False) if server else str(place / "source.db")
    if server is None:
        create_tables(source)
    with FaultProxy(servers.dynamodb, seed=seed + 1) as wire:
        pipeline = into_dynamodb(place, source_url=source, dynamodb_endpoint=servers.dynamodb)
        pipeline.lead_through(wire.url)
        pipeline.upwell = with_changes(PATIENT)
        made: dict[str, Any] = {"server": server} if server else {}
        side = kind("serverless", pipeline, [wire], seed, size, **made)
        with side.set_up():
            yield side


def _new_source(server: PostgresCluster | StandinSqlServer, *, snapshots: bool) -> str:
    """`snapshots`: SQL Server allows snapshot isolation, and has a table for our marker; both are optional."""
    if isinstance(server, PostgresCluster):
        url = server.create_database("source")
        create_tables(url)
        return url
    url = in_database(server.url, "source")
    run_sql(server.url, "CREATE DATABASE source")
    create_tables(url)
    if snapshots:
        run_sql(url, "ALTER DATABASE source SET ALLOW_SNAPSHOT_ISOLATION ON", CREATE_SQL.rstrip(";"))
    return url


# --- the run ------------------------------------------------------------------------------------------------------


@dataclass
class Chaos:
    """Makes trouble until the time is over."""

    chance: random.Random
    size: Size
    sides: list[Side] = field(default_factory=list)
    made: Counter[str] = field(default_factory=Counter)
    began: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        """Raises AssertionError where a promise is broken."""
        self.began = time.monotonic()
        pauses = max(1, round(self.size.run_s / self.size.pause_every_s))
        for number in range(1, pauses + 1):
            for side in self.sides:
                side.begin()
            until = self.began + self.size.run_s * number / pauses
            while time.monotonic() < until:
                self._trouble()
                self._wait(min(until, time.monotonic() + self.chance.uniform(*self.size.pace_s)))
            for side in self.sides:
                self._say(side, f"pause: {side.pause()}")
        for side in self.sides:
            side.end()

    def _trouble(self) -> None:
        side = self.chance.choice(self.sides)
        troubles = side.troubles()
        trouble = self.chance.choices([*troubles], [*troubles.values()])[0]
        self._say(side, trouble(self.chance))
        self.made[trouble.__name__.replace("_", " ")] += 1

    def _wait(self, until: float) -> None:
        while True:
            for side in self.sides:
                for told in side.put_right():
                    self._say(side, told)
                side.supervise()
            if time.monotonic() >= until:
                return
            time.sleep(0.05)

    def _say(self, side: Side, text: str) -> None:
        at = datetime.now(UTC).strftime("%H:%M:%S.%f")[:-3]
        print(f"{at} {time.monotonic() - self.began:7.1f} s {side.name}: {text}", flush=True)

    def figures(self) -> Figures:
        """Of both pipelines."""
        requests = Counter[str]()
        ended = Counter[str]()
        for side in self.sides:
            ended += side.ended
            for wire in side.wires:
                requests += Counter(wire.done)
        catching_up = sorted(seconds for side in self.sides for seconds in side.catching_up_s)
        workloads = [workload for side in self.sides for workload in side.pipeline.workloads]
        return {
            "pipelines": ", ".join(side.route for side in self.sides),
            "troubles": _told(self.made),
            "requests spoiled": _told(requests),
            "transactions written": f"{sum(workload.transactions for workload in workloads):,}",
            "pauses, each with every row equal": str(len(catching_up)),
            "time to catch up": f"{catching_up[len(catching_up) // 2]:.1f} s, at most {catching_up[-1]:.1f} s",
            "changes seen by the watch": f"{sum(side.watch.changes_seen for side in self.sides):,}",
            "rows wrong, rows back in time, dead letters, false alarms": "0, 0, 0, 0",
            "programs that could not start, and were started again": _told(ended) or "none",
        }


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items(), key=lambda each: -each[1]))
