"""What doctor says of the way to a PostgreSQL: encrypted or not, and whether it was checked who is there."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
import trustme

from lab import find
from lab.parts import PostgresCluster
from upwell.model import Finding, TableName, TableSelection
from upwell.sources import postgres_setup
from upwell.targets.postgres import PostgresTarget

# An address of this machine that is not the loopback interface's: to libpq, and to us, it is another machine's.
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as _probe:
    try:
        _probe.connect(("192.0.2.1", 9))  # sends nothing
        ADDRESS = str(_probe.getsockname()[0])
    except OSError:  # there is no network at all
        ADDRESS = ""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path]:
    made = trustme.CA()
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    made.cert_pem.write_to_path(path)
    return made, path


@pytest.fixture(scope="module")
def cluster(authority: tuple[trustme.CA, Path]) -> Iterator[PostgresCluster]:
    """It speaks TLS on all of this machine's addresses, and not on demand only."""
    certificate = authority[0].issue_cert("127.0.0.1", *([ADDRESS] if ADDRESS else []))
    with PostgresCluster({"listen_addresses": "*"}, bin_dir=find.system_postgres_bin()) as cluster:
        certificate.cert_chain_pems[0].write_to_path(cluster.data_dir / "server.crt")
        key = cluster.data_dir / "server.key"
        certificate.private_key_pem.write_to_path(key)
        owner = (cluster.data_dir / "PG_VERSION").stat()
        os.chown(key, owner.st_uid, owner.st_gid)
        key.chmod(0o600)
        with (cluster.data_dir / "pg_hba.conf").open("a") as rules:
            rules.write("host all all all scram-sha-256\n")
        with cluster.connect() as connection:
            connection.execute("ALTER SYSTEM SET ssl = on")
        cluster.restart()
        yield cluster


def said(url: str) -> list[Finding]:
    """By the source's and by the target's side."""
    tables = [TableSelection(TableName("", "t"))]
    source = postgres_setup.findings(url, tables=tables, slot="s", publication="p")
    target = PostgresTarget(url, create_tables=True, schema_changes="apply")
    try:
        found = [*source, *target.findings([])]
    finally:
        target.close()
    return [finding for finding in found if finding.code in ("UW-PG-050", "UW-PT-101")]


def elsewhere(cluster: PostgresCluster, options: str) -> str:
    parts = urlsplit(cluster.url())
    return urlunsplit(parts._replace(netloc=parts.netloc.replace("127.0.0.1", ADDRESS), query=options))


def test_on_this_machine_nothing_is_asked_for(cluster: PostgresCluster) -> None:
    findings = said(cluster.url() + "?sslmode=disable")
    assert [finding.level for finding in findings] == ["pass", "pass"]
    assert all("does not leave this machine" in finding.sentence for finding in findings)


@pytest.mark.parametrize(
    ("options", "level", "sentence"),
    [
        ("sslmode=disable", "warn", "is not encrypted"),
        ("", "warn", "was not checked"),  # libpq's default
        ("sslmode=require", "warn", "was not checked"),
        ("sslmode=verify-full&sslrootcert={ca}", "pass", "was checked"),
        ("sslmode=verify-ca&sslrootcert={ca}", "pass", "was checked"),
    ],
)
def test_on_another_machine(
    cluster: PostgresCluster, authority: tuple[trustme.CA, Path], options: str, level: str, sentence: str
) -> None:
    assert ADDRESS, "this machine has no address but the loopback interface's"
    findings = said(elsewhere(cluster, options.format(ca=authority[1])))
    assert [finding.level for finding in findings] == [level, level], findings
    assert all(sentence in finding.sentence for finding in findings)
    assert all("verify-full" in finding.remedy for finding in findings if level == "warn")
