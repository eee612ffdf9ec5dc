"""`etl checkpoint`: the checkpoints of a recipe."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, suppress
from typing import Any

import click

from etlcli.cli.component import examples_text
from etlcli.engine import manifest as manifests
from etlcli.engine.checkpoint import forget, problems
from etlcli.engine.manifest import FINISHED, PUBLISHING, Manifest
from etlcli.engine.overlap import Overlap, take_directory
from etlcli.errors import CheckpointError, FindingsError, InputMissingError, UsageError
from etlcli.io.terminal import safe
from etlcli.recipe.load import load_recipe

_HELP = """Look at the checkpoints of a recipe, check them, go back, or forget them.

show RECIPE says what each checkpoint has: when it was taken, how many records were read and written by then, and whether
the run goes on, was about to publish, or is finished. verify RECIPE exits 1 if one is damaged, or a file that it needs is
gone or shorter than it was; what is in the files is not looked at. rewind RECIPE goes back to the checkpoint before the
newest, or to that of --epoch N: the next run goes on from there. Of a recipe that fills a table (etl sql) it does not: the
table would be further. reset RECIPE forgets them all, with the unpublished outputs; what is published stays. Of a recipe
whose source is incremental that includes which input was read, which etl run --fresh does not forget.

RECIPE is the recipe's file, or its checkpoint directory."""

EXAMPLES = (
    ("etl checkpoint show recipe.yaml", "how far it came"),
    ("etl checkpoint verify recipe.yaml", "whether the next run can go on"),
    ("etl checkpoint rewind recipe.yaml --epoch 12", "go on from an earlier one"),
    ("etl checkpoint reset recipe.yaml", "begin again from the start"),
)


def show(recipe: str, as_json: bool) -> None:
    import msgspec

    directory = _directory(recipe)
    for epoch in _epochs(directory):
        found = _summary(manifests.load(directory, epoch))
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n" if as_json else _line(found))


def verify(recipe: str) -> None:
    directory = _directory(recipe)
    found = []
    for epoch in _epochs(directory):
        try:
            what = problems(directory, manifests.load(directory, epoch))
        except CheckpointError as error:
            what = [error.message]
        sys.stdout.write(f"epoch {epoch}: {safe('; '.join(what)) or 'good'}\n")
        found += what
    if found:
        raise FindingsError(f"{len(found)} problems in the checkpoints of {directory}", where=directory)


def rewind(recipe: str, epoch: int | None) -> None:
    directory = _directory(recipe)
    with ExitStack() as resources:
        take_directory(directory, recipe, Overlap("fail"), resources)
        known = _epochs(directory)
        target = known[-2] if epoch is None and len(known) > 1 else epoch
        if target not in known:
            raise UsageError(
                f"there is no checkpoint {'before the newest' if target is None else target} in {directory}",
                hint=f"there are: {', '.join(map(str, known))}",
            )
        status = None
        with suppress(manifests.DamagedError):  # a damaged one is a reason to go back
            status = manifests.load(directory, known[-1]).status
        elsewhere = manifests.load(directory, target).elsewhere
        if target != known[-1] and (elsewhere or status == PUBLISHING):
            why = "a table that it fills is further" if elsewhere else "the run is complete, and partly published"
            raise UsageError(
                f"there is no going back in {directory}: {why}", hint="the next etl run goes on, or publishes"
            )
        for newer in reversed(known[known.index(target) + 1 :]):
            os.unlink(manifests.manifest_path(directory, newer))
    sys.stdout.write(f"the next run goes on from epoch {target}\n")


def reset(recipe: str) -> None:
    directory = _directory(recipe)
    _epochs(directory)  # else it is no such directory
    with ExitStack() as resources:
        take_directory(directory, recipe, Overlap("fail"), resources)
        forget(directory)
    sys.stdout.write("the next run begins from the start\n")


def _directory(recipe: str) -> str:
    if os.path.isdir(recipe):
        return recipe
    resolved = load_recipe(recipe)
    if resolved.checkpoint is None:
        raise UsageError(f"{recipe} has no checkpoint directory", hint="add checkpoint: {dir: state} to it")
    return os.path.join(resolved.base_dir, resolved.checkpoint.dir)


def _epochs(directory: str) -> list[int]:
    known = manifests.epochs(directory)
    if not known:
        raise InputMissingError(f"there is no checkpoint in {directory}", where=directory)
    return known


def _summary(manifest: Manifest) -> dict[str, Any]:
    first, *_, last = manifest.counts
    return {
        "epoch": manifest.epoch,
        "status": manifest.status,
        "recipe": manifest.recipe,
        "run": manifest.run,
        "at": manifest.at,
        "read": first["in"] - first["discarded"].get("blank", 0),
        "written": last["out"],
        "rejected": sum(sum(step["rejected"].values()) for step in manifest.counts),
        "outputs": sorted(manifest.outputs),
        "bytes": sum(manifest.spills.values()) + sum(output["size"] for output in manifest.outputs.values()),
        "steps": manifest.counts,
    }


def _line(found: dict[str, Any]) -> str:
    kept = "" if found["status"] == FINISHED else f", {found['bytes']} bytes kept"
    return (
        f"epoch {found['epoch']}: {found['status']}, {found['at']}, read {found['read']}, written {found['written']}, "
        f"rejected {found['rejected']}{kept}\n"
    )


_recipe = click.Argument(["recipe"], metavar="RECIPE", help="The recipe's file, or its checkpoint directory.")
command = click.Group(
    "checkpoint",
    help=_HELP,
    epilog=examples_text(EXAMPLES),
    commands=[
        click.Command(
            "show",
            callback=show,
            params=[_recipe, click.Option(["--json", "as_json"], is_flag=True, help="NDJSON, with the steps' counts.")],
            short_help="Say what each checkpoint has.",
            help="Say what each checkpoint has, the oldest first.",
        ),
        click.Command(
            "verify",
            callback=verify,
            params=[_recipe],
            short_help="Check that a run can go on from them.",
            help="Check that a run can go on from them: exit 1 if one is damaged, or lacks a file.",
        ),
        click.Command(
            "rewind",
            callback=rewind,
            params=[_recipe, click.Option(["--epoch"], type=int, metavar="N", help="The checkpoint to go back to.")],
            short_help="Go back to an earlier checkpoint.",
            help="Go back to the checkpoint before the newest, or to that of --epoch; newer ones are forgotten.",
        ),
        click.Command(
            "reset",
            callback=reset,
            params=[_recipe],
            short_help="Forget all checkpoints.",
            help="Forget all checkpoints and the unpublished outputs; what is published stays.",
        ),
    ],
)
