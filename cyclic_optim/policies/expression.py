"""A policy from a Python expression, ``"Warmup(CosineDecay(900), 100)"``, which is parsed and never evaluated."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

from ..rules import shown
from .base import Policy
from .table import POLICIES

#: No powers: a short text could ask for a number that does not fit into memory.
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_SIGNS: dict[type, Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}


def parsed(text: str) -> Policy:
    """The policy that an expression stands for.

    It may call the policies of the library, with numbers, strings, True, False, None, lists and tuples as arguments,
    and ``+ - * / //`` between numbers. Nothing else is looked up or called. ``1e3`` is a whole number, so that it may
    be a length.

    Raises:
        ValueError, TypeError: the text is something else, or a policy refuses its arguments.
    """
    try:
        policy = _value(_with_whole_numbers(text.strip()))
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"need a Python expression of policies, got {shown(text)}: {error}") from None
    if not isinstance(policy, Policy):
        raise TypeError(f"need an expression of a policy, got {shown(text)}")
    return policy


def _with_whole_numbers(text: str) -> ast.expr:
    """The parsed text, with an int for each number such as ``1e3``."""
    expression, lines = ast.parse(text, mode="eval").body, text.encode().split(b"\n")
    for node in ast.walk(expression):
        match node:
            case ast.Constant(value=float() as number) if number.is_integer():
                digits = lines[node.lineno - 1][node.col_offset : node.end_col_offset]
                node.value = int(number) if b"e" in digits.lower() else number
    return expression


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str()):
            return node.value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _SIGNS:
            return _SIGNS[type(sign)](_number(operand))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _ARITHMETIC:
            return _calculated(node, _ARITHMETIC[type(sign)], _number(left), _number(right))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            return _made(name, args, keywords)
    raise ValueError(f"need policies, numbers, strings, lists and + - * / //, got {shown(ast.unparse(node))}")


def _number(node: ast.expr) -> Any:
    value = _value(node)
    if type(value) not in (int, float):
        raise TypeError(f"need a number to calculate with, got {shown(ast.unparse(node))}")
    return value


def _calculated(node: ast.expr, operation: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    try:
        return operation(left, right)
    except ArithmeticError as error:
        raise ValueError(f"need a number, got {shown(ast.unparse(node))}: {error}") from None


def _made(name: str, args: list[ast.expr], keywords: list[ast.keyword]) -> Policy:
    if name not in POLICIES:
        raise ValueError(f"need a policy of this library, one of {', '.join(POLICIES)}, got {shown(name)}")
    named = {keyword.arg: _value(keyword.value) for keyword in keywords if keyword.arg is not None}
    if len(named) < len(keywords):
        raise ValueError(f"need every argument of {name} written out, got one with **")
    return POLICIES[name](*map(_value, args), **named)
