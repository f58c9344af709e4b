"""Log lines: where they can't be written the program goes on, and what is secret never shows."""

import io
import logging
import sys

import pytest

from upwell.app import logs


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
