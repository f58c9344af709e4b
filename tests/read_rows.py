"""Rows for the read API in both stores, written as the subscriber and the publisher write them."""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import orjson

from lab.parts import PostgresServer
from upwell.aws import AwsService
from upwell.claims import Claims
from upwell.clock import SystemClock
from upwell.heartbeat import HEARTBEAT, Beat, heartbeat
from upwell.items import ItemForm, KeyTemplates
from upwell.model import ChangeEvent, Column, Kind, TableName, TableSchema, Value, pack_version
from upwell.ports import Listing, Reader
from upwell.readers.dynamodb import DynamoDbReader, ItemPlace
from upwell.readers.postgres import PostgresReader
from upwell.sinks.dynamodb import DynamoDbSink
from upwell.targets.postgres import PostgresTarget
from upwell.targets.postgres_tables import target_name

PIPELINE = "shop"
REGION = "eu-west-1"
INDEX_S = 120.0  # DynamoDB Local on a busy machine
ORDERS = TableSchema(
    "dbo.orders",
    (
        Column("id", "int", Kind.INT),
        Column("country", "nvarchar(2)", Kind.TEXT),
        Column("placed", "datetime2(3)", Kind.TIMESTAMP),
        Column("total", "decimal(12,2)", Kind.DECIMAL),
        Column("note", "nvarchar(max)", Kind.TEXT),
        Column("tenant_id", "nvarchar(20)", Kind.TEXT),
    ),
    ("id",),
    "sqlserver",
)
LINES = TableSchema(
    "dbo.order_lines",
    (
        Column("tenant_id", "nvarchar(20)", Kind.TEXT),
        Column("sku", "nvarchar(50)", Kind.TEXT),
        Column("line", "int", Kind.INT),
        Column("amount", "int", Kind.INT),
    ),
    ("tenant_id", "sku", "line"),
    "sqlserver",
)
COUNTRIES = TableSchema(
    "dbo.countries",
    (Column("code", "nvarchar(20)", Kind.TEXT), Column("name", "nvarchar(50)", Kind.TEXT)),
    ("code",),
    "sqlserver",
)
BY_COUNTRY = {"by-country": ("country", "placed"), "by-tenant": ("tenant_id", "id")}


@dataclass
class Store:
    """Where rows are written, and what reads them."""

    name: str
    reader: Reader
    write: "Writes"
    layout: "Layout"

    def empty(self) -> None:
        """Delete all rows, as the source would."""
        for schema in self.layout.schemas:
            after = None
            while True:
                page = self.reader.page(Listing(schema, None, None, None, after, 1000))
                for found in page.found:
                    self.write.delete(schema, *(found.row[index] for index in schema.key_indexes))
                after = page.after
                if after is None:
                    break


class Writes:
    """What a store can be told to hold."""

    def __init__(self) -> None:
        self.commit = 0

    def put(self, schema: TableSchema, rows: Sequence[Sequence[Value]]) -> None:
        self.apply([self._event(schema, row) for row in rows])

    def delete(self, schema: TableSchema, *key: Value) -> None:
        version = self._version()
        self.apply([ChangeEvent(schema, "d", version, "2026-01-31T10:00:00Z", orjson.dumps(key), None, "delete")])

    def beat(self, as_of: str, resyncing: Sequence[str] = ()) -> None:
        self.apply(heartbeat(PIPELINE, 1, self._version(), Beat(as_of, resyncing, 1, 1), every_lane=False))

    def apply(self, events: Sequence[ChangeEvent]) -> None:
        raise NotImplementedError

    def _version(self) -> bytes:
        self.commit += 1
        return pack_version(1, self.commit, 0)

    def _event(self, schema: TableSchema, row: Sequence[Value]) -> ChangeEvent:
        key = orjson.dumps([row[index] for index in schema.key_indexes])
        return ChangeEvent(schema, "u", self._version(), "2026-01-31T10:00:00Z", key, orjson.dumps(row), "update")


class ToDynamoDb(Writes):
    def __init__(self, sink: DynamoDbSink) -> None:
        super().__init__()
        self._sink = sink

    def apply(self, events: Sequence[ChangeEvent]) -> None:
        rest = list(events)
        while rest:
            parcel = self._sink.pack(0, 1, 1, None, rest)
            assert not parcel.rejected
            assert self._sink.send([parcel]) == [None]
            assert not parcel.rejected
            rest = rest[parcel.taken :]


class ToPostgres(Writes):
    def __init__(self, target: PostgresTarget) -> None:
        super().__init__()
        self._target = target

    def apply(self, events: Sequence[ChangeEvent]) -> None:
        by_table: dict[str, list[ChangeEvent]] = {}
        for event in events:
            by_table.setdefault(event.schema.table, []).append(event)
        with self._target.begin() as transaction:
            for ours in by_table.values():
                schema = ours[0].schema
                transaction.ensure_table(schema)
                rows = {event.key: event.values() for event in ours if event.row is not None}
                keys = [event.values() for event in ours if event.row is None]
                assert not transaction.upsert(schema, [rows[key] for key in sorted(rows)])
                transaction.delete(schema, keys)


@dataclass
class Layout:
    """What the stores are to hold."""

    schemas: Sequence[TableSchema]
    indexes: Mapping[str, Mapping[str, tuple[str, str | None]]] = field(default_factory=dict)  # table → name → columns
    templates: Mapping[str, KeyTemplates] = field(default_factory=dict)


SHOP = Layout((ORDERS, LINES, COUNTRIES), {ORDERS.table: BY_COUNTRY})


@contextmanager
def dynamodb_store(endpoint: str, layout: Layout = SHOP, claims: Claims | None = None) -> Iterator[Store]:
    service = AwsService("dynamodb", REGION, endpoint_url=endpoint)
    prefix = f"api{uuid.uuid4().hex[:12]}-"
    sink = DynamoDbSink(
        service,
        SystemClock(),
        table_prefix=prefix,
        templates=lambda schema: layout.templates.get(schema.table),
        claims=claims,
    )
    schemas = [*layout.schemas, HEARTBEAT]
    sink.prepare(schemas)
    forms = {schema.table: sink.form(schema) for schema in schemas}
    for table, indexes in layout.indexes.items():
        for name, columns in indexes.items():
            _add_index(service, forms[table], name, columns)
    places = {table: ItemPlace(form.table, layout.templates.get(table)) for table, form in forms.items()}
    reader = DynamoDbReader(AwsService("dynamodb", REGION, endpoint_url=endpoint), places, claims)
    try:
        yield Store("dynamodb", reader, ToDynamoDb(sink), layout)
    finally:
        reader.close()
        for name in {form.table for form in forms.values()}:
            service.call("DeleteTable", {"TableName": name})
        service.close()


def _add_index(service: AwsService, form: ItemForm, name: str, columns: tuple[str, str | None]) -> None:
    types = {Kind.INT: "N", Kind.DECIMAL: "N", Kind.BYTES: "B"}
    known = {column.name: column for column in form.schema.columns}
    key = [column for column in columns if column is not None]
    definitions = [{"AttributeName": each, "AttributeType": types.get(known[each].kind, "S")} for each in key]
    definitions += [
        {"AttributeName": each.name, "AttributeType": each.type} for each in form.key_attributes if each.name not in key
    ]
    roles = [{"AttributeName": each, "KeyType": role} for each, role in zip(key, ("HASH", "RANGE"), strict=False)]
    index = {"IndexName": name, "KeySchema": roles, "Projection": {"ProjectionType": "ALL"}}
    service.call(
        "UpdateTable",
        {
            "TableName": form.table,
            "AttributeDefinitions": definitions,
            "GlobalSecondaryIndexUpdates": [{"Create": index}],
        },
    )
    clock = SystemClock()
    deadline = clock.monotonic() + INDEX_S
    while True:
        table = service.call("DescribeTable", {"TableName": form.table})["Table"]
        made = [each for each in table.get("GlobalSecondaryIndexes", []) if each["IndexName"] == name]
        if made and made[0]["IndexStatus"] == "ACTIVE":
            return
        assert clock.monotonic() < deadline
        clock.sleep(0.05)


@contextmanager
def postgres_store(server: PostgresServer, database: str, layout: Layout = SHOP) -> Iterator[Store]:
    target = PostgresTarget(server.url(database), create_tables=True, schema_changes="apply")
    schemas = [*layout.schemas, HEARTBEAT]
    writes = ToPostgres(target)
    with target.begin() as transaction:
        for schema in layout.schemas:
            transaction.ensure_table(schema)
    names = {schema.table: target_name(schema) for schema in layout.schemas}
    names[HEARTBEAT.table] = TableName.parse(HEARTBEAT.table)
    reader = PostgresReader(server.url(database), names)
    assert len(names) == len(schemas)
    try:
        yield Store("postgresql", reader, writes, layout)
    finally:
        reader.close()
        target.close()


@contextmanager
def new_database(server: PostgresServer) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex[:12]}"
    server.create_database(name)
    try:
        yield name
    finally:
        server.drop_database(name)
