# ruff: noqa: S608 - names are quoted by quoted(), texts by _literal()
"""The SQL that makes an SQLite database keep a log of the keys that changed, and that ends it again.

Only keys are logged; rows are read when the log is. Triggers log the key of every row that a statement inserts,
updates or deletes. One case fires no delete trigger (unless `recursive_triggers` is on): a row that REPLACE removes
because it holds a unique value of the new one. So before an insert or update the keys of all rows that hold one of
the new row's unique values are logged too. To log a key that did not change is harmless.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from upwell.sources.sqlite_catalog import PREFIX, IndexTerm, KeyColumn, Table, UniqueIndex, quoted

_NOW = "strftime('%Y-%m-%dT%H:%M:%fZ','now')"
_OWN_NAMES: Final = ("_upwell_log", "_upwell_meta", "_upwell_tables")
_OWN_TABLES: Final = (
    # AUTOINCREMENT: an id is never given twice, also after the log was trimmed.
    "CREATE TABLE IF NOT EXISTS _upwell_log (id INTEGER PRIMARY KEY AUTOINCREMENT, tbl, op, at, k0)",
    "CREATE TABLE IF NOT EXISTS _upwell_meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    # Which incarnation of a table's triggers is in place: one that a position does not know means a gap before it.
    "CREATE TABLE IF NOT EXISTS _upwell_tables (tbl TEXT PRIMARY KEY, first INTEGER, generation INTEGER) WITHOUT ROWID",
    "INSERT OR IGNORE INTO _upwell_meta VALUES ('file', lower(hex(randomblob(8)))), ('confirmed', 0)",
)


def log_state(connection: sqlite3.Connection) -> tuple[str, int, int]:
    """(which log this is, the last id confirmed, the newest id ever given)."""
    sql = (
        "SELECT (SELECT value FROM _upwell_meta WHERE name = 'file'), "
        "(SELECT value FROM _upwell_meta WHERE name = 'confirmed'), "
        # A statement that ends by OR FAIL keeps its entries, but not the number that AUTOINCREMENT has come to.
        "max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = '_upwell_log'), 0), "
        "coalesce((SELECT max(id) FROM _upwell_log), 0))"
    )
    file, confirmed, newest = connection.execute(sql).fetchone()
    return file, confirmed, newest


def read_generations(connection: sqlite3.Connection) -> dict[str, tuple[int, int]]:
    """Table → the generation of its first triggers and of those in place now."""
    return {
        name: (first, now)
        for name, first, now in connection.execute("SELECT tbl, first, generation FROM _upwell_tables")
    }


class Reader(NamedTuple):
    """Who reads a log."""

    file: str  # which log
    number: int  # above that of every reader before; since 1970 in microseconds, unless a clock went back


def become_reader(connection: sqlite3.Connection, already: Reader | None, now: float) -> Reader:
    """Signs in; who is the log's reader already, or has a successor, does not do so again.

    A log that was replaced, or restored to what it was before the reader signed in, does not know it.
    """
    file, newest = _newest_reader(connection)
    if already is not None and already.file == file and already.number <= newest:
        return already
    reader = Reader(file, max(newest + 1, int(now * 1_000_000)))
    connection.execute("REPLACE INTO _upwell_meta VALUES ('reader', ?)", (reader.number,))
    return reader


def has_successor(connection: sqlite3.Connection, reader: Reader) -> bool:
    """Whether another one has signed in since, to the same log."""
    newest = _newest_reader(connection)
    return newest.file == reader.file and newest.number > reader.number


def note_epoch(connection: sqlite3.Connection, epoch: int) -> int:
    """From here on the log is read in this epoch; returns the newest in which it was read before, 0 where in none."""
    found = connection.execute("SELECT value FROM _upwell_meta WHERE name = 'epoch'").fetchone()
    before = 0 if found is None else int(found[0])
    if epoch > before:
        connection.execute("REPLACE INTO _upwell_meta VALUES ('epoch', ?)", (epoch,))
    return before


def _newest_reader(connection: sqlite3.Connection) -> Reader:
    found = dict(connection.execute("SELECT name, value FROM _upwell_meta WHERE name IN ('file', 'reader')").fetchall())
    return Reader(found["file"], found.get("reader", 0))


def is_tracked(connection: sqlite3.Connection) -> bool:
    """Whether the database has a change log at all."""
    return len(_own_tables(connection)) == len(_OWN_NAMES)


def _own_tables(connection: sqlite3.Connection) -> list[str]:
    """Those of upwell's tables that there are."""
    present = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    return [name for name in _OWN_NAMES if name in present]


def track_statements(connection: sqlite3.Connection, tables: Sequence[Table]) -> list[str]:
    """What is missing for these tables to be tracked, in order, each with its semicolon; nothing where all is there."""
    statements = [] if is_tracked(connection) else list(_OWN_TABLES)
    statements += _missing_key_columns(connection, tables)
    present = _triggers(connection)
    for table in tables:
        wanted = dict(trigger_sql(table))
        actual = {name: sql for name, (on, sql) in present.items() if on == table.name}
        if wanted == actual:
            continue
        stale = actual.keys() | (wanted.keys() & present.keys())
        statements += [f"DROP TRIGGER {quoted(name)}" for name in sorted(stale)]
        statements += wanted.values()
        statements.append(_new_generation(table.name))
    return [f"{statement};" for statement in statements]


def untrack_statements(connection: sqlite3.Connection) -> list[str]:
    """What removes all that `track_statements` made, as far as it is there."""
    drops = [f"DROP TRIGGER {quoted(name)};" for name in sorted(_triggers(connection))]
    return [*drops, *(f"DROP TABLE {name};" for name in _own_tables(connection))]


def _missing_key_columns(connection: sqlite3.Connection, tables: Iterable[Table]) -> list[str]:
    needed = max((len(table.key) for table in tables), default=1)
    have = {row[1] for row in connection.execute("PRAGMA main.table_xinfo(_upwell_log)")} or {"k0"}
    return [f"ALTER TABLE _upwell_log ADD COLUMN k{n}" for n in range(needed) if f"k{n}" not in have]


def _triggers(connection: sqlite3.Connection) -> dict[str, tuple[str, str]]:
    """Name → (table, SQL) of the triggers that upwell made."""
    found = connection.execute("SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'trigger'")
    return {name: (on, sql) for name, on, sql in found if name.startswith(PREFIX)}


def _new_generation(table: str) -> str:
    following = "(SELECT coalesce(max(generation), 0) + 1 FROM _upwell_tables)"
    return (
        f"INSERT INTO _upwell_tables VALUES ({_literal(table)}, {following}, {following}) "
        "ON CONFLICT (tbl) DO UPDATE SET generation = excluded.generation"
    )


def trigger_sql(table: Table) -> list[tuple[str, str]]:
    """(name, CREATE TRIGGER statement) of each trigger of a table."""
    insert = _log(table, "i", "NEW")
    update = _log(table, "d", "OLD", where=" OR ".join(_differs(column) for column in table.key))
    triggers = [
        ("insert", "AFTER INSERT", [insert]),
        ("update", "AFTER UPDATE", [update, _log(table, "u", "NEW")]),
        ("delete", "AFTER DELETE", [_log(table, "d", "OLD")]),
    ]
    conflicts = _conflicts(table)
    if conflicts:
        itself = " AND ".join(f"r.{quoted(c.name)} IS OLD.{quoted(c.name)} COLLATE BINARY" for c in table.key)
        triggers += [
            ("replace", "BEFORE INSERT", [_log(table, "d", "r", where=where) for where in conflicts]),
            (
                "displace",
                "BEFORE UPDATE",
                [_log(table, "d", "r", where=f"{where} AND NOT ({itself})") for where in conflicts],
            ),
        ]
    return [_trigger(table, suffix, event, body) for suffix, event, body in triggers]


def _trigger(table: Table, suffix: str, event: str, body: Sequence[str]) -> tuple[str, str]:
    name = f"{PREFIX}{suffix}_{table.name}"
    statements = " ".join(f"{statement};" for statement in body)
    # Written as sqlite_master keeps it, so that what is there can be compared with what should be.
    return name, f"CREATE TRIGGER {quoted(name)} {event} ON {quoted(table.name)} BEGIN {statements} END"


def _log(table: Table, operation: str, row: str, where: str = "") -> str:
    keys = "".join(f", k{n}" for n in range(len(table.key)))
    values = "".join(f", {row}.{quoted(column.name)}" for column in table.key)
    source = f" FROM {quoted(table.name)} AS r" if row == "r" else ""
    condition = f" WHERE {where}" if where else ""
    return (
        f"INSERT INTO _upwell_log (tbl, op, at{keys}) "
        f"SELECT {_literal(table.name)}, '{operation}', {_NOW}{values}{source}{condition}"
    )


def _differs(column: KeyColumn) -> str:
    """Whether an update changed a key's column for us, though it may be equal for SQLite ('a' and 'A', 1 and 1.0)."""
    old, new = f"OLD.{quoted(column.name)}", f"NEW.{quoted(column.name)}"
    by_value = f"{old} IS NOT {new} COLLATE BINARY"
    return f"{by_value} OR typeof({old}) <> typeof({new})" if column.typed else by_value


def _conflicts(table: Table) -> list[str]:
    """A condition for each unique index: row `r` holds the new row's unique value."""
    indexes = [index for index in table.unique if index.understood]
    if not all(column.exact for column in table.key):
        # A row that REPLACE removes has a key that is equal for SQLite, but another one for us.
        terms = tuple(IndexTerm(column.name, quoted(column.name), column.collation) for column in table.key)
        indexes.append(UniqueIndex("", terms))
    return [_conflict(table, index) for index in indexes]


def _conflict(table: Table, index: UniqueIndex) -> str:
    # Names in an index's SQL are never qualified: they mean the row's columns, and in the subquery the new row's.
    new_row = ", ".join(f"NEW.{quoted(name)} AS {quoted(name)}" for name in table.all_columns)
    conditions = []
    for term in index.terms:
        new = f"NEW.{quoted(term.column)}" if term.column else f"(SELECT {term.expression} FROM (SELECT {new_row}))"
        old = f"r.{quoted(term.column)}" if term.column else f"({term.expression})"
        conditions.append(f"{old} COLLATE {quoted(term.collation)} = {new}")
    return " AND ".join([*conditions, f"({index.where})"] if index.where else conditions)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
