"""What the source makes of what change tracking tells. Facts by the numbers of docs/sqlserver.md."""

from base64 import b64decode
from collections.abc import Iterator

import orjson
import pytest
from pytds.tds_base import Column
from pytds.tds_types import IntType

from tests.contract.source_contract import Replica, wait_for_chunk
from tests.contract.sqlserver_clients import connect as connect_client
from tests.integration.sqlserver_shop import Shop, open_shop, selections, told, windows_until
from tests.sqlserver_databases import connect
from upwell.model import unpack_version
from upwell.sources import sqlserver_database, sqlserver_reading
from upwell.sources.sqlserver_place import Place
from upwell.sources.sqlserver_setup import track


@pytest.fixture
def shop(sqlserver: str) -> Iterator[Shop]:
    with open_shop(sqlserver) as shop:
        shop.tracked("t")
        yield shop


@pytest.fixture
def replica(shop: Shop) -> Replica:
    return shop.replica_of_three()


def next_events(replica: Replica) -> list[tuple[str, str, str]]:
    return told(replica.take_window().events)


# --- versions -----------------------------------------------------------------------------------------------------


def test_fact_2_a_fresh_database_starts_at_0_and_its_first_change_is_read(shop: Shop) -> None:
    source = shop.source("t")
    position, commit = source.start(None, 1)
    assert commit == 0
    replica = Replica(source, position, commit, 0.0)
    shop.run("INSERT INTO t VALUES (1, 1, N'a')")
    assert next_events(replica) == [("u", "insert", "[1]")]


def test_fact_3_a_transaction_that_is_open_across_three_polls_is_not_missed(shop: Shop, replica: Replica) -> None:
    with connect(shop.url) as other:
        other.run("BEGIN TRANSACTION")
        other.run("INSERT INTO t VALUES (10, 1, N'early')")
        for n in range(3):
            shop.run(f"INSERT INTO t VALUES ({20 + n}, 1, N'late')")
            assert next_events(replica) == [("u", "insert", f"[{20 + n}]")]
        other.run("COMMIT TRANSACTION")
    assert next_events(replica) == [("u", "insert", "[10]")]


def test_facts_1_and_4_one_version_for_all_of_a_transaction_over_all_tables(shop: Shop) -> None:
    shop.tracked("other")
    replica = shop.replica("t", "other")
    shop.together("INSERT INTO t VALUES (1, 1, N'a')", "INSERT INTO other VALUES (1, 1, N'a')", "UPDATE t SET a = 2")
    window = replica.take_window()
    assert {unpack_version(event.version)[1] for event in window.events} == {window.commit}
    assert [event.schema.table for event in window.events] == ["dbo.other", "dbo.t"]


def test_facts_5_to_7_what_moves_no_version_is_no_event_and_a_gap_in_versions_is_no_loss(
    shop: Shop, replica: Replica
) -> None:
    shop.tracked("busy")
    shop.run("CREATE TABLE untracked (id int)", "INSERT INTO untracked VALUES (1)", "UPDATE t SET a = 1 WHERE id = 99")
    shop.run("BEGIN TRANSACTION", "DELETE FROM t", "ROLLBACK TRANSACTION")
    assert next_events(replica) == []
    shop.run("INSERT INTO busy VALUES (1, 1, N'')", "UPDATE busy SET a = 2", "UPDATE t SET a = a WHERE id = 1")
    assert next_events(replica) == [("u", "update", "[1]")], "fact 6: also where nothing changed"
    assert replica.commit == shop.version()


def test_fact_10_the_time_is_that_of_the_commit_or_of_the_look_at_it(shop: Shop, replica: Replica) -> None:
    before = shop.value("SELECT CONVERT(varchar(40), SYSUTCDATETIME(), 126)")
    shop.run("UPDATE t SET a = 5")
    times = {event.time for event in replica.take_window().events}
    after = shop.value("SELECT CONVERT(varchar(40), SYSUTCDATETIME(), 126)")
    assert len(times) == 1
    assert before[:16] <= times.pop() <= after + "Z"


# --- net changes --------------------------------------------------------------------------------------------------


def test_facts_11_and_12_a_key_comes_once_however_often_it_changed(shop: Shop, replica: Replica) -> None:
    shop.run("UPDATE t SET a = 10 WHERE id = 1", "UPDATE t SET a = 11 WHERE id = 1", "INSERT INTO t VALUES (4, 1, N'')")
    shop.run("UPDATE t SET a = 12 WHERE id = 4")
    assert next_events(replica) == [("u", "update", "[1]"), ("u", "insert", "[4]")]
    assert replica.rows["dbo.t"][b"[1]"] == [1, 11, "a"]


def test_facts_13_14_and_16_deletes_of_keys_never_seen_do_no_harm(shop: Shop, replica: Replica) -> None:
    shop.run("INSERT INTO t VALUES (4, 1, N'')", "DELETE FROM t WHERE id = 4")
    shop.together("INSERT INTO t VALUES (5, 1, N'')", "DELETE FROM t WHERE id = 5")
    assert next_events(replica) == [("d", "delete", "[4]"), ("d", "delete", "[5]")]
    assert len(replica.of("dbo.t")) == 3


def test_facts_15_and_16_deleted_and_inserted_again_is_the_row_as_it_is(shop: Shop, replica: Replica) -> None:
    shop.run("DELETE FROM t WHERE id = 1", "INSERT INTO t VALUES (1, 100, N'new')")
    shop.together("DELETE FROM t WHERE id = 2", "INSERT INTO t VALUES (2, 200, N'too')")
    replica.take_window()
    assert replica.of("dbo.t") == [[1, 100, "new"], [2, 200, "too"], [3, 3, "c"]]


def test_fact_17_a_changed_key_is_a_delete_and_an_upsert_of_one_version(shop: Shop, replica: Replica) -> None:
    shop.run("UPDATE t SET id = id + 10")
    window = replica.take_window()
    assert len({event.version for event in window.events}) == 1
    assert [row[0] for row in replica.of("dbo.t")] == [11, 12, 13]


def test_fact_18_keys_that_shift_over_one_another(shop: Shop, replica: Replica) -> None:
    shop.run("UPDATE t SET id = id + 1")
    replica.take_window()
    assert replica.of("dbo.t") == [[2, 1, "a"], [3, 2, "b"], [4, 3, "c"]]


def test_fact_19_a_key_that_was_written_and_is_the_same(shop: Shop, replica: Replica) -> None:
    shop.run("UPDATE t SET id = id WHERE id = 2")
    (event,) = replica.take_window().events
    assert (event.was, event.key, event.changed) == ("update", b"[2]", None)


def test_fact_26_a_delete_of_a_row_that_is_there_is_its_row(shop: Shop) -> None:
    """KB4135113, a fault of old builds; the stand-in can't make it, so what it would answer is put in its place."""
    replica = shop.replica("t")
    reader = replica.source._database.readers["dbo.t"]  # type: ignore[attr-defined]
    (found,) = reader.found([(7, None, "D", None, None, 1, 1, 10, "there")], [])
    assert (found.row, found.was) == (b'[1,10,"there"]', "update")
    assert reader.found([(7, None, "I", None, None, 1, None, None, None)], []) == [], "fact 59: its delete follows"


# --- what is tracked ----------------------------------------------------------------------------------------------


def test_fact_27_merges_cascades_and_triggers(shop: Shop) -> None:
    shop.run("CREATE TABLE parent (id int PRIMARY KEY, a int)")
    shop.run(
        "CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent (id) ON DELETE CASCADE)",
        "INSERT INTO parent VALUES (1, 1), (2, 2)",
        "INSERT INTO child VALUES (10, 1), (20, 2)",
    )
    track(shop.url, selections("parent", "child"), shop.driver)
    replica = shop.replica("parent", "child")
    shop.run("DELETE FROM parent WHERE id = 1")
    window = replica.take_window()
    assert told(window.events) == [("d", "delete", "[10]"), ("d", "delete", "[1]")]
    assert len({event.version for event in window.events}) == 1, "fact 4"
    shop.run(
        "MERGE parent AS t USING (SELECT 2 AS id, 22 AS a UNION ALL SELECT 3, 33) AS s ON t.id = s.id "
        "WHEN MATCHED THEN UPDATE SET a = s.a WHEN NOT MATCHED THEN INSERT (id, a) VALUES (s.id, s.a);"
    )
    assert next_events(replica) == [("u", "update", "[2]"), ("u", "insert", "[3]")]


def test_fact_28_what_is_loaded_in_bulk_is_tracked(shop: Shop, replica: Replica) -> None:
    """By what bcp sends: rows without any statement."""
    client = connect_client("python-tds", shop.url)
    rows = [(number, number if number % 2 else None, f"bülk {number}") for number in range(10, 310)]
    columns = [Column("id", type=IntType()), Column("a", type=IntType(), flags=Column.fNullable), "b"]
    client.new_cursor().copy_to(data=rows, table_or_view="t", columns=columns)
    client.close()
    window = replica.take_window()
    assert {event.was for event in window.events} == {"insert"}
    assert len({event.version for event in window.events}) == 1
    assert sorted(replica.of("dbo.t"))[3:] == [list(row) for row in rows]


def test_facts_32_and_36_computed_columns_come_with_the_row_and_new_columns_are_told(shop: Shop) -> None:
    shop.tracked("c", create="CREATE TABLE {} (id int NOT NULL PRIMARY KEY, a int, twice AS (a * 2) PERSISTED)")
    replica = shop.replica("c")
    shop.run("INSERT INTO c (id, a) VALUES (1, 5)")
    replica.take_window()
    assert replica.of("dbo.c") == [[1, 5, 10]]
    shop.run("UPDATE c SET a = 6")
    assert replica.take_window().events[0].changed in (("a", "twice"), None)
    shop.run("ALTER TABLE c ADD extra int NOT NULL DEFAULT 7")
    shop.run("UPDATE c SET a = 8")
    window = replica.take_window()
    assert [column.name for column in window.schemas[0].columns] == ["id", "a", "twice", "extra"]
    assert window.schemas[0].columns[-1].has_default, "so the publisher has the table read again"
    assert replica.of("dbo.c") == [[1, 8, 16, 7]]


# --- masks, contexts ----------------------------------------------------------------------------------------------


def test_facts_40_to_43_the_columns_that_changed_are_told_where_the_server_knows(shop: Shop, replica: Replica) -> None:
    shop.run("UPDATE t SET b = N'z' WHERE id = 1", "UPDATE t SET a = 9, b = N'y' WHERE id = 2")
    changed = {event.key: event.changed for event in replica.take_window().events}
    assert changed == {b"[1]": ("b",), b"[2]": None}, "None: any may have"
    shop.run("INSERT INTO t VALUES (4, 1, N'')")
    assert replica.take_window().events[0].changed is None


@pytest.mark.parametrize("restarted", [False, True])
def test_fact_43_a_mask_is_not_told_where_it_lacks_what_changed_before(
    shop: Shop, replica: Replica, restarted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 1 has changed twice, and is read at the second change: by then reading is beyond the first."""
    monkeypatch.setattr(sqlserver_reading, "PAGE_ROWS_MAX", 2)
    monkeypatch.setattr(sqlserver_database, "PAGE_ROWS_MAX", 2)
    shop.run("UPDATE t SET a = 9 WHERE id = 1")
    shop.run("UPDATE t SET a = 9 WHERE id = 2", "UPDATE t SET a = 9 WHERE id = 3", "UPDATE t SET b = N'z' WHERE id = 1")
    told = {event.key: event.changed for event in replica.take_window(limit=2).events}
    assert told == {b"[2]": ("a",), b"[3]": ("a",)}
    if restarted:
        replica = shop.replica("t", position=replica.position)
    else:
        replica.take_window()
    assert [(event.key, event.changed) for event in replica.windows[-1].events] == [(b"[1]", None)]
    shop.run("UPDATE t SET a = 10 WHERE id = 1")
    assert replica.take_window().events[0].changed == ("a",), "from then on it is known again"


def test_fact_37_a_rowversion_changes_with_every_update_and_is_told(shop: Shop) -> None:
    shop.tracked("r", create="CREATE TABLE {} (id int NOT NULL PRIMARY KEY, a int, b nvarchar(20), stamp rowversion)")
    replica = shop.replica("r")
    shop.run("INSERT INTO r (id, a, b) VALUES (1, 1, N'a'), (2, 2, N'b')")
    replica.take_window()
    before = {row[0]: row[3] for row in replica.of("dbo.r")}
    shop.run("UPDATE r SET b = N'z' WHERE id = 1")
    (event,) = replica.take_window().events
    assert set(event.changed or ()) == {"b", "stamp"}, "it is in the mask though no statement names it"
    after = {row[0]: row[3] for row in replica.of("dbo.r")}
    assert after[2] == before[2] != after[1] != before[1]
    assert b64decode(after[1]) == shop.value("SELECT stamp FROM r WHERE id = 1")


def test_fact_44_a_writers_context_is_told_as_a_hint(shop: Shop, replica: Replica) -> None:
    shop.run("WITH CHANGE_TRACKING_CONTEXT(0x0102) UPDATE t SET a = 9 WHERE id = 1", "UPDATE t SET a = 9 WHERE id = 2")
    assert [event.context for event in replica.take_window().events] == ["AQI=", None]
    shop.run("UPDATE t SET a = 10 WHERE id = 1")
    assert [event.context for event in replica.take_window().events] == [None]


# --- keys ---------------------------------------------------------------------------------------------------------

CASELESS = "CREATE TABLE {} (k nvarchar(20) COLLATE Latin1_General_CI_AS NOT NULL PRIMARY KEY, a int)"


def test_fact_20_a_key_in_another_spelling_is_one_key_in_the_target(shop: Shop) -> None:
    shop.tracked("c", create=CASELESS)
    replica = shop.replica("c")
    shop.run("INSERT INTO c VALUES (N'ab', 1), (N'x', 1)")
    replica.take_window()
    assert replica.windows[0].schemas[0].loose == {"k"}, "the key does not decide the lane, so order holds"
    for spelling in ("Ab", "AB", "aB"):
        shop.run(f"UPDATE c SET k = N'{spelling}', a = a + 1 WHERE k = N'ab'")
        replica.take_window()
        assert sorted(replica.rows["dbo.c"]) == sorted([orjson.dumps([spelling]), b'["x"]'])
    shop.run("DELETE FROM c WHERE k = N'AB'")
    replica.take_window()
    assert list(replica.rows["dbo.c"]) == [b'["x"]']


def test_fact_20_a_spelling_is_remembered_over_a_restart(shop: Shop) -> None:
    shop.tracked("c", create=CASELESS)
    replica = shop.replica("c")
    shop.run("INSERT INTO c VALUES (N'ab', 1)", "UPDATE c SET k = N'AB'")
    replica.take_window()
    again = shop.replica("c", position=replica.position)
    again.rows, again.versions = replica.rows, replica.versions
    shop.run("DELETE FROM c")
    again.take_window()
    assert again.rows["dbo.c"] == {}


def test_fact_20_what_a_snapshot_spelled_is_deleted_under_that_spelling(shop: Shop) -> None:
    shop.tracked("c", create=CASELESS)
    shop.run("INSERT INTO c VALUES (N'ab', 1)", "UPDATE c SET k = N'AB'")
    replica = shop.replica("c")
    replica.snapshot("dbo.c")
    assert list(replica.rows["dbo.c"]) == [b'["AB"]']
    shop.run("DELETE FROM c")
    replica.take_window()
    assert replica.rows["dbo.c"] == {}


def test_fact_20_what_a_snapshot_spelled_is_in_the_position_before_it_is_sent(shop: Shop) -> None:
    """The publisher reads a window between a chunk's reading and its sending."""
    shop.tracked("c", create=CASELESS)
    shop.run("INSERT INTO c VALUES (N'ab', 1)", "UPDATE c SET k = N'AB'")
    replica = shop.replica("c")
    chunk = wait_for_chunk(replica, replica.windows[0].schemas[0])
    assert [key for key, _ in chunk.rows] == [b'["AB"]']
    replica.take_window()
    assert Place.parse(replica.position).spelled == {"dbo.c": {'["ab"]': '["AB"]'}}


def test_fact_25_the_keys_order_need_not_be_the_tables(shop: Shop) -> None:
    shop.tracked(
        "o",
        create="CREATE TABLE {} (note nvarchar(9), line int NOT NULL, doc int NOT NULL, PRIMARY KEY (doc, line DESC))",
    )
    values = ", ".join(f"(N'n', {line}, {doc})" for doc in (3, 1, 2) for line in (1, 3, 2))
    shop.run(f"INSERT INTO o VALUES {values}")
    replica = shop.replica("o")
    assert replica.windows[0].schemas[0].key == ("doc", "line")
    replica.snapshot("dbo.o", 2)
    assert len(replica.of("dbo.o")) == 9
    shop.run("UPDATE o SET note = N'x'")
    for window in windows_until(replica, shop.version(), limit=2):
        assert len(window.events) <= 2
    assert {row[0] for row in replica.of("dbo.o")} == {"x"}


def test_names_may_hold_anything(shop: Shop) -> None:
    shop.run("CREATE TABLE [we]]ird ?%s.'t] ([k ?%(x)s ]]] int NOT NULL PRIMARY KEY, [a'b] int)")
    track(shop.url, selections("dbo.*"), shop.driver)
    replica = shop.replica("dbo.*")
    shop.run("INSERT INTO [we]]ird ?%s.'t] VALUES (1, 2), (2, 3)")
    assert len(replica.take_window(limit=1).events) == 1
    replica.take_all(limit=1)
    (table,) = replica.rows
    assert replica.of(table) == [[1, 2], [2, 3]]
    replica.snapshot(table, 1)
