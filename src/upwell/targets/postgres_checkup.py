# ruff: noqa: S608 - names are quoted by ident(), texts by literal()
"""What `upwell doctor` says of a PostgreSQL target: all that `subscribe` will need, and what may surprise."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from upwell.errors import OperatorError, UpwellError
from upwell.model import Finding, TableSchema
from upwell.targets import postgres_own as own
from upwell.targets.postgres_session import Session, ident
from upwell.targets.postgres_tables import (
    TargetTable,
    add_statement,
    check_indexes,
    create_statements,
    read_table,
    target_name,
)
from upwell.targets.postgres_types import target_type


def findings(
    session: Session, schemas: Sequence[TableSchema], *, create_tables: bool, schema_changes: str
) -> Iterator[Finding]:
    """Changes nothing. `session` is a connection on which each statement is a transaction."""
    version = session.server_version
    yield Finding(
        "pass", "UW-PT-100", f"The target answers: PostgreSQL {version // 10000}, as the role {session.user}."
    )
    yield _encryption(session)
    yield _writable(session)
    yield _temporary(session)
    yield from _own_schema(session)
    for schema in schemas:
        try:
            yield from _table(session, schema, create_tables, schema_changes)
        except UpwellError as error:
            yield Finding.of_error(error)


def _encryption(session: Session) -> Finding:
    if session.local:
        return Finding("pass", "UW-PT-101", "The connection to the target does not leave this machine.")
    remedy = "Add ?sslmode=verify-full&sslrootcert=FILE to subscriber.target."
    if not session.encrypted:
        return Finding("warn", "UW-PT-101", "The connection to the target is not encrypted.", remedy)
    if not session.verified:
        sentence = "The connection to the target is encrypted, but whose certificate it is was not checked."
        return Finding("warn", "UW-PT-101", sentence, remedy)
    return Finding("pass", "UW-PT-101", "The connection to the target is encrypted, and its certificate was checked.")


def _writable(session: Session) -> Finding:
    if session.run("SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::bool")[0][0]:
        sentence = "The target server only reads: it is a standby, or transactions are read-only there."
        return Finding("fail", "UW-PT-102", sentence, "Use the cluster's writer endpoint in subscriber.target.")
    return Finding("pass", "UW-PT-102", "The target server takes writes.")


def _temporary(session: Session) -> Finding:
    database, allowed = session.run(
        "SELECT current_database()::text, has_database_privilege(current_database(), 'TEMPORARY')"
    )[0]
    if allowed:
        return Finding("pass", "UW-PT-103", "The role may make temporary tables, through which rows are written.")
    remedy = f"GRANT TEMPORARY ON DATABASE {ident(database)} TO {ident(session.user)};"
    return Finding("fail", "UW-PT-103", "The role may not make temporary tables.", remedy)


def _own_schema(session: Session) -> Iterator[Finding]:
    try:
        there = own.installed(session)
    except UpwellError as error:
        yield Finding.of_error(error)
        return
    if there:
        lacking = session.run(
            "SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = 'upwell' AND c.relkind = 'r' AND NOT (has_table_privilege(c.oid, 'SELECT')"
            " AND has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE')"
            " AND has_table_privilege(c.oid, 'DELETE')) LIMIT 1"
        )
        if lacking:
            sentence = "The role may not use all tables of the schema upwell."
            yield Finding("fail", "UW-PT-104", sentence, own.rights(session.user))
        else:
            yield Finding("pass", "UW-PT-104", "The schema upwell, for watermarks and dead letters, is there.")
    elif session.run("SELECT has_database_privilege(current_database(), 'CREATE')")[0][0]:
        yield Finding("pass", "UW-PT-104", "The schema upwell is not there yet; the role may create it.")
    else:
        sentence = "The role may not create the schema upwell, where upwell keeps its watermarks."
        yield Finding("fail", "UW-PT-104", sentence, f"CREATE SCHEMA upwell AUTHORIZATION {ident(session.user)};")


def _table(session: Session, schema: TableSchema, create_tables: bool, schema_changes: str) -> Iterator[Finding]:
    name = target_name(schema)
    table = read_table(session, name)
    if table is None:
        statements = "; ".join(create_statements(session, schema, name)) + ";"
        if create_tables:
            yield Finding("pass", "UW-PT-105", f"{name} is not in the target yet; it will be created.")
        else:
            yield Finding("fail", "UW-PT-033", f"{name} is not in the target, and create_tables is off.", statements)
        return
    yield Finding("pass", "UW-PT-105", f"{name} is in the target.")
    yield from _rights(session, table)
    yield from _columns(session, schema, table, schema_changes)
    try:
        check_indexes(schema, table)
    except OperatorError as error:
        yield Finding.of_error(error)
    yield from _constraints(session, schema, table)
    yield from _strangers(session, schema, table)


def _rights(session: Session, table: TargetTable) -> Iterator[Finding]:
    rights = ("SELECT", "INSERT", "UPDATE", "DELETE")
    held = session.run("SELECT " + ", ".join(f"has_table_privilege({table.quoted}, '{right}')" for right in rights))[0]
    lacking = ", ".join(right for right, has in zip(rights, held, strict=True) if not has)
    if lacking:
        remedy = f"GRANT {lacking} ON {table.sql} TO {ident(session.user)};"
        yield Finding("fail", "UW-PT-106", f"The role lacks {lacking} on {table.name}.", remedy)


def _columns(session: Session, schema: TableSchema, table: TargetTable, schema_changes: str) -> Iterator[Finding]:
    missing = [index for index, column in enumerate(schema.columns) if column.name not in table.columns]
    if missing:
        names = ", ".join(schema.columns[index].name for index in missing)
        statement = add_statement(session, schema, table.name, missing) + ";"
        if schema_changes == "apply":
            yield Finding("pass", "UW-PT-107", f"{table.name} lacks columns that will be added: {names}.")
        else:
            yield Finding(
                "fail", "UW-PT-034", f"{table.name} lacks columns, and schema_changes is halt: {names}.", statement
            )
    known = {column.name for column in schema.columns}
    for column in table.columns.values():
        if column.name not in known and column.not_null and column.default is None:
            yield Finding(
                "fail",
                "UW-PT-108",
                f"{table.name}.{column.name} must not be null, and the source has no such column.",
                f"ALTER TABLE {table.sql} ALTER COLUMN {ident(column.name)} DROP NOT NULL;",
            )
    for wanted in schema.columns:
        if wanted.name in table.columns:
            yield from _type(schema, table, wanted.name)


def _type(schema: TableSchema, table: TargetTable, name: str) -> Iterator[Finding]:
    column = next(each for each in schema.columns if each.name == name)
    wanted, _ = target_type(column, schema.dialect)
    actual = table.columns[name]
    if actual.generated:
        yield Finding("pass", "UW-PT-109", f"{table.name}.{name} is generated by the target and not written.")
    elif _bare(wanted) != _bare(actual.type) and (wanted, actual.type) != ("text", "character varying"):
        yield Finding(
            "warn",
            "UW-PT-109",
            f"{table.name}.{name} is {actual.type}, where the source's {column.type} would be {wanted}: what does not"
            " fit becomes a dead letter.",
        )


def _bare(type_: str) -> str:
    return re.sub(r"\(.*?\)", "", type_)


def _constraints(session: Session, schema: TableSchema, table: TargetTable) -> Iterator[Finding]:
    rows = session.run(
        "SELECT conname::text, conrelid::regclass::text FROM pg_catalog.pg_constraint WHERE contype = 'f'"
        f" AND {table.quoted}::regclass IN (conrelid, confrelid) AND conparentid = 0 ORDER BY 1"
    )
    for constraint, owner in rows:
        yield Finding(
            "fail",
            "UW-PT-110",
            f"The foreign key {constraint} of {owner} can refuse rows of {table.name}: changes arrive in order per row,"
            " not per transaction.",
            f"ALTER TABLE {owner} DROP CONSTRAINT {ident(constraint)};",
        )
    others = [index.name for index in table.uniques if set(index.columns) != set(schema.key)]
    if others:
        names = ", ".join(others)
        yield Finding(
            "pass",
            "UW-PT-111",
            f"{table.name} has unique indexes besides its key ({names}): a row may be absent for as long as another one"
            " still holds its value.",
        )


def _strangers(session: Session, schema: TableSchema, table: TargetTable) -> Iterator[Finding]:
    if own.readable(session) and session.query('SELECT 1 FROM upwell.resync WHERE "table" = %s', [schema.table]):
        return
    if session.run(f"SELECT has_table_privilege({table.quoted}, 'SELECT')")[0][0] and session.run(
        f"SELECT 1 FROM {table.sql} LIMIT 1"
    ):
        yield Finding(
            "warn",
            "UW-PT-112",
            f"{table.name} holds rows that upwell did not write: the first snapshot removes those that the source does"
            " not have.",
            "Look whether anything else writes there; give the pipeline a table of its own with `to:` if so.",
        )
