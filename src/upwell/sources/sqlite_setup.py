"""What the command line does to an SQLite source, and wants to know of it: track, untrack, inspect, findings."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from upwell.errors import UpwellError
from upwell.model import Finding, Inspected, TableName, TableSelection
from upwell.sources.sqlite import connect, translated
from upwell.sources.sqlite_catalog import Table, read_catalog
from upwell.sources.sqlite_reading import TableReader
from upwell.sources.sqlite_triggers import is_tracked, track_statements, untrack_statements

LOG_ENTRIES_WARN = 1_000_000

_ALL = (TableSelection(TableName("", "*")),)


def track_sql(path: str, tables: Sequence[TableSelection]) -> list[str]:
    """The statements that `track` would run, in order; none where all is in place. Raises UpwellError."""
    with _connection(path) as connection:
        return track_statements(connection, _usable(connection, tables))


def track(path: str, tables: Sequence[TableSelection]) -> list[str]:
    """Make the database keep a log of what changes in these tables; returns what it ran. Raises UpwellError.

    May be repeated: only what is missing is done. Triggers that had to be made anew cause a resync of their table.
    """
    with _transaction(path) as connection:
        return _executed(connection, track_statements(connection, _usable(connection, tables)))


def untrack_sql(path: str) -> list[str]:
    """The statements that `untrack` would run, in order; none where nothing is left. Raises UpwellError."""
    with _connection(path) as connection:
        return untrack_statements(connection)


def untrack(path: str) -> list[str]:
    """Remove everything of upwell's from the database; returns what it ran. Raises UpwellError."""
    with _transaction(path) as connection:
        return _executed(connection, untrack_statements(connection))


def _executed(connection: sqlite3.Connection, statements: list[str]) -> list[str]:
    for statement in statements:
        connection.execute(statement)
    return statements


def inspect(path: str) -> list[Inspected]:
    """All tables of the database, by name. Raises UpwellError."""
    with _connection(path) as connection:
        tables, unusable = read_catalog(connection, _ALL)
        found = [Inspected(TableName("main", t.name), t.schema, TableReader(t).estimate(connection)) for t in tables]
        found += [Inspected(TableName("main", u.name), None, None, u.error.message) for u in unusable]
        return sorted(found, key=lambda table: table.name)


def findings(path: str, tables: Sequence[TableSelection]) -> list[Finding]:
    """Everything that publishing will need of the database, and what may surprise."""
    try:
        with _connection(path) as connection:
            return list(_findings(connection, path, tables))
    except UpwellError as error:
        return [Finding.of_error(error)]


def _findings(connection: sqlite3.Connection, path: str, selections: Sequence[TableSelection]) -> Iterator[Finding]:
    usable, unusable = read_catalog(connection, selections)
    yield Finding("pass", "UW-SL-001", f"The database file {path} can be read: {len(usable)} tables to publish.")
    yield from (Finding.of_error(each.error) for each in unusable)
    yield _writable(connection, path)
    yield _journal(connection, path)
    yield _tracking(connection, usable)
    for table in usable:
        yield from _surprises(table)
    if is_tracked(connection):
        yield _log_size(connection)


def _writable(connection: sqlite3.Connection, path: str) -> Finding:
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        found = translated(error, path)
        if isinstance(found, UpwellError):
            return Finding.of_error(found)
        raise
    return Finding("pass", "UW-SL-008", "The database can be written: upwell keeps its change log there.")


def _journal(connection: sqlite3.Connection, path: str) -> Finding:
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    if mode == "wal":
        return Finding("pass", "UW-SL-013", "The journal mode is WAL: reading never makes a writer wait.")
    return Finding(
        "warn",
        "UW-SL-013",
        f"The journal mode is {mode}: a writer waits while upwell reads, for some milliseconds at a time.",
        f"sqlite3 {path} 'PRAGMA journal_mode = WAL'",
    )


def _tracking(connection: sqlite3.Connection, tables: Sequence[Table]) -> Finding:
    missing = [table.name for table in tables if track_statements(connection, [table])]
    if not missing:
        return Finding("pass", "UW-SL-003", "The triggers that log changes are in place.")
    sentence = f"The triggers that log changes are missing, or not as they should be, on: {', '.join(missing)}."
    return Finding("fail", "UW-SL-003", sentence, "Run `upwell track` (with `--dry-run` it only shows the SQL).")


def _surprises(table: Table) -> Iterator[Finding]:
    for index in table.unique:
        if not index.understood:
            yield Finding(
                "warn",
                "UW-SL-014",
                f"The SQL of the unique index {index.name} of table {table.name} was not understood: a row that "
                "REPLACE removes because of it is removed from the target by the next resync only.",
                "Avoid REPLACE there, or have every program that uses it run: PRAGMA recursive_triggers = ON",
            )
    if table.key_may_be_null:
        yield Finding(
            "warn",
            "UW-SL-015",
            f"SQLite allows NULL in the primary key of table {table.name}: rows that have it become dead letters.",
            "Declare the key's columns NOT NULL.",
        )


def _log_size(connection: sqlite3.Connection) -> Finding:
    (entries,) = connection.execute("SELECT coalesce(max(id) - min(id) + 1, 0) FROM _upwell_log").fetchone()
    if entries <= LOG_ENTRIES_WARN:
        return Finding("pass", "UW-SL-016", f"The change log holds {entries} entries.")
    sentence = f"The change log holds {entries} entries, which nobody has confirmed: it grows until a publisher runs."
    return Finding("warn", "UW-SL-016", sentence, "Run `upwell publish`, or `upwell track --undo`.")


def _usable(connection: sqlite3.Connection, selections: Sequence[TableSelection]) -> list[Table]:
    usable, unusable = read_catalog(connection, selections)
    if unusable:
        raise unusable[0].error
    return usable


@contextmanager
def _connection(path: str) -> Iterator[sqlite3.Connection]:
    try:
        with closing(connect(path)) as connection:
            yield connection
    except sqlite3.Error as error:
        raise translated(error, path) from error


@contextmanager
def _transaction(path: str) -> Iterator[sqlite3.Connection]:
    """All or nothing: what is not committed goes with the connection."""
    with _connection(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        connection.execute("COMMIT")
