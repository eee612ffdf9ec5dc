"""Functions that are written at run time, as trees: the only place where code is compiled.

Text from outside never becomes code. A tree is put together of templates that stand in this program and of nodes made
for what was understood; it sees the names it is given and no others, no builtins among them.
"""

from __future__ import annotations

import ast
import warnings
from types import CodeType, FunctionType
from typing import Any


def function(tree: ast.expr, names: dict[str, Any]) -> Any:
    """What a tree evaluates to, which is a function where that is a lambda."""
    whole = ast.fix_missing_locations(ast.Expression(tree))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a literal that is compared with None
        code: CodeType = compile(whole, "<expression>", "eval")
    return FunctionType(code, {"__builtins__": {}, **names})()


def filled(template: str, **parts: ast.expr) -> ast.expr:
    """The tree of a template, with its capital names replaced."""
    return _Filler(parts).visit(ast.parse(template, mode="eval").body)  # type: ignore[no-any-return]


class _Filler(ast.NodeTransformer):
    def __init__(self, parts: dict[str, ast.expr]) -> None:
        self._parts = parts

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._parts.get(node.id, node)
