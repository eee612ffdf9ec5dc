"""`etl cache`: what is in a cache file, and less of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from time import time
from typing import TYPE_CHECKING, Any

import click

from etlcli.cli.component import examples_text
from etlcli.core.files import Output
from etlcli.core.params import parse_duration
from etlcli.errors import FindingsError, InputMissingError, UsageError
from etlcli.io.files import keep_apart, open_output
from etlcli.io.inputs import STDIN
from etlcli.io.stdout import Stdout
from etlcli.io.terminal import safe, safe_json

if TYPE_CHECKING:
    from etlcli.state.inspect import Inspection

_HELP = """Look into a cache file, and prune it.

list FILE shows every key and when it was seen, with --json as NDJSON. get FILE KEY shows the entry of one key, or exits 1.
export FILE writes all entries as NDJSON, with -o into a file. prune FILE forgets the entries seen longer ago than
--older-than DUR, all but the --max-entries N used last, or --all, and says how many.

A cache is what `etl dedupe-cache --cache` remembers from run to run. Its keys are JSON texts: 15, "N14228", or for several
fields ["UA",1545]; a long one is there as a hash, xxh3:... Entries come in the order of their last use, the oldest first.
The file is an SQLite database that `sqlitedict.SqliteDict(path, encode=orjson.dumps, decode=orjson.loads)` opens, too."""

EXAMPLES = (
    ("etl cache list seen.db", "how old each key is"),
    ("etl cache get seen.db N14228", "the entry of one key; exit 1 if there is none"),
    ("etl cache export seen.db -o seen.ndjson", "all entries as NDJSON"),
    ("etl cache prune --older-than 30d seen.db", "forget old keys"),
)
_LINES = 1000
_PARTS = 10_000


def show(file: str, as_json: bool) -> None:
    with _opened(file) as cache:
        fields = ",".join(cache.about.get("on") or cache.about.get("key", ())) or "the whole record"
        _write(Stdout(), _json_lines(cache) if as_json else _table(cache, safe(fields)))


def get(file: str, key: str) -> None:
    """As the cache has it, as a string that was given without its quotes, or in another spelling."""
    import orjson

    with _opened(file) as cache:
        for spelling in (key, orjson.dumps(key).decode(), *_spelled(key)):
            with suppress(KeyError):
                value = cache.get(spelling)
                sys.stdout.write(safe_json(orjson.dumps(value).decode()) + "\n")
                return
    raise FindingsError(f"{file} has no entry for {key}")


def export(file: str, output: str | None) -> None:
    keep_apart(output, file)
    with _opened(file) as cache:
        _write(Stdout() if output in (None, STDIN) else open_output(str(output)), _json_lines(cache))


def prune(file: str, older_than: str | None, max_entries: int | None, everything: bool) -> None:
    from etlcli.state.sqlite import CacheFile

    if older_than is None and max_entries is None and not everything:
        raise UsageError("say what to prune: --older-than, --max-entries or --all")
    try:
        age = None if older_than is None else parse_duration(older_than)
    except ValueError as error:
        raise UsageError(f"--older-than: {error}") from None
    _must_exist(file)
    cache = CacheFile(file, None)
    try:
        table, before = cache.table, len(cache.table)
        if age is not None:
            oldest = time() - age
            _delete(cache, [key for key, value in table.items() if _seen(value) <= oldest])
        most = 0 if everything else max_entries
        if most is not None and len(table) > most:
            _delete(cache, table.oldest(len(table) - most))
        left = len(table)
        cache.commit()
    finally:
        cache.close()
    sys.stdout.write(f"pruned {before - left} of {before} entries\n")


def _opened(file: str) -> Inspection:
    from etlcli.state.inspect import Inspection

    _must_exist(file)
    return Inspection(file)


def _must_exist(file: str) -> None:
    if not os.path.lexists(file):
        raise InputMissingError(f"there is no cache {file}", where=file)


def _delete(cache: Any, keys: list[str]) -> None:
    for start in range(0, len(keys), _PARTS):
        cache.table.delete(keys[start : start + _PARTS])


def _seen(value: Any) -> float:
    """When the key was seen; an entry that does not say is as old as can be."""
    seen = value.get("seen") if isinstance(value, dict) else None
    return seen if isinstance(seen, int | float) else 0.0


def _json_lines(cache: Inspection) -> Iterator[str]:
    import orjson

    for key, value in cache.items():
        yield safe_json(orjson.dumps({"key": key, "value": value}).decode())


def _table(cache: Inspection, fields: str) -> Iterator[str]:
    now = time()
    yield f"{'SEEN':20}  {'AGE':>7}  KEY ({fields})"
    for key, value in cache.items():
        seen = _seen(value)
        when = datetime.fromtimestamp(seen, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        yield f"{when:20}  {_age(now - seen):>7}  {safe(key)}"


def _age(seconds: float) -> str:
    """In the two largest units: 3d 4h."""
    for unit, part, name, part_name in ((86400, 3600, "d", "h"), (3600, 60, "h", "m"), (60, 1, "m", "s")):
        if seconds >= unit:
            return f"{int(seconds // unit)}{name} {int(seconds % unit // part)}{part_name}"
    return f"{max(0, int(seconds))}s"


def _write(output: Output, lines: Iterator[str]) -> None:
    try:
        while part := list(islice(lines, _LINES)):
            output.write("".join(line + "\n" for line in part).encode())
        output.commit()
    finally:
        output.abort()


def _spelled(key: str) -> list[str]:
    """JSON text as the stages make a key of it."""
    import msgspec

    from etlcli.core.fields import exact_number
    from etlcli.core.keys import texts_of

    try:
        return texts_of([[msgspec.json.Decoder(float_hook=exact_number).decode(key)]])
    except msgspec.DecodeError:
        return []


_FILE = click.Argument(["file"], metavar="FILE", help="The cache file.")
_COMMANDS: dict[str, tuple[Callable[..., None], str, list[click.Parameter]]] = {
    "list": (
        show,
        "Show every key and when it was seen.",
        [click.Option(["--json", "as_json"], is_flag=True, help="As NDJSON, a line each: key and value.")],
    ),
    "get": (
        get,
        "Show the entry of one key; exit 1 if there is none.",
        [click.Argument(["key"], metavar="KEY", help="The key; a string may go without its JSON quotes.")],
    ),
    "export": (
        export,
        "Write all entries as NDJSON: key and value.",
        [click.Option(["-o", "--output"], metavar="FILE", help="Write to FILE, all or nothing.")],
    ),
    "prune": (
        prune,
        "Forget entries, and say how many.",
        [
            click.Option(["--older-than"], metavar="DUR", help="Those seen longer ago than this, such as 30d."),
            click.Option(["--max-entries"], metavar="N", type=click.IntRange(min=0), help="All but the N used last."),
            click.Option(["--all", "everything"], is_flag=True, help="All of them."),
        ],
    ),
}

command = click.Group(
    "cache",
    help=_HELP,
    epilog=examples_text(EXAMPLES),
    commands={
        name: click.Command(name, callback=callback, help=help, params=[_FILE, *params])
        for name, (callback, help, params) in _COMMANDS.items()
    },
)
