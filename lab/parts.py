"""The lab's parts, each a context manager with `url`, and `Lab`, which bundles them."""

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from signal import Signals
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from lab import find
from lab.part import LOOPBACK, Part, PartFailed, PartMissing

__all__ = [
    "DynamoDbLocal",
    "Kinesalite",
    "Lab",
    "PartFailed",
    "PartMissing",
    "PostgresCluster",
    "PostgresServer",
    "StandinDynamoDb",
    "StandinKinesis",
    "StandinSqlServer",
]

REGION = "eu-west-1"
ACCESS_KEY_ID = "test"  # any would do: the local servers check none
SECRET_ACCESS_KEY = "test"  # noqa: S105 - as above
SUPERUSER = "upwell"
DROP_S = 20.0

# Logical replication for many tests at once; crash-safe against a killed server, not against a killed machine.
SETTINGS: Mapping[str, str | int] = {
    "listen_addresses": LOOPBACK,
    "wal_level": "logical",
    "max_wal_senders": 20,
    "max_replication_slots": 20,
    "max_connections": 200,
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "on",
}


class PostgresServer:
    """A PostgreSQL server that somebody else runs, reached as a superuser."""

    def __init__(self, url: str) -> None:
        self._url = url

    def url(self, dbname: str | None = None) -> str:
        """Without a name, that of the database it was given with."""
        return self._url if dbname is None else urlunsplit(urlsplit(self._url)._replace(path=f"/{dbname}"))

    def connect(self, dbname: str | None = None) -> psycopg.Connection[tuple[Any, ...]]:
        """A connection on which each statement is a transaction."""
        return psycopg.connect(self.url(dbname), autocommit=True, connect_timeout=10)

    def create_database(self, name: str) -> str:
        """Creates an empty database and returns its URL."""
        with self.connect() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drops a database with all that would hold it: sessions, walsenders, replication slots."""
        drop = sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name))
        deadline = time.monotonic() + DROP_S
        with self.connect() as connection:
            while True:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = %s AND pid <> pg_backend_pid()",
                    [name],
                )
                try:
                    connection.execute(
                        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s",
                        [name],
                    )
                    connection.execute(drop)
                except psycopg.errors.ObjectInUse:  # a session takes a moment to end, and a test's thread may come back
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)
                else:
                    return


class PostgresCluster(Part, PostgresServer):
    """A PostgreSQL cluster of our own: superuser `upwell`, password over TCP, logical replication on."""

    name = "postgres"
    last_signal = Signals.SIGQUIT  # at once, but it frees its shared memory first, which SIGKILL would not

    def __init__(
        self,
        settings: Mapping[str, str | int] | None = None,
        *,
        data_dir: Path | None = None,
        bin_dir: Path | None = None,
    ) -> None:
        """settings: added to or instead of `SETTINGS`; data_dir: kept on `close`, and used again if it has a cluster
        that was made here; bin_dir: which PostgreSQL, else the newest on this machine."""
        Part.__init__(self, user=_unprivileged_user())
        self._settings = {**SETTINGS, **(settings or {})}
        self._given_data_dir = data_dir
        self._bin_dir = bin_dir or find.postgres_bin()
        self._password = ""

    @property
    def data_dir(self) -> Path:
        return self._given_data_dir or self.folder / "data"

    def url(self, dbname: str | None = None) -> str:
        return f"postgresql://{SUPERUSER}:{self._password}@{LOOPBACK}:{self.port}/{dbname or 'postgres'}"

    def prepare(self) -> None:
        """initdb; the password stays beside the data, for whoever opens a kept data_dir again."""
        password_file = self.data_dir / "lab-password"
        if password_file.exists():
            self._password = password_file.read_text()
            return
        self._password = secrets.token_hex(8)
        new_password = self.folder / "password"
        new_password.write_text(self._password)
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._user is not None:
            shutil.chown(new_password, self._user)
            shutil.chown(self.data_dir, self._user)
        options = ["--username", SUPERUSER, "--pwfile", str(new_password), "--auth-host", "scram-sha-256"]
        options += ["--auth-local", "trust", "--encoding", "UTF8", "--no-locale", "--no-sync"]
        self._run("initdb", "--pgdata", str(self.data_dir), *options)
        password_file.write_text(self._password)
        with (self.data_dir / "postgresql.conf").open("a") as conf:
            conf.write("include 'lab.conf'\n")

    def command(self) -> list[str]:
        quoted = {name: str(value).replace("'", "''") for name, value in self._settings.items()}
        (self.data_dir / "lab.conf").write_text("".join(f"{name} = '{value}'\n" for name, value in quoted.items()))
        return [str(self._bin_dir / "postgres"), "-D", str(self.data_dir), "-p", str(self.port), "-k", str(self.folder)]

    def answers(self) -> bool:
        try:
            with psycopg.connect(self.url(), connect_timeout=5):
                return True
        except psycopg.OperationalError:
            return False

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """fast: ends sessions and writes everything down; immediate: like a crash, the next start recovers."""
        self.signal(Signals.SIGINT if mode == "fast" else Signals.SIGQUIT)
        self.await_end()

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._bin_dir / program, *arguments],
            capture_output=True,
            text=True,
            check=False,
            user=self._user,
            group=self._user and pwd.getpwnam(self._user).pw_gid,
            extra_groups=self._user and [],
            cwd=self.folder,
            env=self._environment(),
        )
        if done.returncode:
            raise PartFailed(f"{program} failed:\n{done.stderr.strip()}")


class HttpPart(Part):
    """A part that speaks HTTP: it answers as soon as it says anything at all."""

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url, timeout=5):  # noqa: S310 - our own http URL
                return True
        except urllib.error.HTTPError as refused:  # an answer, if an unkind one: we asked for nothing
            refused.close()
            return True
        except OSError:
            return False


class Kinesalite(HttpPart):
    """Kinesis: limits, errors, iterators and resharding by split and merge, as far as docs/development.md says."""

    name = "kinesis"

    def __init__(self, *, durable: bool = False) -> None:
        """durable: streams outlive a stop, a kill and a restart (not `close`)."""
        super().__init__()
        self._durable = durable
        self._node, self._script = find.node(), find.kinesalite()

    def command(self) -> list[str]:
        return [str(self._node), str(self._script), str(self.port), *([str(self.folder / "streams")] * self._durable)]


class DynamoDbLocal(HttpPart):
    """DynamoDB, by Amazon. Tables are apart for each access key and region, as with separate accounts."""

    name = "dynamodb"

    def __init__(self, *, durable: bool = False) -> None:
        """durable: tables outlive a stop, a kill and a restart (not `close`)."""
        super().__init__()
        self._durable = durable
        self._java, self._program = find.java(), find.dynamodb_local()

    def command(self) -> list[str]:
        store = ["-dbPath", str(self.folder)] if self._durable else ["-inMemory"]
        libraries = f"-Djava.library.path={self._program / 'DynamoDBLocal_lib'}"
        jar = str(self._program / "DynamoDBLocal.jar")
        # The client compiler alone makes a short-lived server start sooner.
        options = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx1g", libraries]
        return [str(self._java), *options, "-jar", jar, *store, "-disableTelemetry", "-port", str(self.port)]


class Standin(HttpPart):
    """A stand-in of ours, in memory: for throttling by AWS's limits, and for speed."""

    def __init__(self, *, limits: float = 0.0, change_s: float = 0.02) -> None:
        """limits: throttle at this share of AWS's limits, 0: never; change_s: how long a stream or table is made."""
        super().__init__()
        self._options = ["--limits", str(limits), "--change-s", str(change_s)]

    def command(self) -> list[str]:
        return [sys.executable, "-m", f"lab.{self.name.replace('-', '_')}", str(self.port), *self._options]

    def _environment(self) -> dict[str, str]:
        return super()._environment() | {"PYTHONPATH": str(find.ROOT)}


class StandinKinesis(Standin):
    """Kinesis: see lab/standin_kinesis.py."""

    name = "standin-kinesis"


class StandinDynamoDb(Standin):
    """DynamoDB: see lab/standin_dynamodb.py."""

    name = "standin-dynamodb"


class StandinSqlServer(Part):
    """SQL Server: see lab/sqlserver. It keeps its databases in a PostgreSQL cluster of its own.

    Raises PartMissing where PostgreSQL comes as a wheel only: that has no ICU, by which texts compare as SQL Server's.
    """

    name = "standin-sqlserver"

    def __init__(self) -> None:
        super().__init__()
        # What a restart of the stand-in finds again must not wait for the disk meanwhile.
        for_large_windows = {"jit": "off", "work_mem": "64MB", "shared_buffers": "256MB", "max_wal_size": "4GB"}
        for_large_windows["autovacuum_naptime"] = "1s"  # or it would plan for a side table as it was when it was empty
        for_large_windows["enable_hashagg"] = "off"  # a million keys are folded in half the time where they are sorted
        self.postgres = PostgresCluster(
            {"wal_level": "minimal", "max_wal_senders": 0, "synchronous_commit": "off", **for_large_windows},
            bin_dir=find.system_postgres_bin(),
        )
        self._password = f"Lab-{secrets.token_hex(8)}"

    @property
    def url(self) -> str:
        """Of master, as sa; `ca` is the file with the certificate that signs the server's."""
        # By its name: the driver from Microsoft looks for no addresses in a certificate.
        return f"mssql://sa:{self._password}@localhost:{self.port}/master?ca={self.folder / 'ca.pem'}"

    def launch(self) -> None:
        if not self.postgres.running:
            self.postgres.start()
        super().launch()

    def command(self) -> list[str]:
        arguments = [str(self.port), str(self.folder), self.postgres.url(), self._password]
        return [sys.executable, "-m", "lab.sqlserver", *arguments]

    def answers(self) -> bool:
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=5):
                return True
        except OSError:
            return False

    def close(self) -> None:
        super().close()
        self.postgres.close()

    def _environment(self) -> dict[str, str]:
        return super()._environment() | {"PYTHONPATH": str(find.ROOT)}


class Lab:
    """All parts together."""

    def __init__(self) -> None:
        self.postgres = PostgresCluster()
        self.kinesis = Kinesalite()
        self.dynamodb = DynamoDbLocal()
        self.standin_kinesis = StandinKinesis()
        self.standin_dynamodb = StandinDynamoDb()
        self.standin_sqlserver = _standin_sqlserver()

    @property
    def parts(self) -> tuple[Part, ...]:
        # The slowest to start comes first.
        always = self.dynamodb, self.kinesis, self.postgres, self.standin_kinesis, self.standin_dynamodb
        return (*always, self.standin_sqlserver) if self.standin_sqlserver else always

    def start(self) -> None:
        """Starts all at the same time and returns when all answer."""
        try:
            for part in self.parts:
                part.launch()
            for part in self.parts:
                part.await_ready()
        except BaseException:
            self.close()
            raise

    def endpoints(self) -> dict[str, str]:
        """What a client needs to reach the parts."""
        return {
            "postgres": self.postgres.url(),
            "kinesis": self.kinesis.url,
            "dynamodb": self.dynamodb.url,
            "standin_kinesis": self.standin_kinesis.url,
            "standin_dynamodb": self.standin_dynamodb.url,
            **({"standin_sqlserver": self.standin_sqlserver.url} if self.standin_sqlserver else {}),
            "region": REGION,
            "access_key_id": ACCESS_KEY_ID,
            "secret_access_key": SECRET_ACCESS_KEY,
        }

    def check(self) -> None:
        """Raises PartFailed when a part has died."""
        for part in self.parts:
            if not part.running:
                raise PartFailed(f"{part.name} died:\n{part.last_words()}")

    def close(self) -> None:
        for part in self.parts:
            part.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _standin_sqlserver() -> StandinSqlServer | None:
    try:
        return StandinSqlServer()
    except PartMissing as missing:
        print(f"no stand-in for SQL Server: {missing}", file=sys.stderr)
        return None


def _unprivileged_user() -> str | None:
    """PostgreSQL refuses to run as root; None when we are not."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in known)
