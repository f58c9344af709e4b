"""Every type: stream and snapshot give the same bytes, and the database itself reads back from them what it holds."""

import base64
import math
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.parts import PostgresServer
from tests.integration.postgres_shop import Shop, open_shop
from upwell.model import Kind

TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=40)
# What COPY escapes, what JSON escapes, what looks like NULL, an array, a number.
TRICKY = st.sampled_from(
    ["", "\\N", "\\", "\t", "\n\r\b\f\v", '"', "'", "{}", "null", "\u2028", "\\x00", "a\\tb", "🙂"]
)
DIGITS = st.text("0123456789", min_size=1, max_size=60)


def floats(width: int) -> st.SearchStrategy[str]:
    return st.floats(width=32 if width == 32 else 64).map(repr)


def among(*values: str) -> st.SearchStrategy[str]:
    return st.sampled_from(values)


def integers(bits: int) -> st.SearchStrategy[str]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).map(str)


DATES = among("2026-01-31", "0044-03-15 BC", "4713-01-01 BC", "12026-12-31", "infinity", "-infinity", "0001-01-01")
TIMES = among("10:00:00", "10:00:00.5", "23:59:59.999999", "24:00:00", "00:00:00.000001")
STAMPS = among(
    "2026-01-31 10:00:00",
    "2026-01-31 10:00:00.120000",
    "0044-03-15 10:00:00.5 BC",
    "12026-01-31 00:00:00.000001",
    "infinity",
    "-infinity",
)

# column → (declared type, what its column in the schema says, kind, values as text)
TYPES: dict[str, tuple[str, str, Kind, st.SearchStrategy[str]]] = {
    "bool": ("boolean", "boolean", Kind.BOOL, among("t", "f")),
    "int2": ("smallint", "smallint", Kind.INT, integers(16)),
    "int4": ("integer", "integer", Kind.INT, integers(32)),
    "int8": (
        "bigint",
        "bigint",
        Kind.INT,
        integers(64) | among(str(2**53), str(2**53 + 1), str(-(2**53)), str(-(2**53) - 1)),
    ),
    "oid": ("oid", "oid", Kind.INT, among("0", "4294967295")),
    "numeric": (
        "numeric",
        "numeric",
        Kind.DECIMAL,
        st.builds("{}.{}".format, DIGITS, DIGITS) | among("NaN", "0.00", "-1e-500", "1e300"),
    ),
    "numeric_12_2": (
        "numeric(12,2)",
        "numeric(12,2)",
        Kind.DECIMAL,
        st.integers(-(10**11), 10**11).map(lambda n: f"{n / 100:.2f}"),
    ),
    "float4": ("real", "real", Kind.FLOAT, floats(32)),
    "float8": ("double precision", "double precision", Kind.FLOAT, floats(64) | among("-0", "1e22", "5e-324", "NaN")),
    "text": ("text", "text", Kind.TEXT, TEXT | TRICKY),
    "varchar": ("varchar(60)", "character varying(60)", Kind.TEXT, TEXT | TRICKY),
    "bpchar": ("char(5)", "character(5)", Kind.TEXT, among("", "a", "a b", "ü    ", "12345")),
    "name": ("name", "name", Kind.TEXT, among("n", "")),
    "char": ('"char"', '"char"', Kind.TEXT, among("x", "")),
    "bytea": ("bytea", "bytea", Kind.BYTES, st.binary(max_size=40).map(lambda b: "\\x" + b.hex())),
    "date": ("date", "date", Kind.DATE, DATES),
    "time": ("time", "time without time zone", Kind.TIME, TIMES),
    "time3": ("time(3)", "time(3) without time zone", Kind.TIME, TIMES),
    "timetz": ("timetz", "time with time zone", Kind.OTHER, among("10:00:00+02", "23:59:59.9-05:30")),
    "timestamp": ("timestamp", "timestamp without time zone", Kind.TIMESTAMP, STAMPS),
    "timestamp0": ("timestamp(0)", "timestamp(0) without time zone", Kind.TIMESTAMP, STAMPS),
    "timestamptz": ("timestamptz", "timestamp with time zone", Kind.TIMESTAMPTZ, STAMPS),
    "interval": ("interval", "interval", Kind.OTHER, among("1 day -00:00:01.5", "P1Y2M3DT4H5M6S", "-1 mon")),
    "uuid": ("uuid", "uuid", Kind.UUID, st.uuids().map(lambda u: str(u).upper())),
    "json": ("json", "json", Kind.JSON, among('{"b": 1,  "a": [1e400, null]}', '"\\u00e9\\n"', "null", "{}")),
    "jsonb": ("jsonb", "jsonb", Kind.JSON, among('{"b":1,"a":[1e400,null]}', '"\\u00e9\\n"', "null", '{"k":"\\\\"}')),
    "ints": ("int[]", "integer[]", Kind.OTHER, among("{}", "{1,NULL,3}", "{{1,2},{3,4}}", "[0:1]={5,6}")),
    "texts": ("text[]", "text[]", Kind.OTHER, among('{"a b",NULL,"NULL","\\"","\\\\"}', "{}", "{ü}")),
    "range": ("int4range", "int4range", Kind.OTHER, among("empty", "[1,5)", "(,)")),
    "tsrange": ("tstzrange", "tstzrange", Kind.OTHER, among('["2026-01-01 00:00:00+00",)')),
    "inet": ("inet", "inet", Kind.OTHER, among("10.0.0.1/8", "::1")),
    "cidr": ("cidr", "cidr", Kind.OTHER, among("10.0.0.0/8")),
    "mac": ("macaddr", "macaddr", Kind.OTHER, among("08:00:2b:01:02:03")),
    "bits": ("bit(3)", "bit(3)", Kind.OTHER, among("101")),
    "varbits": ("varbit", "bit varying", Kind.OTHER, among("", "1", "10101")),
    "money": ("money", "money", Kind.OTHER, among("12.34", "-5")),
    "xml": ("xml", "xml", Kind.OTHER, among("<a>ü\n</a>")),
    "point": ("point", "point", Kind.OTHER, among("(1.5,-2)")),
    "words": ("tsvector", "tsvector", Kind.OTHER, among("'a':1 'b':2")),
    "lsn": ("pg_lsn", "pg_lsn", Kind.OTHER, among("16/B374D848")),
    "mood": ("mood", "text", Kind.TEXT, among("happy", 'it\'s "so" so')),
    "moods": ("mood[]", "text[]", Kind.OTHER, among("{happy,NULL}", "{}")),
    "pair": ("pair", "text", Kind.OTHER, among('(1,"a b")', "(,)")),
    "email": ("email", "character varying(30)", Kind.TEXT, among("a@b.c")),
    "vip": ("vip", "character varying(30)", Kind.TEXT, among("v@b.c")),
    "price": ("price", "numeric(8,3)", Kind.DECIMAL, among("1.500", "-7")),
    "tags": ("tags", "integer[]", Kind.OTHER, among("{1,2}")),
    "citext": ("public.citext", "text", Kind.TEXT, among("MiXed", "ß")),
    "hstore": ("public.hstore", "text", Kind.OTHER, among('"a"=>"1", "b"=>NULL')),
}
NO_EQUALITY = {"json", "xml", "point"}


@pytest.fixture(scope="module")
def shop(postgres_cluster: PostgresServer) -> Iterator[Shop]:
    postgres_cluster.create_database("test_types")
    try:
        with open_shop(postgres_cluster, "test_types") as shop:
            shop.execute(
                "CREATE TYPE mood AS ENUM ('happy', 'it''s \"so\" so')",
                "CREATE TYPE pair AS (a int, b text)",
                "CREATE DOMAIN email AS varchar(30) CHECK (VALUE LIKE '%@%')",
                "CREATE DOMAIN vip AS email",
                "CREATE DOMAIN price AS numeric(8,3)",
                "CREATE DOMAIN tags AS int[]",
                "CREATE EXTENSION citext",
                "CREATE EXTENSION hstore",
            )
            columns = ", ".join(f'"{name}" {declared}' for name, (declared, *_) in TYPES.items())
            shop.execute(f"CREATE TABLE everything (id serial PRIMARY KEY, {columns})")
            # What the database prints by default must not matter.
            shop.execute(
                "ALTER DATABASE test_types SET datestyle = 'German'",
                "ALTER DATABASE test_types SET timezone = 'Asia/Kolkata'",
                "ALTER DATABASE test_types SET bytea_output = 'escape'",
                "ALTER DATABASE test_types SET intervalstyle = 'iso_8601'",
                "ALTER DATABASE test_types SET extra_float_digits = 0",
                "ALTER DATABASE test_types SET standard_conforming_strings = off",
            )
            shop.start("everything")
            yield shop
    finally:
        postgres_cluster.drop_database("test_types")


def test_columns_are_told_in_the_sources_words(shop: Shop) -> None:
    _, *columns = shop.source.tables()[0].columns
    told = {column.name: (column.type, column.kind) for column in columns}
    assert told == {name: (type_, kind) for name, (_, type_, kind, _) in TYPES.items()}


ROW = st.fixed_dictionaries({name: st.none() | values for name, (*_, values) in TYPES.items()})


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(ROW, min_size=1, max_size=20))
def test_stream_and_snapshot_give_bytes_that_the_database_reads_back(shop: Shop, rows: list[dict[str, Any]]) -> None:
    shop.execute("DELETE FROM everything")
    shop.read()
    names = ", ".join(f'"{name}"' for name in TYPES)
    marks = ", ".join(f"%s::{declared}" for declared, *_ in TYPES.values())
    with shop.connection.transaction(), shop.connection.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO everything ({names}) VALUES ({marks})".encode(),
            [[row[name] for name in TYPES] for row in rows],
        )
    windows = shop.windows()
    assert not [each for window in windows for each in window.rejected]
    streamed = {event.key: event.row for window in windows for event in window.events}
    assert len(streamed) == len(rows)
    assert dict(shop.snapshot("public.everything", 7)) == streamed
    for key, row in streamed.items():
        assert row is not None
        check_values(shop, orjson.loads(key)[0], dict(zip(["id", *TYPES], orjson.loads(row), strict=True)))


def check_values(shop: Shop, id_: int, values: dict[str, Any]) -> None:
    """The database holds the same as what it makes of our values."""
    conditions, parameters = [], []
    for name, (declared, _, kind, _) in TYPES.items():
        value = values[name]
        check_form(name, kind, value)
        same = (
            '"{0}"::text IS NOT DISTINCT FROM (%s::{1})::text'
            if name in NO_EQUALITY
            else '"{0}" IS NOT DISTINCT FROM %s::{1}'
        )
        conditions.append(same.format(name, declared))
        if isinstance(value, str) and kind is Kind.BYTES:
            value = base64.b64decode(value, validate=True)
        parameters.append(value if value is None or isinstance(value, bytes) else text_of(value))
    checks = ", ".join(conditions)
    row = shop.connection.execute(
        f"SELECT {checks} FROM everything WHERE id = %s".encode(), [*parameters, id_]
    ).fetchone()
    assert row is not None
    wrong = {name: values[name] for name, same in zip(TYPES, row, strict=True) if not same}
    assert not wrong


def text_of(value: Any) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def check_form(name: str, kind: Kind, value: Any) -> None:
    """The JSON types and the notations that docs/wire.md promises."""
    if value is None:
        return
    if kind is Kind.BOOL:
        assert isinstance(value, bool)
    elif kind is Kind.INT:
        assert isinstance(value, int if abs(int(value)) <= 2**53 else str), name
    elif kind is Kind.FLOAT:
        assert isinstance(value, float) or value in ("NaN", "Infinity", "-Infinity"), name
    else:
        assert isinstance(value, str), name
    if kind in (Kind.TIMESTAMP, Kind.TIMESTAMPTZ) and "infinity" not in value:
        assert " " not in value.removesuffix(" BC")
        assert value[value.index("T") + 3] == ":"
        assert ("Z" in value) == (kind is Kind.TIMESTAMPTZ)
    if kind is Kind.UUID:
        assert value == value.lower()


def test_floats_keep_their_value_and_sign(shop: Shop) -> None:
    shop.execute("""INSERT INTO everything (float8, float4) VALUES ('-0', '0.1'), ('1e22', '3.4028235e38')""")
    rows = [event.values() for event in shop.read() if event.row]
    places = ["id", *TYPES]
    doubles = [row[places.index("float8")] for row in rows]
    assert [math.copysign(1.0, float(str(value))) for value in doubles] == [-1.0, 1.0]
    assert [row[places.index("float4")] for row in rows] == [0.1, 3.4028235e38]


KEYS: dict[str, tuple[str, ...]] = {
    "text": ("", "a", "A", "ä", "b", "Z", "z z", "'", "\\", "\t", "日本", "🙂", "\\N"),
    'text COLLATE "C"': ("", "a", "A", "ä", "b", "Z", "z z"),
    "varchar(10)": ("", "a", "B", "b"),
    "char(4)": ("", "a", "a b", "B"),
    "numeric": ("1", "1.5", "10", "-3.25", "NaN", "1e40", "0.00000001"),
    "double precision": ("1.5", "-0", "1e300", "NaN", "Infinity", "-Infinity", "0.1", "5e-324"),
    "real": ("0.1", "1e30", "-7", "16777217"),
    "bigint": ("9223372036854775807", "-9223372036854775808", "0", "9007199254740993"),
    "uuid": ("9f0c2f1e-3c3c-4c3c-9c3c-9c3c9c3c9c3c", "00000000-0000-0000-0000-000000000000"),
    "timestamptz": ("2026-01-31 10:00:00.5+05:30", "infinity", "-infinity", "0044-03-15 10:00:00 BC"),
    "timestamp": ("2026-01-31 10:00:00", "12026-01-31", "infinity"),
    "date": ("2026-01-31", "4713-01-01 BC", "infinity"),
    "interval": ("1 day", "25:00:00", "-1 mon", "1 year 2 mons"),
    "bytea": ("\\x", "\\x00", "\\xff", "\\x5c"),
    "inet": ("10.0.0.1", "10.0.0.1/8", "::1"),
    "boolean": ("t", "f"),
    "mood": ("happy", 'it\'s "so" so'),
    "email": ("b@b", "a@b"),
    "int[]": ("{}", "{1}", "{1,NULL}", "{{1}}"),
    "jsonb": ("1", "null", '"a"', "{}", "[1]"),
    "int4range": ("empty", "[1,2)", "(,)"),
    "bit(2)": ("00", "10"),
    "public.citext": ("a", "B", "c"),
}


@pytest.mark.parametrize("type_", KEYS)
def test_a_table_is_read_in_the_order_of_any_key(shop: Shop, type_: str) -> None:
    """In chunks of two rows, each going on where the last one ended, by a key of two columns."""
    shop.execute("DROP TABLE IF EXISTS keyed", f"CREATE TABLE keyed (n int, k {type_}, PRIMARY KEY (k, n))")
    shop.track("keyed")
    source = shop.make("keyed")
    shop.position, _ = source.start(None, 1)
    declared = type_.split(" COLLATE")[0]
    with shop.connection.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO keyed SELECT n, %s::{declared} FROM generate_series(1, 3) n".encode(),
            [[value] for value in KEYS[type_]],
        )
    chunks = shop.chunks("public.keyed", 2)
    assert [len(chunk.rows) for chunk in chunks[:-1]] == [2] * (len(chunks) - 1)
    rows = [row for chunk in chunks for row in chunk.rows]
    assert len(rows) == len(dict(rows)) == 3 * len(KEYS[type_])
    assert dict(rows) == {event.key: event.row for event in shop.read()}
    # Keys are found again, whatever they look like.
    shop.execute("UPDATE keyed SET n = n + 10")
    changed = shop.read()
    assert {event.key for event in changed if event.operation == "d"} == set(dict(rows))


def test_keys_that_are_equal_have_equal_bytes(shop: Shop) -> None:
    shop.execute("CREATE TABLE amounts (a numeric, b double precision, c numeric(8,2), PRIMARY KEY (a, b, c))")
    shop.track("amounts")
    source = shop.make("amounts")
    shop.position, _ = source.start(None, 1)
    shop.execute("INSERT INTO amounts VALUES (1.00, 0, 5)", "UPDATE amounts SET a = 1.0, b = '-0', c = 5.0")
    shop.execute("UPDATE amounts SET a = 100")
    assert [(event.operation, event.key) for event in shop.read()] == [
        ("u", b'["1",0.0,"5.00"]'),
        ("u", b'["1",0.0,"5.00"]'),
        ("d", b'["1",0.0,"5.00"]'),
        ("u", b'["100",0.0,"5.00"]'),
    ]
