"""A bound from multipliers over frequencies with every rounding accounted for.

Every entry of A that cannot be computed exactly is replaced by a stored number, and the diagonal lowered by the row sums of
what that may be off: the stored A is below the real one. Eliminating a block needs a matrix above b* a^-1 b, which is
proved, not computed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lipverify.analyzers.lipsdp.frequencies.elimination import Frequencies, Reduced, folded, reduced
from lipverify.analyzers.lipsdp.frequencies.form import INPUT, Pair, Path
from lipverify.analyzers.lipsdp.frequencies.search import Multipliers, dense_matrix, dense_parts
from lipverify.analyzers.lipsdp.system import BlockSystem
from lipverify.errors import UnsupportedModel
from lipverify.linalg.definite import corner_upper
from lipverify.linalg.rounding import UNIT_ROUNDOFF, Upper, gamma

_TINY, _UP = 2.0**-300, 1.0 + 2.0**-20
_ENTRIES = 1 << 23
"""Numbers of one chunk of frequencies."""


def above(a: Tensor, b: Tensor) -> Tensor | None:
    """A matrix above b* a^-1 b; None where it is not proved.

    Statement: with t, L, Y stored, [[a, b], [b*, G]] is [L; Y*][L; Y*]* plus a remainder of blocks a - LL*, b - LY and G - Y*Y,
        which is diagonally dominant when t and the diagonal added to Y*Y are at least its row sums; so it is semidefinite, which
        is G >= b* a^-1 b because a > 0.
    Rounding: a - diag(t) - LL* is at most gamma |L_i| |L_j| <= gamma root(a_ii a_jj) (Higham, theorem 10.3), products of Y as
        long as their factors, and b - LY is computed, with the error of that; a complex inner product of n terms is two real
        ones of 2n (section 3.6). Scalings by powers of two are exact.

    Args:
        a: [..., n, n] Hermitian, b: [..., n, k], complex.
    """
    n, k = b.shape[-2:]
    flat_a, flat_b = a.reshape(-1, n, n), b.reshape(-1, n, k)
    size, found = max(1, _ENTRIES // ((n + k) * (n + k))), []
    for i in range(0, len(flat_a), size):
        part = _above(flat_a[i : i + size], flat_b[i : i + size])
        if part is None:
            return None
        found.append(part)
    return torch.cat(found).reshape(*b.shape[:-2], k, k)


def _above(a: Tensor, b: Tensor) -> Tensor | None:
    diagonal = a.diagonal(dim1=-2, dim2=-1).real
    if not bool((diagonal > 0).all() and torch.isfinite(a).all() and torch.isfinite(b).all()):
        return None
    n, k = b.shape[-2:]
    half = _halved(diagonal)
    a, b = half[..., None] * a * half[..., None, :], half[..., None] * b
    root, unit = (half * diagonal * half).sqrt(), 1.01 * gamma(8 * (n + k) + 64)
    total = root.sum(-1, keepdim=True)
    shift = 4.0 * unit * root * (total + 1.5 * k) + _TINY
    for _ in range(6):
        factor, failed = torch.linalg.cholesky_ex(a - torch.diag_embed(shift).to(a.dtype))
        if bool(failed.any()):
            return None
        y = torch.linalg.solve_triangular(factor, b, upper=False)
        scale = _halved(_squares(y).sum(-2))
        y, seen = y * scale[..., None, :], b * scale[..., None, :]
        long = _squares(y).sum(-2).sqrt() * _UP
        # |z| <= |Re z| + |Im z|, without a root for each entry.
        gap = torch.view_as_real(seen - factor @ y).abs().sum(-1)
        lengths = total + long.sum(-1, keepdim=True)
        need = (unit * root * lengths + gap.sum(-1)) * _UP + _TINY
        # Comparisons with NaN are false, so that a NaN never passes.
        if bool((shift >= need).all()):
            break
        shift = torch.maximum(shift, 2.0 * need)
    else:
        return None
    gram = y.mH @ y
    more = (unit * long * lengths + gap.sum(-2)) * _UP + _TINY
    gram = (gram + gram.mH) / 2 + torch.diag_embed(more).to(a.dtype)
    found: Tensor = gram / scale[..., None] / scale[..., None, :]
    return found


def _squares(z: Tensor) -> Tensor:
    return torch.view_as_real(z).square().sum(-1)


def _halved(sizes: Tensor) -> Tensor:
    """Powers of two near 1 / sqrt(size); 1 for zeros."""
    _, exponent = torch.frexp(sizes)
    return torch.exp2(-torch.div(exponent, 2, rounding_mode="floor").to(torch.float64))


class Enclosed:
    """A from below, as stored numbers."""

    plain = False

    def __init__(self, frequencies: Frequencies) -> None:
        self.of = frequencies
        self._sizes: dict[int, Tensor] = {}
        """Roots of diagonals, about: what an entry is off by is shared by two diagonals in their proportion."""

    def coupled(self, state: Reduced, k: int, j: int, multipliers: Tensor) -> Tensor:
        symbol = state.of.between(k, j)
        paths = state.of.form.blocks[k].reads.parts[j]
        strides = _strides(state.of.scales[j], state.of.scales[k])
        off = self._symbol_error(paths, strides) + 8.0 * UNIT_ROUNDOFF * symbol.abs()
        value = -multipliers[:, None] * symbol
        self._lower(state, k, j, multipliers[:, None] * off)
        return value

    def eliminated(self, a: Tensor, b: Tensor) -> Tensor | None:
        return above(a, b)

    def subtract(self, state: Reduced, i: int, k: int, part: Tensor, have: Pair, want: Pair) -> None:
        count = (have[0] // want[0]) * (have[1] // want[1]) + 8
        old = state.matrix.get((i, k))
        size = folded(part.abs(), have, want)
        size = size if old is None else size + old.abs()
        total = folded(part, have, want)
        state.matrix[i, k] = -total if old is None else old - total
        self._lower(state, i, k, 2.0 * gamma(count) * size)

    def read(self, state: Reduced, j: int) -> Tensor:
        value = state.of.reading(j)
        long = (value.abs().amax((0, 1, 2, 3)) / self._size_of(state, j)).square().sum(1).sqrt()
        long = torch.where(long > 0, long, torch.ones_like(long))
        self._sizes[state.of.out] = torch.maximum(self._sizes.get(state.of.out, long), long)
        self._lower(state, state.of.out, j, self._reading_error(j) + 8.0 * UNIT_ROUNDOFF * value.abs())
        return value

    def total(self, a: Tensor, rows: Tensor, weights: Tensor) -> Tensor | None:
        gram = above(a, rows.mH)
        return None if gram is None else _weighted(gram.real, weights)

    def summed(self, state: Reduced, total: Tensor, known: Tensor | None) -> Tensor:
        weights, found = state.of.weights(), total
        if known is not None:
            more = _weighted(-known.real, weights)
            found = total + more + torch.diag(4.0 * UNIT_ROUNDOFF * (total.abs() + more.abs()).sum(1))
        if state.outside is not None:
            added = (state.outside * weights[:, None, None, None]).sum((0, 1, 2, 3)) * (1.0 + 2.0**-20)
            found = found + torch.diag(added + 4.0 * UNIT_ROUNDOFF * found.diagonal().abs())
        return found

    def _reading_error(self, j: int) -> Tensor:
        """How far entries of the output over block j may be off, whatever the frequency: [outputs, channels]."""
        of, form = self.of, self.of.form
        strides = _strides(of.scales[j], form.last.scale)
        error = self._symbol_error(form.last.parts[j], strides)
        if form.rows is None:
            return error
        size = _size(form.last.parts[j], of.channels[j]).to(of.device) / math.sqrt(strides) * (1.0 + 2.0**-20)
        positions, channels = math.prod(form.last.size), form.last.channels
        by_channel = form.rows.reshape(-1, channels, positions).abs().sum(2).to(of.device)
        root = math.sqrt(math.prod(form.points(form.last.scale)))
        spectrum = (by_channel * (1.0 + 2.0**-20) + form.rows_error * positions) / root
        # Phases as in `_symbol_error`, and sums over the window along one axis after the other.
        apart = (by_channel * gamma(4 * sum(form.last.size) + 400) + form.rows_error * positions) / root
        return 2.0 * (
            apart @ size + spectrum @ error.expand_as(size) + gamma(4 * channels + 16) * (spectrum @ size)
        )

    def _symbol_error(self, paths: Sequence[Path], strides: int) -> Tensor:
        """How far entries of a symbol may be off: [out, in]."""
        total: Tensor | float = 0.0
        for path in paths:
            # Phases within 100 u of theirs (a reduced turn, an angle, a sine, and the product of two axes), then ordinary sums.
            count = sum(200 + 4 * (k.weight.shape[1] + k.weight[0, 0].numel()) + k.rounded for k in path) + 16
            total = total + 2.0 * gamma(count + 4 * len(paths)) * _size(
                (path,), path[0].weight.shape[1] if path else 1
            )
        return torch.as_tensor(total, dtype=torch.float64, device=self.of.device) / math.sqrt(strides)

    def _size_of(self, state: Reduced, k: int) -> Tensor:
        if k in state.given:
            return (2.0 * state.given[k]).sqrt()
        ones = torch.ones(self.of.channels[k], dtype=self.of.real, device=self.of.device)
        return self._sizes.get(k, ones)

    def _lower(self, state: Reduced, i: int, k: int, off: Tensor) -> None:
        """The diagonal below what entries (i, k), which are off by so much, can take from it: 2 e |x y| <= e (r x^2 + y^2 / r)
        for every r > 0.
        """
        fine, scales = self.of.fine, self.of.scales
        finer = self.of.finer(i, k)
        if off.ndim == 2:
            off = off.expand(finer[0], self.of.half, finer[1], len(self.of.columns), -1, -1)
        ratio = self._size_of(state, i)[:, None] / self._size_of(state, k)
        for block, sums in ((i, (off * ratio).sum(-1)), (k, (off / ratio).sum(-2)))[: 1 + (i != k)]:
            lowered = folded(sums, finer, fine[scales[block]]) * (1.0 + 2.0**-20)
            if block == self.of.out:
                state.outside = (
                    lowered if state.outside is None else (state.outside + lowered) * (1.0 + 2.0**-50)
                )
                continue
            matrix = state.matrix[block, block]
            diagonal = matrix.diagonal(dim1=-2, dim2=-1).real
            lowered = lowered + 4.0 * UNIT_ROUNDOFF * diagonal.abs()
            state.matrix[block, block] = matrix - torch.diag_embed(lowered).to(matrix.dtype)
            state.untouched = state.untouched and block != INPUT


def _weighted(values: Tensor, weights: Tensor) -> Tensor:
    """At least the sum over frequencies of symmetric matrices [f, half, f, N, m, m], each as often as it counts."""
    values = values * weights[:, None, None, None, None]
    size, found = values.abs().flatten(0, 3).sum(0), values.flatten(0, 3).sum(0)
    return (found + found.T) / 2 + torch.diag(2.0 * gamma(values.shape[:4].numel() + 8) * size.sum(1))


def _strides(source: Pair, target: Pair) -> int:
    return (target[0] // source[0]) * (target[1] // source[1])


def _size(paths: Sequence[Path], channels: int) -> Tensor:
    """Upper bounds of the absolute entries of a symbol, whatever the frequency: [out, in]."""
    total: Tensor | None = None
    for path in paths:
        product = torch.eye(channels, dtype=torch.float64)
        for kernel in path:
            product = kernel.weight.abs().sum((2, 3)) @ product
        total = product if total is None else total + product
    assert total is not None
    return total


def proved(slabs: Sequence[Frequencies], multipliers: Multipliers) -> Upper | None:
    """The bound that these multipliers prove; None where they prove none.

    Statement: |f(x) - f(y)|_2 <= result |x - y|_2 for all x, y.

    Args:
        slabs: of all frequencies, in float64.
    """
    grams: list[Tensor] = []
    for slab in slabs:
        arithmetic = Enclosed(slab)
        states = reduced([slab], lambda k, _: multipliers.channels[k - 1], arithmetic)
        gram = None if states is None else states[0].read_out(arithmetic)
        if gram is None:
            return None
        # What is left is small, and the dense part is on the CPU.
        grams.append(gram.cpu())
    form = slabs[0].form
    if form.rows is None:
        return _largest(torch.cat(grams, 3))
    gram = grams[0]
    if len(grams) > 1:
        every = torch.stack(grams)
        slack = 2.0 * gamma(len(grams) + 4) * every.abs().sum((0, 2))
        gram = every.sum(0) + torch.diag(slack)
        gram = (gram + gram.T) / 2
    if form.dense is None:
        square = corner_upper(-gram, torch.zeros_like(gram), len(gram))
    else:
        square = _behind(form.dense, gram, multipliers.neurons)
    return None if square is None else Upper.of(square).sqrt()


def _behind(system: BlockSystem, k: Tensor, neurons: Sequence[Tensor]) -> float | None:
    matrix, reading, free = dense_matrix(system, k, neurons)
    driven, first, couplings, outputs, d = (part.abs() for part in dense_parts(system, k, neurons))
    unit = 2.0 * gamma(2 * len(k) + 32)
    inner = unit * (2.0 * torch.diag(d) + couplings + couplings.T + driven @ k.abs() @ driven.T)
    across = unit * (outputs + first @ k.abs() @ driven.T)
    own = unit * (first @ k.abs() @ first.T)
    whole = torch.cat([torch.cat([-free, -reading], 1), torch.cat([-reading.T, matrix], 1)])
    error = torch.cat([torch.cat([own, across], 1), torch.cat([across.T, inner], 1)])
    return corner_upper((whole + whole.T) / 2, (error + error.T) / 2, len(free))


def _largest(gram: Tensor) -> Upper | None:
    """The root of the largest eigenvalue over all frequencies, each as a real matrix twice as large."""
    largest: Upper | None = None
    for one in gram.reshape(-1, *gram.shape[-2:]):
        real = torch.cat([torch.cat([one.real, -one.imag], 1), torch.cat([one.imag, one.real], 1)])
        real = (real + real.T) / 2
        square = corner_upper(-real, 4.0 * UNIT_ROUNDOFF * real.abs(), len(real))
        if square is None:
            return None
        largest = Upper.of(square) if largest is None else max(largest, Upper.of(square))
    if largest is None:
        raise UnsupportedModel("no frequencies")
    return largest.sqrt()
