"""Key templates: different keys give different texts."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.errors import ConfigError, Rejected
from upwell.keytemplates import Template
from upwell.model import Column, Kind

ID = Column("id", "int", Kind.INT)
NO = Column("no", "bigint", Kind.INT)
NAME = Column("name", "text", Kind.TEXT)
CITY = Column("city", "text", Kind.TEXT)

TRICKY = st.text(st.sampled_from("a#%2301-é"), max_size=6)
NUMBERS = st.integers(-(2**63), 2**63)


@pytest.mark.parametrize(
    ("text", "key", "values", "rendered"),
    [
        ("ORDER#{id}", [ID], [7], "ORDER#7"),
        ("LINE#{no:05}", [ID, NO], [7, 42], "LINE#00042"),
        ("LINE#{no:05}", [ID, NO], [7, -42], "LINE#-0042"),
        ("{id:08d}|{name}", [ID, NAME], [7, "a|b"], "00000007|a|b"),
        ("{name}#{city}", [NAME, CITY], ["a#b", "c#d"], "a%23b#c#d"),
        ("{name}#{city}", [NAME, CITY], ["50%", "x"], "50%25#x"),
        ("{{{id}}}", [ID], [1], "{1}"),
        ("PROFILE", [ID], [1], "PROFILE"),
        ("{id}", [ID], ["9007199254740993"], "9007199254740993"),
        ("{on}!", [Column("on", "bool", Kind.BOOL)], [True], "true!"),
    ],
)
def test_it_renders(text: str, key: list[Column], values: list[Any], rendered: str) -> None:
    assert Template(text, key).render(values) == rendered


@pytest.mark.parametrize(
    "text",
    [
        "{other}",
        "{id}{no}",
        "{id!r}",
        "{}",
        "{id",
        "{id:x}",
        "{id:,}",
        "{name:05}",
        "{id}1{no}",
        "{id}-{no}",
        "{id:05}{name}",
    ],
)
def test_it_refuses_what_would_be_ambiguous_or_is_no_key(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Template(text, [ID, NO, NAME])
    assert raised.value.code == "UW-DD-005"
    assert text in raised.value.message


@given(first=st.tuples(TRICKY, NUMBERS, TRICKY), second=st.tuples(TRICKY, NUMBERS, TRICKY))
@pytest.mark.parametrize("text", ["{name}#{id}#{city}", "A{name}%{id:05}a{city}", "{id}#{name}0{city}"])
def test_different_keys_give_different_texts(text: str, first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
    template = Template(text, [NAME, ID, CITY])
    assert (template.render(first) == template.render(second)) is (first == second)


def test_a_value_that_is_no_whole_number_is_rejected() -> None:
    for value in ("abc", 1.5, None):
        with pytest.raises(Rejected):
            Template("{id:05}", [ID]).render([value])


LEADS = ["", "A", "A#", "B#", "AB", "PROFILE"]


@given(
    first=st.tuples(st.sampled_from(LEADS), st.none() | TRICKY),
    second=st.tuples(st.sampled_from(LEADS), st.none() | TRICKY),
)
def test_disjoint_templates_never_give_the_same_text(
    first: tuple[str, str | None], second: tuple[str, str | None]
) -> None:
    templates = [Template(lead + ("" if name is None else "{name}"), [NAME]) for lead, name in (first, second)]
    if templates[0].disjoint(templates[1]):
        texts = [template.render([name or ""]) for template, (_, name) in zip(templates, (first, second), strict=True)]
        assert texts[0] != texts[1]


def test_what_differs_at_the_start_is_disjoint() -> None:
    def template(text: str) -> Template:
        return Template(text, [NAME])

    assert template("A#{name}").disjoint(template("B#{name}"))
    assert template("PROFILE").disjoint(template("ORDER#{name}"))
    assert template("A").disjoint(template("A#{name}"))
    assert not template("A#{name}").disjoint(template("A#{name}"))
    assert not template("A{name}").disjoint(template("AB"))
    assert not template("{name}").disjoint(template("B#{name}"))
