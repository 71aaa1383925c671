"""Newton-CG in log D with smoothing, a probe barrier and a trust radius: every accepted point is a certificate.

Stages: the smoothing and the barrier shrink together from eps = 1/2 to the tolerance; each stage stops when the predicted
first-order decrease is below the smoothing error.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lipverify.analyzers.lipsdp.dual import optimum_lower_bound
from lipverify.analyzers.lipsdp.factor import Factor
from lipverify.analyzers.lipsdp.objective import Model, Point, weighted_probes
from lipverify.analyzers.lipsdp.system import Couplings
from lipverify.analyzers.protocol import Compute
from lipverify.linalg.eigen import eigvalsh

VERBOSE = False

# A short CG run only leaves the stiff directions of the barrier; its small slope then passes for a finished stage. Known from
# deep systems; shallow ones would spend most of their time on it.
_LEAST_PRODUCTS, _LEAST_SHALLOW, _SHALLOW = 8, 2, 8


@dataclass(frozen=True)
class Tuning:
    """Parameters of one run of the search."""

    tol: float
    beta: float
    """Strength of the probe barrier relative to the smoothing."""
    shrink: float
    probes: int
    hessian_probes: int
    seed: int
    max_iterations: int
    cg_iterations: int = 80
    first_smoothing: float = 0.5


@dataclass
class Record:
    """The best multipliers so far and how they were reached; filled in place so that an interrupt loses nothing."""

    compute: Compute
    report_scale: float
    """Turns sqrt(rho) of the scaled system into the bound of the network."""
    started: float = field(default_factory=lambda: time.monotonic())
    d: Tensor | None = None
    rho: float = math.inf
    lower: float = 0.0
    """Of rho: no multipliers can go below."""
    iterations: int = 0
    factorisations: int = 0
    hessian_products: int = 0
    reserve: float = 0.0
    """Seconds kept for the evaluation that ends every run."""
    trace: list[tuple[float, float]] = field(default_factory=list)

    def offer(self, d: Tensor, rho: float, stage: str) -> None:
        # A difference of a few roundings is no improvement.
        if rho < self.rho * (1.0 - 1e-13):
            self.rho, self.d = rho, d
            self.trace.append((time.monotonic() - self.started, rho))
            self.compute.report(stage, self.report_scale * math.sqrt(max(rho, 0.0)))

    def restate(self, rho: float) -> None:
        """The value of the best multipliers in a higher precision."""
        self.rho = rho
        self.trace[-1] = (self.trace[-1][0], rho)

    @property
    def expired(self) -> bool:
        return self.compute.remaining() <= self.reserve

    def closed(self, tol: float) -> bool:
        """The best is proved optimal within tol (in rho)."""
        return self.lower > 0.0 and self.rho <= self.lower * (1.0 + tol)


class _Step(NamedTuple):
    direction: Tensor
    image: Tensor
    """Hessian times direction."""
    at_radius: bool


def search(
    system: Couplings, factor: Factor, y: Tensor, tuning: Tuning, record: Record, order: Tensor | None = None
) -> None:
    """Improves `record` from the feasible point `factor` (with Y(D) = y) until the tolerance or the deadline is reached.

    order: where every neuron of the factor stands in `system`, when the factor has another order.
    """
    _Search(system, tuning, record, order).run(factor, y)


class _Search:
    def __init__(self, system: Couplings, tuning: Tuning, record: Record, order: Tensor | None) -> None:
        self.system, self.tuning, self.record, self.order = system, tuning, record, order
        self.layers = None
        if order is not None:
            place = torch.empty_like(order).index_copy_(
                0, order, torch.arange(len(order), device=order.device)
            )
            self.layers = list(place.split(list(system.sizes)))
        self.smoothing, self.radius = tuning.first_smoothing, 0.5
        self.generator = torch.Generator().manual_seed(tuning.seed)

    def run(self, factor: Factor, y: Tensor) -> None:
        pencil, tuning, record = factor.pencil, self.tuning, self.record
        draw = torch.randn(tuning.probes, pencil.neurons, generator=self.generator, dtype=torch.float64)
        raw = draw.to(pencil.device, pencil.dtype)
        point, in_stage = self._stage(factor, y, raw), 0
        for count in range(tuning.max_iterations):
            record.iterations += 1
            in_stage += 1
            gradient, diagonal = point.log_gradient(), point.log_diagonal()
            step = self._direction(point, gradient, diagonal)
            if record.expired:
                return
            slope = float(gradient @ step.direction)
            predicted = -(slope + 0.5 * float(step.direction @ step.image))
            length, found = self._line_search(point, step.direction, slope)
            self._adapt(step, diagonal, length)
            if count % 3 == 2 and not pencil.weighted:
                lower = optimum_lower_bound(self.system, point.factor, point.smoothed, self.order)
                record.lower = max(record.lower, lower)
            if found is not None:
                top = float(eigvalsh(found.y)[-1])
                record.offer(found.d.double(), top * found.price, f"lipsdp step {record.iterations}")
            if record.expired or predicted < 1e-13 or record.closed(tuning.tol):
                return
            if self.smoothing <= tuning.tol * 1.0001:
                if -slope < 0.2 * tuning.tol or (found is None and self.radius < 1e-9):
                    return
            elif self._stage_done(slope, length, found):
                # One full step was enough: the stages are closer than they need be.
                shrink = tuning.shrink**2 if in_stage == 1 and length == 1.0 else tuning.shrink
                self.smoothing, in_stage = max(self.smoothing * shrink, tuning.tol), 0
                self.radius = max(self.radius, 1.0)
                best = found or point
                point = self._stage(best.factor, best.y, raw)
                continue
            if found is not None:
                point = found
                point.prepare()

    def _stage(self, factor: Factor, y: Tensor, raw: Tensor) -> Point:
        """A new smoothing and newly weighted probes at the current multipliers."""
        reference = max(float(eigvalsh(y)[-1]), 1e-300)
        strength = self.tuning.beta * self.smoothing * reference
        probes = weighted_probes(raw, factor, strength, self.generator, self.layers)
        mu = self.smoothing / factor.pencil.outputs
        point = Point(factor, Model(probes, mu, reference, self.tuning.hessian_probes))
        point.prepare()
        return point

    def _stage_done(self, slope: float, length: float, found: Point | None) -> bool:
        if found is None:
            return -slope < 1e-3 * self.smoothing
        return -slope < 0.5 * self.smoothing and length > 0.4

    def _direction(self, point: Point, gradient: Tensor, diagonal: Tensor) -> _Step:
        def times_hessian(p: Tensor) -> Tensor:
            self.record.hessian_products += 1
            return point.log_hessian_times(p)

        return truncated_cg(
            times_hessian,
            gradient,
            diagonal,
            self.radius,
            self.tuning.cg_iterations,
            lambda: self.record.expired,
            least=_LEAST_SHALLOW if len(self.system.sizes) < _SHALLOW else _LEAST_PRODUCTS,
        )

    def _line_search(self, point: Point, direction: Tensor, slope: float) -> tuple[float, Point | None]:
        """Halves the step until A(D) is positive definite and the objective falls enough."""
        length = min(1.0, 2.0 / (float(direction.abs().amax()) + 1e-300))
        for _ in range(8):
            factor = point.factor.pencil.factor(point.d * torch.exp(length * direction))
            self.record.factorisations += 1
            if factor is not None:
                candidate = Point(factor, point.model)
                if 0.0 < candidate.value < math.inf:
                    decrease = point.log_value - candidate.log_value
                    if decrease >= -0.05 * length * slope:
                        return length, candidate
            if self.record.expired:
                break
            length *= 0.5
        return length, None

    def _adapt(self, step: _Step, diagonal: Tensor, length: float) -> None:
        size = math.sqrt(max(float(step.direction @ (diagonal * step.direction)), 0.0))
        if length < 0.2:
            self.radius = max(2.5 * length, 0.05) * size
        elif step.at_radius and length > 0.6:
            self.radius *= 3.0
        elif length == 1.0:
            self.radius = max(self.radius, 3.0 * size)


def truncated_cg(
    times_hessian: Callable[[Tensor], Tensor],
    gradient: Tensor,
    diagonal: Tensor,
    radius: float,
    limit: int,
    expired: Callable[[], bool] = lambda: False,
    tol: float = 0.1,
    least: int = _LEAST_PRODUCTS,
) -> _Step:
    """Conjugate gradients on the quadratic model inside |x|_diagonal <= radius.

    Source: Steihaug, SIAM J. Numer. Anal. 20 (1983); lengths in the preconditioner norm by the recurrences of Conn,
        Gould, Toint, Trust-Region Methods, section 7.5.1.
    """
    x, image = torch.zeros_like(gradient), torch.zeros_like(gradient)
    residual = -gradient
    scaled = residual / diagonal
    p = scaled.clone()
    energy = first = float(residual @ scaled)
    pp, xp, xx = energy, 0.0, 0.0
    for count in range(limit):
        if not energy > 0.0:
            break
        product = times_hessian(p)
        curvature = float(p @ product)
        alpha = energy / curvature if curvature > 0.0 else math.inf
        grown = xx + 2.0 * alpha * xp + alpha * alpha * pp if alpha < math.inf else math.inf
        if grown >= radius * radius:
            reach = (-xp + math.sqrt(max(xp * xp + pp * (radius * radius - xx), 0.0))) / pp
            return _Step(x + reach * p, image + reach * product, True)
        x, image = x + alpha * p, image + alpha * product
        residual = residual - alpha * product
        scaled = residual / diagonal
        new = float(residual @ scaled)
        if (new <= tol * tol * first and count >= least) or expired():
            break
        ratio, energy = new / energy, new
        xx, xp = grown, ratio * (xp + alpha * pp)
        pp = energy + ratio * ratio * pp
        p = scaled + ratio * p
    return _Step(x, image, False)
