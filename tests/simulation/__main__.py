"""`python -m tests.simulation --seed 7 --trace`; `--seeds 10000 --workers 2`; `--bug NAME`; `--bugs` lists them.

With `--items` the target has no transactions.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.simulation.bugs import BUGS, planted
from tests.simulation.item_bugs import ITEM_BUGS
from tests.simulation.item_world import ItemWorld
from tests.simulation.world import World

SEEDS_PER_TASK = 50


def failure(seed: int, bug: str | None = None, *, items: bool = False) -> str | None:
    """What went wrong with the seed, in one line; None where nothing did."""
    with planted(bug, ITEM_BUGS if items else BUGS):
        try:
            world(seed, items=items).run()
        except Exception as error:  # a bug may show as a crash as well
            return f"{type(error).__name__}: {error}"
    return None


def world(seed: int, *, items: bool, trace: bool = False) -> World:
    """The seed's."""
    return ItemWorld(seed, trace=trace) if items else World(seed, trace=trace)


def failures(seeds: range, bug: str | None = None, *, items: bool = False) -> list[tuple[int, str]]:
    """(seed, what went wrong) of those that fail."""
    return [(seed, why) for seed in seeds if (why := failure(seed, bug, items=items)) is not None]


def finder(bug: str, seeds: Iterable[int], *, items: bool = False) -> int | None:
    """The first of the seeds that finds the planted bug."""
    return next((seed for seed in seeds if failure(seed, bug, items=items)), None)


def replay(seed: int, bug: str | None, *, items: bool, trace: bool) -> int:
    """Run one seed; prints what happened."""
    one = world(seed, items=items, trace=trace)
    status = 0
    with planted(bug, ITEM_BUGS if items else BUGS):
        try:
            one.run()
        except Exception:
            status = 1
            one.note(traceback.format_exc())
            if not trace:
                traceback.print_exc()
    for line in one.trace or []:
        say(line)
    say(f"seed {seed}: {'FAILED' if status else 'ok'}")
    return status


def say(line: str) -> None:
    """A result, on standard output."""
    sys.stdout.write(line + "\n")


def main() -> int:
    """What the command line asks for; 1 where a seed fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one")
    parser.add_argument("--trace", action="store_true", help="print what happens")
    parser.add_argument("--seeds", type=int, default=500, help="how many, from --first on")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--bugs", action="store_true", help="for each planted bug, the first seed that finds it")
    parser.add_argument("--bug", choices=sorted(BUGS.keys() | ITEM_BUGS.keys()), help="plant this bug first")
    parser.add_argument("--items", action="store_true", help="through a stream to a target without transactions")
    arguments = parser.parse_args()
    items = arguments.items
    if arguments.seed is not None:
        return replay(arguments.seed, arguments.bug, items=items, trace=arguments.trace)
    if arguments.bugs:
        with ProcessPoolExecutor(arguments.workers) as pool:
            bugs = ITEM_BUGS if items else BUGS
            find = partial(finder, seeds=range(arguments.seeds), items=items)
            for bug, seed in zip(bugs, pool.map(find, bugs), strict=True):
                say(f'"{bug}": {seed},')
        return 0
    started = time.monotonic()
    end = arguments.first + arguments.seeds
    tasks = [range(n, min(n + SEEDS_PER_TASK, end)) for n in range(arguments.first, end, SEEDS_PER_TASK)]
    with ProcessPoolExecutor(arguments.workers) as pool:
        found = [each for task in pool.map(partial(failures, bug=arguments.bug, items=items), tasks) for each in task]
    for seed, why in found[:20]:
        say(f"seed {seed}: {why}")
    say(f"{arguments.seeds} seeds, {len(found)} failed, {time.monotonic() - started:.1f} s")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
