"""What upwell relies on of DynamoDB, for whatever stands in for it, and for DynamoDB itself.

Written from AWS's API reference, with boto3 as the client. Where a stand-in does otherwise its class names that in
`deviations`, and the suite asserts what it does instead: nothing is skipped. Two tables serve all tests of a class.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ClassVar, Literal

import pytest
from botocore.exceptions import ClientError

from tests.acceptance.compare import dynamodb_client

Deviation = Literal["never throttles", "takes reserved words", "one table for names that differ by case"]
Item = dict[str, Any]

READY_S = 120.0
THROTTLED_S = 60.0
ITEM_BYTES_MAX = 400 * 1024
STALE = "ConditionalCheckFailedException"
# The guard of every write, as the sink has it.
NOT_OLDER = "attribute_not_exists(#v) OR #v <= :v"


class _Service:
    """Tables of its own in the service under test."""

    deviations: ClassVar[frozenset[Deviation]] = frozenset()

    @pytest.fixture(scope="class")
    @classmethod
    def endpoint(cls) -> Iterator[str]:
        """The service's URL."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def client(cls, endpoint: str) -> Any:
        # One attempt: what is refused must be seen. What botocore would refuse by itself must be sent.
        return dynamodb_client(endpoint, retries={"total_max_attempts": 1}, parameter_validation=False)

    @pytest.fixture(scope="class")
    @classmethod
    def table(cls, client: Any) -> Iterator[str]:
        """With a partition key `id` of text."""
        yield from made(client, {"id": "S"})

    @pytest.fixture(scope="class")
    @classmethod
    def sorted_table(cls, client: Any) -> Iterator[str]:
        """With a partition key `part` of text and a sort key `place`, a number."""
        yield from made(client, {"part": "S", "place": "N"})


def made(client: Any, key: dict[str, str]) -> Iterator[str]:
    """A new on-demand table, as upwell makes them; it goes afterwards."""
    name = f"upwell-test-{uuid.uuid4().hex[:12]}"
    create(client, name, key)
    await_table(client, name)
    yield name
    client.delete_table(TableName=name)


def await_table(client: Any, name: str) -> None:
    deadline = time.monotonic() + READY_S
    while client.describe_table(TableName=name)["Table"]["TableStatus"] != "ACTIVE":
        assert time.monotonic() < deadline, f"the table {name} is not active"
        time.sleep(0.05)


def create(client: Any, name: str, key: dict[str, str]) -> None:
    client.create_table(
        TableName=name,
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": name, "AttributeType": kind} for name, kind in key.items()],
        KeySchema=[
            {"AttributeName": name, "KeyType": role} for name, role in zip(key, ("HASH", "RANGE"), strict=False)
        ],
    )


def refused(call: Callable[[], Any]) -> str:
    """The name of the error; empty where there was none."""
    try:
        call()
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return ""


def guarded(version: bytes, condition: str = NOT_OLDER) -> dict[str, Any]:
    return {
        "ConditionExpression": condition,
        "ExpressionAttributeNames": {"#v": "_upwell_v"},
        "ExpressionAttributeValues": {":v": {"B": version}},
    }


def new_id() -> str:
    return uuid.uuid4().hex


class DynamoDbServiceContract(_Service):
    """Tables, guarded writes, limits, pages."""

    def put(self, client: Any, table: str, item: Item, **more: Any) -> Any:
        return client.put_item(TableName=table, Item=item, **more)

    def held(self, client: Any, table: str, item_id: str) -> Any:
        """The item, or None."""
        return client.get_item(TableName=table, Key={"id": {"S": item_id}}, ConsistentRead=True).get("Item")

    # --- tables ---------------------------------------------------------------------------------------------------

    def test_a_table_is_described_with_its_key(self, client: Any, sorted_table: str) -> None:
        found = client.describe_table(TableName=sorted_table)["Table"]
        schema = [{"AttributeName": "part", "KeyType": "HASH"}, {"AttributeName": "place", "KeyType": "RANGE"}]
        assert found["KeySchema"] == schema
        types = {each["AttributeName"]: each["AttributeType"] for each in found["AttributeDefinitions"]}
        assert types == {"part": "S", "place": "N"}
        assert found["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"

    def test_a_second_table_of_the_name_is_refused(self, client: Any, table: str) -> None:
        assert refused(lambda: create(client, table, {"id": "S"})) == "ResourceInUseException"

    @pytest.mark.parametrize("name", ["ab", "a" * 256, "a/b", "täble"])
    def test_a_table_has_a_plain_name(self, client: Any, name: str) -> None:
        assert refused(lambda: create(client, name, {"id": "S"})) == "ValidationException"

    def test_names_of_tables_have_case(self, client: Any, table: str) -> None:
        # Two source tables may differ by nothing else.
        create_it = partial(create, client, table.upper(), {"id": "S"})
        if "one table for names that differ by case" in self.deviations:
            assert refused(create_it) == "InternalFailure"
            return
        create_it()
        await_table(client, table.upper())
        client.delete_table(TableName=table.upper())

    def test_what_is_not_there_is_refused_by_name(self, client: Any) -> None:
        name = f"upwell-test-none-{new_id()}"
        key = {"id": {"S": "1"}}
        for call in (
            lambda: client.describe_table(TableName=name),
            lambda: client.put_item(TableName=name, Item=key),
            lambda: client.update_item(TableName=name, Key=key),
            lambda: client.delete_item(TableName=name, Key=key),
            lambda: client.scan(TableName=name),
            lambda: client.describe_time_to_live(TableName=name),
        ):
            assert refused(call) == "ResourceNotFoundException"

    def test_an_attribute_becomes_the_time_to_live_once(self, client: Any, sorted_table: str) -> None:
        def setting() -> Any:
            return client.describe_time_to_live(TableName=sorted_table)["TimeToLiveDescription"]

        wanted = {"Enabled": True, "AttributeName": "_upwell_ttl"}
        enable = partial(client.update_time_to_live, TableName=sorted_table, TimeToLiveSpecification=wanted)
        assert setting()["TimeToLiveStatus"] == "DISABLED"
        enable()
        assert setting()["TimeToLiveStatus"] in ("ENABLED", "ENABLING")
        assert setting()["AttributeName"] == "_upwell_ttl"
        assert refused(enable) == "ValidationException"

    # --- guarded writes -------------------------------------------------------------------------------------------

    def test_a_put_wins_where_it_is_not_older(self, client: Any, table: str) -> None:
        """Versions compare as unsigned bytes, and every byte counts."""
        versions = [bytes(16), b"\x00" * 15 + b"\x01", b"\x01" + bytes(15), b"\x7f" * 16, b"\x80" + bytes(15)]
        versions += [b"\xff" * 15 + b"\xfe", b"\xff" * 16]
        for held in versions:
            for new in versions:
                item_id = new_id()
                self.put(client, table, {"id": {"S": item_id}, "_upwell_v": {"B": held}}, **guarded(held))
                item = {"id": {"S": item_id}, "_upwell_v": {"B": new}, "note": {"S": "new"}}
                name = refused(partial(self.put, client, table, item, **guarded(new)))
                assert name == ("" if new >= held else STALE)
                found = self.held(client, table, item_id)
                assert found["_upwell_v"]["B"] == max(held, new)
                assert ("note" in found) is (new >= held)

    def test_a_write_that_lost_shows_what_it_lost_to(self, client: Any, table: str) -> None:
        item = {"id": {"S": new_id()}, "_upwell_v": {"B": b"\x02" * 16}, "note": {"S": "held"}}
        self.put(client, table, item)
        late = {**item, "_upwell_v": {"B": b"\x01" * 16}}
        with pytest.raises(ClientError) as plain:
            self.put(client, table, late, **guarded(b"\x01" * 16))
        assert plain.value.response["Error"]["Code"] == STALE
        assert "Item" not in plain.value.response
        with pytest.raises(ClientError) as told:
            self.put(client, table, late, **guarded(b"\x01" * 16), ReturnValuesOnConditionCheckFailure="ALL_OLD")
        assert told.value.response["Item"] == item

    def test_an_update_changes_some_attributes_of_an_item_that_is_there(self, client: Any, table: str) -> None:
        item_id = new_id()
        there = "attribute_exists(#v) AND #v <= :v AND attribute_not_exists(#d)"

        def update(version: bytes) -> None:
            names = {"#v": "_upwell_v", "#d": "_upwell_deleted", "#s0": "a name with blanks", "#r0": "gone"}
            client.update_item(
                TableName=table,
                Key={"id": {"S": item_id}},
                UpdateExpression="SET #v = :v, #s0 = :s0 REMOVE #r0",
                ConditionExpression=there,
                ExpressionAttributeNames=names,
                ExpressionAttributeValues={":v": {"B": version}, ":s0": {"S": "set"}},
            )

        assert refused(lambda: update(b"\x01" * 16)) == STALE
        assert self.held(client, table, item_id) is None
        item = {"id": {"S": item_id}, "_upwell_v": {"B": b"\x02" * 16}, "gone": {"N": "1"}, "stays": {"BOOL": True}}
        self.put(client, table, item)
        assert refused(lambda: update(b"\x01" * 16)) == STALE
        update(b"\x02" * 16)
        update(b"\x03" * 16)
        left = {name: value for name, value in item.items() if name != "gone"}
        wanted = {**left, "_upwell_v": {"B": b"\x03" * 16}, "a name with blanks": {"S": "set"}}
        assert self.held(client, table, item_id) == wanted
        self.put(client, table, {**item, "_upwell_deleted": {"BOOL": True}})
        assert refused(lambda: update(b"\x04" * 16)) == STALE

    def test_an_update_without_a_condition_makes_the_item(self, client: Any, table: str) -> None:
        key = {"id": {"S": new_id()}}
        change = {"UpdateExpression": "SET finished = :now", "ExpressionAttributeValues": {":now": {"S": "today"}}}
        client.update_item(TableName=table, Key=key, **change)
        assert self.held(client, table, key["id"]["S"]) == {**key, "finished": {"S": "today"}}

    def test_an_update_changes_no_key(self, client: Any, table: str) -> None:
        change = {"UpdateExpression": "SET id = :i", "ExpressionAttributeValues": {":i": {"S": "2"}}}
        update = partial(client.update_item, TableName=table, Key={"id": {"S": "1"}}, **change)
        assert refused(update) == "ValidationException"

    def test_a_delete_obeys_its_condition(self, client: Any, table: str) -> None:
        key = {"id": {"S": new_id()}}
        delete = partial(client.delete_item, TableName=table, Key=key)
        self.put(client, table, {**key, "_upwell_v": {"B": b"\x02" * 16}})
        assert refused(lambda: delete(**guarded(b"\x01" * 16))) == STALE
        assert self.held(client, table, key["id"]["S"]) is not None
        delete(**guarded(b"\x02" * 16))
        assert self.held(client, table, key["id"]["S"]) is None
        delete(**guarded(b"\x01" * 16))  # of nothing: nothing is newer

    def test_a_condition_that_cannot_hold_writes_nothing(self, client: Any, table: str) -> None:
        key = {"id": {"S": new_id()}}
        impossible = {
            "ConditionExpression": "attribute_exists(#v) AND attribute_not_exists(#v)",
            "ExpressionAttributeNames": {"#v": "_upwell_v"},
        }
        for call in (
            partial(client.put_item, Item=key),
            partial(client.update_item, Key=key),
            partial(client.delete_item, Key=key),
        ):
            assert refused(partial(call, TableName=table, **impossible)) == STALE
        assert self.held(client, table, key["id"]["S"]) is None

    def test_of_writes_at_once_the_newest_stays(self, client: Any, table: str) -> None:
        item_id = new_id()
        versions = [bytes([number]) * 16 for number in range(1, 41)]

        def write(version: bytes) -> str:
            item = {"id": {"S": item_id}, "_upwell_v": {"B": version}}
            return refused(partial(self.put, client, table, item, **guarded(version)))

        with ThreadPoolExecutor(8) as pool:
            names = list(pool.map(write, versions[::2] + versions[1::2][::-1]))
        assert set(names) <= {"", STALE}
        assert self.held(client, table, item_id)["_upwell_v"]["B"] == versions[-1]

    @pytest.mark.parametrize(
        "change",
        [
            {"ConditionExpression": "#v = :v", "ExpressionAttributeNames": {"#v": "v"}},
            {"ConditionExpression": "attribute_exists(#v)"},
            {"ConditionExpression": "attribute_exists(v)", "ExpressionAttributeValues": {":v": {"S": "unused"}}},
            {"ConditionExpression": "attribute_exists(v"},
            {"ConditionExpression": ""},
        ],
        ids=["no value", "no name", "unused value", "syntax", "empty"],
    )
    def test_an_expression_that_is_wrong_is_refused(self, client: Any, table: str, change: dict[str, Any]) -> None:
        put = partial(self.put, client, table, {"id": {"S": "1"}}, **change)
        assert refused(put) == "ValidationException"

    def test_reserved_words_need_a_name_in_their_place(self, client: Any, table: str) -> None:
        put = partial(self.put, client, table, {"id": {"S": new_id()}}, ConditionExpression="attribute_not_exists(ttl)")
        assert refused(put) == ("" if "takes reserved words" in self.deviations else "ValidationException")

    # --- values and limits ----------------------------------------------------------------------------------------

    def test_values_come_back_as_they_were(self, client: Any, table: str) -> None:
        item: Item = {
            "id": {"S": f"{new_id()} ü\x00\U0001f600"},
            "text": {"S": "\x00\x01 \ud7ff \U0010ffff"},
            "empty text": {"S": ""},
            "binary": {"B": bytes(range(256))},
            "empty binary": {"B": b""},
            "true": {"BOOL": True},
            "null": {"NULL": True},
            "list": {"L": [{"S": "a"}, {"N": "1"}, {"L": []}]},
            "map": {"M": {"a b": {"S": "c"}, "d": {"M": {}}}},
        }
        self.put(client, table, item)
        assert self.held(client, table, item["id"]["S"]) == item

    def test_an_attribute_without_a_name_is_refused(self, client: Any, table: str) -> None:
        for item in ({"": {"S": "a"}}, {"map": {"M": {"": {"S": "a"}}}}):
            put = partial(self.put, client, table, {"id": {"S": new_id()}, **item})
            assert refused(put) == "ValidationException"

    @pytest.mark.parametrize(
        ("written", "kept"),
        [
            ("0", "0"),
            ("-0", "0"),
            ("007", "7"),
            ("1.0", "1"),
            ("1e3", "1000"),
            ("-0.000", "0"),
            ("1" * 38, "1" * 38),
            ("0." + "1" * 38, "0." + "1" * 38),
            ("-" + "9" * 38, "-" + "9" * 38),
            ("1E125", "1" + "0" * 125),
            ("1E-130", "0." + "0" * 129 + "1"),
            ("1" * 39, None),
            ("1E126", None),
            ("1E-131", None),
            ("NaN", None),
            ("", None),
        ],
    )
    def test_numbers_have_38_digits(self, client: Any, table: str, written: str, kept: str | None) -> None:
        item: Item = {"id": {"S": new_id()}, "number": {"N": written}}
        name = refused(lambda: self.put(client, table, item))
        assert name == ("ValidationException" if kept is None else "")
        if kept is not None:
            assert self.held(client, table, item["id"]["S"])["number"] == {"N": kept}

    def test_an_item_has_up_to_400_kib_with_its_names(self, client: Any, table: str) -> None:
        item_id = new_id()
        spare = ITEM_BYTES_MAX - len("id") - len(item_id) - len("größe".encode())
        for kind, unit in (("S", "x"), ("B", b"x")):
            largest = {"id": {"S": item_id}, "größe": {kind: unit * spare}}
            self.put(client, table, largest)
            beyond = {"id": {"S": item_id}, "größe": {kind: unit * (spare + 1)}}
            assert refused(partial(self.put, client, table, beyond)) == "ValidationException"
        grow = partial(
            client.update_item,
            TableName=table,
            Key={"id": {"S": item_id}},
            UpdateExpression="SET more = :more",
            ExpressionAttributeValues={":more": {"S": "x"}},
        )
        assert refused(grow) == "ValidationException"

    @pytest.mark.parametrize(
        ("length", "name"), [(0, "ValidationException"), (2048, ""), (2049, "ValidationException")]
    )
    def test_a_partition_key_has_1_to_2048_bytes(self, client: Any, table: str, length: int, name: str) -> None:
        key = "ü" * (length // 2) + "x" * (length % 2)
        assert refused(lambda: self.put(client, table, {"id": {"S": key}})) == name

    @pytest.mark.parametrize(
        ("length", "name"), [(0, "ValidationException"), (1024, ""), (1025, "ValidationException")]
    )
    def test_a_sort_key_has_1_to_1024_bytes(self, client: Any, binary_table: str, length: int, name: str) -> None:
        item: Item = {"part": {"B": b"\x00"}, "place": {"B": b"x" * length}}
        assert refused(lambda: self.put(client, binary_table, item)) == name

    @pytest.fixture(scope="class")
    @classmethod
    def binary_table(cls, client: Any) -> Iterator[str]:
        yield from made(client, {"part": "B", "place": "B"})

    def test_a_key_that_is_absent_or_of_another_type_is_refused(self, client: Any, sorted_table: str) -> None:
        whole: Item = {"part": {"S": "p"}, "place": {"N": "1"}}
        for item in ({"part": whole["part"]}, {**whole, "place": {"S": "1"}}):
            put = partial(self.put, client, sorted_table, item)
            assert refused(put) == "ValidationException"

    # --- pages ----------------------------------------------------------------------------------------------------

    def test_a_query_gives_a_partition_in_the_order_of_its_sort_key(self, client: Any, sorted_table: str) -> None:
        part = new_id()
        numbers = [-5, 10, 9, 100, 0, 2]
        for number in numbers:
            item: Item = {"part": {"S": part}, "place": {"N": str(number)}, "even": {"BOOL": number % 2 == 0}}
            self.put(client, sorted_table, item)
            self.put(client, sorted_table, {**item, "part": {"S": f"{part} another"}})
        request: dict[str, Any] = {
            "TableName": sorted_table,
            "KeyConditionExpression": "part = :p",
            "FilterExpression": "even = :e",
            "ExpressionAttributeValues": {":p": {"S": part}, ":e": {"BOOL": True}},
            "ConsistentRead": True,
            "Limit": 2,
        }
        found, pages = [], 0
        while True:
            answer = client.query(**request)
            pages += 1
            found += [int(item["place"]["N"]) for item in answer["Items"]]
            assert answer["ScannedCount"] <= 2
            if "LastEvaluatedKey" not in answer:
                break
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]
        assert found == sorted(number for number in numbers if number % 2 == 0)
        assert pages >= len(numbers) // 2

    def test_a_scan_goes_on_after_a_mebibyte(self, client: Any) -> None:
        for table in made(client, {"id": "S"}):
            ids = {f"item {number}" for number in range(14)}
            for number, item_id in enumerate(sorted(ids)):
                version = {"B": bytes([number]) * 16}
                self.put(client, table, {"id": {"S": item_id}, "_upwell_v": version, "load": {"S": "x" * 199_000}})
            everything = {"ConsistentRead": True}
            assert self.scanned(client, table, everything) == sorted(ids)
            older = {
                "FilterExpression": "attribute_not_exists(#d) AND #v < :v",
                "ProjectionExpression": "#k0",
                "ExpressionAttributeNames": {"#d": "_upwell_deleted", "#v": "_upwell_v", "#k0": "id"},
                "ExpressionAttributeValues": {":v": {"B": bytes([3]) * 16}},
            }
            assert self.scanned(client, table, older, only=["id"]) == sorted(ids)[:3]

    def scanned(self, client: Any, table: str, request: dict[str, Any], only: list[str] | None = None) -> list[str]:
        """The ids, once each, of a scan over several pages."""
        found: list[str] = []
        pages = 0
        while True:
            answer = client.scan(TableName=table, **request)
            pages += 1
            assert answer["ScannedCount"] <= 6  # of 14, by their size
            assert only is None or all(list(item) == only for item in answer["Items"])
            found += [item["id"]["S"] for item in answer["Items"]]
            if "LastEvaluatedKey" not in answer:
                break
            request = {**request, "ExclusiveStartKey": answer["LastEvaluatedKey"]}
        assert pages >= 3
        return sorted(found)


class DynamoDbThrottlingContract(_Service):
    """What a partition takes in a second, and how it says that it takes no more."""

    def test_beyond_a_thousand_units_a_second_a_partition_refuses(self, client: Any, table: str) -> None:
        load = "x" * 99_000  # a hundred units
        throttled = threading.Event()
        until = time.monotonic() + THROTTLED_S
        names: set[str] = set()

        def write(number: int) -> None:
            for _ in range(10):
                if throttled.is_set() or time.monotonic() > until:
                    return
                item: Item = {"id": {"S": "hot"}, "number": {"N": str(number)}, "load": {"S": load}}
                name = refused(partial(client.put_item, TableName=table, Item=item))
                names.add(name)
                if name:
                    throttled.set()

        rounds = 0
        with ThreadPoolExecutor(16) as pool:
            while rounds < 1 or not (self.deviations or throttled.is_set() or time.monotonic() > until):
                list(pool.map(write, range(16)))
                rounds += 1
        if "never throttles" in self.deviations:
            assert names == {""}
            return
        # Both are AWS's names for it; upwell takes both for a throttle.
        assert names - {""} <= {"ProvisionedThroughputExceededException", "ThrottlingException"}
        assert throttled.is_set()
        cold: Item = {"id": {"S": "cold"}, "number": {"N": "1"}}
        assert refused(lambda: client.put_item(TableName=table, Item=cold)) == ""
