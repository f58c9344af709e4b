"""The lab starts, answers, and leaves nothing behind, however it ends."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import psutil
import psycopg
import pytest

from lab import fetch, find, part
from lab.parts import (
    DynamoDbLocal,
    Kinesalite,
    PartFailed,
    PartMissing,
    PostgresCluster,
    PostgresServer,
    StandinKinesis,
)

ROOT = Path(__file__).resolve().parents[2]
END_S = 20.0


def client(service: str, url: str) -> Any:
    return boto3.client(
        service, region_name="eu-west-1", endpoint_url=url, aws_access_key_id="test", aws_secret_access_key="test"
    )


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + END_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


class RunningLab:
    """`python -m lab up --json` with a TMPDIR of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lab", "up", "--json"],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.endpoints = json.loads(self.process.stdout.readline())
        self.descendants = psutil.Process(self.process.pid).children(recursive=True)

    def leaves_nothing(self) -> bool:
        return not any(process.is_running() for process in self.descendants) and not list(self.folder.iterdir())


@pytest.fixture
def lab() -> Iterator[RunningLab]:
    # Not under pytest's folder: the system user that runs PostgreSQL may not enter that.
    folder = Path("/tmp", f"upwell-test-lab-{os.getpid()}-{time.monotonic_ns()}")  # noqa: S108 - a new name each time
    folder.mkdir(mode=0o755)
    running = RunningLab(folder)
    yield running
    running.process.kill()
    running.process.communicate()
    assert eventually(running.leaves_nothing)
    folder.rmdir()


def test_it_prints_endpoints_that_answer(lab: RunningLab) -> None:
    server = PostgresServer(lab.endpoints["postgres"])
    with server.connect() as connection:
        assert connection.execute("SHOW wal_level").fetchone() == ("logical",)
    assert client("kinesis", lab.endpoints["kinesis"]).list_streams()["StreamNames"] == []
    assert client("dynamodb", lab.endpoints["dynamodb"]).list_tables()["TableNames"] == []
    assert client("kinesis", lab.endpoints["standin_kinesis"]).list_streams()["StreamNames"] == []
    assert client("dynamodb", lab.endpoints["standin_dynamodb"]).list_tables()["TableNames"] == []
    assert client("kinesis", lab.endpoints["kinesis_faults"]).list_streams()["StreamNames"] == []
    assert client("dynamodb", lab.endpoints["dynamodb_faults"]).list_tables()["TableNames"] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_ends_every_server_before_itself(lab: RunningLab, number: signal.Signals) -> None:
    assert len(lab.descendants) >= 10  # five servers, each with its leash
    lab.process.send_signal(number)
    assert lab.process.wait(END_S) == 0
    assert lab.leaves_nothing()


def test_killed_it_leaves_no_orphan(lab: RunningLab) -> None:
    lab.process.kill()
    lab.process.wait(END_S)
    assert eventually(lab.leaves_nothing)


def test_a_server_that_dies_ends_it_with_a_message(lab: RunningLab) -> None:
    (dynamodb,) = [process for process in lab.descendants if name_of(process) == "java"]
    dynamodb.kill()
    _, errors = lab.process.communicate(timeout=END_S)
    assert lab.process.returncode == 1
    assert "dynamodb died" in errors
    assert lab.leaves_nothing()


def name_of(process: psutil.Process) -> str | None:
    try:
        return process.name()
    except psutil.NoSuchProcess:  # one of PostgreSQL's that served a single connection
        return None


class TestPostgresCluster:
    def test_it_takes_settings_and_keeps_its_data_over_a_crash_and_a_restart(self) -> None:
        with PostgresCluster({"max_connections": 17, "cluster_name": "it's mine"}) as cluster:
            url = cluster.create_database("kept")
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("CREATE TABLE t AS SELECT 1 AS one")
            cluster.stop("immediate")
            assert not cluster.running
            cluster.start()
            cluster.restart()
            assert cluster.url("kept") == url
            with cluster.connect("kept") as connection:
                assert connection.execute("SELECT one FROM t").fetchone() == (1,)
                assert connection.execute("SHOW max_connections").fetchone() == ("17",)
                assert connection.execute("SHOW cluster_name").fetchone() == ("it's mine",)

    def test_a_given_data_folder_outlives_it(self) -> None:
        data = Path("/tmp", f"upwell-test-data-{os.getpid()}-{time.monotonic_ns()}")  # noqa: S108 - new each time
        try:
            with PostgresCluster(data_dir=data) as first:
                first.create_database("kept")
            with PostgresCluster(data_dir=data) as second, second.connect("kept"):
                pass
        finally:
            shutil.rmtree(data)

    def test_the_password_is_checked(self, postgres_cluster: PostgresServer) -> None:
        wrong = postgres_cluster.url().replace("upwell:", "upwell:not")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(wrong)

    def test_a_wrong_setting_fails_with_the_servers_own_words(self) -> None:
        with pytest.raises(PartFailed, match="no_such_setting"), PostgresCluster({"no_such_setting": 1}):
            pass

    def test_the_wheel_that_the_demo_uses_serves_too(self) -> None:
        bundled = find.bundled_postgres_bin()
        assert bundled is not None
        with PostgresCluster(bin_dir=bundled) as cluster, cluster.connect() as connection:
            version = connection.execute("SHOW server_version_num").fetchone()
            assert version is not None
            assert int(version[0]) >= 180000


def test_a_database_is_dropped_with_its_slots_and_sessions(postgres_cluster: PostgresServer, database: str) -> None:
    other = f"{database}_other"
    postgres_cluster.create_database(other)
    with postgres_cluster.connect(other) as held, postgres_cluster.connect() as observer:
        held.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [other])
        postgres_cluster.drop_database(other)
        left = observer.execute("SELECT count(*) FROM pg_replication_slots WHERE database = %s", [other]).fetchone()
        assert left == (0,)
        with pytest.raises(psycopg.OperationalError):
            held.execute("SELECT 1")


def test_kinesis_keeps_streams_over_a_crash_when_durable() -> None:
    with Kinesalite(durable=True) as kinesis:
        client("kinesis", kinesis.url).create_stream(StreamName="kept", ShardCount=1)
        kinesis.kill()
        kinesis.start()
        assert client("kinesis", kinesis.url).list_streams()["StreamNames"] == ["kept"]


def test_dynamodb_keeps_tables_over_a_restart_when_durable() -> None:
    with DynamoDbLocal(durable=True) as dynamodb:
        client("dynamodb", dynamodb.url).create_table(
            TableName="kept",
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            BillingMode="PAY_PER_REQUEST",
        )
        dynamodb.restart()
        assert client("dynamodb", dynamodb.url).list_tables()["TableNames"] == ["kept"]


@pytest.mark.parametrize("make", [Kinesalite, DynamoDbLocal, StandinKinesis, PostgresCluster])
def test_a_port_taken_by_another_is_exchanged(make: type[part.Part], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((part.LOOPBACK, 0)) as taken:
        ports = iter([taken.getsockname()[1], part.free_port()])
        monkeypatch.setattr(part, "free_port", lambda: next(ports))
        with answering_nothing(taken), make() as server:
            assert server.port != taken.getsockname()[1]


class answering_nothing:  # noqa: N801 - used like a function
    """Hangs up on everyone, as a stranger's server might: else a caller would wait for its answer."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            while True:
                self._listener.accept()[0].close()
        except OSError:
            pass  # shut down below

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()


def test_a_missing_part_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(PartMissing, match="default-jre-headless"):
        find.java()
    with pytest.raises(PartMissing, match="nodejs npm"):
        find.node()
    monkeypatch.setenv("UPWELL_LAB_POSTGRES_BIN", str(tmp_path))
    with pytest.raises(PartMissing, match="apt-get install postgresql"):
        find.system_postgres_bin()
    monkeypatch.setattr(find, "KINESALITE", find.PARTS / "absent")
    with pytest.raises(PartMissing, match="make parts"):
        find.kinesalite()


def test_an_archive_is_told_by_its_hash(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    known = "sha512-z4PhNX7vuL3xVChQ1m2AB9Yg5AULVxXcg/SpIdNs6c5H0NE8XYXysP+DGNKHfuwvY7kxvUdBeoGlODJ6+SfaPg=="
    assert fetch.integrity(empty) == known
