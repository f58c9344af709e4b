"""The fault proxy: each fault does what it says to Kinesis and to DynamoDB, and upwell sees it as it should."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

from lab.faults import KINDS, FaultProxy, Kind
from lab.parts import ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY
from upwell import http1
from upwell.aws import AwsService
from upwell.errors import TransientError, UpwellError

END_S = 20.0
PATIENCE_S = 0.5
SHARDS = 4


def client(service: str, url: str, patience_s: float = END_S) -> Any:
    return boto3.client(
        service,
        region_name=REGION,
        endpoint_url=url,
        aws_access_key_id=ACCESS_KEY_ID,
        aws_secret_access_key=SECRET_ACCESS_KEY,
        config=Config(retries={"total_max_attempts": 1}, read_timeout=patience_s),
    )


class Service(Protocol):
    """One write that can be sent in any way, and what is there."""

    name: str
    action: str
    payload: dict[str, Any]

    def write(self, wire: FaultProxy, patience_s: float = END_S) -> Any: ...
    def count(self) -> int: ...


class Streams:
    """A stream of Kinesis; a write is one record."""

    name = "kinesis"
    action = "PutRecords"

    def __init__(self, url: str) -> None:
        self.stream = f"faults-{uuid.uuid4().hex[:8]}"
        self._direct = client("kinesis", url)
        self._direct.create_stream(StreamName=self.stream, ShardCount=SHARDS)
        self._direct.get_waiter("stream_exists").wait(StreamName=self.stream, WaiterConfig={"Delay": 1})
        self.payload = {"StreamName": self.stream, "Records": [{"Data": "eA==", "PartitionKey": "x"}]}

    def write(self, wire: FaultProxy, patience_s: float = END_S) -> Any:
        records = [{"Data": b"x", "PartitionKey": "x"}]
        return client("kinesis", wire.url, patience_s).put_records(StreamName=self.stream, Records=records)

    def put(self, wire: FaultProxy, keys: list[str]) -> list[Any]:
        """Records by their explicit hash keys; the answer for each."""
        records = [{"Data": b"x", "PartitionKey": "x", "ExplicitHashKey": key} for key in keys]
        answers: list[Any] = client("kinesis", wire.url).put_records(StreamName=self.stream, Records=records)["Records"]
        return answers

    def count(self) -> int:
        found = 0
        for shard in self._direct.list_shards(StreamName=self.stream)["Shards"]:
            place = {"StreamName": self.stream, "ShardId": shard["ShardId"], "ShardIteratorType": "TRIM_HORIZON"}
            iterator = self._direct.get_shard_iterator(**place)["ShardIterator"]
            found += len(self._direct.get_records(ShardIterator=iterator)["Records"])
        return found


class Tables:
    """A table of DynamoDB; a write adds one to a number."""

    name = "dynamodb"
    action = "UpdateItem"

    def __init__(self, url: str) -> None:
        self.table = f"faults-{uuid.uuid4().hex[:8]}"
        self._direct = client("dynamodb", url)
        self._direct.create_table(
            TableName=self.table,
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            BillingMode="PAY_PER_REQUEST",
        )
        self.payload = self._update("x")

    def _update(self, key: str) -> dict[str, Any]:
        return {
            "TableName": self.table,
            "Key": {"id": {"S": key}},
            "UpdateExpression": "ADD n :one",
            "ExpressionAttributeValues": {":one": {"N": "1"}},
        }

    def write(self, wire: FaultProxy, patience_s: float = END_S, key: str = "x") -> Any:
        return client("dynamodb", wire.url, patience_s).update_item(**self._update(key))

    def count(self) -> int:
        items = self._direct.scan(TableName=self.table, ConsistentRead=True)["Items"]
        return sum(int(item["n"]["N"]) for item in items)


@pytest.fixture(scope="module", params=["kinesis", "dynamodb"])
def service(request: pytest.FixtureRequest, kinesis_endpoint: str, dynamodb_endpoint: str) -> Service:
    return Streams(kinesis_endpoint) if request.param == "kinesis" else Tables(dynamodb_endpoint)


@pytest.fixture
def wire(service: Service, kinesis_faults: FaultProxy, dynamodb_faults: FaultProxy) -> Iterator[FaultProxy]:
    wire = kinesis_faults if service.name == "kinesis" else dynamodb_faults
    yield wire
    assert wire.lost_upstream == 0


@pytest.fixture
def stream(kinesis_endpoint: str) -> Streams:
    return Streams(kinesis_endpoint)


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + END_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def control(wire: FaultProxy, wanted: dict[str, Any] | None = None) -> Any:
    body = None if wanted is None else json.dumps(wanted).encode()
    url = f"{wire.url}/-/faults"
    asked = urllib.request.Request(url, body, method="PUT" if body else "GET")  # noqa: S310 - our own http URL
    with urllib.request.urlopen(asked, timeout=END_S) as answer:  # noqa: S310 - as above
        return json.load(answer)


def is_up(wire: FaultProxy, expected: bool) -> bool:
    return wire.up == expected


# --- one write, one fault ------------------------------------------------------------------------------------------

# What befalls a single write → how often it is done in the end, and what the client is told: the name of AWS's error,
# an error of the connection, or None where all looks well (to botocore also what is no JSON).
CONNECTION = (HTTPClientError, BotoCoreError)
SINGLE: dict[Kind, tuple[int, str | tuple[type[Exception], ...] | None]] = {
    "throttled": (0, "ProvisionedThroughputExceededException"),
    "failed_before": (0, "Internal|Unavailable"),
    "failed_after": (1, "Internal|Unavailable"),
    "answer_lost": (1, CONNECTION),
    "answer_withheld": (1, CONNECTION),
    "swallowed": (0, CONNECTION),
    "landed_late": (1, CONNECTION),
    "landed_twice": (2, None),
    "reset_before": (0, CONNECTION),
    "reset_after": (1, CONNECTION),
    "slow": (1, None),
    "keys_expired": (0, "ExpiredTokenException"),
    "clock_skewed": (0, "InvalidSignatureException"),
    "too_long": (1, None),
    "too_large": (1, None),
    "not_json": (1, None),
    "not_http": (1, CONNECTION),
}
SILENT: tuple[Kind, ...] = ("answer_withheld", "swallowed")


def test_every_fault_is_tried_here() -> None:
    assert SINGLE.keys() | {"shard_throttled", "record_failed", "record_deleted"} == KINDS.keys()


@pytest.mark.parametrize("kind", SINGLE)
def test_a_fault_does_what_it_says(kind: Kind, service: Service, wire: FaultProxy) -> None:
    times, told = SINGLE[kind]
    before = service.count()
    wire.faults.late_s = (0.2, 0.3)
    wire.faults.slow_s = (0.2, 0.3)
    wire.faults.then(kind, service.action)
    began = time.monotonic()
    patience_s = PATIENCE_S if kind in SILENT else END_S
    if told is None:
        service.write(wire, patience_s)
    elif isinstance(told, str):
        with pytest.raises(ClientError, match=told):
            service.write(wire, patience_s)
    else:
        with pytest.raises(told):
            service.write(wire, patience_s)
    assert time.monotonic() - began >= 0.2 or kind not in (*SILENT, "slow")
    at_once = 0 if kind == "landed_late" else min(times, 1)
    assert service.count() - before == at_once or kind in ("landed_late", "landed_twice")
    wire.settle()
    assert service.count() - before == times
    assert dict(wire.done) == {kind: 1}
    service.write(wire)  # once only
    assert service.count() - before == times + 1
    assert wire.requests[service.action] == 2


OURS: dict[Kind, str] = {
    "throttled": "UW-AWS-008",
    "failed_before": "UW-AWS-009",
    "failed_after": "UW-AWS-009",
    "answer_lost": "UW-AWS-012",
    "answer_withheld": "UW-AWS-012",
    "swallowed": "UW-AWS-012",
    "landed_late": "UW-AWS-012",
    "reset_before": "UW-AWS-012",
    "reset_after": "UW-AWS-012",
    "keys_expired": "UW-AWS-006",
    "clock_skewed": "UW-AWS-007",
    "too_long": "UW-AWS-020",
    "too_large": "UW-AWS-020",
    "not_json": "UW-AWS-020",
    "not_http": "UW-AWS-020",
}


@pytest.mark.parametrize("kind", OURS)
def test_upwell_tries_again_after_each(
    kind: Kind, service: Service, wire: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind in SILENT:
        monkeypatch.setattr(http1, "READ_S", PATIENCE_S)
    ours = AwsService(service.name, REGION, endpoint_url=wire.url)
    ours.call(service.action, service.payload)  # there is a connection that can be used again
    wire.faults.then(kind)
    with pytest.raises(TransientError) as failure:
        ours.call(service.action, service.payload)
    assert failure.value.code == OURS[kind]
    assert failure.value.throttled == (kind == "throttled")
    ours.call(service.action, service.payload)
    ours.close()


def test_an_answer_that_goes_on_is_not_taken_for_the_next_one(service: Service, wire: FaultProxy) -> None:
    """Its end looks like the answer to the next request, which must not be believed to be done."""
    ours = AwsService(service.name, REGION, endpoint_url=wire.url, connections_max=1)
    before = service.count()
    wire.faults.then("too_long")
    wire.faults.then("throttled")
    answers: list[Any] = []
    for _ in range(3):
        try:
            answers.append(ours.call(service.action, service.payload))
        except UpwellError as error:
            answers.append(error)
    assert isinstance(answers[1], TransientError)
    assert answers[1].throttled
    assert isinstance(answers[2], dict)
    assert service.count() - before == 2
    ours.close()


def test_a_wrong_clock_is_noticed_and_made_good(service: Service, wire: FaultProxy) -> None:
    wire.faults.clock_ahead_s = -4000.0
    with pytest.raises(ClientError, match="not yet current"):
        service.write(wire)
    ours = AwsService(service.name, REGION, endpoint_url=wire.url)
    with pytest.raises(TransientError) as failure:
        ours.call(service.action, service.payload)
    assert failure.value.code == "UW-AWS-007"
    assert ours.clock_skew_s == pytest.approx(4000, abs=3)
    ours.call(service.action, service.payload)  # signed with AWS's time
    ours.close()
    assert wire.done["clock_skewed"] == 2


# --- parts of a request ---------------------------------------------------------------------------------------------


def test_some_records_fail_and_the_others_are_stored(stream: Streams, kinesis_faults: FaultProxy) -> None:
    wire = kinesis_faults
    wire.faults.then("record_failed", "PutRecords")
    answers = stream.put(wire, [str(number * 2**125) for number in range(6)])
    assert [answer.get("ErrorCode") for answer in answers] == [None, "InternalFailure"] * 3
    assert all("SequenceNumber" in answer for answer in answers[::2])
    assert stream.count() == 3
    assert wire.done == {"record_failed": 3}


def test_a_deleted_record_looks_stored(stream: Streams, kinesis_faults: FaultProxy) -> None:
    wire = kinesis_faults
    keys = [str(number * 2**125) for number in range(6)]
    wire.faults.then("record_deleted", "PutRecords")
    answers = stream.put(wire, keys)
    assert all("SequenceNumber" in answer for answer in answers)
    assert stream.count() == 5
    wire.faults.deletes = lambda data: data == b"x"
    assert all(answer["ShardId"] for answer in stream.put(wire, keys))
    wire.faults.stop()
    stream.put(wire, keys)
    assert stream.count() == 11
    assert wire.done == {"record_deleted": 7}


def test_a_closed_shard_takes_nothing_and_the_others_do(stream: Streams, kinesis_faults: FaultProxy) -> None:
    wire = kinesis_faults
    keys = [str(number * 2**125 + 7) for number in range(8)]  # two for each shard, in their order
    wire.faults.closed_shards = {"shardId-000000000001"}
    answers = stream.put(wire, keys)
    reasons = [answer.get("ErrorCode") for answer in answers]
    assert reasons == [None, None, *["ProvisionedThroughputExceededException"] * 2, None, None, None, None]
    assert {answer["ShardId"] for answer in answers if "ShardId" in answer}.isdisjoint(wire.faults.closed_shards)
    wire.faults.closed_shards = {f"shardId-{number:012}" for number in range(SHARDS)}
    assert all("ErrorCode" in answer for answer in stream.put(wire, keys))
    assert stream.count() == 6
    assert wire.done == {"shard_throttled": 10}


def test_after_a_split_the_new_shards_are_known(stream: Streams, kinesis_endpoint: str) -> None:
    direct = client("kinesis", kinesis_endpoint)
    with FaultProxy(kinesis_endpoint) as wire:
        wire.faults.closed_shards = {"shardId-000000000004"}
        stream.put(wire, ["7"])
        direct.split_shard(
            StreamName=stream.stream, ShardToSplit="shardId-000000000000", NewStartingHashKey=str(2**125)
        )
        assert eventually(
            lambda: direct.describe_stream(StreamName=stream.stream)["StreamDescription"]["StreamStatus"] == "ACTIVE"
        )
        stream.put(wire, [str(2**125 + 7)])  # its answer names a shard that the proxy has not seen
        reasons = [answer.get("ErrorCode") for answer in stream.put(wire, ["7", str(2**125 + 7)])]
        assert reasons == ["ProvisionedThroughputExceededException", None]


def test_a_closed_partition_takes_nothing_of_its_keys(dynamodb_endpoint: str) -> None:
    tables = Tables(dynamodb_endpoint)
    with FaultProxy(dynamodb_endpoint) as wire:
        wire.faults.closed_shards = {"partition-2"}
        refused = set()
        for number in range(40):
            try:
                tables.write(wire, key=f"key {number}")
            except ClientError:
                refused.add(number)
        assert 2 < len(refused) < 25
        for number in sorted(refused):
            with pytest.raises(ClientError, match="ProvisionedThroughput"):
                tables.write(wire, key=f"key {number}")
        assert tables.count() == 40 - len(refused)
        assert wire.done == {"shard_throttled": 2 * len(refused)}


# --- by chance, by a rule, from outside -----------------------------------------------------------------------------


def test_chance_keeps_to_the_rates_and_to_the_seed(stream: Streams, kinesis_endpoint: str) -> None:
    def outcomes(seed: int) -> list[bool]:
        with FaultProxy(kinesis_endpoint, seed=seed, rates={"throttled": 0.3}) as wire:
            ours = AwsService("kinesis", REGION, endpoint_url=wire.url)
            answers = [ours.call_many("PutRecords", [stream.payload])[0] for _ in range(100)]
            ours.close()
            assert wire.done["throttled"] == sum(isinstance(answer, UpwellError) for answer in answers)
            return [isinstance(answer, UpwellError) for answer in answers]

    first = outcomes(1)
    assert 15 <= sum(first) <= 45
    assert first == outcomes(1)
    assert first != outcomes(2)


def test_shards_are_closed_for_their_share_of_the_time(stream: Streams, kinesis_endpoint: str) -> None:
    with FaultProxy(kinesis_endpoint, seed=3, rates={"shard_throttled": 0.5}) as wire:
        refused: dict[int, int] = dict.fromkeys(range(SHARDS), 0)
        together = 0
        ours = AwsService("kinesis", REGION, endpoint_url=wire.url)
        records = [
            {"Data": "eA==", "PartitionKey": "x", "ExplicitHashKey": str(number * 2**125 + 7)} for number in range(8)
        ]
        calls = 60
        for _ in range(calls):
            answers = ours.call("PutRecords", {"StreamName": stream.stream, "Records": records})["Records"]
            codes = [answer.get("ErrorCode") for answer in answers]
            together += all(codes[2 * shard] == codes[2 * shard + 1] for shard in range(SHARDS))
            for shard in range(SHARDS):
                refused[shard] += codes[2 * shard] is not None
            time.sleep(0.04)  # chance is drawn anew for each tenth of a second
        ours.close()
        assert together == calls
        assert calls * SHARDS * 0.25 < sum(refused.values()) < calls * SHARDS * 0.75


def test_a_rule_decides_before_chance(service: Service, wire: FaultProxy) -> None:
    wire.faults.rates = {"throttled": 1.0}
    wire.faults.rule = lambda request: "keys_expired" if request.action == service.action else None
    with pytest.raises(ClientError, match="ExpiredToken"):
        service.write(wire)
    wire.faults.stop()
    service.write(wire)


def test_chance_leaves_alone_what_is_asked_once(kinesis_endpoint: str, stream: Streams) -> None:
    with FaultProxy(kinesis_endpoint, rates={"throttled": 1.0}) as wire:
        direct = client("kinesis", wire.url)
        assert direct.describe_stream(StreamName=stream.stream)["StreamDescription"]["StreamStatus"] == "ACTIVE"
        with pytest.raises(ClientError, match="ProvisionedThroughput"):
            direct.list_shards(StreamName=stream.stream)


def test_it_can_be_cut_and_restored(service: Service, wire: FaultProxy) -> None:
    ours = AwsService(service.name, REGION, endpoint_url=wire.url)
    ours.call(service.action, service.payload)
    wire.faults.late_s = (0.1, 0.1)
    wire.faults.then("landed_late")
    before = service.count()
    with pytest.raises(TransientError):
        ours.call(service.action, service.payload)
    wire.cut()
    with pytest.raises(TransientError) as failure:
        ours.call(service.action, service.payload)
    assert failure.value.code == "UW-AWS-011"
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", wire.port), PATIENCE_S):
        pass
    assert eventually(lambda: service.count() == before + 1)  # it was on its way already
    wire.restore()
    ours.call(service.action, service.payload)
    ours.close()


def test_it_is_switched_over_http(service: Service, wire: FaultProxy) -> None:
    control(wire, {"rates": {"throttled": 1.0}, "then": [["keys_expired", None]], "slow_s": [1, 2]})
    for reason in ("ExpiredToken", "ProvisionedThroughput"):
        with pytest.raises(ClientError, match=reason):
            service.write(wire)
    said = control(wire)
    assert said["done"] == {"keys_expired": 1, "throttled": 1}
    assert said["requests"] == {service.action: 2}
    assert said["rates"] == {"throttled": 1.0}
    assert wire.faults.slow_s == (1.0, 2.0)
    with pytest.raises(urllib.error.HTTPError) as refused:
        control(wire, {"rates": {"trottled": 1.0}})
    assert "trottled" in refused.value.read().decode()
    control(wire, {"rates": {}, "cut_s": 0.3})
    for expected in (False, True):
        assert eventually(partial(is_up, wire, expected))
    service.write(wire)


def test_the_documentation_lists_every_fault() -> None:
    page = (Path(__file__).parents[2] / "docs" / "development.md").read_text("utf-8")
    assert [f"| `{kind}` | {what} |" for kind, what in KINDS.items()] == [
        line for line in page.splitlines() if line.startswith("| `") and line.removeprefix("| `").split("`")[0] in KINDS
    ]
