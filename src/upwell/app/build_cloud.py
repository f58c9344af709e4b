"""The part of the composition root that programs in AWS load: what reads a stream and applies it, and the way to AWS.

No source, no publisher, no command line: a function that starts has none of them to import.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from upwell.aws import AwsService, DatabaseTokens
from upwell.claims import Claims
from upwell.config import Pipeline
from upwell.errors import ConfigError
from upwell.heartbeat import HEARTBEAT_TABLE
from upwell.items import KeyTemplates
from upwell.model import DeadLetter, TableSchema
from upwell.pipeline.applier import Applier
from upwell.pipeline.incoming import Applied
from upwell.pipeline.item_applier import ItemApplier
from upwell.ports import Clock, ControlChannel, Request, ShardCheckpoints
from upwell.s3 import S3Bucket
from upwell.sinks.dynamodb import DynamoDbSink
from upwell.state.dynamodb_control import DynamoDbControl
from upwell.targets.dynamodb import DynamoDbLanes
from upwell.targets.postgres import PostgresTarget
from upwell.targets.postgres_shards import PostgresShardCheckpoints

# --- AWS ----------------------------------------------------------------------------------------------------------


def aws_service(pipeline: Pipeline) -> AwsService | None:
    """The AWS service of the destination; None where it is none of AWS's. Raises ConfigError or OperatorError."""
    destination = pipeline.destination()
    settings = destination.kinesis or destination.dynamodb
    if settings is None:
        return None
    service = "kinesis" if destination.kinesis else "dynamodb"
    return _aws_service(pipeline, service, settings.region, settings.endpoint_url)


def _aws_service(pipeline: Pipeline, service: str, region: str | None, endpoint_url: str | None) -> AwsService:
    proxy, ca_bundle = _way(pipeline)
    return AwsService(service, region, endpoint_url=endpoint_url, proxy=proxy, ca_bundle=ca_bundle)


def _way(pipeline: Pipeline) -> tuple[str | None, str | None]:
    """How to come to AWS from here: the proxy, the file of certificates."""
    proxy, ca_bundle = pipeline.destination().proxy, pipeline.destination().ca_bundle
    return (
        None if proxy is None else proxy.get_secret_value(),
        None if ca_bundle is None else str(pipeline.file.absolute().parent / ca_bundle),
    )


def bucket(pipeline: Pipeline) -> S3Bucket | None:
    """The bucket of the claim check; None where none is configured. Raises ConfigError or OperatorError."""
    destination = pipeline.destination()
    settings = destination.kinesis or destination.dynamodb
    if settings is None or settings.claim_check is None:
        return None
    check = settings.claim_check
    proxy, ca_bundle = _way(pipeline)
    return S3Bucket(
        check.bucket,
        settings.region,
        kms_key=check.kms_key,
        endpoint_url=check.endpoint_url,
        proxy=proxy,
        ca_bundle=ca_bundle,
    )


def claims(pipeline: Pipeline, store: S3Bucket | None) -> Claims | None:
    """The pipeline's part of the bucket."""
    destination = pipeline.destination()
    settings = destination.kinesis or destination.dynamodb
    if store is None or settings is None or settings.claim_check is None:
        return None
    return Claims(store, settings.claim_check.prefix, pipeline.name)


def control(pipeline: Pipeline, clock: Clock) -> DynamoDbControl | None:
    """How subscribers ask the publisher for repairs; None where that is not configured."""
    settings = pipeline.destination().kinesis
    if settings is None or settings.control_table is None:
        return None
    return DynamoDbControl(beside_the_stream(pipeline), clock, settings.control_table)


def beside_the_stream(pipeline: Pipeline) -> AwsService:
    """DynamoDB in the stream's region."""
    settings = pipeline.destination().kinesis
    return _aws_service(pipeline, "dynamodb", None if settings is None else settings.region, None)


def templates(pipeline: Pipeline) -> Callable[[TableSchema], KeyTemplates | None]:
    """How a table's rows lie in a table of single-table design, where that is configured."""

    def template(schema: TableSchema) -> KeyTemplates | None:
        rule = next((rule for rule in pipeline.rules if rule.matches(schema.table, schema.dialect)), None)
        item = next((item for owner, item in pipeline.items if owner is rule), None)
        return None if item is None else KeyTemplates(item.table, item.partition_key, item.sort_key)

    return template


# --- the subscriber's target --------------------------------------------------------------------------------------


class Target(Protocol):
    """What is asked of the target of either kind, beside applying."""

    def check(self) -> None: ...
    def status(self, pipeline: str) -> dict[str, Any]: ...
    def dead_letters(self, pipeline: str) -> list[DeadLetter]: ...
    def dead_letter(self, id_: int) -> DeadLetter | None: ...
    def drop_dead_letter(self, id_: int) -> bool: ...
    def pending_repairs(self, pipeline: str) -> list[Request]: ...
    def repair_handed_over(self, pipeline: str, id_: str) -> None: ...
    def close(self) -> None: ...


class Applies(Protocol):
    """Applies a batch."""

    def apply(self, data: Sequence[bytes]) -> Applied: ...


def target(pipeline: Pipeline, clock: Clock) -> Target:
    """The configured target; connects to nothing yet. Raises ConfigError or OperatorError."""
    return lanes(pipeline, clock) if pipeline.subscriber().kind == "dynamodb" else relational(pipeline)


def relational(pipeline: Pipeline, connections_max: int = 4) -> PostgresTarget:
    """The configured database; connects to nothing yet."""
    settings = pipeline.subscriber()
    return PostgresTarget(
        settings.target.get_secret_value(),
        create_tables=settings.create_tables,
        schema_changes=settings.schema_changes,
        connections_max=connections_max,
        password=tokens(pipeline) if settings.iam_auth else None,
    )


def tokens(pipeline: Pipeline) -> Callable[[str, str, str], str]:
    """Passwords for databases in RDS and Aurora: see DatabaseTokens."""
    kinesis = pipeline.destination().kinesis
    proxy, ca_bundle = _way(pipeline)
    return DatabaseTokens(None if kinesis is None else kinesis.region, proxy=proxy, ca_bundle=ca_bundle).token


def lanes(pipeline: Pipeline, clock: Clock, service: AwsService | None = None) -> DynamoDbLanes:
    """What is known of lanes beside items; connects to nothing yet. `service`: DynamoDB, where it is shared."""
    there = service or beside_the_stream(pipeline)
    return DynamoDbLanes(there, clock, prefix(pipeline), create_tables=pipeline.subscriber().create_tables)


def prefix(pipeline: Pipeline) -> str:
    """Of the target's tables in DynamoDB."""
    return pipeline.subscriber().target.get_secret_value().removeprefix("dynamodb://")


def item_sink(
    pipeline: Pipeline, clock: Clock, service: AwsService | None = None, taking: DynamoDbLanes | None = None
) -> DynamoDbSink:
    """Where the subscriber writes items. `taking`: where it takes names for tables; else it may only be asked."""

    def take_name(name: str, table: str) -> None:
        if taking is not None and table != HEARTBEAT_TABLE:  # its rows say whose they are
            taking.take_name(pipeline.name, name, table)

    return DynamoDbSink(
        service or beside_the_stream(pipeline),
        clock,
        table_prefix=prefix(pipeline),
        templates=templates(pipeline),
        create_tables=pipeline.subscriber().create_tables,
        claims=claims(pipeline, bucket(pipeline)),
        take_name=take_name,
    )


@dataclass(frozen=True)
class Applying:
    """What applies a stream, with what it was made of."""

    applier: Applies
    target: Target
    checkpoints: ShardCheckpoints
    repairs: ControlChannel | None


@contextmanager
def applying(
    pipeline: Pipeline, clock: Clock, rng: random.Random, *, connections_max: int = 4, sweep_s: float | None = None
) -> Iterator[Applying]:
    """What applies to the configured target; closed in the end. Connects to nothing: `target.check()` comes first.

    `sweep_s`: see ItemApplier. Raises ConfigError or OperatorError.
    """
    settings = pipeline.destination().kinesis
    if settings is None or settings.format != "packed":
        raise ConfigError(
            f"{pipeline.file} has no `destination.kinesis` with `format: packed`, which a subscriber reads.",
            code="UW-CF-012",
        )
    with ExitStack() as closing_up:
        repairs = control(pipeline, clock)
        if repairs is not None:
            closing_up.callback(repairs.close)
        large = claims(pipeline, bucket(pipeline))
        if large is not None:
            closing_up.callback(large.close)
        if pipeline.subscriber().kind == "dynamodb":
            service = beside_the_stream(pipeline)  # one for both: to make one takes a function's start a while
            closing_up.callback(service.close)
            known = lanes(pipeline, clock, service)
            sink = item_sink(pipeline, clock, service, known)
            yield Applying(ItemApplier(pipeline.name, sink, known, clock, rng, large, sweep_s), known, known, repairs)
        else:
            to = relational(pipeline, connections_max)
            closing_up.callback(to.close)
            yield Applying(Applier(pipeline.name, to, clock, large), to, PostgresShardCheckpoints(to), repairs)


def relay_repairs(
    pipeline: Pipeline,
    to: Target,
    repairs: ControlChannel | None,
    ask_here: Callable[[Pipeline, Request], bool] = lambda *_: False,
) -> None:
    """Hand what the target lacks to the publisher: through the control table, or as `ask_here` can.

    Without either they stay with the target, whose status shows them, until somebody runs `upwell resync`.
    """
    for request in to.pending_repairs(pipeline.name):
        if repairs is not None:
            repairs.ask(pipeline.name, request)
        elif not ask_here(pipeline, request):
            return
        to.repair_handed_over(pipeline.name, request.id)
