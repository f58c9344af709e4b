"""The DynamoDB sink against DynamoDB Local: guards, tombstones, limits, sweeps, single-table design."""

import json
import random
import shlex
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import boto3
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fake_aws import HANG, Request, fake_service, ok, refused
from upwell.aws import AwsService
from upwell.clock import SystemClock
from upwell.errors import ConfigError, OperatorError, TransientError
from upwell.items import ITEM_BYTES_MAX, KeyTemplates, fits_number
from upwell.model import ChangeEvent, Column, Kind, LaneItem, TableSchema, Value, pack_version
from upwell.ports import Parcel
from upwell.sinks.dynamodb import TOMBSTONE_S, DynamoDbSink

REGION = "eu-west-1"
TIME = "2026-01-31T10:00:00Z"
USERS = TableSchema(
    "public.users",
    (Column("id", "int", Kind.INT), Column("name", "text", Kind.TEXT), Column("doc", "text", Kind.TEXT)),
    ("id",),
    "postgresql",
)
DOCLESS = USERS.without(frozenset({"doc"}))
NAMELESS = USERS.without(frozenset({"name"}))

Make = Callable[..., DynamoDbSink]


def upsert(commit: int, *row: Value, schema: TableSchema = USERS) -> ChangeEvent:
    key = orjson.dumps([row[index] for index in schema.key_indexes])
    return ChangeEvent(schema, "u", pack_version(1, commit, 0), TIME, key, orjson.dumps(row), "update")


def delete(commit: int, *key: Value, schema: TableSchema = USERS) -> ChangeEvent:
    return ChangeEvent(schema, "d", pack_version(1, commit, 0), TIME, orjson.dumps(key), None, "delete")


def by_table(templates: Mapping[str, KeyTemplates]) -> Callable[[TableSchema], KeyTemplates | None]:
    return lambda schema: templates.get(schema.table)


class StoppedClock(SystemClock):
    def now(self) -> float:
        return 1_800_000_000.0


@pytest.fixture
def service(dynamodb_endpoint: str) -> Iterator[AwsService]:
    service = AwsService("dynamodb", REGION, endpoint_url=dynamodb_endpoint)
    yield service
    service.close()


@pytest.fixture
def prefix() -> str:
    return f"test-{uuid.uuid4().hex[:12]}-"


@pytest.fixture
def make(service: AwsService, prefix: str) -> Make:
    def make(*schemas: TableSchema, **options: Any) -> DynamoDbSink:
        sink = DynamoDbSink(service, StoppedClock(), table_prefix=prefix, **options)
        sink.prepare(schemas or [USERS])
        return sink

    return make


def send(sink: DynamoDbSink, *items: LaneItem) -> Parcel:
    """All of them in one parcel, acknowledged."""
    parcel = sink.pack(0, 1, 1, None, items)
    assert parcel.taken == len(items)
    assert list(sink.send([parcel])) == [None]
    return parcel


def items(service: AwsService, table: str) -> list[dict[str, Any]]:
    """Everything in a table, tombstones included, without versions."""
    found = service.call("Scan", {"TableName": table, "ConsistentRead": True})["Items"]
    return sorted(({k: v for k, v in item.items() if k != "_upwell_v"} for item in found), key=json.dumps)


def rows(sink: DynamoDbSink, schema: TableSchema = USERS) -> list[list[Value]]:
    return sorted(sink.rows(schema), key=json.dumps)


class TestGuard:
    @pytest.mark.parametrize("deletes", ["tombstone", "remove"])
    def test_written_in_the_order_of_versions_the_newest_stands(self, make: Make, deletes: str) -> None:
        sink = make(deletes=deletes)
        for event in (upsert(1, 1, "a", None), upsert(2, 1, "b", None), delete(3, 1), upsert(4, 1, "c", None)):
            send(sink, event)
        assert rows(sink) == [[1, "c", None]]

    def test_a_delete_of_a_key_that_no_item_can_have_is_nothing(self, make: Make) -> None:
        texts = TableSchema("sales.texts", (Column("id", "text", Kind.TEXT),), ("id",), "postgresql")
        sink = make()
        sink.prepare([texts])
        parcel = sink.pack(0, 1, 1, None, [delete(1, "", schema=texts)])
        assert (parcel.taken, parcel.body, parcel.rejected) == (1, None, [])

    @pytest.mark.parametrize("seed", range(5))
    def test_in_any_order_and_many_times_the_newest_stands(self, make: Make, seed: int) -> None:
        chance = random.Random(seed)
        sink = make()
        events = [
            delete(commit, number) if chance.random() < 0.3 else upsert(commit, number, f"v{commit}", None)
            for number in range(20)
            for commit in range(1, 6)
        ]
        newest = {number: events[number * 5 + 4] for number in range(20)}
        writes = events * 3
        chance.shuffle(writes)
        late = [sink.pack(0, 1, 1, None, [event]) for event in writes]  # each as if it were the only one
        for start in range(0, len(late), 30):
            assert not any(sink.send(late[start : start + 30]))
        expected = sorted(([n, f"v{5}", None] for n, event in newest.items() if event.operation == "u"), key=json.dumps)
        assert rows(sink) == expected

    def test_an_update_that_lands_after_the_delete_stays_without_effect(self, make: Make, service: AwsService) -> None:
        sink = make()
        send(sink, upsert(5, 1, "a", None))
        send(sink, delete(7, 1))
        send(sink, upsert(6, 1, "late", None))
        send(sink, upsert(6, 1, "late", schema=DOCLESS))
        assert rows(sink) == []
        tombstone = {"id": {"N": "1"}, "_upwell_deleted": {"BOOL": True}}
        ttl = {"_upwell_ttl": {"N": str(1_800_000_000 + TOMBSTONE_S)}}
        assert items(service, sink.form(USERS).table) == [tombstone | ttl]

    def test_an_equal_version_is_written_again(self, make: Make) -> None:
        sink = make()
        send(sink, upsert(5, 1, "a", None))
        send(sink, upsert(5, 1, "b", None))
        assert rows(sink) == [[1, "b", None]]

    def test_versions_compare_as_unsigned_bytes(self, make: Make) -> None:
        sink = make()
        low, high = upsert(2**31, 1, "low", None), upsert(2**63, 1, "high", None)
        send(sink, high)
        send(sink, low)
        assert rows(sink) == [[1, "high", None]]

    def test_an_item_that_somebody_else_put_there_is_taken_over(self, make: Make, service: AwsService) -> None:
        sink = make()
        service.call("PutItem", {"TableName": sink.form(USERS).table, "Item": {"id": {"N": "1"}, "x": {"S": "y"}}})
        send(sink, upsert(1, 1, "a", None))
        assert items(service, sink.form(USERS).table) == [{"id": {"N": "1"}, "name": {"S": "a"}}]

    def test_a_removed_item_leaves_no_trace_where_so_configured(self, make: Make, service: AwsService) -> None:
        sink = make(deletes="remove")
        send(sink, upsert(2, 1, "a", None), upsert(2, 2, "b", None))
        send(sink, delete(1, 1), delete(3, 2), delete(3, 3))  # older; newer; never there
        assert items(service, sink.form(USERS).table) == [{"id": {"N": "1"}, "name": {"S": "a"}}]


class TestPartialRows:
    def test_they_change_what_they_have(self, make: Make) -> None:
        sink = make()
        send(sink, upsert(1, 1, "a", "long document"))
        send(sink, upsert(2, 1, "b", schema=DOCLESS))
        assert rows(sink) == [[1, "b", "long document"]]
        send(sink, upsert(3, 1, None, schema=DOCLESS))
        assert rows(sink) == [[1, None, "long document"]]

    def test_they_make_no_row(self, make: Make, service: AwsService) -> None:
        sink = make()
        send(sink, upsert(2, 1, "b", schema=DOCLESS))
        assert items(service, sink.form(USERS).table) == []

    def test_an_older_one_changes_nothing(self, make: Make) -> None:
        sink = make()
        send(sink, upsert(3, 1, "new", "doc"))
        send(sink, upsert(2, 1, "old", schema=DOCLESS))
        assert rows(sink) == [[1, "new", "doc"]]

    @given(
        events=st.lists(
            st.tuples(
                st.sampled_from(["whole", "docless", "nameless", "delete"]),
                st.integers(1, 2),
                st.none() | st.text(max_size=2),
                st.none() | st.text(max_size=2),
            ),
            max_size=8,
        ),
        cut=st.integers(0, 8),
        deletes=st.sampled_from(["tombstone", "remove"]),
        nulls=st.sampled_from(["absent", "keep"]),
    )
    @settings(max_examples=60)
    def test_folded_or_one_by_one_they_come_to_the_same(
        self,
        dynamodb_endpoint: str,
        events: list[tuple[str, int, str | None, str | None]],
        cut: int,
        deletes: Any,
        nulls: Any,
    ) -> None:
        made: list[LaneItem] = []
        model: dict[int, list[Value]] = {}
        for commit, (kind, number, name, doc) in enumerate(events, 1):
            if kind == "whole":
                made.append(upsert(commit, number, name, doc))
                model[number] = [number, name, doc]
            elif kind == "delete":
                made.append(delete(commit, number))
                model.pop(number, None)
            elif kind == "docless":
                made.append(upsert(commit, number, name, schema=DOCLESS))
                if number in model:
                    model[number][1] = name
            else:
                made.append(upsert(commit, number, doc, schema=NAMELESS))
                if number in model:
                    model[number][2] = doc
        service = AwsService("dynamodb", REGION, endpoint_url=dynamodb_endpoint)
        sink = DynamoDbSink(
            service, SystemClock(), table_prefix=f"test-{uuid.uuid4().hex[:12]}-", deletes=deletes, nulls=nulls
        )
        sink.prepare([USERS])
        for part in (made[:cut], made[cut:], made[cut:]):  # the last one again: a replay
            if part:
                assert send(sink, *part).rejected == []
        assert rows(sink) == sorted(model.values(), key=json.dumps)
        service.call("DeleteTable", {"TableName": sink.form(USERS).table})
        sink.close()


class TestLimits:
    def test_what_we_take_for_fitting_dynamodb_takes(self, service: AwsService, make: Make) -> None:
        sink = make()
        spare = next(
            size
            for size in range(ITEM_BYTES_MAX, 0, -1)
            if not sink.pack(0, 1, 1, None, [upsert(1, 1, None, "x" * size)]).rejected
        )
        parcel = send(sink, upsert(1, 1, None, "x" * spare))
        assert parcel.rejected == []
        assert ITEM_BYTES_MAX - spare < 400  # and not much less than it would take
        assert rows(sink) == [[1, None, "x" * spare]]

    def test_a_partial_row_that_makes_the_item_too_large_is_rejected(self, make: Make) -> None:
        sink = make()
        send(sink, upsert(1, 1, None, "x" * 300_000))
        parcel = send(sink, upsert(2, 1, "y" * 200_000, schema=DOCLESS), upsert(2, 2, "ok", None))
        (rejection,) = parcel.rejected
        assert rejection.event == upsert(2, 1, "y" * 200_000, schema=DOCLESS)
        assert [row[0] for row in rows(sink)] == [1, 2]

    def test_a_rejected_event_does_not_take_its_elder_with_it(self, make: Make) -> None:
        sink = make()
        parcel = send(sink, upsert(1, 1, "a", None), upsert(2, 1, None, "x" * ITEM_BYTES_MAX))
        assert len(parcel.rejected) == 1
        assert rows(sink) == [[1, "a", None]]

    @given(number=st.decimals(allow_nan=False, allow_infinity=False))
    @example(Decimal("1" * 38))
    @example(Decimal("1" * 39))
    @example(Decimal("9.9E+125"))
    @example(Decimal("1E+126"))
    @example(Decimal("-1E-130"))
    @example(Decimal("9.9E-131"))
    @settings(max_examples=200)
    def test_numbers_fit_exactly_where_dynamodb_says_so(self, dynamodb_endpoint: str, number: Decimal) -> None:
        table = number_table(dynamodb_endpoint)
        text = str(number)
        request = {"TableName": table, "Item": {"id": {"S": "1"}, "n": {"N": text}}}
        answer = SERVICE[dynamodb_endpoint].call_many("PutItem", [request])[0]
        assert isinstance(answer, dict) is fits_number(text)

    def test_a_parcel_has_a_limit(self, make: Make) -> None:
        sink = make()
        many = [upsert(number, number, "a", None) for number in range(1, 1000)]
        assert sink.pack(0, 1, 1, None, many).taken == 256
        large = [upsert(number, number, "a", "x" * 300_000) for number in range(1, 1000)]
        assert sink.pack(0, 1, 1, None, large).taken == 4


SERVICE: dict[str, AwsService] = {}


def number_table(endpoint: str) -> str:
    """One table for all examples."""
    if endpoint not in SERVICE:
        SERVICE[endpoint] = AwsService("dynamodb", REGION, endpoint_url=endpoint)
    sink = DynamoDbSink(SERVICE[endpoint], SystemClock(), table_prefix="test-numbers-")
    key = TableSchema("public.n", (Column("id", "text", Kind.TEXT),), ("id",), "postgresql")
    sink.prepare([key])
    return sink.form(key).table


EVERYTHING = TableSchema(
    "public.everything",
    (
        Column("a", "bytea", Kind.BYTES),
        Column("b", "numeric", Kind.DECIMAL),
        Column("i", "int8", Kind.INT),
        Column("d", "numeric", Kind.DECIMAL),
        Column("f", "float8", Kind.FLOAT),
        Column("t", "text", Kind.TEXT),
        Column("o", "bool", Kind.BOOL),
        Column("x", "bytea", Kind.BYTES),
        Column("j", "jsonb", Kind.JSON),
        Column("s", "timestamptz", Kind.TIMESTAMPTZ),
    ),
    ("a", "b"),
    "postgresql",
)
DIGITS = st.decimals(allow_nan=False, allow_infinity=False).map(lambda number: format(number, "f"))
WHOLE = st.integers(-(2**70), 2**70).map(lambda number: number if abs(number) <= 2**53 else str(number))


@given(
    row=st.tuples(
        st.sampled_from(["AA==", "AAEC", "////"]),
        st.integers(-(10**9), 10**9).map(lambda number: f"{number}.50"),
        st.none() | WHOLE,
        st.none() | DIGITS | st.just("NaN"),
        st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.just("Infinity"),
        st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        st.none() | st.booleans(),
        st.none() | st.sampled_from(["", "AA==", "AAECAw=="]),
        st.none() | st.sampled_from(["{}", "[]", "null", "1.50", '"a"', '{"b":[1,{"a":null}],"a":1e10}', "[1e999]"]),
        st.none() | st.just("2026-01-31T10:00:00.123456Z"),
    ),
    nulls=st.sampled_from(["absent", "keep"]),
)
@settings(max_examples=150)
def test_rows_come_back_as_they_went(dynamodb_endpoint: str, row: tuple[Value, ...], nulls: Any) -> None:
    if dynamodb_endpoint not in SERVICE:
        SERVICE[dynamodb_endpoint] = AwsService("dynamodb", REGION, endpoint_url=dynamodb_endpoint)
    sink = DynamoDbSink(SERVICE[dynamodb_endpoint], SystemClock(), table_prefix=f"test-types-{nulls}-", nulls=nulls)
    sink.prepare([EVERYTHING])
    parcel = send(sink, upsert(1, *row, schema=EVERYTHING))
    assert parcel.rejected == []
    values = orjson.loads(orjson.dumps(row))
    key = [values[0], sink.form(EVERYTHING).canonical(values)[1]]
    assert [found for found in sink.rows(EVERYTHING) if found[:2] == key] == [sink.form(EVERYTHING).canonical(values)]


class TestSweep:
    @pytest.mark.parametrize("deletes", ["tombstone", "remove"])
    def test_it_removes_what_is_older_and_nothing_else(self, make: Make, deletes: str) -> None:
        sink = make(deletes=deletes)
        for number in range(600):
            if number % 200 == 0:
                send(sink, *[upsert(1 + (n % 3), n, "x" * 2000, None) for n in range(number, number + 200)])
        send(sink, delete(1, 1000))
        assert sink.sweep(USERS, pack_version(1, 2, 0)) == 200
        assert sorted(row[0] % 3 for row in rows(sink)) == [1] * 200 + [2] * 200  # type: ignore[operator]
        assert sink.sweep(USERS, pack_version(1, 2, 0)) == 0

    @pytest.mark.parametrize("deletes", ["tombstone", "remove"])
    def test_what_changed_since_it_looked_stays(
        self, make: Make, service: AwsService, deletes: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sink = make(deletes=deletes)
        send(sink, upsert(1, 1, "old", None), upsert(1, 2, "old", None))
        call = service.call

        def and_meanwhile(action: str, payload: Any) -> dict[str, Any]:
            answer = call(action, payload)
            if action == "Scan":
                send(sink, upsert(7, 1, "new", None))
            return answer

        with monkeypatch.context() as patch:
            patch.setattr(service, "call", and_meanwhile)
            assert sink.sweep(USERS, pack_version(1, 2, 0)) == 1
        assert rows(sink) == [[1, "new", None]]

    def test_it_sees_what_was_written_a_moment_ago(
        self, make: Make, service: AwsService, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A read that may be a second behind would leave a row for good that came just before the gap."""
        sink = make()
        send(sink, upsert(1, 1, "old", None))
        call = service.call

        def of_a_second_ago(action: str, payload: Any) -> dict[str, Any]:
            answer = call(action, payload)
            return answer if action != "Scan" or payload.get("ConsistentRead") else {**answer, "Items": []}

        with monkeypatch.context() as patch:
            patch.setattr(service, "call", of_a_second_ago)
            assert sink.sweep(USERS, pack_version(1, 2, 0)) == 1

    def test_what_it_removed_may_come_back_but_not_by_something_old(self, make: Make) -> None:
        sink = make()
        send(sink, upsert(1, 1, "a", None), upsert(1, 2, "b", None))
        assert sink.sweep(USERS, pack_version(2, 0, 0)) == 2
        send(sink, upsert(5, 1, "late", None))
        assert rows(sink) == []
        new = upsert(1, 2, "new", None)._replace(version=pack_version(2, 0, 0))
        send(sink, new)
        assert rows(sink) == [[2, "new", None]]

    def test_cut_short_it_goes_on_where_it_was(self, prefix: str) -> None:
        starts: list[Any] = []
        broken = [True]

        def answer(request: Request) -> bytes:
            if request.action != "Scan":
                return ok({"Table": {"TableStatus": "ACTIVE", **KEY_OF_USERS}} if "Describe" in request.action else {})
            start = request.payload.get("ExclusiveStartKey")
            starts.append(start and int(start["id"]["N"]))
            page = (starts[-1] or 0) + 1
            if page == 3 and broken:
                broken.clear()
                return refused("ProvisionedThroughputExceededException")
            following = {"LastEvaluatedKey": {"id": {"N": str(page)}}} if page < 5 else {}
            return ok({"Items": [{"id": {"N": str(page)}}], **following})

        with fake_service(answer) as fake:
            service = AwsService("dynamodb", REGION, endpoint_url=fake.url)
            sink = DynamoDbSink(service, SystemClock(), table_prefix=prefix, deletes="remove")
            sink.prepare([USERS])
            with pytest.raises(TransientError):
                sink.sweep(USERS, pack_version(1, 2, 0))
            assert sink.sweep(USERS, pack_version(1, 2, 0)) == 5
            assert starts == [None, 1, 2, 2, 3, 4]
            sink.close()


KEY_OF_USERS = {
    "KeySchema": [{"AttributeName": "id", "KeyType": "HASH"}],
    "AttributeDefinitions": [{"AttributeName": "id", "AttributeType": "N"}],
}


class TestAnswers:
    def run(
        self, answer: Callable[[Request], bytes], events: Sequence[ChangeEvent]
    ) -> tuple[DynamoDbSink, Parcel, list[Request]]:
        """A parcel packed and sent once to a service that answers so."""
        with fake_service(answer) as fake:
            service = AwsService("dynamodb", REGION, endpoint_url=fake.url, connections_max=4)
            sink = DynamoDbSink(service, SystemClock(), table_prefix="p-")
            sink._ready.add("p-users")
            sink.prepare([USERS])
            parcel = sink.pack(0, 1, 1, None, events)
            try:
                self.answers = list(sink.send([parcel]))
            finally:
                sink.close()
            return sink, parcel, fake.requests

    def test_only_what_was_not_acknowledged_is_sent_again(self) -> None:
        def some_throttled(request: Request) -> bytes:
            number = int(request.payload["Item"]["id"]["N"])
            return refused("ThrottlingException") if number % 4 == 0 else ok({})

        _, parcel, requests = self.run(some_throttled, [upsert(n + 1, n, "a", None) for n in range(20)])
        assert [answer is not None and answer.throttled for answer in self.answers] == [True]
        assert [write.events[0].key for write in parcel.body] == [b"[0]", b"[4]", b"[8]", b"[12]", b"[16]"]
        assert len(requests) == 20

    def test_where_nothing_gets_through_the_whole_call_failed(self) -> None:
        with pytest.raises(TransientError):
            self.run(lambda request: refused("InternalServerError", status=500), [upsert(1, 1, "a", None)])

    def test_what_the_service_refuses_for_what_it_holds_is_rejected(self) -> None:
        _, parcel, _ = self.run(lambda request: refused("ValidationException", "no"), [upsert(1, 1, "a", None)])
        assert self.answers == [None]
        assert [rejection.event for rejection in parcel.rejected] == [upsert(1, 1, "a", None)]

    def test_a_rejected_whole_of_several_events_keeps_them_all(self) -> None:
        events = [upsert(1, 1, "a", "doc"), upsert(2, 1, "b", schema=DOCLESS)]
        _, parcel, requests = self.run(lambda request: refused("ValidationException", "no"), events)
        assert len(requests) == 1
        assert [rejection.event for rejection in parcel.rejected] == events

    @pytest.mark.parametrize(
        ("reason", "code"), [("ResourceNotFoundException", "UW-DD-001"), ("AccessDeniedException", "UW-AWS-004")]
    )
    def test_what_only_a_person_can_mend_stops_it(self, reason: str, code: str) -> None:
        with pytest.raises(OperatorError) as raised:
            self.run(lambda request: refused(reason), [upsert(1, 1, "a", None)])
        assert raised.value.code == code
        assert raised.value.remedy

    def test_a_lost_answer_is_sent_again_by_the_flow_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("upwell.http1.READ_S", 0.3)
        with pytest.raises(TransientError):
            self.run(lambda request: HANG, [upsert(1, 1, "a", None)])


class TestTables:
    def test_it_makes_them_with_an_expiry_for_tombstones(self, make: Make, dynamodb_endpoint: str) -> None:
        sink = make()
        client = boto3.client(
            "dynamodb",
            region_name=REGION,
            endpoint_url=dynamodb_endpoint,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        table = client.describe_table(TableName=sink.form(USERS).table)["Table"]
        assert table["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
        ttl = client.describe_time_to_live(TableName=sink.form(USERS).table)["TimeToLiveDescription"]
        assert (ttl["TimeToLiveStatus"], ttl["AttributeName"]) == ("ENABLED", "_upwell_ttl")

    def test_where_it_may_not_it_says_how(self, make: Make) -> None:
        with pytest.raises(OperatorError) as raised:
            make(create_tables=False)
        assert raised.value.code == "UW-DD-001"
        assert '[{"AttributeName":"id","AttributeType":"N"}]' in raised.value.remedy
        assert '[{"AttributeName":"id","KeyType":"HASH"}]' in raised.value.remedy

    def test_a_table_with_another_key_is_not_used(self, make: Make) -> None:
        make()
        other = TableSchema("public.users", (Column("id", "text", Kind.TEXT),), ("id",), "postgresql")
        with pytest.raises(OperatorError) as raised:
            make(other)
        assert raised.value.code == "UW-DD-003"
        assert "id (N), not id (S)" in raised.value.message

    def test_who_may_only_write_is_not_stopped_by_the_check(self) -> None:
        with fake_service(lambda request: refused("AccessDeniedException")) as fake:
            service = AwsService("dynamodb", REGION, endpoint_url=fake.url)
            DynamoDbSink(service, SystemClock(), table_prefix="p-", create_tables=False).prepare([USERS])
            with pytest.raises(OperatorError):
                DynamoDbSink(service, SystemClock(), table_prefix="p-").prepare([USERS])
            service.close()

    def test_a_table_that_a_newcomer_would_rename_stops_it(self, make: Make) -> None:
        sink = make()
        with pytest.raises(OperatorError) as raised:
            sink.prepare([TableSchema("hr.users", USERS.columns, USERS.key, "postgresql")])
        assert raised.value.code == "UW-DD-006"
        send(sink, upsert(1, 1, "a", None))
        assert rows(sink) == [[1, "a", None]]

    def test_the_doctor_sees_what_will_be_and_what_is(self, make: Make, service: AwsService, prefix: str) -> None:
        strict = DynamoDbSink(service, SystemClock(), table_prefix=prefix, create_tables=False)
        (missing,) = strict.findings([USERS])
        assert (missing.level, missing.code) == ("fail", "UW-DD-001")
        assert "aws dynamodb create-table" in missing.remedy
        hostile = TableSchema("hr.x", (Column("$(id); 'x", "int", Kind.INT),), ("$(id); 'x",), "postgresql")
        (missing,) = DynamoDbSink(service, SystemClock(), table_prefix=prefix, create_tables=False).findings([hostile])
        definitions = shlex.split(missing.remedy)[10]
        assert json.loads(definitions) == [{"AttributeName": "$(id); 'x", "AttributeType": "N"}]
        sink = make()
        assert [finding.level for finding in sink.findings([USERS])] == ["pass"] * 4  # nothing ever calls DeleteItem
        assert items(service, sink.form(USERS).table) == []  # its look left nothing behind


class TestSingleTable:
    ORDERS = TableSchema(
        "sales.orders",
        (Column("order_id", "int", Kind.INT), Column("total", "numeric", Kind.DECIMAL)),
        ("order_id",),
        "x",
    )
    LINES = TableSchema(
        "sales.order_lines",
        (Column("order_id", "int", Kind.INT), Column("line_no", "int", Kind.INT), Column("sku", "text", Kind.TEXT)),
        ("order_id", "line_no"),
        "x",
    )

    def templates(self, table: str) -> dict[str, KeyTemplates]:
        return {
            "sales.orders": KeyTemplates(table, "ORDER#{order_id}", "ORDER"),
            "sales.order_lines": KeyTemplates(table, "ORDER#{order_id}", "LINE#{line_no:05}"),
        }

    def test_several_tables_share_one_and_stay_apart(self, make: Make, service: AwsService, prefix: str) -> None:
        shop = f"{prefix}shop"
        sink = make(self.ORDERS, self.LINES, USERS, templates=by_table(self.templates(shop)))
        send(
            sink,
            upsert(1, 7, "12.50", schema=self.ORDERS),
            upsert(1, 7, 1, "apple", schema=self.LINES),
            upsert(3, 7, 12, "pear", schema=self.LINES),
            upsert(1, 7, "user", None),
        )
        answer = service.call(
            "Query",
            {
                "TableName": shop,
                "KeyConditionExpression": "pk = :p",
                "ExpressionAttributeValues": {":p": {"S": "ORDER#7"}},
            },
        )
        assert [item["sk"]["S"] for item in answer["Items"]] == ["LINE#00001", "LINE#00012", "ORDER"]
        assert rows(sink, self.ORDERS) == [[7, "12.5"]]
        assert rows(sink, self.LINES) == [[7, 1, "apple"], [7, 12, "pear"]]
        assert rows(sink) == [[7, "user", None]]
        assert sink.sweep(self.LINES, pack_version(1, 2, 0)) == 1  # a sweep of one leaves the others alone
        assert rows(sink, self.ORDERS) == [[7, "12.5"]]
        assert rows(sink, self.LINES) == [[7, 12, "pear"]]
        send(sink, delete(9, 7, 12, schema=self.LINES))
        assert rows(sink, self.LINES) == []

    @pytest.mark.parametrize(
        "lines",
        [
            KeyTemplates("", "ORDER#{order_id}", "{line_no}"),  # might say ORDER as well
            KeyTemplates("", "ORDER#{order_id}", "ORD{line_no}"),
            KeyTemplates("", "L#{order_id}#{line_no}"),  # no sort key beside a table that has one
        ],
    )
    def test_keys_that_could_meet_are_refused(self, make: Make, prefix: str, lines: KeyTemplates) -> None:
        shop = f"{prefix}shop"
        templates = self.templates(shop)
        templates["sales.order_lines"] = KeyTemplates(shop, lines.partition_key, lines.sort_key)
        templates["sales.orders"] = KeyTemplates(shop, "ORDER#{order_id}", "{order_id}")
        with pytest.raises(ConfigError) as raised:
            make(self.ORDERS, self.LINES, templates=by_table(templates))
        assert raised.value.code == "UW-DD-005"
