"""Logging in to a PostgreSQL target with a token in place of a password, over TLS, anew for each connection."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch
from urllib.parse import parse_qs, urlsplit

import boto3
import psycopg
import pytest
import trustme

from lab import find
from lab.parts import PostgresCluster
from upwell.aws import DatabaseTokens
from upwell.errors import OperatorError, TransientError
from upwell.targets.postgres import PostgresTarget

KEYS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret+/=", "AWS_SESSION_TOKEN": "session/+="}


@pytest.fixture(scope="module")
def cluster() -> Iterator[PostgresCluster]:
    """It admits the role `iam` over TLS only, with a password."""
    certificate = trustme.CA().issue_cert("127.0.0.1")
    with PostgresCluster(bin_dir=find.system_postgres_bin()) as cluster:
        certificate.cert_chain_pems[0].write_to_path(cluster.data_dir / "server.crt")
        key = cluster.data_dir / "server.key"
        certificate.private_key_pem.write_to_path(key)
        owner = (cluster.data_dir / "PG_VERSION").stat()
        os.chown(key, owner.st_uid, owner.st_gid)
        key.chmod(0o600)
        rules = cluster.data_dir / "pg_hba.conf"
        rules.write_text("hostssl all iam all scram-sha-256\nhost all iam all reject\n" + rules.read_text())
        with cluster.connect() as connection:
            connection.execute("CREATE ROLE iam LOGIN")
            connection.execute("CREATE DATABASE shop OWNER iam")
            connection.execute("ALTER SYSTEM SET ssl = on")
        cluster.restart()
        yield cluster


def url_of(cluster: PostgresCluster, options: str = "") -> str:
    parts = urlsplit(cluster.url("shop"))
    return f"postgresql://iam@127.0.0.1:{parts.port}/shop{options}"


class Tokens:
    """Each is the role's password until the next one is made."""

    def __init__(self, cluster: PostgresCluster) -> None:
        self.cluster = cluster
        self.asked: list[tuple[str, str, str]] = []

    def __call__(self, host: str, port: str, user: str) -> str:
        self.asked.append((host, port, user))
        token = f"token-{len(self.asked)}"
        with self.cluster.connect() as connection:
            connection.execute(psycopg.sql.SQL("ALTER ROLE iam PASSWORD {}").format(token))
        return token


def test_each_connection_has_a_token_of_its_own_and_tls(cluster: PostgresCluster) -> None:
    tokens = Tokens(cluster)
    target = PostgresTarget(
        url_of(cluster), create_tables=True, schema_changes="apply", connections_max=1, password=tokens
    )
    target.check()
    with target.session() as session:
        assert session.encrypted
    assert len(tokens.asked) == 1, "a connection that lives needs no other one"
    assert tokens.asked[0][2] == "iam"
    with cluster.connect() as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'iam'")
    with pytest.raises(TransientError), target.session() as session:
        session.run("SELECT 1")
    with target.session() as session:
        assert session.run("SELECT 1") == [(1,)]
    target.close()
    assert len(tokens.asked) == 2


def test_without_tls_no_token_goes_out(cluster: PostgresCluster) -> None:
    """`require` where the URL says nothing: libpq would else go on in the clear with a server that has no TLS."""
    with PostgresCluster() as plain:
        target = PostgresTarget(
            plain.url(),
            create_tables=True,
            schema_changes="apply",
            password=lambda *_: "token",
        )
        with pytest.raises(OperatorError) as error:
            target.check()
        assert error.value.code == "UW-PT-025"


def test_a_token_is_what_aws_s_own_tools_make(tmp_path: Path) -> None:
    with patch.dict(os.environ, KEYS):
        client = boto3.client("rds", region_name="eu-west-1")
        for _ in range(5):  # both within one second
            ours = DatabaseTokens("eu-west-1").token("db.example", "5432", "app user")
            theirs = client.generate_db_auth_token("db.example", 5432, "app user")
            if _asked(ours)["X-Amz-Date"] == _asked(theirs)["X-Amz-Date"]:
                break
        assert _asked(ours) == _asked(theirs)
        assert ours.startswith("db.example:5432/?")


def _asked(token: str) -> dict[str, list[str]]:
    return parse_qs(urlsplit(f"https://{token}").query)
