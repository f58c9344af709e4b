"""Single keys from the terminal, without waiting for Enter; none where there is no terminal."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Returns the keys pressed since it was last called, as lower-case letters.
PressedKeys = Callable[[], str]


@contextmanager
def pressed_keys() -> Iterator[PressedKeys]:
    """Takes the terminal's keys while the block runs."""
    if not sys.stdin or not sys.stdin.isatty():
        yield lambda: ""
    elif sys.platform == "win32":
        yield _from_windows
    else:
        with _single_keys():
            yield _from_posix


if sys.platform == "win32":
    import msvcrt

    def _from_windows() -> str:
        pressed = ""
        while msvcrt.kbhit():
            pressed += msvcrt.getwch()
        return pressed.lower()

else:
    import termios
    import tty

    @contextmanager
    def _single_keys() -> Iterator[None]:
        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)
        tty.setcbreak(terminal)
        try:
            yield
        finally:
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)

    def _from_posix() -> str:
        pressed = b""
        while select.select([sys.stdin], [], [], 0)[0]:
            more = os.read(sys.stdin.fileno(), 64)
            if not more:  # the terminal is gone
                break
            pressed += more
        return pressed.decode(errors="ignore").lower()
