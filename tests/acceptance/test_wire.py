"""The proof `wire`, in the size of `make test`."""

from __future__ import annotations

from pathlib import Path

from tests.proofs import Servers, wire


def test_nothing_is_lost_on_a_bad_wire(servers: Servers, tmp_path: Path) -> None:
    wire.run(servers, tmp_path, wire.SMALL)
