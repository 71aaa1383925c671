"""The differential check behind every combination: it computes what its parts compute, on random inputs of several sizes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lipverify.errors import InternalError
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph

SCALES = (0.05, 1.0, 20.0)
TOLERANCE = 1e-9
"""Relative to the outputs: both sides compute the same real function in float64, in another order."""


def samples(graph: Graph, seed: int = 0) -> Tensor:
    """Random inputs [6, *input shape] of several sizes, in float64."""
    rng = torch.Generator().manual_seed(seed)
    rows = [
        scale * torch.randn(2, *graph.input_shape, generator=rng, dtype=torch.float64) for scale in SCALES
    ]
    return torch.cat(rows)


def require_equal(graph: Graph, other: Callable[[Tensor], Tensor], name: str) -> None:
    """Raises InternalError unless `other` computes what the graph computes."""
    x = samples(graph)
    require_close(evaluate(graph.to(dtype=torch.float64), x), other(x), name)


def require_close(wanted: Tensor, found: Tensor, name: str, scale: Tensor | None = None) -> None:
    """Raises InternalError unless both [batch, ...] are equal up to rounding; scale [batch]: of the numbers they are made of."""
    if wanted.numel() == 0:
        return
    size = wanted.abs().flatten(1).amax(1) if scale is None else scale
    gap = torch.where(wanted.isfinite(), (wanted - found).abs(), 0.0).flatten(1)
    if wanted.shape != found.shape or not bool((gap <= TOLERANCE * (1.0 + size)[:, None]).all()):
        raise InternalError(
            f"{name} does not compute what its parts compute; this is a bug, please report it"
        )
