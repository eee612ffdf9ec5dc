"""Layouts change many records at once, where that gives what changing each of them alone gives; and only there."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from etlcli.core.reshape import Layout, Reshape, encode_lines, keeper, open_lines, put

NOTHING = Reshape((), (), {})


def alone(lines: Sequence[bytes], sets: dict[str, bytes], reshape: Reshape) -> bytes:
    records = []
    for line in lines:
        (record,) = open_lines(line)
        for name, value in sets.items():
            put(record, (name,), value)
        records.append(reshape(record) or record)
    return encode_lines(records)


@pytest.mark.parametrize(
    ("lines", "sets", "reshape", "fits"),
    [
        ([b'{"a":1,"x":2,"b":3}', b'{"a":4,"x":5.0,"b":6}'], {"x": b"9", "new": b'"n"'}, NOTHING, True),
        # set in the middle of one record, and at the end of the other
        ([b'{"a":1,"x":2,"b":3}', b'{"a":4,"b":6}'], {"x": b"9"}, NOTHING, False),
        # new in the first, there already in the second
        ([b'{"a":1}', b'{"a":1,"y":5}'], {"x": b"1", "y": b"2"}, NOTHING, False),
        ([b'{"a":1,"b":2}', b'{"b":1,"a":2}'], {"a": b"0"}, NOTHING, False),
        ([b'{"a":1,"b":2}', b'{"a":1,"b":2,"c":3}'], {"a": b"0"}, NOTHING, False),
        ([b'{"a":1}', b'{"a":1,"a":2}'], {"b": b"0"}, NOTHING, False),
        ([b'{"a":1}', b'{"a": 1}'], {"b": b"0"}, NOTHING, False),
        ([b'{"a":1}', b'{"\\u0061":1}'], {"b": b"0"}, NOTHING, False),
        ([b'{"a":1.50,"b":[ 1 ],"c":"\\u00e9"}', b'{"a":1,"c":{"b": 1}}'], {}, Reshape([("b",)], (), {}), True),
        ([b'{"a":1,"b":2,"c":3}', b'{"b":2}'], {}, Reshape((), (), {(): {"a": "z", "c": "y"}}), True),
        ([b'{"a":1,"b":2}'], {"n": b"5"}, Reshape([("b",)], (), {(): {"n": "m"}}), True),
        ([b'{"a":1,"b":2}', b'{"a":1,"z":3,"b":2}'], {}, Reshape([("b",)], (), {(): {"a": "z"}}), False),
    ],
)
def test_all_at_once_as_one_by_one(lines: list[bytes], sets: dict[str, bytes], reshape: Reshape, fits: bool) -> None:
    layout = Layout(open_lines(lines[0])[0], list(sets), reshape)
    changed = layout.changed(
        b"".join(line + b"\n" for line in lines), [[value] * len(lines) for value in sets.values()]
    )
    assert (changed is not None) is fits
    if changed is not None:
        assert changed == alone(lines, sets, reshape)


def test_a_new_name_that_is_there_needs_a_look_at_each_record() -> None:
    with pytest.raises(ValueError, match="is there already"):
        Layout(["a", "b"], [], Reshape((), (), {(): {"a": "b"}}))
    with pytest.raises(ValueError, match="is there already"):
        Layout(["a"], ["b"], Reshape((), (), {(): {"a": "b"}}))


def test_names_the_decoder_does_not_take() -> None:
    with pytest.raises(ValueError):
        Layout(['a"b'], [], Reshape([("c",)], (), {}))
    assert keeper([('a"b',)]) is None and keeper([("a", "b")]) is None


def test_keeper() -> None:
    keep = keeper([("b",), ("a",), ("b",)])
    assert keep is not None
    assert keep(b'{"a": 1.50,"c":{"a":2},"b":[ 1 ]}\n{"c":1}\n') == b'{"b":[ 1 ],"a":1.50}\n{}\n'
