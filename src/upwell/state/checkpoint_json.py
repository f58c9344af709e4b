"""A checkpoint as JSON, without loss, so that every state store keeps the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import orjson

from upwell.model import Checkpoint, Column, Kind, TablePhase, TableProgress, TableSchema

_PROGRESS = tuple(field.name for field in fields(TableProgress))


class CheckpointEncoder:
    """Encodes checkpoints; what a schema becomes is remembered, since schemas are most of it and rarely change."""

    def __init__(self) -> None:
        self._schemas: dict[str, tuple[TableSchema, orjson.Fragment]] = {}

    def encode(self, checkpoint: Checkpoint) -> bytes:
        """The JSON that `decode_checkpoint` reads."""
        self._schemas = {name: self._schema(name, schema) for name, schema in checkpoint.schemas.items()}
        return orjson.dumps(
            {
                "epoch": checkpoint.epoch,
                "term": checkpoint.term,
                "position": checkpoint.position,
                "commit": checkpoint.commit,
                "lanes": dict(checkpoint.lanes),
                "tables": {name: _progress_to_json(progress) for name, progress in checkpoint.tables.items()},
                "schemas": {name: fragment for name, (_, fragment) in self._schemas.items()},
            },
            option=orjson.OPT_NON_STR_KEYS,
        )

    def _schema(self, name: str, schema: TableSchema) -> tuple[TableSchema, orjson.Fragment]:
        known = self._schemas.get(name)
        if known is not None and known[0] is schema:
            return known
        return schema, orjson.Fragment(orjson.dumps(_schema_to_json(schema)))


def decode_checkpoint(data: bytes) -> Checkpoint:
    """Reads `CheckpointEncoder.encode`. Raises KeyError, TypeError or ValueError where it is not one."""
    fields_ = orjson.loads(data)
    return Checkpoint(
        epoch=fields_["epoch"],
        term=fields_["term"],
        position=fields_["position"],
        commit=fields_["commit"],
        lanes={int(lane): (term, sequence) for lane, (term, sequence) in fields_["lanes"].items()},
        tables=_mapped(fields_["tables"], _progress_from_json),
        schemas=_mapped(fields_["schemas"], _schema_from_json),
    )


def _mapped(values: Mapping[str, Any], read: Callable[[Any], Any]) -> dict[str, Any]:
    return {name: read(value) for name, value in values.items()}


def _progress_to_json(progress: TableProgress) -> dict[str, Any]:
    return {name: getattr(progress, name) for name in _PROGRESS}


def _progress_from_json(values: dict[str, Any]) -> TableProgress:
    return TableProgress(**{**values, "phase": TablePhase(values["phase"])})


def _schema_to_json(schema: TableSchema) -> dict[str, Any]:
    return {
        "table": schema.table,
        # Not the wire's form: that leaves out what only the source knows (`has_default`, `loose`).
        "columns": [list(column) for column in schema.columns],
        "key": schema.key,
        "dialect": schema.dialect,
        "target": schema.target,
        "partial": schema.partial,
        "loose": sorted(schema.loose),
    }


def _schema_from_json(values: dict[str, Any]) -> TableSchema:
    columns = tuple(Column(name, type_, Kind(kind), default) for name, type_, kind, default in values["columns"])
    loose = frozenset(values.get("loose", ()))
    return TableSchema(**{**values, "columns": columns, "key": tuple(values["key"]), "loose": loose})
