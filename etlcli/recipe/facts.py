"""What the result of a recipe depends on: so that a run is not gone on with by another recipe.

Workers, memory, log levels and the error budget change no record. A file that a step reads (a schema, a table) belongs to
the recipe. Values are digests: they may hold what nobody should read in a checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

from etlcli.core.edit import encode
from etlcli.core.params import Declared
from etlcli.io.identity import identity_of
from etlcli.io.inputs import is_url
from etlcli.io.masking import masked
from etlcli.recipe.model import OnError, Recipe, StepSpec

_WHOLE = 16 << 20
"""Files up to this size are known by their content; larger ones by their start, size and time."""


def facts_of(recipe: Recipe) -> dict[str, str]:
    """A digest for each thing that decides the result, by its place in the recipe."""
    facts: dict[str, str] = {}
    sinks = [("sink", recipe.sink)] if recipe.sink else _placed("sinks", recipe.sinks)
    placed = [("source", recipe.source), *_placed("steps", recipe.stages), *sinks]
    for place, spec in placed:
        facts |= {f"{place}.{name}": _digest(value) for name, value in _of_step(spec, recipe.base_dir)}
    facts["steps"] = _digest([spec.id for spec in recipe.stages])
    routes = [[branch.when, branch.then, [step.id for step in branch.steps]] for branch in recipe.branches]
    facts["route"] = _digest([recipe.routed, routes])
    facts["source.incremental"] = _digest(recipe.incremental)
    if recipe.quarantine:
        facts["errors.quarantine"] = _digest(recipe.quarantine)
    return facts


def differences(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """The places in which two recipes differ. Where there was no policy for rejects there was none of those, so that any
    policy goes on from there."""
    places = {place for place in before.keys() | now.keys() if before.get(place) != now.get(place)}
    return sorted(place for place in places if place in before or not place.endswith(("on_error.then", ".quarantine")))


def _placed(section: str, steps: tuple[StepSpec, ...]) -> Iterator[tuple[str, StepSpec]]:
    for step in steps:
        yield f"{section}.{step.id}", step


def _of_step(spec: StepSpec, base_dir: str) -> Iterator[tuple[str, Any]]:
    yield "uses", spec.uses
    params: Declared = spec.params
    for option in params.options:
        value = getattr(params, option.attribute)
        if value == option.default or value in (None, ()):
            continue
        yield f"with.{option.name}", value
        if option.kind == "path" and not option.written and not option.positional and not is_url(value):
            yield f"with.{option.name} (the file)", _content(os.path.join(base_dir, value))
    yield from _of_policy(spec.on_error, base_dir)


def _of_policy(on_error: OnError, base_dir: str) -> Iterator[tuple[str, Any]]:
    if on_error.then != "fail":
        yield "on_error.then", on_error.then
    if on_error.retry.attempts > 1:
        yield "on_error.retry", on_error.retry.values()
    if on_error.fallback:
        value, changes, steps = on_error.fallback
        yield "on_error.fallback", [value and value.decode(), changes]
        for place, step in _placed("steps", steps):
            for name, fact in _of_step(step, base_dir):
                yield f"on_error.fallback.{place}.{name}", fact


def _content(path: str) -> Any:
    try:
        with open(path, "rb") as file:
            identity = identity_of(file.fileno())
            return list(identity) if identity.size > _WHOLE else blake2b(file.read()).hexdigest()
    except OSError:
        return None


def _digest(value: Any) -> str:
    shown = masked(value) if isinstance(value, str) else value  # credentials change, and belong in no file
    return blake2b(encode(shown), digest_size=8).hexdigest()
