"""`upwell resync`: ask the publisher, running or not, to read tables again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from upwell.app import build
from upwell.config import Pipeline
from upwell.errors import ConfigError
from upwell.model import TableName
from upwell.tablepatterns import folded

if TYPE_CHECKING:
    from upwell.state.sqlite import SqliteState

DEFAULT_SCHEMAS = {"postgresql": "public", "sqlite": "main"}


def known_tables(pipeline: Pipeline, kept: SqliteState) -> list[str]:
    """The tables that the publisher has, as it calls them. Raises ConfigError where none ever ran."""
    checkpoint = kept.load()
    if checkpoint is None:
        raise ConfigError(
            f"No publisher has run with the state file {pipeline.state} yet.",
            code="UW-CL-014",
            remedy="Run `upwell publish`: at its first start it reads all tables anyway.",
        )
    return sorted(checkpoint.tables)


def chosen(names: Sequence[str], known: Sequence[str], dialect: str) -> list[str]:
    """The known tables that were named; with or without the default schema, in any case where the source ignores it.

    Raises ConfigError, which names the known ones.
    """
    by_name = {_canonical(name, dialect): name for name in known}
    unknown = [name for name in names if _canonical(name, dialect) not in by_name]
    if unknown:
        raise ConfigError(
            f"No table of this pipeline is called {', '.join(unknown)}.",
            code="UW-CL-001",
            remedy=f"Its tables are {', '.join(known)}." if known else "It has no tables yet.",
        )
    return [by_name[_canonical(name, dialect)] for name in names]


def _canonical(name: str, dialect: str) -> str:
    try:
        table = TableName.parse(name)
    except ValueError:
        return name
    text = str(TableName(table.schema or DEFAULT_SCHEMAS[dialect], table.name))
    return folded(text, dialect)


def resync(pipeline: Pipeline, names: Sequence[str], reason: str) -> list[str]:
    """Put the requests; the tables concerned. Raises UpwellError."""
    kept = build.state(pipeline)
    try:
        known = known_tables(pipeline, kept)
        sent = [table for table in known if _snapshot(pipeline, table)]
        tables = chosen(names, known, pipeline.dialect) if names else sent
        never = [table for table in tables if table not in sent]
        if never:
            raise ConfigError(
                f"The existing rows of {', '.join(never)} are not sent, as `snapshot: false` says.",
                code="UW-CL-017",
                remedy="Set snapshot to true for them, start the publisher anew, then run this again.",
            )
        if names:
            for table in tables:
                kept.add_request(table, reason)
        else:
            kept.add_request(None, reason)
        return tables
    finally:
        kept.release()


def _snapshot(pipeline: Pipeline, table: str) -> bool:
    rule = pipeline.rule(table)
    return rule is None or rule.snapshot
