"""How the wire's values compare: as the database that they come from compares them, as far as all agree.

What no two databases agree on is refused rather than guessed: the order of uuids and of enums, a binary column's.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from upwell.model import Column, Kind, Value


class WhereError(ValueError):
    """A filter is not in the supported subset, or does not fit its table; the message is a lower-case clause."""


@dataclass(frozen=True, slots=True)
class Domain:
    """How the values of a column are compared: both functions give things of one order."""

    name: str
    value: Callable[[Value], Any]  # None for a value that is not of the column's kind: SQLite lets such in
    constant: Callable[[str | Decimal | bool, Column], Any]  # raises WhereError
    ordered: bool = True  # False: the database's order is not known here, only equality is


def domain(column: Column, sign: str) -> Domain:
    """How a column's values compare by this sign. Raises WhereError where they don't."""
    found = _DOMAINS.get(column.kind)
    if found is None:
        raise WhereError(f"the column {column.name} ({column.type}) can only be asked whether it IS NULL")
    if not found.ordered and sign not in ("=", "<>"):
        raise WhereError(f"the column {column.name} ({column.type}) has no order here; use =, <> or IN")
    if column.kind is Kind.TEXT and _PADDED.match(column.type):
        return _PADDED_TEXT
    return found


class _Greatest:
    """NaN, which the databases that have it hold to be equal to itself and greater than every number."""

    def __lt__(self, other: object) -> bool:
        return False

    def __le__(self, other: object) -> bool:
        return other is self

    def __gt__(self, other: object) -> bool:
        return other is not self

    def __ge__(self, other: object) -> bool:
        return True


_NAN: Final = _Greatest()


def _integer(value: Value) -> Any:
    if isinstance(value, int):
        return value
    return _decimal(value)


def _decimal(value: Value) -> Any:
    if isinstance(value, bool) or value is None:
        return None
    if value == "NaN":
        return _NAN
    try:
        return Decimal(repr(value) if isinstance(value, float) else value)
    except InvalidOperation:
        return None


def _float(value: Value) -> Any:
    if isinstance(value, bool) or value is None:
        return None
    try:
        return _NAN if value == "NaN" else float(value)
    except ValueError:
        return None


def _number_constant(value: str | Decimal | bool, column: Column) -> Any:
    if isinstance(value, bool):
        raise _no_constant(value, column)
    found = _decimal(value) if isinstance(value, str) else value
    if found is None:
        raise _no_constant(value, column)
    return found


def _float_constant(value: str | Decimal | bool, column: Column) -> Any:
    found = _number_constant(value, column)
    return found if found is _NAN else float(found)


def _text(value: Value) -> Any:
    return value if isinstance(value, str) else None


def _text_constant(value: str | Decimal | bool, column: Column) -> Any:
    if not isinstance(value, str):
        raise _no_constant(value, column)
    return value


def _padded(value: Value) -> Any:
    return value.rstrip(" ") if isinstance(value, str) else None


def _bool(value: Value) -> Any:
    return bool(value) if isinstance(value, (bool, int)) else None


def _bool_constant(value: str | Decimal | bool, column: Column) -> Any:
    if value not in (True, False):  # SQL Server's bit and SQLite's booleans are written 0 and 1
        raise _no_constant(value, column)
    return bool(value)


def _uuid(value: Value) -> Any:
    return value.lower() if isinstance(value, str) else None


def _uuid_constant(value: str | Decimal | bool, column: Column) -> Any:
    try:
        return str(uuid.UUID(str(value)))
    except ValueError as error:
        raise _no_constant(value, column) from error


_MOMENT = re.compile(r"(\d{4})-(\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?)(?:\.(\d+))?)? ?(Z|[+-]\d\d(?::?\d\d)?)?")
_LONG_YEAR = re.compile(r"(\d{4,})(.*?)( BC)?")
_TIME = re.compile(r"(\d\d:\d\d(?::\d\d)?)(?:\.(\d+))?")
_INFINITE: Final = {"infinity": (10**9, ""), "-infinity": (-(10**9), "")}


def _moment(value: Value) -> Any:
    """(year, the rest as text): compares as the moment does, for each year that a database knows."""
    if not isinstance(value, str):
        return None
    if value in _INFINITE:
        return _INFINITE[value]
    match = _MOMENT.fullmatch(value)
    if match is None:
        long = _LONG_YEAR.fullmatch(value)
        return None if long is None else (-int(long[1]) if long[3] else int(long[1]), long[2].rstrip("Z"))
    year, day, clock, fraction, zone = match.groups()
    if zone is not None and zone != "Z":
        year, day, clock = _in_utc(f"{year}-{day}T{clock or '00:00'}", zone)
    clock = clock or "00:00:00"
    clock = clock if len(clock) == 8 else clock + ":00"
    return int(year), f"-{day}T{clock}{_fraction(fraction)}"


def _in_utc(text: str, zone: str) -> tuple[str, str, str]:
    digits = zone[1:].replace(":", "").ljust(4, "0")
    offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    moment = datetime.fromisoformat(text).replace(tzinfo=UTC)
    moment = moment - offset if zone[0] == "+" else moment + offset
    return f"{moment.year:04}", f"{moment.month:02}-{moment.day:02}", f"{moment:%H:%M:%S}"


def _fraction(digits: str | None) -> str:
    digits = (digits or "").rstrip("0")
    return f".{digits}" if digits else ""


def _moment_constant(value: str | Decimal | bool, column: Column) -> Any:
    text = str(value)
    if text in _INFINITE:
        return _INFINITE[text]
    match = _MOMENT.fullmatch(text)
    if match is None:
        raise _no_constant(value, column)
    year, day, clock, _, zone = match.groups()
    if (clock and column.kind is Kind.DATE) or (zone and (clock is None or column.kind is not Kind.TIMESTAMPTZ)):
        raise _no_constant(value, column)
    try:
        datetime.fromisoformat(f"{year}-{day}T{clock or '00:00'}")
        return _moment(text)
    except (ValueError, OverflowError) as error:
        raise _no_constant(value, column) from error


def _time(value: Value) -> Any:
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    clock = match[1] if len(match[1]) == 8 else match[1] + ":00"
    return clock + _fraction(match[2])


def _time_constant(value: str | Decimal | bool, column: Column) -> Any:
    found = _time(str(value))
    if found is None:
        raise _no_constant(value, column)
    return found


_EXAMPLES: Final = {
    Kind.BOOL: "TRUE or FALSE",
    Kind.INT: "a number",
    Kind.DECIMAL: "a number",
    Kind.FLOAT: "a number",
    Kind.TEXT: "a text in single quotes",
    Kind.OTHER: "a text in single quotes",
    Kind.UUID: "a uuid in single quotes",
    Kind.DATE: "a date such as '2026-01-31'",
    Kind.TIME: "a time such as '10:00:00'",
    Kind.TIMESTAMP: "a timestamp such as '2026-01-31 10:00:00'",
    Kind.TIMESTAMPTZ: "a timestamp such as '2026-01-31 10:00:00+01:00'",
}


def _no_constant(value: str | Decimal | bool, column: Column) -> WhereError:
    text = f"'{value}'" if isinstance(value, str) else str(value).upper()
    return WhereError(f"{text} does not compare with {column.name} ({column.type}); it takes {_EXAMPLES[column.kind]}")


# Fixed-length text: blanks at its end do not count in comparisons.
_PADDED = re.compile(r"(bp|n)?char(acter)?\b(?! varying)", re.IGNORECASE)
_PADDED_TEXT: Final = Domain("text", _padded, lambda value, column: _padded(_text_constant(value, column)))
_DOMAINS: Final[dict[Kind, Domain]] = {
    Kind.BOOL: Domain("booleans", _bool, _bool_constant, ordered=False),
    Kind.INT: Domain("numbers", _integer, _number_constant),
    Kind.DECIMAL: Domain("numbers", _decimal, _number_constant),
    Kind.FLOAT: Domain("numbers", _float, _float_constant),
    Kind.TEXT: Domain("text", _text, _text_constant),
    Kind.OTHER: Domain("other", _text, _text_constant, ordered=False),
    Kind.UUID: Domain("uuids", _uuid, _uuid_constant, ordered=False),
    Kind.DATE: Domain("dates", _moment, _moment_constant),
    Kind.TIME: Domain("times", _time, _time_constant),
    Kind.TIMESTAMP: Domain("timestamps", _moment, _moment_constant),
    Kind.TIMESTAMPTZ: Domain("timestamps with zone", _moment, _moment_constant),
}


def like_matcher(pattern: str, escape: str) -> Callable[[str], bool]:
    """LIKE with `%` and `_`; `escape` is empty or the one character that makes the next one plain.

    Takes time proportional to the text, whatever the pattern: between two `%`, the first place that fits is right.
    """
    parts: list[list[str]] = [[]]  # between the `%`: regular expressions of single characters
    plain = False
    for character in pattern:
        if plain or character not in (escape, "%", "_"):
            parts[-1].append(re.escape(character))
            plain = False
        elif character == escape:
            plain = True
        elif character == "%":
            parts.append([])
        else:
            parts[-1].append(".")
    if plain:
        raise WhereError("a LIKE pattern must not end with its ESCAPE character")
    sizes = [len(part) for part in parts]
    first, *middle, last = [re.compile("".join(part), re.DOTALL) for part in parts] * (2 if len(parts) == 1 else 1)
    if len(parts) == 1:
        return lambda text: first.fullmatch(text) is not None

    def matches(text: str) -> bool:
        end = len(text) - sizes[-1]
        if end < sizes[0] or not first.match(text) or not last.fullmatch(text, end):
            return False
        at = sizes[0]
        for part in middle:
            found = part.search(text, at, end)
            if found is None:
                return False
            at = found.end()
        return True

    return matches
