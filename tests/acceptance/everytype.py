"""Values of every type that a source can hold: for each what hypothesis makes up, and what is known to be tricky."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

Strategy = st.SearchStrategy[Any]


@dataclass(frozen=True)
class Type:
    """A type by its declaration; values are given as text that it reads."""

    declared: str
    values: Strategy
    edges: Sequence[Any] = ()


def values_of(type_: Type, count: int, number: int) -> list[Any]:
    """Different values: the edges, and about as many as are asked for; the same for the same number."""
    found: list[Any] = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        deadline=None,
        derandomize=False,
    )
    @given(type_.values)
    def collect(value: Any) -> None:
        found.append(value)

    collect()
    return list({repr(value): value for value in [*type_.edges, *found]}.values())


# --- PostgreSQL ----------------------------------------------------------------------------------------------------

POSTGRES_SETUP = (
    "CREATE EXTENSION citext",
    "CREATE EXTENSION hstore",
    "CREATE TYPE mood AS ENUM ('happy', 'it''s \"so\" so', '%s {} \\', '🙂')",
    "CREATE TYPE pair AS (a int, b text)",
    "CREATE TYPE nested AS (p pair, m mood[], n numeric)",
    "CREATE TYPE floatrange AS RANGE (subtype = float8, multirange_type_name = floatranges)",
    "CREATE DOMAIN email AS varchar(30) CHECK (VALUE LIKE '%@%')",
    "CREATE DOMAIN vip AS email",
    "CREATE DOMAIN price AS numeric(8,3)",
    "CREATE DOMAIN tags AS int[]",
    "CREATE DOMAIN feeling AS mood",
)
# What a database prints by default must not matter; nor how the target reads.
POSTGRES_SOURCE_SETTINGS = {
    "datestyle": "'German'", "timezone": "'Asia/Kolkata'", "bytea_output": "'escape'", "intervalstyle": "'iso_8601'",
    "extra_float_digits": "0", "standard_conforming_strings": "off", "quote_all_identifiers": "on",
}  # fmt: skip
POSTGRES_TARGET_SETTINGS = {
    "datestyle": "'SQL, DMY'", "timezone": "'America/New_York'", "intervalstyle": "'sql_standard'",
    "xmloption": "'document'", "array_nulls": "off", "standard_conforming_strings": "off",
    "extra_float_digits": "-15",
}  # fmt: skip

_CHARACTERS = st.characters(codec="utf-8", exclude_characters="\0")
_TRICKY = (
    "", " ", "  trailing  ", "\\N", "\\", "\\.", "\t", "\n\r\b\f\v", '"', "'", "{}", "{", "null", "NULL",
    "\u2028\u2029",
    "\\x00", "a\\tb", "🙂", "e\u0301", "\u00e9", "\u202eRTL", "\ufeff", "\U0010ffff", "%s", "$1", "a,b", "(a)", "[1,2]",
    "\x01\x7f\x80",
)  # fmt: skip
HUGE = 'x🙂\u0301\\"\n' * 20_000  # 240,000 bytes; more is the matter of another proof


def _integers(bits: int) -> Type:
    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    near = [n for n in (2**53 - 1, 2**53, 2**53 + 1, -(2**53), -(2**53) - 1) if least <= n <= most]
    return Type("", st.integers(least, most).map(str), [str(n) for n in (least, most, 0, -1, *near)])


def _text(size_max: int, edges: Sequence[str] = _TRICKY) -> tuple[Strategy, list[str]]:
    return st.text(_CHARACTERS, max_size=size_max), [edge for edge in edges if len(edge) <= size_max]


_DIGITS = st.text("0123456789", min_size=1, max_size=80)
_SIGN = st.sampled_from(["", "-"])
_NUMERIC = st.builds("{}{}.{}".format, _SIGN, _DIGITS, _DIGITS) | st.builds(
    "{}{}e{}".format, _SIGN, _DIGITS, st.integers(-300, 300)
)
_NUMERIC_EDGES = (
    "NaN", "Infinity", "-Infinity", "0", "0.00", "-0.0", "1.0", "1.00", "1e-500", "-1e300", "9" * 1000, "1e-130",
    "1e-131", "9.99e125", "1e126", "1" * 38, "1" * 39, "0." + "1" * 38, "0." + "1" * 39, "12345678901234567890.50",
)  # fmt: skip


def _fixed(precision: int, scale: int) -> Strategy:
    most = 10**precision - 1
    return st.integers(-most, most).map(lambda n: f"{n}e{-scale}")


_FLOAT_EDGES = ("-0", "0", "NaN", "Infinity", "-Infinity", "1e22", "1e21", "123456789012345680", "0.1")


def _floats(width: int) -> Strategy:
    return st.floats(width=32 if width == 32 else 64).map(repr)


def _date(year: int, month: int, day: int) -> str:
    return f"{year:04}-{month:02}-{day:02}" if year > 0 else f"{1 - year:04}-{month:02}-{day:02} BC"


def _dates(first: int, last: int) -> Strategy:
    return st.builds(_date, st.integers(first, last), st.integers(1, 12), st.integers(1, 28))


def _time(micros: int) -> str:
    seconds, micros = divmod(micros, 1_000_000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{micros:06}"


_TIMES = st.integers(0, 86_400_000_000).map(_time)
_TIME_EDGES = ("00:00:00", "24:00:00", "23:59:59.999999", "10:00:00.1", "00:00:00.000001")
_OFFSETS = st.integers(-15 * 3600, 15 * 3600).map(
    lambda s: f"{'-' if s < 0 else '+'}{abs(s) // 3600:02}:{abs(s) // 60 % 60:02}:{abs(s) % 60:02}"
)


def _stamp(date: str, time: str, offset: str = "") -> str:
    plain = date.removesuffix(" BC")
    return f"{plain} {time}{offset}{' BC' if plain != date else ''}"


_STAMPS = st.builds(_stamp, _dates(-4711, 294275), _TIMES)
_STAMPSTZ = st.builds(_stamp, _dates(-4711, 294275), _TIMES, _OFFSETS)
_STAMP_EDGES = (
    "infinity", "-infinity", "294276-12-31 23:59:59.999999", "4713-01-01 00:00:00 BC", "0001-12-31 23:59:59.999999 BC",
    "0044-03-15 10:00:00.5 BC", "2026-01-31 10:00:00.120000", "1999-12-31 24:00:00", "0001-01-01 00:00:00",
)  # fmt: skip


def _in_utc(stamp: str) -> str:
    return stamp.removesuffix(" BC") + "+00" + (" BC" if stamp.endswith(" BC") else "")


_INTERVALS = st.builds(
    "{} mons {} days {} microseconds".format,
    st.integers(-(10**8), 10**8),
    st.integers(-(10**9), 10**9),
    st.integers(-(10**17), 10**17),
)
_INTERVAL_EDGES = (
    "1 day -00:00:01.5", "P1Y2M3DT4H5M6S", "-1 mon", "-1 mon +2 days -03:04:05.000006", "00:00:00", "-00:00:00.000001",
    "1 day", "24:00:00", "178000000 years", "-178000000 years", "2147483647 days", "-2147483648 days",
    "2562047788:00:54.775807", "-2562047788:00:54.775807",
)  # fmt: skip


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


_JSON_LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(_CHARACTERS, max_size=20)
)  # fmt: skip
_JSON = st.recursive(
    _JSON_LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(_CHARACTERS, max_size=5), inner, max_size=4),
    max_leaves=12,
)
_JSON_EDGES = (
    "null", "{}", "[]", '""', "0", "-0", "-0.0", "1e400", "1E-400", "1234567890" * 5,
    "0.10", "1.0", '{"b": 1,  "a": [1e400, null], "b": 2}', '{"": 1}', '"\\u00e9\\n\\ud83d\\ude42"', " [ 1 , 2 ] ",
    "[" * 31 + "]" * 31, "[" * 33 + "]" * 33, '{"a":' * 200 + "1" + "}" * 200, '{"_upwell_v": 1}', '{"k":"\\\\u0000"}',
)  # fmt: skip


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _array(elements: Strategy, quote: Callable[[str], str] = str) -> Strategy:
    element = st.none() | elements
    return st.lists(element, max_size=5).map(
        lambda found: "{" + ",".join("NULL" if value is None else quote(value) for value in found) + "}"
    )


_TEXTS = st.text(_CHARACTERS, max_size=8)
_WORDS = st.text(
    st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cc"]), min_size=1, max_size=8
)


def _lexeme(word: str) -> str:
    return "'" + word.replace("\\", "\\\\").replace("'", "''") + "'"


_COORDINATES = st.floats(width=64, allow_nan=False, allow_infinity=False).map(repr)
_FINITE = st.floats(-1e100, 1e100).map(repr)
_POINTS = st.builds("({},{})".format, _COORDINATES, _COORDINATES)


def _range(low: Strategy, high: Strategy) -> Strategy:
    ordered = st.tuples(low, high).map(sorted)
    brackets = st.sampled_from(["[]", "[)", "(]", "()"])
    whole = st.builds(lambda ends, b: f"{b[0]}{ends[0]},{ends[1]}{b[1]}", ordered, brackets)
    half = st.builds(lambda end, b: f"{b[0]}{end},{b[1]}", low, brackets)
    other = st.builds(lambda end, b: f"{b[0]},{end}{b[1]}", low, brackets)
    return whole | half | other | st.sampled_from(["empty", "(,)"])


def _multirange(of: Strategy) -> Strategy:
    return st.lists(of, max_size=3).map(lambda found: "{" + ",".join(found) + "}")


_INT4 = st.integers(-(2**31), 2**31 - 2)
_INTRANGE = _range(_INT4, _INT4)
_NUMRANGE = _range(st.integers(-(10**40), 10**40), st.integers(-(10**40), 10**40))
_BC = _dates(2, 9998)
_DATERANGE = _range(_BC, _BC)
_TSRANGE = _range(st.builds('"{} {}"'.format, _BC, _TIMES), st.builds('"{} {}"'.format, _BC, _TIMES))
_FLOATRANGE = _range(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))
_BITS = st.text("01", max_size=80)
_HEX = st.binary(min_size=8, max_size=8).map(bytes.hex)
_PAIR = st.builds(
    lambda a, b: (
        f"({'' if a is None else a},{'' if b is None else _quoted(b).replace(chr(92) + chr(34), chr(34) * 2)})"
    ),
    st.none() | st.integers(-(2**31), 2**31 - 1),
    st.none() | _TEXTS,
)
_MOODS = st.sampled_from(["happy", 'it\'s "so" so', "%s {} \\", "🙂"])


def _named(declared: str, kind: Type) -> Type:
    return Type(declared, kind.values, kind.edges)


POSTGRES: dict[str, Type] = {
    "bool": Type("boolean", st.sampled_from(["t", "f"])),
    "int2": _named("smallint", _integers(16)),
    "int4": _named("integer", _integers(32)),
    "int8": _named("bigint", _integers(64)),
    "oid": Type("oid", st.integers(0, 2**32 - 1).map(str), ["0", "4294967295"]),
    "xid8": Type("xid8", st.integers(0, 2**64 - 1).map(str)),
    "numeric": Type("numeric", _NUMERIC, _NUMERIC_EDGES),
    "numeric_12_2": Type("numeric(12,2)", _fixed(12, 2), ["NaN", "0", "0.00"]),
    "numeric_5_m2": Type("numeric(5,-2)", _fixed(5, -2), ["NaN", "9999900"]),
    "numeric_3_5": Type("numeric(3,5)", _fixed(3, 5), ["0.00999"]),
    "numeric_38_0": Type("numeric(38,0)", _fixed(38, 0), ["9" * 38, "NaN"]),
    "numeric_40_2": Type("numeric(40,2)", _fixed(40, 2), ["NaN"]),
    "numeric_3_200": Type("numeric(3,200)", _fixed(3, 200)),
    "numeric_5_m130": Type("numeric(5,-130)", _fixed(5, -130)),
    "float4": Type("real", _floats(32), [*_FLOAT_EDGES, "1e-45", "3.4028235e38"]),
    "float8": Type("double precision", _floats(64), [*_FLOAT_EDGES, "5e-324", "1.7976931348623157e308", "1e-130"]),
    "text": Type("text", _text(60)[0], [*_TRICKY, HUGE]),
    "varchar": Type("varchar(60)", *_text(60)),
    "varchar_any": Type("varchar", *_text(60)),
    "bpchar": Type("char(5)", *_text(5)),
    "bpchar_any": Type("bpchar", *_text(20)),
    "name": Type("name", *_text(15)),
    "char": Type('"char"', st.characters(codec="ascii", exclude_characters="\0"), ["", " ", "\\"]),
    "bytea": Type("bytea", st.binary(max_size=60).map(lambda b: "\\x" + b.hex()), ["\\x", "\\x00", "\\x5c", "\\xff"]),
    "date": Type("date", _dates(-4711, 5874896), ["infinity", "-infinity", "4713-01-01 BC", "5874897-12-31"]),
    "time": Type("time", _TIMES, _TIME_EDGES),
    "time3": Type("time(3)", _TIMES, _TIME_EDGES),
    "timetz": Type("timetz", st.builds("{}{}".format, _TIMES, _OFFSETS), ["24:00:00+00", "10:00:00-15:59:59"]),
    "timestamp": Type("timestamp", _STAMPS, _STAMP_EDGES),
    # Rounded up, the very last moment is one that PostgreSQL prints and does not read.
    "timestamp0": Type("timestamp(0)", _STAMPS, [edge for edge in _STAMP_EDGES if edge[:6] != "294276"]),
    "timestamptz": Type(
        "timestamptz", _STAMPSTZ, [edge if edge.endswith("infinity") else _in_utc(edge) for edge in _STAMP_EDGES]
    ),
    "timestamptz2": Type("timestamptz(2)", _STAMPSTZ),
    "interval": Type("interval", _INTERVALS, _INTERVAL_EDGES),
    "interval3": Type("interval(3)", _INTERVALS),
    "interval_ym": Type("interval year to month", _INTERVALS),
    "interval_ds": Type("interval day to second(2)", _INTERVALS),
    "uuid": Type("uuid", st.uuids().map(lambda u: str(u).upper())),
    "json": Type("json", _JSON.map(_json), [*_JSON_EDGES, '"\\u0000"', '"\\ud800"', '{"\\udfff": "\\u0000"}']),
    "jsonb": Type("jsonb", _JSON.map(_json), _JSON_EDGES),
    "jsonpath": Type("jsonpath", st.just("$.a[*] ? (@ > 1)")),
    "ints": Type(
        "int[]", _array(_INT4.map(str)), ["{}", "{1,NULL,3}", "{{1,2},{3,4}}", "[0:1]={5,6}", "[-2:-1][3:3]={{1},{2}}"]
    ),
    "bigints": Type("bigint[]", _array(st.integers(-(2**63), 2**63 - 1).map(str))),
    "texts": Type("text[]", _array(_TEXTS, _quoted), ['{"NULL",NULL,null,"null",""," "}', '{{a,"b\\"c"},{"{","}"}}']),
    "numerics": Type("numeric(10,2)[]", _array(_fixed(10, 2)), ["{NaN}"]),
    "floats": Type("float8[]", _array(_floats(64))),
    "bools": Type("boolean[]", _array(st.sampled_from(["t", "f"]))),
    "stamps": Type("timestamptz[]", _array(_STAMPSTZ, _quoted)),
    "byteas": Type("bytea[]", _array(st.binary(max_size=5).map(lambda b: "\\x" + b.hex()), _quoted)),
    "jsons": Type("json[]", _array(_JSON.map(_json), _quoted)),
    "intervals": Type("interval[]", _array(_INTERVALS, _quoted)),
    "chars": Type("char(3)[]", _array(st.text("ab ", max_size=3), _quoted)),
    "boxes": Type("box[]", st.just("{(2,2),(1,1);(4,4),(3,3)}")),
    "moods": Type("mood[]", _array(_MOODS, _quoted)),
    "mood": Type("mood", _MOODS),
    "feeling": Type("feeling", _MOODS),
    "pair": Type("pair", _PAIR),
    "pairs": Type("pair[]", _array(_PAIR, _quoted)),
    "nested": Type("nested", st.just('("(1,""a b"")","{happy,NULL}",1.50)'), ["(,,)"]),
    "email": Type("email", st.just("a@b.c")),
    "vip": Type("vip", st.just("v@b.c")),
    "price": Type("price", _fixed(8, 3)),
    "tags": Type("tags", _array(_INT4.map(str))),
    "emails": Type("email[]", st.just('{a@b,NULL,"c d@e"}')),
    "int4range": Type("int4range", _INTRANGE),
    "int8range": Type("int8range", _range(st.integers(-(2**62), 2**62), st.integers(-(2**62), 2**62))),
    "numrange": Type("numrange", _NUMRANGE, ["[1.0,2.00)"]),
    "daterange": Type("daterange", _DATERANGE, ["[infinity,)", "(-infinity,infinity)"]),
    "tsrange": Type("tsrange", _TSRANGE),
    "tstzrange": Type("tstzrange", _TSRANGE),
    "floatrange": Type("floatrange", _FLOATRANGE),
    "int4ranges": Type("int4multirange", _multirange(_INTRANGE), ["{}", "{(,)}"]),
    "tsranges": Type("tsmultirange", _multirange(_TSRANGE)),
    "floatranges": Type("floatranges", _multirange(_FLOATRANGE)),
    "rangearray": Type("int4range[]", _array(_INTRANGE, _quoted)),
    "inet": Type("inet", st.ip_addresses().map(str), ["10.0.0.1/8", "::1/64", "::ffff:1.2.3.4", "0.0.0.0/0"]),
    "cidr": Type("cidr", st.ip_addresses().map(str), ["10.0.0.0/8", "::/0"]),
    "mac": Type("macaddr", _HEX.map(lambda h: h[:12])),
    "mac8": Type("macaddr8", _HEX),
    "bits": Type("bit(3)", st.text("01", min_size=3, max_size=3)),
    "varbits": Type("varbit", _BITS, [""]),
    "varbits10": Type("varbit(10)", st.text("01", max_size=10)),
    "words": Type(
        "tsvector", st.lists(_WORDS.map(_lexeme), max_size=4).map(" ".join), ["", "'a':1A,2B 'b':3", "'it''s' '\\\\'"]
    ),
    "query": Type("tsquery", _WORDS.map(_lexeme), ["'a' & !'b' | 'c':*AB", "", "'a' <-> 'b'"]),
    "money": Type(
        "money", st.integers(-(2**63) + 1, 2**63 - 1).map(lambda n: f"{n // 100}.{n % 100:02}"), ["-0.05", "1234.56"]
    ),
    "xml": Type(
        "xml",
        _WORDS.map(lambda w: f"<a>{w.replace('&', '').replace('<', '').replace('>', '')}</a>"),
        ["a<b/>c", "<a>ü\n</a>", "", " ", '<?xml version="1.0" encoding="UTF-8"?><a/>', '<?xml version="1.1"?><a/>'],
    ),
    "point": Type("point", _POINTS, ["(NaN,Infinity)", "(-0,1e-300)"]),
    "line": Type("line", st.just("{1,-2,0.1}")),
    "lseg": Type("lseg", st.builds("[{},{}]".format, _POINTS, _POINTS)),
    "box": Type("box", st.builds("({},{})".format, _POINTS, _POINTS)),
    "path": Type("path", st.builds("[{},{}]".format, _POINTS, _POINTS), ["((0,0),(1,1))"]),
    "polygon": Type("polygon", st.builds("({},{},{})".format, _POINTS, _POINTS, _POINTS)),
    "circle": Type("circle", st.builds("<({},{}),{}>".format, _FINITE, _FINITE, st.floats(0, 1e9).map(repr))),
    "lsn": Type("pg_lsn", st.integers(0, 2**64 - 1).map(lambda n: f"{n >> 32:X}/{n % 2**32:X}")),
    "snapshot": Type("pg_snapshot", st.just("10:20:10,14,15")),
    "txid_snapshot": Type("txid_snapshot", st.just("10:20:10,14,15")),
    "regclass": Type("regclass", st.sampled_from(["pg_class", "0"])),
    "cursor": Type("refcursor", _TEXTS),
    "vector": Type("int2vector", st.just("1 2 -3")),
    "tid": Type("tid", st.just("(1,2)")),
    "citext": Type("citext", _text(20)[0], ["MiXed", "ß"]),
    "hstore": Type(
        "hstore",
        st.builds("{}=>{}".format, _TEXTS.map(_quoted), _TEXTS.map(_quoted)),
        ['"a"=>NULL, "b"=>"NULL"', ""],
    ),
}


# --- SQLite --------------------------------------------------------------------------------------------------------

_SQLITE_NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=True)
_SQLITE_TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)
_SQLITE_ANY = st.none() | _SQLITE_NUMBERS | _SQLITE_TEXTS | st.binary(max_size=20)
_SQLITE_EDGES = (
    None, 0, -1, 1, 2**63 - 1, -(2**63), 2**53, 2**53 + 1, -(2**53) - 1, 0.0, -0.0, 1.0, 1e300, 5e-324, 0.1, 2.5,
    float("inf"), float("-inf"), float("nan"), "", "\0", "a\0b", "1", "1.0", "1e3", " 5 ", "0x10", "NaN", "Infinity",
    "12345678901234567890.5", "99999999999999999999", "2026-01-31 10:00:00", '{"a": [1, null]}', "{not json", "null",
    b"", b"\0", b"\xff", b"text", *_TRICKY,
)  # fmt: skip
BROKEN_TEXT = "CAST(x'61ff62' AS TEXT)"  # not UTF-8: no Python text can say it

SQLITE_TYPES = (
    "INTEGER", "INT", "BIGINT", "TINYINT", "TEXT", "VARCHAR(10)", "CHAR(5)", "CLOB", "REAL", "DOUBLE", "FLOAT",
    "NUMERIC", "DECIMAL(10,2)", "BLOB", "", "BOOLEAN", "DATE", "DATETIME", "TIMESTAMP", "JSON", "UUID", "VARBINARY(9)",
    "MONEY", "STRING", "WHATEVER",
)  # fmt: skip
SQLITE_STRICT_TYPES = ("INT", "INTEGER", "REAL", "TEXT", "BLOB", "ANY")
SQLITE_VALUES = Type("", _SQLITE_ANY, _SQLITE_EDGES)
