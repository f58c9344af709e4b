"""The demo's legacy shop: a database as such shops have them, and people who work with it all day."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import Any, Final

from upwell.app.demo.databases import Clash, Connection, Database

CUSTOMERS: Final = 400
PRODUCTS: Final = 250
ORDERS: Final = 600
ORDERS_MAX: Final = 900  # beyond this, somebody tidies up
PAUSE_S: Final = 0.12  # between two transactions of a person, on average

_FIRST = ("Ada", "Zoë", "Jürgen", "Siobhán", "Łukasz", "Nadia", "Bjørn", "Inês", "Milan", "Ayşe", "Kenji", "Rosa")
_LAST = ("O'Brien", "Müller", "Nowak", "Sørensen", "Costa", "Öztürk", "Tanaka", "de Vries", "Novák", "Smith", "García")
_STREETS = ("Harbour Road", "Mill Lane", "Lindenstraße", "Rua da Praia", "Nygata", "Station Street", "Église Square")
_CITIES = ("Cork", "Bremen", "Porto", "Bergen", "Gdańsk", "Leiden", "İzmir", "Brno", "Nagoya", "Oviedo")
_THINGS = ("lamp", "kettle", "rope", "lantern", "anchor", "barometer", "teapot", "compass", "blanket", "sextant")
_LOOKS = ("brass", "blue", "oiled", "small", "folding", "heavy", "enamelled", "second-hand")
_NOTES = (
    None,
    "",
    "calls in the morning\nnever after 5",
    'wants the "old" catalogue',
    "pays late\tpays always",
    "likes 🫖, hates \\backslashes\\",
    "moved twice; see letter of 3 March",
)
_NEXT_STATUS = {"new": "paid", "paid": "packed", "packed": "shipped", "shipped": "delivered"}


def fill_shop(database: Database, rng: random.Random) -> None:
    """Some years of business in an empty database."""
    customers = [_customer(rng, number) for number in range(1, CUSTOMERS + 1)]
    products = [_product(rng, number) for number in range(1, PRODUCTS + 1)]
    orders, all_lines = [], []
    for order in range(1, ORDERS + 1):
        lines = [
            (order, line_no, sku, rng.randint(1, 9), price, _now())
            for line_no, (sku, _, price, *_) in enumerate(rng.choices(products, k=rng.randint(1, 4)), start=1)
        ]
        orders.append((order, rng.randint(1, CUSTOMERS), "new", _total(lines), _now()))
        all_lines += lines
    with closing(database.connect()) as connection, connection.transaction():
        connection.insert("customers", customers)
        connection.insert("products", products)
        connection.insert("orders", orders)
        connection.insert("order_lines", all_lines)


class Person(threading.Thread):
    """Somebody who works with the shop's database until told to stop."""

    def __init__(self, database: Database, rng: random.Random, stop: threading.Event) -> None:
        super().__init__(name=f"person at {database.branch}", daemon=True)
        self._database = database
        self._rng = rng
        self._stop_working = stop
        self.rows_changed = 0  # committed so far
        self.error: BaseException | None = None  # why this person no longer works

    def run(self) -> None:
        try:
            with closing(self._database.connect()) as connection:
                self._work(connection)
        except BaseException as error:
            self.error = error
            raise

    def _work(self, connection: Connection) -> None:
        work = Work(connection, self._rng)
        while not self._stop_working.wait(self._rng.expovariate(1 / PAUSE_S)):
            try:
                with connection.transaction():
                    work.something()
            except (Clash, ThoughtBetter):
                work.rows_changed = 0
            self.rows_changed += work.rows_changed
            work.rows_changed = 0


class ThoughtBetter(Exception):
    """A person cancels what was entered: the transaction rolls back."""


class Work:
    """What people in the shop do; each inside a transaction of the caller's."""

    def __init__(self, connection: Connection, rng: random.Random) -> None:
        self._connection = connection
        self._rng = rng
        self.rows_changed = 0
        self._usual: Sequence[tuple[Callable[[], None], int]] = (  # what, how often
            (self.new_order, 20),
            (self.advance_order, 40),
            (self.change_price, 15),
            (self.customer_moves, 12),
            (self.take_stock, 10),
            (self.note_something, 8),
            (self.change_lines, 8),
            (self.cancel_order, 5),
            (self.new_customer, 4),
            (self.swap_emails, 3),
            (self.new_catalogue_entry, 3),
            (self.forget_customer, 2),
            (self.raise_prices, 1),
        )

    def something(self) -> None:
        """Whatever comes next; sometimes they think better of it."""
        todo = [what for what, _ in self._usual]
        self._rng.choices(todo, [often for _, often in self._usual])[0]()
        if self._rng.random() < 0.03:
            raise ThoughtBetter

    def new_order(self) -> None:
        order = self._one("SELECT coalesce(max(id), 0) + 1 FROM orders")
        (customer,) = self._any("customers", "id")
        lines = []
        for line_no in range(1, self._rng.randint(1, 4) + 1):
            sku, price = self._any("products", "sku, price")
            lines.append((order, line_no, sku, self._rng.randint(1, 9), price, _now()))
            self._change(
                "UPDATE products SET stock = stock - ?, changed_at = ? WHERE sku = ?", lines[-1][3], _now(), sku
            )
        self._insert("orders", (order, customer, "new", _total(lines), _now()))
        self._insert("order_lines", *lines)
        if order > ORDERS and self._one("SELECT count(*) FROM orders") > ORDERS_MAX:
            self._remove_order(self._one("SELECT min(id) FROM orders"))

    def advance_order(self) -> None:
        order, status = self._any("orders", "id, status")
        following = _NEXT_STATUS.get(status, "new")
        self._change("UPDATE orders SET status = ?, changed_at = ? WHERE id = ?", following, _now(), order)

    def change_price(self) -> None:
        price = round(self._rng.uniform(0.5, 250), 2)
        (sku,) = self._any("products", "sku")
        self._change("UPDATE products SET price = ?, changed_at = ? WHERE sku = ?", price, _now(), sku)

    def raise_prices(self) -> None:
        """Many rows in one statement."""
        thing = f"%{self._rng.choice(_THINGS)}"
        self._change(
            "UPDATE products SET price = round(price * 1.03, 2), changed_at = ? WHERE name LIKE ?", _now(), thing
        )

    def customer_moves(self) -> None:
        street, city = _street(self._rng), self._rng.choice(_CITIES)
        (customer,) = self._any("customers", "id")
        self._change(
            "UPDATE customers SET street = ?, city = ?, changed_at = ? WHERE id = ?", street, city, _now(), customer
        )

    def take_stock(self) -> None:
        """What is counted is often what was there."""
        (sku,) = self._any("products", "sku")
        found = self._rng.choice((0, 0, 1, -1, 50))
        self._change("UPDATE products SET stock = stock + ?, changed_at = ? WHERE sku = ?", found, _now(), sku)

    def note_something(self) -> None:
        (customer,) = self._any("customers", "id")
        notes, credit = self._rng.choice(_NOTES), round(self._rng.uniform(-50, 500), 2)
        self._change(
            "UPDATE customers SET notes = ?, credit = ?, changed_at = ? WHERE id = ?", notes, credit, _now(), customer
        )

    def change_lines(self) -> None:
        """A line goes, those below move up: their keys change."""
        order, line_no = self._any("order_lines", "order_id, line_no")
        self._change("DELETE FROM order_lines WHERE order_id = ? AND line_no = ?", order, line_no)
        below = "SELECT line_no FROM order_lines WHERE order_id = ? AND line_no > ? ORDER BY line_no"
        for (number,) in self._connection.rows(below, order, line_no):
            self._change(
                "UPDATE order_lines SET line_no = ?, changed_at = ? WHERE order_id = ? AND line_no = ?",
                number - 1, _now(), order, number,
            )  # fmt: skip

    def cancel_order(self) -> None:
        self._remove_order(*self._any("orders", "id"))

    def new_customer(self) -> None:
        number = self._one("SELECT max(id) + 1 FROM customers")
        self._insert("customers", _customer(self._rng, number))

    def forget_customer(self) -> None:
        """A customer goes with all orders; some come back at once, under the same number."""
        (customer,) = self._any("customers", "id")
        for (order,) in self._connection.rows("SELECT id FROM orders WHERE customer_id = ?", customer):
            self._remove_order(order)
        self._change("DELETE FROM customers WHERE id = ?", customer)
        if self._rng.random() < 0.5:
            self._insert("customers", _customer(self._rng, customer))

    def swap_emails(self) -> None:
        """Two customers exchange a value that must be unique."""
        one, other = self._connection.some("id, email", "customers", 2)
        for email, customer in ((f"swap-{one[0]}", one[0]), (one[1], other[0]), (other[1], one[0])):
            self._change("UPDATE customers SET email = ?, changed_at = ? WHERE id = ?", email, _now(), customer)

    def new_catalogue_entry(self) -> None:
        """A product that exists goes and comes back."""
        product = _product(self._rng, self._rng.randint(1, PRODUCTS + 20))
        self.rows_changed += self._connection.replace("products", "sku", product)

    def _remove_order(self, order: int) -> None:
        self._change("DELETE FROM order_lines WHERE order_id = ?", order)
        self._change("DELETE FROM orders WHERE id = ?", order)

    def _change(self, statement: str, *values: object) -> None:
        self.rows_changed += self._connection.change(statement, *values)

    def _insert(self, table: str, *rows: Sequence[object]) -> None:
        self.rows_changed += self._connection.insert(table, rows)

    def _one(self, query: str) -> Any:
        return self._connection.rows(query)[0][0]

    def _any(self, table: str, columns: str) -> Any:
        return self._connection.some(columns, table)[0]


def _total(lines: Sequence[Any]) -> Any:
    """Of an order's lines."""
    return round(sum(quantity * price for _, _, _, quantity, price, _ in lines), 2)


def _customer(rng: random.Random, number: int) -> tuple[object, ...]:
    name = f"{rng.choice(_FIRST)} {rng.choice(_LAST)}"
    email = f"customer{number}.{rng.randrange(10**6)}@example.com"
    credit = round(rng.uniform(-50, 500), 2)
    return number, email, name, _street(rng), rng.choice(_CITIES), credit, rng.choice(_NOTES), _now()


def _product(rng: random.Random, number: int) -> tuple[object, ...]:
    weight = rng.choice((None, round(rng.uniform(0.01, 40), 3)))
    picture = rng.choice((None, rng.randbytes(24)))
    name = f"{rng.choice(_LOOKS)} {rng.choice(_THINGS)}"
    return f"SKU-{number:05}", name, round(rng.uniform(0.5, 250), 2), weight, rng.randint(0, 500), picture, _now()


def _street(rng: random.Random) -> str:
    return f"{rng.choice(_STREETS)} {rng.randint(1, 199)}"


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
