"""A target without transactions, as DynamoDB is: items that are guarded one by one, and what is known of lanes beside
them. Calls fail, lose their answer, or land late; between two of them the rest of the world goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from tests.simulation.dice import Dice
from tests.simulation.direct import Item, Items
from tests.simulation.source import REFUSED
from tests.simulation.stream import LateRequests
from tests.simulation.target import Tables
from upwell.errors import TransientError
from upwell.model import ChangeEvent, DeadLetter, LaneItem, Marker, Rejection, TableSchema, Version
from upwell.ports import LaneState, Parcel, Request, ResyncState, Sweep

ITEMS_PER_PARCEL = 4
ITEMS_PER_PAGE = 3

T = TypeVar("T")


class Wire:
    """Every call of the target goes over it."""

    def __init__(self, dice: Dice, late: LateRequests, elsewhere: Callable[[], None]) -> None:
        """`elsewhere`: what the world does while the caller hangs."""
        self._dice = dice
        self._late = late
        self._elsewhere = elsewhere

    def call(self, work: Callable[[], T], *, writes: bool = True) -> T:
        """Raises TransientError: not done, done all the same, or done later."""
        self._elsewhere()
        if self._dice.hit("target.away"):
            raise TransientError("The target is away.")
        if writes and self._dice.hit("call.late"):
            self._late.add(partial(self._land, work))
            raise TransientError("No answer came in time.")
        done = work()
        if self._dice.hit("target.answer_lost"):
            raise TransientError("The answer was lost.")
        return done

    @staticmethod
    def _land(work: Callable[[], object]) -> None:
        work()


class SimItemSink:
    """See ports.ItemSink."""

    parcels_max = 3

    def __init__(self, items: Items, wire: Wire, dice: Dice, late: LateRequests) -> None:
        self._items = items
        self._wire = wire
        self._dice = dice
        self._late = late

    def pack(self, lane: int, term: int, seq: int, after: tuple[int, int] | None, items: Sequence[LaneItem]) -> Parcel:
        events = [item for item in items[:ITEMS_PER_PARCEL] if isinstance(item, ChangeEvent)]
        parcel = Parcel(lane, term, seq, after, len(events), body=events)
        for event in events:
            if event.row is not None and REFUSED.encode() in event.row:
                parcel.body.remove(event)
                parcel.rejected.append(Rejection(event.schema.table, event.key.decode(), "it is refused", event))
        parcel.size = len(parcel.body)
        return parcel

    def send(self, parcels: Sequence[Parcel]) -> Sequence[TransientError | None]:
        return [self._send_one(parcel) for parcel in parcels]

    def _send_one(self, parcel: Parcel) -> TransientError | None:
        body = list(parcel.body)
        self._dice.rng.shuffle(body)
        left = [event for event in body if not self._sent(event)]
        parcel.body, parcel.size = left or None, len(left)
        return TransientError("Some writes failed.") if left else None

    def _sent(self, event: ChangeEvent) -> bool:
        try:
            self._wire.call(partial(self._items.write, event))
        except TransientError:
            return False
        return True

    def prepare(self, schemas: Sequence[TableSchema]) -> None:
        self._wire.call(lambda: None)

    def sweep_page(self, schema: TableSchema, before: Version, cursor: str | None) -> tuple[int, str | None]:
        return self._wire.call(partial(self._sweep, schema.table, before, cursor))

    def _sweep(self, table: str, before: Version, cursor: str | None) -> tuple[int, str | None]:
        behind = sorted(a for a in self._items.items if a[0] == table and (cursor is None or repr(a) > cursor))
        behind.sort(key=repr)
        page = behind[:ITEMS_PER_PAGE]
        old = [a for a in page if self._items.items[a].version < before and self._items.items[a].row is not None]
        for address in old:
            self._items.put(address, Item(before, None))
        return len(old), repr(page[-1]) if len(behind) > ITEMS_PER_PAGE else None


class SimLanes:
    """See ports.LaneStore."""

    conditional = True  # a lane that has come further is not moved back

    def __init__(self, wire: Wire) -> None:
        self.tables = Tables()
        self.handed_over: set[str] = set()  # ids of repair requests
        self._wire = wire
        self._cursors: dict[str, str] = {}

    def lanes(self, pipeline: str, lanes: Sequence[int]) -> dict[int, LaneState]:
        found = self._wire.call(lambda: {n: self.tables.lanes.get(n, LaneState()) for n in lanes}, writes=False)
        return {n: replace(state, resyncs=dict(state.resyncs)) for n, state in found.items()}

    def save_lanes(self, pipeline: str, states: Mapping[int, LaneState]) -> None:
        for lane, state in states.items():
            self._wire.call(partial(self._save, lane, state))

    def _save(self, lane: int, state: LaneState) -> None:
        before = self.tables.lanes.get(lane, LaneState())
        if (state.term, state.seq) >= (before.term, before.seq) or not self.conditional:
            self.tables.lanes[lane] = state

    def open_resync(self, pipeline: str, table: str, resync: int) -> None:
        self._wire.call(partial(self._open, table, resync))

    def _open(self, table: str, resync: int) -> None:
        self.tables.resyncs.setdefault(f"{resync}/{table}", ResyncState(resync, active=True))

    def close_lane(self, pipeline: str, marker: Marker) -> Sweep | None:
        return self._wire.call(partial(self._close, marker))

    def _close(self, marker: Marker) -> Sweep | None:
        state = self.resync(marker)
        state.closed.add(marker.lane)
        if not state.active or len(state.closed) < marker.lanes:
            return None
        return Sweep(self._cursors.get(f"{marker.resync}/{marker.schema.table}"))

    def resync(self, marker: Marker) -> ResyncState:
        """What is known of the marker's."""
        place = f"{marker.resync}/{marker.schema.table}"
        return self.tables.resyncs.setdefault(place, ResyncState(marker.resync, active=True))

    def swept(self, pipeline: str, marker: Marker, cursor: str | None) -> None:
        self._wire.call(partial(self._swept, marker, cursor))

    def _swept(self, marker: Marker, cursor: str | None) -> None:
        if cursor is None:
            self.resync(marker).active = False
        else:
            self._cursors[f"{marker.resync}/{marker.schema.table}"] = cursor

    def add_dead_letters(self, pipeline: str, letters: Sequence[DeadLetter]) -> None:
        for letter in letters:
            self._wire.call(partial(self.tables.letters.update, {(letter.table, letter.key, letter.version): letter}))

    def ask_repair(self, pipeline: str, request: Request) -> None:
        def ask() -> None:
            self.tables.repairs.setdefault(request.id, request)

        self._wire.call(ask)
