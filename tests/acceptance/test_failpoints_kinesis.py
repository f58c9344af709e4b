"""PostgreSQL → Kinesis → PostgreSQL: killed at every named place it goes on, and both ends are equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from random import Random

import pytest

from tests.acceptance.compare import kinesis_client
from tests.acceptance.killing import SELDOM, die_at, drop_slot
from tests.acceptance.pipelines import Pipeline, explained, through_kinesis
from tests.acceptance.workload import Writing, connect, create_tables
from upwell.failpoints import NAMES

PUBLISHER = [name for name in NAMES if name.startswith(("publisher", "delivery")) and name != "publisher.swept"]
SUBSCRIBER = [name for name in NAMES if name.startswith(("subscriber", "applier"))]
WRITES_PER_S = 60
# Above what a Kinesis record holds.
TOO_LARGE = 1_100_000


@pytest.fixture(scope="module")
def pipeline(
    new_database: Callable[[], str], kinesis_endpoint: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pipeline]:
    """All tests here share one, as kills share one in production."""
    source, target = new_database(), new_database()
    create_tables(source)
    create_tables(target)
    folder = tmp_path_factory.mktemp("failpoints")
    pipeline = through_kinesis(folder, source_url=source, target_url=target, kinesis_endpoint=kinesis_endpoint)
    with closing(pipeline), explained(pipeline):
        pipeline.workload(0).fill(40, ledger_rows=20)
        pipeline.run("track")
        pipeline.once_through()
        yield pipeline


@pytest.mark.parametrize("place", PUBLISHER)
def test_a_publisher_that_dies(pipeline: Pipeline, place: str) -> None:
    with explained(pipeline), closing(connect(pipeline.source_url)) as source:
        if place == "publisher.start.position_taken":
            drop_slot(source, pipeline)
        pipeline.ask_for_resync("public.person")
        source.execute("TRUNCATE ledger")
        source.execute("INSERT INTO ledger SELECT n, 1, 'after' FROM generate_series(1, 5) AS n")
        if place == "publisher.dead_letters.kept":
            source.execute("INSERT INTO ledger VALUES (0, 1, repeat('x', %s))", (TOO_LARGE,))
        with Writing(pipeline.workloads[0], WRITES_PER_S):
            die_at(pipeline, "publish", place, passage=1 if place in SELDOM else Random(place).randint(1, 3))
        source.execute("DELETE FROM ledger WHERE entry = 0")
        pipeline.once_through()
        pipeline.assert_equal()
        pipeline.assert_no_holes()
        letters = pipeline.dead_letters()
        assert all("public.ledger [0]" in letter and "bytes" in letter for letter in letters), letters
        assert len(letters) <= 1


@pytest.mark.parametrize("place", ["publisher.acknowledged", "publisher.checkpoint.saved", "publisher.confirmed"])
def test_a_truncate_is_not_forgotten(pipeline: Pipeline, place: str) -> None:
    with explained(pipeline), closing(connect(pipeline.source_url)) as source:
        source.execute("INSERT INTO ledger SELECT n, 1, 'before' FROM generate_series(100, 110) AS n")
        pipeline.once_through()
        source.execute("TRUNCATE ledger")
        die_at(pipeline, "publish", place)
        pipeline.once_through()
        pipeline.assert_equal()
        pipeline.assert_no_holes()


@pytest.mark.parametrize("place", SUBSCRIBER)
def test_a_subscriber_that_dies(pipeline: Pipeline, place: str, kinesis_endpoint: str) -> None:
    with explained(pipeline):
        if place in ("applier.noted", "applier.swept"):
            pipeline.ask_for_resync()
        if place == "subscriber.shard.finished":
            split_a_shard(kinesis_endpoint, pipeline.name)
        for _ in range(20):
            pipeline.workloads[0].transaction()
        pipeline.once("publish")
        die_at(pipeline, "subscribe", place, passage=1 if place in SELDOM else Random(place).randint(1, 3))
        pipeline.once("subscribe")
        pipeline.assert_equal()
        pipeline.assert_no_holes()


def test_a_place_that_is_never_reached_fails(pipeline: Pipeline) -> None:
    with pytest.raises(AssertionError, match=r"publisher\.nowhere was never reached"):
        die_at(pipeline, "publish", "publisher.nowhere", "--once")


def split_a_shard(endpoint: str, stream: str) -> None:
    """Its children take what comes; it ends."""
    client = kinesis_client(endpoint)
    shards = client.list_shards(StreamName=stream)["Shards"]
    shard = next(shard for shard in shards if "EndingSequenceNumber" not in shard["SequenceNumberRange"])
    keys = shard["HashKeyRange"]
    middle = (int(keys["StartingHashKey"]) + int(keys["EndingHashKey"])) // 2
    client.split_shard(StreamName=stream, ShardToSplit=shard["ShardId"], NewStartingHashKey=str(middle))
    client.get_waiter("stream_exists").wait(StreamName=stream, WaiterConfig={"Delay": 1})
    client.close()
