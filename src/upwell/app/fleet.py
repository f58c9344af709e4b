"""`upwell subscribe --fleet`: Amazon's Kinesis Client Library, a worker of a fleet that shares a stream's shards."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from upwell.app import build_cloud
from upwell.app.running import told_to_stop
from upwell.config import Pipeline
from upwell.errors import ConfigError, OperatorError

log = logging.getLogger("upwell.subscriber")

# The daemon gives its shards up in good order, which takes a call or two of DynamoDB for each, before it is killed.
STOP_WITHIN_S: Final = 9.0
LOOK_EVERY_S: Final = 0.2
PR_SET_PDEATHSIG: Final = 1  # prctl(2)
# As for `upwell subscribe` without a fleet: so often, and so many at a time, a shard is read.
READ_EVERY_MS: Final = 200
READ_RECORDS_MAX: Final = 500
HANDOVER_MS: Final = 10_000  # a worker that says nothing for so long has lost its shards

# KCL passes on what our programs say, and would say it once more as an error. Of its own words only warnings matter, of
# an error its root, in a line.
_LOGBACK: Final = """<configuration>
<appender name="kcl" class="ch.qos.logback.core.ConsoleAppender"><target>System.err</target><encoder><pattern>
%d{"yyyy-MM-dd'T'HH:mm:ss.SSSSSS'Z'",UTC} %-7level kcl: %msg %replace(%rEx{1}){'(?s)[\\r\\n].*', ''}%n%nopex
</pattern></encoder></appender>
<logger name="software.amazon.kinesis.multilang.DrainChildSTDERRTask" level="OFF"/>
<root level="WARN"><appender-ref ref="kcl"/></root>
</configuration>
"""


def run_worker(pipeline: Pipeline) -> None:
    """Until told to stop. Raises OperatorError where KCL is missing, or ends by itself."""
    java, jars = _java(), _jars()
    with tempfile.TemporaryDirectory(prefix="upwell-kcl-") as folder, told_to_stop() as stop:
        properties, logback = Path(folder, "kcl.properties"), Path(folder, "logback.xml")
        properties.write_text("".join(f"{name} = {value}\n" for name, value in _properties(pipeline)), "utf-8")
        logback.write_text(_LOGBACK, "utf-8")
        log.info("subscribing as %s, a worker of a fleet", pipeline.name)
        daemon = subprocess.Popen(  # noqa: S603 - the java on this machine, with files that we wrote
            [
                java,
                "-cp",
                os.pathsep.join(map(str, jars)),
                "software.amazon.kinesis.multilang.MultiLangDaemon",
                "--properties-file",
                str(properties),
                "--log-configuration",
                str(logback),
            ],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            env=os.environ | {"UPWELL_CONFIG": str(pipeline.file.absolute())},
            start_new_session=True,  # Ctrl-C is for us: the daemon is told in good order
            preexec_fn=_end_with_us if sys.platform == "linux" else None,
        )
        try:
            while daemon.poll() is None and not stop.wait(LOOK_EVERY_S):
                pass
            if not stop.is_set():
                raise OperatorError(
                    "A program of the fleet's worker has ended; what it said stands above.",
                    code="UW-KC-003",
                    remedy="Start it again, as a service manager does; it goes on from the checkpoints.",
                )
        finally:
            _end(daemon)
        log.info("stopped")


def _end_with_us() -> None:
    """Where we are killed, the daemon must not go on unseen: somebody will start another one in our place."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(daemon: subprocess.Popen[bytes]) -> None:
    if daemon.poll() is None:
        daemon.terminate()
        try:
            daemon.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    with suppress(ProcessLookupError):  # a program whose target is away hears nothing of the daemon's end
        os.killpg(daemon.pid, signal.SIGKILL)


def _properties(pipeline: Pipeline) -> Iterator[tuple[str, str]]:
    """https://github.com/awslabs/amazon-kinesis-client-python, samples/sample.properties"""
    settings = pipeline.destination().kinesis
    if settings is None or settings.format != "packed":
        raise ConfigError(
            f"{pipeline.file} has no `destination.kinesis` with `format: packed`, which a subscriber reads.",
            code="UW-CF-012",
        )
    service = build_cloud.aws_service(pipeline)
    assert service is not None
    yield "executableName", f"{sys.executable} -m upwell.cloud.subscriber_kcl"
    yield "streamName", settings.stream
    yield "applicationName", _application(pipeline, settings.stream)
    yield "regionName", service.region
    yield "AwsCredentialsProvider", "DefaultCredentialsProvider"
    yield "processingLanguage", "python"
    yield "initialPositionInStream", "TRIM_HORIZON"
    yield "retrievalMode", "POLLING"
    yield "metricsLevel", "NONE"
    yield "maxRecords", str(READ_RECORDS_MAX)
    yield "idleTimeBetweenReadsInMillis", str(READ_EVERY_MS)
    yield "failoverTimeMillis", str(HANDOVER_MS)
    if settings.endpoint_url is not None:
        yield "kinesisEndpoint", settings.endpoint_url
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_DYNAMODB"):
        yield "dynamoDBEndpoint", endpoint


def _application(pipeline: Pipeline, stream: str) -> str:
    """What KCL keeps the leases under: a fleet for another target needs all shards too, and leases of its own."""
    target = urlsplit(pipeline.subscriber().target.get_secret_value())
    given = sorted(pair for pair in parse_qsl(target.query) if pair[0] in ("host", "port", "dbname"))
    place = [stream, target.scheme, target.netloc.rpartition("@")[2], target.path, given]
    return f"upwell-{pipeline.name}-{hashlib.sha256(json.dumps(place).encode()).hexdigest()[:8]}"


def _java() -> str:
    java = shutil.which("java")
    if java is None:
        raise OperatorError(
            "There is no `java` on this machine, which Amazon's Kinesis Client Library runs on.",
            code="UW-KC-001",
            remedy="Install a Java runtime, on Debian and Ubuntu: apt-get install default-jre-headless",
        )
    return java


def _jars() -> list[Path]:
    found = importlib.util.find_spec("amazon_kclpy")
    folder = None if found is None or found.origin is None else Path(found.origin).with_name("jars")
    jars = [] if folder is None else sorted(folder.glob("*.jar"))
    if not jars:
        raise OperatorError(
            "Amazon's Kinesis Client Library is not installed, or without its jars.",
            code="UW-KC-002",
            remedy="pip install 'upwell[kcl]'; it fetches jars from Maven Central, or from KCL_MVN_REPO_SEARCH_URL.",
        )
    return jars
