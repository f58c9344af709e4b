"""What PostgreSQL must grant and have before changes can be read; the slot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from upwell.errors import ConfigError, OperatorError
from upwell.model import TableSelection
from upwell.sources.postgres_catalog import PARTITION_ROOTS, Catalog, CatalogTable, check_key, matches
from upwell.sources.postgres_place import Slot
from upwell.sources.postgres_session import quote_ident, quote_literal
from upwell.tablepatterns import has_wildcard, shown

if TYPE_CHECKING:
    import psycopg

SLOT_WAIT_S = 60  # creating a slot waits for the transactions that are in progress
FAILOVER_SLOTS = 170000
_PUBLICATION_OPTIONS = ("publish_via_partition_root = true", "publish = 'insert, update, delete, truncate'")


def check_requirements(sql: psycopg.Connection[tuple[Any, ...]], catalog: Catalog, publication: str) -> None:
    """Raises OperatorError, with the remedy, for the first thing that stands in the way."""
    check_wal_level(sql)
    check_publication(sql, catalog, publication)
    check_named_tables(catalog)
    for table in catalog.selected():
        selection = catalog.selection(table.name)
        explicit = selection is not None and not has_wildcard(selection.pattern)
        if table.published is None and not explicit:
            continue  # it came after `upwell track`: `health` names it, and it stops nobody
        check_table(table, publication, explicit=explicit, server_version=catalog.server_version)
        if selection is not None and explicit:
            check_columns(table, selection)


def check_named_tables(catalog: Catalog) -> None:
    """Raises OperatorError where the configuration names a table that is not there."""
    tables = catalog.selected()
    for selection in catalog.selections:
        if not has_wildcard(selection.pattern) and not any(matches(selection.pattern, t.name) for t in tables):
            raise OperatorError(
                f"The source has no table {shown(selection.pattern)} that could be replicated.",
                code="UW-PG-044",
                remedy="Check its name under tables in the configuration. Partitions: name the partitioned table.",
            )


def check_columns(table: CatalogTable, selection: TableSelection) -> None:
    """Raises ConfigError where the configuration names a column that is not there."""
    columns = {column.name for column in table.columns}
    unknown = sorted({*(selection.columns or ()), *selection.exclude} - columns)
    if unknown:
        raise ConfigError(
            f"{table.name} has no column {', '.join(unknown)}.",
            code="UW-PG-042",
            remedy=f"Correct `columns` or `exclude` of {table.name}; its columns are {', '.join(sorted(columns))}.",
        )


def check_wal_level(sql: psycopg.Connection[tuple[Any, ...]]) -> None:
    """Raises OperatorError where the log does not hold what logical decoding needs."""
    (level,) = sql.execute("SHOW wal_level").fetchone() or ("",)
    if level != "logical":
        raise OperatorError(
            f"Logical replication is off in the source: wal_level is {level}.",
            code="UW-PG-030",
            remedy="ALTER SYSTEM SET wal_level = logical; then restart the server.",
        )


def create_publication_sql(catalog: Catalog, publication: str) -> str:
    """The statement for the selected tables. Those that inherit from one are tables of their own."""
    options = _PUBLICATION_OPTIONS if catalog.publishes_roots else _PUBLICATION_OPTIONS[1:]
    tables = ", ".join(table.only for table in catalog.selected())
    target = f" FOR TABLE {tables}" if tables else ""
    return f"CREATE PUBLICATION {quote_ident(publication)}{target} WITH ({', '.join(options)});"


def check_publication(sql: psycopg.Connection[tuple[Any, ...]], catalog: Catalog, publication: str) -> None:
    """Raises OperatorError where the publication is missing or publishes less than every change."""
    row = sql.execute("SELECT to_jsonb(p) FROM pg_publication p WHERE p.pubname = %s", [publication]).fetchone()
    if row is None:
        raise OperatorError(
            f"The source has no publication {publication}.", code="UW-PG-031", remedy="Run: upwell track"
        )
    found = row[0]
    options = _PUBLICATION_OPTIONS if catalog.publishes_roots else _PUBLICATION_OPTIONS[1:]
    remedy = f"ALTER PUBLICATION {quote_ident(publication)} SET ({', '.join(options)});"
    left_out = [what for what in ("insert", "update", "delete", "truncate") if not found[f"pub{what}"]]
    if left_out:
        raise OperatorError(
            f"The publication {publication} leaves out {', '.join(left_out)}.",
            code="UW-PG-032",
            remedy=remedy,
        )
    if catalog.publishes_roots and not found["pubviaroot"]:
        raise OperatorError(
            f"The publication {publication} names partitions instead of their tables.",
            code="UW-PG-032",
            remedy=remedy,
        )


def check_table(table: CatalogTable, publication: str, *, explicit: bool, server_version: int) -> None:
    """Raises OperatorError where changes of the table can't be read. `explicit`: the configuration names just it."""
    if table.partitioned and server_version < PARTITION_ROOTS:
        raise OperatorError(
            f"{table.name} is partitioned, which PostgreSQL publishes from version 13 on.",
            code="UW-PG-045",
            remedy="Name its partitions under tables in the configuration instead, or upgrade the server.",
        )
    if table.unlogged:
        raise OperatorError(
            f"{table.name} is unlogged: the log does not have its changes.",
            code="UW-PG-046",
            remedy=f"ALTER TABLE {table.only} SET LOGGED; or leave it out of the configuration.",
        )
    check_key(table)
    if table.published is None and explicit:
        raise OperatorError(
            f"The publication {publication} does not have {table.name}.", code="UW-PG-031", remedy="Run: upwell track"
        )
    if table.filtered:
        raise OperatorError(
            f"The publication {publication} leaves out rows of {table.name}.",
            code="UW-PG-032",
            remedy=f"ALTER PUBLICATION {quote_ident(publication)} DROP TABLE {table.only}; then run: upwell track",
        )


def find_slot(sql: psycopg.Connection[tuple[Any, ...]], name: str) -> Slot | None:
    """The slot; None where there is none. Raises OperatorError where it is somebody else's."""
    row = sql.execute(
        "SELECT to_jsonb(s), current_database() FROM pg_replication_slots s WHERE s.slot_name = %s", [name]
    ).fetchone()
    if row is None:
        return None
    slot = Slot.from_row(row[0])
    if slot.plugin != "pgoutput" or slot.database != row[1]:
        raise OperatorError(
            f"The replication slot {name} belongs to something else (plugin {slot.plugin or 'none'}, database "
            f"{slot.database or 'none'}).",
            code="UW-PG-034",
            remedy="Give source.slot another name.",
        )
    return slot


def create_slot(sql: psycopg.Connection[tuple[Any, ...]], name: str) -> None:
    """A slot for this database. Waits for the transactions in progress, up to SLOT_WAIT_S."""
    sql.execute(f"SET statement_timeout = '{SLOT_WAIT_S}s'".encode())
    try:
        sql.execute(create_slot_sql(name, sql.info.server_version).encode())
    finally:
        if not sql.closed:
            sql.execute("SET statement_timeout = 0")


def create_slot_sql(name: str, server_version: int) -> str:
    """The statement; from PostgreSQL 17 on the slot survives a failover where the standbys are set up for that."""
    failover = ", failover => true" if server_version >= FAILOVER_SLOTS else ""
    return f"SELECT pg_create_logical_replication_slot({quote_literal(name)}, 'pgoutput'{failover})"


def drop_slot(sql: psycopg.Connection[tuple[Any, ...]], slot: Slot) -> None:
    """A slot of ours that is of no use any more."""
    sql.execute(drop_slot_sql(slot.name).encode())


def drop_slot_sql(name: str) -> str:
    """The statement."""
    return f"SELECT pg_drop_replication_slot({quote_literal(name)})"
