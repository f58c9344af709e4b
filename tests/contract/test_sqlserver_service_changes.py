"""What upwell relies on in Change Tracking: versions, masks, and how changes are folded. Facts by number.

Runs with each of three clients against the stand-in, or unchanged against the SQL Server that UPWELL_TEST_SQLSERVER_URL
names: see sqlserver_clients.py.
"""

import pytest

from tests.contract.sqlserver_clients import (
    Client,
    Refused,
    Tracked,
    connect,
    is_number,
    new_database,
    tracked,
)

# --- versions and transactions ------------------------------------------------------------------------------------


def test_fact_1_one_counter_for_all_tables_of_the_database(mssql: Client, tracked_table: Tracked) -> None:
    second = tracked(mssql, rows="")
    tracked_table.run("UPDATE {t} SET a = 5 WHERE id = 1")
    second.run("INSERT INTO {t} VALUES (1, 1, N'x')")
    assert tracked_table.net(1) == {1: "U 2/-"}
    assert second.net(0) == {1: f"I {tracked_table.base + 3 - second.base}/{tracked_table.base + 3 - second.base}"}


def test_fact_2_a_new_database_is_at_0_and_one_without_tracking_at_null(client_name: str, sqlserver: str) -> None:
    owner = connect(client_name, sqlserver)
    with new_database(owner, tracking=False) as name:
        inside = connect(client_name, sqlserver, name)
        assert inside.value("SELECT CHANGE_TRACKING_CURRENT_VERSION()") is None
        inside.run(f"ALTER DATABASE [{name}] SET CHANGE_TRACKING = ON")
        assert inside.value("SELECT CHANGE_TRACKING_CURRENT_VERSION()") == 0
        inside.close()
    owner.close()


def test_fact_3_the_version_is_given_at_the_commit(mssql: Client, mssql_other: Client, tracked_table: Tracked) -> None:
    mssql.run("BEGIN TRANSACTION")
    tracked_table.run("UPDATE {t} SET a = 10 WHERE id = 1")
    assert mssql_other.run(f"UPDATE [{tracked_table.name}] SET a = 20 WHERE id = 2") == 1
    seen = mssql_other.value("SELECT CHANGE_TRACKING_CURRENT_VERSION()") - tracked_table.base
    mssql.run("COMMIT TRANSACTION")
    assert seen == 2
    assert tracked_table.net(1) == {1: "U 3/-", 2: "U 2/-"}, "who began first and committed last comes last"


def test_fact_4_a_statement_with_its_cascades_is_one_version(mssql: Client) -> None:
    parent = tracked(mssql, "id int NOT NULL PRIMARY KEY", rows="(1), (2)")
    child = tracked(
        mssql,
        f"id int NOT NULL PRIMARY KEY, p int NOT NULL REFERENCES [{parent.name}] (id) ON DELETE CASCADE",
        rows="(10, 1), (11, 1), (12, 2)",
    )
    parent.run("DELETE FROM {t} WHERE id = 1")
    assert child.net(1) == {10: "D 2/-", 11: "D 2/-"}
    assert parent.one("SYS_CHANGE_VERSION", 1) == child.one("SYS_CHANGE_VERSION", 1, key=10)


def test_fact_4_and_27_merge_is_one_version(tracked_table: Tracked) -> None:
    tracked_table.run(
        "MERGE INTO {t} AS t USING (VALUES (1, N'new'), (9, N'nine')) AS s (id, b) ON t.id = s.id"
        " WHEN MATCHED THEN UPDATE SET b = s.b WHEN NOT MATCHED THEN INSERT (id, b) VALUES (s.id, s.b);"
    )
    assert tracked_table.net(1) == {1: "U 2/-", 9: "I 2/2"}


def test_fact_28_a_bulk_load_is_tracked(sqlserver: str) -> None:
    """As bcp does it. It is python-tds that can; the other clients leave it to programs of their own."""
    owner = connect("python-tds", sqlserver)
    with new_database(owner) as name:
        inside = connect("python-tds", sqlserver, name)
        table = tracked(inside)
        loaded = [("8", "eight"), ("7", None)]
        inside.new_cursor().copy_to(data=loaded, table_or_view=table.name, columns=["id", "b"])
        assert table.net(1) == {7: "I 2/2", 8: "I 2/2"}
        assert table.rows("SELECT id, a, b FROM {t} WHERE id > 6 ORDER BY id") == [(7, None, None), (8, None, "eight")]
        inside.close()
    owner.close()


@pytest.mark.parametrize(
    "statements",
    [
        ["UPDATE {t} SET a = 1 WHERE id = 99"],
        ["BEGIN TRANSACTION", "UPDATE {t} SET a = 1", "ROLLBACK TRANSACTION"],
        ["BEGIN TRANSACTION", "SAVE TRANSACTION s", "UPDATE {t} SET a = 1", "ROLLBACK TRANSACTION s", "COMMIT"],
        ["TRUNCATE TABLE {t}"],
    ],
    ids=["no row", "rolled back", "rolled back to a savepoint", "truncated"],
)
def test_fact_5_what_leaves_the_counter(tracked_table: Tracked, statements: list[str]) -> None:
    for statement in statements:
        tracked_table.run(statement)
    assert tracked_table.version() == 1
    assert tracked_table.net(1) == {}


def test_fact_5_a_failed_statement_leaves_the_counter(tracked_table: Tracked) -> None:
    assert is_number(tracked_table.refusal("INSERT INTO {t} VALUES (7, 7, N'x'), (1, 1, N'twice')"), 2627)
    assert tracked_table.version() == 1


def test_fact_5_an_untracked_table_leaves_the_counter(mssql: Client, tracked_table: Tracked) -> None:
    mssql.run(f"CREATE TABLE [{tracked_table.name}_plain] (id int NOT NULL PRIMARY KEY)")
    mssql.run(f"INSERT INTO [{tracked_table.name}_plain] VALUES (1)")
    assert tracked_table.version() == 1


def test_fact_6_an_update_that_changes_nothing_is_recorded(tracked_table: Tracked) -> None:
    tracked_table.run("UPDATE {t} SET a = a WHERE id = 2")
    assert tracked_table.net(1) == {2: "U 2/-"}


def test_fact_8_a_transaction_does_not_see_its_own_changes_as_changes(mssql: Client, tracked_table: Tracked) -> None:
    mssql.run("BEGIN TRANSACTION")
    tracked_table.run("UPDATE {t} SET a = 5 WHERE id = 1")
    assert tracked_table.net(1) == {}
    assert tracked_table.version() == 1
    version = f"SELECT v.SYS_CHANGE_VERSION FROM CHANGETABLE(VERSION [{tracked_table.name}], (id), (1)) AS v"
    assert mssql.rows(version) == [(None,)]
    mssql.run("COMMIT TRANSACTION")
    assert mssql.rows(version) == [(tracked_table.base + 2,)]


def test_fact_9_the_counter_outlives_off_and_on(client_name: str, sqlserver: str) -> None:
    owner = connect(client_name, sqlserver)
    with new_database(owner) as name:
        inside = connect(client_name, sqlserver, name)
        one = tracked(inside)
        one.run("UPDATE {t} SET a = 2")
        assert inside.value("SELECT CHANGE_TRACKING_CURRENT_VERSION()") == 2
        one.run("ALTER TABLE {t} DISABLE CHANGE_TRACKING")
        inside.run(f"ALTER DATABASE [{name}] SET CHANGE_TRACKING = OFF")
        assert inside.value("SELECT CHANGE_TRACKING_CURRENT_VERSION()") is None
        inside.run(f"ALTER DATABASE [{name}] SET CHANGE_TRACKING = ON")
        assert inside.value("SELECT CHANGE_TRACKING_CURRENT_VERSION()") == 2
        inside.close()
    owner.close()


def test_fact_10_commit_times(mssql: Client, tracked_table: Tracked) -> None:
    rows = mssql.rows(
        "SELECT COUNT(*) FROM sys.dm_tran_commit_table WHERE commit_ts = ? AND commit_time IS NOT NULL",
        tracked_table.base + 1,
    )
    assert rows == [(1,)]


# --- folding ------------------------------------------------------------------------------------------------------


def test_fact_12_an_operation_is_relative_to_the_baseline(tracked_table: Tracked) -> None:
    tracked_table.run("UPDATE {t} SET a = 5 WHERE id = 1")
    assert tracked_table.net(0)[1] == "I 2/1"
    assert tracked_table.net(1) == {1: "U 2/-"}
    assert tracked_table.net(2) == {}


def test_fact_13_inserted_and_deleted_is_a_delete(tracked_table: Tracked) -> None:
    tracked_table.run("DELETE FROM {t} WHERE id = 2")
    assert tracked_table.net(0)[2] == "D 2/1"


def test_fact_14_a_delete_of_a_key_that_was_never_seen(tracked_table: Tracked) -> None:
    tracked_table.run("INSERT INTO {t} VALUES (4, 4, N'd')")
    tracked_table.run("DELETE FROM {t} WHERE id = 4")
    assert tracked_table.net(1) == {4: "D 3/2"}


def test_fact_15_deleted_and_inserted_again_is_an_update_of_all_columns(tracked_table: Tracked) -> None:
    tracked_table.run("DELETE FROM {t} WHERE id = 1")
    tracked_table.run("INSERT INTO {t} VALUES (1, 9, N'again')")
    assert tracked_table.net(1) == {1: "U 3/3"}
    assert tracked_table.one("SYS_CHANGE_COLUMNS", 1) is None


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        (["INSERT INTO {t} VALUES (5, 1, N'x')", "DELETE FROM {t} WHERE id = 5"], {5: "D"}),
        (
            [
                "INSERT INTO {t} VALUES (5, 1, N'x')",
                "DELETE FROM {t} WHERE id = 5",
                "INSERT INTO {t} VALUES (5, 2, N'y')",
            ],
            {5: "I"},
        ),
        (
            [
                "DELETE FROM {t} WHERE id = 1",
                "INSERT INTO {t} VALUES (1, 2, N'y')",
                "UPDATE {t} SET a = 3 WHERE id = 1",
            ],
            {1: "U"},
        ),
    ],
    ids=["insert, delete", "insert, delete, insert", "delete, insert, update"],
)
def test_fact_16_within_one_transaction(
    mssql: Client, tracked_table: Tracked, statements: list[str], expected: dict[int, str]
) -> None:
    mssql.run("BEGIN TRANSACTION")
    for statement in statements:
        tracked_table.run(statement)
    mssql.run("COMMIT TRANSACTION")
    assert {key: change[0] for key, change in tracked_table.net(1).items()} == expected


def test_fact_17_a_changed_key_is_a_delete_and_an_insert(tracked_table: Tracked) -> None:
    tracked_table.run("UPDATE {t} SET id = id + 10 WHERE id = 1")
    assert tracked_table.net(1) == {1: "D 2/-", 11: "I 2/2"}


def test_fact_18_keys_that_move_up(tracked_table: Tracked) -> None:
    tracked_table.run("UPDATE {t} SET id = id + 1")
    assert {key: change.split("/")[0] for key, change in tracked_table.net(1).items()} == {
        1: "D 2",
        2: "U 2",
        3: "U 2",
        4: "I 2",
    }


def test_fact_19_a_key_written_unchanged(tracked_table: Tracked) -> None:
    tracked_table.run("UPDATE {t} SET id = id WHERE id = 1")
    assert tracked_table.net(1) == {1: "U 2/2"}
    assert tracked_table.one("SYS_CHANGE_COLUMNS", 1) is None


def test_fact_20_a_key_in_another_spelling_keeps_the_first(mssql: Client) -> None:
    one = tracked(
        mssql,
        "k nvarchar(10) COLLATE Latin1_General_CI_AS NOT NULL PRIMARY KEY, a int NULL",
        rows="(N'a', 1), (N'b', 2)",
    )
    one.run("UPDATE {t} SET k = N'B' WHERE k = N'b'")
    assert one.rows("SELECT k FROM {t} ORDER BY k") == [("a",), ("B",)]
    joined = one.rows(
        f"SELECT CT.k, t.k FROM CHANGETABLE(CHANGES [{one.name}], {one.base + 1}) AS CT"
        f" LEFT JOIN [{one.name}] AS t ON t.k = CT.k"
    )
    assert joined == [("b", "B")]


def test_fact_21_and_22_odd_versions_are_no_errors(mssql: Client, tracked_table: Tracked) -> None:
    everything = {1: "I 1/1", 2: "I 1/1", 3: "I 1/1"}
    assert tracked_table.net(None) == everything
    assert tracked_table.net(0) == everything
    tracked_table.base, base = 0, tracked_table.base
    assert tracked_table.net(-1) == {}
    assert tracked_table.net(base + 99) == {}


@pytest.mark.parametrize("argument", ["1 + 1", "CHANGE_TRACKING_CURRENT_VERSION()"])
def test_fact_24_the_version_is_no_expression(tracked_table: Tracked, argument: str) -> None:
    found = tracked_table.refusal("SELECT CT.id FROM CHANGETABLE(CHANGES {t}, " + argument + ") AS CT")
    assert is_number(found, 102, 156, 22102)


def test_fact_24_the_version_may_be_a_variable(mssql: Client, tracked_table: Tracked) -> None:
    sql = f"SELECT CT.id FROM CHANGETABLE(CHANGES [{tracked_table.name}], @v) AS CT WHERE CT.id = 1"
    assert mssql.rows(f"DECLARE @v bigint = {tracked_table.base}; {sql}") == [(1,)]
    assert mssql.rows(sql.replace("@v", "?"), tracked_table.base) == [(1,)]


def test_fact_25_columns_of_the_result(mssql: Client) -> None:
    one = tracked(
        mssql, "v int NULL, b int NOT NULL, a int NOT NULL, PRIMARY KEY (a, b)", rows="(1, 2, 3)"
    )  # the key's order is not the table's
    mssql.rows(f"SELECT * FROM CHANGETABLE(CHANGES [{one.name}], {one.base}) AS CT")
    assert mssql.names == [
        "SYS_CHANGE_VERSION",
        "SYS_CHANGE_CREATION_VERSION",
        "SYS_CHANGE_OPERATION",
        "SYS_CHANGE_COLUMNS",
        "SYS_CHANGE_CONTEXT",
        "a",
        "b",
    ]


def test_a_changetable_must_have_an_alias(tracked_table: Tracked) -> None:
    assert is_number(tracked_table.refusal("SELECT 1 FROM CHANGETABLE(CHANGES {t}, 0)"), 22104)


# --- masks and contexts -------------------------------------------------------------------------------------------


def test_fact_40_and_41_the_mask_names_what_was_set(tracked_table: Tracked) -> None:
    tracked_table.run("UPDATE {t} SET b = N'x' WHERE id = 1")
    tracked_table.run("UPDATE {t} SET a = 1, b = N'x' WHERE id = 2")
    assert bytes(tracked_table.one("SYS_CHANGE_COLUMNS", 1, key=1)).hex() == "0000000003000000"
    assert tracked_table.one("SYS_CHANGE_COLUMNS", 1, key=2) is None, "every column but the key's"
    tracked_table.run("UPDATE {t} SET a = 5 WHERE id = 1")
    assert bytes(tracked_table.one("SYS_CHANGE_COLUMNS", 1, key=1)).hex() == "000000000300000002000000"
    assert bytes(tracked_table.one("SYS_CHANGE_COLUMNS", 2 + 1, key=1)).hex() == "0000000002000000", "fact 43"


def test_fact_40_no_mask_where_columns_are_not_tracked(mssql: Client) -> None:
    one = tracked(mssql, masks=False)
    one.run("UPDATE {t} SET b = N'x' WHERE id = 1")
    assert one.one("SYS_CHANGE_COLUMNS", 1) is None


def test_fact_40_a_null_mask_means_every_column(mssql: Client) -> None:
    assert mssql.value("SELECT CHANGE_TRACKING_IS_COLUMN_IN_MASK(7, NULL)") == 1
    mask = "0x000000000300000002000000"
    assert [mssql.value(f"SELECT CHANGE_TRACKING_IS_COLUMN_IN_MASK({n}, {mask})") for n in (1, 2, 3)] == [0, 1, 1]


def test_fact_42_a_short_mask_is_refused(mssql: Client) -> None:
    assert is_number(mssql.refusal("SELECT CHANGE_TRACKING_IS_COLUMN_IN_MASK(1, 0x0000)"), 22101)


def test_fact_44_a_context_is_that_of_the_last_statement(tracked_table: Tracked) -> None:
    tracked_table.run("WITH CHANGE_TRACKING_CONTEXT (0x7570) UPDATE {t} SET a = 5 WHERE id = 1")
    assert bytes(tracked_table.one("SYS_CHANGE_CONTEXT", 1)) == b"up"
    tracked_table.run("UPDATE {t} SET a = 6 WHERE id = 1")
    assert tracked_table.one("SYS_CHANGE_CONTEXT", 1) is None


def test_fact_44_a_context_of_another_type_is_refused(tracked_table: Tracked) -> None:
    assert is_number(
        tracked_table.refusal("DECLARE @c nvarchar(5) = N'x'; WITH CHANGE_TRACKING_CONTEXT (@c) UPDATE {t} SET a = 5"),
        22109,
    )


def test_fact_36_a_computed_column_is_in_no_mask(mssql: Client) -> None:
    one = tracked(
        mssql, "id int NOT NULL PRIMARY KEY, a int NULL, b int NULL, c AS (a * 2) PERSISTED", rows="(1, 1, 1)"
    )
    one.run("UPDATE {t} SET a = 4 WHERE id = 1")
    assert bytes(one.one("SYS_CHANGE_COLUMNS", 1)).hex() == "0000000002000000"
    assert one.rows("SELECT c FROM {t}") == [(8,)]


def test_fact_37_a_rowversion_is_in_every_mask(mssql: Client) -> None:
    one = tracked(mssql, "id int NOT NULL PRIMARY KEY, a int NULL, b int NULL, r rowversion", rows="")
    one.run("INSERT INTO {t} (id, a, b) VALUES (1, 1, 1)")
    one.run("UPDATE {t} SET a = 2 WHERE id = 1")
    assert bytes(one.one("SYS_CHANGE_COLUMNS", 1)).hex() == "000000000200000004000000"


def test_a_refusal_is_told_from_an_empty_result(tracked_table: Tracked) -> None:
    with pytest.raises(Refused):
        tracked_table.rows("SELECT nope FROM {t}")
    assert tracked_table.rows("SELECT id FROM {t} WHERE id = 99") == []
