"""The read API at its limits, and when something breaks."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from lab.parts import PostgresServer
from tests.identity_provider import IdentityProvider
from tests.read_homes import Lambda, in_lambda, query_text
from tests.read_rows import Store, new_database, postgres_store
from tests.read_shop import by_token, fill, shop
from upwell.clock import SystemClock
from upwell.cloud import guard
from upwell.errors import OperatorError, Rejected, TransientError
from upwell.model import TableSchema, Value
from upwell.ports import Listing, Page

PROVIDER = IdentityProvider()
A, B = (PROVIDER.bearer(tenant=tenant, sub=tenant) for tenant in "ab")
PRIVATE = "a value of somebody's row"


@pytest.fixture(scope="module")
def store(postgres_cluster: PostgresServer) -> Iterator[Store]:
    with new_database(postgres_cluster) as database, postgres_store(postgres_cluster, database) as store:
        fill(store)
        yield store


class Broken:
    """A reader that fails in its own way."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def get(self, schema: TableSchema, key: Sequence[Value], tenant: tuple[str, str] | None) -> list[Value] | None:
        raise self.error

    def page(self, listing: Listing) -> Page:
        raise self.error

    def heartbeats(self, pipeline: str) -> Sequence[Mapping[str, Any]]:
        return []

    def close(self) -> None:
        pass


def broken(store: Store, error: Exception) -> Any:
    return shop(Store("broken", Broken(error), store.write, store.layout), by_token(PROVIDER))


@pytest.mark.parametrize("path", ["/v1/orders/3", "/v1/orders"])
def test_a_crash_is_told_to_nobody_but_us(store: Store, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    with in_lambda(broken(store, ValueError(PRIVATE))) as home:
        answer = home.ask(path, A)
    assert (answer.status, answer.headers["content-type"]) == (500, "application/problem+json")
    assert PRIVATE.encode() not in answer.body
    assert b"ValueError" not in answer.body
    said = capsys.readouterr().err
    assert "ValueError" in said
    assert PRIVATE not in said


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (OperatorError("The table is not there.", code="UW-AP-012"), 503, "30"),
        (Rejected("its object is gone"), 500, None),
    ],
)
def test_what_only_a_person_can_mend(store: Store, error: Exception, status: int, retry: str | None) -> None:
    with in_lambda(broken(store, error)) as home:
        answer = home.ask("/v1/orders/3", A)
    assert (answer.status, answer.headers.get("retry-after")) == (status, retry)
    assert str(error).encode() not in answer.body


def test_a_database_is_not_down_because_the_identity_provider_is(store: Store) -> None:
    provider = IdentityProvider()
    with in_lambda(shop(store, by_token(provider))) as home:
        provider.away = True
        answer = home.ask("/v1/orders/3", provider.bearer(tenant="a"))
        assert (answer.status, answer.headers["retry-after"]) == (503, "2")
        assert home.ask("/healthz").json == {"status": "ok", "database": "unknown"}
        with in_lambda(broken(store, TransientError("It is away.", code="UW-AP-010"))) as other:
            assert other.ask("/v1/orders/3", A).status == 503
            assert other.ask("/healthz").json == {"status": "ok", "database": "down"}


class Stopped(SystemClock):
    def monotonic(self) -> float:
        return 1000.0


def test_who_asks_too_often_waits_and_others_do_not(store: Store) -> None:
    with in_lambda(shop(store, by_token(PROVIDER), per_s=2, clock=Stopped())) as home:
        assert [home.ask("/v1/orders/3", A).status for _ in range(4)] == [200] * 4
        refused = home.ask("/v1/orders/3", A)
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert home.ask("/v1/orders/4", B).status == 200
        assert home.ask("/healthz").status == 200


def test_more_requests_than_can_be_answered_are_refused_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "REQUESTS_MAX", 0)
    with in_lambda(shop(store, by_token(PROVIDER))) as home:
        answer = home.ask("/v1/orders/3", A)
        assert home.ask("/healthz").status == 200
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")


def pages(home: Lambda, **query: object) -> list[list[int]]:
    found: list[list[int]] = []
    cursor: dict[str, str] = {}
    while True:
        answer = home.ask(f"/v1/orders?{query_text(**query, **cursor)}", A).json
        found.append([row["id"] for row in answer["items"]])
        if answer["cursor"] is None:
            return found
        cursor = {"cursor": answer["cursor"]}


def test_an_answer_is_never_larger_than_its_way_takes(store: Store) -> None:
    with in_lambda(shop(store, by_token(PROVIDER), answer_bytes=250)) as home:
        assert pages(home) == [[3, 6], [9, 12], [15, 18], [21, 24], [27, 30]]
        assert pages(home, index="by-country", country="DE")[0] == [6, 12]
    with in_lambda(shop(store, by_token(PROVIDER), answer_bytes=20)) as home:
        assert home.ask("/v1/orders", A).status == 500
        assert home.ask("/v1/orders/3", A).status == 500
    with in_lambda(shop(store, by_token(PROVIDER), page=3)) as home:
        assert [len(page) for page in pages(home)] == [3, 3, 3, 1]
        assert home.ask("/v1/orders?limit=4", A).status == 400
