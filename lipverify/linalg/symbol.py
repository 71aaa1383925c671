"""The symbol of a convolution: its matrix of frequency responses, and certified maxima of its norm over frequencies.

A zero-padded convolution is a compression of the convolution on the infinite lattice, whose l2 norm is the supremum
over frequencies of |S(f)|, S(f) = sum_a K[a] exp(2 pi i f.a). On an n-point input it is also a compression of the
convolution on any torus too large to wrap around, and then the maximum over that torus' frequencies is enough.

Legend: K is [groups, out, in, *taps]; f are frequencies in turns; d = (taps - 1) / 2 per axis is the degree of S.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from lipverify.deadline import look
from lipverify.linalg.dense import interpolation_bound, operator_norm, threshold_bound
from lipverify.linalg.eigen import eigvalsh, largest_singular
from lipverify.linalg.rounding import UNIT_ROUNDOFF, gamma, inflate

# Complex entries of the symbol held at once: 64 MB.
_CHUNK_ENTRIES = 1 << 22
# Real multiplications and frequencies that one search may spend: a second or two on one core.
_WORK, _MOST_FREQUENCIES = 4e10, 8192
# Symbols with more rows and columns than this are not bounded by sums of their entries first.
_SIDE = 32
# Symbols with more rows and columns than this are looked at by so many steps of Lanczos first, which miss the largest singular
# value by less than this; and the complex entries of them that stay near the processor.
_WIDE, _STEPS, _ROUGH, _CACHED = 200, 24, 5e-3, 1 << 17
_REMEMBERED = 1 << 10
_PEAKS: dict[tuple[bytes, tuple[int, ...], tuple[tuple[int, float], ...]], float] = {}
# The search stops when the bound is this close to the largest norm seen.
_TOLERANCE = 1e-4
# Thresholds are this much above single precision estimates, so that their proof does not fail by rounding.
_SLACK = 1.0 + 2.0**-18


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

    @cached_property
    def _absolute(self) -> float:
        """At least the l2 norm of the matrices of sums of |K| over taps."""
        sums = inflate(self.kernel.abs().flatten(3).sum(-1), gamma(math.prod(self.kernel.shape[3:])))
        return interpolation_bound(sums).max().item()

    @property
    def work(self) -> float:
        """Rough count of real multiplications to bound the norm at one frequency."""
        groups, outputs, inputs = self.kernel.shape[:3]
        short, long = sorted((outputs, inputs))
        return 4.0 * groups * (short**2 * long + 8 * short**3) + 100.0

    def norms(self, frequencies: Tensor, enough: Tensor | float = 0.0) -> Tensor:
        """Upper bounds of |S(f)| at each frequency.

        Statement: result[j] >= |S(f)| for every f whose coordinates agree with frequencies[j] to relative 2u, so that
            a rounded j / N stands for the exact one.

        Args:
            frequencies: [count, axes] float64 in [-1/2, 1/2].
            enough: one number or [count]; where a bound of about that size is proved, no sharper one is sought.
        """
        limits = torch.as_tensor(enough, dtype=torch.float64, device=frequencies.device).expand(
            len(frequencies)
        )
        chunks = zip(frequencies.split(self._chunk), limits.split(self._chunk), strict=True)
        return torch.cat([self._norms(f, limit) for f, limit in chunks])

    def estimates(self, frequencies: Tensor) -> Tensor:
        """|S(f)| in single precision, proving nothing: to choose frequencies and thresholds."""
        return torch.cat([self._estimated(self._single(chunk)) for chunk in frequencies.split(self._chunk)])

    def peak(self, frequencies: Tensor) -> float:
        """The largest estimate: of large symbols, a few steps of Lanczos say at which frequencies it may be."""
        if min(self.kernel.shape[1:3]) < _WIDE:
            return float(self.estimates(frequencies).max())
        chunks = frequencies.split(max(1, _CACHED // math.prod(self.kernel.shape[:3])))
        rough = torch.cat([largest_singular(self._single(chunk), _STEPS).amax(-1) for chunk in chunks])
        return float(self.estimates(frequencies[rough >= rough.max() * (1.0 - _ROUGH)]).max())

    def torus_peak(self, choice: Sequence[tuple[int, float]]) -> float:
        """`peak` over a twisted torus, (points, twist) for each axis; of wide kernels it is remembered.

        The proof that is written of a bound asks for it again, of the same kernel up to a power of two and an order of roundings.
        """
        if min(self.kernel.shape[1:3]) < _WIDE:
            return self.peak(_torus(choice, self))
        exponent = int(torch.frexp(self.kernel.abs().max())[1])
        single = torch.ldexp(self.kernel, torch.tensor(-exponent)).float().contiguous()
        digest = hashlib.blake2b(single.cpu().numpy().tobytes(), digest_size=16).digest()
        key = digest, tuple(self.kernel.shape), tuple(choice)
        if key not in _PEAKS:
            while len(_PEAKS) >= _REMEMBERED:
                _PEAKS.pop(next(iter(_PEAKS)))
            _PEAKS[key] = math.ldexp(self.peak(_torus(choice, self)), -exponent)
        return math.ldexp(_PEAKS[key], exponent)

    def _single(self, frequencies: Tensor) -> Tensor:
        """S in single precision, not wider than high: [count, groups, n, m]."""
        look()
        values = self.evaluate(frequencies)[0].to(torch.complex64)
        return values if values.shape[-2] >= values.shape[-1] else values.mH

    @staticmethod
    def _estimated(values: Tensor) -> Tensor:
        largest: Tensor = eigvalsh(values.mH @ values)[..., -1].amax(-1)
        return largest.clamp(min=0.0).sqrt().to(torch.float64)

    @property
    def _chunk(self) -> int:
        return max(1, _CHUNK_ENTRIES // math.prod(self.kernel.shape[:3]))

    def _norms(self, frequencies: Tensor, enough: Tensor) -> Tensor:
        look()
        values, error = self.evaluate(frequencies)
        values = values if values.shape[-2] >= values.shape[-1] else values.mH
        bounds = torch.full((len(values),), math.inf, dtype=torch.float64, device=values.device)
        # Cheap bounds pass small symbols; from a size on they hardly ever do, and cost as much as a proof.
        if values.shape[-1] <= _SIDE:
            bounds = interpolation_bound(values).amax(-1)
        open_ = bounds > enough
        tested = open_ & (enough > 0) if values.shape[-1] > 1 else torch.zeros_like(open_)
        if bool(tested.any()):
            whole = bool(tested.all())
            found, proved = threshold_bound(
                values if whole else values[tested], (enough if whole else enough[tested])[:, None]
            )
            proved = proved.all(-1)
            passed = tested.nonzero()[:, 0][proved]
            bounds[passed] = found.amax(-1)[proved]
            open_[passed] = False
        if bool(open_.any()):
            bounds[open_] = operator_norm(values[open_], "l2", "l2").amax(-1)
        return inflate(bounds + error, gamma(4))

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
        error = 1.5 * (phase + gamma(taps + 2)) * self._absolute
        return values.reshape(len(frequencies), *shape[:3]), error


def supremum(symbol: Symbol) -> float:
    """Upper bound of the norm of S over all frequencies: valid for every input size.

    Statement: |S(f)| <= result for all f.
    Source: Bernstein-Szego inequality T'^2 + d^2 T^2 <= d^2 M^2 for real trigonometric polynomials of degree d bounded by M
        (Borwein, Erdelyi, Polynomials and Polynomial Inequalities, theorem 5.1.3); applied to Re(u* S(f) v) along each
        axis it makes arccos(|S| / M) Lipschitz with constant 2 pi d_i per turn. Hence the box that holds the maximum,
        with centre g and half widths h, has |S(g)| >= M cos(sum_i 2 pi d_i h_i) (M. Riesz's lemma in one axis).
    Sound when: the boxes cover the torus (real kernels: half of it, as S(-f) is the conjugate of S(f)).

    Boxes are split where estimates are high; then the norm at every centre is proved.
    """
    speed = 2.0 * math.pi * torch.tensor(symbol.degrees, dtype=torch.float64, device=symbol.kernel.device)
    boxes = _partition(symbol, speed)
    target = max((b.estimates / b.shrink).max().item() for b in boxes) * _SLACK
    upper = 0.0
    for centres, _, shrink in boxes:
        # The cosine is at least 1/2 and carries an error of a few u; the box bound is rounded up.
        norms = symbol.norms(centres, target * shrink)
        upper = max(upper, inflate(norms / shrink, gamma(8)).max().item())
    return upper


class _Boxes(NamedTuple):
    centres: Tensor  # [count, axes]
    estimates: Tensor  # [count] of |S| at the centres, unproved
    shrink: float  # a lower bound of cos(sum_i 2 pi d_i h_i) for their half widths h


def _partition(symbol: Symbol, speed: Tensor) -> list[_Boxes]:
    """Boxes that cover half the torus, smaller where |S| is large, within the work allowed."""
    centres, widths = _first_boxes(symbol.degrees)
    centres, widths = centres.to(speed.device), widths.to(speed.device)
    splits = 2 ** sum(degree > 0 for degree in symbol.degrees)
    budget = min(_WORK / symbol.work, _MOST_FREQUENCIES) - len(centres)
    settled: list[_Boxes] = []
    best = 0.0
    while True:
        shrink = math.cos(float((speed * widths).sum()) * (1.0 + 2.0**-45)) - 2.0**-50
        estimates = symbol.estimates(centres)
        best = max(best, estimates.max().item())
        open_ = (estimates > best * (1.0 + _TOLERANCE) * shrink).nonzero()[:, 0]
        open_ = open_[estimates[open_].argsort(descending=True)][: max(0, int(budget / splits))]
        closed = torch.ones(len(centres), dtype=torch.bool, device=centres.device)
        closed[open_] = False
        if bool(closed.any()):
            settled.append(_Boxes(centres[closed], estimates[closed], shrink))
        if not len(open_):
            return settled
        centres, widths = _split(centres[open_], widths / 2, symbol.degrees)
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


def torus_work(symbol: Symbol, sizes: Sequence[int]) -> float:
    """Rough count of real multiplications of `torus_maximum` for one torus."""
    return symbol.work * math.prod(sizes) / 2


def torus_maximum(symbol: Symbol, sizes: Sequence[int]) -> float:
    """Upper bound of the l2 norm of the compression that no torus of `sizes` points or more wraps around.

    Statement: for every torus N >= sizes and every twist t in {0, 1/2}, max over f in (Z + t) / N of |S(f)| is a bound:
        multiplying input and output by the unimodular exp(2 pi i t x / N) changes K[a] to K[a] exp(2 pi i t a / N), keeps
        the norm, and moves the frequencies by t / N. The torus with the smallest estimate is proved.
    Source: compressions do not increase the norm; Sedghi, Gupta, Long, ICLR 2019, for the torus itself.
    Sound when: see `Convolution.embedding_sizes`.
    """
    candidates = []
    for more in (0, 1):
        axes = [
            [(size + more, 0.5), (size + more, 0.0)] if degree > 0 else [(1, 0.0)]
            for size, degree in zip(sizes, symbol.degrees, strict=True)
        ]
        candidates += list(itertools.product(*axes))
    count = max(1, min(len(candidates), int(_WORK / 4 / torus_work(symbol, sizes))))
    peaks = [symbol.torus_peak(choice) for choice in candidates[:count]]
    chosen = min(range(count), key=peaks.__getitem__)
    return symbol.norms(_torus(candidates[chosen], symbol), peaks[chosen] * _SLACK).max().item()


def circular_maximum(symbol: Symbol, sizes: Sequence[int]) -> float:
    """Largest norm of S over the frequencies j / sizes, rounded up: the norm of the circular convolution itself."""
    points = _torus([(size, 0.0) for size in sizes], symbol)
    # Exact where it is attained: the frequencies near the largest estimate are not merely proved to be below a threshold.
    return symbol.norms(points, symbol.peak(points) * (2.0 - _SLACK)).max().item()


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
