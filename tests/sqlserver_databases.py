"""A client of a SQL Server for tests, and databases of their own for them."""

import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from urllib.parse import urlsplit

from upwell.sources.sqlserver_session import Address, Session, load_driver


def connect(url: str) -> closing[Session]:
    """A session without implicit transactions. It is python-tds that tests write with, whatever upwell reads with."""
    return closing(Session.connect(load_driver("python-tds"), Address.parse(url)))


def in_database(url: str, database: str, *, user: str = "", password: str = "") -> str:
    """The URL of another database on the server, for another user where one is given."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    who = f"{user}:{password}" if user else parts.netloc.rpartition("@")[0]
    return f"mssql://{who}@{place}/{database}?{parts.query}"


@contextmanager
def fresh_database(url: str, *, snapshots: bool = True) -> Iterator[str]:
    """The URL of a new database, with snapshot isolation or without; afterwards it goes with its sessions."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with connect(url) as master:
        master.run(f"CREATE DATABASE {name}")
        if snapshots:
            master.run(f"ALTER DATABASE {name} SET ALLOW_SNAPSHOT_ISOLATION ON")
        yield in_database(url, name)
        master.run(f"ALTER DATABASE {name} SET SINGLE_USER WITH ROLLBACK IMMEDIATE")
        master.run(f"DROP DATABASE {name}")
