"""A stand-in for DynamoDB in memory: fast, and if wanted it throttles writes as AWS does.

python lab/standin_dynamodb.py PORT [--limits SHARE] [--change-s SECONDS]. Written from AWS's API reference
(docs.aws.amazon.com/amazondynamodb/latest/APIReference); tests/contract/dynamodb_service_contract.py says what is
relied on. Indexes, streams, transactions and batches are not there; what a request asks for beyond it is refused.
"""

from __future__ import annotations

import asyncio
import binascii
import re
import time
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final, NoReturn
from zlib import crc32

from lab.expressions import (
    Compiled,
    Item,
    Names,
    Values,
    check_placeholders,
    comparable,
    condition,
    exact,
    projection,
    resolved,
    update,
)
from lab.standin import ACCOUNT, REGION, Actions, Allowance, Refusal, Request, arguments, only, serve

ITEM_BYTES_MAX: Final = 400 * 1024
PAGE_BYTES_MAX: Final = 1024 * 1024
KEY_BYTES_MAX: Final = {"HASH": 2048, "RANGE": 1024}
NESTING_MAX: Final = 32
# A new on-demand table has four partitions; each takes so many units of 1 KB in a second.
PARTITIONS: Final = 4
PARTITION_UNITS: Final = 1000
# Items lie in so many dicts by their partition key's hash: that is the order of a Scan, and nothing needs sorting to
# be put.
_BUCKETS: Final = 4096
_TABLE_NAME: Final = re.compile(r"[a-zA-Z0-9_.-]{3,255}")
_PLAIN_NUMBER: Final = re.compile(r"0|-?[1-9]\d{0,37}")
_NAMING: Final = ("ExpressionAttributeNames", "ExpressionAttributeValues")
_GUARD: Final = ("ConditionExpression", "ReturnValuesOnConditionCheckFailure", "ReturnValues", *_NAMING)
_READ: Final = ("ConsistentRead", "ProjectionExpression", "ExpressionAttributeNames")
_PAGE: Final = ("FilterExpression", "Limit", "ExclusiveStartKey", "ExpressionAttributeValues", *_READ)

# A key's values, in the order of the key schema, in a form that compares.
Key = tuple[Any, ...]


class Table:
    """A table and its items."""

    def __init__(self, request: Request, limits: float) -> None:
        self.name: str = request["TableName"]
        roles = sorted(request["KeySchema"], key=lambda each: str(each["KeyType"]))  # HASH before RANGE
        types = {each["AttributeName"]: each["AttributeType"] for each in request["AttributeDefinitions"]}
        self.key: list[tuple[str, str, str]] = [
            (each["AttributeName"], types[each["AttributeName"]], each["KeyType"]) for each in roles
        ]
        if len(types) != len(self.key):
            _refuse("One or more parameter values were invalid: Number of attributes in KeySchema does not match")
        self.status = "CREATING"
        self.created = time.time()
        self.ttl_attribute: str | None = None
        self.buckets: list[dict[Key, tuple[Item, int]]] = [{} for _ in range(_BUCKETS)]
        self._units = [Allowance(PARTITION_UNITS * limits) for _ in range(PARTITIONS)]

    def key_of(self, item: Item, *, alone: bool) -> Key:
        """`alone`: the item may be nothing but a key."""
        if alone and len(item) != len(self.key):
            _refuse("The provided key element does not match the schema")
        found = []
        for name, kind, role in self.key:
            if name not in item:
                _refuse(f"One or more parameter values were invalid: Missing the key {name} in the item")
            if kind not in item[name]:
                _refuse(f"One or more parameter values were invalid: Type mismatch for key {name} expected: {kind}")
            value = comparable(item[name])[1]
            if kind != "N" and not 0 < len(value) <= KEY_BYTES_MAX[role]:
                _refuse(f"One or more parameter values are not valid: the key {name} is empty or too large")
            found.append(value)
        return tuple(found)

    def key_item(self, item: Item) -> Item:
        """The key alone, as a LastEvaluatedKey is."""
        return {name: item[name] for name, _, _ in self.key}

    def item(self, key: Key) -> Item | None:
        held = self.buckets[_bucket(key)].get(key)
        return held and held[0]

    def write(self, key: Key, item: Item | None, size: int) -> None:
        """None: no item any more."""
        bucket = self.buckets[_bucket(key)]
        if item is None:
            bucket.pop(key, None)
        else:
            bucket[key] = item, size

    def spend(self, key: Key, size: int) -> None:
        """Take a write's units from its partition; refused where they are used up. A failed condition costs too."""
        held = self.buckets[_bucket(key)].get(key)
        allowance = self._units[_bucket(key) * PARTITIONS // _BUCKETS]
        if not allowance.per_s:
            return
        units = -(-max(size, held[1] if held else 1) // 1024)
        if not allowance.has(units):
            raise Refusal(
                "ProvisionedThroughputExceededException",
                "The level of configured provisioned throughput for the table was exceeded: a partition takes no more.",
            )
        allowance.take(units)

    def after(self, start: Key | None) -> Iterator[tuple[Item, int]]:
        """All items in the order of a Scan, from the one after `start`."""
        first = 0 if start is None else _bucket(start)
        for number in range(first, _BUCKETS):
            bucket = self.buckets[number]
            for key in sorted(bucket):
                if start is None or number > first or key > start:
                    yield bucket[key]

    def described(self) -> dict[str, Any]:
        sizes = [size for bucket in self.buckets for _, size in bucket.values()] if self.status == "ACTIVE" else []
        return {
            "TableName": self.name,
            "TableArn": f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{self.name}",
            "TableStatus": self.status,
            "CreationDateTime": self.created,
            "AttributeDefinitions": [{"AttributeName": name, "AttributeType": kind} for name, kind, _ in self.key],
            "KeySchema": [{"AttributeName": name, "KeyType": role} for name, _, role in self.key],
            "BillingModeSummary": {"BillingMode": "PAY_PER_REQUEST"},
            "ItemCount": len(sizes),
            "TableSizeBytes": sum(sizes),
        }


class DynamoDb:
    """The service: `actions` by their names with AWS."""

    def __init__(self, limits: float, change_s: float) -> None:
        self._limits, self._change_s = limits, change_s
        self._tables: dict[str, Table] = {}
        self.actions: Actions = {
            "CreateTable": self.create_table,
            "DeleteTable": self.delete_table,
            "DescribeTable": self.describe_table,
            "ListTables": self.list_tables,
            "UpdateTimeToLive": self.update_time_to_live,
            "DescribeTimeToLive": self.describe_time_to_live,
            "PutItem": self.put_item,
            "UpdateItem": self.update_item,
            "DeleteItem": self.delete_item,
            "GetItem": self.get_item,
            "Query": self.query,
            "Scan": self.scan,
        }

    # --- tables ---------------------------------------------------------------------------------------------------

    def create_table(self, request: Request) -> dict[str, Any]:
        only(request, "TableName", "AttributeDefinitions", "KeySchema", "BillingMode")
        if request["TableName"] in self._tables:
            raise Refusal("ResourceInUseException", f"Table already exists: {request['TableName']}")
        if not _TABLE_NAME.fullmatch(request["TableName"]):
            _refuse("Invalid table/index name: it must have 3 to 255 of a-z, A-Z, 0-9, '_', '-' and '.'")
        if request.get("BillingMode") != "PAY_PER_REQUEST":
            _refuse("No provisioned throughput specified for the table")
        table = self._tables[request["TableName"]] = Table(request, self._limits)

        def ready() -> None:
            table.status = "ACTIVE"

        asyncio.get_running_loop().call_later(self._change_s, ready)
        return {"TableDescription": table.described()}

    def delete_table(self, request: Request) -> dict[str, Any]:
        only(request, "TableName")
        table = self._table(request)
        table.status = "DELETING"
        asyncio.get_running_loop().call_later(self._change_s, self._tables.pop, table.name)
        return {"TableDescription": table.described()}

    def describe_table(self, request: Request) -> dict[str, Any]:
        only(request, "TableName")
        return {"Table": self._table(request).described()}

    def list_tables(self, request: Request) -> dict[str, Any]:
        only(request)
        return {"TableNames": sorted(self._tables)}

    def update_time_to_live(self, request: Request) -> dict[str, Any]:
        only(request, "TableName", "TimeToLiveSpecification")
        table, wanted = self._table(request, usable=True), request["TimeToLiveSpecification"]
        if wanted["Enabled"] == (table.ttl_attribute is not None):
            _refuse(f"TimeToLive is already {'enabled' if wanted['Enabled'] else 'disabled'}")
        table.ttl_attribute = wanted["AttributeName"] if wanted["Enabled"] else None
        return {"TimeToLiveSpecification": wanted}

    def describe_time_to_live(self, request: Request) -> dict[str, Any]:
        only(request, "TableName")
        attribute = self._table(request).ttl_attribute
        status = {"TimeToLiveStatus": "ENABLED", "AttributeName": attribute} if attribute else None
        return {"TimeToLiveDescription": status or {"TimeToLiveStatus": "DISABLED"}}

    # --- writing --------------------------------------------------------------------------------------------------

    def put_item(self, request: Request) -> dict[str, Any]:
        only(request, "TableName", "Item", *_GUARD)
        table, item = self._table(request, usable=True), request["Item"]
        size = _item_size(item)
        return self._written(request, table, table.key_of(item, alone=False), lambda *_: item, size)

    def delete_item(self, request: Request) -> dict[str, Any]:
        only(request, "TableName", "Key", *_GUARD)
        table = self._table(request, usable=True)
        _item_size(request["Key"])
        return self._written(request, table, table.key_of(request["Key"], alone=True), lambda *_: None, 0)

    def update_item(self, request: Request) -> dict[str, Any]:
        only(request, "TableName", "Key", "UpdateExpression", *_GUARD)
        table, key_item = self._table(request, usable=True), request["Key"]
        _item_size(key_item)
        key = table.key_of(key_item, alone=True)
        change = update(request["UpdateExpression"]) if "UpdateExpression" in request else Compiled()

        def changed(item: Item | None, names: Names, values: Values) -> Item:
            written = [resolved(name, names) for name in change.attributes]
            if len(set(written)) < len(written):
                _refuse("Invalid UpdateExpression: Two document paths overlap with each other")
            for name in written:
                if name in key_item:
                    _refuse(f"Cannot update attribute {name}. This attribute is part of the key")
            return change.changed(key_item if item is None else item, names, values)

        return self._written(request, table, key, changed, 0, change)

    def _written(
        self,
        request: Request,
        table: Table,
        key: Key,
        change: Callable[[Item | None, Names, Values], Item | None],
        size: int,
        *more: Compiled,
    ) -> dict[str, Any]:
        """One write under its condition."""
        guard = condition(request["ConditionExpression"]) if "ConditionExpression" in request else None
        names, values = _placeholders(request, [*more, *([guard] if guard else [])])
        before = table.item(key)
        table.spend(key, size)
        if guard is not None and not guard.holds(before or {}, names, values):
            wanted = request.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD" and before is not None
            raise Refusal(
                "ConditionalCheckFailedException",
                "The conditional request failed",
                more={"Item": before} if wanted else None,
            )
        after = change(before, names, values)
        if after is not None and size == 0:
            size = _item_size(after)
        table.write(key, after, size)
        returned = {"ALL_OLD": before, "ALL_NEW": after}.get(request.get("ReturnValues", "NONE"))
        return {"Attributes": returned} if returned is not None else {}

    # --- reading --------------------------------------------------------------------------------------------------

    def get_item(self, request: Request) -> dict[str, Any]:
        only(request, "TableName", "Key", *_READ)
        table = self._table(request, usable=True)
        _item_size(request["Key"])
        item = table.item(table.key_of(request["Key"], alone=True))
        shown, names = _projection(request)
        _placeholders(request, [shown] if shown else [])
        return {} if item is None else {"Item": _projected(item, shown, names)}

    def scan(self, request: Request) -> dict[str, Any]:
        only(request, "TableName", *_PAGE)
        table = self._table(request, usable=True)
        return _page(request, table, table.after(_start(request, table)), None)

    def query(self, request: Request) -> dict[str, Any]:
        only(request, "TableName", "KeyConditionExpression", "ScanIndexForward", *_PAGE)
        table = self._table(request, usable=True)
        keys = condition(request["KeyConditionExpression"])
        names, values = request.get("ExpressionAttributeNames", {}), request.get("ExpressionAttributeValues", {})
        wanted = {resolved(name, names): values.get(value) for name, value in keys.equals.items()}.get(table.key[0][0])
        if wanted is None:
            _refuse(f"Query condition missed key schema element: {table.key[0][0]}")
        start, part = _start(request, table), comparable(wanted)[1]
        bucket = table.buckets[_bucket((part,))]
        forward = request.get("ScanIndexForward", True)
        found = sorted((key for key in bucket if key[0] == part), reverse=not forward)
        left = (key for key in found if start is None or (key > start if forward else key < start))
        held = (bucket[key] for key in left if keys.holds(bucket[key][0], names, values))
        return _page(request, table, held, keys)

    def _table(self, request: Request, *, usable: bool = False) -> Table:
        name = str(request.get("TableName", "")).rpartition("/")[2]
        table = self._tables.get(name)
        if table is None or (usable and table.status != "ACTIVE"):
            raise Refusal("ResourceNotFoundException", f"Requested resource not found: Table: {name} not found")
        return table


def _bucket(key: Key) -> int:
    return crc32(key[0] if isinstance(key[0], bytes) else str(key[0]).encode()) * _BUCKETS >> 32


def _start(request: Request, table: Table) -> Key | None:
    start = request.get("ExclusiveStartKey")
    return None if start is None else table.key_of(start, alone=True)


def _page(request: Request, table: Table, held: Iterator[tuple[Item, int]], keys: Compiled | None) -> dict[str, Any]:
    """What a Scan or Query answers: up to a limit of items, and of bytes before the filter."""
    wanted = condition(request["FilterExpression"]) if "FilterExpression" in request else None
    shown, _ = _projection(request)
    names, values = _placeholders(request, [each for each in (wanted, shown, keys) if each is not None])
    limit = request.get("Limit")
    items: list[Item] = []
    scanned = size = 0
    last: Item | None = None
    for item, item_size in held:
        if last is not None and (scanned == limit or size + item_size > PAGE_BYTES_MAX):
            break
        scanned, size, last = scanned + 1, size + item_size, item
        if wanted is None or wanted.holds(item, names, values):
            items.append(_projected(item, shown, names))
    else:
        if scanned != limit:  # AWS says that there may be more also where the limit was met at the very end
            last = None
    answer: dict[str, Any] = {"Items": items, "Count": len(items), "ScannedCount": scanned}
    if last is not None:
        answer["LastEvaluatedKey"] = table.key_item(last)
    return answer


def _placeholders(request: Request, used: list[Compiled]) -> tuple[Names, Values]:
    for value in request.get("ExpressionAttributeValues", {}).values():
        _checked(value, 1)
    return check_placeholders(request, used)


def _projection(request: Request) -> tuple[Compiled | None, Mapping[str, str]]:
    text = request.get("ProjectionExpression")
    return (None if text is None else projection(text)), request.get("ExpressionAttributeNames", {})


def _projected(item: Item, shown: Compiled | None, names: Names) -> Item:
    if shown is None:
        return item
    wanted = [resolved(name, names) for name in shown.attributes]
    return {name: item[name] for name in wanted if name in item}


def _item_size(item: Any) -> int:
    """Checks the attributes, normalizes their numbers in place, and returns what they count for in bytes."""
    if not isinstance(item, dict):
        raise Refusal("SerializationException", "")
    size = _attributes_size(item, 1)
    if size > ITEM_BYTES_MAX:
        _refuse("Item size has exceeded the maximum allowed size")
    return size


def _attributes_size(attributes: Mapping[str, Any], depth: int) -> int:
    if "" in attributes:
        _refuse("Empty attribute name")
    return sum(len(name.encode()) + _checked(each, depth) for name, each in attributes.items())


def _checked(attribute: Any, depth: int) -> int:
    """An attribute's size."""
    if not isinstance(attribute, dict) or len(attribute) != 1:
        _refuse("Supplied AttributeValue is empty, must contain exactly one of the supported datatypes")
    ((kind, value),) = attribute.items()
    if kind in ("S", "N", "B"):
        attribute[kind], size = _scalar(kind, value)
        return size
    if kind in ("BOOL", "NULL"):
        return 1
    if kind in ("SS", "NS", "BS"):
        found = [_scalar(kind[0], each) for each in value]
        attribute[kind] = [each for each, _ in found]
        if not found or len(set(attribute[kind])) < len(found):
            _refuse("One or more parameter values were invalid: a set is empty or contains duplicates")
        return sum(size for _, size in found)
    if depth > NESTING_MAX:
        _refuse("Nesting Levels have exceeded supported limits")
    if kind == "L":
        return 3 + sum(1 + _checked(each, depth + 1) for each in value)
    if kind == "M":
        return 3 + len(value) + _attributes_size(value, depth + 1)
    raise Refusal("ValidationException", f"Supplied AttributeValue has an unknown datatype {kind}")


def _scalar(kind: str, value: Any) -> tuple[str, int]:
    """(the value as it is kept, its size)"""
    if not isinstance(value, str):
        raise Refusal("SerializationException", "")
    if kind == "S":
        return value, len(value) if value.isascii() else len(value.encode())
    if kind == "B":
        try:
            return value, len(binascii.a2b_base64(value, strict_mode=True))
        except ValueError:
            raise Refusal("SerializationException", "") from None
    if not _PLAIN_NUMBER.fullmatch(value):
        try:
            number = Decimal(value)
        except InvalidOperation:
            number = Decimal("NaN")
        if not number.is_finite():
            _refuse("The parameter cannot be converted to a numeric value")
        value = exact(number)
    return value, len(value) // 2 + 1


def _refuse(message: str) -> NoReturn:
    raise Refusal("ValidationException", message)


if __name__ == "__main__":
    told = arguments("A stand-in for DynamoDB.").parse_args()
    serve("DynamoDB_20120810", DynamoDb(told.limits, told.change_s).actions, told.port)
