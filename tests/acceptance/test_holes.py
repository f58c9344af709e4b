"""The proof of lane holes, small."""

from __future__ import annotations

from pathlib import Path

from tests.proofs import Servers, holes


def test_holes(servers: Servers, tmp_path: Path) -> None:
    holes.run(servers, tmp_path, holes.SMALL)
