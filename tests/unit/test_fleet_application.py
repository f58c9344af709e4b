"""What KCL keeps a fleet's leases under, and how its daemon ends."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from upwell.app.fleet import _end, _properties
from upwell.config import load

CONFIGURATION = """
pipeline: {pipeline}
destination: {{kinesis: {{stream: {stream}, region: eu-west-1}}}}
subscriber: {{target: "{target}"}}
"""
AURORA = "postgresql://app:secret@aurora.example:5432/app"


def application(folder: Path, *, pipeline: str = "shop", stream: str = "shop", target: str = AURORA) -> str:
    file = folder / "upwell.yaml"
    file.write_text(CONFIGURATION.format(pipeline=pipeline, stream=stream, target=target))
    return dict(_properties(load(file, {})))["applicationName"]


@pytest.mark.parametrize(
    "other",
    [
        {"target": "dynamodb://shop-"},
        {"target": "postgresql://app:secret@aurora.example:5432/copy"},
        {"target": "postgresql://app:secret@aurora.example:5433/app"},
        {"target": "postgresql://app:secret@/app?host=aurora.example&port=5432"},
        {"stream": "other"},
        {"pipeline": "other"},
    ],
)
def test_fleets_that_read_one_stream_for_two_targets_share_no_leases(tmp_path: Path, other: dict[str, str]) -> None:
    """Else each target would get what is in the shards of its own fleet's workers, and nothing of the others."""
    assert application(tmp_path, **other) != application(tmp_path)


@pytest.mark.parametrize(
    "target", [AURORA.replace("secret", "changed"), AURORA.replace("app:secret@", "app@"), AURORA + "?sslmode=require"]
)
def test_workers_of_one_target_share_them_however_they_log_in(tmp_path: Path, target: str) -> None:
    assert application(tmp_path, target=target) == application(tmp_path)
    assert application(tmp_path).startswith("upwell-shop-")


def test_nobody_is_left_behind() -> None:
    """A shard's program that waits for its target hears nothing of the daemon's end."""
    script = "(trap '' TERM; while :; do sleep 0.05; done) & echo $!; trap 'exit 0' TERM; wait"
    daemon = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    assert daemon.stdout is not None
    child = int(daemon.stdout.readline())
    try:
        _end(daemon)
        deadline = time.monotonic() + 10
        while Path(f"/proc/{child}/stat").exists() and _state(child) != "Z":
            assert time.monotonic() < deadline, "it goes on"
            time.sleep(0.01)
    finally:
        daemon.stdout.close()
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def _state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"
