"""Row filters, compared with SQLite's own answers."""

import math
import sqlite3
from collections.abc import Sequence
from decimal import Decimal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from upwell.comparison import WhereError, like_matcher
from upwell.model import Column, Kind, TableSchema, Value
from upwell.where import Where

SCHEMA = TableSchema(
    "main.t",
    (
        Column("i", "INTEGER", Kind.INT),
        Column("j", "INTEGER", Kind.INT),
        Column("r", "REAL", Kind.FLOAT),
        Column("s", "TEXT", Kind.TEXT),
        Column("Name", "TEXT", Kind.TEXT),
        Column("day", "DATE", Kind.DATE),
        Column("at", "TIMESTAMP", Kind.TIMESTAMP),
        Column("b", "BOOLEAN", Kind.BOOL),
    ),
    ("i",),
    "sqlite",
)

INTEGERS = st.integers(-3, 3) | st.integers(-(2**63), 2**63 - 1)
FLOATS = st.sampled_from([-1.5, -0.0, 0.1, 0.5, 1.0, 2.0, 1e300]) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text("ab%_é \U0001f600'", max_size=5)
DAYS = st.dates().map(str)
MOMENTS = st.datetimes().map(lambda moment: moment.isoformat(" ", "microseconds"))


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def number(value: float) -> str:
    return repr(value)


SIGNS = st.sampled_from(["=", "<>", "!=", "<", "<=", ">", ">="])


def comparisons(column: str, constants: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds(lambda sign, c: f"{column} {sign} {c}", SIGNS, constants),
        st.builds(lambda sign, c: f"{c} {sign} {column}", SIGNS, constants),
        st.builds(lambda low, high: f"{column} BETWEEN {low} AND {high}", constants, constants),
        st.builds(lambda low, high: f"{column} NOT BETWEEN {low} AND {high}", constants, constants),
        st.lists(constants, min_size=1, max_size=3).map(lambda cs: f"{column} IN ({', '.join(cs)})"),
        st.lists(constants, min_size=1, max_size=3).map(lambda cs: f"{column} NOT IN ({', '.join(cs)})"),
        st.sampled_from([f"{column} IS NULL", f"{column} IS NOT NULL"]),
    )


LIKES = st.builds(lambda word, pattern: f"s {word} {quoted(pattern)}", st.sampled_from(["LIKE", "NOT LIKE"]), TEXTS)
ATOMS = st.one_of(
    comparisons("i", INTEGERS.map(number) | st.sampled_from(["0.5", "-1.0"])),
    comparisons("r", FLOATS.map(number)),
    comparisons("s", TEXTS.map(quoted)),
    comparisons('"Name"', TEXTS.map(quoted)),
    comparisons("day", DAYS.map(quoted)),
    comparisons("at", MOMENTS.map(quoted)),
    st.sampled_from(["b", "b = TRUE", "b <> FALSE", "b = 1", "i < j", "i = j", "i >= r", "s = name", "s > Name"]),
    LIKES,
)
CONDITIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.builds(lambda a, b: f"{a} AND {b}", inner, inner),
        st.builds(lambda a, b: f"({a} OR {b})", inner, inner),
        st.builds(lambda a: f"NOT ({a})", inner),
        st.builds(lambda a: f"NOT {a}", ATOMS),
    ),
    max_leaves=6,
)


def or_null(values: st.SearchStrategy[Value]) -> st.SearchStrategy[Value]:
    return st.none() | values


ROWS = st.tuples(
    or_null(INTEGERS),
    or_null(INTEGERS),
    or_null(FLOATS),
    or_null(TEXTS),
    or_null(TEXTS),
    or_null(DAYS),
    or_null(MOMENTS),
    or_null(st.booleans()),
)

DATABASE = sqlite3.connect(":memory:")
DATABASE.execute("PRAGMA case_sensitive_like = ON")
DATABASE.execute(f"CREATE TABLE t ({', '.join(f'{quoted(c.name)} {c.type}' for c in SCHEMA.columns)})")


def asked_of_sqlite(condition: str, row: Sequence[Value]) -> bool | None:
    DATABASE.execute("DELETE FROM t")
    DATABASE.execute("INSERT INTO t VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    (answer,) = DATABASE.execute(f"SELECT {condition} FROM t").fetchone()
    return None if answer is None else bool(answer)


def on_the_wire(row: Sequence[Value]) -> list[Value]:
    """Large integers travel as text, timestamps with a T."""
    values = [str(v) if isinstance(v, int) and abs(v) > 2**53 else v for v in row]
    if isinstance(values[6], str):
        values[6] = values[6].replace(" ", "T")
    return values


@given(CONDITIONS, ROWS)
@settings(max_examples=1500)
@example("NOT s LIKE 'a%' OR r = 0.1", (1, 1, 0.1, None, "", None, None, None))
@example("s LIKE 'a_b%'", (1, 1, 0.1, "a\nbc", "", None, None, None))
@example("i IN (9007199254740993)", (9007199254740993, 1, 0.1, None, "", None, None, None))
def test_the_answer_is_sqlites(condition: str, row: tuple[Value, ...]) -> None:
    assert Where(condition).compile(SCHEMA)(on_the_wire(row)) == asked_of_sqlite(condition, row)


@given(TEXTS, st.text("ab%_é!", max_size=6))
@settings(max_examples=500)
def test_like_with_escape_is_sqlites(text: str, pattern: str) -> None:
    try:
        matches = like_matcher(pattern, "!")(text)
    except WhereError:
        assert (len(pattern) - len(pattern.rstrip("!"))) % 2 == 1  # SQLite then matches nothing; it is a mistake
        return
    (answer,) = DATABASE.execute("SELECT ? LIKE ? ESCAPE '!'", (text, pattern)).fetchone()
    assert matches == bool(answer)


def test_like_takes_linear_time_whatever_the_pattern() -> None:
    assert not like_matcher("%a" * 200 + "b", "")("a" * 20_000)


def kinds(column: str, kind: Kind, condition: str, value: Value, type_: str = "t") -> bool | None:
    schema = TableSchema("public.t", (Column(column, type_, kind),), (column,), "postgresql")
    return Where(condition).compile(schema)([value])


@pytest.mark.parametrize(
    ("kind", "condition", "value", "answer"),
    [
        (Kind.DECIMAL, "c = 1.5", "1.50", True),
        (Kind.DECIMAL, "c = '1.5'", "1.50", True),
        (Kind.DECIMAL, "c > 99999999999999999999.000000000000000001", "99999999999999999999.000000000000000002", True),
        (Kind.DECIMAL, "c > 5", "NaN", True),
        (Kind.DECIMAL, "c = 'NaN'", "NaN", True),
        (Kind.DECIMAL, "c < 5", "-Infinity", True),
        (Kind.FLOAT, "c > 1e300", "Infinity", True),
        (Kind.FLOAT, "c >= 5", "NaN", True),
        (Kind.FLOAT, "c < 5", "NaN", False),
        (Kind.INT, "c = 9223372036854775807", "9223372036854775807", True),
        (Kind.BOOL, "c", True, True),
        (Kind.BOOL, "NOT c", True, False),
        (Kind.BOOL, "c = 0", False, True),
        (Kind.BOOL, "c IN (TRUE)", None, None),
        (Kind.UUID, "c = 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", True),
        (Kind.OTHER, "c IN ('new', 'paid')", "paid", True),
        (Kind.DATE, "c >= DATE '2026-01-31'", "2026-01-31", True),
        (Kind.DATE, "c > '2026-01-31'", "infinity", True),
        (Kind.DATE, "c < '0001-01-01'", "0044-03-15 BC", True),
        (Kind.DATE, "c > '9999-12-31'", "10000-01-01", True),
        (Kind.TIME, "c < '10:00:00.5'", "10:00:00.499999", True),
        (Kind.TIME, "c = '10:00'", "10:00:00", True),
        (Kind.TIMESTAMP, "c >= '2026-01-31'", "2026-01-31T00:00:00", True),
        (Kind.TIMESTAMP, "c = '2026-01-31 10:00'", "2026-01-31T10:00:00.000000", True),
        (Kind.TIMESTAMP, "c < '-infinity'", "-infinity", False),
        (Kind.TIMESTAMPTZ, "c = '2026-01-31 10:00:00+01:00'", "2026-01-31T09:00:00Z", True),
        (Kind.TIMESTAMPTZ, "c = TIMESTAMPTZ '2026-01-31 10:00:00+01'", "2026-01-31T09:00:00Z", True),
        (Kind.TIMESTAMPTZ, "c = '2026-01-31 09:00:00.1234567'", "2026-01-31T10:00:00.1234567+01:00", True),
        (Kind.JSON, "c IS NOT NULL", "{}", True),
        (Kind.BYTES, "c IS NULL", None, True),
        # SQLite lets any value into any column: what is not of the column's kind compares as NULL does.
        (Kind.INT, "c > 5", "many", None),
        (Kind.FLOAT, "c > 5", "many", None),
        (Kind.TEXT, "c > 'a'", 5, None),
        (Kind.TEXT, "c LIKE 'a'", 5, None),
        (Kind.DATE, "c > '2026-01-31'", "soon", None),
        (Kind.TIME, "c > '10:00'", "soon", None),
    ],
)
def test_each_kind_compares_as_the_database_does(kind: Kind, condition: str, value: Value, answer: bool | None) -> None:
    assert kinds("c", kind, condition, value) is answer


def test_blanks_at_the_end_of_fixed_length_text_do_not_count() -> None:
    assert kinds("c", Kind.TEXT, "c = 'DE'", "DE   ", "character(5)") is True
    assert kinds("c", Kind.TEXT, "c IN ('DE')", "DE   ", "bpchar") is True
    assert kinds("c", Kind.TEXT, "c = 'DE'", "DE   ", "character varying(5)") is False


@pytest.mark.parametrize(
    ("condition", "part"),
    [
        ("", "not a condition"),
        ("i =", "not a condition"),
        ("i = 1; DROP TABLE t", "more than one"),
        ("i = 1 ORDER BY i", "more than one"),
        ("i = 1 LIMIT 1", "more than one"),
        ("i = 1 UNION SELECT 2", "more than one"),
        ("i = 1 FOR UPDATE", "more than one"),
        ("i IN (SELECT 1)", "SELECT 1"),
        ("EXISTS (SELECT 1)", "EXISTS"),
        ("lower(s) = 'a'", "LOWER(s)"),
        ("i + 1 = 2", "i + 1"),
        ("i = NULL", "IS NULL"),
        ("i <> NULL", "IS NULL"),
        ("i IN (1, NULL)", "NULL in its list"),
        ("s ILIKE 'a'", "ILIKE"),
        ("s GLOB 'a'", "GLOB"),
        ("s LIKE name", "LIKE"),
        ("s LIKE 'a' ESCAPE '!!'", "one character"),
        ("s LIKE ANY ('a')", "ANY"),
        ("day = CURRENT_DATE", "CURRENT_DATE"),
        ("i = ?", "?"),
        ("i = :x", ":x"),
        ("t.i = 1", "t.i"),
        ("1 = 1", "1 = 1"),
        ("TRUE", "names no column"),
        ("i", ""),
        ("*", "*"),
        ("CASE WHEN b THEN b END", "CASE"),
        ("i IS TRUE", "TRUE"),
        ("i IS DISTINCT FROM 1", "DISTINCT"),
        ("CAST(i AS TEXT) = '1'", "CAST"),
        ("s = 'a' COLLATE nocase", "COLLATE"),
        ("i BETWEEN 1 AND NULL", "IS NULL"),
        ("i = 1 AND" + " i = 1 AND" * 500 + " i = 2", "parts"),
        ("i = " + "1" * 10_001, "longer"),
        ("(" * 5000 + "i = 1" + ")" * 5000, ""),
    ],
)
def test_what_is_not_supported_is_refused_by_name(condition: str, part: str) -> None:
    with pytest.raises(WhereError) as refused:
        Where(condition).compile(SCHEMA)
    assert part in str(refused.value)


@pytest.mark.parametrize(
    ("condition", "part"),
    [
        ("gone = 1", "no column gone"),
        ('"I" = 1', "no column I"),
        ("i = 'many'", "takes a number"),
        ("i = TRUE", "takes a number"),
        ("s = 5", "single quotes"),
        ("s < TRUE", "single quotes"),
        ("b = 2", "TRUE or FALSE"),
        ("b < TRUE", "no order"),
        ("day = 'soon'", "2026-01-31"),
        ("day = '2026-02-30'", "2026-01-31"),
        ("day = '2026-01-31 10:00'", "2026-01-31"),
        ("day = 5", "2026-01-31"),
        ("at = '2026-01-31 10:00+01'", "10:00:00"),
        ("i LIKE '5%'", "no text"),
        ("s LIKE 'a!' ESCAPE '!'", "must not end"),
        ("i = s", "do not compare"),
        ("day = at", "do not compare"),
    ],
)
def test_what_does_not_fit_the_table_is_refused(condition: str, part: str) -> None:
    with pytest.raises(WhereError) as refused:
        Where(condition).compile(SCHEMA)
    assert part in str(refused.value)


@pytest.mark.parametrize("kind", [Kind.JSON, Kind.BYTES])
def test_binary_and_json_compare_with_nothing(kind: Kind) -> None:
    with pytest.raises(WhereError, match="IS NULL"):
        kinds("c", kind, "c = 'a'", None)


def test_a_missing_column_of_a_partial_row_is_unknown_but_not_null() -> None:
    partial = SCHEMA.without(frozenset({"s"}))
    row: list[Value] = [1, 2, 0.5, "n", None, None, True]
    for condition, answer in [
        ("s = 'a'", None),
        ("s IS NULL", False),
        ("s IS NOT NULL", True),
        ("s = 'a' OR i = 1", True),
        ("s = 'a' AND i = 2", False),
        ("NOT s LIKE 'a' AND i = 1", None),
    ]:
        assert Where(condition).compile(partial)(row) is answer
    assert Where("s = 'a' OR i = 1").columns(partial) == {"i"}
    assert Where("s = 'a' OR i = 1").lacks_columns(partial)
    assert not Where("name = 'a' OR i = 1").lacks_columns(partial)


def test_names_are_found_as_sql_finds_them() -> None:
    assert Where("NAME = 'a'").columns(SCHEMA) == {"Name"}
    twins = TableSchema("t", (Column("A", "", Kind.INT), Column("a", "", Kind.INT)), ("a",), "postgresql")
    assert Where("a = 1").columns(twins) == {"a"}
    assert Where('"A" = 1').columns(twins) == {"A"}


@given(st.decimals(allow_nan=False, allow_infinity=False), FLOATS)
def test_numbers_compare_by_value_whatever_their_form(exact: Decimal, rough: float) -> None:
    assert kinds("c", Kind.DECIMAL, f"c = {exact:f}", format(exact, "f")) is True
    assert kinds("c", Kind.FLOAT, f"c = {rough!r}", rough) is True
    assert math.isfinite(rough)
