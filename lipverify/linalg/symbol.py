"""The symbol of a convolution: its matrix of frequency responses, and certified maxima of its norm over frequencies.

A zero-padded convolution is a compression of the convolution on the infinite lattice, whose l2 norm is the supremum
over frequencies of |S(f)|, S(f) = sum_a K[a] exp(2 pi i f.a). On an n-point input it is also a compression of the
convolution on any torus too large to wrap around, and then the maximum over that torus' frequencies is enough.

Legend: K is [groups, out, in, *taps]; f are frequencies in turns; d = (taps - 1) / 2 per axis is the degree of S.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.linalg.dense import interpolation_bound, operator_norm
from lipverify.linalg.rounding import UNIT_ROUNDOFF, gamma, inflate

# Complex entries of the symbol held at once: 64 MB.
_CHUNK_ENTRIES = 1 << 22
# Real multiplications the frequency search may spend beyond its first grid: a second or two on one core.
_WORK = 3e10
# Norms known from the first grid that are used to rule out others.
_RULERS = 512
# The search stops when the bound is this close to the largest norm seen.
_TOLERANCE = 1e-4


def polyphase(weight: Tensor, stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """The stride-1, undilated kernel of the same map: residues of the input position modulo the stride become channels.

    Args:
        weight: [groups, out, in, *taps].

    Returns:
        [groups, out, in', *taps'], taps' = floor(dilation (taps - 1) / stride) + 1; phases without any tap are left out.
    """
    spatial = weight.ndim - 3
    for axis in range(spatial):
        taps, s, dil = weight.shape[3 + axis], stride[axis], dilation[axis]
        coarse = dil * (taps - 1) // s + 1
        moved = weight.movedim(3 + axis, -1)
        spread = moved.new_zeros((*moved.shape[:-1], coarse * s))
        spread[..., torch.arange(taps, device=weight.device) * dil] = moved
        # position = s * coarse index + phase; the phase joins the input channels, the coarse index is the new tap.
        phases = spread.unflatten(-1, (coarse, s)).movedim(-2, 3 + axis).movedim(-1, 3)
        weight = phases.flatten(2, 3)
    used = (weight != 0).flatten(3).any(-1).any(1).any(0) if weight.numel() else None
    return weight if used is None or not bool(used.any()) else weight[:, :, used]


@dataclass(frozen=True)
class Symbol:
    """Certified norms of S(f), the largest over groups (the groups are diagonal blocks)."""

    kernel: Tensor  # [groups, out, in, *taps] float64, largest entry near 1

    @property
    def degrees(self) -> tuple[float, ...]:
        return tuple((taps - 1) / 2 for taps in self.kernel.shape[3:])

    @property
    def is_constant(self) -> bool:
        return max(self.kernel.shape[3:]) == 1

    def norms(self, frequencies: Tensor, enough: Tensor | None = None) -> Tensor:
        """Upper bounds of |S(f)| at each frequency.

        Statement: result[j] >= |S(f)| for every f whose coordinates agree with frequencies[j] to relative 2u, so that
            a rounded j / N stands for the exact one.
        Args:
            frequencies: [count, axes] float64 in [-1/2, 1/2].
            enough: [count]; where a cheap certified bound is already below, it is returned instead of a sharp one.
        """
        groups, outputs, inputs = self.kernel.shape[:3]
        size = max(1, _CHUNK_ENTRIES // (groups * outputs * inputs))
        limits = torch.zeros(len(frequencies)).to(frequencies) if enough is None else enough
        chunks = zip(frequencies.split(size), limits.split(size), strict=True)
        return torch.cat([self._chunk(f, limit) for f, limit in chunks])

    def _chunk(self, frequencies: Tensor, enough: Tensor) -> Tensor:
        values, error = self.evaluate(frequencies)
        bounds = inflate(interpolation_bound(values).amax(-1) + error, gamma(4))
        open_ = bounds > enough
        if bool(open_.any()):
            sharp = operator_norm(values[open_], "l2", "l2").amax(-1)
            bounds[open_] = torch.minimum(bounds[open_], inflate(sharp + error, gamma(4)))
        return bounds

    def evaluate(self, frequencies: Tensor) -> tuple[Tensor, float]:
        """S at each frequency, [count, groups, out, in], and a bound of the l2 norm of its error.

        Taps are counted from the centre, which multiplies S by a number of modulus 1. An angle 2 pi f.a has relative
        error 10u for the sum of |2 pi f_i a_i| (f itself 2u, products, sums, the constant), its sine and cosine 4u more,
        the sum over taps gamma_taps; real and imaginary part together sqrt2, and each times the sum of |K| over taps.
        """
        shape = self.kernel.shape
        taps = math.prod(shape[3:])
        axes = [
            torch.arange(t, dtype=torch.float64, device=self.kernel.device) - (t - 1) / 2 for t in shape[3:]
        ]
        offsets = torch.cartesian_prod(*axes).reshape(taps, len(axes))
        angles = 2.0 * math.pi * (frequencies @ offsets.T)
        flat = self.kernel.reshape(-1, taps)
        values = torch.complex(angles.cos() @ flat.T, angles.sin() @ flat.T)
        largest_angle = math.pi * sum(self.degrees)
        phase = (10 + 2 * len(axes)) * UNIT_ROUNDOFF * largest_angle + 4 * UNIT_ROUNDOFF
        absolute = interpolation_bound(inflate(self.kernel.abs().flatten(3).sum(-1), gamma(taps))).max()
        error = 1.5 * (phase + gamma(taps + 2)) * absolute.item()
        return values.reshape(len(frequencies), *shape[:3]), error


@dataclass(frozen=True)
class Supremum:
    """A bound of |S| over all frequencies, with the points that were looked at."""

    upper: float
    points: Tensor  # [count, axes]
    values: Tensor  # [count] certified norms at the points


def supremum(symbol: Symbol, *, refine: bool = True) -> Supremum:
    """Upper bound of the norm of S over all frequencies: valid for every input size; coarse without `refine`.

    Statement: |S(f)| <= upper for all f.
    Source: Bernstein-Szego inequality T'^2 + d^2 T^2 <= d^2 M^2 for real trigonometric polynomials of degree d bounded by M
        (Borwein, Erdelyi, Polynomials and Polynomial Inequalities, theorem 5.1.3); applied to Re(u* S(f) v) along each
        axis it makes arccos(|S| / M) Lipschitz with constant 2 pi d_i per turn. Hence the box that holds the maximum,
        with centre g and half widths h, has |S(g)| >= M cos(sum_i 2 pi d_i h_i) (M. Riesz's lemma in one axis).
    Sound when: the boxes cover the torus (real kernels: half of it, as S(-f) is the conjugate of S(f)).
    """
    degrees = symbol.degrees
    device = symbol.kernel.device
    centres, widths = _first_boxes(degrees)
    centres, widths = centres.to(device), widths.to(device)
    speed = 2.0 * math.pi * torch.tensor(degrees, dtype=torch.float64, device=device)
    norms = symbol.norms(centres)
    bounds = _box_bound(norms, widths, speed)
    points, values = [centres], [norms]
    settled = 0.0
    groups, outputs, inputs = symbol.kernel.shape[:3]
    small = min(outputs, inputs)
    budget = _WORK / (groups * small * (8 * outputs * inputs + 80 * small * small)) if refine else 0.0
    while True:
        best = max(v.max().item() for v in values)
        open_ = bounds > best * (1.0 + _TOLERANCE)
        settled = max([settled, *bounds[~open_].tolist()])
        splits = 2 ** sum(d > 0 for d in degrees)
        if not bool(open_.any()) or budget < int(open_.sum()) * splits:
            return Supremum(max([settled, *bounds[open_].tolist()]), torch.cat(points), torch.cat(values))
        centres, widths = _split(centres[open_], widths / 2, degrees)
        shrink = torch.cos((speed * widths).sum())
        norms = symbol.norms(centres, torch.full_like(centres[:, 0], best) * shrink)
        bounds = _box_bound(norms, widths, speed)
        points.append(centres)
        values.append(norms)
        budget -= len(centres)


def _first_boxes(degrees: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Centres and half widths of boxes covering half the torus; dyadic numbers, so that they cover exactly."""
    active = [axis for axis, degree in enumerate(degrees) if degree > 0]
    axes, widths = [], []
    for axis, degree in enumerate(degrees):
        if axis not in active:
            axes.append(torch.zeros(1, dtype=torch.float64))
            widths.append(0.0)
            continue
        count = 1 << max(2, math.ceil(math.log2(4 * len(active) * degree)))
        centre = (torch.arange(count, dtype=torch.float64) + 0.5) / count - 0.5
        axes.append(centre[count // 2 :] if axis == active[0] else centre)
        widths.append(0.5 / count)
    return torch.cartesian_prod(*axes).reshape(-1, len(degrees)), torch.tensor(widths, dtype=torch.float64)


def _split(centres: Tensor, widths: Tensor, degrees: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Halves every box along every axis of positive degree; `widths` are the new half widths."""
    signs = [(-1.0, 1.0) if degree > 0 else (0.0,) for degree in degrees]
    steps = torch.tensor(list(itertools.product(*signs)), dtype=torch.float64, device=centres.device) * widths
    return (centres[:, None, :] + steps).flatten(0, 1), widths


def _box_bound(norms: Tensor, widths: Tensor, speed: Tensor) -> Tensor:
    """norm / cos(sum of 2 pi d h), rounded up; the cosine is at least 1/2, so a few roundings stay a few."""
    angle = float((speed * widths).sum()) * (1.0 + 2.0**-45)
    return inflate(norms / (math.cos(angle) - 2.0**-50), gamma(8))


def torus_maximum(symbol: Symbol, sizes: Sequence[int], known: Supremum) -> float:
    """Upper bound of the l2 norm of the compression that no torus of `sizes` points or more wraps around.

    Statement: for every torus N >= sizes and every twist t in {0, 1/2}, max over f in (Z + t) / N of |S(f)| is a bound:
        multiplying input and output by the unimodular exp(2 pi i t x / N) changes K[a] to K[a] exp(2 pi i t a / N), keeps
        the norm, and moves the frequencies by t / N. The smallest of these maxima is taken.
    Source: compressions do not increase the norm; Sedghi, Gupta, Long, ICLR 2019, for the torus itself. Frequencies whose
        bound from `known` (Bernstein-Szego) is below the maximum already found are not evaluated.
    Sound when: see `embedding_sizes`.
    """
    candidates = []
    for more in (0, 1):
        axes = [
            [(size + more, 0.0), (size + more, 0.5)] if degree > 0 else [(1, 0.0)]
            for size, degree in zip(sizes, symbol.degrees, strict=True)
        ]
        candidates += [_torus(choice, symbol) for choice in itertools.product(*axes)]
    ceilings = [_ceilings(points, known, symbol) for points in candidates]
    firsts = []
    for points, ceiling in zip(candidates, ceilings, strict=True):
        # The most promising few frequencies rank the tori.
        firsts.append(symbol.norms(points[ceiling.topk(min(8, len(points))).indices]).max().item())
    best = known.upper
    for index in sorted(range(len(firsts)), key=firsts.__getitem__)[:2]:
        if firsts[index] < best:
            best = min(best, _maximum(symbol, candidates[index], ceilings[index], firsts[index]))
    return best


def circular_maximum(symbol: Symbol, sizes: Sequence[int]) -> float:
    """Largest norm of S over the frequencies j / sizes, rounded up: the norm of the circular convolution itself."""
    points = _torus([(size, 0.0) for size in sizes], symbol)
    return _maximum(symbol, points, torch.full_like(points[:, 0], math.inf), 0.0)


def _torus(choice: Sequence[tuple[int, float]], symbol: Symbol) -> Tensor:
    """Half of the frequencies of a twisted torus: the other half are their negatives, with conjugate symbols."""
    axes = []
    for size, twist in choice:
        index = torch.arange(size, dtype=torch.float64, device=symbol.kernel.device)
        frequency = (index + twist) / size
        axes.append(torch.where(frequency > 0.5, (index + twist - size) / size, frequency))
    active = next((axis for axis, (size, _) in enumerate(choice) if size > 1), 0)
    axes[active] = axes[active][axes[active] >= 0]
    return torch.cartesian_prod(*axes).reshape(-1, len(axes))


def _ceilings(points: Tensor, known: Supremum, symbol: Symbol) -> Tensor:
    """Upper bounds of |S| at `points` from the norms already known: M cos(arccos(v / M) - sum_i 2 pi d_i |f_i - g_i|)."""
    speed = 2.0 * math.pi * torch.tensor(symbol.degrees, dtype=torch.float64, device=points.device)
    result = torch.full_like(points[:, 0], known.upper)
    # Only differences below 1/2 turn count, and -g is as good as g.
    # The first points are the coarsest boxes and spread over the torus: a few hundred rule out as much as all.
    centres, values = known.points[:_RULERS], known.values[:_RULERS]
    angles = torch.arccos((values / known.upper).clamp(max=1.0))
    for sign in (1.0, -1.0):
        for chunk in torch.arange(len(points), device=points.device).split(max(1, (1 << 22) // len(angles))):
            gap = (points[chunk, None, :] - sign * centres[None, :, :]).abs()
            gap = torch.minimum(gap, 1.0 - gap)
            reach = (angles - gap @ speed).clamp(min=0.0)
            result[chunk] = torch.minimum(result[chunk], known.upper * torch.cos(reach.amax(-1)))
    # arccos is ill-conditioned near 1: an error of 2^-52 in v / M moves the cosine by at most 2^-25 at angle 2^-26,
    # and the cosine of the shifted angle by less than 2^-25 in all.
    return inflate(result + known.upper * 2.0**-24, gamma(8))


def _maximum(symbol: Symbol, points: Tensor, ceilings: Tensor, found: float) -> float:
    order = ceilings.argsort(descending=True)
    points, ceilings = points[order], ceilings[order]
    best, start = found, 0
    while start < len(points) and ceilings[start].item() > best:
        batch = slice(start, start + 64)
        limits = torch.full_like(ceilings[batch], best)
        best = max(best, symbol.norms(points[batch], limits).max().item())
        start += 64
    return best
