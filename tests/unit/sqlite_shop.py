"""An SQLite database file with sources that read it, for the tests of that source."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.contract.source_contract import EPOCH, Replica
from upwell.clock import SystemClock
from upwell.errors import PositionLost
from upwell.model import Position, TableName, TableSelection
from upwell.sources.sqlite import SqliteSource
from upwell.sources.sqlite_setup import track

ALL = [TableSelection(TableName("", "*"))]


class Shop:
    """A database file with a writer, and sources that read it."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "shop.db")
        self.writer = sqlite3.connect(self.path, isolation_level=None, timeout=0)
        self.sources: list[SqliteSource] = []

    def run(self, *statements: str) -> None:
        for statement in statements:
            self.writer.execute(statement)

    def source(self, selections: list[TableSelection] | None = None) -> SqliteSource:
        self.sources.append(SqliteSource(self.path, tables=selections or ALL, clock=SystemClock()))
        return self.sources[-1]

    def reader(self, position: Position | None = None, selections: list[TableSelection] | None = None) -> Replica:
        """Tracks the tables and starts to read them."""
        if position is None:
            track(self.path, selections or ALL)
        source = self.source(selections)
        replica = Replica(source, *source.start(position, EPOCH), settle_s=0.0)
        replica.take_window()
        return replica

    def close(self) -> None:
        for source in self.sources:
            source.close()
        self.writer.close()


@contextmanager
def open_shop(folder: Path) -> Iterator[Shop]:
    """With one table."""
    shop = Shop(folder)
    try:
        shop.run("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, qty INT)")
        yield shop
    finally:
        shop.close()


def confirm(replica: Replica) -> None:
    assert isinstance(replica.source, SqliteSource)
    replica.source._next_trim = 0.0  # it would wait a second between two
    replica.source.confirm(replica.position)


def lost(start: Callable[[], Any]) -> PositionLost:
    with pytest.raises(PositionLost) as caught:
        start()
    return caught.value
