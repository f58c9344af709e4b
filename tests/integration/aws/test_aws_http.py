"""What may come back as an answer: HTTP in any pieces, cut short, or something else."""

import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fake_aws import fake_service, http
from tests.integration.aws.clients import connect, connected
from upwell import http1
from upwell.errors import TransientError
from upwell.http1 import Connection, Route


@pytest.fixture
def scripted() -> Iterator[Callable[[list[bytes]], Connection]]:
    """A connection to a server that sends these pieces, one by one, then closes."""
    opened: list[Any] = []

    def make(pieces: list[bytes]) -> Connection:
        server = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            with server, server.accept()[0] as raw:
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for piece in pieces:
                    raw.sendall(piece)

        thread = threading.Thread(target=serve)
        thread.start()
        connection = Connection(Route("127.0.0.1", server.getsockname()[1], None, None))
        opened.append((thread, connection))
        return connection

    yield make
    for thread, connection in opened:
        thread.join()
        connection.close()


CHUNKED = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{"a"\r\n3;x=y\r\n:1}\r\n0\r\n\r\n'
FIXED = b'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-LENGTH:  7 \r\nX: 1\r\n\r\n{"a":1}'


@pytest.mark.parametrize("answer", [CHUNKED, FIXED])
def test_an_answer_may_come_in_any_pieces(scripted: Callable[[list[bytes]], Connection], answer: bytes) -> None:
    @given(cuts=st.lists(st.integers(0, len(answer)), max_size=6))
    @settings(max_examples=40)
    def whole(cuts: list[int]) -> None:
        edges = [0, *sorted(cuts), len(answer)]
        pieces = [answer[a:b] for a, b in itertools.pairwise(edges) if a < b]
        received = scripted(pieces).receive()
        assert (received.status, bytes(received.body)) == (200, b'{"a":1}')

    whole()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        FIXED[:-1],
        CHUNKED[:-5],
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"x" * (http1.HEAD_BYTES_MAX + 1),
    ],
)
def test_what_is_cut_short_or_no_http_is_transient(
    scripted: Callable[[list[bytes]], Connection], answer: bytes
) -> None:
    connection = scripted([answer])
    with pytest.raises(TransientError):
        connection.receive()
    assert not connection.alive()


def test_a_connection_that_is_to_be_closed_is_not_used_again() -> None:
    with fake_service(lambda request: http(b"{}", headers="Connection: close\r\n")) as fake:
        service = connect(fake)
        for _ in range(2):
            service.call("PutItem", {})
        assert fake.connections == 2
        service.close()


def test_html_where_json_should_be_is_transient() -> None:
    with fake_service(lambda request: http(b"<html>Welcome to the hotel</html>")) as fake, connected(fake) as service:
        with pytest.raises(TransientError) as raised:
            service.call("PutItem", {})
        assert raised.value.code == "UW-AWS-020"
