"""The control channel over DynamoDB Local."""

import uuid
from collections.abc import Iterator

import pytest

from upwell.aws import AwsService
from upwell.clock import SystemClock
from upwell.errors import OperatorError
from upwell.ports import Request
from upwell.state.dynamodb_control import DynamoDbControl

USERS = Request("r1", "public.users", "a hole in lane 3")
ALL = Request("r2", None, "the stream was too short")


class TickingClock(SystemClock):
    ticks = 0

    def now(self) -> float:
        self.ticks += 1
        return 1_800_000_000.0 + self.ticks


@pytest.fixture
def service(dynamodb_endpoint: str) -> Iterator[AwsService]:
    service = AwsService("dynamodb", "eu-west-1", endpoint_url=dynamodb_endpoint)
    yield service
    service.close()


@pytest.fixture
def control(service: AwsService) -> DynamoDbControl:
    control = DynamoDbControl(service, TickingClock(), f"test-{uuid.uuid4().hex[:12]}-control")
    for _ in range(2):
        control.prepare()
    return control


def test_what_was_asked_is_polled_oldest_first_until_it_is_finished(control: DynamoDbControl) -> None:
    assert control.poll("shop") == []
    control.ask("shop", ALL)
    control.ask("shop", USERS)
    assert control.poll("shop") == [ALL, USERS]
    control.finish("shop", ALL)
    assert control.poll("shop") == [USERS]


def test_asked_twice_it_is_one_and_finished_it_stays_finished(control: DynamoDbControl) -> None:
    for _ in range(2):
        control.ask("shop", USERS)
    assert control.poll("shop") == [USERS]
    for _ in range(2):
        control.finish("shop", USERS)
    control.ask("shop", USERS)  # the subscriber did not get the answer to its first
    assert control.poll("shop") == []


def test_pipelines_keep_to_themselves(control: DynamoDbControl) -> None:
    control.ask("shop", USERS)
    assert control.poll("other") == []


def test_many_requests_come_over_many_pages(control: DynamoDbControl) -> None:
    long = "x" * 100_000  # a page of Query holds 1 MB
    for number in range(25):
        control.ask("shop", Request(f"r{24 - number:02}", None, f"{number} {long}"))
    assert [request.reason.split()[0] for request in control.poll("shop")] == [str(number) for number in range(25)]


def test_without_its_table_it_says_how_to_make_it(service: AwsService) -> None:
    control = DynamoDbControl(service, SystemClock(), "no-such-control", create_table=False)
    for ask in (control.prepare, lambda: control.poll("shop"), lambda: control.ask("shop", USERS)):
        with pytest.raises(OperatorError) as raised:
            ask()
        assert raised.value.code == "UW-DD-001"
        key = '[{"AttributeName":"pipeline","KeyType":"HASH"},{"AttributeName":"id","KeyType":"RANGE"}]'
        assert f"--key-schema '{key}'" in raised.value.remedy
