"""Whatever tables, columns, schemas, constraints and labels are called: everything is carried, nothing is injected.

Hostile names (quotes, semicolons, comments, brackets, backslashes, placeholders, control characters, all of Unicode,
reserved words, names of upwell's own) as tables and columns of PostgreSQL and of SQLite, to PostgreSQL by Kinesis and
to DynamoDB, through `init`, `plan`, `doctor`, `track`, `publish`, `subscribe`, `status`, `resync`, `verify`,
`dead-letters` and `track --undo`. A canary table, and the list of all tables, stay as they are in source, target and
state.
"""

from __future__ import annotations

import json
import random
import sqlite3
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import yaml
from boto3.dynamodb.types import TypeDeserializer

from lab.parts import REGION
from tests.acceptance.commands import Commands, surroundings
from tests.acceptance.compare import dynamodb_client
from tests.acceptance.pipelines import create_stream
from tests.proofs import Figures, Servers
from upwell.model import TableName


@dataclass(frozen=True)
class Size:
    """How many names; each is that of a table and of a column, in both sources."""

    names: int
    ways: tuple[tuple[str, str], ...]
    seed: int = 7


SMALL = Size(names=16, ways=(("postgresql", "kinesis"), ("sqlite", "dynamodb")))
FULL = Size(names=500, ways=(*SMALL.ways, ("postgresql", "dynamodb"), ("sqlite", "kinesis")))

_NAME_BYTES_MAX = 63  # PostgreSQL's
# A small size has the first of them: of each kind one, and those that once broke something.
_WHOLE = (
    "'; DROP TABLE canary; --",
    "excluded",
    "pragma_table_list",
    "rowid",
    "upwell_0",
    "pg_create_logical_replication_slot",
    "\x1b[2J\x07 terminal",
    "{} {0} {name} {{}}",
    "%s %d %% %(name)s",
    "line\nfeed\tand tab\r",
    "\u202eright to left אבג",
    "what? *every*thing",
    "back\\slash\\",
    "a.b.c",
    "👩‍👩‍👧‍👦 family",
    'quote"quote',
    '"; DROP TABLE canary; --',
    "semi;colon",
    "-- comment",
    "/* comment */",
    "*/ end",
    ":name $1 ?",
    "select",
    "Robert'); DROP TABLE canary;--",
    "[brackets] (and) <others>",
    "cafe\u0301",  # the accent is a character of its own
    "caf\u00e9",
    "zero\u200bwidth\ufeff",
    "Case",
    "case",
    "upwell",
    "7 begins with a digit",
    " blanks around ",
    "$(touch pwned) `id` && ls | cat > x",
    "${HOME} ~",
    "#hash",
    "€" * 21,  # 63 bytes
    "comma, equals=sign",
    "dollar$$quote$$",
    "E'\\x41'",
    'U&"\\0041"',
    "order",
    "user",
    "table",
    "null",
    "oid",
    "_rowid_",
    "pg_class",
    "pragma_table_xinfo",
    "new",
    "t",
    "s",
    "e",
    "key",
    "row",
    "undefined",
    "-leading-dash",
    "--help",
    "a_x0020_b",
    "\u017ftraße",
    "\u212aelvin",
    "Ä",
    "ä",
    "İstanbul",
    "\x7f\x80\x9f",
    "\u2028separator\u2029",
    "\ue000private\U0010ffff",
    "&amp;<script>alert(1)</script>",
    "null byte \\0",
    "x' OR '1'='1",
    "]]>",
    "::text",
    "ctid, xmin",
    "@user",
    "a/b\\c:d",
    "=1+1",
    "%00%0a",
    "\u0661\u0662\u0663",
    "name AS other",
    "*",
    "?",
)
_PARTS = (
    *('"', "'", ";", "--", "/*", "*/", "\\", "%s", "{}", "{a}", ":a", "$1", "\n", "\t", ".", "[", "]", "(", ")", "`"),
    *(" ", "\u202e", "\u0301", "\u200b", "🙂", "é", "DROP TABLE canary", "_upwell", "${X}", "#", ",", "=", "A", "a"),
)


def hostile_names(count: int, seed: int) -> list[str]:
    """Different names of at most 63 bytes; also to SQLite, for which the case of ASCII's letters is none."""
    chance = random.Random(seed)
    names = list(_WHOLE)
    while len(names) < count:
        name = "".join(chance.choices(_PARTS, k=chance.randint(2, 9)))
        names += [name] if name not in names and len(name.encode()) <= _NAME_BYTES_MAX else []
    return names[:count]


# --- the sources ---------------------------------------------------------------------------------------------------


@dataclass
class HostileTable:
    """A table with hostile names, and what it holds."""

    name: TableName
    columns: list[str]
    key: list[str]
    unique: str  # the unique index's name
    check: str  # the constraint's
    rows: list[list[str]] = field(default_factory=list)


def tables_of(names: Sequence[str], schemas: Sequence[str]) -> list[HostileTable]:
    """Each name is once a table's and once a column's; keys have one, two and three columns."""
    tables = []
    for n, name in enumerate(names):
        keys = n % 3 + 1
        columns = [names[(n + step) % len(names)] for step in range(keys + 2)]
        columns = [c for i, c in enumerate(columns) if _folded(c) not in map(_folded, columns[:i])]
        while len(columns) < keys + 2:
            columns.append(f"more {len(columns)}")
        made = HostileTable(
            TableName(schemas[n % len(schemas)], name),
            columns,
            columns[:keys],
            f"{names[-n - 1]}"[:10] + f" i{n}",
            f"{names[-n]}"[:10] + f" c{n}",
        )
        short = name.encode()[: _NAME_BYTES_MAX - 1].decode(errors="ignore")  # an enum's labels have 63 bytes, too
        made.rows = [[f"{value}{i}" for i in range(len(columns))] for value in (f"r{n}", short, "'\"; --")]
        tables.append(made)
    return tables


def _folded(name: str) -> bytes:
    return name.encode().lower()  # ASCII's letters alone, as SQLite does


def _sql(*parts: str) -> str:
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts if part)


class PostgresPlace:
    """A PostgreSQL database that holds them."""

    def __init__(self, url: str, tables: Sequence[HostileTable]) -> None:
        self.url = url
        self._connection = psycopg.connect(url, autocommit=True)
        self.run("CREATE TABLE canary (id int PRIMARY KEY, v text); INSERT INTO canary VALUES (1, 'sings')")
        for schema in sorted({table.name.schema for table in tables} - {"public"}):
            self.run(f"CREATE SCHEMA {_sql(schema)}")
        for table in tables:
            self._create(table)

    def run(self, script: str) -> None:
        self._connection.execute(script.encode())

    def _create(self, table: HostileTable) -> None:
        name, last = _sql(*table.name), table.columns[-1]
        mood = _sql(table.name.schema, f"mood {table.unique}")
        labels = ", ".join("'" + row[-1].replace("'", "''") + "'" for row in table.rows)
        self.run(f"CREATE TYPE {mood} AS ENUM ({labels}, 'changed')")
        columns = [f"{_sql(column)} {'text' if column != last else mood}" for column in table.columns]
        key = ", ".join(map(_sql, table.key))
        self.run(
            f"CREATE TABLE {name} ({', '.join(columns)}, PRIMARY KEY ({key}),"
            f" CONSTRAINT {_sql(table.check)} CHECK ({_sql(table.key[0])} <> 'never'));"
            f"CREATE UNIQUE INDEX {_sql(table.unique)} ON {name} ({_sql(table.columns[-2])})"
        )
        for row in table.rows:
            self.insert(table, row)

    def insert(self, table: HostileTable, row: Sequence[str]) -> None:
        marks = ", ".join(["%s"] * len(row))
        sql = f"INSERT INTO {_sql(*table.name).replace('%', '%%')} VALUES ({marks})"
        self._connection.execute(sql.encode(), list(row))

    def everything(self) -> list[Any]:
        """All that could have been injected into: every table outside the system's own, and the canary."""
        found = self._connection.execute(
            "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'upwell')"
        ).fetchall()
        return [sorted(found), self._connection.execute("SELECT * FROM canary").fetchall()]

    def rows(self, table: TableName) -> list[dict[str, str]]:
        cursor = self._connection.execute(f"SELECT * FROM {_sql(*table)}".encode())
        names = [column.name for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    def carry_out(self, printed: str) -> None:
        """What `track --dry-run` printed, but for the slot, which a script of several statements may not make."""
        script, _, _ = printed.rpartition("SELECT pg_create_logical_replication_slot(")
        self.run(script)

    def close(self) -> None:
        self._connection.close()


class SqlitePlace:
    """An SQLite file that holds them."""

    def __init__(self, path: Path, tables: Sequence[HostileTable]) -> None:
        self.url = f"sqlite:///{path}"
        self._connection = sqlite3.connect(path, isolation_level=None)
        self.run("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF")
        self.run("CREATE TABLE canary (id INTEGER PRIMARY KEY, v TEXT); INSERT INTO canary VALUES (1, 'sings')")
        for table in tables:
            self._create(table)

    def run(self, script: str) -> None:
        self._connection.executescript(script)

    def _create(self, table: HostileTable) -> None:
        name = _sql(table.name.name)
        columns = ", ".join(f"{_sql(column)} TEXT NOT NULL" for column in table.columns)
        key = ", ".join(map(_sql, table.key))
        self._connection.execute(
            f"CREATE TABLE {name} ({columns}, PRIMARY KEY ({key}),"
            f" CONSTRAINT {_sql(table.check)} CHECK ({_sql(table.key[0])} <> 'never'))"
        )
        self._connection.execute(f"CREATE UNIQUE INDEX {_sql(table.unique)} ON {name} ({_sql(table.columns[-2])})")
        # An expression, whose SQL goes into the triggers.
        self._connection.execute(
            f"CREATE UNIQUE INDEX {_sql(table.unique + ' e')} ON {name} (lower({_sql(table.columns[-2])}))"
        )
        for row in table.rows:
            self.insert(table, row)

    def insert(self, table: HostileTable, row: Sequence[str]) -> None:
        marks = ", ".join("?" * len(row))
        self._connection.execute(f"INSERT INTO {_sql(table.name.name)} VALUES ({marks})", row)

    def everything(self) -> list[Any]:
        found = self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        tables = sorted(name for (name,) in found if not name.startswith(("_upwell_", "sqlite_")))
        return [tables, self._connection.execute("SELECT * FROM canary").fetchall()]

    def rows(self, table: TableName) -> list[dict[str, str]]:
        cursor = self._connection.execute(f"SELECT * FROM {_sql(table.name)}")
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    def carry_out(self, printed: str) -> None:
        self.run(printed)

    def close(self) -> None:
        self._connection.close()


Place = PostgresPlace | SqlitePlace


def change(place: Place, table: HostileTable, dialect: str) -> None:
    """One row is changed, one gets another key, one goes, one comes, and two swap a unique value."""
    name = _sql(*table.name) if dialect == "postgresql" else _sql(table.name.name)
    key, value = _sql(table.key[0]), _sql(table.columns[-2])
    first, second, third = ("'" + row[0].replace("'", "''") + "'" for row in table.rows)
    place.run(f"UPDATE {name} SET {value} = 'changed' WHERE {key} = {first}")
    place.run(f"UPDATE {name} SET {key} = 'moved' WHERE {key} = {second}")
    place.run(f"DELETE FROM {name} WHERE {key} = {third}")
    place.insert(table, [*(f"new {i}" for i in range(len(table.columns) - 1)), "changed"])
    swapped = "'" + table.rows[1][-2].replace("'", "''") + "'"
    for new, where in (("'between'", first), ("'changed'", "'moved'"), (swapped, first)):
        place.run(f"UPDATE {name} SET {value} = {new} WHERE {key} = {where}")


# --- the destinations ----------------------------------------------------------------------------------------------


class PostgresEnd:
    """Where rows arrive by Kinesis."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        self._connection.execute("CREATE TABLE canary (id int PRIMARY KEY, v text)")
        self._connection.execute("INSERT INTO canary VALUES (1, 'sings')")

    def rows(self, told: str) -> list[dict[str, str]]:
        """`told`: where `plan` said that the rows go."""
        cursor = self._connection.execute(f"SELECT * FROM {_sql(*TableName.parse(told))}".encode())
        names = [column.name for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    def everything(self) -> list[Any]:
        found = self._connection.execute(
            "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'upwell')"
        ).fetchall()
        own = self._connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'upwell'").fetchone()
        return [sorted(found), own, self._connection.execute("SELECT * FROM canary").fetchall()]

    def make_unique(self, told: str, column: str) -> None:
        """As it is in the source, also by an expression: rows that swap such a value make way for each other."""
        table = _sql(*TableName.parse(told))
        for what in (_sql(column), f"(lower({_sql(column)}))"):
            self._connection.execute(f"CREATE UNIQUE INDEX ON {table} ({what})".encode())

    def refuse(self, told: str, column: str) -> None:
        """The table takes one value no more."""
        check = f"ADD CONSTRAINT \"'; -- %s\" CHECK ({_sql(column)} <> 'poison')"
        self._connection.execute(f"ALTER TABLE {_sql(*TableName.parse(told))} {check}".encode())

    def close(self) -> None:
        self._connection.close()


class DynamoDbEnd:
    """Where rows arrive as items."""

    def __init__(self, endpoint: str, prefix: str) -> None:
        self._client = dynamodb_client(endpoint)
        self._prefix = prefix

    def rows(self, told: str) -> list[dict[str, str]]:
        plain = TypeDeserializer().deserialize
        items = self._client.scan(TableName=told, ConsistentRead=True)["Items"]
        return [
            {name: plain(value) for name, value in item.items() if not name.startswith("_upwell_")}
            for item in items
            if "_upwell_deleted" not in item
        ]

    def everything(self) -> list[Any]:
        pages = self._client.get_paginator("list_tables").paginate()
        return [sorted(n for page in pages for n in page["TableNames"] if n.startswith(self._prefix))]

    def close(self) -> None:
        for name in self.everything()[0]:
            self._client.delete_table(TableName=name)
        self._client.close()


End = PostgresEnd | DynamoDbEnd


# --- a pipeline ----------------------------------------------------------------------------------------------------


def carry(
    folder: Path, place: Place, end: End, tables: Sequence[HostileTable], configuration: dict[str, Any]
) -> Commands:
    """Every command, and every kind of change, on one way."""
    dialect = "postgresql" if isinstance(place, PostgresPlace) else "sqlite"
    upwell = Commands(folder / "upwell.yaml")
    before = place.everything()
    by_init = Commands(folder / "init.yaml")
    by_init("init", place.url)
    known = {str(table.name): table for table in tables}
    written = yaml.safe_load(by_init.file.read_text())["tables"]
    assert set(written) - {str(TableName(tables[0].name.schema, "canary")), "public.canary"} == set(known)
    upwell.file.write_text(json.dumps(configuration | {"tables": {name: {} for name in known}}))

    place.carry_out(upwell("track", "--dry-run"))
    upwell("track")
    assert upwell("track") == ""
    planned = {entry["table"]: entry for entry in json.loads(upwell("plan", "--json"))}
    assert set(planned) == set(known)
    told = {name: entry["to"].split("table ", 1)[1] for name, entry in planned.items()}
    for name, table in known.items():
        assert [column["to"] for column in planned[name]["columns"]] == table.columns
    upwell("plan")
    upwell("doctor")
    json.loads(upwell("doctor", "--json"))

    def through() -> None:
        upwell("publish", "--once")
        if isinstance(end, PostgresEnd):
            upwell("subscribe", "--once")

    def compare() -> None:
        for name, table in known.items():
            here, there = place.rows(table.name), end.rows(told[name])
            assert _sorted(here) == _sorted(there), f"{name} became {told[name]}: {here}, {there}"

    through()
    compare()
    made = end.everything()
    if isinstance(end, PostgresEnd):
        for name, table in known.items():
            end.make_unique(told[name], table.columns[-2])
    for table in tables:
        change(place, table, dialect)
    poison = poisoned(place, end, known, told)
    through()
    put_aside(place, poison, upwell)
    compare()
    upwell("resync", *known)
    through()
    compare()
    assert json.loads(upwell("dead-letters", "list", "--json")) == []
    verified = upwell("verify", *known).splitlines()
    assert len(verified) == len(known)
    assert all(line.endswith(" rows, equal") for line in verified), verified
    status = json.loads(upwell("status", "--json"))
    assert set(status["tables"]) == set(known)
    upwell("status")
    place.carry_out(upwell("track", "--undo", "--dry-run")) if dialect == "sqlite" else upwell("track", "--undo")
    assert upwell("track", "--undo") == ""
    assert place.everything() == before, "the source is another than before"
    assert end.everything() == made, "the destination has got or lost tables"
    assert state_tables(folder / "upwell-state.db") == state_tables(None), "the state has got or lost tables"
    return upwell


@dataclass(frozen=True)
class Poison:
    """A row that the destination refuses."""

    table: HostileTable
    row: list[str]


def poisoned(place: Place, end: End, known: Mapping[str, HostileTable], told: Mapping[str, str]) -> Poison:
    """One more row, which has an empty key; PostgreSQL refuses it for a constraint with a hostile name."""
    name, table = next((name, table) for name, table in known.items() if len(table.key) == 1)
    poison = Poison(table, ["", *["poison"] * (len(table.columns) - 2), "changed"])
    if isinstance(end, PostgresEnd):
        end.refuse(told[name], table.columns[-2])
    place.insert(table, poison.row)
    return poison


def put_aside(place: Place, poison: Poison, upwell: Commands) -> None:
    """It is listed and shown; when the row has gone, the letter is replayed."""
    (letter,) = json.loads(upwell("dead-letters", "list", "--json"))
    assert letter["table"] == str(poison.table.name)
    upwell("dead-letters", "list")
    (event,) = json.loads(upwell("dead-letters", "show", letter["id"]))["events"]
    assert event["values"] == dict(zip(poison.table.columns, poison.row, strict=True))
    name = poison.table.name if isinstance(place, PostgresPlace) else TableName("", poison.table.name.name)
    place.run(f"DELETE FROM {_sql(*name)} WHERE {_sql(poison.table.key[0])} = ''")
    upwell("dead-letters", "replay", letter["id"])


def _sorted(rows: Sequence[Mapping[str, str]]) -> list[list[tuple[str, str]]]:
    return sorted(sorted(row.items()) for row in rows)


def state_tables(file: Path | None) -> list[str]:
    """The tables of a state file; of none, those of a new one."""
    from upwell.state.sqlite import _TABLES

    with closing(sqlite3.connect(file or ":memory:")) as state:
        for statement in _TABLES if file is None else ():
            state.execute(statement)
        found = state.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'")
        return sorted(name for (name,) in found)


def run(servers: Servers, folder: Path, size: Size) -> Figures:
    """Every way of the size, one after the other."""
    names = hostile_names(size.names, size.seed)
    commands = tables = columns = 0
    for source, destination in size.ways:
        with ExitStack() as closing_up:
            closing_up.enter_context(surroundings())
            here = folder / f"{source}-{destination}"
            here.mkdir()
            # Case makes no difference to SQLite, and DynamoDB Local has no two tables that differ by it alone.
            alike = source == "sqlite" or destination == "dynamodb"
            wanted = list({_folded(name): name for name in names}.values()) if alike else names
            hostile, place = _source(servers, closing_up, here, source, wanted)
            end, configuration = _destination(servers, closing_up, place, destination)
            commands += carry(here, place, end, hostile, configuration).count
            tables += len(hostile)
            columns += sum(len(table.columns) for table in hostile)
    return {
        "hostile names": str(len(names)),
        "tables carried": str(tables),
        "columns carried": str(columns),
        "commands run": str(commands),
        "injected": "0",
        "lost or changed rows": "0",
    }


def _source(
    servers: Servers, closing_up: ExitStack, folder: Path, source: str, names: Sequence[str]
) -> tuple[list[HostileTable], Place]:
    place: Place
    if source == "postgresql":
        schemas = ["public", 'sche"ma; --', "%s.{}", "\u202eschema '"]
        tables = tables_of(names, schemas)
        (url,) = closing_up.enter_context(servers.databases(1))
        place = PostgresPlace(url, tables)
    else:
        tables = tables_of(names, ["main"])
        place = SqlitePlace(folder / "sou'rce.db", tables)
    closing_up.callback(place.close)
    return tables, place


def _destination(servers: Servers, closing_up: ExitStack, place: Place, destination: str) -> tuple[End, dict[str, Any]]:
    name = f"names-{uuid.uuid4().hex[:8]}"
    configuration: dict[str, Any] = {
        "pipeline": name,
        "source": {"url": place.url.replace("${", "$${"), "poll_interval": "100ms"},
        "state": "upwell-state.db",
    }
    end: End
    if destination == "kinesis":
        create_stream(servers.kinesis, name, 2)
        (url,) = closing_up.enter_context(servers.databases(1))
        kinesis = {"stream": name, "region": REGION, "endpoint_url": servers.kinesis, "lanes": 3}
        configuration |= {"destination": {"kinesis": kinesis}, "subscriber": {"target": url}}
        end = PostgresEnd(url)
    else:
        dynamodb = {"region": REGION, "endpoint_url": servers.dynamodb, "table_prefix": f"{name}-"}
        configuration |= {"destination": {"dynamodb": dynamodb}}
        end = DynamoDbEnd(servers.dynamodb, f"{name}-")
    closing_up.callback(end.close)
    return end, configuration
