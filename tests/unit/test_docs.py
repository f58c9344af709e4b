"""What README and docs name is there, and what is there is named."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from upwell.app import cli
from upwell.app.catalogue import entries

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*sorted(ROOT.glob("*.md")), *DOCS]
TEXTS = {page: page.read_text("utf-8") for page in PAGES}

LINK = re.compile(r"\]\((?!https?://)([^)\s#]*)(?:#([^)\s]+))?\)")
FENCED = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
COMMAND = re.compile(r"^(?:\$ |ExecStart=)?(?:/[\w./]+/)?upwell(?: |$)(.*)")
SHELL = {"|", ">", "&&", ";", "<"}  # here the command ends
FILES_OF_A_USER = {"upwell/", "upwell.yaml", "grants.sql", "firewall.txt", "upwell-state.db", "track.sql"}


def code(page: Path) -> Iterator[str]:
    """Every line of code on a page, and every span of it in a sentence."""
    text = TEXTS[page]
    for block in FENCED.findall(text):
        yield from block.splitlines()
    yield from (" ".join(span.split()) for span in SPAN.findall(FENCED.sub("", text)))


def mentions() -> Iterator[tuple[Path, list[str]]]:
    """(page, arguments) of each `upwell …` on a page."""
    for page in PAGES:
        for line in code(page):
            if found := COMMAND.match(line.strip()):
                words = shlex.split(found[1], comments=True)
                ends = [n for n, word in enumerate(words) if word in SHELL]
                yield page, words[: ends[0]] if ends else words


def parsed(arguments: list[str]) -> tuple[str, ...]:
    """The path of the command that the arguments name. Raises UsageError for an option that it does not have."""
    command: click.Command = cli.upwell
    path: tuple[str, ...] = ()
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
        if name not in command.commands:
            raise click.UsageError(f"no command {name}")
        command, path = command.commands[name], (*path, name)
    _, rest, _ = command.make_parser(click.Context(command)).parse_args(list(arguments))
    if rest:
        raise click.UsageError(f"no argument {rest[0]}")
    return path


def leaves(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name)


# --- commands, codes ----------------------------------------------------------------------------------------------


def test_every_command_that_is_shown_exists() -> None:
    shown = list(mentions())
    assert len(shown) > 40
    for page, arguments in shown:
        try:
            parsed(arguments)
        except click.UsageError as wrong:
            pytest.fail(f"{page.name}: upwell {' '.join(arguments)}: {wrong.format_message()}")


def test_every_command_is_shown() -> None:
    shown = {parsed(arguments) for page, arguments in mentions() if page == README or page in DOCS}
    assert not set(leaves(cli.upwell)) - shown


def test_every_option_that_is_named_exists() -> None:
    known = {"--help", "--version"}
    for path in leaves(cli.upwell):
        command: click.Command = cli.upwell
        for name in path:
            assert isinstance(command, click.Group)
            command = command.commands[name]
        known.update(option for parameter in command.params for option in parameter.opts)
    for page in PAGES:
        for span in code(page):
            if re.match(r"--[a-z]", span):
                assert span.split()[0] in known, page.name


def test_every_code_that_is_named_is_explained() -> None:
    named = {(name, page.name) for page in PAGES for name in re.findall(r"UW-[A-Z]+-[0-9]+", TEXTS[page])}
    assert not [where for where in named if where[0] not in entries()]


# --- links, files -------------------------------------------------------------------------------------------------


def slugs(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", TEXTS[page]), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """(file, heading or nothing) of each link to another place of the project."""
    for path, anchor in LINK.findall(TEXTS[page]):
        yield (page.parent / path).resolve() if path else page, anchor


def test_every_link_leads_somewhere() -> None:
    found = [(page, *link) for page in PAGES for link in links(page)]
    assert len(found) > 10
    for page, to, anchor in found:
        assert to.exists(), f"{page.name} links to {to}"
        assert not anchor or anchor in slugs(to), f"{page.name} links to {to.name}#{anchor}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, new = {README}, [README]
    while new:
        new = [to for page in new for to, _ in links(page) if to in TEXTS and to not in reached]
        reached.update(new)
    assert not set(DOCS) - reached


def test_every_file_that_is_named_exists() -> None:
    name = re.compile(r"(?:[\w-]+/)+|(?:[\w.-]+/)*[\w-]+\.(?:py|md|toml|txt|sql|ya?ml)")
    places = (ROOT, ROOT / "src" / "upwell", ROOT / "requirements")
    for page in PAGES:
        for span in code(page):
            if name.fullmatch(span) and span not in FILES_OF_A_USER:
                assert any((place / span).exists() for place in places), f"{page.name}: {span}"


def test_every_target_of_make_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {found[1] for page in PAGES for span in code(page) if (found := re.match(r"make ([a-z]+)\b", span))}
    assert {"setup", "test", "demo"} <= named <= targets


# --- dependencies -------------------------------------------------------------------------------------------------


def test_every_dependency_has_its_line() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    extras = project["project"]["optional-dependencies"]
    groups = [project["project"]["dependencies"], *extras.values(), *project["dependency-groups"].values()]
    chosen = {re.split(r"[\[<>=;]", line)[0].strip() for lines in groups for line in lines} - {"upwell"}
    assert len(chosen) > 15
    rows = re.findall(r"^\| (.*?) \|(.*)\|$", TEXTS[ROOT / "docs" / "dependencies.md"], re.MULTILINE)
    words = {word for cells in rows for word in re.findall(r"[\w-]+", f"{cells[0]} {cells[1].split('|')[0]}")}
    assert not chosen - words
