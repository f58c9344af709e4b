"""Keys of DynamoDB items made of several columns: `ORDER#{order_id}`, `LINE#{line_no:05}`.

Different keys give different texts: what stands between two columns can't be mistaken for a column's content, since
there it is percent-encoded.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from upwell.errors import ConfigError, Rejected
from upwell.model import Column, Kind, Value

_INTEGER_FORMAT = re.compile(r"0?[1-9][0-9]?d?")
# What the text of a whole number consists of: such a column needs no escaping before any other character.
_OF_INTEGERS = frozenset("-0123456789")

_Render = Callable[[Sequence[Value]], str]


class _Field(NamedTuple):
    column: str
    format: str
    before: str  # the literal text before it


class Template:
    """A compiled template over the columns of a key. Its columns' values are given in the key's order."""

    def __init__(self, text: str, key: Sequence[Column], code: str = "UW-DD-005") -> None:
        """Raises ConfigError where it names other columns, or where two keys could give the same text."""
        self.text = text
        self._code = code
        self._compile(*self._parse(text), key)

    @classmethod
    def joined(cls, columns: Sequence[Column], separator: str, key: Sequence[Column]) -> Template:
        """The texts of some of the key's columns, whatever those are called, with the separator in between."""
        made = cls.__new__(cls)
        made.text = separator.join(column.name for column in columns)
        made._code = ""
        made._compile([_Field(c.name, "", separator if n else "") for n, c in enumerate(columns)], "", key)
        return made

    def _compile(self, fields: list[_Field], end: str, key: Sequence[Column]) -> None:
        self._fields, self._end = fields, end
        self.columns = frozenset(field.column for field in self._fields)
        by_name = {column.name: (index, column) for index, column in enumerate(key)}
        self._parts = [self._part(number, by_name) for number in range(len(self._fields))]

    def render(self, key: Sequence[Value]) -> str:
        """The text for a key. Raises Rejected where a value does not go with its format."""
        return "".join([part(key) for part in self._parts]) + self._end

    @property
    def lead(self) -> str:
        """The text that everything it renders begins with."""
        return self._fields[0].before if self._fields else self._end

    @property
    def fixed(self) -> bool:
        """Whether it always renders the same."""
        return not self._fields

    def disjoint(self, other: Template) -> bool:
        """Whether no text can come from both, as far as their first literals show."""
        if self.fixed and other.fixed:
            return self.lead != other.lead
        if self.fixed:
            return not self.lead.startswith(other.lead)
        if other.fixed:
            return not other.lead.startswith(self.lead)
        return not (self.lead.startswith(other.lead) or other.lead.startswith(self.lead))

    def _parse(self, text: str) -> tuple[list[_Field], str]:
        fields: list[_Field] = []
        literal = ""
        try:
            for before, name, form, conversion in string.Formatter().parse(text):
                literal += before
                if name is None:
                    continue
                if not name or conversion:
                    raise ValueError("each pair of braces holds a column's name")
                fields.append(_Field(name, form or "", literal))
                literal = ""
        except ValueError as error:
            raise self._wrong(str(error)) from error
        return fields, literal

    def _part(self, number: int, key: Mapping[str, tuple[int, Column]]) -> _Render:
        field = self._fields[number]
        last = number + 1 == len(self._fields)
        after = self._end if last else self._fields[number + 1].before
        if field.column not in key:
            raise self._wrong(f"{field.column} is not a column of the key ({', '.join(key)})")
        if not last and not after:
            raise self._wrong(f"something must stand between {field.column} and {self._fields[number + 1].column}")
        index, column = key[field.column]
        if column.kind is Kind.INT:
            if field.format and not _INTEGER_FORMAT.fullmatch(field.format):
                raise self._wrong(f"{field.format!r} is not a width such as 05")
            if not last and after[0] in _OF_INTEGERS:
                raise self._wrong(f"what follows the number {field.column} may not begin with {after[0]!r}")
            return _integer(field, index)
        if field.format:
            raise self._wrong(f"{field.column} is not a whole number: it takes no format")
        return _text(field, index, column.kind, None if last else after[0])

    def _wrong(self, why: str) -> ConfigError:
        return ConfigError(
            f"The key template {self.text!r} can't be used: {why}.",
            code=self._code,
            remedy="Write for example ORDER#{order_id}, or LINE#{line_no:05}; all columns of the key must occur.",
        )


def _integer(field: _Field, index: int) -> _Render:
    before, form = field.before, field.format

    def render(key: Sequence[Value]) -> str:
        value = key[index]
        try:
            number = int(value) if isinstance(value, int | str) else None
        except ValueError:
            number = None
        if number is None:
            raise Rejected(f"its key column {field.column} holds no whole number")
        return before + format(number, form)

    return render


def _text(field: _Field, index: int, kind: Kind, stop: str | None) -> _Render:
    before = field.before
    escaped = {} if stop is None else {ord("%"): "%25", ord(stop): f"%{ord(stop):02X}"}

    def render(key: Sequence[Value]) -> str:
        value = key[index]
        if not isinstance(value, str) and kind is Kind.OTHER:
            raise Rejected(f"its key column {field.column} holds a number, where a text may look the same")
        text = value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else repr(value)
        return before + text.translate(escaped) if escaped else before + text

    return render
