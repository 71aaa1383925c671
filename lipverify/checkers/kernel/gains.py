"""Gains of affine maps and of single steps, and constants along the paths between two steps, for the whole space."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from lipverify.checkers.kernel import arithmetic as arith
from lipverify.checkers.kernel import exact as integers
from lipverify.checkers.kernel import program as kinds
from lipverify.checkers.kernel.account import STEP, charge
from lipverify.checkers.kernel.arithmetic import Array, need
from lipverify.checkers.kernel.curves import curve
from lipverify.checkers.kernel.program import Affine, Constant, Product, Step, View
from lipverify.checkers.kernel.signals import identity, mapped
from lipverify.errors import NotCovered

NORMS = ("l1", "l2", "linf")
_WORK, _MOST = 1 << 24, 1 << 19
Torus = Sequence[tuple[int, int]]
Gains = Mapping[tuple[str, str], Fraction]
"""Gains by the norms of a change before and after."""
Factors = Mapping[int, tuple[Fraction, ...]]
Reach = Mapping[int, Mapping[str, Fraction]]
"""Constants from one step, in its norm, to others, in each of the norms."""


def product_constant(steps: Sequence[Step], start: int, end: int, norms: tuple[str, str],
                     gains: Mapping[int, tuple[int, Gains]], factors: Factors) -> Fraction:  # fmt: skip
    """A constant of one step as a function of another: sums over the paths between them, in every norm that may help.

    gains: by the last step of a chain its first step and its gains; other steps have a rule. In l2 nothing else is followed.
    factors: what steps multiply changes of each vector they read by at most, over all inputs.
    """
    followed = ("l2",) if norms == ("l2", "l2") else NORMS
    wanted = {start, end}
    for k in range(end, start, -1):
        wanted |= set(steps[gains[k][0] if k in gains else k].reads) if k in wanted else set()
    alone = all(k >= start or isinstance(steps[k], Constant) for k in wanted)
    need(start <= end and alone, "a step that is no function of the other alone")
    need(all(start < first and k in wanted for k, (first, _) in gains.items()), "a gain that is not used")
    reach: dict[int, dict[str, Fraction]] = {}
    for k in sorted(wanted):
        charge(0, STEP)
        step = steps[k]
        if k == start:
            found = {a: embedding(norms[0], a, step.size) for a in followed}
        elif k in gains:
            first, own = gains[k]
            view = steps[first].view
            seen = {norm: _seen(steps, view, view.places, norm, reach) for norm in followed}
            pairs = {(b, a): g * seen[b] for (b, a), g in own.items() if b in seen}
            found = {a: min(g for (_, b), g in pairs.items() if b == a) for _, a in pairs}
        else:
            found = {norm: _rule(steps, step, norm, reach, factors.get(k)) for norm in followed}
        least = {a: min(embedding(b, a, step.size) * found[b] for b in found) for a in followed}
        reach[k] = {a: arith.trimmed(value) for a, value in least.items()}
    return reach[end][norms[1]]


def embedding(before: str, after: str, size: int) -> Fraction:
    """The largest |x|_after / |x|_before of vectors of this size."""
    power = {"l1": 2, "l2": 1, "linf": 0}[after] - {"l1": 2, "l2": 1, "linf": 0}[before]
    return arith.root_above(Fraction(size**power)) if power > 0 else Fraction(1)


def chain_gains(chain: Sequence[Affine], limit: float, torus: Torus | None, exact: bool) -> Gains | None:
    """Gains of a chain of affine steps, each reading the one before; None where in l2 it is not shown to be at most the limit."""
    if torus is not None:
        need(not exact, "exact checking covers chains whose matrices are stored as they are")
        each = {n: [by_sums(s, s.index, n) for s in chain] for n in ("l1", "linf")}
        others = {(n, n): math.prod(factors, start=Fraction(1)) for n, factors in each.items()}
        return {("l2", "l2"): Fraction(limit)} | others if _torus(chain, limit, torus) else None
    matrices, error = matrix_of(chain)
    if not _dense(matrices, error, limit, exact):
        return None
    if exact:
        return {("l2", "l2"): Fraction(limit)}
    charge(4 * matrices.size)
    most = np.abs(matrices) + error
    squares = most * most
    above = {("l1", "l1"): arith.sums(most, -2), ("linf", "linf"): arith.sums(most, -1), ("l1", "linf"): most,
             ("l1", "l2"): np.sqrt(arith.sums(squares, -2)), ("l2", "linf"): np.sqrt(arith.sums(squares, -1))}  # fmt: skip
    grown = {pair: Fraction(float(values.max() * (1 + arith.gamma(8)))) for pair, values in above.items()}
    return {("l2", "l2"): Fraction(limit)} | grown


# -- steps with a gain in closed form


def _owners(steps: Sequence[Step], view: View, places: Array) -> Array:
    """Which source every place belongs to; -1 for none."""
    ends = np.cumsum([steps[s].size for s in view.sources])
    return np.where(places < 0, -1, np.searchsorted(ends, places, side="right"))


def _seen(steps: Sequence[Step], view: View, places: Array, norm: str, reach: Reach) -> Fraction:
    """The constant of a vector that holds these places: l1 and l2 grow with the copies of an entry."""
    copies, owners = np.bincount(places[places >= 0].ravel(), minlength=1), _owners(steps, view, places)
    charge(0, 8 * places.size * (1 + len(view.sources)))
    most = [int(copies[places[owners == i]].max(initial=0)) for i in range(len(view.sources))]
    terms = [(n, reach[s][norm]) for n, s in zip(most, view.sources, strict=True) if n]
    if norm == "linf":
        return max((r for _, r in terms), default=Fraction(0))
    if norm == "l1":
        return sum((n * r for n, r in terms), Fraction(0))
    return arith.root_above(sum((n * r * r for n, r in terms), Fraction(0)))


def _rule(
    steps: Sequence[Step], step: Step, norm: str, reach: Reach, factors: tuple[Fraction, ...] | None
) -> Fraction:
    view = step.view
    if factors is not None:
        views = [view, step.other] if isinstance(step, Product) else [view]
        seen = (_seen(steps, v, v.places, norm, reach) for v in views)
        return sum((f * r for f, r in zip(factors, seen, strict=True)), Fraction(0))
    if isinstance(step, Constant):
        return Fraction(0)
    if isinstance(step, Affine):
        whole = by_sums(step, step.index, norm) * _seen(steps, view, view.places, norm, reach)
        places = np.append(view.places, -1)[step.index]
        owners = _owners(steps, view, places)
        own = [by_sums(step, np.where(owners == i, places, -1), norm) for i in range(len(view.sources))]
        return min(
            whole, sum((g * reach[s][norm] for g, s in zip(own, view.sources, strict=True)), Fraction(0))
        )
    if isinstance(step, kinds.Order):
        return _seen(steps, view, np.append(view.places, -1)[step.groups], norm, reach)
    joint = _seen(steps, view, view.places, norm, reach)
    if isinstance(step, kinds.Reflect):
        # The identity or a reflection on every piece: an isometry in l2, in others within the embedding of a group.
        return joint if norm == "l2" else joint * arith.root_above(Fraction(step.vectors.shape[1]))
    if isinstance(step, kinds.Scalar):
        f = curve(step.law, step.settings, step.slopes)
        steepest = f.steepest or max(float(np.abs(end).max()) for end in f.everywhere)
        if math.isfinite(steepest):
            return joint * Fraction(steepest)
    if isinstance(step, kinds.Softmax):
        return joint / 2  # in every norm: Nair 2025 (arXiv 2510.23012)
    if isinstance(step, kinds.Normalise) and norm == "l2":
        # The Jacobian before the weight is sqrt((1 - t) / epsilon) times a matrix between 0 and I.
        most = Fraction(float(np.abs(step.weight).max()))
        return joint * most * arith.root_above(1 / Fraction(step.epsilon))
    raise NotCovered(f"the {norm} gain of {type(step).__name__} is not covered by the checker")


def by_sums(step: Affine, places: Array, norm: str) -> Fraction:
    """Largest sum of absolute entries of a row (linf) or column (l1); the root of their product for l2."""
    charge(0, 8 * (places.size + step.kernel.size) + places.size * step.kernel.shape[1])
    kernel, there = np.abs(step.kernel), places >= 0
    copies = np.bincount(places[there], minlength=1)
    row = (kernel @ np.swapaxes(there, 1, 2)).max(initial=0.0) if norm != "l1" else 1.0
    weights = np.broadcast_to(kernel.sum(1)[:, None], there.shape)
    column = np.bincount(places[there], weights[there], 1).max() if norm != "linf" else 1.0
    count = sum(kernel.shape[1:]) + int(copies.max()) + 8 + step.rounded
    gain = Fraction(float(row)) * Fraction(float(column)) * Fraction(1 + 2 * arith.gamma(count)) ** 2
    return arith.root_above(gain) if norm == "l2" else gain


# -- chains of maps by their matrix


def matrix_of(chain: Sequence[Affine]) -> tuple[Array, Array]:
    """Matrices [blocks, m, n] whose largest norm is that of the chain, and bounds of the errors of their entries."""
    first = chain[0]
    known = first.index[first.index >= 0]
    if len(chain) == 1 and len(np.unique(known)) == known.size:
        # Every entry is read once: independent blocks, each repeated.
        return first.kernel, np.abs(first.kernel) * (2.0 * arith.gamma(first.rounded))
    signal = identity(0, len(first.view.places))
    for k, step in enumerate(chain):
        charge(0, STEP)
        x = signal if k == 0 else signal.rows(step.view.places)
        signal = mapped(step.kernel, step.index, x, None, step.rounded)
    return signal.parts[0][None], signal.errors(0)[None]


def _dense(matrices: Array, error: Array, limit: float, exact: bool) -> bool:
    if not exact:
        apart = float(arith.interpolated(error).max()) if error.any() else 0.0
        return arith.norms_at_most(matrices, apart, np.full(len(matrices), limit))
    if error.any():
        raise NotCovered("exact checking covers matrices that are stored as they are")
    return all(integers.exact_norm_at_most(m, limit) for m in matrices if m.any())


# -- convolutions by their symbol


def _torus(chain: Sequence[Affine], limit: float, torus: Torus) -> bool:
    """One convolution with channelwise scalings around it, through its symbol S(f) = sum_a K[a] exp(2 pi i f.a).

    Statement: the convolution with zero padding is a compression of the one on any torus of N points that no tap wraps around;
        the norm is at most the largest |S(f)| over f in (Z + t) / N for t in {0, 1/2} (t: multiply by exp(2 pi i t x / N) on both
        sides). On smaller grids the largest value over all f is at most that on the grid over cos(pi d / N), d = (taps - 1) / 2,
        for each axis. Strides: positions modulo the stride are channels.
    Source: Sedghi, Gupta, Long, ICLR 2019; Bernstein-Szego inequality (Borwein, Erdelyi, theorem 5.1.3).
    """
    kernel, relative, sizes = kernel_of(chain)
    need(len(torus) == len(sizes), "a torus")
    for (n, _), size, taps in zip(torus, sizes, kernel.shape[3:], strict=True):
        if n < size:
            need(n > 2 * taps, "a torus that is too small")
            limit *= (math.cos(math.pi * (taps - 1) / 2 / n) - 2.0**-50) * (1 - 2.0**-50)
    return _symbols_at_most(kernel, relative, torus_points(kernel, torus), limit)


def torus_points(kernel: Array, torus: Torus) -> Array:
    """Half of the frequencies (j + t) / N of each axis, as integers over 2 N: the other half has conjugate values."""
    points, halved = [], False
    for count, (size, twist) in zip(kernel.shape[3:], torus, strict=True):
        own = [(2 * j + twist, 2 * size) for j in range(size)] if count > 1 else [(0, 1)]
        points.append([(r, n) for r, n in own if 2 * r <= n] if count > 1 and not halved else own)
        halved |= count > 1
    need(math.prod(map(len, points)) <= _MOST, "a torus with too many frequencies")
    return np.array(list(itertools.product(*points)), dtype=np.int64)


def kernel_of(chain: Sequence[Affine]) -> tuple[Array, float, list[int]]:
    """Kernel [groups, out, in, *taps] at stride 1, relative error of its entries, smallest torus for each axis."""
    place = [i for i, step in enumerate(chain) if step.lattice]
    # Every step reads all of the one before: of a part, channels would be counted from another first one.
    plain = all(np.array_equal(b.view.places, np.arange(a.size)) for a, b in itertools.pairwise(chain))
    need(len(place) == 1 and plain, "not one convolution with scalings")
    conv = chain[place[0]]
    count = conv.rounded
    assert conv.lattice is not None
    kernel, shape, stride, dilation, padding, adjoint = conv.lattice
    for i, step in enumerate(chain):
        if i == place[0]:
            continue
        entrywise = np.array_equal(step.index.ravel(), np.arange(len(step.view.places)))
        need(entrywise and step.kernel.shape[1:] == (1, 1), "a scaling")
        inner = (i < place[0]) != adjoint
        charge(step.size)
        # Of every entry, of which a block may be many channels.
        entries = np.repeat(step.kernel.ravel(), step.index.shape[1])
        factor = entries.reshape(shape[0] if inner else kernel.shape[0] * kernel.shape[1], -1)
        need((factor == factor[:, :1]).all(), "a scaling that differs within a channel")
        split = factor[:, 0].reshape((len(kernel), 1, -1) if inner else (len(kernel), -1, 1))
        kernel = arith.times(kernel, split.reshape(*split.shape, *(1,) * (kernel.ndim - 3)))
        count += 8 + step.rounded
    sizes = []
    for axis, n in enumerate(shape[1:]):
        s, d, (before, after) = stride[axis], dilation[axis], padding[axis]
        tap_last = np.moveaxis(kernel, 3 + axis, -1)
        reach = d * (tap_last.shape[-1] - 1)
        coarse = reach // s + 1
        charge(4 * tap_last.size // tap_last.shape[-1] * coarse * s)
        spread = np.zeros((*tap_last.shape[:-1], coarse * s))
        spread[..., : reach + 1 : d] = tap_last
        # Position s Q + phase: the phase joins the channels, Q counts taps.
        phases = np.moveaxis(spread.reshape(*tap_last.shape[:-1], coarse, s), -1, 3)
        phases = np.moveaxis(phases, -1, 4 + axis)
        kernel = phases.reshape(*kernel.shape[:2], -1, *phases.shape[4:])
        first, last, outputs = before // s, (n - 1 + before) // s, (n + before + after - reach - 1) // s + 1
        # Tap Q - p for inputs first..last and outputs p < outputs; no other tap is congruent to it modulo N.
        sizes.append(max(last + 1, coarse - first + outputs - 1, outputs, coarse))
    used = (kernel != 0).any((0, 1, *range(3, kernel.ndim)))
    return kernel[:, :, used] if used.any() else kernel, arith.gamma(count), sizes


def symbol_at(kernel: Array, grid: Array) -> Array:
    """S at frequencies grid[..., 0] / grid[..., 1]: complex [points, groups, out, in]."""
    phase = np.ones((len(grid), 1), dtype=np.complex128)
    for axis, count in enumerate(kernel.shape[3:]):
        turns = (grid[:, axis, :1] * np.arange(count)) % grid[:, axis, 1:]
        angle = 2.0 * math.pi * (turns / grid[:, axis, 1:])
        own = np.cos(angle) + 1j * np.sin(angle)
        phase = (phase[:, :, None] * own[:, None, :]).reshape(len(grid), -1)
    flat = kernel.reshape(-1, phase.shape[1]).T
    values: Array = phase.real @ flat + 1j * (phase.imag @ flat)
    return values.reshape(len(grid), *kernel.shape[:3])


def _symbols_at_most(kernel: Array, relative: float, grid: Array, limit: float) -> bool:
    """|S(f)| <= limit at every frequency of the grid.

    A reduced turn is exact up to u, its angle to 4u relatively, so cosine and sine to 4u 2 pi + 4u < 32u; a product of two such
    numbers of modulus 1 adds its terms and 4u: 100u an axis is generous. Sums over taps add gamma_taps in either part.
    """
    taps = kernel.shape[3:]
    absolute = arith.interpolated(arith.sums(kernel, tuple(range(3, kernel.ndim)))).max()
    rounding = 2.0 * (100 * len(taps) * 2.0**-53 + arith.gamma(math.prod(taps) + 8))
    rounding += relative * (1 + 2.0**-20)
    step = max(1, _WORK // (4 * kernel.shape[0] * max(kernel.shape[1:3]) ** 2 + math.prod(taps)))
    for start in range(0, len(grid), step):
        charge(0, 2 * min(step, len(grid) - start) * (kernel.size + 16 * math.prod(taps)))
        values = symbol_at(kernel, grid[start : start + step])
        if not arith.norms_at_most(
            values, float(absolute) * rounding * 1.01, np.full(values.shape[:2], limit)
        ):
            return False
    return True
