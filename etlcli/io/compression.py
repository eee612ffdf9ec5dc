"""gzip, bz2, xz and zstd: recognised by their first bytes when reading, by the file's suffix when writing.

Output is reproducible: no time stamp and no name goes into a header.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from typing import IO, Any, Protocol, cast

from etlcli.errors import DataError
from etlcli.io.inputs import Input, Prefixed

_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_BLOCK = 1 << 18
_GZIP = 16 + zlib.MAX_WBITS
SUFFIXES = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}


class Readable(Protocol):
    def read(self, size: int) -> bytes: ...


class Decompressed:
    """A compressed stream, decompressed. Raises DataError when it is damaged or cut short."""

    def __init__(self, method: str, stream: Readable, path: str) -> None:
        self._method = method
        self._path = path
        self._damage: tuple[type[BaseException], ...] = (EOFError, zlib.error, *_damage_of(method))
        self._file = _open(method, stream)

    def read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except self._damage as error:
            if "too much memory" in str(error):
                raise DataError(
                    f"{self._path}: the {self._method} data has a window of more than 128 MiB", where=self._path,
                    hint="compress it again without --long or --ultra, or decompress it in the pipe: zstd -dc --long=31",
                ) from error  # fmt: skip
            what = "cut short" if isinstance(error, EOFError) else f"damaged ({error})"
            raise DataError(
                f"{self._path}: the {self._method} data is {what}", where=self._path,
                hint="fetch the file again; nothing was published",
            ) from error  # fmt: skip


class Compressed:
    """Compresses into `write`; `close` ends the compressed stream. One that is not closed leaves it cut short: the file
    objects of the standard library would end it whenever they are forgotten."""

    def __init__(self, method: str, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._compressor = _compressor(method)

    def write(self, block: bytes) -> None:
        self._put(self._compressor.compress(block))

    def close(self) -> None:
        self._put(self._compressor.flush())

    def _put(self, data: bytes) -> None:
        if data:
            self._write(data)


class _Members:
    """bz2 and xz streams one after another, as their own tools take them: nothing else may follow. (The standard library's
    file objects pass over what follows in silence.)"""

    def __init__(self, make: Callable[[], Any], stream: Readable, padding: bytes) -> None:
        self._make = make
        self._stream = stream
        self._padding = padding
        self._decompressor = make()

    def read(self, size: int) -> bytes:
        while True:
            decompressor = self._decompressor
            if decompressor.eof:
                rest = decompressor.unused_data.lstrip(self._padding)
                while not rest:
                    block = self._stream.read(_BLOCK)
                    if not block:
                        return b""
                    rest = block.lstrip(self._padding)
                self._decompressor = decompressor = self._make()
                data = decompressor.decompress(rest, size)
            elif decompressor.needs_input:
                block = self._stream.read(_BLOCK)
                if not block:
                    raise EOFError
                data = decompressor.decompress(block, size)
            else:
                data = decompressor.decompress(b"", size)
            if data:
                return cast(bytes, data)


def opened(stream: Input) -> Readable:
    """The stream's content, decompressed if it starts like a compressed file. Raises DataError for a name that promises
    compression where there is none, such as the empty file that a failed transfer leaves."""
    start = stream.read(1)
    while start and len(start) < 6 and any(magic.startswith(start) for magic in _MAGIC):
        more = stream.read(6 - len(start))
        if not more:
            break
        start += more
    plain = Prefixed(start, stream)
    for magic, method in _MAGIC.items():
        if start.startswith(magic):
            return Decompressed(method, plain, stream.path)
    promised = method_of(stream.name)
    if promised:
        raise DataError(
            f"{stream.path} is not {promised} data", where=stream.path, hint="fetch the file again, or rename it"
        )
    return plain


def is_compressed(start: bytes) -> bool:
    """Whether content that begins so would be decompressed."""
    return start.startswith(tuple(_MAGIC))


def method_of(path: str) -> str | None:
    """The compression a file's suffix asks for."""
    return next((method for suffix, method in SUFFIXES.items() if path.lower().endswith(suffix)), None)


def without_suffix(path: str) -> str:
    suffix = next((suffix for suffix in SUFFIXES if path.lower().endswith(suffix)), "")
    return path[: len(path) - len(suffix)]


def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def _open(method: str, stream: Readable) -> Readable:
    if method == "gzip":
        import gzip

        return gzip.GzipFile("", "rb", fileobj=cast("IO[bytes]", stream))
    if method == "bz2":
        import bz2

        return _Members(bz2.BZ2Decompressor, stream, b"")
    if method == "xz":
        import lzma

        return _Members(lzma.LZMADecompressor, stream, b"\0")
    return cast(Readable, _zstd().ZstdFile(stream))


def _compressor(method: str) -> Any:
    if method == "gzip":
        return zlib.compressobj(6, zlib.DEFLATED, _GZIP)
    if method == "bz2":
        import bz2

        return bz2.BZ2Compressor()
    if method == "xz":
        import lzma

        return lzma.LZMACompressor()
    return _zstd().ZstdCompressor()


def _damage_of(method: str) -> tuple[type[Exception], ...]:
    if method == "xz":
        import lzma

        return (lzma.LZMAError,)
    if method == "zstd":
        return (_zstd().ZstdError,)
    return (OSError,)
