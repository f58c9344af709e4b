"""Records are lost between publisher and subscriber: the subscriber notices by counting, asks, and all is repaired."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from tests.acceptance.compare import dynamodb_client, kinesis_client
from tests.acceptance.pipelines import Pipeline, create_stream, explained, through_kinesis
from tests.acceptance.workload import Writing, create_tables

WRITES_PER_S = 60


@pytest.fixture
def pipeline(new_database: Callable[[], str], kinesis_endpoint: str, tmp_path: Path) -> Iterator[Pipeline]:
    source, target = new_database(), new_database()
    create_tables(source)
    create_tables(target)
    pipeline = through_kinesis(tmp_path, source_url=source, target_url=target, kinesis_endpoint=kinesis_endpoint)
    with closing(pipeline), explained(pipeline):
        pipeline.workload(0).fill(40, ledger_rows=200)
        pipeline.run("track")
        yield pipeline


def lose_all_records(endpoint: str, stream: str) -> None:
    """What a stream's retention does to a subscriber that was not there: here, all at once."""
    with closing(kinesis_client(endpoint)) as client:
        client.delete_stream(StreamName=stream)
        client.get_waiter("stream_not_exists").wait(StreamName=stream, WaiterConfig={"Delay": 1})
    create_stream(endpoint, stream, 4)


def test_through_the_control_table(pipeline: Pipeline, kinesis_endpoint: str, dynamodb_endpoint: str) -> None:
    table = f"{pipeline.name}-control"
    pipeline.configuration["destination"]["kinesis"]["control_table"] = table
    pipeline.environ["AWS_ENDPOINT_URL_DYNAMODB"] = dynamodb_endpoint
    pipeline.write_configuration()
    lose_and_repair(pipeline, kinesis_endpoint)
    with closing(dynamodb_client(dynamodb_endpoint)) as client:
        requests = client.scan(TableName=table)["Items"]
    assert requests, "no repair was asked for"
    assert all("finished" in request for request in requests)


def test_through_the_state_file_on_one_machine(pipeline: Pipeline, kinesis_endpoint: str) -> None:
    lose_and_repair(pipeline, kinesis_endpoint)


def lose_and_repair(pipeline: Pipeline, kinesis_endpoint: str) -> None:
    pipeline.once("publish")
    before = pipeline.resyncs()
    lose_all_records(kinesis_endpoint, pipeline.name)
    with pipeline.running():
        with Writing(pipeline.workloads[0], WRITES_PER_S):
            pipeline.await_resyncs(before)
        pipeline.await_equal()
    pipeline.once_through()
    pipeline.assert_equal()
    pipeline.assert_no_dead_letters()
    with psycopg.connect(pipeline.target_url) as target:
        asked = target.execute("SELECT reason, handed_over FROM upwell.repair_request").fetchall()
    assert asked
    assert all("records are missing" in reason and handed_over for reason, handed_over in asked), asked
