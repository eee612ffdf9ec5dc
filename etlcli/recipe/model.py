"""The resolved plan of a pipeline. A subcommand is a recipe with one step, so that there is one way to run anything."""

from __future__ import annotations

from typing import Any, NamedTuple

from etlcli.core.policy import ErrorBudget
from etlcli.core.stage import DEFAULT_MEMORY


class StepSpec(NamedTuple):
    """A source, step or sink: which component, with which options, and what to do with its rejects."""

    id: str
    uses: str
    params: Any
    """An instance of the component's `Params`."""
    then: str = "fail"
    """fail, skip or quarantine. Retry and fallback, which come before it, will be fields beside this one."""


class Recipe(NamedTuple):
    name: str
    source: StepSpec
    steps: tuple[StepSpec, ...]
    sink: StepSpec
    budget: ErrorBudget
    quarantine: str | None = None
    base_dir: str = ""
    """What relative paths are relative to."""
    memory: int = DEFAULT_MEMORY
    log_level: str = "warning"
    digest: str | None = None
    """Of the recipe's text, for the quarantine; None for a subcommand."""
