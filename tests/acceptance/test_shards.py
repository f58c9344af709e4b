"""The stream is split and merged under load, and a second subscriber is started by mistake."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg

from tests.acceptance.compare import Watch, kinesis_client
from tests.acceptance.pipelines import explained, new_seed, through_kinesis
from tests.acceptance.workload import Writing, create_tables

WRITES_PER_S = 80
CHANGES = 8
# While Kinesis splits or merges, which takes kinesalite milliseconds.
ACTIVE_S = 10.0


def test_splits_and_merges_with_two_subscribers(
    new_database: Callable[[], str], kinesis_endpoint: str, tmp_path: Path
) -> None:
    seed = new_seed()
    chance = random.Random(seed)
    source, target = new_database(), new_database()
    create_tables(source)
    create_tables(target)
    pipeline = through_kinesis(
        tmp_path, source_url=source, target_url=target, kinesis_endpoint=kinesis_endpoint, shards=2
    )
    with closing(pipeline), explained(pipeline, seed), closing(kinesis_client(kinesis_endpoint)) as client:
        workload = pipeline.workload(seed)
        workload.fill(40)
        pipeline.run("track")
        stream = Stream(client, pipeline.name)
        with pipeline.running(), Watch(pipeline.target, making_way=("person",)):
            pipeline.await_equal()
            with Writing(workload, WRITES_PER_S):
                for number in range(CHANGES):
                    stream.change(chance)
                    if number == CHANGES // 2:
                        by_mistake = pipeline.start("subscribe")
                    time.sleep(chance.uniform(0.2, 1.0))
            pipeline.await_equal()
            by_mistake.stop()
        pipeline.once_through()
        pipeline.assert_equal()
        pipeline.assert_no_dead_letters()
        pipeline.assert_no_holes()
        ended = stream.closed()
        assert len(ended) >= CHANGES, "hardly any shard was split or merged"
        assert finished(target) == ended


class Stream:
    """A stream whose shards come and go."""

    def __init__(self, client: Any, name: str) -> None:
        self._client = client
        self._name = name

    def change(self, chance: random.Random) -> None:
        """Split a shard, or merge two neighbours."""
        shards = sorted(self._open(), key=lambda shard: int(shard["HashKeyRange"]["StartingHashKey"]))
        if len(shards) > 2 and chance.random() < 0.5:
            first = chance.randrange(len(shards) - 1)
            one, other = shards[first]["ShardId"], shards[first + 1]["ShardId"]
            self._client.merge_shards(StreamName=self._name, ShardToMerge=one, AdjacentShardToMerge=other)
        else:
            shard = chance.choice(shards)
            first_key, last_key = (int(shard["HashKeyRange"][f"{end}HashKey"]) for end in ("Starting", "Ending"))
            # Anywhere: a lane is never torn, wherever the cut is.
            at = chance.randrange(first_key + 1, last_key)
            self._client.split_shard(StreamName=self._name, ShardToSplit=shard["ShardId"], NewStartingHashKey=str(at))
        self._await_active()

    def closed(self) -> set[str]:
        """The shards that take no more records."""
        return {shard["ShardId"] for shard in self._all() if "EndingSequenceNumber" in shard["SequenceNumberRange"]}

    def _open(self) -> list[Any]:
        return [shard for shard in self._all() if "EndingSequenceNumber" not in shard["SequenceNumberRange"]]

    def _all(self) -> list[Any]:
        shards: list[Any] = self._client.list_shards(StreamName=self._name)["Shards"]
        return shards

    def _await_active(self) -> None:
        deadline = time.monotonic() + ACTIVE_S
        while self._client.describe_stream(StreamName=self._name)["StreamDescription"]["StreamStatus"] != "ACTIVE":
            assert time.monotonic() < deadline, "the stream is not active again"
            time.sleep(0.01)


def finished(target: str) -> set[str]:
    """The shards that the subscriber has read to their end."""
    with psycopg.connect(target) as connection:
        return {shard for (shard,) in connection.execute("SELECT shard FROM upwell.shard WHERE sequence IS NULL")}
