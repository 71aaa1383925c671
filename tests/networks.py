"""Random networks over many operators, small enough that a search nearly finds their constant."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lipverify import ops
from lipverify.frontends.builder import Builder, Value
from lipverify.ir.graph import Graph, Origin
from lipverify.ir.op import Op


def tensor(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    """Normal numbers; float32 values, as files hold them."""
    return torch.tensor(rng.standard_normal(shape) * scale, dtype=torch.float32)


def activation(rng: np.random.Generator) -> Op:
    """Any scalar activation with a finite constant."""
    kinds: list[Callable[[], Op]] = [
        ops.ReLU,
        ops.Abs,
        ops.Tanh,
        ops.Sigmoid,
        ops.SiLU,
        ops.GELU,
        lambda: ops.GELU(tanh=True),
        ops.Mish,
        ops.SELU,
        lambda: ops.ELU(float(rng.uniform(0.1, 3))),
        lambda: ops.CELU(float(rng.uniform(0.1, 3))),
        lambda: ops.Softplus(float(rng.uniform(0.5, 5))),
        lambda: ops.LeakyReLU(float(rng.uniform(-3, 3))),
        ops.Hardswish,
        lambda: ops.Hardsigmoid(0.2, 0.5),
        lambda: ops.Clip(-1.0, 2.0),
        ops.Softsign,
        ops.Tanhshrink,
        ops.LogSigmoid,
        ops.Sin,
        ops.Cos,
        ops.Erf,
    ]
    return kinds[rng.integers(len(kinds))]()


def vector_layer(b: Builder, v: Value, rng: np.random.Generator) -> Value:
    """One more layer on [batch, n]."""
    n = v.shape[0]
    scale = 10.0 ** rng.uniform(-1, 1) / np.sqrt(n)
    match rng.integers(11):
        case 0 | 1:
            out = int(rng.integers(1, 9))
            return b.linear(
                v, tensor(rng, out, n, scale=scale), tensor(rng, out) if rng.random() < 0.5 else None
            )
        case 2 | 3:
            return b.elementwise(activation(rng), v)
        case 4:
            return b.plus(v, b.linear(b.elementwise(activation(rng), v), tensor(rng, n, n, scale=scale)))
        case 5:
            parts = [v, b.elementwise(activation(rng), v)]
            return b.concat(parts, 1) if n <= 6 else b.maximum(*parts)
        case 6:
            group = next(g for g in (4, 3, 2, 1) if n % g == 0)
            return b.add(ops.GroupSort(group, 0, bool(rng.integers(2))), (v,), v.batch)
        case 7:
            return b.minus(b.times(v, tensor(rng, n)), tensor(rng, n))
        case 8:
            indices = torch.tensor(rng.integers(0, n, size=int(rng.integers(1, n + 2))))
            return b.gather(v, 1, indices)
        case 9:
            mean, var = tensor(rng, n), tensor(rng, n).abs() + 0.01
            return b.batch_norm(v, tensor(rng, n), tensor(rng, n), mean, var, 1e-3)
        case _:
            return b.along(ops.Softmax, v, 1)


def image_layer(b: Builder, v: Value, rng: np.random.Generator) -> Value:
    """One more layer on [batch, channels, height, width]."""
    channels, height, width = v.shape
    match rng.integers(7):
        case 0 | 1 | 2:
            groups = 2 if channels % 2 == 0 and rng.random() < 0.3 else 1
            out, k = 2 * int(rng.integers(1, 3)), int(rng.integers(1, min(4, height, width) + 1))
            weight = tensor(rng, out, channels // groups, k, k, scale=0.5)
            stride, pad = int(rng.integers(1, 3)), int(rng.integers(0, k))
            return b.conv(v, ops.Conv(weight, None, (stride, stride), ((pad, 0), (0, pad)), (1, 1), groups))
        case 3:
            return b.elementwise(activation(rng), v)
        case 4 if min(height, width) >= 3:
            size = int(rng.integers(2, 4))
            return b.max_pool(
                v, (size, size), (int(rng.integers(1, 3)),) * 2, ((0, 0), (1, 0)), (1, 1), False
            )
        case 5 if min(height, width) >= 2:
            return b.avg_pool(
                v, (2, 2), (int(rng.integers(1, 3)),) * 2, ((0, 1), (1, 0)), False, bool(rng.integers(2))
            )
        case _:
            values = [tensor(rng, channels) for _ in range(3)]
            return b.batch_norm(v, *values, tensor(rng, channels).abs() + 0.1, 1e-5)


def random_graph(rng: np.random.Generator, layers: int = 6) -> Graph:
    """A network of random layers; every third one begins with images."""
    b = Builder(symbolic_batch=True)
    if rng.random() < 0.35:
        v = b.input((1, int(rng.integers(1, 3)), 5, 4), 0)
        for index in range(int(rng.integers(1, 4))):
            b.where = f"image{index}"
            v = image_layer(b, v, rng)
        v = b.flatten(v, 1, -1)
        v = b.linear(v, tensor(rng, int(rng.integers(2, 7)), v.shape[0], scale=v.shape[0] ** -0.5))
    else:
        v = b.input((1, int(rng.integers(1, 7))), 0)
    for index in range(int(rng.integers(1, layers + 1))):
        b.where = f"layer{index}"
        v = vector_layer(b, v, rng)
    return b.graph([v], Origin())


def chain(weights: list[Tensor], op: Op | None = None) -> Graph:
    """Dense layers without biases, with an activation between them."""
    b = Builder(symbolic_batch=True)
    v = b.input((1, weights[0].shape[1]), 0)
    for index, weight in enumerate(weights):
        b.where = f"layer{index}"
        v = b.linear(v, weight)
        if op is not None and index < len(weights) - 1:
            v = b.elementwise(op, v)
    return b.graph([v], Origin())
