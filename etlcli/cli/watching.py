"""Who watches a run: what the recipe and the command line ask for, begun before it and ended after it, however it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from etlcli.engine.watch import Watch
from etlcli.errors import EtlError, Interrupted
from etlcli.observe.logs import Log
from etlcli.observe.status import FAILED, SUCCEEDED, Observer
from etlcli.recipe.model import Recipe


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
    return watching


@contextmanager
def watched(watch: Watch, observers: Sequence[Observer]) -> Iterator[None]:
    for observer in observers:
        observer.begin(watch.status)
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
