"""`make prove`: the proofs in full, all or those that are named: python -m tests.proofs [wire outage …] [--small].

The figures of each stand in bench/results/NAME.md, with the machine, the commit and the time it took.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import tests.proofs
from lab.parts import Lab
from tests.proofs import Figures, Servers

RESULTS = Path(__file__).parents[2] / "bench" / "results"
NAMES = sorted(module.name for module in pkgutil.iter_modules(tests.proofs.__path__) if module.name != "__main__")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.proofs", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all where none is given")
    parser.add_argument("--small", action="store_true", help="in the size that make test uses; nothing is written down")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(NAMES)
    if unknown:
        parser.error(f"no such proof: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    failed = [name for name in arguments.names or NAMES if not proved(name, small=arguments.small)]
    if failed:
        print(f"not proved: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def proved(name: str, *, small: bool) -> bool:
    """Runs one proof on servers of its own and writes its figures down."""
    proof = importlib.import_module(f"tests.proofs.{name}")
    size = proof.SMALL if small else proof.FULL
    print(f"== {name}: {size}", flush=True)
    began = time.monotonic()
    with Lab() as lab, tempfile.TemporaryDirectory(prefix="upwell-proof-") as folder:
        servers = Servers(lab.postgres, lab.kinesis.url, lab.dynamodb.url)
        try:
            figures: Figures = proof.run(servers, Path(folder), size)
        except AssertionError as error:
            print(f"   broken: {error}", *getattr(error, "__notes__", ()), sep="\n   ", flush=True)
            return False
    report = written(name, proof.__doc__ or "", size, figures, time.monotonic() - began)
    print(report, flush=True)
    if not small:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.md").write_text(report)
    return True


def written(name: str, what: str, size: object, figures: Figures, took_s: float) -> str:
    """A page of Markdown."""
    lines = [f"# {name}", "", what.strip(), "", "| figure | |", "| --- | --- |"]
    lines += [f"| {figure} | {value} |" for figure, value in figures.items()]
    lines += ["", f"Size: `{size}`. Took {took_s:.0f} s, {datetime.now(UTC):%Y-%m-%d}, commit {commit()}."]
    lines += [
        f"Machine: {os.cpu_count()} processors, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f} at the end."
    ]
    return "\n".join(lines) + "\n"


def commit() -> str:
    """The commit that was proved, with a plus where files had been changed since."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, cwd=RESULTS.parents[1])
        return done.stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "src", "lab") else "")


if __name__ == "__main__":
    sys.exit(main())
