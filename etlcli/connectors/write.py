"""`write`: records to a file or files, all or nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from etlcli.core import params
from etlcli.core.batch import Batch, Reject
from etlcli.core.edit import encode
from etlcli.core.fields import MISSING, parse_path
from etlcli.core.files import Output, Run, Spill
from etlcli.core.stage import Context, Sink, State
from etlcli.errors import CannotCreateError, UsageError
from etlcli.formats import WriteOptions, Writer, format_of, module
from etlcli.io.compression import Compressed, method_of, opened
from etlcli.io.files import AtomicFile
from etlcli.io.inputs import STDIN, located, open_file
from etlcli.io.stdout import Stdout
from etlcli.registry import FORMATS

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_UNSAFE_BYTES = re.compile(rb"[^A-Za-z0-9_.\-]")
_NAME_LIMIT = 240
_BUFFER = 16 << 10
_BLOCK = 1 << 20


class Write(Sink):
    """One file, standard output, or with `path_template` a file for each combination of some fields' values."""

    help = """Write records to a file: in full, or not at all.

The content goes to a hidden temporary file beside the target, is made durable, and takes the name at the end, if the whole
run was good. Whoever opens the file sees all of the old content or all of the new. A path of - is standard output.

The format follows the suffix (.ndjson .jsonl .json .csv .tsv .yaml .yml), and so does the compression (.gz .bz2 .xz .zst).
--path-template writes one file for each combination of values of the fields it names; a value can only ever name a file
below the template's own directory, whatever it holds."""
    examples = (
        ("etl write flights.csv < flights.ndjson", "NDJSON to CSV"),
        ("etl write --path-template 'by-origin/{origin}.ndjson' < flights.ndjson", "one file an airport"),
        ("etl write --mode append log.ndjson.gz < flights.ndjson", "add to a compressed file"),
    )

    class Params(params.Declared):
        path = params.path("The file; - is standard output.", positional=True)
        path_template = params.text("Write to files named by fields, such as out/{country}.ndjson.", metavar="TEMPLATE")
        format = params.choice(("auto", *FORMATS), "Output format; auto goes by the suffix.", default="auto")
        mode = params.choice(
            ("create", "replace", "append"),
            "create refuses a file that exists, replace takes its place, append adds to it.",
            default="replace",
        )
        columns = params.fields("CSV and TSV columns, in order; by default the first record's fields.")
        max_files = params.integer("Most files a template may make.", default=1000, minimum=1)

        def verify(self) -> None:
            if bool(self.path) == bool(self.path_template):
                raise ValueError("path: write needs a path or a path template, one of them")
            if len(set(self.columns)) < len(self.columns):
                raise ValueError("columns: a column is named twice")
            if self.path_template:
                _Template(self.path_template, "")

    def __init__(self, params: Any, ctx: Context, state: State | None = None) -> None:
        super().__init__(params, ctx, state)
        self._files: dict[str, _File] = {}
        self._begun: dict[str, State] = state["files"] if state else {}
        if params.path:
            path = located(params.path, ctx.base_dir)
            file = self._open(path)
            self.waits = not isinstance(file.out.output, AtomicFile)
            self._write: Callable[[Batch], list[Reject]] = file.write
        else:
            self._template = _Template(params.path_template, ctx.base_dir)
            _allow_open_files(params.max_files)
            self._write = self._write_partitions
            for path in self._begun:
                self._open(os.path.join(ctx.base_dir, path))

    def write(self, batch: Batch) -> list[Reject]:
        return self._write(batch)

    def snapshot(self) -> State:
        return {"files": {self._from_recipe(path): file.snapshot() for path, file in self._files.items()}}

    def finish(self) -> None:
        """All files are complete and durable before the first is published."""
        for file in self._files.values():
            file.finish()

    def commit(self) -> None:
        for file in self._files.values():
            file.out.output.commit()
            self.ctx.log("info", "published", path=file.out.output.path)

    def _open(self, path: str) -> _File:
        exclusive, append = self.params.mode == "create", self.params.mode == "append"
        stdout = path == STDIN and not self.ctx.trial
        output = Stdout() if stdout else self.ctx.files.output(path, exclusive=exclusive, append=append)
        # Half of a compressed stream is nothing that another process could go on with.
        name = self._from_recipe(path)
        plain = self.ctx.files.spill(name=name) if self.ctx.files.keeps and method_of(path) else None
        out = _Out(output, self.ctx)
        self._files[path] = _File(out, path, self.params, plain, self._begun.get(name))
        return self._files[path]

    def _from_recipe(self, path: str) -> str:
        """The same wherever the run is gone on with from, if it is; else the working directory may be gone."""
        if path == STDIN or not self.ctx.files.keeps:
            return path
        return os.path.relpath(path, self.ctx.base_dir or ".")

    def _write_partitions(self, batch: Batch) -> list[Reject]:
        parts: dict[str, list[int]] = {}
        rejects: list[Reject] = []
        for index, values in enumerate(zip(*batch.columns(self._template.fields), strict=True)):
            try:
                parts.setdefault(self._template.path(values), []).append(index)
            except ValueError as error:
                missing = any(value is MISSING or value is None for value in values)
                code = "missing_field" if missing else "bad_type"
                rejects.append(batch.reject(index, code, [{"message": str(error)}]))
        for path, indices in parts.items():
            rejects += self._partition(path).write(batch.take(indices))
        return rejects

    def _partition(self, path: str) -> _File:
        if path in self._files:
            return self._files[path]
        if len(self._files) >= self.params.max_files:
            raise CannotCreateError(
                f"{self.params.path_template} makes more than {self.params.max_files} files",
                hint="choose a field with fewer values, or raise --max-files",
            )
        if os.path.realpath(path) != os.path.join(self._template.root, os.path.relpath(path, self._template.top)):
            raise CannotCreateError(
                f"{path} leads elsewhere through a symbolic link",
                where=path,
                hint="a value may only name a file below the template's own directory; remove the link",
            )
        return self._open(path)


class _Out:
    """Takes blocks to an output. What is written is counted, and the time is waiting."""

    def __init__(self, output: Output, ctx: Context) -> None:
        self.output = output
        self._ctx = ctx

    def write(self, block: bytes) -> None:
        with self._ctx.waiting("output"):
            self.output.write(block)
        self._ctx.count.effort.bytes_out += len(block)

    def flush(self) -> None:
        with self._ctx.waiting("output"):
            self.output.flush()


class _File:
    """One output: format over compression over an atomic file. Where there is a `plain` file, the content lies there until
    it is complete, and is compressed then."""

    def __init__(
        self, out: _Out, path: str, params: Any, plain: Spill | None = None, state: State | None = None
    ) -> None:
        """`state` is what `snapshot` gave."""
        self.out = out
        output = out.output
        name = format_of(path) if params.format == "auto" else params.format
        writer: type[Writer] = module(name).Writer
        options = WriteOptions(name, params.columns)
        method = method_of(path)
        last_byte = b""
        if state is None and isinstance(output, AtomicFile) and output.last_byte:
            options = _following(writer, path, options)
            last_byte = _last_byte(path) if method else output.last_byte
        # Its first bytes are out when it is made.
        self._compressed = Compressed(method, out.write) if method and not plain else None
        self._method = method
        self._plain = plain
        self._size = state["plain"] if state else 0
        write = self._compressed.write if self._compressed else out.write
        self._buffer = _Buffered(self._write_plain if plain else write)
        if last_byte not in (b"", b"\n"):
            self._buffer.write(b"\n")
        self._direct = isinstance(output, Stdout)
        self._writer = writer(self._buffer.write, options, state and state["writer"])

    def write(self, batch: Batch) -> list[Reject]:
        rejects = self._writer.write(batch)
        if self._direct:
            self._buffer.flush()
        return rejects

    def snapshot(self) -> State:
        self._buffer.flush()
        return {"plain": self._size, "writer": self._writer.snapshot()}

    def finish(self) -> None:
        self._writer.close()
        self._buffer.flush()
        if self._plain and self._method:
            self._compressed = Compressed(self._method, self.out.write)
            for block in self._plain.read_run(Run(0, self._size), _BLOCK):
                self._compressed.write(block)
        if self._compressed:
            self._compressed.close()
        self.out.flush()

    def _write_plain(self, block: bytes) -> None:
        assert self._plain
        self._size += self._plain.write_run([block]).size


class _Buffered:
    """Gathers small writes: a partition's share of a batch can be one record."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._blocks: list[bytes] = []
        self._size = 0

    def write(self, block: bytes) -> None:
        self._blocks.append(block)
        self._size += len(block)
        if self._size > _BUFFER:
            self.flush()

    def flush(self) -> None:
        if self._blocks:
            self._write(b"".join(self._blocks))
            self._blocks, self._size = [], 0


class _Template:
    """`out/{country}/{year}.ndjson`: literal text and fields. Every value becomes part of one path component."""

    def __init__(self, text: str, base_dir: str) -> None:
        pieces = _PLACEHOLDER.split(text)
        self._literals = pieces[::2]
        if len(pieces) == 1 or any("{" in literal or "}" in literal for literal in self._literals):
            raise ValueError(f"path_template: {text!r} names no field in braces, as 'out/{{country}}.ndjson' does")
        if ".." in text.split("/"):
            raise ValueError(f"path_template: {text!r} must not hold '..'")
        try:
            self.fields = tuple(map(parse_path, pieces[1::2]))
        except ValueError as error:
            raise ValueError(f"path_template: {error}") from None
        self._base_dir = base_dir
        self.top = os.path.dirname(os.path.join(base_dir, pieces[0])) or "."
        """The directory that all paths are below, and where it really is."""
        self.root = os.path.realpath(self.top)
        self._memo: dict[tuple[Any, ...], str] = {}

    def path(self, values: tuple[Any, ...]) -> str:
        """The path for one record's values. Raises ValueError for null, missing, and values that are no names."""
        key = (*values, *map(type, values))
        with suppress(KeyError, TypeError):
            return self._memo[key]
        text = self._literals[0]
        for field, value, literal in zip(self.fields, values, self._literals[1:], strict=True):
            text += component(value, ".".join(field)) + literal
        path = os.path.join(self._base_dir, "/".join(map(_bounded, text.split("/"))))
        self._memo[key] = path
        return path


def component(value: Any, field: str) -> str:
    """A value as part of a file name: percent-encoded, never empty, `.` or `..`, never with a slash. Values that
    differ in their text give different names (1 and "1" do not)."""
    if value is None or value is MISSING:
        raise ValueError(f"the field {field} names the file, but it is {'null' if value is None else 'missing'}")
    if isinstance(value, list | dict):
        raise ValueError(
            f"the field {field} names the file, but it is {'an array' if isinstance(value, list) else 'an object'}"
        )
    raw = value.encode() if isinstance(value, str) else encode(value)
    text = _UNSAFE_BYTES.sub(lambda match: b"%%%02X" % match[0][0], raw).decode()
    if set(text) <= {"."}:
        return text.replace(".", "%2E") or "%"
    return text


def _bounded(name: str) -> str:
    """A path component no file system finds too long; what is cut off lives on in a hash."""
    if len(name.encode()) <= _NAME_LIMIT:
        return name
    import hashlib

    digest = hashlib.blake2b(name.encode(), digest_size=12).hexdigest()
    _, dot, suffix = name.rpartition(".")
    tail = f"~{digest}.{suffix}" if dot and len(suffix) < 20 else f"~{digest}"
    return name.encode()[: _NAME_LIMIT - len(tail.encode())].decode(errors="ignore") + tail


def _following(writer: type[Writer], path: str, options: WriteOptions) -> WriteOptions:
    """The options for writing on after what the file holds."""
    stream = open_file(path)
    try:
        return writer.following(opened(stream), path, options)
    except ValueError as error:
        raise UsageError(f"cannot append to {path}: {error}", hint="use another format, or --mode replace") from None
    finally:
        stream.close()


def _last_byte(path: str) -> bytes:
    """Of the old content behind its compression, which is thereby known to be whole."""
    stream = open_file(path)
    try:
        content, last = opened(stream), b""
        while block := content.read(1 << 20):
            last = block[-1:]
        return last
    finally:
        stream.close()


def _allow_open_files(count: int) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 64
    if soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
