"""Standard output as an `Output`: what was written is out, so there is nothing to publish or take back."""

from __future__ import annotations

import os

from etlcli.errors import InputOutputError
from etlcli.io.files import Output, io_error, write_all
from etlcli.io.inputs import grow_pipe


class Stdout(Output):
    """Raises InputOutputError when stdout is closed or full, BrokenPipeError when its reader has gone."""

    path = "<stdout>"

    def __init__(self) -> None:
        try:
            os.fstat(1)
        except OSError:
            raise InputOutputError("standard output is closed", hint="redirect it, or use -o FILE") from None
        grow_pipe(1)

    def write(self, block: bytes) -> None:
        try:
            write_all(1, block)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise io_error(error, self.path) from error

    def commit(self) -> None:
        pass

    def abort(self) -> None:
        pass
