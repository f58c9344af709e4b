"""The demo's comparison: equal means each value of each row, and nothing less."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import pytest

from upwell.app.demo.databases import TABLES
from upwell.app.demo.equality import Tables, compare, read_dynamodb
from upwell.aws_errors import ResourceMissing
from upwell.clock import iso_time
from upwell.errors import UpwellError

NOW = "2026-01-31T10:00:00.000Z"


def tables(*products: tuple[object, ...]) -> Tables:
    """All tables, empty but for these products."""
    return {name: {} for name in TABLES} | {"products": {product[:1]: product for product in products}}


def product(sku: str = "SKU-1", price: object = Decimal("12.5"), changed_at: str = NOW) -> tuple[object, ...]:
    return sku, "lamp", price, None, Decimal(3), b"\x00\xff", changed_at


def sequence(*readings: Tables) -> Callable[[], Tables]:
    following = iter(readings)
    return lambda: next(following)


def test_equal_rows_are_equal() -> None:
    look = compare(lambda: tables(product()), lambda: tables(product(price=Decimal("12.50"))))
    assert look.equal
    assert look.lag_s == 0
    assert look.tables["products"].source == look.tables["products"].target == 1


@pytest.mark.parametrize(
    "target",
    [
        tables(),
        tables(product(), product("SKU-2")),
        tables(product(price=Decimal("12.51"))),
        tables(product(price="12.5")),
        tables(product(price=None)),
    ],
    ids=["missing", "superfluous", "other value", "other type", "null"],
)
def test_each_difference_counts(target: Tables) -> None:
    look = compare(lambda: tables(product()), lambda: target)
    assert look.differing == 1
    assert not look.equal


@pytest.mark.parametrize("target", [tables(product()), tables(product(price=Decimal(7)))])
def test_a_row_that_changes_meanwhile_is_right_in_both_forms(target: Tables) -> None:
    source = sequence(tables(product()), tables(product(price=Decimal(7))))
    assert compare(source, lambda: target).equal


def test_a_row_that_comes_or_goes_meanwhile_is_right_with_and_without() -> None:
    for readings in ((tables(), tables(product())), (tables(product()), tables())):
        for target in (tables(), tables(product())):
            assert compare(sequence(*readings), lambda target=target: target).equal  # type: ignore[misc]


def test_the_lag_is_that_of_the_oldest_change_that_is_missing() -> None:
    before = time.time()
    old, new = product("SKU-1", changed_at=iso_time(before - 60)), product("SKU-2", changed_at=iso_time(before - 5))
    assert 60 <= compare(lambda: tables(old, new), lambda: tables()).lag_s < 60 + time.time() - before + 1
    assert 5 <= compare(lambda: tables(old, new), lambda: tables(old)).lag_s < 5 + time.time() - before + 1


def test_a_row_that_changes_twice_meanwhile_is_no_lag() -> None:
    forms = [tables(product(price=Decimal(price))) for price in (1, 2, 3)]
    look = compare(sequence(forms[0], forms[2]), lambda: forms[1])
    assert look.differing == 1
    assert look.lag_s == 0


class Scans:
    """Answers Scan with pages; knows no other table."""

    region = "eu-west-1"
    clock_skew_s = None

    def __init__(self, table: str, pages: Sequence[Sequence[Mapping[str, Any]]]) -> None:
        self._table = table
        self._pages = pages

    def call(self, action: str, payload: Mapping[str, Any] | bytes) -> dict[str, Any]:
        assert action == "Scan"
        assert isinstance(payload, Mapping)
        assert payload["ConsistentRead"]
        if payload["TableName"] != self._table:
            raise ResourceMissing("There is no such table.")
        place = int(payload.get("ExclusiveStartKey", {}).get("page", {}).get("N", 0))
        page: dict[str, Any] = {"Items": self._pages[place]}
        if place + 1 < len(self._pages):
            page["LastEvaluatedKey"] = {"page": {"N": str(place + 1)}}
        return page

    def call_many(
        self, action: str, payloads: Sequence[Mapping[str, Any] | bytes]
    ) -> list[dict[str, Any] | UpwellError]:
        raise NotImplementedError

    def close(self) -> None: ...


def test_items_are_read_with_all_pages_and_without_tombstones() -> None:
    item = {
        "sku": {"S": "SKU-1"},
        "name": {"S": "lamp"},
        "price": {"N": "12.5"},
        "stock": {"N": "3"},
        "picture": {"B": base64.b64encode(b"\x00\xff").decode()},
        "changed_at": {"S": NOW},
        "_upwell_v": {"B": "AAAA"},
    }
    gone = {"sku": {"S": "SKU-2"}, "_upwell_deleted": {"BOOL": True}}
    service = Scans("shop-products", [[item], [], [gone, {**item, "sku": {"S": "SKU-3"}}]])
    found = read_dynamodb(service, "shop-")
    assert found == tables(product(), product("SKU-3"))
