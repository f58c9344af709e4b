"""A part of the lab: one server process with a port and a folder of its own, on a leash."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

LOOPBACK = "127.0.0.1"
START_S = 60.0  # a busy machine may take long; a part that died is noticed at once
STOP_S = 30.0
PORT_TRIES = 10
PORT_TAKEN = ("already in use", "EADDRINUSE")  # how servers say it
# Below the range that Linux, macOS and Windows give to outgoing connections, so that a part which restarts finds its
# port still free.
PORTS = range(20_000, 32_000)

_LEASH = Path(__file__).with_name("leash.py")


class PartMissing(Exception):
    """A server that the lab needs is not on this machine; the message says what to install."""


class PartFailed(Exception):
    """A server of the lab did not start, or died; the message ends with its last words."""


class Part(ABC):
    """One server. `start` is `launch` and `await_ready`: whoever starts several launches all of them first.

    After `stop` it can be started again, on the same port; `close` ends it for good and removes its folder.
    """

    name: str
    stop_signal = signal.SIGTERM
    last_signal = signal.SIGKILL

    def __init__(self, user: str | None = None) -> None:
        """user: the system user to run as; None: the one who calls."""
        self._user = user
        self._folder: Path | None = None
        self._leash: subprocess.Popen[bytes] | None = None
        self._port: int | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """What runs the server in the foreground on `self.port`."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether the server serves requests by now."""

    def prepare(self) -> None:  # noqa: B027 - most parts have nothing to prepare
        """Makes what the server needs in its new folder, once, before its first launch."""

    @property
    def port(self) -> int:
        assert self._port is not None, f"{self.name} was never started"
        return self._port

    @property
    def folder(self) -> Path:
        assert self._folder is not None, f"{self.name} was never started"
        return self._folder

    @property
    def running(self) -> bool:
        return self._leash is not None and self._leash.poll() is None

    def start(self) -> None:
        self.launch()
        self.await_ready()

    def launch(self) -> None:
        """Starts the process and returns at once."""
        self._forget_leash()
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix=f"upwell-lab-{self.name}-"))
            if self._user is not None:
                shutil.chown(self._folder, self._user)
            self.prepare()
        if self._port is None:
            self._port = free_port()
        options = {
            "user": self._user,
            "log": str(self._log),
            "last_signal": self.last_signal.name,
            "remove": str(self._folder),
        }
        self._log.write_bytes(b"")
        self._leash = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_LEASH), json.dumps(options), *self.command()],
            stdin=subprocess.PIPE,
            cwd=self._folder,
            env=self._environment(),
            start_new_session=True,  # the terminal's Ctrl-C is for the owner alone
        )

    def await_ready(self) -> None:
        """Returns when the server answers. A port that somebody else took meanwhile is exchanged for another."""
        deadline = time.monotonic() + START_S
        for _ in range(PORT_TRIES):
            if self._comes_up(deadline):
                return
            if not self._port_was_taken():
                break
            self.kill()  # Java goes on without its port
            self._port = None
            self.launch()
        last_words = self.last_words()
        self.close()
        raise PartFailed(f"{self.name} did not start:\n{last_words}")

    def stop(self) -> None:
        """Asks the server to end, and waits until it has."""
        self.signal(self.stop_signal)
        self.await_end()

    def kill(self) -> None:
        """Ends the server without asking: a crash."""
        self.signal(signal.SIGKILL)
        self.await_end()

    def restart(self) -> None:
        """Stops and starts it, on the same port."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Ends the server and removes its folder. Closing twice does nothing."""
        if self.running and self._leash and self._leash.stdin:
            self._leash.stdin.close()
            self._leash.wait(STOP_S)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        self._forget_leash()

    def signal(self, number: signal.Signals) -> None:
        """Sends the server a signal; nothing if it has ended."""
        if self._leash is None or self._leash.stdin is None:
            return
        with suppress(BrokenPipeError):  # it ended meanwhile, which is what signals are sent for
            self._leash.stdin.write(number.name.encode() + b"\n")
            self._leash.stdin.flush()

    def await_end(self) -> None:
        if self._leash is not None:
            self._leash.wait(STOP_S)
        self._forget_leash()

    def last_words(self) -> str:
        """The end of what the server printed."""
        if self._folder is None or not self._log.exists():
            return "(it printed nothing)"
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:]) or "(it printed nothing)"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def _log(self) -> Path:
        return self.folder / "log"

    def _environment(self) -> dict[str, str]:
        """The caller's, less the home that another user may not read and the locale that may not be installed."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "PG"))}
        return kept | {"HOME": str(self.folder), "LANG": "C"}

    def _comes_up(self, deadline: float) -> bool:
        while time.monotonic() < deadline:
            answered = self.answers()
            # Looked at after the answer: else it may have been that of another's server on our port.
            if not self.running or self._port_was_taken():
                return False
            if answered:
                return True
            time.sleep(0.02)
        return False

    def _port_was_taken(self) -> bool:
        return any(words in self.last_words() for words in PORT_TAKEN)

    def _forget_leash(self) -> None:
        if self._leash is not None and self._leash.stdin is not None:
            with suppress(BrokenPipeError):  # a signal that came too late was still in the pipe
                self._leash.stdin.close()
        self._leash = None


def free_port() -> int:
    """A port on which nothing listens now; the part that takes it says when somebody was faster."""
    for _ in range(1000):
        port = random.choice(PORTS)  # noqa: S311 - chance spreads labs that start at the same time, it protects nothing
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise PartFailed(f"no free port from {PORTS.start} to {PORTS.stop} on {LOOPBACK}")
