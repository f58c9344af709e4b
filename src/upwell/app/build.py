"""The composition root: the only place where the configuration's names become classes."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from upwell.app.build_cloud import applying, aws_service, bucket, claims, control, relay_repairs, templates
from upwell.clock import SystemClock
from upwell.config import Pipeline
from upwell.errors import ConfigError, OperatorError
from upwell.lanes import DEFAULT_LANES
from upwell.mapping import Mapping as RowMapping
from upwell.mapping import check_targets
from upwell.model import Finding, Inspected, TableName, TableSchema, TableSelection
from upwell.pipeline.publisher import Publisher, PublisherSettings
from upwell.pipeline.subscriber import WORKING_BYTES, Subscriber
from upwell.ports import Clock, Request, Sink, Source
from upwell.sinks.dynamodb import DynamoDbSink
from upwell.sinks.kinesis import KinesisSink
from upwell.sinks.stdout import StdoutSink
from upwell.sources import postgres_setup, sqlite_setup, sqlserver_setup
from upwell.sources.postgres import PostgresSource
from upwell.sources.sqlite import SqliteSource
from upwell.sources.sqlserver import SqlServerSource
from upwell.state.sqlite import SqliteState
from upwell.streams.kinesis import KinesisStream

# A source that tells by itself is not polled; longer waits would only make stopping slow.
WAIT_S_MAX: Final = 2.0
# What of the memory allowed may be events on their way; the rest is the interpreter, a chunk, a window.
PENDING_SHARE: Final = 1 / 8
# What a subscriber takes before it reads anything: the interpreter and the drivers.
PROGRAM_BYTES: Final = 60 * 1000**2


# --- sources ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SourceParts:
    """What can be done with the configured source. All but `findings` raise UpwellError."""

    open: Callable[[Clock], Source]
    findings: Callable[[], list[Finding]]
    track: Callable[[], list[str]]  # what was executed
    track_sql: Callable[[], list[str]]  # what would be
    untrack: Callable[[], list[str]]
    untrack_sql: Callable[[], list[str]]


def _postgres(pipeline: Pipeline) -> SourceParts:
    url = pipeline.source().url.get_secret_value()
    tables, slot, publication = selections(pipeline), pipeline.slot, pipeline.publication
    return SourceParts(
        open=lambda clock: PostgresSource(url, tables=tables, slot=slot, publication=publication, clock=clock),
        findings=lambda: postgres_setup.findings(url, tables=tables, slot=slot, publication=publication),
        track=lambda: postgres_setup.track(url, tables=tables, slot=slot, publication=publication),
        track_sql=lambda: postgres_setup.track_sql(url, tables=tables, slot=slot, publication=publication),
        untrack=lambda: postgres_setup.untrack(url, slot=slot, publication=publication),
        untrack_sql=lambda: postgres_setup.untrack_sql(url, slot=slot, publication=publication),
    )


def _sqlite(pipeline: Pipeline) -> SourceParts:
    path = sqlite_path(pipeline.source().url.get_secret_value(), pipeline.file.absolute().parent)
    tables = selections(pipeline)
    return SourceParts(
        open=lambda clock: SqliteSource(path, tables=tables, clock=clock),
        findings=lambda: sqlite_setup.findings(path, tables),
        track=lambda: sqlite_setup.track(path, tables),
        track_sql=lambda: sqlite_setup.track_sql(path, tables),
        untrack=lambda: sqlite_setup.untrack(path),
        untrack_sql=lambda: sqlite_setup.untrack_sql(path),
    )


def _sqlserver(pipeline: Pipeline) -> SourceParts:
    url, driver = pipeline.source().url.get_secret_value(), pipeline.source().driver
    tables, name = selections(pipeline), pipeline.name
    return SourceParts(
        open=lambda clock: SqlServerSource(url, tables=tables, pipeline=name, clock=clock, driver=driver),
        findings=lambda: sqlserver_setup.findings(url, tables, driver),
        track=lambda: sqlserver_setup.track(url, tables, driver),
        track_sql=lambda: sqlserver_setup.track_sql(url, tables, driver),
        untrack=lambda: sqlserver_setup.untrack(url, tables, driver),
        untrack_sql=lambda: sqlserver_setup.untrack_sql(url, tables, driver),
    )


_SOURCES: Final[Mapping[str, Callable[[Pipeline], SourceParts]]] = {
    "postgresql": _postgres,
    "sqlserver": _sqlserver,
    "sqlite": _sqlite,
}


def source_parts(pipeline: Pipeline) -> SourceParts:
    """The configured source. Raises ConfigError."""
    return _SOURCES[pipeline.dialect](pipeline)


def selections(pipeline: Pipeline) -> list[TableSelection]:
    """What the source is to read. Raises ConfigError where no tables are configured."""
    if not pipeline.rules:
        raise ConfigError(
            f"{pipeline.file} names no tables under `tables`.",
            code="UW-CF-012",
            remedy='Name each table to publish, or all of a schema: tables: {"public.*": {}}',
        )
    return [rule.selection() for rule in pipeline.rules]


def sqlite_path(url: str, folder: Path) -> str:
    """The file of `sqlite:///FILE`; a relative one starts at `folder`."""
    return str(folder / url.removeprefix("sqlite:///"))


def inspect(dialect: str, url: str, folder: Path) -> list[Inspected]:
    """Every table of a database, by name. Raises UpwellError."""
    if dialect == "sqlserver":
        return sqlserver_setup.inspect(url, "mssql-python")
    return postgres_setup.inspect(url) if dialect == "postgresql" else sqlite_setup.inspect(sqlite_path(url, folder))


def grants_sql(dialect: str, names: Sequence[TableName], *, role: str, database: str) -> list[str]:
    """What an administrator must grant so that these tables can be published; nothing where nobody grants anything."""
    if dialect == "sqlserver":
        return sqlserver_setup.grants_sql(names, role=role, database=database)
    return postgres_setup.grants_sql(names, role=role, database=database) if dialect == "postgresql" else []


def mapping(pipeline: Pipeline) -> RowMapping:
    """The configured rules. Raises ConfigError."""
    return RowMapping(pipeline.rules, dialect=pipeline.dialect, mask_key=pipeline.mask_key)


# --- destinations -------------------------------------------------------------------------------------------------


def _kinesis(pipeline: Pipeline, clock: Clock, tables: Sequence[TableSchema]) -> Sink:
    settings, service = pipeline.destination().kinesis, aws_service(pipeline)
    assert settings is not None
    assert service is not None
    return KinesisSink(
        pipeline.name,
        settings.stream,
        settings.lanes,
        service,
        format=settings.format,
        compression=settings.compression,
        claims=claims(pipeline, bucket(pipeline)),
    )


def _dynamodb(pipeline: Pipeline, clock: Clock, tables: Sequence[TableSchema]) -> Sink:
    return dynamodb_sink(pipeline, clock)


def dynamodb_sink(pipeline: Pipeline, clock: Clock) -> DynamoDbSink:
    """The DynamoDB destination. Raises ConfigError."""
    settings, service = pipeline.destination().dynamodb, aws_service(pipeline)
    assert settings is not None
    assert service is not None
    return DynamoDbSink(
        service,
        clock,
        table_prefix=settings.table_prefix,
        templates=templates(pipeline),
        nulls=settings.nulls,
        deletes=settings.deletes,
        create_tables=settings.create_tables,
        claims=claims(pipeline, bucket(pipeline)),
    )


def _stdout(pipeline: Pipeline, clock: Clock, tables: Sequence[TableSchema]) -> Sink:
    return StdoutSink(pipeline.name, sys.stdout.buffer)


_SINKS: Final[Mapping[str, Callable[[Pipeline, Clock, Sequence[TableSchema]], Sink]]] = {
    "kinesis": _kinesis,
    "dynamodb": _dynamodb,
    "stdout": _stdout,
}


def sink(pipeline: Pipeline, clock: Clock, tables: Sequence[TableSchema]) -> Sink:
    """The configured destination, for `tables` of the source. Raises ConfigError or OperatorError."""
    return _SINKS[pipeline.destination().kind](pipeline, clock, tables)


def state(pipeline: Pipeline) -> SqliteState:
    """The publisher's state file; opens nothing yet."""
    return SqliteState(str(pipeline.state), pipeline.name)


# --- the publisher ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PublisherParts:
    """A publisher with all that it was made of."""

    publisher: Publisher
    source: Source
    sink: Sink
    state: SqliteState
    clock: Clock
    rng: random.Random


@contextmanager
def publisher(pipeline: Pipeline, stop: threading.Event, mapping: RowMapping) -> Iterator[PublisherParts]:
    """The configured publisher; its parts are closed in the end. Raises UpwellError."""
    clock, rng = SystemClock(stop), random.Random()  # noqa: S311 - it spreads retries, it keeps no secret
    with ExitStack() as closing_up:
        source = source_parts(pipeline).open(clock)
        closing_up.callback(source.close)
        tables = source.tables()
        if pipeline.destination().kinesis is not None:
            check_targets(mapping.schema(table) for table in tables)
        to = sink(pipeline, clock, tables)
        closing_up.callback(to.close)
        repairs = control(pipeline, clock)
        if repairs is not None:
            closing_up.callback(repairs.close)
            repairs.prepare()
        kept = state(pipeline)
        made = Publisher(
            publisher_settings(pipeline),
            source=source,
            sink=to,
            state=kept,
            mapping=mapping,
            clock=clock,
            rng=rng,
            background=in_background,
            control=repairs,
        )
        yield PublisherParts(made, source, to, kept, clock, rng)


def publisher_settings(pipeline: Pipeline) -> PublisherSettings:
    """The publisher's limits."""
    kinesis = pipeline.destination().kinesis
    return PublisherSettings(
        pipeline.name,
        lanes=DEFAULT_LANES if kinesis is None else kinesis.lanes,
        on_gap=pipeline.source().on_gap,
        pending_bytes_max=int(pipeline.config.limits.memory * PENDING_SHARE),
        poll_interval_s=min(pipeline.source().poll_interval, WAIT_S_MAX),
        heartbeat_s=pipeline.heartbeat_s,
    )


def in_background(work: Callable[[], Any]) -> Future[Any]:
    """Run beside everything else, in a thread that does not keep the process alive."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="background", daemon=True).start()
    return future


# --- the subscriber -----------------------------------------------------------------------------------------------


@contextmanager
def subscriber(pipeline: Pipeline, stop: threading.Event) -> Iterator[Subscriber]:
    """The configured subscriber; its parts are closed in the end. Raises UpwellError."""
    clock, rng = SystemClock(stop), random.Random()  # noqa: S311 - it spreads retries, it keeps no secret
    with ExitStack() as closing_up:
        parts = closing_up.enter_context(applying(pipeline, clock, rng))
        settings, service = pipeline.destination().kinesis, aws_service(pipeline)
        assert settings is not None
        assert service is not None
        closing_up.callback(service.close)
        parts.target.check()
        yield Subscriber(
            f"{pipeline.name}/{settings.stream}",  # others may read the same stream for the same target
            stream=KinesisStream(service, settings.stream),
            applier=parts.applier,
            checkpoints=parts.checkpoints,
            relay_repairs=lambda: relay_repairs(pipeline, parts.target, parts.repairs, _ask_here),
            clock=clock,
            rng=rng,
            stop=stop,
            working_shards=working_shards(pipeline.config.limits.memory),
        )


def working_shards(memory_bytes: int) -> int:
    """How many shards may be read and applied at the same time."""
    return max(1, int((memory_bytes - PROGRAM_BYTES) / WORKING_BYTES))


def _ask_here(pipeline: Pipeline, request: Request) -> bool:
    if not pipeline.state.exists():
        return False
    kept = state(pipeline)
    try:
        kept.add_request(request.table, request.reason)
    except OperatorError:
        return False  # the file is another pipeline's, or not ours to write: our publisher is not here
    finally:
        kept.release()
    return True
