"""The command line inside the tests' own process: many commands, without the time that a process takes to start."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from lab.parts import ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY
from upwell.app import cli
from upwell.pipeline import publisher


@dataclass
class Commands:
    """The command line in this process, which is quicker than a process for each command."""

    file: Path
    count: int = 0

    def __call__(self, *arguments: str, code: int = 0) -> str:
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n", write_through=True) for _ in range(2))
        self.count += 1
        with redirect_stdout(out), redirect_stderr(err):
            got = cli.run([*arguments, "-c", str(self.file)])
        printed, said = (each.buffer.getvalue().decode() for each in (out, err))
        assert got == code, f"upwell {' '.join(arguments)[:100]} ended with {got}:\n{printed[-2000:]}\n{said[-3000:]}"
        assert "Traceback" not in said, said
        assert not set(said) & {"\x1b", "\u202e", "\r"}, "control characters of a name reached the terminal"
        return printed


@contextmanager
def surroundings() -> Iterator[None]:
    """Keys for the local servers, and no waiting for writes that a publisher before us may have left behind."""
    environ = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
        "AWS_DEFAULT_REGION": REGION,
    }
    with patch.dict(os.environ, environ), patch.object(publisher, "SWEEP_AFTER_START_S", 0.0):
        yield
