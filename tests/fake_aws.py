"""Servers in threads that answer as a test tells them: an HTTP service, with TLS if wanted, and a CONNECT proxy."""

import contextlib
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

LOOPBACK: Final = "127.0.0.1"
# Instead of an answer: close the connection without one; or say nothing until the test ends.
CLOSE: Final = b"close"
HANG: Final = b"hang"


@dataclass
class Request:
    """What the service was asked."""

    action: str
    body: bytes
    headers: dict[str, str]
    connection: int  # which of the connections it came over, from 0

    @property
    def payload(self) -> Any:
        return orjson.loads(self.body)


def http(body: bytes, status: int = 200, headers: str = "") -> bytes:
    """An HTTP answer."""
    return f"HTTP/1.1 {status} Said\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


def ok(content: Any) -> bytes:
    return http(orjson.dumps(content))


def refused(reason: str, message: str = "", status: int = 400) -> bytes:
    return http(orjson.dumps({"__type": reason, "message": message}), status)


@dataclass
class FakeService:
    """`answer` decides for each request; `requests` are those that arrived, in order."""

    answer: Callable[[Request], bytes]
    url: str = ""
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    ended: threading.Event = field(default_factory=threading.Event)
    sockets: list[socket.socket] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def drop_connections(self) -> None:
        """Close what is open, as a service does with idle connections."""
        for each in self.sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self.sockets.clear()

    def serve(self, raw: socket.socket) -> None:
        number, self.connections = self.connections, self.connections + 1
        self.sockets.append(raw)
        stream = raw.makefile("rb")
        while (line := stream.readline()).startswith(b"POST "):
            headers = {}
            while (line := stream.readline().strip()) != b"":
                name, _, value = line.decode().partition(": ")
                headers[name.lower()] = value
            body = stream.read(int(headers["content-length"]))
            request = Request(headers["x-amz-target"].partition(".")[2], body, headers, number)
            self.requests.append(request)
            answer = self.answer(request)
            if answer == HANG:
                self.ended.wait()
            if answer in (CLOSE, HANG):
                break
            raw.sendall(answer)
        with contextlib.suppress(OSError):
            raw.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server on a free port; each connection is served by a thread of its own."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                serve(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        request_queue_size = 128

    with Server((LOOPBACK, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def fake_service(answer: Callable[[Request], bytes], tls: ssl.SSLContext | None = None) -> Iterator[FakeService]:
    """A service; `tls` makes it speak HTTPS."""
    service = FakeService(answer)

    def serve(raw: socket.socket) -> None:
        if tls is None:
            service.serve(raw)
            return
        with tls.wrap_socket(raw, server_side=True) as secured:
            service.serve(secured)

    with listening(serve) as port:
        service.url = f"http{'s' if tls else ''}://{'localhost' if tls else LOOPBACK}:{port}"
        try:
            yield service
        finally:
            service.ended.set()
            service.drop_connections()


@dataclass
class FakeProxy:
    """An HTTP proxy that knows only CONNECT. `status` other than 200 refuses."""

    authorization: str | None = None  # what Proxy-Authorization must say
    status: int = 200
    url: str = ""
    targets: list[str] = field(default_factory=list)

    def serve(self, raw: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (byte := raw.recv(1)):
                return
            head += byte
        lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        method, target, _ = lines[0].split(" ")
        assert method == "CONNECT"
        self.targets.append(target)
        if self.authorization is not None and headers.get("Proxy-Authorization") != self.authorization:
            raw.sendall(b'HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm="corp"\r\nContent-Length: 0\r\n\r\n')
            return
        if self.status != 200:
            raw.sendall(f"HTTP/1.1 {self.status} No\r\nContent-Length: 0\r\n\r\n".encode())
            return
        host, _, port = target.rpartition(":")
        with socket.create_connection((host, int(port))) as there:
            raw.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=_copy, args=(there, raw), daemon=True)
            back.start()
            _copy(raw, there)
            back.join()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for each in (source, sink):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def fake_proxy(authorization: str | None = None, status: int = 200) -> Iterator[FakeProxy]:
    proxy = FakeProxy(authorization, status)
    with listening(proxy.serve) as port:
        proxy.url = f"http://{LOOPBACK}:{port}"
        yield proxy
