"""ItemApplier survives what the simulation does to it, and the simulation finds what is planted into it.

`make simulate ARGS=--items` runs 10,000 seeds.
"""

import pytest

from tests.simulation.__main__ import failures, finder
from tests.simulation.item_bugs import ITEM_BUGS

SEEDS = 250
PARTS = 5
# Where to look first, to save time; `python -m tests.simulation --items --bugs` tells them anew.
LIKELY = {
    "closed-for-all-resyncs": 10,
    "cursor-for-all-resyncs": 9,
    "delete-without-tombstone": 29,
    "hole-not-counted": 90,
    "lanes-saved-before-rows": 108,
    "sweep-ends-with-first-page": 9,
}


@pytest.mark.parametrize("part", range(PARTS))
def test_no_seed_breaks_an_invariant(part: int) -> None:
    found = failures(range(part * SEEDS // PARTS, (part + 1) * SEEDS // PARTS), items=True)
    assert not found, "replay with: python -m tests.simulation --items --trace --seed " + str(found[0][0])


@pytest.mark.parametrize("bug", sorted(ITEM_BUGS))
def test_a_planted_bug_is_found(bug: str) -> None:
    assert finder(bug, [LIKELY.get(bug, 0), *range(SEEDS)], items=True) is not None
