"""`upwell init`: from a database's URL to a configuration that can be used as it is, and what others must grant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from upwell.app import build
from upwell.app.logs import visible
from upwell.config import identifier
from upwell.errors import ConfigError
from upwell.model import Inspected, TableName
from upwell.settings import SOURCE_SCHEMES

PASSWORD_VARIABLE: Final = "UPWELL_SOURCE_PASSWORD"  # noqa: S105 - its name, not its value
ROLE: Final = "upwell"  # of its own, with no more rights than publishing needs
_PORTS: Final = {"postgresql": 5432, "sqlserver": 1433}
_REGION: Final = "REGION"  # stands in firewall.txt where none is known


@dataclass(frozen=True)
class Destination:
    """What --to names."""

    kind: str  # kinesis | dynamodb | stdout
    name: str = ""  # a stream, or the prefix of tables


def destination(to: str | None) -> Destination:
    """Of `kinesis://STREAM` or `dynamodb://PREFIX`. Raises ConfigError."""
    if to is None:
        return Destination("stdout")
    kind, found, name = to.partition("://")
    if not found or kind not in ("kinesis", "dynamodb") or not name.strip("/"):
        raise ConfigError(
            "--to is neither kinesis://STREAM nor dynamodb://PREFIX.",
            code="UW-CL-003",
            remedy="Leave it out to print the events: `stdout` needs no account.",
        )
    return Destination(kind, name.strip("/"))


def dialect_of(url: str) -> str:
    """Raises ConfigError for a URL of no known kind."""
    scheme = url.partition("://")[0]
    if "://" not in url or scheme not in SOURCE_SCHEMES:
        raise ConfigError(
            "The source's URL is of no kind that this version reads.",
            code="UW-CL-003",
            remedy="Write postgresql://USER:PASSWORD@HOST/DATABASE, mssql://USER:PASSWORD@HOST/DATABASE or sqlite:///FILE.",
        )
    return SOURCE_SCHEMES[scheme]


def init(url: str, to: str | None, file: Path, *, force: bool, environ: Mapping[str, str]) -> list[Path]:
    """Write the configuration to `file`, and beside it grants.sql and firewall.txt; their paths. Raises UpwellError."""
    towards, dialect = destination(to), dialect_of(url)
    folder = file.absolute().parent
    paths = [file, folder / "grants.sql", folder / "firewall.txt"]
    there = [str(path) for path in paths if path.exists()]
    if there and not force:
        raise ConfigError(
            f"{', '.join(there)} would be overwritten.", code="UW-CL-002", remedy="Use --force, or another -c FILE."
        )
    tables = build.inspect(dialect, url, Path.cwd())
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    texts = [
        "\n".join(_configuration(url, dialect, towards, tables, folder, region)) + "\n",
        "\n".join(_grants(url, dialect, tables)) + "\n",
        "\n".join(_firewall(url, dialect, towards, region)) + "\n",
    ]
    for path, text in zip(paths, texts, strict=True):
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}.", code="UW-CL-002") from error
    return paths


def pipeline_name(url: str, dialect: str) -> str:
    """The database's name, as far as a pipeline may be called so."""
    path = urlsplit(url).path if dialect != "sqlite" else Path(url).stem
    name = "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "-" for c in unquote(path).strip("/").lower())
    return (name.lstrip("_.-") or "shop")[:63]


def _configuration(
    url: str, dialect: str, towards: Destination, tables: Sequence[Inspected], folder: Path, region: str | None
) -> Iterator[str]:
    name = pipeline_name(url, dialect)
    yield "# Written by `upwell init`. `upwell config schema` describes every setting."
    yield f"pipeline: {name}"
    yield ""
    yield "source:"
    shown, secret = _without_password(url) if dialect != "sqlite" else (_sqlite_url(url, folder), False)
    if secret:
        yield f"  # Set {PASSWORD_VARIABLE} before every command, or use ${{file:PATH}}."
    yield f"  url: {_quoted(shown)}"
    if dialect == "postgresql":
        yield f"  # `upwell track` makes the publication and the replication slot {identifier(name)}."
    yield "  on_gap: resync   # or: halt"
    yield ""
    yield "destination:"
    yield from _destination_lines(towards, region)
    yield ""
    if towards.kind == "kinesis":
        yield "# For `upwell subscribe`, on whichever machine it runs:"
        yield "# subscriber:"
        yield "#   target: postgresql://USER:${TARGET_PASSWORD}@HOST/DATABASE"
        yield ""
    yield "# What leaves: see columns, exclude, where, rename and mask in docs/configuration.md."
    yield from _table_lines(tables)
    yield ""
    yield "state: upwell-state.db"


def _destination_lines(towards: Destination, region: str | None) -> Iterator[str]:
    if towards.kind == "stdout":
        yield "  stdout: {}   # or: kinesis: {stream: NAME, region: REGION}, or: dynamodb: {table_prefix: NAME-}"
        return
    place = f", region: {region}" if region else ""
    setting = "stream" if towards.kind == "kinesis" else "table_prefix"
    yield f"  {towards.kind}: {{{setting}: {_quoted(towards.name)}{place}}}"
    if not region:
        yield "  # The region is the one that the AWS environment says (AWS_REGION, ~/.aws/config)."


def _table_lines(tables: Sequence[Inspected]) -> Iterator[str]:
    good = [table for table in tables if table.schema is not None]
    yield "tables:" if good else "tables: {}   # none of the database's tables can be published"
    for table in good:
        rows = "" if table.rows is None else f"   # about {table.rows} rows"
        yield f"  {_quoted(str(table.name))}: {{}}{rows}"
    for table in tables:
        if table.schema is None:
            yield f"  # left out: {visible(' '.join(table.problem.split()))}"


def _quoted(text: str) -> str:
    """As YAML's double-quoted text, which has the same escapes as ours for what it does not take as it is."""
    return '"' + visible(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def _without_password(url: str) -> tuple[str, bool]:
    """The URL with a placeholder for its password; whether it had one."""
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    user_info, at, host = authority.rpartition("@")
    user, colon, _ = user_info.partition(":")
    if not at or not colon:
        return url.replace("${", "$${"), False
    return f"{scheme}://{user}:${{{PASSWORD_VARIABLE}}}@{host}{slash}{path}", True


def _sqlite_url(url: str, folder: Path) -> str:
    """Relative to the configuration where it lies below its folder: both can be moved together."""
    path = Path(build.sqlite_path(url, Path.cwd())).absolute()
    shown = path.relative_to(folder) if path.is_relative_to(folder) else path
    return f"sqlite:///{shown}".replace("${", "$${")


def _grants(url: str, dialect: str, tables: Sequence[Inspected]) -> Iterator[str]:
    if dialect == "sqlite":
        yield "-- SQLite has no rights of its own: the user that runs upwell must be able to write the database file"
        yield "-- and its folder, since `upwell track` keeps a log of changes in the database."
        return
    names: list[TableName] = [table.name for table in tables if table.schema is not None]
    what = "login" if dialect == "sqlserver" else "role"
    yield f"-- For the database's administrator: a {what} {ROLE} with the least rights that publishing needs."
    yield "-- Then name it in upwell.yaml. `upwell track` must run once as the owner of the tables."
    yield from build.grants_sql(dialect, names, role=ROLE, database=unquote(urlsplit(url).path.strip("/")))


def _firewall(url: str, dialect: str, towards: Destination, region: str | None) -> Iterator[str]:
    yield "# All connections are outbound; nothing ever connects to this machine."
    yield "# host, port, what for"
    place = region or _REGION
    if dialect in _PORTS:
        parts = urlsplit(url)
        yield f"{parts.hostname or 'localhost'}, {parts.port or _PORTS[dialect]}, the source database"
    if towards.kind == "stdout":
        yield "# The destination is standard output: no other host is needed."
        return
    yield f"{towards.kind}.{place}.amazonaws.com, 443, the destination"
    yield f"s3.{place}.amazonaws.com, 443, rows too large for the destination (only with claim_check: BUCKET before it)"
    yield f"sts.{place}.amazonaws.com, 443, credentials of a role"
    yield f"rolesanywhere.{place}.amazonaws.com, 443, credentials by certificate (only with IAM Roles Anywhere)"
    if region is None:
        yield f"# {_REGION} stands for the AWS region, such as eu-west-1."


def password_hint(url: str) -> str | None:
    """How to hand over the password that the URL had; None where it had none."""
    if not _without_password(url)[1]:
        return None
    return f"export {PASSWORD_VARIABLE}=…"
