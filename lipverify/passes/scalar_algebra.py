"""Elementwise arithmetic with exact rational coefficients: what a chain of additions and products computes.

A value is written as plain(x) + factor(x) * g, with polynomials in one node x and one node g, both elementwise of the same
shape. The order in which an exporter multiplies, divides and adds does not matter any more, and no constant is rounded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from lipverify import ops
from lipverify.ir.graph import Graph, Node

Polynomial = tuple[Fraction, ...]
"""Coefficients of 1, x, x^2, ..., without trailing zeros."""

_DEGREE = 4
_DEPTH, _NODES = 24, 64
"""How far an expression is followed: the longest known spelling has some ten nodes, and hostile graphs have any number."""

_ARITHMETIC = (ops.Scale, ops.DivideBy, ops.Add, ops.Sub, ops.Mul, ops.Power)


def is_arithmetic(node: Node) -> bool:
    """Whether the operator is one that `Algebra` follows."""
    return isinstance(node.op, _ARITHMETIC)


def polynomial(*coefficients: Fraction | int) -> Polynomial:
    """Coefficients of 1, x, x^2, ... as exact fractions."""
    found = [Fraction(value) for value in coefficients]
    while found and found[-1] == 0:
        found.pop()
    return tuple(found)


@dataclass(frozen=True)
class Expression:
    """plain(x) + factor(x) * g."""

    plain: Polynomial
    factor: Polynomial = ()


def number(values: Tensor | None, default: int) -> Fraction | None:
    """The stored number, if all entries are the same finite one."""
    if values is None:
        return Fraction(default)
    if values.numel() == 0:
        return None
    first = values.flatten()[0]
    if not bool((values == first).all()) or not math.isfinite(float(first)):
        return None
    return Fraction(float(first))


class Algebra:
    """Expressions of nodes in terms of one node `base` and one node `gate`."""

    def __init__(self, graph: Graph, base: str, gate: str | None = None) -> None:
        self._graph = graph
        self._shape = graph[base].shape
        self._known: dict[str, Expression | None] = {base: Expression(polynomial(0, 1))}
        if gate is not None and gate != base:
            self._known[gate] = Expression((), polynomial(1))

    def expression(self, name: str, depth: int = _DEPTH) -> Expression | None:
        """What a node computes; None where it needs anything else than base, gate and stored numbers."""
        if name not in self._known:
            node = self._graph[name]
            small = depth > 0 and len(self._known) < _NODES
            usable = small and is_arithmetic(node) and node.shape == self._shape
            self._known[name] = self._combined(node, depth) if usable else None
        return self._known[name]

    def plain(self, name: str) -> Polynomial | None:
        """The polynomial in the base that a node computes without the gate."""
        found = self.expression(name)
        return found.plain if found is not None and not found.factor else None

    def _combined(self, node: Node, depth: int) -> Expression | None:
        below = [self.expression(name, depth - 1) for name in node.inputs]
        operands = [value for value in below if value is not None]
        if len(operands) != len(below):
            return None
        match node.op:
            case ops.Scale(scale=scale, shift=shift):
                factor, constant = number(scale, 1), number(shift, 0)
                if factor is None or constant is None:
                    return None
                return _sum(_scaled(operands[0], factor), Expression(polynomial(constant)))
            case ops.DivideBy(divisor=divisor):
                by = number(divisor, 1)
                return _scaled(operands[0], 1 / by) if by else None
            case ops.Add():
                return _sum(*operands)
            case ops.Sub():
                return _sum(operands[0], _scaled(operands[1], Fraction(-1)))
            case ops.Mul():
                return _product(*operands)
            case ops.Power(exponent=2.0):
                return _product(operands[0], operands[0])
            case ops.Power(exponent=3.0):
                square = _product(operands[0], operands[0])
                return None if square is None else _product(square, operands[0])
        return None


def _scaled(value: Expression, factor: Fraction) -> Expression:
    return Expression(
        polynomial(*(c * factor for c in value.plain)), polynomial(*(c * factor for c in value.factor))
    )


def _sum(a: Expression, b: Expression) -> Expression:
    return Expression(_added(a.plain, b.plain), _added(a.factor, b.factor))


def _product(a: Expression, b: Expression) -> Expression | None:
    """None if the gate would be squared or the degree grows beyond what any pattern has."""
    if a.factor and b.factor:
        return None
    plain = _multiplied(a.plain, b.plain)
    factor = _added(_multiplied(a.plain, b.factor), _multiplied(a.factor, b.plain))
    return None if max(len(plain), len(factor)) > _DEGREE + 1 else Expression(plain, factor)


def _added(a: Polynomial, b: Polynomial) -> Polynomial:
    size = max(len(a), len(b))
    padded = [p + (Fraction(0),) * (size - len(p)) for p in (a, b)]
    return polynomial(*(x + y for x, y in zip(*padded, strict=True)))


def _multiplied(a: Polynomial, b: Polynomial) -> Polynomial:
    found = [Fraction(0)] * max(len(a) + len(b) - 1, 0)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            found[i + j] += x * y
    return polynomial(*found)
