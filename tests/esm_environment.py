"""An environment of Lambda as a process: `python -m tests.esm_environment FD` runs upwell's subscriber for what comes
on standard input, a line for each call, and answers on the file descriptor. What it prints is its log.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from tests.esm import Context, FunctionError

HANDLER: Final = "upwell.cloud.subscriber_lambda"
ROOT: Final = Path(__file__).parents[1]


class Process:
    """An environment that can be killed, and is when a call takes too long."""

    def __init__(self, environ: Mapping[str, str], log: Path) -> None:
        reading, writing = os.pipe()
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.esm_environment", str(writing)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=(writing,),
                env={**os.environ, **environ},
                cwd=ROOT,
            )
        os.close(writing)
        self._answers = os.fdopen(reading, "rb")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def invoke(self, event: Mapping[str, Any], timeout_s: float) -> Any:
        timer = threading.Timer(timeout_s, self.kill)
        timer.start()
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"event": event, "timeout_s": timeout_s}).encode() + b"\n")
            self._process.stdin.flush()
            line = self._answers.readline()
        except OSError:
            line = b""
        finally:
            timer.cancel()
        if not line:
            self.close()
            raise FunctionError("the environment is gone")
        answer = json.loads(line)
        if "error" in answer:
            raise FunctionError(answer["error"])
        return answer["answer"]

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        self._process.wait(30)
        self._answers.close()
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()


def main() -> None:
    answers = os.fdopen(int(sys.argv[1]), "wb", buffering=0)
    handler = importlib.import_module(HANDLER).handler
    for line in sys.stdin.buffer:
        call = json.loads(line)
        try:
            answer = {"answer": handler(call["event"], Context(time.monotonic() + call["timeout_s"]))}
        except Exception as error:
            answer = {"error": type(error).__name__}
        answers.write(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
