"""A fleet by KCL, in the size that fits every run: see tests/proofs/fleet.py."""

from pathlib import Path

import pytest

from lab.part import PartMissing
from tests.proofs import Servers, fleet


def test_fleet(servers: Servers, tmp_path: Path) -> None:
    try:
        fleet.run(servers, tmp_path, fleet.SMALL)
    except PartMissing as missing:
        pytest.skip(f"the subscriber on a fleet: {missing}")  # the run's end says so in so many words
