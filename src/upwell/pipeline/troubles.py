"""What fails at the moment and is tried again: told when it lasts, and once more when it is over."""

from __future__ import annotations

import logging
import threading
import traceback

from upwell.errors import TransientError
from upwell.ports import Clock

# What passes sooner is daily life: a lost answer, a throttled shard. `status` shows it, the log does not.
LASTING_S = 3.0


class Troubles:
    """Of several who try the same, such as threads, each under a name of its own. Thread-safe."""

    def __init__(self, log: logging.Logger, clock: Clock, over: str) -> None:
        """`over`: what the log says when nobody meets trouble any more."""
        self._log = log
        self._clock = clock
        self._over = over
        self._lock = threading.Lock()
        self._since: dict[str, float] = {}  # who → since when nothing worked
        self._told = False
        self._last = ""

    @property
    def last(self) -> str:
        """The newest error, as long as there is any trouble; else empty."""
        return self._last

    def met(self, who: str, error: TransientError) -> None:
        """An attempt failed."""
        forget_frames(error)
        now = self._clock.monotonic()
        with self._lock:
            since = self._since.setdefault(who, now)
            self._last = str(error)
            tell = not self._told and now - since >= LASTING_S
            self._told = self._told or tell
        if tell:
            self._log.warning("%s Trying again until it works.", error)

    def over(self, who: str) -> None:
        """An attempt succeeded."""
        if who not in self._since:
            return
        with self._lock:
            self._since.pop(who, None)
            if self._since:
                return
            self._last = ""
            told, self._told = self._told, False
        if told:
            self._log.info(self._over)


def forget_frames(error: BaseException) -> None:
    """An error that was caught for good keeps nothing alive of what raised it: requests and rows, megabytes, in circles
    that only Python's collector finds, which seldom comes where nothing else happens.
    """
    waiting: list[BaseException | None] = [error]
    while waiting:
        following = waiting.pop()
        if following is not None and following.__traceback__ is not None:
            traceback.clear_frames(following.__traceback__)
            following.__traceback__ = None
            waiting += [following.__cause__, following.__context__]
