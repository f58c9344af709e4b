"""What upwell relies on in Change Tracking: what is valid, what ends it, isolation, errors, permissions. By fact."""

import threading
import uuid

import pytest

from tests.contract.sqlserver_clients import (
    Client,
    Refused,
    Tracked,
    connect,
    is_number,
    needs_hooks,
    new_database,
    tracked,
)

STATE = """
SELECT ct.begin_version, CHANGE_TRACKING_MIN_VALID_VERSION(t.object_id), t.object_id, i.object_id
FROM sys.tables AS t LEFT JOIN sys.change_tracking_tables AS ct ON ct.object_id = t.object_id
LEFT JOIN sys.internal_tables AS i ON i.parent_id = t.object_id AND i.internal_type = 209
WHERE t.object_id = OBJECT_ID(N'{}')"""

FORK = "SELECT recovery_fork_guid FROM sys.database_recovery_status WHERE database_id = DB_ID()"


def state(table: Tracked) -> tuple[int | None, int | None, int, int | None]:
    """(begin version, minimum valid version, object id, side table's id), versions from the table's beginning."""
    ((begun, minimum, own, side),) = table.client.rows(STATE.format(table.name))
    return (
        None if begun is None else begun - table.base,
        None if minimum is None else minimum - table.base,
        own,
        side,
    )


# --- what is valid ------------------------------------------------------------------------------------------------


def test_fact_45_the_minimum_is_where_tracking_began(tracked_table: Tracked) -> None:
    assert state(tracked_table)[:2] == (0, 0)


def test_fact_46_the_minimum_is_null_where_nothing_is_tracked(mssql: Client) -> None:
    mssql.run("IF OBJECT_ID(N'plain') IS NULL CREATE TABLE plain (id int NOT NULL PRIMARY KEY)")
    assert mssql.value("SELECT CHANGE_TRACKING_MIN_VALID_VERSION(OBJECT_ID(N'plain'))") is None
    assert mssql.value("SELECT CHANGE_TRACKING_MIN_VALID_VERSION(1)") is None


@needs_hooks
def test_fact_22_and_49_cleanup_takes_history_without_an_error_from_idle_tables_too(fresh: Client) -> None:
    busy, idle = tracked(fresh), tracked(fresh)
    for number in range(5):
        busy.run(f"UPDATE {{t}} SET a = {number} WHERE id = 1")
    upto = busy.base + 3
    fresh.run(f"EXEC lab.cleanup @to = {upto}")
    assert state(busy)[1] == upto - busy.base
    assert state(idle)[1] == upto - idle.base
    assert state(idle)[0] == 0, "it still began where it did"
    assert busy.net(0).keys() == {1}, "since 0 is no longer valid: rows 2 and 3 are missing, and nothing says so"
    assert fresh.value(f"SELECT COUNT(*) FROM sys.dm_tran_commit_table WHERE commit_ts <= {upto}") == 0
    assert busy.version() == fresh.value("SELECT CHANGE_TRACKING_CURRENT_VERSION()") - busy.base


@needs_hooks
def test_the_counter_stays_when_all_is_cleaned_up(fresh: Client) -> None:
    table = tracked(fresh)
    fresh.run(f"EXEC lab.cleanup @to = {table.base + 1}")
    assert table.version() == 1
    table.run("UPDATE {t} SET a = 9 WHERE id = 1")
    assert table.net(1) == {1: "U 2/-"}


# --- what ends it -------------------------------------------------------------------------------------------------


def test_fact_29_and_30_a_truncation_begins_anew_at_the_current_version(tracked_table: Tracked) -> None:
    tracked_table.run("UPDATE {t} SET a = 5 WHERE id = 1")
    before = state(tracked_table)
    tracked_table.run("TRUNCATE TABLE {t}")
    assert tracked_table.version() == 2, "the counter stays"
    assert tracked_table.net(0) == {}, "rows are not reported"
    after = state(tracked_table)
    assert after[:2] == (2, 2), "a reader at 2 passes the documented check"
    assert before[:2] == (0, 0)
    assert after[2] == before[2], "the same object"


def test_fact_51_off_and_on_begins_anew(tracked_table: Tracked) -> None:
    before = state(tracked_table)
    tracked_table.run("ALTER TABLE {t} DISABLE CHANGE_TRACKING")
    assert state(tracked_table)[:2] == (None, None)
    tracked_table.run("INSERT INTO {t} VALUES (7, 7, N'unseen')")
    tracked_table.run("ALTER TABLE {t} ENABLE CHANGE_TRACKING")
    after = state(tracked_table)
    assert after[:2] == (1, 1)
    assert tracked_table.net(0) == {}
    assert after[3] != before[3], "the side table is another one"


def test_fact_51_enabling_is_part_of_a_transaction(mssql: Client) -> None:
    name = f"t_{uuid.uuid4().hex[:8]}"
    mssql.run(f"CREATE TABLE [{name}] (id int NOT NULL PRIMARY KEY)")
    mssql.run("BEGIN TRANSACTION")
    mssql.run(f"ALTER TABLE [{name}] ENABLE CHANGE_TRACKING")
    mssql.run("ROLLBACK TRANSACTION")
    assert is_number(mssql.refusal(f"SELECT CT.id FROM CHANGETABLE(CHANGES [{name}], 0) AS CT"), 22105)


def test_fact_31_a_table_made_again_is_another(tracked_table: Tracked) -> None:
    before = state(tracked_table)
    tracked_table.run("DROP TABLE {t}")
    tracked_table.run("CREATE TABLE {t} (id int NOT NULL PRIMARY KEY)")
    tracked_table.run("ALTER TABLE {t} ENABLE CHANGE_TRACKING")
    after = state(tracked_table)
    assert after[2] != before[2]
    assert after[3] != before[3]
    assert tracked_table.net(0) == {}


def test_fact_32_columns_come_and_go_unrecorded(tracked_table: Tracked) -> None:
    tracked_table.run("ALTER TABLE {t} ADD c int NOT NULL DEFAULT 5")
    tracked_table.run("ALTER TABLE {t} ALTER COLUMN a bigint NULL")
    tracked_table.run("ALTER TABLE {t} DROP COLUMN b")
    assert tracked_table.version() == 1
    assert tracked_table.rows("SELECT id, a, c FROM {t} WHERE id = 1") == [(1, 1, 5)]
    tracked_table.run("UPDATE {t} SET c = 6 WHERE id = 1")
    assert bytes(tracked_table.one("SYS_CHANGE_COLUMNS", 1)).hex() == "0000000004000000", "ids are not given again"


def test_fact_33_the_key_of_a_tracked_table_stays(mssql: Client) -> None:
    one = tracked(mssql, "id int NOT NULL, a int NULL, CONSTRAINT [pk_kept] PRIMARY KEY (id)", rows="(1, 1)")
    assert is_number(one.refusal("ALTER TABLE {t} DROP CONSTRAINT [pk_kept]"), 3735, 3727)
    one.run("DROP TABLE {t}")


def test_fact_55_after_a_restore_the_counter_is_back_and_runs_past_the_reader(client_name: str, sqlserver: str) -> None:
    owner = connect(client_name, sqlserver)
    with new_database(owner) as name:
        inside = connect(client_name, sqlserver, name)
        table, before = tracked(inside), inside.value(FORK)
        inside.close()
        owner.run(f"BACKUP DATABASE [{name}] TO DISK = N'{name}'")
        later = Tracked(connect(client_name, sqlserver, name), table.name, table.base)
        for number in range(3):
            later.run(f"UPDATE {{t}} SET a = {10 + number} WHERE id = 2")
        assert later.version() == 4
        later.client.close()
        owner.run(f"RESTORE DATABASE [{name}] FROM DISK = N'{name}' WITH REPLACE")
        restored = Tracked(connect(client_name, sqlserver, name), table.name, table.base)
        assert restored.version() == 1
        for number in range(4):
            restored.run(f"UPDATE {{t}} SET a = {20 + number} WHERE id = 3")
        assert restored.net(4) == {3: "U 5/-"}, "a reader at 4 never hears that row 2 is as it was"
        assert restored.client.value(FORK) != before
        restored.client.close()
    owner.close()


@needs_hooks
def test_fact_56_a_secondary_has_no_change_tracking(fresh: Client) -> None:
    table = tracked(fresh)
    fresh.run("EXEC lab.role @role = 'SECONDARY'")
    assert fresh.value("SELECT CONVERT(nvarchar(60), DATABASEPROPERTYEX(DB_NAME(), 'Updateability'))") == "READ_ONLY"
    assert is_number(fresh.refusal(f"SELECT CT.id FROM CHANGETABLE(CHANGES [{table.name}], 0) AS CT"), 22117)
    with pytest.raises(Refused):
        table.run("UPDATE {t} SET a = 1")
    fresh.run("EXEC lab.role @role = 'PRIMARY'")
    assert len(table.net(0)) == 3


@needs_hooks
def test_after_a_failover_another_server_answers(fresh: Client, client_name: str, sqlserver: str) -> None:
    name = fresh.value("SELECT DB_NAME()")
    beside = connect(client_name, sqlserver, name)
    asked = "SELECT CONVERT(nvarchar(128), SERVERPROPERTY('ServerName'))"
    before = fresh.value(asked)
    fresh.run("EXEC lab.fail_over @server = 'OTHER'")
    with pytest.raises(Refused):
        beside.value(asked)
    after = connect(client_name, sqlserver, name)
    assert (before, after.value(asked)) == ("STANDIN", "OTHER")
    after.close()
    beside.abandon()


# --- isolation and locks ------------------------------------------------------------------------------------------


def test_fact_57_a_snapshot_sees_changes_up_to_its_version(
    mssql: Client, mssql_other: Client, tracked_table: Tracked
) -> None:
    mssql.run("SET TRANSACTION ISOLATION LEVEL SNAPSHOT")
    mssql.run("BEGIN TRANSACTION")
    upto = tracked_table.version()
    assert tracked_table.net(0) == {1: "I 1/1", 2: "I 1/1", 3: "I 1/1"}
    mssql_other.run(f"UPDATE [{tracked_table.name}] SET a = 9 WHERE id = 1")
    assert mssql_other.value("SELECT CHANGE_TRACKING_CURRENT_VERSION()") == tracked_table.base + upto + 1
    assert tracked_table.net(upto) == {}
    assert tracked_table.rows("SELECT a FROM {t} WHERE id = 1") == [(1,)]
    mssql.run("COMMIT TRANSACTION")
    assert tracked_table.net(upto) == {1: "U 2/-"}
    assert tracked_table.rows("SELECT a FROM {t} WHERE id = 1") == [(9,)]


def test_fact_59_without_a_snapshot_row_and_change_are_of_different_instants(
    mssql: Client, mssql_other: Client, tracked_table: Tracked
) -> None:
    tracked_table.run("UPDATE {t} SET a = 5 WHERE id = 1")
    name, since, upto = tracked_table.name, tracked_table.base + 1, tracked_table.version()
    mssql_other.run(f"DELETE FROM [{tracked_table.name}] WHERE id = 1")
    joined = mssql.rows(
        f"SELECT CT.SYS_CHANGE_OPERATION, t.id FROM CHANGETABLE(CHANGES [{name}], {since}) AS CT"
        f" LEFT JOIN [{name}] AS t ON t.id = CT.id WHERE CT.SYS_CHANGE_VERSION <= ?",
        tracked_table.base + upto,
    )
    assert joined == [], "the row moved to a later version, and comes with the next poll"


def test_fact_60_snapshots_that_are_not_allowed_fail_at_the_first_table(client_name: str, fresh: Client) -> None:
    table = tracked(fresh)
    fresh.run(f"ALTER DATABASE [{fresh.value('SELECT DB_NAME()')}] SET ALLOW_SNAPSHOT_ISOLATION OFF")
    fresh.run("SET TRANSACTION ISOLATION LEVEL SNAPSHOT")
    fresh.run("BEGIN TRANSACTION")
    assert fresh.value("SELECT CHANGE_TRACKING_CURRENT_VERSION()") == table.base + 1
    assert is_number(table.refusal("SELECT id FROM {t}"), 3952)
    fresh.run("IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION")


def test_fact_61_a_table_changed_after_the_snapshot(mssql: Client, mssql_other: Client, tracked_table: Tracked) -> None:
    beside = tracked(mssql)
    mssql.run("SET TRANSACTION ISOLATION LEVEL SNAPSHOT")
    mssql.run("BEGIN TRANSACTION")
    assert len(beside.rows("SELECT id FROM {t}")) == 3
    mssql_other.run(f"ALTER TABLE [{tracked_table.name}] ADD c int NULL")
    assert len(beside.rows("SELECT id FROM {t}")) == 3
    assert is_number(tracked_table.refusal("SELECT id FROM {t}"), 3961)
    mssql.run("IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION")


def test_fact_61_two_snapshots_that_write_one_row(mssql: Client, mssql_other: Client, tracked_table: Tracked) -> None:
    mssql.run("SET TRANSACTION ISOLATION LEVEL SNAPSHOT")
    mssql.run("BEGIN TRANSACTION")
    assert len(tracked_table.rows("SELECT id FROM {t}")) == 3
    mssql_other.run(f"UPDATE [{tracked_table.name}] SET a = 9 WHERE id = 1")
    assert is_number(tracked_table.refusal("UPDATE {t} SET a = 8 WHERE id = 1"), 3960)
    assert mssql.value("SELECT @@TRANCOUNT") == 0


def test_fact_63_a_lock_that_is_waited_for_too_long(mssql: Client, mssql_other: Client, tracked_table: Tracked) -> None:
    mssql_other.run("BEGIN TRANSACTION")
    mssql_other.run(f"UPDATE [{tracked_table.name}] SET a = 9 WHERE id = 1")
    mssql.run("SET LOCK_TIMEOUT 200")
    assert is_number(tracked_table.refusal("UPDATE {t} SET a = 8 WHERE id = 1"), 1222)
    mssql_other.run("COMMIT TRANSACTION")
    assert tracked_table.run("UPDATE {t} SET a = 8 WHERE id = 1") == 1


@needs_hooks
def test_a_table_that_is_locked_is_not_read(mssql: Client, mssql_other: Client, tracked_table: Tracked) -> None:
    mssql_other.run(f"EXEC lab.lock @name = 'dbo.{tracked_table.name}'")
    mssql.run("SET LOCK_TIMEOUT 200")
    assert is_number(tracked_table.refusal("SELECT id FROM {t}"), 1222)
    mssql_other.run(f"EXEC lab.unlock @name = 'dbo.{tracked_table.name}'")
    assert len(tracked_table.rows("SELECT id FROM {t}")) == 3


def test_a_deadlock_has_one_victim(mssql: Client, mssql_other: Client, tracked_table: Tracked) -> None:
    name = tracked_table.name
    mssql.run("BEGIN TRANSACTION")
    mssql_other.run("BEGIN TRANSACTION")
    mssql.run(f"UPDATE [{name}] SET a = 1 WHERE id = 1")
    mssql_other.run(f"UPDATE [{name}] SET a = 1 WHERE id = 2")
    found: list[Refused] = []

    def crosswise() -> None:
        try:
            mssql_other.run(f"UPDATE [{name}] SET a = 2 WHERE id = 1")
        except Refused as refused:
            found.append(refused)

    thread = threading.Thread(target=crosswise)
    thread.start()
    try:
        mssql.run(f"UPDATE [{name}] SET a = 2 WHERE id = 2")
    except Refused as refused:
        found.append(refused)
        mssql.run("IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION")
    thread.join(30)
    (victim,) = found
    assert is_number(victim.number, 1205)
    for one in (mssql, mssql_other):
        one.run("IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION")


@needs_hooks
def test_a_deadlock_on_demand(mssql: Client, mssql_other: Client, tracked_table: Tracked) -> None:
    mssql_other.run("EXEC lab.deadlock @statements = 1")
    assert is_number(tracked_table.refusal("SELECT id FROM {t}"), 1205)
    assert len(tracked_table.rows("SELECT id FROM {t}")) == 3


# --- reading a long window ----------------------------------------------------------------------------------------


@needs_hooks
def test_fact_65_forceseek_is_unknown_to_older_builds(fresh: Client) -> None:
    table = tracked(fresh)
    probe = "SELECT TOP (0) CT.SYS_CHANGE_VERSION FROM CHANGETABLE(CHANGES {t}, 0, FORCESEEK) AS CT"
    assert table.rows(probe) == []
    fresh.run("EXEC lab.build @version = '13.0.4001.0'")
    assert is_number(table.refusal(probe), 102)
    assert fresh.value("SELECT CONVERT(nvarchar(128), SERVERPROPERTY('ProductVersion'))") == "13.0.4001.0"


def test_fact_66_pages_within_one_version(mssql: Client) -> None:
    one = tracked(mssql, "a int NOT NULL, b nvarchar(10) NOT NULL, c int NULL, PRIMARY KEY (a, b)", rows="")
    one.run("INSERT INTO {t} VALUES " + ", ".join(f"({n // 10}, N'{n % 10}', {n})" for n in range(100)))
    found: list[tuple[object, ...]] = []
    after = ""
    while True:
        page = mssql.rows(
            f"SELECT TOP (7) CT.a, CT.b, t.c FROM CHANGETABLE(CHANGES [{one.name}], {one.base}) AS CT"
            f" LEFT JOIN [{one.name}] AS t ON t.a = CT.a AND t.b = CT.b"
            f" WHERE CT.SYS_CHANGE_VERSION = {one.base + 1} {after} ORDER BY CT.SYS_CHANGE_VERSION, CT.a, CT.b"
        )
        if not page:
            break
        found += page
        a, b, _ = page[-1]
        after = f"AND (CT.a > {a} OR (CT.a = {a} AND CT.b > N'{b}'))"
    assert found == [(n // 10, str(n % 10), n) for n in range(100)]


# --- errors and permissions ---------------------------------------------------------------------------------------


def test_enabling_errors(mssql: Client, tracked_table: Tracked) -> None:
    assert is_number(tracked_table.refusal("ALTER TABLE {t} ENABLE CHANGE_TRACKING"), 4996)
    mssql.run(f"CREATE TABLE [{tracked_table.name}_x] (id int NULL)")
    without_key = f"[{tracked_table.name}_x]"
    assert is_number(mssql.refusal(f"ALTER TABLE {without_key} ENABLE CHANGE_TRACKING"), 4997), "fact 34"
    assert is_number(mssql.refusal(f"ALTER TABLE {without_key} DISABLE CHANGE_TRACKING"), 4998)
    assert is_number(mssql.refusal("ALTER TABLE [no such table] ENABLE CHANGE_TRACKING"), 4902)


def test_database_errors(mssql: Client, tracked_table: Tracked) -> None:
    alter = f"ALTER DATABASE [{mssql.value('SELECT DB_NAME()')}] SET CHANGE_TRACKING"
    assert is_number(mssql.refusal(f"{alter} = ON"), 5088, 5069)
    assert is_number(mssql.refusal(f"{alter} = OFF"), 22115, 5069), "fact 52"
    assert is_number(mssql.refusal(f"{alter} (CHANGE_RETENTION = 0 DAYS)"), 5092, 5069)
    assert is_number(mssql.refusal(f"{alter} (CHANGE_RETENTION = 2 DAY)"), 155)
    mssql.run(f"{alter} (CHANGE_RETENTION = 14 DAYS, AUTO_CLEANUP = ON)")
    asked = (
        "SELECT retention_period, retention_period_units_desc, is_auto_cleanup_on FROM sys.change_tracking_databases"
        " WHERE database_id = DB_ID()"
    )
    assert mssql.rows(asked) == [(14, "DAYS", True)]
    mssql.run(f"{alter} (CHANGE_RETENTION = 2 DAYS, AUTO_CLEANUP = OFF)")


def test_1718_a_table_where_the_database_is_off(client_name: str, fresh: Client) -> None:
    fresh.run(f"ALTER DATABASE [{fresh.value('SELECT DB_NAME()')}] SET CHANGE_TRACKING = OFF")
    fresh.run("CREATE TABLE one (id int NOT NULL PRIMARY KEY)")
    assert is_number(fresh.refusal("ALTER TABLE one ENABLE CHANGE_TRACKING"), 1718)
    assert is_number(fresh.refusal("SELECT CT.id FROM CHANGETABLE(CHANGES one, 0) AS CT"), 22105)


def test_22105_refuses_the_whole_batch(mssql: Client, tracked_table: Tracked) -> None:
    mssql.run(f"CREATE TABLE [{tracked_table.name}_x] (id int NOT NULL PRIMARY KEY)")
    found = tracked_table.refusal(
        "UPDATE {t} SET a = 99; BEGIN TRY IF 1 = 0"
        f" SELECT CT.id FROM CHANGETABLE(CHANGES [{tracked_table.name}_x], 0) AS CT END TRY"
        " BEGIN CATCH SELECT 1 AS caught END CATCH"
    )
    assert is_number(found, 22105)
    assert tracked_table.version() == 1, "nothing of it was run"


def test_fact_67_what_a_reader_needs(fresh: Client, client_name: str, sqlserver: str) -> None:
    table = tracked(fresh)
    name, database = f"reader_{uuid.uuid4().hex[:8]}", fresh.value("SELECT DB_NAME()")
    fresh.run(f"CREATE LOGIN [{name}] WITH PASSWORD = 'Reader-1-{name}'")
    fresh.run(f"CREATE USER [{name}] FOR LOGIN [{name}]")
    reader = connect(client_name, sqlserver, database, user=name, password=f"Reader-1-{name}")
    seen = Tracked(reader, table.name, table.base)
    minimum = f"SELECT CHANGE_TRACKING_MIN_VALID_VERSION(OBJECT_ID(N'{table.name}'))"
    assert reader.rows(f"SELECT name FROM sys.tables WHERE name = '{table.name}'") == []
    assert is_number(seen.refusal("SELECT id FROM {t}"), 229)
    fresh.run(f"GRANT SELECT ON [{table.name}] TO [{name}]")
    assert len(seen.rows("SELECT id FROM {t}")) == 3
    assert is_number(seen.refusal("SELECT CT.id FROM CHANGETABLE(CHANGES {t}, 0) AS CT"), 229)
    assert reader.value(minimum) is None, "fact 46"
    permission = f"SELECT HAS_PERMS_BY_NAME(N'[dbo].[{table.name}]', 'OBJECT', 'VIEW CHANGE TRACKING')"
    assert reader.value(permission) == 0
    fresh.run(f"GRANT VIEW CHANGE TRACKING ON OBJECT::[dbo].[{table.name}] TO [{name}]")
    assert reader.value(permission) == 1
    assert reader.value(minimum) == table.base
    assert len(seen.net(0)) == 3
    assert is_number(seen.refusal("DELETE FROM {t}"), 229)
    reader.close()
    fresh.run(f"DROP USER [{name}]")
    fresh.run(f"DROP LOGIN [{name}]")
