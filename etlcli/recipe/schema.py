"""The JSON Schema of recipes, for editors: made from the same declarations that `load` checks by."""

from __future__ import annotations

from typing import Any

from etlcli.core.policy import THEN
from etlcli.core.stage import Component
from etlcli.observe.logs import LEVELS
from etlcli.registry import COMPONENTS, load

_REFERENCE = {"type": "string", "pattern": "\\$\\{[^}]*\\}"}


def recipe_schema() -> dict[str, Any]:
    """Draft 2020-12. A value may also be a text with a `${...}` reference."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "etl recipe",
        "type": "object",
        "required": ["version", "source", "sink"],
        "additionalProperties": False,
        "properties": {
            "version": {"const": 1},
            "name": {"type": "string"},
            "params": {"type": "object", "additionalProperties": _object(
                {"type": {"enum": ["string", "integer", "number", "boolean"]}, "default": True})},
            "source": _one_of("source"),
            "steps": {"type": "array", "items": _one_of("stage")},
            "sink": _one_of("sink"),
            "runtime": _object({"memory": {"type": ["string", "integer"]}}),
            "errors": _object({"max": {"type": ["string", "integer"]}, "quarantine": {"type": "string"}}),
            "logging": _object({"level": {"enum": list(LEVELS)}}),
        },
    }  # fmt: skip


def _one_of(kind: str) -> dict[str, Any]:
    entries = [(name, entry) for name, entry in COMPONENTS.items() if entry.kind == kind]
    return {"oneOf": [_step(name, load(entry.target), entry.help, kind) for name, entry in entries]}


def _step(name: str, component: type[Component], help: str, kind: str) -> dict[str, Any]:
    options = component.Params.options
    values = {option.name: {"anyOf": [option.schema(), _REFERENCE]} for option in options}
    required = [option.name for option in options if option.required]
    properties: dict[str, Any] = {
        "uses": {"const": name, "description": help},
        "with": _object(values, required),
        "on_error": _object({"then": {"enum": list(THEN)}}),
    }
    if kind == "stage":
        properties["id"] = {"type": "string"}
    return _object(properties, ["uses", "with"] if required else ["uses"])


def _object(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": properties}
    return {**schema, "required": required} if required else schema
