"""python -m lab fetch: get what is missing. python -m lab up: run all parts until SIGTERM or Ctrl-C."""

import argparse
import json
import signal
import sys
import time

from lab import find
from lab.faults import FaultProxy
from lab.fetch import fetch
from lab.part import PartFailed, PartMissing
from lab.parts import Lab

LOOK_EVERY_S = 0.2


def main() -> int:
    arguments = _arguments()
    try:
        if arguments.command == "fetch":
            fetch(say=lambda line: print(line, flush=True))
            print(_inventory())
        else:
            _up(as_json=arguments.json)
    except (PartMissing, PartFailed) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass  # asked to stop, and stopped
    return 0


def _up(as_json: bool) -> None:
    # Both unwind through the parts' context managers; a shell starts what runs in the background with Ctrl-C ignored.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    with Lab() as lab, FaultProxy(lab.kinesis.url) as kinesis, FaultProxy(lab.dynamodb.url) as dynamodb:
        # Fault proxies do nothing until they are told to: lab/faults/control.py.
        endpoints = lab.endpoints() | {"kinesis_faults": kinesis.url, "dynamodb_faults": dynamodb.url}
        lines = [json.dumps(endpoints)] if as_json else [f"{name:18} {value}" for name, value in endpoints.items()]
        print(*lines, sep="\n", flush=True)
        while True:
            time.sleep(LOOK_EVERY_S)
            lab.check()


def _inventory() -> str:
    parts = {
        "PostgreSQL": find.postgres_bin(),
        "Node.js": find.node(),
        "Java": find.java(),
        "HAProxy": find.haproxy(),
        "Kinesalite": find.kinesalite().parent,
        "DynamoDB Local": find.dynamodb_local(),
        "ministack": find.ministack().parents[1],
    }
    return "\n".join(f"{name:15} {place}" for name, place in parts.items())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lab", description="Real servers on this machine, for tests.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch", help="get what is missing; says what only you can install")
    up = commands.add_parser("up", help="run all parts on free ports until SIGTERM or Ctrl-C")
    up.add_argument("--json", action="store_true", help="print the addresses as one line of JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
