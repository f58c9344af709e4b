"""The demo's databases: people work in each of them alike, and see what they did."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pytest

from tests.sqlserver_databases import connect as connect_to_sqlserver
from upwell.app.demo.databases import TABLES, Clash, Connection, Database, new_database
from upwell.app.demo.equality import Tables, compare, read_shop
from upwell.app.demo.processes import DemoFailed
from upwell.app.demo.shop import Person, ThoughtBetter, Work, fill_shop

NOW = datetime.fromisoformat("2026-01-31T10:00:00.123")
CUSTOMER = (1, "ada@example.com", "Zoë 🫖", None, "", -12.5, "a\tb\n'c'", NOW)


@pytest.fixture(params=["SQLite", "SQL Server"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    source = request.getfixturevalue("sqlserver") if request.param == "SQL Server" else None
    with closing(new_database(source, "north", tmp_path)) as database:
        yield database


@pytest.fixture
def connection(shop: Database) -> Iterator[Connection]:
    with closing(shop.connect()) as connection:
        yield connection


def reading(shop: Database) -> Tables:
    with closing(shop.connect()) as connection:
        return read_shop(connection)


def test_values_come_back_as_they_went_in(shop: Database, connection: Connection) -> None:
    products = [("SKU-1", "?", 0.1, 0.1 + 0.2, -7, b"\x00\xff", NOW), ("SKU-2", "two", 250.0, None, 0, None, NOW)]
    assert connection.insert("customers", [CUSTOMER]) == 1
    assert connection.insert("products", products) == 2
    at = "2026-01-31T10:00:00.123" + ("Z" if shop.maker == "SQLite" else "")
    found = read_shop(connection)
    one = Decimal(1)
    assert found["customers"] == {(one,): (one, *CUSTOMER[1:5], Decimal("-12.5"), CUSTOMER[6], at)}
    assert found["products"] == {
        ("SKU-1",): ("SKU-1", "?", Decimal("0.1"), Decimal("0.30000000000000004"), Decimal(-7), b"\x00\xff", at),
        ("SKU-2",): ("SKU-2", "two", Decimal(250), None, Decimal(0), None, at),
    }


def test_it_says_how_many_rows_a_change_was_about(connection: Connection) -> None:
    connection.insert("customers", [CUSTOMER, (2, "b", *CUSTOMER[2:])])
    assert connection.change("UPDATE customers SET name = ? WHERE id > ?", "Ada", 0) == 2
    assert connection.change("UPDATE customers SET name = ? WHERE id > ?", "Ada", 2) == 0
    assert connection.change("DELETE FROM customers WHERE email = ?", "b") == 1
    assert len(connection.some("id, email", "customers", 2)) == 1


def test_a_row_that_is_replaced_counts_once(connection: Connection) -> None:
    for price in (1, 2):
        row = ("SKU-1", "lamp", price, None, 1, None, NOW)
        with connection.transaction():
            assert connection.replace("products", "sku", row) == 1
    assert [tuple(row) for row in connection.rows("SELECT sku, price FROM products")] == [("SKU-1", 2)]


def test_what_two_had_the_idea_to_do_is_rolled_back_for_one(shop: Database, connection: Connection) -> None:
    connection.insert("customers", [CUSTOMER])

    def clash() -> None:
        with connection.transaction():
            connection.change("UPDATE customers SET name = 'never seen'")
            connection.insert("customers", [CUSTOMER])

    with pytest.raises(Clash):
        clash()
    assert [row[2] for row in reading(shop)["customers"].values()] == [CUSTOMER[2]]
    with connection.transaction():
        assert connection.change("UPDATE customers SET name = 'Ada'") == 1
    assert [row[2] for row in reading(shop)["customers"].values()] == ["Ada"]


def test_a_reading_is_of_one_moment(shop: Database, connection: Connection) -> None:
    connection.insert("customers", [CUSTOMER])
    with closing(shop.connect()) as other, connection.transaction(reading=True):
        assert len(connection.rows("SELECT id FROM customers")) == 1
        with other.transaction():
            other.insert("customers", [(2, "b", *CUSTOMER[2:])])
            other.insert("products", [("SKU-1", "lamp", 1, None, 1, None, NOW)])
        assert len(connection.rows("SELECT id FROM customers")) == 1
        assert connection.rows("SELECT sku FROM products") == []
    assert len(reading(shop)["products"]) == 1


def test_people_in_a_deadlock_get_in_each_others_way(sqlserver: str, tmp_path: Path) -> None:
    with closing(new_database(sqlserver, "north", tmp_path)) as shop:
        with closing(shop.connect()) as connection:
            connection.insert("customers", [CUSTOMER, (2, "b", *CUSTOMER[2:])])
        both_hold_one, clashes = threading.Barrier(2, timeout=30), []

        def work(first: int, second: int) -> None:
            with closing(shop.connect()) as connection:
                try:
                    with connection.transaction():
                        connection.change("UPDATE customers SET city = 'x' WHERE id = ?", first)
                        both_hold_one.wait()
                        connection.change("UPDATE customers SET city = 'x' WHERE id = ?", second)
                except Clash as clash:
                    clashes.append(clash)
                assert connection.change("UPDATE customers SET city = 'y' WHERE id = ?", first) == 1

        threads = [threading.Thread(target=work, args=pair) for pair in ((1, 2), (2, 1))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(clashes) == 1
        assert [row[4] for row in reading(shop)["customers"].values()] == ["y", "y"]


def test_a_shop_has_some_years_of_business_and_is_equal_to_itself(shop: Database) -> None:
    fill_shop(shop, random.Random(1))
    found = reading(shop)
    assert [len(found[name]) >= count for name, count in zip(TABLES, (400, 250, 600, 600), strict=True)] == [True] * 4
    assert {type(row[2]) for row in found["products"].values()} == {Decimal}
    assert compare(lambda: found, lambda: reading(shop)).equal


def test_people_count_each_row_that_they_change(shop: Database, connection: Connection) -> None:
    fill_shop(shop, random.Random(2))
    work = Work(connection, random.Random(3))
    todo = [what for what, _ in work._usual]
    for do in todo:
        before, counted = reading(shop), work.rows_changed
        with connection.transaction():
            do()
        after = reading(shop)
        other = {
            (name, key)
            for name in TABLES
            for key in before[name].keys() | after[name].keys()
            if before[name].get(key) != after[name].get(key)
        }
        # A row that changes twice, or goes and comes back, counts each time.
        assert work.rows_changed - counted >= len(other), do.__name__
        assert other or work.rows_changed == counted, do.__name__
    assert work.rows_changed > len(todo)


def test_sqlite_counts_the_rows_as_people_do(tmp_path: Path) -> None:
    shop = new_database(None, "north", tmp_path)
    fill_shop(shop, random.Random(2))
    with closing(shop.connect()) as connection:
        work = Work(connection, random.Random(3))
        total = "SELECT total_changes()"
        before = connection.rows(total)[0][0]
        for _ in range(400):
            try:
                work.something()
            except ThoughtBetter:
                continue
        # REPLACE removes a row besides, which SQLite counts in neither.
        assert work.rows_changed == connection.rows(total)[0][0] - before > 400


def test_people_work_until_they_are_sent_home(shop: Database) -> None:
    fill_shop(shop, random.Random(4))
    before = reading(shop)
    go_home = threading.Event()
    people = [Person(shop, random.Random(number), go_home) for number in range(3)]
    for person in people:
        person.start()
    deadline = time.monotonic() + 60
    while min(person.rows_changed for person in people) < 5:
        assert [person.error for person in people] == [None] * 3
        assert time.monotonic() < deadline
        time.sleep(0.01)
    go_home.set()
    for person in people:
        person.join()
    assert [person.error for person in people] == [None] * 3
    assert not compare(lambda: before, lambda: reading(shop)).equal


def test_in_the_end_it_is_gone_with_whoever_uses_it(sqlserver: str, tmp_path: Path) -> None:
    shop = new_database(sqlserver, "north", tmp_path)
    with closing(shop.connect()) as held, connect_to_sqlserver(sqlserver) as master:
        held.change("BEGIN TRANSACTION")
        held.insert("customers", [CUSTOMER])
        name = shop.url.partition("?")[0].rpartition("/")[2]
        query = f"SELECT name FROM sys.databases WHERE name = '{name}'"
        assert len(master.all(query)) == 1
        shop.close()
        assert master.all(query) == []


def test_a_database_that_can_not_be_dropped_is_named(sqlserver: str, tmp_path: Path) -> None:
    shop = new_database(sqlserver, "north", tmp_path)
    name = shop.url.partition("?")[0].rpartition("/")[2]
    with connect_to_sqlserver(sqlserver) as master:
        master.run(f"DROP DATABASE {name}")
    with pytest.raises(DemoFailed) as error:
        shop.close()
    assert name in error.value.message
    assert error.value.remedy == f"DROP DATABASE [{name}];"
    assert "sa:" not in str(error.value)
