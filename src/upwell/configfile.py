"""A configuration file as data that remembers its lines; `${…}` filled in from outside the file.

YAML 1.2's plain scalars: `no`, `on` and `2026-01-31` are text, as whoever writes a column's name expects. Nothing
that came from outside the file is ever quoted in a message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import yaml

from upwell.errors import ConfigError

FILE_BYTES_MAX = 1024 * 1024  # a configuration is a page or two; more is some other file
PROBLEMS_MAX = 20  # shown at once
DEPTH_MAX = 16  # the configuration itself is six deep
VALUES_MAX = 100_000  # aliases can make a small file unfold without end

# A field's place: keys and list indexes from the top.
FieldPath = tuple[str | int, ...]
# Fetches `${secretsmanager:ID}`; raises ConfigError, OperatorError or TransientError.
SecretResolver = Callable[[str], str]


class Problem(NamedTuple):
    """One thing that is wrong with the file."""

    code: str
    path: FieldPath
    sentence: str  # lower case, follows the field's name

    def text(self) -> str:
        """`field: sentence`."""
        name = field_name(self.path)
        return f"{name}: {self.sentence}" if name else self.sentence


@dataclass
class Document:
    """What a file says, and where it says it."""

    name: str  # as the user gave it
    folder: Path  # relative paths in the file start here
    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[FieldPath, int] = field(default_factory=dict)
    foreign: set[FieldPath] = field(default_factory=set)  # filled from outside the file
    problems: list[Problem] = field(default_factory=list)

    def line(self, path: Sequence[str | int]) -> int:
        """The line of the field, or of the nearest one around it."""
        for length in range(len(path), 0, -1):
            if tuple(path[:length]) in self.lines:
                return self.lines[tuple(path[:length])]
        return 1

    def error(self, problems: Sequence[Problem]) -> ConfigError:
        """All the problems as one error, in the order of the file."""
        ordered = sorted(problems, key=lambda problem: (self.line(problem.path), problem.code))
        shown = [self._text(problem) for problem in ordered[:PROBLEMS_MAX]]
        if len(ordered) > PROBLEMS_MAX:
            shown.append(f"… and {len(ordered) - PROBLEMS_MAX} more")
        return ConfigError("\n".join(shown), code=ordered[0].code)

    def _text(self, problem: Problem) -> str:
        return f"{self.name}:{self.line(problem.path)}: {problem.text()}"


def field_name(path: Sequence[str | int]) -> str:
    """`tables.'dbo.users'.columns[2]`: a key that holds a dot is quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (f"'{part}'" if "." in part else part)
    return text


def read(
    path: Path,
    environ: Mapping[str, str],
    secret: SecretResolver | None = None,
    needed: Callable[[FieldPath], bool] = lambda _: True,
) -> Document:
    """The file with its placeholders filled in; those that can't be are among the document's `problems`. `secret` is
    asked only for what is `needed`.

    Raises ConfigError where the file can't be read or is not YAML.
    """
    document = Document(name=str(path), folder=path.absolute().parent)
    root = _compose(path)
    if root is not None:
        if not isinstance(root, yaml.MappingNode):
            raise _not_yaml(path, root.start_mark.line, "the file must hold keys and values, as in `pipeline: shop`")
        document.data = _Reader(document, environ, secret, needed).mapping(root, ())
    return document


def _compose(path: Path) -> yaml.Node | None:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"The configuration file {path} cannot be read: {error.strerror}.",
            code="UW-CF-001",
            remedy="Name it with -c FILE or UPWELL_CONFIG, or write one with `upwell init SOURCE_URL`.",
        ) from error
    if len(raw) > FILE_BYTES_MAX:
        raise _not_yaml(path, 0, f"the file is larger than {FILE_BYTES_MAX} bytes")
    try:
        return yaml.compose(raw.decode("utf-8-sig"), Loader=_Loader)
    except UnicodeDecodeError as error:
        raise _not_yaml(path, raw[: error.start].count(b"\n"), "the file is not UTF-8 text") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = error.problem or error.context or "a syntax error"
        if "alias" in f"{error.context}" or "alias" in what:
            what = 'a value or key that begins with * must be quoted, as in "*.*": {}'
        raise _not_yaml(path, mark.line if mark else 0, what) from error
    except yaml.YAMLError as error:
        raise _not_yaml(path, 0, "the file holds characters that YAML does not allow") from error
    except RecursionError as error:
        raise _not_yaml(path, 0, f"the file is nested more than {DEPTH_MAX} deep") from error


class _Loader(yaml.BaseLoader):
    """JSON is YAML, also where it writes a character beyond 16 bits as two escapes."""

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        try:
            node.value = node.value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            problem = "half of a character: \\ud800 to \\udfff come in pairs"
            raise yaml.composer.ComposerError(None, None, problem, node.start_mark) from None
        return node


def _not_yaml(path: Path, line: int, what: str) -> ConfigError:
    return ConfigError(f"{path}:{line + 1}: this is not a configuration in YAML: {what}.", code="UW-CF-002")


_NUMBER = re.compile(r"[-+]?[0-9]{1,18}")
_FRACTION = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: Mapping[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def _plain(text: str) -> Any:
    """The value of a scalar without quotes, by YAML 1.2's core schema."""
    if text in _WORDS:
        return _WORDS[text]
    if _NUMBER.fullmatch(text):
        return int(text)
    if _FRACTION.fullmatch(text):
        return float(text)
    return text


_PLACEHOLDER = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FILE_SECRET_BYTES_MAX = 64 * 1024


class _Unfilled(Exception):
    """A placeholder that can't be filled in."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code, self.sentence = code, sentence


class _Reader:
    """From YAML's nodes to a document's data."""

    def __init__(
        self,
        document: Document,
        environ: Mapping[str, str],
        secret: SecretResolver | None,
        needed: Callable[[FieldPath], bool],
    ) -> None:
        self._document = document
        self._environ = environ
        self._secret = secret
        self._needed = needed
        self._values = 0

    def mapping(self, node: yaml.MappingNode, path: FieldPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem("UW-CF-002", path, "a key must be text")
                continue
            key = key_node.value
            place = (*path, key)
            if key in result:
                first = self._document.lines[place]
                self._problem("UW-CF-006", path, f"the key {key} stands twice, on lines {first} and {_line(key_node)}")
                continue
            self._document.lines[place] = _line(key_node)
            result[key] = self._value(value_node, place)
        return result

    def _value(self, node: yaml.Node, path: FieldPath) -> Any:
        self._values += 1
        if len(path) > DEPTH_MAX or self._values > VALUES_MAX:  # an alias inside its own anchor has no end
            limits = f"more than {DEPTH_MAX} deep, or more than {VALUES_MAX} values"
            raise _not_yaml(Path(self._document.name), _line(node) - 1, f"the file unfolds to {limits}")
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._item(item, (*path, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        if node.style is None and "${" not in node.value:
            return _plain(node.value)
        return self._text(node.value, path)

    def _item(self, node: yaml.Node, path: FieldPath) -> Any:
        self._document.lines[path] = _line(node)
        return self._value(node, path)

    def _text(self, text: str, path: FieldPath) -> str:
        try:
            return "".join(self._parts(text, path))
        except _Unfilled as unfilled:
            self._problem(unfilled.code, path, unfilled.sentence)
            return text

    def _parts(self, text: str, path: FieldPath) -> Iterator[str]:
        end = 0
        for match in _PLACEHOLDER.finditer(text):
            yield text[end : match.start()]
            end = match.end()
            if match.group() == "$${":
                yield "${"
                continue
            self._document.foreign.add(path)
            value = self._filled(match, path)
            yield quote(value, safe="") if _in_user_info(text, match) else value
        yield text[end:]

    def _filled(self, match: re.Match[str], path: FieldPath) -> str:
        name = match.group(1)
        if name is None:
            raise _Unfilled("UW-CF-011", "${ has no closing }; write $${ for a plain ${")
        if name.startswith("file:"):
            return self._from_file(name.removeprefix("file:"))
        if name.startswith("secretsmanager:"):
            return self._from_secrets_manager(name.removeprefix("secretsmanager:"), path)
        if not _VARIABLE.fullmatch(name):
            allowed = "${NAME}, ${file:PATH} or ${secretsmanager:ID}"
            raise _Unfilled("UW-CF-011", f"${{{name}}} is none of {allowed}; write $${{ for a plain ${{")
        if name not in self._environ:
            raise _Unfilled("UW-CF-007", f"the environment variable {name} is not set")
        return self._environ[name]

    def _from_file(self, name: str) -> str:
        try:
            with (self._document.folder / name).open("rb") as file:
                raw = file.read(_FILE_SECRET_BYTES_MAX + 1)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "not a file's name"
            raise _Unfilled("UW-CF-008", f"the file {name} cannot be read: {why}") from error
        if len(raw) > _FILE_SECRET_BYTES_MAX:
            raise _Unfilled("UW-CF-008", f"the file {name} is larger than {_FILE_SECRET_BYTES_MAX} bytes")
        try:
            return raw.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise _Unfilled("UW-CF-008", f"the file {name} is not UTF-8 text") from error

    def _from_secrets_manager(self, name: str, path: FieldPath) -> str:
        if self._secret is None or not self._needed(path):
            raise _Unfilled("UW-CF-009", "AWS Secrets Manager is not asked for it here; use ${NAME} or ${file:PATH}")
        return self._secret(name)

    def _problem(self, code: str, path: FieldPath, sentence: str) -> None:
        self._document.problems.append(Problem(code, path, sentence))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _in_user_info(text: str, match: re.Match[str]) -> bool:
    """Whether the placeholder stands for a URL's user name or password: there, the value itself is given and is
    encoded here, so that `p@ss/word` works as it is.
    """
    before, after = text[: match.start()], text[match.end() :]
    scheme = before.find("://")
    return scheme > 0 and not set(before[scheme + 3 :]) & set("/?#") and "@" in re.split(r"[/?#]", after)[0]
