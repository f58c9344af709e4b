"""A target in a database of its own, and a person's own connection to that database."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from lab.parts import PostgresServer
from upwell.targets.postgres import PostgresTarget


@pytest.fixture
def url(database: str, postgres_cluster: PostgresServer) -> str:
    return postgres_cluster.url(database)


@pytest.fixture
def target(url: str) -> Iterator[PostgresTarget]:
    target = PostgresTarget(url, create_tables=True, schema_changes="apply")
    yield target
    target.close()


@pytest.fixture
def sql(url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection
