"""Who watches a run: what the recipe and the command line ask for, begun before it and ended after it, however it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from etlcli.engine.watch import Watch
from etlcli.errors import EtlError, InputMissingError, Interrupted
from etlcli.observe.logs import Log
from etlcli.observe.status import FAILED, SUCCEEDED, Observer
from etlcli.recipe.model import Recipe

if TYPE_CHECKING:
    from etlcli.observe.lineage import Dataset


def observers(recipe: Recipe, watch: Watch, log: Log) -> list[Observer]:
    watching: list[Observer] = []
    if recipe.path:
        from etlcli.observe.control import Control

        watching.append(Control(watch, log))
    if recipe.metrics:
        from etlcli.engine.checkpoint import SHOWN
        from etlcli.observe.metrics import Metrics

        shown = os.path.join(recipe.base_dir, recipe.checkpoint.dir, SHOWN) if recipe.checkpoint else None
        watching.append(Metrics(recipe.metrics, recipe.base_dir, log, shown))
    if recipe.tracing and recipe.tracing.otel:
        from etlcli.observe.tracing import Tracing

        watching.append(Tracing(log))
    if recipe.lineage:
        watching.append(_lineage(recipe, log))
    return watching


def _lineage(recipe: Recipe, log: Log) -> Observer:
    from etlcli.observe.lineage import Lineage

    spec = recipe.lineage
    return Lineage(
        log,
        inputs=_inputs(recipe),
        outputs=_outputs(recipe),
        file=spec.file and os.path.join(recipe.base_dir, spec.file),
        url=spec.url,
        namespace=spec.namespace,
    )


def _inputs(recipe: Recipe) -> list[Dataset]:
    from etlcli.io.inputs import expand
    from etlcli.observe.lineage import dataset_of

    source = recipe.source
    found = []
    for option in source.params.options:
        with suppress(InputMissingError):  # which the run will meet, too
            if option.kind == "paths":
                found += expand(getattr(source.params, option.attribute), recipe.base_dir)
    return [dataset for path in found if (dataset := dataset_of(source.id, path))]


def _outputs(recipe: Recipe) -> list[Dataset]:
    """Of files, of templates of files as they are spelled, and of tables."""
    from etlcli.io.inputs import located
    from etlcli.observe.lineage import Dataset, dataset_of

    found: list[Dataset | None] = []
    for sink in recipe.sinks:
        values = sink.params.values()
        if path := values.get("path") or values.get("path_template"):
            found.append(dataset_of(sink.id, located(path, recipe.base_dir)))
        elif table := values.get("table"):
            database = dataset_of(sink.id, values["url"])
            found.append(database and Dataset(sink.id, database.namespace + database.name, table))
    return [dataset for dataset in found if dataset]


@contextmanager
def watched(watch: Watch, observers: Sequence[Observer]) -> Iterator[None]:
    for observer in observers:
        observer.begin(watch.status)
        watch.on_running.append(observer.running)
    try:
        yield
    except BaseException as error:
        watch.state = FAILED
        watch.exit_code, watch.error = _code_of(error), _message_of(error)
        raise
    else:
        watch.state, watch.exit_code = SUCCEEDED, 0
    finally:
        last = watch.status()
        for observer in reversed(observers):
            observer.end(last)


def _code_of(error: BaseException) -> int:
    """What the process will exit with."""
    if isinstance(error, EtlError):
        return error.exit_code
    return 128 + error.signum if isinstance(error, Interrupted) else EtlError.exit_code


def _message_of(error: BaseException) -> str:
    if isinstance(error, EtlError):
        return f"{error.where}: {error.message}" if error.where else error.message
    return f"ended by signal {error.signum}" if isinstance(error, Interrupted) else repr(error)
