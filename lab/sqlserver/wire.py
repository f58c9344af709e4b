"""TDS 7.4, the server's side: packets, TLS inside of PRELOGIN, LOGIN7, and the tokens of an answer.

A connection has two threads: the one that reads, so that an attention is seen while a query runs, and the one that
works. Nothing here knows SQL.
"""

import queue
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from lab.sqlserver.errors import SqlError
from lab.sqlserver.values import COLLATION, Reader, SqlType, encoder, type_info

BATCH, RPC, ANSWER, ATTENTION, BULK, TRANSACTION, LOGIN, PRELOGIN = 0x01, 0x03, 0x04, 0x06, 0x07, 0x0E, 0x10, 0x12
END_OF_MESSAGE: Final = 0x01
RESET: Final = 0x18  # either form of "reset the connection first"
PACKET: Final = 4096
SERVER: Final = "UPWELL-STANDIN"
ENCRYPT_OFF, ENCRYPT_ON, ENCRYPT_NOT, ENCRYPT_REQUIRED = range(4)

_COMMANDS: Final = {"SELECT": 0xC1, "INSERT": 0xC3, "DELETE": 0xC4, "UPDATE": 0xC5, "MERGE": 0x117}
DONE, DONE_PROCEDURE, DONE_IN_PROCEDURE = 0xFD, 0xFE, 0xFF
MORE, FAILED, COUNT, ATTENTION_SEEN = 0x01, 0x02, 0x10, 0x20


@dataclass(frozen=True)
class Message:
    kind: int
    data: bytes
    reset: bool = False


@dataclass(frozen=True)
class Login:
    """What a client says of itself."""

    user: str
    password: str
    database: str
    application: str
    packet: int
    read_only: bool
    extended: bool


class Gone(Exception):
    """The other side has closed the connection."""


class Link:
    """One connection's bytes. `on_packet` is called for every packet that came, before it is looked at."""

    def __init__(self, sock: socket.socket, on_packet: Callable[[], None] = lambda: None) -> None:
        self._socket, self._on_packet = sock, on_packet
        self._plain = bytearray()
        self._tls: ssl.SSLObject | None = None
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._lock = threading.Lock()  # of the TLS object, which both threads use
        self.packet = PACKET
        self.messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()

    def read_message(self) -> Message:
        """All packets of a message, put together."""
        data, reset = bytearray(), False
        while True:
            kind, status, part = self._read_packet()
            data += part
            reset = reset or bool(status & RESET)
            if status & END_OF_MESSAGE or kind == ATTENTION:
                return Message(kind, bytes(data), reset)

    def read_forever(self, on_attention: Callable[[], None]) -> None:
        """The reading thread: fills `messages`, with None at the end."""
        with suppress(Gone, OSError, ssl.SSLError):
            while True:
                message = self.read_message()
                if message.kind == ATTENTION:
                    on_attention()
                self.messages.put(message)
        self.messages.put(None)
        on_attention()

    def write_message(self, kind: int, data: bytes | bytearray, *, last: bool = True) -> None:
        """Whole packets, and with `last` the rest too."""
        room = self.packet - 8
        out = bytearray()
        for start in range(0, max(len(data), 1), room):
            part = data[start : start + room]
            end = last and start + room >= len(data)
            out += struct.pack(">BBHHBB", kind, END_OF_MESSAGE if end else 0, len(part) + 8, 0, 1, 0) + part
        self._write(bytes(out))

    def start_tls(self, context: ssl.SSLContext) -> None:
        """The handshake, whose bytes travel as PRELOGIN messages."""
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        tls, self._tls = self._tls, None  # packets are plain until it is done
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                pass
            else:
                break
            finally:
                if out := self._out.read():
                    self.write_message(PRELOGIN, out)
            self._in.write(self.read_message().data)
        self._tls = tls

    def end_tls(self) -> None:
        """After a login that alone was encrypted."""
        self._tls = None

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _read_packet(self) -> tuple[int, int, bytes]:
        while len(self._plain) < 8:
            self._fill()
        kind, status, size = struct.unpack(">BBH", self._plain[:4])
        if size < 8:
            raise Gone
        while len(self._plain) < size:
            self._fill()
        part = bytes(self._plain[8:size])
        del self._plain[:size]
        self._on_packet()
        return kind, status, part

    def _fill(self) -> None:
        data = self._socket.recv(65_536)
        if not data:
            raise Gone
        if self._tls is None:
            self._plain += data
            return
        with self._lock:
            self._in.write(data)
            with suppress(ssl.SSLWantReadError):
                while part := self._tls.read(65_536):
                    self._plain += part

    def _write(self, data: bytes) -> None:
        if self._tls is not None:
            with self._lock:
                self._tls.write(data)
                data = self._out.read()
        self._socket.sendall(data)


def welcome(link: Link, context: ssl.SSLContext, version: tuple[int, int, int]) -> tuple[Login, str]:
    """PRELOGIN, TLS as the client wants it, and LOGIN7; also how it was encrypted: `full`, `login` or `none`."""
    message = link.read_message()
    if message.kind != PRELOGIN:
        raise Gone
    wish = _prelogin_option(message.data, 1)[:1] or b"\x02"
    answer = {ENCRYPT_OFF: ENCRYPT_OFF, ENCRYPT_NOT: ENCRYPT_NOT}.get(wish[0], ENCRYPT_ON)
    link.write_message(ANSWER, _prelogin(version, answer))
    if answer != ENCRYPT_NOT:
        link.start_tls(context)
    login = _login(link.read_message())
    if answer == ENCRYPT_OFF:
        link.end_tls()
    if 512 <= login.packet <= 32_767:
        link.packet = login.packet
    return login, {ENCRYPT_OFF: "login", ENCRYPT_ON: "full", ENCRYPT_NOT: "none"}[answer]


def _prelogin_option(data: bytes, wanted: int) -> bytes:
    at = 0
    while at < len(data) and data[at] != 0xFF:
        option, offset, length = struct.unpack_from(">BHH", data, at)
        if option == wanted:
            return data[offset : offset + length]
        at += 5
    return b""


def _prelogin(version: tuple[int, int, int], encryption: int) -> bytes:
    options = [(0, struct.pack(">BBHH", *version, 0)), (1, bytes((encryption,))), (2, b"\x00"), (3, b""), (4, b"\x00")]
    head, body = b"", b""
    for option, value in options:
        head += struct.pack(">BHH", option, 5 * len(options) + 1 + len(body), len(value))
        body += value
    return head + b"\xff" + body


def _login(message: Message) -> Login:
    data = message.data
    if message.kind != LOGIN or len(data) < 94:
        raise Gone

    def text(at: int, *, hidden: bool = False) -> str:
        offset, characters = struct.unpack_from("<HH", data, at)
        raw = data[offset : offset + 2 * characters]
        if hidden:
            raw = bytes(((b ^ 0xA5) << 4 | (b ^ 0xA5) >> 4) & 0xFF for b in raw)
        return raw.decode("utf-16-le")

    return Login(
        user=text(40),
        password=text(44, hidden=True),
        database=text(68),
        application=text(48),
        packet=struct.unpack_from("<I", data, 8)[0],
        read_only=bool(data[26] & 0x20),
        extended=bool(data[27] & 0x10),
    )


class Answer:
    """The tokens of one answer, sent as they fill packets. Every statement ends in a `done`, the answer in `end`."""

    def __init__(self, link: Link, *, procedure: bool = False) -> None:
        self._link, self._procedure = link, procedure
        self._tokens = bytearray()
        self._pending: bytes | None = None  # the last `done`, until it is known whether more follows

    def columns(self, columns: Sequence[tuple[str, SqlType]]) -> None:
        described = [struct.pack("<IH", 0, 0x09) + type_info(kind) + _short_text(name[:128]) for name, kind in columns]
        self._more()
        self._tokens += b"\x81" + len(columns).to_bytes(2, "little") + b"".join(described)

    def rows(self, kinds: Sequence[SqlType], rows: Iterable[Sequence[bytes | None]]) -> int:
        """How many there were."""
        encoders = [encoder(kind) for kind in kinds]
        count = 0
        for row in rows:
            self._tokens += b"\xd1" + b"".join([encode(value) for encode, value in zip(encoders, row, strict=True)])
            count += 1
            if len(self._tokens) >= 8 * self._link.packet:
                self._flush()
        return count

    def done(self, count: int | None, *, what: str = "SELECT", failed: bool = False) -> None:
        """The end of a statement, with the rows that it returned or changed; `what`: its first word."""
        self._more()
        kind = DONE_IN_PROCEDURE if self._procedure else DONE
        status = (FAILED if failed else 0) | (0 if count is None else COUNT)
        self._pending = struct.pack("<BHHQ", kind, status, _COMMANDS.get(what, 0xC1), count or 0)

    def error(self, error: SqlError) -> None:
        self._message(0xAA, error.number, error.state, error.severity, error.message)

    def info(self, number: int, message: str, *, severity: int = 0) -> None:
        self._message(0xAB, number, 1, severity, message)

    def changed(self, kind: int, new: bytes, old: bytes) -> None:
        """ENVCHANGE; new and old with their lengths before them."""
        self._more()
        body = bytes((kind,)) + new + old
        self._tokens += b"\xe3" + len(body).to_bytes(2, "little") + body

    def returned(self, status: int, values: Sequence[tuple[str, SqlType, bytes | None]] = ()) -> None:
        """A procedure's status and its output parameters."""
        self._more()
        self._tokens += struct.pack("<Bi", 0x79, status)
        for name, kind, value in values:
            head = b"\xac\x00\x00" + _short_text(name) + b"\x01" + struct.pack("<IH", 0, 0)
            self._tokens += head + type_info(kind) + encoder(kind)(value)

    def token(self, data: bytes) -> None:
        self._more()
        self._tokens += data

    def end(self, *, attention: bool = False) -> None:
        """The last `done` without MORE; of a procedure, that of the procedure itself."""
        if attention:
            self._pending = struct.pack("<BHHQ", DONE, ATTENTION_SEEN, 0, 0)
        elif self._procedure:
            self._more()
            self._pending = struct.pack("<BHHQ", DONE_PROCEDURE, 0, 0xE0, 0)
        elif self._pending is None:
            self.done(None)
        self._tokens += self._pending or b""
        self._link.write_message(ANSWER, self._tokens)
        self._tokens = bytearray()

    def _more(self) -> None:
        if self._pending is not None:
            kind, status, command, count = struct.unpack("<BHHQ", self._pending)
            self._tokens += struct.pack("<BHHQ", kind, status | MORE, command, count)
            self._pending = None

    def _flush(self) -> None:
        room = self._link.packet - 8
        whole = len(self._tokens) // room * room
        self._link.write_message(ANSWER, self._tokens[:whole], last=False)
        del self._tokens[:whole]

    def _message(self, token: int, number: int, state: int, severity: int, message: str) -> None:
        self._more()
        text = message.encode("utf-16-le")
        body = struct.pack("<iBBH", number, state, severity, len(text) // 2) + text
        body += _short_text(SERVER) + _short_text("") + struct.pack("<i", 1)
        self._tokens += bytes((token,)) + len(body).to_bytes(2, "little") + body


def greet(link: Link, login: Login, database: str, version: tuple[int, int, int]) -> None:
    """The answer to a login that is taken."""
    answer = Answer(link)
    answer.changed(1, _short_text(database), _short_text("master"))
    answer.info(5701, f"Changed database context to '{database}'.")
    answer.changed(7, bytes((len(COLLATION),)) + COLLATION, b"\x00")
    answer.changed(2, _short_text("us_english"), _short_text(""))
    answer.info(5703, "Changed language setting to us_english.")
    name = _short_text("Microsoft SQL Server")
    body = b"\x01" + (0x74000004).to_bytes(4, "big") + name + struct.pack(">BBH", *version)
    answer.token(b"\xad" + len(body).to_bytes(2, "little") + body)
    answer.changed(4, _short_text(str(link.packet)), _short_text(str(PACKET)))
    if login.extended:
        answer.token(b"\xae\xff")
    answer.end()


def transaction_began(answer: Answer, number: int) -> None:
    answer.changed(8, b"\x08" + number.to_bytes(8, "little"), b"\x00")


def transaction_ended(answer: Answer, number: int, *, committed: bool) -> None:
    answer.changed(9 if committed else 10, b"\x00", b"\x08" + number.to_bytes(8, "little"))


def database_changed(answer: Answer, new: str, old: str) -> None:
    answer.changed(1, _short_text(new), _short_text(old))
    answer.info(5701, f"Changed database context to '{new}'.")


def without_headers(data: bytes) -> Reader:
    """A reader behind ALL_HEADERS."""
    reader = Reader(data)
    reader.take(reader.number(4) - 4)
    return reader


def _short_text(text: str) -> bytes:
    return bytes((len(text.encode("utf-16-le")) // 2,)) + text.encode("utf-16-le")
