"""The proof `outage`, in the size of `make test`."""

from __future__ import annotations

from pathlib import Path

from tests.proofs import Servers, outage


def test_what_was_away_comes_back_by_itself(servers: Servers, tmp_path: Path) -> None:
    outage.run(servers, tmp_path, outage.SMALL)
