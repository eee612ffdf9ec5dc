"""Each format's traps: what is rejected, where, and what goes on."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from formats import read, write

from etlcli.core.batch import Batch, Reject
from etlcli.errors import DataError
from etlcli.formats import WriteOptions, format_of, module
from etlcli.formats.yaml12 import YamlError, load


def lines_of(name: str, data: bytes, **options: object) -> list[str]:
    return [item[0].decode() for item in read(name, data, **options) if not isinstance(item, Reject)]


def rejects_of(name: str, data: bytes, **options: object) -> list[tuple[str, int, int]]:
    found = [item for item in read(name, data, **options) if isinstance(item, Reject)]
    return [(item.code, item.origin.line, item.origin.offset) for item in found if item.origin]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a.ndjson", "ndjson"),
        ("a.JSONL.gz", "ndjson"),
        ("a.csv.zst", "csv"),
        ("a.yml", "yaml"),
        ("a.log", "ndjson"),
        ("csv", "ndjson"),
    ],
)
def test_format_of(path: str, name: str) -> None:
    assert format_of(path) == name


JSON_GOOD = {
    b"": [],
    b" \n\t": [],
    b"[]": [],
    b"[ ]\n[]": [],
    b'[{"a":1.10},\n {"b":1e400}]': ['{"a":1.10}', '{"b":1e400}'],
    b'{"a":1}{"a":2}\n{"a":3}': ['{"a":1}', '{"a":2}', '{"a":3}'],
    b'{\n  "a": "x  y",\r\n  "b": [\n1,\n2]\n}': ['{"a": "x  y","b": [1,2]}'],
    b'\xef\xbb\xbf[{"a":-0}]': ['{"a":-0}'],
    b'[1, "a", null, [2]]': ["1", '"a"', "null", "[2]"],
    b"[" + b"9" * 5000 + b"]": ["9" * 5000],
}


@pytest.mark.parametrize("data", JSON_GOOD, ids=lambda data: data[:20].decode("latin-1"))
def test_json_values(data: bytes) -> None:
    assert lines_of("json", data) == JSON_GOOD[data]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'[{"a":1}', "cut short"),
        (b'[{"a":1', "not JSON"),
        (b"[1,]", "a value is missing before ']'"),
        (b"[,1]", "a value is missing before ','"),
        (b'[{"a":1} {"b":1}]', "expected , or ]"),
        (b'[{"a":NaN}]', "NaN is not JSON"),
        (b"[1]x", "not JSON"),
        (b"[" * 100_000, "in:1: nested too deep"),
        (b'{"a":1}\n{"a":"x\ny"}', "in:2: not JSON"),
    ],
)
def test_json_broken(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message.replace("[", r"\[").replace("]", r"\]")):
        read("json", data)


def test_json_record_over_the_limit() -> None:
    with pytest.raises(DataError, match="longer than --max-line"):
        read("json", b'[{"a":"' + b"x" * 5000, 100, max_line=1000)


CSV_CELLS = b'a,b\n1,1.10\n-0,1e400\n007,+1\n.5,1.\n,""\nNA,true\n"x,y","q""q"\n"two\nlines",TRUE\n 12,12 \n'


def test_csv_infers_only_what_is_json() -> None:
    assert lines_of("csv", CSV_CELLS) == [
        '{"a":1,"b":1.10}', '{"a":-0,"b":1e400}', '{"a":"007","b":"+1"}', '{"a":".5","b":"1."}', '{"a":null,"b":null}',
        '{"a":"NA","b":true}', '{"a":"x,y","b":"q\\"q"}', '{"a":"two\\nlines","b":"TRUE"}', '{"a":" 12","b":"12 "}',
    ]  # fmt: skip


def test_csv_types_string() -> None:
    assert lines_of("csv", b"a,b\n1,\ntrue,x\n", types="string") == ['{"a":"1","b":""}', '{"a":"true","b":"x"}']


def test_csv_bad_rows_are_rejected_alone() -> None:
    data = b'a,b\n1,2\nshort\n\n3,4,5\n"bad"x,1\n\xff,6\n7,"open\n8,9\n'
    assert rejects_of("csv", data) == [
        ("missing_field", 3, 8),
        ("bad_type", 5, 15),
        ("bad_json", 6, 21),
        ("bad_utf8", 7, 30),
        ("bad_json", 8, 34),
    ]
    assert lines_of("csv", data) == ['{"a":1,"b":2}', "", '{"a":8,"b":9}']


def test_csv_an_open_quote_does_not_swallow_the_file() -> None:
    data = b'a\n"never closed\n' + b"1\n" * 20_000
    assert rejects_of("csv", data, size=100, max_line=2000) == [("bad_json", 2, 2)]
    assert len(lines_of("csv", data, size=100, max_line=2000)) == 20_000


@pytest.mark.parametrize(
    ("header", "message"),
    [(b"a,b,a\n1,2,3\n", "'a' twice"), (b"a,,c\n", "no name for column 2"), (b"\xff,b\n1,2\n", "UTF-8")],
)
def test_csv_header_must_name_fields(header: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read("csv", header)


@pytest.mark.parametrize("data", [b"", b"\n", b"a,b\n", b"a,b"])
def test_csv_without_rows(data: bytes) -> None:
    assert lines_of("csv", data) == []


def test_csv_odd_names_and_bom() -> None:
    assert lines_of("csv", b'\xef\xbb\xbf"a,b",50%,"q""q"\r\n1,2,3\r\n') == ['{"a,b":1,"50%":2,"q\\"q":3}']


def test_csv_refuses_a_field_without_column() -> None:
    out: list[bytes] = []
    writer = module("csv").Writer(out.append, WriteOptions("csv"))
    rejects = writer.write(Batch.of_lines([b'{"a":1}', b'{"a":2,"b":3}', b"{}"]))
    assert [(reject.code, reject.raw) for reject in rejects] == [("sink_refused", b'{"a":2,"b":3}')]
    assert "--columns" in rejects[0].message
    # One column: an empty line would be no row.
    assert b"".join(out) == b'a\n1\n""\n'


def test_csv_nested_values_are_json() -> None:
    assert write("csv", ['{"a":[1.10, {"b":1e400}],"c":"x"}']) == b'a,c\n"[1.10, {""b"":1e400}]",x\n'


def test_csv_chosen_columns() -> None:
    assert write("csv", ['{"b":1,"a":2}'], columns=("a", "b", "c")) == b"a,b,c\n2,1,\n"
    assert write("csv", [], columns=("a", "b")) == b"a,b\n"


def test_tsv_is_quoted_like_csv() -> None:
    assert write("tsv", ['{"a":"x\\ty","b":"1,2"}']) == b'a\tb\n"x\ty"\t1,2\n'


YAML_PLAIN = {
    b"no": "no", b"yes": "yes", b"on": "on", b"true": True, b"False": False, b"~": None, b"null": None, b"": None,
    b"1:30": "1:30", b"2013-01-01": "2013-01-01", b"017": 17, b"0o17": 15, b"0x1F": 31, b"+1": 1, b".5": 0.5, b"1.": 1.0,
    b"1e3": 1000.0, b"-0": 0, b"1_000": "1_000", b"'1'": "1", b'"a\\nb"': "a\nb", b"NaN": "NaN",
}  # fmt: skip


@pytest.mark.parametrize("text", YAML_PLAIN, ids=lambda text: text.decode())
def test_yaml_core_schema(text: bytes) -> None:
    value = load(b"a: " + text, name="in").plain()["a"]
    assert value == YAML_PLAIN[text]
    assert type(value) is type(YAML_PLAIN[text])


def test_yaml_as_deep_as_can_be_is_refused() -> None:
    """PyYAML 6.0.4 and later look ahead and stop at 1,001 levels; earlier ones go on, and we stop at the 101st."""
    with pytest.raises(YamlError, match="deeper than 100") as caught:
        load(b"[" * 100_000, name="in")
    assert caught.value.line == 1 and caught.value.column in (101, 1001)


@pytest.mark.parametrize(
    ("text", "message", "line", "column"),
    [
        (b"a: 1\nb: 2\na: 3", "there already, in line 1", 3, 1),
        (b"a: !!int 1", "tags such as", 1, 4),
        (b"a: !x {}", "tags such as", 1, 4),
        (b"<<: {a: 1}", "merge keys", 1, 1),
        (b"? [a]\n: 1", "a key must be", 1, 3),
        (b"a: .inf", "JSON has no", 1, 4),
        (b"a: [1\nb: 2", "not YAML", 2, 2),
        (b"a: *x", "stands for nothing", 1, 4),
        (b"a: &x [*x]", "stands for nothing", 1, 8),
        (b"[" * 101 + b"]" * 101, "deeper than 100", 1, 101),
        (b"- " * 101, "deeper than 100", 1, 201),
        (b"a: 1\n---\nb: 1", "second document", 3, 1),
        (b"a: \x00", "not YAML", 1, 4),
    ],
)
def test_yaml_refused(text: bytes, message: str, line: int, column: int) -> None:
    with pytest.raises(YamlError, match=message) as caught:
        load(text, name="in")
    assert (caught.value.line, caught.value.column) == (line, column)


def test_yaml_billion_laughs() -> None:
    layers = [b"a0: &a0 [1,1,1,1,1,1,1,1,1,1]"]
    layers += [b"a%d: &a%d [%s]" % (n, n, b",".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 9)]
    with pytest.raises(YamlError, match="aliases unfolded"):
        load(b"\n".join(layers), name="in")


def test_yaml_documents() -> None:
    data = b"# two\na: 1.10\n---\n- {b: 2}\n- {b: 3}\n---\n---\nc: \xc3\xa9\n"
    assert read("yaml", data) == [
        (b'{"a":1.10}', 2, 6), (b'{"b":2}', 4, 18), (b'{"b":3}', 5, 27), (b"", 7, 40), ('{"c":"é"}'.encode(), 8, 44),
    ]  # fmt: skip


def test_yaml_broken_says_where() -> None:
    with pytest.raises(DataError, match="in:3: "):
        read("yaml", b"a: 1\nb: [\n")


def test_yaml_document_over_the_limit() -> None:
    with pytest.raises(DataError, match="--max-line"):
        read("yaml", b"a: " + b"x" * 5000, 100, max_line=1000)


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_compressed_output_is_reproducible(suffix: str, etl, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert etl("write", tmp_path / f"{name}.ndjson.{suffix}", stdin=b'{"a":1}\n').returncode == 0
    one, two = (tmp_path / f"{name}.ndjson.{suffix}" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_gzip_members_are_read_as_one(etl) -> None:
    done = etl("read", stdin=gzip.compress(b'{"a":1}\n') + gzip.compress(b'{"a":2}\n'))
    assert done.stdout == b'{"a":1}\n{"a":2}\n'


@pytest.mark.parametrize("data", [b'{"a":1234}\r\n{"a":1}\n', b'{"a":1}\n{"a":1234}\r', b'{"a":1234}'])
def test_a_line_may_be_of_the_limit_wherever_a_block_ends(data: bytes) -> None:
    """The end of a line is not part of it, though its halves come apart."""
    for size in range(1, len(data) + 1):
        assert rejects_of("ndjson", data, size=size, max_line=10) == []
        assert rejects_of("ndjson", data.replace(b"1234", b"12345"), size=1, max_line=10) != []
