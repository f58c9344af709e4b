"""Gets what the lab misses: system packages where we may install them, the rest into .lab/."""

import base64
import fcntl
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import find, kcl
from lab.part import PartMissing

# DynamoDB Local has no package of its own; this one carries Amazon's unchanged files. Its licence lets us run it, not
# pass it on: so it is fetched, and never part of anything that we publish.
DYNAMODB_PACKAGE = f"amplify-dynamodb-simulator@{find.DYNAMODB_VERSION}"
DYNAMODB_INTEGRITY = "sha512-xTeeRLvzEfqyd5lh3bH4c0kHvSHHmmhD5ZDsHFKAQ5g2Zl6JqlFdutaQhCLHzxEp6Ry1o7TB6niIoXuQAnSewQ=="

NPM_FILES = ("package.json", "package-lock.json", "kinesis.cjs")


def fetch(say: Callable[[str], None]) -> None:
    """Makes every part available; what already is costs nothing.

    Raises PartMissing with what only a person can install.
    """
    try:
        _system_part(find.system_postgres_bin, ["postgresql"], say)
    except PartMissing:
        # Good enough for all but TLS and SQL Server's stand-in. If it isn't there either, this says what to install.
        say(f"no PostgreSQL on this machine: using {find.postgres_bin()}")
    _system_part(find.node, ["nodejs", "npm"], say)
    _system_part(find.java, ["default-jre-headless"], say)
    _system_part(find.haproxy, ["haproxy"], say)
    find.PARTS.mkdir(exist_ok=True)
    with _one_at_a_time(find.PARTS / "lock"):
        _fetch_kinesalite(say)
        _fetch_dynamodb_local(say)
        _fetch_ministack(say)
        try:
            kcl.fetch(say)
        except PartMissing as missing:
            # Of all parts this one comes from Maven Central. Its tests say that they did not run, and why.
            say(f"{missing}. The tests of the fleet's subscriber will not run")


def _system_part(found: Callable[[], Path], packages: list[str], say: Callable[[str], None]) -> None:
    try:
        found()
    except PartMissing as missing:
        if shutil.which("apt-get") is None or os.geteuid() != 0:
            raise
        say(f"{missing}. Installing {' '.join(packages)}")
        quiet_apt = ["apt-get", "--quiet=2", "--option", "Dpkg::Use-Pty=0"]
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for step in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
            if subprocess.run([*quiet_apt, *step], env=environment, check=False).returncode:
                raise PartMissing(f"{missing} (apt-get {step[0]} failed)") from None
        found()


def _fetch_kinesalite(say: Callable[[str], None]) -> None:
    source, target = Path(__file__).with_name("npm"), find.KINESALITE
    if all(_same(source / name, target / name) for name in NPM_FILES):
        return
    say("fetching Kinesalite")
    with _new_folder(target) as folder:
        for name in NPM_FILES:
            shutil.copy(source / name, folder)
        # Its only install script would compile a store that comes compiled with the package.
        _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"], folder)


def _fetch_dynamodb_local(say: Callable[[str], None]) -> None:
    if find.DYNAMODB.exists():
        return
    say("fetching DynamoDB Local, 57 MB")
    with _new_folder(find.DYNAMODB) as folder:
        _run(["npm", "pack", DYNAMODB_PACKAGE, "--ignore-scripts", "--loglevel", "error"], folder)
        (archive,) = folder.glob("*.tgz")
        if integrity(archive) != DYNAMODB_INTEGRITY:
            raise PartMissing(f"{DYNAMODB_PACKAGE} is not the file it was: expected {DYNAMODB_INTEGRITY}")
        _unpack(archive, "package/emulator/", folder)
        archive.unlink()


def _fetch_ministack(say: Callable[[str], None]) -> None:
    """An environment of its own, because it pins its own botocore. An environment knows its place: it is made there,
    and is whole when its last file is there."""
    target = find.ministack_folder()
    whole = target / "whole"
    if whole.exists():
        return
    say("fetching ministack, 10 MB")
    shutil.rmtree(target, ignore_errors=True)
    venv.create(target, with_pip=True, symlinks=True)
    options = ["--quiet", "--disable-pip-version-check", "--require-hashes", "--only-binary", ":all:"]
    pip = [str(target / "bin" / "python"), "-m", "pip", "install", *options]
    _run([*pip, "--requirement", str(find.MINISTACK_LOCK)], target)
    whole.touch()


def _unpack(archive: Path, prefix: str, folder: Path) -> None:
    """Writes the files under the prefix. The archive's hash is known, so its names need no distrust."""
    with tarfile.open(archive) as files:
        for member in files:
            content = files.extractfile(member)
            if content is not None and member.name.startswith(prefix):
                target = folder / member.name.removeprefix(prefix)
                target.parent.mkdir(parents=True, exist_ok=True)
                with content, target.open("wb") as file:
                    shutil.copyfileobj(content, file)


def integrity(file: Path) -> str:
    """A file's hash, written as npm does."""
    with file.open("rb") as content:
        return "sha512-" + base64.b64encode(hashlib.file_digest(content, "sha512").digest()).decode()


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.read_bytes() == other.read_bytes()


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder that takes the target's place only when everything in the block went well."""
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix="new-"))
    try:
        yield folder
        shutil.rmtree(target, ignore_errors=True)
        folder.chmod(0o755)
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PartMissing(f"`{' '.join(command)}` failed:\n{done.stderr.strip() or done.stdout.strip()}")
