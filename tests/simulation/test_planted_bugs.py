"""A simulation that finds no bug proves nothing: each planted one is found by one of the seeds of test_simulation."""

import pytest

from tests.simulation.__main__ import finder
from tests.simulation.bugs import BUGS
from tests.simulation.test_simulation import SEEDS

# Where to look first, to save time; `python -m tests.simulation --bugs` tells them anew.
LIKELY = {
    "any-sweep-ends-a-resync": 12,
    "chunk-inside-transaction": 2,
    "chunk-not-held": 3,
    "chunk-stamped-low": 1,
    "chunks-without-barrier": 11,
    "delete-without-tombstone": 12,
    "earlier-term-applied": 10,
    "epoch-not-raised": 1,
    "evicted-row-stays-away": 20,
    "hole-before-term-not-counted": 8,
    "hole-not-counted": 1,
    "newer-keys-not-dropped": 2,
    "no-replace": 1,
    "no-sweep": 2,
    "no-watermark": 2,
    "noted-before-opening": 30,
    "one-repair-for-all-holes": 1,
    "opened-with-first-chunk": 116,
    "opening-leaves-watermark": 29,
    "partial-as-nulls": 6,
    "partial-failure-overtaken": 9,
    "partial-newer-dropped": 162,
    "partial-replaces-row": 10,
    "refused-event-forgotten": 51,
    "resync-at-start-at-once": 33,
    "retry-overtaken": 1,
    "sweep-despite-hole": 339,
    "unbounded-memory": 21,
    "unfenced-save": 1,
    "wanted-resync-forgotten": 72,
    "window-lost-by-error": 26,
    "write-without-guard": 11,
}


@pytest.mark.parametrize("bug", sorted(BUGS))
def test_a_planted_bug_is_found(bug: str) -> None:
    assert finder(bug, [LIKELY.get(bug, 0), *range(SEEDS)]) is not None
