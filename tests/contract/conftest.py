"""A SQL Server for the suite of what upwell relies on, once with each client."""

from collections.abc import Iterator

import pytest

from tests.contract.sqlserver_clients import CLIENTS, Client, Tracked, connect, new_database, tracked


@pytest.fixture(scope="module", params=CLIENTS)
def client_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def sqlserver_database(client_name: str, sqlserver: str) -> Iterator[str]:
    """For the tests of one client in one file, which run one after the other."""
    owner = connect(client_name, sqlserver)
    with new_database(owner, snapshots=True) as name:
        yield name
    owner.close()


@pytest.fixture
def mssql(client_name: str, sqlserver: str, sqlserver_database: str) -> Iterator[Client]:
    connection = connect(client_name, sqlserver, sqlserver_database)
    yield connection
    connection.close()


@pytest.fixture
def mssql_other(client_name: str, sqlserver: str, sqlserver_database: str) -> Iterator[Client]:
    """A second connection to the same database."""
    connection = connect(client_name, sqlserver, sqlserver_database)
    yield connection
    connection.close()


@pytest.fixture
def tracked_table(mssql: Client) -> Tracked:
    """(id, a, b) with rows 1, 2, 3, which came at version 1."""
    return tracked(mssql)


@pytest.fixture
def fresh(client_name: str, sqlserver: str) -> Iterator[Client]:
    """In a tracked database of its own."""
    owner = connect(client_name, sqlserver)
    with new_database(owner, snapshots=True) as name:
        connection = connect(client_name, sqlserver, name)
        yield connection
        connection.close()
    owner.close()
