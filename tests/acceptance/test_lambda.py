"""The subscriber as Lambda runs it: environments that are processes of their own, fed by AWS's rules, killed at will.

PostgreSQL → Kinesis → the handler → PostgreSQL, or DynamoDB; see tests/esm.py for the rules.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from lab.parts import REGION, PostgresCluster
from tests.acceptance.compare import Watch, kinesis_client
from tests.acceptance.pipelines import (
    Pipeline,
    explained,
    new_seed,
    through_kinesis,
    through_kinesis_into_dynamodb,
)
from tests.acceptance.workload import Writing, connect, create_tables
from tests.esm import EventSourceMapping, Settings
from tests.esm_environment import Process

WRITES_PER_S = 40
KILLS = 12
SETTINGS = Settings(batch_size=20, parallelization=2, timeout_s=60)


@contextmanager
def mapped(
    pipeline: Pipeline, endpoint: str, settings: Settings = SETTINGS, **chaos: Any
) -> Iterator[EventSourceMapping]:
    """The pipeline's stream is applied by functions, as AWS would run them."""
    environ = {
        **pipeline.environ,
        "UPWELL_CONFIG": str(pipeline.file),
        "AWS_LAMBDA_FUNCTION_NAME": "subscriber",
        "AWS_REGION": REGION,
    }
    numbers = itertools.count()

    def start() -> Process:
        return Process(environ, pipeline.folder / f"environment-{next(numbers):03}.log")

    with EventSourceMapping(endpoint, pipeline.name, start, settings, **chaos) as mapping:
        yield mapping


def said(pipeline: Pipeline) -> list[dict[str, Any]]:
    """What the functions told CloudWatch of themselves."""
    logs = sorted(pipeline.folder.glob("environment-*.log"))
    lines = [line for log in logs for line in log.read_text().splitlines() if line.startswith("{")]
    return [line for line in map(json.loads, lines) if "_aws" in line]


@pytest.fixture(params=["postgresql", "dynamodb"])
def pipeline(
    request: pytest.FixtureRequest,
    new_database: Callable[[], str],
    kinesis_endpoint: str,
    dynamodb_endpoint: str,
    tmp_path: Path,
) -> Iterator[Pipeline]:
    source = new_database()
    create_tables(source)
    if request.param == "postgresql":
        target = new_database()
        create_tables(target)
        made = through_kinesis(
            tmp_path, source_url=source, target_url=target, kinesis_endpoint=kinesis_endpoint, shards=2
        )
    else:
        made = through_kinesis_into_dynamodb(
            tmp_path,
            source_url=source,
            kinesis_endpoint=kinesis_endpoint,
            dynamodb_endpoint=dynamodb_endpoint,
            shards=2,
        )
    with closing(made), explained(made):
        yield made


def test_environments_die_batches_come_twice_and_shards_split(pipeline: Pipeline, kinesis_endpoint: str) -> None:
    seed = new_seed()
    chance = random.Random(seed)
    making_way = ("person",) if pipeline.target_url else ()
    with explained(pipeline, seed), mapped(pipeline, kinesis_endpoint, again=0.2, seed=seed) as mapping:
        pipeline.workload(seed).fill(40, ledger_rows=100)
        pipeline.run("track")
        publisher = pipeline.start("publish")
        pipeline.await_equal(120)
        with Writing(pipeline.workloads[0], WRITES_PER_S), Watch(pipeline.target, making_way=making_way) as watch:
            killed = 0
            deadline = time.monotonic() + 120
            while killed < KILLS and time.monotonic() < deadline:
                time.sleep(chance.choice((0.1, 0.5, 2.0)))
                killed += mapping.kill_one()
                if killed == KILLS // 3:
                    pipeline.ask_for_resync()
                if killed == KILLS // 2:
                    reshard(kinesis_endpoint, pipeline.name)
        pipeline.await_equal(120)
        publisher.stop()
    assert killed == KILLS
    assert mapping.errors >= KILLS // 2, "they were killed when their work was done"
    assert mapping.repeated
    assert not mapping.on_failure
    pipeline.assert_equal()
    pipeline.assert_no_dead_letters()
    pipeline.assert_no_holes()
    assert watch.changes_seen > 50


def test_poison_becomes_a_dead_letter_and_the_rest_flows_on(pipeline: Pipeline, kinesis_endpoint: str) -> None:
    with closing(connect(pipeline.source_url)) as source, mapped(pipeline, kinesis_endpoint) as mapping:
        pipeline.workload(1).fill(10, ledger_rows=20)
        pipeline.run("track")
        if pipeline.target_url:
            with psycopg.connect(pipeline.target_url) as target:
                target.execute("ALTER TABLE ledger ADD CHECK (entry <> 7)")
        else:
            source.execute("UPDATE ledger SET note = repeat('x', 500000) WHERE entry = 7")
        client = kinesis_client(kinesis_endpoint)
        client.put_record(StreamName=pipeline.name, PartitionKey="lane-0001", Data=b"not a record of upwell's")
        client.close()
        pipeline.once("publish")
        source.execute("DELETE FROM ledger WHERE entry = 7")
        for _ in range(20):
            pipeline.workloads[0].transaction()
        pipeline.once("publish")
        pipeline.await_equal()
    letters = pipeline.dead_letters()
    assert [letter for letter in letters if "public.ledger [7]" in letter]
    assert [letter for letter in letters if "not a packed upwell record" in letter]
    assert all("public.ledger [7]" in letter or "upwell record" in letter for letter in letters), letters
    assert (mapping.errors, mapping.on_failure) == (0, [])
    assert sum(line["DeadLetters"] for line in said(pipeline)) >= 2
    assert max(line["AppliedLag"] for line in said(pipeline)) > 0


def test_a_database_that_is_down_loses_nothing_and_makes_no_dead_letter(
    new_database: Callable[[], str], kinesis_endpoint: str, tmp_path: Path
) -> None:
    """Invariant 8. The environments are warm when it goes, and others start while it is away."""
    with PostgresCluster() as cluster:
        source, target = new_database(), cluster.create_database("target")
        for url in (source, target):
            create_tables(url)
        pipeline = through_kinesis(tmp_path, source_url=source, target_url=target, kinesis_endpoint=kinesis_endpoint)
        with closing(pipeline), explained(pipeline), mapped(pipeline, kinesis_endpoint) as mapping:
            pipeline.workload(1).fill(10, ledger_rows=20)
            pipeline.run("track")
            pipeline.once("publish")
            pipeline.await_equal()
            cluster.stop("immediate")
            for _ in range(20):
                pipeline.workloads[0].transaction()
            pipeline.once("publish")
            before = mapping.partial
            deadline = time.monotonic() + 60
            while mapping.partial < before + 5:
                assert time.monotonic() < deadline, "the function did not hand its batch back"
                time.sleep(0.1)
            mapping.kill_one()
            cluster.start()
            pipeline.await_equal()
            pipeline.assert_no_dead_letters()
            pipeline.assert_no_holes()
            assert not mapping.on_failure
            assert "UW-PT-026" in {line["Code"] for line in said(pipeline) if line["Retried"]}


def test_a_function_that_runs_out_of_time_is_killed_in_the_middle_and_all_comes_again(
    new_database: Callable[[], str], kinesis_endpoint: str, tmp_path: Path
) -> None:
    """Somebody holds a lock for longer than the function may run."""
    source, target = new_database(), new_database()
    for url in (source, target):
        create_tables(url)
    pipeline = through_kinesis(tmp_path, source_url=source, target_url=target, kinesis_endpoint=kinesis_endpoint)
    settings = Settings(batch_size=20, timeout_s=10.0)
    with closing(pipeline), explained(pipeline), mapped(pipeline, kinesis_endpoint, settings) as mapping:
        pipeline.workload(1).fill(10, ledger_rows=20)
        pipeline.run("track")
        pipeline.once("publish")
        pipeline.await_equal()
        errors = mapping.errors
        with psycopg.connect(target) as blocker:
            blocker.execute("LOCK TABLE person, item, stock IN ACCESS EXCLUSIVE MODE")
            for _ in range(20):
                pipeline.workloads[0].transaction()
            pipeline.once("publish")
            deadline = time.monotonic() + 60
            while mapping.errors < errors + 2:
                assert time.monotonic() < deadline, "no function ran out of time"
                time.sleep(0.1)
        pipeline.await_equal(120)
        pipeline.assert_no_dead_letters()
        pipeline.assert_no_holes()
        assert not mapping.on_failure


def reshard(endpoint: str, stream: str) -> None:
    """A shard is split, and then two neighbours are merged."""
    client = kinesis_client(endpoint)
    waiter = client.get_waiter("stream_exists")
    shard = _open(client, stream)[0]
    keys = shard["HashKeyRange"]
    middle = (int(keys["StartingHashKey"]) + int(keys["EndingHashKey"])) // 2
    client.split_shard(StreamName=stream, ShardToSplit=shard["ShardId"], NewStartingHashKey=str(middle))
    waiter.wait(StreamName=stream, WaiterConfig={"Delay": 1})
    one, other = _open(client, stream)[:2]
    client.merge_shards(StreamName=stream, ShardToMerge=one["ShardId"], AdjacentShardToMerge=other["ShardId"])
    waiter.wait(StreamName=stream, WaiterConfig={"Delay": 1})
    client.close()


def _open(client: Any, stream: str) -> list[dict[str, Any]]:
    shards = client.list_shards(StreamName=stream)["Shards"]
    found = [shard for shard in shards if "EndingSequenceNumber" not in shard["SequenceNumberRange"]]
    return sorted(found, key=lambda shard: int(shard["HashKeyRange"]["StartingHashKey"]))
