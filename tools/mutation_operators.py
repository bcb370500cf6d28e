"""Small wrong changes of a module's syntax tree, one at a time."""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = ["Mutant", "mutants"]

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
_OTHER_NAMES = {"min": "max", "max": "min", "floor": "ceil", "ceil": "floor", "round": "int", "any": "all"}
_DROPPED = frozenset({"abs", "acos", "clamp", "exp", "expm1", "flip", "log", "log1p", "sqrt", "sum"})


@dataclass(frozen=True)
class Mutant:
    """A module with one thing changed.

    Attributes:
        key: function, what stood there and what stands there now; the same as long as that code is.
        line: where.
        tree: the whole module's.
    """

    key: str
    line: int
    tree: ast.Module


def _changed(node: ast.AST) -> Iterator[ast.AST]:
    """Every wrong version of one node."""
    match node:
        case ast.Compare():
            for i, operator in enumerate(node.ops):
                other = copy.deepcopy(node)
                other.ops[i] = _COMPARISONS[type(operator)]()
                yield other
            for i, side in enumerate(node.comparators):
                if isinstance(side, ast.Constant) and isinstance(side.value, str):
                    other = copy.deepcopy(node)
                    other.comparators[i] = ast.Constant(f"{side.value}-")
                    yield other
        case ast.BinOp() if type(node.op) in _ARITHMETIC:
            other_op = copy.deepcopy(node)
            other_op.op = _ARITHMETIC[type(node.op)]()
            yield other_op
        case ast.BoolOp():
            yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), copy.deepcopy(node.values))
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield copy.deepcopy(node.operand)
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int() | float() as value):
            yield ast.Constant(value + 1)
        case ast.If() | ast.IfExp() if not _turns_by_itself(node.test):
            negated = copy.deepcopy(node)
            negated.test = ast.UnaryOp(ast.Not(), negated.test)
            yield negated
        case ast.Call():
            yield from _changed_call(node)
        case ast.Expr(value=ast.Call()) | ast.AugAssign():
            yield ast.Pass()


def _turns_by_itself(test: ast.expr) -> bool:
    """Whether a change of the test's own operator negates it already."""
    turning = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
    if isinstance(test, ast.UnaryOp):
        return isinstance(test.op, ast.Not)
    return isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], turning)


def _changed_call(node: ast.Call) -> Iterator[ast.AST]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in _OTHER_NAMES:
        other = copy.deepcopy(node)
        if isinstance(other.func, ast.Attribute):
            other.func.attr = _OTHER_NAMES[name]
        elif isinstance(other.func, ast.Name):
            other.func.id = _OTHER_NAMES[name]
        yield other
    if name in _DROPPED:
        is_method = isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") not in (
            "math",
            "np",
            "torch",
        )
        if is_method and isinstance(node.func, ast.Attribute):
            yield copy.deepcopy(node.func.value)
        elif len(node.args) == 1:
            yield copy.deepcopy(node.args[0])


def _left_alone(parent: ast.AST, name: str, child: ast.AST) -> bool:
    """Types, documentation and the words of errors are not what is tested here."""
    if name in ("annotation", "returns") or isinstance(parent, ast.Raise | ast.JoinedStr):
        return True
    if isinstance(parent, ast.keyword) and parent.arg == "description":
        return True
    if not isinstance(child, ast.Assign) or not isinstance(child.targets[0], ast.Name):
        return False
    return child.targets[0].id == "__all__" or _is_type(child.value)


def _is_type(value: ast.expr) -> bool:
    """Of ``Name = Literal[...]`` or ``Name = A | B``."""
    if isinstance(value, ast.BinOp):
        return isinstance(value.op, ast.BitOr) and isinstance(value.left, ast.Name)
    return isinstance(value, ast.Subscript)


def _places(tree: ast.AST, inside: str = "module") -> Iterator[tuple[str, ast.AST, Callable[[ast.AST], None]]]:
    """Every node that may change: the function it is in, the node, and how to put another in its place."""
    for name, value in ast.iter_fields(tree):
        children = value if isinstance(value, list) else [value]
        for i, child in enumerate(children):
            if not isinstance(child, ast.AST) or _left_alone(tree, name, child):
                continue
            where = inside
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                where = child.name if inside == "module" else f"{inside}.{child.name}"

            def put(other: ast.AST, name: str = name, value: object = value, i: int = i) -> None:
                if isinstance(value, list):
                    value[i] = other
                else:
                    setattr(tree, name, other)

            yield where, child, put
            yield from _places(child, where)


def _text(node: ast.AST) -> str:
    shown = node.test if isinstance(node, ast.If) else node
    return " ".join(ast.unparse(ast.fix_missing_locations(copy.deepcopy(shown))).split())


def mutants(source: str) -> list[Mutant]:
    """All mutants of a module, in the order of its text."""
    tree = ast.parse(source)
    found = []
    seen: Counter[str] = Counter()
    for where, node, put in _places(tree):
        line = getattr(node, "lineno", 0)
        for other in _changed(node):
            kind = "if " if isinstance(node, ast.If) else ""
            key = f"{where}: {kind}{_text(node)} -> {kind}{_text(other)}"
            seen[key] += 1
            put(other)
            mutated = ast.fix_missing_locations(copy.deepcopy(tree))
            put(node)
            number = f" #{seen[key]}" if seen[key] > 1 else ""
            found.append(Mutant(key + number, line, mutated))
    return sorted(found, key=lambda mutant: mutant.line)
