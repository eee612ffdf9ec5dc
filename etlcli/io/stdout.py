"""Standard output as an `Output`: what was written is out, so there is nothing to publish or take back."""

from __future__ import annotations

import os
from fcntl import F_GETFL, fcntl
from signal import SIGPIPE

from etlcli.core.files import Output
from etlcli.errors import InputOutputError, Interrupted
from etlcli.io.files import io_error, write_all
from etlcli.io.inputs import grow_pipe


class Stdout(Output):
    """Raises InputOutputError when stdout is closed or full, Interrupted by SIGPIPE when its reader has gone."""

    path = "<stdout>"

    def __init__(self) -> None:
        if fcntl(1, F_GETFL) & os.O_ACCMODE == os.O_RDONLY:  # the stand-in of a closed descriptor
            raise InputOutputError("standard output is closed", hint="redirect it, or use -o FILE")
        grow_pipe(1)

    def write(self, block: bytes) -> None:
        try:
            write_all(1, block)
        except BrokenPipeError:
            raise Interrupted(SIGPIPE) from None
        except OSError as error:
            raise io_error(error, self.path) from error

    def commit(self) -> None:
        pass

    def abort(self) -> None:
        pass
