"""Keys of every kind arrive as they are, none is taken for another, and each row keeps its order.

Keys with quotes, Unicode and 900 characters, parts of composite keys that could be confused, equal keys that look
different, keys of every type that can be one; inserted, changed, swapped, deleted and inserted again, before and beside
the snapshot, from PostgreSQL and SQLite to PostgreSQL by Kinesis and to DynamoDB. What DynamoDB takes as no key becomes
a dead letter that says why.
"""

from __future__ import annotations

import json
import random
import sqlite3
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psycopg

from lab.parts import REGION
from tests.acceptance.commands import Commands, surroundings
from tests.acceptance.compare import SHOWN_MAX, dynamodb_client
from tests.acceptance.pipelines import create_stream
from tests.proofs import Figures, Servers
from upwell.pipeline import incoming


@dataclass(frozen=True)
class Size:
    """How many random changes of each table, in each of so many looks; on which ways."""

    changes: int
    looks: int
    ways: Sequence[tuple[str, str]]
    seed: int = 5


_CROSSWISE = (("postgresql", "kinesis"), ("sqlite", "dynamodb"))
SMALL = Size(changes=25, looks=1, ways=_CROSSWISE)
FULL = Size(changes=150, looks=4, ways=(*_CROSSWISE, ("postgresql", "dynamodb"), ("sqlite", "kinesis")))

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Keyed:
    """A table by its key's columns, and keys of it. Of `alike` the database holds all for equal."""

    columns: Sequence[str]  # their types
    keys: Sequence[Key]
    alike: Sequence[Key] = ()


def _single(type_: str, *values: Any, alike: Sequence[Any] = ()) -> Keyed:
    return Keyed([type_], [(value,) for value in values], [(value,) for value in alike])


_TEXTS = (
    "", "a", "A", "a ", " a", "a|b", "a#b", "a%23b", "'", '"', "\\", "\t\n", "null", "1", "1.0", "[1]", "e\u0301",
    "\u00e9",
    "🙂", "\u202e", "ß", "ss", "x" * 900, "é" * 900, "y" * 900 + "1", "y" * 900 + "2", "%s", "a\u200b",
)  # fmt: skip
_PAIRS = (
    ("a", "b|c"),
    ("a|b", "c"),
    ("a", "b"),
    ("a#", "b"),
    ("a", "#b"),
    ("#", "x"),
    ("%23", "x"),
    ("x", " "),
    ("x ", "x"),
)
_TRIPLES = (
    ("x", "a#b", "c"), ("x", "a", "b#c"), ("x", "a%23b", "c"), ("x", "", "#"), ("x", "#", ""), ("x", "", ""),
    ("x", "%", "#"), ("x", "%25", "#"), ("x", "a\\", "#"),
)  # fmt: skip
POSTGRES: dict[str, Keyed] = {
    "texts": _single("text", *_TEXTS, "k" * 2049, "é" * 1025),
    "pairs": Keyed(["text", "text"], [*_PAIRS, ("", "x"), ("x", ""), ("x", "s" * 1025)]),
    "triples": Keyed(["text", "text", "text"], _TRIPLES),
    "mixed": Keyed(["text", "int"], [("1", 1), ("1", 11), ("11", 1), ("", 1)]),
    "three": Keyed(["int", "text", "int"], [(1, "1#1", 1), (1, "1", 11), (1, "", 0), (1, "-", -1), (1, "1#", 1)]),
    "bigints": _single("bigint", 0, -1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63)),
    "numerics": _single("numeric", "10", "100", "1.5", "-3.25", "NaN", "1e40", "1" * 39, "0.1",
                        alike=("1", "1.0", "1.00")),
    "doubles": _single("float8", "1.5", "1e300", "NaN", "Infinity", "0.1", "5e-324", alike=("0", "-0")),
    "uuids": _single("uuid", *(str(uuid.UUID(int=n)) for n in (0, 1, 2**128 - 1)),
                     alike=("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11")),
    "stamps": _single("timestamptz", "infinity", "-infinity", "0044-03-15 10:00:00 BC", "294276-12-31",
                      alike=("2026-01-31 10:00:00+00", "2026-01-31 11:00:00+01")),
    "dates": _single("date", "2026-01-31", "4713-01-01 BC", "infinity"),
    "bytes": _single("bytea", "\\x", "\\x00", "\\xff", "\\x5c"),
    "booleans": _single("boolean", "t", "f"),
    "citexts": _single("citext", "b", "ß", "é", alike=("MiXed", "mixed", "MIXED")),
    "emails": _single("email", "a@b", "A@b"),
    "moods": _single("mood", "happy", "it's so"),
    "intervals": _single("interval", "1 mon", "-1 day", alike=("1 day", "24:00:00")),
    "chars": _single("char(4)", "", "a b", "B", alike=("a", "a  ")),
    "blanks": _single("bpchar", "", "b", alike=("a", "a  ")),
    "nets": _single("inet", "10.0.0.1", "10.0.0.1/8", "::1"),
    "arrays": _single("int[]", "{}", "{1}", "{1,NULL}", "{{1}}", "[0:0]={1}"),
    "amounts": _single("numeric[]", "{}", "{2}", alike=("{1.0}", "{1.00}")),
    "jsons": _single("jsonb", "null", '"a"', "{}", "[1]", alike=("1.0", "1.00")),
    "ranges": _single("numrange", "empty", "(,)", alike=("[1.0,2)", "[1,2.00)")),
    "bits": _single("varbit", "1", "10", "0"),
}  # fmt: skip
SQLITE: dict[str, Keyed] = {
    "texts": _single("TEXT NOT NULL", *_TEXTS, "a\0b", "a\0c", "\0", "k" * 2049),
    "nocase": _single("TEXT COLLATE NOCASE NOT NULL", "b", "ä", "Ä", alike=("Mixed", "MIXED", "mixed")),
    "trimmed": _single("TEXT COLLATE RTRIM NOT NULL", "b", " a", alike=("a", "a ")),
    "untyped": _single("NOT NULL", "a", "A", "x1", alike=("t", "t")),
    "integers": _single("INTEGER", 0, -1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63)),
    "reals": _single("REAL NOT NULL", 1.5, 1e300, float("inf"), 5e-324, 2.0**60, alike=(0.0, -0.0)),
    "numbers": _single("NUMERIC NOT NULL", 1, 2.5, "10.0", -7, alike=("3", 3)),
    "days": _single("DATE NOT NULL", "2026-01-31", 20260131, 2461071.5),
    "blobs": _single("BLOB NOT NULL", b"", b"\0", b"\xff", b"abc", b"b" * 2049),
    "pairs": Keyed(["TEXT NOT NULL", "TEXT NOT NULL"], [*_PAIRS, ("", "x"), ("x", "")]),
    "triples": Keyed(["TEXT NOT NULL", "TEXT NOT NULL", "TEXT NOT NULL"], _TRIPLES),
    "mixed": Keyed(["TEXT NOT NULL", "INT NOT NULL"], [("1", 1), ("1", 11), ("11", 1)]),
}


# --- sources -------------------------------------------------------------------------------------------------------


class Table:
    """One table under random changes. Each state of a row has a number of its own, so that no two rows look alike."""

    def __init__(self, run: Callable[..., Any], mark: str, name: str, keyed: Keyed, seed: int) -> None:
        self.name = name
        self.keyed = keyed
        self._run, self._mark = run, mark
        self._chance = random.Random(seed)
        self._names = [f"k{n}" for n in range(len(keyed.columns))]
        # What is equal for the database is one place, of which a key is what it looks like at the moment.
        self._places = [*([key] for key in keyed.keys), *([list(keyed.alike)] if keyed.alike else [])]
        self._there: set[int] = set()
        self._state = 0

    def change(self) -> None:
        place = self._chance.randrange(len(self._places))
        if place not in self._there:
            self._insert(place)
            return
        free = [other for other in range(len(self._places)) if other not in self._there]
        match self._chance.choice(["update", "look", "look", "delete", "again", "move", "swap"]):
            case "update":
                self._set(place, None)
            case "look":  # the same key for the database
                self._set(place, self._chance.choice(self._places[place]))
            case "delete":
                self._delete(place)
            case "again":
                self._delete(place)
                self._insert(place)
            case "move" if free:
                self._move(place, self._chance.choice(free))
            case _ if free and len(self._there) > 1:
                other = self._chance.choice(sorted(self._there - {place}))
                for start, end in ((place, free[0]), (other, place), (free[0], other)):
                    self._move(start, end)

    def _insert(self, place: int) -> None:
        key = self._chance.choice(self._places[place])
        marks = ", ".join([*(self._marked(n) for n in range(len(key))), self._mark])
        self._run(f"INSERT INTO {self.name} VALUES ({marks})", [*key, self._next()])
        self._there.add(place)

    def _set(self, place: int, key: Key | None) -> None:
        changes = [] if key is None else [f"{name} = {self._marked(n)}" for n, name in enumerate(self._names)]
        sql = f"UPDATE {self.name} SET {', '.join([*changes, f'state = {self._mark}'])} WHERE {self._where()}"
        self._run(sql, [*(key or ()), self._next(), *self._places[place][0]])

    def _move(self, start: int, end: int) -> None:
        changes = ", ".join(f"{name} = {self._marked(n)}" for n, name in enumerate(self._names))
        sql = f"UPDATE {self.name} SET {changes} WHERE {self._where()}"
        self._run(sql, [*self._chance.choice(self._places[end]), *self._places[start][0]])
        self._there.remove(start)
        self._there.add(end)

    def _delete(self, place: int) -> None:
        self._run(f"DELETE FROM {self.name} WHERE {self._where()}", list(self._places[place][0]))
        self._there.remove(place)

    def _where(self) -> str:
        return " AND ".join(f"{name} = {self._marked(n)}" for n, name in enumerate(self._names))

    def _marked(self, n: int) -> str:
        return self._mark if self._mark == "?" else f"{self._mark}::{self.keyed.columns[n]}"

    def _next(self) -> int:
        self._state += 1
        return self._state


class Source:
    """All tables of a database."""

    def __init__(self, connection: Any, url: str, tables: dict[str, Keyed], seed: int) -> None:
        self.url = url
        self.schema, mark = ("main", "?") if url.startswith("sqlite") else ("public", "%s")
        self._connection = connection
        self.tables: list[Table] = []
        for number, (name, keyed) in enumerate(tables.items()):
            columns = ", ".join(f"k{n} {type_}" for n, type_ in enumerate(keyed.columns))
            key = ", ".join(f"k{n}" for n in range(len(keyed.columns)))
            self._run(f"CREATE TABLE {name} ({columns}, state bigint, PRIMARY KEY ({key}))")
            self.tables.append(Table(self._run, mark, name, keyed, seed + number))

    def _run(self, sql: str, values: Sequence[Any] = ()) -> None:
        self._connection.execute(sql, values)

    def change(self, count: int) -> None:
        for table in self.tables:
            for _ in range(count):
                table.change()

    def rows(self, table: Table) -> list[tuple[Any, ...]]:
        """(state, key column, …), as the driver reads them."""
        keys = ", ".join(f"k{n}" for n in range(len(table.keyed.columns)))
        found: list[tuple[Any, ...]] = self._connection.execute(f"SELECT state, {keys} FROM {table.name}").fetchall()
        return found


# --- one way -------------------------------------------------------------------------------------------------------


@dataclass
class Found:
    """What was compared."""

    rows: int = 0
    letters: int = 0


def through(
    folder: Path,
    source: Source,
    configuration: dict[str, Any],
    states: Callable[[str], list[int]],
    size: Size,
    why: Why,
) -> Found:
    """Changes before the snapshot and after it; `states` reads the destination, `why` tells what it can't take."""
    upwell = Commands(folder / "upwell.yaml")
    tables: dict[str, Any] = {f"{source.schema}.{table.name}": {} for table in source.tables}
    upwell.file.write_text(json.dumps(configuration | {"tables": tables}))
    upwell("track")
    planned = {entry["table"]: entry["to"].split("table ", 1)[1] for entry in json.loads(upwell("plan", "--json"))}
    found = Found()
    for look in range(size.looks + 1):
        source.change(size.changes)
        upwell("publish", "--once")
        if "subscriber" in configuration:
            # Each record by itself: what stands in two lanes in the wrong order does harm.
            with patch.object(incoming, "BATCH_BYTES_MAX", 1):
                upwell("subscribe", "--once")
        letters = json.loads(upwell("dead-letters", "list", "--json"))
        reasons = {(letter["table"], letter["reason"]) for letter in letters}
        wrong = []
        for table in source.tables:
            name = f"{source.schema}.{table.name}"
            here = source.rows(table)
            unfit = [state for state, *key in here if why(key) is not None]
            for _, *key in here:
                clue = why(key)
                if clue is not None and not any(clue in reason for of, reason in reasons if of == name):
                    wrong.append(f"{name}: no dead letter says {clue!r}")
            wanted, there = sorted({state for state, *_ in here} - set(unfit)), sorted(states(planned[name]))
            if wanted != there:
                lost, more = set(wanted) - set(there), set(there) - set(wanted)
                wrong.append(f"{name}, look {look}: lost {[r for r in here if r[0] in lost]}, stale {sorted(more)}")
            found.rows += len(wanted)
            found.letters += len(unfit)
        assert not wrong, "\n".join(wrong[:SHOWN_MAX])
    return found


Why = Callable[[Sequence[Any]], str | None]


def no_key_of_dynamodb(key: Sequence[Any]) -> str | None:
    """What the dead letter of such a key says; None where DynamoDB takes it."""
    first, *rest = key
    for value, most in ((first, 2048), *((value, 1024) for value in rest if len(rest) == 1)):
        if isinstance(value, float | Decimal):
            number = Decimal(repr(value)) if isinstance(value, float) else value
            digits = "" if not number.is_finite() else "".join(map(str, number.as_tuple().digits)).strip("0")
            if not number.is_finite() or len(digits) > 38 or (number and not -130 <= number.adjusted() <= 125):
                return "is not of the type N"
            continue
        content = value.encode() if isinstance(value, str) else value
        if isinstance(content, bytes | memoryview):
            if not len(content):
                return "is empty"
            if len(content) > most:
                return "has more than"
    return None


def no_text_of_postgresql(key: Sequence[Any]) -> str | None:
    """SQLite's text may hold a NUL."""
    return "NUL" if any(isinstance(value, str) and "\0" in value for value in key) else None


def run(servers: Servers, folder: Path, size: Size) -> Figures:
    """Every way of the size."""
    rows = letters = tables = 0
    for origin, destination in size.ways:
        with ExitStack() as closing_up:
            closing_up.enter_context(surroundings())
            here = folder / f"{origin}-{destination}"
            here.mkdir()
            source = _source(servers, closing_up, here, origin, size.seed)
            name = f"keys-{uuid.uuid4().hex[:8]}"
            configuration: dict[str, Any] = {"pipeline": name, "source": {"url": source.url, "poll_interval": "100ms"}}
            prepare = _into_postgres if destination == "kinesis" else _into_dynamodb
            states = prepare(servers, closing_up, name, configuration)
            why = no_key_of_dynamodb if destination == "dynamodb" else no_text_of_postgresql
            found = through(here, source, configuration, states, size, why)
            rows, letters, tables = rows + found.rows, letters + found.letters, tables + len(source.tables)
    return {
        "kinds of keys": f"{len(POSTGRES)} in PostgreSQL, {len(SQLITE)} in SQLite",
        "random changes of keys and rows": f"{tables * size.changes * (size.looks + 1):,}",
        "rows compared": f"{rows:,}",
        "lost, doubled or stale": "0",
        "rows whose key the destination can't have: a dead letter with the reason": f"{letters:,}",
    }


def _source(servers: Servers, closing_up: ExitStack, folder: Path, origin: str, seed: int) -> Source:
    if origin == "sqlite":
        path = folder / "source.db"
        lite = sqlite3.connect(path, isolation_level=None)
        closing_up.callback(lite.close)
        lite.execute("PRAGMA journal_mode = WAL")
        lite.execute("PRAGMA synchronous = OFF")
        return Source(lite, f"sqlite:///{path}", SQLITE, seed)
    (url,) = closing_up.enter_context(servers.databases(1))
    connection = closing_up.enter_context(psycopg.connect(url, autocommit=True))
    for statement in (
        "SET timezone TO 'UTC'",
        "CREATE EXTENSION citext",
        "CREATE TYPE mood AS ENUM ('happy', 'it''s so')",
        "CREATE DOMAIN email AS text CHECK (VALUE LIKE '%@%')",
    ):
        connection.execute(statement.encode())
    return Source(_AsText(connection), url, POSTGRES, seed)


class _AsText:
    """psycopg reads some of PostgreSQL's dates as an error: keys are read as text but where numbers and bytes count."""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        self._connection = connection
        for type_ in ("date", "timestamptz", "interval", "numrange", "inet", "jsonb", "uuid"):
            connection.adapters.register_loader(type_, psycopg.types.string.TextLoader)

    def execute(self, sql: str, values: Sequence[Any] = ()) -> Any:
        return self._connection.execute(sql.encode(), values or None)


def _into_postgres(
    servers: Servers, closing_up: ExitStack, name: str, configuration: dict[str, Any]
) -> Callable[[str], list[int]]:
    create_stream(servers.kinesis, name, 2)
    (url,) = closing_up.enter_context(servers.databases(1))
    kinesis = {"stream": name, "region": REGION, "endpoint_url": servers.kinesis, "lanes": 5}
    configuration |= {"destination": {"kinesis": kinesis}, "subscriber": {"target": url}}
    target = closing_up.enter_context(psycopg.connect(url, autocommit=True))
    return lambda told: [state for (state,) in target.execute(f"SELECT state FROM {told}".encode())]


def _into_dynamodb(
    servers: Servers, closing_up: ExitStack, name: str, configuration: dict[str, Any]
) -> Callable[[str], list[int]]:
    dynamodb = {"region": REGION, "endpoint_url": servers.dynamodb, "table_prefix": f"{name}-"}
    configuration |= {"destination": {"dynamodb": dynamodb}}
    client = dynamodb_client(servers.dynamodb)
    closing_up.callback(client.close)

    def states(told: str) -> list[int]:
        pages = client.get_paginator("scan").paginate(TableName=told, ConsistentRead=True)
        items = [item for page in pages for item in page["Items"] if "_upwell_deleted" not in item]
        return [int(item["state"]["N"]) for item in items]

    return states
