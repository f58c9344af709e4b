"""Heartbeat rows on their way: from the publisher's clock to a reader in either world."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest
from boto3.dynamodb.conditions import Key
from psycopg.rows import dict_row

from lab.parts import ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY, PostgresServer
from tests.acceptance.pipelines import create_stream
from upwell.heartbeat import HEARTBEAT_TABLE, Freshness, freshness

COMMAND_S = 90.0
API: dict[str, Any] = {
    "cursor_key": "k" * 32,
    "authorization": {"iam": {"tenants": {"arn:aws:iam::000000000000:role/shop": "shop"}}},
    "tables": {"users": {"table": "main.users", "columns": ["id", "name"]}},
}

Rows = Callable[[], Sequence[Mapping[str, Any]]]


def run(folder: Path, *arguments: str) -> None:
    aws = {"AWS_ACCESS_KEY_ID": ACCESS_KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY}
    command = [sys.executable, "-m", "upwell", *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=COMMAND_S, check=False, env=os.environ | aws
    )
    assert done.returncode == 0, done.stderr


def configure(folder: Path, destination: dict[str, Any], *, api: bool = True, **more: Any) -> str:
    name = f"beats-{uuid.uuid4().hex[:10]}"
    with closing(sqlite3.connect(folder / "shop.db")) as shop:
        shop.execute("CREATE TABLE IF NOT EXISTS users (id INTEGER PRIMARY KEY, name TEXT)")
        shop.execute("INSERT OR IGNORE INTO users VALUES (1, 'Ada'), (2, 'Grace')")
        shop.commit()
    configuration = {
        "pipeline": name,
        "source": {"url": "sqlite:///shop.db"},
        "destination": destination,
        "tables": {"main.users": {}},
        **({"api": API} if api else {}),
        **more,
    }
    (folder / "upwell.yaml").write_text(json.dumps(configuration))  # JSON is YAML
    return name


def in_postgres(url: str, pipeline: str) -> Rows:
    def rows() -> Sequence[Mapping[str, Any]]:
        with psycopg.connect(url, row_factory=dict_row) as connection:
            return connection.execute(
                "SELECT beats, resyncing, newest_resync, "
                "to_char(as_of AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') AS as_of "
                "FROM upwell.upwell_heartbeat WHERE pipeline = %s",
                [pipeline],
            ).fetchall()

    return rows


def in_dynamodb(endpoint: str, prefix: str, pipeline: str) -> Rows:
    def rows() -> Sequence[Mapping[str, Any]]:
        keys = {"aws_access_key_id": ACCESS_KEY_ID, "aws_secret_access_key": SECRET_ACCESS_KEY}
        dynamodb = boto3.resource("dynamodb", region_name=REGION, endpoint_url=endpoint, **keys)
        table = dynamodb.Table(prefix + HEARTBEAT_TABLE.partition(".")[2])
        found: list[dict[str, Any]] = table.query(KeyConditionExpression=Key("pipeline").eq(pipeline))["Items"]
        return found

    return rows


def who_may_use_the_schema_learns_the_age_and_nothing_else(url: str) -> None:
    reader = f"reader_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {reader}".encode())
        connection.execute(f"GRANT USAGE ON SCHEMA upwell TO {reader}".encode())
        connection.execute(f"SET ROLE {reader}".encode())
        assert connection.execute("SELECT beats FROM upwell.upwell_heartbeat").fetchone()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT payload FROM upwell.dead_letter")
        connection.execute("RESET ROLE")
        connection.execute(f"DROP OWNED BY {reader}; DROP ROLE {reader}".encode())


def now() -> str:
    return datetime.now(UTC).isoformat()


def said(rows: Rows) -> Freshness:
    found = freshness(rows())
    assert found is not None
    return found


@pytest.fixture
def through_kinesis(
    tmp_path: Path, kinesis_endpoint: str, postgres_cluster: PostgresServer
) -> Iterator[tuple[Rows, int]]:
    database = f"beats_{uuid.uuid4().hex[:12]}"
    url = postgres_cluster.create_database(database)
    stream = f"beats-{uuid.uuid4().hex[:10]}"
    create_stream(kinesis_endpoint, stream, 2)
    kinesis = {"stream": stream, "region": REGION, "endpoint_url": kinesis_endpoint, "lanes": 8}
    name = configure(tmp_path, {"kinesis": kinesis}, subscriber={"target": url})
    yield in_postgres(url, name), 8
    who_may_use_the_schema_learns_the_age_and_nothing_else(url)
    postgres_cluster.drop_database(database)


@pytest.fixture
def into_dynamodb(tmp_path: Path, dynamodb_endpoint: str) -> tuple[Rows, int]:
    prefix = f"beats-{uuid.uuid4().hex[:10]}-"
    dynamodb = {"table_prefix": prefix, "region": REGION, "endpoint_url": dynamodb_endpoint}
    name = configure(tmp_path, {"dynamodb": dynamodb})
    return in_dynamodb(dynamodb_endpoint, prefix, name), 1


@pytest.mark.parametrize("way", ["through_kinesis", "into_dynamodb"])
def test_the_other_end_learns_how_old_its_data_is(tmp_path: Path, way: str, request: pytest.FixtureRequest) -> None:
    rows, count = request.getfixturevalue(way)
    run(tmp_path, "track")
    before = now()
    for time in ("first", "again"):
        run(tmp_path, "publish", "--once")
        if way == "through_kinesis":
            run(tmp_path, "subscribe", "--once")
        freshest = said(rows)
        after = now()
        assert before <= freshest.as_of <= after, time
        assert freshest.complete("main.users")
        assert len(rows()) == count
        before = after


def test_without_an_api_there_are_none(tmp_path: Path) -> None:
    configure(tmp_path, {"stdout": {}}, api=False)
    run(tmp_path, "track")
    aws = {"AWS_ACCESS_KEY_ID": ACCESS_KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY}
    command = [sys.executable, "-m", "upwell", "publish", "--once"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=COMMAND_S, env=os.environ | aws
    )
    assert done.stdout.count("main.users") >= 2
    assert HEARTBEAT_TABLE not in done.stdout
