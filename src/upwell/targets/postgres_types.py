"""Which PostgreSQL type holds a column, and how wire values become the text that COPY reads. Pure functions."""

from __future__ import annotations

import re
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from upwell.errors import Rejected
from upwell.model import Column, Kind, Value

_BY_KIND: Final = {
    Kind.BOOL: "boolean",
    Kind.INT: "bigint",
    Kind.DECIMAL: "numeric",
    Kind.FLOAT: "double precision",
    Kind.TEXT: "text",
    Kind.BYTES: "bytea",
    Kind.DATE: "date",
    Kind.TIME: "time without time zone",
    Kind.TIMESTAMP: "timestamp without time zone",
    Kind.TIMESTAMPTZ: "timestamp with time zone",
    Kind.UUID: "uuid",
    Kind.JSON: "json",
    Kind.OTHER: "text",
}

# Types that every PostgreSQL from 13 on has, and that read what they print.
_BUILT_IN: Final = frozenset(
    """
    smallint integer bigint int2 int4 int8 int numeric decimal real double_precision float4 float8 money boolean
    bool text varchar character_varying char character bpchar name "char" bytea date interval uuid json jsonb
    jsonpath xml inet cidr macaddr macaddr8 bit bit_varying varbit point line lseg box path polygon circle
    tsvector tsquery int4range int8range numrange tsrange tstzrange daterange pg_lsn oid xid8 txid_snapshot
    pg_snapshot int4multirange int8multirange nummultirange tsmultirange tstzmultirange datemultirange time timetz
    timestamp timestamptz time_without_time_zone time_with_time_zone timestamp_without_time_zone
    timestamp_with_time_zone
    """.split()  # noqa: SIM905 - a line for each of them would fill a page
)
_POSTGRES_TYPE: Final = re.compile(
    r'("char"|[a-z][a-z0-9_]*(?: varying| precision)?)'  # its name
    r"(?: (?:year|month|day|hour|minute|second|to| )+)?"  # an interval's fields
    r" ?(\(-?\d+(?:, ?-?\d+)?\))?( with(?:out)? time zone)?((?:\[\])*)"
)
_TEXTS: Final = ("CHAR", "CLOB", "TEXT")  # where SQLite makes texts of numbers itself
_SIZED: Final = re.compile(r"\s*([a-z][a-z0-9_]*)\s*(?:\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\))?(.*)", re.IGNORECASE)


def target_type(column: Column, dialect: str) -> tuple[str, str | None]:
    """The type of a column that upwell creates, and a warning where the source can hold what it can't."""
    if dialect == "postgresql":
        return _from_postgres(column)
    if dialect == "sqlite":
        return _from_sqlite(column)
    return _from_sized(column)


def _from_postgres(column: Column) -> tuple[str, str | None]:
    known = _POSTGRES_TYPE.fullmatch(column.type)
    if known:
        name, _size, zone, _array = known.groups()
        if (name + (zone or "")).replace(" ", "_") in _BUILT_IN:
            # PostgreSQL prints a document without the encoding that it declares, and so it is in the log.
            return column.type, "the declaration <?xml …?> of a document may be left out" if name == "xml" else None
    fallback = _BY_KIND[column.kind]
    return fallback, f"{column.type} is a type of the source's own: {fallback} holds its text"


def _from_sqlite(column: Column) -> tuple[str, str | None]:
    """SQLite's types are advice, so sizes that it does not enforce are not enforced in the target either."""
    type_ = _BY_KIND[column.kind]
    what = f"a column of type {column.type}" if column.type else "a column without a type"
    if column.kind in (Kind.TEXT, Kind.OTHER):
        numbers = "" if any(part in column.type.upper() for part in _TEXTS) else " numbers become text;"
        unfit = "blobs, and text with a NUL or that is not UTF-8,"
        return type_, f"SQLite lets {what} hold anything:{numbers} {unfit} become dead letters"
    return type_, f"SQLite lets {what} hold anything: what {type_} can't read becomes a dead letter"


def _from_sized(column: Column) -> tuple[str, str | None]:
    """SQL Server, MySQL, MariaDB: sizes hold; digits of a second beyond six are rounded."""
    found = _SIZED.fullmatch(column.type)
    name, size, scale, rest = found.groups() if found else (column.type, None, None, "")
    name = name.lower()
    if column.kind is Kind.DECIMAL:
        if name in ("money", "smallmoney"):
            return "numeric(19,4)", None
        return (f"numeric({size},{scale or 0})" if size else "numeric"), None
    if column.kind is Kind.INT and name == "bigint" and "unsigned" in rest.lower():
        return "numeric(20,0)", None
    if column.kind in (Kind.TIME, Kind.TIMESTAMP, Kind.TIMESTAMPTZ):
        # SQL Server's own default is seven digits; MySQL has six at most.
        digits = int(size) if size else 7 if name in ("time", "datetime2", "datetimeoffset") else 0
        notes = []
        if digits > 6:
            notes.append("the seventh digit of a second is rounded")
        if name == "datetimeoffset":
            notes.append("the moment is kept, the offset it was written with is not")
        return _BY_KIND[column.kind], "; ".join(notes) or None
    return _BY_KIND[column.kind], None


# ---- COPY ----

_NULL: Final = "\\N"
_NUMERIC: Final = ("smallint", "integer", "bigint", "numeric", "real", "double precision")


def copy_data(columns: Sequence[Column], types: Sequence[str], rows: Sequence[Sequence[Value]]) -> bytes:
    """Rows as COPY's text format. Raises Rejected where `copy_lines` does, or refuses one of them."""
    lines, refused = copy_lines(columns, types, rows)
    for error in refused.values():
        raise error
    return "\n".join([*lines, ""]).encode()


def copy_lines(
    columns: Sequence[Column], types: Sequence[str], rows: Sequence[Sequence[Value]]
) -> tuple[list[str], dict[int, Rejected]]:
    """A line of COPY's text format for each row, column by column because that needs no Python call per value.

    `types` are the target's. Lines of what is refused, by the row's place, are not to be used: bytes that are not
    base64, and NUL, which PostgreSQL's text has not. Raises Rejected for rows of another length.
    """
    if not rows:
        return [], {}
    try:
        by_column = list(zip(*rows, strict=True))
    except ValueError:
        by_column = []
    if len(by_column) != len(columns):
        raise Rejected("A row has more or fewer values than its schema has columns.", code="UW-PT-012")
    refused: dict[int, Rejected] = {}
    cells = [
        copy_cells(column, type_, values, refused)
        for column, type_, values in zip(columns, types, by_column, strict=True)
    ]
    lines = list(map("\t".join, zip(*cells, strict=True)))
    for number, line in enumerate(lines):
        if "\0" in line:
            refused[number] = Rejected("A text holds a NUL character, which PostgreSQL's text can't.", code="UW-PT-014")
    return lines, refused


def copy_cells(column: Column, type_: str, values: Sequence[Value], refused: dict[int, Rejected]) -> list[str]:
    """One column's values as COPY's text; what can't be is added to `refused`, by its place."""
    present = [value for value in values if value is not None]
    if column.kind is Kind.BYTES and type_ == "bytea":
        try:
            texts = _hex(present)
        except (Base64Error, TypeError, ValueError):
            sentence = f"Column {column.name!r} should hold base64 and does not."
            wrong = {number for number, value in enumerate(values) if value is not None and not _is_base64(value)}
            refused.update((number, Rejected(sentence, code="UW-PT-013")) for number in wrong)
            values = [None if number in wrong else value for number, value in enumerate(values)]
            texts = _hex([value for value in values if value is not None])
    else:
        texts = _escaped(_texts(type_, present))
    if len(texts) == len(values):
        return texts
    following = iter(texts)
    return [_NULL if value is None else next(following) for value in values]


def _texts(type_: str, present: Sequence[Value]) -> list[str]:
    kinds = set(map(type, present))
    if kinds <= {str}:
        return present  # type: ignore[return-value] # the line above proves it
    if bool not in kinds:
        return [value if value.__class__ is str else str(value) for value in present]
    as_text = {True: "1", False: "0"} if type_.startswith(_NUMERIC) else {True: "true", False: "false"}
    return [as_text[value] if isinstance(value, bool) else str(value) for value in present]


def _escaped(texts: list[str]) -> list[str]:
    """COPY's text format: a backslash, tab, line feed or carriage return in a value is written as an escape."""
    joined = "".join(texts)
    if "\\" in joined or "\t" in joined or "\n" in joined or "\r" in joined:
        return [
            text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r") for text in texts
        ]
    return texts


def _hex(present: Sequence[Value]) -> list[str]:
    decode: Callable[[str], bytes] = partial(a2b_base64, strict_mode=True)
    return ["\\\\x" + decode(value).hex() for value in present]  # type: ignore[arg-type] # the caller catches


def _is_base64(value: Value) -> bool:
    try:
        return isinstance(value, str) and a2b_base64(value, strict_mode=True) is not None
    except (Base64Error, ValueError):
        return False


def key_text(column: Column, value: Value) -> str:
    """One value that is not null, as its type's input function reads it."""
    if column.kind is Kind.BYTES and isinstance(value, str):
        return "\\x" + a2b_base64(value).hex()
    return _texts("", [value])[0]
