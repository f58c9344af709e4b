"""Real servers for tests, started when the first test asks for one.

UPWELL_TEST_POSTGRES_URL, UPWELL_TEST_KINESIS_URL, UPWELL_TEST_DYNAMODB_URL and UPWELL_TEST_SQLSERVER_URL name servers
to use instead. A server that is missing fails the tests that need it: nothing is skipped.
"""

import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings

from lab.faults import FaultProxy
from lab.ministack import Ministack
from lab.part import Part
from lab.parts import (
    REGION,
    DynamoDbLocal,
    Kinesalite,
    PostgresCluster,
    PostgresServer,
    StandinDynamoDb,
    StandinKinesis,
    StandinSqlServer,
)
from tests.proofs import Servers
from tests.stack_deployed import BUCKET

P = TypeVar("P", bound=Part)

# Of the two ODBC drivers that mssql-python brings, the one that needs no libltdl on the machine.
os.environ.setdefault("MSSQL_PYTHON_NATIVE_PROVIDER", "mssql-odbc")

# A busy machine is no finding: neither how long an example takes nor how long it takes to make one. The examples of a
# test share its fixtures on purpose: one database or one folder, many rows.
settings.register_profile(
    "upwell", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("upwell")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """No test is left out without a word."""
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        terminalreporter.section(f"NOT TESTED: {report.nodeid}", red=True, bold=True)
        terminalreporter.write_line(str(reason))


@pytest.fixture(scope="session")
def postgres_cluster(shared_folder: Path) -> Iterator[PostgresServer]:
    """A PostgreSQL server with logical replication that all tests share; to stop one, make a `PostgresCluster`."""
    with shared(shared_folder, "UPWELL_TEST_POSTGRES_URL", PostgresCluster, lambda part: part.url()) as url:
        yield PostgresServer(url)


@pytest.fixture(scope="session")
def kinesis_endpoint(shared_folder: Path) -> Iterator[str]:
    """The URL of a Kinesis that all tests share: give streams names of their own."""
    with shared(shared_folder, "UPWELL_TEST_KINESIS_URL", Kinesalite, lambda part: part.url) as url:
        yield url


@pytest.fixture(scope="session")
def dynamodb_endpoint(shared_folder: Path) -> Iterator[str]:
    """The URL of a DynamoDB that all tests share: give tables names of their own."""
    with shared(shared_folder, "UPWELL_TEST_DYNAMODB_URL", DynamoDbLocal, lambda part: part.url) as url:
        yield url


@pytest.fixture(scope="session")
def standin_kinesis_endpoint(shared_folder: Path) -> Iterator[str]:
    """The URL of our own stand-in for Kinesis, which never throttles, for all tests."""
    with shared(shared_folder, "UPWELL_TEST_STANDIN_KINESIS_URL", StandinKinesis, lambda part: part.url) as url:
        yield url


@pytest.fixture(scope="session")
def indexing_dynamodb_endpoint(shared_folder: Path) -> Iterator[str]:
    """The URL of a DynamoDB for tests that make indexes: where tables are many, it is minutes late with them."""
    with shared(shared_folder, "UPWELL_TEST_INDEXING_DYNAMODB_URL", DynamoDbLocal, lambda part: part.url) as url:
        yield url


@pytest.fixture
def kinesis_faults(kinesis_endpoint: str) -> Iterator[FaultProxy]:
    """A way to that Kinesis that does what it is told to; nothing at first."""
    with FaultProxy(kinesis_endpoint) as wire:
        yield wire


@pytest.fixture
def dynamodb_faults(dynamodb_endpoint: str) -> Iterator[FaultProxy]:
    """A way to that DynamoDB that does what it is told to; nothing at first."""
    with FaultProxy(dynamodb_endpoint) as wire:
        yield wire


@pytest.fixture(scope="session")
def standin_dynamodb_endpoint(shared_folder: Path) -> Iterator[str]:
    """The URL of our own stand-in for DynamoDB, which never throttles, for all tests."""
    with shared(shared_folder, "UPWELL_TEST_STANDIN_DYNAMODB_URL", StandinDynamoDb, lambda part: part.url) as url:
        yield url


@pytest.fixture(scope="session")
def sqlserver(shared_folder: Path) -> Iterator[str]:
    """The URL of a SQL Server, our stand-in or a true one, that all tests share: make databases of your own."""
    with shared(shared_folder, "UPWELL_TEST_SQLSERVER_URL", StandinSqlServer, lambda part: part.url) as url:
        yield url


@pytest.fixture(scope="session")
def ministack() -> Iterator[Ministack]:
    """A local AWS with CloudFormation, Lambda and API Gateway, and IAM enforced; with a bucket for code."""
    with Ministack() as part:
        part.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
        yield part


@pytest.fixture(scope="session")
def servers(postgres_cluster: PostgresServer, kinesis_endpoint: str, dynamodb_endpoint: str) -> Servers:
    """All of them, for a proof."""
    return Servers(postgres_cluster, kinesis_endpoint, dynamodb_endpoint)


@pytest.fixture
def database(postgres_cluster: PostgresServer) -> Iterator[str]:
    """The name of a new, empty database; afterwards it goes with its sessions and replication slots."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    postgres_cluster.create_database(name)
    yield name
    postgres_cluster.drop_database(name)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is the same for all workers of one run."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@contextmanager
def shared(folder: Path, variable: str, make: Callable[[], P], url_of: Callable[[P], str]) -> Iterator[str]:
    """The URL of the server that the variable names, or else of one that the workers of this run share.

    The first worker that asks starts it, and ends it when nobody uses it any more: every user holds a lock on a file,
    which its end or its death frees. Fixtures end in the opposite order of their start, so no two owners can wait for
    each other.
    """
    named = os.environ.get(variable)
    if named:
        yield named
        return
    url_file, door, users = (folder / f"{variable}{suffix}" for suffix in ("", ".door", ".users"))
    part: P | None = None
    with locked(door, fcntl.LOCK_EX):
        if not url_file.exists():
            part = make()
            part.start()
            url_file.write_text(url_of(part))
        using = ExitStack()
        using.enter_context(locked(users, fcntl.LOCK_SH))
    try:
        yield url_file.read_text()
    finally:
        using.close()
        if part is not None:
            with locked(door, fcntl.LOCK_EX), locked(users, fcntl.LOCK_EX):
                part.close()
                url_file.unlink()


@contextmanager
def locked(file: Path, kind: int) -> Iterator[None]:
    """Holds a lock on a file, shared or exclusive, once nobody holds one that excludes it."""
    with file.open("w") as held:
        fcntl.flock(held, kind)
        yield
