"""The claim check: what an object is called, and what a reader accepts."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell import claims
from upwell.claims import Claim, Claims
from upwell.errors import Rejected
from upwell.model import UPSERT, ChangeEvent, Column, Kind, TableSchema, pack_version

SCHEMA = TableSchema("main.t", (Column("id", "text", Kind.TEXT),), ("id",), "sqlite")


class Store:
    """Objects in memory."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []

    def put(self, key: str, content: bytes) -> None:
        self.objects[key] = content

    def get(self, key: str) -> bytes | None:
        self.asked.append(key)
        return self.objects.get(key)

    def close(self) -> None:
        pass


def event(key: bytes = b'["a"]', commit: int = 1, table: str = "main.t") -> ChangeEvent:
    schema = TableSchema(table, SCHEMA.columns, SCHEMA.key, "sqlite")
    return ChangeEvent(schema, UPSERT, pack_version(7, commit, 3), "", key, key, "update")


def test_what_was_put_is_had_again() -> None:
    store = Store()
    it = Claims(store, "upwell/", "shop")
    upload = it.upload(event(), b"content")
    assert upload.claim.object.startswith("upwell/shop/00000007/00000007000000000000000100000003/")
    assert not store.objects
    it.put(upload)
    assert it.content(upload.claim) == b"content"
    probe = it.probe()
    it.put(probe)
    assert it.content(probe.claim) == probe.content


places = st.tuples(
    st.sampled_from((b'["a"]', b'["b"]', b'["a","b"]')),
    st.integers(1, 2),
    st.sampled_from(("main.t", "main.u")),
    st.sampled_from((b"x", b"y")),
)


@given(places, places)
def test_no_two_contents_share_an_object(
    one: tuple[bytes, int, str, bytes], other: tuple[bytes, int, str, bytes]
) -> None:
    it = Claims(Store(), "", "shop")
    objects = [it.upload(event(*place), content).claim.object for *place, content in (one, other)]  # type: ignore[arg-type]
    assert (objects[0] == objects[1]) == (one == other)


def test_what_is_not_what_was_put_is_rejected() -> None:
    store = Store()
    it = Claims(store, "upwell/", "shop")
    upload = it.upload(event(), b"content")
    with pytest.raises(Rejected, match="not in the bucket"):
        it.content(upload.claim)
    for wrong in (b"c0ntent", b"content and more", b""):
        store.objects[upload.claim.object] = wrong
        with pytest.raises(Rejected, match="SHA-256"):
            it.content(upload.claim)


@pytest.mark.parametrize(
    "place",
    [
        "another/shop/{}",
        "upwell/other/{}",
        "upwell/shop/../other/{}",
        "upwell/shop/{}/more",
        "https://example.com/upwell/shop/{}",
        "/upwell/shop/{}",
        "{}",
        "upwell/shop/",
        "upwell/shop/{}?versionId=1",
        "upwell/shop/{}\n",
    ],
)
def test_nothing_but_our_own_part_of_the_bucket_is_asked_for(place: str) -> None:
    store = Store()
    it = Claims(store, "upwell/", "shop")
    rest = it.probe().claim.object.removeprefix("upwell/shop/")
    claim = Claim(place.format(rest), hashlib.sha256(b"").hexdigest(), 0)
    with pytest.raises(Rejected, match="outside"):
        it.content(claim)
    assert not store.asked


def test_there_is_a_limit_for_writers_and_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    it = Claims(store, "", "shop")
    claim = it.upload(event(), b"x" * 101).claim
    monkeypatch.setattr(claims, "CONTENT_BYTES_MAX", 100)
    with pytest.raises(Rejected, match="at most 100"):
        it.upload(event(), b"x" * 101)
    with pytest.raises(Rejected, match="at most 100"):
        it.content(claim)
    assert not store.asked
