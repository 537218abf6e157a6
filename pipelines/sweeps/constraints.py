"""Constraints of a search space: comparisons of parameters and numbers, evaluated without `eval`."""

import ast
import itertools
import operator
from collections.abc import Callable, Mapping
from typing import Any

from components.errors import ParameterError
from pipelines.sweeps.documents import value_at

OPERATORS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


def constraint_holds(constraint: str, document: Mapping[str, Any]) -> bool:
    """Return whether a comparison holds: `gadms_finetune.method.warmup_steps < gadms_finetune.training.steps`.

    Allows comparisons of paths and constants with + - * / %, joined by and/or/not; raises ParameterError for anything else.
    """
    try:
        whole = ast.parse(constraint, mode="eval").body
        _require_comparisons(whole)
        return bool(_evaluate(whole, document))
    except (SyntaxError, TypeError, ZeroDivisionError) as error:
        raise ParameterError(f"constraint {constraint!r}: {error}") from error


def _require_comparisons(node: ast.expr) -> None:
    """Raise TypeError for a part that is no comparison: as a condition, a number other than 0 always holds."""
    match node:
        case ast.UnaryOp(op=ast.Not()):
            _require_comparisons(node.operand)
        case ast.BoolOp():
            for part in node.values:
                _require_comparisons(part)
        case ast.Compare():
            pass
        case _:
            raise TypeError(f"{ast.unparse(node)!r} is not a comparison, such as a.b < 3")


def _evaluate(node: ast.expr, document: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name() | ast.Attribute():
            return value_at(document, ast.unparse(node))
        case ast.BinOp() if type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](_evaluate(node.left, document), _evaluate(node.right, document))
        case ast.UnaryOp(op=ast.USub()):
            return -_evaluate(node.operand, document)
        case ast.UnaryOp(op=ast.Not()):
            return not _evaluate(node.operand, document)
        case ast.BoolOp():
            parts = (_evaluate(part, document) for part in node.values)
            return all(parts) if isinstance(node.op, ast.And) else any(parts)
        case ast.Compare() if all(type(op) in OPERATORS for op in node.ops):
            sides = [_evaluate(side, document) for side in (node.left, *node.comparators)]
            pairs = zip(node.ops, itertools.pairwise(sides), strict=True)
            return all(OPERATORS[type(op)](*pair) for op, pair in pairs)
    raise TypeError(f"{ast.unparse(node)!r} is not a path, a number or a comparison")
