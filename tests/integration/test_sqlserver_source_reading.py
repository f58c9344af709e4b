"""Reading beside writers, in any isolation: locks, deadlocks, hot rows, transactions of any size, broken connections.

Facts by the numbers of docs/sqlserver.md.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from tests.contract.source_contract import Replica, wait_for_chunk
from tests.contract.sqlserver_clients import needs_hooks
from tests.integration.sqlserver_shop import CREATE, Isolation, Shop, open_shop, told, windows_until
from tests.sqlserver_databases import connect
from upwell.errors import TransientError
from upwell.model import Rejection, unpack_version
from upwell.sources import sqlserver_database, sqlserver_reading, sqlserver_session
from upwell.sources.sqlserver_place import Place
from upwell.sources.sqlserver_reading import ROW_OVERHEAD_BYTES, Found, Rows, TableReader
from upwell.sources.sqlserver_session import Driver, Session


@pytest.fixture
def driver() -> Driver:
    return "mssql-python"


@pytest.fixture
def isolation() -> Isolation:
    return "snapshot"


BOTH = pytest.mark.parametrize("isolation", ["snapshot", "read committed"])
BOTH_DRIVERS = pytest.mark.parametrize("driver", ["mssql-python", "python-tds"])


@pytest.fixture
def shop(sqlserver: str, driver: Driver, isolation: Isolation) -> Iterator[Shop]:
    with open_shop(sqlserver, driver, isolation) as shop:
        shop.tracked("t")
        yield shop


@pytest.fixture
def replica(shop: Shop) -> Replica:
    return shop.replica_of_three()


def insert_many(shop: Shop, count: int, table: str = "t") -> None:
    """In one transaction."""
    rows = ", ".join(f"({n}, {n}, N'row {n}')" for n in range(100, 100 + count))
    shop.run(f"INSERT INTO {table} VALUES {rows}")


# --- a transaction of any size ------------------------------------------------------------------------------------


@BOTH_DRIVERS
def test_fact_66_a_version_is_read_in_parts_and_resumed_in_its_middle(
    shop: Shop, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages of 40 rows and of few bytes; after every window another process goes on from its position."""
    monkeypatch.setattr(sqlserver_reading, "PAGE_ROWS_MAX", 40)
    monkeypatch.setattr(sqlserver_database, "PAGE_ROWS_MAX", 40)
    shop.run(CREATE.format("u"))
    insert_many(shop, 300)
    version = shop.version()
    for _ in range(100):
        window = replica.take_window(limit=30)
        assert len(window.events) <= 30
        assert {unpack_version(event.version)[1] for event in window.events} <= {version}
        if window.complete:
            break
        assert window.commit == version - 1, "nothing may be stamped as if the version were over"
        source = shop.source("t")
        position, commit = source.start(replica.position, 1_700_000_000)
        assert (position, commit) == (replica.position, version - 1)
        replica.source.close()
        replica.source = source
    assert replica.commit == version
    assert len(replica.of("dbo.t")) == 303
    keys = [event.key for window in replica.windows for event in window.events]
    assert len(keys) == len(set(keys)), "nothing comes twice where nobody failed"


@BOTH
def test_fact_66_what_changes_inside_a_version_that_is_half_read_comes_later(
    shop: Shop, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlserver_database, "PAGE_BYTES_MIN", 1)
    monkeypatch.setattr(sqlserver_database, "ROUND_BYTES_MAX", 2)
    insert_many(shop, 60)
    replica.take_window(limit=20)
    shop.run("UPDATE t SET a = -1 WHERE id IN (105, 150)", "DELETE FROM t WHERE id IN (106, 151)")
    shop.run("UPDATE t SET id = 99 WHERE id = 152")
    windows_until(replica, shop.version(), limit=20)
    rows = {row[0]: row for row in replica.of("dbo.t")}
    assert (rows[105][1], rows[150][1]) == (-1, -1)
    assert rows.keys() == {1, 2, 3, 99, *range(100, 160)} - {106, 151, 152}


def test_a_version_over_several_tables_goes_table_by_table(shop: Shop) -> None:
    shop.tracked("a", "z")
    replica = shop.replica("a", "t", "z")
    rows = ", ".join(f"({n}, 1, NULL)" for n in range(50))
    shop.together(*(f"INSERT INTO {table} VALUES {rows}" for table in "zat"))
    for _ in range(60):
        replica.take_window(limit=7)
        again = Replica(shop.source("a", "t", "z"), replica.position, replica.commit, 0.0)
        again.source.start(replica.position, 1_700_000_000)
        windows_until(again, shop.version(), limit=11)
        here = {(table, key) for table, rows in replica.rows.items() for key in rows}
        there = {(table, key) for table, rows in again.rows.items() for key in rows}
        assert len(here | there) == 150
        assert not here & there
        again.source.close()
        if replica.windows[-1].complete:
            break
    assert [len(rows) for rows in replica.rows.values()] == [50, 50, 50]


def test_what_waits_of_many_tables_is_bounded_together(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backlog of tables that changed by turns: the next page of one is as large as the others leave room for."""
    monkeypatch.setattr(sqlserver_database, "ROUND_BYTES_MAX", 40_000)
    monkeypatch.setattr(sqlserver_database, "PAGE_BYTES_MIN", 1_000)
    tables = ["a", "b", "c", "d", "e", "f"]
    shop.tracked(*tables)
    replica = shop.replica(*tables)
    for n in range(60):
        shop.together(" ".join(f"INSERT INTO {table} VALUES ({n}, 1, NULL), ({n + 500}, 1, NULL);" for table in tables))
    most = 0
    while replica.commit < shop.version():
        replica.take_window(limit=10)
        round_ = replica.source._round  # type: ignore[attr-defined]
        most = max(most, 0 if round_ is None else len([*round_._waiting, *round_._ready]) * ROW_OVERHEAD_BYTES)
    assert [len(replica.of(f"dbo.{table}")) for table in tables] == [120] * 6
    assert most < 40_000 + 6 * 1_000 + 6 * 8 * ROW_OVERHEAD_BYTES, "of each page at most a portion more"


# --- writers beside it --------------------------------------------------------------------------------------------


@BOTH
def test_fact_58_a_hot_row_is_not_starved(shop: Shop, replica: Replica, isolation: Isolation) -> None:
    """It changes faster than we look, so that it is beyond the version that every look begins with."""
    stop = threading.Event()

    def heat() -> None:
        with connect(shop.url) as writer:
            n = 10
            while not stop.is_set():
                n += 1
                writer.run(f"UPDATE t SET a = {n} WHERE id = 1")

    writer = threading.Thread(target=heat)
    writer.start()
    seen: list[int] = []
    try:
        while shop.value("SELECT a FROM t WHERE id = 1") < 12:
            pass  # it is not warm yet
        deadline = time.monotonic() + 30
        while len(set(seen)) < 10:
            assert time.monotonic() < deadline, f"starved: {sorted(set(seen))}"
            replica.take_window()
            seen.append(replica.rows["dbo.t"][b"[1]"][1])
    finally:
        stop.set()
        writer.join()
    assert seen == sorted(seen)
    replica.take_all()
    assert replica.rows["dbo.t"][b"[1]"][1] == shop.value("SELECT a FROM t WHERE id = 1")


@BOTH
def test_facts_57_to_59_random_writers_beside_windows_and_chunks(shop: Shop, isolation: Isolation) -> None:
    """Rows never go back in time, and in the end nothing is missing, whatever is read between which commits."""
    import random

    shop.run("INSERT INTO t VALUES " + ", ".join(f"({n}, 0, N'')" for n in range(40)))
    replica = shop.replica("t")
    stop = threading.Event()

    def write(seed: int) -> None:
        chance = random.Random(seed)
        with connect(shop.url) as writer:
            while not stop.is_set():
                key, other = chance.randrange(20) * 2 + seed, chance.randrange(20) * 2 + seed
                writer.run(
                    chance.choice(
                        [
                            f"UPDATE t SET a = a + 1 WHERE id = {key}",
                            f"DELETE FROM t WHERE id = {key}",
                            f"IF NOT EXISTS (SELECT 1 FROM t WHERE id = {key}) INSERT INTO t VALUES ({key}, 0, N'')",
                            f"IF NOT EXISTS (SELECT 1 FROM t WHERE id = {other}) "
                            f"UPDATE t SET id = {other} WHERE id = {key}",
                        ]
                    )
                )

    writers = [threading.Thread(target=write, args=(seed,)) for seed in (0, 1)]
    for writer in writers:
        writer.start()
    try:
        replica.snapshot("dbo.t", 7)
        for _ in range(20):
            replica.take_window(limit=5)
        replica.snapshot("dbo.t", 11)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    replica.take_all()
    rows = [list(row) for row in shop.sql.all("SELECT id, a, b FROM t")]
    assert sorted(replica.of("dbo.t")) == sorted(rows)


@needs_hooks
@pytest.mark.parametrize("isolation", ["read committed"])
def test_fact_63_a_lock_that_is_held_for_too_long_is_a_sentence_and_no_loss(
    shop: Shop, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlserver_session, "LOCK_TIMEOUT_MS", 200)
    replica.source.close()
    shop.run("UPDATE t SET a = 7 WHERE id = 1")
    shop.hook("lock", name="dbo.t")
    with pytest.raises(TransientError) as held:
        replica.take_window()
    assert held.value.code == "UW-MS-013"
    shop.hook("unlock", name="dbo.t")
    assert told(replica.take_window().events) == [("u", "update", "[1]")]


@needs_hooks
@BOTH
def test_fact_63_a_deadlock_is_read_again(shop: Shop, replica: Replica, isolation: Isolation) -> None:
    shop.run("UPDATE t SET a = 7 WHERE id = 1")
    shop.hook("deadlock", statements=1)
    with pytest.raises(TransientError) as lost:
        replica.take_window()
    assert lost.value.code == "UW-MS-011"
    assert told(replica.take_window().events) == [("u", "update", "[1]")]


def test_fact_60_snapshot_isolation_that_is_turned_off_is_done_without(shop: Shop, replica: Replica) -> None:
    name = shop.value("SELECT DB_NAME()")
    shop.run(f"ALTER DATABASE {name} SET ALLOW_SNAPSHOT_ISOLATION OFF", "UPDATE t SET a = 7 WHERE id = 1")
    with pytest.raises(TransientError) as refused:
        replica.take_window()
    assert refused.value.code == "UW-MS-015"
    assert told(replica.take_window().events) == [("u", "update", "[1]")]
    assert replica.source.health()["snapshot_isolation"] is False


def test_fact_61_a_table_altered_while_it_is_read_is_read_again(shop: Shop, replica: Replica) -> None:
    for n in range(5):
        shop.run(f"ALTER TABLE t ADD extra{n} int NULL", f"UPDATE t SET extra{n} = {n} WHERE id = 1")
        for _ in range(3):
            with suppress(TransientError):
                replica.take_window()
        assert replica.rows["dbo.t"][b"[1]"][-1] == n, "a column is never read without its values"


# --- connections --------------------------------------------------------------------------------------------------


@needs_hooks
@BOTH_DRIVERS
def test_a_connection_lost_at_any_packet_loses_nothing(shop: Shop, replica: Replica, driver: Driver) -> None:
    for packets in range(1, 14):
        shop.run(f"UPDATE t SET a = {100 + packets} WHERE id = 1")
        shop.hook("drop_after", packets=packets)
        for _ in range(5):
            with suppress(TransientError):
                replica.take_window()
        assert replica.rows["dbo.t"][b"[1]"][1] == 100 + packets
        shop.hook("drop_after", packets=0)


@needs_hooks
def test_fact_65_older_builds_are_read_without_forceseek(shop: Shop) -> None:
    shop.hook("build", version="13.0.4001.0")
    replica = shop.replica("t")
    shop.run("INSERT INTO t VALUES (1, 1, N'a')")
    assert told(replica.take_window().events) == [("u", "insert", "[1]")]
    assert replica.source._database._seeks is False  # type: ignore[attr-defined]
    shop.hook("build", version="16.0.4135.4")
    assert shop.replica("t").source._database._seeks is True  # type: ignore[attr-defined]


def test_an_idle_look_costs_one_statement_and_moves_nothing(shop: Shop, replica: Replica) -> None:
    position = replica.position
    window = replica.take_window(wait_s=0.01)
    assert (window.events, window.position, window.complete) == ([], position, True)
    assert Place.parse(position).done == shop.version()


def test_what_can_not_travel_is_told_once_however_often_its_page_is_read(
    shop: Shop, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL, below the stand-in, can't store half a surrogate."""
    database = replica.source._database  # type: ignore[attr-defined]
    found, looked_at = sqlserver_reading.TableReader.found, database._known_states
    fails = iter([False, True, False, True])

    def refusing(reader: TableReader, rows: Rows, rejected: list[Rejection]) -> list[Found]:
        rejected.append(Rejection("dbo.t", "[1]", "no Unicode"))
        return [each for each in found(reader, rows, rejected) if each.key != b"[1]"]

    def failing(session: Session) -> object:
        if next(fails, False):
            raise TransientError("not now")
        return looked_at(session)

    monkeypatch.setattr(sqlserver_reading.TableReader, "found", refusing)
    monkeypatch.setattr(database, "_known_states", failing)
    shop.run("UPDATE t SET a = 7")
    for _ in range(2):
        with pytest.raises(TransientError):
            replica.take_window()
    window = replica.take_window()
    assert [event.key for event in window.events] == [b"[2]", b"[3]"]
    assert len(window.rejected) == 1


# --- instants, made to happen -------------------------------------------------------------------------------------


def at_version_call(
    replica: Replica, monkeypatch: pytest.MonkeyPatch, number: int, happens: Callable[[], None]
) -> None:
    """Just before the source asks for the version for the n-th time from now, something happens."""
    database = replica.source._database  # type: ignore[attr-defined]
    plain, calls = database.version, 0

    def version(session: object) -> object:
        nonlocal calls
        calls += 1
        if calls == number:
            happens()
        return plain(session)

    monkeypatch.setattr(database, "version", version)


@pytest.mark.parametrize("isolation", ["read committed"])
def test_fact_59_a_row_newer_than_its_window_is_not_overwritten_by_a_chunk_read_before(
    shop: Shop, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.run("UPDATE t SET a = 10 WHERE id = 1")
    chunk = wait_for_chunk(replica, replica.windows[0].schemas[0])
    seen = sqlserver_database.Database._known_states

    def changed_after_the_states_were_seen(*args: Any) -> Any:
        monkeypatch.setattr(sqlserver_database.Database, "_known_states", seen)
        states = seen(*args)
        shop.run("UPDATE t SET a = 20 WHERE id = 1")  # beyond the version that the round has begun with
        return states

    monkeypatch.setattr(sqlserver_database.Database, "_known_states", changed_after_the_states_were_seen)
    window = replica.take_window()
    assert (window.commit, replica.rows["dbo.t"][b"[1]"][1]) == (shop.version() - 1, 20)
    replica.apply_chunk(chunk)
    assert replica.rows["dbo.t"][b"[1]"][1] == 20, "the chunk's row is older"


@pytest.mark.parametrize("isolation", ["read committed"])
def test_fact_59_a_row_that_changes_while_its_chunk_is_read_stays_as_new_as_it_was_told(
    shop: Shop, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_version_call(replica, monkeypatch, 2, lambda: shop.run("UPDATE t SET a = 30 WHERE id = 1"))
    chunk = wait_for_chunk(replica, replica.windows[0].schemas[0])
    assert b'[1,1,"a"]' in dict(chunk.rows).values()
    replica.take_window()
    assert replica.rows["dbo.t"][b"[1]"][1] == 30
    replica.apply_chunk(chunk)
    assert replica.rows["dbo.t"][b"[1]"][1] == 30


def test_fact_62_a_version_that_is_not_of_the_snapshot_hides_no_change(
    shop: Shop, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody says whether CHANGE_TRACKING_CURRENT_VERSION() is: here it is always of the present."""
    database = replica.source._database  # type: ignore[attr-defined]
    plain = database.transaction

    @contextmanager
    def changed_once_the_snapshot_is_taken(session: Session) -> Iterator[None]:
        with plain(session):
            session.all("SELECT COUNT(*) FROM t")
            shop.run("UPDATE t SET a = a + 1 WHERE id = 1")
            yield

    def of_the_present(session: Session) -> tuple[int, str]:
        return shop.version(), "2026-01-31T10:00:00Z"

    shop.run("UPDATE t SET a = 10 WHERE id = 1")
    monkeypatch.setattr(database, "version", of_the_present)
    monkeypatch.setattr(database, "transaction", changed_once_the_snapshot_is_taken)
    replica.take_window()
    chunk = wait_for_chunk(replica, replica.windows[0].schemas[0])
    monkeypatch.undo()
    replica.apply_chunk(chunk)
    replica.take_window()
    assert replica.rows["dbo.t"][b"[1]"][1] == 12
