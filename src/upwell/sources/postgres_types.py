"""PostgreSQL's text values as values of the wire: one decoder per type, for stream and snapshot alike.

The text is what the type's output function gives with DateStyle ISO, TimeZone UTC, bytea_output hex, lc_monetary C
and extra_float_digits 1 (postgres_session.py sets them for every connection).
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable
from typing import Final, NamedTuple

from upwell.model import Kind, Value

Decode = Callable[[bytes], Value]

_EXACT_MAX: Final = 2**53  # a JSON number beyond is not the same integer everywhere


class ColumnType(NamedTuple):
    """What there is to know of a column's type."""

    name: str  # in the source's words with its modifier; of a domain its base type's; "text" for types a target lacks
    kind: Kind
    decode: Decode


def column_type(name: str, base: str, *, built_in: bool, typtype: str, has_typmod: bool, in_key: bool) -> ColumnType:
    """The type of a column.

    name: what format_type() says; base: pg_type.typname; both of the base type where it is a domain.
    built_in: whether it, or an array's element, belongs to PostgreSQL itself. Enums, composite types and what
    extensions bring travel as text and are `text` to a target, which may not have them.
    """
    if not built_in:
        readable = typtype == "e" or base == "citext"
        array = "[]" if name.endswith("[]") else ""
        return ColumnType("text" + array, Kind.TEXT if readable and not array else Kind.OTHER, bytes.decode)
    kind, decode = _TYPES.get(base, _OTHER)
    if in_key:
        # Keys that PostgreSQL holds for equal must be equal byte for byte: 1.0 and 1.00, 0.0 and -0.0.
        if kind is Kind.DECIMAL and not has_typmod:
            decode = _decimal_without_scale
        elif kind is Kind.FLOAT:
            decode = _float_without_sign_of_zero
    return ColumnType(name, kind, decode)


def is_exact(base: str, typtype: str, *, typmod: int) -> bool:
    """Whether values of a type that a key can have, as `column_type` writes them there, are equal only where they are
    written alike. Not so: '1 day' and '24:00:00', 1.0 and 1.00 inside an array, 'a' and 'A' in citext.
    """
    if typtype == "e":
        return True
    if base == "bpchar":
        return typmod >= 0  # else blanks at the end are kept, and do not count
    return base in _EXACT or (base.startswith("_") and base[1:] in _EXACT_IN_ARRAYS)


_EXACT_IN_ARRAYS: Final = frozenset(
    {"bool", "int2", "int4", "int8", "oid", "text", "varchar", "name", "char", "bytea", "date", "time", "timestamp"}
    | {
        "timestamptz",
        "uuid",
        "inet",
        "cidr",
        "macaddr",
        "macaddr8",
        "bit",
        "varbit",
        "money",
        "pg_lsn",
        "xid8",
        "timetz",
    }
)
_EXACT: Final = _EXACT_IN_ARRAYS | {
    *("numeric", "float4", "float8"),  # written in one way in a key
    *("int4range", "int8range", "daterange", "tsrange", "tstzrange"),
}


def _bool(text: bytes) -> bool:
    return text == b"t"


def _bigint(text: bytes) -> int | str:
    number = int(text)
    return number if -_EXACT_MAX <= number <= _EXACT_MAX else str(number)


def _float(text: bytes) -> float | str:
    number = float(text)
    # JSON has no NaN and no infinities: subtracting one of these from itself gives NaN, which equals nothing.
    return number if number - number == 0.0 else text.decode()


def _float_without_sign_of_zero(text: bytes) -> float | str:
    number = _float(text)
    return number if isinstance(number, str) else number + 0.0


def _decimal_without_scale(text: bytes) -> str:
    digits = text.decode()
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def _timestamp(text: bytes) -> str:
    return text.decode().replace(" ", "T", 1)


def _timestamptz(text: bytes) -> str:
    return text.decode().replace(" ", "T", 1).replace("+00", "Z")


def _bytea(text: bytes) -> str:
    return binascii.b2a_base64(binascii.a2b_hex(text[2:]), newline=False).decode()


_OTHER: Final[tuple[Kind, Decode]] = (Kind.OTHER, bytes.decode)
_TYPES: Final[dict[str, tuple[Kind, Decode]]] = {
    "bool": (Kind.BOOL, _bool),
    "int2": (Kind.INT, int),
    "int4": (Kind.INT, int),
    "int8": (Kind.INT, _bigint),
    "oid": (Kind.INT, int),
    "numeric": (Kind.DECIMAL, bytes.decode),
    "float4": (Kind.FLOAT, _float),
    "float8": (Kind.FLOAT, _float),
    "text": (Kind.TEXT, bytes.decode),
    "varchar": (Kind.TEXT, bytes.decode),
    "bpchar": (Kind.TEXT, bytes.decode),
    "name": (Kind.TEXT, bytes.decode),
    "char": (Kind.TEXT, bytes.decode),
    "bytea": (Kind.BYTES, _bytea),
    "date": (Kind.DATE, bytes.decode),
    "time": (Kind.TIME, bytes.decode),
    "timestamp": (Kind.TIMESTAMP, _timestamp),
    "timestamptz": (Kind.TIMESTAMPTZ, _timestamptz),
    "uuid": (Kind.UUID, bytes.decode),
    "json": (Kind.JSON, bytes.decode),
    "jsonb": (Kind.JSON, bytes.decode),
}


def unescape(field: bytes) -> bytes:
    """A field of COPY's text format as it was; see `COPY`, "Text Format"."""
    return _ESCAPE.sub(_unescaped, field)


_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_ESCAPED: Final = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}


def _unescaped(match: re.Match[bytes]) -> bytes:
    letter: bytes = match[1]
    return _ESCAPED.get(letter, letter)
