"""gzip, bz2, xz and zstd."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
from typing import Any

import pytest

from etlcli.errors import DataError, InputOutputError
from etlcli.io.compression import SUFFIXES, Compressed, method_of, opened, without_suffix

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

METHODS = sorted(SUFFIXES.values())
COMPRESS = {"gzip": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zstd": zstd.compress}
CONTENT = b"".join(b'{"n":%d}\n' % (number * 7919 % 10007) for number in range(20_000))


class Pipe:
    """Gives at most `size` bytes at a time, as a pipe does."""

    path = name = "in"

    def __init__(self, data: bytes, size: int = 1 << 20) -> None:
        self._file = io.BytesIO(data)
        self._size = size

    def read(self, size: int) -> bytes:
        return self._file.read(min(size, self._size))


def everything(stream: Any) -> bytes:
    blocks = []
    while block := stream.read(4096):
        blocks.append(block)
    return b"".join(blocks)


def compressed(method: str, *blocks: bytes) -> bytes:
    out: list[bytes] = []
    file = Compressed(method, out.append)
    for block in blocks:
        file.write(block)
    file.close()
    return b"".join(out)


@pytest.mark.parametrize("size", [1, 3, 1000, 1 << 20])
@pytest.mark.parametrize("method", METHODS)
def test_what_others_compressed_is_recognised(method: str, size: int) -> None:
    content = CONTENT if size > 3 else CONTENT[:500]
    assert everything(opened(Pipe(COMPRESS[method](content), size))) == content  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("blocks", [[], [b""], [CONTENT[:100], b"", CONTENT[100:]]], ids=["none", "empty", "some"])
def test_round_trip(method: str, blocks: list[bytes]) -> None:
    assert everything(opened(Pipe(compressed(method, *blocks)))) == b"".join(blocks)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_compressed_files_one_after_another_are_one(method: str) -> None:
    """What appending makes, and what `cat a.gz b.gz` does."""
    both = compressed(method, b"one\n") + compressed(method, b"two\n")
    assert everything(opened(Pipe(both))) == b"one\ntwo\n"  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_output_is_reproducible(method: str) -> None:
    assert compressed(method, CONTENT) == compressed(method, CONTENT)


@pytest.mark.parametrize("content", [b"", b"\x1f", b"\x1f\x8c", b"BZ", b"\xfd7zX", b"{}\n", b"\x28", b"x" * 100])
@pytest.mark.parametrize("size", [1, 100])
def test_other_content_passes(content: bytes, size: int) -> None:
    assert everything(opened(Pipe(content, size))) == content  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cut", [1, 4, 9, 30, 1000])
def test_cut_short(method: str, cut: int) -> None:
    data = COMPRESS[method](CONTENT)[:-cut]
    with pytest.raises(DataError, match=f"in: the {method} data is (cut short|damaged)") as caught:
        everything(opened(Pipe(data)))  # type: ignore[arg-type]
    assert caught.value.exit_code == 65


@pytest.mark.parametrize("method", METHODS)
def test_cut_right_after_the_magic(method: str) -> None:
    with pytest.raises(DataError):
        everything(opened(Pipe(COMPRESS[method](CONTENT)[:6])))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_damaged(method: str) -> None:
    data = bytearray(COMPRESS[method](CONTENT))
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    try:
        assert everything(opened(Pipe(bytes(data)))) != CONTENT  # type: ignore[arg-type]
    except DataError as error:
        assert error.where == "in"
    else:
        assert method == "zstd"  # the one that need not carry a checksum


@pytest.mark.parametrize("method", METHODS)
def test_a_failing_disk_is_not_damage(method: str) -> None:
    class Failing(Pipe):
        def read(self, size: int) -> bytes:
            block = super().read(size)
            if not block:
                raise InputOutputError("cannot read in: Input/output error")
            return block

    with pytest.raises(InputOutputError):
        everything(opened(Failing(COMPRESS[method](CONTENT)[:-20], 100)))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_a_full_disk_is_the_writers_own_error(method: str) -> None:
    def full(block: bytes) -> None:
        raise InputOutputError("cannot write out: No space left on device")

    with pytest.raises(InputOutputError):
        file = Compressed(method, full)
        for _ in range(200):
            file.write(CONTENT)
        file.close()


def test_suffixes() -> None:
    assert [method_of(f"a.ndjson{suffix}") for suffix in (".gz", ".bz2", ".xz", ".zst", "", ".Gz", ".zip")] == [
        "gzip", "bz2", "xz", "zstd", None, "gzip", None,
    ]  # fmt: skip
    assert [without_suffix(path) for path in ("a.csv.gz", "a.csv", "a.gz.csv", ".zst")] == [
        "a.csv",
        "a.csv",
        "a.gz.csv",
        "",
    ]
