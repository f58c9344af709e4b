"""The control channel in a DynamoDB table: what subscribers ask of a publisher, which polls it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from upwell.aws import JsonService
from upwell.aws_errors import ResourceMissing, ServiceRefusal
from upwell.clock import iso_time
from upwell.dynamodb_tables import ensure_table, no_such_table
from upwell.items import TTL, KeyAttribute
from upwell.ports import Clock, Request

KEY: Final = (KeyAttribute("pipeline", "S"), KeyAttribute("id", "S"))
# A finished request stays this long, so that one that is asked again late is known to be finished.
FINISHED_S: Final = 30 * 86_400
REQUESTS_MAX: Final = 1000  # of a pipeline, that one poll returns


class DynamoDbControl:
    """A ControlChannel. Items: pipeline, id, table (absent: all), reason, at; when done: finished, _upwell_ttl."""

    def __init__(self, service: JsonService, clock: Clock, table: str, *, create_table: bool = True) -> None:
        self._service = service
        self._clock = clock
        self._table = table
        self._create_table = create_table

    def prepare(self) -> None:
        """The table is there, or is made. Raises OperatorError or TransientError."""
        ensure_table(self._service, self._clock, self._table, KEY, create=self._create_table, ttl_attribute=TTL)

    def ask(self, pipeline: str, request: Request) -> None:
        """See ports.ControlChannel."""
        item = {
            "pipeline": {"S": pipeline},
            "id": {"S": request.id},
            "reason": {"S": request.reason},
            "at": {"S": iso_time(self._clock.now())},
            **({} if request.table is None else {"table": {"S": request.table}}),
        }
        try:
            self._call("PutItem", {"Item": item, "ConditionExpression": "attribute_not_exists(id)"})
        except ServiceRefusal as refusal:
            if refusal.reason != "ConditionalCheckFailedException":  # it was asked before
                raise

    def poll(self, pipeline: str) -> Sequence[Request]:
        """See ports.ControlChannel: oldest first."""
        found: list[tuple[str, Request]] = []
        request: dict[str, Any] = {
            "KeyConditionExpression": "pipeline = :p",
            "FilterExpression": "attribute_not_exists(finished)",
            "ExpressionAttributeValues": {":p": {"S": pipeline}},
            "ConsistentRead": True,
        }
        while len(found) < REQUESTS_MAX:
            answer = self._call("Query", request)
            found += [(item["at"]["S"], _request(item)) for item in answer["Items"]]
            if "LastEvaluatedKey" not in answer:
                break
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]
        return [request for _, request in sorted(found, key=lambda each: each[0])[:REQUESTS_MAX]]

    def finish(self, pipeline: str, request: Request) -> None:
        """See ports.ControlChannel."""
        self._call(
            "UpdateItem",
            {
                "Key": {"pipeline": {"S": pipeline}, "id": {"S": request.id}},
                "UpdateExpression": "SET finished = :now, #ttl = :ttl",
                "ExpressionAttributeNames": {"#ttl": TTL},
                "ExpressionAttributeValues": {
                    ":now": {"S": iso_time(self._clock.now())},
                    ":ttl": {"N": str(int(self._clock.now()) + FINISHED_S)},
                },
            },
        )

    def close(self) -> None:
        """Free connections; never raises."""
        self._service.close()

    def _call(self, action: str, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self._service.call(action, {"TableName": self._table, **request})
        except ResourceMissing as missing:
            raise no_such_table(self._table, self._service.region, KEY) from missing


def _request(item: Mapping[str, Any]) -> Request:
    table = item.get("table")
    return Request(item["id"]["S"], None if table is None else table["S"], item["reason"]["S"])
