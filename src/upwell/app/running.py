"""Running a service: what signals do to it, and that it gives memory back."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

log = logging.getLogger("upwell")

# The promise: a batch in flight is finished and saved, and the program ends, within 10 s.
END_WITHIN_S: Final = 9.5
# Of mallopt(3). By default each thread fills arenas of its own, and what was once large enough to be mapped by itself
# no longer is after it was freed; both hold on to the most that was ever in use (measured: twice the memory).
_MALLOC: Final = {"M_ARENA_MAX": (-8, 1), "M_MMAP_THRESHOLD": (-3, 256 * 1024), "M_TRIM_THRESHOLD": (-1, 4096 * 1024)}


def dump_nothing() -> None:
    """No signal and no crash leaves a file with all that is in memory: rows, passwords, keys."""
    with suppress(ImportError):
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def give_memory_back() -> None:
    """Have the C library return to the system what is freed, if it is glibc. Before threads are started."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for parameter, value in _MALLOC.values():
            mallopt(parameter, value)


def spare_collector() -> None:
    """What was made until now is kept to the end: Python's collector need not look through it again and again.

    Measured: a fifth of what a subscriber takes of the processor.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def told_to_stop() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set. A second signal ends the process at once.

    Where something hangs (a database that answers no more), the process ends all the same when the time is over:
    what is saved by then is consistent, and the rest is repeated.
    """
    stop = threading.Event()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()
        # Logging takes locks, which whoever was interrupted may hold: it is done from another thread.
        threading.Thread(target=_end, args=(signal.Signals(number).name,), daemon=True).start()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(name: str) -> None:
    log.info("%s: finishing what is under way", name)
    overdue = threading.Event()
    overdue.wait(END_WITHIN_S)
    log.warning("What was under way did not end in time; it will be repeated at the next start.")
    os._exit(0)
