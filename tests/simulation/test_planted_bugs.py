"""A simulation that finds no bug proves nothing: each planted one is found by one of the seeds of test_simulation."""

import pytest

from tests.simulation.__main__ import finder
from tests.simulation.bugs import BUGS
from tests.simulation.test_simulation import SEEDS

# Where to look first, to save time; `python -m tests.simulation --bugs` tells them anew.
LIKELY = {
    "any-sweep-ends-a-resync": 64,
    "chunk-inside-transaction": 2,
    "chunk-not-held": 8,
    "chunks-without-barrier": 6,
    "delete-without-tombstone": 5,
    "earlier-term-applied": 19,
    "evicted-row-stays-away": 3,
    "heartbeat-across-resyncs": 207,
    "heartbeat-before-durable": 71,
    "heartbeat-despite-hole": 18,
    "hole-before-term-not-counted": 32,
    "hole-not-counted": 1,
    "newer-keys-not-dropped": 6,
    "no-replace": 1,
    "no-watermark": 2,
    "noted-before-opening": 3,
    "one-repair-for-all-holes": 167,
    "opened-with-first-chunk": 2,
    "opening-leaves-watermark": 591,
    "opening-withdraws-nothing": 39,
    "partial-as-nulls": 7,
    "partial-failure-overtaken": 5,
    "partial-newer-dropped": 201,
    "partial-replaces-row": 22,
    "refused-event-forgotten": 9,
    "resync-at-start-at-once": 5,
    "sweep-despite-hole": 18,
    "wanted-resync-forgotten": 242,
    "watermark-not-locked": 2,
    "window-lost-by-error": 8,
    "write-without-guard": 5,
}


@pytest.mark.parametrize("bug", sorted(BUGS))
def test_a_planted_bug_is_found(bug: str) -> None:
    assert finder(bug, [LIKELY.get(bug, 0), *range(SEEDS)]) is not None
