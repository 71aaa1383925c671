"""The type that coefficients are computed in, and what its rounding may change.

Facts about balls (ranges, planes, sizes) are float64 always: there are few of them. Coefficients, one row for each value that is
bounded, are most of the work; in float32 they take half the memory and a fraction of the time. Every computed coefficient is off
by at most gamma_n times the sum of its absolute terms, in either type; what that can change is added outward.
Source: Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1, for sums in any order.
Sound when: products are rounded to the type's own unit. `own_products` turns off shorter formats and transforms (TF32, bfloat16,
Winograd), for which that does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify import ops
from lipverify.errors import UnsupportedModel
from lipverify.ir.graph import Node
from lipverify.ir.op import Op
from lipverify.linalg import rounding

MOST_ROUNDINGS = 2.0**-4
"""Of float32: n u beyond which bounds would be mostly rounding."""
UNDERFLOW = 2.0**-100
"""Relative to a sum of terms, far above what numbers below the smallest normal float32 (2^-126) can change."""


@dataclass(frozen=True)
class Precision:
    """A floating-point type with its unit roundoff."""

    dtype: torch.dtype
    unit: float

    @property
    def double(self) -> bool:
        """Whether coefficients have the type of the facts."""
        return self.dtype is torch.float64

    def operator(self, node: Node, kept: dict[str, Op]) -> Op:
        """The node's operator with its parameters in this type, rounded once; `kept` holds those made before."""
        if self.double:
            return node.op
        if node.name not in kept:
            kept[node.name] = node.op.to(dtype=self.dtype)
        return kept[node.name]

    def gamma(self, count: int) -> float:
        """n u / (1 - n u), rounded up.

        Raises:
            UnsupportedModel: float32, and a sum with too many terms.
        """
        if self.double:
            return rounding.gamma(count)
        if count * self.unit > MOST_ROUNDINGS:
            raise UnsupportedModel(f"a sum of {count} terms in float32 would be mostly rounding; use float64")
        return rounding.up(count * self.unit / rounding.down(1.0 - count * self.unit))

    def backward(self, node: Node) -> int:
        """At least how many roundings a coefficient of a node's inputs has seen since the node's own: products, and 16 more."""
        if self.double:
            return node.size + 16
        return _fan(node, 0) + 16

    def forward(self, node: Node, source: Node) -> int:
        """The same for functionals of gradients, which go from `source` to its reader `node`."""
        if self.double:
            return source.size + node.size + 16
        return _fan(node, 1) + 16

    def narrowed(self, facts: Tensor) -> Tensor:
        """Facts in the type of the coefficients, off by one rounding each."""
        return facts.to(self.dtype)

    def above(self, sizes: Tensor, floor: Tensor) -> Tensor:
        """Upper bounds of sizes >= 0 in the type of the coefficients; floor: what they hold at least, of any shape that fits."""
        if self.double:
            return sizes
        return (sizes * (1.0 + 2.0**-20) + floor).to(self.dtype)

    def sum_above(self, value: Tensor, count: int) -> Tensor:
        """An upper bound, in float64, of a sum of `count` terms >= 0 whose computed value is given."""
        if self.double:
            return value
        return value.double() * (1.0 + 2.0 * self.gamma(count + 2))


DOUBLE = Precision(torch.float64, rounding.UNIT_ROUNDOFF)
SINGLE = Precision(torch.float32, 2.0**-24)
PRECISIONS = {"float64": DOUBLE, "float32": SINGLE}


def _fan(node: Node, axis: int) -> int:
    """How many products the sums of a linear map have at most: of its adjoint (axis 0) or of itself (axis 1)."""
    op = node.op
    if isinstance(op, ops.Linear):
        return int(op.weight.shape[axis])
    if isinstance(op, ops.Conv):
        channels = op.weight.shape[0] // op.groups if axis == 0 else op.weight.shape[1]
        return int(channels) * math.prod(op.weight.shape[2:])
    if isinstance(op, ops.Add | ops.Sub | ops.Reshape | ops.Transpose):
        return 1
    if isinstance(op, ops.Scale | ops.BatchNorm | ops.DivideBy | ops.ReLU | ops.LeakyReLU):
        return 2
    return node.size


@contextmanager
def own_products(precision: Precision, device: torch.device) -> Iterator[None]:
    """While float32 is used: full products, and convolutions as sums of products (no Winograd, no Fourier transforms)."""
    if precision.double:
        yield
        return
    before = torch.get_float32_matmul_precision()
    if before != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        if device.type == "cuda":
            with torch.backends.cudnn.flags(enabled=False, allow_tf32=False):
                yield
        else:
            yield
    finally:
        if before != "highest":
            torch.set_float32_matmul_precision(before)
