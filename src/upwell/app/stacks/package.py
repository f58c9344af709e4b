"""function.zip: upwell, what it needs on Lambda's machines, and what of the configuration the cloud needs.

The same input gives the same bytes: files in order, without times, owners and caches.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import yaml

from upwell.app.stacks.functions import RUNTIME
from upwell.errors import ConfigError, UpwellError

REQUIREMENTS: Final = "function-requirements.txt"  # locked, with hashes; `make lock` renews it
CA_FILE: Final = "rds-ca.pem"
CA_URL: Final = "https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem"
UNPACKED_BYTES_MAX: Final = 250 * 1024 * 1024  # Lambda's limit
INSTALL_S: Final = 600.0
_TIME: Final = (1980, 1, 1, 0, 0, 0)  # the first that a zip file knows
# What a machine in the data center has to know, and the cloud neither needs nor should have.
_STAYS: Final = ("source", "masking", "state", "limits", "subscriber")
_STAYS_OF_DESTINATION: Final = ("proxy", "ca_bundle", "endpoint_url")
_OF_THE_INSTALLATION: Final = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
_SECRET: Final = re.compile(r"\$\{secretsmanager:[^}]+\}")
_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True)
class Platform:
    """For which machines packages are fetched."""

    tags: tuple[str, ...]
    python: str


LAMBDA: Final = Platform(("manylinux_2_28_aarch64", "manylinux2014_aarch64"), RUNTIME.removeprefix("python"))


# --- the configuration --------------------------------------------------------------------------------------------


def cloud_configuration(
    text: str, *, cursor_secret: str, subscriber: Mapping[str, Any] | None = None, schema: str | None = None
) -> str:
    """What of the configuration goes along: nothing of the source, no secret. `subscriber`: the settings of the target
    in the cloud; `schema`: how the API's schema file is called in the package, None: without API.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode), "it was loaded before"
    _drop(root, _STAYS)
    for place in (("destination",), ("destination", "kinesis"), ("destination", "dynamodb")):
        _drop(_inner(root, *place), _STAYS_OF_DESTINATION)
        _drop(_inner(root, *place, "claim_check"), _STAYS_OF_DESTINATION)
    api = _inner(root, "api")
    if schema is None:
        _drop(root, ("api",))
    elif api is not None:
        _drop(api, ("database",))
        _set(api, "schema", schema)
        key = _value(api, "cursor_key")
        if not (isinstance(key, yaml.ScalarNode) and _SECRET.fullmatch(key.value)):
            _set(api, "cursor_key", f"${{secretsmanager:{cursor_secret}}}")
    if subscriber is not None:
        root.value.append((_scalar("subscriber"), yaml.compose(yaml.safe_dump(dict(subscriber)))))
    return str(yaml.serialize(root))


def variables(text: str, parts: Sequence[str]) -> set[str]:
    """The environment variables that these parts of a configuration name."""
    data = yaml.safe_load(text)
    chosen = {part: data.get(part) for part in parts} if isinstance(data, dict) else {}
    return set(_VARIABLE.findall(yaml.safe_dump(chosen)))


def _inner(node: yaml.Node | None, *path: str) -> yaml.MappingNode | None:
    for name in path:
        node = _value(node, name)
    return node if isinstance(node, yaml.MappingNode) else None


def _value(node: yaml.Node | None, name: str) -> yaml.Node | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((value for key, value in pairs if key.value == name), None)


def _drop(node: yaml.MappingNode | None, names: Sequence[str]) -> None:
    if node is not None:
        node.value = [(key, value) for key, value in node.value if key.value not in names]


def _set(node: yaml.MappingNode, name: str, text: str) -> None:
    _drop(node, (name,))
    node.value.append((_scalar(name), _scalar(text)))


def _scalar(text: str) -> yaml.ScalarNode:
    return yaml.ScalarNode("tag:yaml.org,2002:str", text)


# --- the file -----------------------------------------------------------------------------------------------------


def contents(own: Mapping[str, bytes], platform: Platform = LAMBDA) -> dict[str, bytes]:
    """Path → content of all that is in the package; `own`: what goes beside the code. Raises UpwellError."""
    found = {**dict(_dependencies(platform)), **dict(_upwell()), **own}
    size = sum(map(len, found.values()))
    if size > UNPACKED_BYTES_MAX:
        raise UpwellError(
            f"The package would have {size:,} bytes unpacked; Lambda takes {UNPACKED_BYTES_MAX:,}.",
            code="UW-CS-002",
            remedy="Report this: it depends on nothing that a configuration decides.",
        )
    return found


def name_of(found: Mapping[str, bytes]) -> str:
    """A name that says what is inside: with another content CloudFormation sees another package."""
    digest = hashlib.sha256()
    for path, content in sorted(found.items()):
        digest.update(f"{path}\0{len(content)}\0".encode() + content)
    return f"function-{digest.hexdigest()[:16]}.zip"


def write(found: Mapping[str, bytes], file: Path) -> None:
    """The package as a zip file."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path, content in sorted(found.items()):
            entry = zipfile.ZipInfo(path, _TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o100755 if path.endswith(".so") else 0o100644) << 16
            entry.create_system = 3  # Unix, wherever it is made
            archive.writestr(entry, content)


def _upwell() -> Iterator[tuple[str, bytes]]:
    """Our own code, and the metadata that knows its version."""
    yield from _files(Path(str(files("upwell"))), "upwell/")
    own = importlib.metadata.distribution("upwell")
    yield f"upwell-{own.version}.dist-info/METADATA", (own.read_text("METADATA") or "").encode()


def _dependencies(platform: Platform) -> Iterator[tuple[str, bytes]]:
    with tempfile.TemporaryDirectory(prefix="upwell-") as folder:
        lock = Path(folder, REQUIREMENTS)
        lock.write_bytes(files(__package__).joinpath(REQUIREMENTS).read_bytes())
        target = Path(folder, "packages")
        _install(lock, target, platform)
        yield from _files(target, "")


def _install(lock: Path, target: Path, platform: Platform) -> None:
    options = ["--quiet", "--disable-pip-version-check", "--no-compile", "--no-deps", "--require-hashes"]
    options += ["--only-binary", ":all:", "--implementation", "cp", "--python-version", platform.python]
    options += [f"--platform={tag}" for tag in platform.tags]
    done = subprocess.run(  # noqa: S603 - pip of our own environment
        [sys.executable, "-m", "pip", "install", *options, "--target", str(target), "-r", str(lock)],
        capture_output=True,
        text=True,
        check=False,
        timeout=INSTALL_S,
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        why = (
            "the package index can't be reached"
            if "Retrying (" in done.stderr
            else (said or ["it does not say why"])[0]
        )
        raise UpwellError(
            f"pip could not fetch what the functions need: {why.removeprefix('ERROR: ')}.",
            code="UW-CS-003",
            remedy="Run it where pip reaches its index (see pip's settings for proxies and mirrors), or, where the "
            f"environment has no pip: {sys.executable} -m ensurepip",
        )


def _files(folder: Path, prefix: str) -> Iterator[tuple[str, bytes]]:
    for file in sorted(folder.rglob("*")):
        place = file.relative_to(folder)
        of_us = "__pycache__" in place.parts or place.parts[0] == "bin" or file.name in _OF_THE_INSTALLATION
        if file.is_file() and not of_us:
            yield f"{prefix}{place.as_posix()}", file.read_bytes()


def certificates(folder: Path) -> bytes:
    """The authorities that sign Aurora's certificates. Raises ConfigError where they are missing."""
    try:
        return Path(folder, CA_FILE).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{Path(folder, CA_FILE)} is missing, by which the database proves to be Aurora.",
            code="UW-CS-004",
            remedy=f"curl --fail -o {Path(folder, CA_FILE)} {CA_URL}",
        ) from error


def api_schema(file: Path) -> bytes:
    """The API's contract. Raises ConfigError where it is missing."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{file}, the columns and keys of what the API shows, is missing.",
            code="UW-CS-004",
            remedy="upwell api --learn",
        ) from error
