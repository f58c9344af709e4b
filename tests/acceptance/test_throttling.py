"""Shards and tables above their limits, in the size that fits every run: see tests/proofs/throttling.py."""

from pathlib import Path

from tests.proofs import Servers, throttling


def test_throttling(servers: Servers, tmp_path: Path) -> None:
    throttling.run(servers, tmp_path, throttling.SMALL)
