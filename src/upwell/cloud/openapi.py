"""The read API's description in OpenAPI 3.1, made from what is exposed: the contract for callers and gateways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from upwell.exposure import PATTERNS, ExposedTable
from upwell.model import Column, Kind

VERSION: Final = "1"
CURSOR_CHARS_MAX: Final = 12 * 1024
CURSOR_PATTERN: Final = "[A-Za-z0-9_-]+"

Json = dict[str, Any]

_NAMES: Final[Mapping[Kind, list[str]]] = {
    Kind.BOOL: ["boolean", "null"],
    Kind.INT: ["integer", "string", "null"],  # beyond 2^53: digits in a string
    Kind.FLOAT: ["number", "string", "null"],  # NaN, Infinity, -Infinity
}
_NOT_A_FINDING: Final[Mapping[int, str]] = {
    304: "What the caller has, by If-None-Match, is still so.",
    400: "A parameter is not of the form that is described here.",
    401: "Nobody known calls.",
    403: "The caller may not read this table, or the cursor is not valid here.",
    404: "There is no such row for this caller, or no such table.",
    413: "A body came with the request.",
    414: "The URL is too long.",
    429: "The caller asks too often.",
    431: "The headers are too long.",
    500: "A mistake of ours.",
    503: "The database can't be asked now.",
}


def description(title: str, tables: Sequence[ExposedTable], scheme: str, described: str, page_max: int) -> Json:
    """`scheme`: bearer or iam."""
    paths: Json = {}
    for table in tables:
        paths[f"/v1/{table.name}/{{key}}"] = {"get": _one(table)}
        paths[f"/v1/{table.name}"] = {"get": _many(table, page_max)}
    paths["/v1/_freshness"] = {"get": _freshness(tables)}
    paths["/openapi.json"] = {"get": _itself()}
    paths["/healthz"] = {"get": _health()}
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": VERSION, "summary": "Reads a synchronized copy."},
        "paths": paths,
        "components": {
            "schemas": {"problem": _PROBLEM, **{table.name: _row(table) for table in tables}},
            "headers": {"X-Data-As-Of": _AS_OF, "ETag": {"schema": {"type": "string"}}},
            "responses": {str(status): _problem(status, text) for status, text in _NOT_A_FINDING.items()},
            "securitySchemes": {"caller": _scheme(scheme, described)},
        },
        "security": [{"caller": []}],
    }


_PROBLEM: Final[Json] = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
}
_AS_OF: Final[Json] = {
    "description": "All that the source had committed at this time is in the answer. Absent while that is not known.",
    "schema": {"type": "string", "format": "date-time"},
}


def _scheme(scheme: str, described: str) -> Json:
    if scheme == "bearer":
        return {"type": "http", "scheme": "bearer", "description": described}
    return {"type": "apiKey", "name": "Authorization", "in": "header", "description": described}


def _row(table: ExposedTable) -> Json:
    columns = table.columns
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [column.name for column in columns],
        "properties": {column.name: _shown(column, table.schema.dialect) for column in columns},
    }


def _shown(column: Column, dialect: str) -> Json:
    if dialect == "sqlite":  # lets every column hold anything
        return {"type": ["string", "number", "boolean", "null"], "description": column.type}
    return {"type": _NAMES.get(column.kind, ["string", "null"]), "description": column.type}


def _written(column: Column) -> Json:
    """A value as callers write it."""
    schema: Json = {"type": "string", "minLength": 1, "description": column.type}
    if column.kind in PATTERNS:
        schema["pattern"] = f"^({PATTERNS[column.kind]})$"
    return schema


def _key(table: ExposedTable) -> Json:
    columns = table.key
    parts = [f"({PATTERNS[column.kind]})" if column.kind in PATTERNS else _PART for column in columns]
    schema: Json = {"type": "string", "minLength": 1, "pattern": f"^{','.join(parts)}$"}
    return {
        "name": "key",
        "in": "path",
        "required": True,
        "schema": schema,
        "description": f"{','.join(column.name for column in columns)}. Within a part, a byte of UTF-8 may be written "
        "as ~ and two hexadecimal digits; a comma, a slash and ~ itself must be: ~2C, ~2F, ~7E.",
    }


# A part of a key that may be any text. Control characters, dots alone, and what URLs give a meaning are written as ~XX.
_PART: Final = r"([A-Za-z0-9_@:+=-]|~[2-6][0-9A-Fa-f])([A-Za-z0-9_.@:+=-]|~[2-6][0-9A-Fa-f])*"

_IF_NONE_MATCH: Final[Json] = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
}


def _one(table: ExposedTable) -> Json:
    return {
        "operationId": f"get_{table.name}",
        "summary": f"One row of {table.name}, as it is now.",
        "parameters": [_key(table), _IF_NONE_MATCH],
        "responses": {
            "200": _found({"$ref": f"#/components/schemas/{table.name}"}),
            **_problems(304, 400, 401, 403, 404, 413, 414, 429, 431, 500, 503),
        },
    }


def _many(table: ExposedTable, page_max: int) -> Json:
    page = {
        "type": "object",
        "required": ["items", "cursor"],
        "additionalProperties": False,
        "properties": {
            "items": {
                "type": "array",
                "maxItems": page_max,
                "items": {"$ref": f"#/components/schemas/{table.name}"},
            },
            "cursor": {"type": ["string", "null"], "description": "For the next page; null: this was the last one."},
        },
    }
    return {
        "operationId": f"list_{table.name}",
        "summary": f"Rows of {table.name}, a page at a time. A page may be short, or empty, and not be the last one.",
        "parameters": [_query(table, page_max), _IF_NONE_MATCH],
        "responses": {"200": _found(page), **_problems(304, 400, 401, 403, 404, 413, 414, 429, 431, 500, 503)},
    }


def _query(table: ExposedTable, page_max: int) -> Json:
    """What follows the question mark, as one object, since an index and its column go together."""
    paging: Json = {
        "limit": {"type": "integer", "minimum": 1, "maximum": page_max},
        "cursor": {
            "type": "string",
            "minLength": 1,
            "maxLength": CURSOR_CHARS_MAX,
            "pattern": f"^{CURSOR_PATTERN}$",
            "description": "Of the page before; good for an hour, for the same caller and the same parameters.",
        },
    }
    ways: list[Json] = [{"type": "object", "properties": paging, "additionalProperties": False}]
    for index in table.indexes.values():
        column = table.column(index.partition_key)
        searched = {"index": {"const": index.name}, column.name: _written(column)}
        implied = index.partition_key == table.tenant
        ways.append(
            {
                "type": "object",
                "properties": {**searched, **paging},
                "required": ["index"] if implied else ["index", column.name],
                "additionalProperties": False,
            }
        )
    schema = ways[0] if len(ways) == 1 else {"oneOf": ways}
    return {"name": "query", "in": "query", "style": "form", "explode": True, "required": False, "schema": schema}


def _freshness(tables: Sequence[ExposedTable]) -> Json:
    moment = {"type": ["string", "null"], "format": "date-time"}
    of_table = {
        "type": "object",
        "required": ["as_of", "complete"],
        "properties": {"as_of": moment, "complete": {"type": ["boolean", "null"]}},
    }
    names = [table.name for table in tables]
    answer = {
        "type": "object",
        "required": ["as_of", "age_s", "tables"],
        "properties": {
            "as_of": moment,
            "age_s": {"type": ["number", "null"], "minimum": 0},
            "tables": {
                "type": "object",
                "required": names,
                "additionalProperties": False,
                "properties": dict.fromkeys(names, of_table),
            },
        },
    }
    return {
        "operationId": "freshness",
        "summary": "How old the data is, in all and by table; null: not known.",
        "responses": {
            "200": {"description": "What the heartbeat says.", "content": {"application/json": {"schema": answer}}},
            **_problems(400, 401, 403, 413, 414, 429, 431, 500, 503),
        },
    }


def _itself() -> Json:
    return {
        "operationId": "description",
        "summary": "This description.",
        "responses": {
            "200": {"description": "It.", "content": {"application/json": {"schema": {"type": "object"}}}},
            **_problems(400, 401, 403, 413, 414, 429, 431, 500, 503),
        },
    }


def _health() -> Json:
    words = {"type": "object", "properties": {"status": {"const": "ok"}, "database": {"enum": ["up", "down"]}}}
    return {
        "operationId": "health",
        "summary": "For load balancers: whether this process answers.",
        "security": [],
        "responses": {
            "200": {"description": "It does.", "content": {"application/json": {"schema": words}}},
            **_problems(400, 413, 414, 431, 500, 503),
        },
    }


def _found(schema: Json) -> Json:
    return {
        "description": "What was asked for.",
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Data-As-Of", "ETag")},
        "content": {"application/json": {"schema": schema}},
    }


def _problem(status: int, text: str) -> Json:
    answer: Json = {"description": text}
    if status != 304:
        answer["content"] = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/problem"}}}
    if status in (429, 503):
        answer["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    return answer


def _problems(*statuses: int) -> Json:
    return {str(status): {"$ref": f"#/components/responses/{status}"} for status in statuses}
