"""A recipe's YAML, checked and resolved.

Every error is a RecipeError that says file, line and column, and for a mistyped name the nearest known one. References such
as `${param.day}` are resolved after parsing, as values, so that no text can turn into structure; a missing one is an
error. The components' own `Params` decide what `with:` may hold.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from etlcli.core.edit import encode
from etlcli.core.expressions import check_condition
from etlcli.core.fields import parse_path
from etlcli.core.params import (
    Declared,
    parse_count,
    parse_duration,
    parse_interval,
    parse_limit,
    parse_size,
    parse_workers,
)
from etlcli.core.policy import THEN, ErrorBudget, Retry
from etlcli.core.stage import DEFAULT_MEMORY, DEFAULT_QUEUE, Component
from etlcli.errors import RecipeError, nearest
from etlcli.formats.yaml12 import Node, YamlError, load
from etlcli.io.inputs import read_whole
from etlcli.io.masking import names_secret, register
from etlcli.observe.logs import FORMATS, LEVELS
from etlcli.observe.metrics import CustomSpec, MetricsSpec
from etlcli.recipe.model import (
    Branch,
    CheckpointSpec,
    Fallback,
    LineageSpec,
    LoggingSpec,
    OnError,
    Recipe,
    StepSpec,
    TracingSpec,
)
from etlcli.registry import COMPONENTS
from etlcli.registry import load as load_target

MAX_BYTES = 1 << 20
VERSION = 1
TOP = (
    "version",
    "name",
    "params",
    "source",
    "steps",
    "sink",
    "sinks",
    "route",
    "runtime",
    "checkpoint",
    "errors",
    "logging",
    "metrics",
    "tracing",
    "lineage",
)
_ELSEWHERE = {
    "memory": "memory is shared by all steps: runtime.memory",
    "max_errors": "the error budget is the run's: errors.max",
    "quarantine": "the quarantine is the run's: errors.quarantine",
    "log_level": "the level is the run's: logging.level",
    "log_format": "the format is the run's: logging.format",
    "output": "the output is the sink's",
}
"""Flags of a subcommand that are no options of a step."""
# The start of a URL up to a user's name or password, the rest of them, and what ends them too early.
_AUTHORITY = re.compile(r"://[^/?#]*$")
_USER = re.compile(r"[^/?#]*@")
_UNFIT = re.compile(r"[/?#\[\]@\s]")
_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_PARAM_TYPES: dict[str, Any] = {"string": str, "integer": int, "number": (int, float), "boolean": bool}


def load_recipe(path: str, settings: Iterable[str] = ()) -> Recipe:
    """The recipe in `path`, with each `--set` setting (`sink.with.path=out.csv`) put in place first.

    Raises InputMissingError when the file cannot be read, RecipeError for everything that is wrong in it.
    """
    return _Loader(path, read_whole(path, MAX_BYTES)).recipe(settings)


class _Loader:
    def __init__(self, path: str, text: bytes) -> None:
        self._path = path
        self._text_read = text
        self._params: dict[str, Any] = {}
        try:
            self._root = load(text, name=path, max_bytes=MAX_BYTES)
        except YamlError as error:
            raise RecipeError(error.message, where=f"{path}:{error.line}:{error.column}") from None

    def recipe(self, settings: Iterable[str]) -> Recipe:
        digest = hashlib.sha256(self._text_read)
        for setting in settings:
            self._set(setting)
            digest.update(b"\0" + setting.encode(errors="surrogateescape"))
        top = self._section(self._root, TOP, "the recipe", required=("version", "source"))
        if self._plain(top["version"]) != VERSION:
            raise self._error(top["version"], f"version must be {VERSION}")
        self._params = self._read_params(top.get("params"))
        errors = self._section(top.get("errors"), ("max", "quarantine"), "errors")
        runtime = self._section(top.get("runtime"), ("workers", "ordered", "memory", "queue", "timeout"), "runtime")
        name = self._text(top.get("name"), os.path.splitext(os.path.basename(self._path))[0])
        steps = self._steps(top.get("steps"))
        sink, branches = self._outlets(top)
        recipe = Recipe(
            name,
            self._component(top["source"], "source"),
            steps,
            sink,
            self._parsed(errors.get("max"), ErrorBudget, None),
            self._text(errors.get("quarantine"), None),
            base_dir=os.path.dirname(self._path),
            memory=self._parsed(runtime.get("memory"), parse_size, DEFAULT_MEMORY),
            workers=self._parsed(runtime.get("workers"), parse_workers, None),
            ordered=self._truth(runtime.get("ordered"), "ordered", True),
            queue=self._parsed(runtime.get("queue"), parse_size, DEFAULT_QUEUE),
            timeout=self._parsed(runtime["timeout"], parse_duration, None) if "timeout" in runtime else None,
            checkpoint=self._checkpoint(top.get("checkpoint")),
            incremental=self._incremental(top["source"], top.get("checkpoint")),
            branches=branches,
            routed="route" in top,
            tracing=self._optional(TracingSpec, top, "tracing"),
            lineage=self._optional(LineageSpec, top, "lineage"),
            path=self._path,
            digest=digest.hexdigest(),
        )
        ids = [spec.id for spec in recipe.specs] + [key for key in ("sinks", "route") if key in top]
        recipe = recipe._replace(logging=self._logging(top.get("logging"), ids))
        return self._with_metrics(recipe, top["metrics"]) if "metrics" in top else recipe

    def _outlets(self, top: Mapping[str, Node]) -> tuple[StepSpec | None, tuple[Branch, ...]]:
        """The sink, or the branches to several."""
        given = [name for name in ("sink", "sinks", "route") if name in top]
        if len(given) != 1:
            raise self._error(
                top[given[1]] if given else self._root,
                "the recipe needs one of sink, sinks and route",
                hint="sinks all get every record; route deals them out by conditions",
            )
        node = top[given[0]]
        if given == ["sink"]:
            sink = self._component(node, "sink")
            if sink.id in (spec.id for spec in self._steps(top.get("steps"))):
                raise self._error(node, f"the id {sink.id!r} is taken", hint="give each step and sink an id of its own")
            return sink, ()
        if not isinstance(node.value, list) or not node.value:
            raise self._error(node, f"{given[0]} must be a list")
        read = self._route if given == ["route"] else self._copy
        branches = tuple(map(read, node.value))
        self._check_ids(branches, node, top.get("steps"))
        return None, branches

    def _copy(self, node: Node) -> Branch:
        return Branch((), self._component(node, "sink"))

    def _route(self, node: Node) -> Branch:
        section = self._section(node, ("when", "on_error", "steps", "sink"), "a route", required=("sink",))
        when = self._text(section.get("when"), None)
        if when is not None:
            try:
                check_condition(when)
            except ValueError as error:
                raise self._error(section["when"], str(error)) from None
        on_error = self._on_error(section.get("on_error"), "stage")
        if on_error.fallback or on_error.retry.attempts > 1:
            raise self._error(section["on_error"], "a condition that cannot be told can only fail, skip or quarantine")
        steps = self._steps(section.get("steps"))
        return Branch(steps, self._component(section["sink"], "sink"), when, on_error.then)

    def _check_ids(self, branches: tuple[Branch, ...], node: Node, steps: Node | None) -> None:
        seen = {"sinks", "route", *(spec.id for spec in self._steps(steps))}
        for item, branch in zip(node.value, branches, strict=True):
            for spec in (*branch.steps, branch.sink):
                if spec.id in seen:
                    raise self._error(
                        item, f"the id {spec.id!r} is taken", hint="give each step and sink an id of its own"
                    )
                seen.add(spec.id)

    def _checkpoint(self, node: Node | None) -> CheckpointSpec | None:
        if node is None:
            return None
        section = self._section(node, CheckpointSpec._fields, "checkpoint", required=("dir",))
        every, keep = CheckpointSpec._field_defaults["every"], CheckpointSpec._field_defaults["keep"]
        return CheckpointSpec(
            self._text(section["dir"], None),
            self._parsed(section["every"], parse_duration, None) if "every" in section else every,
            self._parsed(section["keep"], parse_limit, None) if "keep" in section else keep,
        )

    def _incremental(self, source: Node, checkpoint: Node | None) -> bool:
        node = source.value.get("incremental")
        incremental = self._truth(node, "incremental", False)
        if incremental and checkpoint is None:
            raise self._error(
                node or source, "an incremental source must remember how far it came", hint="add checkpoint: {dir: ...}"
            )
        return incremental

    def _with_metrics(self, recipe: Recipe, node: Node) -> Recipe:
        metrics = self._declared(MetricsSpec, node, None, "metrics", also=("custom",))
        custom = node.value.get("custom")
        if custom is None:
            return recipe._replace(metrics=metrics)
        if not isinstance(custom.value, list):
            raise self._error(custom, "custom must be a list of metrics")
        steps = [spec.id for spec in recipe.specs]
        specs = tuple(self._custom(item, steps) for item in custom.value)
        owners: dict[str, str] = {}
        for item, spec in zip(custom.value, specs, strict=True):
            for series in spec.series():
                if series in owners:
                    raise self._error(
                        item.value["name"],
                        f"{spec.name} has the same series as {owners[series]}: {series}",
                        hint="give each metric a name of its own",
                    )
            owners |= dict.fromkeys(spec.series(), spec.name)
        return recipe._replace(metrics=metrics, custom=specs)

    def _custom(self, node: Node, steps: list[str]) -> CustomSpec:
        spec: CustomSpec = self._declared(CustomSpec, node, node, "a metric")
        if spec.step and spec.step not in steps:
            raise self._error(
                node.value["step"], f"no step is called {spec.step!r}", hint=nearest(spec.step, tuple(steps))
            )
        return spec

    # -- sections -----------------------------------------------------------------------------------------------------

    def _steps(self, node: Node | None) -> tuple[StepSpec, ...]:
        if node is None:
            return ()
        if not isinstance(node.value, list):
            raise self._error(node, "steps must be a list")
        steps = [self._component(item, "stage") for item in node.value]
        seen: set[str] = set()
        for item, step in zip(node.value, steps, strict=True):
            if step.id in seen:
                raise self._error(item, f"the id {step.id!r} is taken", hint="give each step an id of its own")
            seen.add(step.id)
        return tuple(steps)

    def _component(self, node: Node, kind: str) -> StepSpec:
        known = ("uses", "with", "on_error", "incremental" if kind == "source" else "id")
        section = self._section(node, known, f"a {kind}", required=("uses",))
        uses = self._text(section["uses"], None)
        names = [name for name, entry in COMPONENTS.items() if entry.kind == kind]
        if uses not in names:
            raise self._error(section["uses"], f"no {kind} is called {uses!r}", hint=nearest(str(uses), names))
        id = self._text(section.get("id"), uses)
        options = self._declared(self._params_of(uses), section.get("with"), node, f"{uses}'s with")
        return StepSpec(id, uses, options, self._on_error(section.get("on_error"), kind))

    def _on_error(self, node: Node | None, kind: str) -> OnError:
        section = self._section(node, ("retry", "fallback", "then"), "on_error")
        then = self._text(section.get("then"), "fail")
        if then not in THEN:
            raise self._error(section["then"], f"then must be one of {', '.join(THEN)}, not {then!r}")
        retry = self._declared(Retry, section.get("retry"), node, "retry")
        return OnError(retry, self._fallback(section.get("fallback"), kind), then)

    def _fallback(self, node: Node | None, kind: str) -> Fallback | None:
        if node is None:
            return None
        section = self._section(node, ("value", "set", "steps"), "fallback")
        if len(section) != 1:
            raise self._error(node, "fallback needs one of value, set and steps")
        if kind == "source" and "value" not in section:
            raise self._error(node, "the fallback of a source is a value: a line that is no record has no fields")
        if "steps" in section:
            return Fallback(steps=self._steps(section["steps"]))
        (values,) = section.values()
        if not isinstance(values.value, dict):
            raise self._error(values, "expected a mapping of fields to values")
        if "value" in section:
            return Fallback(value=encode(self._plain(values)))
        try:
            return Fallback(set=tuple((parse_path(name), self._plain(value)) for name, value in values.value.items()))
        except ValueError as error:
            raise self._error(values, str(error)) from None

    def _params_of(self, uses: str) -> type[Declared]:
        component: type[Component] = load_target(COMPONENTS[uses].target)
        return component.Params

    def _optional(self, declared: type[Declared], top: Mapping[str, Node], name: str) -> Any:
        return self._declared(declared, top[name], None, name) if name in top else None

    def _declared(
        self, declared: type[Declared], node: Node | None, parent: Node | None, what: str, also: tuple[str, ...] = ()
    ) -> Any:
        """The values of a mapping whose keys are declared options, or are looked at by somebody else (`also`)."""
        where = node or parent
        section = self._section(node, (*(option.name for option in declared.options), *also), what)
        for option in declared.options:
            if option.name in section:
                self._parsed(section[option.name], option.parse, None)
            elif option.required and where:
                raise self._error(where, f"{what} needs the key {option.name!r}")
        try:
            return declared(**{name: self._plain(value) for name, value in section.items() if name not in also})
        except ValueError as error:
            named, _, member = str(error).partition(":")[0].partition(".")
            place = section.get(named, where)
            assert place is not None
            if member and isinstance(place.value, dict):
                place = place.value.get(member, place)
            raise self._error(place, str(error)) from None

    def _read_params(self, node: Node | None) -> dict[str, Any]:
        values = {}
        for name, spec in self._section(node, None, "params").items():
            section = self._section(spec, ("type", "default"), f"the parameter {name}")
            type_name = self._text(section.get("type"), "string")
            if type_name not in _PARAM_TYPES:
                raise self._error(section["type"], f"type must be one of {', '.join(_PARAM_TYPES)}, not {type_name!r}")
            if "default" not in section:
                raise self._error(spec, f"the parameter {name} has no value",
                                  hint=f"give it a default, or --set params.{name}.default=...")  # fmt: skip
            value = self._plain(section["default"])
            fits = isinstance(value, _PARAM_TYPES[type_name])
            if not fits or (type_name in ("integer", "number") and isinstance(value, bool)):
                raise self._error(section["default"], f"the parameter {name} must be of type {type_name}")
            values[name] = value
        return values

    def _logging(self, node: Node | None, ids: list[str]) -> LoggingSpec:
        """`ids` are those of the recipe's steps."""
        section = self._section(node, LoggingSpec._fields, "logging")
        levels = self._section(section.get("per_step"), tuple(ids), "per_step, by the ids of steps,")
        usual = LoggingSpec()
        return LoggingSpec(
            self._choice(section.get("level"), "level", LEVELS, usual.level),
            self._choice(section.get("format"), "format", FORMATS, usual.format),
            self._text(section.get("file"), None),
            tuple((id, self._choice(level, f"the level of {id}", LEVELS, "")) for id, level in levels.items()),
            self._parsed(section["sample"], parse_count, None) if "sample" in section else usual.sample,
            self._parsed(section["every"], parse_interval, None) if "every" in section else usual.every,
        )

    def _choice(self, node: Node | None, what: str, choices: tuple[str, ...], default: str) -> str:
        value = self._text(node, default)
        if node is not None and value not in choices:
            raise self._error(node, f"{what} must be one of {', '.join(choices)}, not {value!r}")
        return str(value)

    # -- values -------------------------------------------------------------------------------------------------------

    def _section(
        self, node: Node | None, known: tuple[str, ...] | None, what: str, required: tuple[str, ...] = ()
    ) -> Mapping[str, Node]:
        """The members of a mapping, its keys checked; none if the node is missing or empty."""
        if node is None or (node.value is None and not required):
            return {}
        if not isinstance(node.value, dict):
            raise self._error(node, f"{what} must be a mapping")
        for key in node.value:
            if known is not None and key not in known:
                line, column = node.key_marks[key]
                raise RecipeError(f"{what} has no key {key!r}", where=f"{self._path}:{line}:{column}",
                                  hint=_ELSEWHERE.get(key) or nearest(key, known))  # fmt: skip
        for key in required:
            if key not in node.value:
                raise self._error(node, f"{what} needs the key {key!r}")
        return node.value

    def _text(self, node: Node | None, default: Any) -> Any:
        if node is None:
            return default
        value = self._plain(node)
        if not isinstance(value, str) or not value:
            raise self._error(node, f"expected text, not {value!r}")
        return value

    def _truth(self, node: Node | None, what: str, default: bool) -> bool:
        value = default if node is None else self._plain(node)
        if not isinstance(value, bool):
            assert node is not None
            raise self._error(node, f"{what} must be true or false")
        return value

    def _parsed(self, node: Node | None, parse: Any, default: Any) -> Any:
        try:
            return parse(default if node is None else self._plain(node))
        except ValueError as error:
            assert node is not None
            raise self._error(node, str(error)) from None

    def _plain(self, node: Node) -> Any:
        """The node's value with its references resolved."""
        if isinstance(node.value, dict):
            return {key: self._plain(value) for key, value in node.value.items()}
        if isinstance(node.value, list):
            return [self._plain(value) for value in node.value]
        value = node.plain()
        if not isinstance(value, str) or "${" not in value:
            return value
        whole = _REFERENCE.fullmatch(value)
        if whole:
            return self._resolve(node, whole[1])
        return _REFERENCE.sub(partial(self._inserted, node), value)

    def _inserted(self, node: Node, match: re.Match[str]) -> str:
        """What stands for a reference inside a text."""
        text = str(self._resolve(node, match[1]))
        before, after = match.string[: match.start()], match.string[match.end() :]
        if _AUTHORITY.search(before) and _USER.match(after) and _UNFIT.search(text):
            raise self._error(
                node,
                f"{match[0]} stands in a URL, and has a character that means something else there",
                hint="a name or password is percent-encoded in a URL: / as %2F, @ as %40, : as %3A",
            )
        return text

    def _resolve(self, node: Node, reference: str) -> Any:
        kind, _, name = reference.partition(".")
        if kind == "env":
            if name in os.environ:
                if names_secret(name):
                    register(os.environ[name])
                return os.environ[name]
            raise self._error(node, f"the environment variable {name} is not set")
        if kind == "param":
            if name in self._params:
                return self._params[name]
            raise self._error(node, f"no parameter is called {name!r}", hint=nearest(name, tuple(self._params)))
        raise self._error(node, f"cannot resolve ${{{reference}}}", hint="write ${env.NAME} or ${param.name}")

    def _set(self, setting: str) -> None:
        """Puts one `path=value` into the tree; steps are found by id or by number."""
        path, equals, text = setting.partition("=")
        if text == "-":  # standard input or output, and no list of nothing
            text = '"-"'
        try:
            value = load(text.encode(errors="surrogateescape"), name="--set", max_bytes=MAX_BYTES)
            _rename(value, f"--set {path}")
        except YamlError as error:
            raise RecipeError(f"--set {setting}: {error.message}") from None
        parts = path.split(".")
        if not equals or not all(parts):
            raise RecipeError(
                f"--set {setting!r} is not path=value", hint="for example --set sink.with.path=out.ndjson"
            )
        node = self._root
        for part in parts[:-1]:
            node = self._child(node, part, setting)
        if isinstance(node.value, list):
            node.value[self._index(node, parts[-1], setting)] = value
        elif isinstance(node.value, dict):
            node.value[parts[-1]] = value
            node.key_marks.setdefault(parts[-1], (node.line, node.column))
        else:
            raise RecipeError(f"--set {setting}: {'.'.join(parts[:-1])} holds a value, not keys")

    def _child(self, node: Node, part: str, setting: str) -> Node:
        if isinstance(node.value, list):
            index = self._index(node, part, setting)
            item: Node = node.value[index].copy()
            node.value[index] = item
            return item
        if node.value is None:
            node.value = {}
        if not isinstance(node.value, dict):
            raise RecipeError(f"--set {setting}: there is nothing below {part!r}")
        if part not in node.value:
            node.value[part] = Node({}, node.line, node.column)
            node.key_marks[part] = (node.line, node.column)
        # An anchor's node may stand in several places: only this one is meant.
        own: Node = node.value[part].copy()
        node.value[part] = own
        return own

    def _index(self, node: Node, part: str, setting: str) -> int:
        ids = []
        for index, item in enumerate(node.value):
            value = item.value if isinstance(item.value, dict) else {}
            ids.append(str((value.get("id") or value.get("uses") or item).plain()))
            if part in (ids[-1], str(index)):
                return index
        raise RecipeError(f"--set {setting}: no step is called {part!r}", hint=nearest(part, tuple(ids)))

    def _error(self, node: Node, message: str, hint: str = "") -> RecipeError:
        return RecipeError(message, where=node.name or f"{self._path}:{node.line}:{node.column}", hint=hint)


def _rename(node: Node, name: str) -> None:
    """Makes `name` the place of a node and all in it."""
    node.name = name
    for child in (
        node.value.values() if isinstance(node.value, dict) else node.value if isinstance(node.value, list) else ()
    ):
        _rename(child, name)
