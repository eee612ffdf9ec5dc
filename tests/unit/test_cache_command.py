"""`etl cache`: what is in a cache file, safe to look at, and less of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import Run

from etlcli.state.sqlite import CacheFile

NOW = 1_700_000_000.5
KEYS = {"15": 1.0, '"N14228"': NOW, '["UA",1545]': NOW + 1, '"\\u001b[31m\x9b\u202e"': NOW + 2}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    file = CacheFile(str(tmp_path / "c"), {"stage": "dedupe-cache", "key": ["/id"]})
    file.table.put((key, {"seen": seen}) for key, seen in KEYS.items())
    file.commit()
    file.close()
    return tmp_path / "c"


def entries(etl: Run, cache: Path) -> dict[str, float]:
    lines = etl("cache", "export", cache).stdout.splitlines()
    return {entry["key"]: entry["value"]["seen"] for entry in map(json.loads, lines)}


def test_list(etl: Run, cache: Path) -> None:
    done = etl("cache", "list", cache)
    assert done.returncode == 0
    heading, *lines = done.stdout.decode().splitlines()
    assert heading.split() == ["SEEN", "AGE", "KEY", "(/id)"]
    assert lines[0].startswith("1970-01-01T00:00:01Z")
    assert re.fullmatch(r'2023-11-14T22:13:20Z +\d+d \d+h  "N14228"', lines[1])
    assert lines[3].endswith(r'"\u001b[31m\x9b\u202e"'), "nothing that a terminal obeys"


def test_list_and_export_as_json(etl: Run, cache: Path, tmp_path: Path) -> None:
    done = etl("cache", "list", "--json", cache)
    assert done.returncode == 0 and b"\x1b" not in done.stdout and "\u202e".encode() not in done.stdout
    assert entries(etl, cache) == KEYS
    assert etl("cache", "export", cache, "-o", tmp_path / "out").returncode == 0
    assert (tmp_path / "out").read_bytes() == done.stdout


def test_list_of_a_lookup_names_its_keys(etl: Run, tmp_path: Path) -> None:
    CacheFile(str(tmp_path / "c"), {"stage": "lookup", "on": ["/a", "/b"], "fields": {}, "command": ["cat"]}).close()
    assert b"KEY (/a,/b)\n" in etl("cache", "list", tmp_path / "c").stdout


@pytest.mark.parametrize("key", ["15", "15.0", "1.5e1", "N14228", '"N14228"', '["UA",1545]', '[ "UA", 1545.0 ]'])
def test_get(key: str, etl: Run, cache: Path) -> None:
    done = etl("cache", "get", cache, key)
    assert (done.returncode, list(json.loads(done.stdout))) == (0, ["seen"])


def test_get_what_is_not_there(etl: Run, cache: Path) -> None:
    done = etl("cache", "get", cache, "16")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"has no entry for 16" in done.stderr


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--older-than", "20d"], []),
        (["--older-than", "18000d"], list(KEYS)[1:]),
        (["--max-entries", "2"], list(KEYS)[2:]),
        (["--max-entries", "9"], list(KEYS)),
        (["--older-than", "18000d", "--max-entries", "1"], list(KEYS)[3:]),
        (["--all"], []),
    ],
)
def test_prune(options: list[str], left: list[str], etl: Run, cache: Path) -> None:
    done = etl("cache", "prune", cache, *options)
    assert done.stdout == b"pruned %d of 4 entries\n" % (4 - len(left)), done.stderr
    assert list(entries(etl, cache)) == left


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["prune", "c"], 2, "say what to prune"),
        (["prune", "c", "--older-than", "soon"], 2, "--older-than: expected a duration"),
        (["prune", "nowhere", "--all"], 66, "there is no cache nowhere"),
        (["list", "nowhere"], 66, "there is no cache nowhere"),
        (["get", "text", "1"], 65, "no SQLite database"),
        (["export", "text"], 65, "no SQLite database"),
        (["export", "c", "-o", "."], 73, "is a directory"),
        (["show", "c"], 2, "No such command"),
    ],
)
def test_what_cannot_be(arguments: list[str], code: int, message: str, etl: Run, cache: Path) -> None:
    (cache.parent / "text").write_text("not a database")
    done = etl("cache", *arguments, cwd=cache.parent)
    assert (done.returncode, done.stdout) == (code, b"")
    assert message in done.stderr.decode()
    assert not (cache.parent / "nowhere").exists()


def test_export_does_not_replace_the_cache(etl: Run, cache: Path) -> None:
    """Nor by another name of it."""
    before = cache.read_bytes()
    (cache.parent / "link").symlink_to(cache)
    for output in ("c", "./c", "link"):
        done = etl("cache", "export", "c", "-o", output, cwd=cache.parent)
        assert (done.returncode, cache.read_bytes()) == (2, before)
        assert b"the output would replace c" in done.stderr


@pytest.mark.parametrize(
    ("value", "command"),
    [
        (b"\x80\x05K\x01.", ["list"]),
        (b"\x80\x05K\x01.", ["export"]),
        (b"\x80\x05K\x01.", ["get"]),
        (b"{", ["list", "--json"]),
        (None, ["get"]),
    ],
)
def test_what_is_no_json_is_not_loaded(value: bytes | None, command: list[str], etl: Run, cache: Path) -> None:
    import sqlite3

    connection = sqlite3.connect(cache)
    connection.execute('UPDATE "unnamed" SET value = ?', (value,))
    connection.commit()
    connection.close()
    before = cache.read_bytes()
    done = etl("cache", *command, cache, *(["15"] if command == ["get"] else []))
    assert done.returncode == 65
    assert (b"pickled" if value and value[:1] == b"\x80" else b"no JSON") in done.stderr
    assert b"Traceback" not in done.stderr
    assert cache.read_bytes() == before


def test_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    from etlcli.state import inspect

    for size in (1, 2, 3, 4, 5):
        monkeypatch.setattr(inspect, "_PAGE", size)
        assert [key for key, _ in inspect.Inspection(str(cache)).items()] == list(KEYS)
