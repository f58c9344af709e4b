"""A stand-in for AWS's JSON services that takes everything and keeps nothing: what is left is the client.

Run as a program it serves until its standard input closes, and prints its port first.
"""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

LOOPBACK = "127.0.0.1"
_ROOT = Path(__file__).resolve().parents[1]

_ANSWERS = {
    b".PutRecords": b'{"FailedRecordCount":0,"Records":[]}',
    b".DescribeStreamSummary": b'{"StreamDescriptionSummary":{"StreamStatus":"ACTIVE"}}',
}


class _Answers(asyncio.Protocol):
    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._received[:end])
            length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
            if len(self._received) < end + 4 + length:
                return
            body = next((answer for action, answer in _ANSWERS.items() if action in head), b"{}")
            del self._received[: end + 4 + length]
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            if self._delay_s:
                asyncio.get_running_loop().call_later(self._delay_s, self._transport.write, answer)
            else:
                self._transport.write(answer)


async def _serve(delay_s: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Answers(delay_s), LOOPBACK, 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


@contextlib.contextmanager
def stub(delay_s: float = 0.0) -> Iterator[str]:
    """The stub's URL; a process of its own, which ends with the block. `delay_s`: before each answer."""
    command = [sys.executable, "-m", "bench.stub", str(delay_s)]
    with subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield f"http://{LOOPBACK}:{int(process.stdout.readline())}"
        process.stdin.close()
        process.wait(10)


if __name__ == "__main__":
    asyncio.run(_serve(float(sys.argv[1])))
