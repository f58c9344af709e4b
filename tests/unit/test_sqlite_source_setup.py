"""SQLite's file, and what is tracked, found and kept in it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.source_contract import EPOCH
from tests.unit.sqlite_shop import ALL, Shop, confirm, open_shop
from upwell.clock import SystemClock
from upwell.errors import OperatorError, TransientError
from upwell.model import TableName, TableSelection
from upwell.sources.sqlite import SqliteSource
from upwell.sources.sqlite_setup import findings, track, track_sql, untrack, untrack_sql


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with open_shop(tmp_path) as shop:
        yield shop


def test_without_tracking_nothing_starts(shop: Shop) -> None:
    with pytest.raises(OperatorError, match="keeps no change log") as caught:
        shop.source().start(None, EPOCH)
    assert "upwell track" in caught.value.remedy


def test_tracking_is_shown_before_it_is_done_and_undone(shop: Shop) -> None:
    before = shop.writer.execute("SELECT count(*) FROM sqlite_master").fetchone()
    planned = track_sql(shop.path, ALL)
    assert shop.writer.execute("SELECT count(*) FROM sqlite_master").fetchone() == before
    assert track(shop.path, ALL) == planned
    assert track(shop.path, ALL) == track_sql(shop.path, ALL) == []
    shop.run("INSERT INTO item VALUES (1, 'a', 1)")
    planned = untrack_sql(shop.path)
    assert untrack(shop.path) == planned
    names = [name for (name,) in shop.writer.execute("SELECT name FROM sqlite_master")]
    assert [name for name in names if name.startswith("_upwell")] == []
    assert untrack(shop.path) == untrack_sql(shop.path) == []
    shop.run("INSERT INTO item VALUES (2, 'b', 2)")


def test_a_table_added_to_the_configuration_is_tracked_at_start(shop: Shop) -> None:
    replica = shop.reader(selections=[TableSelection(TableName("", "item"))])
    shop.run("CREATE TABLE extra (id INTEGER PRIMARY KEY)")
    later = shop.reader(replica.position)  # no gap: it was never read
    shop.run("INSERT INTO extra VALUES (1)")
    later.take_all()
    assert later.of("main.extra") == [[1]]


def test_a_table_that_appears_while_running_is_reported(shop: Shop) -> None:
    replica = shop.reader()
    shop.run("CREATE TABLE extra (id INTEGER PRIMARY KEY, v TEXT)", "INSERT INTO extra VALUES (1, 'unseen')")
    window = replica.take_window()
    assert ([schema.table for schema in window.schemas], window.resync) == (["main.extra"], [])
    shop.run("INSERT INTO extra VALUES (2, 'seen')")
    replica.take_all()
    assert replica.of("main.extra") == [[2, "seen"]]
    assert shop.source().start(replica.position, EPOCH)[1] == replica.commit


def test_a_missing_file_is_the_operators(tmp_path: Path) -> None:
    source = SqliteSource(str(tmp_path / "no.db"), tables=ALL, clock=SystemClock())
    with pytest.raises(OperatorError, match="no database file"):
        source.tables()
    assert not (tmp_path / "no.db").exists()


def test_a_file_that_is_no_database_is_the_operators(tmp_path: Path) -> None:
    path = tmp_path / "no.db"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(OperatorError, match="not an SQLite database"):
        SqliteSource(str(path), tables=ALL, clock=SystemClock()).tables()
    assert [finding.level for finding in findings(str(path), ALL)] == ["fail"]


def test_a_file_that_goes_away_while_running_is_transient(shop: Shop) -> None:
    replica = shop.reader()
    shutil.move(shop.path, shop.path + ".away")
    with pytest.raises(TransientError):
        replica.take_window()
    shutil.move(shop.path + ".away", shop.path)
    shop.run("INSERT INTO item VALUES (1, 'a', 1)")
    replica.take_all()
    assert replica.of("main.item") == [[1, "a", 1]]


def test_findings_name_what_is_missing_and_what_surprises(shop: Shop) -> None:
    shop.run("CREATE TABLE loose (a TEXT PRIMARY KEY)", "CREATE TABLE keyless (a INT)")
    found = {(finding.level, finding.code) for finding in findings(shop.path, ALL)}
    assert {("fail", "UW-SL-003"), ("fail", "UW-SL-004"), ("warn", "UW-SL-013"), ("warn", "UW-SL-015")} <= found
    shop.run("PRAGMA journal_mode = wal", "DROP TABLE keyless", "DROP TABLE loose")
    track(shop.path, ALL)
    assert {finding.level for finding in findings(shop.path, ALL)} == {"pass"}


def test_health_tells_how_much_is_kept(shop: Shop) -> None:
    replica = shop.reader()
    shop.run("INSERT INTO item VALUES (1, 'a', 1)", "INSERT INTO item VALUES (2, 'a', 1)")
    health = replica.source.health()
    assert health["log_entries"] == 2
    assert 0.0 <= health["oldest_unconfirmed_s"] < 60.0
    replica.take_all()
    confirm(replica)
    assert replica.source.health()["oldest_unconfirmed_s"] is None
    assert replica.source.estimate("main.item") == 2
