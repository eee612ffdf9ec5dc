"""Expressions over a record's fields, spelled as in Python: `dep_delay > 60 and origin in ["JFK", "LGA"]`.

    literals     1  -2.5  "text"  r"raw"  true  false  null, and lists of them
    fields       dep_delay  a.b.c  tags[0]  a["odd name"]  field("odd.name"), or as a JSON Pointer field("/a.b/c")
    comparing    == != < <= > >=, also chained, in, not in
    logic        and, or, not, x if condition else y
    arithmetic   + - * / // %, and + to join strings
    functions    len lower upper strip split startswith endswith contains matches abs round min max int float str hash
                 exists coalesce now date iso year month day hour minute second weekday

A missing field is null. What compares null is *unknown*, and logic has three values as in SQL: a condition holds when it is
true, neither when false nor when unknown. `exists(f)` is true for what is there and not null, `coalesce(a, b)` is the first
that is not null. `and` and `or` stop at the first operand that decides. What an operation does to values is in
`functions`; it may refuse them, which is an error of that one record.

The text is parsed by `ast`, every node is checked against what is listed here, and a new tree is built from what was
understood: fields become parameters, literals constants, operations calls of `functions`. Where the types in the columns of
a batch say that an operation cannot fail to be Python's own, that stands in the tree instead of the call. So there is one
code object for each combination of types; when it raises, the records are gone through one by one by another, which
only calls and knows which operation it was. No name in the tree is anything but a parameter or ours, there are no builtins,
and no attribute but the few in `functions` that strings have.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from typing import Any, NamedTuple, NoReturn

from etlcli.core import functions
from etlcli.core.code import filled, function
from etlcli.core.edit import encode
from etlcli.core.fields import MISSING, Path, exact_number, kinds_of, parse_path, pointer
from etlcli.core.functions import ANY, BOOL, COMPARISONS, FUNCTIONS, INT_BOUND, NULL, PLAIN, TEXT, Operation, Types
from etlcli.errors import nearest

Errors = dict[int, dict[str, Any]]
"""What is wrong with some records, by index: `pointer`, `message` and `value`."""

MAX_SOURCE = 64 << 10
MAX_NODES = 4000
MAX_DEPTH = 100
_TOO_DEEP = f"the expression is nested deeper than {MAX_DEPTH} levels"
_MAX_VARIANTS = 64
_MAX_SHOWN = 80
_CONSTANTS = {"null": None, "true": True, "false": False}
_OWN = ("exists", "coalesce", "now", "field")
_INLINE = {"Eq": ast.Eq, "NotEq": ast.NotEq, "Lt": ast.Lt, "LtE": ast.LtE, "Gt": ast.Gt, "GtE": ast.GtE}
_FAILURES = (functions.Refused, ArithmeticError, ValueError)
_SIGNS = {"Pow": "**", "LShift": "<<", "RShift": ">>", "BitOr": "|", "BitAnd": "&", "BitXor": "^", "MatMult": "@",
          "Invert": "~", "UAdd": "a sign of plus"}  # fmt: skip
_WHAT = {"Tuple": "(a, b)", "Dict": "an object", "Set": "a set", "Lambda": "lambda", "NamedExpr": ":=",
         "JoinedStr": 'f"..."', "Starred": "*", "ListComp": "for", "GeneratorExp": "for", "SetComp": "for",
         "DictComp": "for", "Await": "await", "Yield": "yield", "YieldFrom": "yield", "Slice": ":"}  # fmt: skip


class Expression:
    """A checked expression. Columns are lists of values, one for each of `paths`, MISSING where a record has none."""

    def __init__(self, text: str, *, now: float = 0.0) -> None:
        """`now` is what `now()` gives. Raises ValueError saying where in the text something is wrong, and what."""
        self.text = text
        tree = _parse(text)
        self._reading = _Reading(text, now)
        self._root = self._reading.node(tree)
        self.paths: tuple[Path, ...] = tuple(self._reading.fields)
        self._variants: dict[tuple[str, tuple[Types, ...]], Callable[..., Any]] = {}
        try:
            self._variant("value", ())
        except (RecursionError, MemoryError):
            raise ValueError(_TOO_DEEP) from None

    @property
    def may_be_condition(self) -> bool:
        """Whether its value can be true or false at all."""
        return bool(self._root.emit(_Emitter({}, located=True)).types & BOOL)

    @property
    def field(self) -> Path | None:
        """The path, of an expression that is nothing but a field."""
        return self._root.path if isinstance(self._root, _Field) else None

    def parts(self) -> list[Expression]:
        """What the `and` or `or` that it is joins, each asked for the same columns as the whole; nothing of any other."""
        return list(map(self._part, self._root.operands)) if isinstance(self._root, _Logic) else []

    def _part(self, node: _Node) -> Expression:
        part = copy(self)
        part.text, part._root, part._variants = self._reading.text_of(node.source), node, {}
        return part

    def values(self, count: int, columns: Sequence[list[Any]]) -> tuple[list[Any], Errors]:
        """The value for each of `count` records, None where there is an error."""
        return self._run("values", count, columns)

    def select(self, count: int, columns: Sequence[list[Any]]) -> tuple[list[int], Errors]:
        """The indices of the records for which it is true. A value that is not true, false or null is an error."""
        return self._run("select", count, columns)

    def _run(self, mode: str, count: int, columns: Sequence[list[Any]]) -> tuple[Any, Errors]:
        kinds = [kinds_of(column) for column in columns]
        columns = [
            [None if value is MISSING else value for value in column] if type(MISSING) in kind else column
            for column, kind in zip(columns, kinds, strict=True)
        ]
        types = tuple((kind - {type(MISSING)} | NULL) if type(MISSING) in kind else kind for kind in kinds)
        try:
            return self._variant(mode, types)(count, *columns), {}
        except _FAILURES:
            return self._carefully(mode, count, columns)

    def _carefully(self, mode: str, count: int, columns: Sequence[list[Any]]) -> tuple[list[Any], Errors]:
        """Record by record, so that one that cannot be computed stops no other."""
        compute = self._variant("condition" if mode == "select" else "value", ())
        found: list[Any] = []
        errors: Errors = {}
        for index, row in enumerate(zip(*columns, strict=True) if columns else [()] * count):
            try:
                found.append(compute(*row))
            except _Located as error:
                found.append(None)
                errors[index] = error.described(self._reading.text_of)
        return ([index for index, value in enumerate(found) if value is True] if mode == "select" else found), errors

    def _variant(self, mode: str, types: tuple[Types, ...]) -> Callable[..., Any]:
        """The code for columns of these types."""
        if (mode, types) not in self._variants:
            if len(self._variants) >= _MAX_VARIANTS:
                self._variants.clear()
            self._variants[mode, types] = self._compiled(mode, types)
        return self._variants[mode, types]

    def _compiled(self, mode: str, types: tuple[Types, ...]) -> Callable[..., Any]:
        emitter = _Emitter(dict(zip(self.paths, types, strict=False)), located=mode in ("value", "condition"))
        code = self._root.emit(emitter)
        if mode in ("select", "condition"):
            code = emitter.condition(self._root, code)
        names = [f"f{number}" for number in range(len(self.paths))]
        emitter.globals |= {"zip": zip, "range": range}
        if mode in ("value", "condition"):
            tree = filled(f"lambda {', '.join(names)}: CODE", CODE=code.value)
        elif mode == "select":
            test = code.value if code.true is None else code.true
            tree = filled(_comprehension("i", names, "if CODE", counted=True), CODE=test)
        else:
            tree = filled(_comprehension("CODE", names, "", counted=not names), CODE=code.value)
        compiled: Callable[..., Any] = function(tree, emitter.globals)
        return compiled


def _comprehension(result: str, names: list[str], test: str, *, counted: bool) -> str:
    columns = [f"c{number}" for number in range(len(names))]
    if counted:
        names, given = ["i", *names], ["range(n)", *columns]
    else:
        given = columns
    return f"lambda {', '.join(['n', *columns])}: [{result} for {', '.join(names)}, in zip({', '.join(given)}) {test}]"


def check_condition(text: str) -> None:
    """Raises ValueError if the text is no expression, or one that is never true or false."""
    if not Expression(text).may_be_condition:
        raise ValueError("the expression is no condition: it is never true or false")


# -- Errors -----------------------------------------------------------------------------------------------------------


class _Located(Exception):
    """An operation of the expression refused a record's values."""

    def __init__(self, node: _Node, operands: Sequence[_Node], values: Sequence[Any], reason: str) -> None:
        self._node = node
        self._reason = reason
        # Whose fault it is: the first field among the operands.
        at = next((at for at, operand in enumerate(operands) if isinstance(operand, _Field)), None)
        self._field = None if at is None else (operands[at], values[at])

    def described(self, text_of: Callable[[ast.expr], str]) -> dict[str, Any]:
        shown = text_of(self._node.source)
        shown = shown if len(shown) <= _MAX_SHOWN else shown[: _MAX_SHOWN - 1] + "…"
        error = {"pointer": "", "message": f"{shown}: {self._reason}"}
        if self._field:
            node, value = self._field
            assert isinstance(node, _Field)
            excerpt = encode(value).decode()
            error["pointer"] = pointer(node.path)
            error["value"] = excerpt if len(excerpt) <= _MAX_SHOWN else excerpt[: _MAX_SHOWN - 1] + "…"
        return error


def _at(node: _Node, operands: Sequence[_Node], operation: Operation, *values: Any) -> Any:
    """Calls an operation; what it refuses is told with its place."""
    try:
        return operation(*values)
    except _FAILURES as error:
        raise _Located(node, operands, values, str(error)) from None


# -- Emitting ---------------------------------------------------------------------------------------------------------


class _Code(NamedTuple):
    """What computes a node: an expression of Python for its value."""

    value: ast.expr
    types: Types
    total: bool = True
    """It cannot raise."""
    atom: bool = False
    """A name or constant, which costs nothing to say twice."""
    true: ast.expr | None = None
    """Where something cheaper says whether the value is true (or, in `false`, false) and nothing more."""
    false: ast.expr | None = None

    @property
    def nullable(self) -> bool:
        return bool(self.types & NULL)


class _Emitter:
    """Makes the code of a tree's nodes. `types` are those in each field's column; a `located` one makes no use of them
    and wraps every operation, so that an error knows where it happened."""

    def __init__(self, types: dict[Path, Types], *, located: bool) -> None:
        self.globals: dict[str, Any] = {}
        self._types = types
        self._located = located
        self._temporaries = 0

    def types_of(self, path: Path) -> Types:
        return self._types.get(path, ANY)

    def constant(self, value: Any) -> ast.expr:
        """A value under a name of its own, or in the code itself where Python's compiler takes it."""
        if type(value) in (type(None), bool, int, float, str):
            return ast.Constant(value)
        name = f"k{len(self.globals)}"
        self.globals[name] = value
        return ast.Name(name, ast.Load())

    def temporary(self) -> str:
        self._temporaries += 1
        return f"t{self._temporaries}"

    def call(self, node: _Node, operands: Sequence[_Node], codes: Sequence[_Code], operation: Operation,
             types: Types) -> _Code:  # fmt: skip
        """The operation, called."""
        arguments = [code.value for code in codes]
        if self._located:
            arguments = [self.constant(node), self.constant(operands), self.constant(operation), *arguments]
            operation = _at
        return _Code(ast.Call(self.constant(operation), arguments, []), types, total=False)

    def guarded(
        self, codes: Sequence[_Code], direct: Callable[..., ast.expr], types: Types, *, total: bool
    ) -> _Code | None:
        """`direct` of the operands' values, or null where one of them is null. None where that cannot be said without
        changing what is evaluated: an operand that can fail must be evaluated even if the one before it is null."""
        if self._located:
            return None
        nullable = [code for code in codes if code.nullable]
        failing = [code for code in codes if not code.total]
        if not nullable:
            return _Code(direct(*(code.value for code in codes)), types, total and not failing)
        if failing and failing != [nullable[0]]:
            return None
        tests: list[ast.expr] = []
        values: list[ast.expr] = []
        for code in codes:
            if not code.nullable:
                values.append(code.value)
            elif code.atom:
                tests.append(filled("A is None", A=code.value))
                values.append(code.value)
            else:
                name = self.temporary()
                tests.append(filled(f"({name} := A) is None", A=code.value))
                values.append(ast.Name(name, ast.Load()))
        test = tests[0] if len(tests) == 1 else ast.BoolOp(ast.Or(), tests)
        result = direct(*values)
        value = filled("None if TEST else RESULT", TEST=test, RESULT=result)
        if types != BOOL:
            return _Code(value, types | NULL, total and not failing)
        true = filled("not TEST and RESULT", TEST=test, RESULT=result)
        false = filled("not TEST and not RESULT", TEST=test, RESULT=result)
        return _Code(value, types | NULL, total and not failing, true=true, false=false)

    def condition(self, node: _Node, code: _Code) -> _Code:
        """The same, refusing what is neither true, false nor null."""
        if code.types <= BOOL | NULL and not self._located:
            return code
        return self.call(node, [node], [code], functions.truth, BOOL | NULL)


# -- Nodes ------------------------------------------------------------------------------------------------------------


class _Node:
    """A part of an expression that was understood."""

    def __init__(self, source: ast.expr) -> None:
        self.source = source

    def emit(self, to: _Emitter) -> _Code:
        raise NotImplementedError


class _Literal(_Node):
    def __init__(self, source: ast.expr, value: Any) -> None:
        super().__init__(source)
        self.value = value

    def emit(self, to: _Emitter) -> _Code:
        return _Code(to.constant(self.value), frozenset({type(self.value)}), atom=True)


class _Field(_Node):
    def __init__(self, source: ast.expr, path: Path, number: int) -> None:
        super().__init__(source)
        self.path = path
        self._name = f"f{number}"

    def emit(self, to: _Emitter) -> _Code:
        return _Code(ast.Name(self._name, ast.Load()), to.types_of(self.path), atom=True)


class _Operation(_Node):
    """A call of one of `functions`: strict, so the types of what it gives are those of the operation, and null."""

    def __init__(self, source: ast.expr, operation: Operation, operands: list[_Node], types: Types) -> None:
        super().__init__(source)
        self.operation = operation
        self.operands = operands
        self.types = types

    def emit(self, to: _Emitter) -> _Code:
        codes = [operand.emit(to) for operand in self.operands]
        inlined = self.inlined(to, codes)
        if inlined is not None:
            return inlined
        types = self.types_of(codes)
        nullable = any(code.nullable for code in codes)
        return to.call(self, self.operands, codes, self.operation, types | NULL if nullable else types)

    def types_of(self, codes: list[_Code]) -> Types:
        """What it may give for operands of these types, none of them null."""
        return self.types

    def inlined(self, to: _Emitter, codes: list[_Code]) -> _Code | None:
        """Python's own way to do it, where the operands' types allow that."""
        return None


class _Comparison(_Operation):
    def __init__(self, source: ast.expr, sign: str, operands: list[_Node]) -> None:
        super().__init__(source, COMPARISONS[sign], operands, BOOL)
        self._sign = sign

    def inlined(self, to: _Emitter, codes: list[_Code]) -> _Code | None:
        types, sign = [code.types - NULL for code in codes], _INLINE[self._sign]()
        for alike in (functions.NUMBER, TEXT, BOOL):
            if all(found and found <= alike for found in types):
                return to.guarded(
                    codes, lambda a, b: ast.Compare(a, [sign], [b]), BOOL, total=True
                )  # fmt: skip
        return None


class _Membership(_Operation):
    """`x in [literals]`."""

    def __init__(self, source: ast.expr, value: _Node, members: functions.Members) -> None:
        super().__init__(source, members.has, [value], BOOL | NULL)
        self._members = members

    def inlined(self, to: _Emitter, codes: list[_Code]) -> _Code | None:
        kinds = {functions.KINDS[kind] for kind in codes[0].types - NULL}
        if self._members.has_null or len(kinds) != 1 or not kinds <= self._members.kinds:
            return None
        members = to.constant(self._members.sets[kinds.pop()])
        return to.guarded(codes, lambda value: filled("A in B", A=value, B=members), BOOL, total=True)


class _Arithmetic(_Operation):
    def __init__(self, source: ast.BinOp, operands: list[_Node]) -> None:
        self._sign = source.op
        super().__init__(source, functions.ARITHMETIC[type(source.op).__name__], operands, PLAIN)

    def types_of(self, codes: list[_Code]) -> Types:
        joins = isinstance(self._sign, ast.Add) and all(code.types & TEXT for code in codes)
        return PLAIN | TEXT if joins else PLAIN

    def inlined(self, to: _Emitter, codes: list[_Code]) -> _Code | None:
        if not all(code.types - NULL and code.types - NULL <= PLAIN for code in codes):
            return None
        whole = all(code.types - NULL <= {int} for code in codes) and not isinstance(self._sign, ast.Div)

        def direct(a: ast.expr, b: ast.expr) -> ast.expr:
            # Out of bounds, infinite or not a number: `bounded` refuses it.
            name = to.temporary()
            return filled(
                f"{name} if LOW < ({name} := RESULT) < HIGH else REFUSE({name})", RESULT=ast.BinOp(a, self._sign, b),
                LOW=to.constant(-INT_BOUND), HIGH=to.constant(INT_BOUND), REFUSE=to.constant(functions.bounded),
            )  # fmt: skip

        return to.guarded(codes, direct, frozenset({int}) if whole else PLAIN, total=False)


class _Call(_Operation):
    def __init__(self, source: ast.Call, name: str, operation: Operation, operands: list[_Node]) -> None:
        self._function = FUNCTIONS[name]
        super().__init__(source, operation, operands, self._function.types)

    def inlined(self, to: _Emitter, codes: list[_Code]) -> _Code | None:
        function = self._function
        if not function.inline or not all(code.types - NULL and code.types - NULL <= function.takes for code in codes):
            return None

        def direct(*values: ast.expr) -> ast.expr:
            return filled(function.inline, **dict(zip("AB", values, strict=False)), len=to.constant(len))

        return to.guarded(codes, direct, function.types - NULL, total=True)


class _Exists(_Node):
    def __init__(self, source: ast.expr, operand: _Node) -> None:
        super().__init__(source)
        self._operand = operand

    def emit(self, to: _Emitter) -> _Code:
        code = self._operand.emit(to)
        return _Code(filled("A is not None", A=code.value), BOOL, code.total)


class _Coalesce(_Node):
    def __init__(self, source: ast.expr, operands: list[_Node]) -> None:
        super().__init__(source)
        self._operands = operands

    def emit(self, to: _Emitter) -> _Code:
        *others, last = [operand.emit(to) for operand in self._operands]
        value, types, total = last.value, last.types, last.total
        for code in reversed(others):
            name = to.temporary()
            value = filled(f"{name} if ({name} := A) is not None else B", A=code.value, B=value)
            types = types | (code.types - NULL)
            total = total and code.total
        return _Code(value, types, total)


class _Not(_Node):
    def __init__(self, source: ast.expr, operand: _Node) -> None:
        super().__init__(source)
        self._operand = operand

    def emit(self, to: _Emitter) -> _Code:
        code = to.condition(self._operand, self._operand.emit(to))
        if not code.nullable:
            return _Code(filled("not A", A=code.value), BOOL, code.total)
        name = to.temporary()
        value = filled(f"None if ({name} := A) is None else not {name}", A=code.value)
        return _Code(value, BOOL | NULL, code.total, true=_false(code), false=_true(code))


class _Logic(_Node):
    """`and` and `or`. All operands up to the first that decides are evaluated, an unknown one decides nothing."""

    def __init__(self, source: ast.BoolOp, operands: list[_Node]) -> None:
        super().__init__(source)
        self._sign = source.op
        self.operands = operands

    def emit(self, to: _Emitter) -> _Code:
        codes = [to.condition(operand, operand.emit(to)) for operand in self.operands]
        total = all(code.total for code in codes)
        if not any(code.nullable for code in codes):
            return _Code(ast.BoolOp(self._sign, [code.value for code in codes]), BOOL, total)
        is_and = isinstance(self._sign, ast.And)
        names = [to.temporary() for _ in codes]
        tests = [
            filled(f"({name} := A) is {not is_and}", A=code.value) for name, code in zip(names, codes, strict=True)
        ]
        rest = (
            " and ".join(names) if is_and else f"None if {' or '.join(f'{name} is None' for name in names)} else False"
        )
        value = filled(f"{not is_and} if DECIDED else ({rest})", DECIDED=ast.BoolOp(ast.Or(), tests))
        if not total:  # what follows an unknown operand must be evaluated, since it may fail
            return _Code(value, BOOL | NULL, total)
        opposite = ast.Or() if is_and else ast.And()
        true = ast.BoolOp(self._sign, [_true(code) for code in codes])
        false = ast.BoolOp(opposite, [_false(code) for code in codes])
        return _Code(value, BOOL | NULL, total, true=true, false=false)


def _true(code: _Code) -> ast.expr:
    return code.value if code.true is None else code.true


def _false(code: _Code) -> ast.expr:
    return filled("A is False", A=code.value) if code.false is None else code.false


class _Choice(_Node):
    """`x if condition else y`: y also where the condition is unknown."""

    def __init__(self, source: ast.expr, test: _Node, body: _Node, orelse: _Node) -> None:
        super().__init__(source)
        self._parts = test, body, orelse

    def emit(self, to: _Emitter) -> _Code:
        test, body, orelse = (part.emit(to) for part in self._parts)
        test = to.condition(self._parts[0], test)
        value = ast.IfExp(_true(test), body.value, orelse.value)
        return _Code(value, body.types | orelse.types, test.total and body.total and orelse.total)


# -- Reading ----------------------------------------------------------------------------------------------------------


def _parse(text: str) -> ast.expr:
    """The tree of a text, its size bounded. Raises ValueError."""
    if len(text) > MAX_SOURCE:
        raise ValueError(f"the expression is longer than {MAX_SOURCE} characters")
    if not text.strip():
        raise ValueError("the expression is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes such as "\d", which stay as they are
            # In parentheses, so that it may take several lines.
            tree = ast.parse(f"({text}\n)", mode="eval").body
    except SyntaxError as error:
        if (error.lineno, error.offset) == (1, 1):  # the parenthesis put before the text
            raise ValueError("a parenthesis is not closed") from None
        raise ValueError(f"{_place(text, error.lineno or 1, error.offset or 1)}{error.msg}") from None
    except (RecursionError, MemoryError):
        raise ValueError(_TOO_DEEP) from None
    except UnicodeEncodeError:
        raise ValueError("the expression is not valid text") from None
    if tree.lineno == 1 and tree.col_offset == 0:
        raise ValueError("the expression is no single value: parentheses that do not match, or a comma")
    return tree


def _place(text: str, line: int, offset: int) -> str:
    """Where something is; `offset` is a character of the line, from 1, with the parenthesis put before the text."""
    lines = text.splitlines()
    if line > len(lines):
        line, offset = len(lines), len(lines[-1]) + 2
    column = max(1, offset - 1 if line == 1 else offset)
    return f"line {line}, column {column}: " if len(lines) > 1 else f"column {column}: "


class _Reading:
    """Turns the nodes of `ast` into ours, and refuses all others."""

    def __init__(self, text: str, now: float) -> None:
        self.fields: dict[Path, int] = {}
        self._text = text
        self._lines = f"({text}\n)".encode().splitlines()
        self._now = now
        self._nodes = 0
        self._depth = 0

    def node(self, tree: ast.expr) -> _Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(_TOO_DEEP)
        self._count()
        read = getattr(self, f"_read_{type(tree).__name__}", None)
        if read is None:
            self._refuse(tree, f"{_WHAT.get(type(tree).__name__, type(tree).__name__)} is not part of the language")
        node: _Node = read(tree)
        self._depth -= 1
        return node

    def _count(self) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise ValueError(f"the expression has more than {MAX_NODES} parts")

    def _nodes_of(self, trees: Iterable[ast.expr]) -> list[_Node]:
        return [self.node(tree) for tree in trees]

    def _refuse(self, tree: ast.expr, message: str) -> NoReturn:
        line = self._lines[tree.lineno - 1]
        offset = len(line[: tree.col_offset].decode(errors="ignore")) + 1
        raise ValueError(_place(self._text, tree.lineno, offset) + message)

    # -- literals and fields

    def _read_Constant(self, tree: ast.Constant) -> _Node:
        return _Literal(tree, self._literal(tree))

    def _read_List(self, tree: ast.List) -> _Node:
        return _Literal(tree, [self._literal(item) for item in tree.elts])

    def _literal(self, tree: ast.expr) -> Any:
        """The value of a literal that is no list."""
        self._count()
        if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
            value = self._literal(tree.operand)
            if type(value) not in functions.NUMBER:
                self._refuse(tree, "expected a number after the minus")
            return functions.negative(value)
        if isinstance(tree, ast.Name) and tree.id in _CONSTANTS:
            return _CONSTANTS[tree.id]
        if not isinstance(tree, ast.Constant):
            self._refuse(tree, "expected a literal: a number, a string, true, false or null")
        value = tree.value
        if type(value) is float:
            number = exact_number(self._source(tree).replace("_", ""))
            if not -INT_BOUND < number < INT_BOUND:
                self._refuse(tree, "the number is too large")
            return number
        if type(value) is int and value >= INT_BOUND:
            self._refuse(tree, "the number is too large")
        if value is not None and type(value) not in (bool, int, str):
            self._refuse(tree, "only numbers, strings, true, false and null are literals")
        if type(value) is str and any("\ud800" <= char <= "\udfff" for char in value):
            self._refuse(tree, "the string has half of a surrogate pair")
        return value

    def _read_Name(self, tree: ast.Name) -> _Node:
        if tree.id in _CONSTANTS:
            return _Literal(tree, _CONSTANTS[tree.id])
        return self._field(tree, self._path(tree))

    def _read_Attribute(self, tree: ast.Attribute) -> _Node:
        return self._field(tree, self._path(tree))

    def _read_Subscript(self, tree: ast.Subscript) -> _Node:
        key = self._key(tree)
        if self._is_field(tree.value) and not (isinstance(key, int) and key < 0):
            return self._field(tree, (*self._path(tree.value), str(key)))
        whole = self.node(tree.value)
        return _Operation(tree, lambda value: functions.item(value, key), [whole], ANY)

    def _key(self, tree: ast.Subscript) -> int | str:
        key = self._literal(tree.slice)
        if type(key) not in (int, str):
            self._refuse(tree.slice, "expected a name as a string, or a whole number")
        return key  # type: ignore[no-any-return]

    def _field(self, tree: ast.expr, path: Path) -> _Node:
        return _Field(tree, path, self.fields.setdefault(path, len(self.fields)))

    def _is_field(self, tree: ast.expr) -> bool:
        while isinstance(tree, ast.Attribute | ast.Subscript):
            if isinstance(tree, ast.Subscript) and not isinstance(tree.slice, ast.Constant):
                return False
            tree = tree.value
        return (isinstance(tree, ast.Name) and tree.id not in _CONSTANTS) or self._is_field_call(tree)

    def _is_field_call(self, tree: ast.expr) -> bool:
        return isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id == "field"

    def _path(self, tree: ast.expr) -> Path:
        """The path of a field. Names are taken as they are written: Python would make some letters into others."""
        parts: list[str] = []
        while isinstance(tree, ast.Attribute | ast.Subscript):
            if len(parts) >= MAX_DEPTH:
                raise ValueError(_TOO_DEEP)
            if isinstance(tree, ast.Subscript):
                parts.append(str(self._key(tree)))
            else:
                self._check_name(tree, tree.attr)
                parts.append(tree.attr)
            tree = tree.value
        if self._is_field_call(tree):
            return (*self._named(tree), *reversed(parts))  # type: ignore[arg-type]
        if not isinstance(tree, ast.Name) or tree.id in _CONSTANTS:
            self._refuse(tree, "only a field has fields of its own; take the items of a list by [0]")
        self._check_name(tree, tree.id)
        return (tree.id, *reversed(parts))

    def _named(self, tree: ast.Call) -> Path:
        if len(tree.args) != 1 or not isinstance(tree.args[0], ast.Constant) or type(tree.args[0].value) is not str:
            self._refuse(tree, 'field takes one string: field("odd name"), field("/a.b/c")')
        try:
            return parse_path(str(self._literal(tree.args[0])))
        except ValueError as error:
            self._refuse(tree, str(error))

    def _check_name(self, tree: ast.expr, name: str) -> None:
        if not self._source(tree).endswith(name):
            self._refuse(tree, f'the name {name!r} is written with other letters; use field("...")')

    def text_of(self, tree: ast.expr) -> str:
        """A node as it is written; in one line also what takes several, or was made of parts."""
        return self._source(tree) if getattr(tree, "lineno", 0) == getattr(tree, "end_lineno", 1) else ast.unparse(tree)

    def _source(self, tree: ast.expr) -> str:
        """The text of a node, up to the end of its last line."""
        line = self._lines[(tree.end_lineno or tree.lineno) - 1]
        start = tree.col_offset if tree.lineno == tree.end_lineno else 0
        return line[start : tree.end_col_offset].decode()

    # -- operations

    def _read_UnaryOp(self, tree: ast.UnaryOp) -> _Node:
        if isinstance(tree.op, ast.Not):
            return _Not(tree, self.node(tree.operand))
        if not isinstance(tree.op, ast.USub):
            self._refuse(tree, f"{_SIGNS[type(tree.op).__name__]} is not part of the language")
        if isinstance(tree.operand, ast.Constant):
            return _Literal(tree, self._literal(tree))
        return _Operation(tree, functions.negative, [self.node(tree.operand)], functions.NUMBER)

    def _read_BinOp(self, tree: ast.BinOp) -> _Node:
        if type(tree.op).__name__ not in functions.ARITHMETIC:
            self._refuse(tree, f"{_SIGNS[type(tree.op).__name__]} is not part of the language")
        return _Arithmetic(tree, self._nodes_of([tree.left, tree.right]))

    def _read_BoolOp(self, tree: ast.BoolOp) -> _Node:
        return _Logic(tree, self._nodes_of(tree.values))

    def _read_IfExp(self, tree: ast.IfExp) -> _Node:
        return _Choice(tree, self.node(tree.test), self.node(tree.body), self.node(tree.orelse))

    def _read_Compare(self, tree: ast.Compare) -> _Node:
        if len(tree.ops) > 1:
            return self._chain(tree)
        sign = type(tree.ops[0]).__name__
        right = tree.comparators[0]
        if sign in COMPARISONS:
            return _Comparison(tree, sign, self._nodes_of([tree.left, right]))
        if sign in ("In", "NotIn"):
            value = self.node(tree.left)
            found: _Node
            if isinstance(right, ast.List):
                found = _Membership(tree, value, functions.Members([self._literal(item) for item in right.elts]))
            else:
                found = _Operation(tree, functions.member, [value, self.node(right)], BOOL | NULL)
            return found if sign == "In" else _Not(tree, found)
        self._refuse(tree, "`is` is not part of the language; use ==, and exists(...) for what is not null")

    def _chain(self, tree: ast.Compare) -> _Node:
        signs = [type(op).__name__ for op in tree.ops]
        if not set(signs) <= set(COMPARISONS):
            self._refuse(tree, "only == != < <= > >= can be chained")
        operands = self._nodes_of([tree.left, *tree.comparators])
        if all(isinstance(operand, _Field | _Literal) for operand in operands[1:-1]):
            parts = [
                _Comparison(ast.Compare(a.source, [op], [b.source]), sign, [a, b])
                for sign, op, a, b in zip(signs, tree.ops, operands, operands[1:], strict=False)
            ]
            return _Logic(ast.BoolOp(ast.And(), [part.source for part in parts]), list(parts))
        compare = tuple(COMPARISONS[sign] for sign in signs)
        return _Operation(tree, lambda *values: functions.chain(compare, *values), operands, BOOL | NULL)

    def _read_Call(self, tree: ast.Call) -> _Node:
        known = [*FUNCTIONS, *_OWN]
        if not isinstance(tree.func, ast.Name):
            name = tree.func.attr if isinstance(tree.func, ast.Attribute) else ""
            hint = f"; write {name}(...)" if name in known else ""
            self._refuse(tree, f"only a function by its name can be called{hint}")
        name = tree.func.id
        self._check_name(tree.func, name)
        if name not in known:
            self._refuse(tree, f"there is no function {name!r}; {nearest(name, known)}")
        if tree.keywords:
            self._refuse(tree, f"{name}: arguments have no names")
        if name == "field":
            return self._field(tree, self._path(tree))
        least, most = {"exists": (1, 1), "coalesce": (1, 20), "now": (0, 0)}.get(name) or FUNCTIONS[name][1:3]
        if not least <= len(tree.args) <= most:
            self._refuse(tree, f"{name} takes {_count(least, most)}, not {len(tree.args)}")
        if name == "now":
            return _Literal(tree, self._now)
        if name == "exists":
            return _Exists(tree, self.node(tree.args[0]))
        if name == "coalesce":
            return _Coalesce(tree, self._nodes_of(tree.args))
        return self._function(tree, name)

    def _function(self, tree: ast.Call, name: str) -> _Node:
        function = FUNCTIONS[name]
        if function.bind is None or len(tree.args) == 1:
            return _Call(tree, name, function.operation, self._nodes_of(tree.args))
        if not isinstance(tree.args[1], ast.Constant | ast.UnaryOp):
            self._refuse(tree.args[1], f"the second argument of {name} must be a literal")
        try:
            operation = function.bind(self._literal(tree.args[1]))
        except ValueError as error:
            self._refuse(tree.args[1], str(error))
        return _Call(tree, name, operation, [self.node(tree.args[0])])


def _count(least: int, most: int) -> str:
    if least == most:
        return f"{least} argument{'s' * (least != 1)}"
    return f"{least} or {most} arguments" if most == least + 1 else f"{least} to {most} arguments"
