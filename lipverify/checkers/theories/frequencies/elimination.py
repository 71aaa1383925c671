"""The matrix of a torus, block by block at every frequency, and what bounds it from above."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from lipverify.checkers.kernel.account import charge, held, returned
from lipverify.checkers.kernel.arithmetic import TINY, Array, gamma, sums
from lipverify.checkers.theories.frequencies.waves import Pair, Wave, covered
from lipverify.errors import NotCovered

_UP, _CHUNK = 1.0 + 2.0**-20, 1 << 20
"""A factor that covers roundings of sums of errors; numbers of one chunk of frequencies."""


class Spread:
    """A over blocks, one eliminated after another, at every frequency; the last one is what is wanted, and stays."""

    def __init__(self, points: Pair, blocks: list[Wave], wanted: Wave) -> None:
        # Finest first, the input ahead: a block goes before what reads it, and entries stand at its frequencies.
        order = sorted(range(len(blocks)), key=lambda k: math.prod(blocks[k].scale))
        self.order, self.blocks, self.scales = (
            order,
            [blocks[k] for k in order],
            [blocks[k].scale for k in order],
        )
        self.blocks, self.scales, self.coarsest = (
            [*self.blocks, wanted],
            [*self.scales, wanted.scale],
            wanted.scale,
        )
        covered(
            all(b[a] % s[a] == 0 for s, b in pairwise(self.scales) for a in (0, 1)),
            "scales that do not divide one another",
        )
        whole = all(points[a] > 0 and points[a] % self.coarsest[a] == 0 for a in (0, 1))
        covered(whole, "a torus that the coarsest scale does not divide")
        self.counts = [points[a] // self.coarsest[a] for a in (0, 1)]
        self.part = np.arange(0), np.arange(0)
        """Numerators of coarse frequencies that are in hand, along both axes."""
        self.matrix: dict[Pair, Array] = {}
        self.sizes: list[Array] = []
        """Roots of diagonals, about: errors of an entry are shared by two diagonals in their proportion."""

    def fine(self, scale: Pair) -> Pair:
        return self.coarsest[0] // scale[0], self.coarsest[1] // scale[1]

    def layout(self, scale: Pair) -> tuple[int, ...]:
        f = self.fine(scale)
        return f[0], len(self.part[0]), f[1], len(self.part[1])

    def phases(self, offsets: Array, scale: Pair, at: Pair) -> Array:
        """exp(2 pi i w x) at the frequencies of a scale `at` for offsets [n, 2] at another one: [f, half, f, n, offsets].

        A reduced turn is exact up to u, so that each factor is within 40 u, and the product within 100 u.
        """
        charge(2 * math.prod(self.layout(at)) * len(offsets))
        own = []
        for a in (0, 1):
            u = np.arange(self.fine(at)[a])[:, None] * self.counts[a] + self.part[a]
            n = self.counts[a] * self.fine(scale)[a]
            angle = 2.0 * math.pi * (((u[..., None] * offsets[:, a]) % n) / n)
            own.append(np.cos(angle) + 1j * np.sin(angle))
        return np.asarray(own[0][:, :, None, None] * own[1][None, None])

    def symbol(self, k: int, j: int) -> tuple[Array, Array]:
        """Block k over block j, at the frequencies of j: [f, half, f, n, out, in], and bounds of the errors [out, in]."""
        (begin, channels), end = (self.scales[j], self.blocks[j].channels), self.scales[k]
        total: Any = 0.0
        most, count, paths = np.zeros((1, 1)), 0, self.blocks[k].parts[self.order[j]]
        for path in paths:
            product, absolute, own, scale = np.eye(channels, dtype=complex), np.eye(channels), 0, begin
            for tap in path:
                phases, (out, inner, taps) = self.phases(tap.offsets, scale, begin), tap.weight.shape
                if not taps:
                    raise NotCovered("a convolution that reads padding alone is not covered by the checker")
                frequencies = phases.size // taps
                charge(4 * frequencies * out * inner, 8 * frequencies * out * inner * (taps + channels))
                flat = tap.weight.reshape(-1, taps).T
                values = np.empty((*phases.shape[:4], out * inner), dtype=complex)
                values.real, values.imag = phases.real @ flat, phases.imag @ flat
                values = values.reshape(*phases.shape[:4], out, inner)
                product = values @ product if tap is not path[0] else values
                absolute = (sums(tap.weight, 2) if tap.size is None else tap.size) @ absolute
                own += 200 + 4 * (inner + taps) + tap.rounded
                scale = scale[0] * tap.stride[0], scale[1] * tap.stride[1]
            total, most, count = total + product, most + absolute, max(count, own)
        if not bool((most < 2.0**300).all()):
            raise NotCovered("symbols near the ends of float64 are not covered by the checker")
        root = math.sqrt(math.prod(end) // math.prod(begin))
        error = (most * (2.0 * gamma(count + 4 * len(paths) + 16)) + TINY) / root * _UP
        return np.broadcast_to(total / root, (*self.layout(begin), *most.shape)), error

    def factor(self, multipliers: Sequence[Array]) -> Array | None:
        """R [m, m] with RR' above VA^-1 V*; None where A is not shown to be definite."""
        last, n = self.blocks[-1], self.counts
        # The rows of V stand where -L H does, over the root of the points of the torus, and nothing on their diagonal.
        self.given = [np.ones(0), *multipliers, np.full(last.channels, -1.0 / math.sqrt(math.prod(n)))]
        self.given = [self.given[k] for k in (*self.order, len(self.order))]
        total, slack = np.zeros((last.channels,) * 2), np.zeros(last.channels)
        # Frequencies of the coarsest torus are independent: a few at a time.
        each = (n[0] // 2 + 1) * max(math.prod(self.fine(x.scale)) * x.channels**2 for x in self.blocks)
        step = max(1, _CHUNK // each)
        for k in range(0, n[1], step):
            before, self.part = held(), (np.arange(n[0] // 2 + 1), np.arange(k, min(n[1], k + step)))
            gram = self._eliminated()
            if gram is None:
                return None
            # The other half are conjugates.
            weights = np.where((2 * self.part[0]) % n[0] == 0, 1.0, 2.0)[:, None, None, None, None]
            flat = (gram.real * weights).reshape(-1, *total.shape)
            total, slack = total + flat.sum(0), slack + sums(flat, 0).sum(1) * _UP
            returned(before - held())
        return _root(total, 2.0 * gamma(2 * math.prod(n) + 16) * slack * _UP + TINY)

    def _eliminated(self) -> Array | None:
        """VA^-1 V* from above at the frequencies in hand."""
        end, self.matrix, self.sizes = len(self.order), {}, []
        for k, given in enumerate(self.given):
            known = np.ones(self.blocks[0].channels) if k == 0 else (2.0 if k < end else 0.0) * given
            charge(2 * math.prod(self.layout(self.scales[k])) * len(known) ** 2)
            self.matrix[k, k] = np.tile(np.diag(known.astype(complex)), (*self.layout(self.scales[k]), 1, 1))
            self.sizes.append(np.sqrt(known))
        for j, own in enumerate(self.order):
            before = held()
            for k in range(j + 1, end + 1):
                if own in self.blocks[k].parts:
                    symbol, off = self.symbol(k, j)
                    value = -self.given[k][:, None] * symbol
                    if k == end:
                        long = np.sqrt(((np.abs(value).max((0, 1, 2, 3)) / self.sizes[j]) ** 2).sum(-1))
                        self.sizes[k] = np.maximum(self.sizes[k], np.where(long > 0, long, 1.0))
                    off = np.abs(self.given[k][:, None]) * off + gamma(8) * np.abs(value)
                    self._add(k, j, value, off, self.scales[j])
            columns = {k: self.matrix.pop((k, j)) for k in range(j + 1, end + 1) if (k, j) in self.matrix}
            a, at = self.matrix.pop((j, j)), 0
            if columns:
                gram = above(a, np.concatenate([np.swapaxes(v.conj(), -1, -2) for v in columns.values()], -1))
                if gram is None:
                    return None
                places = {k: slice(at, at := at + v.shape[-2]) for k, v in columns.items()}
                for i, k in ((i, k) for i in places for k in places if k <= i):
                    self._add(i, k, -gram[..., places[i], places[k]], None, self.scales[j])
            returned(before - held())
        return -self.matrix[end, end]

    def _add(self, i: int, k: int, value: Array, off: Array | None, have: Pair) -> None:
        """A_ik, at the frequencies of k, plus what is off by so much at those of `have`, summed over aliases."""
        want, old = self.scales[k], self.matrix.get((i, k))
        total = self._folded(value, have, want)
        if old is not None or have != want:
            size = self._folded(np.abs(value), have, want) + (0.0 if old is None else np.abs(old))
            rounded = gamma(math.prod(want) // math.prod(have) + 8) * size
            off = rounded if off is None else off + rounded
        self.matrix[i, k] = total if old is None else old + total
        if off is None:
            return
        # 2 e |x y| <= e (r x^2 + y^2 / r) for every r > 0.
        ratio = self.sizes[i][:, None] / self.sizes[k]
        for block, rows in ((i, (off * ratio).sum(-1)), (k, (off / ratio).sum(-2)))[: 1 + (i != k)]:
            diagonal = np.einsum("...ii->...i", self.matrix[block, block])
            every = np.broadcast_to(rows, (*self.layout(want), rows.shape[-1]))
            taken = self._folded(every, want, self.scales[block]) * _UP
            diagonal -= taken + gamma(8) * np.abs(diagonal) + TINY

    def _folded(self, values: Array, have: Pair, want: Pair) -> Array:
        """Sums over aliases: from the frequencies of a scale to those of a coarser one."""
        if have == want:
            return values
        f, g, (_, half, _, n, *rest) = self.fine(have), self.fine(want), values.shape
        return np.asarray(values.reshape(f[0] // g[0], g[0], half, f[1] // g[1], g[1], n, *rest).sum((0, 3)))


def _root(k: Array, slack: Array) -> Array | None:
    """R with RR' above every symmetric matrix whose rows differ from those of k by at most `slack` in sum."""
    own = np.arange(len(k))
    k = (k + k.T) / 2
    root = np.sqrt(np.maximum(k[own, own] + slack, TINY)) * _UP
    # Cholesky of k is exact for a matrix off by at most unit root root', as in `positive_definite`.
    k[own, own] += slack + 1.01 * gamma(2 * len(k) + 32) * root * sums(root)
    try:
        return np.linalg.cholesky(k) if bool(np.isfinite(k).all()) else None
    except np.linalg.LinAlgError:
        return None


def _squares(z: Array) -> Array:
    """Squares of absolute values."""
    return np.asarray(z.real * z.real + z.imag * z.imag)


def above(a: Array, b: Array) -> Array | None:
    """Matrices above b* a^-1 b for Hermitian a [..., n, n] and b [..., n, k]; None where a > 0 is not shown.

    Statement: with L from Cholesky of a - diag(t) and any Y, [[a, b], [b*, G]] is [L; Y*][L; Y*]* plus blocks diag(t) + rounding,
        b - LY and G - Y*Y. It is diagonally dominant, hence semidefinite, if t and what G has more than Y*Y are row sums of
        these; and |L_i| |L_j| <= sqrt(a_ii a_jj) nearly, |Y_k| is computed.
    Source: as `positive_definite`; a complex inner product of n terms is two real ones of 2n (Higham, section 3.6).
    """
    diagonal, (n, k) = np.einsum("...ii->...i", a).real, b.shape[-2:]
    if not bool((diagonal > 0).all() and np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    many = diagonal.size // n
    charge(2 * many * (4 * n * k + k * k + 2 * n * n), 8 * many * (n**3 + 3 * n * n * k + n * k * k))
    half = np.ldexp(1.0, -(np.frexp(diagonal)[1] // 2))
    a, b = half[..., None] * a * half[..., None, :], half[..., None] * b
    root, unit = np.sqrt(half * diagonal * half), 1.01 * gamma(8 * (n + k) + 64)
    total = root.sum(-1, keepdims=True)
    shift = 4.0 * unit * root * (total + 1.5 * k) + TINY
    np.einsum("...ii->...i", a)[...] -= shift
    try:
        lower = np.linalg.cholesky(a)
        y = np.linalg.solve(lower, b)
    except np.linalg.LinAlgError:
        return None
    # Columns times powers of two, so that each is near 1: the same matrix on both sides.
    scale = np.ldexp(1.0, -(np.frexp(_squares(y).sum(-2))[1] // 2))
    y, b = y * scale[..., None, :], b * scale[..., None, :]
    long = np.sqrt(_squares(y).sum(-2)) * _UP
    # |z| <= |Re z| + |Im z|, without a root for each entry.
    gap, lengths = b - lower @ y, total + long.sum(-1, keepdims=True)
    gap = np.abs(gap.real) + np.abs(gap.imag)
    least = (unit * root * lengths + gap.sum(-1)) * _UP + TINY
    if not bool((shift >= least).all()):
        return None
    gram = np.swapaxes(y.conj(), -1, -2) @ y
    gram = (gram + np.swapaxes(gram.conj(), -1, -2)) / 2
    np.einsum("...ii->...i", gram)[...] += (unit * long * lengths + gap.sum(-2)) * _UP + TINY
    return np.asarray(gram / scale[..., None] / scale[..., None, :])
