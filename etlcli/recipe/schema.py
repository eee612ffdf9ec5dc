"""The JSON Schema of recipes, for editors: made from the same declarations that `load` checks by."""

from __future__ import annotations

from typing import Any

from etlcli.core.params import Option
from etlcli.core.policy import THEN, Retry
from etlcli.core.stage import Component
from etlcli.observe.logs import FORMATS, LEVELS
from etlcli.observe.metrics import CustomSpec, MetricsSpec
from etlcli.recipe.model import LineageSpec, TracingSpec
from etlcli.registry import COMPONENTS, load

_NUMBER_OR_TEXT: Any = {"type": ["string", "integer"]}
_LEVEL = {"enum": list(LEVELS)}
_STEPS = {"$ref": "#/$defs/steps"}
_REFERENCE = {"type": "string", "pattern": "\\$\\{[^}]*\\}"}


def recipe_schema() -> dict[str, Any]:
    """Draft 2020-12. A value may also be a text with a `${...}` reference."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "etl recipe",
        "type": "object",
        "required": ["version", "source"],
        "oneOf": [{"required": [name]} for name in ("sink", "sinks", "route")],
        "additionalProperties": False,
        "properties": {
            "version": {"const": 1},
            "name": {"type": "string"},
            "params": {"type": "object", "additionalProperties": _object(
                {"type": {"enum": ["string", "integer", "number", "boolean"]}, "default": True})},
            "source": _one_of("source"),
            "steps": _STEPS,
            "sink": {"$ref": "#/$defs/sink"},
            "sinks": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/sink"}},
            "route": {"type": "array", "minItems": 1, "items": _object(
                {"when": {"type": "string"}, "on_error": _object({"then": {"enum": list(THEN)}}), "steps": _STEPS,
                 "sink": {"$ref": "#/$defs/sink"}}, ["sink"])},
            "runtime": _object(
                {**dict.fromkeys(("workers", "memory", "queue", "timeout"), _NUMBER_OR_TEXT),
                 "ordered": {"type": "boolean"}}
            ),
            "checkpoint": _object(
                {"dir": {"type": "string"}, "every": _NUMBER_OR_TEXT, "keep": _NUMBER_OR_TEXT}, ["dir"]
            ),
            "errors": _object({"max": _NUMBER_OR_TEXT, "quarantine": {"type": "string"}}),
            "metrics": _object({**_values(MetricsSpec.options), "custom": {
                "type": "array", "items": _object(_values(CustomSpec.options), _required(CustomSpec.options))}}),
            "tracing": _object(_values(TracingSpec.options)),
            "lineage": _object(_values(LineageSpec.options)),
            "logging": _object(
                {"level": _LEVEL, "format": {"enum": list(FORMATS)}, "file": {"type": "string"},
                 "per_step": {"type": "object", "additionalProperties": _LEVEL},
                 "sample": _NUMBER_OR_TEXT, "every": _NUMBER_OR_TEXT}
            ),
        },
        "$defs": {
            "steps": {"type": "array", "items": _one_of("stage")},
            "sink": _one_of("sink"),
            "on_error": _on_error("value", "set", "steps"),
            "on_error_of_a_source": _on_error("value"),
        },
    }  # fmt: skip


def _one_of(kind: str) -> dict[str, Any]:
    entries = [(name, entry) for name, entry in COMPONENTS.items() if entry.kind == kind]
    return {"oneOf": [_step(name, load(entry.target), entry.help, kind) for name, entry in entries]}


def _step(name: str, component: type[Component], help: str, kind: str) -> dict[str, Any]:
    options = component.Params.options
    required = _required(options)
    properties: dict[str, Any] = {
        "uses": {"const": name, "description": help},
        "with": _object(_values(options), required),
        "on_error": {"$ref": "#/$defs/on_error_of_a_source" if kind == "source" else "#/$defs/on_error"},
    }
    properties |= {"incremental": {"type": "boolean"}} if kind == "source" else {"id": {"type": "string"}}
    return _object(properties, ["uses", "with"] if required else ["uses"])


def _on_error(*fallbacks: str) -> dict[str, Any]:
    any_fallback = {"value": {"type": "object"}, "set": {"type": "object"}, "steps": _STEPS}
    fallback = _object({name: any_fallback[name] for name in fallbacks})
    return _object(
        {
            "retry": _object(_values(Retry.options)),
            "fallback": {**fallback, "minProperties": 1, "maxProperties": 1},
            "then": {"enum": list(THEN)},
        }
    )


def _values(options: tuple[Option, ...]) -> dict[str, Any]:
    return {option.name: {"anyOf": [option.schema(), _REFERENCE]} for option in options}


def _required(options: tuple[Option, ...]) -> list[str]:
    return [option.name for option in options if option.required]


def _object(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": properties}
    return {**schema, "required": required} if required else schema
