"""Bugs to plant in ItemApplier, or in the fakes where the rule is DynamoDB's adapters': each must be found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from unittest import mock

from tests.simulation.bugs import Patch, around, instead
from tests.simulation.direct import Items
from tests.simulation.item_target import SimItemSink, SimLanes
from upwell.pipeline import applier, item_applier
from upwell.pipeline.item_applier import ItemApplier
from upwell.ports import Sweep

ITEM_BUGS: Final[dict[str, Callable[[], Patch]]] = {}


def bug(plant: Callable[[], Patch]) -> Callable[[], Patch]:
    """Registers a bug under its function's name."""
    ITEM_BUGS[plant.__name__.replace("_", "-")] = plant
    return plant


@bug
def lanes_saved_before_rows() -> Patch:
    """What is known of a lane is saved before the rows that it stands for are written."""

    def hasty(original: Any) -> Any:
        def applying(self: ItemApplier, records: Any, *rest: Any) -> Any:
            def planning(records: Any, states: Any) -> Any:
                work = applier.plan(records, states)
                self._lanes.save_lanes("", work.states)
                return work

            with mock.patch.object(item_applier, "plan", planning):
                return original(self, records, *rest)

        return applying

    return around(ItemApplier, "_apply", hasty)


@bug
def lane_moved_back() -> Patch:
    """A subscriber that hung moves a lane back to where it was when it began to hang."""
    return instead(SimLanes, "conditional", False)


@bug
def no_version_condition() -> Patch:
    """An item is overwritten by what is older."""
    return instead(Items, "guarded", False)


@bug
def delete_without_tombstone() -> Patch:
    """A delete leaves nothing behind that would stop a late write."""
    return instead(Items, "tombstones", False)


@bug
def closed_before_rows() -> Patch:
    """A lane's part of a resync is closed before its rows are written."""

    def early(original: Any) -> Any:
        def applying(self: ItemApplier, records: Any, *rest: Any) -> Any:
            plan = applier.plan

            def closing(records: Any, states: Any) -> Any:
                work = plan(records, states)
                for marker in work.closed:
                    self._close(marker)
                return work

            with mock.patch.object(item_applier, "plan", closing):
                return original(self, records, *rest)

        return applying

    return around(ItemApplier, "_apply", early)


@bug
def sweep_before_all_lanes_closed() -> Patch:
    """The first lane that is closed ends the resync."""

    def eager(original: Any) -> Any:
        def closing(self: SimLanes, marker: Any) -> Any:
            original(self, marker)
            return Sweep(None) if self.resync(marker).active else None

        return closing

    return around(SimLanes, "_close", eager)


@bug
def no_sweep() -> Patch:
    """A resync removes nothing."""
    return instead(SimItemSink, "sweep_page", lambda *_: (0, None))


@bug
def sweep_ends_with_first_page() -> Patch:
    """What one batch has no time to sweep stays."""

    def cut_short(original: Any) -> Any:
        def sweeping(self: SimItemSink, *arguments: Any) -> Any:
            return original(self, *arguments)[0], None

        return sweeping

    return around(SimItemSink, "sweep_page", cut_short)


@bug
def closed_for_all_resyncs() -> Patch:
    """A lane that closed an earlier resync counts as closed in the next."""

    def careless(original: Any) -> Any:
        def closing(self: SimLanes, marker: Any) -> Any:
            for state in self.tables.resyncs.values():
                self.resync(marker).closed.update(state.closed)
            return original(self, marker)

        return closing

    return around(SimLanes, "_close", careless)


@bug
def cursor_for_all_resyncs() -> Patch:
    """A second resync sweeps from where the first had come to."""

    def careless(original: Any) -> Any:
        def closing(self: SimLanes, marker: Any) -> Any:
            due = original(self, marker)
            table = marker.schema.table
            cursors = [cursor for place, cursor in self._cursors.items() if place.endswith(f"/{table}")]
            return due and Sweep(max(cursors, default=None))

        return closing

    return around(SimLanes, "_close", careless)


@bug
def hole_not_counted() -> Patch:
    """Missing records are not missed."""

    def deaf(original: Any) -> Any:
        def count(state: Any, record: Any) -> None:
            original(state, record)

        return count

    return around(applier, "_count", deaf)


@bug
def heartbeat_beside_rows() -> Patch:
    """A heartbeat is written beside the rows that it speaks of, not after them."""

    def beside(original: Any) -> Any:
        def apart(work: Any) -> Any:
            rows, beats = original(work)
            return [*beats, *rows], []

        return apart

    return around(item_applier, "_apart", beside)
