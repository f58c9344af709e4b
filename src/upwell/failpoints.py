"""Named places where a test can kill the process: between read, encode, send, acknowledge, checkpoint, confirm, apply.

`UPWELL_FAILPOINT=name` kills at the first passage, `name:3` at the third. Costs one comparison where it is not set.
"""

from __future__ import annotations

import os
import signal
from typing import Final

# Every name, in the order in which an event passes them; a test kills at each.
NAMES: Final = (
    "publisher.start.epoch_saved",
    "publisher.requests.finished",
    "publisher.start.position_taken",
    "publisher.read",
    "publisher.mapped",
    "publisher.offered",
    "publisher.chunk.read",
    "publisher.chunk.offered",
    "delivery.packed",
    "delivery.sent",
    "delivery.settled",
    "publisher.dead_letters.kept",
    "publisher.acknowledged",
    "publisher.checkpoint.saved",
    "publisher.confirmed",
    "publisher.swept",
    "subscriber.fetched",
    "subscriber.decoded",
    "applier.locked",
    "applier.written",
    "applier.noted",
    "applier.swept",
    "applier.before_commit",
    "applier.committed",
    "items.decoded",
    "items.lanes_read",
    "items.opened",
    "items.written",
    "items.letters_kept",
    "items.closed",
    "items.swept",
    "items.before_save",
    "items.saved",
    "subscriber.checkpoint.saved",
    "subscriber.shard.finished",
)

_name, _, _count = os.environ.get("UPWELL_FAILPOINT", "").partition(":")
_left = int(_count or 1)


def failpoint(name: str) -> None:
    """Die here, as a power cut would, if this is the place that was asked for."""
    if name == _name:
        _die()


def _die() -> None:
    global _left  # the one piece of state: how many passages are left before the kill
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
