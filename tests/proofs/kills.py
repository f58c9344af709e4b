"""Both programs are killed over and over on a bad wire, also in a large transaction and in a snapshot: nothing is lost.

SIGKILL comes at any instruction, alone or for both at once, and they are started anew at once; meanwhile writers change
the source, and whoever reads the target sees no row go back in time.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from lab.faults import FaultProxy
from lab.parts import StandinDynamoDb
from tests.acceptance.compare import PostgresRows, Watch
from tests.acceptance.pipelines import Pipeline, Program, Role, into_dynamodb, new_seed, through_kinesis
from tests.acceptance.workload import Writing, connect, create_tables, dialect_of
from tests.proofs import Figures, Servers, behind_faults
from tests.proofs.wire import RATES, awaited
from upwell.model import Checkpoint, TablePhase

Moment = Literal["in the stream", "in a snapshot", "in a large transaction"]
MOMENTS: Final[tuple[Moment, ...]] = ("in the stream", "in a snapshot", "in a large transaction")
SHORT_PAUSES_S: Final = ((0.0, 0.05), (0.05, 0.5), (0.5, 2.0))  # where something is under way
# Kills of each program that are asked for → those that are tried: what is waited for may be over too soon.
ROUNDS_MAX: Final = 6
LEDGER: Final = "ledger"
# From a start to the next kill: before it has done anything, in the middle of the work, and later.
PAUSES_S: Final = ((0.2, 0.4), (0.5, 1.5), (1.0, 2.5))


@dataclass(frozen=True)
class Size:
    """How often, and in how much."""

    kills: int  # of each program
    ledger_rows: int  # of the table that is read anew and changed at once, through Kinesis
    ledger_items: int  # the same into DynamoDB
    standin: bool  # for DynamoDB: our own one, which is faster than Amazon's
    ledger_pause_s: float  # between two looks at it
    writes_per_s: int  # transactions
    times: float  # how much more often than in `RATES` things go wrong
    within_s: float


SMALL: Final = Size(
    kills=6,
    ledger_rows=8_000,
    ledger_items=800,
    standin=False,
    ledger_pause_s=0.3,
    writes_per_s=60,
    times=2,
    within_s=60,
)
FULL: Final = Size(
    kills=50,
    ledger_rows=100_000,
    ledger_items=20_000,
    standin=True,
    ledger_pause_s=5,
    writes_per_s=60,
    times=1,
    within_s=600,
)


def run(servers: Servers, folder: Path, size: Size) -> Figures:
    """PostgreSQL through Kinesis to PostgreSQL, then SQLite to DynamoDB."""
    seed = new_seed()
    for way in ("kinesis", "dynamodb"):
        (folder / way).mkdir()
    through = _kinesis(servers, folder / "kinesis", size, seed)
    return through | _dynamodb(servers, folder / "dynamodb", size, seed)


def _kinesis(servers: Servers, folder: Path, size: Size, seed: int) -> dict[str, str]:
    with servers.databases(2) as (source, target):
        for url in (source, target):
            create_tables(url)
        pipeline = through_kinesis(folder, source_url=source, target_url=target, kinesis_endpoint=servers.kinesis)
        with behind_faults(pipeline, servers.kinesis, seed) as wire:
            killer = survive(pipeline, wire, size, size.ledger_rows, ("person",), seed)
            pipeline.assert_no_holes()
    return killer.figures("Kinesis", wire)


def _dynamodb(servers: Servers, folder: Path, size: Size, seed: int) -> dict[str, str]:
    source = str(folder / "source.db")
    create_tables(source)
    with ExitStack() as stack:
        server = stack.enter_context(StandinDynamoDb()).url if size.standin else servers.dynamodb
        pipeline = into_dynamodb(folder, source_url=source, dynamodb_endpoint=server)
        wire = stack.enter_context(behind_faults(pipeline, server, seed))
        killer = survive(pipeline, wire, size, size.ledger_items, (), seed)
    return killer.figures("DynamoDB", wire)


def survive(
    pipeline: Pipeline, wire: FaultProxy, size: Size, ledger_rows: int, making_way: tuple[str, ...], seed: int
) -> Killer:
    """Kills while it is written, and then looks whether all is as it should be."""
    pipeline.workload(seed).fill(20, ledger_rows=ledger_rows)
    pipeline.workload(seed).fill(40)
    pipeline.run("track")
    wire.faults.rates = {kind: rate * size.times for kind, rate in RATES.items()}
    began = time.monotonic()
    target = PostgresRows(pipeline.target_url) if pipeline.subscribed else pipeline.target
    with (
        closing(target),
        Watch(pipeline.target, making_way=making_way) as watch,
        Watch(target, (LEDGER,), pause_s=size.ledger_pause_s),
    ):
        with ExitStack() as stack:
            writing = [Writing(workload, size.writes_per_s / 2) for workload in pipeline.workloads]
            for each in writing:
                stack.enter_context(each)
            change = pipeline.workloads[0].change_the_ledger
            killer = Killer(pipeline, size, random.Random(seed), lambda: writing[0].also(change))
            killer.work()
        took_s = time.monotonic() - began
        awaited(killer.is_published, size.within_s, "not all was published")
        wire.settle()
        pipeline.await_equal(size.within_s)
        for program in killer.running.values():
            program.stop()
    wire.faults.stop()
    pipeline.once_through()  # what landed late is read too
    pipeline.assert_equal()
    pipeline.assert_no_dead_letters()
    assert watch.changes_seen > 100, "the target hardly changed while it was watched"
    killer.took_s, killer.looks = took_s, watch.reads
    return killer


@dataclass
class Killer:
    """Kills the pipeline's programs, at moments that it waits for, and starts them anew."""

    pipeline: Pipeline
    size: Size
    chance: random.Random
    change_the_ledger: Callable[[], None]
    running: dict[Role, Program] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)  # by moment, and by program
    took_s: float = 0.0
    looks: int = 0
    _large_until: int = 0  # the source's commit number behind the last large transaction

    def work(self) -> None:
        """Until each program was killed often enough."""
        roles: list[Role] = ["publish", "subscribe"] if self.pipeline.subscribed else ["publish"]
        self.running = {role: self.pipeline.start(role) for role in roles}
        moments: list[Moment] = []
        rounds = 0
        at_each = self.size.kills // len(MOMENTS)
        while any(self.kills[role] < self.size.kills for role in roles) or any(
            self.kills[moment] < at_each for moment in MOMENTS
        ):
            if not moments:
                moments = self.chance.sample(MOMENTS, len(MOMENTS))
            rounds += 1
            assert rounds <= ROUNDS_MAX * self.size.kills, f"too seldom at its moments: {self.kills}"
            self._kill(moments.pop(), self.chance.sample(roles, self.chance.randint(1, len(roles))))

    def _kill(self, moment: Moment, roles: list[Role]) -> None:
        if moment == "in a snapshot":
            self._await_snapshot()
        elif moment == "in a large transaction" and not self._in_large_transaction():
            self.change_the_ledger()
            self._large_until = _head(self.pipeline.source_url)
            awaited(lambda: self._saved() is not None, self.size.within_s, "the publisher has saved nothing")
        first, last = self.chance.choice(PAUSES_S if moment == "in the stream" else SHORT_PAUSES_S)
        until = time.monotonic() + self.chance.uniform(first, last)
        # What was waited for may be over sooner than that.
        while time.monotonic() < until and self._is(moment):
            time.sleep(0.02)
        self.kills.update([moment if self._is(moment) else "in the stream", *roles])
        for role in roles:
            self.running[role].kill()
        for role in roles:
            self.running[role] = self.pipeline.start(role)

    def _is(self, moment: Moment) -> bool:
        if moment == "in the stream":
            return True
        return self._in_snapshot() if moment == "in a snapshot" else self._in_large_transaction()

    def _await_snapshot(self) -> None:
        """Of the ledger: it is read in several chunks."""
        if not self._in_snapshot():
            self.pipeline.ask_for_resync(self._ledger())
            awaited(self._in_snapshot, self.size.within_s, "no snapshot of the ledger has begun")

    def _in_snapshot(self) -> bool:
        saved = self._saved()
        return saved is not None and saved.tables[self._ledger()].phase is TablePhase.SNAPSHOT

    def _in_large_transaction(self) -> bool:
        saved = self._saved()
        return saved is not None and saved.commit < self._large_until

    def is_published(self) -> bool:
        """The snapshots and the large transactions are acknowledged."""
        saved = self._saved()
        return (
            saved is not None
            and all(table.phase is TablePhase.STREAM and not table.wanted for table in saved.tables.values())
            and saved.commit >= self._large_until
        )

    def _saved(self) -> Checkpoint | None:
        state = self.pipeline.state()
        checkpoint = state.load()
        state.release()
        return checkpoint

    def _ledger(self) -> str:
        return {"postgresql": "public.ledger", "sqlite": "main.ledger", "sqlserver": "dbo.ledger"}[
            dialect_of(self.pipeline.source_url)
        ]

    def figures(self, way: str, wire: FaultProxy) -> dict[str, str]:
        """What is written down."""
        programs = {"publish": "publisher", "subscribe": "subscriber"}
        killed = [f"{self.kills[role]} of the {name}" for role, name in programs.items() if self.kills[role]]
        moments = [f"{self.kills[moment]} {moment}" for moment in MOMENTS]
        transactions = sum(workload.transactions for workload in self.pipeline.workloads)
        done = ", ".join(f"{times:,} {kind}" for kind, times in sorted(wire.done.items()))
        return {
            f"{way}: kills": f"{', '.join(killed)}: {', '.join(moments)}; in {self.took_s:.0f} s",
            f"{way}: written meanwhile": f"{transactions:,} transactions",
            f"{way}: wrong rows, rows back in time, dead letters": f"0, 0 (in {self.looks:,} looks), 0",
            f"{way}: faults": f"{done}; of {wire.requests.total():,} calls",
        }


def _head(url: str) -> int:
    """The source's newest commit number."""
    asked = {
        "postgresql": "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint - 1",
        "sqlite": "SELECT max(id) FROM _upwell_log",
        "sqlserver": "SELECT CHANGE_TRACKING_CURRENT_VERSION()",
    }
    with closing(connect(url)) as source:
        return int(source.execute(asked[dialect_of(url)]).fetchone()[0])
