"""What a newcomer gets wrong, against real servers: one clear sentence, the next step, the exit code, nothing lost."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trustme
import yaml

from lab.parts import REGION, PostgresCluster, PostgresServer
from tests.acceptance.compare import kinesis_client
from tests.fake_aws import fake_service, ok

UPWELL = Path(sys.executable).with_name("upwell")
PASSWORD = "wr0ng-canary-passw0rd"
COMMAND_S = 60.0


@dataclass
class Place:
    """A pipeline that works, to be broken in one thing."""

    folder: Path
    server: PostgresServer
    source: str
    kinesis: str
    config: dict[str, Any]

    def run(self, *arguments: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        (self.folder / "upwell.yaml").write_text(yaml.safe_dump(self.config))
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        return subprocess.run(
            [UPWELL, *arguments],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder), **(keys if environ is None else environ)},
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )

    def set_source(self, url: str) -> None:
        self.config["source"] = {"url": url}

    def set_kinesis(self, **changes: str) -> None:
        self.config["destination"] = {"kinesis": {**self.config["destination"]["kinesis"], **changes}}

    def sql(self, statement: str) -> None:
        with psycopg.connect(self.source, autocommit=True) as connection:
            connection.execute(statement)


@pytest.fixture
def place(tmp_path: Path, postgres_cluster: PostgresServer, database: str, kinesis_endpoint: str) -> Place:
    name = f"bad-{uuid.uuid4().hex[:8]}"
    kinesis_client(kinesis_endpoint).create_stream(StreamName=name, ShardCount=1)
    source = postgres_cluster.url(database)
    place = Place(
        tmp_path,
        postgres_cluster,
        source,
        kinesis_endpoint,
        {
            "pipeline": name,
            "source": {"url": source},
            "destination": {"kinesis": {"stream": name, "region": REGION, "endpoint_url": kinesis_endpoint}},
            "tables": {"public.users": {}},
        },
    )
    place.sql("CREATE TABLE users (id int PRIMARY KEY, name text); INSERT INTO users VALUES (1, 'a'), (2, 'b')")
    place.sql("CREATE TABLE notes (text text)")
    assert place.run("track").returncode == 0
    return place


def misspelt_key(place: Place) -> None:
    place.config["tabels"] = {}


def wrong_password(place: Place) -> None:
    user_and_password = place.source.split("//")[1].split("@")[0]
    place.set_source(place.source.replace(user_and_password, f"{user_and_password.split(':')[0]}:{PASSWORD}"))


def unknown_table(place: Place) -> None:
    place.config["tables"] = {"public.usres": {}}


def table_without_a_key(place: Place) -> None:
    place.config["tables"] = {"public.notes": {}}


def missing_rights(place: Place) -> None:
    role = f"reader_{uuid.uuid4().hex[:8]}"
    place.sql(f"CREATE ROLE {role} LOGIN REPLICATION PASSWORD '{PASSWORD}'")
    user_and_password = place.source.split("//")[1].split("@")[0]
    place.set_source(place.source.replace(user_and_password, f"{role}:{PASSWORD}"))


def port_closed(place: Place) -> None:
    place.set_source("postgresql://upwell:secret@127.0.0.1:1/shop")


def stream_missing(place: Place) -> None:
    place.set_kinesis(stream="there-is-none")


def destination_closed(place: Place) -> None:
    place.set_kinesis(endpoint_url="http://127.0.0.1:1")


def state_of_another_pipeline(place: Place) -> None:
    assert place.run("publish", "--once").returncode == 0
    slot = f"upwell_{str(place.config['pipeline']).replace('-', '_')}"
    place.config["source"] = {"url": place.source, "slot": slot, "publication": slot}
    place.config["pipeline"] = "another"


# What is broken → exit code, part of the sentence, part of the next step.
BAD: dict[Callable[[Place], None], tuple[int, str, str]] = {
    misspelt_key: (2, "tabels: unknown key", "did you mean `tables`"),
    wrong_password: (3, "password", "source.url"),
    unknown_table: (3, "public.usres", "tables"),
    table_without_a_key: (3, "public.notes", "ADD PRIMARY KEY"),
    missing_rights: (3, "permission denied for table users", "grants.sql"),
    port_closed: (3, "127.0.0.1:1", "source.url"),
    stream_missing: (3, "there-is-none does not exist", "aws kinesis create-stream"),
    destination_closed: (3, "127.0.0.1:1", ""),
    state_of_another_pipeline: (3, "belongs to the pipeline", "state"),
}


@pytest.mark.parametrize("broken", BAD, ids=lambda broken: str(broken.__name__))
def test_bad_input(place: Place, broken: Callable[[Place], None]) -> None:
    good = dict(place.config)
    broken(place)
    check(place.run("publish", "--once"), *BAD[broken])
    place.config = good
    assert_nothing_lost(place)


def test_no_credentials(place: Place) -> None:
    place.set_kinesis(endpoint_url="http://localhost.localdomain:9")
    done = place.run("publish", "--once", environ={"AWS_EC2_METADATA_DISABLED": "true"})
    check(done, 3, "credentials", "AWS")
    place.set_kinesis(endpoint_url=place.kinesis)
    assert_nothing_lost(place)


def test_a_certificate_that_is_not_trusted(place: Place) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1", "localhost").configure_cert(context)
    with fake_service(lambda _: ok({}), context) as service:
        place.set_kinesis(endpoint_url=service.url)
        check(place.run("publish", "--once"), 3, "certificate", "ca_bundle")
    place.set_kinesis(endpoint_url=place.kinesis)
    assert_nothing_lost(place)


@pytest.fixture(scope="module")
def plain_cluster() -> Iterator[PostgresCluster]:
    with PostgresCluster({"wal_level": "replica", "max_wal_senders": 0}) as cluster:
        yield cluster


def test_a_server_whose_log_is_not_logical(place: Place, plain_cluster: PostgresCluster) -> None:
    place.set_source(plain_cluster.url("postgres"))
    check(place.run("publish", "--once"), 3, "wal_level", "ALTER SYSTEM SET wal_level")


def check(done: subprocess.CompletedProcess[str], code: int, sentence: str, remedy: str) -> None:
    said = done.stderr
    assert done.returncode == code, said
    assert done.stdout == ""
    assert sentence in said
    assert remedy in said
    assert "Traceback" not in said
    assert PASSWORD not in said
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, said


def assert_nothing_lost(place: Place) -> None:
    """With the mistake mended everything arrives, what was written meanwhile included."""
    place.sql("INSERT INTO users VALUES (3, 'c')")
    done = place.run("publish", "--once")
    assert done.returncode == 0, done.stderr
    client = kinesis_client(place.kinesis)
    stream = str(place.config["destination"]["kinesis"]["stream"])
    shard = client.describe_stream(StreamName=stream)["StreamDescription"]["Shards"][0]["ShardId"]
    iterator = client.get_shard_iterator(StreamName=stream, ShardId=shard, ShardIteratorType="TRIM_HORIZON")
    records = client.get_records(ShardIterator=iterator["ShardIterator"])["Records"]
    data = b"\n".join(record["Data"] for record in records)
    for row in (b'[1,"a"]', b'[2,"b"]', b'[3,"c"]'):
        assert row in data
