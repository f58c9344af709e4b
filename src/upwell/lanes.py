"""Which lane a key belongs to, and where a lane lies in a stream.

A lane is one of a fixed number of ordered virtual partitions. Publisher and subscriber compute it from the same
bytes: the table's name and the key's JSON, as the publisher encoded it.
"""

from __future__ import annotations

import zlib

from upwell.model import ChangeEvent

DEFAULT_LANES = 64
LANES_MAX = 1024
_HASH_KEYS = 2**128  # a Kinesis stream's hash key space


def lane_of(event: ChangeEvent, lanes: int) -> int:
    """The event's lane, 0 to `lanes` - 1: CRC-32 of the table's name and the key, modulo the lanes."""
    return zlib.crc32(event.schema.lane_key(event.key), event.schema.lane_seed) % lanes


def partition_key(lane: int) -> str:
    """The Kinesis partition key of a lane: `lane-0017`."""
    return f"lane-{lane:04}"


def explicit_hash_key(lane: int, lanes: int) -> str:
    """The middle of the lane's share of the hash key space: whichever way a stream is split, the lane stays whole."""
    return str((2 * lane + 1) * _HASH_KEYS // (2 * lanes))
