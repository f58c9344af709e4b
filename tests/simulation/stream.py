"""A stream as Kinesis is: shards that split and merge, calls of which some records fail, requests that land late."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.dice import Dice, SimClock
from tests.simulation.source import TOO_LARGE
from upwell.envelope import pack_record
from upwell.errors import TransientError
from upwell.lanes import explicit_hash_key
from upwell.model import ChangeEvent, LaneItem, Rejection, TableSchema, Version
from upwell.ports import Parcel

# A write that the service may still carry out.
Late = Callable[[], None]


class LateRequests:
    """Requests that were given up, and will be carried out within `late_s`."""

    def __init__(self, clock: SimClock, late_s: float) -> None:
        self._clock = clock
        self._late_s = late_s
        self._waiting: list[tuple[float, Late]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, late: Late) -> None:
        """Carry it out some time from now."""
        self._waiting.append((self._clock.time + self._late_s, late))

    def land(self, number: int) -> None:
        """Carry out one of them."""
        self._waiting.pop(number)[1]()

    def land_overdue(self) -> None:
        """Carry out what has waited for too long."""
        while self._waiting and self._waiting[0][0] < self._clock.time:
            self.land(0)


@dataclass
class Shard:
    """A share of the hash keys, from `low` to below `high`."""

    id: str
    low: int
    high: int
    parents: tuple[str, ...]
    records: list[bytes | None] = field(default_factory=list)  # None: deleted before anybody read it
    closed: bool = False


class Stream:
    """The records, in shards."""

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes
        self.shards: dict[str, Shard] = {}
        self._open(0, 2**127, ())
        self._open(2**127, 2**128, ())

    def _open(self, low: int, high: int, parents: tuple[str, ...]) -> None:
        shard = Shard(f"shard-{len(self.shards)}", low, high, parents)
        self.shards[shard.id] = shard

    def append(self, lane: int, data: bytes) -> None:
        """Into the open shard that has the lane's hash key."""
        hash_key = int(explicit_hash_key(lane, self._lanes))
        shard = next(s for s in self.shards.values() if not s.closed and s.low <= hash_key < s.high)
        shard.records.append(data)

    def split(self, shard: Shard) -> None:
        """Two children, each with half of the hash keys."""
        shard.closed = True
        middle = (shard.low + shard.high) // 2
        self._open(shard.low, middle, (shard.id,))
        self._open(middle, shard.high, (shard.id,))

    def merge(self, one: Shard, other: Shard) -> None:
        """One child for two neighbours."""
        one.closed = other.closed = True
        self._open(min(one.low, other.low), max(one.high, other.high), (one.id, other.id))


@dataclass(slots=True)
class Packed:
    """A record on its way: its bytes, and for the checks what is in them."""

    data: bytes
    items: list[LaneItem]


class StreamSink:
    """See ports.Sink."""

    carries_markers = True
    parcels_max = 3
    call_bytes_max = 4_000

    def __init__(self, stream: Stream, dice: Dice, checks: Any, late: LateRequests) -> None:
        self._stream = stream
        self._dice = dice
        self._checks = checks
        self._late = late

    def pack(self, lane: int, term: int, seq: int, after: tuple[int, int] | None, items: Sequence[LaneItem]) -> Parcel:
        rejected: list[Rejection] = []
        taken = 0
        while taken < len(items) and too_large(items[taken]):
            rejected.append(rejection(items[taken]))
            taken += 1
        parcel = Parcel(lane, term, seq, after, taken, rejected=rejected)
        good = list(items[taken:])
        stop = next((index for index, item in enumerate(good) if too_large(item)), len(good))
        if stop:
            data, count = pack_record("sim", lane, term, seq, after, good[:stop])
            parcel.taken += count
            parcel.body = Packed(data, good[:count])
            parcel.size = len(data)
        return parcel

    def send(self, parcels: Sequence[Parcel]) -> Sequence[TransientError | None]:
        assert len(parcels) <= self.parcels_max, "too many parcels in a call"
        assert len(parcels) == 1 or sum(p.size for p in parcels) <= self.call_bytes_max, "too many bytes in a call"
        for parcel in parcels:
            self._checks.sending(parcel.lane, parcel.term, parcel.seq, parcel.body.items)
        dice = self._dice
        if dice.hit("call.refused"):
            raise TransientError("The stream is away.")
        if dice.hit("call.late"):
            for parcel in parcels:
                self._late.add(self._landing(parcel))
            raise TransientError("No answer in time.")
        if dice.hit("call.half"):
            for parcel in parcels:
                land = self._landing(parcel)
                fate = dice.rng.choice(("now", "later", "never"))
                if fate == "now":
                    land()
                elif fate == "later":
                    self._late.add(land)
            raise TransientError("The connection broke.")
        answers = [self._send_one(parcel) for parcel in parcels]
        if dice.hit("call.answer_lost"):
            raise TransientError("The answer was lost.")
        return answers

    def _send_one(self, parcel: Parcel) -> TransientError | None:
        if self._dice.hit("record.throttled"):
            return TransientError("The shard takes no more at the moment.", throttled=True)
        self._landing(parcel)()
        return None

    def _landing(self, parcel: Parcel) -> Late:
        lane, term, seq, packed = parcel.lane, parcel.term, parcel.seq, parcel.body

        def land() -> None:
            self._stream.append(lane, packed.data)
            self._checks.landed(lane, term, seq, packed.items)

        return land

    def prepare(self, schemas: Sequence[TableSchema]) -> None:
        if self._dice.hit("call.refused"):
            raise TransientError("The stream is away.")

    def sweep(self, schema: TableSchema, before: Version) -> int:
        raise AssertionError("a stream has nothing to sweep")

    def close(self) -> None:
        pass


def too_large(item: LaneItem) -> bool:
    """Whether no record can hold the item."""
    return isinstance(item, ChangeEvent) and item.row is not None and TOO_LARGE.encode() in item.row


def rejection(item: LaneItem) -> Rejection:
    """The item, refused."""
    assert isinstance(item, ChangeEvent), "a marker is never large"
    return Rejection(item.schema.table, item.key.decode(), "it is too large", item)
