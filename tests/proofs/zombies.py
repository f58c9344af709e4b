"""A program that hangs, while a second one takes its place, does no harm when it goes on: it finds out, and ends.

It is stopped (SIGSTOP) with requests in flight, in the middle of a snapshot, a sweep, a transaction at the target.
An operator takes over as docs/operations.md says: removes the lock file, or starts a copy of the state elsewhere.
"""

from __future__ import annotations

import re
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import psycopg

from lab.faults import FaultProxy
from tests.acceptance.compare import Watch, shown
from tests.acceptance.killing import drop_triggers
from tests.acceptance.pipelines import Pipeline, Program, into_dynamodb, new_seed, through_kinesis
from tests.acceptance.workload import KEYS, Writing, create_tables
from tests.proofs import Figures, Servers, behind_faults
from tests.proofs.wire import awaited
from upwell.errors import TransientError
from upwell.model import Checkpoint, TablePhase
from upwell.targets import postgres_session

# What a program that is stopped says in the end, in its several ways to learn it.
TAKEN_OVER: Final = "Another publisher has taken over"
REFUSED: Final = "Another publisher runs with the state file"
SLOT_IN_USE: Final = "The replication slot is in use by another session"
REMEDY: Final = re.compile(r"SELECT pg_terminate_backend\([0-9]+\);")
# Answers that come while the program is stopped: it finds them when it goes on.
ANSWER_S: Final = 1.0
IN_FLIGHT: Final = 4
PROBES: Final = 300  # rows, which lie in all lanes
PROBE: Final = "CREATE TABLE probe (id int PRIMARY KEY, state bigint NOT NULL)"
WRITES_PER_S: Final = 30
# From SIGCONT: the requests in flight may take their time.
ENDS_WITHIN_S: Final = 30.0
# Beyond what the server takes to end a transaction whose owner does nothing.
GOES_ON_S: Final = 40.0


@dataclass(frozen=True)
class Size:
    """How long, and in how much."""

    stopped_s: float  # a program is stopped, the time that its successor takes to start included
    walsender_s: int | None  # wal_sender_timeout, after which the slot is free; None: an operator ends that session
    idle_s: int  # after which the target ends a transaction that does nothing
    lock_s: int  # after which who waits for a lock of the target ends a transaction that hangs
    ledger_rows: int  # read anew while it is stopped
    swept: int  # items that a resync removes from DynamoDB
    within_s: float


SMALL: Final = Size(stopped_s=2, walsender_s=None, idle_s=2, lock_s=3, ledger_rows=12_000, swept=50, within_s=60)
FULL: Final = Size(
    stopped_s=60,
    walsender_s=20,
    idle_s=postgres_session.IDLE_IN_TRANSACTION_S,
    lock_s=postgres_session.LOCK_TIMEOUT_S,
    ledger_rows=100_000,
    swept=2_000,
    within_s=300,
)


def run(servers: Servers, folder: Path, size: Size) -> Figures:
    """Subscribers and publishers of PostgreSQL through Kinesis, then publishers of SQLite to DynamoDB."""
    seed = new_seed()
    for way in ("kinesis", "dynamodb"):
        (folder / way).mkdir()
    through = _kinesis(servers, folder / "kinesis", size, seed)
    return through | _dynamodb(servers, folder / "dynamodb", size, seed)


# --- PostgreSQL through Kinesis to PostgreSQL ------------------------------------------------------------------------


def _kinesis(servers: Servers, folder: Path, size: Size, seed: int) -> dict[str, str]:
    with servers.databases(2) as (source, target):
        for url in (source, target):
            create_tables(url)
            with psycopg.connect(url) as connection:
                connection.execute(PROBE)
        with psycopg.connect(source) as connection:
            connection.execute("INSERT INTO probe SELECT id, 0 FROM generate_series(1, %s) AS id", (PROBES,))
        keys = {**KEYS, "probe": ("id",)}
        pipeline = through_kinesis(
            folder, source_url=source, target_url=target, kinesis_endpoint=servers.kinesis, keys=keys
        )
        if size.walsender_s is not None:
            pipeline.configuration["source"]["url"] += f"?options=-c%20wal_sender_timeout%3D{size.walsender_s}s"
        with behind_faults(pipeline, servers.kinesis, seed) as wire:
            play = Play("Kinesis", pipeline, wire, size)
            with play.running(seed, ("person",)):
                _subscriber_in_a_transaction(play)
                _in_a_snapshot(play)
                play.zombie("with PutRecords in flight, and a copy of its state", "PutRecords", copied=True)
            _assert_no_losses(target)
            return play.figures


def _subscriber_in_a_transaction(play: Play) -> None:
    """It holds the watermarks of its lanes, until the server ends its transaction, or who waits for them does so where
    it was sending rows. From then on there are two.
    """
    pipeline, size = play.pipeline, play.size
    first = _subscriber(pipeline, size, "applier.written:3")
    awaited(lambda: _is_stopped(first), size.within_s, "the subscriber did not stop in its transaction")
    stopped_at = time.monotonic()
    second = _subscriber(pipeline, size)
    play.subscribers = [first, second]
    _await_probes(play)
    went_on_s = time.monotonic() - stopped_at
    assert went_on_s >= size.idle_s / 2, "it was not waited for: it held no lock"
    assert went_on_s <= size.idle_s + size.lock_s + GOES_ON_S, f"the second subscriber waited for {went_on_s:.0f} s"
    time.sleep(max(0.0, size.stopped_s - went_on_s))
    first.send(signal.SIGCONT)
    _await_probes(play)
    play.figures["Kinesis: a subscriber stopped in its transaction"] = (
        f"the second one went on after {went_on_s:.1f} s (ended after {size.idle_s} s, or {size.lock_s} s of waiting); "
        "from then on there were two on all shards"
    )


def _subscriber(pipeline: Pipeline, size: Size, failpoint: str = "") -> Program:
    """With the size's patience at the target. `failpoint`: where it stops itself."""
    program = (
        "import os, signal; from upwell import failpoints; from upwell.targets import postgres_session as session; "
        "failpoints.os.kill = lambda pid, _, kill=os.kill: kill(pid, signal.SIGSTOP); "
        f"session.IDLE_IN_TRANSACTION_S = {size.idle_s}; "
        f"session._SETTINGS += '; SET idle_in_transaction_session_timeout TO \\'{size.idle_s}s\\'; "
        f"SET lock_timeout TO \\'{size.lock_s}s\\''; "
        "from upwell.app.cli import main; main()"
    )
    usual, pipeline.upwell = pipeline.upwell, (sys.executable, "-c", program)
    try:
        return pipeline.start("subscribe", failpoint=failpoint)
    finally:
        pipeline.upwell = usual


def _await_probes(play: Play) -> None:
    """What is committed now gets to the target, in every lane."""
    with psycopg.connect(play.pipeline.source_url) as source:
        source.execute("UPDATE probe SET state = state + 1")
        (wanted,) = source.execute("SELECT max(state) FROM probe").fetchone() or (None,)

    def arrived() -> bool:
        with psycopg.connect(play.pipeline.target_url) as target:
            found = target.execute("SELECT count(*) FROM probe WHERE state >= %s", (wanted,)).fetchone()
        return found == (PROBES,)

    try:
        awaited(arrived, play.size.within_s, "nothing arrives")
    except AssertionError as error:
        with psycopg.connect(play.pipeline.target_url) as target:
            sessions = target.execute(
                "SELECT pid, state, wait_event, now() - state_change, pg_blocking_pids(pid), left(query, 80) "
                "FROM pg_stat_activity WHERE datname = current_database()"
            ).fetchall()
        error.add_note(shown([str(session) for session in sessions]))
        raise


def _in_a_snapshot(play: Play) -> None:
    def reading() -> bool:
        return play.saved().tables["public.ledger"].phase is TablePhase.SNAPSHOT

    def read_again() -> None:
        play.pipeline.ask_for_resync("public.ledger")
        awaited(reading, play.size.within_s, "no snapshot has begun")

    play.zombie("in the middle of a snapshot", "PutRecords", cause=read_again, during=reading)


def _assert_no_losses(target: str) -> None:
    """But for one kind: a snapshot's rows that came too late, because the old publisher was further than the new."""
    with psycopg.connect(target) as connection:
        found = connection.execute("SELECT reason FROM upwell.repair_request").fetchall()
    others = [reason for (reason,) in found if not reason.startswith("A publisher without the lease went on")]
    assert not others, f"records were lost: {others[0]}"


# --- SQLite to DynamoDB ----------------------------------------------------------------------------------------------


def _dynamodb(servers: Servers, folder: Path, size: Size, seed: int) -> dict[str, str]:
    source = str(folder / "source.db")
    create_tables(source)
    pipeline = into_dynamodb(folder, source_url=source, dynamodb_endpoint=servers.dynamodb)
    with behind_faults(pipeline, servers.dynamodb, seed) as wire:
        play = Play("DynamoDB", pipeline, wire, replace(size, ledger_rows=4 * size.swept))
        with play.running(seed, ()):
            _in_a_sweep(play)
            play.zombie("with PutItem in flight, and a copy of its state", "PutItem", copied=True)
        return play.figures


def _in_a_sweep(play: Play) -> None:
    """Rows go unseen, which is noticed; they are removed when all others have been read."""

    def lose_rows() -> None:
        with closing(sqlite3.connect(play.pipeline.source_url, timeout=30, isolation_level=None)) as source:
            source.execute("BEGIN IMMEDIATE")
            drop_triggers(source, "ledger")
            source.execute("DELETE FROM ledger WHERE entry <= ?", (play.size.swept,))
            source.execute("COMMIT")

    def sweeping() -> bool:
        return play.saved().tables["main.ledger"].phase is TablePhase.SWEEP

    play.zombie("in the middle of a sweep", "Scan", cause=lose_rows, during=sweeping)


# --- what happens on every way ---------------------------------------------------------------------------------------


@dataclass
class Play:
    """A pipeline whose publisher changes over and over."""

    way: str
    pipeline: Pipeline
    wire: FaultProxy
    size: Size
    publisher: Program = field(init=False)
    subscribers: list[Program] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def running(self, seed: int, making_way: tuple[str, ...]) -> Iterator[None]:
        """Writers write and a reader watches during the block; in the end all is as it should be."""
        pipeline = self.pipeline
        pipeline.workload(seed).fill(20, ledger_rows=self.size.ledger_rows)
        pipeline.workload(seed).fill(40)
        pipeline.run("track")
        with Watch(pipeline.target, making_way=making_way, pause_s=0.05) as watch:
            with ExitStack() as writing:
                for workload in pipeline.workloads:
                    writing.enter_context(Writing(workload, WRITES_PER_S / len(pipeline.workloads)))
                self.publisher = self.started(pipeline)
                yield
            awaited(self.streams, self.size.within_s, "the snapshots do not end")
            self.pipeline.await_equal(self.size.within_s)
            for program in (self.publisher, *self.subscribers):
                program.stop()
        self.pipeline.once_through()
        self.pipeline.assert_equal()
        self.pipeline.assert_no_dead_letters()
        self.figures[f"{self.way}: wrong rows, rows back in time, dead letters"] = f"0, 0 (in {watch.reads:,} looks), 0"

    def zombie(
        self,
        what: str,
        action: str,
        *,
        copied: bool = False,
        cause: Callable[[], None] = lambda: None,
        during: Callable[[], bool] = lambda: True,
    ) -> None:
        """The publisher is stopped while requests of this action are in flight, and a second one takes over.

        `copied`: with a copy of its state, as on another machine; else an operator has removed the lock file.
        """
        old = self.publisher
        self._stop_at(old, action, cause, during)
        stopped_at, before = time.monotonic(), self.saved()
        began = self._copy() if copied else self._unlock()
        self.publisher = self.started(began)
        took_over_s = time.monotonic() - stopped_at
        term = self._status(began)["term"]
        awaited(
            lambda: _loaded(began).commit > before.commit, self.size.within_s, "the second publisher publishes nothing"
        )
        time.sleep(max(0.0, self.size.stopped_s - (time.monotonic() - stopped_at)))
        old.send(signal.SIGCONT)
        went_on_at = time.monotonic()
        code, said = old.wait(ENDS_WITHIN_S), old.log.read_text()
        ended_s = time.monotonic() - went_on_at
        assert code == 1, f"the old publisher ended with {code}"
        assert TAKEN_OVER in said, f"it does not say why it ended: {said[-300:]}"
        assert self.publisher.running, "the second publisher ended too"
        assert self._status(began)["term"] == _loaded(began).term == term > before.term, "the old one has saved"
        if copied:
            assert self.saved().epoch == before.epoch, "the old one began an epoch"
        self.pipeline = began
        self.figures[f"{self.way}: a publisher stopped {what}"] = (
            f"its successor was at work after {took_over_s:.1f} s; it ended {ended_s:.1f} s after it went on"
        )

    def _stop_at(self, program: Program, action: str, cause: Callable[[], None], during: Callable[[], bool]) -> None:
        self.wire.faults.slow_s = ANSWER_S, ANSWER_S
        while True:
            slow = self.wire.done["slow"]
            cause()
            self.wire.faults.then("slow", action, IN_FLIGHT)
            awaited(lambda: self.wire.done["slow"] > slow, self.size.within_s, f"no {action} was sent")  # noqa: B023
            self._stop(program)
            if during():
                return
            program.send(signal.SIGCONT)

    def _stop(self, program: Program) -> None:
        """Not while it holds a lock of SQLite, which would keep everybody out, as any program's would."""
        files = [self.pipeline.state_file]
        if not self.pipeline.subscribed:
            files.append(Path(self.pipeline.source_url))

        def stopped() -> bool:
            program.send(signal.SIGSTOP)
            awaited(lambda: _is_stopped(program), self.size.within_s, "it does not stop")
            if all(map(_is_free, files)):
                return True
            program.send(signal.SIGCONT)
            return False

        awaited(stopped, self.size.within_s, "it holds a lock all the time")

    def _unlock(self) -> Pipeline:
        """What an operator does on the same machine, after a second publisher was refused."""
        refused = self.pipeline.start("publish")
        code, said = refused.wait(self.size.within_s), refused.log.read_text()
        assert code == 1, f"a second publisher ended with {code}"
        assert REFUSED in said, f"it was not told why: {said[-300:]}"
        self.pipeline.state_file.with_name(self.pipeline.state_file.name + ".lock").unlink()
        return self.pipeline

    def _copy(self) -> Pipeline:
        """What an operator does on another machine."""
        folder = self.pipeline.folder / "elsewhere"
        folder.mkdir()
        for file in self.pipeline.folder.glob("upwell-state.db*"):
            if file.suffix != ".lock":
                shutil.copy(file, folder)
        other = replace(self.pipeline, folder=folder)
        other.write_configuration()
        return other

    def started(self, pipeline: Pipeline) -> Program:
        """A publisher that is at work; where the slot is not free yet an operator does what it says, or waits, and a
        service manager starts it again.
        """
        program = pipeline.start("publish")

        def at_work() -> bool:
            nonlocal program
            if not program.running:
                said = program.log.read_text()
                assert SLOT_IN_USE in said, f"the second publisher ended: {said[-600:]}"
                assert program.wait(1) == 3
                remedy = REMEDY.search(said)
                assert remedy is not None, f"it does not say what to do: {said[-600:]}"
                if self.size.walsender_s is None:
                    with psycopg.connect(pipeline.source_url) as source:
                        source.execute(remedy[0].encode())
                program = pipeline.start("publish")
            return self._status(pipeline).get("process") == program.pid

        awaited(at_work, self.size.within_s, "the second publisher does not come to work")
        return program

    def streams(self) -> bool:
        """No snapshot is under way."""
        return all(table.phase is TablePhase.STREAM and not table.wanted for table in self.saved().tables.values())

    def saved(self) -> Checkpoint:
        """The checkpoint."""
        return _loaded(self.pipeline)

    def _status(self, pipeline: Pipeline) -> Mapping[str, Any]:
        state = pipeline.state()
        try:
            return state.status() or {}
        except TransientError:
            return {}  # it is being made at this moment
        finally:
            state.release()


def _loaded(pipeline: Pipeline) -> Checkpoint:
    state = pipeline.state()
    checkpoint = state.load()
    state.release()
    assert checkpoint is not None, "nothing was saved yet"
    return checkpoint


def _is_stopped(program: Program) -> bool:
    assert program.running, f"{program.log.name} ended"
    return " T " in Path(f"/proc/{program.pid}/stat").read_text()


def _is_free(file: Path) -> bool:
    """Whether nobody is about to write the SQLite database."""
    with closing(sqlite3.connect(file, timeout=1, isolation_level=None)) as database:
        try:
            database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        database.execute("ROLLBACK")
        return True
