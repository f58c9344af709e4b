"""A simulation that finds no bug proves nothing: each planted one is found by one of the seeds of test_simulation."""

import pytest

from tests.simulation.__main__ import failure
from tests.simulation.bugs import BUGS
from tests.simulation.test_simulation import SEEDS


@pytest.mark.parametrize("bug", sorted(BUGS))
def test_a_planted_bug_is_found(bug: str) -> None:
    assert any(failure(seed, bug) for seed in range(SEEDS))
