"""`make chaos`: see the package. The figures of a long run stand in bench/results."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Final, get_args

from lab.parts import Lab
from tests.proofs import Servers, chaos
from tests.proofs.__main__ import RESULTS, written

LONG_ENOUGH_S: Final = 900  # for its figures to be kept
NAMES: Final[dict[chaos.Source, str]] = {"postgresql": "chaos", "sqlserver": "chaos_sqlserver"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.proofs.chaos")
    parser.add_argument("--minutes", type=float, default=chaos.FULL.run_s / 60)
    parser.add_argument("--seed", type=int, help="of an earlier run, to repeat it")
    parser.add_argument("--source", choices=get_args(chaos.Source), default="postgresql")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        os.environ["UPWELL_TEST_SEED"] = str(arguments.seed)
    folder = Path(tempfile.mkdtemp(prefix="upwell-chaos-"))
    size = replace(chaos.FULL, run_s=60 * arguments.minutes)
    began = time.monotonic()
    with Lab() as lab:
        servers = Servers(lab.postgres, lab.kinesis.url, lab.dynamodb.url)
        figures = chaos.run(servers, folder, size, arguments.source)
    shutil.rmtree(folder)  # of a run that failed it stays
    name = NAMES[arguments.source]
    report = written(name, chaos.__doc__ or "", size, figures, time.monotonic() - began)
    print(report)
    if size.run_s >= LONG_ENOUGH_S:
        (RESULTS / f"{name}.md").write_text(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
