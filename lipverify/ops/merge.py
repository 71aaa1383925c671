"""Operators that join several computed tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.ir.op import Op
from lipverify.rules import forward, linear


@dataclass(frozen=True, eq=False)
class Add(Op):
    """x_1 + x_2, equal sample shapes."""


@dataclass(frozen=True, eq=False)
class Sub(Op):
    """x_1 - x_2, equal sample shapes."""


@dataclass(frozen=True, eq=False)
class Mul(Op):
    """x_1 * x_2, elementwise product of two computed tensors: no global constant."""


@dataclass(frozen=True, eq=False)
class Div(Op):
    """x_1 / x_2, elementwise quotient of two computed tensors: no global constant."""


@dataclass(frozen=True, eq=False)
class MatMul(Op):
    """x_1 @ x_2 of two computed tensors [..., m, k], [..., k, n]: no global constant."""


@dataclass(frozen=True, eq=False)
class Maximum(Op):
    """Elementwise maximum of two or more tensors of equal sample shape."""


@dataclass(frozen=True, eq=False)
class Minimum(Op):
    """Elementwise minimum of two or more tensors of equal sample shape."""


@dataclass(frozen=True, eq=False)
class Concat(Op):
    """Inputs side by side along one sample axis (>= 0)."""

    axis: int


@forward.register(Add)
@linear.register(Add)
def _add(op: Add, x: Tensor, y: Tensor) -> Tensor:
    return x + y


@forward.register(Sub)
@linear.register(Sub)
def _sub(op: Sub, x: Tensor, y: Tensor) -> Tensor:
    return x - y


@forward.register(Mul)
def _mul(op: Mul, x: Tensor, y: Tensor) -> Tensor:
    return x * y


@forward.register(Div)
def _div(op: Div, x: Tensor, y: Tensor) -> Tensor:
    return x / y


@forward.register(MatMul)
def _matmul(op: MatMul, x: Tensor, y: Tensor) -> Tensor:
    return x @ y


@forward.register(Maximum)
def _maximum(op: Maximum, *xs: Tensor) -> Tensor:
    result = xs[0]
    for x in xs[1:]:
        result = torch.maximum(result, x)
    return result


@forward.register(Minimum)
def _minimum(op: Minimum, *xs: Tensor) -> Tensor:
    result = xs[0]
    for x in xs[1:]:
        result = torch.minimum(result, x)
    return result


@forward.register(Concat)
@linear.register(Concat)
def _concat(op: Concat, *xs: Tensor) -> Tensor:
    batch = max(x.shape[0] for x in xs)
    return torch.cat([x.expand(batch, *x.shape[1:]) for x in xs], dim=op.axis + 1)
