"""Where keys come from, and when they are looked for again; the clock that signatures follow."""

import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from tests.fake_aws import FakeService, Request, fake_service, http, ok, refused
from tests.integration.aws.clients import connected, echo
from upwell.aws import AwsService
from upwell.errors import OperatorError, TransientError

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
