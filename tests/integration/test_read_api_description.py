"""The API does what its description says, and refuses what that does not allow: schemathesis asks, in both homes.

SCHEMATHESIS_EXAMPLES=100 makes it ask more; `make test` is content with little.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.parts import PostgresServer
from tests.identity_provider import IdentityProvider
from tests.read_homes import Http, gateway, served
from tests.read_rows import dynamodb_store, new_database, postgres_store
from tests.read_shop import by_token, fill, shop

EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "4")


@contextmanager
def relational(server: PostgresServer, provider: IdentityProvider) -> Iterator[Http]:
    with new_database(server) as database, postgres_store(server, database) as store:
        fill(store)
        with served(shop(store, by_token(provider))) as home:
            yield home


@contextmanager
def serverless(endpoint: str, provider: IdentityProvider) -> Iterator[Http]:
    with dynamodb_store(endpoint) as store:
        fill(store)
        with gateway(shop(store, by_token(provider))) as home:
            yield home


@pytest.mark.parametrize("kind", ["relational", "serverless"])
def test_nothing_is_found(
    kind: str, postgres_cluster: PostgresServer, indexing_dynamodb_endpoint: str, tmp_path: Path
) -> None:
    provider = IdentityProvider()
    token = provider.bearer(tenant="a")["Authorization"]
    made = (
        relational(postgres_cluster, provider)
        if kind == "relational"
        else serverless(indexing_dynamodb_endpoint, provider)
    )
    with made as home:
        done = subprocess.run(
            [
                Path(sys.executable).with_name("schemathesis"),
                *("run", f"http://127.0.0.1:{home.port}/openapi.json", "-H", f"Authorization: {token}"),
                *("--max-examples", EXAMPLES, "--generation-database", "none", "--seed", "1", "--no-color"),
                "--continue-on-failure",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Tested: 8" in done.stdout
    assert " failures" not in done.stdout
