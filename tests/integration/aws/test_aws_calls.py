"""Many requests from one thread, over few connections, and none of them sent twice."""

import socket
import threading
import time
from typing import Any

import pytest

from tests.fake_aws import CLOSE, HANG, Request, fake_service, ok, refused
from tests.integration.aws.clients import connect, connected, echo
from upwell import http1
from upwell.aws import AwsService
from upwell.errors import TransientError
from upwell.http1 import Route

# ---- many requests ----


def test_answers_come_in_the_order_of_the_requests_over_few_connections() -> None:
    with fake_service(echo) as fake:
        service = connect(fake, connections_max=4)
        for count in (1, 3, 50, 50):
            payloads = [{"n": number} for number in range(count)]
            assert service.call_many("PutItem", payloads) == [{"echo": payload} for payload in payloads]
        assert fake.connections == 4
        assert service.call_many("PutItem", []) == []
        service.close()


def test_requests_are_under_way_together() -> None:
    arrived = threading.Barrier(4, timeout=10)

    def together(request: Request) -> bytes:
        arrived.wait()  # answers only when four requests have come
        return ok({})

    with fake_service(together) as fake:
        service = connect(fake, connections_max=4)
        assert service.call_many("PutItem", [{}] * 8) == [{}] * 8
        service.close()


def test_threads_share_the_connections() -> None:
    with fake_service(echo) as fake:
        service = connect(fake, connections_max=3)
        results: dict[int, list[Any]] = {}

        def work(thread: int) -> None:
            results[thread] = [
                service.call_many("PutItem", [{"n": [thread, n, m]} for m in range(5)]) for n in range(20)
            ]

        threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert fake.connections <= 3
        for number in range(5):
            assert results[number] == [[{"echo": {"n": [number, n, m]}} for m in range(5)] for n in range(20)]
        service.close()


def test_each_request_has_its_own_outcome() -> None:
    def mixed(request: Request) -> bytes:
        number = request.payload["n"]
        return refused("ThrottlingException") if number % 3 == 1 else CLOSE if number % 3 == 2 else ok({"n": number})

    with fake_service(mixed) as fake:
        service = connect(fake, connections_max=2)
        answers = service.call_many("PutItem", [{"n": number} for number in range(9)])
        for number, answer in enumerate(answers):
            if number % 3 == 0:
                assert answer == {"n": number}
            else:
                assert isinstance(answer, TransientError)
                assert answer.throttled is (number % 3 == 1)
        assert len(fake.requests) == 9
        service.close()


def test_large_requests_and_answers_arrive_whole() -> None:
    with fake_service(echo) as fake:
        service = connect(fake)
        text = "x" * 3_000_000
        assert service.call("PutItem", {"text": text}) == {"echo": {"text": text}}
        service.close()


def test_bytes_go_as_they_are() -> None:
    with fake_service(lambda request: ok({"length": len(request.body)})) as fake, connected(fake) as service:
        assert service.call("PutItem", b'{"a":  1.0}') == {"length": 11}


# ---- never twice ----


def test_a_request_whose_connection_breaks_is_not_sent_again() -> None:
    with fake_service(lambda request: CLOSE) as fake:
        service = connect(fake)
        with pytest.raises(TransientError) as raised:
            service.call("PutItem", {})
        assert raised.value.code == "UW-AWS-012"
        assert len(fake.requests) == 1
        service.close()


def test_a_connection_that_the_service_closed_while_idle_is_not_used() -> None:
    with fake_service(echo) as fake:
        service = connect(fake)
        for round_ in range(5):
            assert service.call("PutItem", {"n": round_}) == {"echo": {"n": round_}}
            fake.drop_connections()
            deadline = time.monotonic() + 10
            while any(connection.alive() for connection in service._idle) and time.monotonic() < deadline:
                time.sleep(0.01)
        assert len(fake.requests) == 5
        assert fake.connections == 5
        service.close()


def test_a_connection_that_rested_too_long_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_service(echo) as fake, connected(fake) as service:
        for _ in range(3):
            service.call("PutItem", {})
        assert fake.connections == 1
        now = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: now() + http1.IDLE_S_MAX + 1)
        service.call("PutItem", {})
        assert fake.connections == 2


def test_out_of_reach_not_every_connection_is_waited_for() -> None:
    """Each attempt may take seconds; after the first has failed no further one begins."""
    attempts = 0
    real = Route.open

    def slow(route: Route) -> socket.socket:
        nonlocal attempts
        attempts += 1
        time.sleep(0.05)
        return real(route)

    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    service = AwsService("dynamodb", "eu-west-1", endpoint_url=f"http://127.0.0.1:{port}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Route, "open", slow)
        answers = service.call_many("PutItem", [{}] * 200)
    assert {getattr(answer, "code", None) for answer in answers} == {"UW-AWS-011"}
    assert attempts <= 17


def test_connections_that_can_be_made_do() -> None:
    """A service that takes no more than some connections is used over those."""
    made = 0
    real = Route.open

    def few(route: Route) -> socket.socket:
        nonlocal made
        made += 1
        if made > 2:
            raise TransientError("no more", code="UW-AWS-011")
        return real(route)

    with fake_service(echo) as fake, connected(fake) as service, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Route, "open", few)
        for _ in range(2):
            assert service.call_many("PutItem", [{"n": number} for number in range(20)]) == [
                {"echo": {"n": number}} for number in range(20)
            ]
        assert fake.connections == 2


def test_silence_ends_in_time_for_all_requests_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "READ_S", 1.2)
    with fake_service(lambda request: HANG) as fake:
        service = connect(fake, connections_max=4)
        started = time.monotonic()
        answers = service.call_many("PutItem", [{}] * 4)
        assert time.monotonic() - started < 2.4  # not one after the other
        assert [getattr(answer, "code", None) for answer in answers] == ["UW-AWS-012"] * 4
        assert len(fake.requests) == 4
        service.close()


def test_where_an_answer_does_not_come_no_more_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of a thousand writes would else wait READ_S for every four of them."""
    monkeypatch.setattr(http1, "READ_S", 0.5)
    with fake_service(lambda request: HANG) as fake:
        service = connect(fake, connections_max=4)
        answers = service.call_many("PutItem", [{}] * 1000)
        assert {getattr(answer, "code", None) for answer in answers} == {"UW-AWS-012"}
        assert len(fake.requests) == 4
        service.close()


def test_a_slow_answer_holds_back_only_itself() -> None:
    slow = threading.Event()

    def answer(request: Request) -> bytes:
        if request.payload["n"] == 0:
            assert slow.wait(10)
        if request.payload["n"] == 99:
            slow.set()
        return echo(request)

    with fake_service(answer) as fake:
        service = connect(fake, connections_max=2)
        answers = service.call_many("PutItem", [{"n": number} for number in range(100)])
        assert answers == [{"echo": {"n": number}} for number in range(100)]
        service.close()


def test_where_nobody_listens_nothing_is_tried_further() -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    service = AwsService("kinesis", "eu-west-1", endpoint_url=f"http://127.0.0.1:{port}")
    answers = service.call_many("PutRecords", [{}] * 100)
    assert {getattr(answer, "code", None) for answer in answers} == {"UW-AWS-011"}
    service.close()


def test_a_name_that_nobody_knows_is_told(keys: None) -> None:
    service = AwsService("kinesis", "eu-west-1", endpoint_url="http://no-such-host.invalid")
    with pytest.raises(TransientError, match=r"no-such-host\.invalid"):
        service.call("PutRecords", {})
