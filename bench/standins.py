"""What our stand-ins carry a second of their own CPU, beside kinesalite and DynamoDB Local: python -m bench.standins.

A proof that uses one measures upwell as long as it needs far less than this.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence

import orjson
import psutil

from lab.parts import DynamoDbLocal, HttpPart, Kinesalite, StandinDynamoDb, StandinKinesis
from upwell.aws import AwsService

READY_S = 10.0
RECORDS, RECORD_BYTES, CALL_RECORDS = 60_000, 300, 500
ITEMS = 20_000
GUARD = "attribute_not_exists(#v) OR #v <= :v"


def kinesis(part: HttpPart, records: int) -> None:
    """PutRecords of 500 over one connection."""
    with part:
        service = AwsService("kinesis", "eu-west-1", endpoint_url=part.url)
        service.call("CreateStream", {"StreamName": "s", "ShardCount": 4})
        _await(lambda: service.call("DescribeStreamSummary", {"StreamName": "s"})["StreamDescriptionSummary"])
        call = [
            {"Data": _base64(b"x" * RECORD_BYTES), "PartitionKey": "k", "ExplicitHashKey": str(number * 2**119)}
            for number in range(CALL_RECORDS)
        ]
        bodies = [orjson.dumps({"StreamName": "s", "Records": call})] * (records // CALL_RECORDS)
        _measure(f"{type(part).__name__}: records put", part, service, "PutRecords", bodies, records)


def dynamodb(part: HttpPart, items: int) -> None:
    """Guarded PutItem of small items, over many connections as the sink does it."""
    with part:
        service = AwsService("dynamodb", "eu-west-1", endpoint_url=part.url)
        key = {"AttributeDefinitions": [{"AttributeName": "id", "AttributeType": "N"}]}
        schema = {"KeySchema": [{"AttributeName": "id", "KeyType": "HASH"}], "BillingMode": "PAY_PER_REQUEST"}
        service.call("CreateTable", {"TableName": "items", **key, **schema})
        _await(lambda: service.call("DescribeTable", {"TableName": "items"})["Table"])
        bodies = [_put(number) for number in range(items)]
        _measure(f"{type(part).__name__}: guarded items put", part, service, "PutItem", bodies, items)


def _put(number: int) -> bytes:
    version = _base64(number.to_bytes(16, "big"))
    columns = {f"column{place}": {"S": "some text of it"} for place in range(13)}
    return orjson.dumps(
        {
            "TableName": "items",
            "Item": {"id": {"N": str(number)}, "_upwell_v": {"B": version}, **columns},
            "ConditionExpression": GUARD,
            "ExpressionAttributeNames": {"#v": "_upwell_v"},
            "ExpressionAttributeValues": {":v": {"B": version}},
        }
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _await(describe: Callable[[], dict[str, str]]) -> None:
    deadline = time.monotonic() + READY_S
    while "ACTIVE" not in describe().values():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _measure(what: str, part: HttpPart, service: AwsService, action: str, bodies: Sequence[bytes], count: int) -> None:
    cpu, wall = _cpu_s(part), time.perf_counter()
    answers = service.call_many(action, bodies)
    wall, cpu = time.perf_counter() - wall, _cpu_s(part) - cpu
    assert all(isinstance(answer, dict) and not answer.get("FailedRecordCount") for answer in answers)
    print(f"{what:36} {count / wall:10,.0f} a second {count / cpu:10,.0f} a second of its CPU", flush=True)
    service.close()


def _cpu_s(part: HttpPart) -> float:
    """Of the process that listens on the part's port."""
    for connection in psutil.net_connections("tcp"):
        if (
            connection.laddr
            and connection.laddr.port == part.port
            and connection.status == psutil.CONN_LISTEN
            and connection.pid
        ):
            used = psutil.Process(connection.pid).cpu_times()
            return used.user + used.system
    raise AssertionError(f"nothing listens on the port of {part.name}")


if __name__ == "__main__":
    kinesis(StandinKinesis(), RECORDS)
    kinesis(Kinesalite(), RECORDS // 4)
    dynamodb(StandinDynamoDb(), ITEMS)
    dynamodb(DynamoDbLocal(), ITEMS // 4)
