"""Programs that die at a named place: `UPWELL_FAILPOINT` of upwell.failpoints."""

from __future__ import annotations

import signal

from tests.acceptance.pipelines import Pipeline, Program, Role

# A service with work to do passes every place within moments; one that is not reached by then never is.
REACHED_S = 30.0


def die_at(pipeline: Pipeline, role: Role, place: str, *options: str, passage: int = 1) -> Program:
    """Runs the program until it kills itself at the place; fails where it never comes there."""
    program = pipeline.start(role, *options, failpoint=f"{place}:{passage}")
    try:
        code = program.wait(REACHED_S)
    except AssertionError as error:
        raise AssertionError(f"{place} was never reached: the program goes on") from error
    assert code == -signal.SIGKILL, f"{place} was never reached: the program ended with {code}"
    return program
