"""What SQLite's log does not have: lost triggers, restored and replaced files, entries that went, other readers."""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.source_contract import EPOCH, Replica
from tests.unit.sqlite_shop import ALL, Shop, confirm, lost, open_shop
from upwell.errors import LeaseLost
from upwell.model import Position
from upwell.sources.sqlite_setup import track, untrack


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with open_shop(tmp_path) as shop:
        yield shop


def test_triggers_lost_while_running_cause_a_resync_of_their_table(shop: Shop) -> None:
    shop.run("CREATE TABLE other (id INTEGER PRIMARY KEY)")
    replica = shop.reader()
    before = replica.position
    shop.run('DROP TRIGGER "_upwell_update_item"', "INSERT INTO other VALUES (1)")
    window = replica.take_window()
    assert [table for table, _ in window.resync] == ["main.item"]
    assert replica.of("main.other") == [[1]]
    assert replica.take_window().resync == []
    # Killed before the window was saved: the gap is told again; after it, no more.
    assert lost(lambda: shop.source().start(before, EPOCH)).tables == ["main.item"]
    shop.source().start(replica.position, EPOCH)


def test_triggers_lost_while_stopped_lose_their_table_only(shop: Shop) -> None:
    shop.run("CREATE TABLE other (id INTEGER PRIMARY KEY)")
    position = shop.reader().position
    shop.run("DROP TABLE item", "CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, qty INT)")
    assert lost(lambda: shop.source().start(position, EPOCH)).tables == ["main.item"]
    # Killed before that was saved: it is told again, though the triggers are in place meanwhile.
    source = shop.source()
    assert lost(lambda: source.start(position, EPOCH)).tables == ["main.item"]
    replica = Replica(source, *source.start(position, EPOCH), settle_s=0.0)
    shop.run("INSERT INTO item VALUES (1, 'a', 1)", "INSERT INTO other VALUES (1)")
    replica.take_all()
    assert (replica.of("main.item"), replica.of("main.other")) == ([[1, "a", 1]], [[1]])
    shop.source().start(replica.position, EPOCH)


def test_who_was_stopped_and_has_a_successor_ends(shop: Shop) -> None:
    """With a copy of the state file each has a lease of its own: it is the log that tells who reads it."""
    old = shop.reader()
    shop.run("INSERT INTO item VALUES (1, 'a', 1)")
    start = old.position
    old.take_all()
    new = shop.reader(start)
    shop.run("INSERT INTO item VALUES (2, 'b', 2)")
    new.take_all()
    new.source.confirm(new.position)  # now its position would be lost too, which is not to begin an epoch
    schema = new.source.tables()[0]
    for work in (
        lambda: old.source.changes(old.position, 10, 0.0),
        lambda: old.source.chunk(schema, None, 10),
        lambda: old.source.confirm(old.position),
        lambda: old.source.start(old.position, EPOCH + 1),
        lambda: old.source.start(None, EPOCH + 1),
    ):
        with pytest.raises(LeaseLost, match="Another publisher has taken over the change log") as caught:
            work()
        assert caught.value.code == "UW-SL-018"
    shop.run("INSERT INTO item VALUES (3, 'c', 3)")
    new.take_all()
    assert new.of("main.item") == [[1, "a", 1], [2, "b", 2], [3, "c", 3]]


def test_a_database_that_is_replaced_while_running_has_no_other_reader(shop: Shop, tmp_path: Path) -> None:
    """Neither an older copy of itself, nor one of another log that somebody else reads."""
    (tmp_path / "other").mkdir()
    other = Shop(tmp_path / "other")
    other.run("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, qty INT)")
    before = tmp_path / "before.db"
    track(shop.path, ALL)
    shutil.copy(shop.path, before)
    replica = shop.reader()
    shop.run("INSERT INTO item VALUES (1, 'a', 1)")
    replica.take_all()
    other.reader()
    shop.writer.close()
    for replacement in (before, Path(other.path)):
        shutil.copy(replacement, tmp_path / "new.db")
        (tmp_path / "new.db").replace(shop.path)
        lost(lambda: replica.source.changes(replica.position, 10, 0.0))
        replica.position, replica.commit = replica.source.start(None, EPOCH + 1)
    other.close()


def test_a_table_rebuilt_while_running_is_resynced(shop: Shop) -> None:
    """As migration tools do: a new table, the rows copied, the old one dropped, the new one renamed."""
    replica = shop.reader()
    shop.run("INSERT INTO item VALUES (1, 'a', 1)")
    replica.take_all()
    shop.run("CREATE TABLE new_item (id INTEGER PRIMARY KEY, name TEXT NOT NULL, qty INT, tag TEXT DEFAULT 'x')")
    replica.take_all()
    shop.run("INSERT INTO new_item SELECT *, 'y' FROM item", "DROP TABLE item")
    replica.take_all()
    shop.run("ALTER TABLE new_item RENAME TO item")
    replica.take_all()
    assert "main.item" in {table for window in replica.windows for table, _ in window.resync}
    replica.snapshot("main.item")
    shop.run("UPDATE item SET qty = 2")
    replica.take_all()
    assert replica.of("main.item") == [[1, "a", 2, "y"]]


def test_log_entries_of_a_shorter_key_say_nothing_of_a_longer_one(shop: Shop) -> None:
    replica = shop.reader()
    shop.run("INSERT INTO item VALUES (1, 'a', 1)", "DROP TABLE item")
    shop.run("CREATE TABLE item (shop INT NOT NULL, id INT NOT NULL, PRIMARY KEY (shop, id))")
    window = replica.take_window()
    assert (window.events, window.rejected) == ([], [])
    assert [table for table, _ in window.resync] == ["main.item"]


def test_the_position_of_another_kind_of_source_is_lost(shop: Shop) -> None:
    track(shop.path, ALL)
    for position in ("0/16B3748", '{"lsn": 1}', "[]"):
        assert lost(lambda p=position: shop.source().start(Position(p), EPOCH)).tables is None  # type: ignore[misc]


def restored(shop: Shop, *after_backup: str) -> Position:
    """Backs the file up, reads what follows, confirms that, and puts the backup in the file's place."""
    replica = shop.reader()
    shop.run("INSERT INTO item VALUES (1, 'a', 1)")
    replica.take_all()
    confirm(replica)
    shop.writer.execute("VACUUM INTO ?", (shop.path + ".backup",))
    shop.run(*after_backup)
    replica.take_all()
    shop.writer.close()
    os.replace(shop.path + ".backup", shop.path)
    shop.writer = sqlite3.connect(shop.path, isolation_level=None)
    return replica.position


def test_a_restored_file_is_found_out_at_start(shop: Shop) -> None:
    position = restored(shop, "INSERT INTO item VALUES (2, 'b', 2)")
    assert lost(lambda: shop.source().start(position, EPOCH)).tables is None


def test_a_restored_file_that_has_gone_as_far_is_found_out(shop: Shop) -> None:
    position = restored(shop, "INSERT INTO item VALUES (2, 'b', 2)")
    shop.run(*(f"INSERT INTO item VALUES ({n}, 'other', 2)" for n in range(3, 9)))
    assert lost(lambda: shop.source().start(position, EPOCH)).tables is None


def test_a_file_replaced_while_running_is_found_out(shop: Shop) -> None:
    replica = shop.reader()
    shop.run("INSERT INTO item VALUES (1, 'a', 1)")
    shop.writer.execute("VACUUM INTO ?", (shop.path + ".backup",))
    shop.run("INSERT INTO item VALUES (2, 'b', 2)")
    replica.take_all()
    os.replace(shop.path + ".backup", shop.path)
    assert lost(replica.take_window).tables is None
    position, commit = replica.source.start(None, EPOCH + 1)
    assert replica.source.changes(position, 10, 0.0).commit == commit


def test_a_restore_into_the_open_file_is_found_out(shop: Shop) -> None:
    replica = shop.reader()
    with sqlite3.connect(":memory:") as backup:
        shop.writer.backup(backup)
        shop.run("INSERT INTO item VALUES (1, 'a', 1)", "INSERT INTO item VALUES (2, 'b', 2)")
        replica.take_all()
        backup.backup(shop.writer)
    backup.close()
    assert lost(replica.take_window).tables is None


def test_another_database_is_found_out(shop: Shop) -> None:
    position = shop.reader().position
    untrack(shop.path)
    track(shop.path, ALL)
    assert lost(lambda: shop.source().start(position, EPOCH)).tables is None


def test_a_position_older_than_the_log_is_lost(shop: Shop) -> None:
    replica = shop.reader()
    old = replica.position
    for n in range(5):
        shop.run(f"INSERT INTO item VALUES ({n}, 'a', 1)")
    replica.take_all()
    confirm(replica)
    assert lost(lambda: shop.source().start(old, EPOCH)).tables is None
    assert shop.source().start(replica.position, EPOCH)[1] == 5


def test_log_entries_removed_by_hand_are_missed(shop: Shop) -> None:
    replica = shop.reader()
    shop.run("INSERT INTO item VALUES (1, 'a', 1)")
    replica.take_all()
    shop.run("DELETE FROM _upwell_log")
    assert lost(replica.take_window).tables is None


def test_a_state_of_an_earlier_epoch_is_found_out(shop: Shop) -> None:
    """Nothing was changed in between, so that the position alone would seem to be right."""
    replica = shop.reader()
    before = replica.position
    shop.source().start(before, EPOCH + 5)
    assert "older one" in str(lost(lambda: shop.source().start(before, EPOCH)))
    assert "older one" in str(lost(lambda: shop.source().start(before, EPOCH + 4)))
    shop.source().start(before, EPOCH + 5)
    shop.source().start(before, EPOCH + 6)


def test_idle_tables_cause_no_alarm(shop: Shop) -> None:
    replica = shop.reader()
    shop.run("INSERT INTO item VALUES (1, 'a', 1)")
    replica.take_all()
    for _ in range(3):
        confirm(replica)
        shop.run("VACUUM", "ANALYZE", "REINDEX")
        assert replica.take_window().resync == []
        replica = shop.reader(replica.position)
