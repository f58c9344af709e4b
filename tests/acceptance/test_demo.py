"""The demo as a user starts it: unattended, with keys in a terminal, and killed."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from lab.find import PARTS

ROOT = Path(__file__).parents[2]
UPWELL = Path(sys.executable).with_name("upwell")
# source → the command
DEMOS: dict[str, list[str | Path]] = {
    "sqlite": [UPWELL, "demo"],
    "sqlserver": [sys.executable, "-m", "lab.demo", "--source", "sqlserver"],
}
# The first run fetches the local AWS, and a busy machine may take long.
DEMO_S = 240.0
GONE_S = 20.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """What the demo takes for the machine's temporary folder. All users may pass: root's PostgreSQL runs as another."""
    folder = Path(tempfile.mkdtemp(prefix="upwell-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


def environ(folder: Path) -> dict[str, str]:
    # The local AWS is kept where the lab keeps what it fetched.
    cache = {"XDG_CACHE_HOME": str(PARTS / "cache")}
    return os.environ | cache | {"TMPDIR": str(folder), "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}


def processes(folder: Path) -> list[str]:
    """The processes that work in the demo's folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if str(folder) in " ".join([*process.cmdline(), process.cwd()]):
                found.append(" ".join(process.cmdline()))
    return found


def await_true(condition: Callable[[], bool], within_s: float, what: str) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.mark.parametrize("source", DEMOS)
def test_unattended_it_survives_a_cut_and_a_kill_and_ends_equal(folder: Path, source: str) -> None:
    done = subprocess.run(
        [*DEMOS[source], "--for", "20s", "--no-browser"],
        capture_output=True,
        text=True,
        timeout=DEMO_S,
        check=False,
        env=environ(folder),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
    )
    told = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, told
    milestones = [
        "The Internet is cut",
        "The Internet is back",
        "Killed publisher-north and publisher-south",
        "Started publisher-north",  # the other one together with it, or just after
        "The people go home",
        "Equal: each value of all",
    ]
    places = [done.stdout.find(milestone) for milestone in milestones]
    assert -1 not in places, told
    assert places == sorted(places), told
    rows = re.findall(r"│ (customers|products|orders|order_lines) +│ +([\d,]+) │ +([\d,]+) │ +0 │", done.stdout)
    assert len(rows) == 8, told
    assert all(here == there != "0" for _, here, there in rows), told
    assert processes(folder) == []
    assert list(folder.iterdir()) == []


class Terminal:
    """The demo in a terminal of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            [UPWELL, "demo", *arguments], stdin=slave, stdout=slave, stderr=slave, env=environ(folder)
        )
        os.close(slave)
        self._unread = ""

    def await_text(self, pattern: str) -> None:
        """Reads on until the pattern stands on the screen; what came before is forgotten."""
        deadline = time.monotonic() + DEMO_S
        while not (found := re.search(pattern, self._unread)):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self._unread[-4000:]}"
            self._read(1.0)
        self._unread = self._unread[found.end() :]

    def press(self, key: str) -> None:
        os.write(self._master, key.encode())

    def await_end(self) -> int:
        deadline = time.monotonic() + DEMO_S
        while self._process.poll() is None:
            assert time.monotonic() < deadline, self._unread[-4000:]
            self._read(0.2)  # else it would wait for somebody to read
        os.close(self._master)
        return self._process.returncode

    def _read(self, wait_s: float) -> None:
        if select.select([self._master], [], [], wait_s)[0]:
            with suppress(OSError):  # its end
                self._unread += os.read(self._master, 65_536).decode(errors="replace")


def test_keys_cut_the_internet_and_kill_the_publisher(folder: Path) -> None:
    terminal = Terminal(folder, "--relational")
    terminal.await_text("customers.*equal")
    terminal.press("i")
    terminal.await_text("CUT")
    terminal.await_text(r"customers.*\d+ differ")
    terminal.press("k")
    terminal.await_text("KILLED")
    terminal.await_text("Started publisher-north again")
    terminal.await_text("publisher.*ended")  # it found no Internet
    terminal.press("i")
    terminal.await_text("Caught up")
    terminal.press("q")
    terminal.await_text("Equal: each value of all")
    assert terminal.await_end() == 0
    assert processes(folder) == []


@pytest.mark.parametrize("source", DEMOS)
def test_killed_it_leaves_nothing_behind(folder: Path, source: str) -> None:
    with (folder / "log").open("wb") as log:
        demo = subprocess.Popen(
            DEMOS[source], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ(folder), cwd=ROOT
        )
    roles = re.compile("-m upwell (publish|subscribe)")
    await_true(lambda: len([each for each in processes(folder) if roles.search(each)]) == 3, DEMO_S, "no roles")
    demo.kill()
    demo.wait()
    await_true(lambda: processes(folder) == [], GONE_S, f"still there: {processes(folder)}")
    await_true(lambda: [each.name for each in folder.iterdir()] == ["log"], GONE_S, "its folder stays")
