"""Where the program starts: what has to be settled before its slow imports."""

import signal
from typing import NoReturn

from etlcli.io.handshake import announce


def main() -> NoReturn:
    """The entry point of the installed program, and of `python -m etlcli`."""
    # Python answers an interrupt with a traceback. So far there is nothing to clean up.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    marker = announce(1)
    from etlcli.cli.main import main

    main(marker)


if __name__ == "__main__":
    main()
