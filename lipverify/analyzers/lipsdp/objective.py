"""What the search minimises: a smoothed largest eigenvalue of Y(D) plus a barrier of random probes, in theta = log d.

Legend: rows of b and c are worst-case trajectories, c = A^-1 B and b = V' + C'c (design: A, B, V as in `Pencil`), extended
by the probes; S are the weights of the smoothed eigenvalue, tr S = 1. All values are relative to `Smoothing.reference`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.analyzers.lipsdp.factor import Factor
from lipverify.linalg.eigen import eigh


@dataclass(frozen=True)
class Smoothed:
    """min_g g - mu logdet(g I - Y), a smooth majorant of lmax(Y) up to a constant."""

    value: float
    level: float
    """The minimising g."""
    weights: Tensor
    """S = mu (g I - Y)^-1, the gradient with respect to Y."""

    @classmethod
    def of(cls, y: Tensor, mu: float) -> Smoothed:
        values, vectors = eigh(y)
        count, top = len(values), float(values[-1])
        # Newton on sum mu / (g - l_i) = 1 from the left of its root rises monotonically: the sum is convex in g.
        level = top + mu
        for _ in range(60):
            inverse = mu / (level - values)
            excess = float(inverse.sum()) - 1.0
            slope = float((inverse * inverse).sum()) / mu
            step = excess / slope
            if not step > 1e-15 * abs(level):
                break
            level = min(level + step, top + mu * count)
        weights = mu / (level - values)
        weights = weights / weights.sum()
        value = level - mu * float(torch.log(level - values).sum())
        return cls(value, level, (vectors * weights) @ vectors.T)


@dataclass(frozen=True)
class Model:
    """The parameters of the smooth model, fixed during one stage."""

    probes: Tensor
    """[q, N]: weighted random rows that enter every block as pseudo-outputs."""
    mu: float
    reference: float
    hessian_probes: int
    negligible: float = 1e-3
    """Output directions below this share of the largest weight are left out of Hessian products (not of gradients)."""


def weighted_probes(
    raw: Tensor, factor: Factor, strength: float, generator: torch.Generator, layers: list[Tensor] | None
) -> Tensor:
    """Scales each block of the probes so that all of them together add `strength` to the objective.

    layers: the neurons of every topological block, where the blocks of the factor are others.

    Adds tr(P D A^-1 D P'), a sampled inverse barrier of the feasible set: without it steps run into S_k singular in
    directions that do not reach the output yet, and the search jams on deep networks.
    """
    pencil = factor.pencil
    weighted = raw.clone()
    if layers is not None:
        signs = torch.randint(0, 2, (16, pencil.neurons), generator=generator).to(factor.d) * 2.0 - 1.0
        rows = signs * factor.d
        # Signs s: s'D A^-1 D s, neuron by neuron, is about the diagonal of D A^-1 D.
        weight = (rows * factor.solve(rows)).sum(0) / len(signs)
        for layer in layers:
            trace = max(float(weight[layer].sum()), 1e-300)
            weighted[:, layer] *= (strength / (len(layers) * len(raw) * trace)) ** 0.5
        return weighted
    for j, here in enumerate(pencil.part):
        trace = max(factor.diagonal_weight(j, generator), 1e-300)
        weighted[:, here] *= (strength / (len(pencil.part) * len(raw) * trace)) ** 0.5
    return weighted


class Point:
    """The objective at D. `prepare` adds gradient, preconditioner and Hessian products in log d."""

    def __init__(self, factor: Factor, model: Model) -> None:
        self.factor, self.model, self.d = factor, model, factor.d
        pencil = factor.pencil
        rows = pencil.border(self.d)
        if len(model.probes):
            rows = torch.cat([rows, model.probes * self.d])
        self.half = factor.forward(rows)
        outputs = self.half[: pencil.outputs]
        self.y = torch.addmm(pencil.Y0, outputs, outputs.T).double()
        self.smoothed = Smoothed.of(self.y / model.reference, model.mu)
        self.barrier = float(self.half[pencil.outputs :].square().sum()) / model.reference
        self.value = self.smoothed.value + self.barrier
        inputs = pencil.part[0] if pencil.weighted else slice(0, 0)
        self.inverse_weights = 1.0 / self.d[inputs]
        self.price = float(self.inverse_weights.sum()) if pencil.weighted else 1.0
        """The factor of rho that the input weights cost; 1 without weights."""

    def prepare(self) -> None:
        """Gradient dPhi/dlog d_i = 2 d_i [(c S) o (b - c)]_i summed over rows, and the diagonal d/2 (b S b + (2c-b) S (2c-b))."""
        pencil, model, d = self.factor.pencil, self.model, self.d
        m = pencil.outputs
        weights = (self.smoothed.weights / model.reference).to(d.dtype)
        c = self.factor.backward(self.half)
        self.half = c[:0]
        b = pencil.times_c(c)
        b[:m] += pencil.V
        b[m:] += model.probes
        gap = b - self._lead(c, 0.5)
        probe_weight = 1.0 / model.reference
        self.gradient = (
            2.0 * d * (((weights @ c[:m]) * gap[:m]).sum(0) + probe_weight * (c[m:] * gap[m:]).sum(0))
        )
        bend = b - self._lead(c, 1.0)
        size = ((weights @ b[:m]) * b[:m] + (weights @ bend[:m]) * bend[:m]).sum(0)
        size += probe_weight * (b[m:].square() + bend[m:].square()).sum(0)
        diagonal = 0.5 * d * size
        self.diagonal = diagonal + 1e-10 * diagonal.amax()
        self._keep_for_products(c, bend)
        self.outputs, self.output_gap = c[:m].clone(), gap[:m].clone()
        identity = torch.eye(m, dtype=torch.float64, device=d.device)
        inverse = torch.linalg.inv(self.smoothed.level * identity - self.y / model.reference)
        self.inverse = (0.5 * (inverse + inverse.T)).to(d.dtype)
        self.inverse_squared = self.inverse @ self.inverse
        self.inverse_trace = float(self.inverse_squared.trace())

    def _lead(self, c: Tensor, share: float) -> Tensor:
        """Half of the derivative of the diagonal of A, times 2 share: c, with c / 2 on an input block."""
        result = c * (2.0 * share)
        if self.factor.pencil.weighted:
            result[:, self.factor.pencil.part[0]] *= 0.5
        return result

    @property
    def log_value(self) -> float:
        """log f, plus the log of the price of the input weights."""
        return math.log(self.value * self.price)

    def log_gradient(self) -> Tensor:
        """Of `log_value` in log d."""
        result = self.gradient / self.value
        if self.factor.pencil.weighted:
            result[self.factor.pencil.part[0]] -= self.inverse_weights / self.price
        return result

    def log_diagonal(self) -> Tensor:
        """The preconditioner for `log_hessian_times`."""
        result = self.diagonal / self.value
        if self.factor.pencil.weighted:
            result[self.factor.pencil.part[0]] += self.inverse_weights / self.price
        return result

    def log_hessian_times(self, direction: Tensor) -> Tensor:
        """Of `log_value` in log d."""
        relative = self.gradient / self.value
        result = self.hessian_times(direction) / self.value
        result += relative * direction - relative * (relative @ direction)
        if self.factor.pencil.weighted:
            inputs = self.factor.pencil.part[0]
            share = self.inverse_weights / self.price
            result[inputs] += share * direction[inputs] - share * (share @ direction[inputs])
        return result

    def _keep_for_products(self, c: Tensor, bend: Tensor) -> None:
        """Rows that Hessian products use: output directions that carry weight, and a few of the probes, reweighted."""
        model, m = self.model, self.factor.pencil.outputs
        values, vectors = eigh(self.smoothed.weights)
        chosen = values > model.negligible * values[-1]
        basis, values = vectors[:, chosen].T.to(c.dtype), values[chosen].to(c.dtype)
        used = min(len(model.probes), model.hessian_probes)
        share = len(model.probes) / max(used, 1)
        rows = slice(m, m + used)
        self.c = torch.cat([basis @ c[:m], c[rows]])
        self.bend = torch.cat([basis @ bend[:m], bend[rows]])
        weights = torch.cat([values, torch.full_like(c[rows, 0], share)]) / model.reference
        self.weighted_c, self.weighted_bend = weights[:, None] * self.c, weights[:, None] * self.bend

    def hessian_times(self, direction: Tensor) -> Tensor:
        """Second derivative in d, in units of log d: add gradient o direction for the Hessian in log d.

        With eta = d o p: J = eta o (b - 2c) + C (eta o c), E = A^-1 J S, and 2 d o rowsum[(b - 2c) o E + c o C'E], plus the
        change of S. Multiplying J by S first saves the product with S afterwards.
        """
        pencil = self.factor.pencil
        eta = self.d * direction
        rows = pencil.times_c_transposed(eta * self.weighted_c).addcmul_(self.weighted_bend, eta)
        solved = self.factor.solve(rows)
        result = (self.bend * solved + self.c * pencil.times_c(solved)).sum(0)
        outputs = self.outputs
        change = (outputs * eta) @ self.output_gap.T
        change = self.inverse @ ((change + change.T) / self.model.reference) @ self.inverse
        spectral = self.model.mu * (
            change - (float(change.trace()) / self.inverse_trace) * self.inverse_squared
        )
        result += ((spectral @ outputs) * self.output_gap).sum(0) / self.model.reference
        return 2.0 * self.d * result
