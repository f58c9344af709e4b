"""The commands around a pipeline through Kinesis into DynamoDB."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from lab.faults import FaultProxy
from lab.parts import REGION
from tests.acceptance.commands import Commands, surroundings
from tests.acceptance.compare import DynamoDbRows
from tests.acceptance.pipelines import create_stream
from upwell.app import build_cloud
from upwell.clock import SystemClock
from upwell.config import load
from upwell.errors import ConfigError, OperatorError
from upwell.heartbeat import HEARTBEAT, freshness
from upwell.model import Column, Kind, TableSchema

KEYS = {"users": ["id"], "orders": ["pk", "sk"]}


class Shop(Commands):
    """A small one, with its pipeline."""

    def __init__(self, folder: Path, kinesis: str, dynamodb: str) -> None:
        super().__init__(folder / "upwell.yaml")
        self.name = f"cli-{uuid.uuid4().hex[:10]}"
        self.prefix = f"{self.name}-"
        create_stream(kinesis, self.name, 1)
        self.configuration: dict[str, Any] = {
            "pipeline": self.name,
            "source": {"url": "sqlite:///shop.db"},
            "destination": {"kinesis": {"stream": self.name, "region": REGION, "endpoint_url": kinesis}},
            "subscriber": {"target": f"dynamodb://{self.prefix}"},
            "tables": {
                "users": {},
                "orders": {
                    "dynamodb": {
                        "table": f"{self.prefix}orders",
                        "partition_key": "USER#{buyer}",
                        "sort_key": "{id:05}",
                    }
                },
            },
        }
        self.configure()
        self.items = DynamoDbRows(dynamodb, self.prefix, KEYS)
        self.sql(
            "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT, big TEXT)",
            "CREATE TABLE orders (buyer INTEGER, id INTEGER, total REAL, PRIMARY KEY (buyer, id))",
            "INSERT INTO users VALUES (1, 'Ann', NULL), (2, 'Bob', NULL)",
            "INSERT INTO orders VALUES (1, 7, 9.5)",
        )
        self("track")

    def configure(self, **changes: Any) -> None:
        self.file.write_text(json.dumps(self.configuration | changes))

    def sql(self, *statements: str) -> None:
        with closing(sqlite3.connect(self.file.parent / "shop.db")) as connection, connection:
            for statement in statements:
                connection.execute(statement)

    def through(self) -> None:
        self("publish", "--once")
        self("subscribe", "--once")


@pytest.fixture
def shop(tmp_path: Path, kinesis_endpoint: str, dynamodb_endpoint: str) -> Iterator[Shop]:
    with surroundings(), patch.dict("os.environ", {"AWS_ENDPOINT_URL_DYNAMODB": dynamodb_endpoint}):
        shop = Shop(tmp_path, kinesis_endpoint, dynamodb_endpoint)
        yield shop
        shop.items.close()


def test_from_doctor_to_verify(shop: Shop) -> None:
    found = json.loads(shop("doctor", "--json"))
    said = [finding["sentence"] for finding in found]
    for table in ("upwell_lanes", "upwell_dead_letters", "users", "orders"):
        assert any(f"{shop.prefix}{table} will be created" in sentence for sentence in said), table
    plan = {table["table"]: table for table in json.loads(shop("plan", "--json"))}
    assert plan["main.users"]["to"] == f"DynamoDB table {shop.prefix}users"
    assert {column["column"]: column["target_type"] for column in plan["main.users"]["columns"]}["id"] == "N"

    shop.through()
    assert set(shop.items.rows("users")) == {(1,), (2,)}
    assert set(shop.items.rows("orders")) == {("USER#1", "00007")}
    shop.sql("UPDATE users SET name = 'Bert' WHERE id = 2", "DELETE FROM users WHERE id = 1")
    shop.through()
    assert {key: row["name"] for key, row in shop.items.rows("users").items()} == {(2,): "Bert"}

    assert "main.users: 1 rows, equal" in shop("verify", "--pause", "10ms")
    shop.items._client.put_item(
        TableName=f"{shop.prefix}users", Item={"id": {"N": "9"}, "_upwell_v": {"B": b"\0" * 16}}
    )
    assert "[9] not in the source any more" in shop("verify", "--pause", "10ms", code=1)
    shop("resync", "users")
    shop.through()
    assert "equal" in shop("verify", "--pause", "10ms")
    found = json.loads(shop("doctor", "--json"))
    assert all(finding["level"] != "fail" for finding in found), found


def test_status_and_dead_letters(shop: Shop) -> None:
    shop.sql("UPDATE users SET big = printf('%.*c', 500000, 'x') WHERE id = 2")
    shop.through()
    status = json.loads(shop("status", "--json"))["subscriber"]
    assert status["dead_letters"] == {"main.users": 1}
    assert status["holes"] == []
    assert not status["resyncs"]["main.users"]["active"]
    assert "1 dead letters" in shop("status")
    [letter] = json.loads(shop("dead-letters", "list", "--json"))
    assert (letter["table"], letter["key"]) == ("main.users", "[2]")
    assert letter["id"].startswith("s-")
    assert "500," in letter["reason"]
    assert json.loads(shop("dead-letters", "show", letter["id"]))["id"] == letter["id"]
    shop.sql("UPDATE users SET big = 'small' WHERE id = 2")
    assert "main.users will be read again" in shop("dead-letters", "replay", letter["id"])
    shop.through()
    assert shop.items.rows("users")[2,]["big"] == "small"
    assert json.loads(shop("dead-letters", "list", "--json")) == []


def test_records_that_are_lost_are_missed_and_read_again(shop: Shop, kinesis_endpoint: str) -> None:
    """Here the publisher is on the same machine: it is asked through its state file."""
    shop.through()
    with FaultProxy(kinesis_endpoint) as wire:
        shop.configuration["destination"]["kinesis"]["endpoint_url"] = wire.url
        shop.configure()
        wire.faults.then("record_deleted", "PutRecords")
        shop.sql("UPDATE users SET name = 'lost'")
        shop("publish", "--once")
        assert wire.done["record_deleted"]
        shop.sql("UPDATE users SET big = 'next'")
        shop.through()
        assert json.loads(shop("status", "--json"))["subscriber"]["holes"], "it knows that something is missing"
        shop.through()
    assert {row["name"] for row in shop.items.rows("users").values()} == {"lost"}
    assert json.loads(shop("status", "--json"))["subscriber"]["holes"] == []


def test_two_tables_never_share_one_of_dynamodb(shop: Shop) -> None:
    """Subscribers learn of tables one after the other: who comes second is refused."""
    shop.through()
    shop.sql("CREATE TABLE people (id INTEGER PRIMARY KEY)", "INSERT INTO people VALUES (1)")
    shop.configure(tables={"people": {"to": "users"}})
    shop("track")
    shop("publish", "--once")
    shop("subscribe", "--once", code=3)
    shop.configure(tables={"users": {}, "people": {"to": "users"}})
    shop("plan", code=2)


def test_two_pipelines_share_a_prefix_but_no_table(shop: Shop) -> None:
    """Heartbeats apart, which know whose they are."""
    users = TableSchema("main.users", (Column("id", "INTEGER", Kind.INT),), ("id",), "sqlite")
    clock = SystemClock()
    for name in ("one", "two"):
        shop.configure(pipeline=name)
        pipeline = load(shop.file, {})
        with (
            closing(build_cloud.lanes(pipeline, clock)) as lanes,
            closing(build_cloud.item_sink(pipeline, clock, taking=lanes)) as sink,
        ):
            lanes.check()
            sink.prepare([HEARTBEAT])
            if name == "one":
                sink.prepare([users])
            else:
                with pytest.raises(OperatorError, match="already holds another table's rows"):
                    sink.prepare([users])


def test_two_pipelines_in_one_stream_and_one_target_each_go_on_where_they_were(shop: Shop) -> None:
    """One that took the other's place in the stream for its own would miss what it has not read yet."""
    tables = shop.configuration["tables"]
    pipelines = [
        {"pipeline": f"{shop.name}-{table}", "state": f"{table}.db", "tables": {table: tables[table]}}
        for table in ("users", "orders")
    ]
    for command in ("publish", "subscribe"):
        for pipeline in pipelines:
            shop.configure(**pipeline)
            shop(command, "--once")
    assert set(shop.items.rows("users")) == {(1,), (2,)}
    assert set(shop.items.rows("orders")) == {("USER#1", "00007")}


def test_of_a_table_that_is_published_no_more_nobody_says_how_old_it_is(shop: Shop) -> None:
    shop.items._keys = {**KEYS, "upwell_heartbeat": ["pipeline", "beat"]}

    def complete() -> dict[str, bool]:
        shop.through()
        said = freshness(list(shop.items.rows("upwell_heartbeat").values()))
        assert said is not None
        return {table: said.complete(f"main.{table}") for table in KEYS}

    api = {"api": {"heartbeat": "10s", "cursor_key": "${A_KEY_THAT_IS_NOT_HERE}"}}
    shop.configure(**api)
    assert complete() == {"users": True, "orders": True}
    shop.configure(**api, tables={"users": {}})
    assert complete() == {"users": True, "orders": False}
    shop.configure(**api)
    assert complete() == {"users": True, "orders": True}


def test_however_often_its_heart_beats_it_ends_when_all_is_sent(shop: Shop) -> None:
    """The source is asked for news for as long as it takes until the next beat."""
    shop.configure(api={"heartbeat": "1s", "cursor_key": "${A_KEY_THAT_IS_NOT_HERE}"})
    subprocess.run([sys.executable, "-m", "upwell", "publish", "--once", "-c", str(shop.file)], check=True, timeout=30)


@pytest.mark.parametrize(
    ("subscriber", "why"),
    [
        ({"target": "dynamodb://a b"}, "must be dynamodb://PREFIX"),
        ({"target": "dynamodb://p", "schema_changes": "halt"}, "for PostgreSQL only"),
        ({"target": "dynamodb://p", "iam_auth": True}, "for PostgreSQL only"),
        ({"target": "postgresql://u:secret@h/d", "iam_auth": True}, "without a password"),
        ({"target": "postgresql://u@h/d?sslmode=disable", "iam_auth": True}, "with TLS"),
        ({"target": "mysql://h/d"}, "postgresql://… or dynamodb://…"),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, subscriber: dict[str, Any], why: str) -> None:
    file = tmp_path / "upwell.yaml"
    file.write_text(json.dumps({"pipeline": "shop", "subscriber": subscriber}))
    with pytest.raises(ConfigError, match=why) as error:
        load(file, {})
    assert "secret" not in str(error.value)
