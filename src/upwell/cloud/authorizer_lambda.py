"""An authorizer for API Gateway (REST, type TOKEN): the same verification as in the API, before the API is called.

The API verifies once more: it does not rely on how a gateway is set up.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from upwell.app import build_api, logs
from upwell.app.stacks.gateway import usage_identifier
from upwell.clock import SystemClock
from upwell.cloud.answers import Problem
from upwell.cloud.authorization import Authorizer
from upwell.cloud.configured import configured
from upwell.config import Pipeline


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """The policy for the caller, which API Gateway may keep for all that this caller asks.

    Raises Exception("Unauthorized"), by which API Gateway knows to answer 401; anything else becomes 500.
    """
    pipeline, authorizer = _parts()
    try:
        caller = authorizer.caller(event.get("authorizationToken"), None)
    except Problem:
        raise Exception("Unauthorized") from None
    stage = "/".join(event["methodArn"].split("/", 2)[:2])
    methods = [f"{stage}/GET/*", f"{stage}/HEAD/*"]
    statement = {"Action": "execute-api:Invoke", "Effect": "Allow", "Resource": methods}
    answer: dict[str, Any] = {
        "principalId": caller.name,
        "policyDocument": {"Version": "2012-10-17", "Statement": [statement]},
        "context": {} if caller.tenant is None else {"tenant": caller.tenant},
    }
    if pipeline.api().authorization.api_keys is not None:
        answer["usageIdentifierKey"] = usage_identifier(pipeline.name, caller.name)
    return answer


@cache
def _parts() -> tuple[Pipeline, Authorizer]:
    pipeline = configured(["api"])
    return pipeline, build_api.authorizer(pipeline, SystemClock())


if "AWS_LAMBDA_FUNCTION_NAME" in os.environ:  # the start of an environment has a whole processor, an event has not
    logs.set_up("json")
    _parts()
