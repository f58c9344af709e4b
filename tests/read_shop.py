"""The read API of a shop with three tenants, over whichever store."""

from tests.identity_provider import AUDIENCE, ISSUER, IdentityProvider
from tests.read_rows import BY_COUNTRY, COUNTRIES, LINES, ORDERS, PIPELINE, Store
from upwell.clock import SystemClock
from upwell.cloud.authorization import Authorizer, JwtAuthorizer
from upwell.cloud.guard import Guard
from upwell.cloud.jwks import Jwks
from upwell.cloud.read_api import Limits, create_app
from upwell.exposure import ExposedTable, Wanted, expose
from upwell.model import Value
from upwell.ports import Clock, ReadIndex

CURSOR_KEY = "0123456789abcdef0123456789abcdef"
TENANTS = ("a", "b", "c")
INDEXES = {name: ReadIndex(name, *columns) for name, columns in BY_COUNTRY.items()}
TABLES = [
    expose("orders", Wanted(ORDERS.table, ("id", "country", "placed", "total", "note"), "tenant_id", INDEXES), ORDERS),
    expose("lines", Wanted(LINES.table, ("sku", "line", "amount"), "tenant_id", {}), LINES),
    expose("countries", Wanted(COUNTRIES.table, ("code", "name"), None, {}), COUNTRIES),
]
MOMENT = "2026-01-31T10:00:00.500"


def order(number: int, tenant: str, country: str = "DE") -> list[Value]:
    return [number, country, MOMENT, "12.50", f"note {number}", tenant]


def fill(store: Store) -> None:
    """Orders 1 to 30 and lines of three tenants in turn."""
    store.write.put(ORDERS, [order(n, TENANTS[n % 3], ("DE", "FR")[n % 2]) for n in range(1, 31)])
    store.write.put(LINES, [[tenant, f"sku {n}", n, n] for tenant in TENANTS for n in range(5)])
    store.write.put(COUNTRIES, [["DE", "Germany"], ["a/b,~c?&=%+ é", "odd"]])
    store.write.beat("2026-01-31T10:00:00Z", ["dbo.order_lines"])


def by_token(provider: IdentityProvider, clock: Clock | None = None) -> JwtAuthorizer:
    return JwtAuthorizer(ISSUER, AUDIENCE, "tenant", Jwks(provider.fetch, clock or SystemClock()))


def shop(
    store: Store,
    authorizer: Authorizer,
    *,
    tables: list[ExposedTable] = TABLES,
    per_s: float = 10_000,
    page: int = 100,
    answer_bytes: int | None = None,
    clock: Clock | None = None,
) -> Guard:
    return create_app(
        PIPELINE,
        tables,
        store.reader,
        authorizer,
        cursor_key=CURSOR_KEY,
        limits=Limits(page, per_s, answer_bytes),
        clock=clock or SystemClock(),
    )
