"""HTTP/1.1 to one host over connections that stay open: directly or through a proxy's CONNECT, TLS always verified.

Sending and receiving are apart, so that one thread can have requests under way on many connections. Nothing is
ever sent twice: a connection that fails is closed, and what becomes of its request is for the caller to say.
"""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import ssl
import time
from dataclasses import dataclass
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from upwell.errors import ConfigError, OperatorError, TransientError, UpwellError

CONNECT_S: Final = 5.0  # to all addresses of a host together; again for the TLS handshake
READ_S: Final = 15.0  # without a byte going either way
ANSWER_S: Final = 120.0  # from an answer's first byte to its last
EXPECT_S: Final = 1.0  # for leave to send a body; what does not know the question says nothing
IDLE_S_MAX: Final = 30.0  # firewalls forget idle connections without a word, some after a minute
HEAD_BYTES_MAX: Final = 64 * 1024
ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024  # GetRecords: 10 MiB of data in base64; local stand-ins do not stop there
_LOOK_S = 0.5  # how often those that wait are looked at for whether they have waited too long
_SEND_BYTES = 256 * 1024  # at a time: READ_S counts anew for each


class Proxy(NamedTuple):
    """An HTTP proxy that opens tunnels by CONNECT."""

    host: str
    port: int
    authorization: str | None  # the Proxy-Authorization header's value

    @classmethod
    def parse(cls, url: str) -> Proxy:
        """Of `http://[user:password@]host[:port]`, credentials percent-encoded. Raises ConfigError."""
        parts = urlsplit(url if "//" in url else f"//{url}", scheme="http")
        if parts.scheme != "http" or not parts.hostname:
            # The URL may hold a password: it is not repeated.
            raise ConfigError(
                "The proxy's address is not of the form http://host:port.",
                code="UW-AWS-016",
                remedy="Write proxy: http://[user:password@]host:port; the tunnel through it carries TLS of its own.",
            )
        authorization = None
        if parts.username is not None:
            credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = "Basic " + base64.b64encode(credentials.encode()).decode()
        return cls(parts.hostname, parts.port or 80, authorization)

    def __repr__(self) -> str:
        return f"Proxy({self.host}:{self.port})"


def trust(ca_bundle: str) -> ssl.SSLContext:
    """A TLS context that trusts the certificates of a PEM file, and no other. Raises ConfigError."""
    try:
        context = ssl.create_default_context(cafile=ca_bundle)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"The CA bundle {ca_bundle} can't be used: {error.strerror or error}.",
            code="UW-AWS-022",
            remedy="Point ca_bundle (or AWS_CA_BUNDLE) to a readable file with certificates in PEM form.",
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


@dataclass(frozen=True)
class Route:
    """How to reach a host."""

    host: str
    port: int
    tls: ssl.SSLContext | None  # None: plain HTTP, for stand-ins on this machine
    proxy: Proxy | None

    def open(self) -> socket.socket:
        """A connected socket, tunnel and TLS included. Raises TransientError or OperatorError."""
        raw = self._tunnel()
        try:
            return raw if self.tls is None else self._secure(raw, self.tls)
        except BaseException:
            raw.close()
            raise

    def _tunnel(self) -> socket.socket:
        if self.proxy is None:
            return _dial(self.host, self.port, f"{self.host}:{self.port}")
        through = f"the proxy {self.proxy.host}:{self.proxy.port}"
        raw = _dial(self.proxy.host, self.proxy.port, through)
        try:
            self._ask_proxy(raw, self.proxy, through)
        except BaseException:
            raw.close()
            raise
        return raw

    def _ask_proxy(self, raw: socket.socket, proxy: Proxy, through: str) -> None:
        target = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if proxy.authorization is not None:
            lines.append(f"Proxy-Authorization: {proxy.authorization}")
        raw.settimeout(READ_S)  # it resolves and dials for us
        try:
            raw.sendall("\r\n".join([*lines, "", ""]).encode())
            head = bytearray()
            while not head.endswith(b"\r\n\r\n"):  # byte by byte: what follows belongs to the tunnel
                byte = raw.recv(1)
                if not byte or len(head) > HEAD_BYTES_MAX:
                    raise ConnectionResetError("closed before an answer")
                head += byte
        except OSError as error:
            raise _lost(through, error) from error
        status = _status(bytes(head), through)
        if not 200 <= status < 300:
            raise _proxy_refused(status, bytes(head), through, target)

    def _secure(self, raw: socket.socket, tls: ssl.SSLContext) -> socket.socket:
        raw.settimeout(CONNECT_S)
        try:
            secured = tls.wrap_socket(raw, server_hostname=self.host)
        except ssl.SSLCertVerificationError as error:
            raise self._not_trusted(error) from error
        except (ssl.SSLError, OSError) as error:
            raise TransientError(
                f"The TLS handshake with {self.host} failed: {_reason(error)}.", code="UW-AWS-014"
            ) from error
        secured.settimeout(READ_S)
        return secured

    def _not_trusted(self, error: ssl.SSLCertVerificationError) -> OperatorError:
        issuer = self._issuer()
        return OperatorError(
            f"The certificate of {self.host} is not trusted ({error.verify_message}); it was issued by {issuer}.",
            code="UW-AWS-013",
            remedy="If that is your company's own authority, a proxy opens the connection on the way: "
            "set ca_bundle to a PEM file with that authority's certificate. If it is not, do not go on.",
        )

    def _issuer(self) -> str:
        """Who issued the certificate that the other end shows; nothing but a handshake is done with it."""
        try:
            look = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            look.check_hostname = False
            look.verify_mode = ssl.CERT_NONE
            with self._tunnel() as raw, look.wrap_socket(raw, server_hostname=self.host) as seen:
                shown = seen.getpeercert(binary_form=True)
            # Python parses only a certificate that it verified: so verify it by itself.
            parse = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            parse.check_hostname = False
            parse.verify_flags = ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
            parse.load_verify_locations(cadata=shown)
            with self._tunnel() as raw, parse.wrap_socket(raw, server_hostname=self.host) as seen:
                issuer = (seen.getpeercert() or {}).get("issuer", ())
        except (OSError, ValueError, UpwellError):
            return "an unknown authority"
        names = dict(pair for part in issuer if isinstance(part, tuple) for pair in part if isinstance(pair, tuple))
        known = [str(names[field]) for field in ("commonName", "organizationName") if field in names]
        return f"“{', '.join(known)}”" if known else "an authority without a name"


def _dial(host: str, port: int, name: str) -> socket.socket:
    """A TCP connection to the first address that answers within CONNECT_S for all of them."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise TransientError(
            f"The name {host} can't be resolved: {_reason(error)}.",
            code="UW-AWS-010",
            remedy="Check DNS, or set proxy if names of the internet are resolved by the proxy only.",
        ) from error
    failure: OSError = OSError("it has no address")
    deadline = time.monotonic() + CONNECT_S
    for tried, (family, kind, protocol, _, address) in enumerate(addresses):
        wait_s = (deadline - time.monotonic()) / (len(addresses) - tried)
        if wait_s <= 0:
            break
        raw = socket.socket(family, kind, protocol)
        try:
            raw.settimeout(wait_s)
            raw.connect(address)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            raw.settimeout(READ_S)
            return raw
        except OSError as error:
            raw.close()
            failure = error
    raise TransientError(
        f"No connection to {name}: {_reason(failure)}.",
        code="UW-AWS-011",
        remedy=f"Check that the firewall lets this machine out to {name}.",
    ) from failure


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer."""

    status: int
    head: bytes
    body: bytes | bytearray

    def header(self, name: str) -> str | None:
        """The first header of this (lower-case) name."""
        return _header(self.head, self.head.lower(), name.encode())


class Connection:
    """One connection, with at most one request under way. After an error it is closed and can't be used again."""

    def __init__(self, route: Route, answer_bytes_max: int = ANSWER_BYTES_MAX) -> None:
        self._name = route.host
        self._socket = route.open()
        self._answer_bytes_max = answer_bytes_max
        self._since = time.monotonic()  # that the last request was sent, or its answer read
        self._early = b""  # what came before the whole request was sent
        self.reusable = True

    def alive(self) -> bool:
        """Whether, as far as can be seen without sending, the other end still listens."""
        if not self.reusable or time.monotonic() - self._since > IDLE_S_MAX:
            return False
        if not _readable(self._socket):
            return True
        # Readable while nothing was asked: the end of the stream, or, under TLS, a session ticket that came late.
        if not isinstance(self._socket, ssl.SSLSocket):
            return False
        try:
            self._socket.settimeout(0)
            self._socket.recv(1)
        except ssl.SSLWantReadError:
            self._socket.settimeout(READ_S)
            return True
        except OSError:
            return False
        return False

    def send(self, head: bytes, body: bytes) -> None:
        """Send a request. Raises TransientError: it may have arrived all the same."""
        self.reusable = False
        try:
            if len(body) <= _SEND_BYTES:
                self._socket.sendall(head + body)
            else:
                self._socket.sendall(head)
                view = memoryview(body)
                for start in range(0, len(body), _SEND_BYTES):
                    self._socket.sendall(view[start : start + _SEND_BYTES])
            self._since = time.monotonic()
        except OSError as error:
            self.close()
            raise _lost(self._name, error) from error

    def offer(self, head: bytes) -> bool:
        """Send the head of a request that asks for leave to send its body: `Expect: 100-continue`.

        True: the body is wanted, or nothing was said for EXPECT_S; it goes by `send(b"", body)`. False: an answer has
        come instead, for `receive`, after which the connection is not to be used again. So a large body is not sent
        to be refused, and why it is refused is not lost with the connection. Raises TransientError.
        """
        self.reusable = False
        try:
            self._socket.sendall(head)
            self._since = time.monotonic()
            self._socket.settimeout(EXPECT_S)
            try:
                received = self._receive()
            except TimeoutError:
                return True
            finally:
                self._socket.settimeout(READ_S)
            while b"\r\n\r\n" not in received:
                received += self._receive(self._since + READ_S)
        except OSError as error:
            self.close()
            raise _lost(self._name, error) from error
        interim, _, rest = received.partition(b"\r\n\r\n")
        if _status(interim, self._name) == 100:
            self._early = rest
            return True
        self._early = received
        return False

    def receive(self) -> Answer:
        """Read the answer to what was sent. Raises TransientError: the request may have been carried out.

        READ_S counts from when the request was sent: many that wait at once time out together, not in turn.
        """
        try:
            waited_s = time.monotonic() - self._since
            if waited_s > 1.0:
                self._socket.settimeout(max(0.1, READ_S - waited_s))
            answer, keep = self._read_answer()
            if waited_s > 1.0:
                self._socket.settimeout(READ_S)
        except OSError as error:
            self.close()
            raise _lost(self._name, error) from error
        except BaseException:
            self.close()
            raise
        self.reusable = keep
        self._since = time.monotonic()
        return answer

    def close(self) -> None:
        """Close the socket; never raises."""
        self.reusable = False
        with contextlib.suppress(OSError):
            self._socket.close()

    def _read_answer(self) -> tuple[Answer, bool]:
        received, self._early = self._early or self._receive(), b""
        deadline = time.monotonic() + ANSWER_S
        while True:
            while (end := received.find(b"\r\n\r\n")) < 0:
                if len(received) > HEAD_BYTES_MAX:
                    raise _not_http(self._name)
                received += self._receive(deadline)
            head, rest = received[:end], received[end + 4 :]
            status = _status(head, self._name)
            if status >= 200:
                break
            received = rest or self._receive(deadline)  # 1xx: the real one follows
        lower = head.lower()
        keep = b"\r\nconnection: close" not in lower and head.startswith(b"HTTP/1.1")
        length = _header(head, lower, b"content-length")
        body: bytes | bytearray
        if status in (204, 304):
            body = b""
        elif length is not None and length.isdigit():
            if int(length) > self._answer_bytes_max:
                raise _too_large(self._name)
            body = rest if len(rest) == int(length) else self._fixed(rest, int(length), deadline)
        elif (_header(head, lower, b"transfer-encoding") or "").lower() == "chunked":
            body = self._chunked(rest, deadline)
        else:
            raise _not_http(self._name)
        return Answer(status, head, body), keep

    def _receive(self, deadline: float | None = None) -> bytes:
        if deadline is not None and time.monotonic() > deadline:
            raise TimeoutError(f"an answer took more than {ANSWER_S:.0f} s")
        received = self._socket.recv(65536)
        if not received:
            raise ConnectionResetError("closed before the answer was complete")
        return received

    def _fixed(self, start: bytes, length: int, deadline: float) -> bytearray:
        if len(start) > length:
            raise _not_http(self._name)
        body = bytearray(length)
        body[: len(start)] = start
        view, filled = memoryview(body), len(start)
        while filled < length:
            if time.monotonic() > deadline:
                raise TimeoutError(f"an answer took more than {ANSWER_S:.0f} s")
            count = self._socket.recv_into(view[filled:])
            if not count:
                raise ConnectionResetError("closed before the answer was complete")
            filled += count
        return body

    def _chunked(self, received: bytes, deadline: float) -> bytearray:
        buffer, body = bytearray(received), bytearray()
        while True:
            while (end := buffer.find(b"\r\n")) < 0:
                buffer += self._receive(deadline)
            size = _chunk_size(bytes(buffer[:end]), self._name)
            if len(body) + size > self._answer_bytes_max:
                raise _too_large(self._name)
            while len(buffer) < end + 2 + size + 2:
                buffer += self._receive(deadline)
            body += buffer[end + 2 : end + 2 + size]
            del buffer[: end + 2 + size + 2]
            if size == 0:  # trailers are not used by anything that we speak to
                return body


class Waiting:
    """Connections whose answers are awaited, each with a number: which of them are to be received next?"""

    def __init__(self) -> None:
        self._poll = select.poll() if hasattr(select, "poll") else None  # Windows has none
        self._by_file: dict[int, tuple[Connection, int]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_file)

    def add(self, connection: Connection, number: int) -> None:
        """After its request was sent."""
        file = connection._socket.fileno()
        self._by_file[file] = connection, number
        if self._poll is not None:
            self._poll.register(file, select.POLLIN)

    def next(self) -> list[tuple[Connection, int]]:
        """Those whose answer comes in; where none does, those that have waited for too long. No longer awaited."""
        while not (files := self._readable(min(_LOOK_S, READ_S))):
            overdue = time.monotonic() - READ_S
            files = [file for file, (connection, _) in self._by_file.items() if connection._since <= overdue]
            if files:
                break
        if self._poll is not None:
            for file in files:
                self._poll.unregister(file)
        return [self._by_file.pop(file) for file in files]

    def _readable(self, wait_s: float) -> list[int]:
        if self._poll is not None:
            return [file for file, _ in self._poll.poll(wait_s * 1000)]
        return select.select(list(self._by_file), [], [], wait_s)[0]


def _readable(raw: socket.socket) -> bool:
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(raw, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([raw], [], [], 0)[0])  # Windows, where it has no limit on the descriptor's number


def _status(head: bytes, name: str) -> int:
    status = head[9:12]
    if not head.startswith(b"HTTP/1.") or not status.isdigit():
        raise _not_http(name)
    return int(status)


def _header(head: bytes, lower: bytes, name: bytes) -> str | None:
    start = lower.find(b"\r\n" + name + b":")
    if start < 0:
        return None
    start += len(name) + 3
    end = head.find(b"\r\n", start)
    return head[start : end if end >= 0 else len(head)].strip().decode("latin-1")


def _chunk_size(line: bytes, name: str) -> int:
    try:
        return int(line.split(b";")[0], 16)
    except ValueError as error:
        raise _not_http(name) from error


def _not_http(name: str) -> TransientError:
    return TransientError(
        f"What {name} answered is not HTTP as AWS speaks it.",
        code="UW-AWS-020",
        remedy="Something on the way may answer in its place: a firewall's notice, a login page, a wrong port.",
    )


def _too_large(name: str) -> TransientError:
    return TransientError(f"What {name} answered is larger than any answer of AWS.", code="UW-AWS-020")


def _lost(name: str, error: OSError) -> TransientError:
    if isinstance(error, TimeoutError):
        return TransientError(f"No answer from {name} within {READ_S:.0f} s.", code="UW-AWS-012")
    return TransientError(f"The connection to {name} was lost: {_reason(error)}.", code="UW-AWS-012")


def _proxy_refused(status: int, head: bytes, through: str, target: str) -> UpwellError:
    if status == 407:
        scheme = _header(head, head.lower(), b"proxy-authenticate") or "unknown"
        return OperatorError(
            f"{through.capitalize()} asks for credentials ({scheme.split(',')[0].split(' ')[0]}).",
            code="UW-AWS-015",
            remedy="Set proxy: http://user:password@host:port (basic). A proxy that takes only Negotiate or NTLM "
            "needs a rule for this machine, or a relay such as cntlm.",
        )
    if status >= 500 or status == 429:
        return TransientError(f"{through.capitalize()} can't reach {target} (status {status}).", code="UW-AWS-016")
    return OperatorError(
        f"{through.capitalize()} refuses connections to {target} (status {status}).",
        code="UW-AWS-016",
        remedy=f"Ask whoever runs the proxy to allow CONNECT to {target}.",
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return str(getattr(error, "strerror", None) or error).lower()
