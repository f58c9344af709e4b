"""The commands around a pipeline, with real databases, a stream and tables behind them."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest

from lab.parts import ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY, PostgresServer
from tests.acceptance.pipelines import create_stream
from upwell.app import verify as verifying
from upwell.model import Kind

COMMAND_S = 90.0


@dataclass
class Place:
    """A folder with a configuration."""

    folder: Path

    def configure(self, configuration: dict[str, Any]) -> None:
        (self.folder / "upwell.yaml").write_text(json.dumps(configuration))  # JSON is YAML

    def run(self, *arguments: str, code: int | None = 0, **environ: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "upwell", *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
            env={
                **os.environ,
                "AWS_ACCESS_KEY_ID": ACCESS_KEY_ID,
                "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
                **environ,
            },
        )
        assert code is None or done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def findings(self, code: int) -> dict[str, list[str]]:
        """code → the levels that doctor gave it."""
        found: dict[str, list[str]] = {}
        for finding in json.loads(self.run("doctor", "--json", code=code).stdout):
            found.setdefault(finding["code"], []).append(finding["level"])
        return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def databases(postgres_cluster: PostgresServer) -> Iterator[tuple[str, str]]:
    """(source, target), both empty."""
    names = [f"cli_{uuid.uuid4().hex[:12]}" for _ in range(2)]
    source, target = (postgres_cluster.create_database(name) for name in names)
    yield source, target
    for name in names:
        postgres_cluster.drop_database(name)


def execute(url: str, *statements: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.cursor()
        for statement in statements:
            cursor.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


USERS = (
    "CREATE TABLE users (id int PRIMARY KEY, email text, country char(2), paid numeric(12,2), score float8, "
    "seen timestamptz, bio text, data bytea, extra jsonb, ok boolean)"
)
SEED = (
    "INSERT INTO users SELECT i, 'user' || i || '@example.com', CASE WHEN i % 3 = 0 THEN 'FR' ELSE 'DE' END, i * 1.1, "
    "i / 7.0, '2026-01-31 10:00:00.120+01', repeat('x', i * 10), '\\x00ff', '{\"a\": 1.50}', i % 2 = 0 "
    "FROM generate_series(1, 200) i"
)


def through_kinesis(place: Place, databases: tuple[str, str], endpoint: str, **users: Any) -> tuple[str, str]:
    name = f"cli-{uuid.uuid4().hex[:10]}"
    create_stream(endpoint, name, 2)
    source, target = databases
    execute(source, USERS, SEED)
    place.configure(
        {
            "pipeline": name,
            "source": {"url": source, "poll_interval": "50ms"},
            "destination": {"kinesis": {"stream": name, "region": REGION, "endpoint_url": endpoint, "lanes": 8}},
            "subscriber": {"target": target},
            "tables": {"users": users},
            "masking": {"key": "0123456789abcdef"},
        }
    )
    return source, target


def once_through(place: Place) -> None:
    place.run("publish", "--once")
    place.run("subscribe", "--once")


def test_from_the_first_look_to_repaired_differences(
    place: Place, databases: tuple[str, str], kinesis_endpoint: str
) -> None:
    source, target = through_kinesis(
        place, databases, kinesis_endpoint, where="country = 'DE'", mask={"email": "hmac"}, rename={"paid": "amount"}
    )
    before = place.findings(3)
    assert "fail" in before["UW-PG-031"]  # no publication yet
    assert before["UW-PT-100"] == ["pass"]
    place.run("track")
    after = place.findings(0)
    assert after["UW-CL-011"] == ["pass", "warn"]  # the stream is there, and keeps records for a day only
    assert after["UW-CL-013"] == ["warn"]  # a filter, and large values that the log does not repeat
    execute(source, "ALTER TABLE users REPLICA IDENTITY FULL")
    assert "UW-CL-013" not in place.findings(0)

    once_through(place)
    assert execute(target, "SELECT count(*), count(DISTINCT email) FROM users") == [(134, 134)]
    assert execute(target, "SELECT count(*) FROM users WHERE email LIKE '%@%'") == [(0,)]
    assert "134 rows, equal" in place.run("verify").stdout
    execute(source, "UPDATE users SET country = 'FR' WHERE id = 1", "UPDATE users SET country = 'DE' WHERE id = 3")
    once_through(place)
    assert execute(target, "SELECT id FROM users WHERE id IN (1, 3)") == [(3,)]
    place.run("verify", "users")

    execute(
        target,
        "UPDATE users SET amount = amount + 0.01 WHERE id = 2",
        "DELETE FROM users WHERE id = 4",
        "INSERT INTO users (id) VALUES (1000)",
    )
    found = place.run("verify", "--repair", "--pause", "100ms", code=1).stdout
    assert "134 rows, 3 differ" in found
    for line in ("[2] with other values", "[4] missing at the destination", "[1000] not in the source any more"):
        assert line in found
    assert "public.users will be read again by the publisher" in found
    once_through(place)
    assert "134 rows, equal" in place.run("verify", "public.users").stdout


def test_a_dead_letter_is_listed_shown_and_replayed(
    place: Place, databases: tuple[str, str], kinesis_endpoint: str
) -> None:
    source, target = through_kinesis(place, databases, kinesis_endpoint)
    place.run("track")
    once_through(place)
    execute(target, "ALTER TABLE users ADD CHECK (email <> 'no')")
    execute(source, "UPDATE users SET email = 'no' WHERE id = 7")
    once_through(place)
    (letter,) = json.loads(place.run("dead-letters", "list", "--json").stdout)
    assert (letter["table"], letter["key"]) == ("public.users", "[7]")
    assert letter["id"].startswith("s-")
    listed = place.run("dead-letters", "list").stdout
    assert "no" not in listed.split("REASON")[1].split()  # the row itself is for who asks for it
    shown = json.loads(place.run("dead-letters", "show", letter["id"]).stdout)
    assert shown["events"][0]["values"]["email"] == "no"
    status = json.loads(place.run("status", "--json").stdout)
    assert status["subscriber"]["dead_letters"] == {"public.users": 1}
    assert "1 dead letters" in place.run("status").stdout
    assert "[7] with other values" in place.run("verify", "--pause", "100ms", code=1).stdout

    execute(target, "ALTER TABLE users DROP CONSTRAINT users_email_check")
    assert "public.users will be read again" in place.run("dead-letters", "replay", letter["id"]).stdout
    once_through(place)
    assert json.loads(place.run("dead-letters", "list", "--json").stdout) == []
    place.run("verify")
    place.run("dead-letters", "drop", letter["id"], code=2)


def test_the_subscriber_needs_nothing_of_the_source(
    place: Place, databases: tuple[str, str], kinesis_endpoint: str
) -> None:
    through_kinesis(place, databases, kinesis_endpoint)
    text = (place.folder / "upwell.yaml").read_text()
    place.run("track")
    place.run("publish", "--once")
    configuration = json.loads(text)
    configuration["source"]["url"] = "postgresql://u:${NOT_HERE}@nowhere/db"
    configuration["masking"]["key"] = "${file:not-here}"
    place.configure(configuration)
    place.run("subscribe", "--once")
    place.run("status")
    place.run("dead-letters", "list")
    refused = place.run("publish", code=2).stderr
    assert "NOT_HERE is not set" in refused
    found = place.run("doctor", code=0).stdout
    assert found.count("A part was not checked here") == 2


def test_a_repair_that_the_target_asks_for_reaches_the_publisher_beside_it(
    place: Place, databases: tuple[str, str], kinesis_endpoint: str
) -> None:
    _, target = through_kinesis(place, databases, kinesis_endpoint)
    place.run("track")
    once_through(place)
    ((pipeline,),) = execute(target, "SELECT DISTINCT pipeline FROM upwell.watermark")
    execute(target, f"INSERT INTO upwell.repair_request VALUES ('{pipeline}', 'r', 'public.users', 'a hole')")
    execute(target, "DELETE FROM users WHERE id < 10")
    assert "1 repairs asked for" in place.run("status").stdout
    for _ in range(2):  # first the request is handed over, then what it brings is applied
        place.run("subscribe", "--once")
        place.run("publish", "--once")
    place.run("subscribe", "--once")
    place.run("verify")
    assert "repairs asked for" not in place.run("status").stdout


def test_plan_knows_the_types_on_both_sides(place: Place, databases: tuple[str, str], kinesis_endpoint: str) -> None:
    through_kinesis(place, databases, kinesis_endpoint)
    place.run("track")
    (table,) = json.loads(place.run("plan", "--json").stdout)
    assert table["to"] == "table public.users"
    types = {column["column"]: (column["type"], column["target_type"]) for column in table["columns"]}
    assert types["paid"] == ("numeric(12,2)", "numeric(12,2)")
    assert types["extra"] == ("jsonb", "jsonb")


def test_init_of_postgresql_grants_the_least_and_keeps_the_password_out(
    place: Place, databases: tuple[str, str]
) -> None:
    source, _ = databases
    password = psycopg.conninfo.conninfo_to_dict(source)["password"]
    assert isinstance(password, str)
    execute(source, USERS, "CREATE TABLE nokey (a int)", 'CREATE TABLE "odd "" name" ("Id" int PRIMARY KEY)')
    done = place.run("init", source, "--to", "kinesis://shop", AWS_REGION=REGION)
    texts = {name: (place.folder / name).read_text() for name in ("upwell.yaml", "grants.sql", "firewall.txt")}
    for text in (done.stdout, done.stderr, *texts.values()):
        assert password not in text
    assert "GRANT SELECT ON TABLE" in texts["grants.sql"]
    assert "kinesis.eu-west-1.amazonaws.com, 443" in texts["firewall.txt"]
    assert "# left out: public.nokey has no primary key." in texts["upwell.yaml"]
    refused = place.run("doctor", "--json", code=None, UPWELL_SOURCE_PASSWORD="").stdout
    assert json.loads(refused)
    found = json.loads(place.run("doctor", "--json", code=3, UPWELL_SOURCE_PASSWORD=password).stdout)
    assert [f["level"] for f in found if f["code"] == "UW-PG-007"] == ["pass"]


# --- DynamoDB -----------------------------------------------------------------------------------------------------


def dynamodb(endpoint: str) -> Any:
    return boto3.client(
        "dynamodb",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=ACCESS_KEY_ID,
        aws_secret_access_key=SECRET_ACCESS_KEY,
    )


def test_verify_finds_and_repairs_items(place: Place, dynamodb_endpoint: str) -> None:
    prefix = f"cli-{uuid.uuid4().hex[:10]}-"
    path = place.folder / "shop.db"
    with closing(sqlite3.connect(path)) as shop:
        shop.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, total DECIMAL(10,2), note TEXT, rate REAL)")
        shop.executemany("INSERT INTO orders VALUES (?, ?, ?, ?)", [(n, n * 1.5, f"n{n}", n / 3) for n in range(300)])
        shop.commit()
    place.configure(
        {
            "pipeline": "items",
            "source": {"url": "sqlite:///shop.db", "poll_interval": "50ms"},
            "destination": {"dynamodb": {"region": REGION, "endpoint_url": dynamodb_endpoint, "table_prefix": prefix}},
            "tables": {"orders": {}},
        }
    )
    assert "fail" in {level for levels in place.findings(3).values() for level in levels}
    place.run("track")
    assert place.findings(0)["UW-DD-001"] == ["pass"]
    plan = json.loads(place.run("plan", "--json").stdout)
    assert plan[0]["to"] == f"DynamoDB table {prefix}orders"
    assert {column["column"]: column["target_type"] for column in plan[0]["columns"]}["total"] == "N"
    place.run("publish", "--once")
    assert "300 rows, equal" in place.run("verify").stdout
    client = dynamodb(dynamodb_endpoint)
    client.delete_item(TableName=prefix + "orders", Key={"id": {"N": "7"}})
    found = place.run("verify", "orders", "--repair", "--pause", "100ms", code=1).stdout
    assert "300 rows, 1 differ" in found
    assert "[7] missing at the destination" in found
    place.run("publish", "--once")
    place.run("verify")


# --- comparing ----------------------------------------------------------------------------------------------------


def rows(values: dict[str, bytes]) -> verifying.Read:
    return lambda: iter(values.items())


def test_a_change_on_its_way_is_no_difference() -> None:
    source, destination = {"[1]": b"new", "[2]": b"x"}, {"[1]": b"old", "[2]": b"x"}

    def arrives() -> None:
        destination["[1]"] = b"new"

    assert verifying.compare("t", rows(source), rows(destination), arrives).equal


def test_a_row_that_changes_all_the_time_is_no_difference() -> None:
    source, destination = {"[1]": b"1"}, {"[1]": b"0"}

    def both_move() -> None:
        destination["[1]"], source["[1]"] = source["[1]"], source["[1]"] + b"1"

    assert verifying.compare("t", rows(source), rows(destination), both_move).equal


def test_what_stays_different_is_told() -> None:
    source = {f"[{n}]": b"x" for n in range(2000)}
    destination = {**source, "[5]": b"y", "[2001]": b"x"}
    del destination["[6]"]
    result = verifying.compare("t", rows(source), rows(destination), lambda: None)
    assert (result.different, result.missing, result.superfluous) == (["[5]"], ["[6]"], ["[2001]"])
    assert result.rows == 2000


def test_two_rows_that_swap_their_values_do_not_cancel_out() -> None:
    source, destination = {"[1]": b"a", "[2]": b"b"}, {"[1]": b"b", "[2]": b"a"}
    digests = {k: verifying.digest([k, v.decode()]) for k, v in source.items()}
    swapped = {k: verifying.digest([k, v.decode()]) for k, v in destination.items()}
    assert verifying.compare("t", rows(digests), rows(swapped), lambda: None).different == ["[1]", "[2]"]


def test_very_many_differences_are_counted_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "KEYS_MAX", 100)
    source = {f"[{n}]": b"x" for n in range(5000)}
    result = verifying.compare("t", rows(source), rows({}), lambda: None)
    assert not result.complete
    assert 0 < len(result.missing) <= 110
    assert next(iter(verifying.sentences(result, 3))).startswith("t: 5000 rows, at least ")


@pytest.mark.parametrize(
    ("kind", "one", "other", "same"),
    [
        ("decimal", "12.50", "12.5", True),
        ("decimal", "1E+2", "100", True),
        ("decimal", "0.00", "-0", True),
        ("decimal", "1" * 40, "1" * 39 + "2", False),
        ("int", 5, "5", True),
        ("float", 0.1, 0.1, True),
        ("float", "NaN", "NaN", True),
        ("bool", 1, True, True),
        ("timestamptz", "2026-01-31T10:00:00.120000Z", "2026-01-31T10:00:00.12Z", True),
        ("timestamp", "2026-01-31T10:00:00.000", "2026-01-31T10:00:00", True),
        ("text", "a", "a ", False),
        ("text", None, "", False),
    ],
)
def test_values_that_databases_write_in_two_ways_are_the_same(kind: str, one: Any, other: Any, same: bool) -> None:
    found: Sequence[Any] = [verifying.canonical_value(Kind(kind), value) for value in (one, other)]
    assert (found[0] == found[1]) is same
