"""Reads for the API from DynamoDB tables: a row is a GetItem, a page is one Query or Scan.

Reads are consistent, so that no row goes back in time; only an index can't be read so. Tombstones are passed over, and
what of an item waits in S3 is fetched. `Limit` bounds what a page reads: where many items are of other tenants, or
deleted, a page may be empty and still not be the last one.
"""

from __future__ import annotations

from base64 import b64encode
from binascii import a2b_base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from upwell.aws import JsonService
from upwell.aws_errors import ResourceMissing, ServiceRefusal
from upwell.claims import Claims
from upwell.dynamodb_tables import no_such_table
from upwell.errors import OperatorError, Rejected
from upwell.heartbeat import HEARTBEAT
from upwell.items import (
    CLAIM,
    DELETED,
    PARTITION_KEY_BYTES_MAX,
    SOURCE_TABLE,
    Attribute,
    Item,
    ItemForm,
    KeyTemplates,
    attribute_bytes,
    attribute_of,
    attribute_type,
    claim_of,
    whole_item,
)
from upwell.model import Column, Kind, TableSchema, Value
from upwell.ports import Found, Listing, Page
from upwell.presentation import row_presenter

PAGE_BYTES_MAX: Final = 1024 * 1024  # of rows fetched from S3; DynamoDB itself ends a page there


class ItemPlace(NamedTuple):
    """Where a table's rows are in DynamoDB."""

    table: str
    templates: KeyTemplates | None = None


class DynamoDbReader:
    """A Reader; see ports.Reader."""

    def __init__(self, service: JsonService, places: Mapping[str, ItemPlace], claims: Claims | None = None) -> None:
        """`places`: source table → where its rows are, the heartbeat's included."""
        self._service = service
        self._places = places
        self._claims = claims
        self._forms: dict[str, ItemForm] = {}  # by the schema's hash

    def get(self, schema: TableSchema, key: Sequence[Value], tenant: tuple[str, str] | None) -> list[Value] | None:
        """See ports.Reader."""
        form = self._form(schema)
        columns = {column.name: column for column in schema.columns}
        try:
            written = [_written(columns[name], value) for name, value in zip(schema.key, key, strict=True)]
            request = {"TableName": form.table, "Key": form.key(written), "ConsistentRead": True}
        except Rejected:
            return None  # no item has such a key
        item = self._call("GetItem", request, form).get("Item")
        if item is None or DELETED in item or (form.shared and item.get(SOURCE_TABLE) != {"S": schema.table}):
            return None
        return self._row(form, item, tenant)

    def page(self, listing: Listing) -> Page:
        """See ports.Reader."""
        form = self._form(listing.schema)
        asked = _request(form, listing)
        if asked is None:
            return Page((), None)
        action, request = asked
        answer = self._call(action, request, form)
        found: list[Found] = []
        size, before = 0, None
        for item in answer["Items"]:
            if size > PAGE_BYTES_MAX:
                return Page(found, before)
            claim, before = claim_of(item), _place(form, listing, item)
            row = self._row(form, item, listing.tenant)
            if row is not None:
                found.append(Found(row, before))
            size += 0 if claim is None else claim.bytes  # another tenant's too: it was fetched to tell that it is
        return Page(found, answer.get("LastEvaluatedKey"))

    def heartbeats(self, pipeline: str) -> Sequence[Mapping[str, Any]]:
        """See ports.Reader."""
        form = self._form(HEARTBEAT)
        request: dict[str, Any] = {
            "TableName": form.table,
            "ConsistentRead": True,
            "KeyConditionExpression": "#p = :p",
            "ExpressionAttributeNames": {"#p": HEARTBEAT.key[0]},
            "ExpressionAttributeValues": {":p": {"S": pipeline}},
        }
        try:
            items = self._service.call("Query", request)["Items"]  # a thousand of them are far from a page's end
        except ResourceMissing:
            return []  # none has arrived yet
        names = [column.name for column in HEARTBEAT.columns]
        return [dict(zip(names, form.values(item), strict=True)) for item in items]

    def close(self) -> None:
        """See ports.Reader."""
        self._service.close()
        if self._claims is not None:
            self._claims.close()

    def _form(self, schema: TableSchema) -> ItemForm:
        form = self._forms.get(schema.hash)
        if form is None:
            place = self._places[schema.table]
            form = self._forms[schema.hash] = ItemForm(schema, place.table, place.templates)
        return form

    def _call(self, action: str, request: dict[str, Any], form: ItemForm) -> dict[str, Any]:
        try:
            return self._service.call(action, request)
        except ResourceMissing as error:
            raise no_such_table(form.table, self._service.region, form.key_attributes) from error
        except ServiceRefusal as refusal:  # it is asked for nothing that callers could spoil
            raise OperatorError(
                f"DynamoDB does not answer {action} of the table {form.table}: {refusal.message}",
                code="UW-AP-012",
                remedy="Make the global secondary indexes that `api.tables` names, with all attributes projected.",
            ) from refusal

    def _row(self, form: ItemForm, item: Item, tenant: tuple[str, str] | None) -> list[Value] | None:
        """None: it is another tenant's. Raises Rejected where its rest can't be had."""
        claim = claim_of(item)
        if claim is not None:
            if tenant is not None and tenant[0] in item and not _is_of(form, form.values(item), tenant):
                return None  # also where its rest can't be had
            if self._claims is None:
                raise Rejected("a row's rest waits in S3, and the configuration names no bucket", code="UW-AP-015")
            item = whole_item(item, self._claims.content(claim))
        values = form.values(item)
        if tenant is not None and not _is_of(form, values, tenant):
            return None
        return row_presenter(form.schema)(values)


def _is_of(form: ItemForm, values: Sequence[Value], tenant: tuple[str, str]) -> bool:
    value = values[[column.name for column in form.schema.columns].index(tenant[0])]
    return value is not None and str(value) == tenant[1]


@dataclass(slots=True)
class _Conditions:
    """Conditions with placeholders for names, which may be reserved words, and values."""

    names: dict[str, str] = field(default_factory=dict)
    values: dict[str, Attribute] = field(default_factory=dict)
    of_key: list[str] = field(default_factory=list)
    of_rest: list[str] = field(default_factory=list)

    def name(self, attribute: str) -> str:
        placeholder = f"#n{len(self.names)}"
        self.names[placeholder] = attribute
        return placeholder

    def equal(self, attribute: str, value: Attribute) -> str:
        placeholder = f":v{len(self.values)}"
        self.values[placeholder] = value
        return f"{self.name(attribute)} = {placeholder}"

    def absent(self, attribute: str) -> str:
        return f"attribute_not_exists({self.name(attribute)})"


def _request(form: ItemForm, listing: Listing) -> tuple[str, dict[str, Any]] | None:
    """The call that reads the next page; None where no item can be of this listing."""
    schema, index = listing.schema, listing.index
    columns = {column.name: column for column in schema.columns}
    keys, own = _keys(form, listing), {attribute.name for attribute in form.key_attributes}
    wanted: dict[str, Attribute] = {}
    for name, value in [
        *([(index.partition_key, listing.partition)] if index else []),
        *([listing.tenant] if listing.tenant else []),
    ]:
        attribute = _comparable(columns[name], value)
        if attribute is None or wanted.setdefault(name, attribute) != attribute:
            return None
    is_query = keys[0] in wanted
    conditions = _Conditions()
    for name, attribute in wanted.items():
        if is_query and name in keys:
            conditions.of_key.append(conditions.equal(name, attribute))
        elif name in own:
            conditions.of_rest.append(conditions.equal(name, attribute))
        else:
            # What waits in S3 may be of this tenant: it is looked at when it is there.
            claimed = f"attribute_exists({conditions.name(CLAIM)})"
            conditions.of_rest.append(f"({conditions.equal(name, attribute)} OR {claimed})")
    conditions.of_rest.append(conditions.absent(DELETED))
    if form.shared:
        conditions.of_rest.append(conditions.equal(SOURCE_TABLE, {"S": schema.table}))
    request: dict[str, Any] = {
        "TableName": form.table,
        "Limit": listing.limit,
        "FilterExpression": " AND ".join(conditions.of_rest),
        "ExpressionAttributeNames": conditions.names,
    }
    request |= {"ExpressionAttributeValues": conditions.values} if conditions.values else {}
    request |= {"KeyConditionExpression": " AND ".join(conditions.of_key)} if is_query else {}
    request |= {"IndexName": index.name} if index else {"ConsistentRead": True}
    request |= {"ExclusiveStartKey": listing.after} if listing.after is not None else {}
    return "Query" if is_query else "Scan", request


def _keys(form: ItemForm, listing: Listing) -> list[str]:
    """The key of what is read: the partition key, perhaps a sort key."""
    index = listing.index
    if index is None:
        return [attribute.name for attribute in form.key_attributes]
    return [index.partition_key, *([index.sort_key] if index.sort_key else [])]


def _written(column: Column, value: Value) -> Value:
    """Bytes in the one notation that DynamoDB is sure to take. Raises Rejected where it is none of bytes."""
    if column.kind is not Kind.BYTES or not isinstance(value, str):
        return value
    try:
        return b64encode(a2b_base64(value, strict_mode=True)).decode()
    except ValueError as error:
        raise Rejected("its key is not base64") from error


def _comparable(column: Column, value: Value) -> Attribute | None:
    """None where no item has this value in a key or beside it."""
    if value is None or value == "":
        return None
    try:
        attribute = attribute_of(column, _written(column, value))
    except Rejected:
        return None
    fits = attribute_type(column) in attribute and attribute_bytes(attribute) <= PARTITION_KEY_BYTES_MAX
    return attribute if fits else None


def _place(form: ItemForm, listing: Listing, item: Item) -> Item:
    """What DynamoDB would call the LastEvaluatedKey, had it stopped at this item."""
    names = dict.fromkeys([*_keys(form, listing), *(attribute.name for attribute in form.key_attributes)])
    return {name: item[name] for name in names}
