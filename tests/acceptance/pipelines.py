"""Pipelines of real processes: `upwell publish` and `upwell subscribe` as a user starts them, to be killed at will."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psycopg

from lab.parts import ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY
from tests.acceptance.compare import (
    DynamoDbRows,
    PostgresRows,
    Rows,
    SqliteRows,
    SqlServerRows,
    await_equal,
    differences,
    dynamodb_client,
    kinesis_client,
    shown,
)
from tests.acceptance.workload import KEYS, Workload, dialect_of
from upwell.model import TablePhase
from upwell.state.sqlite import SqliteState

Role = Literal["publish", "subscribe"]

UPWELL = (str(Path(sys.executable).with_name("upwell")),)


def with_changes(statement: str) -> tuple[str, ...]:
    """The same, but for what a statement changes first."""
    return (sys.executable, "-c", f"from upwell.app.cli import main; {statement}; main()")


# One wait would make each test with a gap or a kill before a sweep a minute longer: for writes to DynamoDB that a
# killed publisher left behind. They take milliseconds here.
IMPATIENT = with_changes("from upwell.pipeline import publisher; publisher.SWEEP_AFTER_START_S = 1")
# A busy machine may take long; what hangs is seen all the same.
COMMAND_S = 90.0
EQUAL_S = 60.0
# The promise for SIGTERM.
STOP_S = 10.0
_LOG_TAIL_BYTES = 3_000
_LOGS_SHOWN = 6


class Program:
    """One run of a command that goes on until it is told to stop."""

    def __init__(self, command: Sequence[str], log: Path, environ: dict[str, str]) -> None:
        self.log = log
        self.started_at = time.monotonic()
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environ,
                cwd=log.parent,
            )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def await_words(self) -> None:
        """It has read its configuration, which may be changed for others from now on."""
        deadline = time.monotonic() + COMMAND_S
        while not self.log.stat().st_size:
            assert time.monotonic() < deadline, f"{self.log.name} says nothing"
            time.sleep(0.02)

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """As a power cut would. It must have been running: one that ended by itself is a failure."""
        code = self._process.poll()
        assert code is None, f"{self.log.name} had ended by itself with {code}"
        self._process.kill()
        self._process.wait(COMMAND_S)

    def wait(self, within_s: float) -> int:
        """The exit code; negative: the signal that ended it."""
        try:
            return self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.log.name} was still running after {within_s:.0f} s") from None

    def stop(self) -> None:
        """SIGTERM: it must end with 0 in time."""
        self.send(signal.SIGTERM)
        code = self.wait(STOP_S)
        assert code == 0, f"{self.log.name} ended with {code} when it was told to stop"

    def discard(self) -> None:
        """The end of a test, however it went."""
        if self.running:
            self._process.kill()
            self._process.wait(COMMAND_S)


@dataclass
class Pipeline:
    """A configured pipeline with a source of its own and a destination of its own."""

    folder: Path
    name: str
    configuration: dict[str, Any]
    source: Rows
    target: Rows
    source_url: str  # for the workload: postgresql://… or a path
    target_url: str = ""  # of a PostgreSQL target
    target_items: tuple[str, str] | None = None  # of a subscriber's target in DynamoDB: the endpoint, the prefix
    environ: dict[str, str] = field(default_factory=dict)
    upwell: Sequence[str] = UPWELL
    programs: list[Program] = field(default_factory=list)
    workloads: list[Workload] = field(default_factory=list)

    def workload(self, seed: int) -> Workload:
        """One more writer, with keys of its own."""
        self.workloads.append(Workload(self.source_url, seed, len(self.workloads)))
        return self.workloads[-1]

    @property
    def file(self) -> Path:
        return self.folder / "upwell.yaml"

    @property
    def state_file(self) -> Path:
        return self.folder / "upwell-state.db"

    @property
    def tables(self) -> Sequence[str]:
        return tuple(self.configuration["tables"])

    @property
    def subscribed(self) -> bool:
        """Whether a subscriber belongs to it."""
        return "subscriber" in self.configuration

    def write_configuration(self) -> None:
        self.file.write_text(json.dumps(self.configuration, indent=1))  # JSON is YAML

    def lead_through(self, url: str) -> None:
        """What starts from now on reaches its destination at this URL; tests still look at it directly."""
        for name in {"kinesis", "dynamodb"} & self.configuration["destination"].keys():
            self.configuration["destination"][name]["endpoint_url"] = url
        self.write_configuration()

    def start(self, role: Role, *options: str, failpoint: str = "") -> Program:
        """A service, or with `--once` a run that ends by itself. `failpoint`: where it is to be killed."""
        environ = {**os.environ, **self.environ}
        if failpoint:
            environ["UPWELL_FAILPOINT"] = failpoint
        log = self.folder / f"{len(self.programs):02}-{role}.log"
        program = Program([*self.upwell, role, "-c", str(self.file), *options], log, environ)
        self.programs.append(program)
        return program

    @contextmanager
    def running(self) -> Iterator[list[Program]]:
        """All its services run during the block; they are told to stop at its end, and obey."""
        roles: list[Role] = ["publish", "subscribe"] if self.subscribed else ["publish"]
        programs = [self.start(role) for role in roles]
        try:
            yield programs
            for program in programs:
                program.stop()
        finally:
            for program in programs:
                program.discard()

    def once(self, role: Role, within_s: float = COMMAND_S) -> None:
        """`upwell publish --once` or `upwell subscribe --once`, which must succeed."""
        program = self.start(role, "--once")
        code = program.wait(within_s)
        assert code == 0, f"upwell {role} --once ended with {code}"

    def run(self, *arguments: str) -> str:
        """Another command, which must succeed; its standard output."""
        done = subprocess.run(
            [*self.upwell, *arguments, "-c", str(self.file)],
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            env={**os.environ, **self.environ},
            cwd=self.folder,
            check=False,
        )
        assert done.returncode == 0, f"upwell {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}"
        return done.stdout

    def once_through(self) -> None:
        """Everything committed by now goes the whole way, and nothing runs afterwards."""
        self.once("publish")
        if self.subscribed:
            self.once("subscribe")

    def assert_equal(self) -> None:
        """Now, without waiting."""
        found = differences(self.source, self.target, self.tables)
        assert not found, f"{len(found)} rows are wrong:\n{shown(found)}"

    def await_equal(self, within_s: float = EQUAL_S) -> None:
        """While the programs run, which none of them may leave off."""
        running = [program for program in self.programs if program.running]

        def check() -> None:
            ended = [program.log.name for program in running if not program.running]
            assert not ended, f"ended while others waited for it: {', '.join(ended)}"

        await_equal(self.source, self.target, self.tables, within_s=within_s, check=check)

    def dead_letters(self) -> list[str]:
        """What was put aside on either side: table, key, reason."""
        letters = []
        if self.state_file.exists():
            with closing(sqlite3.connect(self.state_file)) as state:
                letters += state.execute("SELECT tbl, key, reason FROM dead_letter").fetchall()
        if self.target_url:
            with psycopg.connect(self.target_url) as target:
                letters += target.execute('SELECT "table", key, reason FROM upwell.dead_letter').fetchall()
        if self.target_items:
            kept = own_items(*self.target_items, "upwell_dead_letters")
            letters += [tuple(item[name]["S"] for name in ("table", "key", "reason")) for item in kept]
        return [" ".join(letter) for letter in letters]

    def assert_no_dead_letters(self) -> None:
        letters = self.dead_letters()
        assert not letters, f"{len(letters)} dead letters:\n{shown(letters)}"

    def assert_no_holes(self) -> None:
        """A loss on the way would have been repaired, and so would not show in the rows."""
        if self.target_url:
            with psycopg.connect(self.target_url) as target:
                holes = target.execute("SELECT reason FROM upwell.repair_request").fetchall()
            assert not holes, f"records were lost: {holes[0][0]}"
        if self.target_items:
            repairs = [
                item["reason"]["S"]
                for item in own_items(*self.target_items, "upwell_lanes")
                if "/repair/" in item["id"]["S"]
            ]
            assert not repairs, f"records were lost: {repairs[0]}"

    def state(self) -> SqliteState:
        """The publisher's state file, as the command line uses it."""
        return SqliteState(str(self.state_file), self.name)

    def ask_for_resync(self, table: str | None = None) -> None:
        """What `upwell resync` does, without the time that a command takes to start."""
        state = self.state()
        state.add_request(table, "a test asked")
        state.release()

    def resyncs(self) -> dict[str, int]:
        """table → its newest resync that is over, as the publisher has saved it; 0 while one is under way."""
        state = self.state()
        checkpoint = state.load()
        state.release()
        assert checkpoint is not None, "the publisher has saved nothing yet"
        return {
            name: 0 if table.wanted or table.phase is not TablePhase.STREAM else table.resync
            for name, table in checkpoint.tables.items()
        }

    def await_resyncs(self, before: Mapping[str, int], tables: Collection[str] | None = None) -> None:
        """Returns when newer resyncs of these tables, or of all, are over at the publisher."""
        deadline = time.monotonic() + EQUAL_S
        while True:
            now = self.resyncs()
            if all(now[name] > before[name] for name in tables or before):
                return
            assert time.monotonic() < deadline, f"no newer resyncs after {EQUAL_S:.0f} s: {before}, now {now}"
            time.sleep(0.1)

    def await_begun(self, table: str) -> None:
        """Returns when a resync of the table is under way."""
        deadline = time.monotonic() + EQUAL_S
        while self.resyncs()[table]:
            assert time.monotonic() < deadline, f"no resync of {table} has begun after {EQUAL_S:.0f} s"
            time.sleep(0.02)

    def close(self) -> None:
        for program in self.programs:
            program.discard()
        for workload in self.workloads:
            workload.close()
        self.source.close()
        self.target.close()

    def last_words(self) -> str:
        """What the programs that ran last had to say."""
        parts = []
        for program in self.programs[-_LOGS_SHOWN:]:
            words = program.log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
            parts.append(f"--- {program.log.name}\n{words}")
        return "\n".join(parts)


@contextmanager
def explained(pipeline: Pipeline, seed: int | None = None) -> Iterator[None]:
    """A failure inside tells what the programs said."""
    try:
        yield
    except BaseException as error:
        if seed is not None:
            error.add_note(f"UPWELL_TEST_SEED={seed}")
        error.add_note(pipeline.last_words())
        raise


def new_seed() -> int:
    """Another one each time; UPWELL_TEST_SEED repeats a run as far as processes can repeat."""
    given = os.environ.get("UPWELL_TEST_SEED")
    return int(given) if given else random.SystemRandom().randrange(2**32)


_FOR_LOCAL_SERVERS = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY_ID,
    "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
    "AWS_DEFAULT_REGION": REGION,
    # Of the two ODBC drivers that mssql-python brings, the one that needs no libltdl on the machine.
    "MSSQL_PYTHON_NATIVE_PROVIDER": os.environ.get("MSSQL_PYTHON_NATIVE_PROVIDER", "mssql-odbc"),
}


def through_kinesis(
    folder: Path,
    *,
    source_url: str,
    target_url: str,
    kinesis_endpoint: str,
    shards: int = 4,
    keys: Mapping[str, Sequence[str]] = KEYS,
) -> Pipeline:
    """Any source → a new Kinesis stream → PostgreSQL. `keys`: the tables, each with the columns of its key."""
    name = f"acc-{uuid.uuid4().hex[:10]}"
    create_stream(kinesis_endpoint, name, shards)
    kinesis = {"stream": name, "region": REGION, "endpoint_url": kinesis_endpoint}
    configuration = {
        "pipeline": name,
        "source": {"url": _url(source_url), "poll_interval": "200ms"},
        "destination": {"kinesis": kinesis},
        "subscriber": {"target": target_url},
        "tables": {table: {} for table in keys},
    }
    pipeline = Pipeline(
        folder,
        name,
        configuration,
        _rows(source_url, keys),
        PostgresRows(target_url, keys),
        source_url,
        target_url,
        environ=dict(_FOR_LOCAL_SERVERS),
    )
    pipeline.write_configuration()
    return pipeline


def through_kinesis_into_dynamodb(
    folder: Path,
    *,
    source_url: str,
    kinesis_endpoint: str,
    dynamodb_endpoint: str,
    shards: int = 4,
    keys: Mapping[str, Sequence[str]] = KEYS,
) -> Pipeline:
    """Any source → a new Kinesis stream → DynamoDB tables with a prefix of their own. `keys`: as above."""
    pipeline = through_kinesis(
        folder, source_url=source_url, target_url="", kinesis_endpoint=kinesis_endpoint, shards=shards, keys=keys
    )
    prefix = f"{pipeline.name}-"
    pipeline.configuration["subscriber"]["target"] = f"dynamodb://{prefix}"
    pipeline.target = DynamoDbRows(dynamodb_endpoint, prefix, keys)
    pipeline.target_items = dynamodb_endpoint, prefix
    pipeline.environ["AWS_ENDPOINT_URL_DYNAMODB"] = dynamodb_endpoint
    pipeline.write_configuration()
    return pipeline


def own_items(endpoint: str, prefix: str, table: str) -> list[dict[str, Any]]:
    """What upwell keeps for itself in a table of DynamoDB; nothing where that is not there."""
    with closing(dynamodb_client(endpoint)) as client:
        try:
            pages = client.get_paginator("scan").paginate(TableName=prefix + table, ConsistentRead=True)
            return [item for page in pages for item in page["Items"]]
        except client.exceptions.ResourceNotFoundException:
            return []


def into_dynamodb(
    folder: Path, *, source_url: str, dynamodb_endpoint: str, keys: Mapping[str, Sequence[str]] = KEYS
) -> Pipeline:
    """Any source → DynamoDB tables with a prefix of their own. `keys`: as above."""
    name = f"acc-{uuid.uuid4().hex[:10]}"
    prefix = f"{name}-"
    dynamodb = {"region": REGION, "endpoint_url": dynamodb_endpoint, "table_prefix": prefix}
    configuration = {
        "pipeline": name,
        "source": {"url": _url(source_url), "poll_interval": "200ms"},
        "destination": {"dynamodb": dynamodb},
        "tables": {table: {} for table in keys},
    }
    pipeline = Pipeline(
        folder,
        name,
        configuration,
        _rows(source_url, keys),
        DynamoDbRows(dynamodb_endpoint, prefix, keys),
        source_url,
        environ=dict(_FOR_LOCAL_SERVERS),
        upwell=IMPATIENT,
    )
    pipeline.write_configuration()
    return pipeline


def _url(source: str) -> str:
    return f"sqlite:///{source}" if dialect_of(source) == "sqlite" else source


def _rows(source: str, keys: Mapping[str, Sequence[str]]) -> Rows:
    kinds: dict[str, Callable[[str, Mapping[str, Sequence[str]]], Rows]] = {
        "postgresql": PostgresRows,
        "sqlite": SqliteRows,
        "sqlserver": SqlServerRows,
    }
    return kinds[dialect_of(source)](source, keys)


def create_stream(endpoint: str, name: str, shards: int) -> None:
    client = kinesis_client(endpoint)
    client.create_stream(StreamName=name, ShardCount=shards)
    client.get_waiter("stream_exists").wait(StreamName=name, WaiterConfig={"Delay": 1})
