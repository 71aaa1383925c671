"""Networks in which products of stored numbers leave the range of float64 on the way, and come back."""

from __future__ import annotations

import math
from dataclasses import fields

import torch

from lipverify import ops
from lipverify.errors import UnsupportedModel
from lipverify.ir.graph import Graph, Node
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op
from lipverify.rules import gain, linear

RESCALE = "scale neighbouring layers against each other, and export again"
SMALLER = f"take a smaller radius, or {RESCALE}"
_THEM = f"what this method makes of them; {RESCALE}"
SQUARED = 500.0
"""Bits. Squares of numbers beyond 2^512 on either side are no numbers of float64."""
RANGE = 900.0
"""Bits. Float64 has 1022 below 1: what is lost below them, times 2^900, is below 2^-100."""


def refuse_lost_products(graph: Graph) -> None:
    """Refuses a graph in which products of stored numbers can underflow and later layers can make any number of what is lost.

    Bounds are computed in float64 with relative errors of every rounding. An underflow is none: a number below 2^-1074 counts
    as 0, and the loss is 2^-1074 at most. Other layers multiply it by their gains: those behind where matrices are multiplied
    from the input on, those before where they are multiplied from the output back. Where either the smallest product of stored
    numbers along any part of a path is above 2^-RANGE, or the gain of every part is below 2^RANGE, the loss is below 2^-100 in
    whatever is printed.

    Raises:
        UnsupportedModel: neither holds; the layers are named.
    """
    small, low = _smallest(graph)
    if small >= -RANGE:
        return
    large, high = _largest(graph)
    if large > RANGE:
        raise UnsupportedModel(
            f"products of stored numbers fall to 2^{small:.0f} up to {low.describe()} and grow to 2^{large:.0f} up to "
            f"{high.describe()}: float64 would lose the small ones before the large ones make up for them; {RESCALE}"
        )


def out_of_range(graph: Graph) -> str | None:
    """Where products of stored numbers, or their squares, leave float64, in words: a method that computes with them may have no
    answer. None: nowhere.
    """
    large, high = _largest(graph)
    if large > SQUARED:
        return f"products of stored numbers grow to 2^{large:.0f} up to {high.describe()}: float64 does not hold {_THEM}"
    small, low = _smallest(graph)
    if small < -SQUARED:
        return f"products of stored numbers fall to 2^{small:.0f} up to {low.describe()}: float64 does not hold {_THEM}"
    return None


def _smallest(graph: Graph) -> tuple[float, Node]:
    """Bits of the smallest product of stored numbers along a part of a path, and where it ends."""
    small: dict[str, float] = {}
    for node in graph.nodes:
        before = min((small[name] for name in node.inputs), default=0.0)
        small[node.name] = min(before + least_bits(node.op), 0.0)
    low = min(small, key=lambda name: small[name])
    return small[low], graph[low]


def _largest(graph: Graph) -> tuple[float, Node]:
    """Bits of the largest gain of a part of a path, and where it ends."""
    large: dict[str, float] = {}
    for node in graph.nodes:
        large[node.name] = max([0.0, *(large[name] + _gain(node, graph[name]) for name in node.inputs)])
    high = max(large, key=lambda name: large[name])
    return large[high], graph[high]


def least_bits(op: Op) -> float:
    """Bits of the smallest number other than 0 that an affine operator multiplies with."""
    if not linear.covers(type(op)):
        return 0.0
    if isinstance(op, ops.DivideBy):
        return -_bits(float(op.divisor.double().abs().max()))
    if isinstance(op, ops.BatchNorm):
        return _least(op.weight) - 0.5 * _bits(float((op.var.double() + op.eps).max()))
    stored = (getattr(op, f.name) for f in fields(op) if f.name in ("weight", "scale", "matrix"))
    return sum(_least(value) for value in stored if isinstance(value, torch.Tensor))


def _least(values: torch.Tensor) -> float:
    # In its own type: a copy of a large file's weights as float64 would be twice the file.
    size = values.abs()
    least = float(size.masked_fill_(size == 0, math.inf).min()) if size.numel() else math.inf
    return _bits(least) if least < math.inf else 0.0


def _gain(node: Node, source: Node) -> float:
    """Bits of the largest sum of absolute entries of a row, for one of the inputs; 0 where none is known."""
    if not gain.covers(type(node.op)) or len(node.inputs) > 1:
        return 0.0
    try:
        return _bits(gain(node.op, (source.shape,), Norm.LINF, Norm.LINF).factors[0])
    except UnsupportedModel:
        return 0.0


def _bits(value: float) -> float:
    return math.log2(value) if 0.0 < value < math.inf else (-math.inf if value == 0.0 else 1024.0)
