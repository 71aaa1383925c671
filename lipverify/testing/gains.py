"""Refuting gains: Jacobians, the directions that they amplify most, and difference quotients along them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lipverify import rules
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op, Shape
from lipverify.rules import Gain, Unbounded
from lipverify.testing.case import TOLERANCE, OperatorCase


def check_gain_not_below(case: OperatorCase, seed: int = 0) -> None:
    """No Jacobian and no difference quotient exceeds `gain`, for every pair of norms."""
    op, rng = case.exact(), torch.Generator().manual_seed(seed)
    inputs = case.sample(rng, 16)
    jacobians = _jacobians(op, inputs) if inputs else None
    for norm_in in Norm:
        for norm_out in Norm:
            try:
                found = rules.gain(case.op, case.input_shapes, norm_in, norm_out)
            except Unbounded:
                assert not case.bounded, f"{case}: `gain` refuses a bounded operator"
                continue
            assert case.bounded, f"{case}: `gain` answers for an unbounded operator"
            assert len(found.factors) == len(inputs), (
                f"{case}: {len(found.factors)} factors for {len(inputs)} inputs"
            )
            assert all(math.isfinite(f) and f >= 0 for f in found.factors), f"{case}: factors {found.factors}"
            if jacobians is not None and jacobians.numel():
                directions = _steepest(jacobians, case.input_shapes, found, norm_in, norm_out, rng)
                where = f"{case}: {norm_in} -> {norm_out}"
                _check_directions(jacobians, directions, case.input_shapes, found, norm_in, norm_out, where)
                _check_quotients(op, inputs, directions, case, found, norm_in, norm_out, where)


def _jacobians(op: Op, inputs: Sequence[Tensor]) -> Tensor:
    """Jacobians of single samples, [batch, outputs, all inputs]: of a sum over the batch, since no sample depends on others
    (`check_forward_shape`)."""
    points = [x.detach().clone().requires_grad_() for x in inputs]
    batch = len(points[0])
    outputs = rules.forward(op, *points).reshape(batch, -1)
    if not outputs.requires_grad:  # a constant
        return torch.zeros(batch, outputs.shape[1], sum(x[0].numel() for x in points), dtype=torch.float64)
    rows = []
    for column in outputs.sum(0):
        parts = torch.autograd.grad(
            column, points, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        rows.append(torch.cat([part.reshape(batch, -1) for part in parts], dim=1))
    return torch.stack(rows, dim=1)


def _joint(factors: Sequence[float], norms: Sequence[Tensor], joint: Norm) -> Tensor:
    total: Tensor = torch.linalg.vector_norm(
        torch.stack([f * norm for f, norm in zip(factors, norms, strict=True)]), ord=joint.order, dim=0
    )
    return total


def _sizes(shapes: Sequence[Shape]) -> list[int]:
    return [math.prod(shape) for shape in shapes]


def _allowed(directions: Tensor, shapes: Sequence[Shape], found: Gain, norm_in: Norm) -> Tensor:
    """What the gain allows for input changes [..., all inputs]."""
    parts = directions.split(_sizes(shapes), dim=-1)
    return _joint(
        found.factors,
        [torch.linalg.vector_norm(part, ord=norm_in.order, dim=-1) for part in parts],
        found.joint,
    )


def _steepest(
    jacobians: Tensor,
    shapes: Sequence[Shape],
    found: Gain,
    norm_in: Norm,
    norm_out: Norm,
    rng: torch.Generator,
) -> Tensor:
    """Input changes [batch, starts, all inputs] that ascend |J d|_out among those for which the gain allows 1.

    Source: Boyd, "The power method for lp norms", Linear Algebra and its Applications 9 (1974). Starts: unit vectors, ones,
    random signs and noise.
    """
    batch, _, width = jacobians.shape
    starts = [
        torch.eye(width, dtype=torch.float64)[: min(width, 48)],
        torch.ones(1, width, dtype=torch.float64),
    ]
    starts.append(torch.randn(4, width, generator=rng, dtype=torch.float64))
    starts.append(torch.randn(4, width, generator=rng, dtype=torch.float64).sign())
    directions = torch.cat(starts).expand(batch, -1, -1)
    size = _allowed(directions, shapes, found, norm_in)
    directions = directions / torch.where(size > 0, size, 1.0)[..., None]
    for _ in range(12):
        image = directions @ jacobians.mT
        parts = (_dual(image, norm_out) @ jacobians).split(_sizes(shapes), dim=-1)
        slopes = [torch.linalg.vector_norm(part, ord=norm_in.dual.order, dim=-1) for part in parts]
        lengths = _lengths(slopes, found)
        stepped = [
            length[..., None] * _dual(part, norm_in.dual) for length, part in zip(lengths, parts, strict=True)
        ]
        moved = torch.cat(stepped, dim=-1)
        reached, before = (
            torch.linalg.vector_norm(y, ord=norm_out.order, dim=-1) for y in (moved @ jacobians.mT, image)
        )
        directions = torch.where((reached >= before)[..., None], moved, directions)
    return directions


def _dual(vectors: Tensor, norm: Norm) -> Tensor:
    """z with z'v = |v|_norm and dual norm 1 (last axis)."""
    if norm is Norm.L1:
        return torch.where(vectors >= 0, 1.0, -1.0).to(torch.float64)
    if norm is Norm.L2:
        length: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
        return vectors / length.clamp(min=1e-300)
    largest = vectors.abs().argmax(dim=-1, keepdim=True)
    return torch.zeros_like(vectors).scatter(
        -1, largest, torch.where(vectors.gather(-1, largest) >= 0, 1.0, -1.0).double()
    )


def _lengths(slopes: Sequence[Tensor], found: Gain) -> list[Tensor]:
    """Lengths t_i >= 0 with joint(f_i t_i) <= 1 that maximise sum t_i slope_i; inputs with factor 0 get length 1."""
    factors = [f if f > 0 else 1.0 for f in found.factors]
    ratios = torch.stack([slope / f for slope, f in zip(slopes, factors, strict=True)])
    if found.joint is Norm.LINF:
        shares = torch.ones_like(ratios)
    elif found.joint is Norm.L2:
        shares = ratios / torch.linalg.vector_norm(ratios, dim=0, keepdim=True).clamp(min=1e-300)
    else:
        shares = (ratios == ratios.amax(0, keepdim=True)).to(torch.float64)
        shares = shares / shares.sum(0, keepdim=True)
    return [share / f for share, f in zip(shares, factors, strict=True)]


def _check_directions(
    jacobians: Tensor,
    directions: Tensor,
    shapes: Sequence[Shape],
    found: Gain,
    norm_in: Norm,
    norm_out: Norm,
    where: str,
) -> None:
    reached = torch.linalg.vector_norm(directions @ jacobians.mT, ord=norm_out.order, dim=-1)
    allowed = _allowed(directions, shapes, found, norm_in)
    excess = reached - allowed * (1 + TOLERANCE) - TOLERANCE * 1e-3
    assert bool((excess <= 0).all()), f"{where}: a Jacobian reaches {_worst(reached, allowed)} times the gain"


def _worst(reached: Tensor, allowed: Tensor) -> float:
    return float((reached / allowed.clamp(min=1e-300)).max())


def _check_quotients(
    op: Op,
    inputs: Sequence[Tensor],
    directions: Tensor,
    case: OperatorCase,
    found: Gain,
    norm_in: Norm,
    norm_out: Norm,
    where: str,
) -> None:
    """Differences of pairs in the last of the directions: dense ones, the first are unit vectors; all in one batch."""
    sizes, batch = _sizes(case.input_shapes), len(inputs[0])
    size = torch.linalg.vector_norm(directions, ord=math.inf, dim=-1, keepdim=True).clamp(min=1e-300)
    scales = torch.tensor([1e-3, 0.1, 1.0, 10.0], dtype=torch.float64).reshape(-1, 1, 1, 1)
    steps = (scales * (directions / size)[:, -12:].transpose(0, 1)).flatten(0, 2)
    copies = len(steps) // batch
    starts = [x.repeat(copies, *(1,) * (x.dim() - 1)) for x in inputs]
    parts = [p.reshape(x.shape) for p, x in zip(steps.split(sizes, dim=-1), starts, strict=True)]
    moved = [(x + p).clamp(*case.domain(i)) for i, (x, p) in enumerate(zip(starts, parts, strict=True))]
    here = rules.forward(op, *inputs).reshape(batch, -1).repeat(copies, 1)
    there = rules.forward(op, *moved).reshape(here.shape)
    change = torch.cat([(m - x).flatten(1) for m, x in zip(moved, starts, strict=True)], dim=1)
    reached = torch.linalg.vector_norm(there - here, ord=norm_out.order, dim=-1)
    allowed = _allowed(change, case.input_shapes, found, norm_in)
    # Subtracting two results loses what they were rounded by.
    slack = 1e-13 * (here.abs().sum(-1) + there.abs().sum(-1) + 1.0)
    excess = reached - allowed * (1 + TOLERANCE) - slack
    assert bool((excess <= 0).all()), f"{where}: a pair reaches {_worst(reached, allowed)} times the gain"
