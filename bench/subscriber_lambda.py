"""The start of the subscriber's function, and its calls: python -m bench.subscriber_lambda [STARTS].

Each start is a new interpreter, as an environment of Lambda is: what it imports, what it makes before the first call,
the first call (a record of one row; the target's tables are there), and one that follows; processor time, and in the
end the time by the clock. Beside it: an interpreter that does nothing, and one that imports boto3.
"""

from __future__ import annotations

import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.rows import event
from lab.parts import ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY, DynamoDbLocal, PostgresCluster
from upwell.envelope import pack_record

STAGES = ("import", "made", "first call", "next call")
CODE = """
import sys, time
clock, began = time.perf_counter(), time.process_time()
import upwell.cloud.subscriber_lambda as module
imported = time.process_time()
module._environment().open()
made = time.process_time()
import json
first, following = map(json.loads, sys.stdin)
class Context:
    get_remaining_time_in_millis = staticmethod(lambda: 60000)
assert module.handler(first, Context) == {"batchItemFailures": []}
called, answered = time.process_time(), time.perf_counter()
assert module.handler(following, Context) == {"batchItemFailures": []}
ended = time.process_time()
times = imported - began, made - imported, called - made, ended - called, answered - clock
print(json.dumps([*times, len(sys.modules)]), file=sys.stderr)
"""


def calls(term: int) -> str:
    """Two events of the mapping, a line each."""
    lines = []
    for seq in (1, 2):
        after = (term - 1, 2) if seq == 1 and term > 1 else None
        data, _ = pack_record("bench", 0, term, seq, after, [event(seq, 1_000_000 * term + seq)])
        kinesis = {"sequenceNumber": str(seq), "data": base64.b64encode(data).decode()}
        record = {"kinesis": {**kinesis, "approximateArrivalTimestamp": time.time()}}
        lines.append(json.dumps({"Records": [record]}) + "\n")
    return "".join(lines)


def started(folder: Path, term: int, **environ: str) -> list[float]:
    """One start: seconds of each stage, seconds to the first answer, and how many modules were loaded in the end."""
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        input=calls(term),
        capture_output=True,
        text=True,
        check=True,
        env={
            **os.environ,
            "UPWELL_CONFIG": str(folder / "upwell.yaml"),
            "AWS_ACCESS_KEY_ID": ACCESS_KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
            **environ,
        },
    )
    return [float(each) for each in json.loads(done.stderr.splitlines()[-1])]


def plain(code: str) -> float:
    """Processor time of an interpreter that runs nothing else, in seconds: the least of some."""
    told = f"{code}\nimport time; print(time.process_time())"
    runs = [subprocess.run([sys.executable, "-c", told], check=True, capture_output=True) for _ in range(5)]
    return min(float(run.stdout) for run in runs)


def run(starts: int) -> None:
    """Both targets."""
    print(f"interpreter alone {1000 * plain(''):.0f} ms, with boto3 {1000 * plain('import boto3'):.0f} ms")
    with PostgresCluster() as postgres, DynamoDbLocal() as dynamodb, tempfile.TemporaryDirectory() as name:
        targets = {
            "postgresql": (postgres.create_database("bench"), {}),
            "dynamodb": ("dynamodb://bench-", {"AWS_ENDPOINT_URL_DYNAMODB": dynamodb.url}),
        }
        for kind, (target, environ) in targets.items():
            configuration = {
                "pipeline": "bench",
                "destination": {"kinesis": {"stream": "bench", "region": REGION}},
                "subscriber": {"target": target},
            }
            (Path(name) / "upwell.yaml").write_text(json.dumps(configuration))
            found = [started(Path(name), term, **environ) for term in range(1, starts + 2)][
                1:
            ]  # the first makes tables
            medians = [1000 * statistics.median(times) for times in zip(*found, strict=True)]
            stages = ", ".join(f"{stage} {median:.0f} ms" for stage, median in zip(STAGES, medians, strict=False))
            first = f"{sum(medians[:3]):.0f} ms to the first answer ({medians[4]:.0f} ms by the clock)"
            print(f"{kind}: {stages}; {first}; {found[0][5]:.0f} modules")


if __name__ == "__main__":
    run(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
