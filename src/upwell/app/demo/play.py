"""The course of the demo: the stage is set, things happen to it, and in the end all tables are compared."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console

from upwell.app.demo.keys import PressedKeys, pressed_keys
from upwell.app.demo.processes import DemoFailed
from upwell.app.demo.stage import Stage, Which
from upwell.app.demo.view import Lines, Picture, print_result

TICK_S: Final = 0.2
ARRIVE_S: Final = 120.0  # once the people went home, all that is on its way has this long
CUT_S: Final = 8.0
FIRST_ROWS_S: Final = 60.0  # on a busy machine, programs and the first rows take long
_SIGNALS: Final = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def demo(ways: Which, for_s: float | None, browser: bool, source: str | None) -> int:
    """Run the demo and return the exit code: 0 only if all tables are equal in the end. Raises UpwellError.

    `for_s`: seconds until it ends by itself, with a cut of the Internet and a kill of the publishers on the way; None:
    until a key or a signal ends it. `browser`: there is no view in a browser yet, only the terminal's. `source`: a SQL
    Server's URL for the shop's databases; None: they are SQLite's.
    """
    del browser
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr] # a terminal without arrows shows question marks
    console = Console()
    view = Picture(console) if console.is_terminal and not console.is_dumb_terminal else Lines(console)
    with _signals() as ending, Stage(ways, source, view.say) as stage:
        with pressed_keys() as keys, view:
            ending.orderly = True
            _Play(stage, view, keys, ending, for_s).run()
        return _judge(console, stage)


class _Ending:
    """What signals ask for. While `orderly`, the first one asks to end the day; all others raise KeyboardInterrupt."""

    def __init__(self) -> None:
        self.orderly = False
        self.asked = False

    def on_signal(self, *_: object) -> None:
        if self.asked or not self.orderly:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def _signals() -> Iterator[_Ending]:
    ending = _Ending()
    before = [(number, signal.signal(number, ending.on_signal)) for number in _SIGNALS]
    try:
        yield ending
    finally:
        for number, handler in before:
            signal.signal(number, handler)


class _Play:
    """What happens between the setting up and the comparison."""

    def __init__(
        self, stage: Stage, view: Lines | Picture, keys: PressedKeys, ending: _Ending, for_s: float | None
    ) -> None:
        self._stage = stage
        self._view = view
        self._keys = keys
        self._ending = ending
        self._opened = self._began = time.monotonic()
        self._under_way = False
        self._for_s = for_s
        self._script = [] if for_s is None else _script(stage, for_s)

    def run(self) -> None:
        """Until it is told to end and all has arrived, or should have. Raises DemoFailed where something broke."""
        while not self._over():
            for key in self._keys():
                self._pressed(key)
            self._follow_script()
            self._tick()
        self._stage.end_of_day()
        home_at = time.monotonic()
        while not self._stage.all_equal_since(home_at) and time.monotonic() < home_at + ARRIVE_S:
            self._tick()

    def _tick(self) -> None:
        if self._stage.failure is not None:
            raise DemoFailed(self._stage.failure)
        self._stage.tick()
        self._begin_when_under_way()
        left_s = None if self._for_s is None else self._began + self._for_s - time.monotonic()
        self._view.show(self._stage, left_s)
        time.sleep(TICK_S)

    def _begin_when_under_way(self) -> None:
        """The time that the demo is to take counts from the first rows that arrive."""
        if not self._under_way:
            now = time.monotonic()
            self._under_way = self._stage.under_way or now > self._opened + FIRST_ROWS_S
            self._began = now

    def _over(self) -> bool:
        return self._ending.asked or (self._for_s is not None and time.monotonic() > self._began + self._for_s)

    def _pressed(self, key: str) -> None:
        if key == "i":
            (self._stage.cut if self._stage.internet.up else self._stage.restore)()
        elif key == "k":
            self._stage.kill_publishers()
        elif key == "q":
            self._ending.asked = True

    def _follow_script(self) -> None:
        while self._script and time.monotonic() > self._began + self._script[0][0]:
            self._script.pop(0)[1]()


def _script(stage: Stage, for_s: float) -> list[tuple[float, Callable[[], None]]]:
    """(seconds from the beginning, what happens then) of a run that nobody attends."""
    cut_at = 0.2 * for_s
    return [
        (cut_at, stage.cut),
        (cut_at + min(CUT_S, 0.35 * for_s), stage.restore),
        (0.7 * for_s, stage.kill_publishers),
    ]


def _judge(console: Console, stage: Stage) -> int:
    """Compare all tables once more, when nobody else looks, and say what came of it."""
    console.print("Comparing all tables.", highlight=False)
    for way in stage.ways:
        way.stop_looking()
    looks = [way.compare() for way in stage.ways]
    print_result(console, stage.ways, looks)
    rows = sum(table.source for look in looks for table in look.tables.values())
    differing = sum(look.differing for look in looks)
    if differing:
        console.print(f"NOT equal: {differing:,} of {rows:,} rows differ.", style="red", highlight=False)
        return 1
    console.print(f"Equal: each value of all {rows:,} rows.", style="green", highlight=False)
    return 0
