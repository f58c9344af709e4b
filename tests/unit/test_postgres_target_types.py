"""Which type a column gets in a PostgreSQL target, and COPY's text format."""

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.errors import Rejected
from upwell.model import Column, Kind, Value
from upwell.targets.postgres_types import copy_data, copy_lines, target_type


@pytest.mark.parametrize(
    "type_",
    [
        "integer", "bigint[]", "numeric(12,2)", "numeric(10,2)[]", "character varying(20)", '"char"', "money",
        "timestamp(3) with time zone", "timestamp without time zone[]", "time(0) without time zone", "interval",
        "interval day to second(3)", "interval(2)", "bit varying(5)", "int4range", "tstzmultirange", "jsonb",
        "double precision",
    ],
)  # fmt: skip
def test_postgres_types_stay_as_they_are(type_: str) -> None:
    assert target_type(Column("c", type_, Kind.OTHER), "postgresql") == (type_, None)


@pytest.mark.parametrize(
    "type_", ["mood", "public.mood", "integer); DROP TABLE t; --", "geometry(Point,4326)", 'x."y z"', "", "citext[]"]
)
def test_what_is_no_type_of_postgresql_becomes_text(type_: str) -> None:
    chosen, warning = target_type(Column("c", type_, Kind.OTHER), "postgresql")
    assert chosen == "text"
    assert warning is not None


@pytest.mark.parametrize(
    ("dialect", "type_", "kind", "expected", "warned"),
    [
        ("sqlite", "INTEGER", Kind.INT, "bigint", True),
        ("sqlite", "REAL", Kind.FLOAT, "double precision", True),
        ("sqlite", "DECIMAL(10,2)", Kind.DECIMAL, "numeric", True),
        ("sqlite", "VARCHAR(20)", Kind.TEXT, "text", True),
        ("sqlite", "BLOB", Kind.BYTES, "bytea", True),
        ("sqlite", "", Kind.OTHER, "text", True),
        ("sqlserver", "decimal(12,2)", Kind.DECIMAL, "numeric(12,2)", False),
        ("sqlserver", "money", Kind.DECIMAL, "numeric(19,4)", False),
        ("sqlserver", "nvarchar(max)", Kind.TEXT, "text", False),
        ("sqlserver", "datetime2(6)", Kind.TIMESTAMP, "timestamp without time zone", False),
        ("sqlserver", "datetime2(7)", Kind.TIMESTAMP, "timestamp without time zone", True),
        ("sqlserver", "datetimeoffset(3)", Kind.TIMESTAMPTZ, "timestamp with time zone", True),
        ("sqlserver", "rowversion", Kind.BYTES, "bytea", False),
        ("mysql", "bigint unsigned", Kind.INT, "numeric(20,0)", False),
        ("mysql", "bigint(20) unsigned", Kind.INT, "numeric(20,0)", False),
        ("mysql", "int(10) unsigned", Kind.INT, "bigint", False),
        ("mariadb", "decimal(65,30)", Kind.DECIMAL, "numeric(65,30)", False),
        ("mysql", "datetime(6)", Kind.TIMESTAMP, "timestamp without time zone", False),
    ],
)
def test_types_of_other_databases(dialect: str, type_: str, kind: Kind, expected: str, warned: bool) -> None:
    chosen, warning = target_type(Column("c", type_, kind), dialect)
    assert chosen == expected
    assert (warning is not None) is warned


@given(st.text(max_size=60), st.sampled_from(Kind), st.sampled_from(["postgresql", "sqlite", "sqlserver", "mysql"]))
def test_nothing_of_a_hostile_type_reaches_sql(type_: str, kind: Kind, dialect: str) -> None:
    chosen, _ = target_type(Column("c", type_, kind), dialect)
    assert re.fullmatch(r'"char"|[a-z0-9_ ]+(\([0-9, -]+\))?[a-z ]*(\[\])*', chosen)


COLUMNS = [Column("n", "integer", Kind.INT), Column("t", "text", Kind.TEXT), Column("b", "bytea", Kind.BYTES)]
TYPES = ["bigint", "text", "bytea"]
ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}


def read_copy(data: bytes) -> list[list[str | None]]:
    """COPY's text format, as PostgreSQL's documentation describes it."""
    rows = []
    for line in data.decode().removesuffix("\n").split("\n"):
        fields = [None if field == "\\N" else field for field in line.split("\t")]
        rows.append([f if f is None else re.sub(r"\\(.)", lambda m: ESCAPES[m[1]], f, flags=re.S) for f in fields])
    return rows


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
ROW = st.tuples(
    st.none() | st.integers() | st.booleans() | TEXT,
    st.none() | TEXT | st.text("\\N.\t\n\r") | st.integers() | st.floats(allow_nan=False),
    st.none() | st.binary(),
)


@given(st.lists(ROW, min_size=1, max_size=20))
def test_copy_reads_back_what_was_written(rows: list[tuple[Value, Value, bytes | None]]) -> None:
    wire = [[n, t, None if b is None else base64.b64encode(b).decode()] for n, t, b in rows]

    def text(value: Value, numeric: bool) -> str | None:
        if isinstance(value, bool):
            return str(int(value)) if numeric else str(value).lower()
        return value if value is None else str(value)

    expected = [[text(n, True), text(t, False), None if b is None else "\\x" + b.hex()] for n, t, b in rows]
    assert read_copy(copy_data(COLUMNS, TYPES, wire)) == expected


@pytest.mark.parametrize("wrong", ["***", "abc", "YWJj\n", 7, True, "é"])
def test_what_is_not_base64_is_refused_without_a_word_of_it(wrong: Value) -> None:
    with pytest.raises(Rejected) as refused:
        copy_data(COLUMNS, TYPES, [[1, "t", "YWJj"], [1, "t", wrong]])
    assert str(wrong) not in str(refused.value).replace("'b'", "")


@given(st.lists(st.sampled_from(["good", "no base64", "NUL", "both"]), min_size=1, max_size=12))
def test_each_row_that_is_refused_is_named_and_the_lines_of_the_others_are_theirs(kinds: list[str]) -> None:
    rows: list[list[Value]] = [
        [n, "a\0b" if kind in ("NUL", "both") else f"t{n}", "***" if kind in ("no base64", "both") else "AAEC"]
        for n, kind in enumerate(kinds)
    ]
    lines, refused = copy_lines(COLUMNS, TYPES, rows)
    assert refused.keys() == {n for n, kind in enumerate(kinds) if kind != "good"}
    good = [n for n in range(len(rows)) if n not in refused]
    assert [lines[n] for n in good] == [f"{n}\tt{n}\t\\\\x000102" for n in good]


@pytest.mark.parametrize("rows", [[[1, "t"]], [[1, "t", None, None]], [[1, "t", None], [1]]])
def test_rows_of_another_length_are_refused(rows: list[list[Value]]) -> None:
    with pytest.raises(Rejected):
        copy_data(COLUMNS, TYPES, rows)


def test_bytes_for_a_column_of_text_stay_base64() -> None:
    assert copy_data(COLUMNS, ["bigint", "text", "text"], [[1, None, "YWJj"]]) == b"1\t\\N\tYWJj\n"
