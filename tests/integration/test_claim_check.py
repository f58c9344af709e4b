"""Sinks whose rows go by way of S3 where they are too large: what is written, what waits, what a reader makes of it."""

from __future__ import annotations

import base64
import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import orjson
import pytest

from lab.parts import ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY
from tests.contract.test_sinks import make_stream, records
from tests.fake_s3 import FakeS3
from upwell.aws import AwsService
from upwell.claims import Claims
from upwell.clock import SystemClock
from upwell.envelope import ReceivedEvent, redeemed, unpack_record
from upwell.errors import Rejected
from upwell.items import ITEM_BYTES_MAX
from upwell.model import ChangeEvent, Column, Kind, TableSchema, Value, pack_version
from upwell.ports import Parcel, Sink
from upwell.s3 import S3Bucket
from upwell.sinks.dynamodb import DynamoDbSink
from upwell.sinks.kinesis import KinesisSink

TIME = "2026-01-31T10:00:00Z"
USERS = TableSchema(
    "public.users",
    (
        Column("id", "int", Kind.INT),
        Column("name", "text", Kind.TEXT),
        Column("doc", "text", Kind.TEXT),
        Column("raw", "bytea", Kind.BYTES),
    ),
    ("id",),
    "postgresql",
)
DOCLESS = USERS.without(frozenset({"doc"}))
LARGE = "ü" * 600_000  # 1.2 MB
BUCKET = "claims-of-a-test"


def upsert(commit: int, *given: Value, schema: TableSchema = USERS) -> ChangeEvent:
    """A row of these values, NULL in the columns that follow."""
    row = [*given, *[None] * (len(schema.columns) - len(given))]
    key = orjson.dumps([row[index] for index in schema.key_indexes])
    return ChangeEvent(schema, "u", pack_version(1, commit, 0), TIME, key, orjson.dumps(row), "update")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY)
    with FakeS3(BUCKET) as fake:
        yield fake


@pytest.fixture
def claims(bucket: FakeS3) -> Iterator[Claims]:
    with closing(Claims(S3Bucket(BUCKET, REGION, endpoint_url=bucket.url), "upwell/", "shop")) as claims:
        yield claims


def sent(sink: Sink, events: Sequence[ChangeEvent]) -> list[Parcel]:
    """One lane's parcels, each acknowledged before the next is packed."""
    parcels: list[Parcel] = []
    left = list(events)
    while left:
        parcels.append(sink.pack(0, 1, len(parcels) + 1, None, left))
        del left[: parcels[-1].taken]
        assert list(sink.send(parcels[-1:])) == [None]
    return parcels


# --- Kinesis ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def kinesis(kinesis_endpoint: str) -> Iterator[tuple[AwsService, str]]:
    with closing(AwsService("kinesis", REGION, endpoint_url=kinesis_endpoint)) as service:
        yield service, make_stream(service, 1)


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_only_what_is_too_large_takes_the_detour(
    kinesis: tuple[AwsService, str], bucket: FakeS3, claims: Claims, compression: Any
) -> None:
    service, stream = kinesis
    sink = KinesisSink("shop", stream, 1, service, compression=compression, claims=claims)
    noise = base64.b64encode(random.Random(1).randbytes(1_200_000)).decode()  # which zstd leaves large
    events = [
        upsert(1, 1, "small", "x"),
        upsert(2, 2, "0.9 MB", "x" * 900_000),
        upsert(3, 3, "1.5 MB", noise),
        upsert(4, 4, "after"),
    ]
    parcels = sent(sink, events)
    assert not any(parcel.rejected for parcel in parcels)
    received = [item for data in records(service, stream) for item in unpack_record(data).items]
    assert all(isinstance(item, ReceivedEvent) for item in received)
    large = [item for item in received if isinstance(item, ReceivedEvent) and item.claim]
    assert [item.key for item in large] == [(3,)]
    assert large[0].claim is not None
    assert list(bucket.objects) == [large[0].claim.object]
    assert redeemed(large[0], claims.content(large[0].claim)).values == [3, "1.5 MB", noise, None]
    assert [item.key for item in received if isinstance(item, ReceivedEvent)] == [(1,), (2,), (3,), (4,)]


def test_while_the_bucket_is_away_nothing_is_sent_and_other_parcels_are(
    kinesis: tuple[AwsService, str], bucket: FakeS3, claims: Claims
) -> None:
    service, stream = kinesis
    sink = KinesisSink("shop", stream, 2, service, claims=claims)
    large = sink.pack(0, 1, 1, None, [upsert(1, 1, "large", LARGE)])
    small = sink.pack(1, 1, 1, None, [upsert(2, 2, "small")])
    assert (large.detour, small.detour) == (True, False)
    bucket.go_away()
    waiting, done = sink.send([large, small])
    assert waiting is not None
    assert done is None
    assert [waiting is None for waiting in sink.send([large])] == [False]
    assert [item.key for data in records(service, stream) for item in unpack_record(data).items] == [(2,)]  # type: ignore[union-attr]
    bucket.come_back()
    assert list(sink.send([large])) == [None]
    assert not large.detour
    assert len(list(records(service, stream))) == 2
    assert bucket.count("PUT") == 1


def test_cloud_events_have_the_claim_in_place_of_the_row(
    kinesis: tuple[AwsService, str], bucket: FakeS3, claims: Claims
) -> None:
    service, stream = kinesis
    sink = KinesisSink("shop", stream, 1, service, format="cloudevents", claims=claims)
    sent(sink, [upsert(1, 1, "large", LARGE)])
    [event] = map(orjson.loads, records(service, stream))
    assert "row" not in event["data"]
    assert event["data"]["key"] == {"id": 1}
    claim = event["data"]["claim"]
    assert len(bucket.objects[claim["object"]]) == claim["bytes"]
    assert orjson.loads(bucket.objects[claim["object"]]) == {"id": 1, "name": "large", "doc": LARGE, "raw": None}


def test_what_is_too_large_even_so_says_why(kinesis: tuple[AwsService, str], claims: Claims) -> None:
    service, stream = kinesis
    beyond = upsert(1, 1, "x" * 33_554_432)
    by_key = upsert(1, "k" * 1_100_000, "", schema=TableSchema(*_text_key()))
    gone = ChangeEvent(by_key.schema, "d", by_key.version, TIME, by_key.key, None, "delete")
    sink = KinesisSink("shop", stream, 1, service, claims=claims)
    reasons = [sink.pack(0, 1, 1, None, [event]).rejected[0].reason for event in (beyond, by_key, gone)]
    assert "at most 33,554,432 go" in reasons[0]
    assert "a key can't go" in reasons[1]
    assert "a key can't go" in reasons[2]
    without = KinesisSink("shop", stream, 1, service).pack(0, 1, 1, None, [upsert(1, 1, "", LARGE)])
    assert "holds at most 1,048,576" in without.rejected[0].reason
    assert "claim_check" in without.rejected[0].reason


def _text_key() -> tuple[Any, ...]:
    return "main.t", (Column("id", "text", Kind.TEXT), *USERS.columns[1:]), ("id",), "sqlite"


# --- DynamoDB ---------------------------------------------------------------------------------------------------------

Make = Callable[..., DynamoDbSink]


@pytest.fixture
def dynamodb(dynamodb_endpoint: str) -> Iterator[AwsService]:
    with closing(AwsService("dynamodb", REGION, endpoint_url=dynamodb_endpoint)) as service:
        yield service


@pytest.fixture
def prefix() -> str:
    return f"test-{uuid.uuid4().hex[:12]}-"


@pytest.fixture
def sink(dynamodb: AwsService, prefix: str, claims: Claims) -> DynamoDbSink:
    sink = DynamoDbSink(dynamodb, SystemClock(), table_prefix=prefix, claims=claims)
    sink.prepare([USERS])
    return sink


def item(service: AwsService, prefix: str, id_: int) -> dict[str, Any]:
    request = {"TableName": f"{prefix}users", "Key": {"id": {"N": str(id_)}}, "ConsistentRead": True}
    found: dict[str, Any] = service.call("GetItem", request)["Item"]
    return found


def test_a_large_item_is_in_the_bucket_and_reads_as_a_whole(
    sink: DynamoDbSink, dynamodb: AwsService, prefix: str, bucket: FakeS3
) -> None:
    events = [
        upsert(1, 1, "small", "x"),
        upsert(2, 2, "300 kB", "x" * 300_000),
        upsert(3, 3, "1.2 MB", LARGE, "AAEC"),
    ]
    assert not any(parcel.rejected for parcel in sent(sink, events))
    assert sorted(sink.rows(USERS)) == [orjson.loads(event.row or b"") for event in events]
    stored = item(dynamodb, prefix, 3)
    assert stored.keys() == {"id", "_upwell_v", "_upwell_claim"}
    where = stored["_upwell_claim"]["M"]
    content = bucket.objects[where["object"]["S"]]
    assert orjson.loads(content) == {
        "id": {"N": "3"}, "name": {"S": "1.2 MB"}, "doc": {"S": LARGE}, "raw": {"B": "AAEC"}
    }  # fmt: skip
    assert len(content) == int(where["bytes"]["N"]) > ITEM_BYTES_MAX


def test_a_part_of_a_row_is_laid_over_what_is_in_the_bucket(
    sink: DynamoDbSink, dynamodb: AwsService, prefix: str, bucket: FakeS3
) -> None:
    sent(sink, [upsert(1, 1, "was", LARGE, "AAEC"), upsert(2, 2, "was", "small", "AAEC")])
    sent(sink, [upsert(3, 1, "is", None, schema=DOCLESS), upsert(4, 2, "is", None, schema=DOCLESS)])
    assert sorted(sink.rows(USERS)) == [[1, "is", LARGE, None], [2, "is", "small", None]]
    assert item(dynamodb, prefix, 1)["raw"] == {"NULL": True}
    assert "raw" not in item(dynamodb, prefix, 2)
    assert bucket.count("PUT") == 1
    # An older one that lands late changes nothing, whichever of the two forms it finds.
    late = [upsert(1, 1, "late", None, schema=DOCLESS), upsert(1, 2, "late", None, schema=DOCLESS)]
    sent(sink, late)
    assert sorted(sink.rows(USERS)) == [[1, "is", LARGE, None], [2, "is", "small", None]]
    sent(sink, [upsert(5, 1, "whole", "small", None)])
    assert item(dynamodb, prefix, 1).keys() == {"id", "_upwell_v", "name", "doc"}


def test_events_of_one_row_that_travel_together_make_one_object(sink: DynamoDbSink, bucket: FakeS3) -> None:
    events = [upsert(1, 1, "was", "x" * 300_000), upsert(2, 1, "n" * 200_000, "AAEC", schema=DOCLESS)]
    parcel = sink.pack(0, 1, 1, None, events)
    assert parcel.taken == 2
    assert parcel.detour
    assert list(sink.send([parcel])) == [None]
    assert list(sink.rows(USERS)) == [[1, "n" * 200_000, "x" * 300_000, "AAEC"]]
    assert len(bucket.objects) == 1


def test_a_part_that_is_too_large_says_what_would_help(sink: DynamoDbSink) -> None:
    [rejection] = sink.pack(0, 1, 1, None, [upsert(1, 1, LARGE, None, schema=DOCLESS)]).rejected
    assert "REPLICA IDENTITY FULL" in rejection.reason


def test_while_the_bucket_is_away_the_rest_of_the_parcel_goes(
    sink: DynamoDbSink, dynamodb: AwsService, bucket: FakeS3
) -> None:
    bucket.go_away()
    parcel = sink.pack(0, 1, 1, None, [upsert(2, 2, "small"), upsert(3, 1, "large", LARGE)])
    other = sink.pack(1, 1, 1, None, [upsert(3, 3, "other lane")])
    assert parcel.detour
    waiting, done = sink.send([parcel, other])
    assert waiting is not None
    assert done is None
    assert sorted(sink.rows(USERS)) == [[2, "small", None, None], [3, "other lane", None, None]]
    assert [waiting is None for waiting in sink.send([parcel])] == [False], "not raised: it is not DynamoDB"
    bucket.come_back()
    assert list(sink.send([parcel])) == [None]
    assert sorted(sink.rows(USERS))[0] == [1, "large", LARGE, None]


def test_verify_reads_through_the_claim(sink: DynamoDbSink, dynamodb: AwsService, prefix: str, bucket: FakeS3) -> None:
    row: list[Value] = [1, "large", LARGE, "AAEC"]
    sent(sink, [upsert(1, *row)])
    canonical = sink.canonical(USERS)
    assert list(sink.rows(USERS)) == [canonical(row)]
    bucket.objects.clear()
    assert list(sink.rows(USERS)) != [canonical(row)]
    without = DynamoDbSink(dynamodb, SystemClock(), table_prefix=prefix)
    without.learn([USERS])
    with pytest.raises(Rejected):
        without.canonical(USERS)(row)
