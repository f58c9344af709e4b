"""`upwell stack`: the templates, the package and the guide of this pipeline, and what they cost."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from upwell.app.stacks import guide, package, publisher_access, relational, serverless
from upwell.app.stacks.blueprint import Blueprint, of_stream, of_stream_to_tables, of_tables
from upwell.app.stacks.cloudformation import POLICY_BYTES_MAX, as_yaml, policy_bytes
from upwell.app.stacks.database import NAME
from upwell.app.stacks.estimate import Load, estimate, price_list
from upwell.app.stacks.functions import CONFIG, SUBSCRIBER_CONFIG, cursor_secret_name
from upwell.app.stacks.guide import Kind
from upwell.app.tables import show
from upwell.config import Pipeline, load
from upwell.errors import ConfigError, UpwellError

API_SCHEMA: Final = "upwell-api.json"
TEMPLATE: Final = "template.yaml"
GUIDE: Final = "README.md"
# What the cloud sets, and this machine has not: here any text will do that is long enough.
_ELSEWHERE: Final = "x" * 64


@dataclass(frozen=True)
class Stack:
    """A stack of a pipeline, before anything is written."""

    kind: Kind
    pipeline: Pipeline
    plan: Blueprint

    @property
    def has_code(self) -> bool:
        """Whether it has functions or instances that run a package."""
        return self.kind != "publisher-access" and (self.plan.api is not None or self.plan.stream is not None)

    def template(self, package_name: str = "function.zip") -> dict[str, Any]:
        """The template, for a package that lies under this key."""
        if self.kind == "publisher-access":
            return _checked(publisher_access.template(self.plan))
        template = serverless.template if self.kind == "serverless" else relational.template
        return _checked(template(self.plan, package_name))

    def text(self) -> str:
        """The template as YAML."""
        return as_yaml(self.template())

    def write(self, folder: Path, platform: package.Platform = package.LAMBDA) -> list[Path]:
        """Template, guide and package into the folder; the files. Raises UpwellError."""
        name, found = None, {}
        if self.has_code:
            found = package.contents(self.beside_the_code(), platform)
            name = package.name_of(found)
        template = self.template(name or "")
        destination = self.pipeline.destination()
        settings = destination.kinesis or destination.dynamodb
        region = settings.region if settings else None
        texts = {TEMPLATE: as_yaml(template), GUIDE: guide.readme(self.kind, self.plan, template, name, region)}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file, text in texts.items():
                (folder / file).write_text(text, encoding="utf-8")
            if name:
                package.write(found, folder / name)
        except OSError as error:
            raise UpwellError(
                f"{error.filename} can't be written: {error.strerror}.",
                code="UW-CS-005",
                remedy="Name another folder with --out.",
            ) from error
        return [folder / file for file in (*texts, *([name] if name else []))]

    def beside_the_code(self) -> dict[str, bytes]:
        """The configuration for the cloud, and the files that it names. Raises ConfigError."""
        found, place = {}, self.pipeline.file.absolute().parent
        if self.plan.api:
            found[API_SCHEMA] = package.api_schema(place / self.pipeline.api().schema_file)
        if self.kind == "relational":
            found[package.CA_FILE] = package.certificates(place)
        text = self.pipeline.file.read_text(encoding="utf-8-sig")

        def configuration(schema: str | None) -> bytes:
            secret, subscriber = cursor_secret_name(self.pipeline.name), self._subscriber()
            told = package.cloud_configuration(text, cursor_secret=secret, subscriber=subscriber, schema=schema)
            return told.encode()

        found[CONFIG] = configuration(API_SCHEMA if self.plan.api else None)
        if self.plan.stream:
            found[SUBSCRIBER_CONFIG] = configuration(None)
        return found

    def _subscriber(self) -> dict[str, Any] | None:
        """The target's settings, in the cloud: Aurora tells its own place, and lets in by IAM."""
        if self.kind == "relational":
            place = "${UPWELL_DATABASE_USER}@${UPWELL_DATABASE_HOST}:5432"
            tls = f"sslmode=verify-full&sslrootcert=${{UPWELL_CODE}}/{package.CA_FILE}"
            return {"target": f"postgresql://{place}/{NAME}?{tls}", "iam_auth": True}
        if self.plan.stream is None:
            return None
        settings = self.pipeline.subscriber()
        return {"target": settings.target.get_secret_value(), "create_tables": settings.create_tables}


def stack(kind: Kind, file: Path, environ: Mapping[str, str] = os.environ) -> Stack:
    """The stack; serverless asks the source for its tables. Raises UpwellError."""
    pipeline = loaded(kind, file, environ)
    api = pipeline.config.api
    if kind == "relational" and api is not None and api.authorization.iam is not None:
        raise ConfigError(
            "`api.authorization.iam` needs API Gateway, which the relational stack does not have.",
            code="UW-CS-006",
            remedy="Use jwt or api_keys.",
        )
    return Stack(kind, pipeline, _plan(kind, pipeline))


def _checked(template: dict[str, Any]) -> dict[str, Any]:
    """The template. Raises ConfigError where IAM would not take a role of it."""
    for name, resource in template["Resources"].items():
        size = policy_bytes(resource.get("Properties", {}).get("Policies", []))
        if size > POLICY_BYTES_MAX:
            raise ConfigError(
                f"The policy of {name} would have about {size:,} bytes; IAM takes {POLICY_BYTES_MAX:,}.",
                code="UW-CS-008",
                remedy="Publish fewer tables by one pipeline: each has to be named, and about a hundred can be.",
            )
    return template


def _plan(kind: Kind, pipeline: Pipeline) -> Blueprint:
    if pipeline.destination().kinesis is None:
        return of_stream(pipeline) if kind == "relational" else of_tables(pipeline)
    return of_stream_to_tables(pipeline) if kind == "serverless" else of_stream(pipeline)


def loaded(kind: Kind, file: Path, environ: Mapping[str, str]) -> Pipeline:
    """The configuration. The secrets of what runs in the cloud need not be on this machine. Raises ConfigError."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        text = ""  # which loading says better
    elsewhere = dict.fromkeys(package.variables(text, ("api", "subscriber")), _ELSEWHERE)
    environ = {**elsewhere, **environ}
    needs = ["destination", "subscriber", "api"]
    pipeline = load(file, environ, needs=needs, secret=lambda _: _ELSEWHERE)
    by_stream = pipeline.config.destination is not None and pipeline.config.destination.kinesis is not None
    if kind == "relational" or (kind == "publisher-access" and by_stream):
        return pipeline
    return load(file, environ, needs=[*needs, "source", "masking"], secret=lambda _: _ELSEWHERE)


def report(made: Stack, load: Load) -> None:
    """Print what the stack costs a month, about."""
    prices = price_list()
    lines = estimate(made.plan, made.template(), load, prices)
    rows = [(line.what, f"{line.quantity:,.2f}", line.unit, f"{line.price:g}", f"{line.amount:,.2f}") for line in lines]
    total = sum(line.amount for line in lines)
    show(("WHAT", "QUANTITY", "UNIT", prices.currency, "A MONTH"), [*rows, ("Total", "", "", "", f"{total:,.2f}")])
    click.echo(
        f"\nAn estimate, not an offer: prices of {prices.date} in {prices.region}, on demand, without free tiers,\n"
        f"discounts, support and taxes. At {load.events:g} changes of {load.row_bytes} bytes and {load.reads:g} reads\n"
        f"a second, all day, with {load.gigabytes:g} GB of rows."
    )
