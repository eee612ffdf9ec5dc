"""What expressions mean, and what cannot be said in them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from decimal import Decimal
from typing import Any

import pytest

from etlcli.core.batch import Batch
from etlcli.core.expressions import MAX_DEPTH, MAX_NODES, MAX_SOURCE, Expression, check_condition
from etlcli.core.functions import FUNCTIONS
from etlcli.stages.filter import Filter

RECORD = (
    '{"n": 5, "f": 2.5, "big": 123456789012345678901234567890, "huge": 1e400, "long": 0.30000000000000004, "zero": 0, "yes": true,'
    ' "no": false, "nil": null, "s": "JFK", "e": "", "l": [1, "x", null, true], "o": {"p": {"q": 7}, "x.y": 8}, "odd name": 9,'
    ' "a/b": 10, "t": "2013-01-31T23:59:58.5Z", "day": "2012-12-31", "date": "later", "from": "here", "café": 11}'
)


def record(value: Any) -> str:
    return '{"a":' + str(value) + "}"


def run(text: str, *lines: str, now: float = 0.0) -> tuple[list[Any], dict[int, dict[str, Any]]]:
    expression = Expression(text, now=now)
    batch = Batch.of_lines([line.encode() for line in lines or (RECORD,)])
    return expression.values(batch.count, batch.columns(expression.paths))


def value(text: str, *, now: float = 0.0) -> Any:
    (found,), errors = run(text, now=now)
    assert not errors, errors
    return found


def error(text: str, *lines: str) -> dict[str, Any]:
    _, errors = run(text, *lines)
    return errors[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # literals
        ("1", 1), ("-2.5", -2.5), ('"a"', "a"), (r'"\d"', "\\d"), (r'r"\b"', "\\b"), ("true", True), ("True", True),
        ("null", None), ("None", None), ('[1, -1, "a", null]', [1, -1, "a", None]), ("0x10", 16), ("1_000", 1000),
        ("12345678901234567890123", 12345678901234567890123), ("1.5 # the rest of the line", 1.5), ("(\n1\n+ 1)", 2), ("1 +\n 1", 2),
        # fields
        ("n", 5), ("missing", None), ("nil", None), ("o.p.q", 7), ('o["p"].q', 7), ('o["x.y"]', 8), ("o.p.q.r", None),
        ("missing.at.all", None), ("l[0]", 1), ("l[3]", True), ("l[9]", None), ("l[-1]", True), ("l[-9]", None), ("l[2]", None),
        ('field("odd name")', 9), ('field("/a~1b")', 10), ('field("o.p.q")', 7), ('field("/o/x.y")', 8), ('field("from")', "here"),
        ('field("o").p.q', 7), ("date", "later"), ("café", 11), ('split(s, "F")[1]', "K"), ('split(s, "F")[-2]', "J"),
        # a name is looked up, whatever it means to Python
        ("n.__class__", None), ("__builtins__", None), ("s.upper", None), ("l.append", None), ("o.keys", None),
        # comparing
        ("n > 4", True), ("n > 5", False), ("n >= 5.0", True), ("n == 5.0", True), ("f < n", True), ("s == 'JFK'", True),
        ("s < 'JFL'", True), ("'Z' < 'a'", True), ("'\uffff' < '🙂'", True), ("1 < n < 6", True), ("1 < n < 5", False),
        ("6 < n < missing", False), ("1 < n < missing", None), ("missing < n < 1", False), ("1 < n + 1 < 6", False),
        ("big == 123456789012345678901234567890", True), ("big + 1 == big", False), ("big > 1e29", True), ("huge > big", True),
        ("huge > 1e308", True), ("9007199254740993 == 9007199254740992.0", False), ("long == 0.30000000000000004", True),
        ("yes == true", True), ("no < yes", True), ("missing == null", None), ("nil == null", None), ("nil != null", None),
        ("n == null", None), ("n != 5", False), ("nil != 5", None),
        # membership
        ("n in [1, 5]", True), ("n in [1, 5.0]", True), ("n not in [1, 5]", False), ('n in [1, "5"]', False), ("n in []", False),
        ("nil in [1]", None), ("nil not in [1]", None), ("n in [1, null]", None), ("n in [5, null]", True), ("n not in [1, null]", None),
        ("yes in [true]", True), ("no in [true, 1]", False), ("huge in [1, 2]", False), ('"x" in l', True), ("1 in l", True),
        ("true in l", True), ("2 in l", None), ('"FK" in s', True), ('"p" in o', True), ('"q" in o', False), ("n in missing", None),
        # three values
        ("missing > 1 and n > 9", False), ("missing > 1 and n > 1", None), ("missing > 1 or n > 1", True), ("missing > 1 or n > 9", None),
        ("n > 9 or missing > 1", None), ("not missing > 1", None), ("not n > 9", True), ("not (missing > 1 and n > 9)", True),
        ("not (missing > 1 or n > 1)", False), ("nil and false", False), ("nil or true", True), ("yes and nil", None),
        ("1 if missing > 1 else 2", 2), ("1 if not missing > 1 else 2", 2), ("1 if yes else 2", 1), ("s if no else n", 5),
        ("no and 1 / 0 > 1", False), ("yes or 1 / 0 > 1", True), ("1 if yes else 1 / 0", 1), ("coalesce(1, 1 / 0)", 1),
        # arithmetic
        ("n + 2", 7), ("n - 7", -2), ("n * f", 12.5), ("n / 2", 2.5), ("4 / 2", 2.0), ("n // 2", 2), ("-n // 2", -3), ("-n % 3", 1),
        ("f % 2", 0.5), ("-n", -5), ("- -n", 5), ("-big", -123456789012345678901234567890), ("missing + 1", None), ("-nil", None),
        ("nil + 'a'", None), ("s + '-' + e", "JFK-"), ("2 + 3 * 4", 14), ("(2 + 3) * 4", 20), ("big * big", 123456789012345678901234567890**2),
        ("-huge < 0", True), ("0.1 + 0.2 > 0.3", True), ("long + 0", 0.30000000000000004), ("1e308 + 1", 1e308), ("huge < 1e999", True),
        # functions
        ("len(s)", 3), ("len(l)", 4), ("len(o)", 2), ("len(nil)", None), ("len('é🙂')", 2), ("lower(s)", "jfk"), ("upper('ß')", "SS"),
        ("strip('  a ')", "a"), ("split('a,b', ',')", ["a", "b"]), ("abs(-n)", 5), ("abs(nil)", None), ("round(f)", 2), ("round(3.5)", 4),
        ("round(2.345, 1)", 2.3), ("round(n)", 5), ("round(1234, -2)", 1200), ("min(n, f)", 2.5), ("max(n, f, 9)", 9), ("min(n, nil)", None),
        ("min('b', 'a')", "a"), ("max(big, huge) > big", True), ("int(2.9)", 2), ("int(-2.9)", -2), ("int('-12')", -12), ("int(yes)", 1),
        ("int(nil)", None), ("float('1.5')", 1.5), ("float(n)", 5.0), ("str(n)", "5"), ("str(f)", "2.5"), ("str(yes)", "true"),
        ("str(s)", "JFK"), ("str(o)", '{"p":{"q":7},"x.y":8}'), ("str(nil)", None), ("str(1.0)", "1.0"), ("matches(s, '^J.K$')", True),
        ("matches(s, 'F')", True), ("matches(s, '^F')", False), ("matches(nil, 'F')", None), ("startswith(s, 'J')", True),
        ("endswith(s, 'J')", False), ("contains(s, 'FK')", True), ("contains(l, 'x')", True), ("contains(l, 'y')", None),
        ("contains(o, 'p')", True), ("exists(n)", True), ("exists(nil)", False), ("exists(missing)", False), ("exists(no)", True),
        ("exists(o.p)", True), ("coalesce(nil, missing, n)", 5), ("coalesce(no, true)", False), ("coalesce(nil)", None),
        ("hash(1) == hash(1.0)", True), ("hash(1) == hash('1')", False), ("hash('a', 'b') == hash('ab', '')", False),
        ("hash(null) == hash(missing)", True), ("len(hash(o))", 32),
        # times
        ("date('1970-01-02')", 86400), ("date('1970-01-01T00:00:01.25Z')", 1.25), ("date('1970-01-01T01:00+01:00')", 0),
        ("date('1970-01-01 00:00:01')", 1), ("date('1970-01-01T00:00:00-0130')", 5400), ("date('1969-12-31T23:59:59Z')", -1),
        ("date('31.01.2013', '%d.%m.%Y') == date('2013-01-31')", True), ("date('2013-01-31 +0200', '%Y-%m-%d %z')", 1359583200),
        ("date(nil)", None), ("year(t)", 2013), ("month(t)", 1), ("day(t)", 31), ("hour(t)", 23), ("minute(t)", 59), ("second(t)", 58),
        ("weekday(t)", 4), ("weekday('2013-02-03')", 7), ("year(0)", 1970), ("year(-0.5)", 1969), ("year(nil)", None),
        ("hour('2013-01-31T23:00:00-02:00')", 1), ("iso(0)", "1970-01-01T00:00:00Z"), ("iso(date(t))", "2013-01-31T23:59:58.500000Z"),
        ("iso(date(day) + 86400)", "2013-01-01T00:00:00Z"), ("date('0001-01-01')", -62135596800), ("year('9999-12-31')", 9999),
    ],
)  # fmt: skip
def test_values(text: str, expected: Any) -> None:
    found = value(text)
    assert found == expected and (type(found) is type(expected) or isinstance(found, Decimal)), found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n > 'a'", 'n > \'a\': cannot compare number 5 with string "a"'),
        ("s == 5", 's == 5: cannot compare string "JFK" with number 5'),
        ("yes == 1", "yes == 1: cannot compare boolean true with number 1"),
        ("yes < 2", "cannot compare boolean true with number 2"),
        ("l == l", "l == l: lists are not compared"),
        ("o == o", "objects are not compared"),
        ("s in [1, 2]", 'cannot look for string "JFK" among numbers'),
        ("yes in [1, 'a']", "cannot look for boolean true among numbers and strings"),
        ("l in [1]", "cannot look for list among numbers"), ("l in []", "cannot look for list among nothing"),
        ("1 in n", "cannot look for number 1 in number 5"), ("1 in s", "cannot look for number 1 in string"),
        ("n and yes", "n: number 5 is neither true nor false"), ("not s", 's: string "JFK" is neither true nor false'),
        ("1 if s else 2", 's: string "JFK" is neither true nor false'), ("yes or n and n", None),
        ("n + s", 'n + s: + does not take number 5 and string "JFK"'), ("yes + 1", "+ does not take boolean true and number 1"),
        ("s * 3", '* does not take string "JFK" and number 3'), ("l + l", "+ does not take list and list"), ("-s", "- takes a number"),
        ("n / zero", "n / zero: division by zero"), ("n // zero", "division by zero"), ("n % 0.0", "division by zero"),
        ("huge + 1", "number 1E+400 is out of the range of doubles"), ("1e308 * 10", "the result is no number of at most 4000 digits"),
        ("big / 1e-300", "no number"), ("1e300 * 1e300 - 1e300 * 1e300", "no number"),
        ("len(n)", "len takes a string, a list or an object, not number 5"), ("lower(n)", "lower takes strings, not number 5"),
        ("split(s, e)", "split needs a separator that is not empty"), ("abs(yes)", "abs takes a number, not boolean true"),
        ("round(s)", "round takes a number"), ("min(n, s)", "min does not take number 5 and string"), ("max(o, o)", "max takes numbers or strings, not object"),
        ("int('1.5')", 'string "1.5" does not spell a whole number'), ("int('')", "does not spell"), ("int('٣')", "does not spell"),
        ("int(' 1')", "does not spell"), ("int(l)", "int takes a number"), ("float('nan')", "does not spell a number"),
        ("float('1e999')", "out of the range"), ("float('true')", "does not spell a number"), ("matches(n, 'a')", "matches takes strings"),
        ("startswith(s, n)", "startswith takes strings"), ("contains(n, 1)", "cannot look for number 1 in number 5"),
        ("date(s)", 'string "JFK" is not a date such as 2013-01-31'), ("date('2013-02-30')", "is not a date there is"),
        ("date('2013-01-01T24:00:00Z')", "is not a date such as"), ("date('20130101')", "is not a date such as"),
        ("date('x', '%Y')", "is not a date of the form '%Y'"), ("date(n)", "date takes strings"), ("year(1e18)", "is no time in the years 1 to 9999"),
        ("year(huge)", "out of the range of doubles"), ("year(yes)", "takes a number"), ("s[-1]", "has no [-1]"), ("split(s, 'F')['a']", 'list has no ["a"]'),
    ],
)  # fmt: skip
def test_what_a_record_is_refused_for(text: str, message: str | None) -> None:
    if message is None:  # `and` is not reached
        assert value(text) is True
    else:
        assert message in error(text)["message"]


def test_an_error_names_the_field_and_its_value() -> None:
    assert error("o.p.q > 'a'") == {
        "pointer": "/o/p/q",
        "message": "o.p.q > 'a': cannot compare number 7 with string \"a\"",
        "value": "7",
    }


def test_an_error_shows_a_long_value_cut() -> None:
    found = error("a > 1", '{"a":"%s"}' % ("x" * 100_000))
    assert len(found["message"]) < 200 and len(found["value"]) <= 80


def test_an_error_of_one_record_stops_no_other() -> None:
    values, errors = run("10 / a", '{"a":2}', '{"a":0}', '{"a":"x"}', "{}", '{"a":5}')
    assert values == [5.0, None, None, None, 2.0]
    assert sorted(errors) == [1, 2]


def test_errors_are_found_behind_an_unknown_operand() -> None:
    """Whether a record is refused does not depend on what the others' types let the compiler leave out."""
    assert "division by zero" in error("a > 1 and 1 / b > 1", '{"a":null,"b":0}')["message"]
    assert "division by zero" in error("a + 1 / b", '{"a":null,"b":0}')["message"]


def test_integers_are_bounded() -> None:
    text = "*".join(["a"] * 10)
    values, errors = run(text, '{"a":%s}' % ("9" * 399), '{"a":%s}' % ("9" * 401))
    assert values[0] == int("9" * 399) ** 10 and "4000 digits" in errors[1]["message"]


def test_strings_are_bounded() -> None:
    values, errors = run("a + a + a", '{"a":"%s"}' % ("x" * 1000), '{"a":"%s"}' % ("x" * 500_000))
    assert values[0] == "x" * 3000 and "longer than" in errors[1]["message"]


def test_numbers_beyond_python_are_numbers() -> None:
    digits = "9" * 5000
    values, errors = run("[0] if a > 1 else [1]", record(digits), record("-" + digits), record("1e999999999999"))
    assert values == [[0], [1], [0]] and not errors
    assert "more than 4000 digits" in error("int(a)", '{"a":1e999999999999}')["message"]
    (negative,), _ = run("-a", record(digits))
    assert negative == Decimal(digits).copy_negate()


def test_now_is_what_it_is_given() -> None:
    assert value("now() - 1", now=1359676798.5) == 1359676797.5


def test_hash_is_the_same_in_every_process() -> None:
    code = (
        "from etlcli.core.expressions import Expression; print(Expression('hash(\"a\", 1, null)').values(1, [])[0][0])"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True
        ).stdout
        for seed in ("1", "2")
    }
    assert printed == {value('hash("a", 1, null)') + "\n"}


def test_paths_are_those_it_reads() -> None:
    assert Expression('a.b > a["c d"] and l[0] == field("/x/y.z") or a.b < 1').paths == (
        ("a", "b"), ("a", "c d"), ("l", "0"), ("x", "y.z")
    )  # fmt: skip
    assert Expression("true").paths == ()


def test_select_without_fields_takes_all_or_none() -> None:
    assert Expression("true").select(3, []) == ([0, 1, 2], {})
    assert Expression("null").select(3, []) == ([], {})
    assert Expression("1 == 1").select(0, []) == ([], {})


@pytest.mark.parametrize("text", ["1", "a + 1", "len(a)", '"x"', "lower(a) if b else 1", "[true]"])
def test_a_condition_can_be_true_or_false(text: str) -> None:
    with pytest.raises(ValueError, match="never true or false"):
        check_condition(text)


@pytest.mark.parametrize("text", ["a", "a > 1", "true", "null or a", "coalesce(a, false)", "l[0]", "a.b if c else d"])
def test_what_can_be_a_condition(text: str) -> None:
    check_condition(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"), ("  \n ", "is empty"), ("a >", "column 4: invalid syntax"), ("a = 1", "column 1: invalid syntax"),
        ("a\n and ^", "line 2, column 6: invalid syntax"), ("a and (b", "a parenthesis is not closed"), ("lenn(a)", "column 1: there is no function 'lenn'; did you mean 'len'?"), ("a and foo(b)", "column 7: there is no function"),
        ("a.lower()", "write lower(...)"), ("len()", "len takes 1 argument, not 0"), ("len(a, b)", "len takes 1 argument, not 2"),
        ("round(a, 1, 2)", "round takes 1 or 2 arguments, not 3"), ("len(a=b)", "arguments have no names"), ("min(a)", "2 to 20 arguments"),
        ("matches(a, b)", "second argument of matches must be a literal"), ("matches(a, '(')", "not a regular expression"), ("matches(a, 1)", "the pattern is a string"),
        ("date(a, 1)", "the form is a string"), ("date(a, '%Y %Y')", "names a part twice"), ("date(a, '%!')", "bad directive"), ("date(a, '%')", "stray %"), ("round(a, 1.5)", "whole number"), ("field(a)", "field takes one string"), ("field('a..b')", "not a field path"),
        ("a is null", "`is` is not part of the language"), ("a ** 2", "** is not part"), ("a << 2", "<< is not part"), ("a | b", "| is not part"),
        ("a & b", "& is not part"), ("a ^ b", "^ is not part"), ("~a", "~ is not part"), ("+a", "plus"), ("a @ b", "@ is not part"), ("a in (1, 2)", "(a, b) is not part"),
        ("(1, 2)", "(a, b) is not part"), ("{}", "an object is not part"), ("{1}", "a set is not part"), ("[a]", "expected a literal"), ("a in [b]", "expected a literal"),
        ("[[1]]", "expected a literal"), ("1 < a in [1]", "can be chained"), ("b'x'", "only numbers, strings"), ("1j", "only numbers, strings"), ("...", "only numbers, strings"),
        ("1e5000", "too large"), ("-1e5000", "too large"), ("9" * 4001, "too large"), ("0x" + "f" * 4000, "too large"), ("-'a'", "expected a number after the minus"), ("ﬁ > 1", "written with other letters"), ("a.ﬁ", "written with other letters"),
        ("'\\ud800'", "half of a surrogate pair"), ("a[b]", "expected a literal"), ("a[1:2]", "expected a literal"), ("a[1.5]", "expected a name as a string"),
        ("len(a).b", "only a field has fields of its own"), ("a) or (b", "parentheses that do not match"), ("a, b", "no single value"), ("1 2", "invalid syntax"),
        ("class > 1", "invalid syntax"), ("now(1)", "now takes 0 arguments"), ("coalesce()", "1 to 20 arguments"), ("x" * (MAX_SOURCE + 1), "longer than"),
        ("-" * (MAX_DEPTH + 1) + "a", "nested deeper"), ("a and " * MAX_NODES + "a", "more than"),
        ("a in [" + "1," * MAX_NODES + "]", "more than"), ("a" + ".a" * 200, "nested deeper"),
    ],
)  # fmt: skip
def test_what_cannot_be_said(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Expression(text)
    assert message in str(caught.value)


def test_long_conditions_of_many_terms_are_fine() -> None:
    values, errors = run(" or ".join(f"a == {number}" for number in range(800)), '{"a":799}', '{"a":null}')
    assert values == [True, None] and not errors


def test_a_record_is_the_same_however_columns_mix() -> None:
    lines = [
        '{"a":1,"b":2}',
        '{"a":1.5,"b":null}',
        '{"a":"x","b":"y"}',
        "{}",
        '{"a":true,"b":false}',
        '{"a":%s,"b":1}' % ("9" * 30),
    ]
    for text in ("a < b", "a + b", "not a < b", "a == b or b == b", "a in [1, 'x']", "coalesce(a, b) == a"):
        together = run(text, *lines)
        alone = [run(text, line) for line in lines]
        assert together[0] == [values[0] for values, _ in alone]
        assert together[1] == {index: errors[0] for index, (_, errors) in enumerate(alone) if errors}


def test_the_record_of_these_tests_is_json() -> None:
    json.loads(RECORD)


def test_the_help_names_every_function() -> None:
    words = set(re.findall(r"\w+", Filter.help))
    assert set(FUNCTIONS) | {"exists", "coalesce", "now", "field"} <= words
