"""What every Reader does; see ports.Reader."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.read_rows import COUNTRIES, LINES, ORDERS, PIPELINE, Store
from upwell.model import Value
from upwell.ports import Found, Listing, ReadIndex

A, B = ("tenant_id", "a"), ("tenant_id", "b")
BY_COUNTRY = ReadIndex("by-country", "country", "placed")
BY_TENANT = ReadIndex("by-tenant", "tenant_id", "id")
MOMENT = "2026-01-31T10:00:00.500"


def order(number: int, tenant: str = "a", country: str = "DE", placed: str | None = MOMENT) -> list[Value]:
    return [number, country, placed, "12.50", "x", tenant]


def listed(
    store: Store,
    schema: Any,
    tenant: tuple[str, str] | None = None,
    index: ReadIndex | None = None,
    partition: Value = None,
    limit: int = 100,
) -> list[Found]:
    """All pages."""
    found: list[Found] = []
    after = None
    for _ in range(1000):
        page = store.reader.page(Listing(schema, tenant, index, partition, after, limit))
        assert len(page.found) <= limit
        found += page.found
        if page.after is None:
            return found
        after = page.after
    raise AssertionError("it never ends")


def rows(found: Sequence[Found]) -> list[list[Value]]:
    return sorted((each.row for each in found), key=repr)


class ReaderContract:
    """Each subclass has a fixture `store`, made once."""

    @pytest.fixture(autouse=True)
    def _empty(self, store: Store) -> None:
        store.empty()

    def test_a_row_is_found_by_its_key(self, store: Store) -> None:
        store.write.put(ORDERS, [order(1), order(2)])
        assert store.reader.get(ORDERS, [1], None) == order(1)
        assert store.reader.get(ORDERS, [3], None) is None

    def test_a_key_of_several_columns_in_its_order(self, store: Store) -> None:
        store.write.put(LINES, [["a", "x#1", 1, 5], ["a", "x", 1, 6]])
        assert store.reader.get(LINES, ["a", "x", 1], A) == ["a", "x", 1, 6]
        assert store.reader.get(LINES, ["a", "x#1", 1], A) == ["a", "x#1", 1, 5]
        assert store.reader.get(LINES, ["x", "a", 1], None) is None

    @pytest.mark.parametrize("key", [2**53 + 1, -(2**40), "123456789012345678901234567890", "9" * 39])
    def test_a_number_that_no_row_can_have_is_not_there(self, store: Store, key: Value) -> None:
        store.write.put(ORDERS, [order(1)])
        assert store.reader.get(ORDERS, [key], None) is None

    @pytest.mark.parametrize("key", ["", "a\0b", "x" * 3000, "'; DROP TABLE countries; --", "%s", "\\", "é😀"])
    def test_any_text_may_be_asked_for(self, store: Store, key: str) -> None:
        store.write.put(COUNTRIES, [["DE", "Germany"]])
        assert store.reader.get(COUNTRIES, [key], None) is None
        assert store.reader.get(COUNTRIES, ["DE"], None) == ["DE", "Germany"]

    def test_a_deleted_row_is_not_there(self, store: Store) -> None:
        store.write.put(ORDERS, [order(1), order(2)])
        store.write.delete(ORDERS, 1)
        assert store.reader.get(ORDERS, [1], None) is None
        assert rows(listed(store, ORDERS)) == [order(2)]
        assert rows(listed(store, ORDERS, index=BY_COUNTRY, partition="DE")) == [order(2)]

    # --- tenants --------------------------------------------------------------------------------------------------

    def test_another_tenants_row_is_as_if_it_were_not_there(self, store: Store) -> None:
        store.write.put(ORDERS, [order(1, "a"), order(2, "b"), order(3, "A"), [4, "DE", MOMENT, "1.00", "x", None]])
        assert store.reader.get(ORDERS, [1], A) == order(1, "a")
        for number in (2, 3, 4):
            assert store.reader.get(ORDERS, [number], A) is None
        assert rows(listed(store, ORDERS, A)) == [order(1, "a")]
        assert rows(listed(store, ORDERS, B, BY_COUNTRY, "DE")) == [order(2, "b")]

    @pytest.mark.parametrize("tenant", ["", "a\0", "%", "' OR '1'='1", "x" * 3000])
    def test_a_strange_tenant_sees_nothing(self, store: Store, tenant: str) -> None:
        store.write.put(ORDERS, [order(1, "a")])
        assert store.reader.get(ORDERS, [1], ("tenant_id", tenant)) is None
        assert listed(store, ORDERS, ("tenant_id", tenant)) == []

    def test_where_the_tenant_begins_the_key_its_rows_are_found_by_that(self, store: Store) -> None:
        mine: list[list[Value]] = [["a", f"sku{n}", n, 1] for n in range(20)]
        others: list[list[Value]] = [["b", f"sku{n}", n, 1] for n in range(20)]
        store.write.put(LINES, mine + others)
        assert rows(listed(store, LINES, A, limit=7)) == sorted(mine, key=repr)

    def test_an_index_by_the_tenant_itself(self, store: Store) -> None:
        store.write.put(ORDERS, [order(n, "ab"[n % 2]) for n in range(10)])
        mine = [order(n, "a") for n in range(0, 10, 2)]
        assert rows(listed(store, ORDERS, A, BY_TENANT, "a", limit=2)) == mine
        assert listed(store, ORDERS, A, BY_TENANT, "b") == []

    # --- pages ----------------------------------------------------------------------------------------------------

    def test_paging_gives_each_row_once_whatever_the_limit(self, store: Store) -> None:
        moments = st.sampled_from([MOMENT, "2026-01-31T10:00:00.123", "1900-01-01T00:00:00.000"])
        row = st.tuples(st.sampled_from("ab"), st.sampled_from(["DE", "FR"]), moments)

        @given(st.dictionaries(st.integers(-5, 30), row, max_size=20), st.integers(1, 25))
        @settings(max_examples=12)
        def check(chosen: dict[int, tuple[str, str, str]], limit: int) -> None:
            wanted = [order(key, *of) for key, of in chosen.items()]
            store.empty()
            store.write.put(ORDERS, wanted)
            assert rows(listed(store, ORDERS, limit=limit)) == sorted(wanted, key=repr)
            mine = sorted((row for row in wanted if row[5] == "a"), key=repr)
            assert rows(listed(store, ORDERS, A, limit=limit)) == mine
            german = listed(store, ORDERS, None, BY_COUNTRY, "DE", limit=limit)
            assert rows(german) == sorted((row for row in wanted if row[1] == "DE"), key=repr)
            assert [each.row[2] for each in german] == sorted(str(each.row[2]) for each in german)

        check()

    def test_a_listing_can_go_on_behind_each_row(self, store: Store) -> None:
        store.write.put(ORDERS, [order(n) for n in range(10)])
        for index, partition in ((None, None), (BY_COUNTRY, "DE")):
            everything = store.reader.page(Listing(ORDERS, None, index, partition, None, 100)).found
            assert len(everything) == 10
            for number, found in enumerate(everything):
                rest = store.reader.page(Listing(ORDERS, None, index, partition, found.after, 100)).found
                assert [each.row for each in rest] == [each.row for each in everything[number + 1 :]]

    def test_rows_without_a_sort_key_are_not_found_by_the_index(self, store: Store) -> None:
        store.write.put(ORDERS, [order(1), order(2, placed=None)])
        assert rows(listed(store, ORDERS, index=BY_COUNTRY, partition="DE")) == [order(1)]

    def test_a_page_has_a_limit_in_bytes(self, store: Store) -> None:
        store.write.put(ORDERS, [[n, "DE", MOMENT, "1.00", "x" * 300_000, "a"] for n in range(12)])
        page = store.reader.page(Listing(ORDERS, None, None, None, None, 100))
        assert 1 <= len(page.found) <= 5
        assert page.after is not None
        assert len(listed(store, ORDERS)) == 12

    @pytest.mark.parametrize("partition", ["", "x" * 3000, "a\0", "nowhere"])
    def test_a_partition_that_no_row_has_is_empty(self, store: Store, partition: str) -> None:
        store.write.put(ORDERS, [order(1)])
        assert listed(store, ORDERS, index=BY_COUNTRY, partition=partition) == []

    # --- heartbeats, threads --------------------------------------------------------------------------------------

    def test_heartbeats(self, store: Store) -> None:
        assert store.reader.heartbeats(PIPELINE) == []
        store.write.beat("2026-01-31T10:00:00.25Z", ["dbo.orders"])
        (beat,) = store.reader.heartbeats(PIPELINE)
        assert (beat["as_of"], beat["resyncing"], beat["beats"]) == ("2026-01-31T10:00:00.25Z", '["dbo.orders"]', 1)
        assert store.reader.heartbeats("other") == []

    def test_threads_share_it(self, store: Store) -> None:
        store.write.put(ORDERS, [order(n) for n in range(50)])
        wrong: list[object] = []

        def read(start: int) -> None:
            for n in range(start, start + 10):
                found = store.reader.get(ORDERS, [n % 50], None)
                wrong.extend([] if found == order(n % 50) else [found])

        threads = [threading.Thread(target=read, args=(n,)) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
