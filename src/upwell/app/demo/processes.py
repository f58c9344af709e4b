"""Child processes of the demo: started, watched, and ended however the demo ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from upwell.app.demo import custodian
from upwell.app.demo.internet import LOOPBACK
from upwell.errors import UpwellError

STOP_S: Final = 12.0  # the product's roles take up to 10 s to finish what is under way
LAST_WORDS_LINES: Final = 5
_PASSED_ON: Final = (
    "PATH", "LANG", "SYSTEMROOT", "TMPDIR", "TEMP", "TMP", "USERPROFILE", "MSSQL_PYTHON_NATIVE_PROVIDER",
)  # fmt: skip


class DemoFailed(UpwellError):
    """The demo can't go on; the message says why, and what to do."""


class Household:
    """A folder and child processes that are gone when it is left; a custodian sees to it should we be killed."""

    def __enter__(self) -> Self:
        # Servers may run as another user, who must be able to pass through to their own folders.
        self.folder = Path(tempfile.mkdtemp(prefix="upwell-demo-")).resolve()
        self.folder.chmod(0o711)
        # What we and drivers put aside for a moment goes with it, should we be killed in that moment.
        self._usual_tempdir, tempfile.tempdir = tempfile.tempdir, str(self.folder)
        self._custodian = subprocess.Popen(
            [sys.executable, "-I", "-S", custodian.__file__, self.folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            **_APART,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        tempfile.tempdir = self._usual_tempdir
        with suppress(OSError):
            self._custodian.communicate()

    def tell(self, line: str) -> None:
        """A line to the custodian."""
        assert self._custodian.stdin is not None
        with suppress(OSError):  # somebody ended it; then there is one precaution less
            self._custodian.stdin.write(line + "\n")
            self._custodian.stdin.flush()


class Process:
    """A child process with a log of its own."""

    def __init__(
        self,
        household: Household,
        name: str,
        command: Sequence[str | Path],
        log: Path,
        *,
        env: Mapping[str, str],
        cwd: Path,
        user: str | None = None,
        last_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        """`env`: what it sees beside the little that every program needs. `user`: a system user to run as.
        `last_signal`: how it is ended should the demo be killed.
        """
        self.name = name
        self._household = household
        self._log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=cwd,
                env=environment(env),
                **as_user(user),
                **_APART,
            )
        household.tell(f"+{self._popen.pid} {last_signal.value}")

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

    def await_end(self) -> None:
        """What does not stop in time is killed."""
        try:
            self._popen.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
        self._ended()

    def kill(self) -> None:
        """A crash: it gets no chance to do anything."""
        self._popen.kill()
        self._ended()

    def last_words(self) -> str:
        """The end of its log."""
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-LAST_WORDS_LINES:]) or "(it printed nothing)"

    def _ended(self) -> None:
        self._popen.wait()
        self._household.tell(f"-{self._popen.pid}")


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
