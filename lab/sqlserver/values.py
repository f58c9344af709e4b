"""SQL Server's types: as they are written in T-SQL, kept in PostgreSQL, and sent over the wire.

PostgreSQL answers in text, so a value here is the bytes of PostgreSQL's text; `encoder` makes of it what TDS wants.
Moments are kept as ticks of 100 ns since 0001-01-01, which is what SQL Server counts in; see store.sql.
"""

import datetime
import decimal
import re
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from lab.sqlserver.errors import SqlError

MAX: Final = -1  # the length of varchar(max) and its kin
TICKS_OF_DAY: Final = 864_000_000_000
COLLATION: Final = bytes.fromhex("0904d00034")  # SQL_Latin1_General_CP1_CI_AS
DAYS_TO_1900: Final = datetime.date(1900, 1, 1).toordinal() - 1
NULL_PLP: Final = b"\xff" * 8

# name → (system_type_id, user_type_id, max_length where it is fixed)
IDS: Final = {
    "bigint": (127, 127, 8), "binary": (173, 173, 0), "bit": (104, 104, 1), "char": (175, 175, 0),
    "date": (40, 40, 3), "datetime": (61, 61, 8), "datetime2": (42, 42, 0), "datetimeoffset": (43, 43, 0),
    "decimal": (106, 106, 0), "float": (62, 62, 8), "geography": (240, 130, -1), "geometry": (240, 129, -1),
    "hierarchyid": (240, 128, 892), "image": (34, 34, 16), "int": (56, 56, 4), "money": (60, 60, 8),
    "nchar": (239, 239, 0), "ntext": (99, 99, 16), "numeric": (108, 108, 0), "nvarchar": (231, 231, 0),
    "real": (59, 59, 4), "smalldatetime": (58, 58, 4), "smallint": (52, 52, 2), "smallmoney": (122, 122, 4),
    "sql_variant": (98, 98, 8016), "sysname": (231, 256, 256), "text": (35, 35, 16), "time": (41, 41, 0),
    "timestamp": (189, 189, 8), "tinyint": (48, 48, 1), "uniqueidentifier": (36, 36, 16), "varbinary": (165, 165, 0),
    "varchar": (167, 167, 0), "xml": (241, 241, -1),
}  # fmt: skip
_SYNONYMS: Final = {
    "rowversion": "timestamp", "integer": "int", "dec": "decimal", "character": "char", "sysname": "nvarchar(128)",
    "double precision": "float",
}  # fmt: skip
_INTEGERS: Final = {"tinyint": 1, "smallint": 2, "int": 4, "bigint": 8}
_STRINGS: Final = frozenset({"char", "varchar", "nchar", "nvarchar", "text", "ntext", "xml"})
_CLR: Final = frozenset({"hierarchyid", "geometry", "geography"})
_POSTGRES: Final = {
    "tinyint": "int2", "smallint": "int2", "int": "int4", "bigint": "int8", "bit": "int2", "real": "float4",
    "float": "float8", "money": "numeric(19,4)", "smallmoney": "numeric(10,4)", "date": "date",
    "datetime": "tds.datetime2(21)", "smalldatetime": "tds.datetime2(31)", "datetimeoffset": "tds.datetimeoffset",
    "uniqueidentifier": "tds.uniqueidentifier", "timestamp": "bytea", "binary": "bytea", "varbinary": "bytea",
    "image": "bytea",
}  # fmt: skip
# What PostgreSQL says of a result that no column and no CAST explains.
BY_OID: Final = {
    16: "bit", 17: "varbinary(max)", 20: "bigint", 21: "smallint", 23: "int", 25: "nvarchar(max)", 26: "bigint",
    19: "nvarchar(128)", 700: "real", 701: "float", 1042: "nvarchar(max)", 1043: "nvarchar(max)", 1082: "date",
}  # fmt: skip


@dataclass(frozen=True)
class SqlType:
    """A type of SQL Server; `length` in characters or bytes, `MAX` for max."""

    name: str
    length: int = 0
    precision: int = 0
    scale: int = 0

    @classmethod
    def parse(cls, text: str) -> "SqlType":
        """Of what T-SQL writes, such as `decimal(38, 4)` or `nvarchar(max)`; raises 2715 for what it does not know."""
        found = re.fullmatch(r"\s*([a-z_0-9 ]+?)\s*(?:\(\s*(max|\d+)\s*(?:,\s*(\d+)\s*)?\))?\s*", text.lower())
        name = found[1].removeprefix("sys.") if found else text
        synonym = _SYNONYMS.get(name, name)
        if "(" in synonym:
            return cls.parse(synonym)
        if not found or synonym not in IDS:
            raise SqlError(2715, f"Column, parameter, or variable: Cannot find data type {text}.")
        return cls._with(synonym, found[2], found[3])

    @classmethod
    def _with(cls, name: str, first: str | None, second: str | None) -> "SqlType":
        if name in {"decimal", "numeric"}:
            return cls(name, precision=int(first or 18), scale=int(second or 0))
        if name in {"datetime2", "time", "datetimeoffset"}:
            return cls(name, scale=7 if first is None else int(first))
        if name == "float" and first and int(first) <= 24:
            return cls("real")
        if name in {"char", "varchar", "nchar", "nvarchar", "binary", "varbinary"}:
            return cls(name, length=MAX if first == "max" else int(first or 1))
        return cls(name)

    def __str__(self) -> str:
        if self.name in {"decimal", "numeric"}:
            return f"{self.name}({self.precision},{self.scale})"
        if self.name in {"datetime2", "time", "datetimeoffset"}:
            return f"{self.name}({self.scale})"
        if self.length:
            return f"{self.name}({'max' if self.length == MAX else self.length})"
        return self.name

    @property
    def textual(self) -> bool:
        return self.name in _STRINGS

    @property
    def postgres(self) -> str:
        """The type that keeps it."""
        if self.name in {"decimal", "numeric"}:
            return f"numeric({self.precision},{self.scale})"
        if self.name in {"datetime2", "time"}:
            return f"tds.{self.name}({self.scale + 1})"  # a type modifier of PostgreSQL begins at 1
        if self.name in {"varchar", "nvarchar", "char", "nchar"} and self.length != MAX:
            return f"{'varchar' if 'var' in self.name else 'bpchar'}({self.length})"
        return _POSTGRES.get(self.name, "text")

    @property
    def ids(self) -> tuple[int, int, int, int, int]:
        """(system_type_id, user_type_id, max_length, precision, scale) as sys.columns has them."""
        system, user, length = IDS[self.name]
        if self.name in {"nchar", "nvarchar"}:
            length = MAX if self.length == MAX else 2 * self.length
        elif self.length:
            length = self.length
        numbers = {"tinyint": (3, 0), "smallint": (5, 0), "int": (10, 0), "bigint": (19, 0), "bit": (1, 0),
                   "real": (24, 0), "float": (53, 0), "money": (19, 4), "smallmoney": (10, 4), "date": (10, 0),
                   "datetime": (23, 3), "smalldatetime": (16, 0)}  # fmt: skip
        precision, scale = numbers.get(self.name, (self.precision, self.scale))
        if self.name in {"decimal", "numeric"}:
            length = _decimal_size(precision)
        elif self.name in {"time", "datetime2", "datetimeoffset"}:
            width = {"time": 8, "datetime2": 19, "datetimeoffset": 26}[self.name]
            precision = width + (scale and scale + 1)
            length = _time_size(scale) + {"time": 0, "datetime2": 3, "datetimeoffset": 5}[self.name]
        return system, user, length, precision, scale


def type_info(kind: SqlType) -> bytes:
    """TYPE_INFO of a result's column."""
    name, length = kind.name, kind.length
    if name in _INTEGERS:
        return bytes((0x26, _INTEGERS[name]))
    if name in {"decimal", "numeric"}:
        return bytes((0x6A, _decimal_size(kind.precision), kind.precision, kind.scale))
    if name in {"time", "datetime2", "datetimeoffset"}:
        return bytes(({"time": 0x29, "datetime2": 0x2A, "datetimeoffset": 0x2B}[name], kind.scale))
    if name in {"char", "varchar"}:
        return bytes((0xAF if name == "char" else 0xA7,)) + _size(length) + COLLATION
    if name in {"nchar", "nvarchar"}:
        return bytes((0xEF if name == "nchar" else 0xE7,)) + _size(length if length == MAX else 2 * length) + COLLATION
    if name in {"binary", "varbinary"}:
        return bytes((0xAD if name == "binary" else 0xA5,)) + _size(length)
    if name in _CLR:
        raise SqlError(50000, f"the stand-in sends no {name}: select .ToString() or .STAsBinary() of it")
    return _FIXED_INFO[name]


_FIXED_INFO: Final = {
    "bit": b"\x68\x01", "real": b"\x6d\x04", "float": b"\x6d\x08", "money": b"\x6e\x08", "smallmoney": b"\x6e\x04",
    "date": b"\x28", "datetime": b"\x6f\x08", "smalldatetime": b"\x6f\x04", "uniqueidentifier": b"\x24\x10",
    "timestamp": b"\xad\x08\x00", "xml": b"\xf1\x00", "sql_variant": b"\x62\x49\x1f\x00\x00",
    "text": b"\xa7\xff\xff" + COLLATION, "ntext": b"\xe7\xff\xff" + COLLATION, "image": b"\xa5\xff\xff",
}  # fmt: skip


def encoder(kind: SqlType) -> Callable[[bytes | None], bytes]:
    """What makes of PostgreSQL's text, or None, the bytes of a ROW."""
    if kind.name in {"xml", "text", "ntext", "image"} or kind.length == MAX:
        raw = _raw(kind)
        return lambda text: NULL_PLP if text is None else plp(raw(text))
    if kind.length or kind.name == "timestamp":
        raw = _raw(kind)
        return lambda text: b"\xff\xff" if text is None else _with_size(raw(text))
    if kind.name == "sql_variant":
        return lambda text: b"\x00" * 4 if text is None else _variant(text)
    raw = _raw(kind)

    def short(text: bytes | None) -> bytes:
        if text is None:
            return b"\x00"
        value = raw(text)
        return bytes((len(value),)) + value

    return short


def plp(value: bytes) -> bytes:
    """A value of a max type, in one piece."""
    piece = len(value).to_bytes(4, "little") + value if value else b""
    return len(value).to_bytes(8, "little") + piece + b"\x00" * 4


def _raw(kind: SqlType) -> Callable[[bytes], bytes]:
    """The value alone, without its length."""
    name, scale = kind.name, kind.scale
    if name in _INTEGERS:
        size, signed = _INTEGERS[name], name != "tinyint"
        return lambda text: int(text).to_bytes(size, "little", signed=signed)
    if name in {"decimal", "numeric"}:
        size = _decimal_size(kind.precision) - 1
        return lambda text: _decimal(text, scale, size)
    if name in {"nchar", "nvarchar", "ntext", "xml"}:
        return lambda text: text.decode().encode("utf-16-le", "surrogatepass")
    if name in {"char", "varchar", "text"}:
        return lambda text: text.decode().encode("cp1252", "replace")
    if name == "datetime2":
        return lambda text: _moment(int(text), scale)
    if name == "time":
        return lambda text: _time(int(text), scale)
    if name == "datetimeoffset":
        return lambda text: _with_offset(text, scale)
    if name == "binary":
        return lambda text: bytes.fromhex(text[2:].decode()).ljust(kind.length, b"\x00")
    return _RAW[name]


_RAW: Final[dict[str, Callable[[bytes], bytes]]] = {
    "bit": lambda text: b"\x01" if text in {b"1", b"t"} else b"\x00",
    "real": lambda text: struct.pack("<f", float(text)),
    "float": lambda text: struct.pack("<d", float(text)),
    "money": lambda text: struct.pack("<iI", *divmod(_scaled(text, 4), 1 << 32)),
    "smallmoney": lambda text: struct.pack("<i", _scaled(text, 4)),
    "date": lambda text: (datetime.date.fromisoformat(text.decode()).toordinal() - 1).to_bytes(3, "little"),
    "datetime": lambda text: _datetime(int(text)),
    "smalldatetime": lambda text: _smalldatetime(int(text)),
    "uniqueidentifier": lambda text: uuid.UUID(text.decode()).bytes_le,
    "timestamp": lambda text: bytes.fromhex(text[2:].decode()),
    "varbinary": lambda text: bytes.fromhex(text[2:].decode()),
    "image": lambda text: bytes.fromhex(text[2:].decode()),
}


def _decimal_size(precision: int) -> int:
    return 5 if precision <= 9 else 9 if precision <= 19 else 13 if precision <= 28 else 17


def _time_size(scale: int) -> int:
    return 3 if scale <= 2 else 4 if scale <= 4 else 5


def _size(length: int) -> bytes:
    return b"\xff\xff" if length == MAX else length.to_bytes(2, "little")


def _with_size(value: bytes) -> bytes:
    return len(value).to_bytes(2, "little") + value


def _scaled(text: bytes, scale: int) -> int:
    whole, _, fraction = text.partition(b".")
    if len(fraction) > scale or b"e" in text:
        with decimal.localcontext(prec=80):
            return int(decimal.Decimal(text.decode()).scaleb(scale).to_integral_value(decimal.ROUND_HALF_UP))
    return int(whole + fraction.ljust(scale, b"0"))


def _decimal(text: bytes, scale: int, size: int) -> bytes:
    value = _scaled(text, scale)
    return bytes((value >= 0,)) + abs(value).to_bytes(size, "little")


def _time(ticks: int, scale: int) -> bytes:
    unit: int = 10 ** (7 - scale)
    return (ticks // unit).to_bytes(_time_size(scale), "little")


def _moment(ticks: int, scale: int) -> bytes:
    days, rest = divmod(ticks, TICKS_OF_DAY)
    return _time(rest, scale) + days.to_bytes(3, "little")


def _with_offset(text: bytes, scale: int) -> bytes:
    ticks, offset = text.strip(b"()").split(b",")
    return _moment(int(ticks), scale) + int(offset).to_bytes(2, "little", signed=True)


def _datetime(ticks: int) -> bytes:
    days, rest = divmod(ticks, TICKS_OF_DAY)
    return struct.pack("<iI", days - DAYS_TO_1900, (rest * 3 + 50_000) // 100_000)


def _smalldatetime(ticks: int) -> bytes:
    days, rest = divmod(ticks, TICKS_OF_DAY)
    return struct.pack("<HH", days - DAYS_TO_1900, rest // 600_000_000)


def _variant(text: bytes) -> bytes:
    """`type:value`, as sql_variant is kept, with the base type's own properties before the value."""
    name, _, value = text.partition(b":")
    kind = SqlType.parse(name.decode())
    raw = _raw(kind)(value)
    info = type_info(kind)
    token, properties = info[0], b""
    if kind.name in _INTEGERS or kind.name in {"bit", "real", "float", "money", "smallmoney", "datetime", "date"}:
        token = {"tinyint": 0x30, "bit": 0x32, "smallint": 0x34, "int": 0x38, "real": 0x3B, "money": 0x3C, "date": 0x28,
                 "datetime": 0x3D, "float": 0x3E, "smallmoney": 0x7A, "bigint": 0x7F}[kind.name]  # fmt: skip
    elif kind.name in {"decimal", "numeric"}:
        properties = bytes((kind.precision, kind.scale))
    elif kind.textual:
        properties = COLLATION + info[1:3]
    elif kind.length:
        properties = info[1:3]
    elif kind.name in {"time", "datetime2", "datetimeoffset"}:
        properties = bytes((kind.scale,))
    body = bytes((token, len(properties))) + properties + raw
    return len(body).to_bytes(4, "little") + body


class Reader:
    """Takes a message apart."""

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if self.at + size > len(self._data):
            raise ValueError("the message is shorter than it says")
        self.at += size
        return self._data[self.at - size : self.at]

    def number(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def text(self, characters: int) -> str:
        return self.take(2 * characters).decode("utf-16-le")

    @property
    def done(self) -> bool:
        return self.at >= len(self._data)


Value = Callable[[Reader], tuple[SqlType, str]]  # takes a value of one type


def read_parameter(reader: Reader) -> tuple[SqlType, str]:
    """A parameter's TYPE_INFO and value: its type, and the value as an expression of PostgreSQL."""
    return read_type(reader)(reader)


def read_type(reader: Reader) -> Value:
    """A TYPE_INFO: what reads the values that follow it."""
    token = reader.number(1)
    if token in _FIXED:
        kind, size = _FIXED[token]
        return lambda values: (kind, _number(kind, values.take(size)))
    if token in {0x26, 0x68, 0x6D, 0x6E, 0x6F, 0x24, 0x28, 0x29, 0x2A, 0x2B, 0x6A, 0x6C}:
        return _read_short(token, reader)
    if token in {0x23, 0x63, 0x22}:
        reader.take(4 + (0 if token == 0x22 else 5))
        return lambda values: _text_or_bytes(token, MAX, _read_sized(values, 4))
    if token == 0xF1:
        if reader.number(1):
            raise SqlError(50000, "the stand-in does not know typed xml")
        return lambda values: _text_or_bytes(0xE7, MAX, _read_plp(values))
    if token in {0xA7, 0xAF, 0xE7, 0xEF, 0xA5, 0xAD}:
        length = reader.number(2)
        if token not in {0xA5, 0xAD}:
            reader.take(5)
        if length == 0xFFFF:
            return lambda values: _text_or_bytes(token, MAX, _read_plp(values))
        return lambda values: _text_or_bytes(token, length, _read_sized(values, 2))
    raise SqlError(50000, f"the stand-in knows no parameter of type 0x{token:02x}")


def _read_sized(reader: Reader, width: int) -> bytes | None:
    """A value behind its length; all ones are NULL."""
    size = reader.number(width)
    return None if size == 256**width - 1 else reader.take(size)


_FIXED: Final = {
    0x1F: (SqlType("int"), 0), 0x30: (SqlType("tinyint"), 1), 0x32: (SqlType("bit"), 1), 0x34: (SqlType("smallint"), 2),
    0x38: (SqlType("int"), 4), 0x7F: (SqlType("bigint"), 8), 0x3B: (SqlType("real"), 4), 0x3E: (SqlType("float"), 8),
}  # fmt: skip
_BY_SIZE: Final = {
    0x26: {1: "tinyint", 2: "smallint", 4: "int", 8: "bigint"}, 0x68: {1: "bit"}, 0x6D: {4: "real", 8: "float"},
    0x6E: {4: "smallmoney", 8: "money"}, 0x6F: {4: "smalldatetime", 8: "datetime"}, 0x24: {16: "uniqueidentifier"},
}  # fmt: skip


def _read_short(token: int, reader: Reader) -> Value:
    """Types whose length takes one byte."""
    if token in {0x29, 0x2A, 0x2B}:
        kind = SqlType({0x29: "time", 0x2A: "datetime2", 0x2B: "datetimeoffset"}[token], scale=reader.number(1))
    elif token == 0x28:
        kind = SqlType("date")
    elif token in {0x6A, 0x6C}:
        reader.take(1)
        kind = SqlType("decimal", precision=reader.number(1), scale=reader.number(1))
    else:
        kind = SqlType(_BY_SIZE[token][reader.number(1)])

    def read(values: Reader) -> tuple[SqlType, str]:
        value = values.take(values.number(1))
        own = SqlType(_BY_SIZE[token][len(value)]) if token in _BY_SIZE and value else kind
        return own, _number(own, value)

    return read


def _number(kind: SqlType, value: bytes) -> str:
    """A value that is no string, as PostgreSQL's text with its type."""
    if not value:
        return f"NULL::{kind.postgres}"
    if kind.name in _INTEGERS or kind.name == "bit":
        text = str(int.from_bytes(value, "little", signed=kind.name not in {"tinyint", "bit"}))
    elif kind.name in {"real", "float"}:
        text = repr(struct.unpack("<f" if len(value) == 4 else "<d", value)[0])
    elif kind.name == "decimal":
        number = int.from_bytes(value[1:], "little") * (1 if value[0] else -1)
        text = format(decimal.Decimal(number).scaleb(-kind.scale, decimal.Context(prec=60)), "f")
    elif kind.name in {"money", "smallmoney"}:
        high, low = struct.unpack("<iI", value) if len(value) == 8 else (0, struct.unpack("<i", value)[0])
        text = format(decimal.Decimal((high << 32) + low).scaleb(-4), "f")
    elif kind.name == "uniqueidentifier":
        text = str(uuid.UUID(bytes_le=value))
    else:
        text = _moment_text(kind, value)
    return f"'{text}'::{kind.postgres}"


def _moment_text(kind: SqlType, value: bytes) -> str:
    def days(part: bytes) -> int:
        return int.from_bytes(part, "little")

    factor: int = 10 ** (7 - kind.scale)
    if kind.name == "date":
        return (datetime.date(1, 1, 1) + datetime.timedelta(days(value))).isoformat()
    if kind.name == "time":
        return str(days(value) * factor)
    if kind.name == "datetime2":
        return str(days(value[-3:]) * TICKS_OF_DAY + days(value[:-3]) * factor)
    if kind.name == "datetimeoffset":
        ticks = days(value[-5:-2]) * TICKS_OF_DAY + days(value[:-5]) * factor
        return f"({ticks},{int.from_bytes(value[-2:], 'little', signed=True)})"
    if kind.name == "smalldatetime":
        day, minutes = struct.unpack("<HH", value)
        return str((day + DAYS_TO_1900) * TICKS_OF_DAY + minutes * 600_000_000)
    day, parts = struct.unpack("<iI", value)
    return str((day + DAYS_TO_1900) * TICKS_OF_DAY + (parts * 100_000 + 1) // 3)


def _text_or_bytes(token: int, length: int, value: bytes | None) -> tuple[SqlType, str]:
    name = {0xA7: "varchar", 0xAF: "char", 0xE7: "nvarchar", 0xEF: "nchar", 0xA5: "varbinary", 0xAD: "binary",
            0x23: "varchar", 0x63: "nvarchar", 0x22: "varbinary"}[token]  # fmt: skip
    kind = SqlType(name, length=length if length == MAX or name[0] != "n" else length // 2)
    if "binary" in name:
        return kind, "NULL::bytea" if value is None else bytes_literal(value)
    if value is None:
        return kind, "NULL::text"
    return kind, text_literal(value.decode("utf-16-le" if name[0] == "n" else "cp1252"))


def _read_plp(reader: Reader) -> bytes | None:
    if reader.take(8) == NULL_PLP:
        return None
    pieces = []
    while size := reader.number(4):
        pieces.append(reader.take(size))
    return b"".join(pieces)


def text_literal(text: str) -> str:
    """As PostgreSQL writes it; it has no text with NUL in it."""
    if "\0" in text:
        raise SqlError(50000, "the stand-in keeps no text with NUL in it")
    return plain_literal(text) + "::text"


def plain_literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def bytes_literal(value: bytes) -> str:
    return f"'\\x{value.hex()}'::bytea"


def of_result(oid: int, modifier: int, moments: dict[int, str]) -> SqlType:
    """The type of a result that only PostgreSQL knows; moments: the oids of our own types, which differ by database."""
    if oid in moments:
        name = moments[oid]
        if name == "datetime2" and modifier > 20:
            return SqlType("datetime" if modifier < 30 else "smalldatetime")
        scale = modifier - 5 if 5 <= modifier <= 12 else 7
        return SqlType(name, scale=scale) if name != "uniqueidentifier" else SqlType(name)
    if oid == 1700:
        if modifier < 4:
            return SqlType("decimal", precision=38, scale=10)
        return SqlType("decimal", precision=(modifier - 4) >> 16, scale=(modifier - 4) & 0xFFFF)
    return SqlType.parse(BY_OID.get(oid, "nvarchar(max)"))
