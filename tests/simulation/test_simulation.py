"""The pipeline survives what the simulation does to it. `make simulate` runs 10,000 seeds."""

import pytest

from tests.simulation.__main__ import failures

SEEDS = 500
PARTS = 10


@pytest.mark.parametrize("part", range(PARTS))
def test_no_seed_breaks_an_invariant(part: int) -> None:
    found = failures(range(part * SEEDS // PARTS, (part + 1) * SEEDS // PARTS))
    assert not found, "replay with: python -m tests.simulation --trace --seed " + str(found[0][0])
