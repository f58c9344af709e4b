"""For the command line: what `track` does and undoes, what `init` finds, what must be granted, what `doctor` says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Final

from upwell.errors import OperatorError, UpwellError
from upwell.model import Finding, Inspected, TableName, TableSchema, TableSelection
from upwell.sources.postgres_catalog import DEFAULT_SCHEMA, Catalog, CatalogTable
from upwell.sources.postgres_requirements import (
    check_columns,
    check_named_tables,
    check_publication,
    check_table,
    check_wal_level,
    create_publication_sql,
    create_slot,
    create_slot_sql,
    drop_slot_sql,
    find_slot,
)
from upwell.sources.postgres_session import (
    ReplicationConnection,
    address,
    connect,
    quote_ident,
    translated,
)
from upwell.tablepatterns import has_wildcard

if TYPE_CHECKING:
    import psycopg

OLDEST: Final = 120000
NEWEST_TESTED: Final = 180000
STANDBY_DECODING: Final = 160000
_EVERYTHING: Final = TableSelection(TableName("*", "*"))


def inspect(url: str) -> list[Inspected]:
    """Every table of the database, by name. Raises UpwellError where it can't be looked into."""
    with closing(connect(url)) as sql, translated(url):
        catalog = Catalog(sql, [_EVERYTHING], "")
        return [_inspected(catalog, table) for table in catalog.all_tables()]


def _inspected(catalog: Catalog, table: CatalogTable) -> Inspected:
    try:
        check_table(table, "", explicit=False, server_version=catalog.server_version)
        return Inspected(table.name, catalog.schema(table), table.rows)
    except OperatorError as problem:
        return Inspected(table.name, None, table.rows, str(problem))


def track_sql(url: str, *, tables: Sequence[TableSelection], slot: str, publication: str) -> list[str]:
    """The statements that `track` would execute; none where everything is in place."""
    with closing(connect(url)) as sql, translated(url):
        catalog = Catalog(sql, tables, publication)
        statements = []
        (level,) = sql.execute("SHOW wal_level").fetchone() or ("",)
        if level != "logical":
            statements.append("ALTER SYSTEM SET wal_level = logical; -- then restart the server")
        statements += _publication_sql(sql, catalog, publication)
        # Last: a slot is created when all that began before has ended, so it misses no change of a published table.
        if find_slot(sql, slot) is None:
            statements.append(create_slot_sql(slot, catalog.server_version) + ";")
        return statements


def track(url: str, *, tables: Sequence[TableSelection], slot: str, publication: str) -> list[str]:
    """Publish the tables and create the slot, as far as that is to be done yet. Returns what was executed.

    Raises OperatorError where the server or a table is not fit for it, or where we may not.
    """
    statements = track_sql(url, tables=tables, slot=slot, publication=publication)
    with closing(connect(url)) as sql, translated(url):
        catalog = Catalog(sql, tables, publication)
        check_wal_level(sql)
        check_named_tables(catalog)
        for table in catalog.selected():
            check_table(table, publication, explicit=False, server_version=catalog.server_version)
        with _or_by_the_owner(url, "upwell track --dry-run"):
            for statement in statements:
                if statement.startswith("SELECT pg_create_logical_replication_slot("):
                    create_slot(sql, slot)
                else:
                    sql.execute(statement.encode())
    return statements


def untrack_sql(url: str, *, slot: str, publication: str) -> list[str]:
    """The statements that `untrack` would execute; none where nothing is left. Raises UpwellError."""
    with closing(connect(url)) as sql, translated(url):
        found = find_slot(sql, slot)
        if found is not None and found.active_pid is not None:
            raise OperatorError(
                f"The replication slot {slot} is being read (process {found.active_pid}).",
                code="UW-PG-039",
                remedy="Stop the publisher, then run this again.",
            )
        # The slot first: what it still holds can't be read without its publication.
        statements = [] if found is None else [f"{drop_slot_sql(slot)};"]
        if sql.execute("SELECT 1 FROM pg_publication WHERE pubname = %s", [publication]).fetchone():
            statements.append(f"DROP PUBLICATION {quote_ident(publication)};")
        return statements


def untrack(url: str, *, slot: str, publication: str) -> list[str]:
    """Remove the slot and the publication; returns what was executed.

    Raises OperatorError where the slot is being read or belongs to something else, or where we may not.
    """
    statements = untrack_sql(url, slot=slot, publication=publication)
    with closing(connect(url)) as sql, _or_by_the_owner(url, "upwell track --undo --dry-run"):
        for statement in statements:
            sql.execute(statement.encode())
    return statements


@contextmanager
def _or_by_the_owner(url: str, command: str) -> Iterator[None]:
    """What we may not do ourselves, somebody else can do who gets the command's output."""
    try:
        with translated(url):
            yield
    except OperatorError as error:
        remedy = f"Execute what `{command}` prints as the owner of the tables or as a superuser."
        raise OperatorError(error.message, code=error.code, remedy=remedy) from error


def _publication_sql(sql: psycopg.Connection[tuple[Any, ...]], catalog: Catalog, publication: str) -> Iterator[str]:
    name = quote_ident(publication)
    found = sql.execute("SELECT 1 FROM pg_publication WHERE pubname = %s", [publication]).fetchone()
    if found is None:
        yield create_publication_sql(catalog, publication)
        return
    try:
        check_publication(sql, catalog, publication)
    except OperatorError as wrong:
        yield wrong.remedy
    for table in catalog.selected():
        if table.published is None:
            yield f"ALTER PUBLICATION {name} ADD TABLE {table.only};"


def grants_sql(tables: Sequence[TableName], *, role: str, database: str) -> list[str]:
    """The rights that `publish` needs, and no more; executed once by an administrator of the source."""
    user = quote_ident(role)
    schemas = sorted({table.schema or DEFAULT_SCHEMA for table in tables})
    statements = [
        f"CREATE ROLE {user} LOGIN REPLICATION; -- then: \\password {role}",
        f"GRANT CONNECT ON DATABASE {quote_ident(database)} TO {user};",
    ]
    statements += [f"GRANT USAGE ON SCHEMA {quote_ident(schema)} TO {user};" for schema in schemas]
    statements += [
        f"GRANT SELECT ON TABLE {quote_ident(table.schema or DEFAULT_SCHEMA)}.{quote_ident(table.name)} TO {user};"
        for table in sorted(tables)
    ]
    return statements


def findings(url: str, *, tables: Sequence[TableSelection], slot: str, publication: str) -> list[Finding]:
    """All that `publish` will need of the source, good and bad. Never raises UpwellError."""
    found: list[Finding] = []
    try:
        with closing(connect(url)) as sql, translated(url):
            found.append(Finding("pass", "UW-PG-007", f"PostgreSQL at {address(url)} lets us in."))
            found.append(_encryption(sql))
            catalog = Catalog(sql, tables, publication)
            found.extend(_server(sql, catalog))
            found.append(_replication(url))
            found.append(Finding.of_check("UW-PG-030", "wal_level is logical.", lambda: check_wal_level(sql)))
            good = f"The publication {publication} publishes every kind of change."
            found.append(Finding.of_check("UW-PG-031", good, lambda: check_publication(sql, catalog, publication)))
            found.extend(_slot(sql, slot))
            found.append(_retention(sql))
            found.extend(_tables(sql, catalog, publication))
    except UpwellError as error:
        found.append(Finding.of_error(error))
    return found


def _encryption(sql: psycopg.Connection[tuple[Any, ...]]) -> Finding:
    """libpq encrypts by itself where the server can, and checks whose certificate it is only where it is told to."""
    host = sql.info.hostaddr
    if not host or host == "::1" or host.startswith("127."):
        return Finding("pass", "UW-PG-050", "The connection to the source does not leave this machine.")
    remedy = "Add ?sslmode=verify-full&sslrootcert=FILE to source.url."
    if not sql.pgconn.ssl_in_use:
        return Finding("warn", "UW-PG-050", "The connection to the source is not encrypted.", remedy)
    mode = next((option.val for option in sql.pgconn.info if option.keyword == b"sslmode"), None)
    if mode not in (b"verify-full", b"verify-ca"):
        sentence = "The connection to the source is encrypted, but whose certificate it is was not checked."
        return Finding("warn", "UW-PG-050", sentence, remedy)
    return Finding("pass", "UW-PG-050", "The connection to the source is encrypted, and its certificate was checked.")


def _replication(url: str) -> Finding:
    return Finding.of_check("UW-PG-004", "We may read the log.", lambda: ReplicationConnection(url).close())


def _server(sql: psycopg.Connection[tuple[Any, ...]], catalog: Catalog) -> Iterator[Finding]:
    version = catalog.server_version
    major = version // 10000
    if version < OLDEST:
        yield Finding("fail", "UW-PG-035", f"PostgreSQL {major} is too old.", "Upgrade it to 12 or newer.")
    elif version >= NEWEST_TESTED + 10000:
        yield Finding("warn", "UW-PG-035", f"PostgreSQL {major} is newer than what this release was tested with.")
    else:
        yield Finding("pass", "UW-PG-035", f"PostgreSQL {major} is supported.")
    (standby,) = sql.execute("SELECT pg_is_in_recovery()").fetchone() or (False,)
    if standby and version < STANDBY_DECODING:
        yield Finding(
            "fail",
            "UW-PG-036",
            f"The server is a standby, from which PostgreSQL {major} gives no changes.",
            "Name the primary in source.url.",
        )
    elif standby:
        yield Finding(
            "warn",
            "UW-PG-036",
            "The server is a standby: the publication must be made on its primary, and the primary's "
            "hot_standby_feedback decides how long the slot lives.",
            "On the standby: ALTER SYSTEM SET hot_standby_feedback = on;",
        )


def _slot(sql: psycopg.Connection[tuple[Any, ...]], name: str) -> Iterator[Finding]:
    try:
        slot = find_slot(sql, name)
    except OperatorError as error:
        yield Finding.of_error(error)
        return
    if slot is None:
        yield Finding("warn", "UW-PG-034", f"The replication slot {name} does not exist yet.", "Run: upwell track")
        yield _free_slots(sql)
    elif slot.invalid:
        yield Finding(
            "warn",
            "UW-PG-020",
            f"The server gave up the replication slot {name} ({slot.invalid}): the next start resyncs the tables.",
            "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; SELECT pg_reload_conf();",
        )
    elif slot.wal_status == "unreserved":
        yield Finding(
            "warn",
            "UW-PG-020",
            f"The server is about to give up the replication slot {name}.",
            "Start `upwell publish`, or raise max_slot_wal_keep_size.",
        )
    elif slot.active_pid is not None:
        yield Finding("pass", "UW-PG-034", f"The replication slot {name} is being read (process {slot.active_pid}).")
    else:
        yield Finding("pass", "UW-PG-034", f"The replication slot {name} is ready.")
    yield _free_senders(sql)


def _free_slots(sql: psycopg.Connection[tuple[Any, ...]]) -> Finding:
    query = "SELECT current_setting('max_replication_slots')::int - count(*) FROM pg_replication_slots"
    (free,) = sql.execute(query).fetchone() or (0,)
    if free > 0:
        return Finding("pass", "UW-PG-033", f"{free} replication slots are free.")
    remedy = "Drop a slot that nobody uses, or: ALTER SYSTEM SET max_replication_slots = 20; then restart the server."
    return Finding("fail", "UW-PG-033", "All replication slots are taken.", remedy)


def _free_senders(sql: psycopg.Connection[tuple[Any, ...]]) -> Finding:
    query = "SELECT current_setting('max_wal_senders')::int - count(*) FROM pg_stat_replication"
    (free,) = sql.execute(query).fetchone() or (0,)
    if free > 0:
        return Finding("pass", "UW-PG-037", f"{free} WAL senders are free.")
    remedy = "ALTER SYSTEM SET max_wal_senders = 20; then restart the server."
    return Finding("warn", "UW-PG-037", "All WAL senders are taken; one may be ours.", remedy)


def _retention(sql: psycopg.Connection[tuple[Any, ...]]) -> Finding:
    row = sql.execute("SELECT setting FROM pg_settings WHERE name = 'max_slot_wal_keep_size'").fetchone()
    if row is None or row[0] == "-1":
        return Finding(
            "warn",
            "UW-PG-038",
            "The log is kept without limit while nobody reads it: if the publisher is off for long, the server's disk "
            "may fill up.",
            "" if row is None else "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; SELECT pg_reload_conf();",
        )
    return Finding("pass", "UW-PG-038", f"The slot may retain {row[0]} MB of the log.")


def _tables(sql: psycopg.Connection[tuple[Any, ...]], catalog: Catalog, publication: str) -> Iterator[Finding]:
    good = "Every table that the configuration names is there."
    yield Finding.of_check("UW-PG-044", good, lambda: check_named_tables(catalog))
    for table in catalog.selected():
        yield from _table(sql, catalog, table, publication)


def _table(
    sql: psycopg.Connection[tuple[Any, ...]], catalog: Catalog, table: CatalogTable, publication: str
) -> Iterator[Finding]:
    name = f"{quote_ident(table.name.schema)}.{quote_ident(table.name.name)}"
    try:
        selection = catalog.selection(table.name)
        assert selection is not None, "it is a selected table"
        check_table(table, publication, explicit=True, server_version=catalog.server_version)
        if not has_wildcard(selection.pattern):
            check_columns(table, selection)
        schema = catalog.schema(table)
    except UpwellError as error:
        yield Finding.of_error(error)
        return
    query = "SELECT has_schema_privilege(%s, 'USAGE') AND has_table_privilege(%s::oid, 'SELECT')"
    (may_read,) = sql.execute(query, [table.name.schema, table.oid]).fetchone() or (False,)
    if not may_read:
        yield Finding("fail", "UW-PG-004", f"We may not read {table.name}.", _grant_remedy(sql, table))
        return
    yield Finding("pass", "UW-PG-040", f"{table.name} is ready; its key is {', '.join(schema.key)}.")
    yield from _advice(catalog, table, schema, name)


def _grant_remedy(sql: psycopg.Connection[tuple[Any, ...]], table: CatalogTable) -> str:
    (user,) = sql.execute("SELECT current_user").fetchone() or ("",)
    grants = grants_sql([table.name], role=user, database="")
    return " ".join(grants[2:])


def _advice(catalog: Catalog, table: CatalogTable, schema: TableSchema, name: str) -> Iterator[Finding]:
    """What is as it should be, and yet good to know."""
    names = {column.name for column in schema.columns}
    large = [column.name for column in table.columns if column.may_toast and column.name in names]
    if large and table.identity != "f":
        yield Finding(
            "pass",
            "UW-PG-047",
            f"{table.name}: large values of {', '.join(large)} that did not change are not in the log; such a change "
            f"travels as a row without them.",
            f"If readers of the stream need whole rows: ALTER TABLE {name} REPLICA IDENTITY FULL;",
        )
    selected = [column for column in table.columns if catalog.wants(table.name, column.name)]
    generated = [column.name for column in selected if column.generated and column.name not in names]
    if generated:
        yield Finding(
            "warn",
            "UW-PG-048",
            f"{table.name}: the log does not have the generated columns {', '.join(generated)}; they are left out.",
            "Compute them in the target, or publish stored ones (PostgreSQL 18: publish_generated_columns = stored).",
        )
    if table.partitioned:
        yield Finding(
            "warn",
            "UW-PG-049",
            f"{table.name} is partitioned: attaching, detaching or truncating one partition is not in the log.",
            f"Afterwards run: upwell resync {table.name}",
        )
