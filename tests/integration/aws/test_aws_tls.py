"""Whom the client trusts, and the proxies it goes through."""

import ssl
import time
from pathlib import Path

import pytest
import trustme

from tests.fake_aws import fake_proxy, fake_service
from tests.integration.aws.clients import connected, echo
from upwell.aws import AwsService
from upwell.errors import ConfigError, OperatorError, TransientError, UpwellError
from upwell.http1 import Proxy


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
