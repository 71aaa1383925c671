"""`objective` and `newton` for many small systems at once: the same search with a leading axis of systems.

Legend: as `objective`; tensors are [systems, rows, N]. Small systems spend their time between calls, so that A(D) is one
dense matrix here. Padded neurons (see `padding`) have zero probes too: no gradient, no step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lipverify.analyzers.lipsdp.newton import Tuning
from lipverify.analyzers.lipsdp.padding import Stack
from lipverify.linalg.eigen import eigh, eigvalsh

# As `newton.truncated_cg` for shallow systems.
_CG_TOL, _CG_LEAST = 0.1, 2
_LINE_SEARCH = 8


@dataclass
class Found:
    """The best multipliers so far, in units of the start; written in place, so that an interrupt loses nothing."""

    d: Tensor
    """[systems, N]"""
    rho: Tensor
    """[systems]: lmax(Y(D)), as computed."""
    converged: Tensor
    """[systems]: whether the search came to its tolerance."""
    iterations: int = 0

    @classmethod
    def start(cls, stack: Stack) -> Found:
        """D = I."""
        count, size = stack.C.shape[:2]
        one = torch.ones(count, size, dtype=stack.C.dtype, device=stack.C.device)
        return cls(one, one[:, 0].clone(), torch.zeros(count, dtype=torch.bool, device=one.device))


@dataclass(frozen=True)
class _State:
    """The systems that are still searched."""

    rows: Tensor
    """Their places among all systems."""
    stack: Stack
    d: Tensor
    lower: Tensor
    """Cholesky factor of A(D)."""
    smoothing: Tensor
    radius: Tensor
    reference: Tensor
    probes: Tensor
    """[systems, q, N], weighted for the stage."""

    def chosen(self, rows: Tensor) -> _State:
        rest = (getattr(self, f.name)[rows] for f in fields(self)[2:])
        return _State(self.rows[rows], self.stack.chosen(rows), *rest)

    def staged(self, mask: Tensor, tuning: Tuning, raw: Tensor) -> _State:
        """As `newton._Search._stage` where the mask holds: newly weighted probes at the current multipliers."""
        stack, d = self.stack, self.d
        half = torch.linalg.solve_triangular(self.lower, torch.diag_embed(d), upper=False)
        traces = (stack.blocks @ half.square().sum(1)[:, :, None])[:, :, 0].clamp(min=1e-300)
        reference = eigvalsh(stack.output_form(d, self.lower))[:, -1].clamp(min=1e-300)
        used = (stack.blocks.amax(2) > 0).sum(1)
        strength = tuning.beta * self.smoothing * reference / (used * len(raw))
        weights = (strength[:, None] / traces).sqrt()
        probes = raw * (weights[:, None] @ stack.blocks)
        return replace(
            self,
            reference=torch.where(mask, reference, self.reference),
            probes=torch.where(mask[:, None, None], probes, self.probes),
        )


class _Point:
    """`objective.Point` for every system."""

    def __init__(self, state: _State, d: Tensor, lower: Tensor) -> None:
        self.state, self.d, self.lower = state, d, lower
        stack, m = state.stack, state.stack.V.shape[1]
        rows = torch.cat([stack.border(d), state.probes * d[:, None]], dim=1)
        self.half = torch.linalg.solve_triangular(lower.mT, rows, upper=True, left=False)
        outputs = self.half[:, :m]
        self.scale = 1.0 / state.reference
        self.y = (stack.Y0 + outputs @ outputs.mT) * self.scale[:, None, None]
        self.mu = state.smoothing / m
        values, self.vectors = eigh(self.y)
        self.top = values[:, -1] * state.reference
        self.level, self.weights = _level(values, self.mu)
        smoothed = self.level - self.mu * torch.log(self.level[:, None] - values).sum(1)
        self.value = smoothed + self.half[:, m:].square().sum((1, 2)) * self.scale

    def prepare(self, hessian_probes: int) -> None:
        """Gradient, preconditioner and what Hessian products use; see `objective.Point.prepare`."""
        stack, d, m = self.state.stack, self.d, self.state.stack.V.shape[1]
        scale = self.scale[:, None, None]
        s = (self.vectors * self.weights[:, None]) @ self.vectors.mT * scale
        c = torch.linalg.solve_triangular(self.lower, self.half, upper=False, left=False)
        b = c @ stack.C
        b[:, :m] += stack.V
        b[:, m:] += self.state.probes
        gap, bend = b - c, b - 2.0 * c
        own, probing = s @ c[:, :m], self.scale[:, None]
        gradient = (own * gap[:, :m]).sum(1) + probing * (c[:, m:] * gap[:, m:]).sum(1)
        self.gradient = 2.0 * d * gradient / self.value[:, None]
        size = ((s @ b[:, :m]) * b[:, :m] + (s @ bend[:, :m]) * bend[:, :m]).sum(1)
        size += probing * (b[:, m:].square() + bend[:, m:].square()).sum(1)
        diagonal = 0.5 * d * size / self.value[:, None]
        self.diagonal = diagonal + 1e-10 * diagonal.amax(1, keepdim=True)
        count = b.shape[1] - m
        used = min(count, hessian_probes)
        share = scale * (count / max(used, 1))
        rows = slice(0, m + used)
        self.c, self.bend = c[:, rows], bend[:, rows]
        self.weighted_c = torch.cat([own, share * c[:, m : m + used]], dim=1)
        self.weighted_bend = torch.cat([s @ bend[:, :m], share * bend[:, m : m + used]], dim=1)
        self.outputs, self.output_gap = c[:, :m], gap[:, :m]
        # (g I - Y)^-1 is S / mu, before its normalisation.
        inverse = self.weights / self.mu[:, None]
        self.inverse = (self.vectors * inverse[:, None]) @ self.vectors.mT
        self.inverse_squared = self.inverse @ self.inverse
        self.inverse_trace = inverse.square().sum(1)

    def times_hessian(self, direction: Tensor) -> Tensor:
        """Of the log of the value in log d; see `objective.Point.hessian_times`."""
        stack, eta = self.state.stack, (self.d * direction)[:, None]
        rows = (eta * self.weighted_c) @ stack.C.mT
        rows.addcmul_(self.weighted_bend, eta)
        solved = torch.linalg.solve_triangular(self.lower.mT, rows, upper=True, left=False)
        solved = torch.linalg.solve_triangular(self.lower, solved, upper=False, left=False)
        result: Tensor = (self.bend * solved + self.c * (solved @ stack.C)).sum(1)
        change = (self.outputs * eta) @ self.output_gap.mT
        change = self.inverse @ ((change + change.mT) * self.scale[:, None, None]) @ self.inverse
        trace = change.diagonal(dim1=1, dim2=2).sum(1) / self.inverse_trace
        spectral = change - trace[:, None, None] * self.inverse_squared
        moved = ((spectral @ self.outputs) * self.output_gap).sum(1)
        result += (self.mu * self.scale)[:, None] * moved
        result = 2.0 * self.d * result / self.value[:, None]
        along = (self.gradient * direction).sum(1, keepdim=True)
        return torch.addcmul(result, self.gradient, direction - along)


class _Step(NamedTuple):
    direction: Tensor
    image: Tensor
    at_radius: Tensor


def improve(stack: Stack, found: Found, tuning: Tuning, stopped: Callable[[], bool]) -> None:
    """Improves `found`, which starts at D = I, until every system came to the tolerance or `stopped` says so.

    Source: `newton.search`, whose stages, radii and stopping rules every system follows by itself; a system that is done
        leaves the batch.
    Sound when: nothing here is trusted; multipliers are evaluated again by `bound.certified_upper`.
    """
    lower, feasible = stack.factor(found.d)
    count, size = found.d.shape
    generator = torch.Generator().manual_seed(tuning.seed)
    raw = torch.randn(tuning.probes, size, generator=generator, dtype=torch.float64).to(stack.C)
    full = torch.full_like(found.rho, tuning.first_smoothing)
    probes = raw.expand(count, -1, -1)
    rows = torch.arange(count, device=full.device)
    state = _State(rows, stack, found.d.clone(), lower, full, torch.full_like(full, 0.5), full, probes)
    state = state.chosen(feasible.nonzero()[:, 0])
    renewed = torch.ones_like(state.rows, dtype=torch.bool)
    for _ in range(tuning.max_iterations):
        if not len(state.rows) or stopped():
            return
        if bool(renewed.any()):
            state = state.staged(renewed, tuning, raw)
        found.iterations += 1
        state, renewed, finished = _iterate(state, found, tuning, stopped)
        if bool(finished.any()):
            found.converged[state.rows[finished]] = True
            left = (~finished).nonzero()[:, 0]
            state, renewed = state.chosen(left), renewed[left]


def _iterate(
    state: _State, found: Found, tuning: Tuning, stopped: Callable[[], bool]
) -> tuple[_State, Tensor, Tensor]:
    """One Newton step of every system: the new state, which systems begin a new stage, and which are done."""
    point = _Point(state, state.d, state.lower)
    point.prepare(tuning.hessian_probes)
    step = _truncated_cg(point, state.radius, tuning.cg_iterations)
    slope = (point.gradient * step.direction).sum(1)
    predicted = -(slope + 0.5 * (step.direction * step.image).sum(1))
    d, lower, top, length, good = _line_search(state, point, step.direction, slope, stopped)
    best = found.rho[state.rows]
    better = good & (top < best * (1.0 - 1e-13))
    found.rho[state.rows] = torch.where(better, top, best)
    found.d[state.rows] = torch.where(better[:, None], d, found.d[state.rows])
    radius = _adapted(state.radius, step, point.diagonal, length)
    last = state.smoothing <= tuning.tol * 1.0001
    arrived = (-slope < 0.2 * tuning.tol) | (~good & (radius < 1e-9))
    finished = (predicted < 1e-13) | ~torch.isfinite(predicted) | (last & arrived)
    settled = torch.where(
        good, (-slope < 0.5 * state.smoothing) & (length > 0.4), -slope < 1e-3 * state.smoothing
    )
    renewed = ~last & settled
    shrunk = (state.smoothing * tuning.shrink).clamp(min=tuning.tol)
    moved = replace(
        state,
        d=d,
        lower=lower,
        smoothing=torch.where(renewed, shrunk, state.smoothing),
        radius=torch.where(renewed, radius.clamp(min=1.0), radius),
    )
    return moved, renewed, finished


def _adapted(radius: Tensor, step: _Step, diagonal: Tensor, length: Tensor) -> Tensor:
    size = (step.direction.square() * diagonal).sum(1).clamp(min=0.0).sqrt()
    grown = torch.where(length == 1.0, torch.maximum(radius, 3.0 * size), radius)
    grown = torch.where(step.at_radius & (length > 0.6), 3.0 * radius, grown)
    return torch.where(length < 0.2, (2.5 * length).clamp(min=0.05) * size, grown)


def _line_search(
    state: _State, point: _Point, direction: Tensor, slope: Tensor, stopped: Callable[[], bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `newton._Search._line_search`: multipliers, factors, lmax(Y), lengths, and which steps were accepted."""
    length = (2.0 / (direction.abs().amax(1) + 1e-300)).clamp(max=1.0)
    d, lower, top = state.d.clone(), state.lower.clone(), point.top.clone()
    waiting = torch.arange(len(d), device=d.device)
    for _ in range(_LINE_SEARCH):
        part = state if len(waiting) == len(d) else state.chosen(waiting)
        steps = length[waiting]
        tried = part.d * torch.exp(steps[:, None] * direction[waiting])
        factor, feasible = part.stack.factor(tried)
        # An infeasible candidate is never accepted; the old point in its place keeps the eigenvalues of the batch finite.
        tried = torch.where(feasible[:, None], tried, part.d)
        factor = torch.where(feasible[:, None, None], factor, part.lower)
        candidate = _Point(part, tried, factor)
        decrease = point.value[waiting].log() - candidate.value.log()
        good = feasible & (candidate.value > 0.0) & (decrease >= -0.05 * steps * slope[waiting])
        kept = waiting[good]
        d[kept], lower[kept], top[kept] = tried[good], factor[good], candidate.top[good]
        waiting = waiting[~good]
        if not len(waiting) or stopped():
            break
        length[waiting] *= 0.5
    accepted = torch.ones_like(length, dtype=torch.bool)
    accepted[waiting] = False
    return d, lower, top, length, accepted


def _truncated_cg(point: _Point, radius: Tensor, limit: int) -> _Step:
    """`newton.truncated_cg` with its own end for every system."""
    diagonal = point.diagonal
    x, image = torch.zeros_like(diagonal), torch.zeros_like(diagonal)
    residual = -point.gradient
    p = residual / diagonal
    energy = first = (residual * p).sum(1)
    pp, xp, xx = energy, torch.zeros_like(energy), torch.zeros_like(energy)
    at_radius = torch.zeros_like(energy, dtype=torch.bool)
    running = energy > 0.0
    for count in range(limit):
        if not bool(running.any()):
            break
        product = point.times_hessian(p)
        curvature = (p * product).sum(1)
        convex = curvature > 0.0
        alpha = torch.where(convex, energy / torch.where(convex, curvature, 1.0), 0.0)
        grown = xx + 2.0 * alpha * xp + alpha * alpha * pp
        beyond = running & (~convex | (grown >= radius * radius))
        root = (xp * xp + pp * (radius * radius - xx)).clamp(min=0.0).sqrt()
        length = torch.where(beyond, (root - xp) / pp.clamp(min=1e-300), alpha)
        length = torch.where(running, length, 0.0)[:, None]
        x, image = x + length * p, image + length * product
        residual = residual - length * product
        at_radius |= beyond
        scaled = residual / diagonal
        new = (residual * scaled).sum(1)
        small = (new <= _CG_TOL**2 * first) & (count >= _CG_LEAST)
        running = running & ~beyond & ~small & (new > 0.0)
        ratio = torch.where(running, new / energy.clamp(min=1e-300), 0.0)
        energy = new
        xx, xp = grown, ratio * (xp + alpha * pp)
        pp = energy + ratio * ratio * pp
        p = scaled + ratio[:, None] * p
    return _Step(x, image, at_radius)


def _level(values: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
    """The g of `objective.Smoothed` and the eigenvalues of S, for every row of ascending eigenvalues."""
    top, count = values[:, -1], values.shape[1]
    level = top + mu
    for _ in range(60):
        inverse = mu[:, None] / (level[:, None] - values)
        step = (inverse.sum(1) - 1.0) * mu / inverse.square().sum(1)
        if not bool((step > 1e-15 * level.abs()).any()):
            break
        level = torch.minimum(level + step.clamp(min=0.0), top + mu * count)
    weights = mu[:, None] / (level[:, None] - values)
    return level, weights / weights.sum(1, keepdim=True)
