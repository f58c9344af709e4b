"""`upwell api`: the read API on this machine, and the file that is its contract."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

from upwell.app import build, build_api, build_cloud
from upwell.app.running import dump_nothing, told_to_stop
from upwell.clock import SystemClock
from upwell.cloud.guard import HEADER_BYTES_MAX, URL_BYTES_MAX
from upwell.config import Pipeline
from upwell.errors import ConfigError, OperatorError
from upwell.exposure import ExposedTable, contract, expose, is_named
from upwell.items import table_names
from upwell.model import TableSchema

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

log = logging.getLogger("upwell.api")

IDLE_S: Final = 75  # a load balancer's own patience with idle connections is usually 60 s, and should end first
STOP_S: Final = 8
REQUEST_BYTES_MAX: Final = URL_BYTES_MAX + HEADER_BYTES_MAX  # before its body


def learn(pipeline: Pipeline) -> Path:
    """Write the schema file from the source and the rules; its path. Raises UpwellError."""
    mapping = build.mapping(pipeline)
    with closing(build.source_parts(pipeline).open(SystemClock())) as source:
        schemas = [mapping.schema(table) for table in source.tables()]
    file = build_api.schema_file(pipeline)
    try:
        file.write_bytes(contract(_exposed(pipeline, schemas)))
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}.", code="UW-CL-002") from error
    return file


def _exposed(pipeline: Pipeline, schemas: list[TableSchema]) -> Iterator[ExposedTable]:
    items = _item_tables(pipeline, schemas) if build_api.store(pipeline) == "dynamodb" else {}
    for name, wanted in build_api.wanted(pipeline).items():
        schema = next((each for each in schemas if is_named(each, wanted.table)), None)
        if schema is None:
            raise ConfigError(
                f"api.tables.{name}: the pipeline has no table {wanted.table}.",
                code="UW-AP-002",
                remedy=f"It has {', '.join(sorted(each.table for each in schemas))}.",
            )
        yield expose(name, wanted, schema, items.get(schema.table))


def _item_tables(pipeline: Pipeline, schemas: list[TableSchema]) -> dict[str, str]:
    """source table → its DynamoDB table, without the prefix: that may be another one in production."""
    template = build_cloud.templates(pipeline)
    prefix = "upwell-"  # any: names alone may be too short
    names = table_names([schema for schema in schemas if template(schema) is None], prefix)
    return {table: name.removeprefix(prefix) for table, name in names.items()}


def serve(pipeline: Pipeline, host: str, port: int) -> None:
    """Until told to stop: then no more connections are taken, and what is under way is answered. Raises UpwellError."""
    if pipeline.api().authorization.iam is not None:
        raise ConfigError(
            "With `authorization.iam` callers are known by API Gateway alone: it has to stand before the API.",
            code="UW-AP-003",
            remedy="Deploy it as `upwell stack serverless` writes it, or use jwt or api_keys.",
        )
    dump_nothing()
    with told_to_stop() as stop:
        server, listening = _server(build_api.app(pipeline, SystemClock()), host, port)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])), name="server", daemon=True)
        thread.start()
        log.info("answering at http://%s:%d as %s", host, listening.getsockname()[1], pipeline.name)
        while not stop.wait(1) and thread.is_alive():
            pass
        server.should_exit = True
        thread.join()
        log.info("stopped")


def _server(app: ASGIApp, host: str, port: int) -> tuple[uvicorn.Server, socket.socket]:
    import uvicorn

    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=STOP_S,
        h11_max_incomplete_event_size=REQUEST_BYTES_MAX,
    )
    return uvicorn.Server(config), _listening(host, port, config.backlog)


def _listening(host: str, port: int, backlog: int) -> socket.socket:
    """TCP by name: only then does asyncio turn Nagle's algorithm off, which would hold each answer's body for 40 ms."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere it would mean that several may listen
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(backlog)
    except OSError as error:
        listening.close()
        raise OperatorError(
            f"{host}:{port} can't be listened on: {error.strerror or error}.",
            code="UW-AP-004",
            remedy="Choose another --port, or another --host of this machine.",
        ) from error
    return listening
