"""`etl`: finds the subcommand, runs it, and turns whatever it raised into an exit code.

A subcommand is imported when it is called, never before; `--help` reads only the registry. A process that a signal or
a closed pipe ends cleans up and then dies by that signal, as its parent expects of a filter.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from contextlib import suppress
from io import StringIO
from types import FrameType
from typing import Any, NoReturn

import click

from etlcli import __version__
from etlcli.errors import EtlError, InputOutputError, Interrupted, nearest
from etlcli.io.handshake import finish
from etlcli.io.masking import hidden, without_secrets
from etlcli.io.signals import end_commands, end_soon
from etlcli.registry import COMMANDS, COMPONENTS, load

_HELP = """Move, check, sort and publish NDJSON records.

Every command reads records from files or stdin and writes them to stdout or, all or nothing, to a file (-o). `etl run`
composes the same commands from a YAML recipe. See `etl COMMAND --help`, or `man etl`."""

EXIT_CODES = {
    0: "all is well",
    1: "the data has findings: rejected records, an error budget exceeded, sort --check; nothing was published",
    2: "usage: unknown command or option, or values that cannot be",
    65: "input cannot be read as data: damaged compression, a JSON array cut short, a damaged cache file",
    66: "an input is missing or cannot be opened",
    69: "a server or a database cannot be reached",
    70: "internal error; records that do not balance",
    73: "an output cannot be created",
    74: "I/O error: full disk, closed stdout, an upstream etl that did not finish",
    75: "try later: all tries of a command or lookup are used up; another run holds the cache file, or changed the file "
    "that was to be appended to",
    78: "bad recipe or schema; a checkpoint of another recipe or input, or a damaged one",
    130: "interrupted (SIGINT); 143 terminated (SIGTERM); 141 the reader of stdout went away (SIGPIPE)",
}

_KEPT = 16 << 20


class LazyGroup(click.Group):
    """A group that knows its commands by name and help line, and imports one when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMPONENTS, *COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMPONENTS:
            from etlcli.cli.component import component_command

            return component_command(cmd_name)
        if cmd_name in COMMANDS:
            command: click.Command = load(COMMANDS[cmd_name].target)
            return command
        return None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0]
        if name not in self.list_commands(ctx) and not name.startswith("-"):
            ctx.fail(f"no command is called {name!r}; {nearest(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in {**COMPONENTS, **COMMANDS}.items()])


@click.group(cls=LazyGroup, help=_HELP, context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True)
@click.version_option(__version__, prog_name="etl")
def etl() -> None:
    pass


def main(marker: str | None = None) -> NoReturn:
    """`marker` is the word left for the reader of the pipe on stdout, to be taken back when all is well."""
    _occupy_standard_descriptors()
    gc.freeze()
    # Batches come and go: glibc keeps freed memory for the next one up to twice the largest block it was ever given back,
    # rather than have the system clear its pages again (mallopt(3), M_MMAP_THRESHOLD).
    bytes(_KEPT)
    _install_signals()
    try:
        code = _run()
    except Interrupted as stop:
        if stop.signum == signal.SIGPIPE:
            finish(marker)  # the reader has gone and will not ask
        _die_by(stop.signum)
    except EtlError as error:
        _say(error)
        code = error.exit_code
    except Exception as error:
        import traceback

        _print(hidden(traceback.format_exc()).splitlines())
        bug = EtlError(f"internal error: {error!r}", hint="this is a bug in etl or a plug-in; nothing was published")
        _say(bug)
        code = bug.exit_code
    if code == 0:
        finish(marker)
    _exit(code)


def _run() -> int:
    try:
        code = etl.main(prog_name="etl", standalone_mode=False)
        if sys.stdout:
            sys.stdout.flush()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        shown = StringIO()
        error.show(shown)
        _print(hidden(shown.getvalue()).splitlines())
        return error.exit_code
    except SystemExit:  # click's way with a closed pipe
        raise Interrupted(signal.SIGPIPE) from None
    except click.Abort:
        raise Interrupted(signal.SIGINT) from None
    except OSError as error:  # the program's own texts: the help, a plan
        raise InputOutputError(f"cannot write standard output: {error.strerror}") from error
    except MemoryError:
        raise EtlError("out of memory", hint="lower --memory or --max-line") from None
    finally:
        end_commands()  # one that was started when a signal came may be nobody's yet
    return code if isinstance(code, int) else 0


def _occupy_standard_descriptors() -> None:
    """A closed stdin, stdout or stderr must not become the next file that is opened. Stdout's stand-in refuses writes."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open("/dev/null", os.O_WRONLY if fd == 0 else os.O_RDONLY)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def _install_signals() -> None:
    def stop(signum: int, frame: FrameType | None) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _end_at_once)
        # A terminal that goes away may say so several times: nobody has asked twice.
        signal.signal(signal.SIGHUP, lambda number, frame: None)
        end_soon(lambda: _end_at_once(signum, None))
        raise Interrupted(signum)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)


def _end_at_once(signum: int, frame: FrameType | None) -> None:
    """What a second signal does, while the first is being answered. All that is left behind ends by itself, or is found by
    the next run, but for commands that run in sessions of their own."""
    end_commands()
    _die_by(signum)


def _die_by(signum: int) -> NoReturn:
    signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signum])
    os.kill(os.getpid(), signum)
    os._exit(128 + signum)


def _exit(code: int) -> NoReturn:
    """Flush what click or Python may still hold, and end without the interpreter's own, slow clean-up."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                _die_by(signal.SIGPIPE)
            code = code or 74
    os._exit(code)


def _say(error: EtlError) -> None:
    where = f"{error.where}: " if error.where and error.where not in error.message else ""
    _print([f"etl: {hidden(where + error.message)}", *([f"     {without_secrets(error.hint)}"] if error.hint else [])])


def _print(lines: list[str]) -> None:
    """Lines for a person, on stderr."""
    from etlcli.io.terminal import safe

    with suppress(OSError):
        os.write(2, "".join(safe(line) + "\n" for line in lines).encode(errors="backslashreplace"))
