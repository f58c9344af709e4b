"""Blueprints of several pipelines, and what their templates say: for the tests of the stacks."""

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from upwell.app.stacks import publisher_access, relational, serverless
from upwell.app.stacks.blueprint import Api, Blueprint, ClaimPlace, Index, Table
from upwell.app.stacks.cloudformation import Json
from upwell.items import KeyAttribute

PACKAGE = "function-0123456789abcdef.zip"
HEARTBEAT = Table("shop-upwell_heartbeat", (KeyAttribute("pipeline", "S"), KeyAttribute("beat", "N")), exposed=True)
BY_COUNTRY = Index("by-country", (KeyAttribute("country", "S"), KeyAttribute("full_name", "S")))
USERS = Table("shop-users", (KeyAttribute("id", "N"),), (BY_COUNTRY,), exposed=True)
NOTES = Table("shop-notes", (KeyAttribute("id", "N"),))
SHARED = Table("shop", (KeyAttribute("pk", "S"), KeyAttribute("sk", "S")), leads=("ORDER#", "CUSTOMER#"))
CONTROL = Table("shop-control", (KeyAttribute("pipeline", "S"), KeyAttribute("id", "S")))
CLAIMS = ClaimPlace("shop-claims", "upwell/shop/", "alias/shop")

JWT = Api("jwt", ("users", "order-lines"))
IAM = Api("iam", ("users",))
KEYS = Api("api_keys", ("users",), keys=("mobile-app", "web"))


def items(api: Api | None = None, **more: Any) -> Blueprint:
    tables = (USERS, NOTES, SHARED)
    return Blueprint("shop", tables, heartbeat=HEARTBEAT if api else None, api=api, **more)


def stream(api: Api | None = None, **more: Any) -> Blueprint:
    return Blueprint("shop", stream="shop", api=api, **more)


def stream_to_items(api: Api | None = None, **more: Any) -> Blueprint:
    lanes = Table("shop-upwell_lanes", (KeyAttribute("id", "S"),))
    letters = Table("shop-upwell_dead_letters", (KeyAttribute("id", "N"),))
    return replace(items(api, **more), stream="shop", lanes=lanes, letters=letters)


def templates() -> dict[str, Json]:
    """Each stack for several configurations, by a name."""
    return {
        "serverless-bare": serverless.template(items(), PACKAGE),
        "serverless-jwt": serverless.template(items(JWT, claims=CLAIMS), PACKAGE),
        "serverless-iam": serverless.template(items(IAM), PACKAGE),
        "serverless-keys": serverless.template(items(KEYS), PACKAGE),
        "serverless-stream": serverless.template(stream_to_items(JWT, control=CONTROL, claims=CLAIMS), PACKAGE),
        "relational-bare": relational.template(stream(), PACKAGE),
        "relational-jwt": relational.template(stream(JWT, control=CONTROL, claims=CLAIMS), PACKAGE),
        "relational-keys": relational.template(stream(KEYS), PACKAGE),
        "publisher-items": publisher_access.template(items(JWT, create_tables=True, removes=True)),
        "publisher-few-rights": publisher_access.template(items()),
        "publisher-stream": publisher_access.template(stream(control=CONTROL, claims=CLAIMS)),
    }


def resources(template: Json, kind: str) -> dict[str, Json]:
    """Those of a kind, by name."""
    return {name: each for name, each in template["Resources"].items() if each["Type"] == f"AWS::{kind}"}


def without(template: Json, *kinds: str) -> Json:
    """The template without resources that a stand-in for AWS does not know, and without what speaks of them."""
    template = copy.deepcopy(template)
    gone = {name for kind in kinds for name in resources(template, kind)}
    for name in gone:
        del template["Resources"][name]
    for name, output in list(template.get("Outputs", {}).items()):
        if any(f'"{each}"' in json.dumps(output) for each in gone):
            del template["Outputs"][name]
    return template


def statements(document: Any) -> Iterator[Json]:
    """Every statement of every policy in a template, whichever way its conditions go."""
    if isinstance(document, dict):
        if "Effect" in document:
            yield document
        for part in document.values():
            yield from statements(part)
    elif isinstance(document, list):
        for part in document:
            yield from statements(part)
