"""The part of the composition root that the read API loads, on Lambda and on a machine of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from upwell.app import build_cloud
from upwell.cloud.authorization import ApiKeyAuthorizer, Authorizer, IamAuthorizer, JwtAuthorizer
from upwell.cloud.guard import Guard
from upwell.cloud.jwks import Jwks, fetch_from
from upwell.cloud.read_api import Limits, create_app
from upwell.config import Pipeline
from upwell.errors import ConfigError
from upwell.exposure import ExposedTable, Wanted, exposed
from upwell.heartbeat import HEARTBEAT
from upwell.items import KeyTemplates, table_names
from upwell.model import TableName
from upwell.ports import Clock, Reader, ReadIndex
from upwell.readers.dynamodb import DynamoDbReader, ItemPlace
from upwell.readers.postgres import PostgresReader
from upwell.settings import ApiKeySettings, ApiTableSettings
from upwell.targets.postgres_tables import target_name

FILE_BYTES_MAX: Final = 16 * 1024 * 1024


def store(pipeline: Pipeline) -> Literal["postgresql", "dynamodb"]:
    """Where the API reads. Raises ConfigError."""
    api, destination = pipeline.api(), pipeline.config.destination
    if api.database is not None:
        return "postgresql"
    if destination is not None and destination.dynamodb is not None:
        return "dynamodb"
    return "dynamodb" if pipeline.subscriber().kind == "dynamodb" else "postgresql"


def wanted(pipeline: Pipeline) -> dict[str, Wanted]:
    """What the configuration exposes, by the name in the URL."""
    return {name: _wanted(table) for name, table in pipeline.api().tables.items()}


def _wanted(table: ApiTableSettings) -> Wanted:
    indexes = {name: ReadIndex(name, index.partition_key, index.sort_key) for name, index in table.indexes.items()}
    return Wanted(table.table, table.columns, table.tenant, indexes)


def schema_file(pipeline: Pipeline) -> Path:
    """A relative path starts at the configuration's folder."""
    return pipeline.file.absolute().parent / pipeline.api().schema_file


def tables(pipeline: Pipeline) -> list[ExposedTable]:
    """The exposed tables, as the schema file has them. Raises ConfigError."""
    file = schema_file(pipeline)
    try:
        with file.open("rb") as opened:
            content = opened.read(FILE_BYTES_MAX)
    except OSError as error:
        raise ConfigError(
            f"The API's schema file {file} cannot be read: {error.strerror}.",
            code="UW-AP-001",
            remedy="Write it where the source can be reached: upwell api --learn",
        ) from error
    return exposed(content, wanted(pipeline), str(file))


def reader(pipeline: Pipeline, shown: list[ExposedTable]) -> Reader:
    """Where the exposed tables are read; connects to nothing yet. Raises ConfigError or OperatorError."""
    if store(pipeline) == "dynamodb":
        return _items(pipeline, shown)
    database, subscriber = pipeline.api().database, pipeline.config.subscriber
    names = {table.schema.table: target_name(table.schema) for table in shown}
    names[HEARTBEAT.table] = TableName.parse(HEARTBEAT.table)
    if database is not None:
        return PostgresReader(database.get_secret_value(), names)
    assert subscriber is not None
    password = build_cloud.tokens(pipeline) if subscriber.iam_auth else None
    return PostgresReader(subscriber.target.get_secret_value(), names, password=password)


def _items(pipeline: Pipeline, shown: list[ExposedTable]) -> DynamoDbReader:
    settings = pipeline.destination().dynamodb
    template = build_cloud.templates(pipeline)
    prefix = build_cloud.prefix(pipeline) if settings is None else settings.table_prefix
    places = {HEARTBEAT.table: ItemPlace(table_names([HEARTBEAT], prefix)[HEARTBEAT.table])}
    for table in shown:
        templates = template(table.schema)
        places[table.schema.table] = ItemPlace(_item_table(table, templates, prefix), templates)
    claims = build_cloud.claims(pipeline, build_cloud.bucket(pipeline))
    service = build_cloud.beside_the_stream(pipeline) if settings is None else build_cloud.aws_service(pipeline)
    assert service is not None
    return DynamoDbReader(service, places, claims)


def _item_table(table: ExposedTable, templates: KeyTemplates | None, prefix: str) -> str:
    if templates is not None:
        return templates.table
    if table.items is None:
        raise ConfigError(
            f"The API's schema file does not say in which DynamoDB table {table.name} is.",
            code="UW-AP-001",
            remedy="Write it anew where the source can be reached: upwell api --learn",
        )
    return prefix + table.items


def authorizer(pipeline: Pipeline, clock: Clock) -> Authorizer:
    """How callers show who they are; fetches nothing yet. Raises ConfigError where no caller could have a tenant, or
    where two could not be told apart.
    """
    settings = pipeline.api().authorization
    if settings.jwt is not None:
        jwt = settings.jwt
        return JwtAuthorizer(jwt.issuer, jwt.audience, jwt.tenant_claim, Jwks(fetch_from(jwt.jwks_url), clock))
    tenants: Mapping[str, str | None]
    if settings.iam is not None:
        tenants = settings.iam.tenants
        made: Authorizer = IamAuthorizer(tenants)
    else:
        keys = settings.api_keys or {}
        _check_told_apart(keys)
        tenants = {name: key.tenant for name, key in keys.items()}
        made = ApiKeyAuthorizer({name: (key.sha256, key.tenant) for name, key in keys.items()})
    guarded = [name for name, table in pipeline.api().tables.items() if table.tenant is not None]
    if guarded and not any(tenants.values()):
        raise ConfigError(
            f"api.tables.{guarded[0]} is for callers of a tenant, and api.authorization gives none to anybody.",
            code="UW-AP-003",
            remedy="Give each caller its `tenant`.",
        )
    return made


def _check_told_apart(keys: Mapping[str, ApiKeySettings]) -> None:
    names: dict[str, str] = {}
    for name, key in keys.items():
        other = names.setdefault(key.sha256, name)
        if other != name:
            raise ConfigError(
                f"In api.authorization.api_keys, {other} and {name} are the same key.",
                code="UW-AP-003",
                remedy="Give each caller a key of its own.",
            )


def app(pipeline: Pipeline, clock: Clock, answer_bytes_max: int | None = None) -> Guard:
    """The configured read API; connects to nothing yet. Raises ConfigError or OperatorError."""
    settings, shown = pipeline.api(), tables(pipeline)
    return create_app(
        pipeline.name,
        shown,
        reader(pipeline, shown),
        authorizer(pipeline, clock),
        cursor_key=settings.cursor_key.get_secret_value(),
        limits=Limits(settings.limits.page, settings.limits.requests_per_second, answer_bytes_max),
        clock=clock,
    )
