"""Both readers pass the contract of ports.Reader, over real stores."""

from collections.abc import Iterator

import pytest

from lab.parts import PostgresServer
from tests.contract.reader_contract import ReaderContract
from tests.read_rows import Store, dynamodb_store, new_database, postgres_store


@pytest.fixture(scope="module")
def items(indexing_dynamodb_endpoint: str) -> Iterator[Store]:
    with dynamodb_store(indexing_dynamodb_endpoint) as store:
        yield store


@pytest.fixture(scope="module")
def relational(postgres_cluster: PostgresServer) -> Iterator[Store]:
    with new_database(postgres_cluster) as database, postgres_store(postgres_cluster, database) as store:
        yield store


class TestDynamoDb(ReaderContract):
    @pytest.fixture
    def store(self, items: Store) -> Store:
        return items


class TestPostgres(ReaderContract):
    @pytest.fixture
    def store(self, relational: Store) -> Store:
        return relational
