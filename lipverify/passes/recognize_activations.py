"""Recognises scalar activations that exporters took apart: GELU, SiLU, Mish, Hardswish, Softsign, clips and others.

Every constant is compared or carried over as an exact fraction: 0.70710678 in float32 is not 1/sqrt 2, and a chain with it
becomes a gate with that very number, whose range of slopes does not depend on it (`lipverify.ops.gated`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from lipverify import ops
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Op
from lipverify.passes.rewriting import Draft, Replacement, substitute
from lipverify.passes.scalar_algebra import Algebra, Expression, Polynomial, is_arithmetic, polynomial

_NEAR = 16
"""How many nodes above and below a gate are looked at: the longest known spelling has nine."""

_HALF = Fraction(1, 2)


@dataclass(frozen=True)
class _Found:
    """An activation of one node. `usual`: with the factor everybody writes, so nothing is left to absorb."""

    op: Op
    usual: bool = True


def recognize_activations(graph: Graph) -> Graph:
    """Chains that compute a known activation of one node, as that activation."""
    found: dict[str, Replacement] = {}
    for gate in graph.nodes:
        if type(gate.op) in _FORMS:
            for root, base, activation in _best(list(_candidates(graph, gate))):
                draft = Draft(graph, root)
                found[root.name] = draft.finish(draft.add(activation.op, base))
    return substitute(graph, found)


_Candidate = tuple[Node, str, _Found]


def _best(candidates: list[_Candidate]) -> list[_Candidate]:
    """Those with the usual factor, else the one farthest from the gate."""
    usual = [candidate for candidate in candidates if candidate[2].usual]
    return usual or candidates[:1]


def _candidates(graph: Graph, gate: Node) -> Iterator[_Candidate]:
    """Nodes below the gate that are an activation of a node above it, the farthest first."""
    inner = gate
    if isinstance(gate.op, ops.Tanh) and isinstance(graph[gate.inputs[0]].op, ops.Softplus):
        inner = graph[gate.inputs[0]]
    bases = _above(graph, inner.inputs[0])
    for root in _below(graph, gate):
        found = [(base, _activation(graph, gate, inner, root, base)) for base in bases]
        fits = [(root, base, activation) for base, activation in found if activation is not None]
        if fits:
            yield min(fits, key=lambda fit: not fit[2].usual)


def _above(graph: Graph, name: str) -> list[str]:
    """The gate's argument and the nodes it is computed from by arithmetic, the nearest first."""
    found = [name]
    for above in found:
        if is_arithmetic(graph[above]) and len(found) < _NEAR:
            found.extend(other for other in graph[above].inputs if other not in found)
    return found


def _below(graph: Graph, gate: Node) -> list[Node]:
    """Nodes computed from the gate by arithmetic, the farthest first."""
    found = [gate.name]
    for name in found:
        for user in graph.consumers[name]:
            suitable = is_arithmetic(graph[user]) or isinstance(graph[user].op, ops.Div)
            if suitable and user not in found and len(found) < _NEAR:
                found.append(user)
    return [graph[name] for name in reversed(found[1:])]


def _activation(graph: Graph, gate: Node, inner: Node, root: Node, base: str) -> _Found | None:
    if graph[base].shape != root.shape or base == gate.name:
        return None
    algebra = Algebra(graph, base, gate.name)
    argument = algebra.plain(inner.inputs[0])
    if argument is None:
        return None
    if isinstance(root.op, ops.Div):
        return _softsign(algebra, root, gate, argument)
    value = algebra.expression(root.name)
    if value is None or not value.factor or isinstance(gate.op, ops.Abs):
        return None
    if inner is not gate:
        mish = inner.op.beta == 1 if isinstance(inner.op, ops.Softplus) else False
        exact = value == Expression((), polynomial(0, 1)) and argument == polynomial(0, 1)
        return _Found(ops.Mish()) if mish and exact else None
    found = _FORMS[type(gate.op)](gate.op, argument, value)
    return found if found is not None and _representable(found.op) else None


def _representable(op: Op) -> bool:
    """Whether all constants are within the range where float64 arithmetic with them neither overflows nor vanishes."""
    numbers = [value for value in vars(op).values() if isinstance(value, Fraction)]
    return all(value == 0 or Fraction(1, 10**60) < abs(value) < 10**60 for value in numbers)


def _linear(p: Polynomial) -> Fraction | None:
    """The coefficient c of p = c x; None for any other polynomial, 0 included."""
    return p[1] if len(p) == 2 and p[0] == 0 else None


def _signed_factor(value: Expression) -> tuple[Fraction, int] | None:
    """(c, s) where the value is c x (1 + s g), s = 1 or -1."""
    c, d = _linear(value.plain), _linear(value.factor)
    return (c, 1 if d == c else -1) if c is not None and d is not None and abs(c) == abs(d) else None


def _of_erf(op: Op, argument: Polynomial, value: Expression) -> _Found | None:
    signed, inner = _signed_factor(value), _linear(argument)
    if signed is None or inner is None:
        return None
    return _Found(ops.ErfGate(signed[1] * inner, signed[0]), signed[0] == _HALF)


def _of_tanh(op: Op, argument: Polynomial, value: Expression) -> _Found | None:
    if value == Expression(polynomial(0, 1), polynomial(-1)) and argument == polynomial(0, 1):
        return _Found(ops.Tanhshrink())
    signed = _signed_factor(value)
    if signed is None or len(argument) not in (2, 4) or argument[0] != 0 or argument[1] == 0:
        return None
    outer, sign = signed
    if len(argument) == 2:  # 1 + tanh(t) = 2 sigmoid(2 t)
        return _sigmoid_gate(2 * sign * argument[1], 2 * outer)
    if argument[2] != 0 or argument[3] / argument[1] < 0:
        return None
    return _Found(ops.TanhGate(sign * argument[1], sign * argument[3], outer), outer == _HALF)


def _of_sigmoid(op: Op, argument: Polynomial, value: Expression) -> _Found | None:
    inner, factor = _linear(argument), _linear(value.factor)
    if inner is None or factor is None:
        return None
    if not value.plain:
        return _sigmoid_gate(inner, factor)
    # x (1 - sigmoid(t)) = x sigmoid(-t)
    return _sigmoid_gate(-inner, -factor) if _linear(value.plain) == -factor else None


def _sigmoid_gate(inner: Fraction, outer: Fraction) -> _Found:
    if outer == 1 and _is_float(inner):
        return _Found(ops.SiLU(float(inner)))
    return _Found(ops.SigmoidGate(inner, outer), outer == 1)


def _of_clip(op: Op, argument: Polynomial, value: Expression) -> _Found | None:
    """A clip between low and high is low + (high - low) * (a clip between 0 and 1)."""
    if isinstance(op, ops.Hardsigmoid):
        if not (math.isfinite(op.alpha) and math.isfinite(op.beta)):
            return None
        low, width, rate, start = Fraction(0), Fraction(1), Fraction(op.alpha), Fraction(op.beta)
    else:
        assert isinstance(op, ops.Clip)
        if not (math.isfinite(op.low) and math.isfinite(op.high) and op.low < op.high):
            return None
        low, width = Fraction(op.low), Fraction(op.high) - Fraction(op.low)
        rate, start = 1 / width, -low / width
    factor = _linear(value.factor)
    if len(argument) != 2 or rate == 0 or factor is None:
        return None
    inner, offset, outer = rate * argument[1], rate * argument[0] + start, factor * width
    if value.plain != polynomial(0, -factor * low):
        return None
    if (inner, offset, outer) == (Fraction(1, 6), _HALF, Fraction(1)):
        return _Found(ops.Hardswish())
    return _Found(ops.ClipGate(inner, offset, outer), outer == 1)


def _of_relu(op: Op, argument: Polynomial, value: Expression) -> _Found | None:
    """x or a number plus a ReLU of their difference; x and its ReLU with factors that add up to 1; 2 relu(x) - x."""
    if len(value.factor) != 1 or len(argument) != 2:
        return None
    slope = _linear(value.plain)
    if argument == polynomial(0, 1) and slope is not None and slope + value.factor[0] == 1:
        if slope == -1:
            return _Found(ops.Abs())
        return _Found(ops.LeakyReLU(float(slope))) if _is_float(slope) else None
    start, direction = argument
    number = -start * direction
    if abs(direction) != 1 or abs(value.factor[0]) != 1 or not _is_float(number):
        return None
    # The base a ReLU of the difference is added to: what is subtracted for a maximum, what it is subtracted from for a minimum.
    largest = value.factor[0] == 1
    base = polynomial(number) if largest == (direction == 1) else polynomial(0, 1)
    if value.plain != base:
        return None
    return _Found(ops.Clip(float(number), math.inf) if largest else ops.Clip(-math.inf, float(number)))


def _is_float(number: Fraction) -> bool:
    return abs(number) < 10**60 and Fraction(float(number)) == number


def _softsign(algebra: Algebra, root: Node, gate: Node, argument: Polynomial) -> _Found | None:
    """x / (1 + |x|)."""
    above, below = (algebra.expression(name) for name in root.inputs)
    one = polynomial(1)
    exact = above == Expression(polynomial(0, 1)) and below == Expression(one, one)
    sign_free = argument in (polynomial(0, 1), polynomial(0, -1))
    return _Found(ops.Softsign()) if isinstance(gate.op, ops.Abs) and exact and sign_free else None


def _nothing(op: Op, argument: Polynomial, value: Expression) -> _Found | None:
    return None


_FORMS: dict[type[Op], Callable[[Op, Polynomial, Expression], _Found | None]] = {
    ops.Erf: _of_erf,
    ops.Tanh: _of_tanh,
    ops.Sigmoid: _of_sigmoid,
    ops.Clip: _of_clip,
    ops.Hardsigmoid: _of_clip,
    ops.ReLU: _of_relu,
    ops.Abs: _nothing,
}
