"""Values of every type become the identical ones, as the database itself sees it."""

import json
import random
import string
from contextlib import suppress
from typing import Any

import orjson
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.contract.target_contract import USERS, upsert
from tests.integration.postgres_target.schemas import SLOW, table
from upwell.errors import OperatorError, Rejected, UpwellError
from upwell.model import Column, Kind, TableSchema, Value
from upwell.sources.postgres_types import column_type, unescape
from upwell.targets.postgres import PostgresTarget

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


def test_a_row_that_is_as_it_was_is_not_written(target: PostgresTarget, sql: psycopg.Connection[Any]) -> None:
    schema = table("numbers", ("id", "numeric", Kind.DECIMAL), ("n", "numeric", Kind.DECIMAL))
    upsert(target, schema, [["1", "1.0"], ["2", "2"]])
    before = sql.execute("SELECT ctid::text, xmin::text FROM numbers ORDER BY id").fetchall()
    upsert(target, schema, [["1", "1.0"], ["2", "2.0"]])
    after = sql.execute("SELECT ctid::text, xmin::text FROM numbers ORDER BY id").fetchall()
    assert after[0] == before[0]
    assert after[1] != before[1]
    assert sql.execute("SELECT n::text FROM numbers ORDER BY id").fetchall() == [("1.0",), ("2.0",)]


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
