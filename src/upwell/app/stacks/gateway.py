"""API Gateway before the read function: who may come in, how often, and what is written down of it.

A REST API, because HTTP APIs know neither request validators nor usage plans.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from upwell.app.stacks.cloudformation import Json, Template, arn, att, if_, logical, ref, sub, trusts
from upwell.app.stacks.functions import alarm, log_group

if TYPE_CHECKING:  # the authorizer, which has to start fast, takes `usage_identifier` from here
    from upwell.app.stacks.blueprint import Api

STAGE: Final = "live"
METHODS: Final = ("GET", "HEAD")
OPEN: Final = ("/healthz",)  # tells nothing but that it answers
TIMEOUT_MS: Final = 15_000
# Of a request what is needed to find it again: no path, which holds keys, and no query.
_LOGGED: Final = {
    "requestId": "$context.requestId",
    "time": "$context.requestTimeEpoch",
    "sourceIp": "$context.identity.sourceIp",
    "caller": "$context.identity.userArn",
    "principal": "$context.authorizer.principalId",
    "method": "$context.httpMethod",
    "resource": "$context.resourcePath",
    "status": "$context.status",
    "error": "$context.error.responseType",
    "bytes": "$context.responseLength",
    "latencyMs": "$context.responseLatency",
}
# What the gateway says by itself, as RFC 9457 has it: response type → (status, title); status None: as it is.
_ANSWERS: Final[dict[str, tuple[int | None, str]]] = {
    "MISSING_AUTHENTICATION_TOKEN": (404, "Not Found"),  # so it calls a path that there is not; but see _answers
    "UNAUTHORIZED": (401, "Unauthorized"),
    "ACCESS_DENIED": (403, "Forbidden"),
    "AUTHORIZER_FAILURE": (503, "Service Unavailable"),  # as where the identity provider can't be reached
    "INVALID_API_KEY": (403, "Forbidden"),
    "BAD_REQUEST_PARAMETERS": (400, "Bad Request"),
    "BAD_REQUEST_BODY": (400, "Bad Request"),
    "THROTTLED": (429, "Too Many Requests"),
    "QUOTA_EXCEEDED": (429, "Too Many Requests"),
    "INTEGRATION_TIMEOUT": (504, "Gateway Timeout"),
    "DEFAULT_4XX": (None, "The request was refused"),
    "DEFAULT_5XX": (None, "The service failed"),
}


def add_gateway(t: Template, pipeline: str, api: Api, function: str, authorizer: str | None) -> None:
    """The API in front of `function`; `authorizer` is the function that checks tokens, where tokens are checked."""
    t.add(
        "Api",
        "ApiGateway::RestApi",
        {
            "Name": f"upwell-{pipeline}",
            "Description": f"Reads what the pipeline {pipeline} has synchronized",
            "EndpointConfiguration": {"Types": ["REGIONAL"]},
            # Callers bring their key as a bearer token; the authorizer says whose it is.
            **({"ApiKeySourceType": "AUTHORIZER"} if api.authorization == "api_keys" else {}),
        },
    )
    t.add(
        "ApiValidator",
        "ApiGateway::RequestValidator",
        {"RestApiId": ref("Api"), "ValidateRequestParameters": True, "ValidateRequestBody": True},
    )
    access = _authorization(t, api, authorizer)
    methods = list(_methods(t, api, function, access))
    answers = list(_answers(t, api))
    t.add(
        "ApiMayCall",
        "Lambda::Permission",
        {
            "Action": "lambda:InvokeFunction",
            "FunctionName": ref(function),
            "Principal": "apigateway.amazonaws.com",
            "SourceArn": arn("execute-api", f"${{Api}}/{STAGE}/*"),
        },
    )
    deployment = _deployment(t, [*methods, *answers])
    _stage(t, pipeline, deployment)
    if api.authorization == "api_keys":
        _keys(t, pipeline, api)
    _alarms(t, pipeline)
    t.output(
        "Url",
        "Where the read API answers",
        sub(f"https://${{Api}}.execute-api.${{AWS::Region}}.${{AWS::URLSuffix}}/{STAGE}"),
    )


def _authorization(t: Template, api: Api, authorizer: str | None) -> Json:
    """What a method that is not open asks for."""
    if api.authorization == "iam":
        return {"AuthorizationType": "AWS_IAM"}
    assert authorizer is not None, "tokens and keys need somebody who checks them"
    t.parameter(
        "AuthorizerCacheSeconds",
        "How long the gateway remembers whose a token or key is. The function checks it once more.",
        60,
        Type="Number",
        MinValue=0,
        MaxValue=3600,
    )
    t.add(
        "ApiAuthorizer",
        "ApiGateway::Authorizer",
        {
            "Name": "token",
            "Type": "TOKEN",
            "RestApiId": ref("Api"),
            "AuthorizerUri": _invocation(authorizer),
            "IdentitySource": "method.request.header.Authorization",
            "IdentityValidationExpression": r"^[Bb]earer +[A-Za-z0-9._~+/-]+=*$",
            "AuthorizerResultTtlInSeconds": ref("AuthorizerCacheSeconds"),
        },
    )
    t.add(
        "ApiMayAuthorize",
        "Lambda::Permission",
        {
            "Action": "lambda:InvokeFunction",
            "FunctionName": ref(authorizer),
            "Principal": "apigateway.amazonaws.com",
            "SourceArn": arn("execute-api", "${Api}/authorizers/${ApiAuthorizer}"),
        },
    )
    access = {"AuthorizationType": "CUSTOM", "AuthorizerId": ref("ApiAuthorizer")}
    return {**access, "ApiKeyRequired": True} if api.authorization == "api_keys" else access


def _methods(t: Template, api: Api, function: str, access: Json) -> Iterator[str]:
    """A resource for each path that there is, so that the gateway refuses all others; names of the methods."""
    paths = [*OPEN, "/openapi.json", "/v1/_freshness"]
    for table in api.tables:
        paths += [f"/v1/{table}", f"/v1/{table}/{{key}}"]
    places: dict[str, Any] = {"": att("Api", "RootResourceId")}
    for path in paths:
        _place(t, path, places)
        for method in METHODS:
            name = f"Api{method.title()}{_named(path)}"
            t.add(
                name,
                "ApiGateway::Method",
                {
                    "RestApiId": ref("Api"),
                    "ResourceId": places[path],
                    "HttpMethod": method,
                    **({"AuthorizationType": "NONE"} if path in OPEN else access),
                    "RequestValidatorId": ref("ApiValidator"),
                    **({"RequestParameters": {"method.request.path.key": True}} if "{key}" in path else {}),
                    "Integration": _integration(function),
                },
            )
            yield name


def _place(t: Template, path: str, places: dict[str, Any]) -> None:
    above, _, part = path.rpartition("/")
    if above not in places:
        _place(t, above, places)
    if path not in places:
        content = {"RestApiId": ref("Api"), "ParentId": places[above], "PathPart": part}
        places[path] = t.add(f"ApiPath{_named(path)}", "ApiGateway::Resource", content)


def _named(path: str) -> str:
    """Paths that differ in punctuation only would be one to CloudFormation."""
    return f"{logical(path)}{hashlib.sha256(path.encode()).hexdigest()[:6]}"


def _integration(function: str) -> Json:
    return {
        "Type": "AWS_PROXY",
        "IntegrationHttpMethod": "POST",
        "Uri": _invocation(function),
        "TimeoutInMillis": TIMEOUT_MS,
    }


def _invocation(function: str) -> Json:
    """What API Gateway calls to call a function."""
    path = f"lambda:path/2015-03-31/functions/${{{function}.Arn}}/invocations"
    return sub(f"arn:${{AWS::Partition}}:apigateway:${{AWS::Region}}:{path}")


def _answers(t: Template, api: Api) -> Iterator[str]:
    """Where requests are signed, a request without a signature and a path that there is not are one to the gateway."""
    answers = dict(_ANSWERS)
    if api.authorization == "iam":
        answers["MISSING_AUTHENTICATION_TOKEN"] = answers["ACCESS_DENIED"]
    for kind, (status, title) in answers.items():
        body = {"type": "about:blank", "title": title, **({"status": status} if status else {})}
        name = f"ApiAnswer{logical(kind.lower())}"
        content: Json = {
            "RestApiId": ref("Api"),
            "ResponseType": kind,
            "ResponseParameters": {"gatewayresponse.header.Content-Type": "'application/problem+json'"},
            "ResponseTemplates": {"application/json": json.dumps(body)},
        }
        if status:
            content["StatusCode"] = str(status)
        if kind == "UNAUTHORIZED":
            content["ResponseParameters"]["gatewayresponse.header.WWW-Authenticate"] = "'Bearer'"
        if kind == "AUTHORIZER_FAILURE":
            content["ResponseParameters"]["gatewayresponse.header.Retry-After"] = "'2'"
        t.add(name, "ApiGateway::GatewayResponse", content)
        yield name


def _deployment(t: Template, parts: list[str]) -> str:
    """What was described goes live by a deployment, and a deployment never changes: another content, another one."""
    content = json.dumps([t.resources[name] for name in t.resources if name.startswith("Api")], sort_keys=True)
    name = f"ApiDeployment{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    t.add(name, "ApiGateway::Deployment", {"RestApiId": ref("Api")}, after=parts)
    return name


def _stage(t: Template, pipeline: str, deployment: str) -> None:
    t.parameter("ThrottleRate", "Requests a second that the API takes, from all callers together.", 200, Type="Number")
    t.parameter("ThrottleBurst", "Requests that it takes at once.", 400, Type="Number")
    t.parameter(
        "GatewayLogRole",
        "make: let API Gateway write logs, a setting of the whole account in this Region. keep: it already may.",
        "make",
        AllowedValues=["make", "keep"],
    )
    t.conditions["MakesGatewayLogRole"] = {"Fn::Equals": [ref("GatewayLogRole"), "make"]}
    log_group(t, "ApiLog")
    # Other APIs of the account use it too: it outlives this stack.
    managed = "arn:${AWS::Partition}:iam::aws:policy/service-role/AmazonAPIGatewayPushToCloudWatchLogs"
    t.add(
        "GatewayRole",
        "IAM::Role",
        {"AssumeRolePolicyDocument": trusts("apigateway"), "ManagedPolicyArns": [sub(managed)]},
        condition="MakesGatewayLogRole",
        keep="Retain",
    )
    t.add(
        "GatewayAccount",
        "ApiGateway::Account",
        {"CloudWatchRoleArn": att("GatewayRole", "Arn")},
        condition="MakesGatewayLogRole",
        keep="Retain",
    )
    t.add(
        "ApiStage",
        "ApiGateway::Stage",
        {
            "RestApiId": ref("Api"),
            "DeploymentId": ref(deployment),
            "StageName": STAGE,
            "Description": f"The read API of {pipeline}",
            # Of no use but that the stage is made after the account's setting, without which it may not log.
            "Variables": {"logging": if_("MakesGatewayLogRole", ref("GatewayAccount"), "kept")},
            "AccessLogSetting": {
                "DestinationArn": arn("logs", "log-group:${ApiLog}"),
                "Format": json.dumps(_LOGGED),
            },
            "MethodSettings": [
                {
                    "ResourcePath": "/*",
                    "HttpMethod": "*",
                    "ThrottlingRateLimit": ref("ThrottleRate"),
                    "ThrottlingBurstLimit": ref("ThrottleBurst"),
                }
            ],
        },
    )


def _keys(t: Template, pipeline: str, api: Api) -> None:
    """What each key may ask, counted by the gateway: the keys themselves are known to the functions alone."""
    t.add(
        "UsagePlan",
        "ApiGateway::UsagePlan",
        {
            "UsagePlanName": f"upwell-{pipeline}",
            "Description": "What each key may ask",
            "ApiStages": [{"ApiId": ref("Api"), "Stage": ref("ApiStage")}],
            "Throttle": {"RateLimit": api.requests_per_second, "BurstLimit": 2 * api.requests_per_second},
        },
    )
    for key in api.keys:
        name = _named(key)
        value = usage_identifier(pipeline, key)
        t.add(f"ApiKey{name}", "ApiGateway::ApiKey", {"Description": f"API key {key}", "Enabled": True, "Value": value})
        t.add(
            f"UsagePlan{name}",
            "ApiGateway::UsagePlanKey",
            {"KeyId": ref(f"ApiKey{name}"), "KeyType": "API_KEY", "UsagePlanId": ref("UsagePlan")},
        )


def usage_identifier(pipeline: str, key: str) -> str:
    """By what name the authorizer tells the gateway whose request it is. No secret: no caller can send it."""
    return hashlib.sha256(f"{pipeline}/{key}".encode()).hexdigest()


def _alarms(t: Template, pipeline: str) -> None:
    dimensions = {"ApiName": f"upwell-{pipeline}", "Stage": STAGE}
    t.parameter(
        "LatencyMs", "The alarm ApiSlow is raised where one in a hundred answers takes longer.", 2000, Type="Number"
    )
    alarm(t, "ApiFails", "The read API answers with 5xx", "AWS/ApiGateway", "5XXError", dimensions)
    alarm(
        t,
        "ApiSlow",
        "The read API is slow",
        "AWS/ApiGateway",
        "Latency",
        dimensions,
        statistic="p99",
        above=ref("LatencyMs"),
    )
