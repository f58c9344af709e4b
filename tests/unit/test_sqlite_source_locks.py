"""SQLite's log is trimmed, locks are waited for, and no writer is kept waiting."""

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.source_contract import EPOCH
from tests.unit.sqlite_shop import ALL, Shop, confirm, open_shop
from upwell.clock import SystemClock
from upwell.errors import TransientError
from upwell.sources import sqlite, sqlite_reading
from upwell.sources.sqlite import SqliteSource
from upwell.sources.sqlite_setup import track


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with open_shop(tmp_path) as shop:
        yield shop


def log_entries(shop: Shop) -> int:
    return int(shop.writer.execute("SELECT count(*) FROM _upwell_log").fetchone()[0])


def test_the_log_is_trimmed_to_what_is_confirmed(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "TRIM_ENTRIES_MAX", 7)
    replica = shop.reader()
    shop.run(*(f"INSERT INTO item VALUES ({n}, 'a', 1)" for n in range(50)))
    replica.take_window(limit=40)
    confirm(replica)
    assert log_entries(shop) == 11  # the last one confirmed stays, as the position's witness
    replica.take_all()
    confirm(replica)
    assert log_entries(shop) == 1
    shop.run("INSERT INTO item VALUES (100, 'a', 1)")
    replica.take_all()
    assert len(replica.of("main.item")) == 51


def test_a_locked_database_never_fails_the_publisher(shop: Shop) -> None:
    replica = shop.reader()
    shop.run("INSERT INTO item VALUES (1, 'a', 1)")
    replica.take_all()
    shop.run("INSERT INTO item VALUES (2, 'b', 1)", "BEGIN IMMEDIATE", "INSERT INTO item VALUES (3, 'c', 1)")
    confirm(replica)
    assert log_entries(shop) == 3
    replica.take_all()
    assert len(replica.of("main.item")) == 2
    shop.run("COMMIT")
    replica.take_all()
    confirm(replica)
    assert (log_entries(shop), len(replica.of("main.item"))) == (1, 3)


def test_an_exclusive_lock_is_waited_for_and_then_transient(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.01)
    replica = shop.reader()
    shop.run("BEGIN EXCLUSIVE", "INSERT INTO item VALUES (1, 'a', 1)")
    with pytest.raises(TransientError, match="locked"):
        replica.take_window()
    shop.run("COMMIT")
    replica.take_all()
    assert replica.of("main.item") == [[1, "a", 1]]


def test_a_change_ends_the_waiting(shop: Shop) -> None:
    replica = shop.reader()
    with sqlite3.connect(shop.path, isolation_level=None, check_same_thread=False) as other:
        timer = threading.Timer(0.05, other.execute, ["INSERT INTO item VALUES (1, 'a', 1)"])
        timer.start()
        window = replica.take_window(wait_s=30.0)
        timer.join()
    other.close()
    assert [event.key for event in window.events] == [b"[1]"]


def test_stopping_ends_the_waiting(shop: Shop) -> None:
    track(shop.path, ALL)
    stop = threading.Event()
    source = SqliteSource(shop.path, tables=ALL, clock=SystemClock(stop))
    shop.sources.append(source)
    position, _ = source.start(None, EPOCH)
    source.changes(position, 10, 0.0)
    stop.set()
    assert source.changes(position, 10, 1e6).events == []


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_writers_are_never_refused_while_nothing_is_read(shop: Shop, mode: str) -> None:
    """The writer does not wait for locks at all: between windows, chunks and trims there are none."""
    shop.run(f"PRAGMA journal_mode = {mode}")
    replica = shop.reader()
    schema = replica.source.tables()[0]
    for n in range(60):
        shop.run(f"INSERT INTO item VALUES ({n}, 'a', {n})")
        replica.take_window()
        shop.run(f"UPDATE item SET qty = 0 WHERE id = {n}")
        assert replica.source.chunk(schema, None, 10) is not None
        shop.run(f"DELETE FROM item WHERE id = {n} AND id % 2 = 0")
        confirm(replica)
        replica.source.health()
    replica.take_all()
    assert len(replica.of("main.item")) == 30


def test_a_writer_goes_on_while_a_window_is_read_in_wal_mode(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.run("PRAGMA journal_mode = wal")
    replica = shop.reader()
    shop.run("INSERT INTO item VALUES (1, 'a', 1)")
    fetch = sqlite_reading.fetch

    def write_meanwhile(*arguments: Any) -> tuple[list[Any], bool]:
        rows = fetch(*arguments)
        shop.run("UPDATE item SET qty = qty + 1")
        return rows

    monkeypatch.setattr(sqlite, "fetch", write_meanwhile)
    window = replica.take_window()
    assert [event.row for event in window.events] == [b'[1,"a",1]']
    monkeypatch.undo()
    replica.take_all()
    assert replica.of("main.item") == [list(shop.writer.execute("SELECT * FROM item").fetchone())]
