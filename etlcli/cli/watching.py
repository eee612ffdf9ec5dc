"""Who watches a run: what the recipe and the command line ask for, begun before it and ended after it, however it ends."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from etlcli.engine.watch import Watch
from etlcli.errors import EtlError, InputMissingError, Interrupted, TimedOut, TryLaterError
from etlcli.io.inputs import STDIN
from etlcli.observe.logs import Log
from etlcli.observe.status import FAILED, SUCCEEDED, Observer
from etlcli.recipe.model import Recipe

if TYPE_CHECKING:
    from etlcli.observe.lineage import Dataset


class Wishes(NamedTuple):
    """What the command line asks for."""

    level: str | None = None
    """Of the log, stronger than a recipe's, as its format."""
    format: str | None = None
    progress: bool | None = None
    """None: a line on a terminal where that disturbs nobody, log lines where there is no terminal."""
    quiet: bool = False
    reports: tuple[str, ...] = ()
    """FORMAT=PATH each."""

    @property
    def report_paths(self) -> list[str]:
        return [text.partition("=")[2] for text in self.reports]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Wishes:
        """Of the values of `log_options` and `watch_options`, and of --report where there is one."""
        level = "error" if values["quiet"] else values["log_level"]
        reports = values.get("reports", ())
        return cls(level, values["log_format"], values["progress"], values["quiet"], reports)


def observers(recipe: Recipe, watch: Watch, log: Log, wishes: Wishes) -> list[Observer]:
    """Raises UsageError and CannotCreateError for what cannot be had."""
    watching: list[Observer] = []
    if recipe.metrics:  # first, since it forks, and the others have threads
        from etlcli.engine.checkpoint import SHOWN
        from etlcli.observe.exporter import Metrics

        shown = os.path.join(recipe.base_dir, recipe.checkpoint.dir, SHOWN) if recipe.checkpoint else None
        watching.append(Metrics(recipe.metrics, recipe.base_dir, log, shown))
    if not wishes.quiet:
        from etlcli.observe.heartbeat import Heartbeat

        on_line = _on_line(recipe, wishes.progress)
        in_lines = not on_line and (not _is_terminal() if wishes.progress is None else wishes.progress)
        watching.append(Heartbeat(log, recipe.logging.every, always=in_lines))
        if on_line:
            from etlcli.observe.progress import Progress

            watching.append(Progress(log.lend))
    if recipe.path:
        from etlcli.observe.control import Control

        watching.append(Control(watch, log))
    if wishes.reports:
        from etlcli.observe.report import parse_report

        report = parse_report(wishes.reports, log)
        if report:
            report.check()
            watching.append(report)
    if recipe.tracing and recipe.tracing.otel:
        from etlcli.observe.tracing import Tracing

        watching.append(Tracing(log))
    if recipe.lineage:
        watching.append(_lineage(recipe, log))
    return watching


def _on_line(recipe: Recipe, wanted: bool | None) -> bool:
    """Whether progress is a line on the terminal: not, unless it is wanted, where records go to that terminal, or to
    another program that may have a line of its own."""
    if wanted is False or not _is_terminal():
        return False
    to_stdout = any(spec.params.values().get("path") == STDIN for spec in recipe.sinks)
    return bool(wanted) or not (to_stdout and (os.isatty(1) or stat.S_ISFIFO(os.fstat(1).st_mode)))


def _is_terminal() -> bool:
    """Whether stderr is one on which a line can change in place. FORCE_COLOR is about colours, not about that."""
    return os.isatty(2) and os.environ.get("TERM", "dumb").lower() not in ("dumb", "unknown")


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
def watched(watch: Watch, observers: Sequence[Observer], log: Log) -> Iterator[None]:
    """Each observer that has begun is told of the end, whatever the others do; those that then wait for somebody
    elsewhere after the others."""
    begun: list[Observer] = []

    def end() -> None:
        waiting = [observer for observer in begun if observer.waits]
        with ExitStack() as ending:  # which goes through them from the last to the first
            for observer in (*reversed(waiting), *(each for each in begun if not each.waits)):
                ending.callback(end_of, observer)

    def end_of(observer: Observer) -> None:
        with _harmless(observer, log):
            observer.end(watch.status())

    def running(observer: Observer) -> None:
        with _harmless(observer, log):
            observer.running()

    with ExitStack() as ending:
        ending.callback(end)
        try:
            for observer in observers:
                with _harmless(observer, log):
                    observer.begin(watch.status)
                    begun.append(observer)
                    watch.on_running.append(partial(running, observer))
            yield
        except BaseException as error:
            watch.state = FAILED
            if isinstance(error, Interrupted | TimedOut):
                log.hurry()
            where, reason = getattr(error, "where", None) or None, _reason(error)
            watch.exit_code, watch.error = _code_of(error), f"{where}: {reason}" if where else reason
            if log.in_file:  # on stderr it is said anyway
                log("error", "run_failed", exit_code=watch.exit_code, where=where, reason=reason)
            raise
        else:
            watch.state, watch.exit_code = SUCCEEDED, 0


@contextmanager
def _harmless(observer: Observer, log: Log) -> Iterator[None]:
    """What goes wrong for one who watches, as where the system has no room for a thread, does no harm to the run."""
    try:
        yield
    except Exception as error:
        who, reason = type(observer).__name__.lower(), str(error) or type(error).__name__
        log("warning", "watching_failed", what=who, reason=reason, hint="the run goes on without it")


def _code_of(error: BaseException) -> int:
    """What the process will exit with."""
    if isinstance(error, EtlError):
        return error.exit_code
    if isinstance(error, TimedOut):
        return TryLaterError.exit_code
    return 128 + error.signum if isinstance(error, Interrupted) else EtlError.exit_code


def _reason(error: BaseException) -> str:
    if isinstance(error, EtlError):
        return error.message
    if isinstance(error, TimedOut):
        return "it took too long"
    return f"stopped by signal {error.signum}" if isinstance(error, Interrupted) else f"internal error: {error!r}"
