"""What of a pipeline decides its templates, read once from the configuration and, for DynamoDB, from the source."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from upwell.app import build, build_cloud
from upwell.clock import SystemClock
from upwell.config import Pipeline
from upwell.errors import ConfigError
from upwell.heartbeat import HEARTBEAT
from upwell.items import ItemForm, KeyAttribute, attribute_type, key_type
from upwell.mapping import TableRule
from upwell.model import TableName, TableSchema
from upwell.settings import ApiTableSettings
from upwell.state.dynamodb_control import KEY as CONTROL_KEY
from upwell.targets.dynamodb import DEAD_LETTERS, LANES
from upwell.targets.dynamodb import KEY as LANES_KEY
from upwell.targets.dynamodb import LETTER_KEY as LETTERS_KEY

if TYPE_CHECKING:
    from upwell.sinks.dynamodb import DynamoDbSink

Authorization = Literal["jwt", "iam", "api_keys"]


@dataclass(frozen=True)
class Index:
    """A global secondary index."""

    name: str
    key: tuple[KeyAttribute, ...]


@dataclass(frozen=True)
class Table:
    """A table of DynamoDB."""

    name: str
    key: tuple[KeyAttribute, ...]
    indexes: tuple[Index, ...] = ()
    leads: tuple[str, ...] = ()  # what the partition keys of our items begin with, where others may be in the table
    exposed: bool = False  # the read API answers from it


@dataclass(frozen=True)
class ClaimPlace:
    """Where rows go that are too large."""

    bucket: str
    prefix: str  # the pipeline's own part
    kms_key: str | None = None


@dataclass(frozen=True)
class Api:
    """The read API."""

    authorization: Authorization
    tables: tuple[str, ...]  # as in the URL
    keys: tuple[str, ...] = ()  # names of its API keys
    requests_per_second: int = 50  # of one caller


@dataclass(frozen=True)
class Blueprint:
    """A pipeline, as far as templates are concerned."""

    pipeline: str
    tables: tuple[Table, ...] = ()
    heartbeat: Table | None = None  # where the pipeline's heartbeat arrives, in DynamoDB
    create_tables: bool = False
    removes: bool = False  # deleted rows' items go at once, instead of expiring
    stream: str | None = None
    lanes: Table | None = None  # what a subscriber to DynamoDB keeps beside the rows
    letters: Table | None = None
    control: Table | None = None
    claims: ClaimPlace | None = None
    api: Api | None = None

    @property
    def written(self) -> tuple[Table, ...]:
        """All tables that the pipeline's rows lie in."""
        return (*self.tables, self.heartbeat) if self.heartbeat else self.tables

    @property
    def kept(self) -> tuple[Table, ...]:
        """All other tables of the pipeline."""
        return tuple(table for table in (self.lanes, self.letters, self.control) if table is not None)


def of_stream(pipeline: Pipeline) -> Blueprint:
    """Of a pipeline to Kinesis; asks nothing outside the configuration. Raises ConfigError."""
    settings = pipeline.destination().kinesis
    if settings is None:
        raise _wrong_destination(pipeline, "kinesis")
    control = None if settings.control_table is None else Table(settings.control_table, CONTROL_KEY)
    return Blueprint(
        pipeline.name, stream=settings.stream, control=control, claims=_claims(pipeline), api=_api(pipeline)
    )


def of_stream_to_tables(pipeline: Pipeline) -> Blueprint:
    """Of a pipeline by Kinesis to DynamoDB; asks the source for its tables. Raises UpwellError."""
    if pipeline.subscriber().kind != "dynamodb":
        raise _wrong_destination(pipeline, "dynamodb")
    prefix = build_cloud.prefix(pipeline)
    with closing(build_cloud.item_sink(pipeline, SystemClock())) as sink:
        made, heartbeat = _tables(pipeline, sink)
    return replace(
        of_stream(pipeline),
        tables=made,
        heartbeat=heartbeat,
        create_tables=pipeline.subscriber().create_tables,
        lanes=Table(f"{prefix}{LANES}", LANES_KEY),
        letters=Table(f"{prefix}{DEAD_LETTERS}", LETTERS_KEY),
    )


def of_tables(pipeline: Pipeline) -> Blueprint:
    """Of a pipeline to DynamoDB; asks the source for its tables. Raises UpwellError."""
    settings = pipeline.destination().dynamodb
    if settings is None:
        raise _wrong_destination(pipeline, "dynamodb")
    with closing(build.dynamodb_sink(pipeline, SystemClock())) as sink:
        made, heartbeat = _tables(pipeline, sink)
    return Blueprint(
        pipeline.name,
        tables=made,
        heartbeat=heartbeat,
        create_tables=settings.create_tables,
        removes=settings.deletes == "remove",
        claims=_claims(pipeline),
        api=_api(pipeline),
    )


def _schemas(pipeline: Pipeline) -> list[TableSchema]:
    """The source's tables, as they leave."""
    mapping = build.mapping(pipeline)
    with closing(build.source_parts(pipeline).open(SystemClock())) as source:
        return [mapping.schema(table) for table in source.tables()]


def _tables(pipeline: Pipeline, sink: DynamoDbSink) -> tuple[tuple[Table, ...], Table | None]:
    """Those of the source's tables, and the heartbeat's."""
    schemas, beats = _schemas(pipeline), [HEARTBEAT] if pipeline.config.api else []
    _check_published(pipeline, schemas)
    sink.learn([*schemas, *beats])
    made = _merged(_table(pipeline, sink.form(schema), schema) for schema in schemas)
    form = sink.form(HEARTBEAT) if beats else None
    return made, None if form is None else Table(form.table, form.key_attributes, exposed=True)


def _check_published(pipeline: Pipeline, schemas: Sequence[TableSchema]) -> None:
    """Raises ConfigError where nothing is published, or not all that the API shows."""
    missing = [each.table for each in _exposed(pipeline) if not any(_is(each.table, schema) for schema in schemas)]
    if schemas and not missing:
        return
    what = f"{', '.join(missing)} of api.tables" if missing else "any of the configured tables"
    raise ConfigError(
        f"The source does not publish {what}.",
        code="UW-CS-007",
        remedy="upwell track makes it publish what `tables` names; upwell plan shows what that comes to.",
    )


def _table(pipeline: Pipeline, form: ItemForm, schema: TableSchema) -> Table:
    exposed = [settings for settings in _exposed(pipeline) if _is(settings.table, schema)]
    indexes = [
        Index(name, tuple(index_key(schema, column) for column in (index.partition_key, index.sort_key) if column))
        for settings in exposed
        for name, index in settings.indexes.items()
    ]
    return Table(form.table, form.key_attributes, tuple(indexes), (form.lead,) if form.shared else (), bool(exposed))


def _merged(tables: Iterable[Table]) -> tuple[Table, ...]:
    """Several source tables may lie in one."""
    merged: dict[str, Table] = {}
    for table in tables:
        before = merged.get(table.name)
        merged[table.name] = table if before is None else _both(before, table)
    return tuple(merged.values())


def _both(one: Table, other: Table) -> Table:
    return replace(
        one,
        indexes=tuple(dict.fromkeys((*one.indexes, *other.indexes))),
        leads=(*one.leads, *other.leads),
        exposed=one.exposed or other.exposed,
    )


def index_key(schema: TableSchema, name: str) -> KeyAttribute:
    """A column as part of an index's key. Raises ConfigError where it can't be."""
    column = next((column for column in schema.columns if column.name == name), None)
    if column is None:
        raise _no_index(schema.table, name, "the table has no such column, after renaming")
    if name in schema.key[:2] and len(schema.key) <= 2:
        return KeyAttribute(name, key_type(column))
    type_ = attribute_type(column)
    if type_ not in ("S", "N", "B"):
        raise _no_index(schema.table, name, f"{column.kind} becomes {type_}, by which DynamoDB does not sort")
    return KeyAttribute(name, type_)


def _no_index(table: str, column: str, why: str) -> ConfigError:
    return ConfigError(
        f"{column} of {table} can't be part of an index in DynamoDB: {why}.",
        code="UW-CS-001",
        remedy="Choose another column under api.tables.NAME.indexes.",
    )


def _is(name: str, schema: TableSchema) -> bool:
    """Whether the API's table is this one; without a schema, the one in the source's default schema."""
    return TableRule(TableName.parse(name)).matches(schema.table, schema.dialect)


def _exposed(pipeline: Pipeline) -> Sequence[ApiTableSettings]:
    return [] if pipeline.config.api is None else list(pipeline.config.api.tables.values())


def _api(pipeline: Pipeline) -> Api | None:
    settings = pipeline.config.api
    if settings is None:
        return None
    authorization = settings.authorization
    kind: Authorization = "jwt" if authorization.jwt else "iam" if authorization.iam else "api_keys"
    return Api(
        kind,
        tuple(settings.tables),
        keys=tuple(authorization.api_keys or ()),
        requests_per_second=int(settings.limits.requests_per_second),
    )


def _claims(pipeline: Pipeline) -> ClaimPlace | None:
    destination = pipeline.destination()
    settings = destination.kinesis or destination.dynamodb
    if settings is None or settings.claim_check is None:
        return None
    check = settings.claim_check
    return ClaimPlace(check.bucket, f"{check.prefix}{pipeline.name}/", check.kms_key)


def _wrong_destination(pipeline: Pipeline, kind: str) -> ConfigError:
    return ConfigError(
        f"{pipeline.file} has no `destination.{kind}`, for which this stack is.",
        code="UW-CF-012",
        remedy="upwell stack serverless is for dynamodb, upwell stack relational for kinesis.",
    )
