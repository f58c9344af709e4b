"""Pages of tables become windows in one order; from every place reading goes on with nothing left out."""

from collections.abc import Iterator
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from upwell.model import Column, Kind, TableName, TableSchema
from upwell.sources.sqlserver_catalog import ServerColumn, Table
from upwell.sources.sqlserver_place import Inside
from upwell.sources.sqlserver_reading import Found, TableReader, take_portions
from upwell.sources.sqlserver_types import ServerType
from upwell.sources.sqlserver_windows import Cut, Page, Round, Taken, start_of

Change = tuple[int, int]  # version, key
Changes = dict[str, list[Change]]


def reader(name: str) -> TableReader:
    column = ServerColumn(1, "id", ServerType("int", 4, 10, 0), computed=False, fills=False)
    schema = TableSchema(name, (Column("id", "int", Kind.INT),), ("id",), "sqlserver")
    return TableReader(Table(TableName.parse(name), 1, (column,), (column,), (False,), schema, ("", 1)))


READERS = {name: reader(name) for name in ("dbo.a", "dbo.b", "dbo.c")}
# The net change of each key: one version for each, and few versions, so that many rows share one.
CHANGES = st.dictionaries(
    st.sampled_from(sorted(READERS)),
    st.dictionaries(st.integers(0, 30), st.integers(1, 6), max_size=25),
).map(lambda tables: {table: sorted((v, k) for k, v in rows.items()) for table, rows in tables.items()})


def page_of(table: str, changes: Changes, since: int, cut: Cut | None, size: int) -> Page:
    """As the server answers, in pages of this size."""
    after = (since, 10**9) if cut is None else (cut[0], int(cut[1].strip("[]")))
    rows = [change for change in changes.get(table, []) if change > after]
    taken = rows[:size]
    found = [Found(v, f"[{k}]", b"[%d]" % k, b"[%d]" % k, "update", None, None) for v, k in taken]
    end = (taken[-1][0], f"[{taken[-1][1]}]") if len(rows) > size else None
    return Page(READERS[table], found, end, 99, "", masks=True)


@dataclass
class Window:
    events: list[Taken]
    done: int
    inside: Inside | None


def windows(changes: Changes, done: int, inside: Inside | None, upto: int, size: int, limit: int) -> Iterator[Window]:
    starts = {table: start_of(table, done, inside, 0) for table in READERS}
    found = Round(upto, [page_of(t, changes, *start, size) for t, start in starts.items() if start[0] < upto])
    while True:
        while hungry := found.hungry:
            pages = [page_of(r.table.schema.table, changes, cut[0] - 1, cut, size) for r, cut in hungry]
            found.feed(pages)
        events = found.take(limit)
        yield Window(events, *found.place_after(events))
        if not found.more:
            return


def expected(changes: Changes, upto: int) -> list[tuple[int, str, str]]:
    return sorted((min(v, upto), table, f"[{k}]") for table, rows in changes.items() for v, k in rows)


def as_told(events: list[Taken]) -> list[tuple[int, str, str]]:
    return [(taken.version, taken.table, taken.found.tracked) for taken in events]


@given(CHANGES, st.integers(1, 8), st.integers(1, 12))
def test_everything_goes_out_once_and_versions_never_decrease(changes: Changes, size: int, limit: int) -> None:
    found = list(windows(changes, 0, None, 6, size, limit))
    told = [each for window in found for each in as_told(window.events)]
    assert sorted(told) == expected(changes, 6)
    assert [each[:2] for each in told] == sorted(each[:2] for each in told)
    assert (found[-1].done, found[-1].inside) == (6, None)
    assert all(len(window.events) <= limit for window in found)


@given(CHANGES, st.integers(1, 8), st.integers(1, 12), st.integers(1, 8), st.integers(1, 12))
def test_from_every_place_the_rest_follows_whatever_the_pages(
    changes: Changes, size: int, limit: int, size_then: int, limit_then: int
) -> None:
    told: set[tuple[int, str, str]] = set()
    for window in windows(changes, 0, None, 6, size, limit):
        told.update(as_told(window.events))
        again = [
            each
            for then in windows(changes, window.done, window.inside, 6, size_then, limit_then)
            for each in as_told(then.events)
        ]
        assert told | set(again) == set(expected(changes, 6))
        assert told.isdisjoint(again), "nothing is read twice either"


@given(CHANGES, st.integers(1, 8), st.integers(1, 12))
def test_what_is_below_a_finished_version_has_all_gone_out(changes: Changes, size: int, limit: int) -> None:
    told: set[tuple[int, str, str]] = set()
    for window in windows(changes, 0, None, 6, size, limit):
        told.update(as_told(window.events))
        assert {each for each in expected(changes, 6) if each[0] <= window.done} <= told
        if window.inside is None:
            assert all(each[0] <= window.done for each in told)


@given(CHANGES, st.integers(1, 8), st.integers(1, 12))
def test_a_row_that_changed_again_meanwhile_goes_out_with_the_round(changes: Changes, size: int, limit: int) -> None:
    """`upto` is 3, and the server shows versions up to 6 already."""
    found = list(windows(changes, 0, None, 3, size, limit))
    told = [each for window in found for each in as_told(window.events)]
    assert {each for each in expected(changes, 3) if each[0] < 3} <= set(told)
    assert {(3, table, f"[{k}]") for table, rows in changes.items() for v, k in rows if v == 3} <= set(told)
    assert all(version <= 3 for version, _, _ in told)
    assert (found[-1].done, found[-1].inside) == (3, None)


def test_a_floor_leaves_out_what_a_snapshot_will_bring() -> None:
    assert start_of("dbo.a", 5, None, 9) == (9, None)
    assert start_of("dbo.a", 9, None, 5) == (9, None)
    assert start_of("dbo.a", 5, Inside("dbo.b", "[1]"), 0) == (6, None)
    assert start_of("dbo.b", 5, Inside("dbo.b", "[1]"), 0) == (5, (6, "[1]"))
    assert start_of("dbo.c", 5, Inside("dbo.b", "[1]"), 0) == (5, None)


@given(st.lists(st.integers(1, 100_000), max_size=200), st.integers(1, 200_000))
def test_portions_stop_soon_after_they_have_enough_bytes(sizes: list[int], bytes_max: int) -> None:
    taken: list[int] = []

    def take(rows: list[int]) -> int:
        taken.extend(rows)
        return sum(rows)

    whole = take_portions(iter(sizes), take, bytes_max)  # type: ignore[arg-type] # a row is its size here
    assert taken == sizes[: len(taken)]
    assert whole or sum(taken) >= bytes_max
    assert not whole or len(taken) == len(sizes)
