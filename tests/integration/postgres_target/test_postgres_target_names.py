"""Whatever a table or a column is called, the name is only that; where a table goes."""

from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.contract.target_contract import PIPELINE, put, upsert
from tests.integration.postgres_target.schemas import SLOW, table
from upwell.errors import OperatorError
from upwell.model import Column, Kind, TableSchema
from upwell.targets.postgres import PostgresTarget

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
