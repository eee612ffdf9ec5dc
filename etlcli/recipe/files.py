"""The files that a recipe names: none may be written by two, or be written where another is read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from glob import glob

from etlcli.errors import UsageError
from etlcli.io.inputs import STDIN, is_url
from etlcli.recipe.model import Recipe


def check_files(recipe: Recipe) -> None:
    """Raises UsageError with the step. The output may replace what the source reads, and nothing that a step does."""
    _check_quarantine(recipe)
    outputs = _outputs(recipe)
    options = [(spec, option) for spec in recipe.stages for option in spec.params.options if option.kind == "path"]
    named = [(spec, option, path) for spec, option in options if (path := getattr(spec.params, option.attribute))]
    paths = list(_paths(recipe)) if named else []
    for spec, option, path in named:
        own = _real(recipe, path)
        if (option.written and paths.count(own) > 1) or own in outputs:
            raise UsageError(
                f"{option.flag} {path} is also another file that the run reads or writes",
                where=f"step {spec.id}",
                hint="give it a file of its own",
            )


def check_beside(recipe: Recipe, reports: Sequence[str] = ()) -> None:
    """Raises UsageError when what is written beside the records (the log, metrics, lineage, and `reports`, whose paths are
    seen from here) would be one of their files, or two of them the same."""
    named = [("logging", "log", recipe.logging.file)]
    named += [("metrics", "text file", recipe.metrics and recipe.metrics.textfile)]
    named += [("lineage", "lineage", recipe.lineage and recipe.lineage.file)]
    files = [(where, f"{what} {path}", _real(recipe, path)) for where, what, path in named if path]
    files += [("--report", f"report {path}", os.path.realpath(path)) for path in reports]
    taken = {*_paths(recipe), *([_real(recipe, recipe.quarantine)] if recipe.quarantine else [])} if files else set()
    taken |= {os.path.realpath(recipe.path)} if recipe.path else set()
    for where, what, file in files:
        if file in taken:
            raise UsageError(
                f"the {what} is also a file that the run reads or writes",
                where=where,
                hint="give it a file of its own",
            )
        if os.path.isfile(file) or not os.path.exists(file):  # a device takes anything
            taken.add(file)


def _check_quarantine(recipe: Recipe) -> None:
    if not recipe.quarantines:
        return
    if not recipe.quarantine:
        raise UsageError(
            "a step that puts records into quarantine needs a file for them",
            where="errors",
            hint="name it with --quarantine (errors.quarantine)",
        )
    if _real(recipe, recipe.quarantine) in _paths(recipe):
        raise UsageError(
            f"the quarantine {recipe.quarantine} is also a file that the run reads or writes",
            where="errors",
            hint="give it a file of its own, which no glob of the inputs matches",
        )


def _outputs(recipe: Recipe) -> list[str]:
    """The files that the sinks replace. Raises UsageError when two have the same."""
    paths = [path for sink in recipe.sinks if (path := getattr(sink.params, "path", None)) and path != STDIN]
    outputs = [_real(recipe, path) for path in paths]
    for path, output in zip(paths, outputs, strict=True):
        if recipe.path and output == os.path.realpath(recipe.path):
            raise UsageError(f"the output {path} would take the place of the recipe", where="sink", hint="name another")
        if outputs.count(output) > 1:
            raise UsageError(f"two sinks write {path}", where="sinks", hint="give each a file of its own")
    return outputs


def _paths(recipe: Recipe) -> Iterator[str]:
    """The files that the steps' options name, those that globs match among them."""
    for spec in recipe.specs:
        for option in spec.params.options:
            value = getattr(spec.params, option.attribute)
            if option.kind == "path" and value and not is_url(value):
                yield _real(recipe, value)
            for pattern in value if option.kind == "paths" else ():
                if not is_url(pattern):
                    yield _real(recipe, pattern)
                    yield from map(os.path.realpath, glob(os.path.join(recipe.base_dir, pattern), recursive=True))


def _real(recipe: Recipe, path: str) -> str:
    return os.path.realpath(os.path.join(recipe.base_dir, path))
