"""What the command line does to a SQL Server, and wants to know of it: track, untrack, inspect, findings, grants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from upwell.errors import OperatorError, UpwellError
from upwell.model import Finding, Inspected, TableName, TableSelection
from upwell.sources import sqlserver_marker as marker
from upwell.sources.sqlserver_catalog import (
    Table,
    TableState,
    Unusable,
    check_server,
    check_tracked,
    may_see_times,
    missing,
    read_estimates,
    read_server,
    read_states,
    read_tables,
    select,
    tracking_is_off,
)
from upwell.sources.sqlserver_errors import NO_OBJECT, NO_RIGHT
from upwell.sources.sqlserver_place import Server
from upwell.sources.sqlserver_retention import commit_table_rows, read_retention
from upwell.sources.sqlserver_session import Address, Driver, Session, literal, load_driver, quoted

RETENTION_DAYS: Final = 14  # a pipeline may be off for so long; the server's own default is 2
RETENTION_HOURS_WARN: Final = 72  # a long weekend
COMMIT_ROWS_WARN: Final = 50_000_000

_ALL = (TableSelection(TableName("*", "*")),)


@contextmanager
def _session(url: str, driver: Driver) -> Iterator[tuple[Session, Server]]:
    session = Session.connect(load_driver(driver), Address.parse(url))
    try:
        yield session, read_server(session)
    finally:
        session.close()


# --- track --------------------------------------------------------------------------------------------------------


def track_sql(url: str, tables: Sequence[TableSelection], driver: Driver) -> list[str]:
    """The statements that `track` would run, in order; none where all is in place. Raises UpwellError."""
    with _session(url, driver) as (session, server):
        return list(_track_statements(session, server, tables))


def track(url: str, tables: Sequence[TableSelection], driver: Driver) -> list[str]:
    """Turn change tracking on for the database and these tables; returns what it ran. Raises UpwellError.

    May be repeated: only what is missing is done.
    """
    with _session(url, driver) as (session, server):
        check_server(server)
        return _executed(session, list(_track_statements(session, server, tables)))


def _track_statements(session: Session, server: Server, selections: Sequence[TableSelection]) -> Iterator[str]:
    states = read_states(session)
    usable, unusable = read_tables(session, select(states, selections))
    for each in [*missing(states, selections), *unusable]:
        if each.explicit:
            raise each.error
    if read_retention(session) is None:
        yield (
            f"ALTER DATABASE {quoted(server.database)} SET CHANGE_TRACKING = ON "
            f"(CHANGE_RETENTION = {RETENTION_DAYS} DAYS, AUTO_CLEANUP = ON);"
        )
    tracked = {state.object_id for state in states if state.begin is not None}
    for table in usable:
        if table.object_id not in tracked:
            yield f"ALTER TABLE {table.sql} ENABLE CHANGE_TRACKING WITH (TRACK_COLUMNS_UPDATED = ON);"


def untrack_sql(url: str, tables: Sequence[TableSelection], driver: Driver) -> list[str]:
    """The statements that `untrack` would run, in order; none where nothing is left. Raises UpwellError."""
    with _session(url, driver) as (session, server):
        return list(_untrack_statements(session, server, tables))


def untrack(url: str, tables: Sequence[TableSelection], driver: Driver) -> list[str]:
    """Turn it off for these tables, and for the database where no other is tracked; returns what it ran."""
    with _session(url, driver) as (session, server):
        return _executed(session, list(_untrack_statements(session, server, tables)))


def _untrack_statements(session: Session, server: Server, selections: Sequence[TableSelection]) -> Iterator[str]:
    states = [state for state in read_states(session) if state.begin is not None]
    ours = [state for state, _ in select(states, selections)]
    for state in ours:
        yield f"ALTER TABLE {quoted(*state.name)} DISABLE CHANGE_TRACKING;"
    if len(ours) == len(states) and read_retention(session) is not None:
        yield f"ALTER DATABASE {quoted(server.database)} SET CHANGE_TRACKING = OFF;"
    if marker.exists(session):
        yield marker.DROP_SQL


def _executed(session: Session, statements: list[str]) -> list[str]:
    try:
        for statement in statements:
            session.run(statement)
    except UpwellError as error:
        if error.code not in (NO_RIGHT, NO_OBJECT):  # a table that may not be altered is one that can't be found
            raise
        remedy = "Name an owner of the database in source.url for this command, or have one run what --dry-run shows."
        raise OperatorError(error.message, code=error.code, remedy=remedy) from error
    return statements


def grants_sql(names: Sequence[TableName], *, role: str, database: str) -> list[str]:
    """For the administrator: a login with the least rights that publishing needs."""
    user = quoted(role)
    lines = [
        f"USE {quoted(database)};",
        f"-- CREATE LOGIN {user} WITH PASSWORD = {literal('choose one')};   -- or FROM WINDOWS",
        f"CREATE USER {user} FOR LOGIN {user};",
    ]
    for name in names:
        lines.append(f"GRANT SELECT ON OBJECT::{quoted(*name)} TO {user};")
        lines.append(f"GRANT VIEW CHANGE TRACKING ON OBJECT::{quoted(*name)} TO {user};")
    return [
        *lines,
        "-- Optional: the times at which changes were committed, and the size of the server's list of them.",
        f"-- GRANT VIEW DATABASE STATE TO {user};",
        "-- Optional: a mark of ours in the database, which tells a restore or a failover with loss for certain.",
        f"-- {marker.CREATE_SQL}",
        f"-- GRANT SELECT, INSERT, UPDATE ON OBJECT::{marker.TABLE} TO {user};",
    ]


# --- inspect, findings --------------------------------------------------------------------------------------------


def inspect(url: str, driver: Driver) -> list[Inspected]:
    """All tables of the database, by name. Raises UpwellError."""
    with _session(url, driver) as (session, _):
        states = read_states(session)
        tables, unusable = read_tables(session, select(states, _ALL))
        estimates = read_estimates(session, [table.object_id for table in tables])
        found = [Inspected(table.name, table.schema, estimates.get(table.object_id)) for table in tables]
        found += [Inspected(TableName.parse(each.name), None, None, each.error.message) for each in unusable]
        return sorted(found, key=lambda table: table.name)


def findings(url: str, tables: Sequence[TableSelection], driver: Driver) -> list[Finding]:
    """Everything that publishing will need of the database, and what may surprise."""
    try:
        with _session(url, driver) as (session, server):
            return [*_of_address(session.address), *_of_server(session, server), *_of_tables(session, tables)]
    except UpwellError as error:
        return [Finding.of_error(error)]


def _of_address(address: Address) -> Iterator[Finding]:
    if not address.encrypt:
        yield Finding("warn", "UW-MS-006", "The connection to the source is not encrypted, as source.url says.",
                      "Remove encrypt=no from source.url.")  # fmt: skip
    elif address.trust:
        yield Finding("warn", "UW-MS-005", "The source's certificate is not checked, as source.url says.",
                      "Have the machine trust its authority, or name it: ?ca=/path/of/the/ca.pem")  # fmt: skip
    else:
        yield Finding("pass", "UW-MS-005", "The connection to the source is encrypted, and its certificate checked.")


def _of_server(session: Session, server: Server) -> Iterator[Finding]:
    good = f"SQL Server {server.version} ({server.name}) answers at {session.address}."
    yield Finding.of_check("UW-MS-033", good, lambda: check_server(server))
    yield from _retention(session, server)
    if server.snapshots:
        yield Finding("pass", "UW-MS-052", "Snapshot isolation is allowed: reading waits for no writer.")
    else:
        also = "READ_COMMITTED_SNAPSHOT is on, so reading still waits for no writer" if server.versioned else (
            "reading waits for writers' locks, and keys and rows are read at different instants, which costs some "
            "changes a second trip"
        )  # fmt: skip
        yield Finding("warn", "UW-MS-052", f"Snapshot isolation is not allowed in {server.database}: {also}.",
                      f"ALTER DATABASE {quoted(server.database)} SET ALLOW_SNAPSHOT_ISOLATION ON;")  # fmt: skip
    yield _restores(session, server)
    rows = commit_table_rows(session) if may_see_times(session) else None
    if rows is not None:
        level = "warn" if rows > COMMIT_ROWS_WARN else "pass"
        remedy = "A shorter CHANGE_RETENTION, or: EXEC sys.sp_flush_commit_table_on_demand;" if level == "warn" else ""
        yield Finding(level, "UW-MS-053", f"The server remembers {rows} transactions (syscommittab).", remedy)  # type: ignore[arg-type] # one of two literals


def _retention(session: Session, server: Server) -> Iterator[Finding]:
    retention = read_retention(session)
    if retention is None:
        yield Finding.of_error(tracking_is_off(server))
        return
    change = f"ALTER DATABASE {quoted(server.database)} SET CHANGE_TRACKING"
    if retention.hours < RETENTION_HOURS_WARN:
        yield Finding("warn", "UW-MS-050",
                      f"The server keeps changes for {retention.words}: a publisher that is off for longer has to read "
                      "the tables again.",
                      f"{change} (CHANGE_RETENTION = {RETENTION_DAYS} DAYS);")  # fmt: skip
    else:
        yield Finding("pass", "UW-MS-050", f"The server keeps changes for {retention.words}.")
    if not retention.cleanup:
        yield Finding("warn", "UW-MS-051", "Automatic cleanup of changes is off: their tables grow without end.",
                      f"{change} (AUTO_CLEANUP = ON);")  # fmt: skip


def _restores(session: Session, server: Server) -> Finding:
    if marker.exists(session):
        return Finding("pass", "UW-MS-054", "A restore, or a failover with loss, is told by our mark in the database.")
    if server.fork:
        return Finding("pass", "UW-MS-054", "A restore, or a failover with loss, is told by the recovery fork.")
    return Finding(
        "warn",
        "UW-MS-054",
        "We may see neither the recovery fork nor a mark of ours: a restore, or a failover with loss, is noticed only "
        "while the database's version is below ours.",
        "Have an administrator run the optional part of grants.sql: the table " + marker.TABLE,
    )


def _of_tables(session: Session, selections: Sequence[TableSelection]) -> Iterator[Finding]:
    states = read_states(session)
    chosen = select(states, selections)
    tables, unusable = read_tables(session, chosen)
    for each in [*missing(states, selections), *unusable]:
        yield _unusable(each)
    if not any(each.explicit for each in unusable) and not missing(states, selections):
        yield Finding("pass", "UW-MS-043", "Every table that the configuration names is there.")
    by_id = {state.object_id: state for state, _ in chosen}
    for table in tables:
        yield from _of_table(session, table, by_id[table.object_id])


def _unusable(each: Unusable) -> Finding:
    """What a pattern names and can't be published stops nobody."""
    found = Finding.of_error(each.error)
    return found if each.explicit else Finding("warn", found.code, found.sentence, found.remedy)


def _of_table(session: Session, table: Table, state: TableState) -> Iterator[Finding]:
    try:
        check_tracked(session, state)
    except UpwellError as error:
        yield Finding.of_error(error)
        return
    row = session.one(f"SELECT HAS_PERMS_BY_NAME({literal(table.sql)}, 'OBJECT', 'SELECT')")
    if row is None or row[0] != 1:
        remedy = f"GRANT SELECT ON OBJECT::{table.sql} TO upwell;"
        yield Finding("fail", NO_RIGHT, f"We may not read {table.name}.", remedy)
        return
    yield Finding("pass", "UW-MS-040", f"{table.name} is ready; its key is {', '.join(table.schema.key)}.")
    if not state.columns_tracked:
        yield Finding(
            "pass",
            "UW-MS-047",
            f"{table.name}: events will not tell which columns changed.",
            f"ALTER TABLE {table.sql} DISABLE CHANGE_TRACKING; then run: upwell track (the table is read again)",
        )
