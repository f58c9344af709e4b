"""Every code that the program can show is explained, and nothing else is."""

import re
from pathlib import Path

import pytest

import upwell
from upwell.app.catalogue import entries, explained
from upwell.errors import ConfigError

SOURCES = Path(upwell.__file__).parent
CODE = re.compile(r"UW-[A-Z]+-[0-9]{3}")


def codes_in_the_source() -> dict[str, str]:
    """code → a file that has it."""
    return {code: file.name for file in SOURCES.rglob("*.py") for code in CODE.findall(file.read_text("utf-8"))}


def test_every_code_is_explained_and_no_other() -> None:
    used = codes_in_the_source()
    assert len(used) > 100
    missing = {code: file for code, file in used.items() if code not in entries()}
    assert not missing, f"add them to catalogue.yaml: {missing}"
    assert not entries().keys() - used.keys(), "no longer used: remove them from catalogue.yaml"


def test_entries_are_sentences() -> None:
    for code, entry in entries().items():
        assert CODE.fullmatch(code)
        assert entry.cause.endswith("."), code
        assert entry.remedy, code


def test_errors_have_codes_of_this_form_only() -> None:
    given = re.compile(r'code="([^"]*)"')
    for file in SOURCES.rglob("*.py"):
        for code in given.findall(file.read_text("utf-8")):
            assert not code or CODE.fullmatch(code), f"{file.name}: {code}"


def test_a_code_is_found_in_any_case() -> None:
    assert explained(" uw-pg-030 ").startswith("UW-PG-030\n\nCause:  Logical replication is off")


@pytest.mark.parametrize(("code", "part"), [("UW-PG-03", "UW-PG-03"), ("nonsense", "look like")])
def test_an_unknown_code_is_an_error_with_the_nearest_ones(code: str, part: str) -> None:
    with pytest.raises(ConfigError) as error:
        explained(code)
    assert error.value.code == "UW-CL-004"
    assert part in error.value.remedy
