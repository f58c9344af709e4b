"""Tables of DynamoDB, and the rights to them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from upwell import rights
from upwell.app.stacks.blueprint import Index, Table
from upwell.app.stacks.cloudformation import Json, Template, allow, arn, logical
from upwell.app.stacks.functions import alarm, staleness
from upwell.items import TTL

CREATES = "MakesTables"


def add_tables(t: Template, tables: Iterable[Table]) -> None:
    """The tables: on demand, encrypted, restorable to any second of the last 35 days, and kept whatever happens to
    the stack.
    """
    t.parameter(
        "Tables",
        "make: this stack makes the tables. keep: they are there already, and are left alone.",
        "make",
        AllowedValues=["make", "keep"],
    )
    t.conditions[CREATES] = {"Fn::Equals": [{"Ref": "Tables"}, "make"]}
    for table in tables:
        t.add(
            _logical(table),
            "DynamoDB::Table",
            _properties(table),
            condition=CREATES,
            keep="Retain",
        )


def add_heartbeat_alarm(t: Template, heartbeat: Table) -> None:
    """The heartbeat is a write a few times a minute, after all that was committed before it: no write, no news."""
    alarm(
        t,
        "Stale",
        "No heartbeat of the publisher arrives: the data are older than they should be",
        "AWS/DynamoDB",
        "ConsumedWriteCapacityUnits",
        {"TableName": heartbeat.name},
        below=1,
        minutes=staleness(t),
        missing="breaching",
    )


def may_read(tables: Iterable[Table]) -> list[Json]:
    """What answering from the tables needs."""
    tables = list(tables)
    indexes = [_arn(table, f"/index/{index.name}") for table in tables for index in table.indexes]
    statements = [allow(rights.READ_ITEMS, [_arn(table) for table in tables])]
    return [*statements, allow(rights.READ_INDEX, indexes)] if indexes else statements


def may_write(tables: Iterable[Table], *, create: bool, remove: bool) -> list[Json]:
    """What sending rows to the tables needs."""
    tables = list(tables)
    manage = [*rights.SWEEP_ITEMS, *rights.CHECK_TABLES, *(rights.CREATE_TABLES if create else ())]
    write = [*rights.WRITE_ITEMS, *(rights.REMOVE_ITEMS if remove else ())]
    own, shared = ([_arn(each) for each in tables if _shared(each) == other] for other in (False, True))
    return [
        *([allow([*write, *manage], own)] if own else []),
        *([allow(manage, shared)] if shared else []),
        *(
            allow(write, _arn(table), **_leading(*(f"{lead}*" for lead in table.leads)))
            for table in tables
            if _shared(table)
        ),
    ]


def may_keep(lanes: Table | None, letters: Table | None, *, create: bool) -> list[Json]:
    """What a subscriber to DynamoDB needs for what it keeps beside the rows."""
    if lanes is None or letters is None:
        return []
    check = [*rights.CHECK_TABLES, *(rights.CREATE_TABLES if create else ())]
    return [
        allow(rights.KEEP_LANES, _arn(lanes)),
        allow(rights.KEEP_LETTERS, _arn(letters)),
        allow(check, [_arn(lanes), _arn(letters)]),
    ]


def may_ask(control: Table | None) -> list[Json]:
    """What a subscriber needs to ask for repairs."""
    return [] if control is None else [allow(rights.ASK_REPAIR, _arn(control))]


def may_poll(control: Table | None, pipeline: str) -> list[Json]:
    """What the publisher needs to be asked for repairs of its own pipeline, in a table that it may have to make."""
    if control is None:
        return []
    return [
        allow(rights.POLL_REPAIRS, _arn(control), **_leading(pipeline)),
        allow([*rights.CHECK_TABLES, *rights.CREATE_TABLES], _arn(control)),
    ]


def _leading(*keys: str) -> dict[str, Any]:
    """Only items whose partition key is one of these. An Allow with ForAllValues alone would hold without any key."""
    operator = "ForAllValues:StringLike" if any("*" in key for key in keys) else "ForAllValues:StringEquals"
    return {operator: {"dynamodb:LeadingKeys": list(keys)}, "Null": {"dynamodb:LeadingKeys": "false"}}


def _shared(table: Table) -> bool:
    """Whether others' items may lie beside ours, told by what the keys begin with."""
    return bool(table.leads) and all(table.leads)


def _arn(table: Table, below: str = "") -> Json:
    return arn("dynamodb", f"table/{table.name}{below}")


def _properties(table: Table) -> Json:
    attributes = dict(table.key) | {name: type_ for index in table.indexes for name, type_ in index.key}
    properties: Json = {
        "TableName": table.name,
        "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": [{"AttributeName": n, "AttributeType": type_} for n, type_ in attributes.items()],
        "KeySchema": _key_schema(table),
        "SSESpecification": {"SSEEnabled": True},
        "PointInTimeRecoverySpecification": {"PointInTimeRecoveryEnabled": True},
        "TimeToLiveSpecification": {"AttributeName": TTL, "Enabled": True},
        "DeletionProtectionEnabled": True,
    }
    if table.indexes:
        properties["GlobalSecondaryIndexes"] = [
            {
                "IndexName": index.name,
                "KeySchema": _key_schema(index),
                "Projection": {"ProjectionType": "ALL"},
            }
            for index in table.indexes
        ]
    return properties


def _key_schema(of: Table | Index) -> list[Json]:
    return [
        {"AttributeName": name, "KeyType": role} for (name, _), role in zip(of.key, ("HASH", "RANGE"), strict=False)
    ]


def _logical(table: Table) -> str:
    """Names that differ in punctuation only would be one to CloudFormation."""
    return f"Table{logical(table.name)}{hashlib.sha256(table.name.encode()).hexdigest()[:6]}"
