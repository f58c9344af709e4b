"""SqlServerSource passes the contract of ports.Source, with both drivers, with and without snapshot isolation."""

import re
from collections.abc import Iterator

import pytest

from tests.contract.source_contract import SourceContract
from tests.sqlserver_databases import connect, fresh_database
from upwell.clock import SystemClock
from upwell.model import TableName, TableSelection
from upwell.sources.sqlserver import SqlServerSource
from upwell.sources.sqlserver_session import Driver
from upwell.sources.sqlserver_setup import track


def in_tsql(statement: str) -> str:
    """The contract's SQL for SQL Server: text that a key may have, and that tells A from a; Unicode literals."""
    words = re.sub(r"\btext\b", "nvarchar(200) COLLATE Latin1_General_BIN2", statement.replace("ADD COLUMN", "ADD"))
    return re.sub(r"'(?:[^']|'')*'", lambda found: "N" + found[0], words)


@pytest.mark.parametrize(
    ("driver", "isolation"),
    [("mssql-python", "snapshot"), ("mssql-python", "read committed"), ("python-tds", "snapshot")],
)
class TestSqlServerSource(SourceContract):
    settle_s = 0.0  # what is committed is there at once

    @pytest.fixture(autouse=True)
    def _database(self, sqlserver: str, driver: Driver, isolation: str) -> Iterator[None]:
        self.driver = driver
        self.made: list[SqlServerSource] = []
        with fresh_database(sqlserver, snapshots=isolation == "snapshot") as self.url, connect(self.url) as self.sql:
            yield
            for source in self.made:
                source.close()

    def execute(self, *statements: str) -> None:
        self._run(statements, "COMMIT TRANSACTION")

    def execute_and_roll_back(self, *statements: str) -> None:
        self._run(statements, "ROLLBACK TRANSACTION")

    def _run(self, statements: tuple[str, ...], end: str) -> None:
        for statement in ("BEGIN TRANSACTION", *map(in_tsql, statements), end):
            self.sql.run(statement)

    def make(self, *tables: str) -> SqlServerSource:
        selections = [TableSelection(TableName("", table)) for table in tables]
        track(self.url, selections, self.driver)
        self.made.append(
            SqlServerSource(self.url, tables=selections, pipeline="p", clock=SystemClock(), driver=self.driver)
        )
        return self.made[-1]

    def name_of(self, table: str) -> str:
        return f"dbo.{table}"
