"""A direct destination as DynamoDB is: items that are written one by one, each unless what is there is newer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from tests.simulation.dice import Dice
from tests.simulation.source import REFUSED, Row
from tests.simulation.stream import LateRequests, rejection, too_large
from upwell.errors import TransientError
from upwell.model import DELETE, ChangeEvent, LaneItem, Rejection, TableSchema, Value, Version
from upwell.ports import Parcel

ITEMS_PER_PARCEL = 4
Address = tuple[str, tuple[Value, ...]]


@dataclass(frozen=True, slots=True)
class Item:
    """A row with its version, or a tombstone."""

    version: Version
    row: Row | None


class Items:
    """The tables of the destination."""

    guarded = True
    tombstones = True

    def __init__(self, seen: Callable[[str, tuple[Value, ...], Row | None], None]) -> None:
        """`seen` is told what a reader sees from now on."""
        self.items: dict[Address, Item] = {}
        self._seen = seen

    def rows(self, table: str) -> dict[tuple[Value, ...], Row]:
        """What a reader sees."""
        return {key: item.row for (name, key), item in self.items.items() if name == table and item.row is not None}

    def write(self, event: ChangeEvent) -> None:
        """One conditional write."""
        key = tuple(orjson.loads(event.key))
        address = event.schema.table, key
        before = self.items.get(address)
        if self.guarded and before is not None and event.version < before.version:
            return
        row: Row | None = None
        if event.operation != DELETE:
            row = dict(zip((column.name for column in event.schema.columns), event.values(), strict=True))
            if event.schema.partial:
                if before is None or before.row is None:
                    return
                row = {**before.row, **row}
        self.put(address, Item(event.version, row))

    def sweep(self, table: str, before: Version) -> int:
        """Tombstones for the items that are older; they keep the sweep's version, so that nothing older comes back."""
        old = [a for a, item in self.items.items() if a[0] == table and item.version < before and item.row is not None]
        for address in old:
            self.put(address, Item(before, None))
        return len(old)

    def put(self, address: Address, item: Item) -> None:
        if item.row is None and not self.tombstones:
            self.items.pop(address, None)
        else:
            self.items[address] = item
        self._seen(*address, item.row)


class DirectSink:
    """See ports.Sink."""

    carries_markers = False
    parcels_max = 3
    call_bytes_max = 4_000

    def __init__(self, items: Items, dice: Dice, checks: Any, late: LateRequests) -> None:
        self._items = items
        self._dice = dice
        self._checks = checks
        self._late = late

    def pack(self, lane: int, term: int, seq: int, after: tuple[int, int] | None, items: Sequence[LaneItem]) -> Parcel:
        parcel = Parcel(lane, term, seq, after, taken=0, body=[])
        keys: set[tuple[str, bytes]] = set()
        for item in items[:ITEMS_PER_PARCEL]:
            assert isinstance(item, ChangeEvent), "a direct sink gets no markers"
            if (item.schema.table, item.key) in keys:
                break  # the writes of a parcel are independent of each other
            keys.add((item.schema.table, item.key))
            parcel.taken += 1
            if too_large(item):
                parcel.rejected.append(rejection(item))
            else:
                parcel.body.append(item)
                parcel.size += len(item.row or item.key)
        parcel.body = parcel.body or None
        return parcel

    def send(self, parcels: Sequence[Parcel]) -> Sequence[TransientError | None]:
        dice = self._dice
        for parcel in parcels:
            self._checks.sending(parcel.lane, parcel.term, parcel.seq, parcel.body)
        if dice.hit("call.refused"):
            raise TransientError("The destination is away.")
        answers = [self._send_one(parcel) for parcel in parcels]
        if dice.hit("call.answer_lost"):
            raise TransientError("The answer was lost.")
        return answers

    def _send_one(self, parcel: Parcel) -> TransientError | None:
        """The writes of a parcel run beside each other: in any order, each with a fate of its own."""
        left: list[ChangeEvent] = []
        body = list(parcel.body)
        self._dice.rng.shuffle(body)
        for event in body:
            if self._dice.hit("record.half"):
                left.append(event)
            elif self._dice.hit("call.late"):
                left.append(event)
                self._late.add(partial(self._write, event))
            elif event.row is not None and REFUSED.encode() in event.row:
                parcel.rejected.append(Rejection(event.schema.table, event.key.decode(), "it is refused", event))
            else:
                self._write(event)
        parcel.body = left or None
        return TransientError("Some writes failed.") if left else None

    def _write(self, event: ChangeEvent) -> None:
        if event.row is None or REFUSED.encode() not in event.row:
            self._items.write(event)
            self._checks.durable(event)

    def prepare(self, schemas: Sequence[TableSchema]) -> None:
        if self._dice.hit("call.refused"):
            raise TransientError("The destination is away.")

    def sweep(self, schema: TableSchema, before: Version) -> int:
        if self._dice.hit("call.refused"):
            raise TransientError("The destination is away.")
        return self._items.sweep(schema.table, before)

    def close(self) -> None:
        pass
