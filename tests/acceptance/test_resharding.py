"""Resharding under load, in the size that fits every run: see tests/proofs/resharding.py."""

from pathlib import Path

from tests.proofs import Servers, resharding


def test_resharding(servers: Servers, tmp_path: Path) -> None:
    resharding.run(servers, tmp_path, resharding.SMALL)
