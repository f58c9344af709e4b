"""Programs that hang and go on, in the size that fits every run: see tests/proofs/zombies.py."""

from pathlib import Path

from tests.proofs import Servers, zombies


def test_zombies(servers: Servers, tmp_path: Path) -> None:
    zombies.run(servers, tmp_path, zombies.SMALL)
