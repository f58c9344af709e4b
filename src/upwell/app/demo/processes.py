"""Child processes of the demo: started, watched, and ended however the demo ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from upwell.app.demo.internet import LOOPBACK
from upwell.errors import UpwellError

STOP_S: Final = 12.0  # the product's roles take up to 10 s to finish their batch
LAST_WORDS_LINES: Final = 5
_PASSED_ON: Final = ("PATH", "LANG", "SYSTEMROOT", "TMPDIR", "TEMP", "TMP", "USERPROFILE", "UPWELL_FAILPOINTS")


class DemoFailed(UpwellError):
    """The demo can't go on; the message says why, and what to do."""


class Process:
    """A child process with a log of its own."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: str | None = None,
    ) -> None:
        """`env`: what it sees beside the little that every program needs. `user`: a system user to run as."""
        self.name = name
        self._log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=cwd,
                env=environment(env or {}),
                **as_user(user),
                **_APART,
            )

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._popen.poll()

    def ask_to_stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send it the signal; on Windows, where programs can't be asked, the same as `kill`."""
        if os.name == "nt":
            self._popen.terminate()
        else:
            self._popen.send_signal(number)

    def await_end(self) -> int:
        """Its exit code; what does not stop in time is killed."""
        try:
            return self._popen.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._popen.wait()

    def kill(self) -> None:
        """A crash: it gets no chance to do anything."""
        self._popen.kill()
        self._popen.wait()

    def last_words(self) -> str:
        """The end of its log."""
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-LAST_WORDS_LINES:]) or "(it printed nothing)"


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """What a child sees of our environment, and `more`: no credentials, proxies or settings that happen to be ours."""
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | dict(more)


def as_user(user: str | None) -> dict[str, Any]:
    """Arguments for subprocess that run a program as that system user."""
    if user is None:
        return {}
    import pwd  # absent on Windows, where no user is ever given

    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def free_port() -> int:
    """A port of loopback on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def await_port(process: Process, port: int, within_s: float) -> None:
    """Return when the process takes connections. Raises DemoFailed where it ended, or takes too long."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            socket.create_connection((LOOPBACK, port), 1.0).close()
        except OSError:
            if not process.running:
                raise DemoFailed(f"{process.name} did not start:\n{process.last_words()}") from None
            if time.monotonic() > deadline:
                raise DemoFailed(f"{process.name} did not start within {within_s:.0f} s.") from None
            time.sleep(0.05)
        else:
            return


# Ctrl-C in the terminal is for the demo alone, which ends its children in order.
_APART: dict[str, Any]
if sys.platform == "win32":
    _APART = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
else:
    _APART = {"start_new_session": True}
