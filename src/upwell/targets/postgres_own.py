# ruff: noqa: S608 - names are quoted by ident(), texts by literal(), rows travel by COPY
"""The product's own tables in a PostgreSQL target: schema upwell, made and checked at each new connection."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, Final

from upwell.errors import OperatorError
from upwell.model import DeadLetter, TableName
from upwell.targets.postgres_session import Session, ident

VERSION: Final = 1
_LOCK: Final = 0x7570_7765  # "upwe": the class of our advisory locks
_TABLE_LOCK: Final = _LOCK + 1  # the class of those on the target's tables

# `lane` rows are updated in every transaction: room on the page keeps such updates out of the indexes.
_TABLES: Final = """
CREATE TABLE upwell.version (version int PRIMARY KEY);
CREATE TABLE upwell.watermark (
  pipeline text, lane int, version bytea NOT NULL, term bigint NOT NULL, seq bigint NOT NULL,
  resyncs jsonb NOT NULL, PRIMARY KEY (pipeline, lane)
) WITH (fillfactor = 50);
CREATE TABLE upwell.resync (
  pipeline text, "table" text, resync bigint NOT NULL, active boolean NOT NULL, closed int[] NOT NULL,
  PRIMARY KEY (pipeline, "table")
);
CREATE TABLE upwell.source_table (
  id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, pipeline text NOT NULL, "table" text NOT NULL,
  UNIQUE (pipeline, "table")
);
CREATE TABLE upwell.note (source_table int, resync bigint, key text, PRIMARY KEY (source_table, resync, key));
CREATE TABLE upwell.evicted (target text, key text, row jsonb NOT NULL, PRIMARY KEY (target, key));
CREATE TABLE upwell.dead_letter (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, pipeline text NOT NULL, "table" text NOT NULL,
  key text NOT NULL, version text NOT NULL, reason text NOT NULL, time text NOT NULL, payload bytea NOT NULL,
  identity bytea NOT NULL UNIQUE
);
CREATE TABLE upwell.repair_request (
  pipeline text, id text, "table" text, reason text NOT NULL, handed_over boolean NOT NULL DEFAULT false,
  PRIMARY KEY (pipeline, id)
);
CREATE TABLE upwell.shard (stream text, shard text, sequence text, PRIMARY KEY (stream, shard));
"""


def install(session: Session) -> None:
    """Create what is missing; raises OperatorError where the role may not, or a newer upwell was here."""
    if installed(session):
        return
    try:
        session.run(f"BEGIN; SELECT pg_advisory_xact_lock({_LOCK}, 0)")
        if not installed(session):
            _create_schema(session)
            session.run(f"{_TABLES}; INSERT INTO upwell.version VALUES ({VERSION})")
        session.run("COMMIT")
    except BaseException:
        session.close()  # and with it the transaction
        raise


def _create_schema(session: Session) -> None:
    # IF NOT EXISTS would ask for the right to create even where a person has made the schema for us.
    if session.run("SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = 'upwell'"):
        return
    try:
        session.run("CREATE SCHEMA upwell")
    except OperatorError as error:
        raise OperatorError(
            "The target role may not create the schema upwell, where upwell keeps its watermarks.",
            code="UW-PT-028",
            remedy=f"CREATE SCHEMA upwell AUTHORIZATION {ident(session.user)};",
        ) from error


def installed(session: Session) -> bool:
    """Whether our tables are there; raises OperatorError where they can't be read or are too new."""
    exists = (
        "SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = 'upwell' AND c.relname = 'version'"
    )
    if not session.run(exists):
        return False
    try:
        version = session.run("SELECT max(version) FROM upwell.version")[0][0]
    except OperatorError as error:
        raise OperatorError(
            "The target role may not use the schema upwell.", code="UW-PT-029", remedy=rights(session.user)
        ) from error
    if version is not None and version > VERSION:
        raise OperatorError(
            f"The schema upwell in the target was made by a newer upwell (version {version}, here {VERSION}).",
            code="UW-PT-032",
            remedy="Install the newer upwell here too.",
        )
    return version is not None


def readable(session: Session) -> bool:
    """Whether our tables are there and may be read; raises nothing but what the environment does."""
    try:
        return installed(session)
    except OperatorError:
        return False


def rights(user: str) -> str:
    """What a role needs to use tables of upwell that another role made."""
    role = ident(user)
    return (
        f"GRANT USAGE ON SCHEMA upwell TO {role};"
        f" GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA upwell TO {role};"
    )


def lock_statement(kind: str, number: int) -> str:
    """An advisory lock until the transaction ends; `kind` is empty or `_shared`."""
    return f"SELECT pg_advisory_xact_lock{kind}({_LOCK}, {number})"


def table_lock_statement(table: TableName, *, alone: bool, wait: bool = True) -> str:
    """The lock of a table of the target. Without `wait` the statement answers whether it was given."""
    function = f"pg_{'' if wait else 'try_'}advisory_xact_lock{'' if alone else '_shared'}"
    return f"SELECT {function}({_TABLE_LOCK}, {zlib.crc32(str(table).encode()) - 2**31})"


def status(session: Session, pipeline: str) -> dict[str, Any]:
    """What our tables say of a pipeline; keys are documented in docs/operations.md."""
    lanes, newest = session.query(
        "SELECT count(*), max(encode(version, 'hex')) FROM upwell.watermark WHERE pipeline = %s", [pipeline]
    )[0]
    resyncs = session.query(
        'SELECT "table", resync, active, cardinality(closed) FROM upwell.resync WHERE pipeline = %s ORDER BY "table"',
        [pipeline],
    )
    letters = session.query(
        'SELECT "table", count(*) FROM upwell.dead_letter WHERE pipeline = %s GROUP BY "table"', [pipeline]
    )
    repairs = session.query(
        "SELECT id, reason, handed_over FROM upwell.repair_request WHERE pipeline = %s ORDER BY id", [pipeline]
    )
    evicted = session.run("SELECT target, count(*) FROM upwell.evicted GROUP BY target")
    return {
        "lanes": lanes,
        "newest_version": newest,
        "resyncs": {
            table: {"resync": resync, "active": active, "lanes_closed": closed}
            for table, resync, active, closed in resyncs
        },
        "dead_letters": dict(letters),
        "evicted": dict(evicted),  # by the target's table: rows that wait for another's unique value to be free
        "repairs_pending": sum(not handed_over for *_, handed_over in repairs),
        "repairs": {id_: {"reason": reason, "handed_over": over} for id_, reason, over in repairs},
    }


def keeping_letters(pipeline: str, letters: Sequence[DeadLetter]) -> tuple[str, list[Any]]:
    """The statement that keeps dead letters, equal ones once, and its parameters. At least one."""
    kept: dict[bytes, list[Any]] = {}
    for letter in letters:
        identity = letter.identity(pipeline)
        texts = [storable(text) for text in (letter.table, letter.key, letter.version, letter.reason, letter.time)]
        kept[identity] = [*texts, letter.payload, identity]
    return (
        'INSERT INTO upwell.dead_letter (pipeline, "table", key, version, reason, time, payload, identity)'
        " SELECT %s, n.* FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::bytea[],"
        " %s::bytea[]) AS n ON CONFLICT (identity) DO UPDATE SET reason = EXCLUDED.reason",
        [pipeline, *(list(values) for values in zip(*kept.values(), strict=True))],
    )


def storable(text: str) -> str:
    """PostgreSQL's text has no NUL."""
    return text.replace("\0", "\\u0000")
