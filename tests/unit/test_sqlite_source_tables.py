"""Which tables and columns of SQLite are read, whatever they are called, and what changes of them meanwhile."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.sqlite_shop import Shop, open_shop
from upwell.errors import OperatorError
from upwell.model import TableName, TableSelection
from upwell.sources.sqlite_catalog import parse_index
from upwell.sources.sqlite_setup import findings, inspect


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with open_shop(tmp_path) as shop:
        yield shop


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
