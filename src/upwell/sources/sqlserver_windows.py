"""From pages of single tables to windows of all of them, in one order. Pure.

A round is what changed after the version where the last one ended, up to the version `upto` that the database has come
to when it begins. Every table is read a page at a time, by version and key. Events go out by (version, table, key);
where a table's page was cut, nothing behind that place does until its next page is there. So the place behind any event
is known by (version, table, key), whatever the pages were, and reading can resume in the middle of a version.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Final, NamedTuple

from upwell.sources.sqlserver_place import Inside
from upwell.sources.sqlserver_reading import ROW_OVERHEAD_BYTES, Found, TableReader

Cut = tuple[int, str]  # (version, key) of the last row of a page that was cut there

_order: Final = itemgetter(0, 1)  # of a Taken: its version and table


@dataclass(frozen=True, slots=True)
class Page:
    """Some of a table's changes, by version and key."""

    reader: TableReader
    found: Sequence[Found]
    cut: Cut | None  # None: these are all up to the round's `upto`
    high: int  # the database's version after it was read: no row of it is newer
    time: str  # when it was read, by the server's clock
    masks: bool  # whether its masks tell all: see Place.masks_tell_all

    @property
    def table(self) -> str:
        """Its name."""
        return self.reader.table.schema.table


class Taken(NamedTuple):
    """A change in the order in which it goes out."""

    version: int
    table: str
    found: Found
    page: Page


class Round:
    """The changes of all tables up to `upto`, as far as they have been read."""

    def __init__(self, upto: int, pages: Sequence[Page]) -> None:
        self.upto = upto
        self._cuts: dict[str, tuple[Cut, TableReader]] = {}
        self._waiting: list[Taken] = []  # behind a cut
        self._ready: deque[Taken] = deque()
        self._add(pages)

    @property
    def hungry(self) -> list[tuple[TableReader, Cut]]:
        """The tables whose next page is needed before anything more can go out."""
        if self._ready or not self._cuts:
            return []
        bound = self._bound()
        return [(reader, cut) for table, (cut, reader) in self._cuts.items() if (cut[0], table) == bound]

    @property
    def more(self) -> bool:
        """Whether there is more to take, read already or not."""
        return bool(self._ready or self._cuts)

    @property
    def held(self) -> int:
        """How many bytes have been read and not taken, about."""
        return sum(len(taken.found.row or b"") + ROW_OVERHEAD_BYTES for taken in chain(self._waiting, self._ready))

    def feed(self, pages: Sequence[Page]) -> None:
        """Their next pages."""
        for page in pages:
            del self._cuts[page.table]
        self._add(pages)

    def _add(self, pages: Sequence[Page]) -> None:
        for page in pages:
            table = page.table
            # A row that has changed again since the round began is beyond it. That its older change is hidden by that
            # must not hold it up for ever: it goes out with the round, as it is now, and again with the next one.
            self._waiting += [Taken(min(f.version, self.upto), table, f, page) for f in page.found]
            if page.cut is not None and page.cut[0] <= self.upto:
                self._cuts[table] = page.cut, page.reader
        self._waiting.sort(key=_order)
        bound = self._bound()
        if bound is None:
            self._ready.extend(self._waiting)
            self._waiting = []
            return
        ready = bisect_right(self._waiting, bound, key=_order)
        self._ready.extend(self._waiting[:ready])
        self._waiting = self._waiting[ready:]

    def _bound(self) -> tuple[int, str] | None:
        return min(((cut[0], table) for table, (cut, _) in self._cuts.items()), default=None)

    def take(self, limit: int) -> list[Taken]:
        """The next changes, at most `limit`; none where the round is `hungry`, or over."""
        return [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]

    def place_after(self, taken: Sequence[Taken]) -> tuple[int, Inside | None]:
        """(the version up to which all has been returned, the place inside the next one), after what was last taken."""
        if self._ready:
            following = self._ready[0].version
            if not taken or taken[-1].version < following:
                return following - 1, None
            return following - 1, Inside(taken[-1].table, taken[-1].found.tracked)
        bound = self._bound()
        if bound is None:
            return self.upto, None
        cut, _ = self._cuts[bound[1]]
        return bound[0] - 1, Inside(bound[1], cut[1])


def start_of(table: str, done: int, inside: Inside | None, floor: int) -> tuple[int, Cut | None]:
    """Where a table is read on from a place: after which version, and of the next one after which key.

    `floor`: nothing up to this version is wanted of the table.
    """
    if floor > done:
        return floor, None
    if inside is None or table > inside.table:
        return done, None
    if table < inside.table:
        return done + 1, None
    return done, (done + 1, inside.key)
