"""Layers of torch networks that torch.export cannot trace: implicit ones.

A search for a fixed point is a loop whose length depends on data. Here it is one operator of torch, `lipverify::implicit`,
which torch.export keeps as one node and which is lowered to the graph operator `ops.Implicit`. Importing this module
registers both.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lipverify import ops
from lipverify.errors import UnsupportedModel, UsageError
from lipverify.frontends.builder import Value
from lipverify.frontends.torch_export.lowering import Lowerer
from lipverify.frontends.torch_export.registry import lower
from lipverify.ir.op import Op
from lipverify.ops.implicit import derivative, response
from lipverify.rules import forward

ACTIVATIONS: dict[str, Op] = {"relu": ops.ReLU(), "tanh": ops.Tanh(), "sigmoid": ops.Sigmoid()}
"""Activations by the name that an exported program stores."""


def _operator(recurrent: Tensor, inputs: Tensor, bias: Tensor | None, activation: str) -> ops.Implicit:
    if activation not in ACTIVATIONS:
        raise UsageError(
            f"an implicit layer knows the activations {', '.join(ACTIVATIONS)}, not {activation!r}"
        )
    return ops.Implicit(recurrent, inputs, bias, ACTIVATIONS[activation])


@torch.library.custom_op("lipverify::implicit", mutates_args=())
def implicit(x: Tensor, recurrent: Tensor, inputs: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """The z with z = phi(W z + U x + b), to machine precision: x [batch, in] -> z [batch, n].

    Differentiable once in x, W, U and b, by the implicit function theorem.

    Raises:
        Undecided: no fixed point was found. UsageError: shapes that do not fit, or an unknown activation.
    """
    if x.ndim != 2:
        raise UsageError(f"an implicit layer takes [batch, inputs], not a tensor of shape {list(x.shape)}")
    return forward(_operator(recurrent, inputs, bias, activation), x)


@implicit.register_fake
def _(x: Tensor, recurrent: Tensor, inputs: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return x.new_empty(x.shape[0], recurrent.shape[0])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, recurrent, drive, bias, activation = inputs
    ctx.save_for_backward(x, recurrent, drive, bias, output)
    ctx.activation = activation


def _pull_back(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None]:
    """With S = diag(phi'(v)): dz = (I - S W)^-1 S (dW z + U dx + dU x + db)."""
    x, recurrent, drive, bias, z = ctx.saved_tensors
    op = _operator(recurrent, drive, bias, ctx.activation)
    linear = torch.nn.functional.linear
    slope = derivative(op, linear(z, recurrent) + linear(x, drive, bias))
    matrix = torch.eye(len(recurrent), dtype=z.dtype, device=z.device) - slope[..., None] * recurrent
    pulled = slope * torch.linalg.solve(matrix.mT, grad[..., None])[..., 0]
    return pulled @ drive, pulled.T @ z, pulled.T @ x, None if bias is None else pulled.sum(0), None


implicit.register_autograd(_pull_back, setup_context=_keep)


@lower.register("lipverify.implicit")
def _lower(b: Lowerer, x: Value, recurrent: Any, inputs: Any, bias: Any, activation: str) -> Value:
    op = _operator(
        b.stored(recurrent, "recurrent weight"),
        b.stored(inputs, "input weight"),
        b.optional(bias, "bias"),
        activation,
    )
    try:
        response(op)
    except UnsupportedModel as error:
        raise b.refuse(str(error), (x,)) from None
    v = b.free(b.value(x), x.rank - 1)
    b.axis(v, v.rank - 1)
    return b.add(op, (v,), v.batch)


class Implicit(nn.Module):
    """An equilibrium layer z = phi(W z + U x + b) of width `size`.

    Starts as a contraction, |W| about 1/2. Whoever trains W keeps it well-posed: for ReLU and its kin by
    W = (1 - m) I - A'A + B - B' with m > 0 (Winston, Kolter 2020, arXiv 2006.08591), as the network digits-deq of the zoo does.
    """

    def __init__(self, inputs: int, size: int, activation: str = "relu") -> None:
        super().__init__()
        self.activation = activation
        self.recurrent = nn.Parameter(torch.randn(size, size) / (4.0 * math.sqrt(size)))
        self.inputs = nn.Parameter(torch.randn(size, inputs) / math.sqrt(inputs))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = implicit(x, self.recurrent, self.inputs, self.bias, self.activation)
        return found
