"""Attempts to get out of the language, or to make it eat the machine. Whatever is not said in DESIGN must be a ValueError when
it is compiled or an error of the record when it is run, soon, and in little memory."""

from __future__ import annotations

import ast
import os
import random
import re
import resource
import subprocess
import sys
from types import CodeType
from typing import Any
from unittest import mock

import pytest
from conftest import environment
from hypothesis import example, given, settings
from hypothesis import strategies as st

from etlcli.core import access, expressions
from etlcli.core.batch import Batch
from etlcli.core.expressions import MAX_SOURCE, Expression
from etlcli.core.fields import MISSING, NULLS, Path
from etlcli.core.projection import Projection

LINES = [
    b'{"a":1,"b":"x","c":[1,"y",{"z":2}],"o":{"__class__":1}}',
    b'{"a":null,"b":2.5,"c":{},"o":null}',
    b'{"a":1e400,"b":true,"c":"\\u0000","o":[]}',
    b"{}",
]

ESCAPES = [
    "().__class__.__base__.__subclasses__()", "a.__class__.__mro__[1]", '"".join', '"{0.__class__}".format(a)', "a.__init__.__globals__",
    "__import__('os').system('touch broken')", "open('/etc/passwd')", "eval('1')", "exec('1')", "compile('1', '', 'eval')",
    "getattr(a, '__class__')", "globals()", "locals()", "vars()", "dir()", "type(a)", "object()", "breakpoint()", "print(a)", "zip(a)",
    "range(9)", "k0", "c0(1)", "f0()", "n()", "(lambda: 1)()", "lambda: 1", "[x for x in c]", "{x for x in c}", "{x: 1 for x in c}",
    "(x for x in c)", "any(x for x in c)", "(a := 1)", "f'{a}'", "f'{a.__class__}'", "f'{__import__(\"os\")}'", "rf'{a}'", "[*c]", "len(*c)", "len(**o)",
    "min(*c, 1)", "print(a, file=b)", "b'x'", "1j", "...", "Ellipsis", "a if b", "await a", "yield", "yield from a", "a; b", "import os",
    "a = 1", "del a", "assert a", "raise a", "{**o}", "{'a': 1}", "{1, 2}", "(1,)", "()", "a[:]", "a[::2]", "a[1, 2]", "a[(1)]()", "a ** b",
    "9 ** 9 ** 9 ** 9", "1 << 99999999", "a @ b", "~a", "a | b", "a.b()", "len.__self__", "len.a()",
    "coalesce.__globals__", "now().__class__()", "field('a').__class__()", "field(field('a'))", "field(f'{a}')", "field(*c)", "exists.x(a)",
    "matches(a, f'{b}')", "matches(a, b)", "date(a, b)", "hash.__call__(a)", "len(len)(a)", "len(a)(b)", "[len][0](a)", "(len if a else lower)(b)",
    "a is b", "a is not None", "not", "not not", "a and", "# only a comment", "a #\n)", "a\x00b", "\x00", "\ufeffa", "a\u2028b", "a\r\nb", "\ud800", "'\ud800'",
    "'\\ud800'", "u'a' 'b' f'{c}'", "'" * 3, '"' * 7, "\\", "a\\\nb", "$a", "a?b", "a!", "`a`", "a <> b", "𝔩𝔢𝔫(a)", "𝐞𝐯𝐚𝐥('1')",
    "__debug__ = 1", "T1 := 1", "t1 := 1", "a) for a in (b", "a)(b", "a); (b", "a) and exists(b", "1)\n(2", "a,", "*a", "**a", "print", "@a", "a: int", "-> a",
]  # fmt: skip

HEAVY = [
    "'x' * 999999999", "c * 999999999",
    "(" * 200 + "a" + ")" * 200, "(" * 5000, "[" * 5000, "-" * 5000 + "1", "-" * 60_000 + "1", "not " * 10_000 + "a", "a" + " + a" * 10_000,
    "a" + ".a" * 10_000, "a" + "[0]" * 10_000, "a" + " and a" * 10_000, "a" + " < a" * 10_000, "a" + " if a else a" * 5000, "len(" * 2000 + "a" + ")" * 2000,
    "coalesce(a," * 90 + "a" + ")" * 90, "'" + "x" * 60_000 + "'", "9" * 60_000, "0x" + "f" * 60_000, "0b" + "1" * 60_000, "1e" + "9" * 60_000,
    "1." + "3" * 60_000, "1_" * 20_000 + "1", "'x' + " * 3000 + "'x'", "b + " * 3000 + "b", "c in [" + "1," * 30_000 + "]", "matches(b, '" + "(" * 30_000 + "')",
    "matches(b, '" + "(a*)*" * 1000 + "')", "matches(b, 'a{1,99999999999}')", "date(b, '" + "%Y" * 20_000 + "')", "round(a, 999999999)", "round(a, -999999999)",
    " " * 65_000, "\n" * 65_000, "a" * 65_000, "é" * 65_000, "a\n" * 30_000, "#" * 65_000, "'''" + "\n" * 60_000, "\t" * 60_000 + "a", "a" * (MAX_SOURCE + 1),
    "999999999 * " * 90 + "1", "9e300 * " * 90 + "1", "a // 1e-320", "int('" + "9" * 60_000 + "')", "float('" + "9" * 60_000 + "')", "split(b, '')",
]  # fmt: skip


def attempt(text: str) -> Expression | None:
    """Compiles and runs it over odd records; only a ValueError may come of that, and only values that are JSON's."""
    try:
        expression = Expression(text)
    except ValueError as error:
        assert str(error)
        return None
    batch = Batch.of_lines(LINES)
    columns = batch.columns(expression.paths)
    for values, errors in (expression.values(len(LINES), columns), expression.select(len(LINES), columns)):
        assert all(type(value) in expressions.ANY for value in values)
        assert all(len(error["message"]) < 500 for error in errors.values())
    return expression


@pytest.mark.parametrize("text", ESCAPES, ids=range(len(ESCAPES)))
def test_no_way_out(text: str) -> None:
    expression = attempt(text)
    if expression is not None:
        # It says no more than a path: dunder names are keys like any other.
        assert all(isinstance(node, ast.Name | ast.Attribute | ast.Subscript | ast.Constant | ast.expr_context | ast.Expression)
                   for node in ast.walk(ast.parse(text.strip(), mode="eval"))), text  # fmt: skip


def test_heavy_texts_cost_little() -> None:
    """All of them, in one process that has little memory and little time: it must end by itself, and well."""
    code = "\n".join([
        "import resource, sys",
        "resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))",
        "resource.setrlimit(resource.RLIMIT_CPU, (60, 60))",
        "sys.path.insert(0, sys.argv[1])",
        "from unit.test_expressions_hostile import HEAVY, attempt",
        "for text in HEAVY: attempt(text)",
        "print('done', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)",
    ])  # fmt: skip
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    done = subprocess.run([sys.executable, "-c", code, tests], capture_output=True, text=True, env=environment())
    assert done.stdout.startswith("done"), done.stderr[-2000:]


def test_a_dunder_name_is_a_key() -> None:
    expression = Expression("o.__class__")
    assert expression.values(4, Batch.of_lines(LINES).columns(expression.paths)) == ([1, None, None, None], {})


WORDS = ["a", "b", "c", "o", "a.b", "len", "(", ")", "[", "]", "{", "}", ",", ":", ":=", "=", "==", "<", ">", "!=", "+", "-", "*", "**", "/", "//", "%", "<<",
         "|", "&", "~", "@", ".", "...", "and", "or", "not", "in", "is", "if", "else", "for", "lambda", "await", "yield", "None", "true", "1", "2.5", "1e308",
         "'x'", "f'{a}'", "b'x'", "1j", "__class__", "__import__", "eval", "exists", "coalesce", "now", "field", "'/a/b'", "matches", "date", "hash", "\n", "#", "\\", ";",
         "\0", "é", "ﬁ", "*a", "**o", "import", "str", "int", "min", "0", "10000000000000000000000000"]  # fmt: skip
shuffled = st.integers(0, 2**32).map(lambda seed: " ".join(random.Random(seed).choices(WORDS, k=1 + seed % 12)))


@settings(max_examples=150, deadline=None)
@given(
    text=shuffled
    | st.text(max_size=30)
    | st.sampled_from(ESCAPES).flatmap(lambda e: st.permutations(e[:20]).map("".join))
)
@example("a in [1e308, 10000000000000000000000000]")
def test_nothing_but_a_value_error(text: str) -> None:
    attempt(text)


def names_in(seen: list[CodeType]) -> set[str]:
    """All names that the code looks up."""
    names: set[str] = set()
    while seen:
        code = seen.pop()
        names |= set(code.co_names)
        seen += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return names


@pytest.mark.parametrize("quoted", [[], [('"',), ("\\",)]])
def test_code_that_takes_fields_has_no_names_of_theirs(quoted: list[Path]) -> None:
    """Neither where the decoder has them as attributes, nor where it cannot."""
    paths: tuple[Path, ...] = (("__class__",), ("f0; import os",), ("__import__('os')", "x"), ("row",), ("",), *quoted)
    seen: list[CodeType] = []
    real = access.function

    def watching(tree: ast.expr, names: dict[str, Any]) -> Any:
        seen.append(compile(ast.fix_missing_locations(ast.Expression(tree)), "", "eval"))
        return real(tree, names)

    project = Projection(paths)
    _, rows = project.decoded(b'{"__class__":1,"row":2,"":3,"\\"":4,"__import__(\'os\')":{"x":5}}\n' * 2)
    with mock.patch.object(access, "function", watching):
        found = [project.access.values(path)(rows)[0] for path in paths]
        assert found[:5] == [1, MISSING, 5, 2, 3] and found[5:6] in ([], [4])
        assert [len(project.access.present(path, NULLS)(rows)) for path in paths[:2]] == [2, 0]
        assert project.access.dealer(paths[2:4])(rows) == [rows]
    assert seen
    allowed = {"walk", "append", "missing"}
    assert not {name for name in names_in(seen) - allowed if not re.fullmatch(r"(f|path)\d+", name)}


def test_what_is_compiled_is_ours() -> None:
    """The names in the code of an expression are its parameters, what this package defines, and no attribute but those that
    are written down here."""
    seen: list[CodeType] = []
    real = expressions.function

    def watching(tree: ast.expr, names: dict[str, Any]) -> Any:
        seen.append(compile(ast.fix_missing_locations(ast.Expression(tree)), "", "eval"))
        function = real(tree, names)
        assert function.__globals__["__builtins__"] == {}
        return function

    texts = ["lower(b) == 'x' and a in [1] or not exists(o.__globals__)", "startswith(b, 'x') if a < 1 < a + 1 else contains(b, b)",
             "len(strip(upper(b))) + -a // 2", "endswith(b, b) and coalesce(c, a, 1) == 1"]  # fmt: skip
    with mock.patch.object(expressions, "function", watching):
        for lines in (LINES, [b'{"a":1,"b":"x"}']):
            for text in texts:
                expression = Expression(text)
                columns = Batch.of_lines(lines).columns(expression.paths)
                expression.values(len(lines), columns)
    names = names_in(seen)
    allowed = {"lower", "upper", "strip", "startswith", "endswith", "zip", "range"}
    assert not {name for name in names - allowed if not (name[0] == "k" and name[1:].isdigit())}


def test_memory_stays_small_over_big_values() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = b'{"b":"%s","a":%s}' % (b"x" * 900_000, b"9" * 4200)
    for text in (
        "b + b",
        "a * a * a * a",
        "upper(b) + lower(b)",
        "str(a) + b",
        "b in ['x']",
        "b > 1",
        "[1] if b else 2",
        "a / 3",
        "hash(b, a)",
    ):
        expression = Expression(text)
        expression.values(1, Batch.of_lines([line]).columns(expression.paths))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10
