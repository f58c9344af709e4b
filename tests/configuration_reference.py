"""The reference in docs/configuration.md, made from the settings: python -m tests.configuration_reference renews it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from upwell.settings import json_schema

PAGE: Final = Path(__file__).parents[1] / "docs" / "configuration.md"
BEGIN: Final = "<!-- made from src/upwell/settings.py by python -m tests.configuration_reference -->\n"
END: Final = "<!-- end -->\n"


def reference() -> str:
    """A section for each group of settings, a row for each setting."""
    schema = json_schema()
    return "\n".join(_section(schema, schema, "", "The top of the file", 3)).rstrip() + "\n"


def _section(schema: dict[str, Any], model: dict[str, Any], place: str, title: str, depth: int) -> list[str]:
    lines = [
        f"{'#' * depth} {title}",
        "",
        model["description"],
        "",
        "| setting | holds | default | |",
        "|---|---|---|---|",
    ]
    inner: list[str] = []
    required = model.get("required", [])
    for name, field in model.get("properties", {}).items():
        found = _model(schema, field)
        description = (field.get("description") or (found or {}).get("description", "")).replace("\n", " ")
        default = "required" if name in required else _default(field)
        path = f"{place}.{name}" if place else name
        if found is not None:
            named = path + ".NAME" * _is_mapping(field)
            inner += _section(schema, found, named, f"`{named}`", 3)
        lines.append(f"| `{name}` | {_holds(field, found)} | {default} | {description} |")
    if len(lines) == 6:
        lines = [*lines[:3], "", "It has no settings of its own: `{}`."]
    return [*lines, "", *inner]


def _model(schema: dict[str, Any], field: dict[str, Any]) -> dict[str, Any] | None:
    """The group of settings that a field holds, if it does."""
    candidates = [field, *field.get("anyOf", [])]
    candidates += [values for each in candidates for values in _values(each)]
    for candidate in candidates:
        if isinstance(candidate, dict) and "$ref" in candidate:
            found: dict[str, Any] = schema["$defs"][candidate["$ref"].rpartition("/")[2]]
            return found
    return None


def _values(field: dict[str, Any]) -> list[dict[str, Any]]:
    """What a mapping's values are; nothing of what is no mapping."""
    kinds = [field.get("additionalProperties"), *field.get("patternProperties", {}).values()]
    return [kind for kind in kinds if isinstance(kind, dict)]


def _is_mapping(field: dict[str, Any]) -> bool:
    return any(_values(each) for each in [field, *field.get("anyOf", [])])


def _holds(field: dict[str, Any], model: dict[str, Any] | None) -> str:
    if "enum" in field:
        return " \\| ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if model is not None:
        return "settings by name" if _is_mapping(field) else "settings"
    kinds = [each for each in field.get("anyOf", [field]) if each.get("type") != "null"]
    kind = kinds[0]
    if "examples" in kind:
        return " ".join(f"`{example}`" for example in kind["examples"])
    if kind["type"] == "object":
        values = kind["additionalProperties"]
        return "column: " + (" \\| ".join(f"`{v}`" for v in values["enum"]) if "enum" in values else "name")
    if kind["type"] == "array":
        return "list of names"
    if kind["type"] == "integer":
        return f"{kind['minimum']} to {kind['maximum']}"
    return {"string": "text", "boolean": "`true` \\| `false`"}[kind["type"]]


def _default(field: dict[str, Any]) -> str:
    default = field.get("default")
    if default is None or default in ("", {}):
        return ""
    shown = (
        {1.0: "1s", 10.0: "10s", 300_000_000: "300 MB"}.get(default, default)
        if not isinstance(default, bool)
        else str(default).lower()
    )
    return f"`{shown}`"


def page() -> str:
    """The page with the reference renewed."""
    text = PAGE.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{reference()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
