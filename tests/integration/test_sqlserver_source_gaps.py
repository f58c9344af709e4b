"""What happens to a source whose tables, retention, server or rights are not what they were. Never a silent gap.

Facts by the numbers of docs/sqlserver.md.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest

from tests.contract.source_contract import EPOCH, Replica
from tests.contract.sqlserver_clients import needs_hooks
from tests.integration.sqlserver_shop import CREATE, Isolation, Shop, open_shop, selections
from tests.sqlserver_databases import connect, in_database
from upwell.errors import OperatorError, PositionLost, TransientError
from upwell.model import Position, Window
from upwell.sources import sqlserver_database, sqlserver_reading, sqlserver_session
from upwell.sources.sqlserver_marker import CREATE_SQL
from upwell.sources.sqlserver_place import Place
from upwell.sources.sqlserver_session import Address, Driver
from upwell.sources.sqlserver_setup import RETENTION_DAYS, track


@pytest.fixture
def isolation() -> Isolation:
    """What matters to few of these tests."""
    return "snapshot"


@pytest.fixture
def shop(sqlserver: str, isolation: Isolation) -> Iterator[Shop]:
    with open_shop(sqlserver, isolation=isolation) as shop:
        shop.tracked("t", "other")
        yield shop


@pytest.fixture
def replica(shop: Shop) -> Replica:
    """Has seen a row in each table."""
    replica = shop.replica("t", "other")
    shop.run("INSERT INTO t VALUES (1, 1, N'a')", "INSERT INTO other VALUES (1, 1, N'a')")
    replica.take_window()
    return replica


def window_with_resync(replica: Replica) -> Window:
    """The next window that asks for a resync; the tables are looked at every second."""
    for _ in range(20):
        window = replica.take_window(wait_s=0.2)
        if window.resync:
            return window
    raise AssertionError("nothing is noticed")


def until_read(replica: Replica) -> None:
    """The connection may have to be made anew first."""
    for _ in range(5):
        with suppress(TransientError):
            replica.take_all()
            return
    raise AssertionError("the connection never comes back")


def assert_lost(shop: Shop, replica: Replica, code: str, tables: list[str] | None) -> None:
    """At a start from here that is told, once."""
    source = shop.source("t", "other")
    with pytest.raises(PositionLost) as lost:
        source.start(replica.position, EPOCH)
    assert (lost.value.code, lost.value.tables) == (code, tables)
    if tables is not None:
        position, _ = source.start(replica.position, EPOCH)
        again = Replica(source, position, replica.commit, 0.0)
        again.take_window()
        shop.run("INSERT INTO other VALUES (70, 1, N'on')", "INSERT INTO t VALUES (70, 1, N'on')")
        keys = {(event.schema.table, event.key) for event in again.take_window().events}
        assert keys == {("dbo.other", b"[70]"), ("dbo.t", b"[70]")}, "the others go on, and it does from now"
        shop.source("t", "other").start(again.position, EPOCH)  # in the position saved it is told no more


# --- tables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "done",
    [
        ("TRUNCATE TABLE t",),
        ("ALTER TABLE t DISABLE CHANGE_TRACKING", "UPDATE t SET a = 99", "ALTER TABLE t ENABLE CHANGE_TRACKING"),
        ("DROP TABLE t", CREATE.format("t"), "ALTER TABLE t ENABLE CHANGE_TRACKING"),
    ],
    ids=["truncated", "off and on", "made anew"],
)
@pytest.mark.parametrize("isolation", ["snapshot", "read committed"])
def test_facts_29_to_31_and_51_what_change_tracking_does_not_tell_is_noticed(
    shop: Shop, replica: Replica, done: tuple[str, ...]
) -> None:
    """While it runs and at a start, although the version has not moved (fact 30: the documented check passes)."""
    before = shop.version()
    shop.run(*done)
    assert shop.version() == before
    assert_lost(shop, replica, "UW-MS-023", ["dbo.t"])
    assert [table for table, _ in window_with_resync(replica).resync] == ["dbo.t"]
    shop.run("INSERT INTO t VALUES (5, 5, N'')")
    assert [event.key for event in replica.take_window().events if event.schema.table == "dbo.t"][-1:] == [b"[5]"]


def test_a_table_without_tracking_stops_the_pipeline_that_names_it(shop: Shop, replica: Replica) -> None:
    shop.run("ALTER TABLE t DISABLE CHANGE_TRACKING")
    with pytest.raises(OperatorError) as stopped:
        window_with_resync(replica)
    assert stopped.value.code == "UW-MS-031"
    with pytest.raises(OperatorError) as stopped:
        shop.source("t").start(replica.position, EPOCH)
    assert "upwell track" in stopped.value.remedy


def test_a_new_table_that_a_pattern_names_is_left_alone_until_it_is_tracked(shop: Shop) -> None:
    replica = shop.replica("dbo.*")
    shop.run(CREATE.format("late"))
    assert [schema.table for schema in replica.source.tables()] == ["dbo.other", "dbo.t"]
    shop.run("INSERT INTO t VALUES (9, 1, N'')")
    assert [event.key for event in replica.take_window().events] == [b"[9]"]
    assert replica.source.health()["untracked_tables"] == ["dbo.late"]
    track(shop.url, selections("late"), shop.driver)
    assert [schema.table for schema in replica.source.tables()] == ["dbo.late", "dbo.other", "dbo.t"]
    shop.run("INSERT INTO late VALUES (1, 1, N'')")
    window = replica.take_window()
    assert [schema.table for schema in window.schemas] == ["dbo.late"], "so the publisher reads it from the start"


def test_a_dropped_table_keeps_nobody_from_reading_the_others(shop: Shop, replica: Replica) -> None:
    shop.run("DROP TABLE t", "INSERT INTO other VALUES (2, 2, N'')")
    assert [event.key for event in replica.take_window().events] == [b"[2]"]
    assert replica.source.chunk(replica.windows[0].schemas[-1], None, 10) is None


# --- retention ----------------------------------------------------------------------------------------------------


@needs_hooks
def test_facts_22_45_and_47_changes_that_were_cleaned_up_are_missed(shop: Shop, replica: Replica) -> None:
    """CHANGETABLE raises no error below the minimum valid version; it tells less."""
    shop.run("UPDATE t SET a = 2", "UPDATE other SET a = 2")
    shop.hook("cleanup", to=shop.version())
    with pytest.raises(PositionLost) as lost:
        replica.take_window()
    assert (lost.value.code, lost.value.tables) == ("UW-MS-022", ["dbo.other", "dbo.t"])
    assert_lost(shop, replica, "UW-MS-022", ["dbo.other", "dbo.t"])


@dataclass
class Calendar:
    """A clock on which a day is over as soon as somebody says so."""

    seconds: float = 1_700_000_000.0

    def now(self) -> float:
        return self.seconds

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@needs_hooks
@pytest.mark.parametrize("isolation", ["snapshot", "read committed"])
def test_fact_49_an_idle_table_beside_busy_ones_outlives_three_retentions(shop: Shop) -> None:
    """A look every third day, and a new process every ninth; changes are forgotten when they are fourteen days old."""
    calendar, versions = Calendar(), list[int]()
    shop.tracked("idle")
    shop.run("INSERT INTO idle VALUES (1, 1, N'a')")
    tables = ("idle", "t", "other")

    def day_goes_by() -> None:
        shop.run(f"UPDATE t SET a = {len(versions)}", f"INSERT INTO other VALUES ({len(versions)}, 1, N'')")
        versions.append(shop.version())
        calendar.sleep(86_400)
        if len(versions) > RETENTION_DAYS:
            shop.hook("cleanup", to=versions[-1 - RETENTION_DAYS])

    def restarted(position: Position | None) -> Replica:
        source = shop.source(*tables, clock=calendar)
        replica = Replica(source, *source.start(position, EPOCH), 0.0)
        replica.take_window()
        return replica

    shop.run("INSERT INTO t VALUES (1, 1, N'a')")
    replica = restarted(None)
    began = replica.commit
    for day in range(1, 3 * RETENTION_DAYS + 1):
        day_goes_by()
        if day % 9 == 0:
            replica = restarted(replica.position)
        elif day % 3 == 0:
            replica.take_window()
        assert not any(window.resync for window in replica.windows)
    assert shop.value("SELECT CHANGE_TRACKING_MIN_VALID_VERSION(OBJECT_ID(N'idle'))") > began
    shop.run("UPDATE idle SET a = 77")
    replica.take_window()
    assert replica.rows["dbo.idle"] == {b"[1]": [1, 77, "a"]}
    for _ in range(RETENTION_DAYS + 1):
        day_goes_by()
    with pytest.raises(PositionLost, match=r"dbo\.idle"):
        restarted(replica.position)


@needs_hooks
@pytest.mark.parametrize("isolation", ["snapshot", "read committed"])
def test_fact_48_cleanup_between_the_check_and_the_read_loses_nothing_or_is_noticed(
    shop: Shop, replica: Replica, isolation: Isolation, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.run("UPDATE t SET a = 2", "UPDATE t SET a = 3")
    database = replica.source._database  # type: ignore[attr-defined]
    before = database._page

    def cleaned_up_first(*args: object) -> object:
        monkeypatch.setattr(database, "_page", before)
        shop.hook("cleanup", to=shop.version())
        return before(*args)

    monkeypatch.setattr(database, "_page", cleaned_up_first)
    if isolation == "snapshot":
        assert [event.key for event in replica.take_window().events] == [b"[1]"], "it sees what was there"
        return
    with pytest.raises(TransientError) as noticed:
        replica.take_window()
    assert noticed.value.code == "UW-MS-018"
    with pytest.raises(PositionLost):
        replica.take_window()


# --- the server ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beyond", [False, True], ids=["below us", "beyond us again"])
def test_fact_55_a_restore_is_noticed_also_when_the_version_has_passed_us_again(
    shop: Shop, sqlserver: str, replica: Replica, beyond: bool
) -> None:
    name = shop.value("SELECT DB_NAME()")
    with connect(sqlserver) as master:
        master.run(f"BACKUP DATABASE {name} TO DISK = '{name}.bak'")
        with connect(shop.url) as then:
            then.run("UPDATE t SET a = 2")
            then.run("UPDATE t SET a = 3")
        until_read(replica)
        at = replica.commit
        master.run(f"ALTER DATABASE {name} SET SINGLE_USER WITH ROLLBACK IMMEDIATE")
        master.run(f"RESTORE DATABASE {name} FROM DISK = '{name}.bak' WITH REPLACE")
    with connect(shop.url) as anew:
        for n in range(5 if beyond else 1):
            anew.run(f"UPDATE t SET a = {10 + n}")
        (version,) = anew.one("SELECT CHANGE_TRACKING_CURRENT_VERSION()") or (0,)
        assert (version > at) is beyond
    with suppress(TransientError), pytest.raises(PositionLost):  # the old connection has to break first
        replica.take_window()
    with pytest.raises(PositionLost) as lost:
        replica.take_window()
    assert (lost.value.code, lost.value.tables) == ("UW-MS-020", None)
    with pytest.raises(PositionLost):
        shop.source("t", "other").start(replica.position, EPOCH)


@needs_hooks
def test_fact_56_a_failover_that_lost_nothing_goes_on(shop: Shop, replica: Replica) -> None:
    shop.run("UPDATE t SET a = 2")
    shop.hook("fail_over", server="SQL02")
    with pytest.raises(TransientError):
        replica.take_window()
    assert [event.key for event in replica.take_window().events] == [b"[1]"]


@needs_hooks
def test_fact_56_a_secondary_is_refused_with_a_sentence(shop: Shop, replica: Replica) -> None:
    shop.hook("role", role="SECONDARY")
    with pytest.raises(OperatorError) as refused:
        shop.source("t").start(replica.position, EPOCH)
    assert refused.value.code == "UW-MS-033"
    assert "listener" in refused.value.remedy
    shop.hook("role", role="PRIMARY")
    shop.source("t", "other").start(replica.position, EPOCH)


@needs_hooks
def test_fact_56_a_publisher_that_meets_a_secondary_waits_for_the_primary(shop: Shop, replica: Replica) -> None:
    shop.run("UPDATE t SET a = 2")
    shop.hook("role", role="SECONDARY")
    shop.hook("disconnect")
    for code in ("UW-MS-010", "UW-MS-033"):
        with pytest.raises(TransientError) as met:
            replica.take_window()
        assert met.value.code == code
    shop.hook("role", role="PRIMARY")
    assert [event.key for event in replica.take_window().events] == [b"[1]"]


def test_fact_50_a_minimum_above_the_current_version_is_fatal(shop: Shop, replica: Replica) -> None:
    """What a secondary may answer. It is no gap: a resync would find the same again, for ever."""
    from upwell.sources.sqlserver import _check_coherent
    from upwell.sources.sqlserver_catalog import read_states

    with connect(shop.url) as session:
        states = {str(state.name): state for state in read_states(session)}
    with pytest.raises(OperatorError) as refused:
        _check_coherent({"dbo.t": states["dbo.t"]._replace(min_valid=99)}, 98)
    assert refused.value.code == "UW-MS-024"


@pytest.mark.parametrize("isolation", ["snapshot", "read committed"])
def test_fact_50_a_table_truncated_between_two_looks_is_no_damage(
    shop: Shop, replica: Replica, isolation: Isolation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its minimum is above the version that the round began with, for it is of a moment later."""
    database = replica.source._database  # type: ignore[attr-defined]
    seen = database.states

    def truncated_first(session: object) -> object:
        monkeypatch.setattr(database, "states", seen)
        shop.run("UPDATE other SET a = 2", "TRUNCATE TABLE t")
        return seen(session)

    monkeypatch.setattr(database, "states", truncated_first)
    assert [table for table, _ in window_with_resync(replica).resync] == ["dbo.t"]


@needs_hooks  # servers of today know no such level any more
def test_fact_38_a_compatibility_level_that_knows_no_changetable_is_refused(shop: Shop, replica: Replica) -> None:
    name = shop.value("SELECT DB_NAME()")
    shop.run(f"ALTER DATABASE {name} SET COMPATIBILITY_LEVEL = 80", "UPDATE t SET a = 5")
    with pytest.raises(OperatorError) as stopped:
        replica.take_window()
    assert stopped.value.code == "UW-MS-009"
    for refused_there in (
        lambda: shop.source("t").start(replica.position, EPOCH),
        lambda: track(shop.url, selections("t"), shop.driver),
    ):
        with pytest.raises(OperatorError) as refused:
            refused_there()
        assert refused.value.code == "UW-MS-034"
    shop.run(*refused.value.remedy.splitlines())
    shop.source("t", "other").start(replica.position, EPOCH)
    assert [event.key for event in replica.take_window().events] == [b"[1]"]


def test_our_own_mark_tells_a_restore_that_the_fork_does_not(shop: Shop, sqlserver: str) -> None:
    shop.run(CREATE_SQL.rstrip(";"))
    replica = shop.replica("t", "other")
    shop.run("INSERT INTO t VALUES (1, 1, N'a')")
    replica.take_window()
    first = shop.value("SELECT number FROM upwell_marker WHERE pipeline = N'shop'")
    assert first >= 1
    shop.source("t", "other").start(replica.position, EPOCH)
    shop.run("UPDATE upwell_marker SET number = number - 1", "UPDATE t SET a = 5")  # as of before what was read
    assert_lost(shop, replica, "UW-MS-020", None)
    assert replica.source.health()["marker"] is True


@needs_hooks
def test_only_a_window_says_that_the_position_is_lost(shop: Shop) -> None:
    """Whatever else finds it, on a connection made anew, is to be tried again: the next window then says it."""
    shop.run(CREATE_SQL.rstrip(";"))
    replica = shop.replica("t")
    shop.run("INSERT INTO t VALUES (1, 1, N'a')")
    replica.take_window()
    shop.run("UPDATE upwell_marker SET number = number - 1")
    shop.hook("disconnect")
    source, schema = replica.source, replica.windows[0].schemas[0]
    for ask in (source.head, lambda: source.chunk(schema, None, 10), lambda: source.estimate("dbo.t"), source.health):
        for _ in range(2):  # the old connection has to break first
            with pytest.raises(TransientError):
                ask()
    with pytest.raises(PositionLost):
        replica.take_window()


def test_our_own_mark_is_made_after_everything_that_is_read(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the last pages of a round too: the rows in them may be newer than the round."""
    monkeypatch.setattr(sqlserver_reading, "PAGE_ROWS_MAX", 2)
    monkeypatch.setattr(sqlserver_database, "PAGE_ROWS_MAX", 2)
    shop.run(CREATE_SQL.rstrip(";"))
    replica = shop.replica("t")
    shop.run("INSERT INTO t VALUES (1, 1, N''), (2, 1, N''), (3, 1, N'')")
    marks = []
    for _ in range(2):
        replica.take_window(limit=2)
        marks.append((Place.parse(replica.position).marker, shop.value("SELECT number FROM upwell_marker")))
    assert [saved for saved, _ in marks] == [written for _, written in marks] == [1, 2]


def test_facts_1_and_52_tracking_off_in_the_database_is_said(shop: Shop, replica: Replica) -> None:
    name = shop.value("SELECT DB_NAME()")
    shop.run("ALTER TABLE t DISABLE CHANGE_TRACKING", "ALTER TABLE other DISABLE CHANGE_TRACKING")
    shop.run(f"ALTER DATABASE {name} SET CHANGE_TRACKING = OFF")
    for source in (replica.source, shop.source("t")):
        with pytest.raises(OperatorError) as stopped:
            source.head()
        assert stopped.value.code == "UW-MS-030"


def test_fact_9_off_and_on_again_is_a_gap_though_the_counter_goes_on(shop: Shop, replica: Replica) -> None:
    name = shop.value("SELECT DB_NAME()")
    off = ["ALTER TABLE t DISABLE CHANGE_TRACKING", "ALTER TABLE other DISABLE CHANGE_TRACKING"]
    shop.run(*off, f"ALTER DATABASE {name} SET CHANGE_TRACKING = OFF", "UPDATE t SET a = 50")
    track(shop.url, selections("t", "other"), shop.driver)
    assert_lost(shop, replica, "UW-MS-023", ["dbo.other", "dbo.t"])


# --- rights -------------------------------------------------------------------------------------------------------


def test_facts_46_and_67_missing_rights_are_told_from_missing_tracking(shop: Shop) -> None:
    name = shop.value("SELECT DB_NAME()")
    user, password = f"u_{name}", "Secret-123"
    shop.run(f"CREATE LOGIN {user} WITH PASSWORD = N'{password}'", f"CREATE USER {user} FOR LOGIN {user}")
    url = in_database(shop.url, name, user=user, password=password)
    for grant, code in [
        (None, "UW-MS-043"),
        (f"GRANT SELECT ON OBJECT::[dbo].[t] TO {user}", "UW-MS-032"),
        (f"GRANT VIEW CHANGE TRACKING ON OBJECT::[dbo].[t] TO {user}", ""),
    ]:
        if grant:
            shop.run(grant)
        source = shop.source("t", url=url)
        if code:
            with pytest.raises(OperatorError) as refused:
                source.start(None, EPOCH)
            assert refused.value.code == code
            continue
        position, commit = source.start(None, EPOCH)
        replica = Replica(source, position, commit, 0.0)
        shop.run("INSERT INTO t VALUES (1, 1, N'a')")
        replica.take_all()
        assert replica.of("dbo.t") == [[1, 1, "a"]]
        source.close()
    shop.run(f"DROP USER {user}", f"DROP LOGIN {user}")


@pytest.mark.parametrize("driver", ["mssql-python", "python-tds"])
def test_who_can_not_get_in_is_told_why(shop: Shop, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlserver_session, "LOGIN_TIMEOUT_S", 3)
    shop.driver = driver
    name, port = shop.value("SELECT DB_NAME()"), Address.parse(shop.url).port
    cases: list[tuple[str, type[OperatorError | TransientError], str]] = [
        (in_database(shop.url, name, user="sa", password="wrong"), OperatorError, "UW-MS-002"),
        (in_database(shop.url, "gone"), OperatorError, "UW-MS-003"),
        (shop.url.replace(f":{port}/", ":1/"), TransientError, "UW-MS-007"),
    ]
    for url, kind, code in cases:
        with pytest.raises(kind) as refused:
            shop.source("t", url=url).tables()
        assert refused.value.code == code
        assert "wrong" not in str(refused.value)
