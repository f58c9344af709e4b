"""The relational way to its end, in the size that fits every run: see tests/proofs/cloud.py."""

from pathlib import Path

from tests.proofs import Servers, cloud


def test_cloud(servers: Servers, tmp_path: Path) -> None:
    cloud.run(servers, tmp_path, cloud.SMALL)
