"""What the API shows: its contract, and keys as they stand in a URL."""

from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.read_homes import key_text
from tests.read_shop import TABLES
from upwell.errors import ConfigError
from upwell.exposure import ExposedTable, Wanted, contract, expose, exposed, key_of, tenant_of, value_of
from upwell.model import Column, Kind, TableSchema, Value
from upwell.ports import ReadIndex
from upwell.presentation import row_presenter

WANTED = {
    table.name: Wanted(table.schema.table, tuple(column.name for column in table.columns), table.tenant, table.indexes)
    for table in TABLES
}


def test_what_is_written_is_read_again() -> None:
    content = contract(TABLES)
    assert contract(TABLES) == content
    assert exposed(content, WANTED, "file") == TABLES


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"null", b'{"upwell-api": 2, "tables": {}}', b'{"upwell-api": 1, "tables": {}}', b"\xff"],
)
def test_another_file_is_refused_with_the_command_that_writes_it(content: bytes) -> None:
    with pytest.raises(ConfigError) as error:
        exposed(content, WANTED, "file")
    assert error.value.code == "UW-AP-001"
    assert "api --learn" in error.value.remedy


def damaged(change: Any) -> bytes:
    document = orjson.loads(contract(TABLES))
    change(document["tables"]["orders"])
    return orjson.dumps(document)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.update(table="dbo.other"),
        lambda table: table["columns"].pop("note"),
        lambda table: table["columns"].update(secret="text text"),
        lambda table: table.update(unshown={}),
        lambda table: table.update(key=["nothing"]),
        lambda table: table["columns"].update(id="strange int"),
        lambda table: table.pop("dialect"),
    ],
)
def test_a_contract_that_does_not_fit_is_refused(change: Any) -> None:
    with pytest.raises(ConfigError) as error:
        exposed(damaged(change), WANTED, "file")
    assert error.value.code == "UW-AP-001"


SCHEMA = TableSchema(
    "dbo.t",
    (
        Column("id", "int", Kind.INT),
        Column("flag", "bit", Kind.BOOL),
        Column("limit", "int", Kind.INT),
        Column("price", "money", Kind.DECIMAL),
    ),
    ("id",),
    "sqlserver",
)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Wanted("dbo.t", ("id", "nothing"), None, {}), "no column nothing"),
        (Wanted("dbo.t", ("id",), "nothing", {}), "no column nothing"),
        (Wanted("dbo.t", ("id",), "price", {}), "can't name a tenant"),
        (Wanted("dbo.t", ("id",), None, {"by-flag": ReadIndex("by-flag", "flag")}), "nothing can be found by flag"),
        (Wanted("dbo.t", ("id",), None, {"by-id": ReadIndex("by-id", "id", "flag")}), "nothing can be found by flag"),
        (Wanted("dbo.t", ("id",), None, {"by-limit": ReadIndex("by-limit", "limit")}), "called limit"),
    ],
)
def test_what_can_not_be_exposed_is_told(wanted: Wanted, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        expose("t", wanted, SCHEMA)
    assert (error.value.code, said in error.value.message) == ("UW-AP-002", True)


def column(kind: Kind) -> Column:
    return Column("x", kind.value, kind)


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=4))
def test_any_texts_make_a_key(parts: list[str]) -> None:
    assert key_of(key_text(*parts), [column(Kind.TEXT)] * len(parts)) == parts


@given(st.text(max_size=30))
def test_whatever_is_asked_for_is_a_key_or_a_sentence(text: str) -> None:
    for kind in Kind:
        with suppress(ValueError):
            key_of(text, [column(kind)])


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Kind.INT, "0", 0),
        (Kind.INT, "-42", -42),
        (Kind.INT, "9007199254740992", 2**53),
        (Kind.INT, "9007199254740993", "9007199254740993"),
        (Kind.BOOL, "true", True),
        (Kind.BOOL, "false", False),
        (Kind.DECIMAL, "-12.50", "-12.50"),
        (Kind.FLOAT, "1.5", 1.5),
        (Kind.FLOAT, "NaN", "NaN"),
        (Kind.UUID, "6F9619FF-8B86-D011-B42D-00C04FC964FF", "6f9619ff-8b86-d011-b42d-00c04fc964ff"),
        (Kind.TEXT, " x ", " x "),
        (Kind.DATE, "2026-01-31", "2026-01-31"),
    ],
)
def test_values_as_callers_write_them(kind: Kind, text: str, value: Value) -> None:
    assert value_of(column(kind), text) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [(Kind.INT, each) for each in ("", "-0", "+1", "01", "1.0", "1e3", "٣", "1 ", "9" * 40)]
    + [(Kind.BOOL, each) for each in ("True", "1", "")]
    + [(Kind.DECIMAL, each) for each in ("1.", ".5", "1e5", "Infinity")]
    + [(Kind.FLOAT, each) for each in ("inf", "nan", "0x1")]
    + [(Kind.UUID, each) for each in ("x", "6f9619ff8b86d011b42d00c04fc964ff")],
)
def test_values_of_another_form(kind: Kind, text: str) -> None:
    with pytest.raises(ValueError, match="another form"):
        value_of(column(kind), text)


def test_a_tenant_is_one_text() -> None:
    assert tenant_of(column(Kind.INT), "7") == "7"
    assert tenant_of(column(Kind.INT), "07") is None
    assert (
        tenant_of(column(Kind.UUID), "6F9619FF-8B86-D011-B42D-00C04FC964FF") == "6f9619ff-8b86-d011-b42d-00c04fc964ff"
    )
    assert tenant_of(column(Kind.TEXT), "A") == "A"


@pytest.mark.parametrize(
    ("type_", "kind", "wire", "shown"),
    [
        ("money", Kind.DECIMAL, "12.5", "12.5000"),
        ("decimal(9,2)", Kind.DECIMAL, "-0.5", "-0.50"),
        ("decimal(9)", Kind.DECIMAL, "12", "12"),
        ("datetime", Kind.TIMESTAMP, "2026-01-31T10:00:00", "2026-01-31T10:00:00.000"),
        ("datetime2(7)", Kind.TIMESTAMP, "2026-01-31T10:00:00.5", "2026-01-31T10:00:00.5000000"),
        ("smalldatetime", Kind.TIMESTAMP, "2026-01-31T10:00:00", "2026-01-31T10:00:00"),
        ("time(3)", Kind.TIME, "10:00:00.12", "10:00:00.120"),
        ("datetimeoffset(2)", Kind.TIMESTAMPTZ, "2026-01-31T10:00:00.1+02:00", "2026-01-31T10:00:00.10+02:00"),
        ("float", Kind.FLOAT, -0.0, 0.0),
        ("nvarchar(9)", Kind.TEXT, "12.5", "12.5"),
        ("json", Kind.JSON, '{"b": 1.50, "a": [null, true]}', '{"a":[null,true],"b":1.5}'),
        ("json", Kind.JSON, 7, "7"),
        ("json", Kind.JSON, "7.50", "7.5"),
        ("json", Kind.JSON, '"7"', '"7"'),
    ],
)
def test_values_as_they_are_shown(type_: str, kind: Kind, wire: Value, shown: Value) -> None:
    present = row_presenter(TableSchema("dbo.t", (Column("x", type_, kind),), ("x",), "sqlserver"))
    for value, expected in ((wire, shown), (shown, shown), (None, None)):
        assert repr(present([value])) == repr([expected])


def test_tables_are_named_as_in_the_source() -> None:
    found: list[ExposedTable] = exposed(contract(TABLES), {"orders": WANTED["orders"]}, "file")
    assert [table.schema.table for table in found] == ["dbo.orders"]
