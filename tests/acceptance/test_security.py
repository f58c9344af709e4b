"""The proof that nothing secret or personal shows where it must not, small."""

from __future__ import annotations

from pathlib import Path

from tests.proofs import Servers, security


def test_security(servers: Servers, tmp_path: Path) -> None:
    security.run(servers, tmp_path, security.SMALL)
