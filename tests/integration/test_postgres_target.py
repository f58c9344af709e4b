"""PostgresTarget where only a real PostgreSQL can tell: types, constraints, rights, failures, concurrency."""

import json
import random
import string
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import orjson
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lab.part import LOOPBACK, free_port
from lab.parts import PostgresServer
from tests.contract.target_contract import PIPELINE, USERS, in_threads, put, upsert
from upwell.errors import OperatorError, Rejected, TransientError, UniqueConflict, UpwellError
from upwell.model import Column, DeadLetter, Kind, TableName, TableSchema, Value
from upwell.ports import Request, TargetTransaction
from upwell.sources.postgres_types import column_type, unescape
from upwell.targets import postgres_session
from upwell.targets.postgres import PostgresTarget
from upwell.targets.postgres_refusals import SUSPECTED_FOR

SLOW = settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking would make hundreds of tables more
)


@pytest.fixture
def url(database: str, postgres_cluster: PostgresServer) -> str:
    return postgres_cluster.url(database)


@pytest.fixture
def target(url: str) -> Iterator[PostgresTarget]:
    target = PostgresTarget(url, create_tables=True, schema_changes="apply")
    yield target
    target.close()


@pytest.fixture
def sql(url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def table(name: str, *columns: tuple[str, str, Kind], key: Sequence[str] = ("id",)) -> TableSchema:
    return TableSchema(f"public.{name}", tuple(Column(*column) for column in columns), tuple(key), "postgresql")


# ---- types ----

JSON_TEXT = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_characters="\0", codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("k"), inner, max_size=1),
    max_leaves=5,
).map(json.dumps)
TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=40) | st.text(
    "\\\t\n\r,N.\"'", max_size=9
)
NUMERIC = st.decimals(allow_nan=True, allow_infinity=False).map(str).map(lambda text: text.replace("sNaN", "NaN")) | (
    st.integers(-(10**60), 10**60).map(str)
)
WORDS = st.sampled_from
STRATEGIES: dict[str, st.SearchStrategy[str]] = {
    "smallint": st.integers(-(2**15), 2**15 - 1).map(str),
    "integer": st.integers(-(2**31), 2**31 - 1).map(str),
    "bigint": st.integers(-(2**63), 2**63 - 1).map(str),
    "numeric": NUMERIC.filter(lambda text: "N" not in text or text in ("NaN",)).filter(lambda text: len(text) < 900),
    "numeric(12,4)": st.decimals(-(10**7), 10**7, places=4).map(str),
    "real": st.floats(width=32).map(repr),
    "double precision": st.floats().map(repr),
    "boolean": WORDS(["true", "false"]),
    "text": TEXT,
    "character varying(60)": TEXT,
    "character(50)": TEXT,
    '"char"': st.sampled_from([*string.printable.replace("\\", "")]),
    "name": st.text(string.ascii_letters + "'\"\\ ", max_size=20),
    "bytea": st.binary(max_size=60).map(lambda data: "\\x" + data.hex()),
    "date": WORDS(["2026-01-31", "0044-03-15 BC", "infinity", "-infinity", "5874897-12-31", "4713-01-01 BC"])
    | st.dates().map(str),
    "time without time zone": WORDS(["00:00:00", "24:00:00"]) | st.times().map(str),
    "time(3) with time zone": WORDS(["10:00:00.123+02", "24:00:00-15:59"]),
    "timestamp without time zone": WORDS(
        ["infinity", "-infinity", "0044-03-15 10:00:00 BC", "294276-12-31 23:59:59.999999", "4713-01-01 00:00:00 BC"]
    )
    | st.datetimes().map(str),
    "timestamp(2) without time zone": st.datetimes().map(str),
    "timestamp with time zone": WORDS(
        ["infinity", "-infinity", "0044-03-15 10:00:00.5+00 BC", "294276-12-31 23:59:59.999999+00", "12026-01-31+05"]
    )
    | st.datetimes().map(lambda moment: f"{moment}+00"),
    "interval": WORDS(
        ["1 year -2 mons +3 days -04:05:06.789", "-178000000 years", "00:00:00.000001", "1 mon", "30 days"]
    ),
    "interval day to second(3)": WORDS(["3 days 04:05:06.789", "-1 day"]),
    "uuid": st.uuids().map(str),
    "json": JSON_TEXT | WORDS([' { "b" : 1.00,\n "a":1, "a" : 2 } ', "1.0"]),
    "jsonb": JSON_TEXT,
    "inet": WORDS(["10.0.0.1", "10.0.0.0/8", "::1", "fe80::1/64"]),
    "cidr": WORDS(["10.0.0.0/8", "2001:db8::/32"]),
    "macaddr": WORDS(["08:00:2b:01:02:03"]),
    "bit(5)": st.text("01", min_size=5, max_size=5),
    "bit varying": st.text("01", max_size=70),
    "money": WORDS(["-12.34", "92233720368547758.07", "0"]),
    "point": WORDS(["(1.5,-2e300)", "(NaN,Infinity)"]),
    "int4range": WORDS(["empty", "[1,5)", "(,7)", "[3,)", "(,)"]),
    "numrange": WORDS(["[1.10,2.0]", "(-Infinity,)"]),
    "tstzrange": WORDS(['["2026-01-31 10:00:00+01",infinity)', "empty"]),
    "datemultirange": WORDS(["{[2026-01-31,2026-02-03),[2027-01-01,)}", "{}"]),
    "tsvector": WORDS(["'a':1A 'b\\\\c''d':2", ""]),
    "xml": WORDS(["<a b='c'>\td &amp; e</a>", ""]),
    "integer[]": WORDS(["{}", "{1,NULL,-3}", "[0:1]={5,6}", "{{1,2},{3,4}}"]),
    "text[]": st.lists(st.none() | TEXT, max_size=4).map(
        lambda items: (
            "{"
            + ",".join("NULL" if i is None else '"' + i.replace("\\", "\\\\").replace('"', '\\"') + '"' for i in items)
            + "}"
        )
    ),
    "numeric(10,2)[]": WORDS(["{1.50,NaN}"]),
    "timestamp with time zone[]": WORDS(['{"2026-01-31 10:00:00+05",infinity}']),
    "bytea[]": WORDS(['{"\\\\x00ff","\\\\x"}']),
    "jsonb[]": WORDS(['{"{\\"a\\": [1, 2.0]}",null}']),
}
TYPES = list(STRATEGIES)


class TestTypes:
    @pytest.fixture
    def source(self, sql: psycopg.Connection[Any]) -> list[Column]:
        """A table with a column of each type, and its columns as the source describes them.

        New connections, the target's, begin with settings that print and read values in other ways.
        """
        odd = ["DateStyle TO 'German'", "TimeZone TO 'Asia/Kathmandu'", "IntervalStyle TO 'sql_standard'"]
        odd += ["bytea_output TO 'escape'", "extra_float_digits TO -5", "client_encoding TO 'LATIN1'"]
        odd += ["standard_conforming_strings TO off", "default_transaction_isolation TO serializable"]
        for setting in odd:
            sql.execute(f"ALTER DATABASE {sql.info.dbname} SET {setting}".encode())
        columns = ", ".join(f"c{number} {type_}" for number, type_ in enumerate(TYPES))
        sql.execute(f"CREATE TABLE source (id integer PRIMARY KEY, {columns})")
        found = sql.execute(
            "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), t.typname::text, t.typtype,"
            " a.atttypmod >= 0 FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid"
            " WHERE attrelid = 'source'::regclass AND attnum > 0 ORDER BY attnum"
        ).fetchall()
        self.decode = []
        described = []
        for name, type_, base, typtype, sized in found:
            known = column_type(type_, base, built_in=True, typtype=typtype, has_typmod=sized, in_key=name == "id")
            self.decode.append(known.decode)
            described.append(Column(name, known.name, known.kind))
        return described

    @staticmethod
    def pages(target: PostgresTarget, schema: TableSchema) -> list[tuple[bytes, bytes]]:
        """All rows, read three at a time."""
        found: list[tuple[bytes, bytes]] = []
        while page := target.rows(schema, found[-1][0] if found else None, 3):
            found += page
        return found

    @SLOW
    @given(rows=st.lists(st.tuples(*(st.none() | STRATEGIES[type_] for type_ in TYPES)), min_size=1, max_size=8))
    def test_every_value_becomes_the_identical_one(
        self, rows: list[tuple[str | None, ...]], target: PostgresTarget, sql: psycopg.Connection[Any], source: Any
    ) -> None:
        """The database is the oracle: what is stored is compared bit by bit."""
        columns = source
        schema = TableSchema("public.copy", tuple(columns), ("id",), "postgresql")
        sql.execute("TRUNCATE source; SET TimeZone TO 'UTC'; DROP TABLE IF EXISTS copy")
        marks = ", ".join(f"%s::text::{type_}" for type_ in TYPES)
        for number, row in enumerate(rows):
            sql.execute(f"INSERT INTO source VALUES ({number}, {marks})".encode(), row)
        with sql.cursor() as cursor, cursor.copy("COPY source TO STDOUT") as copy:
            lines = b"".join(copy).splitlines()
        fields = [[None if field == b"\\N" else unescape(field) for field in line.split(b"\t")] for line in lines]
        wire = orjson.loads(
            orjson.dumps(
                [
                    [None if f is None else decode(f) for decode, f in zip(self.decode, row, strict=True)]
                    for row in fields
                ]
            )
        )
        fresh = PostgresTarget(target._pool._url, create_tables=True, schema_changes="apply")
        for _ in range(2):  # the second time all rows are there already
            upsert(fresh, schema, wire)
        assert self.pages(fresh, schema) == [(orjson.dumps(row[:1]), orjson.dumps(row)) for row in wire]
        fresh.close()
        for column in ["id", *(f"c{number}" for number in range(len(TYPES)))]:
            differing = sql.execute(
                f"SELECT s.{column}::text, c.{column}::text FROM source s FULL JOIN copy c USING (id)"
                f" WHERE ROW(s.{column})::record *<> ROW(c.{column})::record"
            ).fetchall()
            assert not differing, column
        types = sql.execute(
            "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'copy'::regclass AND attnum > 1"
            " ORDER BY attnum"
        ).fetchall()
        assert [type_ for (type_,) in types] == TYPES
        assert sql.execute("SELECT count(*) FROM copy").fetchone() == (len(rows),)

    def test_existing_columns_of_other_types_take_what_fits(
        self, target: PostgresTarget, sql: psycopg.Connection[Any]
    ) -> None:
        sql.execute("CREATE TYPE mood AS ENUM ('good', 'bad'); CREATE DOMAIN blob AS bytea; CREATE DOMAIN vat AS text")
        sql.execute(
            "CREATE TABLE existing (id text PRIMARY KEY, mood mood, data blob, vat vat, flag integer, yes boolean,"
            ' doubled integer GENERATED ALWAYS AS (flag * 2) STORED, big numeric, "when" text)'
        )
        schema = table(
            "existing",
            ("id", "integer", Kind.INT),
            ("mood", "text", Kind.TEXT),
            ("data", "bytea", Kind.BYTES),
            ("vat", "text", Kind.TEXT),
            ("flag", "boolean", Kind.BOOL),
            ("yes", "BOOLEAN", Kind.INT),
            ("doubled", "integer", Kind.INT),
            ("big", "bigint", Kind.INT),
            ("when", "timestamp with time zone", Kind.TIMESTAMPTZ),
        )
        upsert(target, schema, [[1, "bad", "AP8=", "x", True, 1, 7, str(2**62), "2026-01-31T10:00:00Z"]])
        rows = sql.execute("SELECT * FROM existing").fetchall()
        assert rows == [("1", "bad", b"\0\xff", "x", 1, True, 2, 2**62, "2026-01-31T10:00:00Z")]
        with target.begin() as txn, pytest.raises(Rejected, match="mood") as refused:
            txn.upsert(schema, [[2, "dreadful", None, None, None, None, None, None, None]])
        assert "dreadful" not in str(refused.value)
        with target.begin() as txn, pytest.raises(Rejected, match="base64"):
            txn.upsert(schema, [[2, None, "***", None, None, None, None, None, None]])


# ---- names ----

HOSTILE = (
    *('a"b', "%s", "select", "A b", "a.b", "x'y", "\\", "%(n)s", "$1", "é" * 20, "row", "t", "s", "n", "e", "key"),
    *("excluded", "upwell_0", "old", "upwell"),
)
NAME = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=15) | st.sampled_from(
    HOSTILE
)


@SLOW
@given(names=st.lists(NAME, min_size=4, max_size=4, unique=True), values=st.lists(NAME, min_size=2, max_size=2))
def test_names_and_values_are_only_that(names: list[str], values: list[str], target: PostgresTarget, url: str) -> None:
    name, key, other, unique = names
    target_table = '"' + f"s {name[:5]}".replace('"', '""') + '"."' + name.replace('"', '""') + '"'
    schema = TableSchema(
        "public.x",
        (Column(key, "text", Kind.TEXT), Column(other, "text", Kind.TEXT), Column(unique, "text", Kind.TEXT)),
        (key,),
        "postgresql",
        target=target_table,
    )
    upsert(target, schema, [["1", values[0], values[0]], ["2", values[1], values[0] + "2"]])
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'CREATE UNIQUE INDEX ON {target_table} ("{unique.replace(chr(34), chr(34) * 2)}")'.encode())
    put(target, schema, [["1", values[0], values[0] + "2"], ["2", values[1], values[0]]])
    with target.begin() as txn:
        txn.note(PIPELINE, schema, 1, [["1"]])
        assert txn.sweep(PIPELINE, schema, 1) == 1
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(f"SELECT * FROM {target_table}".encode()).fetchall()
        connection.execute(f"DROP TABLE {target_table}".encode())
    assert found == [("1", values[0], values[0] + "2")]
    target._pool.close()  # the table has gone


def test_a_name_that_the_server_would_cut_off_is_refused(target: PostgresTarget) -> None:
    for schema in (
        table("x" * 64, ("id", "integer", Kind.INT)),
        table("t", ("id", "integer", Kind.INT), ("ü" * 32, "text", Kind.TEXT)),
    ):
        with target.begin() as txn, pytest.raises(OperatorError, match="63 bytes"):
            txn.ensure_table(schema)


@pytest.mark.parametrize("column", ["ctid", "xmin", "tableoid", ""])
def test_a_name_that_no_column_can_have_is_refused(column: str, target: PostgresTarget) -> None:
    schema = TableSchema("main.t", (Column(column, "INTEGER", Kind.INT),), (column,), "sqlite")
    with target.begin() as txn, pytest.raises(OperatorError) as refused:
        txn.ensure_table(schema)
    assert refused.value.code == "UW-PT-039"


def test_upwells_own_schema_is_no_place_for_rows(target: PostgresTarget) -> None:
    columns = (Column("pipeline", "TEXT", Kind.TEXT),)
    schema = TableSchema("main.t", columns, ("pipeline",), "sqlite", "upwell.watermark")
    with target.begin() as txn, pytest.raises(OperatorError) as refused:
        txn.ensure_table(schema)
    assert refused.value.code == "UW-PT-039"


@pytest.mark.parametrize(
    ("name", "dialect", "to", "expected"),
    [
        ("public.t", "postgresql", None, "public.t"),
        ("main.t", "sqlite", None, "public.t"),
        ("dbo.t", "sqlserver", None, "public.t"),
        ("sales.t", "sqlserver", None, "sales.t"),
        ("main.t", "postgresql", None, "main.t"),
        ("dbo.t", "sqlserver", "kept", "public.kept"),
        ("dbo.t", "sqlserver", 'other."a.b"', 'other."a.b"'),
    ],
)
def test_where_a_table_goes(
    name: str, dialect: str, to: str | None, expected: str, target: PostgresTarget, sql: psycopg.Connection[Any]
) -> None:
    schema = TableSchema(name, (Column("id", "integer", Kind.INT),), ("id",), dialect, to)
    upsert(target, schema, [[1]])
    assert sql.execute(f"SELECT count(*) FROM {expected}").fetchone() == (1,)


# ---- tables ----


def test_columns_are_added_when_they_come_and_never_dropped(
    target: PostgresTarget, sql: psycopg.Connection[Any]
) -> None:
    wider = table("users", *((c.name, c.type, c.kind) for c in USERS.columns), ("age", "smallint", Kind.INT))
    upsert(target, USERS, [[1, "a", "x"]])
    upsert(target, wider, [[2, "b", None, 40]])
    upsert(target, USERS, [[3, "c", None], [2, "changed", None]])
    assert sql.execute("SELECT * FROM users ORDER BY id").fetchall() == [
        (1, "a", "x", None),
        (2, "changed", None, 40),
        (3, "c", None, None),
    ]


def test_halt_shows_the_statements_that_help(url: str, sql: psycopg.Connection[Any]) -> None:
    target = PostgresTarget(url, create_tables=False, schema_changes="halt")
    narrow = table("users", ("id", "integer", Kind.INT))
    for schema in (narrow, USERS):
        with target.begin() as txn, pytest.raises(OperatorError) as refused:
            txn.ensure_table(schema)
        sql.execute(refused.value.remedy.encode())
        upsert(target, schema, [[1, None, None][: len(schema.columns)]])
    target.close()


def test_a_table_without_an_index_on_the_key_is_refused_until_it_has_one(
    target: PostgresTarget, sql: psycopg.Connection[Any]
) -> None:
    sql.execute("CREATE TABLE users (id integer, email text, note text)")
    sql.execute("CREATE UNIQUE INDEX ON users (id) WHERE email IS NULL")
    sql.execute("CREATE UNIQUE INDEX ON users (id, email)")
    with target.begin() as txn, pytest.raises(OperatorError, match="no unique index on its key") as refused:
        txn.ensure_table(USERS)
    sql.execute(refused.value.remedy.encode())
    upsert(target, USERS, [[1, None, None]])


def test_deferrable_constraints_are_refused(target: PostgresTarget, sql: psycopg.Connection[Any]) -> None:
    sql.execute("CREATE TABLE users (id integer PRIMARY KEY DEFERRABLE, email text, note text)")
    with target.begin() as txn, pytest.raises(OperatorError, match="deferrable"):
        txn.ensure_table(USERS)


def test_a_view_is_refused(target: PostgresTarget, sql: psycopg.Connection[Any]) -> None:
    sql.execute("CREATE VIEW users AS SELECT 1 AS id, '' AS email, '' AS note")
    with target.begin() as txn, pytest.raises(OperatorError, match="not a table"):
        txn.ensure_table(USERS)


def test_several_create_the_same_tables_at_once(url: str, sql: psycopg.Connection[Any]) -> None:
    """A first connection's schema upwell, and a first event's table."""
    barrier = threading.Barrier(6)

    def create(number: int) -> None:
        target = PostgresTarget(url, create_tables=True, schema_changes="apply")
        barrier.wait()
        upsert(target, USERS, [[number, None, None]])
        target.close()

    in_threads(*(lambda number=number: create(number) for number in range(6)))
    assert sql.execute("SELECT count(*) FROM users").fetchone() == (6,)


def test_a_table_that_somebody_changes_is_looked_at_anew(target: PostgresTarget, sql: psycopg.Connection[Any]) -> None:
    upsert(target, USERS, [[1, "a", None]])
    sql.execute("DROP TABLE users")
    with pytest.raises(TransientError):
        upsert(target, USERS, [[2, "b", None]])
    upsert(target, USERS, [[2, "b", None]])
    sql.execute("ALTER TABLE users DROP COLUMN note")
    with pytest.raises(TransientError):
        upsert(target, USERS, [[3, "c", "x"]])
    upsert(target, USERS, [[3, "c", "x"]])
    assert sql.execute("SELECT id, email, note FROM users ORDER BY id").fetchall() == [(2, "b", None), (3, "c", "x")]


def test_a_newer_upwell_is_respected(target: PostgresTarget, sql: psycopg.Connection[Any]) -> None:
    target.check()
    sql.execute("UPDATE upwell.version SET version = 1000")
    target.close()
    with pytest.raises(OperatorError, match="newer upwell"):
        target.check()


# ---- refusals and unique values ----


def test_a_row_that_is_as_it_was_is_not_written(target: PostgresTarget, sql: psycopg.Connection[Any]) -> None:
    schema = table("numbers", ("id", "numeric", Kind.DECIMAL), ("n", "numeric", Kind.DECIMAL))
    upsert(target, schema, [["1", "1.0"], ["2", "2"]])
    before = sql.execute("SELECT ctid::text, xmin::text FROM numbers ORDER BY id").fetchall()
    upsert(target, schema, [["1", "1.0"], ["2", "2.0"]])
    after = sql.execute("SELECT ctid::text, xmin::text FROM numbers ORDER BY id").fetchall()
    assert after[0] == before[0]
    assert after[1] != before[1]
    assert sql.execute("SELECT n::text FROM numbers ORDER BY id").fetchall() == [("1.0",), ("2.0",)]


def test_equal_keys_that_look_different_survive_a_sweep(target: PostgresTarget, sql: psycopg.Connection[Any]) -> None:
    schema = table("numbers", ("id", "numeric", Kind.DECIMAL), ("n", "integer", Kind.INT))
    upsert(target, schema, [["1.0", 1]])
    with target.begin() as txn:
        txn.upsert(schema, [["1.00", 2]])
        txn.note(PIPELINE, schema, 1, [["1.00"]])
        assert txn.sweep(PIPELINE, schema, 1) == 0
    assert sql.execute("SELECT id::text, n FROM numbers").fetchall() == [("1.00", 2)]


def test_long_and_composite_keys_are_noted(target: PostgresTarget, sql: psycopg.Connection[Any]) -> None:
    schema = table("docs", ("path", "text", Kind.TEXT), ("day", "date", Kind.DATE), key=("day", "path"))
    chance = random.Random(3)
    long = ["".join(chance.choices(string.ascii_letters, k=2400)) for _ in range(2)]
    rows: list[list[Value]] = [[path, "2026-01-31"] for path in (*long, "a,b", '"', "")]
    upsert(target, schema, rows)
    with target.begin() as txn:
        txn.note(PIPELINE, schema, 1, [[row[1], row[0]] for row in rows[1:]])
        assert txn.sweep(PIPELINE, schema, 1) == 1
    assert sql.execute("SELECT count(*) FROM docs WHERE path = %s", [long[0]]).fetchone() == (0,)


@pytest.mark.parametrize(
    ("refusing", "word"),
    [
        ("ALTER TABLE users ADD CHECK (note <> 'secret value')", "check violation"),
        ("ALTER TABLE users ALTER note TYPE varchar(5)", "string data right truncation"),
        ("ALTER TABLE users ADD EXCLUDE USING btree (note WITH =)", "exclusion violation"),
        (
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " IF NEW.note = 'secret value' THEN RAISE EXCEPTION 'no %', NEW.note; END IF; RETURN NEW; END $$;"
            " CREATE TRIGGER refuse BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION refuse()",
            "raise exception",
        ),
        (
            "CREATE TABLE parents (id integer PRIMARY KEY, note text UNIQUE); INSERT INTO parents VALUES (1, 'y');"
            " ALTER TABLE users ADD FOREIGN KEY (note) REFERENCES parents (note) DEFERRABLE INITIALLY DEFERRED",
            "foreign key violation",
        ),
    ],
)
def test_a_refusal_names_its_reason_and_no_value(
    refusing: str, word: str, target: PostgresTarget, sql: psycopg.Connection[Any]
) -> None:
    upsert(target, USERS, [[1, "a", "y"]])
    if "EXCLUDE" in refusing:
        upsert(target, USERS, [[9, "a", "secret value"]])
    sql.execute(refusing.encode())
    with suppress(TransientError), target.begin() as txn, suppress(Rejected):
        txn.upsert(USERS, [[2, "b", "secret value"]])  # it may see here that the table is another
    with target.begin() as txn:
        with pytest.raises(Rejected) as refused:
            txn.upsert(USERS, [[2, "b", "secret value"]])
        txn.upsert(USERS, [[3, "c", None]])
    assert word in str(refused.value)
    assert not isinstance(refused.value, UniqueConflict)
    assert "secret" not in str(refused.value)
    assert sql.execute("SELECT id FROM users WHERE id < 9 ORDER BY id").fetchall() == [(1,), (3,)]


def test_keys_that_only_the_target_holds_equal_are_refused_so_that_bisection_parts_them(
    target: PostgresTarget, sql: psycopg.Connection[Any]
) -> None:
    schema = table("numbers", ("id", "numeric", Kind.DECIMAL), ("n", "integer", Kind.INT))
    with target.begin() as txn:
        with pytest.raises(Rejected):
            txn.upsert(schema, [["1", 1], ["1.0", 2]])
        txn.upsert(schema, [["1", 1]])
        txn.upsert(schema, [["1.0", 2]])
    assert sql.execute("SELECT id::text, n FROM numbers").fetchall() == [("1.0", 2)]


UNIQUES = {
    "plain": "CREATE UNIQUE INDEX ON users (email)",
    "constraint over two columns": "ALTER TABLE users ADD UNIQUE (email, note)",
    "expression": "CREATE UNIQUE INDEX ON users (lower(email), (id > 0))",
    "partial": "CREATE UNIQUE INDEX ON users (email) WHERE note IS NOT NULL",
    "including": "CREATE UNIQUE INDEX ON users (email) INCLUDE (note)",
    "two indexes": "CREATE UNIQUE INDEX ON users (email); CREATE UNIQUE INDEX ON users (upper(email) text_pattern_ops)",
    "generated": "ALTER TABLE users ADD shout text GENERATED ALWAYS AS (upper(email)) STORED UNIQUE",
    "collation": 'CREATE UNIQUE INDEX ON users (email COLLATE "POSIX")',
    "extra columns": "ALTER TABLE users ADD UNIQUE (email), ADD made timestamptz NOT NULL DEFAULT now(),"
    " ADD serial integer GENERATED ALWAYS AS IDENTITY, ADD kept text DEFAULT 'none'",
    "trigger that changes the value": "CREATE UNIQUE INDEX ON users (email);"
    " CREATE FUNCTION trimmed() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN NEW.email := NEW.email || '!'; RETURN NEW; END $$;"
    " CREATE TRIGGER trimmed BEFORE INSERT OR UPDATE ON users FOR EACH ROW EXECUTE FUNCTION trimmed()",
}


@pytest.mark.parametrize("unique", UNIQUES.values(), ids=UNIQUES.keys())
def test_swaps_under_every_sort_of_unique_index(
    unique: str, target: PostgresTarget, sql: psycopg.Connection[Any]
) -> None:
    chance = random.Random(11)
    source = {number: f"value {number}" for number in range(12)}
    upsert(target, USERS, [[number, value, "same"] for number, value in source.items()])
    marked = "!" if "trimmed" in unique else ""
    sql.execute(f"UPDATE users SET email = email || '{marked}'")
    sql.execute(unique.encode())
    if "kept" in unique:
        sql.execute("UPDATE users SET kept = 'kept ' || id")
    for _ in range(60):
        one, other = chance.sample(sorted(source), 2)
        source[one], source[other] = source[other], source[one]
        changed: list[list[Value]] = [[number, source[number], "same"] for number in (one, other)]
        if chance.random() < 0.5:
            put(target, USERS, changed)
        else:
            for row in changed:
                put(target, USERS, [row])
    rows = sql.execute("SELECT id, email FROM users ORDER BY id").fetchall()
    if marked:  # a restored row passes the trigger once more: the target's own doing
        rows = [(number, email.rstrip(marked)) for number, email in rows]
    assert rows == sorted(source.items())
    if "kept" in unique:
        assert sql.execute("SELECT count(*) FROM users WHERE kept <> 'kept ' || id").fetchone() == (0,)
    assert sql.execute("SELECT count(*) FROM upwell.evicted").fetchone() == (0,)


def test_nulls_that_are_not_distinct_make_way_too(target: PostgresTarget, sql: psycopg.Connection[Any]) -> None:
    upsert(target, USERS, [[1, "a", None], [2, None, None]])
    sql.execute("CREATE UNIQUE INDEX ON users (email) NULLS NOT DISTINCT")
    put(target, USERS, [[1, None, None]])
    put(target, USERS, [[2, "a", None]])
    assert sql.execute("SELECT id, email FROM users ORDER BY id").fetchall() == [(1, None), (2, "a")]


def test_swaps_by_threads_end_as_the_source(url: str, sql: psycopg.Connection[Any]) -> None:
    """Four lanes at once: deadlocks are retried, no row is refused, none is lost."""
    impatient = f"{url}?options=-c%20deadlock_timeout%3D20ms"
    target = PostgresTarget(impatient, create_tables=True, schema_changes="apply")
    chance = random.Random(5)
    source = {number: f"value {number}" for number in range(24)}
    upsert(target, USERS, [[number, value, None] for number, value in source.items()])
    sql.execute("CREATE UNIQUE INDEX ON users (email)")
    lanes: list[list[list[Value]]] = [[] for _ in range(4)]
    for _ in range(300):
        one, other = chance.sample(sorted(source), 2)
        source[one], source[other] = source[other], source[one]
        for number in (one, other):
            lanes[number % 4].append([number, source[number], None])

    def apply(lane: int) -> None:
        changes, own = lanes[lane], random.Random(lane)
        while changes:
            taken = own.randint(1, 12)
            newest = {row[0]: row for row in changes[:taken]}
            with suppress(TransientError):
                put(target, USERS, [newest[number] for number in sorted(newest, key=str)])
                del changes[:taken]

    in_threads(*(lambda lane=lane: apply(lane) for lane in range(4)))
    target.close()
    assert dict(sql.execute("SELECT id, email FROM users").fetchall()) == source
    assert sql.execute("SELECT count(*) FROM upwell.evicted").fetchone() == (0,)


def test_rows_that_go_while_others_make_way_stay_gone(url: str, sql: psycopg.Connection[Any]) -> None:
    """As above, with rows that are deleted, leave their value to another one and come anew."""
    target = PostgresTarget(f"{url}?options=-c%20deadlock_timeout%3D20ms", create_tables=True, schema_changes="apply")
    chance = random.Random(6)
    source: dict[int, str] = {}
    lanes: list[list[tuple[int, str | None]]] = [[] for _ in range(4)]

    def write(number: int, value: str | None) -> None:
        lanes[number % 4].append((number, value))
        source.pop(number, None)
        if value is not None:
            source[number] = value

    upsert(target, USERS, [[0, "value 0", None]])
    sql.execute("CREATE UNIQUE INDEX ON users (email)")
    write(0, None)
    for _ in range(3_000):
        one, other = chance.sample(range(80), 2)
        before = source.get(one)
        write(one, source.get(other))
        write(other, before or (f"value {chance.randrange(80)}" if chance.random() < 0.5 else None))
        if len(set(source.values())) < len(source):  # the value was taken: the source would have refused it
            write(other, None)

    def apply(lane: int) -> None:
        changes, own = lanes[lane], random.Random(lane)
        while changes:
            taken = own.randint(1, 120)
            newest = dict(changes[:taken])
            with suppress(TransientError):
                with target.begin() as txn:
                    txn.ensure_table(USERS)
                    txn.delete(USERS, [[number] for number, value in sorted(newest.items()) if value is None])
                    rows: list[list[Value]] = [
                        [number, value, None] for number, value in sorted(newest.items()) if value
                    ]
                    try:
                        txn.upsert(USERS, rows)
                    except UniqueConflict:
                        txn.replace(USERS, rows)
                del changes[:taken]

    in_threads(*(lambda lane=lane: apply(lane) for lane in range(4)))
    target.close()
    assert dict(sql.execute("SELECT id, email FROM users").fetchall()) == source
    assert sql.execute("SELECT count(*) FROM upwell.evicted").fetchone() == (0,)


def test_a_waiting_row_that_the_target_refuses_harms_no_other(
    target: PostgresTarget, sql: psycopg.Connection[Any]
) -> None:
    upsert(target, USERS, [[1, "a", None], [2, "b", None]])
    sql.execute("CREATE UNIQUE INDEX ON users (email)")
    put(target, USERS, [[1, "b", None]])
    sql.execute("ALTER TABLE users ADD CHECK (id <> 2)")
    put(target, USERS, [[1, "c", None]])
    assert sql.execute("SELECT id, email FROM users").fetchall() == [(1, "c")]
    assert target.status(PIPELINE)["evicted"] == {"public.users": 1}


# ---- the environment ----


def test_a_terminated_connection_is_replaced(target: PostgresTarget, sql: psycopg.Connection[Any]) -> None:
    upsert(target, USERS, [[1, "a", None]])

    def cut_off(write: Callable[[TargetTransaction], object]) -> None:
        with target.begin() as txn:
            txn.upsert(USERS, [[2, "b", None]])
            txn.lock_lanes(PIPELINE, [1])
            sql.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE relation = 'upwell.watermark'::regclass")
            write(txn)

    many = [[number, "b" * 1000, None] for number in range(2, 5000)]
    for write in (
        lambda txn: txn.lock_lanes(PIPELINE, [2]),
        lambda txn: txn.upsert(USERS, many),
        lambda txn: None,  # it ends at the commit
    ):
        with pytest.raises(TransientError):
            cut_off(write)
        assert sql.execute("SELECT id FROM users").fetchall() == [(1,)]
    upsert(target, USERS, [[2, "b", None]])


def test_a_writer_that_became_read_only_is_left(
    target: PostgresTarget, sql: psycopg.Connection[Any], database: str
) -> None:
    """As after a failover: the old writer answers and refuses, a new connection finds the new writer."""
    upsert(target, USERS, [[1, "a", None]])
    sql.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    with psycopg.connect(sql.info.dsn, password=sql.info.password, autocommit=True):
        target._pool.close()
        for _ in range(2):
            with pytest.raises(TransientError, match="read only"):
                upsert(target, USERS, [[2, "b", None]])
        assert [f.code for f in target.findings([]) if f.level == "fail"] == ["UW-PT-102"]
        target._pool.close()
    sql.execute("SET default_transaction_read_only = off")
    sql.execute(f"ALTER DATABASE {database} RESET default_transaction_read_only")
    upsert(target, USERS, [[2, "b", None]])


def test_waiting_for_a_lock_has_an_end(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_session, "_SETTINGS", postgres_session._SETTINGS.replace("'60s'", "'50ms'"))
    target = PostgresTarget(url, create_tables=True, schema_changes="apply")
    with target.begin() as txn:
        txn.lock_lanes(PIPELINE, [1])
    with target.begin() as holder:
        holder.lock_lanes(PIPELINE, [1])
        with pytest.raises(TransientError, match="lock not available"), target.begin() as waiter:
            waiter.lock_lanes(PIPELINE, [1])
    target.close()


def test_who_hangs_in_the_middle_of_a_copy_is_not_waited_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL has no timeout for that: neither is the transaction idle, nor can the statement be cancelled."""
    monkeypatch.setattr(postgres_session, "_SETTINGS", postgres_session._SETTINGS.replace("'60s'", "'50ms'"))
    target = PostgresTarget(url, create_tables=True, schema_changes="apply")
    with target.begin() as txn:
        txn.lock_lanes(PIPELINE, [1])
    hanging = psycopg.connect(url, application_name="upwell")
    hanging.execute("SELECT 1 FROM upwell.watermark FOR UPDATE")
    hanging.execute("SET statement_timeout TO 20")
    hanging.pgconn.send_query(b"COPY upwell.watermark FROM STDIN")
    for patience_s in (3600, 0):
        monkeypatch.setattr(postgres_session, "IDLE_IN_TRANSACTION_S", patience_s)
        with pytest.raises(TransientError, match="lock not available"), target.begin() as waiter:
            waiter.lock_lanes(PIPELINE, [1])
    with pytest.raises(psycopg.OperationalError):
        listen_to_the_end(hanging)
    hanging.close()
    with target.begin() as txn:
        txn.lock_lanes(PIPELINE, [1])
    target.close()


def listen_to_the_end(connection: psycopg.Connection[Any]) -> None:
    while True:
        connection.pgconn.consume_input()


def test_of_two_in_a_deadlock_one_goes_on(target: PostgresTarget) -> None:
    with target.begin() as txn:
        txn.lock_lanes(PIPELINE, [1, 2])
    both = threading.Barrier(2)
    failed: list[TransientError] = []

    def lock(first: int, second: int) -> None:
        try:
            with target.begin() as txn:
                txn.lock_lanes(PIPELINE, [first])
                both.wait()
                txn.lock_lanes(PIPELINE, [second])
        except TransientError as error:
            failed.append(error)

    in_threads(lambda: lock(1, 2), lambda: lock(2, 1))
    assert [error.code for error in failed] == ["UW-PT-002"]


def test_connections_are_bounded(url: str, monkeypatch: pytest.MonkeyPatch, sql: psycopg.Connection[Any]) -> None:
    monkeypatch.setattr(postgres_session, "POOL_WAIT_S", 0.05)
    target = PostgresTarget(url, create_tables=True, schema_changes="apply", connections_max=1)
    with target.begin(), pytest.raises(TransientError, match="in use"), target.begin():
        pass
    for _ in range(3):
        target.check()
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    assert sql.execute(count).fetchone() == (1,)
    target.close()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda url, name: url.replace("upwell:", "upwell:wrong"), "UW-PT-021"),
        (lambda url, name: url.replace("upwell:", "nobody_such:"), "UW-PT-021"),
        (lambda url, name: url.replace(name, "no_such_database"), "UW-PT-023"),
        (lambda url, name: url.replace(LOOPBACK, "no-such-host.invalid"), "UW-PT-024"),
        (lambda url, name: url + "?sslmode=require", "UW-PT-025"),
        (lambda url, name: f"postgresql://upwell:secret@{LOOPBACK}:{free_port()}/x", "UW-PT-026"),
        (lambda url, name: url + "?no_such_option=1", "UW-PT-027"),
    ],
)
def test_a_first_connection_says_what_is_wrong(change: Any, code: str, url: str, database: str) -> None:
    password = url.split(":")[2].split("@")[0]
    target = PostgresTarget(change(url, database), create_tables=True, schema_changes="apply")
    with pytest.raises(OperatorError) as refused:
        target.check()
    assert refused.value.code == code
    assert refused.value.remedy
    assert password not in str(refused.value)
    (finding,) = target.findings([USERS])
    assert (finding.level, finding.code) == ("fail", code)
    later = OperatorError if code in ("UW-PT-021", "UW-PT-027") else TransientError
    with pytest.raises(later), target.begin():
        pass


# ---- rights and findings ----


def test_following_the_remedies_leads_to_a_role_that_can_work(
    url: str, sql: psycopg.Connection[Any], database: str
) -> None:
    """A role that may do nothing: each refusal names the next right, until rows are written."""
    role = f"role_{database}"
    sql.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'pw'")
    sql.execute(f"REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC; CREATE TABLE users (id integer PRIMARY KEY)")
    sql.execute("ALTER TABLE users ADD email text, ADD note text; REVOKE ALL ON SCHEMA public FROM PUBLIC")
    at = url.index("@")
    target = PostgresTarget(f"postgresql://{role}:pw{url[at:]}", create_tables=True, schema_changes="apply")
    other = table("others", ("id", "integer", Kind.INT))
    remedies: list[str] = []
    try:
        while len(remedies) < 12:
            try:
                upsert(target, USERS, [[1, "a", None]])
                upsert(target, other, [[1]])
                break
            except OperatorError as error:
                remedies.append(error.remedy)
                sql.execute(error.remedy.encode())
        assert sql.execute("SELECT * FROM users").fetchall() == [(1, "a", None)]
        assert not [finding for finding in target.findings([USERS, other]) if finding.level == "fail"]
    finally:
        target.close()
        sql.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")
    assert 3 <= len(remedies) == len(set(remedies))


def test_findings_of_an_empty_database_change_nothing(target: PostgresTarget, sql: psycopg.Connection[Any]) -> None:
    assert {finding.level for finding in target.findings([USERS])} == {"pass"}
    assert sql.execute("SELECT to_regclass('users'), to_regnamespace('upwell')").fetchone() == (None, None)


def test_findings_name_what_will_fail(url: str, sql: psycopg.Connection[Any]) -> None:
    sql.execute(
        "CREATE TABLE parents (id integer PRIMARY KEY);"
        " CREATE TABLE users (id integer REFERENCES parents, email integer, must text NOT NULL, UNIQUE (email));"
        " CREATE TABLE orders (id integer PRIMARY KEY); INSERT INTO orders VALUES (1)"
    )
    target = PostgresTarget(url, create_tables=False, schema_changes="halt")
    found = target.findings([USERS, table("orders", ("id", "integer", Kind.INT)), table("no", ("id", "int", Kind.INT))])
    bad = {(finding.level, finding.code) for finding in found if finding.level != "pass"}
    assert bad == {
        ("fail", "UW-PT-034"),  # columns are missing
        ("fail", "UW-PT-035"),  # no key
        ("fail", "UW-PT-108"),  # must not be null
        ("warn", "UW-PT-109"),  # another type
        ("fail", "UW-PT-110"),  # foreign key
        ("warn", "UW-PT-112"),  # rows of others
        ("fail", "UW-PT-033"),  # no table
    }
    for finding in found:
        if finding.level == "fail":
            sql.execute(finding.remedy.encode())
    assert not [finding for finding in target.findings([USERS]) if finding.level == "fail"]
    target.close()


# ---- reading ----


def test_rows_are_read_by_keys_of_any_type(target: PostgresTarget) -> None:
    schema = table(
        "keys", ("b", "bytea", Kind.BYTES), ("a%b", "timestamp with time zone", Kind.TIMESTAMPTZ),
        ("c", "boolean", Kind.BOOL), key=("c", "a%b", "b"),
    )  # fmt: skip
    rows: list[list[Value]] = [
        [data, moment, flag]
        for flag in (False, True)
        for moment in ("0044-03-15T10:00:00Z BC", "2026-01-31T10:00:00.5Z", "infinity")
        for data in ("", "AP8=")
    ]
    upsert(target, schema, rows)
    expected = [(orjson.dumps([row[2], row[1], row[0]]), orjson.dumps(row)) for row in rows]
    assert TestTypes.pages(target, schema) == expected
    with pytest.raises(OperatorError):
        target.rows(USERS, None, 1)


def test_an_error_swallowed_without_undoing_never_looks_like_a_commit(target: PostgresTarget) -> None:
    with pytest.raises(RuntimeError), target.begin() as txn, suppress(Exception):
        txn._session.run("SELECT 1 / 0")
    upsert(target, USERS, [[1, None, None]])


# ---- what is put aside ----


def test_dead_letters_repairs_and_status_can_be_read(target: PostgresTarget) -> None:
    letter = DeadLetter(0, "public.users", '["a\\u0000"]', "00ff", "refused \0 so", "2026-01-31T10:00:00Z", b"\0p")
    with target.begin() as txn:
        txn.add_dead_letters(PIPELINE, [letter, letter])
        txn.add_dead_letters("another", [letter])
        txn.ask_repair(PIPELINE, Request("holes-1", None, "why"))
        txn.lock_lanes(PIPELINE, [1, 2])
    (kept,) = target.dead_letters(PIPELINE)
    assert (kept.table, kept.key, kept.version, kept.payload) == ("public.users", '["a\\u0000"]', "00ff", b"")
    whole = target.dead_letter(kept.id)
    assert whole is not None
    assert whole.payload == b"\0p"
    assert target.pending_repairs(PIPELINE) == [Request("holes-1", None, "why")]
    status = target.status(PIPELINE)
    assert (status["lanes"], status["dead_letters"], status["repairs_pending"]) == (2, {"public.users": 1}, 1)
    target.repair_handed_over(PIPELINE, "holes-1")
    assert target.pending_repairs(PIPELINE) == []
    assert target.drop_dead_letter(kept.id)
    assert not target.drop_dead_letter(kept.id)
    assert target.dead_letter(kept.id) is None
    assert len(target.dead_letters("another")) == 1


def test_only_errors_with_a_name_leave(target: PostgresTarget) -> None:
    """Whatever bytes come as values: written, or Rejected; never the driver's error."""
    chance = random.Random(2)
    kinds = [None, True, -0.0, 1e400, 10**30, "", "\\", "\n", "a\tb", "\\N", "\\.", "\0", "é", "{", "NaN", "infinity"]
    types = [("integer", Kind.INT), ("text", Kind.TEXT), ("bytea", Kind.BYTES), ("jsonb", Kind.JSON)]
    types += [("date", Kind.DATE), ("boolean", Kind.BOOL), ("numeric", Kind.DECIMAL), ("real", Kind.FLOAT)]
    types += [("int4range", Kind.OTHER)]
    schema = table("any", *((f"c{n}", name, kind) for n, (name, kind) in enumerate(types)), key=("c1",))
    written = 0
    for _ in range(200):
        row: list[Value] = [chance.choice(kinds) for _ in schema.columns]
        row[1] = str(chance.random())
        row = [value if chance.random() < 0.2 or index == 1 else None for index, value in enumerate(row)]
        with suppress(UpwellError):
            upsert(target, schema, [row])
            written += 1
    assert written > 10


# ---- rows that are refused for what they hold ----


def refused_of(target: PostgresTarget, schema: TableSchema, rows: list[list[Value]]) -> dict[int, str]:
    """What of a bulk write is refused, and why; halved where the target can't tell."""
    with target.begin() as txn:

        def written(part: list[list[Value]], first: int) -> dict[int, str]:
            try:
                return {first + place: str(error) for place, error in txn.upsert(schema, part).items()}
            except Rejected as error:
                if len(part) == 1:
                    return {first: str(error)}
                middle = len(part) // 2
                return written(part[:middle], first) | written(part[middle:], first + middle)

        return written(rows, 0)


POISON: dict[str, tuple[str, Callable[[int], list[Value]]]] = {
    "23514": ("ADD CONSTRAINT c CHECK (length(email) < 10 AND note <> email)", lambda n: [n, "x" * 20, "y"]),
    "23502": ("ALTER note SET NOT NULL", lambda n: [n, "x", None]),
    "22001": ("ALTER email TYPE varchar(10)", lambda n: [n, "x" * 20, "y"]),
    "22003": ("ALTER id TYPE int", lambda n: [2**40 + n, "x", "y"]),
    "22P02": ("ALTER note TYPE uuid USING null", lambda n: [n, "x", "no uuid"]),
    "NUL": ("ADD more int", lambda n: [n, "x\0y", "y"]),
    "P0001": (
        "ADD CHECK (true); CREATE FUNCTION angry() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN "
        "IF length(NEW.email) > 10 THEN RAISE 'angry'; END IF; RETURN NEW; END$$; "
        "CREATE TRIGGER angry BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION angry()",
        lambda n: [n, "x" * 20, "y"],
    ),
}


@pytest.mark.parametrize("word", POISON)
def test_every_refused_row_is_found_and_no_other(
    word: str, target: PostgresTarget, sql: psycopg.Connection[Any]
) -> None:
    upsert(target, USERS, [[1, "a", None]])
    sql.execute("DELETE FROM users")
    statement, unfit = POISON[word]
    sql.execute(f"ALTER TABLE users {statement}".encode())
    with suppress(TransientError):  # somebody has changed the table: once more
        refused_of(target, USERS, [[1, "x", None if word == "22P02" else "y"], unfit(2), unfit(3)])
    note = None if word == "22P02" else "y"
    for batch in range(3):  # the first learns, the others know
        wrong = {3, 4, 40, 99 - batch}
        rows: list[list[Value]] = [unfit(n) if n in wrong else [n, f"x{batch}", note] for n in range(100)]
        refused = refused_of(target, USERS, rows)
        assert refused.keys() == wrong
        assert all(word in reason for reason in refused.values())
        found = sql.execute("SELECT id, email FROM users WHERE email = %s ORDER BY id", (f"x{batch}",)).fetchall()
        assert found == [(n, f"x{batch}") for n in range(100) if n not in wrong]


@pytest.mark.parametrize("word", ["23514", "23502", "22001", "22P02"])
def test_what_was_refused_is_taken_as_soon_as_the_table_is_mended(
    word: str, target: PostgresTarget, sql: psycopg.Connection[Any]
) -> None:
    statement, unfit = POISON[word]
    mend = {
        "23514": "DROP CONSTRAINT c",
        "23502": "ALTER note DROP NOT NULL",
        "22001": "ALTER email TYPE text",
        "22P02": "ALTER note TYPE text",
    }
    upsert(target, USERS, [[1, "a", None]])
    sql.execute("DELETE FROM users")
    sql.execute(f"ALTER TABLE users {statement}".encode())
    rows: list[list[Value]] = [[1, "x", None], unfit(2), unfit(3)]
    if word == "23502":
        rows[0][2] = "y"

    def again() -> dict[int, str]:
        """As the subscriber does it."""
        for _ in range(3):
            with suppress(TransientError):
                return refused_of(target, USERS, rows)
        raise AssertionError("the table is never seen as it is")

    assert again().keys() == again().keys() == {1, 2}
    sql.execute(f"ALTER TABLE users {mend[word]}".encode())
    assert again() == {}
    assert sql.execute("SELECT count(*) FROM users").fetchone() == (3,)


def test_a_check_that_can_not_be_asked_apart_from_the_table_is_no_trap(
    target: PostgresTarget, sql: psycopg.Connection[Any]
) -> None:
    """Such as one about the row as a whole, one that divides by zero, one about a column that is not ours."""
    upsert(target, USERS, [[1, "a", None]])
    sql.execute("DELETE FROM users")
    sql.execute("ALTER TABLE users ADD theirs int DEFAULT 1, ADD CHECK (users IS NOT NULL OR id <> 3)")
    sql.execute("ALTER TABLE users ADD CHECK (length(email) > theirs), ADD CHECK (100 / (id - 7) < 100)")
    rows: list[list[Value]] = [[n, "" if n == 5 else "xx", None] for n in range(10)]
    for _ in range(3):
        with suppress(TransientError):
            refused = refused_of(target, USERS, rows)
    assert refused.keys() == {3, 5, 7, 8}


def test_a_suspicion_that_nothing_confirms_is_given_up(target: PostgresTarget, sql: psycopg.Connection[Any]) -> None:
    upsert(target, USERS, [[1, "a", None]])
    sql.execute("ALTER TABLE users ADD CONSTRAINT c CHECK (length(email) < 10)")
    assert refused_of(target, USERS, [[1, "x" * 20, None], [2, "x", None]]).keys() == {0}
    suspicions = target._suspicions._of[TableName("public", "users")]
    assert len(suspicions) == 1
    for number in range(SUSPECTED_FOR):
        upsert(target, USERS, [[number, "x", None]])
    assert not target._suspicions._of[TableName("public", "users")]
