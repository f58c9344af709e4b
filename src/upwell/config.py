"""The configuration: one file for a pipeline, of which each role reads its part.

Whatever is wrong is one ConfigError that names file, line and setting; nothing that is secret is ever part of it.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, get_args
from urllib.parse import parse_qsl, unquote

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from upwell.configfile import Document, FieldPath, Problem, SecretResolver, field_name, read
from upwell.errors import ConfigError
from upwell.mapping import TableRule
from upwell.settings import (
    IDENTIFIER_BYTES_MAX,
    SOURCE_SCHEMES,
    ApiSettings,
    Config,
    DestinationSettings,
    DynamoDbItem,
    Settings,
    SourceSettings,
    SubscriberSettings,
    seconds,
)
from upwell.tablepatterns import parse_pattern

# Settings that the interface promises and this version does not have: place → the values, None for any.
_LATER: Final[Mapping[FieldPath, tuple[str, ...] | None]] = {
    ("limits", "uplink"): None,
    ("subscriber", "ordering"): ("transaction",),
}

# Parts of the file that only some roles read: what they hold from outside the file may be missing for the others.
OPTIONAL_PARTS: Final = frozenset({"source", "destination", "subscriber", "masking", "api"})
_SECRET_VARIABLES: Final = frozenset({"AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "PGPASSWORD"})
_PROXY_VARIABLES: Final = frozenset({"http_proxy", "https_proxy", "all_proxy"})
_UNFILLED: Final = frozenset({"UW-CF-007", "UW-CF-008", "UW-CF-009"})


Part = TypeVar("Part", bound=Settings)


@dataclass(frozen=True)
class Pipeline:
    """A checked configuration, with what follows from it."""

    file: Path
    config: Config
    rules: tuple[TableRule, ...]  # in the order in which they are tried
    items: tuple[tuple[TableRule, DynamoDbItem], ...]  # for those rules that have one
    left_out: tuple[Problem, ...] = ()  # why parts that the caller does not need are not there
    heartbeat_s: float | None = None  # how often the publisher sends heartbeat rows; None: there is no read API

    @property
    def name(self) -> str:
        """The pipeline's name."""
        return self.config.pipeline

    @property
    def state(self) -> Path:
        """The publisher's state file; a relative path starts at the configuration's folder, not where we stand."""
        return self.file.absolute().parent / self.config.state

    @property
    def dialect(self) -> str:
        """The source's, as in TableSchema."""
        return SOURCE_SCHEMES[self.source().url.get_secret_value().partition("://")[0]]

    @property
    def secrets(self) -> frozenset[str]:
        """What must never appear anywhere, in every form in which it might."""
        config = self.config
        urls = [
            *([config.source.url] if config.source else []),
            *([config.subscriber.target] if config.subscriber else []),
            *([config.destination.proxy] if config.destination and config.destination.proxy else []),
            *([config.api.database] if config.api and config.api.database else []),
        ]
        found = {password for url in urls for password in passwords(url.get_secret_value())}
        if config.masking is not None:
            found.add(config.masking.key.get_secret_value())
        if config.api is not None:
            found.add(config.api.cursor_key.get_secret_value())
        return frozenset(found)

    @property
    def mask_key(self) -> bytes | None:
        """The secret of the hmac masks."""
        masking = self.config.masking
        return None if masking is None else masking.key.get_secret_value().encode()

    @property
    def publication(self) -> str:
        """PostgreSQL's publication."""
        return self.source().publication or identifier(self.name)

    @property
    def slot(self) -> str:
        """PostgreSQL's replication slot."""
        return self.source().slot or identifier(self.name)

    def rule(self, table: str) -> TableRule | None:
        """The rule for a table of the source: the first that matches it counts."""
        return next((rule for rule in self.rules if rule.matches(table, self.dialect)), None)

    def why_left_out(self, part: str) -> str | None:
        """Why the file's part could not be read on this machine; None where it is there, or the file has none."""
        return next((problem.text() for problem in self.left_out if problem.path[0] == part), None)

    def source(self) -> SourceSettings:
        """The source's settings. Raises ConfigError where there are none."""
        return self._required("source", self.config.source)

    def destination(self) -> DestinationSettings:
        """The destination's settings. Raises ConfigError where there are none."""
        return self._required("destination", self.config.destination)

    def subscriber(self) -> SubscriberSettings:
        """The subscriber's settings. Raises ConfigError where there are none."""
        return self._required("subscriber", self.config.subscriber)

    def api(self) -> ApiSettings:
        """The read API's settings. Raises ConfigError where there are none."""
        return self._required("api", self.config.api)

    def _required(self, part: str, settings: Part | None) -> Part:
        if settings is None:
            raise ConfigError(f"{self.file} has no `{part}`, which this command needs.", code="UW-CF-012")
        return settings


def passwords(url: str) -> Iterator[str]:
    """The URL's password, in each form in which it might appear."""
    user_info, found, _ = url.partition("://")[2].rpartition("@")
    if found and ":" in user_info:
        password = user_info.partition(":")[2]
        yield from (password, unquote(password))
    for name, value in parse_qsl(url.partition("?")[2]):
        if "password" in name:
            yield value


def environment_secrets(environ: Mapping[str, str]) -> Iterator[str]:
    """What the environment holds that must never appear anywhere, whoever uses it."""
    for name, value in environ.items():
        if name in _SECRET_VARIABLES:
            yield value
        elif name.lower() in _PROXY_VARIABLES:
            yield from passwords(value)


def identifier(pipeline: str) -> str:
    """A name for the pipeline's slot and publication: `upwell_` and the name, in letters that PostgreSQL takes."""
    name = "upwell_" + re.sub(r"[^a-z0-9_]", "_", pipeline)
    if len(name) <= IDENTIFIER_BYTES_MAX:
        return name
    return name[: IDENTIFIER_BYTES_MAX - 9] + "_" + hashlib.sha256(pipeline.encode()).hexdigest()[:8]


def load(
    file: Path,
    environ: Mapping[str, str],
    *,
    needs: Collection[str] = OPTIONAL_PARTS,
    secret: SecretResolver | None = None,
) -> Pipeline:
    """The pipeline that the file describes. Raises one ConfigError that lists all that is wrong.

    `needs` names the optional parts that the caller reads; a part that it does not read may lack a variable or a file
    on this machine, and is then left out. `secret` fetches `${secretsmanager:ID}`.
    """
    others = OPTIONAL_PARTS - set(needs)
    document = read(file, environ, secret, lambda path: path[0] not in others)
    heartbeat_s = _heartbeat_s(document)
    problems = _leave_out(document, needs)
    problems += _later(document)
    config, wrong = _validated(document)
    # What could not be filled in makes its settings, and those around it, look wrong in other ways.
    known = {problem.path[:length] for problem in problems for length in range(1, len(problem.path) + 1)}
    problems += [problem for problem in wrong if problem.path not in known]
    rules: list[tuple[TableRule, DynamoDbItem | None]] = []
    if config is not None:
        rules, wrong = _rules(config, document)
        problems += wrong
    if config is None or problems:
        raise document.error(problems)
    return Pipeline(
        file=file,
        config=config,
        rules=tuple(rule for rule, _ in rules),
        items=tuple((rule, item) for rule, item in rules if item is not None),
        left_out=tuple(document.problems),
        heartbeat_s=config.api.heartbeat if config.api is not None else heartbeat_s,
    )


def _heartbeat_s(document: Document) -> float | None:
    """Known also where the part `api` is left out: the publisher has the heart, but not the secrets of the API."""
    api = document.data.get("api")
    if not isinstance(api, dict):
        return None
    default: float = ApiSettings.model_fields["heartbeat"].default
    try:
        return max(1.0, seconds(api.get("heartbeat", f"{default}s")))
    except ValueError:
        return default


def _leave_out(document: Document, needs: Collection[str]) -> list[Problem]:
    """Take the parts that are not needed and can't be filled in out of the data; the problems of the others."""
    unfilled = {str(p.path[0]) for p in document.problems if p.path and p.code in _UNFILLED}
    out = unfilled & (OPTIONAL_PARTS - set(needs))
    document.data = {key: value for key, value in document.data.items() if key not in out}
    return [p for p in document.problems if not p.path or p.path[0] not in out]


def _later(document: Document) -> Iterator[Problem]:
    """What the file asks for and a later version will have; it is taken out of the data."""
    for path, values in _LATER.items():
        holder: Any = document.data
        for part in path[:-1]:
            holder = holder.get(part) if isinstance(holder, dict) else None
        if not isinstance(holder, dict) or path[-1] not in holder:
            continue
        value = holder[path[-1]]
        if values is None or value in values:
            del holder[path[-1]]
            what = "this setting" if values is None else f"the value {value}"
            yield Problem("UW-CF-010", path, f"{what} is not in this version")
    state = document.data.get("state")
    if isinstance(state, str) and "://" in state:
        del document.data["state"]
        yield Problem("UW-CF-010", ("state",), "a state that is not kept in a file is not in this version")


def _validated(document: Document) -> tuple[Config | None, list[Problem]]:
    try:
        return Config.model_validate(document.data), []
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        return None, [_problem(document, detail) for detail in details]


_SENTENCES: Final = {
    "missing": "this is missing",
    "string_type": "must be text; put it in quotes",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "model_type": "must hold keys and values of its own",
    "model_attributes_type": "must hold keys and values of its own",
    "mapping_type": "must hold keys and values of its own",
    "dict_type": "must hold keys and values of its own",
    "too_short": "must not be empty",
    "tuple_type": "must be a list, as in [id, name]",
    "path_type": "must be the name of a file",
}
_CODES: Final = {
    "extra_forbidden": "UW-CF-003",
    "missing": "UW-CF-004",
    "later": "UW-CF-010",
    "where": "UW-CF-014",
    "destinations": "UW-CF-016",
}


def _problem(document: Document, detail: ErrorDetails) -> Problem:
    kind, path = detail["type"], detail["loc"]
    if kind == "extra_forbidden":
        return Problem("UW-CF-003", path, _unknown_key(path))
    text = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    text = text.replace("String should", "must").replace("Tuple should", "must")
    sentence = _SENTENCES.get(kind, text)
    if kind not in ("missing", "where", "later", "destinations") and not _is_private(document, path):
        value = _at(document.data, path)
        if isinstance(value, (str, int, float)):
            sentence += f" (it is {value!r:.60})"
    return Problem(_CODES.get(kind, "UW-CF-005"), path, sentence)


def _is_private(document: Document, path: FieldPath) -> bool:
    return path in document.foreign or path[-1:] in (
        ("url",),
        ("target",),
        ("proxy",),
        ("key",),
        ("database",),
        ("cursor_key",),
        ("sha256",),
    )


def _at(data: Any, path: FieldPath) -> Any:
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _unknown_key(path: FieldPath) -> str:
    key = str(path[-1])
    here = _keys(path[:-1])
    near = difflib.get_close_matches(key, here, n=1)
    if near:
        return f"unknown key; did you mean `{near[0]}`?"
    elsewhere = [place for place in _places(Config, ()) if place[-1] == key]
    if elsewhere:
        return f"unknown key here; it belongs in `{field_name(elsewhere[0][:-1]) or 'the top of the file'}`"
    return f"unknown key; known here are {', '.join(here)}"


def _keys(path: FieldPath) -> list[str]:
    """The keys that the settings at this place may have."""
    model: type[BaseModel] = Config
    for part in path:
        field = _fields(model).get(str(part))
        if field is not None:
            model = _model_in(field.annotation) or model
    return list(_fields(model))


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The settings by the names that they have in the file."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


def _places(model: type[BaseModel], above: FieldPath) -> Iterator[FieldPath]:
    for name, field in _fields(model).items():
        yield (*above, name)
        inner = _model_in(field.annotation)
        if inner is not None and field.annotation is not None:
            named = ("NAME",) if "Mapping" in str(field.annotation) else ()
            yield from _places(inner, (*above, name, *named))


def _rules(config: Config, document: Document) -> tuple[list[tuple[TableRule, DynamoDbItem | None]], list[Problem]]:
    """The tables' rules, those that name one table before the patterns, so that the order of the file decides only
    among patterns.
    """
    rules: list[tuple[TableRule, DynamoDbItem | None]] = []
    problems: list[Problem] = []
    for key, table in config.tables.items():
        place = ("tables", key)
        try:
            pattern = parse_pattern(key)
        except ValueError:
            problems.append(Problem("UW-CF-013", place, "this is no table name; write schema.table, quoted as in SQL"))
            continue
        rule = TableRule(
            pattern=pattern,
            columns=table.columns,
            exclude=table.exclude or (),
            where=table.where,
            rename=table.rename,
            mask=table.mask,
            to=table.to,
            snapshot=config.defaults.snapshot if table.snapshot is None else table.snapshot,
            origin=f"{document.name}:{document.line(place)}",
        )
        if rule.is_pattern and rule.to is not None:
            sentence = "names one table, but this pattern can match several"
            problems.append(Problem("UW-CF-005", (*place, "to"), sentence))
        rules.append((rule, table.dynamodb))
    return sorted(rules, key=lambda pair: pair[0].is_pattern), problems
