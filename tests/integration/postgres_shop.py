"""A PostgreSQL database with a source that reads it, for the tests of that source."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import psycopg

from lab.parts import PostgresServer
from upwell.clock import SystemClock
from upwell.model import ChangeEvent, Chunk, Cursor, Position, TableName, TableSelection, Window
from upwell.sources.postgres import PostgresSource
from upwell.sources.postgres_setup import track

PUBLICATION = "upwell"
EPOCH = 1_700_000_000


@dataclass
class Shop:
    """One database, one slot. `read` returns what has been committed since the last time."""

    server: PostgresServer
    database: str
    connection: psycopg.Connection[tuple[Any, ...]]
    sources: list[PostgresSource] = field(default_factory=list)
    position: Position = Position("")  # noqa: RUF009 - a NewType of str

    @property
    def url(self) -> str:
        return self.server.url(self.database)

    @property
    def slot(self) -> str:
        return f"slot_{self.database}"

    @property
    def source(self) -> PostgresSource:
        return self.sources[-1]

    def reconnect(self) -> None:
        """After the server was away."""
        self.connection.close()
        self.connection = self.server.connect(self.database)

    def execute(self, *statements: str) -> None:
        """In one transaction."""
        with self.connection.transaction():
            for statement in statements:
                self.connection.execute(statement.encode())

    def value(self, query: str) -> Any:
        row = self.connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]

    def select(self, *patterns: str, exclude: tuple[str, ...] = ()) -> list[TableSelection]:
        return [TableSelection(TableName.parse(pattern), exclude=exclude) for pattern in patterns or ("*",)]

    def track(self, *patterns: str) -> list[str]:
        return track(self.url, tables=self.select(*patterns), slot=self.slot, publication=PUBLICATION)

    def make(self, *patterns: str, exclude: tuple[str, ...] = ()) -> PostgresSource:
        """A source, not started; the one before is closed."""
        for source in self.sources:
            source.close()
        tables = self.select(*patterns, exclude=exclude)
        self.sources.append(
            PostgresSource(self.url, tables=tables, slot=self.slot, publication=PUBLICATION, clock=SystemClock())
        )
        return self.source

    def start(self, *patterns: str, exclude: tuple[str, ...] = ()) -> PostgresSource:
        """A source of tracked tables that reads from now on."""
        self.track(*patterns)
        source = self.make(*patterns, exclude=exclude)
        self.position, _ = source.start(None, EPOCH)
        return source

    def windows(self, limit: int = 10_000) -> list[Window]:
        """Windows up to what is committed now."""
        head = self.source.head()
        windows: list[Window] = []
        deadline = time.monotonic() + 30
        while not windows or windows[-1].commit < head or not windows[-1].complete:
            assert time.monotonic() < deadline
            window = self.source.changes(self.position, limit, 1.0)
            self.position = window.position
            windows.append(window)
        return windows

    def read(self, limit: int = 10_000) -> list[ChangeEvent]:
        return [event for window in self.windows(limit) for event in window.events]

    def chunks(self, table: str, limit: int = 1000) -> list[Chunk]:
        schema = next(schema for schema in self.source.tables() if schema.table == table)
        chunks: list[Chunk] = []
        cursor: Cursor | None = None
        while not chunks or cursor is not None:
            chunk = self.source.chunk(schema, cursor, limit)
            assert chunk is not None
            chunks.append(chunk)
            cursor = chunk.cursor
        return chunks

    def snapshot(self, table: str, limit: int = 1000) -> list[tuple[bytes, bytes]]:
        return [row for chunk in self.chunks(table, limit) for row in chunk.rows]

    def end_sessions(self) -> None:
        """As if the network had cut every connection but this one."""
        self.connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


@contextmanager
def open_shop(server: PostgresServer, database: str) -> Iterator[Shop]:
    shop = Shop(server, database, server.connect(database))
    try:
        yield shop
    finally:
        for source in shop.sources:
            source.close()
        shop.connection.close()


def brief(events: list[ChangeEvent]) -> list[tuple[str, list[Any], Any]]:
    """(operation, key, values by column) of each."""
    return [
        (
            event.operation,
            orjson.loads(event.key),
            None
            if event.row is None
            else dict(zip((c.name for c in event.schema.columns), event.values(), strict=True)),
        )
        for event in events
    ]
