"""What befalls the sources of a chaos run, each database in its own way."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import ClassVar, Final

import psycopg

from lab.parts import PostgresCluster, StandinSqlServer
from tests.acceptance import sqlserver_losses as losses
from tests.acceptance.killing import drop_slot, forget_log
from tests.acceptance.workload import KEYS, LOST, TABLES, connect
from tests.proofs.chaos.sides import EVERYWHERE, LARGE, IntoDynamoDb, IntoPostgres, Side, Trouble, bring_up

PUT_RIGHT_S: Final = 30.0
# From one restored backup to the next: more states than a workload gives in a run.
STATES: Final = 10**6
A_BACKUP: Final = "a backup waits to be restored"


class _WithOnConflict(Side):
    """PostgreSQL and SQLite speak alike."""

    def upsert(self, rows: range, note: str) -> str:
        self.state += 1
        values = ", ".join(f"({entry}, {self.state}, '{note}')" for entry in rows)
        columns = "ledger (entry, state, note)"
        return f"INSERT INTO {columns} VALUES {values} ON CONFLICT (entry) DO UPDATE SET state = excluded.state"

    def added_column(self, chance: random.Random, number: int) -> str:
        return f"ALTER TABLE {chance.choice(sorted(KEYS))} ADD COLUMN extra_{number} int DEFAULT {number}"


@dataclass(kw_only=True)
class FromPostgres(_WithOnConflict):
    """PostgreSQL →"""

    schema: ClassVar = "public"
    server: PostgresCluster

    def troubles(self) -> dict[Trouble, int]:
        return super().troubles() | {self.crash_source: 2, self.drop_slot: 1, self.truncate: 1}

    def crash_source(self, chance: random.Random) -> str:
        """In the middle of a transaction, which is undone."""
        if not self.server.running:
            return "the source is down already"
        with closing(connect(self.pipeline.source_url)) as open_transaction:
            open_transaction.execute("BEGIN")
            open_transaction.execute(f"DELETE FROM ledger WHERE entry < {LARGE.stop}")
            return self.crash(self.server, "the source", chance)

    def drop_slot(self, chance: random.Random) -> str:
        """What was to be published is forgotten."""
        if not self.server.running:
            return "the source is down already"
        self.kill_it("publish")
        try:
            with closing(connect(self.pipeline.source_url)) as source:
                drop_slot(source, self.pipeline)
        except psycopg.errors.UndefinedObject:
            return "SIGKILL of publish, it had no slot yet"
        return "SIGKILL of publish, its slot is dropped"

    def truncate(self, chance: random.Random) -> str:
        return "TRUNCATE ledger" + self.on_source("TRUNCATE ledger")


class FromSqlite(_WithOnConflict):
    """SQLite →"""

    schema: ClassVar = "main"

    def troubles(self) -> dict[Trouble, int]:
        return super().troubles() | {self.forget_log: 1, self.delete_all: 1}

    def forget_log(self, chance: random.Random) -> str:
        """What was to be published is forgotten, and changes go unseen for a while."""
        self.kill_it("publish")
        with closing(connect(self.pipeline.source_url)) as source:
            forget_log(source)
        self.pipeline.run("track")
        return "SIGKILL of publish, its log is dropped"

    def delete_all(self, chance: random.Random) -> str:
        return "DELETE FROM ledger" + self.on_source("DELETE FROM ledger")


@dataclass(kw_only=True)
class FromSqlServer(Side):
    """SQL Server →, by the stand-in and its hooks."""

    schema: ClassVar = "dbo"
    server: StandinSqlServer

    def troubles(self) -> dict[Trouble, int]:
        return super().troubles() | {
            self.crash_source: 2,
            self.truncate: 2,
            self.track_off_and_on: 2,
            self.make_anew: 1,
            self.clean_up: 3,
            self.restore: 3,
            self.fail_over: 3,
            self.meet_a_secondary: 2,
            self.lose_connections: 2,
            self.deadlock: 3,
        }

    def pause(self) -> str:
        """And then, when all is read and nobody writes, a TRUNCATE: it does not move the version."""
        told = super().pause()
        self._surely(lambda: losses.run_sql(self.pipeline.source_url, "TRUNCATE TABLE stock"))
        self.await_equal()
        for workload in self.pipeline.workloads:
            workload.recover()
        return f"{told}; and equal without stock"

    def upsert(self, rows: range, note: str) -> str:
        self.state += 1
        return (
            f"MERGE INTO ledger AS t USING (SELECT value FROM GENERATE_SERIES({rows[0]}, {rows[-1]})) AS s (entry) "
            f"ON t.entry = s.entry WHEN MATCHED THEN UPDATE SET state = {self.state} "
            f"WHEN NOT MATCHED THEN INSERT (entry, state, note) VALUES (s.entry, {self.state}, N'{note}');"
        )

    def add_column(self, chance: random.Random) -> str:
        if self.waits_for(A_BACKUP):
            return "no new column, which the backup would lack and the target keep"
        return super().add_column(chance)

    def added_column(self, chance: random.Random, number: int) -> str:
        """Not to the ledger, which is made anew without."""
        return f"ALTER TABLE {chance.choice(TABLES)} ADD extra_{number} int NOT NULL DEFAULT {number}"

    def crash_source(self, chance: random.Random) -> str:
        return self.crash(self.server, "the source", chance)

    def tried(self, work: Callable[[], None]) -> str:
        """Not at all where the server is down: python-tds would go on trying for a while."""
        return super().tried(work) if self.server.running else ", but the source is down"

    # --- what change tracking does not tell -----------------------------------------------------------------------

    def truncate(self, chance: random.Random) -> str:
        """After a change: a TRUNCATE just after tracking was turned on can't be noticed."""
        table = chance.choice(("ledger", "stock"))
        changed = self.upsert(EVERYWHERE, "truncated") if table == "ledger" else "UPDATE stock SET note = note"
        return f"TRUNCATE {table}" + (self.on_source(changed) or self.on_source(f"TRUNCATE TABLE {table}"))

    def track_off_and_on(self, chance: random.Random) -> str:
        return "tracking of item off and on" + self.tried(lambda: losses.track_off_and_on(self.pipeline.source_url))

    def make_anew(self, chance: random.Random) -> str:
        self.state += 1
        return "ledger is made anew" + self.tried(
            lambda: losses.make_ledger_anew(self.pipeline.source_url, LARGE.start, self.state)
        )

    def clean_up(self, chance: random.Random) -> str:
        """With changes in it that nobody has read yet."""
        with self._unseen(chance.random() < 0.5) as how:
            failed = self.on_source(self.upsert(EVERYWHERE, "cleaned up"))
            return f"cleanup while publish {how}" + (
                failed or self.tried(lambda: losses.clean_up(self.pipeline.source_url))
            )

    def restore(self, chance: random.Random) -> str:
        """What is written from now on will be lost in a while."""
        if self.waits_for(A_BACKUP) or self.waits_for("secondary"):
            return "no backup now"
        failed = self.tried(lambda: losses.back_up(self.pipeline.source_url))
        if failed:
            return "a backup" + failed
        killed = chance.random() < 0.5
        return self.later(chance.uniform(0.5, 8), A_BACKUP, lambda: self._restore(killed))

    def _restore(self, killed: bool) -> None:
        """The rows are old ones then; before anybody sees them, they get states above all that were ever seen."""
        with self._unseen(killed):
            for workload in self.pipeline.workloads:
                workload.floor += STATES
            floor = self.pipeline.workloads[0].floor
            self.state += 1
            self._surely(lambda: losses.restore(self.pipeline.source_url))
            self._surely(
                lambda: losses.run_sql(
                    self.pipeline.source_url,
                    "BEGIN",
                    *(f"UPDATE {table} SET state = {floor} WHERE state < {floor}" for table in TABLES),
                    f"UPDATE ledger SET state = {floor} WHERE entry > 0 AND state < {floor}",
                    f"UPDATE ledger SET state = {self.state} WHERE entry < 0",
                    "COMMIT",
                )
            )

    @contextmanager
    def _unseen(self, killed: bool) -> Iterator[str]:
        """Meanwhile the publisher sees nothing: it was killed and starts afterwards, or it is frozen."""
        frozen = self.services.get("publish")
        if killed or frozen is None or not frozen.running:
            self.kill_it("publish")
            yield "is dead"
            return
        frozen.send(signal.SIGSTOP)
        try:
            yield "is frozen"
        finally:
            frozen.send(signal.SIGCONT)

    # --- the server -----------------------------------------------------------------------------------------------

    def fail_over(self, chance: random.Random) -> str:
        name = f"SQL{chance.randrange(100):02}"
        return f"failover to {name}" + self._hook(f"EXEC lab.fail_over @server = '{name}'")

    def meet_a_secondary(self, chance: random.Random) -> str:
        """It takes no writes, and tells no changes; and then it is the primary again."""
        if self.waits_for("secondary"):
            return "a secondary answers already"
        failed = self._hook("EXEC lab.role @role = 'SECONDARY'") or self._hook("EXEC lab.disconnect")

        def put_right() -> None:
            self._surely(lambda: losses.run_sql(self.pipeline.source_url, "EXEC lab.role @role = 'PRIMARY'"))

        return self.later(chance.uniform(0.5, 4), "a secondary answers", put_right) + failed

    def lose_connections(self, chance: random.Random) -> str:
        """At once, or when some more packets have come."""
        if chance.random() < 0.5:
            return "all connections to the source end" + self._hook("EXEC lab.disconnect")
        return self._soon("drop_after", "packets", chance.randint(1, 60))

    def deadlock(self, chance: random.Random) -> str:
        return self._soon("deadlock", "statements", chance.randint(1, 5))

    def _soon(self, hook: str, of: str, number: int) -> str:
        """A hook that waits for what comes; it waits no longer than to the next pause."""

        def put_right() -> None:
            self._surely(lambda: losses.run_sql(self.pipeline.source_url, f"EXEC lab.{hook} @{of} = 0"))

        failed = self._hook(f"EXEC lab.{hook} @{of} = {number}")
        return self.later(10, f"{hook} {number} {of}", put_right) + failed

    def _hook(self, statement: str) -> str:
        return self.tried(lambda: losses.run_sql(self.pipeline.source_url, statement))

    def _surely(self, work: Callable[[], None]) -> None:
        """Whatever else befalls the source just now."""
        deadline = time.monotonic() + PUT_RIGHT_S
        while True:
            bring_up(self.server)
            if time.monotonic() > deadline:
                work()
                return
            with suppress(*LOST):
                work()
                return
            time.sleep(0.05)


@dataclass(kw_only=True)
class PostgresToPostgres(FromPostgres, IntoPostgres):
    route = "PostgreSQL → Kinesis → PostgreSQL"


@dataclass(kw_only=True)
class SqliteToDynamoDb(FromSqlite, IntoDynamoDb):
    route = "SQLite → DynamoDB"


@dataclass(kw_only=True)
class SqlServerToPostgres(FromSqlServer, IntoPostgres):
    route = "SQL Server → Kinesis → PostgreSQL"


@dataclass(kw_only=True)
class SqlServerToDynamoDb(FromSqlServer, IntoDynamoDb):
    route = "SQL Server → DynamoDB"
