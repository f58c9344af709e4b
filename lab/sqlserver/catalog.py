"""What a database has, as a statement needs it: tables, columns and their types of SQL Server."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from lab.sqlserver.values import SqlType, text_literal

Rows = list[tuple[str | None, ...]]

_COLUMNS: Final = """
SELECT c.oid, n.nspname, c.relname, coalesce(obj_description(c.oid, 'pg_class'), c.relname), a.attname, a.attnum,
       col_description(c.oid, a.attnum), a.attnotnull, a.attidentity, a.attgenerated,
       array_position(k.conkey, a.attnum), t.side, t.masks
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_constraint k ON k.conrelid = c.oid AND k.contype = 'p'
LEFT JOIN tds.tracked t ON t.oid = c.oid
WHERE c.relkind = 'r' AND n.nspname = {schema} AND c.relname = {name} ORDER BY a.attnum"""


@dataclass(frozen=True)
class Column:
    name: str  # as the user wrote it; PostgreSQL's is in lower case
    number: int
    kind: SqlType
    required: bool
    identity: bool
    computed: bool


@dataclass(frozen=True, eq=False)
class Table:
    oid: int
    schema: str  # in lower case, as `name`
    name: str
    written: str
    columns: dict[str, Column]
    key: tuple[str, ...]  # in the key's order
    side: int | None  # of the table that keeps its history, if it is tracked
    masks: bool = False

    @property
    def quoted(self) -> str:
        return f"{quoted(self.schema)}.{quoted(self.name)}"


@dataclass
class Catalog:
    """Looks at one database through `ask`, and remembers until somebody changes a table."""

    ask: Callable[[str], Rows]
    changes: Callable[[], int]  # counts changes of tables in this database
    _known: dict[tuple[str, str], Table | None] = field(default_factory=dict)
    _as_of: int = -1

    def table(self, schema: str, name: str) -> Table | None:
        if self._as_of != self.changes():
            self._known.clear()
            self._as_of = self.changes()
        key = (schema.lower() or "dbo", name.lower())
        if key not in self._known:
            self._known[key] = self._look(*key)
        return self._known[key]

    def column(self, oid: int, number: int) -> Column | None:
        """Of a table that was looked at before."""
        for table in self._known.values():
            if table is not None and table.oid == oid:
                return next((column for column in table.columns.values() if column.number == number), None)
        return None

    def _look(self, schema: str, name: str) -> Table | None:
        rows = self.ask(looking(schema, name))
        if not rows:
            return None
        columns, key = {}, {}
        for row in rows:
            said = json.loads(row[6] or "{}")
            column = Column(
                name=said.get("name", row[4]),
                number=int(row[5] or 0),
                kind=SqlType.parse(said.get("type", "nvarchar(max)")),
                required=row[7] == "t",
                identity=bool(row[8]),
                computed=bool(row[9]),
            )
            columns[str(row[4])] = column
            if row[10] is not None:
                key[int(row[10])] = str(row[4])
        first = rows[0]
        return Table(
            oid=int(first[0] or 0),
            schema=str(first[1]),
            name=str(first[2]),
            written=str(first[3]),
            columns=columns,
            key=tuple(key[place] for place in sorted(key)),
            side=int(first[11]) if first[11] else None,
            masks=first[12] == "t",
        )


def looking(schema: str, name: str) -> str:
    """The question after a table."""
    return _COLUMNS.format(schema=text_literal(schema), name=text_literal(name))


def quoted(name: str) -> str:
    """An identifier, in lower case."""
    return '"' + name.lower().replace('"', '""') + '"'


def listed(names: Sequence[str], prefix: str = "") -> str:
    return ", ".join(prefix + quoted(name) for name in names)
