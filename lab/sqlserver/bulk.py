"""Bulk loads: INSERT BULK says where rows go, and they follow as a server would send them, without any T-SQL."""

from dataclasses import dataclass
from typing import Final

from lab.sqlserver.parameters import Variables
from lab.sqlserver.values import Reader, read_type
from lab.sqlserver.words import Script, by_commas

_COLUMNS, _ROW, _DONE = 0x81, 0xD1, 0xFD
_BEGINNING: Final = ("INSERT", "BULK")


@dataclass(frozen=True)
class BulkLoad:
    """Where the rows go that come next."""

    table: str  # as it was written
    columns: tuple[str, ...]

    @classmethod
    def announced(cls, text: str) -> "BulkLoad | None":
        """By this batch; None where it is another."""
        script = Script(text)
        if not script.has(*_BEGINNING):
            return None
        start = script.word.start
        script.dotted()
        table = text[start : script.word.start]
        return cls(table, tuple(column[0].text for column in by_commas(script.inside())))

    def statement(self, reader: Reader) -> tuple[str, Variables]:
        """The rows as a statement of T-SQL, with the values in its variables."""
        if reader.number(1) != _COLUMNS:
            raise ValueError("rows come without their columns")
        types = []
        for _ in range(reader.number(2)):
            reader.take(6)
            types.append(read_type(reader))
            reader.text(reader.number(1))
        variables: Variables = {}
        rows = []
        while (token := reader.number(1)) == _ROW:
            names = [f"v{len(variables) + number}" for number in range(len(types))]
            variables |= {name: read(reader) for name, read in zip(names, types, strict=True)}
            rows.append(f"({', '.join(f'@{name}' for name in names)})")
        if token != _DONE:
            raise ValueError(f"neither a row nor the end: {token:#x}")
        return f"INSERT INTO {self.table} ({', '.join(self.columns)}) VALUES {', '.join(rows)}", variables
