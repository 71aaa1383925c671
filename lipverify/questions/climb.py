"""An untrusted search for inputs of a region where a value is large: sign-gradient ascent from several starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.analyzers.protocol import Compute
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball
from lipverify.linalg.lengths import length_above

Objective = Callable[[Tensor], Tensor]
"""[rows, *input shape] -> [rows], differentiable almost everywhere; rows are starts times regions, regions running fastest."""


@dataclass(frozen=True)
class Climb:
    """starts: points followed in each region; steps: of each; work: multiplications all of it may take, which cuts the starts.

    scattered: points that a region is also looked at in; up to `few` inputs the `kept` best ones of these walk for `walks` steps.
    The difference of two networks jumps at kinks and where integers are rounded, which gradients do not see. numbers: in all of
    these points, which cuts them.
    """

    starts: int = 16
    steps: int = 40
    work: float = 4e9
    few: int = 12
    scattered: int = 16384
    kept: int = 64
    walks: int = 60
    numbers: int = 1 << 22


def climb(
    objective: Objective,
    region: Ball,
    compute: Compute,
    cost: float,
    settings: Climb,
    hints: Tensor | None = None,
) -> Tensor:
    """The best inputs found, [count, *input shape]: inside the region as far as float64 can say.

    Args:
        cost: multiplications of one evaluation of one input. hints: [n, *input shape], more starts in every region.
    """
    center = region.center.to(compute.device)
    count, shape = len(region), center.shape[1:]
    rng = torch.Generator().manual_seed(compute.seed)
    affordable = int(settings.work / (3.0 * max(cost, 1.0) * settings.steps * count))
    starts = max(1, min(settings.starts, affordable))
    step = torch.randn((starts, count, *shape), generator=rng, dtype=torch.float64).to(compute.device)
    if region.norm is Norm.LINF:
        step = torch.where(
            step.new_tensor([k % 2 for k in range(starts)]).reshape(-1, *[1] * center.ndim) > 0,
            step.sign(),
            step,
        )
    step[0] = 0.0
    x = region.project(center + region.radius * step)
    if hints is not None:
        more = hints.to(x)[: max(1, starts)].unsqueeze(1).expand(-1, count, *shape)
        x = region.project(torch.cat([x, more]))
    best, where = torch.full((count,), -torch.inf, dtype=x.dtype, device=x.device), center.clone()
    pace = 0.5 * region.radius
    for _ in range(settings.steps):
        rows = x.flatten(0, 1).detach().requires_grad_(True)
        with torch.enable_grad():
            value = objective(rows)
            (gradient,) = torch.autograd.grad(value.sum(), rows, materialize_grads=True)
        value = value.detach().reshape(x.shape[:2]).nan_to_num(nan=-torch.inf)
        top, row = value.max(0)
        better = top > best
        best = torch.where(better, top, best)
        chosen = x[row, torch.arange(count, device=x.device)]
        where = torch.where(better.reshape(-1, *[1] * len(shape)), chosen, where)
        if compute.expired():
            break
        x = region.project(x + pace * _direction(gradient.reshape(x.shape), region.norm))
        pace *= 0.9
    if not compute.expired():
        where = _scattered(objective, region, compute, cost, settings, torch.cat([x, where[None]]))
    return strictly_inside(where.cpu(), region)


def _scattered(
    objective: Objective, region: Ball, compute: Compute, cost: float, settings: Climb, x: Tensor
) -> Tensor:
    """The best inputs near many points of each region, [count, *input shape]. x [n, count, *input shape]: points besides."""
    count, shape = x.shape[1], x.shape[2:]
    rng = torch.Generator().manual_seed(compute.seed + 1)

    def values(points: Tensor) -> Tensor:
        with torch.no_grad():
            found = objective(points.flatten(0, 1)).reshape(points.shape[:2])
        return found.nan_to_num(nan=-torch.inf)

    def noise(size: int) -> Tensor:
        return torch.randn((size, count, *shape), generator=rng, dtype=torch.float64).to(x)

    center = region.center.to(x)
    fits = int(settings.work / (max(cost, 1.0) * count))
    many = min(settings.scattered, fits // 2, settings.numbers // center.numel())
    if many < settings.kept:
        return x[-1]
    uniform = 2.0 * torch.rand((many, count, *shape), generator=rng, dtype=torch.float64).to(x) - 1.0
    # Some at ends in some of the axes, where what is monotone is largest; others where narrow regions may be hit.
    ends = torch.rand(uniform.shape, generator=rng, dtype=torch.float64).to(x) < 1 / 3
    uniform[::2] = torch.where(ends, uniform.sign(), uniform)[::2]
    x = torch.cat([x[-1:], region.project(center + region.radius * uniform)])
    # The best one of each group, not the best ones of all, which tend to be at one place.
    every, kept = torch.arange(count, device=x.device), settings.kept
    best: list[tuple[Tensor, Tensor]] = []
    for points in x.tensor_split(kept):
        if best and compute.expired():
            break
        value = values(points)
        best.append((points[value.argmax(0), every], value.amax(0)))
    x, value = (torch.stack(found) for found in zip(*best, strict=True))
    kept, pace = len(x), region.radius
    walks = settings.walks if region.center[0].numel() <= settings.few else 0
    for _ in range(min(walks, (fits - many) // (10 * kept))):
        if compute.expired():
            break
        rows = x.flatten(0, 1).detach().requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(objective(rows).sum(), rows, materialize_grads=True)
        uphill = _direction(gradient.reshape(x.shape), region.norm)
        # Along some of the axes alone, so that what is at an end of the region stays there.
        steps = [uphill, 0.1 * uphill, *(noise(kept) * (noise(kept) > 0) for _ in range(6))]
        tried = torch.stack([region.project(x + pace * step) for step in steps])
        better, which = values(tried.flatten(0, 1)).reshape(len(steps), kept, count).max(0)
        index = which.reshape(1, kept, count, *[1] * len(shape)).expand(1, *x.shape)
        moved = better > value
        x = torch.where(moved.reshape(kept, count, *[1] * len(shape)), tried.gather(0, index)[0], x)
        value = torch.where(moved, better, value)
        pace *= 0.9
    return x[value.argmax(0), every]


def strictly_inside(x: Tensor, region: Ball) -> Tensor:
    """Points next to these that lie in the region, not only up to rounding: x [count, *input shape], one for each ball.

    A computed difference to the centre is off by one rounding; where it could exceed the radius it is made smaller, and a point
    that still may not lie inside is the centre.
    """
    center, radius = region.center, region.radius
    if region.box is not None:
        x = torch.clamp(x, *region.box)
    if region.norm is Norm.LINF:
        for _ in range(3):
            x = torch.where(_beyond(x, center, radius), torch.nextafter(x, center), x)
        return torch.where(_beyond(x, center, radius), center, x)
    x = center + (x - center) * (1 - 2.0**-40)
    x = x if region.box is None else torch.clamp(x, *region.box)
    size, exponent = length_above((x - center).flatten(1), "l2")
    fits = torch.ldexp(size, exponent) <= radius
    return torch.where(fits.reshape(-1, *[1] * (x.ndim - 1)), x, center)


def _beyond(x: Tensor, center: Tensor, radius: float) -> Tensor:
    """Entries whose distance may exceed the radius. Numbers within a factor of two have an exact difference (Sterbenz)."""
    far = (x - center).abs()
    small, large = torch.minimum(x.abs(), center.abs()), torch.maximum(x.abs(), center.abs())
    exact = (small == 0) | ((x.sign() == center.sign()) & (large <= 2 * small))
    return torch.where(exact, far > radius, far * (1 + 2.0**-51) > radius)


def _direction(gradient: Tensor, norm: Norm) -> Tensor:
    if norm is Norm.LINF:
        return gradient.sign()
    length: Tensor = torch.linalg.vector_norm(gradient.flatten(2), dim=2)
    return gradient / length.clamp_min(1e-300).reshape(*length.shape, *[1] * (gradient.ndim - 2))
