"""PostgreSQL can deliver a commit before a fresh SELECT sees it, while the log's end is already past it.

A commit that waits for a synchronous standby is in that state for as long as one likes.
"""

import random
import time
import uuid
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg.pq import ExecStatus

from lab.parts import PostgresCluster
from tests.contract.source_contract import Replica, wait_for_chunk
from tests.integration.postgres_shop import EPOCH, Shop, open_shop
from upwell.errors import TransientError
from upwell.model import ChangeEvent, unpack_version

ROUNDS = 200


class Writer:
    """A session whose commits wait for a standby that there is not, until they are released."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self._connection = psycopg.connect(shop.url, autocommit=True)
        self._connection.execute("SET synchronous_commit = on")

    def commit(self, statement: str) -> None:
        """Returns when the commit is in the log and waits."""
        self._connection.pgconn.send_query(statement.encode())
        waiting = f"SELECT wait_event FROM pg_stat_activity WHERE pid = {self._connection.info.backend_pid}"
        until(lambda: self._shop.value(waiting) == "SyncRep")

    def release(self) -> None:
        """Returns when everybody sees it."""
        self._shop.value(f"SELECT pg_cancel_backend({self._connection.info.backend_pid})")
        pgconn = self._connection.pgconn
        while (result := pgconn.get_result()) is not None:
            assert result.status == ExecStatus.COMMAND_OK, "cancelled is the waiting, not the commit"

    def close(self) -> None:
        self._connection.close()


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture(scope="module")
def cluster() -> Iterator[PostgresCluster]:
    settings = {"synchronous_standby_names": "nobody", "synchronous_commit": "local"}
    with PostgresCluster(settings) as cluster:
        yield cluster


@pytest.fixture
def shop(cluster: PostgresCluster) -> Iterator[Shop]:
    name = f"test_{uuid.uuid4().hex[:12]}"
    cluster.create_database(name)
    try:
        with open_shop(cluster, name) as shop:
            yield shop
    finally:
        cluster.drop_database(name)


@pytest.fixture
def writer(shop: Shop) -> Iterator[Writer]:
    writer = Writer(shop)
    yield writer
    writer.close()


def start(shop: Shop) -> Replica:
    source = shop.start()
    return Replica(source, shop.position, source.start(shop.position, EPOCH)[1], 0.2)


def test_no_stale_row_in_many_rounds(shop: Shop, writer: Writer) -> None:
    """Whenever the chunk is read, the replica never sees a row's number fall and ends equal to the source."""
    chance = random.Random(20260131)
    shop.execute("CREATE TABLE t (id int PRIMARY KEY, n int)", "INSERT INTO t SELECT g, 0 FROM generate_series(1, 5) g")
    replica = start(shop)
    source = replica.source
    source.start_chunks()
    seen: dict[int, int] = {}
    stale = 0

    def look() -> None:
        for id_, n in replica.of("public.t"):
            assert n >= seen.get(id_, 0), "a reader saw the row go back in time"
            seen[id_] = n

    for number in range(1, ROUNDS + 1):
        ids = chance.sample(range(1, 6), 2)
        writer.commit(f"UPDATE t SET n = {3 * number} WHERE id IN ({ids[0]}, {ids[1]})")
        if chance.random() < 0.7:
            replica.take_window(wait_s=5.0)
            look()
        for step in range(chance.randrange(3)):
            shop.execute(f"UPDATE t SET n = {3 * number + step} WHERE id NOT IN ({ids[0]}, {ids[1]})")
        chunk = wait_for_chunk(replica, source.tables()[0])
        stale += any(
            key in (b"[%d]" % id_ for id_ in ids) and not row.endswith(b",%d]" % (3 * number))
            for key, row in chunk.rows
        )
        if chance.random() < 0.5:
            replica.take_window(limit=1, wait_s=0.01)
            look()
        released_first = chance.random() < 0.5
        if released_first:
            writer.release()
        replica.apply_chunk(chunk, limit=1)
        look()
        for _ in range(chance.randrange(3)):
            replica.take_window(limit=1, wait_s=0.01)
            look()
        if not released_first:
            writer.release()
    replica.take_all()
    rows = shop.connection.execute("SELECT id, n FROM t ORDER BY id").fetchall()
    assert replica.of("public.t") == [list(row) for row in rows]
    assert stale > ROUNDS / 4, "the race did not happen"


def test_what_a_chunk_contains_is_what_it_shows(shop: Shop, writer: Writer) -> None:
    shop.execute("CREATE TABLE t (id int PRIMARY KEY, n int)", "INSERT INTO t VALUES (1, 0)")
    replica = start(shop)
    writer.commit("UPDATE t SET n = 1")
    (event,) = until_events(replica, 1)
    chunk = wait_for_chunk(replica, replica.source.tables()[0])
    assert chunk.rows == [(b"[1]", b"[1,0]")]
    assert not chunk.contains(event.transaction)
    assert unpack_version(event.version)[1] <= chunk.commit, "comparing places of the log would not have told"
    writer.release()
    chunk = wait_for_chunk(replica, replica.source.tables()[0])
    assert chunk.rows == [(b"[1]", b"[1,1]")]
    assert chunk.contains(event.transaction)


def test_chunks_wait_for_what_was_delivered_before(shop: Shop, writer: Writer) -> None:
    """After a restart nobody remembers which keys were delivered: the chunk must contain them."""
    shop.execute("CREATE TABLE t (id int PRIMARY KEY, n int)", "INSERT INTO t VALUES (1, 0)")
    replica = start(shop)
    source = replica.source
    writer.commit("UPDATE t SET n = 1")
    until_events(replica, 1)
    source.start(replica.position, EPOCH)
    source.start_chunks()
    (schema,) = source.tables()
    assert source.chunk(schema, None, 10) is None
    writer.release()
    chunk = wait_for_chunk(replica, schema)
    assert chunk.rows == [(b"[1]", b"[1,1]")]


def test_a_table_added_meanwhile_waits_for_its_old_writers(shop: Shop) -> None:
    """What began before the table was published may not be in the stream: the chunk must contain it."""
    shop.execute("CREATE TABLE old (id int PRIMARY KEY)")
    shop.start("*")
    shop.execute("CREATE TABLE late (id int PRIMARY KEY)")
    source = shop.make("*")
    shop.position, _ = source.start(shop.position, EPOCH)
    source.start_chunks()
    assert [schema.table for schema in source.tables()] == ["public.old"]
    assert source.health()["untracked_tables"] == ["public.late"]
    with psycopg.connect(shop.url) as early:
        early.execute("INSERT INTO late VALUES (1)")
        shop.track("*")
        late, _ = source.tables()
        assert late.table == "public.late"
        assert source.chunk(late, None, 10) is None
        early.commit()
    assert shop.snapshot("public.late") == [(b"[1]", b"[1]")]


def test_a_moved_row_is_fetched_when_it_can_be_seen(
    shop: Shop, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its large value is not in the log; read too early, the row would not be there and be taken for gone."""
    shop.execute("CREATE TABLE t (id int PRIMARY KEY, big text)", "ALTER TABLE t ALTER big SET STORAGE EXTERNAL")
    shop.execute("INSERT INTO t VALUES (1, repeat(md5('x'), 400))")
    replica = start(shop)
    writer.commit("UPDATE t SET id = 2")
    monkeypatch.setattr("upwell.sources.postgres.VISIBLE_S", 0.2)
    with pytest.raises(TransientError, match="synchronous standby"):
        replica.take_window(wait_s=5.0)
    writer.release()
    until_events(replica, 2)
    assert [row[0] for row in replica.of("public.t")] == [2]


def until_events(replica: Replica, count: int) -> list[ChangeEvent]:
    events: list[ChangeEvent] = []
    deadline = time.monotonic() + 30
    while len(events) < count:
        assert time.monotonic() < deadline
        events += replica.take_window(wait_s=1.0).events
    return events
