"""PostgresTarget passes the contract of ports.Target."""

from collections.abc import Iterator
from typing import Any

import pytest

from lab.parts import PostgresServer
from tests.contract.target_contract import TargetContract
from upwell.ports import ShardCheckpoints, Target
from upwell.targets.postgres import PostgresTarget
from upwell.targets.postgres_shards import PostgresShardCheckpoints


class TestPostgresTarget(TargetContract):
    @pytest.fixture(autouse=True)
    def _server(self, postgres_cluster: PostgresServer) -> None:
        self.server = postgres_cluster

    @pytest.fixture
    def target(self, database: str, postgres_cluster: PostgresServer) -> Iterator[PostgresTarget]:
        target = PostgresTarget(postgres_cluster.url(database), create_tables=True, schema_changes="apply")
        yield target
        target.close()

    def rows(self, database: str, table: str) -> list[tuple[Any, ...]]:
        with self.server.connect(database) as connection:
            return connection.execute(f"SELECT * FROM public.{table} ORDER BY 1").fetchall()

    def make_unique(self, database: str, table: str, column: str) -> None:
        with self.server.connect(database) as connection:
            connection.execute(f"CREATE UNIQUE INDEX ON public.{table} ({column})")

    def letters(self, database: str) -> list[bytes]:
        with self.server.connect(database) as connection:
            return [payload for (payload,) in connection.execute("SELECT payload FROM upwell.dead_letter").fetchall()]

    def checkpoints(self, target: Target) -> ShardCheckpoints:
        assert isinstance(target, PostgresTarget)
        return PostgresShardCheckpoints(target)
