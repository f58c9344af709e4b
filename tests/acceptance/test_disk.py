"""The proof of what becomes of the state file, small."""

from __future__ import annotations

from pathlib import Path

from tests.proofs import Servers, disk


def test_disk(servers: Servers, tmp_path: Path) -> None:
    disk.run(servers, tmp_path, disk.SMALL)
