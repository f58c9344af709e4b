"""The users that the relational stack's guide makes: the subscriber can apply, the reader can read, and no more."""

import re
import uuid
from contextlib import closing
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from lab.parts import PostgresServer
from tests.stack_plans import JWT, PACKAGE, stream
from upwell.app.stacks import guide, relational
from upwell.app.stacks.database import NAME, READER, SUBSCRIBER
from upwell.heartbeat import HEARTBEAT
from upwell.model import Column, Kind, TableSchema
from upwell.targets.postgres import PostgresTarget

USERS = TableSchema(
    "public.users", (Column("id", "int", Kind.INT), Column("name", "text", Kind.TEXT)), ("id",), "postgresql"
)


def statements() -> list[str]:
    """The SQL of the guide, in its order."""
    text = guide.readme("relational", stream(JWT), relational.template(stream(JWT), PACKAGE), PACKAGE, None)
    return re.findall(r"^sql '(.*)'$", text, re.MULTILINE)


def as_user(url: str, user: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{user}:secret@{parts.hostname}:{parts.port}"))


def test_the_users_of_the_guide_can_do_their_work(postgres_cluster: PostgresServer, database: str) -> None:
    mark = uuid.uuid4().hex[:8]
    admin, subscriber, reader, iam = (f"{name}_{mark}" for name in ("admin", "subscriber", "reader", "rds_iam"))
    made = [admin, subscriber, reader, iam]
    url = postgres_cluster.url(database)
    names = {SUBSCRIBER: subscriber, READER: reader, "rds_iam": iam, f"DATABASE {NAME} ": f"DATABASE {database} "}
    with postgres_cluster.connect(database) as root:
        # As in Aurora: no superuser, but who may make roles, owns the database, and may give rds_iam away.
        root.execute(f"CREATE ROLE {admin} LOGIN CREATEROLE PASSWORD 'secret'")
        root.execute(f"CREATE ROLE {iam}")
        root.execute(f"GRANT {iam} TO {admin} WITH ADMIN OPTION")
        root.execute(f"ALTER DATABASE {database} OWNER TO {admin}")
        try:
            wanted = statements()
            assert len(wanted) > 8
            with psycopg.connect(as_user(url, admin), autocommit=True) as connection:
                for statement in wanted:
                    for name, own in names.items():
                        statement = statement.replace(name, own)
                    connection.execute(statement)
            for name in (subscriber, reader):
                root.execute(f"ALTER ROLE {name} PASSWORD 'secret'")
            applies(as_user(url, subscriber))
            reads(as_user(url, reader))
        finally:
            for name in made:
                root.execute(f"REASSIGN OWNED BY {name} TO CURRENT_USER")
                root.execute(f"DROP OWNED BY {name} CASCADE")
            for name in (subscriber, reader, admin, iam):
                root.execute(f"DROP ROLE {name}")


def applies(url: str) -> None:
    with closing(PostgresTarget(url, create_tables=True, schema_changes="apply")) as target:
        target.check()
        assert not [finding for finding in target.findings([USERS]) if finding.level == "fail"]
        with target.begin() as transaction:
            transaction.lock_lanes("shop", [0])
            transaction.ensure_table(HEARTBEAT)
            transaction.ensure_table(USERS)
            assert not transaction.upsert(USERS, [[1, "Ada"]])


def reads(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        assert connection.execute("SELECT name FROM public.users").fetchall() == [("Ada",)]
        assert connection.execute("SELECT as_of FROM upwell.upwell_heartbeat").fetchall() == []
        for write in (
            "DELETE FROM public.users",
            "INSERT INTO public.users VALUES (2)",
            "CREATE TABLE public.mine (a int)",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(write)
