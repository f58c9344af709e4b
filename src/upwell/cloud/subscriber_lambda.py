"""The subscriber on Lambda, behind an event source mapping of a Kinesis stream. docs/lambda.md says how to set that up.

AWS distributes: a call gets records of one shard, in order within each lane. What is applied stays applied; of the rest
the first record is named, from which AWS begins again (ReportBatchItemFailures). Nothing is ever given up here.
"""

from __future__ import annotations

import binascii
import logging
import os
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import cache
from typing import Any, Final

import orjson

from upwell.app import build_cloud, logs
from upwell.app.build_cloud import Applying
from upwell.clock import SystemClock
from upwell.cloud.configured import configured
from upwell.config import Pipeline
from upwell.errors import TransientError, UpwellError
from upwell.pipeline.incoming import Applied, batches
from upwell.ports import Clock

log = logging.getLogger("upwell.subscriber")

NAMESPACE: Final = "upwell"
# A connection that ended while the environment was frozen costs an attempt, not the batch; what lasts, AWS retries.
ATTEMPTS_MAX: Final = 3
BACKOFF_S: Final = 0.5
# Nothing is begun that might be cut off: with less left, or a quarter of all there was, the rest is handed back.
MARGIN_S: Final = 10.0
SWEEP_S: Final = 15.0
# Where nothing has worked for so long, a secret may have been changed since it was fetched.
ANEW_AFTER_S: Final = 60.0
REPAIRS_EVERY_S: Final = 60.0

# (sequence number, data), and when it came into the stream.
_Record = tuple[tuple[str, bytes], float]


class Environment:
    """What one environment keeps from one call to the next: the target, with its one connection."""

    def __init__(
        self,
        pipeline: Pipeline,
        opening: Callable[[Clock, random.Random], AbstractContextManager[Applying]],
        clock: Clock,
        tell: Callable[[bytes], object],
    ) -> None:
        """`tell` takes lines for CloudWatch. Connects to nothing yet."""
        self._pipeline = pipeline
        self._opening = opening
        self._clock = clock
        self._tell = tell
        self._rng = random.Random()  # noqa: S311 - it spreads retries, it keeps no secret
        self._opened = ExitStack()
        self._parts: Applying | None = None
        self._checked = False
        self._relay_at = 0.0
        self._failing_since: float | None = None
        self.spent = False  # another one is to be made in its place

    def handle(self, event: Mapping[str, Any], remaining_s: Callable[[], float]) -> dict[str, Any]:
        """Apply a batch; what of it is to come again. Raises what is a bug."""
        records = [_record(each["kinesis"]) for each in event["Records"]]
        arrived = {sequence: at for (sequence, _), at in records}
        margin_s = min(MARGIN_S, remaining_s() / 4)
        applied, last = Applied(), ""
        failure: UpwellError | None = None
        for batch in batches([record for record, _ in records]):
            if last and remaining_s() < margin_s:
                break
            try:
                _add(applied, self._apply([data for _, data in batch], remaining_s, margin_s))
            except UpwellError as error:
                failure = error
                log.warning("%s It comes again.", error.message, extra={"code": error.code, "remedy": error.remedy})
                break
            last = batch[-1][0]
        self._note(failing=failure is not None and not last)
        left = _after(last, list(arrived))
        if records:
            self._count(applied, len(left), failure, arrived[last or left[0]])
        return {"batchItemFailures": [{"itemIdentifier": left[0]}] if left else []}

    def open(self) -> None:
        """Make what can be made before the first call: it connects to nothing. Raises UpwellError."""
        if self._parts is None:
            # Where Lambda ends an environment, it says no word: then it is closed by nobody.
            self._parts = self._opened.enter_context(self._opening(self._clock, self._rng))

    def close(self) -> None:
        """Free connections."""
        self._parts = None
        self._opened.close()

    def _note(self, *, failing: bool) -> None:
        now = self._clock.monotonic()
        if not failing:
            self._failing_since = None
        elif self._failing_since is None:
            self._failing_since = now
        else:
            self.spent = now - self._failing_since >= ANEW_AFTER_S

    def _apply(self, data: Sequence[bytes], remaining_s: Callable[[], float], margin_s: float) -> Applied:
        """In one transaction, where the target has those. Raises UpwellError."""
        attempt = 1
        while True:
            try:
                self.open()
                assert self._parts is not None
                if not self._checked:
                    self._parts.target.check()
                    self._checked = True
                applied = self._parts.applier.apply(data)
            except TransientError:
                pause_s = self._rng.random() * BACKOFF_S * 2.0**attempt
                if attempt == ATTEMPTS_MAX or remaining_s() - pause_s < margin_s:
                    raise
                attempt += 1
                self._clock.sleep(pause_s)
            else:
                self._relay(self._parts, at_once=bool(applied.alarm))
                return applied

    def _relay(self, parts: Applying, *, at_once: bool) -> None:
        """Requests for repair to the publisher, now and then; they wait in the target until that works."""
        if not at_once and self._clock.monotonic() < self._relay_at:
            return
        self._relay_at = self._clock.monotonic() + REPAIRS_EVERY_S
        try:
            build_cloud.relay_repairs(self._pipeline, parts.target, parts.repairs)
        except UpwellError as error:
            log.warning("%s", error.message, extra={"code": error.code, "remedy": error.remedy})

    def _count(self, applied: Applied, left: int, failure: UpwellError | None, arrived: float) -> None:
        """A line in CloudWatch's embedded metric format; the metrics are documented in docs/lambda.md.

        https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
        """
        if applied.alarm:
            log.warning("%s All tables are to be read again; the publisher is asked to.", applied.alarm)
        now = self._clock.now()
        counts = {
            "Events": applied.events,
            "Skipped": applied.skipped,
            "DeadLetters": applied.dead_letters,
            "Swept": applied.swept,
            "Holes": applied.holes,
            "Retried": left,
        }
        metrics = [{"Name": name, "Unit": "Count"} for name in counts] + [{"Name": "AppliedLag", "Unit": "Seconds"}]
        about = {"Namespace": NAMESPACE, "Dimensions": [["Pipeline"]], "Metrics": metrics}
        line: dict[str, Any] = {
            "_aws": {"Timestamp": int(now * 1000), "CloudWatchMetrics": [about]},
            "Pipeline": self._pipeline.name,
            **counts,
            "AppliedLag": round(max(0.0, now - arrived), 3),
        }
        if failure is not None:
            line["Code"] = failure.code
        self._tell(orjson.dumps(line) + b"\n")


def _record(wire: Mapping[str, Any]) -> _Record:
    data = binascii.a2b_base64(wire["data"])
    return (str(wire["sequenceNumber"]), data), float(wire["approximateArrivalTimestamp"])


def _after(last: str, sequences: list[str]) -> list[str]:
    return sequences[sequences.index(last) + 1 :] if last else sequences


def _add(total: Applied, applied: Applied) -> None:
    for name in ("events", "skipped", "dead_letters", "swept", "holes", "foreign"):
        setattr(total, name, getattr(total, name) + getattr(applied, name))
    total.alarm = applied.alarm or total.alarm


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """An event of a Kinesis event source mapping. Raises RuntimeError for a bug: AWS halves the batch."""
    try:
        environment = _environment()
        answer = environment.handle(event, lambda: context.get_remaining_time_in_millis() / 1000)
        if environment.spent:
            _environment.cache_clear()
            environment.close()
        return answer
    except UpwellError as error:  # the configuration can't be used: nothing can be applied
        logs.failed(error)
        first = event["Records"][0]["kinesis"]["sequenceNumber"]
        return {"batchItemFailures": [{"itemIdentifier": first}]}
    except Exception:
        logs.crashed()
    # Without the error itself: Lambda would show what it says, which may quote a row.
    raise RuntimeError("This is a bug in upwell; the log has its traceback.")


@cache
def _environment() -> Environment:
    """Made once, at the start of an environment. Raises UpwellError."""
    pipeline = configured(["destination", "subscriber"])

    def opening(clock: Clock, rng: random.Random) -> AbstractContextManager[Applying]:
        return build_cloud.applying(pipeline, clock, rng, connections_max=1, sweep_s=SWEEP_S)

    return Environment(pipeline, opening, SystemClock(), _print)


def _print(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.flush()


if "AWS_LAMBDA_FUNCTION_NAME" in os.environ:  # the start of an environment has a whole processor, a call has not
    logs.set_up("json")
    with suppress(UpwellError):  # the first call says it again
        _environment().open()
