"""What happens to a source whose server, slot, database or connection is not what it was. Never a silent gap."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lab.parts import PostgresCluster, PostgresServer
from tests.integration.postgres_shop import EPOCH, Shop, open_shop
from upwell.clock import SystemClock
from upwell.errors import LeaseLost, OperatorError, PositionLost, TransientError
from upwell.model import ChangeEvent, Position
from upwell.sources.postgres import PostgresSource
from upwell.sources.postgres_session import ReplicationConnection


@pytest.fixture
def shop(database: str, postgres_cluster: PostgresServer) -> Iterator[Shop]:
    with open_shop(postgres_cluster, database) as shop:
        shop.execute("CREATE TABLE t (id int PRIMARY KEY)")
        yield shop


def drop_slot(shop: Shop) -> None:
    until(lambda: shop.value(f"SELECT NOT active FROM pg_replication_slots WHERE slot_name = '{shop.slot}'"))
    shop.value(f"SELECT pg_drop_replication_slot('{shop.slot}')")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_lost(source: PostgresSource, position: Position, why: str) -> None:
    with pytest.raises(PositionLost, match=why) as lost:
        source.start(position, EPOCH)
    assert lost.value.tables is None
    assert lost.value.code == "UW-PG-020"


def assert_reads_from_now(shop: Shop, source: PostgresSource) -> None:
    shop.position, _ = source.start(None, EPOCH + 1)
    shop.execute("INSERT INTO t VALUES (1000)")
    assert [event.key for event in shop.read()] == [b"[1000]"]


def test_a_slot_that_is_gone(shop: Shop) -> None:
    source = shop.start()
    shop.execute("INSERT INTO t VALUES (1)")
    shop.read()
    source.close()
    drop_slot(shop)
    shop.execute("INSERT INTO t VALUES (2)")
    assert_lost(source, shop.position, "is gone")
    assert_reads_from_now(shop, source)


def test_a_slot_that_was_created_anew(shop: Shop) -> None:
    source = shop.start()
    source.close()
    drop_slot(shop)
    shop.execute("INSERT INTO t VALUES (1)")
    shop.track()
    assert_lost(source, shop.position, "created anew")
    assert_reads_from_now(shop, source)


def test_a_slot_that_goes_while_it_is_read(shop: Shop) -> None:
    source = shop.start()
    shop.execute("INSERT INTO t VALUES (1)")
    shop.read()
    shop.end_sessions()
    drop_slot(shop)
    with pytest.raises(TransientError):
        source.changes(shop.position, 10, 1.0)
    with pytest.raises(PositionLost, match="is gone"):
        source.changes(shop.position, 10, 1.0)


def test_a_saved_position_of_before(shop: Shop) -> None:
    """An old copy of the state file: the server has given up what came after it."""
    source = shop.start()
    old = shop.position
    shop.execute("INSERT INTO t VALUES (1)")
    shop.read()
    source.confirm(shop.position)
    source.close()
    until(lambda: shop.source.health()["confirmed_lsn"] in shop.position)
    assert_lost(source, old, "somebody else read")


def test_a_position_of_another_slot(shop: Shop) -> None:
    source = shop.start()
    assert_lost(
        source, Position(shop.position.replace(shop.slot, "another")), "belongs to the replication slot another"
    )


def test_a_database_that_was_created_anew(shop: Shop, postgres_cluster: PostgresServer) -> None:
    source = shop.start()
    source.close()
    shop.connection.close()
    postgres_cluster.drop_database(shop.database)
    postgres_cluster.create_database(shop.database)
    shop.reconnect()
    shop.execute("CREATE TABLE t (id int PRIMARY KEY)")
    shop.track()
    assert_lost(source, shop.position, "its oid differs")
    assert_reads_from_now(shop, source)


def test_another_server_at_the_address(shop: Shop) -> None:
    with PostgresCluster() as other:
        other.create_database(shop.database)
        with open_shop(other, shop.database) as there:
            there.execute("CREATE TABLE t (id int PRIMARY KEY)")
            there.start()
            there.source.close()
            shop.start()
            assert_lost(there.source, shop.position, "another server")
            assert_reads_from_now(there, there.source)


def test_a_slot_in_use_is_waited_for(shop: Shop) -> None:
    """By another publisher that may go, or a session whose end the server has not noticed."""
    shop.start()
    second = PostgresSource(shop.url, tables=shop.select(), slot=shop.slot, publication="upwell", clock=SystemClock())
    with pytest.raises(TransientError, match="in use") as refused:
        second.start(shop.position, EPOCH)
    assert refused.value.code == "UW-PG-011"
    shop.source.close()
    until(lambda: shop.value(f"SELECT NOT active FROM pg_replication_slots WHERE slot_name = '{shop.slot}'"))
    assert second.start(shop.position, EPOCH)[0] == shop.position
    second.close()


def test_who_was_stopped_and_has_a_successor_ends(shop: Shop) -> None:
    """Whether the other one still reads the slot, or has read from it and gone."""
    shop.start()
    shop.execute("INSERT INTO t VALUES (1)")
    shop.read()
    shop.end_sessions()
    until(lambda: shop.value(f"SELECT NOT active FROM pg_replication_slots WHERE slot_name = '{shop.slot}'"))
    second = PostgresSource(shop.url, tables=shop.select(), slot=shop.slot, publication="upwell", clock=SystemClock())
    position, _ = second.start(shop.position, EPOCH)
    assert_taken_over(shop, "process [0-9]+ reads it")
    shop.execute("INSERT INTO t VALUES (2)")
    events = 0
    while not events:
        window = second.changes(position, 10, 1.0)
        position, events = window.position, events + len(window.events)
    second.confirm(position)
    second.close()
    until(lambda: shop.value(f"SELECT NOT active FROM pg_replication_slots WHERE slot_name = '{shop.slot}'"))
    assert_taken_over(shop, "read up to")
    shop.source.close()
    assert_lost(shop.source, shop.position, "somebody else read")  # started anew, it can't know


def assert_taken_over(shop: Shop, how: str) -> None:
    works: list[Callable[[], object]] = [
        lambda: shop.source.changes(shop.position, 10, 0.0),
        lambda: shop.source.start(shop.position, EPOCH + 1),
        lambda: shop.source.start(None, EPOCH + 1),
    ]
    with suppress(TransientError, LeaseLost):
        works[0]()  # it learns that its connection is gone
    for work in works:
        with pytest.raises(LeaseLost, match=how) as lost:
            work()
        assert lost.value.code == "UW-PG-016"


def test_somebody_elses_slot_is_left_alone(shop: Shop) -> None:
    shop.start()
    shop.source.close()
    drop_slot(shop)
    shop.value(f"SELECT pg_create_logical_replication_slot('{shop.slot}', 'test_decoding')")
    for position in (shop.position, None):
        with pytest.raises(OperatorError, match="belongs to something else"):
            shop.source.start(position, EPOCH)


def test_a_start_whose_answer_is_lost_has_no_successor(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's process that it left behind is ours, and goes away."""
    source = shop.start()
    shop.read()
    start = ReplicationConnection.start

    def lost(stream: ReplicationConnection, slot: str, lsn: int, publication: str) -> None:
        monkeypatch.undo()
        start(stream, slot, lsn, publication)
        monkeypatch.setattr(stream, "close", threading.Timer(0.5, stream.close).start)  # the server takes a moment
        raise TransientError("The answer was lost.", code="UW-PG-001")

    monkeypatch.setattr(ReplicationConnection, "start", lost)
    with pytest.raises(TransientError, match="answer was lost"):
        source.start(shop.position, EPOCH)
    shop.execute("INSERT INTO t VALUES (1)")
    assert len(shop.read()) == 1


def test_starting_over_at_once_finds_the_slot_free(shop: Shop) -> None:
    source = shop.start()
    for number in range(20):
        shop.execute(f"INSERT INTO t VALUES ({number})")
        source.start(shop.position, EPOCH + number)
    assert len(shop.read()) == 20


@pytest.mark.parametrize("how", ["fast", "fast, with the destination out of reach", "immediate"])
def test_a_server_that_restarts(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a fast shutdown ends, the server waits for us to confirm all that it has; not for ever."""
    monkeypatch.setattr("upwell.sources.postgres.SHUTDOWN_S", 2.0)
    with PostgresCluster({"fsync": "on"}) as cluster:
        cluster.create_database("shop")
        with open_shop(cluster, "shop") as shop:
            shop.execute("CREATE TABLE t (id int PRIMARY KEY)")
            source = shop.start()
            shop.execute("INSERT INTO t SELECT generate_series(1, 100)")
            first = shop.read()
            source.confirm(shop.position)
            shop.execute("INSERT INTO t SELECT generate_series(101, 200)")
            stopping = threading.Thread(target=cluster.stop, args=("immediate" if how == "immediate" else "fast",))
            began = time.monotonic()
            stopping.start()
            events = read_until_it_breaks(shop, confirm=how == "fast")
            stopping.join()
            assert time.monotonic() - began < 15
            with pytest.raises(TransientError, match="can't be reached"):
                source.changes(shop.position, 10, 0.1)
            cluster.start()
            shop.reconnect()
            shop.execute("INSERT INTO t VALUES (201)")
            deadline = time.monotonic() + 30
            while len(events) < 101:
                assert time.monotonic() < deadline
                window = source.changes(shop.position, 1000, 1.0)
                events += window.events
                shop.position = window.position
            assert [event.key for event in first + events] == [b"[%d]" % n for n in range(1, 202)]


def read_until_it_breaks(shop: Shop, *, confirm: bool) -> list[ChangeEvent]:
    events: list[ChangeEvent] = []
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            window = shop.source.changes(shop.position, 1000, 0.1)
        except TransientError:
            return events
        events += window.events
        shop.position = window.position
        if confirm:
            shop.source.confirm(window.position)
    raise AssertionError("it does not break")


def test_a_log_that_grew_beyond_what_the_slot_may_keep() -> None:
    settings: dict[str, str | int] = {
        "max_slot_wal_keep_size": "16MB",
        "max_wal_size": "32MB",
        "min_wal_size": "32MB",
        "wal_keep_size": 0,
    }
    with PostgresCluster(settings) as cluster:
        cluster.create_database("shop")
        with open_shop(cluster, "shop") as shop:
            shop.execute("CREATE TABLE t (id int PRIMARY KEY)", "CREATE TABLE filler (x text)")
            source = shop.start("t")
            health = source.health()
            assert health["safe_wal_bytes"] > 0
            assert health["wal_status"] == "reserved"
            shop.execute("INSERT INTO filler SELECT repeat(md5(g::text), 100) FROM generate_series(1, 3000) g")
            assert (source.health()["runway_hours"] or 0) > 0
            source.close()
            for _ in range(6):
                shop.execute("INSERT INTO filler SELECT repeat(md5(g::text), 100) FROM generate_series(1, 4000) g")
                shop.value("SELECT pg_switch_wal()")
                shop.connection.execute("CHECKPOINT")
            assert source.health()["slot_invalid"]
            assert_lost(source, shop.position, "gave up the replication slot")
            assert_reads_from_now(shop, source)


def test_a_server_restored_from_a_copy_of_its_files() -> None:
    """The same system identifier, the same timeline: only its log ends too early."""
    with PostgresCluster() as cluster:
        cluster.create_database("shop")
        with open_shop(cluster, "shop") as shop:
            shop.execute("CREATE TABLE t (id int PRIMARY KEY)")
            source = shop.start()
            source.close()
            copy = cluster.folder / "copy"
            cluster.stop()
            copy_with_owner(cluster.data_dir, copy)
            cluster.start()
            shop.reconnect()
            source.start(shop.position, EPOCH)
            shop.execute("INSERT INTO t SELECT generate_series(1, 1000)")
            shop.read()
            source.close()
            cluster.stop()
            shutil.rmtree(cluster.data_dir)
            copy_with_owner(copy, cluster.data_dir)
            cluster.start()
            shop.reconnect()
            assert_lost(source, shop.position, "its log ends at")
            assert_reads_from_now(shop, source)


def copy_with_owner(source: Path, target: Path) -> None:
    shutil.copytree(source, target)
    owner = source.stat()
    for path in [target, *target.rglob("*")]:
        os.chown(path, owner.st_uid, owner.st_gid)
