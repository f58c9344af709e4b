"""Table patterns: a table's name in two parts, in which `*` stands for any characters and `?` for one.

A backslash makes the character after it plain. Whoever writes a configuration quotes instead, as in SQL:
`public."what?"` names one table, `public.what?` each with one more letter.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from upwell.model import TableName

_SIGN: Final = re.compile(r"\\(.)|(\*)|(\?)|(.)", re.DOTALL)  # plain by its backslash, any characters, one, plain
_PART: Final = re.compile(r'("(?:[^"]|"")+"|[^".]+)(?:\.("(?:[^"]|"")+"|[^"]+))?', re.DOTALL)


def parse_pattern(text: str) -> TableName:
    """As a configuration has it. Raises ValueError for anything but one or two parts."""
    TableName.parse(text)
    found = _PART.fullmatch(text)
    assert found is not None, "it has just been parsed"
    parts = [_written(part) for part in found.groups() if part is not None]
    return TableName("", parts[0]) if len(parts) == 1 else TableName(*parts)


def _written(part: str) -> str:
    if not part.startswith('"'):
        return part.replace("\\", "\\\\")
    return plain(part[1:-1].replace('""', '"'))


def plain(name: str) -> str:
    """The pattern's part that matches just this name."""
    return re.sub(r"[\\*?]", r"\\\g<0>", name)


def has_wildcard(pattern: TableName) -> bool:
    """Whether it may name several tables, or tables that are not there yet."""
    return any(sign[2] or sign[3] for part in pattern for sign in _SIGN.finditer(part))


def shown(pattern: TableName) -> str:
    """The pattern for a message."""
    if has_wildcard(pattern):
        return ".".join(filter(None, pattern))
    return str(TableName(*(_SIGN.sub(lambda sign: sign[1] or sign[4], part) for part in pattern)))


def part_matches(part: str, text: str, dialect: str) -> bool:
    """Whether a part of a pattern fits a part of a name; case counts where it does in the source."""
    return _matcher(part, _flags(dialect))(text) is not None


def _flags(dialect: str) -> re.RegexFlag:
    if dialect == "postgresql":
        return re.NOFLAG
    # For SQLite only the letters of ASCII have a case: there, Ä and ä are two tables.
    return re.IGNORECASE | re.ASCII if dialect == "sqlite" else re.IGNORECASE


@lru_cache(maxsize=10_000)
def _matcher(part: str, flags: re.RegexFlag) -> Callable[[str], re.Match[str] | None]:
    expression = _SIGN.sub(lambda sign: ".*" if sign[2] else "." if sign[3] else re.escape(sign[1] or sign[4]), part)
    return re.compile(expression, re.DOTALL | flags).fullmatch


def folded(name: str, dialect: str) -> str:
    """Names of columns or tables that are equal in the source are equal in this form."""
    if dialect == "postgresql":
        return name
    return name.encode().lower().decode() if dialect == "sqlite" else name.casefold()
