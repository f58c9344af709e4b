"""Parameters of a statement: what is declared of them, and their values."""

from collections.abc import Mapping, Sequence

from lab.sqlserver.errors import SqlError
from lab.sqlserver.values import SqlType
from lab.sqlserver.words import Script, Word, by_commas, joined

Variables = dict[str, tuple[SqlType, str]]  # name in lower case → its type, and its value in PostgreSQL's SQL


def declared(text: str) -> list[tuple[str, SqlType]]:
    """`@a int, @b nvarchar(max) OUTPUT` as names and types."""
    script = Script(text)
    found = []
    for part in by_commas(script.words):
        kind: list[Word] = [word for word in part[1:] if word.upper not in {"OUTPUT", "OUT", "AS", "READONLY"}]
        found.append((part[0].text[1:].lower(), SqlType.parse(joined(kind, text))))
    return found


def bound(kinds: Sequence[tuple[str, SqlType]], values: Sequence[tuple[str, SqlType, str]]) -> Variables:
    """Parameters by name, or those without one by place."""
    given: Mapping[str, str] = {name: value for name, _, value in values if name}
    unnamed = [value for name, _, value in values if not name]
    variables: Variables = {}
    for number, (name, kind) in enumerate(kinds):
        value = given.get(name) or (unnamed[number] if number < len(unnamed) else None)
        if value is None:
            raise SqlError(8178, f"The parameterized query expects the parameter '@{name}', which was not supplied.")
        cast = "text" if kind.textual else kind.postgres
        variables[name] = kind, f"({value})::{cast}"
    return variables
