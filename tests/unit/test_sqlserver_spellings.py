"""Keys that are one to the server and several on the wire: what must be deleted before a row is published."""

import orjson
from hypothesis import given
from hypothesis import strategies as st

from upwell.sources.sqlserver import _other_spellings
from upwell.sources.sqlserver_reading import Found

SPELLINGS = st.sampled_from(["ab", "Ab", "aB", "AB", "ab "])


def key(text: str) -> bytes:
    return orjson.dumps([text])


@given(st.lists(st.none() | SPELLINGS, min_size=1), st.booleans())
def test_the_target_has_one_spelling_whatever_the_server_goes_on_telling(
    steps: list[str | None], first_for_ever: bool
) -> None:
    """A row is re-spelled, deleted and inserted again. The server may go on telling the first spelling that it ever saw
    (fact 20), or the one that the row had when it was last read.
    """
    target: set[bytes] = set()
    spelled: dict[str, str] = {}
    first: str | None = None
    last: str | None = None
    for step in steps:
        tracked = (first if first_for_ever else last) or step or "ab"
        first = first or tracked
        row = None if step is None else b"[]"
        found = Found(1, key(tracked).decode(), key(step or tracked), row, "update", None, None)
        target.difference_update(_other_spellings(spelled, found))
        if step is None:
            target.discard(found.key)
        else:
            target.add(found.key)
        assert target == (set() if step is None else {key(step)})
        last = step


def test_a_spelling_is_forgotten_when_it_is_the_servers_own_again() -> None:
    spelled = {'["ab"]': '["AB"]'}
    found = Found(1, '["ab"]', key("ab"), b"[]", "update", None, None)
    assert _other_spellings(spelled, found) == [key("AB")]
    assert spelled == {}
