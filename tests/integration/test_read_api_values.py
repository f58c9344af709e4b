"""A row is the same JSON whichever store it was read from. And DynamoDB's own: rows in S3, shared tables."""

import json
import uuid
from base64 import b64encode
from collections.abc import Iterator
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.parts import PostgresServer
from tests.fake_s3 import FakeS3
from tests.read_rows import LINES, Layout, Store, dynamodb_store, new_database, postgres_store
from upwell.claims import Claims
from upwell.items import KeyTemplates
from upwell.model import Column, Kind, TableSchema, Value
from upwell.ports import Listing, ReadIndex
from upwell.s3 import S3Bucket

A, B = ("tenant_id", "a"), ("tenant_id", "b")
ID = Column("id", "int", Kind.INT)
FROM_POSTGRES = TableSchema(
    "public.everything",
    (
        ID,
        Column("flag", "boolean", Kind.BOOL),
        Column("small", "smallint", Kind.INT),
        Column("big", "bigint", Kind.INT),
        Column("price", "numeric(12,2)", Kind.DECIMAL),
        Column("whole", "numeric(20)", Kind.DECIMAL),
        Column("any_number", "numeric", Kind.DECIMAL),
        Column("ratio", "double precision", Kind.FLOAT),
        Column("name", "text", Kind.TEXT),
        Column("fixed", "character(5)", Kind.TEXT),
        Column("bytes", "bytea", Kind.BYTES),
        Column("day", "date", Kind.DATE),
        Column("hour", "time without time zone", Kind.TIME),
        Column("local", "timestamp without time zone", Kind.TIMESTAMP),
        Column("moment", "timestamp with time zone", Kind.TIMESTAMPTZ),
        Column("uuid", "uuid", Kind.UUID),
        Column("document", "json", Kind.JSON),
        Column("binary_document", "jsonb", Kind.JSON),
        Column("list", "integer[]", Kind.OTHER),
    ),
    ("id",),
    "postgresql",
)
FROM_SQLSERVER = TableSchema(
    "dbo.everything",
    (
        ID,
        Column("money", "money", Kind.DECIMAL),
        Column("price", "decimal(9,3)", Kind.DECIMAL),
        Column("short", "datetime2(3)", Kind.TIMESTAMP),
        Column("old", "datetime", Kind.TIMESTAMP),
        Column("minute", "smalldatetime", Kind.TIMESTAMP),
        Column("hour", "time(7)", Kind.TIME),
        Column("ratio", "real", Kind.FLOAT),
        Column("name", "nvarchar(max)", Kind.TEXT),
        Column("key", "uniqueidentifier", Kind.UUID),
    ),
    ("id",),
    "sqlserver",
    target="from_sqlserver",
)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
MOMENTS = st.datetimes(min_value=datetime.fromisoformat("1800-01-01"))


def decimal(digits: int, scale: int) -> st.SearchStrategy[str]:
    def text(number: int) -> str:
        sign, figures = "-" if number < 0 else "", str(abs(number)).rjust(scale + 1, "0")
        return sign + (f"{figures[:-scale]}.{figures[-scale:]}" if scale else figures)

    return st.integers(-(10**digits) + 1, 10**digits - 1).map(text)


def trimmed(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT.filter(bool), inner, max_size=3),
    max_leaves=6,
).map(lambda value: json.dumps(value, ensure_ascii=False))
POSTGRES_ROW = st.tuples(
    st.just(1),
    st.none() | st.booleans(),
    st.none() | st.integers(-(2**15), 2**15 - 1),
    st.integers(-(2**63), 2**63 - 1).map(lambda n: n if abs(n) <= 2**53 else str(n)),
    st.none() | decimal(12, 2) | st.just("NaN"),
    decimal(20, 0),
    decimal(30, 5) | st.sampled_from(["NaN", "0", "0.000", "1000", "12.50", "-0.10"]),
    st.floats(allow_nan=False, allow_infinity=False, min_value=-1e100, max_value=1e100).map(
        lambda x: 0.0 if abs(x) < 1e-100 else x
    )
    | st.sampled_from(["NaN", "Infinity", "-Infinity", 0.1, -0.0]),
    st.none() | TEXT,
    TEXT.filter(lambda text: len(text) <= 5).map(lambda text: text.ljust(5)),
    st.none() | st.binary(min_size=1, max_size=20).map(lambda b: b64encode(b).decode()),
    st.dates().map(str),
    st.times().map(lambda t: trimmed(t.isoformat())),
    MOMENTS.map(lambda t: trimmed(t.isoformat())) | st.just("infinity"),
    MOMENTS.map(lambda t: trimmed(t.isoformat()) + "Z") | st.just("-infinity"),
    st.uuids().map(str),
    st.none() | JSONS,
    JSONS,
    st.none() | st.lists(st.integers(0, 9), max_size=3).map(lambda n: "{" + ",".join(map(str, n)) + "}"),
)
SQLSERVER_ROW = st.tuples(
    st.just(1),
    st.none() | decimal(15, 4),
    decimal(9, 3),
    MOMENTS.map(lambda t: t.isoformat(timespec="milliseconds")),
    MOMENTS.map(lambda t: t.isoformat(timespec="milliseconds")),
    MOMENTS.map(lambda t: t.replace(second=0).isoformat(timespec="seconds")),
    st.times().map(lambda t: t.isoformat(timespec="microseconds") + "0"),
    st.floats(width=16, allow_nan=False, allow_infinity=False),
    TEXT,
    st.uuids().map(str),
)


@pytest.fixture(scope="module")
def both(postgres_cluster: PostgresServer, indexing_dynamodb_endpoint: str) -> Iterator[tuple[Store, Store]]:
    layout = Layout((FROM_POSTGRES, FROM_SQLSERVER))
    with (
        new_database(postgres_cluster) as database,
        postgres_store(postgres_cluster, database, layout) as relational,
        dynamodb_store(indexing_dynamodb_endpoint, layout) as items,
    ):
        yield relational, items


@pytest.mark.parametrize(
    ("schema", "rows"),
    [(FROM_POSTGRES, POSTGRES_ROW), (FROM_SQLSERVER, SQLSERVER_ROW)],
    ids=["postgresql", "sqlserver"],
)
def test_the_same_row_is_the_same_in_both_stores(
    both: tuple[Store, Store], schema: TableSchema, rows: st.SearchStrategy[tuple[Value, ...]]
) -> None:
    @given(rows)
    @settings(max_examples=40)
    def check(row: tuple[Value, ...]) -> None:
        found = []
        for store in both:
            store.write.put(schema, [row])
            found.append(store.reader.get(schema, [1], None))
        assert found[0] == found[1]
        for column, wire, shown in zip(schema.columns, row, found[0] or [], strict=True):
            if column.kind not in (Kind.DECIMAL, Kind.JSON, Kind.FLOAT) or schema.dialect == "sqlserver":
                assert shown == wire, column.name

    check()


BINARY = TableSchema(
    "dbo.binary",
    (Column("id", "binary(2)", Kind.BYTES), Column("digest", "varbinary(9)", Kind.BYTES)),
    ("id",),
    "sqlserver",
)
BY_DIGEST = ReadIndex("by-digest", "digest", None)


def test_what_is_no_base64_is_no_bytes(postgres_cluster: PostgresServer, indexing_dynamodb_endpoint: str) -> None:
    layout = Layout((BINARY,), {BINARY.table: {BY_DIGEST.name: (BY_DIGEST.partition_key, None)}})
    with (
        new_database(postgres_cluster) as database,
        postgres_store(postgres_cluster, database, layout) as relational,
        dynamodb_store(indexing_dynamodb_endpoint, layout) as items,
    ):
        for store in (relational, items):
            store.write.put(BINARY, [["AQI=", "AQID"]])
            for text in ("AQI", "AQI=\n", "AQ I=", "====", "=", "\0", "AQID\0", "é", "-_-_", "x" * 3000):
                assert store.reader.get(BINARY, [text], None) is None
                assert not store.reader.page(Listing(BINARY, None, BY_DIGEST, text, None, 9)).found
            for same in ("AQI=", "AQJ="):  # the last bits of the latter are of no byte
                assert store.reader.get(BINARY, [same], None) == ["AQI=", "AQID"]
            assert len(store.reader.page(Listing(BINARY, None, BY_DIGEST, "AQID", None, 9)).found) == 1


# --- DynamoDB only --------------------------------------------------------------------------------------------------


def test_a_row_whose_rest_waits_in_s3_is_read_from_there(indexing_dynamodb_endpoint: str) -> None:
    large = TableSchema(
        "dbo.large",
        (ID, Column("text", "nvarchar(max)", Kind.TEXT), Column("tenant_id", "int", Kind.TEXT)),
        ("id",),
        "sqlserver",
    )
    with FakeS3("upwell-test") as s3:
        bucket = S3Bucket("upwell-test", "eu-west-1", endpoint_url=s3.url)
        claims = Claims(bucket, "upwell/", "shop")
        with dynamodb_store(indexing_dynamodb_endpoint, Layout((large,)), claims) as store:
            mine: list[list[Value]] = [[n, str(n) * 700_000, "a"] for n in range(1, 4)]
            store.write.put(large, [*mine, [9, "x" * 500_000, "b"]])
            assert s3.count("PUT") == 4
            assert store.reader.get(large, [1], A) == mine[0]
            assert store.reader.get(large, [9], A) is None
            found, after, pages = [], None, 0
            while after is not None or not pages:
                page = store.reader.page(Listing(large, A, None, None, after, 100))
                found += [each.row for each in page.found]
                after, pages = page.after, pages + 1
            assert sorted(found, key=lambda row: str(row[0])) == mine
            assert pages > 1
        claims.close()


def test_rows_of_others_in_s3_cost_no_more_than_ones_own(indexing_dynamodb_endpoint: str) -> None:
    keyed = (Column("tenant_id", "nvarchar(9)", Kind.TEXT), ID, Column("text", "nvarchar(max)", Kind.TEXT))
    by_id = TableSchema("dbo.by_id", keyed, ("id",), "sqlserver")
    by_tenant = TableSchema("dbo.by_tenant", keyed, ("id", "tenant_id"), "sqlserver")
    with FakeS3("upwell-test") as s3:
        claims = Claims(S3Bucket("upwell-test", "eu-west-1", endpoint_url=s3.url), "upwell/", "shop")
        with dynamodb_store(indexing_dynamodb_endpoint, Layout((by_id, by_tenant)), claims) as store:
            for schema in (by_id, by_tenant):
                store.write.put(schema, [["b", n, str(n) * 700_000] for n in range(1, 6)])
            page = store.reader.page(Listing(by_id, A, None, None, None, 100))
            assert (page.found, s3.count("GET")) == ([], 2)  # whose they are is written there alone
            assert page.after is not None
            s3.objects.clear()
            assert store.reader.get(by_tenant, [1, "b"], A) is None  # nor does it matter what has become of them
            page = store.reader.page(Listing(by_tenant, A, None, None, None, 100))
            assert (page.found, page.after, s3.count("GET")) == ([], None, 2)
        claims.close()


def test_in_a_shared_table_each_sees_its_own(indexing_dynamodb_endpoint: str) -> None:
    table = f"shared-{uuid.uuid4().hex[:8]}"
    notes = TableSchema("dbo.notes", LINES.columns, LINES.key, LINES.dialect)
    templates = {
        "dbo.order_lines": KeyTemplates(table, "TENANT#{tenant_id}", "LINE#{sku}#{line:05}"),
        "dbo.notes": KeyTemplates(table, "NOTE#{tenant_id}", "NOTE#{sku}#{line:05}"),
    }
    with dynamodb_store(indexing_dynamodb_endpoint, Layout((LINES, notes), {}, templates)) as store:
        lines: list[list[Value]] = [["a", "x#y", 1, 1], ["a", "x", 2, 1], ["b", "x", 1, 1]]
        store.write.put(LINES, lines)
        store.write.put(notes, [["a", "x", 1, 2]])
        assert store.reader.get(LINES, ["a", "x#y", 1], A) == lines[0]
        assert store.reader.get(LINES, ["a", "x", 1], A) is None
        assert store.reader.get(notes, ["a", "x", 1], A) == ["a", "x", 1, 2]
        page = store.reader.page(Listing(LINES, A, None, None, None, 100))
        assert sorted((each.row for each in page.found), key=repr) == sorted(lines[:2], key=repr)
        assert store.reader.page(Listing(notes, B, None, None, None, 100)).found == []
