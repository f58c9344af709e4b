"""`python -m tests.simulation --seed 7 --trace`; `--seeds 10000 --workers 2`; `--bug NAME`; `--bugs` lists them."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.simulation.bugs import BUGS, planted
from tests.simulation.world import World

SEEDS_PER_TASK = 50


def failure(seed: int, bug: str | None = None) -> str | None:
    """What went wrong with the seed, in one line; None where nothing did."""
    with planted(bug):
        try:
            World(seed).run()
        except Exception as error:  # a bug may show as a crash as well
            return f"{type(error).__name__}: {error}"
    return None


def failures(seeds: range, bug: str | None = None) -> list[tuple[int, str]]:
    """(seed, what went wrong) of those that fail."""
    return [(seed, why) for seed in seeds if (why := failure(seed, bug)) is not None]


def finder(bug: str, seeds: Iterable[int]) -> int | None:
    """The first of the seeds that finds the planted bug."""
    return next((seed for seed in seeds if failure(seed, bug)), None)


def replay(seed: int, bug: str | None, *, trace: bool) -> int:
    """Run one seed; prints what happened."""
    world = World(seed, trace=trace)
    status = 0
    with planted(bug):
        try:
            world.run()
        except Exception:
            status = 1
            world.note(traceback.format_exc())
            if not trace:
                traceback.print_exc()
    for line in world.trace or []:
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
    parser.add_argument("--bug", choices=sorted(BUGS), help="plant this bug first")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return replay(arguments.seed, arguments.bug, trace=arguments.trace)
    if arguments.bugs:
        with ProcessPoolExecutor(arguments.workers) as pool:
            for bug, seed in zip(BUGS, pool.map(partial(finder, seeds=range(arguments.seeds)), BUGS), strict=True):
                say(f'"{bug}": {seed},')
        return 0
    started = time.monotonic()
    end = arguments.first + arguments.seeds
    tasks = [range(n, min(n + SEEDS_PER_TASK, end)) for n in range(arguments.first, end, SEEDS_PER_TASK)]
    with ProcessPoolExecutor(arguments.workers) as pool:
        found = [each for task in pool.map(partial(failures, bug=arguments.bug), tasks) for each in task]
    for seed, why in found[:20]:
        say(f"seed {seed}: {why}")
    say(f"{arguments.seeds} seeds, {len(found)} failed, {time.monotonic() - started:.1f} s")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
