"""Adjoints of affine operators: coefficients on a result become coefficients on the inputs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input

from lipverify import ops
from lipverify.ir.op import Op, Shape
from lipverify.rules import linear


def adjoint(op: Op, coefficients: Tensor, shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
    """A' g for the linear part A of an affine operator: [rows, *shape of the result] -> one [rows, *shape] for each input.

    Statement: <g, A x> = <A' g, x> up to rounding; every computed entry is a sum of at most (size of the result) products.
    """
    if isinstance(op, ops.Linear):
        return (coefficients @ op.weight,)
    if isinstance(op, ops.Reshape):
        return (coefficients.reshape(coefficients.shape[0], *shapes[0]),)
    if isinstance(op, ops.Add):
        return coefficients, coefficients
    if isinstance(op, ops.Sub):
        return coefficients, -coefficients
    if isinstance(op, ops.Slice):
        source = coefficients.new_zeros(coefficients.shape[0], *shapes[0])
        part = [slice(None)] * source.ndim
        part[op.axis + 1] = slice(op.start, op.stop, op.step)
        source[tuple(part)] = coefficients
        return (source,)
    if isinstance(op, ops.Gather):
        source = coefficients.new_zeros(coefficients.shape[0], *shapes[0])
        return (source.index_add_(op.axis + 1, op.indices, coefficients),)
    if isinstance(op, ops.Conv) and op.weight.ndim == 4 and all(a == b for a, b in op.padding):
        size = (coefficients.shape[0], *shapes[0])
        pads = tuple(before for before, _ in op.padding)
        found = conv2d_input(size, op.weight, coefficients, op.stride, pads, op.dilation, op.groups)
        return (found,)
    return _by_differentiation(op, coefficients, shapes)


def is_exact(op: Op) -> bool:
    """Whether `adjoint` only moves numbers or turns their signs, and `forward` computes no products: nothing is rounded.

    The result of a sum is a real number here, and its coefficient is that of both terms. A gathered entry that is listed twice
    gets the sum of two coefficients, which is rounded.
    """
    if isinstance(op, ops.Gather):
        return len(op.indices.unique()) == len(op.indices)
    return isinstance(op, ops.Reshape | ops.Transpose | ops.Slice | ops.Add | ops.Sub)


def _by_differentiation(op: Op, coefficients: Tensor, shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
    """Reverse-mode differentiation of a linear map is its adjoint, wherever it is taken."""
    inputs = [coefficients.new_zeros(coefficients.shape[0], *shape).requires_grad_() for shape in shapes]
    with torch.enable_grad():
        # Torch loads sympy, a second, where it is given coefficients beside the result.
        total = (linear(op, *inputs) * coefficients).sum()
    return torch.autograd.grad(total, inputs, materialize_grads=True)
