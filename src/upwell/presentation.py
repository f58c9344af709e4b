"""The values of a row as the read API shows them: the same whichever store it was read from. Pure.

They have the forms of the wire (docs/wire.md). Where a store does not keep how a value was written, one way is chosen:
decimals have the digits that their type declares, or none that say nothing; JSON is in one notation; moments of SQL
Server's have the digits of their type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

import orjson

from upwell.items import canonical_json
from upwell.model import Column, Kind, TableSchema, Value

Present = Callable[[Value], Value]

_DECLARED: Final = re.compile(r"\s*\w+\s*\(\s*([0-9]+)\s*(?:,\s*(-?[0-9]+)\s*)?\)")
_DIGITS: Final = re.compile(r"(-?[0-9]+)(?:\.([0-9]*))?")
_MOMENT: Final = re.compile(r"(.*?:[0-9]{2})(?:\.([0-9]+))?(Z|[+-][0-9]{2}:[0-9]{2})?")
_MONEY: Final = ("money", "smallmoney")
_MOMENTS: Final = (Kind.TIME, Kind.TIMESTAMP, Kind.TIMESTAMPTZ)
_SECOND_DIGITS_MAX: Final = 7


def row_presenter(schema: TableSchema) -> Callable[[Sequence[Value]], list[Value]]:
    """For rows in the order of the schema's columns."""
    presents = [_presenter(column, schema.dialect) for column in schema.columns]
    if not any(presents):
        return list

    def present(row: Sequence[Value]) -> list[Value]:
        return [
            value if present is None or value is None else present(value)
            for present, value in zip(presents, row, strict=True)
        ]

    return present


def _presenter(column: Column, dialect: str) -> Present | None:
    """None: as it is. What a column holds that is not of its kind stays as it is."""
    if column.kind is Kind.DECIMAL:
        scale = _scale(column, dialect)
        return lambda value: _decimal(value, scale) if isinstance(value, str) else value
    if column.kind is Kind.JSON:
        return _document
    if column.kind is Kind.FLOAT:  # a Number of DynamoDB knows no negative zero
        return lambda value: 0.0 if value == 0 and isinstance(value, float) else value
    if column.kind in _MOMENTS and dialect == "sqlserver":
        digits = _second_digits(column)
        return lambda value: _moment(value, digits) if isinstance(value, str) else value
    return None


def _document(value: Value) -> Value:
    """From DynamoDB, a document that is no more than a number comes back as that."""
    return canonical_json(value if isinstance(value, str) else orjson.dumps(value).decode())


def _scale(column: Column, dialect: str) -> int | None:
    """The digits behind the point that each value has; None where the type leaves that open."""
    declared = _DECLARED.fullmatch(column.type)
    if dialect == "sqlite":
        return None  # its types are advice
    if declared is None:
        return 4 if column.type.lower() in _MONEY else None
    scale = int(declared[2] or 0)
    return scale if scale >= 0 else None


def _decimal(text: str, scale: int | None) -> str:
    found = _DIGITS.fullmatch(text)
    if found is None:
        return text  # NaN, infinities
    whole, digits = found[1], (found[2] or "").rstrip("0")
    if scale is not None:
        digits = digits.ljust(scale, "0")
    return f"{whole}.{digits}" if digits else "0" if whole == "-0" else whole


def _second_digits(column: Column) -> int:
    name = column.type.lower()
    declared = _DECLARED.fullmatch(name)
    if declared is not None:
        return int(declared[1])
    return {"datetime": 3, "smalldatetime": 0}.get(name, _SECOND_DIGITS_MAX)


def _moment(text: str, digits: int) -> str:
    found = _MOMENT.fullmatch(text)
    if found is None:
        return text
    fraction = (found[2] or "").ljust(digits, "0")
    return found[1] + (f".{fraction}" if fraction else "") + (found[3] or "")
