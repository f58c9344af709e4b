"""The read API in both its homes, over both stores."""

import hashlib
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lab.parts import PostgresServer
from tests.identity_provider import IdentityProvider
from tests.read_homes import LOOPBACK, Got, Home, Http, in_lambda, key_text, query_text, served
from tests.read_rows import COUNTRIES, LINES, ORDERS, Store, dynamodb_store, new_database, postgres_store
from tests.read_shop import MOMENT, TENANTS, by_token, fill, order, shop
from upwell.cloud.authorization import IamAuthorizer
from upwell.cloud.cursors import CURSOR_S
from upwell.exposure import Wanted, expose
from upwell.model import TableSchema, Value
from upwell.ports import ReadIndex

PROVIDER = IdentityProvider()
WHO = {tenant: PROVIDER.bearer(tenant=tenant, sub=f"user of {tenant}") for tenant in TENANTS}


@pytest.fixture(scope="module")
def relational(postgres_cluster: PostgresServer) -> Iterator[Store]:
    with new_database(postgres_cluster) as database, postgres_store(postgres_cluster, database) as store:
        fill(store)
        yield store


@pytest.fixture(scope="module")
def items(indexing_dynamodb_endpoint: str) -> Iterator[Store]:
    with dynamodb_store(indexing_dynamodb_endpoint) as store:
        fill(store)
        yield store


@dataclass
class Place:
    store: Store
    home: Home

    def ask(self, path: str, tenant: str | None = "a", method: str = "GET", **headers: str) -> Got:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.home.ask(path, {**(WHO[tenant] if tenant else {}), **named}, method)

    def all_rows(self, table: str, tenant: str = "a", **query: object) -> list[Any]:
        found: list[Any] = []
        cursor: dict[str, str] = {}
        while True:
            answer = self.ask(f"/v1/{table}?{query_text(**query, **cursor)}", tenant)
            assert answer.status == 200, answer.body
            found += answer.json["items"]
            if answer.json["cursor"] is None:
                return found
            cursor = {"cursor": answer.json["cursor"]}


@pytest.fixture(scope="module", params=["dynamodb", "postgresql"])
def store(request: pytest.FixtureRequest) -> Store:
    found: Store = request.getfixturevalue("items" if request.param == "dynamodb" else "relational")
    return found


@pytest.fixture(scope="module", params=["http", "lambda"])
def place(request: pytest.FixtureRequest, store: Store) -> Iterator[Place]:
    app = shop(store, by_token(PROVIDER))
    if request.param == "lambda":
        with in_lambda(app) as function:
            yield Place(store, function)
        return
    kept, store.reader.close = store.reader.close, lambda: None  # type: ignore[method-assign]  # it is used again
    with served(app) as home:
        yield Place(store, home)
    store.reader.close = kept  # type: ignore[method-assign]


def own(tenant: str) -> list[int]:
    return [n for n in range(1, 31) if TENANTS[n % 3] == tenant]


# --- what is there --------------------------------------------------------------------------------------------------


def test_a_row_has_the_columns_that_are_shown_and_no_others(place: Place) -> None:
    answer = place.ask("/v1/orders/3")
    assert answer.status == 200
    assert answer.body == (
        b'{"id":3,"country":"FR","placed":"2026-01-31T10:00:00.500","total":"12.50","note":"note 3"}'
    )
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-data-as-of"] == "2026-01-31T10:00:00Z"
    assert answer.headers["cache-control"] == "private, no-cache"


def test_head_is_get_without_a_body(place: Place) -> None:
    got, head = place.ask("/v1/orders/3"), place.ask("/v1/orders/3", method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert {**head.headers, "x-request-id": ""} == {**got.headers, "x-request-id": ""} | {
        name: head.headers[name] for name in ("date",) if name in got.headers
    }


def test_a_listing_page_by_page(place: Place) -> None:
    for limit in (1, 4, 100):
        assert sorted(row["id"] for row in place.all_rows("orders", limit=limit)) == own("a")
    assert {row["id"] for row in place.all_rows("orders", index="by-country", country="DE", limit=2)} == {
        n for n in own("a") if n % 2 == 0
    }
    assert [row["id"] for row in place.all_rows("orders", index="by-tenant", limit=3)] == own("a")


def test_a_row_that_is_known_is_not_sent_again(place: Place) -> None:
    for path in ("/v1/orders/3", "/v1/orders?limit=2", "/v1/orders"):
        tag = place.ask(path).headers["etag"]
        for known in (tag, f'"x", {tag}', "*"):
            again = place.ask(path, If_None_Match=known)
            assert (again.status, again.body) == (304, b"")
            assert again.headers["etag"] == tag
            assert "x-data-as-of" in again.headers
        assert place.ask(path, If_None_Match='"other"').status == 200


def test_a_changed_row_has_another_tag(place: Place) -> None:
    tag = place.ask("/v1/orders/9").headers["etag"]
    place.store.write.put(ORDERS, [[9, "DE", MOMENT, "13.00", "changed", "a"]])
    assert place.ask("/v1/orders/9", If_None_Match=tag).json["total"] == "13.00"
    place.store.write.put(ORDERS, [order(9, "a", "FR")])
    assert place.ask("/v1/orders/9").headers["etag"] == tag


def test_how_old_the_data_is(place: Place) -> None:
    answer = place.ask("/v1/_freshness").json
    assert answer["as_of"] == "2026-01-31T10:00:00Z"
    assert answer["age_s"] > 0
    assert answer["tables"] == {
        "orders": {"as_of": "2026-01-31T10:00:00Z", "complete": True},
        "lines": {"as_of": None, "complete": False},
        "countries": {"as_of": "2026-01-31T10:00:00Z", "complete": True},
    }
    assert "x-data-as-of" not in place.ask("/v1/lines").headers


def test_health_needs_nobody(place: Place) -> None:
    assert place.ask("/v1/orders/3").status == 200
    answer = place.ask("/healthz", None)
    assert (answer.status, answer.json) == (200, {"status": "ok", "database": "up"})


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


def test_any_key_can_be_asked_for(place: Place) -> None:
    @given(TEXTS, TEXTS, st.integers(-(2**31), 2**31 - 1))
    @settings(max_examples=15)
    @example("a/b,~c?&=%+ é", "..", 0)
    @example(".", "\n\r\t\x7f", -1)
    @example("%2C", "~2C", 1)
    def check(code: str, sku: str, line: int) -> None:
        place.store.write.put(COUNTRIES, [[code, "found"]])
        place.store.write.put(LINES, [["a", sku, line, 77]])
        answer = place.ask(f"/v1/countries/{key_text(code)}")
        assert (answer.status, answer.json) == (200, {"code": code, "name": "found"})
        answer = place.ask(f"/v1/lines/{key_text('a', sku, line)}")
        assert (answer.status, answer.json) == (200, {"sku": sku, "line": line, "amount": 77})
        place.store.write.delete(COUNTRIES, code)
        place.store.write.delete(LINES, "a", sku, line)

    check()


# --- three tenants --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reads", "owns"), list(permutations(TENANTS, 2)))
def test_no_tenant_reads_anothers_rows(place: Place, reads: str, owns: str) -> None:
    number = own(owns)[0]
    theirs = place.ask(f"/v1/orders/{number}", owns)
    assert theirs.status == 200
    absent = place.ask("/v1/orders/999", reads)
    for headers in ({}, {"If_None_Match": theirs.headers["etag"]}, {"If_None_Match": "*"}):
        refused = place.ask(f"/v1/orders/{number}", reads, **headers)
        assert (refused.status, refused.body) == (404, absent.body)
    key = key_text(owns, "sku 1", 1)
    assert place.ask(f"/v1/lines/{key}", owns).status == 200
    assert place.ask(f"/v1/lines/{key}", reads).status == 404
    assert [row["id"] for row in place.all_rows("orders", reads, limit=5) if row["id"] not in own(reads)] == []
    for country in ("DE", "FR"):
        found = place.all_rows("orders", reads, index="by-country", country=country)
        assert {row["id"] for row in found} == {n for n in own(reads) if ("DE", "FR")[n % 2] == country}
    assert place.ask(f"/v1/orders?index=by-tenant&tenant_id={owns}", reads).status == 403
    assert len(place.all_rows("lines", reads)) == 5


def test_no_tag_tells_the_key_of_anothers_row(place: Place) -> None:
    """Where a page ends may be somebody else's row: nobody who guesses its key can prove it by the page's tag."""
    told, cursor = [], ""
    while True:
        answer = place.ask(f"/v1/orders?limit=1{cursor}")
        told.append((answer.headers["etag"].removeprefix('W/"').rstrip('"'), answer.json["items"]))
        if answer.json["cursor"] is None:
            break
        cursor = f"&cursor={answer.json['cursor']}"
    ages = [int(time.time() / (CURSOR_S / 2)) - back for back in (0, 1)]
    for tag, items in told:
        content = b",".join(map(orjson.dumps, items))
        ends = [*({"id": {"N": str(n)}} for n in range(1, 31)), *([str(n)] for n in range(1, 31))]
        for end, age in product(ends, ages):
            guess = hashlib.sha256(content + orjson.dumps([end, age])).hexdigest()
            assert not guess.startswith(tag)


@pytest.mark.parametrize("query", ["limit=1", "index=by-country&country=DE&limit=1"])
def test_a_cursor_is_void_once_the_table_is_read_in_another_way(relational: Store, items: Store, query: str) -> None:
    index = ReadIndex("by-country", "country", "total")
    exposed = ("id", "country", "placed", "total", "note")
    with in_lambda(shop(relational, by_token(PROVIDER))) as before:
        cursor = before.ask(f"/v1/orders?{query}", WHO["a"]).json["cursor"]
    other_key = TableSchema(ORDERS.table, ORDERS.columns, ("tenant_id", "id"), ORDERS.dialect)
    changed = [
        expose("orders", Wanted(ORDERS.table, exposed, "tenant_id", {"by-country": index}), schema)
        for schema in (ORDERS, other_key)
    ]
    for table in changed if "index" in query else changed[1:]:
        with in_lambda(shop(relational, by_token(PROVIDER), tables=[table])) as after:
            assert after.ask(f"/v1/orders?{query}&cursor={cursor}", WHO["a"]).status == 403
    with in_lambda(shop(items, by_token(PROVIDER))) as elsewhere:
        assert elsewhere.ask(f"/v1/orders?{query}&cursor={cursor}", WHO["a"]).status == 403


@pytest.mark.parametrize(("reads", "owns"), list(permutations(TENANTS, 2)))
@pytest.mark.parametrize("query", ["limit=1", "index=by-country&country=DE&limit=1", "index=by-tenant&limit=1"])
def test_a_cursor_is_good_for_its_tenant_only(place: Place, reads: str, owns: str, query: str) -> None:
    cursor = place.ask(f"/v1/orders?{query}", owns).json["cursor"]
    assert place.ask(f"/v1/orders?{query}&cursor={cursor}", owns).status == 200
    assert place.ask(f"/v1/orders?{query}&cursor={cursor}", reads).status == 403


def test_a_caller_without_a_tenant_sees_only_what_has_none(place: Place) -> None:
    nobody = PROVIDER.bearer()
    assert place.home.ask("/v1/orders/3", nobody).status == 403
    assert place.home.ask("/v1/orders", nobody).status == 403
    assert place.home.ask("/v1/countries/DE", nobody).status == 200
    for tenant in ("", "x" * 257, ["a"], {"a": 1}, True, 1.5):
        assert place.home.ask("/v1/orders/3", PROVIDER.bearer(tenant=tenant)).status == 401
    for tenant in ("A", " a", "a\0", "%", 3):
        strange = PROVIDER.bearer(tenant=tenant)
        assert place.home.ask("/v1/orders/3", strange).status == 404
        assert place.home.ask("/v1/orders?index=by-tenant", strange).json["items"] == []


def test_what_only_looks_like_a_tenant_counts_for_nothing(place: Place) -> None:
    names = ("X-Tenant", "X-Tenant-Id", "tenant", "tenant_id", "X-Amzn-Tenant", "X-Forwarded-User")
    headers = {**WHO["a"], **dict.fromkeys(names, "b")}
    assert place.home.ask(f"/v1/orders/{own('b')[0]}", headers).status == 404
    assert place.ask(f"/v1/orders/{own('b')[0]}?tenant_id=b").status == 400


ROLE = "arn:aws:iam::123456789012:role/web"
SESSION = "arn:aws:sts::123456789012:assumed-role/web/session"


def test_aws_credentials_count_where_api_gateway_has_checked_them(relational: Store) -> None:
    app = shop(relational, IamAuthorizer({ROLE: "a"}))
    with in_lambda(app, SESSION) as function:
        assert function.ask("/v1/orders/3").status == 200
        assert function.ask("/v1/orders/4").status == 404
    forged = {"X-User-Arn": SESSION, "X-Amzn-Request-Context": "{}", "Authorization": f"AWS4-HMAC-SHA256 {SESSION}"}
    with in_lambda(app) as function:
        assert function.ask("/v1/orders/3", forged).status == 401
    kept, relational.reader.close = relational.reader.close, lambda: None  # type: ignore[method-assign]  # used again
    with served(app) as home:
        assert home.ask("/v1/orders/3", forged).status == 401
    relational.reader.close = kept  # type: ignore[method-assign]


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/nothing", 404),
        ("/v1/nothing/1", 404),
        ("/v1/orders/", 404),
        ("/v1/orders/1/2", 404),
        ("/v1/", 404),
        ("/", 404),
        ("/v2/orders", 404),
        ("/V1/orders", 404),
        ("/v1/orders/x", 400),
        ("/v1/orders/1,2", 400),
        ("/v1/orders/01", 400),
        ("/v1/orders/+1", 400),
        ("/v1/orders/~3", 400),
        ("/v1/orders/~FF", 400),
        ("/v1/orders/3?x=1", 400),
        ("/v1/orders/3?limit=1", 400),
        ("/v1/lines/a,x", 400),
        ("/v1/orders/" + "9" * 39, 404),
        ("/v1/orders/9007199254740993", 404),
        ("/v1/orders?limit=0", 400),
        ("/v1/orders?limit=101", 400),
        ("/v1/orders?limit=-1", 400),
        ("/v1/orders?limit=%D9%A3", 400),
        ("/v1/orders?limit=", 400),
        ("/v1/orders?limit=1&limit=2", 400),
        ("/v1/orders?country=DE", 400),
        ("/v1/orders?index=by-country", 400),
        ("/v1/orders?index=by-country&country=", 400),
        ("/v1/orders?index=by-country&country=DE&placed=x", 400),
        ("/v1/orders?index=other&country=DE", 400),
        ("/v1/orders?cursor=", 400),
        ("/v1/orders?cursor=x", 403),
        ("/v1/orders?cursor=%3D", 400),
        ("/v1/orders?cursor=" + "A" * 500, 403),
        ("/v1/orders?cursor=" + "A" * 12_289, 400),
        ("/v1/orders?" + "x" * 17_000, 414),
        ("/v1/_freshness?x=1", 400),
    ],
)
def test_what_is_not_asked_well_is_told_so(place: Place, path: str, status: int) -> None:
    answer = place.ask(path)
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert set(answer.json) == {"type", "title", "status", "detail"}
    assert answer.json["status"] == status


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_only_reading_is_possible(place: Place, method: str) -> None:
    for path in ("/v1/orders", "/v1/orders/3", "/healthz", "/openapi.json"):
        answer = place.ask(path, method=method)
        assert answer.status == 405
        assert set(re.split(", ?", answer.headers["allow"])) == {"GET", "HEAD"}
        assert answer.headers["content-type"] == "application/problem+json"


def test_nobody_known_learns_nothing(place: Place) -> None:
    for path in ("/v1/orders", "/v1/orders/3", "/v1/nothing", "/v1/_freshness", "/openapi.json", "/v1/a/b/c"):
        answer = place.ask(path, None)
        assert answer.status == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.headers["content-type"] == "application/problem+json"


def test_every_answer_has_the_same_guard(place: Place) -> None:
    for path in ("/v1/orders/3", "/v1/nothing", "/nothing", "/healthz", "/v1/orders?" + "x" * 17_000):
        headers = place.ask(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"])
        assert "server" not in headers


def test_large_headers_and_bodies_are_refused(place: Place) -> None:
    assert place.ask("/v1/orders/3", X_Large="x" * 16_000).status in (431, 400)
    assert place.ask("/v1/orders/3", Content_Length="5").status in (413,) if not isinstance(place.home, Http) else True
    assert place.ask("/v1/orders/3", Content_Length="0").status == 200


def test_who_brings_two_tokens_is_nobody(place: Place) -> None:
    """What stands before the API may have looked at the other one."""
    if not isinstance(place.home, Http):
        return
    first, second = (WHO[tenant]["Authorization"] for tenant in "ab")
    assert place.ask("/v1/orders/3", None, authorization=first, Authorization=second).status == 401


def test_a_body_over_http_is_refused_before_it_is_read(place: Place) -> None:
    if not isinstance(place.home, Http):
        return
    for framing in ("Content-Length: 1000000000000", "Transfer-Encoding: chunked"):
        with socket.create_connection((LOOPBACK, place.home.port), timeout=10) as wire:
            wire.sendall(f"GET /v1/orders/3 HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode())
            assert wire.recv(100).startswith(b"HTTP/1.1 413 ")


def test_the_same_row_is_the_same_json_in_both_stores(relational: Store, items: Store) -> None:
    values: list[Value] = [100, "DE", "1900-01-01T00:00:00.000", "0.10", 'é😀\n"\\', "a"]
    for each in (relational, items):
        each.write.put(ORDERS, [values])
        assert each.reader.get(ORDERS, [100], None) == values
        each.write.delete(ORDERS, 100)
