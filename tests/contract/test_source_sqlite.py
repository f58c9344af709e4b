"""SqliteSource against the contract, with real files, in both journal modes."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.contract.source_contract import SourceContract
from upwell.clock import SystemClock
from upwell.model import TableName, TableSelection
from upwell.sources.sqlite import SqliteSource
from upwell.sources.sqlite_setup import track


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
class TestSqliteSource(SourceContract):
    settle_s = 0.0  # what is committed is there at once

    @pytest.fixture(autouse=True)
    def _database(self, tmp_path: Path, journal_mode: str) -> Iterator[None]:
        self.path = str(tmp_path / "shop.db")
        self.made: list[SqliteSource] = []
        with closing(sqlite3.connect(self.path, isolation_level=None)) as self.connection:
            self.connection.execute(f"PRAGMA journal_mode = {journal_mode}")
            yield
            for source in self.made:
                source.close()

    def execute(self, *statements: str) -> None:
        self._run(statements, "COMMIT")

    def execute_and_roll_back(self, *statements: str) -> None:
        self._run(statements, "ROLLBACK")

    def _run(self, statements: tuple[str, ...], end: str) -> None:
        self.connection.execute("BEGIN IMMEDIATE")
        for statement in statements:
            self.connection.execute(statement)
        self.connection.execute(end)

    def make(self, *tables: str) -> SqliteSource:
        selections = [TableSelection(TableName("main", table)) for table in tables]
        track(self.path, selections)
        self.made.append(SqliteSource(self.path, tables=selections, clock=SystemClock()))
        return self.made[-1]

    def name_of(self, table: str) -> str:
        return f"main.{table}"
