"""Expressions against two other evaluators: SQLite for conditions and their three values, and for everything, errors too, a
plain recursive interpreter over one record at a time. Batches mix types, so that inlined and called operations meet."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from decimal import Decimal
from functools import cmp_to_key
from math import isfinite
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from etlcli.core.batch import Batch
from etlcli.core.expressions import Expression

Tree = tuple[Any, ...]


def columns_of(expression: Expression, records: list[dict[str, Any]]) -> list[list[Any]]:
    return Batch.of_lines([json.dumps(record).encode() for record in records]).columns(expression.paths)


# -- SQLite ----------------------------------------------------------------------------------------------------------

INTEGERS, TEXTS = ("n", "m"), ("s", "t")
integers = st.integers(-3, 3)
words = st.sampled_from(["", "a", "b", "ab", "B", "é", "🙂", "\uffff"])


def sql_text(value: Any) -> str:
    return "null" if value is None else str(value) if isinstance(value, int) else "'" + value + "'"


def typed(names: tuple[str, ...], literals: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, str]]:
    """Operands of one type, as (ours, SQL)."""
    atoms = st.sampled_from(names).map(lambda name: (name, name)) | literals.map(
        lambda value: (json.dumps(value, ensure_ascii=False), sql_text(value))
    )
    return st.one_of(
        atoms,
        atoms,
        st.tuples(atoms, atoms).map(lambda pair: tuple(f"coalesce({a}, {b})" for a, b in zip(*pair, strict=True))),
    )


def comparing(operands: st.SearchStrategy[tuple[str, str]], literals: st.SearchStrategy[Any]) -> Any:
    signs = st.sampled_from([("==", "="), ("!=", "<>"), ("<", "<"), ("<=", "<="), (">", ">"), (">=", ">=")])
    simple = st.tuples(operands, signs, operands).map(
        lambda found: tuple(f"{a} {sign} {b}" for a, sign, b in zip(*found, strict=True))
    )
    chained = st.tuples(operands, signs, operands, signs, operands).map(
        lambda f: (f"{f[0][0]} {f[1][0]} {f[2][0]} {f[3][0]} {f[4][0]}",
                   f"({f[0][1]} {f[1][1]} {f[2][1]} and {f[2][1]} {f[3][1]} {f[4][1]})")
    )  # fmt: skip
    lists = st.lists(literals | st.none(), min_size=1, max_size=3).filter(
        lambda found: any(v is not None for v in found)
    )
    member = st.tuples(operands, st.sampled_from(["in", "not in"]), lists).map(
        lambda f: (
            f"{f[0][0]} {f[1]} {json.dumps(f[2], ensure_ascii=False)}",
            f"{f[0][1]} {f[1]} ({', '.join(map(sql_text, f[2]))})",
        )
    )
    exists = operands.map(lambda found: (f"exists({found[0]})", f"({found[1]}) is not null"))
    return st.one_of(simple, simple, chained, member, exists)


conditions = st.recursive(
    comparing(typed(INTEGERS, integers), integers) | comparing(typed(TEXTS, words), words),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3)).map(
            lambda f: tuple("(" + f" {f[0]} ".join(texts) + ")" for texts in zip(*f[1], strict=True))
        ),
        inner.map(lambda found: tuple(f"(not ({text}))" for text in found)),
        st.tuples(inner, inner, inner).map(
            lambda f: (
                f"({f[1][0]} if {f[0][0]} else {f[2][0]})",
                f"(case when {f[0][1]} then {f[1][1]} else {f[2][1]} end)",
            )
        ),
    ),
    max_leaves=8,
)
rows = st.fixed_dictionaries(
    {}, optional={**dict.fromkeys(INTEGERS, integers | st.none()), **dict.fromkeys(TEXTS, words | st.none())}
)


@settings(max_examples=150, deadline=None)
@given(condition=conditions, records=st.lists(rows, min_size=1, max_size=12))
def test_conditions_as_in_sql(condition: tuple[str, str], records: list[dict[str, Any]]) -> None:
    ours, theirs = condition
    database = sqlite3.connect(":memory:")
    database.execute("create table records (id integer, n integer, m integer, s text, t text)")
    rows = [(index, *map(record.get, (*INTEGERS, *TEXTS))) for index, record in enumerate(records)]
    database.executemany("insert into records values (?, ?, ?, ?, ?)", rows)
    found = [None if value is None else bool(value) for (value,) in
             database.execute(f"select {theirs} from records order by id")]  # fmt: skip
    database.close()
    expression = Expression(ours)
    columns = columns_of(expression, records)
    assert expression.values(len(records), columns) == (found, {}), ours
    assert expression.select(len(records), columns) == ([i for i, value in enumerate(found) if value], {}), ours


# -- A plain interpreter -----------------------------------------------------------------------------------------------


class Bad(Exception):
    pass


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def kind(value: Any) -> str:
    return "number" if is_number(value) else type(value).__name__


def compare(sign: str, a: Any, b: Any) -> Any:
    if a is None or b is None:
        return None
    if kind(a) != kind(b) or isinstance(a, list | dict):
        raise Bad
    order = (a > b) - (a < b)
    return {"==": order == 0, "!=": order != 0, "<": order < 0, "<=": order <= 0, ">": order > 0, ">=": order >= 0}[
        sign
    ]


def compute(sign: str, a: Any, b: Any) -> Any:
    if a is None or b is None:
        return None
    if sign == "+" and isinstance(a, str) and isinstance(b, str):
        return a + b
    if not is_number(a) or not is_number(b):
        raise Bad
    try:
        if isinstance(a, float) or isinstance(b, float):
            a, b = float(a), float(b)
        found = {"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "/": lambda: a / b, "//": lambda: a // b,
                 "%": lambda: a % b}[sign]()  # fmt: skip
    except (ZeroDivisionError, OverflowError):
        raise Bad from None
    if isinstance(found, float) and not isfinite(found):
        raise Bad
    if abs(found) >= 10**4000:
        raise Bad
    return found


def text_of(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def call(name: str, *values: Any) -> Any:
    if any(value is None for value in values):
        return None
    first = values[0]
    if name == "len":
        if not isinstance(first, str | list | dict):
            raise Bad
        return len(first)
    if name in ("lower", "upper", "strip", "startswith", "endswith"):
        if not all(isinstance(value, str) for value in values):
            raise Bad
        return getattr(first, name)(*values[1:])
    if name == "contains":
        whole, part = values
        if isinstance(whole, list) and not isinstance(part, list | dict):
            if any(kind(item) == kind(part) and item == part for item in whole):
                return True
            return None if None in whole else False
        if isinstance(whole, str | dict) and isinstance(part, str):
            return part in whole
        raise Bad
    if name == "abs":
        if not is_number(first):
            raise Bad
        return abs(first)
    if name in ("min", "max"):
        if len({kind(value) for value in values}) > 1 or kind(first) not in ("number", "str"):
            raise Bad
        ordered = sorted(values, key=cmp_to_key(lambda a, b: (a > b) - (a < b)), reverse=name == "max")
        return next(value for value in values if value == ordered[0])
    if name == "str":
        return text_of(first)
    raise AssertionError(name)


def condition_of(value: Any) -> Any:
    if value is not None and not isinstance(value, bool):
        raise Bad
    return value


def evaluate(tree: Tree, record: dict[str, Any]) -> Any:
    def of(part: Tree) -> Any:
        return evaluate(part, record)

    match tree:
        case ("literal", value):
            return value
        case ("field", name):
            return record.get(name)
        case ("compare", sign, a, b):
            return compare(sign, of(a), of(b))
        case ("chain", first, second, a, b, c):
            values = [of(a), of(b), of(c)] if b[0] not in ("field", "literal") else None
            left = compare(first, *(values[:2] if values else (of(a), of(b))))
            if left is False:
                return False
            right = compare(second, *(values[1:] if values else (of(b), of(c))))
            return False if right is False else None if None in (left, right) else True
        case ("in", a, items):
            value = of(a)
            if value is None:
                return None
            kinds = {kind(item) for item in items if item is not None}
            if (kinds and kind(value) not in kinds) or isinstance(value, list | dict):
                raise Bad
            if any(kind(item) == kind(value) and item == value for item in items):
                return True
            return None if None in items else False
        case ("and" | "or" as sign, parts):
            unknown = False
            for part in parts:
                value = condition_of(of(part))
                if value is (sign == "or"):
                    return value
                unknown = unknown or value is None
            return None if unknown else sign == "and"
        case ("not", a):
            value = condition_of(of(a))
            return None if value is None else not value
        case ("if", test, body, other):
            return of(body) if condition_of(of(test)) is True else of(other)
        case ("arithmetic", sign, a, b):
            return compute(sign, of(a), of(b))
        case ("minus", a):
            value = of(a)
            if value is None:
                return None
            if not is_number(value):
                raise Bad
            return -value
        case ("exists", a):
            return of(a) is not None
        case ("coalesce", parts):
            return next((value for value in map(of, parts) if value is not None), None)
        case ("call", name, parts):
            return call(name, *map(of, parts))
    raise AssertionError(tree)


def spelled(tree: Tree) -> str:
    match tree:
        case ("literal", value):
            return json.dumps(value, ensure_ascii=False)
        case ("field", name):
            return str(name)
        case ("compare" | "arithmetic", sign, a, b):
            return f"({spelled(a)} {sign} {spelled(b)})"
        case ("chain", first, second, a, b, c):
            return f"({spelled(a)} {first} {spelled(b)} {second} {spelled(c)})"
        case ("in", a, items):
            return f"({spelled(a)} in {json.dumps(items, ensure_ascii=False)})"
        case ("and" | "or" as sign, parts):
            return "(" + f" {sign} ".join(map(spelled, parts)) + ")"
        case ("not", a):
            return f"(not {spelled(a)})"
        case ("minus", a):
            return f"(-{spelled(a)})"
        case ("if", test, body, other):
            return f"({spelled(body)} if {spelled(test)} else {spelled(other)})"
        case ("exists", a):
            return f"exists({spelled(a)})"
        case ("coalesce", parts):
            return f"coalesce({', '.join(map(spelled, parts))})"
        case ("call", name, parts):
            return f"{name}({', '.join(map(spelled, parts))})"
    raise AssertionError(tree)


NAMES = ("a", "b", "c", "d")
SIGNS = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
numbers = st.one_of(st.integers(-3, 3), st.sampled_from([0.5, -1.5, 2.0, 1e300, -1e300, 2**53 + 1, 2**70, 10**3999]))
scalars = st.one_of(st.none(), st.booleans(), numbers, numbers, st.sampled_from(["", "a", "B", " a ", "1", "ß"]))
literals = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([0.5, 1e300, "", "a", "1"]))
values = st.one_of(
    scalars, scalars, scalars, st.lists(scalars, max_size=2), st.fixed_dictionaries({}, optional={"a": scalars})
)


def grown(inner: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    some = st.lists(inner, min_size=2, max_size=3)
    return st.one_of(
        st.tuples(st.just("compare"), SIGNS, inner, inner),
        st.tuples(st.just("chain"), SIGNS, SIGNS, inner, inner, inner),
        st.tuples(st.just("in"), inner, st.lists(literals, max_size=3)),
        st.tuples(st.sampled_from(["and", "or"]), some),
        st.tuples(st.just("not"), inner),
        # A minus before a literal that is no number does not compile.
        st.tuples(st.just("minus"), inner.filter(lambda tree: tree[0] != "literal" or is_number(tree[1]))),
        st.tuples(st.just("if"), inner, inner, inner),
        st.tuples(st.just("arithmetic"), st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner, inner),
        st.tuples(st.just("exists"), inner),
        st.tuples(st.just("coalesce"), some),
        st.tuples(st.just("call"), st.sampled_from(["len", "lower", "upper", "strip", "abs", "str"]), st.tuples(inner)),
        st.tuples(
            st.just("call"),
            st.sampled_from(["startswith", "endswith", "contains", "min", "max"]),
            st.tuples(inner, inner),
        ),
    )


leaves = st.tuples(st.just("field"), st.sampled_from(NAMES)) | st.tuples(st.just("literal"), literals)
trees = st.recursive(leaves, grown, max_leaves=7).filter(lambda tree: tree[0] != "literal")
# Batches of one type a field, so that operations are inlined, and batches of any.
kinds = [st.integers(-3, 3), st.sampled_from([0.5, -1.5, 1e300]), st.sampled_from(["", "a", "B"]), st.booleans()]
records_alike = st.tuples(*(st.sampled_from(kinds) for _ in NAMES)).flatmap(
    lambda chosen: st.lists(
        st.fixed_dictionaries({}, optional={n: k | st.none() for n, k in zip(NAMES, chosen, strict=True)}),
        min_size=1,
        max_size=6,
    )
)
records_mixed = st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, values)), min_size=1, max_size=6)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Decimal):  # a number that no double holds as it is spelled
        return one == other or float(one) == other
    return type(one) is type(other) and one == other


def outcome(evaluate: Callable[[], Any]) -> Any:
    try:
        return evaluate()
    except Bad:
        return Bad


@settings(max_examples=150, deadline=None)
@given(tree=trees, records=records_alike | records_mixed)
@example(tree=("call", "str", (("field", "b"),)), records=[{"b": 1e300}])
def test_values_as_a_plain_interpreter_has_them(tree: Tree, records: list[dict[str, Any]]) -> None:
    expected = [outcome(lambda record=record: evaluate(tree, record)) for record in records]
    expression = Expression(spelled(tree))
    columns = columns_of(expression, records)
    found, errors = expression.values(len(records), columns)
    got = [Bad if index in errors else value for index, value in enumerate(found)]
    assert all(map(same, got, expected)), (spelled(tree), got, expected)
    true, refused = expression.select(len(records), columns)
    assert true == [index for index, value in enumerate(expected) if value is True]
    assert sorted(refused) == [
        index for index, value in enumerate(expected) if value is Bad or not (value is None or isinstance(value, bool))
    ]


@settings(max_examples=60, deadline=None)
@given(tree=trees, records=records_mixed)
def test_a_record_has_its_value_whatever_stands_beside_it(tree: Tree, records: list[dict[str, Any]]) -> None:
    """One at a time, types differ from batch to batch; all at once they are mixed: the same values, the same errors."""
    expression = Expression(spelled(tree))
    found, errors = expression.values(len(records), columns_of(expression, records))
    for index, record in enumerate(records):
        (alone,), error = expression.values(1, columns_of(expression, [record]))
        assert type(alone) is type(found[index]) and alone == found[index]
        assert error.get(0) == errors.get(index)
