"""The proof of bounded memory, small."""

from __future__ import annotations

from pathlib import Path

from tests.proofs import Servers, memory


def test_memory(servers: Servers, tmp_path: Path) -> None:
    memory.run(servers, tmp_path, memory.SMALL)
