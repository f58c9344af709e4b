"""Commands on a machine that lacks the passwords: they show what they can, and name what is missing."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from upwell.model import DeadLetter
from upwell.state.sqlite import SqliteState

CONFIG = """\
pipeline: shop
source: {url: "postgresql://upwell:${SHOP_PASSWORD}@db01/shop"}
destination: {kinesis: {stream: shop, region: eu-west-1}}
subscriber: {target: "postgresql://app:${AURORA_PASSWORD}@aurora/app"}
tables: {users: {}}
"""
LETTER = DeadLetter(0, "public.users", "[7]", "0" * 32, "too large", "2026-01-31T10:00:00.000000Z", b"")
STATUS = {
    "at": "2026-01-31T10:00:00.000000Z",
    "running": True,
    "lag_seconds": 0.5,
    "runway_hours": None,
    "events_per_second": 0.0,
    "last_error": "",
    "tables": {
        "public.users": {"phase": "stream", "rows": 2, "estimate": 2, "eta_seconds": None, "events_per_second": 0.0}
    },
}
Upwell = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def upwell(tmp_path: Path) -> Upwell:
    """Run a command where neither password is known, beside a publisher's state file."""
    (tmp_path / "upwell.yaml").write_text(CONFIG)
    state = SqliteState(str(tmp_path / "upwell-state.db"), "shop")
    state.acquire(0)
    state.put_status(STATUS)
    state.add_dead_letters([LETTER])
    state.release()

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "upwell", *arguments]
        return subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True, check=False)

    return run


def test_status_reads_the_state_file_without_the_passwords(upwell: Upwell) -> None:
    found = json.loads(upwell("status", "--json").stdout)
    assert found["publisher"]["at"] == STATUS["at"]
    assert found["publisher"]["running"] is False
    assert found["tables"]["public.users"]["dead_letters"] == 1
    assert "AURORA_PASSWORD is not set" in found["subscriber"]["error"]
    text = upwell("status").stdout
    assert "public.users  stream" in text
    assert "target: it can't be asked from here, subscriber.target: the environment variable AURORA_PASSWORD" in text


def test_dead_letters_are_listed_without_the_passwords(upwell: Upwell) -> None:
    listed = upwell("dead-letters", "list")
    assert "p-1" in listed.stdout
    assert "AURORA_PASSWORD is not set" in listed.stderr
    assert json.loads(upwell("dead-letters", "show", "p-1").stdout)["key"] == "[7]"
    refused = upwell("dead-letters", "show", "s-1")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "AURORA_PASSWORD is not set" in refused.stderr


def test_what_needs_the_source_names_the_variable(upwell: Upwell) -> None:
    for arguments in (["resync"], ["dead-letters", "replay", "p-1"], ["track"], ["publish"]):
        refused = upwell(*arguments)
        assert refused.returncode == 2
        assert "SHOP_PASSWORD is not set" in refused.stderr
