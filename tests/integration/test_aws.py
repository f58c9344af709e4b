"""The AWS client over real sockets: many requests from one thread, what it never sends twice, TLS, proxies, keys."""

import itertools
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fake_aws import CLOSE, HANG, FakeService, Request, fake_proxy, fake_service, http, ok, refused
from upwell import http1
from upwell.aws import AwsService
from upwell.errors import ConfigError, OperatorError, TransientError, UpwellError
from upwell.http1 import Connection, Proxy, Route

Answer = Callable[[Request], bytes]


@pytest.fixture(autouse=True)
def _known_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No proxy and no AWS configuration but the test's."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower() in ("https_proxy", "http_proxy", "no_proxy", "all_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very secret")


def connect(fake: FakeService, **options: Any) -> AwsService:
    return AwsService("dynamodb", "eu-west-1", endpoint_url=fake.url, **options)


@contextmanager
def connected(fake: FakeService, **options: Any) -> Iterator[AwsService]:
    service = connect(fake, **options)
    try:
        yield service
    finally:
        service.close()


def echo(request: Request) -> bytes:
    return ok({"echo": request.payload})


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


# ---- HTTP ----


@pytest.fixture
def scripted() -> Iterator[Callable[[list[bytes]], Connection]]:
    """A connection to a server that sends these pieces, one by one, then closes."""
    opened: list[Any] = []

    def make(pieces: list[bytes]) -> Connection:
        server = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            with server, server.accept()[0] as raw:
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for piece in pieces:
                    raw.sendall(piece)

        thread = threading.Thread(target=serve)
        thread.start()
        connection = Connection(Route("127.0.0.1", server.getsockname()[1], None, None))
        opened.append((thread, connection))
        return connection

    yield make
    for thread, connection in opened:
        thread.join()
        connection.close()


CHUNKED = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{"a"\r\n3;x=y\r\n:1}\r\n0\r\n\r\n'
FIXED = b'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-LENGTH:  7 \r\nX: 1\r\n\r\n{"a":1}'


@pytest.mark.parametrize("answer", [CHUNKED, FIXED])
def test_an_answer_may_come_in_any_pieces(scripted: Callable[[list[bytes]], Connection], answer: bytes) -> None:
    @given(cuts=st.lists(st.integers(0, len(answer)), max_size=6))
    @settings(max_examples=40)
    def whole(cuts: list[int]) -> None:
        edges = [0, *sorted(cuts), len(answer)]
        pieces = [answer[a:b] for a, b in itertools.pairwise(edges) if a < b]
        received = scripted(pieces).receive()
        assert (received.status, bytes(received.body)) == (200, b'{"a":1}')

    whole()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        FIXED[:-1],
        CHUNKED[:-5],
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"x" * (http1.HEAD_BYTES_MAX + 1),
    ],
)
def test_what_is_cut_short_or_no_http_is_transient(
    scripted: Callable[[list[bytes]], Connection], answer: bytes
) -> None:
    connection = scripted([answer])
    with pytest.raises(TransientError):
        connection.receive()
    assert not connection.alive()


def test_a_connection_that_is_to_be_closed_is_not_used_again() -> None:
    with fake_service(lambda request: http(b"{}", headers="Connection: close\r\n")) as fake:
        service = connect(fake)
        for _ in range(2):
            service.call("PutItem", {})
        assert fake.connections == 2
        service.close()


def test_html_where_json_should_be_is_transient() -> None:
    with fake_service(lambda request: http(b"<html>Welcome to the hotel</html>")) as fake, connected(fake) as service:
        with pytest.raises(TransientError) as raised:
            service.call("PutItem", {})
        assert raised.value.code == "UW-AWS-020"


# ---- TLS and proxies ----


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA(organization_name="Corp Interception Ltd")


@pytest.fixture
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture
def bundle(authority: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "corp.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.mark.usefixtures("keys")
class TestTls:
    def test_a_private_authority_is_trusted_where_configured(self, tls: ssl.SSLContext, bundle: str) -> None:
        with fake_service(echo, tls) as fake, connected(fake, ca_bundle=bundle) as service:
            for number in range(3):
                assert service.call("PutItem", {"n": number}) == {"echo": {"n": number}}
            assert fake.connections == 1  # session tickets, which come late, are not taken for an end

    def test_the_environment_names_it_too(
        self, tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_CA_BUNDLE", bundle)
        with fake_service(echo, tls) as fake, connected(fake) as service:
            assert service.call("PutItem", {}) == {"echo": {}}

    def test_a_closed_idle_connection_is_noticed_under_tls(self, tls: ssl.SSLContext, bundle: str) -> None:
        with fake_service(echo, tls) as fake, connected(fake, ca_bundle=bundle) as service:
            service.call("PutItem", {})
            fake.drop_connections()
            deadline = time.monotonic() + 10
            while service._idle[0].alive() and time.monotonic() < deadline:
                time.sleep(0.01)
            assert service.call("PutItem", {}) == {"echo": {}}
            assert (fake.connections, len(fake.requests)) == (2, 2)

    def test_an_unknown_authority_is_named_and_nothing_is_sent(self, tls: ssl.SSLContext) -> None:
        with fake_service(echo, tls) as fake, connected(fake) as service:
            with pytest.raises(OperatorError) as raised:
                service.call("PutItem", {})
            assert raised.value.code == "UW-AWS-013"
            assert "Corp Interception Ltd" in raised.value.message
            assert "ca_bundle" in raised.value.remedy
            assert fake.requests == []

    def test_a_certificate_for_another_name_is_not_trusted(self, authority: trustme.CA, bundle: str) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("other.example").configure_cert(context)
        with fake_service(echo, context) as fake, connected(fake, ca_bundle=bundle) as service:
            with pytest.raises(OperatorError, match="Hostname mismatch"):
                service.call("PutItem", {})
            assert fake.requests == []

    def test_a_plain_server_on_a_tls_port_is_told(self, bundle: str) -> None:
        with fake_service(echo) as fake:
            service = AwsService("dynamodb", "eu-west-1", endpoint_url=f"https://localhost:{fake.port}")
            with pytest.raises(TransientError) as raised:
                service.call("PutItem", {})
            assert raised.value.code in ("UW-AWS-014", "UW-AWS-011")

    def test_a_bundle_that_is_none_is_refused_at_the_start(self, tmp_path: Path) -> None:
        for path in (tmp_path / "missing.pem", tmp_path / "empty.pem"):
            (tmp_path / "empty.pem").write_text("nothing")
            with pytest.raises(ConfigError) as raised:
                AwsService("kinesis", "eu-west-1", ca_bundle=str(path))
            assert raised.value.code == "UW-AWS-022"
            assert path.name in raised.value.message


@pytest.mark.usefixtures("keys")
class TestProxy:
    AUTHORIZATION = "Basic dXNlcjpwQHNz"  # user:p@ss

    def test_all_goes_through_the_configured_one(self, tls: ssl.SSLContext, bundle: str) -> None:
        with fake_service(echo, tls) as fake, fake_proxy(self.AUTHORIZATION) as proxy:
            url = proxy.url.replace("http://", "http://user:p%40ss@")
            with connected(fake, ca_bundle=bundle, proxy=url) as service:
                assert service.call_many("PutItem", [{}] * 3) == [{"echo": {}}] * 3
            assert set(proxy.targets) == {f"localhost:{fake.port}"}

    def test_the_environment_names_one_and_exceptions(
        self, tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with fake_service(echo, tls) as fake, fake_proxy() as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            with connected(fake, ca_bundle=bundle) as service:
                service.call("PutItem", {})
            assert len(proxy.targets) == 1
            monkeypatch.setenv("NO_PROXY", "example.com,localhost")
            with connected(fake, ca_bundle=bundle) as service:
                service.call("PutItem", {})
            assert len(proxy.targets) == 1
            assert len(fake.requests) == 2

    def test_an_interceptor_behind_a_proxy_is_named(self, tls: ssl.SSLContext) -> None:
        with fake_service(echo, tls) as fake, fake_proxy() as proxy, connected(fake, proxy=proxy.url) as service:
            with pytest.raises(OperatorError, match="Corp Interception Ltd"):
                service.call("PutItem", {})
            assert len(proxy.targets) == 3  # the attempt, and two handshakes to read who issued the certificate

    @pytest.mark.parametrize(
        ("status", "kind", "code"),
        [(403, OperatorError, "UW-AWS-016"), (502, TransientError, "UW-AWS-016"), (503, TransientError, "UW-AWS-016")],
    )
    def test_its_refusal_is_told(self, bundle: str, status: int, kind: type[UpwellError], code: str) -> None:
        with fake_service(echo) as fake, fake_proxy(status=status) as proxy:
            with connected(fake, proxy=proxy.url) as service, pytest.raises(kind) as raised:
                service.call("PutItem", {})
            assert raised.value.code == code
            assert fake.requests == []

    def test_its_password_is_asked_for_and_never_shown(self) -> None:
        with fake_service(echo) as fake, fake_proxy(self.AUTHORIZATION) as proxy:
            url = proxy.url.replace("http://", "http://user:wrongpass@")
            with connected(fake, proxy=url) as service, pytest.raises(OperatorError) as raised:
                service.call("PutItem", {})
            assert raised.value.code == "UW-AWS-015"
            assert "Basic" in raised.value.message
            assert "wrongpass" not in f"{raised.value} {service.route!r}"

    @pytest.mark.parametrize("url", ["https://user:hidden@proxy:8443", "socks5://user:hidden@proxy", "http://"])
    def test_an_address_that_is_none_is_refused_without_its_password(self, url: str) -> None:
        with pytest.raises(ConfigError) as raised:
            Proxy.parse(url)
        assert "hidden" not in str(raised.value)

    def test_the_scheme_may_be_left_out(self) -> None:
        assert Proxy.parse("proxy.corp:3128") == Proxy("proxy.corp", 3128, None)


# ---- the clock ----


def test_the_clock_is_compared_and_signatures_follow_it_when_it_is_far_off(keys: None) -> None:
    ahead = timedelta(minutes=-20)  # AWS's clock against ours

    def dated(request: Request) -> bytes:
        now = datetime.now(UTC) + ahead
        stamp = datetime.strptime(request.headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        date = f"Date: {format_datetime(now, usegmt=True)}\r\n"
        if abs(now - stamp) > timedelta(minutes=5):
            return http(b'{"__type":"InvalidSignatureException","message":"Signature not yet current"}', 400, date)
        return http(b"{}", 200, date)

    with fake_service(dated) as fake, connected(fake) as service:
        assert service.clock_skew_s is None
        with pytest.raises(TransientError) as raised:
            service.call("PutItem", {})
        assert raised.value.code == "UW-AWS-007"
        assert service.clock_skew_s == pytest.approx(1200, abs=2)
        assert service.call("PutItem", {}) == {}


# ---- credentials ----


def process_config(tmp_path: Path, script: str) -> None:
    program = tmp_path / "give_keys.py"
    program.write_text(script)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {sys.executable} {program}\n")


COUNTING = """
import json, pathlib, datetime
path = pathlib.Path({path!r})
count = int(path.read_text()) + 1 if path.exists() else 1
path.write_text(str(count))
expires = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds={seconds})
print(json.dumps({{"Version": 1, "AccessKeyId": f"AKIA{{count}}", "SecretAccessKey": "s", "SessionToken": f"t{{count}}",
                   "Expiration": expires.isoformat()}}))
"""


class TestCredentials:
    def used(self, fake: FakeService) -> list[str]:
        return [
            request.headers["authorization"].partition("Credential=")[2].partition("/")[0] for request in fake.requests
        ]

    def test_those_of_the_environment_sign(self, keys: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SESSION_TOKEN", "a token")
        with fake_service(echo) as fake, connected(fake) as service:
            service.call("PutItem", {})
            assert self.used(fake) == ["AKIATEST"]
            assert fake.requests[0].headers["x-amz-security-token"] == "a token"

    def test_a_process_gives_them_and_is_asked_again_before_they_run_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("upwell.aws._KEYS_EVERY_S", 0.0)
        process_config(tmp_path, COUNTING.format(path=str(tmp_path / "count"), seconds=300))
        with fake_service(echo) as fake, connected(fake) as service:
            for _ in range(3):  # five minutes left are too few: each use asks anew
                service.call("PutItem", {})
            used = self.used(fake)
            assert len(set(used)) == 3
            assert [f"AKIA{request.headers['x-amz-security-token'][1:]}" for request in fake.requests] == used

    def test_they_are_kept_while_they_last(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("upwell.aws._KEYS_EVERY_S", 0.0)
        process_config(tmp_path, COUNTING.format(path=str(tmp_path / "count"), seconds=3600))
        with fake_service(echo) as fake, connected(fake) as service:
            for _ in range(3):
                service.call("PutItem", {})
            assert self.used(fake) == ["AKIA1"] * 3

    def test_a_process_that_fails_is_tried_again_later(self, tmp_path: Path) -> None:
        process_config(tmp_path, "import sys; sys.exit('the network is down')")
        with fake_service(echo) as fake, connected(fake) as service:
            with pytest.raises(TransientError) as raised:
                service.call("PutItem", {})
            assert raised.value.code == "UW-AWS-002"
            process_config(tmp_path, COUNTING.format(path=str(tmp_path / "count"), seconds=3600))
            assert service.call("PutItem", {}) == {"echo": {}}

    def test_a_process_that_is_not_there_is_for_a_person(self, tmp_path: Path) -> None:
        (tmp_path / "config").write_text("[default]\ncredential_process = /nowhere/at-all\n")
        with fake_service(echo) as fake, connected(fake) as service, pytest.raises(OperatorError) as raised:
            service.call("PutItem", {})
        assert raised.value.code == "UW-AWS-003"

    def test_expired_ones_are_looked_for_again_in_their_file(self, tmp_path: Path) -> None:
        def renew(number: int) -> None:
            (tmp_path / "credentials").write_text(
                f"[default]\naws_access_key_id=AKIA{number}\naws_secret_access_key=s\naws_session_token=t{number}\n"
            )

        def old_is_expired(request: Request) -> bytes:
            return refused("ExpiredTokenException") if request.headers["x-amz-security-token"] == "t1" else ok({})

        renew(1)
        with fake_service(old_is_expired) as fake, connected(fake) as service:
            with pytest.raises(TransientError) as raised:
                service.call("PutItem", {})
            assert raised.value.code == "UW-AWS-006"
            renew(2)
            assert service.call("PutItem", {}) == {}

    def test_none_at_all_are_for_a_person(self) -> None:
        service = AwsService("kinesis", "eu-west-1")
        with pytest.raises(OperatorError) as raised:
            service.call("PutRecords", {})
        assert raised.value.code == "UW-AWS-001"

    def test_a_stand_in_on_this_machine_needs_none(self) -> None:
        with fake_service(echo) as fake, connected(fake) as service:
            assert service.call("PutItem", {}) == {"echo": {}}

    def test_a_profile_that_is_not_there_is_for_a_person(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        with pytest.raises(OperatorError) as raised:
            AwsService("kinesis", "eu-west-1").call("PutRecords", {})
        assert raised.value.code == "UW-AWS-003"
        assert "nobody" in raised.value.message


# ---- places ----


@pytest.mark.parametrize(
    ("service", "region", "url"),
    [
        ("kinesis", "eu-west-1", "https://kinesis.eu-west-1.amazonaws.com"),
        ("dynamodb", "cn-north-1", "https://dynamodb.cn-north-1.amazonaws.com.cn"),
        ("kinesis", "us-gov-west-1", "https://kinesis.us-gov-west-1.amazonaws.com"),
    ],
)
def test_the_endpoint_is_awss_own(service: str, region: str, url: str) -> None:
    assert AwsService(service, region).endpoint_url == url


def test_region_and_endpoint_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_KINESIS", "https://vpce-1.kinesis.example")
    service = AwsService("kinesis")
    assert (service.region, service.endpoint_url) == ("eu-central-1", "https://vpce-1.kinesis.example")
    monkeypatch.setenv("AWS_USE_FIPS_ENDPOINT", "true")
    assert AwsService("dynamodb", "us-east-1").endpoint_url == "https://dynamodb-fips.us-east-1.amazonaws.com"


def test_without_a_region_nothing_starts() -> None:
    with pytest.raises(OperatorError) as raised:
        AwsService("kinesis")
    assert raised.value.code == "UW-AWS-019"


@pytest.mark.parametrize("url", ["kinesis.example", "ftp://kinesis.example", "http://"])
def test_an_endpoint_that_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        AwsService("kinesis", "eu-west-1", endpoint_url=url)
    assert raised.value.code == "UW-AWS-019"


def test_bytes_go_as_they_are() -> None:
    with fake_service(lambda request: ok({"length": len(request.body)})) as fake, connected(fake) as service:
        assert service.call("PutItem", b'{"a":  1.0}') == {"length": 11}
