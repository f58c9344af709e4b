"""Odd keys and values of SQLite, in the log and in snapshots, and long rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.sqlite_shop import Shop, open_shop
from upwell.errors import OperatorError
from upwell.model import Window
from upwell.sources import sqlite


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with open_shop(tmp_path) as shop:
        yield shop


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
