"""Patterns of tables: what is quoted is plain, and case counts where it does in the source."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.model import TableName
from upwell.tablepatterns import folded, has_wildcard, parse_pattern, part_matches, plain, shown

NAMES = st.text(st.sampled_from('ab*?\\.".\n Ä') | st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)


def matches(pattern: str, table: TableName, dialect: str = "postgresql") -> bool:
    parts = parse_pattern(pattern)
    return part_matches(parts.schema, table.schema, dialect) and part_matches(parts.name, table.name, dialect)


@given(NAMES, NAMES, NAMES)
def test_a_name_as_upwell_writes_it_is_the_pattern_of_this_table_alone(schema: str, name: str, other: str) -> None:
    table = TableName(schema, name)
    pattern = parse_pattern(str(table))
    assert not has_wildcard(pattern)
    assert shown(pattern) == str(table)
    assert matches(str(table), table)
    assert matches(str(table), TableName(schema, other)) == (name == other)


@given(NAMES, st.sampled_from(["postgresql", "sqlite", "sqlserver"]))
def test_a_plain_part_matches_itself(name: str, dialect: str) -> None:
    assert part_matches(plain(name), name, dialect)


@pytest.mark.parametrize(
    ("pattern", "name", "matching"),
    [
        ('s."a*"', "a*", True),
        ('s."a*"', "ab", False),
        ("s.a*", "ab", True),
        ("s.a?", "a*", True),
        ('"s".a*', "ab", True),
        ('s."a?"', "ab", False),
        (r"s.a\*", r"a\b", True),  # outside quotes a backslash is a backslash
        (r"s.a\*", "a*", False),
    ],
)
def test_only_what_is_not_quoted_is_a_wildcard(pattern: str, name: str, matching: bool) -> None:
    assert matches(pattern, TableName("s", name)) is matching


def test_case_counts_where_it_does_in_the_source() -> None:
    cases = [("Users", "users"), ("Ä", "ä"), ("straße", "STRASSE"), ("K", "\u212a")]  # the last one: the Kelvin sign
    told = {
        dialect: [part_matches(one, other, dialect) for one, other in cases] for dialect in ("postgresql", "sqlite")
    }
    assert told == {"postgresql": [False] * 4, "sqlite": [True, False, False, False]}
    for dialect, same in told.items():
        assert [folded(one, dialect) == folded(other, dialect) for one, other in cases] == same
