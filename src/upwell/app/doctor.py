"""`upwell doctor`: everything that publishing or subscribing will need, checked before it is needed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from typing import Any, Final

import click
import orjson

from upwell.app import build, build_api, build_cloud
from upwell.app.logs import visible
from upwell.aws import AwsService
from upwell.aws_errors import ServiceRefusal
from upwell.clock import SystemClock
from upwell.config import Pipeline
from upwell.errors import UpwellError
from upwell.mapping import check_targets
from upwell.model import Finding, Kind, TableName, TableSchema, Value
from upwell.ports import Listing
from upwell.sinks.kinesis import stream_status

SKEW_S_WARN: Final = 60.0
RETENTION_H_WARN: Final = 24  # a weekend without a subscriber is longer
_COLOURS: Final = {"pass": "green", "warn": "yellow", "fail": "red"}
# What the PostgreSQL source says of a table whose events may lack large values.
_INCOMPLETE_ROWS: Final = "UW-PG-047"


def findings(pipeline: Pipeline) -> Iterator[Finding]:
    """All of them, good and bad; never only the first. Changes nothing outside but a probe in the claim check's
    bucket, which can be tried in no other way.
    """
    yield Finding("pass", "UW-CL-007", f"The configuration {pipeline.file} is valid.")
    for problem in pipeline.left_out:
        sentence = f"A part was not checked here: {problem.text()}."
        yield Finding("warn", "UW-CL-007", sentence, "Set it, if this machine needs it.")
    config = pipeline.config
    schemas: list[TableSchema] = []
    if config.source is not None:
        yield from _source(pipeline, schemas)
        yield _state(pipeline)
    if config.destination is not None:
        yield from _destination(pipeline, schemas, sends=config.source is not None)
    if config.subscriber is not None:
        yield from _target(pipeline, schemas)
    if config.api is not None:
        yield from _api(pipeline)


def show_findings(found: Iterable[Finding], *, as_json: bool) -> set[str]:
    """Print them as they come, or as one JSON array; the levels that occur."""
    shown = list(found) if as_json else []
    if as_json:
        click.echo(orjson.dumps([asdict(finding) for finding in shown], option=orjson.OPT_INDENT_2))
        return {str(finding.level) for finding in shown}
    levels: set[str] = set()
    for finding in found:
        levels.add(finding.level)
        click.secho(f"{finding.level}  ", fg=_COLOURS[finding.level], nl=False)
        click.echo(f"{finding.code:10}  {visible(finding.sentence, lines=True)}")
        if finding.remedy and finding.level != "pass":
            click.echo(f"      to do: {visible(finding.remedy, lines=True)}")
    return levels


def _source(pipeline: Pipeline, schemas: list[TableSchema]) -> Iterator[Finding]:
    """What the source says, and whether the rules fit; the tables as they leave go to `schemas`."""
    try:
        parts = build.source_parts(pipeline)
    except UpwellError as error:
        yield Finding.of_error(error)
        return
    found = parts.findings()
    yield from found
    said = {finding.code for finding in found if finding.level == "fail"}
    try:
        mapping = build.mapping(pipeline)
        with closing(parts.open(SystemClock())) as source:
            tables = source.tables()
    except UpwellError as error:
        if error.code not in said:
            yield Finding.of_error(error)
        return
    for table in tables:
        try:
            schemas.append(mapping.schema(table))
        except UpwellError as error:
            yield Finding.of_error(error)
    destination = pipeline.config.destination
    if destination is not None and destination.kinesis is not None:
        good = "No two tables become one at the target."
        yield Finding.of_check("UW-CF-024", good, lambda: check_targets(schemas))
    if len(schemas) == len(tables):
        yield Finding("pass", "UW-CF-022", f"The rules under `tables` fit the {len(tables)} tables.")
    yield from _filtered(pipeline, tables, found)


def _filtered(pipeline: Pipeline, tables: Sequence[TableSchema], found: Sequence[Finding]) -> Iterator[Finding]:
    incomplete = [finding.sentence for finding in found if finding.code == _INCOMPLETE_ROWS]
    for table in tables:
        rule = pipeline.rule(table.table)
        if rule is None or rule.where is None:
            continue
        if any(sentence.startswith(f"{table.table}:") for sentence in incomplete):
            yield Finding(
                "warn",
                "UW-CL-013",
                f"{table.table} is filtered, and a changed row may come without its large values: one that may just "
                "have entered the filter so has the whole table read again.",
                f"ALTER TABLE {TableName.parse(table.table).sql} REPLICA IDENTITY FULL;",
            )


def _state(pipeline: Pipeline) -> Finding:
    kept = build.state(pipeline)
    try:
        kept.load()
    except UpwellError as error:
        return Finding.of_error(error)
    finally:
        kept.release()
    folder = pipeline.state.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return Finding(
            "fail",
            "UW-CL-008",
            f"The folder {folder} of the state file is not there, or can't be written.",
            f"mkdir -p {folder}",
        )
    return Finding("pass", "UW-CL-008", f"The state can be kept in {pipeline.state}.")


def _api(pipeline: Pipeline) -> Iterator[Finding]:
    """Whether the read API would start here, and could answer."""
    fits = "The API's schema file fits what `api.tables` exposes."
    yield Finding.of_check("UW-AP-001", fits, lambda: build_api.tables(pipeline))
    known = "The API can know its callers."
    yield Finding.of_check("UW-AP-003", known, lambda: build_api.authorizer(pipeline, SystemClock()))
    try:
        shown = build_api.tables(pipeline)
        reader = build_api.reader(pipeline, shown)
    except UpwellError as error:
        if error.code != "UW-AP-001":
            yield Finding.of_error(error)
        return
    with closing(reader):
        for table in shown:
            for index in (None, *table.indexes.values()):
                partition = None if index is None else _ANY.get(table.column(index.partition_key).kind, "AAAA")
                listing = Listing(table.schema, None, index, partition, None, 1)
                way = table.name if index is None else f"{table.name} by {index.name}"
                yield Finding.of_check("UW-AP-012", f"The API can read {way}.", partial(reader.page, listing))


# Some value to look for in an index; as text it is also base64.
_ANY: Final[dict[Kind, Value]] = {Kind.INT: 0, Kind.FLOAT: 0.0, Kind.DECIMAL: "0"}


# --- AWS ----------------------------------------------------------------------------------------------------------


def _destination(pipeline: Pipeline, schemas: Sequence[TableSchema], *, sends: bool) -> Iterator[Finding]:
    try:
        service = build_cloud.aws_service(pipeline)
    except UpwellError as error:
        yield Finding.of_error(error)
        return
    if service is None:
        return
    with closing(service):
        ready = True
        for finding in _way(service):
            ready = ready and finding.level != "fail"
            yield finding
        if not ready:
            return
        if pipeline.destination().kinesis is not None:
            yield from _stream(pipeline, service, sends=sends)
        elif schemas:
            yield from _items(pipeline, schemas)
        yield from _clock(service)
    yield from _claim_check(pipeline, sends=sends)


def _way(service: AwsService) -> Iterator[Finding]:
    """The network, the proxy, TLS, the credentials."""
    route = service.route
    through = f" through the proxy {route.proxy.host}:{route.proxy.port}" if route.proxy else ""
    good = f"{route.host}:{route.port} can be reached{through}."
    yield Finding.of_check("UW-CL-010", good, lambda: route.open().close())
    yield Finding.of_check("UW-CL-010", "There are AWS credentials.", service.keys)


def _stream(pipeline: Pipeline, service: AwsService, *, sends: bool) -> Iterator[Finding]:
    settings = pipeline.destination().kinesis
    assert settings is not None
    name = settings.stream
    try:
        status = stream_status(service, name)
    except UpwellError as error:
        yield Finding.of_error(error)
        return
    good = status in ("ACTIVE", "UPDATING")
    yield Finding("pass" if good else "fail", "UW-CL-011", f"The stream {name} is {status}.")
    yield from _retention(service, name)
    if sends:
        yield from _may_put(service, name, local=settings.endpoint_url is not None)
    if pipeline.config.subscriber is not None:
        yield from _may_read(service, name)


def _retention(service: AwsService, stream: str) -> Iterator[Finding]:
    try:
        answer = service.call("DescribeStreamSummary", {"StreamName": stream})
    except UpwellError:
        return  # stand-ins don't know it, and who may write need not be allowed to ask
    hours = answer["StreamDescriptionSummary"].get("RetentionPeriodHours", RETENTION_H_WARN)
    if hours > RETENTION_H_WARN:
        yield Finding("pass", "UW-CL-011", f"The stream {stream} keeps records for {hours} hours.")
        return
    yield Finding(
        "warn",
        "UW-CL-011",
        f"The stream {stream} keeps records for {hours} hours: a subscriber that is off for longer loses some, and all "
        "tables concerned are read again.",
        f"aws kinesis increase-stream-retention-period --stream-name {stream} --retention-period-hours 168",
    )


def _may_put(service: AwsService, stream: str, *, local: bool) -> Iterator[Finding]:
    """Whether PutRecords is allowed, by a record that no shard can take. A stand-in might take it all the same."""
    if local:
        return
    beyond = str(2**128)
    record = {"Data": "", "PartitionKey": "upwell-doctor", "ExplicitHashKey": beyond}
    yield _allowed(service, "PutRecords", {"StreamName": stream, "Records": [record]}, stream)


def _may_read(service: AwsService, stream: str) -> Iterator[Finding]:
    yield _allowed(service, "ListShards", {"StreamName": stream, "MaxResults": 1}, stream)
    try:
        shards = service.call("ListShards", {"StreamName": stream, "MaxResults": 1})["Shards"]
        request = {"StreamName": stream, "ShardId": shards[0]["ShardId"], "ShardIteratorType": "LATEST"}
        iterator = service.call("GetShardIterator", request)["ShardIterator"]
    except UpwellError as error:
        yield Finding.of_error(error)
        return
    yield Finding("pass", "UW-CL-012", f"GetShardIterator is allowed on {stream}.")
    yield _allowed(service, "GetRecords", {"ShardIterator": iterator, "Limit": 1}, stream)


def _allowed(service: AwsService, action: str, request: dict[str, Any], stream: str) -> Finding:
    try:
        service.call(action, request)
    except ServiceRefusal:
        pass  # it was understood and refused for what it holds: the action itself is allowed
    except UpwellError as error:
        return Finding.of_error(error)
    return Finding("pass", "UW-CL-012", f"{action} is allowed on {stream}.")


def _items(pipeline: Pipeline, schemas: Sequence[TableSchema]) -> Iterator[Finding]:
    try:
        with closing(build.dynamodb_sink(pipeline, SystemClock())) as sink:
            yield from sink.findings(schemas)
    except UpwellError as error:
        yield Finding.of_error(error)


def _target(pipeline: Pipeline, schemas: Sequence[TableSchema]) -> Iterator[Finding]:
    """What the subscriber will need of its target; its tables only where the source can be asked which there are."""
    if pipeline.subscriber().kind != "dynamodb":
        with closing(build_cloud.relational(pipeline)) as target:
            yield from target.findings(schemas)
        return
    try:
        with (
            closing(build_cloud.lanes(pipeline, SystemClock())) as lanes,
            closing(build_cloud.item_sink(pipeline, SystemClock())) as sink,
        ):
            yield from lanes.findings()
            yield from sink.findings(schemas)
    except UpwellError as error:
        yield Finding.of_error(error)


def _claim_check(pipeline: Pipeline, *, sends: bool) -> Iterator[Finding]:
    """Whether the bucket can be written and read, each where that will be needed."""
    try:
        bucket = build_cloud.bucket(pipeline)
        claims = build_cloud.claims(pipeline, bucket)
    except UpwellError as error:
        yield Finding.of_error(error)
        return
    if bucket is None or claims is None:
        return
    with closing(claims):
        route, probe = bucket.route, claims.probe()
        way = Finding.of_check("UW-CL-010", f"{route.host}:{route.port} can be reached.", lambda: route.open().close())
        yield way
        if way.level == "fail":
            return
        if sends:
            good = f"Rows that are too large can be put into the bucket {bucket.bucket}."
            yield Finding.of_check("UW-CC-005", good, lambda: claims.put(probe))
        if pipeline.config.subscriber is not None:
            good = f"Rows that are too large can be fetched from the bucket {bucket.bucket}."
            # Where only the subscriber runs, the probe need not be there: that it is not there can be read too.
            yield Finding.of_check("UW-CC-005", good, lambda: bucket.get(probe.claim.object))


def _clock(service: AwsService) -> Iterator[Finding]:
    skew = service.clock_skew_s
    if skew is None:
        return
    if abs(skew) < SKEW_S_WARN:
        yield Finding("pass", "UW-CL-009", "This machine's clock agrees with AWS's.")
        return
    direction = "ahead of" if skew > 0 else "behind"
    yield Finding(
        "warn",
        "UW-CL-009",
        f"This machine's clock is {abs(skew):.0f} s {direction} AWS's; requests are signed with AWS's time.",
        "Let the machine take its time from a time server (chrony, systemd-timesyncd, w32time).",
    )
