"""What SQLite allows, and what becomes of it: gaps, restored files, odd keys and values, schema changes, locks."""

import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.source_contract import EPOCH, Replica
from upwell.clock import SystemClock
from upwell.errors import LeaseLost, OperatorError, PositionLost, TransientError
from upwell.model import Position, TableName, TableSelection, Window
from upwell.sources import sqlite, sqlite_reading
from upwell.sources.sqlite import SqliteSource
from upwell.sources.sqlite_catalog import parse_index
from upwell.sources.sqlite_setup import findings, inspect, track, track_sql, untrack, untrack_sql

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


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path)
    shop.run("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, qty INT)")
    yield shop
    shop.close()


def confirm(replica: Replica) -> None:
    assert isinstance(replica.source, SqliteSource)
    replica.source._next_trim = 0.0  # it would wait a second between two
    replica.source.confirm(replica.position)


def lost(start: Callable[[], Any]) -> PositionLost:
    with pytest.raises(PositionLost) as caught:
        start()
    return caught.value


# --- capture ---------------------------------------------------------------------------------------------------------


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


# --- gaps ------------------------------------------------------------------------------------------------------------


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


# --- the log ---------------------------------------------------------------------------------------------------------


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


# --- keys and values -------------------------------------------------------------------------------------------------


def test_a_key_that_changes_its_case_only(shop: Shop) -> None:
    shop.run(
        "CREATE TABLE tag (name TEXT COLLATE NOCASE PRIMARY KEY NOT NULL, n INT)", "INSERT INTO tag VALUES ('a', 1)"
    )
    replica = shop.reader()
    replica.snapshot("main.tag")
    shop.run("UPDATE tag SET name = 'A'")
    replica.take_all()
    assert replica.of("main.tag") == [["A", 1]]
    shop.run("INSERT OR REPLACE INTO tag VALUES ('a', 2)")
    replica.take_all()
    assert replica.of("main.tag") == [["a", 2]]


def test_a_rowid_that_is_used_again(shop: Shop) -> None:
    replica = shop.reader()
    shop.run("INSERT INTO item (name) VALUES ('old')", "DELETE FROM item", "INSERT INTO item (name) VALUES ('new')")
    replica.take_all()
    assert replica.of("main.item") == [[1, "new", None]]


def test_sixteen_key_columns_and_no_more(shop: Shop) -> None:
    names = [f"k{n}" for n in range(17)]
    shop.run(f"CREATE TABLE wide ({', '.join(names[:16])}, PRIMARY KEY ({', '.join(names[:16])})) WITHOUT ROWID")
    replica = shop.reader()
    for n in range(5):
        shop.run(f"INSERT INTO wide VALUES ({', '.join(str((n >> i) & 1) for i in range(16))})")
    replica.take_all()
    replica.snapshot("main.wide", limit=2)
    assert len(replica.of("main.wide")) == 5
    shop.run(f"CREATE TABLE wider ({', '.join(names)}, PRIMARY KEY ({', '.join(names)}))")
    with pytest.raises(OperatorError, match="17 columns"):
        shop.source().tables()


def test_null_in_a_key_becomes_a_dead_letter(shop: Shop) -> None:
    shop.run("CREATE TABLE t (a TEXT, b INT, v INT, PRIMARY KEY (a, b))")
    shop.run("INSERT INTO t VALUES (NULL, 1, 1), (NULL, 1, 2), ('x', NULL, 3), ('x', 1, 4), ('y', 2, 5)")
    replica = shop.reader()
    schema = next(s for s in replica.source.tables() if s.table == "main.t")
    cursor, rows, rejected = None, list[Any](), list[Any]()
    for _ in range(10):
        chunk = replica.source.chunk(schema, cursor, 1)
        assert chunk is not None
        cursor, rows, rejected = chunk.cursor, rows + chunk.rows, rejected + chunk.rejected
        if cursor is None:
            break
    assert [key for key, _ in rows] == [b'["x",1]', b'["y",2]']
    assert {rejection.key for rejection in rejected} == {"[null,1]", '["x",null]'}
    shop.run("UPDATE t SET b = NULL WHERE v = 4", "INSERT INTO t VALUES (NULL, NULL, 9)")
    window = replica.take_window()
    assert [(event.operation, event.key) for event in window.events] == [("d", b'["x",1]')]
    assert {(r.key, "NULL" in r.reason) for r in window.rejected} == {('["x",null]', True), ("[null,null]", True)}


def rejected_reasons(window: Window) -> list[tuple[str, str]]:
    return [(rejection.key, rejection.reason) for rejection in window.rejected]


def test_values_that_would_look_like_others_become_dead_letters(shop: Shop) -> None:
    shop.run("CREATE TABLE t (id INTEGER PRIMARY KEY, txt TEXT, bin BLOB, num INT)")
    replica = shop.reader()
    shop.run(
        "INSERT INTO t VALUES (1, 'ok', x'00', 1), (2, x'01', NULL, 1), (3, 'a', 'text', 1), (4, 'a', NULL, x'02')",
        "INSERT INTO t VALUES (5, CAST(x'61ff' AS TEXT), NULL, 1), (6, 'secret', 2.5, 'word'), (7, 'ok', NULL, NULL)",
    )
    window = replica.take_window()
    assert rejected_reasons(window) == [
        ("[2]", "column txt: a blob in a column for text"),
        ("[3]", "column bin: text in a column for bytes"),
        ("[4]", "column num: a blob in a column for int"),
        ("[5]", "column txt: text that is not valid UTF-8"),
    ]
    assert [event.row for event in window.events] == [
        b'[1,"ok","AA==",1]',
        b'[6,"secret",2.5,"word"]',
        b'[7,"ok",null,null]',
    ]
    chunk = replica.source.chunk(replica.source.tables()[1], None, 100)
    assert chunk is not None
    assert [(r.key, r.reason) for r in chunk.rejected] == rejected_reasons(window)
    assert [row for _, row in chunk.rows] == [event.row for event in window.events]


def test_keys_that_are_no_utf8_do_not_stop_a_snapshot(shop: Shop) -> None:
    shop.run("CREATE TABLE t (k TEXT PRIMARY KEY NOT NULL) WITHOUT ROWID")
    shop.run("INSERT INTO t VALUES ('a'), (CAST(x'ff' AS TEXT)), (CAST(x'ff61' AS TEXT)), ('ä'), ('🙂')")
    replica = shop.reader()
    replica.snapshot("main.t", limit=1)
    assert replica.of("main.t") == [["a"], ["ä"], ["🙂"]]
    shop.run("DELETE FROM t WHERE k = CAST(x'ff' AS TEXT)", "UPDATE t SET k = 'b' WHERE k = CAST(x'ff61' AS TEXT)")
    replica.take_all()
    assert replica.of("main.t") == [["a"], ["b"], ["ä"], ["🙂"]]


@pytest.mark.parametrize(
    "body",
    [
        "(k TEXT PRIMARY KEY NOT NULL)",
        "(k TEXT COLLATE NOCASE PRIMARY KEY NOT NULL) WITHOUT ROWID",
        "(k TEXT COLLATE NOCASE, PRIMARY KEY (k COLLATE BINARY))",
        "(k TEXT COLLATE RTRIM, PRIMARY KEY (k DESC))",
        "(k ANY PRIMARY KEY) STRICT",
        "(k TEXT, j INT DEFAULT 1, PRIMARY KEY (j, k COLLATE NOCASE))",
        "(k TEXT, j INT DEFAULT 1, PRIMARY KEY (j DESC, k ASC))",
    ],
)
def test_snapshots_follow_the_keys_own_order(shop: Shop, body: str) -> None:
    shop.run(f"CREATE TABLE t {body}")
    for key in ("b", "B", "a", "A", "aa", "Aa", "ab", "ä", "Ä", "a ", "", "z", "Z"):
        shop.writer.execute("INSERT OR IGNORE INTO t (k) VALUES (?)", (key,))
    replica = shop.reader()
    replica.snapshot("main.t", limit=2)
    stored = {key for (key,) in shop.writer.execute("SELECT k FROM t")}
    assert {row[0] for row in replica.of("main.t")} == stored


@pytest.mark.parametrize(
    "body",
    [
        "(a TEXT, b INT, PRIMARY KEY (a, b))",
        "(a TEXT COLLATE NOCASE, b INT, PRIMARY KEY (a, b)) WITHOUT ROWID",
        "(a INTEGER PRIMARY KEY)",
    ],
)
def test_chunks_search_the_key_and_never_sort(shop: Shop, body: str) -> None:
    shop.run(f"CREATE TABLE t {body}")
    source = shop.source()
    source.tables()
    reader = source._readers["t"]
    sql, values = reader.chunk_query(reader.cursor_after((1, 2)), 10)
    (plan,) = (row[3] for row in shop.writer.execute(f"EXPLAIN QUERY PLAN {sql}", values))
    assert plan.startswith("SEARCH r USING")


def test_long_rows_make_small_chunks_and_windows(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "CHUNK_BYTES_MAX", 3_000)
    monkeypatch.setattr(sqlite, "WINDOW_BYTES_MAX", 3_000)
    replica = shop.reader()
    shop.run(
        *(f"INSERT INTO item VALUES ({n}, printf('%1000c', 'x'), {n})" for n in range(20)),
        "INSERT INTO item VALUES (20, printf('%9000c', 'y'), 20)",  # longer than what a window may have
        *(f"INSERT INTO item VALUES ({n}, 'short', {n})" for n in range(21, 200)),
    )
    chunks: list[int] = []
    cursor = None
    while not chunks or cursor is not None:
        chunk = replica.source.chunk(replica.source.tables()[0], cursor, 100)
        assert chunk is not None
        chunks.append(len(chunk.rows))
        cursor = chunk.cursor
    assert (sum(chunks), chunks[:6]) == (200, [3] * 6)
    assert max(chunks) == 100, "short rows make large chunks again"
    windows = []
    while (window := replica.take_window()).events:
        windows.append(window)
    sizes = [sum(len(event.row or b"") for event in window.events) for window in windows]
    assert sum(len(window.events) for window in windows) == 200
    assert all(size <= 3_000 for size, window in zip(sizes, windows, strict=True) if len(window.events) > 1)
    assert all(window.more for window in windows[:-1])
    assert len(windows) < 30, "short rows make large windows again"


def test_names_of_every_kind(shop: Shop) -> None:
    odd = ["select", 'a"b', "a'b", "a b", "🙂", "a.b", "[x]", "a;--", "%s {} ?", "tbl", "id", "r", "NEW"]
    for name in odd:
        quoted = '"' + name.replace('"', '""') + '"'
        shop.run(f"CREATE TABLE {quoted} ({quoted} INT, k0 TEXT UNIQUE, PRIMARY KEY ({quoted} DESC)) WITHOUT ROWID")
    replica = shop.reader()
    for name in odd:
        quoted = '"' + name.replace('"', '""') + '"'
        shop.run(f"INSERT INTO {quoted} VALUES (1, 'x')", f"INSERT OR REPLACE INTO {quoted} VALUES (2, 'x')")
    replica.take_all()
    assert sorted(replica.rows) == sorted(str(TableName("main", name)) for name in odd)
    assert all(replica.of(str(TableName("main", name))) == [[2, "x"]] for name in odd)


# --- selections and schema changes -----------------------------------------------------------------------------------


def test_columns_are_chosen_and_the_key_always_is(shop: Shop) -> None:
    replica = shop.reader(selections=[TableSelection(TableName("MAIN", "ITEM"), columns=("QTY",))])
    shop.run("INSERT INTO item VALUES (1, 'secret', 5)")
    replica.take_all()
    assert replica.of("main.item") == [[1, 5]]
    (schema,) = shop.source([TableSelection(TableName("", "item"), exclude=("id", "name"))]).tables()
    assert [column.name for column in schema.columns] == ["id", "qty"]


def test_the_first_selection_that_matches_counts(shop: Shop) -> None:
    shop.run("CREATE TABLE items2 (id INTEGER PRIMARY KEY, a INT)")
    selections = [TableSelection(TableName("", "item"), exclude=("name",)), TableSelection(TableName("main", "it?m*"))]
    found = {s.table: [c.name for c in s.columns] for s in shop.source(selections).tables()}
    assert found == {"main.item": ["id", "qty"], "main.items2": ["id", "a"]}


@pytest.mark.parametrize(
    ("ddl", "name", "code"),
    [
        ("CREATE TABLE x (a INT)", "*", "UW-SL-004"),
        ("CREATE VIEW x AS SELECT * FROM item", "x", "UW-SL-005"),
        ("CREATE VIRTUAL TABLE x USING fts5(body)", "x", "UW-SL-005"),
        ("SELECT 1", "missing", "UW-SL-006"),
        ('CREATE TABLE "" (id INTEGER PRIMARY KEY)', "*", "UW-SL-019"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_sentence(shop: Shop, ddl: str, name: str, code: str) -> None:
    shop.run(ddl)
    selections = [TableSelection(TableName("", name))]
    with pytest.raises(OperatorError) as caught:
        shop.source(selections).tables()
    assert caught.value.code == code
    assert caught.value.remedy
    assert code in [finding.code for finding in findings(shop.path, selections) if finding.level == "fail"]


def test_tables_may_be_called_as_the_catalog_and_columns_as_row_ids(shop: Shop) -> None:
    names = ["pragma_table_list", "pragma_table_xinfo", "pragma_index_list", "pragma_index_xinfo", "pragma_page_count"]
    for name in names:
        shop.run(f"CREATE TABLE {name} (rowid TEXT PRIMARY KEY NOT NULL, oid TEXT UNIQUE, _rowid_ TEXT)")
        shop.run(f"INSERT INTO {name} VALUES ('x', 'y', 'z')")
    replica = shop.reader()
    assert [schema.table for schema in replica.source.tables()] == ["main.item", *(f"main.{n}" for n in sorted(names))]
    assert [replica.source.estimate(f"main.{name}") for name in names] == [None] * len(names)
    assert replica.source.health()["file_bytes"] > 0
    shop.run("UPDATE pragma_table_list SET oid = 'changed'")
    replica.take_all()
    assert replica.of("main.pragma_table_list") == [["x", "changed", "z"]]


def test_a_range_of_row_ids_may_be_of_any_size(shop: Shop) -> None:
    shop.run(f"INSERT INTO item (id) VALUES ({-(2**63)}), ({2**63 - 1})")
    replica = shop.reader()
    assert replica.source.estimate("main.item") is None


def test_only_letters_of_ascii_have_a_case(shop: Shop) -> None:
    shop.run(
        'CREATE TABLE "Ä" (id INTEGER PRIMARY KEY, "é" TEXT, "É" TEXT)', 'CREATE TABLE "ä" (id INTEGER PRIMARY KEY)'
    )
    selections = [TableSelection(TableName("", "Ä"), exclude=("É",)), TableSelection(TableName("", "ä"))]
    found = {s.table: [c.name for c in s.columns] for s in shop.source(selections).tables()}
    assert found == {"main.Ä": ["id", "é"], "main.ä": ["id"]}


def test_views_and_virtual_tables_are_no_part_of_a_wildcard(shop: Shop) -> None:
    shop.run("CREATE VIEW x AS SELECT * FROM item", "CREATE VIRTUAL TABLE y USING fts5(body)")
    assert [schema.table for schema in shop.source().tables()] == ["main.item"]
    assert [str(table.name) for table in inspect(shop.path)] == ["main.item"]


def test_an_unknown_column_is_named(shop: Shop) -> None:
    with pytest.raises(OperatorError, match="no column nmae"):
        shop.source([TableSelection(TableName("", "item"), exclude=("nmae",))]).tables()


def test_columns_added_dropped_renamed_while_running(shop: Shop) -> None:
    replica = shop.reader()
    shop.run("INSERT INTO item VALUES (1, 'a', 1)")
    replica.take_all()
    for ddl, names in [
        ("ALTER TABLE item ADD COLUMN more TEXT DEFAULT 'x'", ["id", "name", "qty", "more"]),
        ("ALTER TABLE item RENAME COLUMN name TO title", ["id", "title", "qty", "more"]),
        ("ALTER TABLE item DROP COLUMN qty", ["id", "title", "more"]),
        ("ALTER TABLE item ADD COLUMN twice INT AS (id * 2)", ["id", "title", "more", "twice"]),
    ]:
        shop.run(ddl)
        window = replica.take_window()
        assert [[column.name for column in schema.columns] for schema in window.schemas] == [names]
        assert window.resync == []
    assert [column.has_default for column in window.schemas[0].columns] == [False, False, True, True]
    shop.run("UPDATE item SET title = 'b'")
    replica.take_all()
    assert replica.of("main.item") == [[1, "b", "x", 2]]


def test_a_chunk_waits_until_a_window_has_told_the_new_schema(shop: Shop) -> None:
    replica = shop.reader()
    schema = replica.source.tables()[0]
    shop.run("ALTER TABLE item ADD COLUMN more TEXT")
    assert replica.source.chunk(schema, None, 10) is None
    replica.take_window()
    chunk = replica.source.chunk(schema, None, 10)
    assert chunk is not None
    assert [column.name for column in chunk.schema.columns] == ["id", "name", "qty", "more"]


def test_a_new_table_without_key_does_not_stop_the_others(shop: Shop) -> None:
    replica = shop.reader()
    shop.run("CREATE TABLE scratch AS SELECT * FROM item", "INSERT INTO item VALUES (1, 'a', 1)")
    replica.take_all()
    assert replica.of("main.item") == [[1, "a", 1]]


# --- the file --------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("sql", "parsed"),
    [
        ("CREATE UNIQUE INDEX i ON t(a, b DESC)", (["a", "b"], "")),
        ('CREATE UNIQUE INDEX "i(," ON [t(] (abs(v, 1) desc, -- x,)\n id/3 /*)*/)', (["abs(v, 1)", "id/3"], "")),
        (
            "CREATE UNIQUE INDEX i ON t(f('a)b'), `x,`)WHERE v <> ') WHERE b'",
            (["f('a)b')", "`x,`"], "v <> ') WHERE b'"),
        ),
        ("CREATE UNIQUE INDEX i ON t(description) where a and (b)", (["description"], "a and (b)")),
        ("CREATE UNIQUE INDEX i ON t(a COLLATE NOCASE ASC)", (["a COLLATE NOCASE"], "")),
    ],
)
def test_the_sql_of_an_index_is_taken_apart(sql: str, parsed: tuple[list[str], str]) -> None:
    assert parse_index(sql) == parsed
