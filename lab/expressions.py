"""DynamoDB's expressions as far as upwell uses them: conditions, updates, projections, of top-level attributes.

A text is compiled once; names (#n) and values (:v) are looked up when it runs. Attribute values are as on the wire,
{"S": "text"}, with numbers normalized. What is not known here is refused, never ignored.
"""

from __future__ import annotations

import base64
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Context, Decimal
from functools import lru_cache
from typing import Any, Final, NoReturn

from lab.standin import NOT_KNOWN, Refusal

Attribute = dict[str, Any]
Item = dict[str, Attribute]
Names = Mapping[str, str]
Values = Mapping[str, Attribute]
Condition = Callable[[Item, Names, Values], bool]
Operand = Callable[[Item, Names, Values], Attribute | None]

_EXACT: Final = Context(prec=400)
_TOKEN: Final = re.compile(r"\s*(?:([#:]?\w+)|(<=|>=|<>|[=<>(),+\-.\[\]]))")
_COMPARES: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_FUNCTIONS: Final = ("attribute_exists", "attribute_not_exists", "attribute_type", "begins_with", "contains")
_CLAUSES: Final = ("SET", "REMOVE", "ADD", "DELETE")


@dataclass
class Compiled:
    """What an expression refers to, besides what it does."""

    names: set[str] = field(default_factory=set)
    values: set[str] = field(default_factory=set)
    attributes: list[str] = field(default_factory=list)  # written or projected: words or #names
    equals: dict[str, str] = field(default_factory=dict)  # `name = :value` as a part joined by AND, or alone
    holds: Condition = field(default=lambda item, names, values: True)
    changed: Callable[[Item, Names, Values], Item] = field(default=lambda item, names, values: item)


def comparable(attribute: Attribute) -> tuple[str, Any]:
    """The type, and a value that Python compares as DynamoDB does: text by its UTF-8, binary by its bytes."""
    ((kind, value),) = attribute.items()
    if kind == "S":
        return kind, value.encode()
    if kind == "N":
        return kind, Decimal(value)
    if kind == "B":
        return kind, base64.b64decode(value)
    if kind in ("SS", "NS", "BS"):
        return kind, sorted(value)
    return kind, value


@lru_cache(maxsize=4096)
def condition(text: str) -> Compiled:
    """A ConditionExpression, FilterExpression or KeyConditionExpression."""
    parser = _Parser(text)
    parser.made.holds = parser.alternatives()
    return parser.ended()


@lru_cache(maxsize=4096)
def update(text: str) -> Compiled:
    """An UpdateExpression."""
    parser = _Parser(text)
    changes: list[tuple[str, Operand | None]] = []
    while parser.ahead is not None:
        clause = parser.word().upper()
        if clause not in _CLAUSES:
            parser.fail()
        changes += parser.listed(lambda clause=clause: parser.change(clause))  # type: ignore[misc]
    parser.made.attributes = [name for name, _ in changes]
    parser.made.changed = lambda item, names, values: _changed(item, names, values, changes)
    return parser.ended()


@lru_cache(maxsize=4096)
def projection(text: str) -> Compiled:
    """A ProjectionExpression."""
    parser = _Parser(text)
    parser.made.attributes = list(parser.listed(parser.path))
    return parser.ended()


def check_placeholders(request: Mapping[str, Any], used: Iterable[Compiled]) -> tuple[Names, Values]:
    """The request's names and values; all that is used must be defined, and all that is defined used."""
    used = list(used)
    defined: list[Mapping[str, Any]] = []
    for member, what in (("ExpressionAttributeNames", "names"), ("ExpressionAttributeValues", "values")):
        given = request.get(member, {})
        wanted = set().union(*(getattr(each, what) for each in used))
        if wanted - given.keys():
            _refuse(f"An expression attribute {what[:-1]} used in expression is not defined: {sorted(wanted)}")
        if given.keys() - wanted:
            _refuse(f"Value provided in {member} unused in expressions: keys: {sorted(given.keys() - wanted)}")
        defined.append(given)
    return defined[0], defined[1]


def resolved(name: str, names: Names) -> str:
    """The attribute that a word or a #name means."""
    return names[name] if name[0] == "#" else name


def _changed(item: Item, names: Names, values: Values, changes: list[tuple[str, Operand | None]]) -> Item:
    after = dict(item)
    for name, operand in changes:  # operands see the item as it was
        if operand is None:
            after.pop(resolved(name, names), None)
            continue
        value = operand(item, names, values)
        if value is None:
            _refuse("The provided expression refers to an attribute that does not exist in the item")
        after[resolved(name, names)] = value
    return after


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self.made = Compiled()
        self.ahead: str | None = None
        self._advance()

    def _advance(self) -> str:
        taken = self.ahead
        rest = self._text[self._at :]
        match = _TOKEN.match(rest)
        if match is None and rest.strip():
            self.fail()
        self.ahead = match and (match[1] or match[2])
        self._at += match.end() if match else 0
        return taken or ""

    def ended(self) -> Compiled:
        if self.ahead is not None or not self._text.strip():
            self.fail()
        return self.made

    def fail(self) -> NoReturn:
        _refuse(f"Invalid expression: Syntax error; token: {self.ahead!r}, near: {self._text[: self._at]!r}")

    def word(self) -> str:
        if self.ahead is None or not (self.ahead[0] in "#:" or self.ahead[0].isalpha() or self.ahead[0] == "_"):
            self.fail()
        return self._advance()

    def _is(self, *words: str) -> bool:
        return self.ahead is not None and self.ahead.upper() in words

    def _expect(self, token: str) -> None:
        if self._advance() != token:
            self.fail()

    def listed(self, each: Callable[[], Any]) -> list[Any]:
        found = [each()]
        while self.ahead == ",":
            self._advance()
            found.append(each())
        return found

    def path(self) -> str:
        name = self.word()
        if name[0] == ":":
            self.fail()
        if self.ahead in (".", "["):
            raise Refusal(NOT_KNOWN, "the stand-in knows top-level attributes only", status=501)
        if name[0] == "#":
            self.made.names.add(name)
        return name

    # --- conditions -----------------------------------------------------------------------------------------------

    def alternatives(self) -> Condition:
        parts = [self._all()]
        while self._is("OR"):
            self._advance()
            self.made.equals.clear()
            parts.append(self._all())
            self.made.equals.clear()
        return parts[0] if len(parts) == 1 else lambda *context: any(part(*context) for part in parts)

    def _all(self) -> Condition:
        parts = [self._negated()]
        while self._is("AND"):
            self._advance()
            parts.append(self._negated())
        return parts[0] if len(parts) == 1 else lambda *context: all(part(*context) for part in parts)

    def _negated(self) -> Condition:
        if not self._is("NOT"):
            return self._simple()
        self._advance()
        inner = self._negated()
        self.made.equals.clear()
        return lambda *context: not inner(*context)

    def _simple(self) -> Condition:
        if self.ahead == "(":
            self._advance()
            inner = self.alternatives()
            self._expect(")")
            return inner
        if self.ahead in _FUNCTIONS:
            return self._function(self._advance())
        left_word, left = self.ahead or "", self._operand()
        if self._is("BETWEEN"):
            self._advance()
            low = self._operand()
            if not self._is("AND"):
                self.fail()
            self._advance()
            high = self._operand()
            return lambda *context: (
                _ordered(left(*context), low(*context), operator.ge)
                and _ordered(left(*context), high(*context), operator.le)
            )
        if self._is("IN"):
            self._advance()
            self._expect("(")
            choices = self.listed(self._operand)
            self._expect(")")
            return lambda *context: any(_equal(left(*context), choice(*context)) for choice in choices)
        sign, right_word = self._advance(), self.ahead or ""
        right = self._operand()
        if sign == "=":
            self.made.equals[left_word] = right_word
            return lambda *context: _equal(left(*context), right(*context))
        if sign == "<>":
            return lambda *context: not _equal(left(*context), right(*context))
        if sign not in _COMPARES:
            self.fail()
        compare = _COMPARES[sign]
        return lambda *context: _ordered(left(*context), right(*context), compare)

    def _function(self, name: str) -> Condition:
        self._expect("(")
        path = self.path()
        if name in ("attribute_exists", "attribute_not_exists"):
            self._expect(")")
            wanted = name == "attribute_exists"
            return lambda item, names, values: (resolved(path, names) in item) is wanted
        self._expect(",")
        operand = self._operand()
        self._expect(")")
        return lambda item, names, values: _matches(name, item.get(resolved(path, names)), operand(item, names, values))

    def _operand(self) -> Operand:
        if self.ahead == "size":
            self._advance()
            self._expect("(")
            path = self.path()
            self._expect(")")
            return lambda item, names, values: _size(item.get(resolved(path, names)))
        if self.ahead is not None and self.ahead[0] == ":":
            value = self._advance()
            self.made.values.add(value)
            return lambda item, names, values: values[value]
        name = self.path()
        return lambda item, names, values: item.get(resolved(name, names))

    # --- updates --------------------------------------------------------------------------------------------------

    def change(self, clause: str) -> tuple[str, Operand | None]:
        """One change of a clause: (name, the new value; None: no value)."""
        name = self.path()
        if clause == "REMOVE":
            return name, None
        if clause == "SET":
            self._expect("=")
            return name, self._sum()
        if clause == "ADD":
            more = self._operand()
            return name, lambda item, names, values: _added(
                item.get(resolved(name, names), {"N": "0"}), more(item, names, values), 1
            )
        raise Refusal(NOT_KNOWN, "the stand-in does not know DELETE in an UpdateExpression", status=501)

    def _sum(self) -> Operand:
        left = self._settable()
        if self.ahead not in ("+", "-"):
            return left
        sign = 1 if self._advance() == "+" else -1
        right = self._settable()
        return lambda *context: _added(left(*context), right(*context), sign)

    def _settable(self) -> Operand:
        if self.ahead != "if_not_exists":
            return self._operand()
        self._advance()
        self._expect("(")
        name = self.path()
        self._expect(",")
        otherwise = self._operand()
        self._expect(")")
        return lambda item, names, values: item.get(resolved(name, names)) or otherwise(item, names, values)


def _equal(left: Attribute | None, right: Attribute | None) -> bool:
    return left is not None and right is not None and comparable(left) == comparable(right)


def _ordered(left: Attribute | None, right: Attribute | None, compare: Callable[[Any, Any], bool]) -> bool:
    if left is None or right is None:
        return False
    (one_kind, one), (other_kind, other) = comparable(left), comparable(right)
    return one_kind == other_kind and one_kind in ("S", "N", "B") and bool(compare(one, other))


def _matches(function: str, attribute: Attribute | None, operand: Attribute | None) -> bool:
    if attribute is None or operand is None:
        return False
    (kind, value), (other_kind, other) = comparable(attribute), comparable(operand)
    if function == "attribute_type":
        return bool(kind == other.decode())
    if function == "begins_with":
        return kind == other_kind and kind in ("S", "B") and bool(value.startswith(other))
    if kind in ("S", "B"):
        return kind == other_kind and bool(other in value)
    raise Refusal(NOT_KNOWN, "the stand-in knows contains() of text and binary only", status=501)


def _size(attribute: Attribute | None) -> Attribute | None:
    if attribute is None:
        return None
    kind, value = comparable(attribute)
    return {"N": str(len(value))} if kind in ("S", "B", "SS", "NS", "BS", "L", "M") else None


def _added(left: Attribute | None, right: Attribute | None, sign: int) -> Attribute | None:
    if left is None or right is None:
        return None
    if "N" not in left or "N" not in right:
        _refuse("An operand in the update expression has an incorrect data type")
    return {"N": exact(Decimal(left["N"]), sign * Decimal(right["N"]))}


def exact(number: Decimal, more: Decimal = Decimal(0)) -> str:
    """The sum as DynamoDB spells numbers: plain digits. Beyond 38 digits or its range it is refused."""
    total = _EXACT.add(number, more)
    if not total:
        return "0"
    digits = total.normalize(_EXACT)
    if len(digits.as_tuple().digits) > 38:
        _refuse("Attempting to store more than 38 significant digits in a Number")
    if not -130 <= digits.adjusted() <= 125:
        _refuse("Number overflow. Attempting to store a number with magnitude beyond the supported range")
    return format(digits, "f")


def _refuse(message: str) -> NoReturn:
    raise Refusal("ValidationException", message)
