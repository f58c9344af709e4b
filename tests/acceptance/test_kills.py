"""Kills on a bad wire, in the size that fits every run: see tests/proofs/kills.py."""

from pathlib import Path

from tests.proofs import Servers, kills


def test_kills(servers: Servers, tmp_path: Path) -> None:
    kills.run(servers, tmp_path, kills.SMALL)
