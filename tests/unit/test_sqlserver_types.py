"""SQL Server's values on the wire, and back as parameters of a key."""

import struct
from base64 import b64decode
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.model import Column, Kind, Value
from upwell.sources.sqlserver_types import ServerType
from upwell.targets.postgres_types import target_type


def of(name: str, length: int = 8, precision: int = 0, scale: int = 0, **more: Any) -> ServerType:
    return ServerType(name, length, precision, scale, **more)


# type → (as it is declared, what it holds, PostgreSQL's type, whether `plan` warns)
TYPES: dict[ServerType, tuple[str, Kind, str, bool]] = {
    of("bit", 1): ("bit", Kind.BOOL, "boolean", False),
    of("tinyint", 1): ("tinyint", Kind.INT, "bigint", False),
    of("bigint"): ("bigint", Kind.INT, "bigint", False),
    of("decimal", 17, 38, 10): ("decimal(38,10)", Kind.DECIMAL, "numeric(38,10)", False),
    of("numeric", 5, 9, 0): ("numeric(9,0)", Kind.DECIMAL, "numeric(9,0)", False),
    of("money"): ("money", Kind.DECIMAL, "numeric(19,4)", False),
    of("smallmoney", 4): ("smallmoney", Kind.DECIMAL, "numeric(19,4)", False),
    of("float"): ("float", Kind.FLOAT, "double precision", False),
    of("real", 4): ("real", Kind.FLOAT, "double precision", False),
    of("nvarchar", 400): ("nvarchar(200)", Kind.TEXT, "text", False),
    of("nvarchar", -1): ("nvarchar(max)", Kind.TEXT, "text", False),
    of("varchar", 50): ("varchar(50)", Kind.TEXT, "text", False),
    of("nchar", 20): ("nchar(10)", Kind.TEXT, "text", False),
    of("text", 16): ("text", Kind.TEXT, "text", False),
    of("xml", -1): ("xml", Kind.OTHER, "text", False),
    of("varbinary", -1): ("varbinary(max)", Kind.BYTES, "bytea", False),
    of("timestamp"): ("rowversion", Kind.BYTES, "bytea", False),
    of("image", 16): ("image", Kind.BYTES, "bytea", False),
    of("date", 3): ("date", Kind.DATE, "date", False),
    of("time", 5, 16, 7): ("time(7)", Kind.TIME, "time without time zone", True),
    of("time", 3, 8, 0): ("time(0)", Kind.TIME, "time without time zone", False),
    of("datetime"): ("datetime", Kind.TIMESTAMP, "timestamp without time zone", False),
    of("smalldatetime", 4): ("smalldatetime", Kind.TIMESTAMP, "timestamp without time zone", False),
    of("datetime2", 8, 27, 7): ("datetime2(7)", Kind.TIMESTAMP, "timestamp without time zone", True),
    of("datetimeoffset", 10, 34, 3): ("datetimeoffset(3)", Kind.TIMESTAMPTZ, "timestamp with time zone", True),
    of("uniqueidentifier", 16): ("uniqueidentifier", Kind.UUID, "uuid", False),
    of("sql_variant", 8016): ("sql_variant", Kind.OTHER, "text", False),
    of("hierarchyid", 892, assembly=True): ("hierarchyid", Kind.OTHER, "text", False),
    of("geography", -1, assembly=True): ("geography", Kind.BYTES, "bytea", False),
    of("Point3", -1, assembly=True): ("Point3", Kind.BYTES, "bytea", False),
    of("json", -1): ("json", Kind.JSON, "json", False),
}


@pytest.mark.parametrize("type_", TYPES, ids=lambda type_: type_.declared)
def test_every_type_has_a_name_a_kind_and_one_in_postgresql(type_: ServerType) -> None:
    declared, kind, there, warns = TYPES[type_]
    assert (type_.declared, type_.kind) == (declared, kind)
    found, warning = target_type(Column("c", type_.declared, type_.kind), "sqlserver")
    assert (found, warning is not None) == (there, warns)


def wire(type_: ServerType, *values: Any) -> list[Value]:
    """As they are after a row was encoded and decoded."""
    return [orjson.loads(orjson.dumps(value)) for value in type_.finish(values)]


def test_what_the_server_has_turned_into_text_becomes_iso_8601() -> None:
    assert wire(of("datetime2"), "2026-01-31 10:00:00.1234567", None) == ["2026-01-31T10:00:00.1234567", None]
    assert wire(of("smalldatetime"), "2026-01-31 10:00:00") == ["2026-01-31T10:00:00"]
    zoned = ["2026-01-31 10:00:00.1234567 +02:00", "0001-01-01 00:00:00 -14:00", "2026-01-31 10:00:00.0 +00:00", None]
    assert wire(of("datetimeoffset"), *zoned) == [
        "2026-01-31T10:00:00.1234567+02:00",
        "0001-01-01T00:00:00-14:00",
        "2026-01-31T10:00:00.0Z",
        None,
    ]


def test_bits_are_booleans_whatever_the_driver_makes_of_them() -> None:
    assert orjson.dumps(of("bit").finish([True, 0, 1, None])) == b"[true,false,true,null]"


@given(st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1))))
def test_integers_beyond_a_json_number_are_text(values: list[int | None]) -> None:
    found = wire(of("bigint"), *values)
    assert [None if value is None else int(value) for value in found] == values
    assert all(isinstance(f, str) == (abs(v) > 2**53) for f, v in zip(found, values, strict=True) if v is not None)


@given(st.binary(max_size=40))
def test_bytes_are_base64(value: bytes) -> None:
    (found,) = wire(of("varbinary"), value)
    assert isinstance(found, str)
    assert b64decode(found, validate=True) == value


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_reals_are_as_short_as_they_can_be_and_come_back_the_same(value: float) -> None:
    (found,) = wire(of("real", 4), value)
    assert isinstance(found, float)
    assert struct.pack("<f", found) == struct.pack("<f", value)
    assert len(repr(found)) <= len(repr(value))


def test_a_tenth_is_a_tenth() -> None:
    assert wire(of("real", 4), struct.unpack("<f", struct.pack("<f", 0.1))[0], -0.0) == [0.1, -0.0]


@pytest.mark.parametrize(
    ("type_", "value", "parameter", "sql"),
    [
        (of("int", 4), 7, 7, "CONVERT(int, ?)"),
        (of("bigint"), "9223372036854775807", 2**63 - 1, "CONVERT(bigint, ?)"),
        (of("bit", 1), True, 1, "CONVERT(bit, ?)"),
        (of("decimal", 9, 12, 2), "12.50", "12.50", "CONVERT(decimal(12,2), ?)"),
        (of("nvarchar", 40), "ä'?", "ä'?", "CONVERT(nvarchar(20), ?)"),
        (of("varchar", 40, collation="Greek_CI_AS"), "Ω", "Ω", "CONVERT(varchar(40), ? COLLATE Greek_CI_AS)"),
        (of("float"), 0.1, "0.1", "CONVERT(float, ?)"),
        (of("varbinary", 8), "AAE=", b"\0\1", "CONVERT(varbinary(8), ?)"),
        (of("date", 3), "2026-01-31", "2026-01-31", "CONVERT(date, ?, 23)"),
        (of("datetime2", 8, 27, 7), "2026-01-31T10:00:00.1234567", "2026-01-31 10:00:00.1234567",
         "CONVERT(datetime2(7), ?, 121)"),
        (of("datetimeoffset", 10, 34, 7), "2026-01-31T10:00:00.1234567+02:00", "2026-01-31 10:00:00.1234567 +02:00",
         "CONVERT(datetimeoffset(7), ?, 121)"),
        (of("datetimeoffset", 10, 34, 7), "2026-01-31T10:00:00.1234567Z", "2026-01-31 10:00:00.1234567 +00:00",
         "CONVERT(datetimeoffset(7), ?, 121)"),
        (of("time", 5, 16, 7), "10:00:00.1234567", "10:00:00.1234567", "CONVERT(time(7), ?, 121)"),
        (of("uniqueidentifier", 16), "0e984725-c51c-4bf4-9960-e1c80e27aba0", "0e984725-c51c-4bf4-9960-e1c80e27aba0",
         "CONVERT(uniqueidentifier, ?)"),
        (of("hierarchyid", 892, assembly=True), "/1/2/", "/1/2/", "hierarchyid::Parse(?)"),
    ],
    ids=lambda each: each.declared if isinstance(each, ServerType) else None,
)  # fmt: skip
def test_a_keys_value_goes_back_as_exactly_what_it_was(
    type_: ServerType, value: Value, parameter: object, sql: str
) -> None:
    assert type_.parameter_value(value) == parameter
    assert type_.parameter("?") == sql


def test_text_in_a_code_page_is_made_unicode_by_the_server_that_knows_the_page() -> None:
    assert of("varchar", 50).select("t.[a]") == "CONVERT(nvarchar(50), t.[a])"
    assert of("varchar", 5000).select("t.[a]") == "CONVERT(nvarchar(max), t.[a])"
    assert of("nvarchar", -1).select("t.[a]") == "t.[a]"


def test_keys_that_can_look_different_and_be_equal_are_loose() -> None:
    assert [of(name).loose for name in ("nvarchar", "char", "varbinary", "datetimeoffset", "float")] == [True] * 5
    assert [of(name).loose for name in ("int", "uniqueidentifier", "decimal", "datetime2", "date")] == [False] * 5
