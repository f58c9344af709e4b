"""The proof of rows that are refused for what they hold, small."""

from __future__ import annotations

from pathlib import Path

from tests.proofs import Servers
from tests.proofs.poison import SMALL, run


def test_poison(servers: Servers, tmp_path: Path) -> None:
    run(servers, tmp_path, SMALL)
