"""Databases for pipelines."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest

from lab.parts import PostgresServer

NewDatabase = Callable[[], str]


@pytest.fixture(scope="module")
def new_database(postgres_cluster: PostgresServer) -> Iterator[NewDatabase]:
    """Makes an empty database and returns its URL; afterwards it goes with its sessions and replication slots."""
    names: list[str] = []

    def create() -> str:
        names.append(f"acceptance_{uuid.uuid4().hex[:12]}")
        return postgres_cluster.create_database(names[-1])

    yield create
    for name in names:
        postgres_cluster.drop_database(name)
