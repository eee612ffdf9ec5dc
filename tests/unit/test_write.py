"""The write sink: names from fields, files together, and what cannot be written."""

from __future__ import annotations

import os
import resource
import string
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etlcli.connectors.write import Write, _Template, component
from etlcli.core.batch import Batch, Reject
from etlcli.core.fields import MISSING
from etlcli.core.ledger import StepCount
from etlcli.core.stage import Context
from etlcli.errors import CannotCreateError
from etlcli.io.stepfiles import StepFiles

ORDINARY = set(string.ascii_letters + string.digits + "_.-%")
NAUGHTY = ["", ".", "..", "...", "/", "//", "../..", "../../etc/passwd", "/etc/passwd", "a/b", "~", "~root", "-rf", "%", "%2F", "\0", "\n", "\x1b[31m",
           "\u202e", "é", "🙂", "con", "a b", "$(id)", "`id`", "*", "?", "\\", "\\..\\", "x" * 300, "é" * 300, " ", "CON.txt", ".etl-tmp",
           "{origin}"]  # fmt: skip


class Run:
    """A write sink on its own, its rejects kept."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.rejects: list[Reject] = []
        self.resources = ExitStack()
        ctx = Context(
            StepCount("write"),
            resources=self.resources,
            files=StepFiles("step", self.resources, lambda *a, **k: None),
            log=lambda *a, **k: None,
            reject=self.rejects.extend,
            base_dir=str(directory),
        )
        self.sink = Write(Write.Params(**options), ctx)

    def write(self, *lines: bytes) -> int:
        rejects = self.sink.write(Batch.of_lines(list(lines)))
        self.rejects += rejects
        return len(lines) - len(rejects)

    def end(self, commit: bool = True) -> None:
        with self.resources:
            if commit:
                self.sink.finish()
                self.sink.commit()


def tree(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# -- Names from fields -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", NAUGHTY, ids=repr)
def test_P6_a_value_is_never_more_than_a_part_of_a_name(value: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    run = Run(tmp_path, path_template="out/{v}.ndjson")
    assert run.write(msgspec.json.encode({"v": value})) == 1
    run.end()
    (name,) = tree(tmp_path)
    assert os.path.dirname(name) == "out"
    assert set(os.path.basename(name)) <= ORDINARY | {"~"}


@given(st.one_of(st.text(), st.sampled_from(NAUGHTY)), st.one_of(st.text(), st.sampled_from(NAUGHTY)))
@settings(max_examples=300)
def test_components_are_names_and_differ_as_the_values_do(one: str, other: str) -> None:
    names = [component(value, "v") for value in (one, other)]
    assert (names[0] == names[1]) == (one == other)
    for name in names:
        assert set(name) <= ORDINARY
        assert name not in ("", ".", "..")


@pytest.mark.parametrize(
    ("value", "name"),
    [("JFK", "JFK"), (1, "1"), (1.5, "1.5"), (True, "true"), (2**70, str(2**70)), ("a/b", "a%2Fb"), ("", "%"), ("..", "%2E%2E"), ("é", "%C3%A9")],
)  # fmt: skip
def test_components(value: Any, name: str) -> None:
    assert component(value, "v") == name


@pytest.mark.parametrize("value", [None, MISSING, [], {}, [1]], ids=str)
def test_values_that_name_no_file(value: Any) -> None:
    with pytest.raises(ValueError, match="the field v names the file"):
        component(value, "v")


@pytest.mark.parametrize("values", [("..", ".."), (".", ""), ("", ""), ("/", "..")])
def test_values_side_by_side_make_no_way_up(values: tuple[str, str], tmp_path: Path) -> None:
    template = _Template("out/{a}{b}/{a}.ndjson", str(tmp_path))
    path = template.path((*values, values[0]))
    assert os.path.realpath(path) == path
    assert path.startswith(f"{tmp_path}/out/")


@pytest.mark.parametrize("template", ["out/.{a}", "out/{a}.", "out/.{a}/x", "out/{a}./x"])
@pytest.mark.parametrize("value", [".", "..", "", "x"])
def test_dots_of_the_template_and_of_a_value_make_no_way_up(template: str, value: str, tmp_path: Path) -> None:
    path = _Template(template, str(tmp_path)).path((value,))
    assert os.path.realpath(path).startswith(f"{tmp_path}/out/")


def test_long_values_stay_apart(tmp_path: Path) -> None:
    template = _Template("{a}.ndjson", str(tmp_path))
    paths = [template.path(("x" * 400 + end,)) for end in "ab"]
    assert paths[0] != paths[1]
    for path in paths:
        assert len(os.fsencode(os.path.basename(path))) <= 240
        assert path.endswith(".ndjson")


@pytest.mark.parametrize("template", ["out.ndjson", "{a", "a}", "{}", "{a..b}", "../{a}", "x/../{a}", "{a}/.."])
def test_what_is_no_template(template: str) -> None:
    with pytest.raises(ValueError, match="path_template: "):
        Write.Params(path_template=template)


@pytest.mark.parametrize("options", [{}, {"path": "a", "path_template": "{a}"}])
def test_a_path_or_a_template(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="path"):
        Write.Params(**options)


# -- Files -----------------------------------------------------------------------------------------------------------


def test_one_file_for_each_value(tmp_path: Path) -> None:
    run = Run(tmp_path, path_template="{a}/{b.c}.ndjson")
    lines = [b'{"a":1,"b":{"c":"x"}}', b'{"a":2, "b":{"c":"y"}}', b'{"a":1,"b":{"c":"x"},"n":1.10}']
    assert run.write(*lines) == 3
    assert run.write(lines[1]) == 1
    assert not [name for name in tree(tmp_path) if not name.endswith(".etl-tmp")]
    run.end()
    assert tree(tmp_path) == {"1/x.ndjson": lines[0] + b"\n" + lines[2] + b"\n", "2/y.ndjson": (lines[1] + b"\n") * 2}


def test_records_without_a_name_are_rejected_and_the_others_written(tmp_path: Path) -> None:
    run = Run(tmp_path, path_template="{a}.ndjson")
    assert run.write(b'{"a":1}', b'{"a":null}', b"{}", b'{"a":[1]}', b'{"a":{}}', b'{"a":1,"n":2}') == 2
    run.end()
    assert [reject.code for reject in run.rejects] == ["missing_field", "missing_field", "bad_type", "bad_type"]
    assert tree(tmp_path) == {"1.ndjson": b'{"a":1}\n{"a":1,"n":2}\n'}


def test_true_and_1_are_two_files(tmp_path: Path) -> None:
    run = Run(tmp_path, path_template="{a}.ndjson")
    run.write(b'{"a":1}', b'{"a":true}', b'{"a":1.0}')
    run.end()
    assert sorted(tree(tmp_path)) == ["1.0.ndjson", "1.ndjson", "true.ndjson"]


def test_the_number_of_files_is_bounded(tmp_path: Path) -> None:
    run = Run(tmp_path, path_template="{a}.ndjson", max_files=3)
    with pytest.raises(CannotCreateError, match="more than 3 files"):
        run.write(*(b'{"a":%d}' % number for number in range(5)))
    run.end(commit=False)
    assert tree(tmp_path) == {}


def test_more_files_than_a_shell_allows(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 50, limits[1]))
    try:
        run = Run(tmp_path, path_template="{a}.ndjson")
        assert run.write(*(b'{"a":%d}' % number for number in range(200))) == 200
        run.end()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(tree(tmp_path)) == 200


@pytest.mark.parametrize("options", [{"path": "a.ndjson"}, {"path_template": "{a}.ndjson"}])
def test_without_commit_nothing_is_there(options: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").write_bytes(b"old\n")
    run = Run(tmp_path, **options)
    run.write(b'{"a":"a"}')
    run.end(commit=False)
    assert tree(tmp_path) == {"a.ndjson": b"old\n"}


def test_no_file_is_published_before_all_are_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, path_template="{a}.ndjson")
    run.write(b'{"a":1}', b'{"a":2}', b'{"a":3}')
    synced = 0
    real = os.fsync

    def fail_at_the_last(fd: int) -> None:
        nonlocal synced
        synced += 1
        if synced == 3:
            raise OSError(28, "No space left on device")
        real(fd)

    monkeypatch.setattr(os, "fsync", fail_at_the_last)
    with pytest.raises(Exception, match="No space left"), run.resources:
        run.sink.finish()
        run.sink.commit()
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("mode", ["create", "replace", "append"])
@pytest.mark.parametrize("name", ["out.ndjson", "out.ndjson.gz", "out.csv"])
def test_an_empty_run_makes_an_empty_file(mode: str, name: str, tmp_path: Path) -> None:
    run = Run(tmp_path, path=name, mode=mode)
    run.end()
    assert list(tree(tmp_path)) == [name]
