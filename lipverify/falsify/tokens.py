"""The search for steep places in norms of tokens: the power method on Jacobians, hill climbing between its rounds.

One output token moves as far as it can while every input token moves by 1: |J_i v| is largest where each token of v points along
the part of J_i' u that belongs to it, u the direction of J_i v. Nothing here is trusted.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipverify.analyzers.protocol import Compute
from lipverify.deadline import within
from lipverify.errors import BudgetEnded
from lipverify.falsify.steepness import tiny
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Bounded, Query

ROWS, ROUNDS, STEPS = 16, 48, 4
"""Points at once, rounds of climbing, steps of the power method in each."""
DISTANCES = (1e-7, 1e-5, 1e-3)
"""Of a pair around a point, relative to the size of its tokens."""
SCALES = (1.0, 0.3, 1e-1, 1e-3)
"""Sizes of tokens that points begin with; near 0 normalisation is steepest."""
Candidate = tuple[Tensor, Tensor, Tensor]


def candidates(graph: Graph, query: Query, compute: Compute, hints: Tensor | None) -> list[Candidate]:
    """Believed slopes [1] and the two points [1, *shape] of pairs, for a question about norms of tokens."""
    exact = graph.to(dtype=torch.float64, device=compute.device)
    generator = torch.Generator().manual_seed(compute.seed)

    def normal() -> Tensor:
        return torch.randn(ROWS, *graph.input_shape, generator=generator, dtype=torch.float64).to(
            compute.device
        )

    x, v = _start(query, normal(), hints), normal()
    best = torch.zeros(ROWS, dtype=torch.float64, device=compute.device)
    try:
        with within(compute.deadline):
            best, v = _steepest(exact, query, x, v)
            for number in range(ROUNDS):
                size = _lengths(x).amax(-1)[..., None, None] * 10.0 ** (-0.06 * number)
                moved = _inside(query, x + size * normal() / math.sqrt(graph.input_shape[-1]))
                slope, direction = _steepest(exact, query, moved, v)
                better = slope > best
                wide = better.reshape(-1, *(1,) * (x.ndim - 1))
                if number % 8 == 7:  # the better half goes on twice
                    order = best.argsort(descending=True)
                    order = order[: ROWS // 2].repeat(2)
                    best, x, v = best[order], x[order], v[order]
                    continue
                best, x, v = (
                    torch.where(better, slope, best),
                    torch.where(wide, moved, x),
                    torch.where(wide, direction, v),
                )
    except BudgetEnded:
        pass
    found: list[Candidate] = []
    for k in best.argsort(descending=True)[:3]:
        size = _lengths(x[k]).amax().clamp_min(1e-12)
        for distance in DISTANCES:
            step = distance * size * v[k]
            first, second = (_inside(query, x[k] + sign * step).cpu()[None] for sign in (-1.0, 1.0))
            found.append((best[k : k + 1].cpu() * (1.0 - distance), first, second))
    return found


def _start(query: Query, x: Tensor, hints: Tensor | None) -> Tensor:
    """Points of several sizes, the first ones near hints where there are some."""
    most = query.region.most if isinstance(query.region, Bounded) else 1.0
    rms = not isinstance(query.region, Bounded) or query.region.norm is Norm.TOKEN_RMS
    size = most * (math.sqrt(x.shape[-1]) if rms else 1.0)
    scales = torch.tensor([SCALES[k % len(SCALES)] for k in range(len(x))], dtype=x.dtype, device=x.device)
    x = x / _lengths(x)[..., None].clamp_min(tiny(x)) * size * scales.reshape(-1, *(1,) * (x.ndim - 1))
    # Half of them with tokens against each other, as averages move most between these.
    x[::2] = x[::2, ..., :1, :] * torch.where(torch.arange(x.shape[-2]) % 2 > 0, -1.0, 1.0).to(x)[:, None]
    if hints is not None and len(hints):
        count = min(len(hints), len(x) // 2)
        x[:count] = hints[:count].to(x)
    return _inside(query, x)


def _inside(query: Query, x: Tensor) -> Tensor:
    return query.region.project(x) if isinstance(query.region, Bounded) else x


def _lengths(x: Tensor) -> Tensor:
    """The l2 norms of tokens: [..., width] -> [...]."""
    found: Tensor = torch.linalg.vector_norm(x, dim=-1)
    return found


def _unit(v: Tensor) -> Tensor:
    return v / _lengths(v)[..., None].clamp_min(tiny(v))


def _steepest(graph: Graph, query: Query, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes at x [n, *shape] and the directions, of which every token has the l2 norm 1."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        y = evaluate(graph, x)
        probe = torch.zeros_like(y, requires_grad=True)
        if not y.requires_grad:
            return torch.zeros(len(x), dtype=x.dtype, device=x.device), _unit(v)
        (pulled,) = torch.autograd.grad(y, x, probe, create_graph=True, materialize_grads=True)
        v, slope = _unit(v), torch.zeros(len(x), dtype=x.dtype, device=x.device)
        if not pulled.requires_grad:
            return slope, v
        for _ in range(STEPS):
            (pushed,) = torch.autograd.grad(pulled, probe, v, retain_graph=True, materialize_grads=True)
            change = torch.nan_to_num(pushed.detach())
            tokens = change.reshape(len(x), -1, 1 if query.norm_out is Norm.LINF else change.shape[-1])
            lengths = _lengths(tokens)
            top = lengths.argmax(1)
            slope = torch.maximum(slope, lengths.amax(1))
            line = torch.arange(len(x), device=x.device)
            functional = torch.zeros_like(tokens)
            functional[line, top] = tokens[line, top] / lengths.amax(1)[:, None].clamp_min(tiny(tokens))
            (back,) = torch.autograd.grad(
                y, x, functional.reshape(y.shape), retain_graph=True, materialize_grads=True
            )
            v = _unit(torch.nan_to_num(back.detach()))
    scale = math.sqrt(x.shape[-1]) if query.norm_in is Norm.TOKEN_RMS else 1.0
    return slope * scale / (math.sqrt(y.shape[-1]) if query.norm_out is Norm.TOKEN_RMS else 1.0), v
