"""A simulation that finds no bug proves nothing: each planted one is found by one of the seeds of test_simulation."""

import pytest

from tests.simulation.__main__ import finder
from tests.simulation.bugs import BUGS
from tests.simulation.test_simulation import SEEDS

# Where to look first, to save time; `python -m tests.simulation --bugs` tells them anew.
LIKELY = {
    "any-sweep-ends-a-resync": 63,
    "chunk-inside-transaction": 2,
    "chunk-not-held": 9,
    "chunk-stamped-low": 1,
    "chunks-without-barrier": 43,
    "delete-without-tombstone": 25,
    "earlier-term-applied": 19,
    "evicted-row-stays-away": 3,
    "hole-before-term-not-counted": 59,
    "hole-not-counted": 1,
    "newer-keys-not-dropped": 2,
    "no-replace": 8,
    "no-sweep": 2,
    "no-watermark": 2,
    "noted-before-opening": 17,
    "one-repair-for-all-holes": 55,
    "opened-with-first-chunk": 24,
    "opening-leaves-watermark": 29,
    "partial-as-nulls": 7,
    "partial-failure-overtaken": 4,
    "partial-newer-dropped": 20,
    "partial-replaces-row": 29,
    "refused-event-forgotten": 82,
    "resync-at-start-at-once": 5,
    "retry-overtaken": 1,
    "sweep-despite-hole": 180,
    "unbounded-memory": 1,
    "unfenced-save": 1,
    "wanted-resync-forgotten": 69,
    "watermark-not-locked": 2,
    "window-lost-by-error": 16,
    "write-without-guard": 5,
}


@pytest.mark.parametrize("bug", sorted(BUGS))
def test_a_planted_bug_is_found(bug: str) -> None:
    assert finder(bug, [LIKELY.get(bug, 0), *range(SEEDS)]) is not None
