"""A pipeline with all that can happen to it, but for what happens to its source; the two destinations.

What befalls a source is in `sources`, and a class of a source and one of a destination make a side that can be run.
"""

from __future__ import annotations

import random
import re
import signal
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal, LiteralString

import psycopg

from lab.faults import FaultProxy, Kind
from lab.part import Part
from lab.parts import PostgresCluster
from tests.acceptance.compare import Watch, await_equal
from tests.acceptance.pipelines import Pipeline, Program, Role, explained
from tests.acceptance.workload import KEYS, LOST, TABLES, Writing, connect
from tests.proofs.holes import Thief
from tests.proofs.resharding import Stream

RATES: Final[dict[Kind, float]] = {
    "shard_throttled": 0.04,
    "record_failed": 0.01,
    "throttled": 0.005,
    "failed_before": 0.01,
    "failed_after": 0.01,
    "answer_lost": 0.02,
    "landed_late": 0.01,
    "landed_twice": 0.01,
    "reset_before": 0.005,
    "reset_after": 0.005,
    "slow": 0.02,
    "keys_expired": 0.002,
    "too_long": 0.002,
    "not_json": 0.002,
    "not_http": 0.001,
}
# Each costs a client its 15 s.
SILENT: Final[dict[Kind, float]] = {"swallowed": 0.0001, "answer_withheld": 0.0001}
# A request to Kinesis carries as much as a hundred to DynamoDB, and there are as many less.
TIMES_KINESIS: Final = 4
# A sweep waits until what a killed publisher left on its way has landed; the fault proxy's requests take so long.
LATE_S: Final = (0.05, 1.5)
PATIENT: Final = "from upwell.pipeline import publisher; publisher.SWEEP_AFTER_START_S = 2.5"
# In the middle of the run nobody waits as long as that for what has been away.
EAGER: Final = f"{PATIENT}; publisher.REPAIRS_EVERY_S = 1.0"
EQUAL_S: Final = 180.0
# Rows of the ledger that only this module writes: with rising states, far from the workload's keys.
LARGE: Final = range(-100_000, -90_000)
EVERYWHERE: Final = range(-2_000, -1_000)  # so many keys that every lane has some
COLUMNS_MAX: Final = 12  # added by a run
BEGUN: Final = re.compile(r"events (read|received)")  # what a program logs once it runs
BUG: Final = re.compile(r"This is a bug|Traceback \(most recent", re.MULTILINE)

Trouble = Callable[[random.Random], str]  # makes it, and says what it did


@dataclass(frozen=True)
class Size:
    """How long, and how much."""

    run_s: float
    pause_every_s: float  # at a pause all is put right, and source and target are compared
    pace_s: tuple[float, float]  # between two troubles
    writes_per_s: float  # transactions, to each source
    ledger_rows: int  # of PostgreSQL; SQLite's has a fourth of it
    large_rows: int  # of a large transaction, to PostgreSQL; a tenth of it to SQLite


@dataclass
class Side(ABC):
    """A pipeline with all that can happen to it."""

    schema: ClassVar[str]  # of the source's tables
    route: ClassVar[str]  # from where to where

    name: str
    pipeline: Pipeline
    wires: Sequence[FaultProxy]
    seed: int
    size: Size
    services: dict[Role, Program] = field(default_factory=dict)
    ended: Counter[str] = field(default_factory=Counter)  # how programs ended that nobody killed
    overdue: list[tuple[float, str, Callable[[], None]]] = field(default_factory=list)  # when, what, how to put right
    writing: ExitStack = field(default_factory=ExitStack)
    state: int = 10**9  # of the rows that only this module writes
    columns: int = 0
    rest_until: dict[Role, float] = field(default_factory=dict)  # a program that was killed is started then
    catching_up_s: list[float] = field(default_factory=list)
    watch: Watch = field(init=False)

    # --- life -----------------------------------------------------------------------------------------------------

    @contextmanager
    def set_up(self) -> Iterator[None]:
        """Running and in step; watched until the end, which must find it well."""
        with closing(self.pipeline), explained(self.pipeline, self.seed):
            rows = self.size.ledger_rows if self.pipeline.subscribed else self.size.ledger_rows // 4
            self.pipeline.workload(self.seed).fill(40, ledger_rows=rows)
            self.pipeline.workload(self.seed).fill(20)
            self.pipeline.run("track")
            for wire in self.wires:
                wire.faults.late_s = LATE_S
            self.supervise()
            self.await_equal()
            making_way = ("person",) if self.pipeline.subscribed else ()
            tables = (*TABLES, "ledger")
            self.watch = Watch(self.pipeline.target, tables, making_way, 0.2, restarts=self.pipeline.subscribed)
            with self.watch, self.writing:
                yield

    @property
    def roles(self) -> list[Role]:
        return ["publish", "subscribe"] if self.pipeline.subscribed else ["publish"]

    def begin(self) -> None:
        """Writers and faults."""
        for workload in self.pipeline.workloads:
            per_s = self.size.writes_per_s / len(self.pipeline.workloads)
            self.writing.enter_context(Writing(workload, per_s, patient=True))
        times = TIMES_KINESIS if self.pipeline.subscribed else 1
        for wire in self.wires:
            wire.faults.rates = {kind: times * rate for kind, rate in (RATES | SILENT).items()}

    def supervise(self) -> None:
        """Programs that ended are started again, as every operator has it done. A bug is not to be survived."""
        for role in self.roles:
            program = self.services.get(role)
            if program is None and time.monotonic() < self.rest_until.get(role, 0):
                continue
            if program is not None and not program.running:
                self.ended[self._why_ended(role, program)] += 1
            if program is None or not program.running:
                self.services[role] = self.pipeline.start(role)

    @staticmethod
    def _why_ended(role: Role, program: Program) -> str:
        """Only what was out of reach when it started may end a program."""
        words = program.log.read_text()
        assert not BUG.search(words), f"{program.log.name}:\n{words}"
        assert not BEGUN.search(words), f"{program.log.name} ended by itself while it ran:\n{words}"
        reason = re.search(r"error: (.*)", words)
        assert reason is not None, f"{program.log.name} ended without a reason:\n{words}"
        return f"{role} ({program.wait(1)}): {re.sub('[0-9]{4,5}', '…', reason[1])}"

    def put_right(self, *, all_of_it: bool = False) -> list[str]:
        """What has lasted long enough ends; what that was."""
        now = time.monotonic()
        due = [each for each in self.overdue if all_of_it or each[0] <= now]
        for each in due:
            self.overdue.remove(each)
            each[2]()
        return [f"over: {what}" for _, what, _ in due]

    def pause(self) -> str:
        """No faults, no writers: source and target become equal, and are well."""
        self.put_right(all_of_it=True)
        self.writing.close()
        for wire in self.wires:
            wire.faults.rates = {}
            wire.settle()
        began = time.monotonic()
        self.await_equal()
        self.catching_up_s.append(time.monotonic() - began)
        self.pipeline.assert_no_dead_letters()
        return f"equal after {self.catching_up_s[-1]:.1f} s, {self.watch.reads} reads by the watch"

    def await_equal(self) -> None:
        pipeline = self.pipeline
        await_equal(pipeline.source, pipeline.target, pipeline.tables, within_s=EQUAL_S, check=self.supervise)

    def end(self) -> None:
        """It stops when it is told to, and what is left comes through."""
        for program in self.services.values():
            program.send(signal.SIGTERM)
            assert program.wait(30) == 0, f"{program.log.name} did not stop as it was told"
        self.pipeline.once_through()
        self.pipeline.assert_equal()
        self.pipeline.assert_no_dead_letters()

    def later(self, seconds: float, what: str, put_right: Callable[[], None]) -> str:
        """Something is put right after a while."""
        self.overdue.append((time.monotonic() + seconds, what, put_right))
        return f"{what} for {seconds:.1f} s"

    # --- troubles -------------------------------------------------------------------------------------------------

    def troubles(self) -> dict[Trouble, int]:
        """Each with how often it comes, compared with the others."""
        return {
            self.kill: 12,
            self.stop: 2,
            self.freeze: 4,
            self.cut: 3,
            self.large_transaction: 4,
            self.resync: 2,
            self.add_column: 1,
        }

    def kill(self, chance: random.Random) -> str:
        """In any number; at once or after a while they are started again."""
        killed = chance.sample(self.roles, chance.randint(1, len(self.roles)))
        for role in killed:
            self.kill_it(role)
            self.rest_until[role] = time.monotonic() + chance.choice((0, 0, 1, 3))
        return f"SIGKILL of {' and '.join(killed)}"

    def kill_it(self, role: Role) -> None:
        program = self.services.pop(role, None)
        if program is not None and program.running:
            program.kill()

    def stop(self, chance: random.Random) -> str:
        role = chance.choice(self.roles)
        program = self.services.pop(role, None)
        if program is None or not program.running:
            return f"{role} has ended already"
        program.send(signal.SIGCONT)
        program.send(signal.SIGTERM)
        code = program.wait(30)
        words = program.log.read_text()
        # It may have been about to end, or not yet have begun.
        assert code == 0 or "error: " in words or not words, f"{program.log.name} ended with {code}"
        return f"SIGTERM of {role}"

    def freeze(self, chance: random.Random) -> str:
        """A zombie that comes back to life; perhaps another one has taken over."""
        role = chance.choice(self.roles)
        frozen = self.services.get(role)
        if frozen is None:
            return f"{role} has ended already"
        frozen.send(signal.SIGSTOP)
        if role == "subscribe" and chance.random() < 0.5:
            self.services[role] = self.pipeline.start(role)

            def thaw_and_end() -> None:
                frozen.send(signal.SIGCONT)
                time.sleep(0.3)
                frozen.discard()

            return self.later(chance.uniform(1, 8), f"SIGSTOP of {role}, another took over", thaw_and_end)
        return self.later(chance.uniform(0.5, 8), f"SIGSTOP of {role}", lambda: frozen.send(signal.SIGCONT))

    def cut(self, chance: random.Random) -> str:
        wire = chance.choice(self.wires)
        if not wire.up:
            return "the Internet is gone already"
        wire.cut()
        return self.later(chance.uniform(0.3, 8), "the Internet is gone", wire.restore)

    def resync(self, chance: random.Random) -> str:
        table = chance.choice([None, *(f"{self.schema}.{table}" for table in KEYS)])
        self.pipeline.ask_for_resync(table)
        return f"upwell resync {table or ''}"

    def large_transaction(self, chance: random.Random) -> str:
        rows = self.large_rows(chance)
        if chance.random() < 0.3:
            sql = f"DELETE FROM ledger WHERE entry BETWEEN {rows[0]} AND {rows[-1]}"
        else:
            sql = self.upsert(rows, "large")
        return f"{sql[:6]} of {len(rows)} rows" + self.on_source(sql)

    def large_rows(self, chance: random.Random) -> range:
        count = chance.randint(1, self.size.large_rows)
        first = chance.randrange(LARGE.start, LARGE.stop - count)
        return range(first, first + count)

    def add_column(self, chance: random.Random) -> str:
        if self.columns == COLUMNS_MAX:
            return "no more columns"
        self.columns += 1
        sql = self.added_column(chance, self.columns)
        return sql + self.on_source(sql)

    def on_source(self, *statements: str) -> str:
        """Runs them in one transaction; says so where the source is away."""

        def run() -> None:
            with closing(connect(self.pipeline.source_url)) as source:
                source.execute("BEGIN")
                for statement in statements:
                    source.execute(statement)
                source.execute("COMMIT")

        return self.tried(run)

    def tried(self, work: Callable[[], None]) -> str:
        """Says so where the source is away."""
        try:
            work()
        except LOST as error:
            return f", but the source is away: {' '.join(str(error).split()) or type(error).__name__}"
        return ""

    def crash(self, server: Part, name: str, chance: random.Random) -> str:
        """A server goes down, and comes back after a while."""
        if not server.running:
            return f"{name} is down already"
        if isinstance(server, PostgresCluster):
            mode: Literal["immediate", "fast"] = chance.choice(("immediate", "immediate", "fast"))
            if self.waits_for("SIGSTOP"):
                mode = "immediate"  # PostgreSQL would wait for who is frozen
            server.stop(mode)
        else:
            server.kill()
        return self.later(chance.uniform(0, 4), f"{name} is down", lambda: bring_up(server))

    def waits_for(self, what: str) -> bool:
        """Whether that is still to be put right."""
        return any(what in each for _, each, _ in self.overdue)

    # --- what differs from source to source -----------------------------------------------------------------------

    @abstractmethod
    def upsert(self, rows: range, note: str) -> str:
        """A statement that gives these rows of the ledger a state above all before, wherever they are or not."""

    @abstractmethod
    def added_column(self, chance: random.Random, number: int) -> str:
        """A statement that adds a column, which the rows that there are have a value in."""


@dataclass(kw_only=True)
class IntoPostgres(Side):
    """→ Kinesis → PostgreSQL."""

    target: PostgresCluster
    stream: Stream
    thief: Thief = field(default_factory=lambda: Thief(lambda head: True, 0))
    alarms: set[str] = field(default_factory=set)

    def begin(self) -> None:
        super().begin()
        self.wires[0].faults.deletes = self.thief

    def pause(self) -> str:
        self.thief.left = 0
        self.put_right(all_of_it=True)
        # A record in every lane: what was lost at the end of a lane shows when something follows.
        failed = self.on_source(self.upsert(EVERYWHERE, "everywhere"))
        assert not failed, failed
        told = super().pause()
        self._check_alarms()
        return f"{told}, {len(self.thief.taken)} records deleted, {len(self.alarms)} alarms"

    def _check_alarms(self) -> None:
        """Each is about a lane from which a record was deleted."""
        with psycopg.connect(self.pipeline.target_url) as target:
            self.alarms.update(reason for (reason,) in target.execute("SELECT reason FROM upwell.repair_request"))
        for alarm in self.alarms:
            lane = re.match(r"Lane (\d+): records are missing", alarm)
            assert lane is not None, f"an alarm without a cause: {alarm}"
            assert int(lane[1]) in self.thief.lanes, f"an alarm, and no record of the lane was deleted: {alarm}"

    def troubles(self) -> dict[Trouble, int]:
        return super().troubles() | {
            self.reshard: 3,
            self.delete_a_record: 2,
            self.crash_target: 2,
            self.target_is_read_only: 2,
        }

    def reshard(self, chance: random.Random) -> str:
        chance.choice((self.stream.grow, self.stream.shrink))()
        return "shards split or merged"

    def delete_a_record(self, chance: random.Random) -> str:
        self.thief.left += 1
        return "a record is deleted from the stream"

    def crash_target(self, chance: random.Random) -> str:
        return self.crash(self.target, "the target", chance)

    def target_is_read_only(self, chance: random.Random) -> str:
        if not self.target.running:
            return "the target is down already"
        self._set_target("ALTER SYSTEM SET default_transaction_read_only = on")
        return self.later(
            chance.uniform(0.5, 5),
            "the target is read-only",
            lambda: self._set_target("ALTER SYSTEM RESET default_transaction_read_only"),
        )

    def _set_target(self, sql: LiteralString) -> None:
        bring_up(self.target)
        with self.target.connect() as administrator:
            administrator.execute(sql)
            administrator.execute("SELECT pg_reload_conf()")


class IntoDynamoDb(Side):
    """→ DynamoDB."""

    def large_rows(self, chance: random.Random) -> range:
        rows = super().large_rows(chance)
        return rows[: 1 + len(rows) // 10]


def bring_up(server: Part) -> None:
    if not server.running:
        server.start()
