"""Amazon's Kinesis Client Library for Python: a package that is only a source, and the jars that it asks Maven for.

Its own installation fetches whatever Maven has; here each file is the one whose hash is known.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path

from lab import find
from lab.part import PartMissing

VERSION = "3.1.3"
SHA256 = "146bf4a85c79eb6d3c842075d7fe2a1ffad3f2944c24db202add5e2a875259c9"
JARS = Path(__file__).with_name("kcl_jars.sha256")
FOLDER = find.PARTS / f"kcl-{VERSION}"
_POM = "{http://maven.apache.org/POM/4.0.0}"
FETCH_S = 60.0


def folder() -> Path:
    """What is to stand on PYTHONPATH. Raises PartMissing where it could not be fetched."""
    if not (FOLDER / "amazon_kclpy").exists():
        raise PartMissing(f"{FOLDER} is missing: `make parts` fetches it, if Maven Central can be reached")
    return FOLDER


def fetch(say: Callable[[str], None]) -> None:
    """Raises PartMissing where a file can't be had, or is another one."""
    if FOLDER.exists():
        return
    say("fetching Amazon's Kinesis Client Library, 32 MB")
    with tempfile.TemporaryDirectory(dir=find.PARTS) as place:
        source = _source(Path(place))
        package = source / "amazon_kclpy"
        (package / "jars").mkdir(exist_ok=True)
        known = {name: sha256 for sha256, name in map(str.split, JARS.read_text().splitlines())}
        for path in _wanted(source / "pom.xml"):
            _jar(f"{_maven(source / 'setup.py')}{path}", package / "jars" / path.rpartition("/")[2], known)
        whole = Path(place, "whole")
        whole.mkdir()
        shutil.move(package, whole)
        whole.rename(FOLDER)


def _source(place: Path) -> Path:
    """The package's source, unpacked. No wheel is built: that is what would fetch jars unasked."""
    pin = place / "pin.txt"
    pin.write_text(f"amazon-kclpy=={VERSION} --hash=sha256:{SHA256}\n")
    only_it = ["--no-deps", "--no-binary", ":all:", "--require-hashes", "--requirement", str(pin), "--dest", str(place)]
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", *only_it]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PartMissing(f"amazon-kclpy {VERSION} can't be fetched:\n{done.stderr.strip()}")
    (archive,) = place.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        files.extractall(place, filter="data")
    return next(place.glob("amazon*kclpy*/setup.py")).parent


def _maven(setup: Path) -> str:
    """Where the package itself would fetch from."""
    named = re.search(r"KCL_MVN_REPO_SEARCH_URL[\"'], [\"']([^\"']+)", setup.read_text())
    assert named is not None, "its setup.py is another one"
    return os.environ.get("KCL_MVN_REPO_SEARCH_URL", named[1])


def _wanted(pom: Path) -> Iterator[str]:
    """The jars of the package's list, as Maven's paths."""
    root = ElementTree.parse(pom).getroot()  # noqa: S314 - its archive's hash is known
    named = {f"${{{child.tag.removeprefix(_POM)}}}": child.text for child in root.iterfind(f"{_POM}properties/*")}
    for dependency in root.iter(f"{_POM}dependency"):
        group, artifact, version = (dependency.findtext(_POM + of, "") for of in ("groupId", "artifactId", "version"))
        version = named.get(version) or version
        yield f"{group.replace('.', '/')}/{artifact}/{version}/{artifact}-{version}.jar"


def _jar(url: str, target: Path, known: dict[str, str]) -> None:
    try:
        with urllib.request.urlopen(url, timeout=FETCH_S) as answer:  # noqa: S310 - the package's own address
            content = answer.read()
    except OSError as error:
        raise PartMissing(f"{target.name} can't be fetched from Maven Central: {error}") from error
    if hashlib.sha256(content).hexdigest() != known.get(target.name):
        raise PartMissing(f"{target.name} is not the file it was")
    target.write_bytes(content)
