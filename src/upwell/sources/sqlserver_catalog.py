# ruff: noqa: S608 - statements hold the numbers of objects and nothing else from outside
"""What SQL Server's catalog says: the server, the tables with columns and keys, what is tracked of them.

A catalog view shows what the login may see: a table that is missing may be one that it has no right on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from upwell.errors import ConfigError, OperatorError
from upwell.model import Column, TableName, TableSchema, TableSelection
from upwell.sources.sqlserver_place import History, Server
from upwell.sources.sqlserver_session import PARAMETER, Session, literal, quoted
from upwell.sources.sqlserver_types import ServerType
from upwell.tablepatterns import folded, has_wildcard, part_matches, shown

DIALECT: Final = "sqlserver"
DEFAULT_SCHEMA: Final = "dbo"
MARKER: Final = "upwell_marker"  # our table in the source, where somebody has made it
# sys.internal_tables: the table behind CHANGETABLE.
_SIDE_TABLE: Final = 209
_LEVEL_MIN: Final = 90  # below it CHANGETABLE is not understood
_NO_KEYS: Final = {
    "timestamp": "SQL Server tracks no such table",
    "sql_variant": "its values are ordered by their types, and reading can't go on from one that has become text",
}


class TableState(NamedTuple):
    """A table as it is just now, whether it is tracked or not."""

    name: TableName
    object_id: int
    altered: tuple[str, int]  # changes with every ALTER TABLE
    begin: int | None  # version; None: not tracked, or we may not see it
    min_valid: int | None  # version; None: not tracked, or no right to see its changes
    columns_tracked: bool
    side: int  # object id of its side table; 0: not visible

    @property
    def tracked(self) -> bool:
        """Whether its changes can be read: it is tracked, and we may see that."""
        return self.begin is not None and self.min_valid is not None


@dataclass(frozen=True, slots=True)
class ServerColumn:
    """A column of a table."""

    id: int
    name: str
    type: ServerType
    computed: bool
    fills: bool  # it brings values to the rows that exist when it is added


@dataclass(frozen=True, slots=True)
class Table:
    """A table that can be read."""

    name: TableName
    object_id: int
    columns: tuple[ServerColumn, ...]  # those that are published
    key: tuple[ServerColumn, ...]  # in the key's order, which need not be the table's
    descending: tuple[bool, ...]  # of the key's columns, in its index
    schema: TableSchema
    altered: tuple[str, int]

    @property
    def sql(self) -> str:
        """Its name in a statement."""
        return quoted(*self.name)

    @property
    def loose(self) -> bool:
        """Whether two keys that look different may be one to the server."""
        return bool(self.schema.loose)


@dataclass(frozen=True, slots=True)
class Unusable:
    """A table that was asked for and can't be read, as the error that says so."""

    name: str
    error: OperatorError | ConfigError
    explicit: bool  # the configuration names just this one


def read_server(session: Session) -> Server:
    """The server and the database that the session is in."""
    row = session.one(
        "SELECT d.name, CONVERT(varchar(30), d.create_date, 121), CONVERT(varchar(36), d.service_broker_guid), "
        "d.snapshot_isolation_state, d.is_read_committed_snapshot_on, d.compatibility_level, "
        "CONVERT(nvarchar(128), SERVERPROPERTY('ServerName')), "
        "CONVERT(nvarchar(128), SERVERPROPERTY('ProductVersion')), "
        "CONVERT(int, SERVERPROPERTY('EngineEdition')), "
        "CONVERT(nvarchar(60), DATABASEPROPERTYEX(DB_NAME(), 'Updateability')) "
        "FROM sys.databases AS d WHERE d.database_id = DB_ID()"
    )
    assert row is not None, "a session is in a database, which may see itself"
    guid, fork = _recovery(session)
    return Server(
        name=row[6] or "",
        version=row[7] or "",
        edition=row[8] or 0,
        database=row[0],
        created=row[1] or "",
        broker=str(row[2] or "").lower(),
        guid=guid,
        fork=fork,
        writable=row[9] != "READ_ONLY",
        snapshots=row[3] == 1,
        versioned=bool(row[4]),
        level=row[5],
    )


def _recovery(session: Session) -> tuple[str, str]:
    """(database guid, recovery fork); empty where there is no such view, or no right to see it."""
    try:
        row = session.one(
            "SELECT CONVERT(varchar(36), r.database_guid), CONVERT(varchar(36), r.recovery_fork_guid) "
            "FROM sys.database_recovery_status AS r WHERE r.database_id = DB_ID()"
        )
    except OperatorError:
        return "", ""
    return (str(row[0] or "").lower(), str(row[1] or "").lower()) if row else ("", "")


def read_version(session: Session) -> tuple[int | None, str]:
    """The version that the database's changes have come to, None where nothing is tracked; the server's time."""
    row = session.one("SELECT CHANGE_TRACKING_CURRENT_VERSION(), CONVERT(varchar(40), SYSUTCDATETIME(), 121)")
    assert row is not None, "a SELECT without FROM has a row"
    return row[0], row[1].replace(" ", "T", 1) + "Z"


def read_states(session: Session, object_ids: Iterable[int] | None = None) -> list[TableState]:
    """The user's tables, or these of them, by name."""
    chosen = "" if object_ids is None else f" AND t.object_id IN ({_listed(object_ids)})"
    rows = session.all(
        "SELECT t.object_id, SCHEMA_NAME(t.schema_id), t.name, CONVERT(varchar(30), t.modify_date, 121), "
        "t.max_column_id_used, ct.begin_version, CHANGE_TRACKING_MIN_VALID_VERSION(t.object_id), "
        "ct.is_track_columns_updated_on, i.object_id FROM sys.tables AS t "
        "LEFT JOIN sys.change_tracking_tables AS ct ON ct.object_id = t.object_id "
        f"LEFT JOIN sys.internal_tables AS i ON i.parent_id = t.object_id AND i.internal_type = {_SIDE_TABLE} "
        f"WHERE t.is_ms_shipped = 0{chosen}"
    )
    states = [
        TableState(
            name=TableName(row[1], row[2]),
            object_id=row[0],
            altered=(row[3], row[4]),
            begin=row[5],
            min_valid=row[6],
            columns_tracked=bool(row[7]),
            side=row[8] or 0,
        )
        for row in rows
        if row[2] != MARKER
    ]
    return sorted(states, key=lambda state: state.name)


def known_of(states: Mapping[str, TableState]) -> dict[str, tuple[History, int]]:
    """table → (its history, its minimum valid version), of those that are tracked."""
    return {
        table: ((state.object_id, state.begin, state.side), state.min_valid)
        for table, state in states.items()
        if state.begin is not None and state.min_valid is not None
    }


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(str(int(number)) for number in sorted(numbers)) or "0"


# --- tables -------------------------------------------------------------------------------------------------------


def select(
    states: Sequence[TableState], selections: Sequence[TableSelection]
) -> list[tuple[TableState, TableSelection]]:
    """The tables that the selections name; the first selection that fits a table counts."""
    found = []
    for state in states:
        selection = next((each for each in selections if _matches(each.pattern, state.name)), None)
        if selection is not None:
            found.append((state, selection))
    return found


def missing(states: Sequence[TableState], selections: Sequence[TableSelection]) -> list[Unusable]:
    """The tables that the configuration names, and that are not there or not visible."""
    return [
        Unusable(shown(each.pattern), _not_found(each.pattern), explicit=True)
        for each in selections
        if not has_wildcard(each.pattern) and not any(_matches(each.pattern, state.name) for state in states)
    ]


def _matches(pattern: TableName, name: TableName) -> bool:
    schema = pattern.schema or DEFAULT_SCHEMA
    return part_matches(schema, name.schema, DIALECT) and part_matches(pattern.name, name.name, DIALECT)


def read_tables(
    session: Session, chosen: Sequence[tuple[TableState, TableSelection]]
) -> tuple[list[Table], list[Unusable]]:
    """The tables with their columns and keys; those that can't be read with the reason."""
    if not chosen:
        return [], []
    ids = [state.object_id for state, _ in chosen]
    columns, keys = _columns(session, ids), _keys(session, ids)
    tables: list[Table] = []
    unusable: list[Unusable] = []
    for state, selection in chosen:
        try:
            tables.append(_table(state, selection, columns.get(state.object_id, []), keys.get(state.object_id, [])))
        except (OperatorError, ConfigError) as error:
            unusable.append(Unusable(str(state.name), error, explicit=not has_wildcard(selection.pattern)))
    return tables, unusable


class _KeyPart(NamedTuple):
    column: int
    descending: bool
    disabled: bool
    in_memory: bool


def _columns(session: Session, ids: Sequence[int]) -> dict[int, list[ServerColumn]]:
    rows = session.all(
        "SELECT c.object_id, c.column_id, c.name, b.name, u.name, u.is_assembly_type, c.max_length, c.precision, "
        "c.scale, c.collation_name, c.is_computed, c.is_identity, c.default_object_id, c.is_column_set "
        "FROM sys.columns AS c JOIN sys.types AS u ON u.user_type_id = c.user_type_id "
        "LEFT JOIN sys.types AS b ON b.user_type_id = c.system_type_id "
        f"WHERE c.object_id IN ({_listed(ids)}) ORDER BY c.object_id, c.column_id"
    )
    found: dict[int, list[ServerColumn]] = {}
    for id_, column, name, system, user, assembly, length, precision, scale, collation, *rest in rows:
        computed, identity, default, column_set = rest
        if column_set:
            continue  # an XML of all sparse columns, which are read one by one
        # An alias has the type that it is made of; CLR types share one number, so only their own name tells them.
        name_of_type = user if assembly or system is None else system
        type_ = ServerType(name_of_type, length, precision, scale, collation, bool(assembly))
        fills = bool(computed or identity or default) or name_of_type == "timestamp"
        found.setdefault(id_, []).append(ServerColumn(column, name, type_, bool(computed), fills))
    return found


def _keys(session: Session, ids: Sequence[int]) -> dict[int, list[_KeyPart]]:
    primary = session.all(
        # Older servers, which have no such tables, answer NULL.
        "SELECT i.object_id, i.index_id, i.is_disabled, OBJECTPROPERTY(i.object_id, 'TableIsMemoryOptimized') "
        "FROM sys.indexes AS i "
        f"WHERE i.is_primary_key = 1 AND i.object_id IN ({_listed(ids)})"
    )
    known = {(id_, index): (bool(is_disabled), bool(in_memory)) for id_, index, is_disabled, in_memory in primary}
    rows = session.all(
        "SELECT ic.object_id, ic.index_id, ic.column_id, ic.is_descending_key FROM sys.index_columns AS ic "
        f"WHERE ic.key_ordinal > 0 AND ic.object_id IN ({_listed(ids)}) "
        "ORDER BY ic.object_id, ic.index_id, ic.key_ordinal"
    )
    found: dict[int, list[_KeyPart]] = {}
    for id_, index, column, descending in rows:
        if (id_, index) in known:
            found.setdefault(id_, []).append(_KeyPart(column, bool(descending), *known[id_, index]))
    return found


def _table(
    state: TableState, selection: TableSelection, columns: Sequence[ServerColumn], key: Sequence[_KeyPart]
) -> Table:
    by_id = {column.id: column for column in columns}
    if not key or not all(part.column in by_id for part in key):
        raise _no_key(state.name)
    if any(part.disabled for part in key):
        raise OperatorError(
            f"The primary key of {state.name} is disabled, so its changes can't be tracked.",
            code="UW-MS-044",
            remedy=f"ALTER INDEX ALL ON {quoted(*state.name)} REBUILD;",
        )
    if key[0].in_memory:
        raise OperatorError(
            f"{state.name} is memory-optimized: SQL Server tracks no such table.",
            code="UW-MS-044",
            remedy="Leave it out, or keep it on disk.",
        )
    of_key = tuple(by_id[part.column] for part in key)
    for column in of_key:
        if column.type.name in _NO_KEYS:
            raise OperatorError(
                f"A {column.type.declared} is part of the primary key of {state.name}: {_NO_KEYS[column.type.name]}.",
                code="UW-MS-044",
                remedy="Give it a primary key of other columns.",
            )
    names = _chosen(state.name, columns, of_key, selection)
    published = tuple(column for column in columns if column.name in names)
    schema = TableSchema(
        str(state.name),
        tuple(Column(c.name, c.type.declared, c.type.kind, has_default=c.fills) for c in published),
        tuple(column.name for column in of_key),
        DIALECT,
        loose=frozenset(column.name for column in of_key if column.type.loose),
    )
    return Table(
        name=state.name,
        object_id=state.object_id,
        columns=published,
        key=of_key,
        descending=tuple(part.descending for part in key),
        schema=schema,
        altered=state.altered,
    )


def _chosen(
    table: TableName, columns: Sequence[ServerColumn], key: Sequence[ServerColumn], selection: TableSelection
) -> set[str]:
    """The selected columns; those of the key always are. A pattern may name columns that only some tables have."""
    real = {folded(column.name, DIALECT): column.name for column in columns}
    for name in (*(selection.columns or ()), *selection.exclude):
        if folded(name, DIALECT) not in real and not has_wildcard(selection.pattern):
            raise ConfigError(
                f"{table} has no column {name}.",
                code="UW-MS-042",
                remedy=f"Correct `columns` or `exclude` of {table}; its columns are {', '.join(real.values())}.",
            )

    def known(listed: Sequence[str]) -> set[str]:
        return {real[folded(name, DIALECT)] for name in listed if folded(name, DIALECT) in real}

    chosen = set(real.values()) if selection.columns is None else known(selection.columns)
    return chosen - known(selection.exclude) | {column.name for column in key}


def read_estimates(session: Session, ids: Sequence[int]) -> dict[int, int]:
    """object id → about how many rows it has; without those that can't be seen."""
    rows = session.all(
        "SELECT p.object_id, SUM(p.rows) FROM sys.partitions AS p "
        f"WHERE p.index_id IN (0, 1) AND p.object_id IN ({_listed(ids)}) GROUP BY p.object_id"
    )
    return {id_: int(rows) for id_, rows in rows}


def may_see_times(session: Session) -> bool:
    """Whether we may ask when versions were committed."""
    row = session.one("SELECT HAS_PERMS_BY_NAME(NULL, 'DATABASE', 'VIEW DATABASE STATE')")
    return row is not None and row[0] == 1


def read_times(session: Session, first: int, last: int) -> dict[int, str]:
    """version → when it was committed, by the server's clock, as ISO 8601; the view rounds to minutes.

    It has every transaction that changed a tracked table, until cleanup takes it.
    """
    rows = session.all(
        "SELECT c.commit_ts, "
        "CONVERT(varchar(40), DATEADD(minute, DATEDIFF(minute, GETDATE(), GETUTCDATE()), c.commit_time), 121) "
        f"FROM sys.dm_tran_commit_table AS c WHERE c.commit_ts >= {PARAMETER} AND c.commit_ts <= {PARAMETER}",
        (first, last),
    )
    return {version: time.replace(" ", "T", 1) + "Z" for version, time in rows}


# --- what stands in the way ---------------------------------------------------------------------------------------


def check_server(server: Server) -> None:
    """Raises OperatorError where changes can't be read from here."""
    if not server.writable:
        raise OperatorError(
            f"{server.database} on {server.name} is read-only: a secondary replica, or a database that was set so. "
            "Change tracking is read on the primary.",
            code="UW-MS-033",
            remedy="Name the availability group's listener, or the primary, in source.url.",
        )
    if server.level < _LEVEL_MIN:
        raise OperatorError(
            f"The compatibility level of {server.database} is {server.level}; change tracking is read from "
            f"{_LEVEL_MIN} on.",
            code="UW-MS-034",
            remedy="ALTER DATABASE CURRENT SET COMPATIBILITY_LEVEL = 100;",
        )


def tracking_is_off(server: Server) -> OperatorError:
    """Of the whole database."""
    return OperatorError(
        f"Change tracking is off in the database {server.database}.",
        code="UW-MS-030",
        remedy="Run: upwell track (with --dry-run it only shows the SQL).",
    )


def check_tracked(session: Session, state: TableState) -> None:
    """Raises OperatorError where the table's changes can't be read: it is not tracked, or we have no right to."""
    if state.tracked:
        return
    name = quoted(*state.name)
    row = session.one(f"SELECT HAS_PERMS_BY_NAME({literal(name)}, 'OBJECT', 'VIEW CHANGE TRACKING')")
    if row is not None and row[0] == 0:
        raise OperatorError(
            f"We may not see the changes of {state.name}.",
            code="UW-MS-032",
            remedy=f"GRANT SELECT, VIEW CHANGE TRACKING ON OBJECT::{name} TO upwell;",
        )
    raise OperatorError(
        f"Change tracking is off for {state.name}.",
        code="UW-MS-031",
        remedy="Run: upwell track (with --dry-run it only shows the SQL).",
    )


def _no_key(name: TableName) -> OperatorError:
    return OperatorError(
        f"{name} has no primary key, without which SQL Server tracks no changes.",
        code="UW-MS-041",
        remedy=f"ALTER TABLE {quoted(*name)} ADD PRIMARY KEY (columns that tell its rows apart);",
    )


def _not_found(pattern: TableName) -> OperatorError:
    return OperatorError(
        f"The database has no table {shown(pattern)}, or we have no right on it.",
        code="UW-MS-043",
        remedy="Check its name under tables in the configuration, and that grants.sql was run.",
    )
