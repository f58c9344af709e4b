"""What the source lost sight of, and what went wrong in the target, is repaired by reading the tables again.

All the while other rows are written, which must survive, and no row goes back in time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import psycopg
import pytest

from tests.acceptance.compare import Watch, dynamodb_client
from tests.acceptance.killing import drop_slot, drop_triggers, forget_log
from tests.acceptance.pipelines import Pipeline, explained, into_dynamodb, through_kinesis
from tests.acceptance.workload import Connection, Writing, connect, create_tables

WRITES_PER_S = 60
# More than one chunk; in DynamoDB Local that would take long.
LEDGER_ROWS = 5_200
LEDGER_ITEMS = 1_000
# No writer of the workload has such keys.
ENTRIES = iter(range(-1, -1_000_000, -1))


@pytest.fixture(scope="module")
def to_postgres(
    new_database: Callable[[], str], kinesis_endpoint: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pipeline]:
    """PostgreSQL → Kinesis → PostgreSQL, which the tests share: each finds it in step and leaves it so."""
    source, target = new_database(), new_database()
    create_tables(source)
    create_tables(target)
    folder = tmp_path_factory.mktemp("resyncs")
    pipeline = through_kinesis(folder, source_url=source, target_url=target, kinesis_endpoint=kinesis_endpoint)
    yield from in_step(pipeline, LEDGER_ROWS)


@pytest.fixture(scope="module")
def to_dynamodb(dynamodb_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """SQLite → DynamoDB, likewise."""
    folder = tmp_path_factory.mktemp("resyncs")
    source = str(folder / "source.db")
    create_tables(source)
    yield from in_step(into_dynamodb(folder, source_url=source, dynamodb_endpoint=dynamodb_endpoint), LEDGER_ITEMS)


def in_step(pipeline: Pipeline, ledger_rows: int) -> Iterator[Pipeline]:
    with closing(pipeline), explained(pipeline):
        pipeline.workload(0).fill(40, ledger_rows=ledger_rows)
        pipeline.run("track")
        pipeline.once_through()
        pipeline.assert_equal()
        yield pipeline


@contextmanager
def repaired(pipeline: Pipeline, *tables: str) -> Iterator[Connection]:
    """What the block does to the source or the target while the pipeline stands still is repaired, beside a writer."""
    with explained(pipeline):
        before = pipeline.resyncs()
        with closing(connect(pipeline.source_url)) as source:
            yield source
        with running(pipeline):
            pipeline.await_resyncs(before, tables)


@contextmanager
def running(pipeline: Pipeline) -> Iterator[None]:
    """The pipeline runs beside a writer during the block; afterwards both ends are equal."""
    with pipeline.running(), Watch(pipeline.target, making_way=("person",) if pipeline.target_url else ()):
        with Writing(pipeline.workloads[0], WRITES_PER_S):
            yield
        pipeline.await_equal()
    pipeline.once_through()
    pipeline.assert_equal()
    pipeline.assert_no_dead_letters()
    pipeline.assert_no_holes()


def change_unseen(source: Connection) -> None:
    """Rows go, rows change and rows come."""
    source.execute("DELETE FROM ledger WHERE entry % 10 = 3")
    source.execute("UPDATE ledger SET state = state + 1000000, note = 'changed unseen' WHERE entry % 10 = 4")
    source.execute(f"INSERT INTO ledger VALUES ({next(ENTRIES)}, 1, 'came unseen'), ({next(ENTRIES)}, 1, NULL)")


def spoil(target: Connection) -> None:
    """Somebody meddles with the target: rows go, rows change and rows come."""
    target.execute("DELETE FROM ledger WHERE entry % 10 = 5")
    target.execute("UPDATE ledger SET note = 'meddled with' WHERE entry % 10 = 6")
    target.execute(f"INSERT INTO ledger VALUES ({next(ENTRIES)}, 1, 'not in the source')")


# --- PostgreSQL → Kinesis → PostgreSQL ----------------------------------------------------------------------------


def test_a_lost_slot(to_postgres: Pipeline) -> None:
    with repaired(to_postgres) as source:
        drop_slot(source, to_postgres)
        change_unseen(source)
        for _ in range(50):
            to_postgres.workloads[0].transaction()


def test_truncate_while_stopped(to_postgres: Pipeline) -> None:
    with repaired(to_postgres, "public.ledger") as source:
        source.execute("TRUNCATE ledger")
        change_unseen(source)


def test_truncate_while_running(to_postgres: Pipeline) -> None:
    with explained(to_postgres), running(to_postgres), closing(connect(to_postgres.source_url)) as source:
        before = to_postgres.resyncs()
        source.execute(f"INSERT INTO ledger VALUES ({next(ENTRIES)}, 1, 'goes')")
        source.execute("TRUNCATE ledger")
        source.execute(f"INSERT INTO ledger VALUES ({next(ENTRIES)}, 1, 'stays')")
        to_postgres.await_resyncs(before, ["public.ledger"])


def test_asked_for_while_stopped(to_postgres: Pipeline) -> None:
    with repaired(to_postgres):
        with psycopg.connect(to_postgres.target_url) as target:
            spoil(target)
        to_postgres.run("resync")


def test_asked_for_while_running(to_postgres: Pipeline) -> None:
    with explained(to_postgres), running(to_postgres):
        before = to_postgres.resyncs()
        with psycopg.connect(to_postgres.target_url) as target:
            spoil(target)
        to_postgres.run("resync", "ledger")
        to_postgres.await_resyncs(before, ["public.ledger"])
        assert to_postgres.resyncs()["public.stock"] == before["public.stock"], "more was read than was asked for"


def test_a_second_one_overtakes_the_first(to_postgres: Pipeline) -> None:
    with explained(to_postgres), running(to_postgres):
        with psycopg.connect(to_postgres.target_url) as target:
            spoil(target)
        to_postgres.ask_for_resync()
        to_postgres.await_begun("public.ledger")
        before = to_postgres.resyncs()
        to_postgres.ask_for_resync("public.ledger")
        to_postgres.await_resyncs(before)


# --- SQLite → DynamoDB --------------------------------------------------------------------------------------------


def test_triggers_that_were_gone(to_dynamodb: Pipeline) -> None:
    with repaired(to_dynamodb, "main.ledger") as source:
        drop_triggers(source, "ledger")
        change_unseen(source)


def test_a_lost_log(to_dynamodb: Pipeline) -> None:
    with repaired(to_dynamodb) as source:
        forget_log(source)
        change_unseen(source)
        for _ in range(50):
            to_dynamodb.workloads[0].transaction()
        to_dynamodb.run("track")


def test_asked_for_in_dynamodb(to_dynamodb: Pipeline, dynamodb_endpoint: str) -> None:
    with explained(to_dynamodb), running(to_dynamodb):
        before = to_dynamodb.resyncs()
        spoil_items(dynamodb_endpoint, f"{to_dynamodb.name}-ledger")
        to_dynamodb.run("resync")
        to_dynamodb.await_resyncs(before)


def spoil_items(endpoint: str, table: str) -> None:
    """As `spoil`. An item that came from nowhere has the version of one that came from upwell."""
    with closing(dynamodb_client(endpoint)) as client:
        items = client.scan(TableName=table, Limit=400)["Items"]
        rows = [item for item in items if "_upwell_deleted" not in item]
        for item in rows[:10]:
            client.delete_item(TableName=table, Key={"entry": item["entry"]})
        for item in rows[10:20]:
            client.put_item(TableName=table, Item={**item, "note": {"S": "meddled with"}})
        client.put_item(TableName=table, Item={**rows[20], "entry": {"N": str(next(ENTRIES))}})
