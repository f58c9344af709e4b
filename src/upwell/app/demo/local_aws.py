"""The demo's AWS: ministack on loopback, in an environment of its own because it pins its own botocore."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Final

from upwell.app.demo.internet import LOOPBACK
from upwell.app.demo.processes import DemoFailed, Household, Process, await_port, free_port

REGION: Final = "eu-west-1"
START_S: Final = 60.0
INSTALL_S: Final = 600.0
# Its locked requirements, a part of this package; `make lock` renews them.
REQUIREMENTS: Final = "aws-requirements.txt"
# For ministack, which checks none, and only in the environment of the demo's processes.
FAKE_CREDENTIALS: Final = {
    "AWS_ACCESS_KEY_ID": "demo",
    "AWS_SECRET_ACCESS_KEY": "demo",
    "AWS_REGION": REGION,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


class LocalAws:
    """Kinesis and DynamoDB. Starts when it is made; `close` ends it, and its streams and tables are gone."""

    def __init__(self, household: Household, say: Callable[[str], None]) -> None:
        """`say` is told, in a sentence, what takes long."""
        python = _installed(say)
        self.port = free_port()
        folder = household.folder / "aws"
        folder.mkdir()
        self.process = Process(
            household,
            "The local AWS",
            [python, "-m", "ministack"],
            folder / "log",
            env=_environment(folder, self.port),
            cwd=folder,
        )
        try:
            await_port(self.process, self.port, START_S)
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def close(self) -> None:
        """It keeps nothing, so it needs no time to end."""
        self.process.kill()


def _environment(folder: Path, port: int) -> dict[str, str]:
    return {
        "BIND_HOST": LOOPBACK,
        "GATEWAY_PORT": str(port),
        "SFTP_ENABLED": "0",
        "IOT_MTLS_ENABLED": "0",
        "LOG_LEVEL": "WARNING",
        "HOME": str(folder),
        "TMPDIR": str(folder),
    }


def _installed(say: Callable[[str], None]) -> Path:
    """The Python that has ministack; made at the first run and kept for the next. Raises DemoFailed."""
    lock = (resources.files(__package__) / REQUIREMENTS).read_bytes()
    name = hashlib.sha256(lock + sys.version.encode()).hexdigest()[:12]
    try:
        cache = _cache_folder()
        kept = cache / f"demo-aws-{name}"
        if not _python(kept).exists():
            say("Fetching the local AWS (ministack, about 10 MB); only the first time.")
            _install(kept, lock)
    except OSError as error:
        raise DemoFailed(
            f"The local AWS can't be kept in {cache}: {error.strerror}.",
            code="UW-DM-004",
            remedy="Set XDG_CACHE_HOME to a folder that can be written to.",
        ) from error
    return _python(kept)


def _install(kept: Path, lock: bytes) -> None:
    """Make the environment beside its place and move it there when it is whole: two demos may do so at once."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=kept.parent, prefix="new-"))
    try:
        _make_environment(made)
        (made / REQUIREMENTS).write_bytes(lock)
        _pip_install(made)
        if not _python(kept).exists():
            made.rename(kept)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _make_environment(made: Path) -> None:
    try:
        venv.create(made, with_pip=True, symlinks=os.name != "nt")
    except subprocess.CalledProcessError as error:
        raise DemoFailed(
            f"{sys.executable} can't make an environment for the local AWS.",
            code="UW-DM-006",
            remedy="On Debian and Ubuntu: apt-get install python3-venv",
        ) from error


def _pip_install(made: Path) -> None:
    options = ["--quiet", "--disable-pip-version-check", "--require-hashes", "--only-binary", ":all:"]
    done = subprocess.run(
        [_python(made), "-m", "pip", "install", *options, "-r", made / REQUIREMENTS],
        capture_output=True,
        text=True,
        check=False,
        timeout=INSTALL_S,
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["it does not say why"]
        why = "the package index can't be reached." if "Retrying (" in done.stderr else said[-1]
        raise DemoFailed(
            f"pip could not fetch the local AWS: {why}",
            code="UW-DM-005",
            remedy="It needs the package index once; see pip's settings for proxies and mirrors.",
        )


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _cache_folder() -> Path:
    named = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(named) if named else Path.home() / ".cache") / "upwell"
