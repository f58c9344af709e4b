"""The Kinesis sink against a stub that answers at once: python -m bench.kinesis_sink [packed|cloudevents]."""

import sys
import time
from typing import Literal

from bench.rows import by_lane
from bench.stub import stub
from upwell.aws import AwsService
from upwell.sinks.kinesis import KinesisSink

EVENTS = 100_000
LANES = 64
ROUNDS = 3


def run(form: Literal["packed", "cloudevents"] = "packed", compression: Literal["none", "zstd"] = "none") -> None:
    """Prints events a second and the client's own CPU time per event, for packing and sending."""
    with stub() as url:
        service = AwsService("kinesis", "eu-west-1", endpoint_url=url)
        sink = KinesisSink("bench", "stream", LANES, service, format=form, compression=compression)
        lanes = by_lane(EVENTS, LANES)
        for _ in range(ROUNDS):
            left = {lane: list(events) for lane, events in lanes.items()}
            packing = sending = 0.0
            calls = 0
            wall = time.perf_counter()
            while left:
                cpu = time.process_time()
                parcels = [sink.pack(lane, 1, 1, None, events[:4096]) for lane, events in left.items()]
                packed = time.process_time()
                start = size = 0
                for end, parcel in enumerate(parcels):
                    if size + parcel.size > sink.call_bytes_max:
                        assert not any(sink.send(parcels[start:end]))
                        start, size, calls = end, 0, calls + 1
                    size += parcel.size
                assert not any(sink.send(parcels[start:]))
                calls += 1
                sending += time.process_time() - packed
                packing += packed - cpu
                left = {p.lane: left[p.lane][p.taken :] for p in parcels if len(left[p.lane]) > p.taken}
            elapsed = time.perf_counter() - wall
            print(
                f"{EVENTS / elapsed:,.0f} events/s in {calls} calls; CPU us an event: "
                f"pack {packing / EVENTS * 1e6:.2f}, send {sending / EVENTS * 1e6:.2f}"
            )
        sink.close()


if __name__ == "__main__":
    run(*sys.argv[1:])  # type: ignore[arg-type]  # argparse would say the same
