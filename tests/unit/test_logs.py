"""Log lines: where they can't be written the program goes on, and what is secret never shows."""

import io
import logging
import sys
import threading
from collections.abc import Callable

import pytest

from upwell.app import logs
from upwell.config import environment_secrets


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_log_that_can_not_be_written_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logs.set_up("text")
    monkeypatch.setattr(sys, "stderr", FullDisk())
    logging.getLogger("upwell.test").warning("nobody will know")
    found = io.StringIO()
    monkeypatch.setattr(sys, "stderr", found)
    logging.getLogger("upwell.test").warning("there is room again")
    assert "there is room again" in found.getvalue()
    assert "nobody" not in found.getvalue()


def crash(capsys: pytest.CaptureFixture[str], form: logs.Format, raising: Callable[[], object]) -> str:
    logs.set_up(form)
    try:
        raising()
    except Exception:
        logs.crashed()
    return capsys.readouterr().err


def quotes_a_row() -> None:
    row = ["Ada Lovelace", 36]
    nothing: dict[str, int] = {}
    nothing[repr(row)]


def quotes_a_row_on_the_way() -> None:
    try:
        quotes_a_row()
    except KeyError as error:
        raise RuntimeError("a lookup failed") from error


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("raising", [quotes_a_row, quotes_a_row_on_the_way])
def test_a_crash_shows_where_and_not_with_which_row(
    capsys: pytest.CaptureFixture[str], form: logs.Format, raising: Callable[[], object]
) -> None:
    said = crash(capsys, form, raising)
    assert "KeyError" in said
    assert "in quotes_a_row" in said
    assert "bug in upwell" in said
    assert "Lovelace" not in said
    assert ("RuntimeError: a lookup failed" in said) == (raising is quotes_a_row_on_the_way)


def test_a_crash_of_a_thread_shows_no_row_either(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    logs.catch_crashes()
    thread = threading.Thread(target=quotes_a_row)
    thread.start()
    thread.join()
    said = capsys.readouterr().err
    assert "in quotes_a_row" in said
    assert "Lovelace" not in said


def test_secrets_of_the_environment_are_known() -> None:
    environ = {
        "AWS_SECRET_ACCESS_KEY": "one",
        "AWS_SESSION_TOKEN": "two",
        "HTTPS_PROXY": "http://user:thr%20ee@proxy:3128",
        "https_proxy": "http://proxy:3128",
        "HOME": "/home/user",
    }
    assert set(environment_secrets(environ)) == {"one", "two", "thr%20ee", "thr ee"}


def test_a_crash_that_led_to_itself_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("text")
    first, second = KeyError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    try:
        raise first
    except KeyError:
        logs.crashed()
    assert capsys.readouterr().err.count("Traceback") == 2
