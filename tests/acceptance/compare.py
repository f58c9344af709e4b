"""Source and target by value, and a watch on what a reader of the target sees.

Rows are read by other means than upwell's own: psycopg, sqlite3 and boto3.
"""

from __future__ import annotations

import json
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import boto3
import psycopg
from boto3.dynamodb.types import Binary, TypeDeserializer
from botocore.config import Config
from psycopg.rows import dict_row

from lab.parts import ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY
from tests.acceptance.sqlserver_client import SqlServerConnection
from tests.acceptance.workload import KEYS, TABLES, Key

Row = Mapping[str, Any]
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[T ]")
# Named in a message before it says how many more there are.
SHOWN_MAX = 12


class Rows(Protocol):
    """Where rows can be read, as key → column → value. NULL is an absent column; a table that is not there is empty."""

    def rows(self, table: str) -> dict[Key, Row]: ...
    def states(self, table: str) -> dict[Key, int]: ...
    def close(self) -> None: ...


class PostgresRows:
    """A PostgreSQL database."""

    def __init__(self, url: str, keys: Mapping[str, Sequence[str]] = KEYS) -> None:
        self._url = url
        self._keys = keys
        self._watching: psycopg.Connection[tuple[Any, ...]] | None = None

    def rows(self, table: str) -> dict[Key, Row]:
        with psycopg.connect(self._url, row_factory=dict_row) as connection:
            try:
                found = connection.execute(f"SELECT * FROM {table}").fetchall()
            except psycopg.errors.UndefinedTable:
                return {}
        return _keyed(found, self._keys[table])

    def states(self, table: str) -> dict[Key, int]:
        if self._watching is None:
            self._watching = psycopg.connect(self._url, autocommit=True)
        columns = ", ".join(self._keys[table])
        try:
            return {row[1:]: row[0] for row in self._watching.execute(f"SELECT state, {columns} FROM {table}")}
        except psycopg.errors.UndefinedTable:
            return {}
        except psycopg.OperationalError:
            self._watching = None
            raise

    def close(self) -> None:
        if self._watching is not None:
            self._watching.close()


class SqliteRows:
    """An SQLite file."""

    def __init__(self, path: str, keys: Mapping[str, Sequence[str]] = KEYS) -> None:
        self._path = path
        self._keys = keys

    def rows(self, table: str) -> dict[Key, Row]:
        with closing(sqlite3.connect(self._path)) as connection:
            connection.row_factory = sqlite3.Row
            found = [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]
        return _keyed(found, self._keys[table])

    def states(self, table: str) -> dict[Key, int]:
        return {key: row["state"] for key, row in self.rows(table).items()}

    def close(self) -> None:
        pass


class SqlServerRows:
    """A SQL Server database."""

    def __init__(self, url: str, keys: Mapping[str, Sequence[str]] = KEYS) -> None:
        self._url = url
        self._keys = keys

    def rows(self, table: str) -> dict[Key, Row]:
        with closing(SqlServerConnection(self._url)) as connection:
            cursor = connection.execute(f"SELECT * FROM {table}")
            names = [column[0] for column in cursor.description]
            found = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        return _keyed(found, self._keys[table])

    def states(self, table: str) -> dict[Key, int]:
        return {key: row["state"] for key, row in self.rows(table).items()}

    def close(self) -> None:
        pass


class DynamoDbRows:
    """DynamoDB tables with a prefix, one for each source table; tombstones are no rows."""

    def __init__(self, endpoint: str, prefix: str, keys: Mapping[str, Sequence[str]] = KEYS) -> None:
        self._client = dynamodb_client(endpoint)
        self._prefix = prefix
        self._keys = keys

    def rows(self, table: str) -> dict[Key, Row]:
        plain = TypeDeserializer().deserialize
        scan = self._client.get_paginator("scan").paginate(TableName=self._prefix + table, ConsistentRead=True)
        try:
            items = [item for page in scan for item in page["Items"] if "_upwell_deleted" not in item]
        except self._client.exceptions.ResourceNotFoundException:
            return {}
        found = [{name: plain(item[name]) for name in item if not name.startswith("_upwell_")} for item in items]
        return _keyed(found, self._keys[table])

    def states(self, table: str) -> dict[Key, int]:
        return {key: row["state"] for key, row in self.rows(table).items()}

    def close(self) -> None:
        self._client.close()


@dataclass(frozen=True)
class StreamRecord:
    """A packed record as it lies in a stream."""

    shard: str
    sequence: str
    lane: int
    term: int
    seq: int
    events: list[bytes]  # their lines


def stream_records(endpoint: str, stream: str) -> list[StreamRecord]:
    """All of a stream's records, shard by shard, in order."""
    found = []
    with closing(kinesis_client(endpoint)) as client:
        for shard in client.list_shards(StreamName=stream)["Shards"]:
            place = {"StreamName": stream, "ShardId": shard["ShardId"], "ShardIteratorType": "TRIM_HORIZON"}
            iterator = client.get_shard_iterator(**place)["ShardIterator"]
            while iterator:
                answer = client.get_records(ShardIterator=iterator, Limit=1000)
                found += [_stream_record(shard["ShardId"], record) for record in answer["Records"]]
                iterator = answer.get("NextShardIterator") if answer["Records"] else None
    return found


def _stream_record(shard: str, record: Mapping[str, Any]) -> StreamRecord:
    header_line, *lines = record["Data"].splitlines()
    header = json.loads(header_line)
    events = [line for line in lines if not line.startswith(b'["m"')]
    return StreamRecord(shard, record["SequenceNumber"], header["lane"], header["term"], header["seq"], events)


def dynamodb_client(endpoint: str, **options: Any) -> Any:
    """boto3's own client, as a second opinion on what upwell's wrote. `options`: of botocore's Config."""
    return _client("dynamodb", endpoint, options)


def kinesis_client(endpoint: str, **options: Any) -> Any:
    """boto3's own client. `options`: of botocore's Config."""
    return _client("kinesis", endpoint, options)


def _client(service: str, endpoint: str, options: Mapping[str, Any]) -> Any:
    host = str(urlsplit(endpoint).hostname)
    if host.endswith(".amazonaws.com"):  # service.region.amazonaws.com, with the keys that every AWS tool would find
        place = {"region_name": host.split(".")[1]}
    else:
        place = {
            "region_name": REGION,
            "aws_access_key_id": ACCESS_KEY_ID,
            "aws_secret_access_key": SECRET_ACCESS_KEY,
        }
    return boto3.client(service, endpoint_url=endpoint, config=Config(**options), **place)


def _keyed(found: Sequence[Row], key: Sequence[str]) -> dict[Key, Row]:
    rows: dict[Key, Row] = {}
    for row in found:
        plain = {name: _plain(value) for name, value in row.items() if value is not None}
        rows[tuple(plain[name] for name in key)] = plain
    assert len(rows) == len(found), "two rows with one key"
    return rows


def _plain(value: Any) -> Any:
    """Values of the drivers in a form that compares across them: a number is a number."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Decimal(repr(value))
    if isinstance(value, memoryview | Binary):
        return bytes(value)
    if isinstance(value, str) and _MOMENT.match(value):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return value


def differences(source: Rows, target: Rows, tables: Sequence[str]) -> list[str]:
    """A sentence for each row that is missing, that is too many or that has a wrong value in the target."""
    found = []
    for table in tables:
        there, here = target.rows(table), source.rows(table)
        for key in sorted(here.keys() | there.keys(), key=repr):
            difference = _difference(here.get(key), there.get(key))
            if difference:
                found.append(f"{table} {key}: {difference}")
    return found


def _difference(here: Row | None, there: Row | None) -> str:
    if here is None:
        return f"should be gone, has state {(there or {}).get('state')}"
    if there is None:
        return f"is missing, has state {here.get('state')}"
    wrong = [name for name in here.keys() | there.keys() if not _same(here.get(name), there.get(name))]
    states = f"source has state {here.get('state')}, target {there.get('state')}"
    return f"{', '.join(sorted(wrong))} differs; {states}" if wrong else ""


def _same(here: Any, there: Any) -> bool:
    if isinstance(here, Decimal) and isinstance(there, str):  # beyond DynamoDB's numbers: the digits as text
        return here == Decimal(there)
    return bool(here == there)


def shown(sentences: Sequence[str]) -> str:
    """The first of many sentences, for a message."""
    more = f"\n… and {len(sentences) - SHOWN_MAX} more" if len(sentences) > SHOWN_MAX else ""
    return "\n".join(sentences[:SHOWN_MAX]) + more


def await_equal(
    source: Rows, target: Rows, tables: Sequence[str], *, within_s: float, check: Callable[[], None]
) -> None:
    """Returns when source and target are equal. `check` raises where waiting makes no sense any more."""
    deadline = time.monotonic() + within_s
    while True:
        check()
        found = differences(source, target, tables)
        if not found:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"{len(found)} rows are wrong after {within_s:.0f} s:\n{shown(found)}")
        time.sleep(0.1)


@dataclass
class Watch:
    """A thread that reads the target over and over: a row's state may only rise.

    One that was gone must come back with a higher state, except in the tables `making_way`: where a row holds a
    unique value that another one is about to get, it may be gone for a moment and come back as it was.
    """

    target: Rows
    tables: Sequence[str] = TABLES
    making_way: Sequence[str] = ()
    pause_s: float = 0.01
    restarts: bool = False  # the target may go away, and comes back
    reads: int = 0
    changes_seen: int = 0
    _went_back: list[str] = field(default_factory=list)
    _seen: dict[tuple[str, Key], tuple[int, bool]] = field(default_factory=dict)  # (last state, there when last read)
    _error: BaseException | None = None
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(30)
        if error is None:
            assert self._error is None, f"the watch failed: {self._error!r}"
            assert self.reads > 0, "the watch read nothing"
            assert not self._went_back, f"{len(self._went_back)} times back in time:\n{shown(self._went_back)}"

    def _run(self) -> None:
        try:
            while not self._stop.wait(self.pause_s):
                with suppress(psycopg.OperationalError) if self.restarts else nullcontext():
                    for table in self.tables:
                        self._look(table, self.target.states(table))
                    self.reads += 1
        except BaseException as error:
            self._error = error

    def _look(self, table: str, states: dict[Key, int]) -> None:
        for (other, key), (state, there) in self._seen.items():
            if other == table and there and key not in states:
                self._seen[other, key] = state, False
        for key, state in states.items():
            before, there = self._seen.get((table, key), (-1, True))
            self.changes_seen += state != before
            if state < before or (state == before and not there and table not in self.making_way):
                how = "" if there else ", after it was gone"
                at = datetime.now(UTC).isoformat()
                self._went_back.append(f"{table} {key}: from state {before} to {state}{how}, seen at {at}")
            self._seen[table, key] = state, True
