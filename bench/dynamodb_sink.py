"""The DynamoDB sink against a stub: python -m bench.dynamodb_sink [connections] [milliseconds before an answer]."""

import sys
import time

from bench.rows import SCHEMA, by_lane
from bench.stub import stub
from upwell.aws import AwsService
from upwell.clock import SystemClock
from upwell.model import ChangeEvent
from upwell.ports import Parcel
from upwell.sinks.dynamodb import DynamoDbSink

ITEMS = 20_000
LANES = 64
ROUNDS = 3


def run(connections_max: int = 64, delay_ms: int = 0) -> None:
    """Prints items a second and the client's own CPU time per item, for packing and sending."""
    with stub(delay_ms / 1000) as url:
        service = AwsService("dynamodb", "eu-west-1", endpoint_url=url, connections_max=connections_max)
        sink = DynamoDbSink(service, SystemClock(), table_prefix="bench-")
        sink._ready.add("bench-customers")  # the stub knows no tables
        sink.prepare([SCHEMA])
        lanes = by_lane(ITEMS, LANES)
        for _ in range(ROUNDS):
            cpu, wall = time.process_time(), time.perf_counter()
            parcels = _packed(sink, lanes)
            packed = time.process_time()
            for start in range(0, len(parcels), sink.parcels_max):
                answers = sink.send(parcels[start : start + sink.parcels_max])
                assert not any(answers)
            sent, elapsed = time.process_time(), time.perf_counter() - wall
            print(
                f"{ITEMS / elapsed:,.0f} items/s; CPU us an item: "
                f"pack {(packed - cpu) / ITEMS * 1e6:.1f}, send {(sent - packed) / ITEMS * 1e6:.1f}"
            )
        sink.close()


def _packed(sink: DynamoDbSink, lanes: dict[int, list[ChangeEvent]]) -> list[Parcel]:
    parcels = []
    for lane, events in lanes.items():
        start = 0
        while start < len(events):
            parcels.append(sink.pack(lane, 1, 1, None, events[start:]))
            start += parcels[-1].taken
    return parcels


if __name__ == "__main__":
    run(*map(int, sys.argv[1:]))
