"""`make bench`: every benchmark in turn, or those that are named: python -m bench [publish apply dynamodb_sink …].

Each prints its figures beside a limit or a peer measured in the same run; on a busy machine trust the CPU time.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys

BENCHES = (
    "publish",
    "apply",
    "poison",
    "postgres_source",
    "sqlite_source",
    "sqlserver_source",
    "postgres_target",
    "kinesis_sink",
    "dynamodb_sink",
    "read_api",
    "subscriber_lambda",
    "standins",
)


def main() -> int:
    """Returns the number of benchmarks that failed."""
    chosen = sys.argv[1:] or BENCHES
    unknown = set(chosen) - set(BENCHES)
    if unknown:
        print(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    print(f"Python {platform.python_version()}, {os.cpu_count()} processors, load {load:.1f}", flush=True)
    failed = 0
    for name in chosen:
        print(f"\n== {name}", flush=True)
        failed += subprocess.run([sys.executable, "-m", f"bench.{name}"], check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
