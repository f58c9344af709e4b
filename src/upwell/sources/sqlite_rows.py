"""SQLite values as the wire has them.

By the storage class of each value, since any column may hold any class. What could not be told apart on the wire from
what the column is declared to hold is refused: a blob where it would look like text, and text where it would look
like a blob.
"""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import Any, Final

import orjson

from upwell.model import Kind, Value

Stored = int | float | str | bytes | None  # SQLite's five storage classes

_SAFE_INTEGER: Final = 2**53
_TEXT: Final = frozenset({str, int, float, type(None)})
# What stands on the wire just as it is stored; infinities are looked for apart.
_PLAIN: Final[dict[Kind, frozenset[type]]] = {
    Kind.BYTES: frozenset({int, float, type(None)}),
    Kind.DECIMAL: frozenset({str, type(None)}),
    Kind.JSON: frozenset({str, type(None)}),
}


class Unfit(ValueError):
    """A value that the wire can't carry, with the reason; the value is not part of it."""


def wire_value(kind: Kind, value: Stored) -> Value:
    """One value's form on the wire: the rule that `encode_columns` follows faster. Raises Unfit."""
    if value is None:
        return None
    if isinstance(value, bytes):
        if kind is not Kind.BYTES:
            raise Unfit(f"a blob in a column for {kind.value}")
        return b64encode(value).decode()
    if isinstance(value, str):
        if kind is Kind.BYTES:
            raise Unfit("text in a column for bytes")
        if not value.isascii() and _surrogates(value):
            raise Unfit("text that is not valid UTF-8")
        return value
    if kind in (Kind.DECIMAL, Kind.JSON):
        return _number_text(value)
    if -_SAFE_INTEGER <= value <= _SAFE_INTEGER if isinstance(value, int) else math.isfinite(value):
        return value
    if kind is Kind.BYTES:
        raise Unfit("a number in a column for bytes that would look like base64")
    return _number_text(value)


def _surrogates(text: str) -> bool:
    """Whether bytes that are no UTF-8 were smuggled into the text (`surrogateescape`)."""
    return any("\ud800" <= sign <= "\udfff" for sign in text)


def _number_text(value: float) -> str:
    return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value) or repr(value)


class Encoder:
    """Makes the JSON arrays of rows whose columns hold these kinds."""

    def __init__(self, kinds: Sequence[Kind], names: Sequence[str]) -> None:
        self._kinds = tuple(kinds)
        self._names = tuple(names)

    def encode_columns(self, columns: Sequence[Sequence[Stored]]) -> tuple[list[bytes | None], dict[int, str]]:
        """Rows that were turned into columns → each row's JSON array, or None and, by its index, why it has none.

        Most columns stand on the wire as they are stored: their classes are looked at column by column, and only what
        needs it is touched value by value.
        """
        ready: list[Sequence[Any]] = []
        try:
            for kind, column in zip(self._kinds, columns, strict=True):
                ready.append(column if _stands(kind, column) else [wire_value(kind, value) for value in column])
            rows: list[bytes | None] = [_dumps(row) for row in zip(*ready, strict=True)]
        except (Unfit, orjson.JSONEncodeError):
            return self._encode_slowly(columns)
        return rows, {}

    def _encode_slowly(self, columns: Sequence[Sequence[Stored]]) -> tuple[list[bytes | None], dict[int, str]]:
        rows: list[bytes | None] = []
        unfit: dict[int, str] = {}
        for index, row in enumerate(zip(*columns, strict=True)):
            try:
                rows.append(self._encode_row(row))
            except Unfit as error:
                unfit[index] = str(error)
                rows.append(None)
        return rows, unfit

    def _encode_row(self, row: Sequence[Stored]) -> bytes:
        values = []
        for kind, name, value in zip(self._kinds, self._names, row, strict=True):
            try:
                values.append(wire_value(kind, value))
            except Unfit as error:
                raise Unfit(f"column {name}: {error}") from None
        return orjson.dumps(values)


def _stands(kind: Kind, column: Sequence[Stored]) -> bool:
    classes = set(map(type, column))
    if not classes <= _PLAIN.get(kind, _TEXT):
        return False
    return float not in classes or not (math.inf in column or -math.inf in column)


def _dumps(row: tuple[Any, ...], dumps: Callable[..., bytes] = orjson.dumps) -> bytes:
    # Refuses integers beyond 2**53 - 1 and text that is no UTF-8: the slow way knows what to do with them.
    # Copied: orjson makes its result in a buffer of pages, which a row would keep, and hand back one by one.
    return b"%b" % dumps(row, None, orjson.OPT_STRICT_INTEGER)


def known_key(values: Sequence[Stored]) -> str:
    """What is known of a key that can't be encoded, as JSON text for a person."""
    return orjson.dumps([_shown(value) for value in values]).decode()


def _shown(value: Stored) -> Value:
    if isinstance(value, str) and _surrogates(value):
        value = value.encode("utf-8", "surrogateescape")
    return f"x'{value.hex()}'" if isinstance(value, bytes) else value
