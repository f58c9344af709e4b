"""PostgresSource passes the contract of ports.Source."""

from collections.abc import Iterator

import pytest

from lab.parts import PostgresServer
from tests.contract.source_contract import SourceContract
from upwell.clock import SystemClock
from upwell.model import TableName, TableSelection
from upwell.sources.postgres import PostgresSource
from upwell.sources.postgres_setup import track


class TestPostgresSource(SourceContract):
    settle_s = 0.2  # a commit takes a moment to come down the replication connection

    @pytest.fixture(autouse=True)
    def _database(self, database: str, postgres_cluster: PostgresServer) -> Iterator[None]:
        self.url = postgres_cluster.url(database)
        self.slot = f"slot_{database}"
        self.made: list[PostgresSource] = []
        with postgres_cluster.connect(database) as self.connection:
            yield
            for source in self.made:
                source.close()

    def execute(self, *statements: str) -> None:
        with self.connection.transaction():
            for statement in statements:
                self.connection.execute(statement.encode())

    def execute_and_roll_back(self, *statements: str) -> None:
        with self.connection.transaction(force_rollback=True):
            for statement in statements:
                self.connection.execute(statement.encode())

    def make(self, *tables: str) -> PostgresSource:
        for source in self.made:
            source.close()  # one at a time reads a slot
        selections = [TableSelection(TableName("", table)) for table in tables]
        track(self.url, tables=selections, slot=self.slot, publication="upwell")
        self.made.append(
            PostgresSource(self.url, tables=selections, slot=self.slot, publication="upwell", clock=SystemClock())
        )
        return self.made[-1]

    def name_of(self, table: str) -> str:
        return f"public.{table}"
