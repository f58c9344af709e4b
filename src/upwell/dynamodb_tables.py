"""DynamoDB tables: are they there, with the right key; if allowed, make them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from upwell.aws import JsonService
from upwell.aws_errors import ResourceMissing, ServiceRefusal
from upwell.errors import OperatorError, TransientError, UpwellError
from upwell.items import KeyAttribute
from upwell.model import Finding
from upwell.ports import Clock

CREATE_WAIT_S: Final = 60.0  # on-demand tables take about ten seconds
_POLL_S = 0.5
_DENIED = "UW-AWS-004"


def ensure_table(
    service: JsonService,
    clock: Clock,
    table: str,
    key: Sequence[KeyAttribute],
    *,
    create: bool,
    ttl_attribute: str | None = None,
) -> None:
    """Returns when the table takes writes. Who may not describe it finds out by writing.

    Raises OperatorError where it is missing and may not be made, or has another key; TransientError where it is
    still being made after CREATE_WAIT_S.
    """
    try:
        description = _describe(service, table)
        if description is None:
            if not create:
                raise no_such_table(table, service.region, key)
            _create(service, table, key)
        description = _await_active(service, clock, table)
    except OperatorError as error:
        if error.code == _DENIED and not create:
            return
        raise
    if description is None:
        return
    wrong = _other_key(description, key)
    if wrong is not None:
        raise OperatorError(
            f"The DynamoDB table {table} has the key {wrong}, not {_spelled(key)}.",
            code="UW-DD-003",
            remedy="Give the source table another name with to:, or delete the DynamoDB table.",
        )
    if ttl_attribute is not None:
        _enable_ttl(service, table, ttl_attribute)


def table_findings(
    service: JsonService, table: str, key: Sequence[KeyAttribute], *, create: bool, ttl_attribute: str | None
) -> Iterator[Finding]:
    """What `doctor` says about a table; changes nothing."""
    try:
        description = _describe(service, table)
    except UpwellError as error:
        yield Finding("warn" if error.code == _DENIED else "fail", error.code, error.message, error.remedy)
        return
    if description is None:
        missing = no_such_table(table, service.region, key)
        if create:
            yield Finding("pass", "UW-DD-001", f"The DynamoDB table {table} will be created.")
        else:
            yield Finding("fail", missing.code, missing.message, missing.remedy)
        return
    wrong = _other_key(description, key)
    if wrong is not None:
        sentence = f"The DynamoDB table {table} has the key {wrong}, not {_spelled(key)}."
        yield Finding("fail", "UW-DD-003", sentence, "Give the source table another name with to:.")
        return
    yield Finding("pass", "UW-DD-001", f"The DynamoDB table {table} is there, with the key {_spelled(key)}.")
    # Where deleted rows' items expire, nothing ever calls DeleteItem.
    yield from _write_findings(service, table, key, removes=ttl_attribute is None)
    if ttl_attribute is not None:
        yield from _ttl_findings(service, table, ttl_attribute)


def no_such_table(table: str, region: str, key: Sequence[KeyAttribute]) -> OperatorError:
    """The table is not there, with the command that makes it."""
    definitions = [{"AttributeName": name, "AttributeType": type_} for name, type_ in key]
    schema = _key_schema(key)
    return OperatorError(
        f"The DynamoDB table {table} does not exist in {region}.",
        code="UW-DD-001",
        remedy=f"aws dynamodb create-table --region {region} --table-name {table} --billing-mode PAY_PER_REQUEST "
        f"--attribute-definitions {_as_argument(definitions)} --key-schema {_as_argument(schema)}",
    )


def _key_schema(key: Sequence[KeyAttribute]) -> list[dict[str, str]]:
    return [{"AttributeName": name, "KeyType": role} for (name, _), role in zip(key, ("HASH", "RANGE"), strict=False)]


def _as_argument(value: object) -> str:
    """For a shell, whatever columns are called."""
    return shlex.quote(json.dumps(value, separators=(",", ":")))


def _describe(service: JsonService, table: str) -> Mapping[str, Any] | None:
    try:
        answer: Mapping[str, Any] = service.call("DescribeTable", {"TableName": table})["Table"]
    except ResourceMissing:
        return None
    return answer


def _create(service: JsonService, table: str, key: Sequence[KeyAttribute]) -> None:
    try:
        service.call(
            "CreateTable",
            {
                "TableName": table,
                "BillingMode": "PAY_PER_REQUEST",
                "AttributeDefinitions": [{"AttributeName": name, "AttributeType": type_} for name, type_ in key],
                "KeySchema": _key_schema(key),
            },
        )
    except TransientError as error:
        if "ResourceInUse" not in error.message:  # somebody else makes it at this moment
            raise


def _await_active(service: JsonService, clock: Clock, table: str) -> Mapping[str, Any] | None:
    deadline = clock.monotonic() + CREATE_WAIT_S
    while True:
        description = _describe(service, table)
        # UPDATING (an index is added, say) takes writes. A table just made may be unknown for a moment.
        if description is not None and description["TableStatus"] not in ("CREATING", "DELETING"):
            return description
        if clock.monotonic() > deadline:
            raise TransientError(f"The DynamoDB table {table} is not active yet.", code="UW-DD-002")
        clock.sleep(_POLL_S)


def _other_key(description: Mapping[str, Any], key: Sequence[KeyAttribute]) -> str | None:
    """The table's key where it is another, spelled."""
    types = {each["AttributeName"]: each["AttributeType"] for each in description["AttributeDefinitions"]}
    ordered = sorted(description["KeySchema"], key=lambda each: str(each["KeyType"]))  # HASH before RANGE
    found = [KeyAttribute(each["AttributeName"], types[each["AttributeName"]]) for each in ordered]
    return None if found == list(key) else _spelled(found)


def _spelled(key: Sequence[KeyAttribute]) -> str:
    return ", ".join(f"{name} ({type_})" for name, type_ in key)


def _enable_ttl(service: JsonService, table: str, attribute: str) -> None:
    """Without the right to, or with another attribute in its place, tombstones stay for ever: `doctor` says so."""
    try:
        answer = service.call("DescribeTimeToLive", {"TableName": table})
        if answer["TimeToLiveDescription"]["TimeToLiveStatus"] == "DISABLED":
            setting = {"Enabled": True, "AttributeName": attribute}
            service.call("UpdateTimeToLive", {"TableName": table, "TimeToLiveSpecification": setting})
    except ServiceRefusal:  # changed within the last hour
        return
    except OperatorError as error:
        if error.code != _DENIED:
            raise


def _ttl_findings(service: JsonService, table: str, attribute: str) -> Iterator[Finding]:
    try:
        setting = service.call("DescribeTimeToLive", {"TableName": table})["TimeToLiveDescription"]
    except UpwellError as error:
        yield Finding("warn", error.code, error.message, error.remedy)
        return
    if setting["TimeToLiveStatus"] in ("ENABLED", "ENABLING") and setting.get("AttributeName") == attribute:
        yield Finding("pass", "UW-DD-004", f"Tombstones in {table} expire by {attribute}.")
        return
    yield Finding(
        "warn",
        "UW-DD-004",
        f"Tombstones in {table} will not expire: its TTL attribute is not {attribute}.",
        f"aws dynamodb update-time-to-live --table-name {table} "
        f"--time-to-live-specification Enabled=true,AttributeName={attribute}",
    )


def _write_findings(
    service: JsonService, table: str, key: Sequence[KeyAttribute], *, removes: bool
) -> Iterator[Finding]:
    """Whether writes are allowed, by writes under a condition that can't hold."""
    sample = {"S": "upwell-doctor"}, {"N": "0"}, {"B": "AA=="}
    values = {type_: value for value in sample for type_ in value}
    item = {name: values[type_] for name, type_ in key}
    impossible = {
        "TableName": table,
        "ConditionExpression": "attribute_exists(#v) AND attribute_not_exists(#v)",
        "ExpressionAttributeNames": {"#v": "_upwell_v"},
    }
    requests = {"PutItem": {"Item": item}, "UpdateItem": {"Key": item}}
    for action, extra in {**requests, **({"DeleteItem": {"Key": item}} if removes else {})}.items():
        try:
            service.call(action, {**impossible, **extra})
        except ServiceRefusal as refusal:
            if refusal.reason == "ConditionalCheckFailedException":
                yield Finding("pass", "UW-AWS-004", f"{action} is allowed on {table}.")
            else:
                yield Finding("fail", refusal.code, refusal.message)
        except UpwellError as error:
            yield Finding.of_error(error)
