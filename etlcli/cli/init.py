"""`etl init`: a sample to start from, with real data."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from importlib.resources import files

import click

from etlcli.cli.component import examples_text
from etlcli.errors import CannotCreateError
from etlcli.io.files import open_output

_HELP = """Write a sample into DIR: a recipe, a JSON Schema, 10,000 real flights and a README that says what to expect.

DIR is made if it is not there. Files that exist are not replaced; all files are written, or none."""

EXAMPLES = (("etl init demo && etl run demo/recipe.yaml", "a first pipeline, on real data"),)

_FILES = ("README.md", "recipe.yaml", "flight.schema.json", "flights.csv.gz")


def init(directory: str) -> None:
    for name in _FILES:
        if os.path.lexists(os.path.join(directory, name)):
            raise CannotCreateError(
                f"{directory} has a {name} already", where=directory, hint="choose an empty directory"
            )
    with ExitStack() as resources:
        outputs = []
        for name in _FILES:
            output = open_output(os.path.join(directory, name), exclusive=True, resources=resources)
            output.write((files("etlcli.sample") / name).read_bytes())
            output.flush()
            outputs.append(output)
        for output in outputs:
            output.commit()
    sys.stdout.write(
        f"wrote {', '.join(_FILES)} to {directory}\nnext: etl run {os.path.join(directory, 'recipe.yaml')}\n"
    )


command = click.Command(
    "init",
    callback=init,
    help=_HELP,
    epilog=examples_text(EXAMPLES),
    params=[click.Argument(["directory"], metavar="DIR", help="The directory to write to; it is made if need be.")],
)
