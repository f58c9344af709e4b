"""The demo's Internet: what is sent arrives, a cut ends everything, and afterwards it works again."""

import gc
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from urllib.parse import urlsplit

import pytest

from upwell.app.demo.internet import Internet

WAIT_S = 10.0


class Echo:
    """A server that answers what it is told, twice, in two packets."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.ended = threading.Semaphore(0)  # counts the connections whose end the server has seen
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._threads: list[threading.Thread] = []
        self._thread.start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self._closing:
                connection.close()
                return
            self._threads.append(threading.Thread(target=self._answer, args=(connection,), daemon=True))
            self._threads[-1].start()

    _closing = False

    def _answer(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, suppress(ConnectionError):
            while data := connection.recv(65_536):
                connection.sendall(data)
                time.sleep(0.002)  # so that they are two packets
                connection.sendall(data)
        self.ended.release()

    def close(self) -> None:
        self._closing = True
        socket.create_connection(("127.0.0.1", self.port), WAIT_S).close()
        for thread in [self._thread, *self._threads]:
            thread.join(WAIT_S)
        self._listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    with closing(Echo()) as echo:
        yield echo


@pytest.fixture
def internet(echo: Echo) -> Iterator[Internet]:
    with closing(Internet(echo.port)) as internet:
        yield internet


def connect(internet: Internet) -> socket.socket:
    place = urlsplit(internet.url)
    assert place.hostname == "127.0.0.1"
    return socket.create_connection((place.hostname, place.port), WAIT_S)


def read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        assert part, f"the connection ended after {len(data)} of {size} bytes"
        data += part
    return data


def test_what_is_sent_arrives_in_both_directions(internet: Internet) -> None:
    sent = bytes(range(256)) * 8_000
    with connect(internet) as connection:
        sender = threading.Thread(target=connection.sendall, args=(sent,))
        sender.start()
        answer = read(connection, 2 * len(sent))
        sender.join(WAIT_S)
    assert len(answer) == 2 * len(sent)
    assert sorted(set(answer)) == list(range(256))
    assert internet.sent_bytes == len(sent)


def test_an_end_that_closes_is_seen_by_the_other(internet: Internet, echo: Echo) -> None:
    connect(internet).close()
    assert echo.ended.acquire(timeout=WAIT_S)


def test_a_cut_ends_connections_and_refuses_new_ones(internet: Internet, echo: Echo) -> None:
    with connect(internet) as connection:
        connection.sendall(b"x")
        read(connection, 2)
        internet.cut()
        assert not internet.up
        with suppress(ConnectionResetError):  # the other way to learn of it
            assert connection.recv(1) == b""
    assert echo.ended.acquire(timeout=WAIT_S)
    with pytest.raises(ConnectionRefusedError):
        connect(internet).close()


def test_restored_it_has_the_same_address(internet: Internet) -> None:
    before = internet.url
    for _ in range(3):
        internet.cut()
        internet.restore()
        assert internet.up
        assert internet.url == before
        with connect(internet) as connection:
            connection.sendall(b"again")
            assert read(connection, 10) == b"againagain"


def test_cutting_twice_is_cutting_once(internet: Internet) -> None:
    internet.cut()
    since = internet.cut_at
    internet.cut()
    assert internet.cut_at == since
    internet.restore()
    internet.restore()
    connect(internet).close()


def test_a_far_end_that_is_down_ends_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with closing(Internet(port)) as internet, connect(internet) as connection:
        assert connection.recv(1) == b""


def test_closing_ends_what_is_open(echo: Echo) -> None:
    internet = Internet(echo.port)
    with connect(internet) as connection:
        connection.sendall(b"x")
        read(connection, 2)
        internet.close()
    assert echo.ended.acquire(timeout=WAIT_S)


def test_a_connection_made_at_the_last_moment_ends_too(echo: Echo) -> None:
    for _ in range(50):
        internet = Internet(echo.port)
        with connect(internet) as connection:
            internet.close()
            with suppress(ConnectionResetError):
                assert connection.recv(1) == b""
    gc.collect()  # a socket that was left open would be told of here


def test_small_answers_are_not_held_back(internet: Internet) -> None:
    """Held back until an acknowledgement, the second packet of each answer would take 40 ms."""
    with connect(internet) as connection:
        began = time.monotonic()
        for _ in range(100):
            connection.sendall(b"x")
            read(connection, 2)
        assert time.monotonic() - began < 2.0
