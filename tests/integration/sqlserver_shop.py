"""A database on a SQL Server with a source that reads it, for the tests of that source."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.contract.source_contract import EPOCH, Replica
from tests.sqlserver_databases import connect, fresh_database
from upwell.clock import SystemClock
from upwell.model import ChangeEvent, Position, TableSelection, Window
from upwell.ports import Clock
from upwell.sources.sqlserver import SqlServerSource
from upwell.sources.sqlserver_session import Driver, Session
from upwell.sources.sqlserver_setup import track
from upwell.tablepatterns import parse_pattern

Isolation = Literal["snapshot", "read committed"]

CREATE = "CREATE TABLE {} (id int NOT NULL PRIMARY KEY, a int NULL, b nvarchar(20) NULL)"


@dataclass
class Shop:
    """What is written goes by python-tds, what is read by `driver`."""

    url: str
    sql: Session
    driver: Driver
    made: list[SqlServerSource] = field(default_factory=list)

    def run(self, *statements: str) -> None:
        """Each is a transaction of its own."""
        for statement in statements:
            self.sql.run(statement)

    def together(self, *statements: str) -> None:
        """All of them in one transaction."""
        self.run("BEGIN TRANSACTION", *statements, "COMMIT TRANSACTION")

    def hook(self, hook: str, /, **arguments: str | int) -> None:
        """What no client of a true SQL Server could do."""
        given = ", ".join(
            f"@{key} = {value if isinstance(value, int) else repr(value)}" for key, value in arguments.items()
        )
        self.sql.run(f"EXEC lab.{hook} {given}")

    def value(self, sql: str) -> Any:
        """Of a statement's first row and column."""
        row = self.sql.one(sql)
        assert row is not None
        return row[0]

    def version(self) -> int:
        """Of the database's changes."""
        return int(self.value("SELECT CHANGE_TRACKING_CURRENT_VERSION()"))

    def tracked(self, *tables: str, create: str = CREATE) -> None:
        """New tables with change tracking on."""
        for table in tables:
            self.run(create.format(table))
        track(self.url, selections(*tables), self.driver)

    def source(self, *tables: str, url: str = "", clock: Clock | None = None) -> SqlServerSource:
        """Of these tables, or patterns."""
        made = SqlServerSource(
            url or self.url,
            tables=selections(*tables),
            pipeline="shop",
            clock=clock or SystemClock(),
            driver=self.driver,
        )
        self.made.append(made)
        return made

    def replica(self, *tables: str, position: Position | None = None) -> Replica:
        """Of these tables, from the position or from now on; has read the first window, which tells the schemas."""
        source = self.source(*tables)
        replica = Replica(source, *source.start(position, EPOCH), 0.0)
        replica.take_window()
        return replica

    def replica_of_three(self) -> Replica:
        """Of table t; it has seen rows 1, 2 and 3 come."""
        replica = self.replica("t")
        self.run("INSERT INTO t VALUES (1, 1, N'a'), (2, 2, N'b'), (3, 3, N'c')")
        replica.take_window()
        return replica


def selections(*tables: str) -> list[TableSelection]:
    return [TableSelection(parse_pattern(table)) for table in tables]


@contextmanager
def open_shop(url: str, driver: Driver = "mssql-python", isolation: Isolation = "snapshot") -> Iterator[Shop]:
    """A shop in a database of its own."""
    with fresh_database(url, snapshots=isolation == "snapshot") as own, connect(own) as sql:
        shop = Shop(own, sql, driver)
        with closing_all(shop):
            yield shop


@contextmanager
def closing_all(shop: Shop) -> Iterator[None]:
    try:
        yield
    finally:
        for source in shop.made:
            source.close()


def told(events: list[ChangeEvent]) -> list[tuple[str, str, str]]:
    """(operation, what the source called it, key) of each event."""
    return [(event.operation, event.was, event.key.decode()) for event in events]


def windows_until(replica: Replica, commit: int, limit: int = 1000) -> list[Window]:
    """The windows up to a version."""
    found = []
    for _ in range(1000):
        found.append(replica.take_window(limit))
        if replica.commit >= commit:
            return found
    raise AssertionError("the version is never reached")
