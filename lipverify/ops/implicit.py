"""Implicit (equilibrium) layers: z = phi(W z + U x + b).

Legend: phi has slopes in [a, s]; c = max(|a|, |s|); K a positive diagonal matrix; B a drive, z = phi(W z + B p); |.| the l2
norm where no other is named.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from lipverify.errors import Undecided, UsageError
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op, Shape
from lipverify.linalg.definite import corner_upper
from lipverify.linalg.dense import operator_norm_upper, vector_norms
from lipverify.linalg.eigen import eigh, eigvalsh, spectral_estimate
from lipverify.linalg.rounding import Upper, gamma, inflate
from lipverify.ops.affine import Linear
from lipverify.ops.embedding import blocks_norm, embedding, single, through_same_norm
from lipverify.ops.enclosure import Enclosure
from lipverify.ops.piecewise import ReLU
from lipverify.rules import Gain, Unbounded, forward, gain, interval, slopes

_FACTORS = (1.05, 1.2, 1.5, 2.0, 3.0, 6.0)
"""Sizes of K that are tried, above the smallest possible one."""
_LARGE = 200
"""Beyond this width the first K that works is taken: further ones cost hundreds of eigenvalue problems."""
_ROUNDS = 5000
"""Steps of the fixed-point search before it admits that it failed."""


@dataclass(frozen=True, eq=False)
class Implicit(Op):
    """The z with z = phi(W z + U x + b), on the last axis: x [batch, ..., in] -> z [batch, ..., n].

    recurrent W [n, n], inputs U [n, in], bias b [n] or None; activation phi: a scalar activation without stored tensors.

    Raises:
        UsageError: shapes that do not fit, or an activation that is none.
    """

    recurrent: Tensor
    inputs: Tensor
    bias: Tensor | None = None
    activation: Op = field(default_factory=ReLU)

    def __post_init__(self) -> None:
        size = self.recurrent.shape[0] if self.recurrent.ndim == 2 else -1
        fits = self.recurrent.shape == (size, size) and self.inputs.ndim == 2 and len(self.inputs) == size
        if not fits or (self.bias is not None and self.bias.shape != (size,)):
            raise UsageError("an implicit layer needs W [n, n], U [n, inputs] and a bias [n] or none")
        stored = any(isinstance(getattr(self.activation, f.name), Tensor) for f in fields(self.activation))
        if stored or not slopes.covers(type(self.activation)):
            raise UsageError(f"{self.activation.kind()} is no scalar activation without stored tensors")


# -- the equilibrium


@forward.register(Implicit)
def _equilibrium(op: Implicit, x: Tensor) -> Tensor:
    """To machine precision. Differentiable in x, by the implicit function theorem: one Newton step of value about zero.

    Raises:
        Undecided: the search for the fixed point did not reach machine precision.
    """
    drive = torch.nn.functional.linear(x, op.inputs, op.bias)
    if drive.is_meta:
        return drive
    with torch.no_grad():
        z = _fixed_point(op, drive.detach())
    if not drive.requires_grad:
        return z
    defect = forward(op.activation, torch.nn.functional.linear(z, op.recurrent) + drive) - z
    slope = derivative(op, torch.nn.functional.linear(z, op.recurrent) + drive)
    return z + _newton_step(op, slope, defect)


def derivative(op: Implicit, v: Tensor) -> Tensor:
    """phi'(v), elementwise."""
    with torch.enable_grad():
        v = v.detach().requires_grad_(True)
        (found,) = torch.autograd.grad(forward(op.activation, v).sum(), v)
    return found


def _newton_step(op: Implicit, slope: Tensor, defect: Tensor) -> Tensor:
    """(I - diag(slope) W)^-1 defect, for every sample."""
    matrix = (
        torch.eye(len(op.recurrent), dtype=slope.dtype, device=slope.device) - slope[..., None] * op.recurrent
    )
    solved: Tensor = torch.linalg.solve_ex(matrix, defect[..., None])[0][..., 0]
    return solved


def _fixed_point(op: Implicit, drive: Tensor) -> Tensor:
    """Splitting steps, which converge for every layer with a proof of well-posedness, and Newton steps where they help."""
    step = _Splitting(op, drive)
    z = step.z
    error = step.error(z)
    for index in range(_ROUNDS):
        if not bool((error > 0).any()):
            return z
        step.advance()
        candidates = [step.z]
        if index % 25 == 0:
            moved = z
            for _ in range(6):
                moved = moved + _newton_step(op, step.slope(moved), step.defect(moved))
            candidates.append(moved)
        for candidate in candidates:
            found = step.error(candidate)
            better = found < error
            z, error = torch.where(better[..., None], candidate, z), torch.where(better, found, error)
    raise Undecided(
        f"the equilibrium of an implicit layer [{len(op.recurrent)}] was not found to machine precision in {_ROUNDS} steps; "
        "the layer may have no unique fixed point"
    )


class _Splitting:
    """Plain iteration for contractions, else Douglas-Rachford splitting on y = z / s.

    Source: Winston, Kolter, NeurIPS 2020 (arXiv 2006.08591), operator splitting for monotone layers: phi / s has slopes in
    [0, 1], so it is a proximal map, and 2 I - s W is invertible.
    """

    def __init__(self, op: Implicit, drive: Tensor) -> None:
        self.op, self.drive = op, drive
        low, self.high = slope_range(op)
        size = len(op.recurrent)
        bound = max(abs(low), abs(self.high)) * spectral_estimate(op.recurrent)
        self.plain = bound < 0.9 or low < 0.0 or self.high <= 0.0
        self.magnitude = op.recurrent.abs()
        self.u = drive
        self.z = forward(op.activation, drive)
        if not self.plain:
            matrix = 2.0 * torch.eye(size, dtype=drive.dtype, device=drive.device) - self.high * op.recurrent
            self.inverse = torch.linalg.inv_ex(matrix)[0]

    def advance(self) -> None:
        if self.plain:
            self.z = self.z + self.defect(self.z)
            return
        y = self.z / self.high
        self.u = self.u + torch.nn.functional.linear(2.0 * y - self.u + self.drive, self.inverse) - y
        self.z = forward(self.op.activation, self.u)

    def defect(self, z: Tensor) -> Tensor:
        """phi(W z + U x + b) - z."""
        return forward(self.op.activation, torch.nn.functional.linear(z, self.op.recurrent) + self.drive) - z

    def slope(self, z: Tensor) -> Tensor:
        """phi'(v), by a difference quotient: the search also runs where torch records no derivatives."""
        v = torch.nn.functional.linear(z, self.op.recurrent) + self.drive
        h = torch.finfo(z.dtype).eps ** 0.5 * (1.0 + v.abs())
        above, below = forward(self.op.activation, v + h), forward(self.op.activation, v - h)
        quotient: Tensor = (above - below) / (2.0 * h)
        return quotient

    def error(self, z: Tensor) -> Tensor:
        """How far the defect exceeds the rounding of its own evaluation, for every sample; not a number counts as infinite."""
        allowed = torch.nn.functional.linear(z.abs(), self.magnitude) + self.drive.abs() + z.abs()
        count = len(self.op.recurrent) + 8
        largest = self.defect(z).abs().amax(-1) if count > 8 else z.sum(-1)
        above = largest - count * torch.finfo(z.dtype).eps * (allowed.amax(-1) if count > 8 else 0.0)
        return torch.nan_to_num(above, nan=math.inf)


# -- well-posedness and how far a change goes


def slope_range(op: Implicit) -> tuple[float, float]:
    """(a, s): the proven slopes of the activation over the whole line."""
    found = slopes(op.activation, None, (1,))
    return float(found.lower[0]), float(found.upper[0])


def contraction(op: Implicit, norm: Norm, drive: Tensor) -> Upper | None:
    """c |B| / (1 - c |W|), or None unless c |W| < 1.

    Statement: z exists, is unique, and |z(p) - z(q)| <= bound |p - q|, all in this norm.
    Source: Banach's fixed-point theorem; |dz| <= c |W| |dz| + c |B| |dp|.
    """
    low, high = slope_range(op)
    c = Upper.of(max(abs(low), abs(high)))
    shrink = c * operator_norm_upper(op.recurrent, norm.value, norm.value)
    if not shrink < 1.0:
        return None
    return c * operator_norm_upper(drive, norm.value, norm.value) * Upper.of(1 / (1 - Fraction(shrink.value)))


def monotone(op: Implicit, drive: Tensor) -> Upper | None:
    """The bound of a diagonal multiplier K; None where no K is found and proved.

    Statement: with 2K - s (K W + W'K) > I, z exists, is unique, and |z(p) - z(q)| <= sqrt(rho) |p - q| as soon as
            rho |dp|^2 - |dz|^2 - 2 sum_i K_i dz_i (s (W dz + B dp)_i - dz_i) >= 0   for all dp, dz.
    Source: the slopes give dz_i (s dv_i - dz_i) >= 0. With dp = 0 this leaves dz = 0, for every choice of slopes, so that all
        I - diag(slopes) W are invertible and v -> z exists by Hadamard's theorem (Clarke's inverse function theorem). El
        Ghaoui, Gu, Travacca, Askari, Tsai 2021 (arXiv 1908.06315); Winston, Kolter 2020 (arXiv 2006.08591) for K = I; Revay,
        Wang, Manchester 2020 (arXiv 2010.01732) for diagonal K.
    Sound when: the slopes are not negative, and the assumptions of `lipverify.linalg` hold.
    """
    low, high = slope_range(op)
    found = None if low < 0.0 else multipliers(op.recurrent.double(), drive.double(), high)
    return None if found is None else Upper.of(found[0]).sqrt()


def multipliers(w: Tensor, b: Tensor, high: float) -> tuple[float, Tensor] | None:
    """The smallest rho that is proved for W, B and slopes in [0, high], with its K; see `monotone`."""
    best: tuple[float, Tensor] | None = None
    for weight in multiplier_candidates(w):
        if best is not None and len(w) > _LARGE:
            break
        curvature = 2.0 * torch.diag(weight) - high * (weight[:, None] * w + w.T * weight)
        smallest = float(eigvalsh(curvature)[0])
        if not smallest > 0.0:
            continue
        for factor in _FACTORS:
            k = weight * (factor / smallest)
            found = _monotone_root(w, b, high, k)
            if found is not None and (best is None or found < best[0]):
                best = found, k
    return best


def _monotone_root(w: Tensor, b: Tensor, high: float, k: Tensor) -> float | None:
    """rho for one K, proved."""
    size, inputs = b.shape
    matrix, bound = (
        torch.zeros(inputs + size, inputs + size, dtype=torch.float64, device=w.device) for _ in range(2)
    )
    pulled, across = high * (k[:, None] * w), -high * (k[:, None] * b)
    inner = 2.0 * torch.diag(k) - (pulled + pulled.T) - torch.eye(size, dtype=torch.float64, device=w.device)
    matrix[inputs:, inputs:] = inner
    matrix[inputs:, :inputs], matrix[:inputs, inputs:] = across, across.T
    # Two products, and up to three sums on the diagonal.
    bound[inputs:, inputs:] = torch.diag(2.0 * k + 1.0) + pulled.abs() + pulled.abs().T
    bound[inputs:, :inputs], bound[:inputs, inputs:] = across.abs(), across.abs().T
    return corner_upper(matrix, inflate(bound, 16 * gamma(1)) * gamma(8), inputs)


def multiplier_candidates(w: Tensor) -> Iterator[Tensor]:
    """Diagonals K > 0 worth trying for 2K - (KW + W'K) > 0: I, the Perron vectors of |W|, and what a descent finds."""
    ones = torch.ones(len(w), dtype=torch.float64, device=w.device)
    yield ones
    left = right = ones
    for _ in range(200):
        left, right = w.abs().T @ left + 1e-9, w.abs() @ right + 1e-9
        left, right = left / left.amax(), right / right.amax()
    yield left / right
    yield _descended(w)


def _descended(w: Tensor, steps: int = 200) -> Tensor:
    """Lowers the largest eigenvalue of K^(1/2) W K^(-1/2) + its transpose over diagonals K, by normalised subgradients."""
    exponent = torch.zeros(len(w), dtype=torch.float64, device=w.device)
    for index in range(steps):
        root = torch.exp(exponent / 2.0)
        scaled = root[:, None] * w / root
        top = eigh(scaled + scaled.T)[1][:, -1]
        weight = top[:, None] * scaled * top
        gradient = weight.sum(1) - weight.sum(0)
        exponent = exponent - gradient / gradient.norm().clamp_min(1e-300) / (1.0 + 0.1 * index)
    return torch.exp(exponent)


@lru_cache(maxsize=32)
def response(op: Implicit, through_inputs: bool = True) -> Upper:
    """The certified l2 bound of x -> z, or of a change of the pre-activation -> z; its existence is the proof of uniqueness.

    Raises:
        Unbounded: neither proof of a unique fixed point succeeds.
    """
    exact = op.to(dtype=torch.float64)
    size = len(exact.recurrent)
    identity = torch.eye(size, dtype=torch.float64, device=exact.recurrent.device)
    drive = exact.inputs if through_inputs else identity
    found = [
        bound for bound in (contraction(exact, Norm.L2, drive), monotone(exact, drive)) if bound is not None
    ]
    if not found:
        raise Unbounded(
            "no proof that its fixed point is unique: it needs slope times |W| below 1, or slopes from 0 to s with a positive "
            "diagonal K such that 2K - s (KW + W'K) > 0"
        )
    return min(found)


# -- rules


@gain.register(Implicit)
def _implicit_gain(op: Implicit, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """The smallest of contraction and monotone bounds; norms without a contraction go through l2; further axes are blocks."""
    size, inputs = op.inputs.shape
    exact, whole = op.to(dtype=torch.float64), response(op)

    def same(norm: Norm) -> Upper:
        if norm is Norm.L2:
            return whole
        around = embedding(size, Norm.L2, norm) * whole * embedding(inputs, norm, Norm.L2)
        direct = contraction(exact, norm, exact.inputs)
        return around if direct is None else min(around, direct)

    block = through_same_norm(same, inputs, size, norm_in, norm_out)
    return single(blocks_norm(block, math.prod(shapes[0][:-1]), norm_in, norm_out))


@interval.register(Implicit)
def _implicit_interval(op: Implicit, box: Interval) -> Interval:
    """A ball around the equilibrium of the centre, cut by its images under z -> phi(W z + U x + b).

    With e = phi(W z0 + U x0 + b) - z0 at a computed z0, the equilibrium of x is within g | |U| r |_2 + (1 + g |W|) |e|_2 of z0
    where r is the radius of the box around x0 and g the response to a change of the pre-activation.
    """
    exact, x = op.to(dtype=torch.float64), Enclosure.of(box)
    whole = Linear(torch.cat([exact.recurrent, exact.inputs], 1), exact.bias)
    response(op)
    finite = (x.lower.isfinite() & x.upper.isfinite()).all(-1, keepdim=True)
    lower, upper = torch.where(finite, x.lower, 0.0), torch.where(finite, x.upper, 0.0)
    centre = lower / 2 + upper / 2
    z = forward(exact, centre).detach()
    image = _image(exact, whole, Interval(z, z), Interval(centre, centre))
    defect = torch.maximum((image.upper - z).abs(), (image.lower - z).abs())
    radius = torch.maximum(upper - centre, centre - lower)
    reach = _reach(op, exact, inflate(radius, 4 * gamma(1)), inflate(defect, 4 * gamma(1)))
    reach = torch.where(finite, reach, math.inf)
    found = Interval(z, z).widened(reach.expand_as(z))
    for _ in range(6):
        image = _image(exact, whole, found, x)
        found = Interval(torch.maximum(found.lower, image.lower), torch.minimum(found.upper, image.upper))
    return found


def _image(op: Implicit, whole: Linear, z: Interval, x: Interval) -> Interval:
    """A box of phi(W z + U x + b)."""
    joined = Interval(torch.cat([z.lower, x.lower], -1), torch.cat([z.upper, x.upper], -1))
    return interval(op.activation, interval(whole, joined))


def _reach(op: Implicit, exact: Implicit, radius: Tensor, defect: Tensor) -> Tensor:
    """g | |U| r |_2 + (1 + g |W|) |e|_2, rounded up, [batch, ..., 1]."""
    g = float(response(op, False))
    more = float(response(op, False) * operator_norm_upper(exact.recurrent, "l2", "l2") + 1.0)
    inputs = exact.inputs.shape[1]
    spread = inflate(torch.nn.functional.linear(radius, exact.inputs.abs()), gamma(inputs + 4))
    far, off = (_lengths(part) for part in (spread, defect))
    return inflate(g * far + more * off, 8 * gamma(1))[..., None] + torch.finfo(torch.float64).tiny


def _lengths(rows: Tensor) -> Tensor:
    """l2 norms of rows, rounded up; a unit of the largest entry avoids overflow and underflow."""
    largest = rows.amax(-1, keepdim=True)
    unit = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    return inflate(vector_norms(rows / unit, "l2") * unit[..., 0], 8 * gamma(1))
