"""The handler: what it answers AWS, what it tells CloudWatch, what it loads."""

from __future__ import annotations

import base64
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from tests.simulation.dice import SimClock
from upwell.app.build_cloud import Applying
from upwell.cloud import subscriber_lambda
from upwell.cloud.subscriber_lambda import ANEW_AFTER_S, ATTEMPTS_MAX, Environment
from upwell.config import load
from upwell.errors import OperatorError, TransientError
from upwell.pipeline import incoming
from upwell.pipeline.incoming import Applied
from upwell.ports import Clock, Request

CONFIGURATION = """
pipeline: shop
destination: {kinesis: {stream: shop, region: eu-west-1}}
subscriber: {target: postgresql://app@aurora.example/app}
"""
# What no function of a subscriber has any use for; drivers and botocore come when they are needed.
NOT_LOADED = {
    "click", "rich", "sqlglot", "psycopg", "botocore", "mssql_python", "pytds", "sqlite3", "starlette", "mangum", "jwt",
    "upwell.app.build", "upwell.app.cli", "upwell.pipeline.publisher", "upwell.pipeline.subscriber",
}  # fmt: skip


class Clockwork(SimClock):
    def sleep(self, seconds: float) -> None:
        self.time += seconds


class Target:
    """What is asked of a target, and a record of it."""

    def __init__(self) -> None:
        self.opened = self.checked = self.closed = 0
        self.applied: list[list[bytes]] = []
        self.failures: list[Exception] = []
        self.pending: list[Request] = []
        self.asked: list[Request] = []
        self.alarm = ""
        self.takes_s = 0.0
        self.clock = Clockwork()

    def apply(self, data: Sequence[bytes]) -> Applied:
        self.clock.time += self.takes_s
        if self.failures:
            raise self.failures.pop(0)
        self.applied.append(list(data))
        return Applied(events=len(data), alarm=self.alarm)

    def check(self) -> None:
        self.checked += 1

    def pending_repairs(self, pipeline: str) -> list[Request]:
        return self.pending

    def repair_handed_over(self, pipeline: str, id_: str) -> None:
        self.pending = []

    def ask(self, pipeline: str, request: Request) -> None:
        self.asked.append(request)

    @contextmanager
    def open(self, clock: Clock, rng: random.Random) -> Iterator[Applying]:
        self.opened += 1
        parts: Any = self
        yield Applying(parts, parts, parts, parts)
        self.closed += 1


@pytest.fixture
def target() -> Target:
    return Target()


@pytest.fixture
def said() -> list[bytes]:
    return []


@pytest.fixture
def environment(target: Target, said: list[bytes], tmp_path: Path) -> Environment:
    file = tmp_path / "upwell.yaml"
    file.write_text(CONFIGURATION)
    return Environment(load(file, {}), target.open, target.clock, said.append)


def event(*data: bytes, arrived: float = 1_800_000_000.0) -> dict[str, Any]:
    records = [
        {
            "kinesis": {
                "sequenceNumber": str(100 + place),
                "data": base64.b64encode(each).decode(),
                "approximateArrivalTimestamp": arrived + place,
            }
        }
        for place, each in enumerate(data)
    ]
    return {"Records": records}


def handled(environment: Environment, target: Target, *data: bytes, timeout_s: float = 60.0) -> list[str]:
    """What is to come again."""
    ends_at = target.clock.time + timeout_s
    answer = environment.handle(event(*data), lambda: ends_at - target.clock.time)
    assert list(answer) == ["batchItemFailures"]
    return [item["itemIdentifier"] for item in answer["batchItemFailures"]]


def test_all_is_applied_in_order_over_one_connection(environment: Environment, target: Target) -> None:
    assert handled(environment, target, b"a", b"b") == []
    assert handled(environment, target, b"c") == []
    assert target.applied == [[b"a", b"b"], [b"c"]]
    assert (target.opened, target.checked) == (1, 1)


def test_a_connection_that_was_lost_while_nobody_looked_costs_an_attempt(
    environment: Environment, target: Target
) -> None:
    target.failures = [TransientError("lost", code="UW-PT-001")]
    assert handled(environment, target, b"a") == []
    assert target.applied == [[b"a"]]


def test_of_what_goes_wrong_the_first_record_is_named_and_what_came_before_stays(
    environment: Environment, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming, "BATCH_BYTES_MAX", 1)
    applied = target.apply

    def apply(data: Sequence[bytes]) -> Applied:
        if data == [b"c"]:
            raise TransientError("away", code="UW-PT-004")
        return applied(data)

    monkeypatch.setattr(target, "apply", apply)
    assert handled(environment, target, b"a", b"b", b"c", b"d") == ["102"]
    assert target.applied == [[b"a"], [b"b"]]


@pytest.mark.parametrize("error", [TransientError("away"), OperatorError("no right", code="UW-PT-020")])
def test_trouble_of_the_surroundings_gives_nothing_up(
    environment: Environment, target: Target, error: Exception, said: list[bytes]
) -> None:
    target.failures = [error] * ATTEMPTS_MAX
    assert handled(environment, target, b"a", b"b") == ["100"]
    assert target.applied == []
    [line] = map(orjson.loads, said)
    assert (line["Retried"], line["Events"]) == (2, 0)
    target.failures.clear()
    assert handled(environment, target, b"a", b"b") == []


def test_nothing_is_begun_that_would_be_cut_off(
    environment: Environment, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming, "BATCH_BYTES_MAX", 1)
    target.takes_s = 20.0
    assert handled(environment, target, *(bytes([n]) for n in range(10)), timeout_s=60) == ["103"]
    assert len(target.applied) == 3


def test_something_is_done_however_short_the_time(environment: Environment, target: Target) -> None:
    target.takes_s = 5.0
    assert handled(environment, target, b"a", timeout_s=3.0) == []


def test_what_fails_for_long_is_made_anew_with_its_secrets(
    environment: Environment, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment may live for hours: with a password that was changed it would fail for as long."""
    made: list[Environment] = []

    def make() -> Environment:
        made.append(Environment(environment._pipeline, target.open, target.clock, lambda _: None))
        return made[-1]

    monkeypatch.setattr(subscriber_lambda, "_environment", cache(make))
    context = SimpleNamespace(get_remaining_time_in_millis=lambda: 60_000)
    again = {"batchItemFailures": [{"itemIdentifier": "100"}]}
    assert subscriber_lambda.handler(event(b"a"), context) == {"batchItemFailures": []}
    for waited_s in (0, ANEW_AFTER_S - 1, 1):
        target.clock.time += waited_s
        assert len(made) == 1
        target.failures = [OperatorError("the password is refused", code="UW-PT-020")]
        assert subscriber_lambda.handler(event(b"a"), context) == again
    assert (target.opened, target.closed) == (1, 1)
    assert subscriber_lambda.handler(event(b"a"), context) == {"batchItemFailures": []}
    assert (len(made), target.opened, target.closed) == (2, 2, 1)


def test_a_bug_is_no_trouble_of_the_surroundings(environment: Environment, target: Target) -> None:
    target.failures = [ZeroDivisionError("a row's value")]
    with pytest.raises(ZeroDivisionError):
        handled(environment, target, b"a")


VALUE = "a row's value"


def test_a_bug_says_no_values_to_aws(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> Environment:
        raise ZeroDivisionError(VALUE)

    monkeypatch.setattr(subscriber_lambda, "_environment", broken)
    with pytest.raises(RuntimeError) as raised:
        subscriber_lambda.handler(event(b"a"), None)
    assert raised.value.__context__ is None
    assert VALUE not in str(raised.value) + capsys.readouterr().err


def test_a_configuration_that_can_not_be_used_gives_nothing_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UPWELL_CONFIG", str(tmp_path / "nowhere.yaml"))
    answer = subscriber_lambda.handler(event(b"a"), None)
    assert answer == {"batchItemFailures": [{"itemIdentifier": "100"}]}
    assert "nowhere.yaml" in capsys.readouterr().err


def test_what_cloudwatch_is_told(environment: Environment, target: Target, said: list[bytes]) -> None:
    """https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html"""
    target.clock.time = 61.5
    assert handled(environment, target, b"a", b"b") == []
    [line] = map(orjson.loads, said)
    [about] = line["_aws"]["CloudWatchMetrics"]
    assert about["Namespace"] == "upwell"
    assert about["Dimensions"] == [["Pipeline"]]
    assert line["Pipeline"] == "shop"
    assert {metric["Name"] for metric in about["Metrics"]} <= line.keys()
    assert {metric["Unit"] for metric in about["Metrics"]} == {"Count", "Seconds"}
    assert (line["Events"], line["AppliedLag"]) == (2, 60.5)
    assert said[0].endswith(b"}\n")
    assert said[0].count(b"\n") == 1


def test_a_loss_is_told_to_the_publisher_at_once(environment: Environment, target: Target) -> None:
    handled(environment, target, b"a")
    target.pending = [Request("holes-after-5", None, "Lane 1")]
    handled(environment, target, b"b")
    assert target.asked == [], "now and then is enough where nothing has just been lost"
    target.alarm = "Lane 1: records are missing."
    handled(environment, target, b"c")
    assert [request.id for request in target.asked] == ["holes-after-5"]


def test_a_publisher_that_can_not_be_told_holds_nothing_up(
    environment: Environment, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(pipeline: str) -> list[Request]:
        raise TransientError("away")

    monkeypatch.setattr(target, "pending_repairs", away)
    assert handled(environment, target, b"a") == []


def test_the_function_loads_what_it_needs_and_no_more() -> None:
    code = "import sys, upwell.cloud.subscriber_lambda; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "upwell.pipeline.item_applier" in loaded
    assert not loaded & NOT_LOADED
    assert not [module for module in loaded if module.startswith("upwell.sources")]
