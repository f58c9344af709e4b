"""A short chaos run."""

from __future__ import annotations

from pathlib import Path

from tests.proofs import Servers, chaos


def test_chaos(servers: Servers, tmp_path: Path) -> None:
    chaos.run(servers, tmp_path, chaos.SMALL)
