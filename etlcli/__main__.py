"""Where the program starts: what has to be settled before its slow imports."""

import gc
import signal
from typing import NoReturn

from etlcli.io.handshake import announce


def main() -> NoReturn:
    """The entry point of the installed program, and of `python -m etlcli`."""
    # Python answers an interrupt with a traceback. So far there is nothing to clean up.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # What is imported stays, and batches are lists of bytes: the collector has little to find, and need not look often.
    gc.set_threshold(100_000)
    marker = announce(1)
    from etlcli.cli.main import main

    main(marker)


if __name__ == "__main__":
    main()
