"""The lab's stand-in for SQL Server as a part: what it keeps, and that several are apart."""

from lab.parts import StandinSqlServer
from tests.contract.sqlserver_clients import connect, tracked


def test_databases_outlive_a_restart() -> None:
    with StandinSqlServer() as server:
        owner = connect("python-tds", server.url)
        owner.run("CREATE DATABASE kept")
        owner.run("ALTER DATABASE kept SET CHANGE_TRACKING = ON")
        inside = connect("python-tds", server.url, "kept")
        table = tracked(inside)
        for client in (owner, inside):
            client.close()
        trusted = (server.folder / "ca.pem").read_bytes()
        server.restart()
        assert (server.folder / "ca.pem").read_bytes() == trusted, "or a client that is just connecting is refused"
        table.client = connect("python-tds", server.url, "kept")
        table.run("UPDATE {t} SET a = 5 WHERE id = 1")
        assert table.net(1) == {1: "U 2/-"}
        table.client.close()


def test_two_have_nothing_in_common() -> None:
    with StandinSqlServer() as one, StandinSqlServer() as other:
        client = connect("python-tds", one.url)
        client.run("CREATE DATABASE mine")
        client.close()
        client = connect("python-tds", other.url)
        assert client.rows("SELECT name FROM sys.databases") == [("master",)]
        client.close()
