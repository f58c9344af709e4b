"""Positions of SQL Server, and what they prove."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.errors import OperatorError
from upwell.model import Position
from upwell.sources.sqlserver_place import Inside, Place, Server, changed_history, settled, why_lost

SERVER = Server("SQL01", "16.0", 3, "shop", "2020", "broker-1", "guid-1", "fork-1", True, True, False, 160)
PLACE = Place(100, None, "broker-1", "fork-1", 7, {"dbo.t": (11, 3, 21)})


@given(
    st.integers(0, 2**62),
    st.none() | st.builds(Inside, st.text(), st.text()),
    st.dictionaries(st.text(), st.tuples(*[st.integers(0, 2**31)] * 3)),
    st.dictionaries(st.text(), st.integers(0, 2**62)),
    st.dictionaries(st.text(), st.dictionaries(st.text(), st.text(), min_size=1)),
)
def test_a_place_comes_back_from_its_position(
    done: int,
    inside: Inside | None,
    tables: dict[str, tuple[int, int, int]],
    floors: dict[str, int],
    spelled: dict[str, dict[str, str]],
) -> None:
    place = Place(done, inside, "b", "f", 3, tables, floors, spelled)
    assert Place.parse(place.to_position()) == place


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"lsn": "0/1"}', '{"done": 1, "tables": []}'])
def test_another_sources_position_is_refused(text: str) -> None:
    with pytest.raises(OperatorError) as error:
        Place.parse(Position(text))
    assert error.value.code == "UW-MS-021"


def test_the_same_database_further_on_has_lost_nothing() -> None:
    assert why_lost(PLACE, SERVER, 100, 7) is None
    assert why_lost(PLACE, SERVER, 10_000, 8) is None
    assert why_lost(PLACE, replace(SERVER, fork=""), 101, None) is None, "what can't be seen proves nothing"


def test_another_database_is_noticed() -> None:
    assert why_lost(PLACE, replace(SERVER, broker="broker-2"), 100, 7) is not None
    made_anew = replace(SERVER, broker="", created="2021")
    assert why_lost(replace(PLACE, database="shop 2020"), made_anew, 100, 7) is not None


def test_a_restore_is_noticed_while_the_version_is_lower_and_after() -> None:
    assert why_lost(PLACE, SERVER, 99, 7) is not None
    assert why_lost(PLACE, replace(SERVER, fork="fork-2"), 130, None) is not None, "it went on beyond us"
    assert why_lost(PLACE, SERVER, 130, 6) is not None, "our mark is the one of before"


def test_a_failover_without_loss_is_none_where_our_mark_proves_it() -> None:
    assert why_lost(PLACE, replace(SERVER, fork="fork-2", name="SQL02"), 100, 7) is None
    assert why_lost(replace(PLACE, marker=0), replace(SERVER, fork="fork-2"), 100, 7) is not None


def test_histories_tell_truncation_re_enabling_and_re_creation_but_not_what_is_unseen() -> None:
    assert changed_history((1, 2, 3), (1, 2, 3)) is None
    assert changed_history((1, 2, 3), (1, 2, 0)) is None
    assert changed_history((1, 2, 0), (1, 2, 3)) is None
    assert "anew" in str(changed_history((1, 2, 3), (4, 2, 3)))
    assert "truncated" in str(changed_history((1, 2, 3), (1, 9, 3)))
    assert "truncated" in str(changed_history((1, 2, 3), (1, 2, 4))), "begin_version alone misses this one (fact 30)"


def test_a_table_that_lost_nothing_goes_on() -> None:
    found = settled(PLACE, {"dbo.t": ((11, 3, 21), 100)}, 120)
    assert (found.unseen, found.expired) == ({}, {})
    assert found.place == PLACE


def test_a_table_whose_changes_were_cleaned_up_is_told_and_read_from_now_on() -> None:
    found = settled(PLACE, {"dbo.t": ((11, 3, 21), 101)}, 120)
    assert list(found.expired) == ["dbo.t"]
    assert found.place.floors == {"dbo.t": 120}
    again = settled(found.place, {"dbo.t": ((11, 3, 21), 119)}, 130)
    assert (again.unseen, again.expired) == ({}, {}), "it is told once"


def test_a_truncated_table_is_told_though_its_versions_are_valid() -> None:
    """Fact 30: who had read up to now has a valid version after a TRUNCATE."""
    found = settled(PLACE, {"dbo.t": ((11, 100, 21), 100)}, 100)
    assert list(found.unseen) == ["dbo.t"]
    assert found.place.tables["dbo.t"] == (11, 100, 21)


def test_a_new_table_is_read_from_now_on_and_an_old_one_is_forgotten() -> None:
    found = settled(PLACE, {"dbo.new": ((12, 90, 22), 90)}, 120)
    assert (found.unseen, found.expired) == ({}, {})
    assert found.place.floors == {"dbo.new": 120}
    assert dict(found.place.tables) == {"dbo.new": (12, 90, 22)}
