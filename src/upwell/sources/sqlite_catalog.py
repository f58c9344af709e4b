"""What an SQLite database's schema says of its tables: columns, keys, collations, unique indexes.

A column's declared type says little in SQLite; `kind_of` follows the affinity rules (sqlite.org/datatype3.html) and a
few common names. Dates and times stay text, as SQLite keeps them, and booleans stay the integers 0 and 1: whatever
such a column holds arrives as it is.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from upwell.errors import OperatorError
from upwell.model import Column, Kind, TableName, TableSchema, TableSelection
from upwell.tablepatterns import folded, has_wildcard, part_matches, shown

DIALECT: Final = "sqlite"
KEY_COLUMNS_MAX = 16
PREFIX: Final = "_upwell_"  # of everything that upwell makes in a user's database

_KINDS_BY_NAME = {
    **dict.fromkeys(("DECIMAL", "NUMERIC", "NUMBER", "DEC", "MONEY"), Kind.DECIMAL),
    **dict.fromkeys(("DATE", "TIME", "DATETIME", "TIMESTAMP", "TIMESTAMPTZ", "STRING", "UUID", "GUID"), Kind.TEXT),
    **dict.fromkeys(("BINARY", "VARBINARY", "BYTEA", "IMAGE", "BYTES"), Kind.BYTES),
    **dict.fromkeys(("BOOLEAN", "BOOL"), Kind.INT),
    "JSON": Kind.JSON,
}


def affinity_of(declared: str) -> str:
    """INTEGER, TEXT, BLOB, REAL or NUMERIC: what SQLite does to a value that is stored under this declared type."""
    upper = declared.upper()
    if "INT" in upper:
        return "INTEGER"
    if any(part in upper for part in ("CHAR", "CLOB", "TEXT")):
        return "TEXT"
    if "BLOB" in upper or not upper:
        return "BLOB"
    if any(part in upper for part in ("REAL", "FLOA", "DOUB")):
        return "REAL"
    return "NUMERIC"


def kind_of(declared: str) -> Kind:
    """What a column of this declared type is taken to hold; OTHER where the type says nothing at all."""
    by_name = _KINDS_BY_NAME.get(declared.upper().partition("(")[0].strip())
    if by_name is not None:
        return by_name
    if not declared:
        return Kind.OTHER
    by_affinity = {"INTEGER": Kind.INT, "TEXT": Kind.TEXT, "BLOB": Kind.BYTES, "REAL": Kind.FLOAT}
    return by_affinity.get(affinity_of(declared), Kind.OTHER)


@dataclass(frozen=True, slots=True)
class KeyColumn:
    """A column of the primary key."""

    name: str
    collation: str  # of the primary key's index, which decides what is unique
    typed: bool  # values of different storage classes may be equal in SQLite (1 and 1.0), but not on the wire

    @property
    def exact(self) -> bool:
        """Whether values that SQLite takes for equal are equal byte for byte."""
        return self.collation.upper() == "BINARY" and not self.typed


class IndexTerm(NamedTuple):
    """One of the values that an index is made of."""

    column: str | None  # None: an expression
    expression: str  # SQL over the table's columns
    collation: str


@dataclass(frozen=True, slots=True)
class UniqueIndex:
    """A UNIQUE constraint or index besides the primary key."""

    name: str
    terms: tuple[IndexTerm, ...]
    where: str = ""  # SQL: the rows that the index covers, where that is not all
    understood: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """A table that can be read."""

    name: str
    schema: TableSchema
    all_columns: tuple[str, ...]  # also those that were not selected
    key: tuple[KeyColumn, ...]
    unique: tuple[UniqueIndex, ...]
    key_may_be_null: bool
    rowid: bool
    key_in_order: bool  # comparing the key's columns as they are uses the primary key's index, so it is its order


@dataclass(frozen=True, slots=True)
class Unusable:
    """A table that was asked for and can't be read, as the error that says so."""

    name: str
    error: OperatorError
    exists: bool = True


def quoted(name: str) -> str:
    """An identifier in SQL, whatever it holds."""
    return '"' + name.replace('"', '""') + '"'


def read_catalog(
    connection: sqlite3.Connection, selections: Sequence[TableSelection]
) -> tuple[list[Table], list[Unusable]]:
    """The tables that the selections name, by name; those that can't be read with the reason."""
    tables: list[Table] = []
    unusable: list[Unusable] = []
    found: set[TableSelection] = set()
    for name, type_, without_rowid in _tables(connection):
        selection = next((s for s in selections if _matches(s.pattern, name)), None)
        if selection is None:
            continue
        found.add(selection)
        try:
            if type_ == "table":
                tables.append(_read_table(connection, name, selection, rowid=not without_rowid))
            elif not has_wildcard(selection.pattern):
                raise _not_a_table(name, type_)
        except OperatorError as error:
            unusable.append(Unusable(name, error))
    missing = [s.pattern for s in selections if s not in found and not has_wildcard(s.pattern)]
    unusable += [Unusable(shown(pattern), _not_found(pattern), exists=False) for pattern in missing]
    return tables, unusable


def _tables(connection: sqlite3.Connection) -> list[tuple[str, str, int]]:
    # PRAGMA statements, not the functions of that name: a table called pragma_table_list would hide the function.
    found = [(name, type_, wr) for _, name, type_, _, wr, _ in connection.execute("PRAGMA main.table_list")]
    return sorted(row for row in found if row[1] != "shadow" and not row[0].lower().startswith((PREFIX, "sqlite_")))


def _matches(pattern: TableName, name: str) -> bool:
    return part_matches(pattern.schema or "main", "main", DIALECT) and part_matches(pattern.name, name, DIALECT)


def _read_table(connection: sqlite3.Connection, name: str, selection: TableSelection, *, rowid: bool) -> Table:
    if not name:
        raise OperatorError(
            "A table of the database has an empty name, which SQLite allows.",
            code="UW-SL-019",
            remedy='ALTER TABLE "" RENAME TO named;',
        )
    # cid, name, type, notnull, dflt_value, pk, hidden: 2 and 3 are generated columns, 1 is of virtual tables only.
    info = connection.execute(f"PRAGMA main.table_xinfo({quoted(name)})").fetchall()
    key_info = sorted((column for column in info if column[5]), key=lambda column: column[5])
    key_names = [column[1] for column in key_info]
    if not key_names:
        raise _no_key(name)
    if len(key_names) > KEY_COLUMNS_MAX:
        raise OperatorError(
            f"The primary key of table {name} has {len(key_names)} columns; at most {KEY_COLUMNS_MAX} are supported.",
            code="UW-SL-012",
        )
    primary, unique = _indexes(connection, name)
    collations = {} if primary is None else {term.column: term.collation for term in primary.terms}
    chosen = _chosen_columns(name, [column[1] for column in info], key_names, selection)
    columns = tuple(
        # A generated column brings values to the rows that exist, as a default does.
        Column(column[1], column[2], kind_of(column[2]), has_default=column[4] is not None or column[6] != 0)
        for column in info
        if column[1] in chosen
    )
    key = tuple(
        KeyColumn(c[1], collations.get(c[1], "BINARY"), typed=affinity_of(c[2]) == "BLOB" or c[2].upper() == "ANY")
        for c in key_info
    )
    loose = frozenset(column.name for column in key if not column.exact)
    return Table(
        name=name,
        all_columns=tuple(column[1] for column in info),
        schema=TableSchema(str(TableName("main", name)), columns, tuple(key_names), DIALECT, loose=loose),
        key=key,
        unique=unique,
        key_may_be_null=primary is not None and not all(column[3] for column in key_info),
        rowid=rowid,
        key_in_order=_key_in_order(connection, name, key_names, primary),
    )


def _key_in_order(connection: sqlite3.Connection, table: str, key: list[str], primary: UniqueIndex | None) -> bool:
    """Whether the columns' own collations are those of the primary key's index.

    They are where SQLite searches that index, by all columns, for a comparison that names no collation; nothing else
    tells a column's collation.
    """
    columns = ", ".join(f"r.{quoted(name)}" for name in key)
    marks = ", ".join("?" * len(key))
    sql = (
        f"EXPLAIN QUERY PLAN SELECT 1 FROM {quoted(table)} AS r "  # noqa: S608 - names are quoted
        f"WHERE ({columns}) > ({marks}) ORDER BY {columns}"
    )
    steps = [row[3] for row in connection.execute(sql, [None] * len(key))]
    searched = f"(({','.join(key)})>" if len(key) > 1 else f"({'rowid' if primary is None else key[0]}>"
    by_key = any(f" {index} (" in steps[0] for index in ("PRIMARY KEY", "" if primary is None else primary.name))
    return len(steps) == 1 and steps[0].startswith("SEARCH r USING ") and by_key and searched in steps[0]


def _indexes(connection: sqlite3.Connection, table: str) -> tuple[UniqueIndex | None, tuple[UniqueIndex, ...]]:
    """The primary key's index, None where the key is the rowid itself, and the other unique indexes."""
    primary, others = None, []
    # seq, name, unique, origin, partial
    listed = connection.execute(f"PRAGMA main.index_list({quoted(table)})").fetchall()
    for name, origin in [row[1:4:2] for row in listed if row[2]]:
        # seqno, cid, name, desc, coll, key
        parts = connection.execute(f"PRAGMA main.index_xinfo({quoted(name)})").fetchall()
        columns = [(row[2], row[4]) for row in sorted(parts) if row[5]]
        # Indexes of constraints have no SQL, and neither expressions nor conditions.
        created = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'index' AND name = ?", (name,))
        (sql,) = created.fetchone() or (None,)
        expressions, where = ([], "") if sql is None else parse_index(sql)
        understood = sql is None or len(expressions) == len(columns)
        terms = tuple(
            IndexTerm(column, quoted(column) if column else expressions[n] if understood else "", collation)
            for n, (column, collation) in enumerate(columns)
        )
        if origin == "pk":
            primary = UniqueIndex(name, terms)
        else:
            others.append(UniqueIndex(name, terms, where, understood))
    return primary, tuple(sorted(others, key=lambda index: index.name))


_TOKEN = re.compile(
    r"""(?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\])"""
    r"""|(?P<comment>--[^\n]*|/\*.*?(?:\*/|\Z))|(?P<word>\w+)|(?P<other>.)""",
    re.DOTALL,
)
_DIRECTION = re.compile(r"\s+(ASC|DESC)\s*", re.IGNORECASE)


def parse_index(sql: str) -> tuple[list[str], str]:
    """The expressions that a CREATE INDEX statement lists, and its WHERE, which is empty where it has none."""
    terms, depth, listed, where = [""], 0, False, ""
    tokens = list(_TOKEN.finditer(sql))
    for n, token in enumerate(tokens):
        kind, text = token.lastgroup, " " if token.lastgroup == "comment" else token.group()
        if kind == "word" and depth == 0 and listed and text.upper() == "WHERE":
            where = "".join(" " if rest.lastgroup == "comment" else rest.group() for rest in tokens[n + 1 :])
            break
        depth -= kind == "other" and text == ")"
        if depth > 0 and not listed:
            if depth == 1 and kind == "other" and text == ",":
                terms.append("")
            else:
                terms[-1] += text
        listed = listed or (depth == 0 and kind == "other" and text == ")")
        depth += kind == "other" and text == "("
    return [_without_direction(term) for term in terms], where.strip()


def _without_direction(term: str) -> str:
    found = _DIRECTION.search(term, max(0, len(term.rstrip()) - len(" DESC")))
    return term.strip() if found is None or found.end() != len(term) else term[: found.start()].strip()


def _chosen_columns(table: str, names: list[str], key: list[str], selection: TableSelection) -> set[str]:
    """The selected columns; those of the key always are. A pattern may name columns that only some tables have."""
    real = {folded(name, DIALECT): name for name in names}
    asked = (*(selection.columns or ()), *selection.exclude)
    for name in asked:
        if folded(name, DIALECT) not in real and not has_wildcard(selection.pattern):
            raise OperatorError(
                f"Table {table} has no column {name}, which the configuration names.",
                code="UW-SL-017",
                remedy=f"Its columns are: {', '.join(names)}.",
            )

    def known(listed: Sequence[str]) -> set[str]:
        return {real[folded(name, DIALECT)] for name in listed if folded(name, DIALECT) in real}

    chosen = set(names) if selection.columns is None else known(selection.columns)
    return chosen - known(selection.exclude) | set(key)


def _no_key(name: str) -> OperatorError:
    return OperatorError(
        f"Table {name} has no primary key, so its rows can't be told apart.",
        code="UW-SL-004",
        remedy="Give it one (create a new table with a PRIMARY KEY, copy the rows, drop the old one, rename the new "
        "one), or list the tables to publish without it.",
    )


def _not_a_table(name: str, type_: str) -> OperatorError:
    return OperatorError(
        f"{name} is a {'virtual table' if type_ == 'virtual' else type_}: SQLite tells nobody when its rows change.",
        code="UW-SL-005",
        remedy="Publish the tables it is made of.",
    )


def _not_found(pattern: TableName) -> OperatorError:
    return OperatorError(
        f"The database has no table {shown(pattern)}, which the configuration names.",
        code="UW-SL-006",
        remedy="Correct the name under `tables`; in SQLite the schema is `main`.",
    )
