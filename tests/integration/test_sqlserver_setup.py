"""What `track`, `doctor`, `init` and `status` do to a SQL Server, and say of it."""

from collections.abc import Iterator

import pytest

from tests.contract.sqlserver_clients import needs_hooks
from tests.integration.sqlserver_shop import CREATE, Shop, open_shop, selections
from tests.sqlserver_databases import in_database
from upwell.errors import OperatorError, UpwellError
from upwell.model import Finding, TableName
from upwell.sources.sqlserver_setup import findings, grants_sql, inspect, track, track_sql, untrack, untrack_sql


@pytest.fixture
def shop(sqlserver: str) -> Iterator[Shop]:
    with open_shop(sqlserver) as shop:
        shop.run(CREATE.format("t"), CREATE.format("other"))
        yield shop


def by_code(shop: Shop, *tables: str, url: str = "") -> dict[str, Finding]:
    return {finding.code: finding for finding in findings(url or shop.url, selections(*tables), shop.driver)}


def test_track_runs_exactly_what_it_shows_and_only_what_is_missing(shop: Shop) -> None:
    name = shop.value("SELECT DB_NAME()")
    on = f"ALTER DATABASE [{name}] SET CHANGE_TRACKING = ON (CHANGE_RETENTION = 14 DAYS, AUTO_CLEANUP = ON);"
    table = "ALTER TABLE [dbo].[{}] ENABLE CHANGE_TRACKING WITH (TRACK_COLUMNS_UPDATED = ON);"
    assert track_sql(shop.url, selections("t"), shop.driver) == [on, table.format("t")]
    assert track(shop.url, selections("t"), shop.driver) == [on, table.format("t")]
    assert track(shop.url, selections("t"), shop.driver) == []
    assert track_sql(shop.url, selections("dbo.*"), shop.driver) == [table.format("other")]
    assert shop.value("SELECT is_track_columns_updated_on FROM sys.change_tracking_tables") in (True, 1)
    retention = shop.sql.one("SELECT retention_period, retention_period_units_desc FROM sys.change_tracking_databases")
    assert tuple(retention or ()) == (14, "DAYS")


@needs_hooks
def test_who_may_not_track_is_told_who_may(shop: Shop) -> None:
    """grants.sql gives no such right."""
    name = shop.value("SELECT DB_NAME()")
    shop.run(
        f"CREATE LOGIN reader_{name} WITH PASSWORD = N'Secret-123'",
        f"CREATE USER reader_{name} FOR LOGIN reader_{name}",
    )
    track(shop.url, selections("t"), shop.driver)
    shop.run(f"GRANT SELECT, VIEW CHANGE TRACKING ON OBJECT::t TO reader_{name}")
    with pytest.raises(OperatorError) as refused:
        untrack(in_database(shop.url, name, user=f"reader_{name}", password="Secret-123"), selections("t"), shop.driver)
    assert refused.value.code == "UW-MS-004"
    assert "owner" in refused.value.remedy


def test_undo_leaves_what_others_track(shop: Shop) -> None:
    name = shop.value("SELECT DB_NAME()")
    track(shop.url, selections("t", "other"), shop.driver)
    disable = "ALTER TABLE [dbo].[{}] DISABLE CHANGE_TRACKING;"
    assert untrack(shop.url, selections("t"), shop.driver) == [disable.format("t")]
    left = [disable.format("other"), f"ALTER DATABASE [{name}] SET CHANGE_TRACKING = OFF;"]
    assert untrack_sql(shop.url, selections("other"), shop.driver) == left
    assert untrack(shop.url, selections("other"), shop.driver) == left
    assert untrack(shop.url, selections("other"), shop.driver) == []
    assert shop.value("SELECT CHANGE_TRACKING_CURRENT_VERSION()") is None


def test_a_table_without_a_key_or_that_is_not_there_is_told(shop: Shop) -> None:
    shop.run("CREATE TABLE heap (a int)", "CREATE TABLE any_kind (k sql_variant NOT NULL PRIMARY KEY)")
    for table, code in [("heap", "UW-MS-041"), ("gone", "UW-MS-043"), ("any_kind", "UW-MS-044")]:
        with pytest.raises(OperatorError) as refused:
            track(shop.url, selections(table), shop.driver)
        assert refused.value.code == code
    assert track_sql(shop.url, selections("dbo.*"), shop.driver), "what a pattern names stops nobody"
    found = {table.name.name: table for table in inspect(shop.url, shop.driver)}
    assert found["heap"].schema is None
    assert "primary key" in found["heap"].problem
    assert found["t"].schema is not None


@needs_hooks  # a true server wants a filegroup of its own for such a table
def test_fact_39_a_memory_optimized_table_is_left_out_and_the_others_are_tracked(shop: Shop) -> None:
    """T-SQL turns tracking on in a database that has one, which Management Studio does not."""
    shop.run(f"{CREATE.format('fast')} WITH (MEMORY_OPTIMIZED = ON, DURABILITY = SCHEMA_AND_DATA)")
    with pytest.raises(OperatorError) as refused:
        track(shop.url, selections("fast"), shop.driver)
    assert refused.value.code == "UW-MS-044"
    assert len(track(shop.url, selections("dbo.*"), shop.driver)) == 3, "the database, t and other"
    replica = shop.replica("dbo.*")
    shop.run("INSERT INTO fast VALUES (1, 1, N'')", "INSERT INTO t VALUES (1, 1, N'')")
    assert [event.schema.table for event in replica.take_window().events] == ["dbo.t"]
    assert shop.sql.one("SELECT OBJECTPROPERTY(OBJECT_ID(N't'), 'TableIsMemoryOptimized')") == (0,)
    with pytest.raises(UpwellError, match="memory optimized"):
        shop.run("ALTER TABLE fast ENABLE CHANGE_TRACKING")


def test_doctor_finds_all_that_is_missing_and_then_all_in_place(shop: Shop) -> None:
    found = by_code(shop, "t", "gone")
    assert {code: f.level for code, f in found.items() if f.level == "fail"} == {
        "UW-MS-030": "fail", "UW-MS-031": "fail", "UW-MS-043": "fail",
    }  # fmt: skip
    assert found["UW-MS-052"].level == "pass"
    track(shop.url, selections("t"), shop.driver)
    found = by_code(shop, "t")
    assert {f.level for f in found.values()} == {"pass"}
    assert found["UW-MS-050"].sentence == "The server keeps changes for 14 days."
    assert {"UW-MS-005", "UW-MS-033", "UW-MS-040", "UW-MS-054"} <= found.keys()


def test_doctor_warns_of_what_will_hurt(shop: Shop) -> None:
    name = shop.value("SELECT DB_NAME()")
    track(shop.url, selections("t"), shop.driver)
    shop.run(
        f"ALTER DATABASE [{name}] SET CHANGE_TRACKING (CHANGE_RETENTION = 2 DAYS)",
        f"ALTER DATABASE [{name}] SET CHANGE_TRACKING (AUTO_CLEANUP = OFF)",
        f"ALTER DATABASE [{name}] SET ALLOW_SNAPSHOT_ISOLATION OFF",
    )
    found = by_code(shop, "t", url=shop.url.replace("?", "?trust_server_certificate=yes&"))
    warned = {code for code, finding in found.items() if finding.level == "warn"}
    assert warned == {"UW-MS-005", "UW-MS-050", "UW-MS-051", "UW-MS-052"}
    assert found["UW-MS-052"].remedy == f"ALTER DATABASE [{name}] SET ALLOW_SNAPSHOT_ISOLATION ON;"


def test_the_grants_are_enough_and_no_more(shop: Shop) -> None:
    name = shop.value("SELECT DB_NAME()")
    track(shop.url, selections("t", "other"), shop.driver)
    user, password = f"u_{name}", "Secret-123"
    lines = grants_sql([TableName("dbo", "t")], role=user, database=name)
    statements = [line.rstrip(";") for line in lines if not line.startswith(("--", "USE"))]
    assert {line.partition(" ON")[0] for line in statements[1:]} == {"GRANT SELECT", "GRANT VIEW CHANGE TRACKING"}
    shop.run(f"CREATE LOGIN [{user}] WITH PASSWORD = N'{password}'", *statements)
    url = in_database(shop.url, name, user=user, password=password)
    found = by_code(shop, "t", url=url)
    assert not [finding for finding in found.values() if finding.level == "fail"]
    assert by_code(shop, "other", url=url)["UW-MS-043"].level == "fail"
    shop.run(f"DROP USER [{user}]", f"DROP LOGIN [{user}]")


@needs_hooks
def test_health_tells_the_runway_of_each_table(shop: Shop) -> None:
    track(shop.url, selections("t", "other"), shop.driver)
    replica = shop.replica("t", "other")
    shop.run("INSERT INTO t VALUES (1, 1, N'')")
    replica.take_all()
    health = replica.source.health()
    assert (health["retention_hours"], health["runway_hours"], health["auto_cleanup"]) == (336.0, 336.0, True)
    assert health["version"] == health["read_version"] == shop.version()
    assert health["tables"]["dbo.other"] == {"min_valid_version": 0, "versions_left": 1, "runway_hours": 336.0}
    shop.run("UPDATE t SET a = 2")
    shop.hook("cleanup", to=shop.version())
    assert replica.source.health()["tables"]["dbo.other"]["runway_hours"] == 0.0, "it is lost"
