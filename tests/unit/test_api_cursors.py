"""Cursors, throttling, the age of the data."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.read_shop import CURSOR_KEY, TABLES
from upwell.clock import SystemClock
from upwell.cloud.age import LOOK_EVERY_S, Age
from upwell.cloud.answers import Problem
from upwell.cloud.cursors import CURSOR_S, Cursors
from upwell.cloud.throttle import CALLERS_MAX, Throttle
from upwell.errors import TransientError
from upwell.model import TableSchema, Value
from upwell.ports import Listing, Page


class FakeClock(SystemClock):
    def __init__(self) -> None:
        self.at = 1_800_000_000.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at


LISTING = ["shop", "orders", None, None, ["tenant_id", "a"]]


def refused(cursors: Cursors, bound_to: Sequence[Any], cursor: str) -> None:
    with pytest.raises(Problem) as problem:
        cursors.open(bound_to, cursor)
    assert problem.value.status == 403


@given(st.recursive(st.none() | st.text() | st.integers(-(2**53), 2**53), st.lists, max_leaves=5))
def test_what_was_sealed_comes_out(after: Any) -> None:
    cursors = Cursors(CURSOR_KEY, FakeClock())
    assert cursors.open(LISTING, cursors.seal(LISTING, after)) == after


def test_a_cursor_shows_nothing_and_is_never_the_same() -> None:
    cursors = Cursors(CURSOR_KEY, FakeClock())
    first, second = (cursors.seal(LISTING, ["ann@example.com"]) for _ in range(2))
    assert first != second
    assert "ann" not in first


@pytest.mark.parametrize(
    "other",
    [
        ["shop", "orders", None, None, ["tenant_id", "b"]],
        ["shop", "orders", None, None, None],
        ["shop", "lines", None, None, ["tenant_id", "a"]],
        ["shop", "orders", "by-country", "DE", ["tenant_id", "a"]],
        ["other", "orders", None, None, ["tenant_id", "a"]],
    ],
)
def test_a_cursor_is_good_for_one_listing(other: list[Any]) -> None:
    cursors = Cursors(CURSOR_KEY, FakeClock())
    refused(cursors, other, cursors.seal(LISTING, [1]))


def test_a_cursor_is_good_for_an_hour() -> None:
    clock = FakeClock()
    cursors = Cursors(CURSOR_KEY, clock)
    cursor = cursors.seal(LISTING, [1])
    clock.at += CURSOR_S - 1
    assert cursors.open(LISTING, cursor) == [1]
    clock.at += 2
    refused(cursors, LISTING, cursor)
    clock.at -= 2 * CURSOR_S
    refused(cursors, LISTING, cursor)  # sealed in the future


def test_a_tag_tells_nothing_to_who_guesses_what_it_was_made_of() -> None:
    clock, content = FakeClock(), b'[{"id":{"N":"4"}},0]'  # where a page ends: the key of somebody else's row
    tag = Cursors(CURSOR_KEY, clock).tag(content)
    assert tag == Cursors(CURSOR_KEY, clock).tag(content)  # of each process of an API
    assert tag != Cursors(CURSOR_KEY, clock).tag(content + b" ")
    assert tag != Cursors("another key of at least 32 bytes", clock).tag(content)


def test_a_changed_cursor_is_none() -> None:
    clock = FakeClock()
    cursors = Cursors(CURSOR_KEY, clock)
    cursor = cursors.seal(LISTING, [1])
    for place in range(0, len(cursor) - 1, 3):
        refused(cursors, LISTING, cursor[:place] + ("A" if cursor[place] != "A" else "B") + cursor[place + 1 :])
    for other in ("", "x", cursor[:-5], cursor + "AAAA", cursor * 2, "A" * 10_000):
        refused(cursors, LISTING, other)
    refused(Cursors("another key of at least 32 bytes", clock), LISTING, cursor)


def test_a_caller_that_asks_too_often_waits_and_others_do_not() -> None:
    clock = FakeClock()
    throttle = Throttle(5, clock)
    for _ in range(10):
        throttle.take("a")
    with pytest.raises(Problem) as problem:
        throttle.take("a")
    assert (problem.value.status, problem.value.headers) == (429, {"retry-after": "1"})
    throttle.take("b")
    clock.at += 1
    for _ in range(5):
        throttle.take("a")
    with pytest.raises(Problem):
        throttle.take("a")


def test_no_number_of_callers_fills_the_memory() -> None:
    throttle = Throttle(5, FakeClock())
    for number in range(CALLERS_MAX + 100):
        throttle.take(f"caller {number}")
    assert len(throttle._buckets) == CALLERS_MAX


class Beats:
    """A reader of nothing but heartbeats."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, Any]] = []
        self.asked = 0
        self.away = False

    def heartbeats(self, pipeline: str) -> Sequence[Mapping[str, Any]]:
        self.asked += 1
        if self.away:
            raise TransientError("away", code="UW-AP-010")
        return self.rows

    def get(self, schema: TableSchema, key: Sequence[Value], tenant: tuple[str, str] | None) -> list[Value] | None:
        raise NotImplementedError

    def page(self, listing: Listing) -> Page:
        raise NotImplementedError

    def close(self) -> None:
        pass


def beat(as_of: str, resyncing: str = "[]") -> dict[str, Any]:
    return {"beats": 1, "as_of": as_of, "resyncing": resyncing, "oldest_resync": 1, "newest_resync": 1}


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What goes to the log."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]  # for this test
    log = logging.getLogger("upwell.api")
    log.addHandler(handler)
    yield messages
    log.removeHandler(handler)


def test_the_age_is_read_about_once_a_second_and_outlives_a_trouble(told: list[str]) -> None:
    clock, reader = FakeClock(), Beats()
    age = Age(reader, "shop", clock)
    assert age.told(TABLES)["age_s"] is None
    assert age.told(TABLES)["tables"]["orders"] == {"as_of": None, "complete": None}
    reader.rows = [beat("2027-01-15T07:59:50Z", '["dbo.order_lines"]')]
    assert age.of(TABLES[0]) is None
    assert reader.asked == 1
    clock.at += LOOK_EVERY_S + 0.1
    assert age.of(TABLES[0]) == "2027-01-15T07:59:50Z"
    assert age.of(TABLES[1]) is None
    assert age.told(TABLES)["age_s"] == 11.1
    reader.away = True
    clock.at += 60
    assert age.told(TABLES)["age_s"] == 71.1
    clock.at += 60
    assert age.told(TABLES)["age_s"] == 131.1
    assert told == ["how old the data is can't be read: away"]
    clock.at -= 2000
    assert age.told(TABLES)["age_s"] == 0.0
