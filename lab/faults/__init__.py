"""A proxy of ours before Kinesis and DynamoDB that does to requests what the Internet and AWS do to them now and then.

    with FaultProxy(kinesis_url, seed=1) as wire:
        wire.faults.rates = {"answer_lost": 0.02, "shard_throttled": 0.05}   # by chance
        wire.faults.then("failed_after", "PutRecords")                       # the next one for sure
        ...                                                                  # wire.url is the endpoint
        wire.done["answer_lost"]                                             # how often it was done

What can be done stands in `KINDS`; the same over HTTP: `lab/faults/control.py`.
"""

from lab.faults.decide import KINDS, Faults, Kind
from lab.faults.proxy import FaultProxy

__all__ = ["KINDS", "FaultProxy", "Faults", "Kind"]
