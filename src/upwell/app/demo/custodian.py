"""Ends the demo's processes and removes its folder when the demo is gone, however it went.

    python custodian.py FOLDER

The demo holds the other end of standard input, so that even `kill -9` closes it. On it come lines: `+PID SIGNAL` when
a process was started that is to be ended with that signal, `-PID` when it has ended.

Standard library only, and no import from the package: it starts in milliseconds.
"""

import os
import shutil
import signal
import sys
import time
from contextlib import suppress

REMOVE_TRIES = 20  # a process that is just ending may still write


def main() -> None:
    """Wait for the demo to be gone, then clear up after it."""
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    running: dict[int, int] = {}
    for line in sys.stdin:
        if line.startswith("+"):
            pid, number = map(int, line[1:].split())
            running[pid] = number
        else:
            running.pop(int(line[1:]), None)
    for pid, number in running.items():
        with suppress(OSError):  # it has ended
            os.kill(pid, number)
    for _ in range(REMOVE_TRIES):
        shutil.rmtree(sys.argv[1], ignore_errors=True)
        if not os.path.exists(sys.argv[1]):
            break
        time.sleep(0.1)


if __name__ == "__main__":
    main()
