"""Every type: what arrives is what the source holds, or `upwell plan` has said before that it may not be.

Random and tricky values of all of PostgreSQL's types and of all storage classes of SQLite in all kinds of columns, to
PostgreSQL by Kinesis and to DynamoDB: once as rows that exist, once as changes, once read again. The databases
themselves are asked what they hold. A value that differs, and a row that is missing, must be one that the plan's
warning for its column announced; a missing row is among the dead letters. The snapshot's and the stream's bytes of one
row are the same.
"""

from __future__ import annotations

import json
import operator
import re
import sqlite3
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import psycopg

from lab.parts import REGION
from tests.acceptance.commands import Commands, surroundings
from tests.acceptance.compare import SHOWN_MAX, dynamodb_client, stream_records
from tests.acceptance.everytype import (
    BROKEN_TEXT,
    POSTGRES,
    POSTGRES_SETUP,
    POSTGRES_SOURCE_SETTINGS,
    POSTGRES_TARGET_SETTINGS,
    SQLITE_STRICT_TYPES,
    SQLITE_TYPES,
    SQLITE_VALUES,
    values_of,
)
from tests.acceptance.pipelines import create_stream
from tests.proofs import Figures, Servers


@dataclass(frozen=True)
class Size:
    """How many values of each type, in each of so many rounds; each round has pipelines of its own."""

    values: int
    columns: int  # of a table of PostgreSQL; a row that went missing would take all of them with it
    sqlite_types: Sequence[str]
    ways: Sequence[tuple[str, str]]
    rounds: int = 1
    seed: int = 11


_CROSSWISE = (("postgresql", "kinesis"), ("sqlite", "dynamodb"))
SMALL = Size(values=4, columns=40, sqlite_types=("INTEGER", "VARCHAR(10)", "BLOB", "DATE"), ways=_CROSSWISE)
FULL = Size(
    values=100,
    columns=10,
    sqlite_types=SQLITE_TYPES,
    ways=(*_CROSSWISE, ("postgresql", "dynamodb"), ("sqlite", "kinesis")),
    rounds=1,
)
# Where it does not matter how a column of the source is declared, its output function's words are its value.
_PRINTING = (
    "SET datestyle TO 'ISO'; SET timezone TO 'UTC'; SET intervalstyle TO 'postgres'; SET extra_float_digits TO 1;"
    "SET bytea_output TO 'hex'; SET lc_monetary TO 'C'; SET standard_conforming_strings TO on;"
    "SET array_nulls TO on; SET xmloption TO content"
)
NUMBER_DIGITS_MAX = 38
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?")


@dataclass(frozen=True)
class Told:
    """What `plan` says of a column."""

    type: str
    warning: str | None


@dataclass(frozen=True)
class Plan:
    """What it says of a table."""

    to: str
    columns: dict[str, Told]


@dataclass
class Outcome:
    """What was found on one way."""

    same: int = 0
    announced: Counter[str] = field(default_factory=Counter)  # column → values that differ, or are missing
    wrong: list[str] = field(default_factory=list)

    def judge(self, column: str, told: Told, here: Any, there: Any, *, same: bool) -> None:
        """Counts a value, or finds it wrong."""
        if same:
            self.same += 1
        elif told.warning is not None:
            self.announced[column] += 1
        else:
            self.wrong.append(f"{column} ({told.type}): {_short(here)} became {_short(there)}, and no warning said so")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 120 else text[:110] + "…"


MISSING = "(nothing)"


# --- sources -------------------------------------------------------------------------------------------------------


class PostgresTypes:
    """Tables with a column for each type, in rows that hold as many values as there are."""

    def __init__(self, url: str, size: Size, seed: int) -> None:
        self.url = url
        self.tables: dict[str, dict[str, str]] = {}  # the source's table → its columns but id → how they are declared
        self._connection = psycopg.connect(url, autocommit=True)
        self._run(*POSTGRES_SETUP)
        for name, setting in POSTGRES_SOURCE_SETTINGS.items():
            self._run(f"ALTER DATABASE {self._connection.info.dbname} SET {name} = {setting}")
        self._run(*_PRINTING.split(";"))
        self._sizes: dict[str, int] = {}
        names = list(POSTGRES)
        for first in range(0, len(names), size.columns):
            chosen = names[first : first + size.columns]
            self._create(f"t{first}", {name: self._valid(name, size.values, seed) for name in chosen})
        self._run(
            "CREATE TABLE generated (id int PRIMARY KEY, v int, twice int GENERATED ALWAYS AS (v * 2) STORED)",
            "INSERT INTO generated SELECT i, i * 7 FROM generate_series(1, 3) i",
        )
        self.tables["public.generated"] = {"v": "int"}
        self._sizes["generated"] = 3

    def _run(self, *statements: str) -> None:
        for statement in statements:
            self._connection.execute(statement.encode())

    def _valid(self, name: str, count: int, seed: int) -> list[str | None]:
        """Values of the type, NULL among them; what hypothesis made up may be none: a word too long, say."""
        type_, kept = POSTGRES[name], []
        made = values_of(type_, count, seed + len(name))
        for value in made:
            with suppress(psycopg.DataError):
                self._connection.execute(f"SELECT %s::{type_.declared}".encode(), [value])
                kept.append(value)
        assert len(kept) > len(made) * 0.7, f"only {len(kept)} of {len(made)} values are of the type {name}"
        return [*kept, None]

    def _create(self, table: str, values: dict[str, list[str | None]]) -> None:
        declared = {name: POSTGRES[name].declared for name in values}
        columns = ", ".join(f'"{name}" {type_}' for name, type_ in declared.items())
        self._run(f"CREATE TABLE {table} (id int PRIMARY KEY, {columns})")
        marks = ", ".join(f"%s::{type_}" for type_ in declared.values())
        rows = list(zip_longest(*values.values()))
        with self._connection.transaction(), self._connection.cursor() as cursor:
            insert = f"INSERT INTO {table} VALUES (%s, {marks})".encode()
            cursor.executemany(insert, [[number, *row] for number, row in enumerate(rows, 1)])
        self.tables[f"public.{table}"] = declared
        self._sizes[table] = len(rows)

    def change(self) -> None:
        """The same values as changes: inserted once more, and moved on by one in the rows that were there."""
        for table, size in self._sizes.items():
            names = [f'"{name}"' for name in self.tables[f"public.{table}"]]
            listed, moved = ", ".join(names), f"t.id <= {size} AND o.id = t.id % {size} + 1"
            changes = ", ".join(f"{name} = o.{name}" for name in names)
            self._run(
                f"INSERT INTO {table} (id, {listed}) SELECT id + {size}, {listed} FROM {table}",
                f"UPDATE {table} AS t SET {changes} FROM {table} AS o WHERE {moved}",
            )

    def rows(self, table: str) -> dict[int, dict[str, str | None]]:
        """id → column → the value as its type's output function prints it."""
        return _printed(self._connection, table, self.tables[table])

    def close(self) -> None:
        self._connection.close()


def _printed(
    connection: psycopg.Connection[tuple[Any, ...]], table: str, columns: Collection[str]
) -> dict[int, dict[str, str | None]]:
    # A cast of xml to text gives what is stored, its output function leaves out the declaration.
    texts = ", ".join(
        f'CASE WHEN "{name}" IS DISTINCT FROM NULL THEN CASE WHEN pg_typeof("{name}") = \'xml\'::regtype'
        f' THEN "{name}"::text ELSE format(\'%s\', "{name}") END END'
        for name in columns
    )
    found = connection.execute(f"SELECT id, {texts} FROM {table}".encode())
    return {id_: dict(zip(columns, values, strict=True)) for id_, *values in found}


class SqliteTypes:
    """A table for each declared type, in several kinds of tables."""

    def __init__(self, path: Path, size: Size, seed: int) -> None:
        self.url = f"sqlite:///{path}"
        self.tables: dict[str, dict[str, str]] = {}
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.text_factory = bytes
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = OFF")
        strict = [type_ for type_ in SQLITE_STRICT_TYPES if size.columns == FULL.columns or type_ == "ANY"]
        kinds = [("", size.sqlite_types), ("WITHOUT ROWID", ("TEXT",)), ("STRICT", strict)]
        self._size = 0
        found = values_of(SQLITE_VALUES, size.values * 3, seed)
        for kind, types in kinds:
            for type_ in types:
                name = "".join(c if c.isalnum() else "_" for c in f"{kind}_{type_}")
                self._connection.execute(f'CREATE TABLE "{name}" (id INTEGER PRIMARY KEY, v {type_}) {kind}')
                self.tables[f"main.{name}"] = {"v": type_}
                self._fill(name, found)

    def _fill(self, name: str, values: Sequence[Any]) -> None:
        insert = f'INSERT INTO "{name}" VALUES (?, ?)'
        for number, value in enumerate(values, 1):
            with suppress(sqlite3.IntegrityError):  # STRICT
                self._connection.execute(insert, (number, value))
        with suppress(sqlite3.IntegrityError):
            self._connection.execute(f'INSERT INTO "{name}" VALUES ({len(values) + 1}, {BROKEN_TEXT})')
        self._size = len(values) + 1

    def change(self) -> None:
        for table in self.tables:
            name, size = f'"{table.removeprefix("main.")}"', self._size
            self._connection.execute(f"INSERT INTO {name} (id, v) SELECT id + {size}, v FROM {name}")
            self._connection.execute(
                f"UPDATE {name} AS t SET v = o.v FROM {name} AS o WHERE t.id <= {size} AND o.id = t.id % {size} + 1"
            )

    def rows(self, table: str) -> dict[int, dict[str, Any]]:
        """id → v → the value by its storage class."""
        name = f'"{table.removeprefix("main.")}"'
        found = {}
        for id_, class_, value in self._connection.execute(f"SELECT id, typeof(v), v FROM {name}"):
            found[id_] = {"v": _text_or_broken(value) if class_ == b"text" else value}
        return found

    def close(self) -> None:
        self._connection.close()


@dataclass(frozen=True)
class Broken:
    """Text that is no UTF-8."""

    content: bytes


def _text_or_broken(value: bytes) -> str | Broken:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return Broken(value)


Source = PostgresTypes | SqliteTypes
Look = Callable[[str, Plan, Outcome, Collection[int]], set[int]]  # compares a table, but for rows that were refused


# --- what arrived --------------------------------------------------------------------------------------------------


There = Mapping[int, Mapping[str, Any]]  # id → column → what arrived


def into_postgres(
    target: psycopg.Connection[tuple[Any, ...]],
    source: Source,
    table: str,
    told: Plan,
    outcome: Outcome,
    refused: Collection[int],
) -> set[int]:
    """The same words from both output functions, or the same number, text or bytes. Returns the missing ids.

    Rows that were `refused` may be as they were before.
    """
    here, columns = source.rows(table), source.tables[table]
    there: There
    if isinstance(source, PostgresTypes):
        there, same = _printed(target, told.to, columns), operator.eq
    else:
        # psycopg would read what a json column holds.
        (column,) = columns
        value = "v::text" if told.columns[column].type == "json" else "v"
        found = target.execute(f'SELECT id, {value} FROM "public"."{_last(told.to)}"'.encode())
        there, same = {id_: {"v": value} for id_, value in found}, _same_value
    for id_ in here.keys() & there.keys():
        for name, declared in columns.items():
            one, other = here[id_][name], there[id_][name]
            outcome.judge(f"{table}.{name}", told.columns[name], one, other, same=same(one, other))
            if not (same(one, other) or id_ in refused or declared == "xml" or _same_number(one, other)):
                outcome.wrong.append(f"{table}.{name}: {_short(one)} became {_short(other)}, which no warning allows")
    assert not there.keys() - here.keys(), f"{table}: rows that the source has not"
    return here.keys() - there.keys()


def _last(name: str) -> str:
    return name.rpartition(".")[2].strip('"')


def _same_number(one: Any, other: Any) -> bool:
    """SQLite: a number's text in a column for texts, a text that the target reads as a number: 0x10 is 16 to it."""
    if isinstance(one, str) and isinstance(other, int | float | Decimal):
        return True
    return isinstance(one, int | float) and isinstance(other, str) and float(other) == float(one)


def _same_value(here: Any, there: Any) -> bool:
    if here is None or there is None:
        return here is there
    if isinstance(here, bytes | str):
        return type(there) is type(here) and bool(there == here)
    if isinstance(there, bool) or not isinstance(there, int | float | Decimal):
        return False
    return bool(float(there) == here if isinstance(here, float) else there == here)


def into_dynamodb(
    client: Any, source: Source, table: str, told: Plan, outcome: Outcome, refused: Collection[int]
) -> set[int]:
    """What docs/dynamodb.md promises, in an attribute of the type that the plan names."""
    here, columns = source.rows(table), source.tables[table]
    pages = client.get_paginator("scan").paginate(TableName=told.to, ConsistentRead=True)
    there = {int(i["id"]["N"]): i for page in pages for i in page["Items"] if "_upwell_deleted" not in i}
    for id_ in here.keys() & there.keys():
        for name, declared in columns.items():
            column, value = told.columns[name], here[id_][name]
            found = _attribute(there[id_].get(name), column)
            of_postgres = isinstance(source, PostgresTypes)
            wanted = promised_of_postgres(declared, value, column) if of_postgres else promised_of_sqlite(value, column)
            if wanted != found and declared != "xml" and id_ not in refused:
                outcome.wrong.append(f"{table}.{name}: {_short(value)} is {_short(found)}, and not {_short(wanted)}")
            same = wanted == found and (found is None or found[0] == column.type)
            outcome.judge(f"{table}.{name}", column, value, found, same=same)
    assert not there.keys() - here.keys(), f"{table}: items that the source has not"
    return here.keys() - there.keys()


def _attribute(attribute: dict[str, Any] | None, told: Told) -> Any:
    """(type, value), or None where there is no attribute."""
    if attribute is None:
        return None
    ((type_, value),) = attribute.items()
    if told.type == "M/L":
        return "M/L", _structure(attribute)
    return type_, Decimal(value) if type_ == "N" else value


def _structure(attribute: dict[str, Any]) -> Any:
    ((type_, value),) = attribute.items()
    if type_ == "M":
        return {name: _structure(part) for name, part in value.items()}
    if type_ == "L":
        return [_structure(part) for part in value]
    if type_ == "NULL":
        return None
    return Decimal(value) if type_ == "N" else value


def promised_of_postgres(declared: str, value: str | None, told: Told) -> Any:
    """The attribute for a value as PostgreSQL prints it."""
    if value is None:
        return None
    if told.type == "N":
        if declared == "double precision" and _fits_number(value):
            return "N", Decimal(
                repr(float(value))
            )  # the shortest digits that are this float; PostgreSQL may print more
        return ("N", Decimal(value)) if _fits_number(value) else ("S", value)
    if told.type == "BOOL":
        return "BOOL", value == "t"
    if told.type == "B":
        return "B", bytes.fromhex(value[2:])
    if told.type == "M/L":
        return "M/L", _json(value)
    if declared.startswith("timestamp") and not declared.endswith("[]"):
        value = value.replace(" ", "T", 1).replace("+00", "Z" if "tz" in declared else "+00")
    return "S", value


def promised_of_sqlite(value: Any, told: Told) -> Any:
    """Each class keeps its own type."""
    if value is None:
        return None
    if isinstance(value, int | float):
        found = repr(value).replace("inf", "Infinity")
        if told.type == "M/L":
            return "M/L", _json(found)
        if told.type == "S" and abs(value) > 2**53 and found.lstrip("-").isalnum():
            return "S", found  # beyond what JSON's numbers are sure to hold: a text, on the wire
        return ("N", Decimal(found)) if _fits_number(found) else ("S", found)
    if told.type == "M/L" and isinstance(value, str):
        return "M/L", _json(value)
    if told.type == "N" and isinstance(value, str):  # digits are a number to DynamoDB where numbers are meant
        return ("N", Decimal(value)) if _NUMBER.fullmatch(value) and _fits_number(value) else ("S", value)
    return ("B" if isinstance(value, bytes) else "S"), value


def _fits_number(text: str) -> bool:
    number = Decimal(text) if text.strip() == text else Decimal("NaN")
    if not number.is_finite():
        return False
    digits = "".join(map(str, number.as_tuple().digits)).strip("0")
    return not number or (len(digits) <= NUMBER_DIGITS_MAX and -130 <= number.adjusted() <= 125)


def _json(text: str) -> Any:
    """As docs/dynamodb.md says: the text itself where DynamoDB has nothing like it."""
    try:
        found = json.loads(text, parse_int=_json_number, parse_float=_json_number, parse_constant=_no_constant)
        json.dumps(found, default=str, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return text
    return text if _depth(found) > 31 or _has_nameless(found) else found


def _json_number(text: str) -> Any:
    return Decimal(text) if _fits_number(text) else text


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


def _has_nameless(value: Any) -> bool:
    if isinstance(value, dict):
        return "" in value or any(map(_has_nameless, value.values()))
    return isinstance(value, list) and any(map(_has_nameless, value))


# --- one way -------------------------------------------------------------------------------------------------------


def through(folder: Path, source: Source, configuration: dict[str, Any], look: Look) -> Outcome:
    """Snapshot, changes, and a second snapshot; `look` compares a table and says which ids are missing."""
    upwell = Commands(folder / "upwell.yaml")
    upwell.file.write_text(json.dumps(configuration | {"tables": {_name(table): {} for table in source.tables}}))
    upwell("track")
    told = {entry["table"]: _planned(entry) for entry in json.loads(upwell("plan", "--json"))}
    # None that is generated: PostgreSQL 15's log has it not.
    assert {table: {"id", *columns} for table, columns in source.tables.items()} == {
        table: set(plan.columns) for table, plan in told.items()
    }
    outcome = Outcome()

    def once() -> None:
        upwell("publish", "--once")
        if "subscriber" in configuration:
            upwell("subscribe", "--once")
        letters: dict[str, set[int]] = {table: set() for table in source.tables}
        for letter in json.loads(upwell("dead-letters", "list", "--json")):
            letters[letter["table"]].add(json.loads(letter["key"])[0])
        for table, columns in source.tables.items():
            warned = next((name for name in columns if told[table].columns[name].warning), next(iter(columns)))
            for id_ in look(table, told[table], outcome, letters[table]):
                outcome.judge(f"{table}.{warned}", told[table].columns[warned], f"row {id_}", MISSING, same=False)
                if id_ not in letters[table]:
                    outcome.wrong.append(f"{table}: row {id_} is missing, and no dead letter")
        assert not outcome.wrong, f"{len(outcome.wrong)} wrong:\n" + "\n".join(outcome.wrong[:SHOWN_MAX])

    once()
    source.change()
    once()
    upwell("resync")
    once()
    return outcome


def _planned(entry: dict[str, Any]) -> Plan:
    columns = {c["to"]: Told(c["target_type"], c["warning"]) for c in entry["columns"]}
    return Plan(entry["to"].split("table ", 1)[1], columns)


def _name(table: str) -> str:
    schema, _, name = table.partition(".")
    return f'{schema}."{name}"'


def assert_same_bytes(endpoint: str, stream: str) -> int:
    """Of each row that came both as a change and from a snapshot, the last of each; returns how many."""
    changed: dict[tuple[str, bytes], bytes] = {}
    read: dict[tuple[str, bytes], bytes] = {}
    for record in stream_records(endpoint, stream):
        for line in record.events:
            if not line.startswith(b'["u"'):
                continue
            _, schema, _, _, (id_, *_), hints = json.loads(line)
            row = line[line.index(b",[") + 1 : line.rindex(b',{"was"')]
            (read if hints["was"] == "read" else changed)[schema, id_] = row
    both = changed.keys() & read.keys()
    different = [(changed[key], read[key]) for key in both if changed[key] != read[key]]
    assert not different, f"{len(different)} rows have other bytes in a snapshot: {different[:3]}"
    return len(both)


def run(servers: Servers, folder: Path, size: Size) -> Figures:
    """Every way, so many rounds."""
    outcomes: list[Outcome] = []
    alike = 0
    for number in range(size.rounds):
        for origin, destination in size.ways:
            with ExitStack() as closing_up:
                closing_up.enter_context(surroundings())
                here = folder / f"{number}-{origin}-{destination}"
                here.mkdir()
                source = _source(servers, closing_up, here, origin, size, size.seed + 1000 * number)
                name = f"types-{uuid.uuid4().hex[:8]}"
                configuration: dict[str, Any] = {
                    "pipeline": name,
                    "source": {"url": source.url, "poll_interval": "100ms"},
                }
                prepare = _into_postgres if destination == "kinesis" else _into_dynamodb
                look = prepare(servers, closing_up, name, configuration, source)
                outcomes.append(through(here, source, configuration, look))
                if destination == "kinesis":
                    alike += assert_same_bytes(servers.kinesis, name)
    return _figures(outcomes, alike, size)


def _figures(outcomes: Sequence[Outcome], alike: int, size: Size) -> Figures:
    announced: Counter[str] = sum((outcome.announced for outcome in outcomes), Counter())
    shown = ", ".join(f"{column} {count:,}" for column, count in announced.most_common(9))
    return {
        "types": f"{len(POSTGRES)} of PostgreSQL, {len(size.sqlite_types)} of SQLite and those of STRICT",
        "values compared": f"{sum(outcome.same for outcome in outcomes) + announced.total():,}",
        "identical": f"{sum(outcome.same for outcome in outcomes):,}",
        "different or dead letters, as the plan had warned": f"{announced.total():,} (most: {shown})",
        "different without a warning": "0",
        "rows with the same bytes in snapshot and stream": f"{alike:,} of {alike:,}",
    }


def _source(servers: Servers, closing_up: ExitStack, folder: Path, origin: str, size: Size, seed: int) -> Source:
    source: Source
    if origin == "postgresql":
        (url,) = closing_up.enter_context(servers.databases(1))
        source = PostgresTypes(url, size, seed)
    else:
        source = SqliteTypes(folder / "source.db", size, seed)
    closing_up.callback(source.close)
    return source


def _into_postgres(
    servers: Servers, closing_up: ExitStack, name: str, configuration: dict[str, Any], source: Source
) -> Look:
    create_stream(servers.kinesis, name, 2)
    (url,) = closing_up.enter_context(servers.databases(1))
    with psycopg.connect(url, autocommit=True) as connection:
        for setting, value in POSTGRES_TARGET_SETTINGS.items():
            connection.execute(f"ALTER DATABASE {connection.info.dbname} SET {setting} = {value}".encode())
    kinesis = {"stream": name, "region": REGION, "endpoint_url": servers.kinesis, "lanes": 3}
    configuration |= {"destination": {"kinesis": kinesis}, "subscriber": {"target": url}}
    target = closing_up.enter_context(psycopg.connect(url, autocommit=True))
    target.execute(_PRINTING.encode())
    return partial(into_postgres, target, source)


def _into_dynamodb(
    servers: Servers, closing_up: ExitStack, name: str, configuration: dict[str, Any], source: Source
) -> Look:
    dynamodb = {"region": REGION, "endpoint_url": servers.dynamodb, "table_prefix": f"{name}-"}
    configuration |= {"destination": {"dynamodb": dynamodb}}
    client = dynamodb_client(servers.dynamodb)
    closing_up.callback(client.close)

    def drop() -> None:
        for page in client.get_paginator("list_tables").paginate():
            for table in page["TableNames"]:
                if table.startswith(f"{name}-"):
                    client.delete_table(TableName=table)

    closing_up.callback(drop)

    return partial(into_dynamodb, client, source)
