"""The serverless way: DynamoDB tables, and the read API as a function behind API Gateway."""

from __future__ import annotations

from upwell.app.stacks.blueprint import Blueprint
from upwell.app.stacks.claims import may_get
from upwell.app.stacks.cloudformation import Json, Template
from upwell.app.stacks.functions import HANDLERS, SUBSCRIBER_CONFIG, code_bucket, cursor_secret, function
from upwell.app.stacks.gateway import add_gateway
from upwell.app.stacks.stream import add_stream, add_subscriber
from upwell.app.stacks.tables import add_heartbeat_alarm, add_tables, may_keep, may_read, may_write

READ_TIMEOUT_S = 10
READ_MEMORY_MB = 512
TAG = "upwell:pipeline"


def template(plan: Blueprint, code_key: str) -> Json:
    """The stack of a pipeline to DynamoDB. `code_key`: how the package is called."""
    t = Template(f"upwell {plan.pipeline}: DynamoDB tables and their read API", {TAG: plan.pipeline})
    add_tables(t, (*plan.written, *plan.kept))
    if plan.stream or plan.api:
        code_bucket(t)
    if plan.stream:
        _add_subscriber(t, plan, code_key)
    elif plan.heartbeat:
        add_heartbeat_alarm(t, plan.heartbeat)
    if plan.api:
        exposed = [table for table in plan.written if table.exposed]
        secret = cursor_secret(t, plan.pipeline)
        statements = [*may_read(exposed), secret, *may_get(t, plan.claims)]
        _function(t, "Read", f"The read API of {plan.pipeline}", "read_api_lambda", code_key, statements)
        authorizer = None
        if plan.api.authorization != "iam":
            authorizer = "Authorize"
            _function(
                t, authorizer, f"The check of callers of {plan.pipeline}", "authorizer_lambda", code_key, [secret]
            )
        add_gateway(t, plan.pipeline, plan.api, "Read", authorizer)
    return t.body


def _add_subscriber(t: Template, plan: Blueprint, code_key: str) -> None:
    """By way of a stream: what applies it to the tables."""
    add_stream(t, plan)
    statements = [
        *may_write(plan.written, create=plan.create_tables, remove=plan.removes),
        *may_keep(plan.lanes, plan.letters, create=plan.create_tables),
    ]
    add_subscriber(t, plan, code_key, statements, {"UPWELL_CONFIG": SUBSCRIBER_CONFIG})


def _function(t: Template, name: str, description: str, module: str, code_key: str, statements: list[Json]) -> None:
    handler = f"{HANDLERS}.{module}.handler"
    function(t, name, description, handler, code_key, statements, timeout=READ_TIMEOUT_S, memory=READ_MEMORY_MB)
