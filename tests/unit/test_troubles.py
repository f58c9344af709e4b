"""Trouble that lasts is told once, and once when it is over; what passes by itself is not."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest

from upwell.errors import TransientError
from upwell.pipeline.troubles import LASTING_S, Troubles

AWAY = TransientError("The target is away.")


class Clock:
    """Time as the test says."""

    at = 100.0

    def monotonic(self) -> float:
        return self.at

    def now(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.at += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def troubles(clock: Clock, caplog: pytest.LogCaptureFixture) -> Troubles:
    caplog.set_level(logging.INFO, "test")
    return Troubles(logging.getLogger("test"), clock, "it works again")


def test_what_passes_is_not_told(troubles: Troubles, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(10):
        troubles.met("one", AWAY)
        assert troubles.last == "The target is away."
        clock.sleep(LASTING_S - 0.1)
        troubles.over("one")
    assert not troubles.last
    assert not caplog.messages


def test_what_lasts_is_told_once(troubles: Troubles, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(10):
        for who in ("one", "two"):
            troubles.met(who, AWAY)
        clock.sleep(LASTING_S / 2)
    assert caplog.messages == ["The target is away. Trying again until it works."]
    troubles.over("one")
    assert troubles.last
    troubles.over("two")
    troubles.over("two")
    assert caplog.messages[1:] == ["it works again"]
    assert not troubles.last


def test_the_next_one_is_told_again(troubles: Troubles, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        troubles.met("one", AWAY)
        clock.sleep(LASTING_S)
        troubles.met("one", AWAY)
        troubles.over("one")
    assert len(caplog.messages) == 4


def test_an_error_that_was_met_keeps_nothing_alive(troubles: Troubles) -> None:
    """Not even where it is in a circle with the frame that raised it, or is its own cause."""

    class Request:
        """Megabytes."""

    def send(body: Request) -> None:
        raise OSError("broken pipe")

    def call(body: Request) -> None:
        answers: list[TransientError] = []
        try:
            send(body)
        except OSError as error:
            answers.append(TransientError("The connection was lost."))
            answers[0].__context__ = error
        raise answers[0] from answers[0]

    request = Request()
    gone = weakref.ref(request)
    gc.disable()
    try:
        with pytest.raises(TransientError) as caught:
            call(request)
        del request
        troubles.met("one", caught.value)
        assert gone() is None
    finally:
        gc.enable()
