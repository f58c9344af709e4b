"""What arrives is what the source holds, or was announced; in full: make prove ARGS=types."""

from pathlib import Path

from tests.proofs import Servers, types


def test_every_type(servers: Servers, tmp_path: Path) -> None:
    types.run(servers, tmp_path, types.SMALL)
