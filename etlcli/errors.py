"""What can go wrong, and the exit code each kind of failure has.

    EtlError                 70  anything below; by itself a bug
    ├── FindingsError         1  the data has findings; nothing was published
    ├── UsageError            2  the command line asks for something that cannot be
    ├── DataError            65  the input cannot be read as data at all
    ├── InputMissingError    66  an input is not there or may not be read
    ├── ServiceUnreachableError  69  a server cannot be reached, or fails
    ├── CannotCreateError    73  an output cannot be created
    ├── InputOutputError     74  I/O: full disk, closed stdout, truncated upstream
    ├── TryLaterError        75  somebody else is at it
    ├── RecipeError          78  a bad recipe
    ├── SchemaError          78  a bad schema
    ├── CheckpointError      78  a checkpoint that this run cannot go on from
    └── LedgerError          70  a step's records do not balance
    Interrupted                  a signal ended the run (a BaseException: nobody catches it in passing)

An error carries what happened (`message`), where (`where`: `file:line`, a step), and what to do (`hint`).
Only `etlcli.cli.main` turns one into an exit code. The codes follow sysexits(3) where it has one.
"""

from __future__ import annotations

REJECT_CODES = (
    "bad_json",
    "bad_utf8",
    "not_object",
    "line_too_long",
    "too_deep",
    "schema",
    "rule",
    "missing_field",
    "bad_type",
    "duplicate",
    "command_failed",
    "timeout",
    "lookup_failed",
    "sink_refused",
    "hook_failed",
    "worker_killed",
)
"""Why a record was rejected. A closed set: the codes are metric labels and quarantine fields."""


class EtlError(Exception):
    """Base of every error a person is meant to read."""

    exit_code = 70

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint


class FindingsError(EtlError):
    exit_code = 1


class UsageError(EtlError):
    exit_code = 2


class DataError(EtlError):
    exit_code = 65


class InputMissingError(EtlError):
    exit_code = 66


class ServiceUnreachableError(EtlError):
    exit_code = 69


class CannotCreateError(EtlError):
    exit_code = 73


class InputOutputError(EtlError):
    exit_code = 74


class TryLaterError(EtlError):
    exit_code = 75


class RecipeError(EtlError):
    exit_code = 78


class SchemaError(EtlError):
    exit_code = 78


class CheckpointError(EtlError):
    exit_code = 78


class LedgerError(EtlError):
    exit_code = 70


class Interrupted(BaseException):
    """A signal asked the run to stop. The process cleans up, then dies by `signum`."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class TimedOut(BaseException):
    """The time for the run is over (a BaseException: nobody catches it in passing)."""


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """`did you mean ...?` for a mistyped name, or the whole list when nothing is near."""
    from difflib import get_close_matches

    match = get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {match[0]!r}?" if match else f"known: {', '.join(sorted(known))}"
