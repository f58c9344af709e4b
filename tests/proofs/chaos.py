"""All faults at once, at random: in the end, and at every pause, each target equals its source; no row went back in
time, nothing became a dead letter, no alarm was false.

PostgreSQL → Kinesis → PostgreSQL and SQLite → DynamoDB run side by side, each behind a fault proxy that spoils requests
all the time. Meanwhile programs are killed, frozen and doubled, the Internet goes away, databases crash, refuse to
write or forget, tables are truncated and altered, records are deleted, shards come and go.

`make chaos ARGS="--minutes 5 --seed 7"`; a seed repeats what is done, as far as processes can be repeated.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, LiteralString

import psycopg

from lab.faults import FaultProxy, Kind
from lab.parts import Lab, PostgresCluster
from tests.acceptance.compare import Watch, await_equal, kinesis_client
from tests.acceptance.killing import drop_slot, forget_log
from tests.acceptance.pipelines import (
    Pipeline,
    Program,
    Role,
    explained,
    into_dynamodb,
    new_seed,
    through_kinesis,
    with_changes,
)
from tests.acceptance.workload import KEYS, TABLES, Writing, connect, create_tables
from tests.proofs import Figures, Servers
from tests.proofs.__main__ import RESULTS, written
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


@dataclass(frozen=True)
class Size:
    """How long, and how much."""

    run_s: float
    pause_every_s: float  # at a pause all is put right, and source and target are compared
    pace_s: tuple[float, float]  # between two troubles
    writes_per_s: float  # transactions, to each source
    ledger_rows: int  # of PostgreSQL; SQLite's has a fourth of it
    large_rows: int  # of a large transaction, to PostgreSQL; a tenth of it to SQLite


SMALL: Final = Size(run_s=10, pause_every_s=60, pace_s=(0.1, 0.6), writes_per_s=20, ledger_rows=300, large_rows=1_000)
FULL: Final = Size(
    run_s=1800, pause_every_s=60, pace_s=(0.2, 2.5), writes_per_s=20, ledger_rows=1_500, large_rows=4_000
)


def run(servers: Servers, folder: Path, size: Size) -> Figures:
    """The databases that crash are this run's own; Kinesis and DynamoDB may be shared."""
    seed = new_seed()
    print(f"UPWELL_TEST_SEED={seed}, logs in {folder}", flush=True)
    with ExitStack() as stack:
        databases = [PostgresCluster(), PostgresCluster()]
        for database in databases:
            stack.callback(database.close)
            database.launch()
        for database in databases:
            database.await_ready()
        chaos = Chaos(random.Random(seed), size)
        for made in (_relational(servers, folder, seed, size, *databases), _serverless(servers, folder, seed, size)):
            chaos.sides.append(stack.enter_context(made))
        chaos.run()
        return chaos.figures()


@contextmanager
def _relational(
    servers: Servers, folder: Path, seed: int, size: Size, source: PostgresCluster, target: PostgresCluster
) -> Iterator[Side]:
    place = folder / "relational"
    place.mkdir()
    urls = source.create_database("source"), target.create_database("target")
    for url in urls:
        create_tables(url)
    with (
        FaultProxy(servers.kinesis, seed=seed) as wire,
        FaultProxy(servers.dynamodb, seed=seed) as control,
        closing(kinesis_client(servers.kinesis)) as client,
    ):
        pipeline = through_kinesis(place, source_url=urls[0], target_url=urls[1], kinesis_endpoint=wire.url)
        pipeline.configuration["destination"]["kinesis"]["control_table"] = f"{pipeline.name}-control"
        pipeline.environ["AWS_ENDPOINT_URL_DYNAMODB"] = control.url
        pipeline.upwell = with_changes(EAGER)
        pipeline.write_configuration()
        stream = Stream(client, pipeline.name, random.Random(seed), at_once=False)
        side = Relational(
            "relational", pipeline, [wire, control], seed, size, source=source, target=target, stream=stream
        )
        with side.set_up():
            yield side


@contextmanager
def _serverless(servers: Servers, folder: Path, seed: int, size: Size) -> Iterator[Side]:
    place = folder / "serverless"
    place.mkdir()
    source = str(place / "source.db")
    create_tables(source)
    with FaultProxy(servers.dynamodb, seed=seed + 1) as wire:
        pipeline = into_dynamodb(place, source_url=source, dynamodb_endpoint=servers.dynamodb)
        pipeline.lead_through(wire.url)
        pipeline.upwell = with_changes(PATIENT)
        side = Serverless("serverless", pipeline, [wire], seed, size)
        with side.set_up():
            yield side


# --- what can happen to a pipeline --------------------------------------------------------------------------------

Trouble = Callable[[random.Random], str]  # makes it, and says what it did


@dataclass
class Side:
    """A pipeline with all that can happen to it."""

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
            self._await_equal()
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
            self.writing.enter_context(Writing(workload, per_s, patient=self.pipeline.subscribed))
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
        self._await_equal()
        self.catching_up_s.append(time.monotonic() - began)
        self.pipeline.assert_no_dead_letters()
        return f"equal after {self.catching_up_s[-1]:.1f} s, {self.watch.reads} reads by the watch"

    def _await_equal(self) -> None:
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
            self._kill(role)
            self.rest_until[role] = time.monotonic() + chance.choice((0, 0, 1, 3))
        return f"SIGKILL of {' and '.join(killed)}"

    def _kill(self, role: Role) -> None:
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
        schema = "public" if self.pipeline.subscribed else "main"
        table = chance.choice([None, *(f"{schema}.{table}" for table in KEYS)])
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
        table = chance.choice(sorted(KEYS))
        sql = f"ALTER TABLE {table} ADD COLUMN extra_{self.columns} int DEFAULT {self.columns}"
        return sql + self.on_source(sql)

    def upsert(self, rows: range, note: str) -> str:
        self.state += 1
        values = ", ".join(f"({entry}, {self.state}, '{note}')" for entry in rows)
        columns = "ledger (entry, state, note)"
        return f"INSERT INTO {columns} VALUES {values} ON CONFLICT (entry) DO UPDATE SET state = excluded.state"

    def on_source(self, *statements: str) -> str:
        """Runs them in one transaction; says so where the source is away."""
        try:
            with closing(connect(self.pipeline.source_url)) as source:
                source.execute("BEGIN")
                for statement in statements:
                    source.execute(statement)
                source.execute("COMMIT")
        except psycopg.OperationalError as error:
            return f", but the source is away: {str(error).splitlines()[0]}"
        return ""


@dataclass(kw_only=True)
class Relational(Side):
    """PostgreSQL → Kinesis → PostgreSQL."""

    source: PostgresCluster
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
            self.crash_source: 2,
            self.drop_slot: 1,
            self.truncate: 1,
        }

    def reshard(self, chance: random.Random) -> str:
        chance.choice((self.stream.grow, self.stream.shrink))()
        return "shards split or merged"

    def delete_a_record(self, chance: random.Random) -> str:
        self.thief.left += 1
        return "a record is deleted from the stream"

    def crash_target(self, chance: random.Random) -> str:
        return self._crash(self.target, "the target", chance)

    def crash_source(self, chance: random.Random) -> str:
        """In the middle of a transaction, which is undone."""
        if not self.source.running:
            return "the source is down already"
        with closing(connect(self.pipeline.source_url)) as open_transaction:
            open_transaction.execute("BEGIN")
            open_transaction.execute(f"DELETE FROM ledger WHERE entry < {LARGE.stop}")
            return self._crash(self.source, "the source", chance)

    def _crash(self, server: PostgresCluster, name: str, chance: random.Random) -> str:
        if not server.running:
            return f"{name} is down already"
        mode: Literal["immediate", "fast"] = chance.choice(("immediate", "immediate", "fast"))
        if any("SIGSTOP" in what for _, what, _ in self.overdue):
            mode = "immediate"  # PostgreSQL would wait for who is frozen
        server.stop(mode)
        return self.later(chance.uniform(0, 4), f"{name} is down ({mode})", lambda: _bring_up(server))

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
        _bring_up(self.target)
        with self.target.connect() as administrator:
            administrator.execute(sql)
            administrator.execute("SELECT pg_reload_conf()")

    def drop_slot(self, chance: random.Random) -> str:
        """What was to be published is forgotten."""
        if not self.source.running:
            return "the source is down already"
        self._kill("publish")
        try:
            with closing(connect(self.pipeline.source_url)) as source:
                drop_slot(source, self.pipeline)
        except psycopg.errors.UndefinedObject:
            return "SIGKILL of publish, it had no slot yet"
        return "SIGKILL of publish, its slot is dropped"

    def truncate(self, chance: random.Random) -> str:
        return "TRUNCATE ledger" + self.on_source("TRUNCATE ledger")


class Serverless(Side):
    """SQLite → DynamoDB."""

    def troubles(self) -> dict[Trouble, int]:
        return super().troubles() | {self.forget_log: 1, self.delete_all: 1}

    def large_rows(self, chance: random.Random) -> range:
        rows = super().large_rows(chance)
        return rows[: 1 + len(rows) // 10]

    def forget_log(self, chance: random.Random) -> str:
        """What was to be published is forgotten, and changes go unseen for a while."""
        self._kill("publish")
        with closing(connect(self.pipeline.source_url)) as source:
            forget_log(source)
        self.pipeline.run("track")
        return "SIGKILL of publish, its log is dropped"

    def delete_all(self, chance: random.Random) -> str:
        return "DELETE FROM ledger" + self.on_source("DELETE FROM ledger")


def _bring_up(server: PostgresCluster) -> None:
    if not server.running:
        server.start()


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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.proofs.chaos")
    parser.add_argument("--minutes", type=float, default=FULL.run_s / 60)
    parser.add_argument("--seed", type=int, help="of an earlier run, to repeat it")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        os.environ["UPWELL_TEST_SEED"] = str(arguments.seed)
    folder = Path(tempfile.mkdtemp(prefix="upwell-chaos-"))
    size = replace(FULL, run_s=60 * arguments.minutes)
    began = time.monotonic()
    with Lab() as lab:
        figures = run(Servers(lab.postgres, lab.kinesis.url, lab.dynamodb.url), folder, size)
    shutil.rmtree(folder)  # of a run that failed it stays
    report = written("chaos", __doc__ or "", size, figures, time.monotonic() - began)
    print(report)
    if arguments.minutes * 60 >= FULL.run_s:
        (RESULTS / "chaos.md").write_text(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
