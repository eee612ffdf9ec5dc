"""Options, declared once: the command line, the recipe, the man page and the completion all come from here.

A stage declares its options as a class:

    class Params(Declared):
        by = fields("Fields to sort by, most significant first; a minus sorts descending.", required=True)
        top = integer("Keep only the first N records.", metavar="N", minimum=1)

`Params(by=("carrier",))` checks and holds the values. The same value may come as text (`--memory 64MiB`) or as a
YAML value (`memory: 64MiB`, `memory: 67108864`); `Option.parse` takes both and says what is wrong in one sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from keyword import iskeyword
from typing import Any, ClassVar, cast, overload

from etlcli.core.edit import encode, open_object

MAX_WORKERS = 256
_HUGE = 1.7e308
_SIZE_UNITS = {"": 1, "b": 1, "k": 1 << 10, "kib": 1 << 10, "kb": 10**3, "m": 1 << 20, "mib": 1 << 20, "mb": 10**6,
               "g": 1 << 30, "gib": 1 << 30, "gb": 10**9, "t": 1 << 40, "tib": 1 << 40, "tb": 10**12}  # fmt: skip
_DURATION_UNITS = {"us": 1e-6, "ms": 1e-3, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


class Option:
    """One option: its kind, how it is shown, and what a value must be."""

    __slots__ = (
        "choices",
        "default",
        "help",
        "kind",
        "metavar",
        "minimum",
        "name",
        "positional",
        "repeats",
        "required",
        "singular",
        "takes",
        "written",
    )

    def __init__(
        self,
        kind: str,
        help: str,
        *,
        default: Any = None,
        required: bool = False,
        choices: tuple[str, ...] = (),
        metavar: str = "",
        minimum: int | None = None,
        positional: bool = False,
        repeats: bool = False,
        singular: str = "",
        takes: Callable[[str], bool] | None = None,
        written: bool = False,
    ) -> None:
        """`singular`: what the flag is called where a value at a time is given and the recipe has a list. `takes`: which
        words of the command line are this option's, where it is positional beside the input files."""
        self.name = ""
        self.kind = kind
        self.help = help
        self.default = default
        self.required = required
        self.choices = choices
        self.metavar = metavar
        self.minimum = minimum
        self.positional = positional
        self.repeats = repeats
        self.singular = singular
        self.takes = takes
        self.written = written

    @property
    def attribute(self) -> str:
        """What it is called where Python has the word for itself: `from_` for `from`."""
        return self.name + "_" if iskeyword(self.name) else self.name

    @property
    def flag(self) -> str:
        return "--" + (self.singular or self.name).replace("_", "-")

    @property
    def shown(self) -> str:
        """What a person who uses the command line knows it by."""
        return self.metavar if self.positional else self.flag

    def parse(self, value: Any) -> Any:
        """The value as the stage sees it. Raises ValueError with the reason."""
        if value is None:
            return self.default
        parsed = _PARSERS[self.kind](self, value)
        if self.minimum is not None and cast(int, parsed) < self.minimum:
            raise ValueError(f"must be at least {self.minimum}")
        return parsed

    def schema(self) -> dict[str, Any]:
        """The JSON Schema of the values a recipe may give."""
        schema = dict(_SCHEMAS[self.kind])
        if self.choices:
            schema["enum"] = list(self.choices)
        if self.minimum is not None and self.kind == "integer":
            schema["minimum"] = self.minimum
        return {**schema, "description": self.help}


class Declared:
    """Base of a `Params` class: collects the options a subclass declares and holds one set of values."""

    options: ClassVar[tuple[Option, ...]] = ()

    def __init_subclass__(cls) -> None:
        own = []
        for name, value in list(vars(cls).items()):
            if isinstance(value, Option):
                value.name = name.removesuffix("_")
                own.append(value)
                delattr(cls, name)
        cls.options = (*cls.options, *own)

    def __init__(self, **values: Any) -> None:
        """Raises ValueError naming the option: unknown, missing, or with a value that cannot be."""
        known = {option.name for option in self.options}
        for name in values:
            if name not in known:
                raise ValueError(f"unknown option {name!r}")
        for option in self.options:
            try:
                parsed = option.parse(values.get(option.name))
            except ValueError as error:
                raise ValueError(f"{option.name}: {error}") from None
            if option.required and parsed in (None, ()):
                raise ValueError(f"{option.name}: required")
            setattr(self, option.attribute, parsed)
        self.verify()

    @property
    def needs_order(self) -> bool:
        """Whether a stage with these options goes by the order of its input, so that a run keeps it."""
        return False

    def verify(self) -> None:
        """For subclasses: whether the values go together. Raises ValueError, `option: reason`."""

    def values(self) -> dict[str, Any]:
        return {option.name: getattr(self, option.attribute) for option in self.options}


def text(help: str, *, default: str | None = None, required: bool = False, metavar: str = "TEXT",
         positional: bool = False) -> str:  # fmt: skip
    return cast(str, Option("text", help, default=default, required=required, metavar=metavar, positional=positional))


def path(help: str, *, required: bool = False, metavar: str = "FILE", positional: bool = False,
         written: bool = False) -> str | None:  # fmt: skip
    """`written`: a file that a stage writes beside the run's output, and that must be no other file of the run."""
    option = Option("path", help, required=required, metavar=metavar, positional=positional, written=written)
    return cast("str | None", option)


def paths(help: str, *, metavar: str = "FILE", positional: bool = True) -> tuple[str, ...]:
    return cast(
        "tuple[str, ...]", Option("paths", help, default=(), metavar=metavar, positional=positional, repeats=True)
    )


def texts(help: str, *, metavar: str = "TEXT", singular: str = "",
          takes: Callable[[str], bool] | None = None) -> tuple[str, ...]:  # fmt: skip
    """Repeatable: once per value on the command line, a list in a recipe. With `takes` it is positional."""
    option = Option("texts", help, default=(), metavar=metavar, repeats=True, positional=takes is not None,
                    singular=singular, takes=takes)  # fmt: skip
    return cast("tuple[str, ...]", option)


def command(help: str) -> tuple[str, ...]:
    """A command and its arguments: what follows `--` on the command line, a list in a recipe."""
    return cast(
        "tuple[str, ...]", Option("command", help, default=(), metavar="COMMAND", positional=True, repeats=True)
    )


def fields(help: str, *, required: bool = False, metavar: str = "FIELDS") -> tuple[str, ...]:
    """Field paths: comma-separated on the command line, a list or such a text in a recipe."""
    return cast("tuple[str, ...]", Option("fields", help, default=(), required=required, metavar=metavar))


def json_object(help: str) -> str | None:
    """A JSON object: as text, or in a recipe as a mapping."""
    return cast("str | None", Option("object", help, metavar="JSON"))


def flag(help: str) -> bool:
    return cast(bool, Option("flag", help, default=False))


def ordered(help: str) -> bool:
    """True unless a recipe says otherwise; on the command line `--unordered`, which every command has, does."""
    return cast(bool, Option("flag", help, default=True, singular="unordered"))


@overload
def integer(help: str, *, default: int, metavar: str = "N", minimum: int | None = 0) -> int: ...
@overload
def integer(help: str, *, default: None = None, metavar: str = "N", minimum: int | None = 0) -> int | None: ...
def integer(help: str, *, default: int | None = None, metavar: str = "N", minimum: int | None = 0) -> int | None:
    return cast("int | None", Option("integer", help, default=default, metavar=metavar, minimum=minimum))


def size(help: str, *, default: int | None = None, minimum: int = 1) -> int:
    """Bytes."""
    return cast(int, Option("size", help, default=default, metavar="SIZE", minimum=minimum))


@overload
def duration(help: str, *, default: float) -> float: ...
@overload
def duration(help: str, *, default: None = None) -> float | None: ...
def duration(help: str, *, default: float | None = None) -> float | None:
    """Seconds."""
    return cast("float | None", Option("duration", help, default=default, metavar="DUR"))


def backoff(help: str, *, default: str) -> tuple[float, float]:
    """The first and the longest wait, in seconds."""
    return cast("tuple[float, float]", Option("backoff", help, default=parse_backoff(default), metavar="DUR..DUR"))


def choice(choices: tuple[str, ...], help: str, *, default: str | None = None, required: bool = False) -> str:
    option = Option("choice", help, default=default, required=required, choices=choices, metavar="|".join(choices))
    return cast(str, option)


def numbers(help: str) -> tuple[float, ...]:
    """Finite numbers that rise; in a recipe only."""
    return cast("tuple[float, ...]", Option("numbers", help, default=()))


def mapping(help: str) -> dict[str, Any]:
    """Names and what they stand for; in a recipe only."""
    return cast("dict[str, Any]", Option("mapping", help, default={}))


def parse_size(value: Any) -> int:
    """`64MiB`, `10MB`, `512k` or a number of bytes, in bytes. k, M, G alone are binary, as in GNU tools."""
    size = _quantity(value, _SIZE_UNITS, "a size such as 64MiB")
    if not 1 <= size < 1 << 62:
        raise ValueError(f"expected a size such as 64MiB, not {value!r}")
    return int(size)


def parse_workers(value: Any) -> int | None:
    """A number of processes, or `auto`: None."""
    if value in (None, "auto"):
        return None
    count = int(value) if isinstance(value, str) and value.isdecimal() else value
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_WORKERS:
        raise ValueError(f"expected auto or 1 to {MAX_WORKERS} workers, not {value!r}")
    return count


def parse_limit(value: Any) -> int:
    """A number of records."""
    count = int(value) if isinstance(value, str) and value.isdecimal() else value
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"expected a number of records, 1 or more, not {value!r}")
    return count


def parse_count(value: Any) -> int:
    """A number of things, or none."""
    count = int(value) if isinstance(value, str) and value.isdecimal() else value
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ValueError(f"expected a number, 0 or more, not {value!r}")
    return count


def parse_interval(value: Any) -> float:
    """A duration that is not over at once."""
    seconds = parse_duration(value)
    if not seconds:
        raise ValueError(f"expected a duration above 0, such as 10s, not {value!r}")
    return seconds


def parse_duration(value: Any) -> float:
    """`500ms`, `30s`, `2m`, `1h` or a number of seconds, in seconds."""
    seconds = _quantity(value, _DURATION_UNITS, "a duration such as 30s or 500ms")
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"expected a duration such as 30s or 500ms, not {value!r}")
    return seconds


def parse_backoff(value: Any) -> tuple[float, float]:
    """`500ms..30s`, or one duration for waits that are all the same."""
    if isinstance(value, tuple):
        return value
    first, dots, longest = value.partition("..") if isinstance(value, str) else (value, "", "")
    shortest = parse_duration(first)
    limit = parse_duration(longest) if dots else shortest
    if limit < shortest:
        raise ValueError(f"expected the first wait and the longest, such as 500ms..30s, not {value!r}")
    return shortest, limit


def format_size(count: int) -> str:
    for unit, label in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:g}{label}" if count % unit == 0 else f"{count / unit:.1f}{label}"
    return f"{count}B"


def format_backoff(waits: tuple[float, float]) -> str:
    return "..".join(f"{wait:g}s" for wait in waits)


def _quantity(value: Any, units: Mapping[str, float], what: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[2].lower() not in units:
        raise ValueError(f"expected {what}, not {value!r}")
    return float(match[1]) * units[match[2].lower()]


def _parse_text(option: Option, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, not {value!r}")
    if "\0" in value:
        raise ValueError("must not hold a NUL byte")
    return value


def _parse_filled(option: Option, value: Any) -> str:
    if value == "":
        raise ValueError("the value is empty; a variable that is not set, perhaps")
    return _parse_text(option, value)


def _parse_texts(option: Option, value: Any) -> tuple[str, ...]:
    if value == []:
        raise ValueError("the list is empty")
    items: Iterable[Any] = value if isinstance(value, list | tuple) else [value]
    return tuple(_parse_text(option, item) for item in items)


def _parse_fields(option: Option, value: Any) -> tuple[str, ...]:
    parts = [part.strip() for item in _parse_texts(option, value) for part in item.split(",")]
    if not all(parts):
        raise ValueError("a field name is empty")
    return tuple(parts)


def _parse_object(option: Option, value: Any) -> str:
    try:
        return encode(open_object(encode(value) if isinstance(value, dict) else value)).decode()
    except (TypeError, ValueError):  # what msgspec raises is a ValueError
        raise ValueError(f"expected a JSON object, not {value!r}") from None


def _parse_flag(option: Option, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, not {value!r}")
    return value


def _parse_integer(option: Option, value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"expected a whole number, not {value!r}")


def _parse_choice(option: Option, value: Any) -> str:
    if value not in option.choices:
        raise ValueError(f"expected one of {', '.join(option.choices)}, not {value!r}")
    return cast(str, value)


def _parse_numbers(option: Option, value: Any) -> tuple[float, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"expected a list of numbers, not {value!r}")
    found: list[float] = []
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int | float) or not -_HUGE < item < _HUGE:
            raise ValueError(f"expected a number, not {item!r}")
        if found and float(item) <= found[-1]:
            raise ValueError(f"the numbers must rise: {item!r} comes after {found[-1]:g}")
        found.append(float(item))
    return tuple(found)


def _parse_mapping(option: Option, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping, not {value!r}")
    return value


_PARSERS = {
    "text": _parse_filled,
    "path": _parse_filled,
    "texts": _parse_texts,
    "paths": _parse_texts,
    "command": _parse_texts,
    "fields": _parse_fields,
    "object": _parse_object,
    "flag": _parse_flag,
    "integer": _parse_integer,
    "size": lambda option, value: parse_size(value),
    "duration": lambda option, value: parse_duration(value),
    "backoff": lambda option, value: parse_backoff(value),
    "choice": _parse_choice,
    "numbers": _parse_numbers,
    "mapping": _parse_mapping,
}

_LIST = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_SCHEMAS: dict[str, dict[str, Any]] = {
    "text": {"type": "string"},
    "path": {"type": "string"},
    "texts": _LIST,
    "paths": _LIST,
    "command": _LIST,
    "fields": _LIST,
    "object": {"type": ["object", "string"]},
    "flag": {"type": "boolean"},
    "integer": {"type": "integer"},
    "size": {"type": ["string", "integer"]},
    "duration": {"type": ["string", "number"]},
    "backoff": {"type": ["string", "number"]},
    "choice": {"type": "string"},
    "numbers": {"type": "array", "items": {"type": "number"}, "minItems": 1},
    "mapping": {"type": "object", "additionalProperties": {"type": "string"}},
}
