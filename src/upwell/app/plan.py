"""`upwell plan`: what would be read, written and created, and where a type can't hold what the source's can."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Final

import click
import orjson

from upwell.app import build, build_cloud
from upwell.app.logs import visible
from upwell.app.tables import show
from upwell.clock import SystemClock
from upwell.config import Pipeline
from upwell.items import KeyType, attribute_loss, attribute_type, key_loss
from upwell.mapping import check_targets
from upwell.model import Column, Kind, TableSchema
from upwell.tablepatterns import folded
from upwell.targets.postgres_tables import target_name
from upwell.targets.postgres_types import target_type

WIRE: Final = {
    Kind.BOOL: "true, false",
    Kind.INT: "number (text beyond 2^53)",
    Kind.DECIMAL: "digits as text",
    Kind.FLOAT: "number",
    Kind.TEXT: "text",
    Kind.BYTES: "base64",
    Kind.DATE: "ISO 8601 date",
    Kind.TIME: "ISO 8601 time",
    Kind.TIMESTAMP: "ISO 8601, no zone",
    Kind.TIMESTAMPTZ: "ISO 8601 with zone",
    Kind.UUID: "text",
    Kind.JSON: "JSON as text",
    Kind.OTHER: "the source's text",
}


def plan(pipeline: Pipeline) -> list[dict[str, Any]]:
    """One entry for each table. Raises UpwellError."""
    mapping = build.mapping(pipeline)
    with closing(build.source_parts(pipeline).open(SystemClock())) as source:
        tables = [(table, source.estimate(table.table)) for table in source.tables()]
    leaving = {table.table: mapping.schema(table) for table, _ in tables}
    names, keys = _targets(pipeline, list(leaving.values()))
    return [
        {
            "table": table.table,
            "rows": rows,
            "to": names[table.table],
            "key": list(leaving[table.table].key),
            "snapshot": mapping.snapshot(table.table),
            "filter": _filter(pipeline, table),
            "columns": list(_columns(pipeline, table, leaving[table.table], keys.get(table.table, {}))),
        }
        for table, rows in tables
    ]


def _filter(pipeline: Pipeline, table: TableSchema) -> str | None:
    rule = next((rule for rule in pipeline.rules if rule.matches(table.table, table.dialect)), None)
    return None if rule is None or rule.where is None else rule.where.text


def _targets(
    pipeline: Pipeline, schemas: Sequence[TableSchema]
) -> tuple[dict[str, str], dict[str, Mapping[str, KeyType]]]:
    """source table → where its rows end up; and in DynamoDB the attributes of its key, by name."""
    if pipeline.config.destination is None:
        return {schema.table: "(no destination)" for schema in schemas}, {}
    kind = pipeline.destination().kind
    if _as_items(pipeline):
        clock = SystemClock()
        direct = kind == "dynamodb"
        there = build.dynamodb_sink(pipeline, clock) if direct else build_cloud.item_sink(pipeline, clock)
        with closing(there) as sink:
            tables = {table: f"DynamoDB table {name}" for table, name in sink.learn(schemas).items()}
            return tables, {schema.table: dict(sink.form(schema).key_attributes) for schema in schemas}
    if kind == "kinesis":
        check_targets(schemas)
    if kind == "kinesis" and pipeline.config.subscriber is not None:
        return {schema.table: f"table {target_name(schema)}" for schema in schemas}, {}
    settings = pipeline.destination().kinesis
    to = "standard output" if settings is None else f"stream {settings.stream}"
    return {schema.table: to for schema in schemas}, {}


def _as_items(pipeline: Pipeline) -> bool:
    """Whether rows end up in DynamoDB, by whichever way."""
    if pipeline.destination().kind == "kinesis":
        return pipeline.config.subscriber is not None and pipeline.config.subscriber.kind == "dynamodb"
    return pipeline.destination().kind == "dynamodb"


def _columns(
    pipeline: Pipeline, source: TableSchema, leaving: TableSchema, key: Mapping[str, KeyType]
) -> Iterator[dict[str, Any]]:
    """The columns that leave; a mask or another name shows beside the source's."""
    rule = next((rule for rule in pipeline.rules if rule.matches(source.table, source.dialect)), None)
    renamed = {} if rule is None else {new: old for old, new in rule.rename.items()}
    masks = {} if rule is None else rule.mask
    types = {folded(column.name, source.dialect): column.type for column in source.columns}
    for column in leaving.columns:
        name = renamed.get(column.name, column.name)
        type_, warning = _target_type(pipeline, column, leaving, key)
        yield {
            "column": name,
            "type": types.get(folded(name, source.dialect), column.type),
            "wire": WIRE[column.kind],
            "to": column.name,
            "target_type": type_,
            "mask": masks.get(name),
            "warning": warning,
        }


def _target_type(
    pipeline: Pipeline, column: Column, schema: TableSchema, key: Mapping[str, KeyType]
) -> tuple[str | None, str | None]:
    destination = pipeline.config.destination
    if destination is not None and _as_items(pipeline):
        if column.name in key:
            return key[column.name], key_loss(column, key[column.name], schema.dialect)
        return attribute_type(column), attribute_loss(column, schema.dialect)
    if destination is not None and destination.kind == "kinesis" and pipeline.config.subscriber is not None:
        return target_type(column, schema.dialect)
    return None, None


def show_plan(tables: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Print it."""
    if as_json:
        click.echo(orjson.dumps(tables, option=orjson.OPT_INDENT_2))
        return
    for table in tables:
        rows = "" if table["rows"] is None else f", about {table['rows']} rows"
        click.echo(visible(f"{table['table']} → {table['to']}, key {', '.join(table['key'])}{rows}"))
        if table["filter"]:
            click.echo(f"  only rows where {table['filter']}")
        if not table["snapshot"]:
            click.echo("  only changes: the rows that exist already are not sent")
        show(
            ("  COLUMN", "TYPE", "ON THE WIRE", "BECOMES", "TYPE THERE", ""),
            [
                (
                    f"  {column['column']}",
                    column["type"],
                    f"{column['mask']} mask" if column["mask"] else column["wire"],
                    column["to"],
                    column["target_type"] or "-",
                    f"warning: {column['warning']}" if column["warning"] else "",
                )
                for column in table["columns"]
            ],
        )
        click.echo()
