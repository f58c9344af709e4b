"""Values of SQLite on the wire: the quick way by columns against the plain rule value by value."""

import math
from collections.abc import Sequence

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.model import Kind
from upwell.sources.sqlite_catalog import affinity_of, kind_of
from upwell.sources.sqlite_rows import Encoder, Stored, Unfit, known_key, wire_value

INTEGERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.sampled_from([s * (2**53 + d) for s in (1, -1) for d in (-1, 0, 1)])
)
BROKEN = st.binary(min_size=1, max_size=6).map(lambda b: b.decode("utf-8", "surrogateescape"))
VALUES: st.SearchStrategy[Stored] = st.one_of(
    st.none(),
    INTEGERS,
    st.floats(allow_nan=False),  # SQLite keeps none: it stores NULL
    st.text(),
    BROKEN,
    st.binary(max_size=20),
)
KINDS = st.sampled_from([Kind.INT, Kind.FLOAT, Kind.TEXT, Kind.BYTES, Kind.DECIMAL, Kind.JSON, Kind.OTHER])


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[Kind], list[list[Stored]]]:
    kinds = draw(st.lists(KINDS, min_size=1, max_size=5))
    row = st.lists(VALUES, min_size=len(kinds), max_size=len(kinds))
    return kinds, draw(st.lists(row, min_size=1, max_size=8))


@given(tables())
def test_columns_are_encoded_as_single_values_are(table: tuple[list[Kind], list[list[Stored]]]) -> None:
    kinds, rows = table
    encoded, unfit = Encoder(kinds, [f"c{n}" for n in range(len(kinds))]).encode_columns(list(zip(*rows, strict=True)))
    for n, row in enumerate(rows):
        assert (encoded[n], n in unfit) == plainly(kinds, row)


def plainly(kinds: Sequence[Kind], row: Sequence[Stored]) -> tuple[bytes | None, bool]:
    try:
        return orjson.dumps([wire_value(kind, value) for kind, value in zip(kinds, row, strict=True)]), False
    except Unfit:
        return None, True


@pytest.mark.parametrize(
    ("kind", "value", "wire"),
    [
        (Kind.INT, 2**53, 2**53),
        (Kind.INT, 2**53 + 1, "9007199254740993"),
        (Kind.INT, -(2**63), "-9223372036854775808"),
        (Kind.INT, "n/a", "n/a"),
        (Kind.INT, 1.5, 1.5),
        (Kind.FLOAT, math.inf, "Infinity"),
        (Kind.FLOAT, -math.inf, "-Infinity"),
        (Kind.FLOAT, -0.0, -0.0),
        (Kind.DECIMAL, 12.5, "12.5"),
        (Kind.DECIMAL, 7, "7"),
        (Kind.JSON, '{"a": 1}', '{"a": 1}'),
        (Kind.JSON, 5, "5"),
        (Kind.BYTES, b"\x00\xff", "AP8="),
        (Kind.BYTES, 5, 5),
        (Kind.TEXT, "ä🙂\0", "ä🙂\0"),
        (Kind.TEXT, None, None),
    ],
)
def test_the_wire_form(kind: Kind, value: Stored, wire: object) -> None:
    assert repr(wire_value(kind, value)) == repr(wire)
    assert Encoder([kind], ["c"]).encode_columns([[value]]) == ([orjson.dumps([wire])], {})


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        (Kind.TEXT, b"blob", "column c: a blob in a column for text"),
        (Kind.INT, b"blob", "column c: a blob in a column for int"),
        (Kind.BYTES, "text", "column c: text in a column for bytes"),
        (Kind.BYTES, 2**53 + 1, "column c: a number in a column for bytes that would look like base64"),
        (Kind.BYTES, math.inf, "column c: a number in a column for bytes that would look like base64"),
        (Kind.TEXT, "a\udcff", "column c: text that is not valid UTF-8"),
    ],
)
def test_what_looks_like_something_else_is_refused(kind: Kind, value: Stored, reason: str) -> None:
    rows: Sequence[Stored] = [value]
    assert Encoder([kind], ["c"]).encode_columns([rows]) == ([None], {0: reason})


def test_a_key_that_cannot_be_encoded_can_be_shown() -> None:
    assert known_key([1, None, b"\x00\xff", "a\udcff", "ä"]) == """[1,null,"x'00ff'","x'61ff'","ä"]"""


@pytest.mark.parametrize(
    ("declared", "affinity", "kind"),
    [
        ("INTEGER", "INTEGER", Kind.INT),
        ("unsigned big int", "INTEGER", Kind.INT),
        ("varchar(20)", "TEXT", Kind.TEXT),
        ("BLOB", "BLOB", Kind.BYTES),
        ("", "BLOB", Kind.OTHER),
        ("double precision", "REAL", Kind.FLOAT),
        ("FLOATING POINT", "INTEGER", Kind.INT),  # as sqlite.org/datatype3.html warns
        ("DECIMAL(10,2)", "NUMERIC", Kind.DECIMAL),
        ("BOOLEAN", "NUMERIC", Kind.INT),
        ("datetime", "NUMERIC", Kind.TEXT),
        ("JSON", "NUMERIC", Kind.JSON),
        ("varbinary(16)", "NUMERIC", Kind.BYTES),
        ("whatever", "NUMERIC", Kind.OTHER),
    ],
)
def test_what_a_declared_type_says(declared: str, affinity: str, kind: Kind) -> None:
    assert affinity_of(declared) == affinity
    assert kind_of(declared) is kind
