"""SQL Server's types on the wire. Pure.

A value is turned into text by the server where its driver's Python object would lose digits (datetime2(7),
decimal(38)), depend on the driver (text in code pages, uniqueidentifier, sql_variant) or cost more than the text; what
JSON takes as it is (int, float, bit, nvarchar) is fetched as it is. So both drivers give the same bytes.

CONVERT's styles: 23 is 2026-01-31, 120 and 121 are 2026-01-31 10:00:00 without and with the type's digits of a second,
1 is 0x…, 2 of money has its four digits, 3 of float has the 17 digits that tell it from every other.
"""

from __future__ import annotations

import struct
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from upwell.model import Kind, Value

_EXACT_MAX: Final = 2**53
_NVARCHAR_MAX: Final = 4000  # characters; longer is nvarchar(max)

# Turns the fetched values of a column into those that orjson writes as the wire has them.
Finish = Callable[[Sequence[Any]], Sequence[Any]]
# What a driver sends as a parameter: text as nvarchar, integers as bigint, bytes as varbinary.
Parameter = str | int | bytes


@dataclass(frozen=True, slots=True)
class ServerType:
    """A column's type as sys.columns and sys.types have it; of an alias or a CLR type the base type's name."""

    name: str  # sys.types.name of the system type; of a CLR type its own
    max_length: int  # bytes, -1: max
    precision: int
    scale: int
    collation: str | None = None
    assembly: bool = False  # a CLR type: hierarchyid, geometry, geography, or one of a user's

    @property
    def declared(self) -> str:
        """As in CREATE TABLE."""
        match self.name:
            case "nvarchar" | "nchar":
                return f"{self.name}({self.characters})"
            case "varchar" | "char" | "varbinary" | "binary":
                return f"{self.name}({'max' if self.max_length < 0 else self.max_length})"
            case "decimal" | "numeric":
                return f"{self.name}({self.precision},{self.scale})"
            case "datetime2" | "datetimeoffset" | "time":
                return f"{self.name}({self.scale})"
            case "timestamp":
                return "rowversion"
        return self.name

    @property
    def characters(self) -> str:
        """How many characters an nvarchar needs that holds every value of a character type."""
        if self.max_length < 0:
            return "max"
        length = self.max_length // 2 if self.name in ("nvarchar", "nchar") else self.max_length
        return str(length) if length <= _NVARCHAR_MAX else "max"

    @property
    def kind(self) -> Kind:
        """What it holds. A CLR type of a user's is bytes."""
        return _KINDS.get(self.name, Kind.BYTES if self.assembly else Kind.OTHER)

    @property
    def loose(self) -> bool:
        """Whether values that the server holds for equal, in a key, may look different on the wire.

        Collations ignore case, or accents, and nearly all ignore blanks at the end; binary values ignore zeros at the
        end; -0.0 equals 0.0, and a moment equals itself in another offset.
        """
        return self.name in _LOOSE

    def select(self, expression: str) -> str:
        """The SQL that fetches `expression`, a column of this type."""
        template = _SELECT.get(self.name) or ("CONVERT(varbinary(max), {x})" if self.assembly else "{x}")
        return template.format(x=expression, n=self.characters)

    @property
    def finish(self) -> Finish:
        """What is left to do with the fetched values."""
        return _FINISH.get(self.name, _bytes if self.assembly else _as_they_are)

    def parameter(self, mark: str) -> str:
        """The SQL that makes a value of exactly this type of a parameter; see `parameter_value`."""
        match self.name:
            case "varchar" | "char":
                # In the code page of the column's collation, and compared by it: that of the database may differ.
                return f"CONVERT({self.declared}, {mark} COLLATE {self.collation})"
            case "datetime2" | "datetimeoffset" | "datetime" | "smalldatetime" | "time":
                return f"CONVERT({self.declared}, {mark}, 121)"
            case "date":
                return f"CONVERT(date, {mark}, 23)"
            case "timestamp":
                return f"CONVERT(binary(8), {mark})"
            case "hierarchyid":
                return f"hierarchyid::Parse({mark})"
        return f"CONVERT({self.declared}, {mark})"

    def parameter_value(self, value: Value) -> Parameter:
        """A wire value of a key as the parameter that `parameter` takes."""
        assert value is not None, "a primary key has no NULL"
        if self.kind is Kind.INT or self.kind is Kind.BOOL:
            return int(value)
        text = value if isinstance(value, str) else repr(value)
        if self.kind is Kind.BYTES:
            return b64decode(text)
        if self.name == "datetimeoffset":
            moment, offset = (text[:-1], "+00:00") if text.endswith("Z") else (text[:-6], text[-6:])
            return f"{moment.replace('T', ' ', 1)} {offset}"
        return text.replace("T", " ", 1) if self.kind is Kind.TIMESTAMP else text


_KINDS: Final[dict[str, Kind]] = {
    "bit": Kind.BOOL,
    **dict.fromkeys(("tinyint", "smallint", "int", "bigint"), Kind.INT),
    **dict.fromkeys(("decimal", "numeric", "money", "smallmoney"), Kind.DECIMAL),
    **dict.fromkeys(("float", "real"), Kind.FLOAT),
    **dict.fromkeys(("char", "varchar", "text", "nchar", "nvarchar", "ntext"), Kind.TEXT),
    **dict.fromkeys(("binary", "varbinary", "image", "timestamp", "geography", "geometry"), Kind.BYTES),
    "date": Kind.DATE,
    "time": Kind.TIME,
    **dict.fromkeys(("datetime", "datetime2", "smalldatetime"), Kind.TIMESTAMP),
    "datetimeoffset": Kind.TIMESTAMPTZ,
    "uniqueidentifier": Kind.UUID,
    "json": Kind.JSON,
    "hierarchyid": Kind.OTHER,
}
_LOOSE: Final = frozenset(
    {"char", "varchar", "nchar", "nvarchar", "varbinary", "binary", "float", "real", "datetimeoffset"}
)

_VARIANTS: Final = {
    "CONVERT(nvarchar(4000), CONVERT(float, {x}), 3)": ("float", "real"),
    "CONVERT(nvarchar(4000), CONVERT(money, {x}), 2)": ("money", "smallmoney"),
    "CONVERT(nvarchar(4000), CONVERT(datetime2(7), {x}), 121)": ("datetime2",),
    "CONVERT(nvarchar(4000), CONVERT(datetime, {x}), 121)": ("datetime",),
    "CONVERT(nvarchar(4000), CONVERT(smalldatetime, {x}), 120)": ("smalldatetime",),
    "CONVERT(nvarchar(4000), CONVERT(datetimeoffset(7), {x}), 121)": ("datetimeoffset",),
    "CONVERT(nvarchar(4000), CONVERT(date, {x}), 23)": ("date",),
    "CONVERT(nvarchar(4000), CONVERT(time(7), {x}), 121)": ("time",),
    "LOWER(CONVERT(nvarchar(4000), {x}))": ("uniqueidentifier",),
    "CONVERT(nvarchar(max), CONVERT(varbinary(8000), {x}), 1)": ("binary", "varbinary"),
}
_SQL_VARIANT: Final = (
    "CASE CONVERT(nvarchar(128), SQL_VARIANT_PROPERTY({x}, 'BaseType')) "
    + " ".join(f"WHEN '{name}' THEN {sql}" for sql, names in _VARIANTS.items() for name in names)
    + " ELSE CONVERT(nvarchar(4000), {x}) END"
)

_SELECT: Final[dict[str, str]] = {
    **dict.fromkeys(("decimal", "numeric"), "CONVERT(varchar(41), {x})"),
    **dict.fromkeys(("money", "smallmoney"), "CONVERT(varchar(30), {x}, 2)"),
    **dict.fromkeys(("varchar", "char"), "CONVERT(nvarchar({n}), {x})"),
    **dict.fromkeys(("text", "ntext", "xml", "json", "vector"), "CONVERT(nvarchar(max), {x})"),
    "image": "CONVERT(varbinary(max), {x})",
    "timestamp": "CONVERT(binary(8), {x})",
    "date": "CONVERT(varchar(10), {x}, 23)",
    "smalldatetime": "CONVERT(varchar(19), {x}, 120)",
    **dict.fromkeys(("time", "datetime", "datetime2", "datetimeoffset"), "CONVERT(varchar(40), {x}, 121)"),
    "uniqueidentifier": "LOWER(CONVERT(varchar(36), {x}))",
    "hierarchyid": "{x}.ToString()",
    **dict.fromkeys(("geography", "geometry"), "{x}.STAsBinary()"),
    "sql_variant": _SQL_VARIANT,
}


def _as_they_are(values: Sequence[Any]) -> Sequence[Any]:
    return values


def _bytes(values: Sequence[Any]) -> Sequence[Any]:
    return [None if value is None else b64encode(value).decode() for value in values]


def _bools(values: Sequence[Any]) -> Sequence[Any]:
    return [None if value is None else bool(value) for value in values]


def _large_integers(values: Sequence[Any]) -> Sequence[Any]:
    known = [value for value in values if value is not None]
    if not known or (max(known) <= _EXACT_MAX and min(known) >= -_EXACT_MAX):
        return values
    return [v if v is None or -_EXACT_MAX <= v <= _EXACT_MAX else str(v) for v in values]


def _moments(values: Sequence[Any]) -> Sequence[Any]:
    return [None if value is None else value.replace(" ", "T", 1) for value in values]


def _zoned(values: Sequence[Any]) -> Sequence[Any]:
    return [None if value is None else _zoned_moment(value) for value in values]


def _zoned_moment(text: str) -> str:
    """`2026-01-31 10:00:00.1234567 +02:00` as ISO 8601."""
    moment, _, offset = text.rpartition(" ")
    return moment.replace(" ", "T", 1) + ("Z" if offset == "+00:00" else offset)


def _reals(values: Sequence[Any]) -> Sequence[Any]:
    return [None if value is None else _shortest(value) for value in values]


def _shortest(value: float) -> float:
    """The shortest decimal that is the same single-precision number: 0.1, not 0.10000000149011612."""
    packed = struct.pack("<f", value)
    for digits in range(6, 9):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == packed:
            return short
    return float(f"{value:.9g}")


_FINISH: Final[dict[str, Finish]] = {
    "bit": _bools,
    "bigint": _large_integers,
    "real": _reals,
    **dict.fromkeys(("binary", "varbinary", "image", "timestamp", "geography", "geometry"), _bytes),
    **dict.fromkeys(("datetime", "datetime2", "smalldatetime"), _moments),
    "datetimeoffset": _zoned,
}
