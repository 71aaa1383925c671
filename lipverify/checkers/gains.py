"""Proof of a product bound: one factor for every stage of the steps, joined along their paths.

A certificate names stages (chains of maps) with a gain to be proved; steps outside have a rule. Any partition and any gains are
sound, because each is proved on its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from lipverify.checkers import arithmetic as arith
from lipverify.checkers.arithmetic import Array, NotCovered, need, real
from lipverify.checkers.multipliers import System, needed, prove_lipsdp
from lipverify.checkers.operators import STEEPEST
from lipverify.checkers.signals import identity, mapped
from lipverify.checkers.steps import Bounded, Implicit, Map, Order, Program, Reflect, Scalar, Step
from lipverify.errors import RefutedCertificate

_WORK, _MOST = 1 << 24, 1 << 19


Reach = Mapping[str, Mapping[str, Fraction]]
"""Constants from the input, in its norm, to every step, in each of the norms."""


def prove_product(program: Program, output: str, norms: tuple[str, str], stages: Sequence[Mapping[str, Any]],
                  exact: bool = False) -> Fraction:  # fmt: skip
    """The proved constant of one step. In l2 nothing else is followed; other norms may take a detour."""
    steps, chains, implicit = needed(program, output), {}, {}
    reach: dict[str, dict[str, Fraction]] = {}
    followed = ("l2",) if norms == ("l2", "l2") else ("l1", "l2", "linf")
    for stage in stages:
        names = stage["steps"]
        need(isinstance(names, list) and names, "a stage")
        if stage["by"] == "multipliers":
            implicit[names[-1]] = implicit_gain(steps[names[-1]], stage, exact)
            continue
        chain = [step for name in names if isinstance(step := steps[name], Map)]
        need(len(chain) == len(names), "a stage of other steps than maps")
        linked = all(b.sources == (a,) for a, b in zip(names, chain[1:], strict=False))
        need(linked and stage["by"] in ("dense", "torus"), "a stage that is no chain")
        chains[names[-1]] = (chain, stage)
    wanted = {output}
    for name in reversed(steps):
        first = chains[name][0][0] if name in chains else steps[name]
        wanted |= set(first.sources) if name in wanted else set()
    for name, step in steps.items():
        if name == program.input:
            found = {after: _embedding(norms[0], after, step.size) for after in followed}
        elif name in chains and name in wanted:
            chain, stage = chains[name]
            seen = {norm: _seen(steps, chain[0], chain[0].view, norm, reach) for norm in followed}
            gains = _gains(chain, stage, followed, exact)
            found = {
                after: min(g * seen[b] for (b, a), g in gains.items() if a == after) for after in followed
            }
        elif name in implicit and name in wanted:
            whole = implicit[name] * _seen(steps, step, step.view, "l2", reach)
            found = {norm: whole * _embedding("l2", norm, step.size) for norm in followed}
        elif name in wanted:
            found = {norm: _rule(steps, step, norm, reach) for norm in followed}
        else:
            continue
        reach[name] = {
            a: arith.trimmed(min(_embedding(b, a, step.size) * found[b] for b in found)) for a in found
        }
    return reach[output][norms[1]]


def _embedding(before: str, after: str, size: int) -> Fraction:
    """The largest |x|_after / |x|_before of vectors of this size."""
    power = {"l1": 2, "l2": 1, "linf": 0}[after] - {"l1": 2, "l2": 1, "linf": 0}[before]
    return arith.root_above(Fraction(size**power)) if power > 0 else Fraction(1)


def _gains(
    chain: Sequence[Map], stage: Mapping[str, Any], followed: Sequence[str], exact: bool
) -> dict[tuple[str, str], Fraction]:
    """Gains of a chain of maps between norms."""
    gain, dense = real(stage["gain"]), stage["by"] == "dense"
    need(math.isfinite(gain) and gain >= 0, "a gain")
    matrices, error = matrix_of(chain) if dense else (np.zeros((1, 1, 1)), np.zeros((1, 1, 1)))
    if not (_dense(matrices, error, gain, exact) if dense else _torus(chain, gain, stage["torus"], exact)):
        raise RefutedCertificate(f"the gain {gain!r} of {stage['steps'][-1][:60]!a} is not proved")
    found = {("l2", "l2"): Fraction(gain)}
    if len(followed) == 1:
        return found
    if not dense:
        each = {n: [_interpolated(s, s.index, n) for s in chain] for n in ("l1", "linf")}
        return found | {(n, n): math.prod(factors, start=Fraction(1)) for n, factors in each.items()}
    most = np.abs(matrices) + error
    squares = most * most
    above = {("l1", "l1"): arith.sums(most, -2), ("linf", "linf"): arith.sums(most, -1), ("l1", "linf"): most,
             ("l1", "l2"): np.sqrt(arith.sums(squares, -2)), ("l2", "linf"): np.sqrt(arith.sums(squares, -1))}  # fmt: skip
    return found | {
        pair: Fraction(float(values.max() * (1 + arith.gamma(8)))) for pair, values in above.items()
    }


def implicit_gain(step: Step, stage: Mapping[str, Any], exact: bool = False) -> Fraction:
    """The l2 gain of an implicit layer alone, by multipliers."""
    need(isinstance(step, Implicit), "a stage of another step than an implicit layer")
    alone = Program("x", (1, len(step.view)), {}, 17)
    alone.put("z", replace(step, sources=("x",), view=np.arange(len(step.view))), (1, step.size))
    gain, multipliers = real(stage["gain"]), np.array([real(d) for d in stage["multipliers"]])
    need(math.isfinite(gain) and gain > 0, "a gain")
    prove_lipsdp(System(alone, "z"), [multipliers], gain, exact)
    return Fraction(gain)


# -- steps with a gain in closed form


def _owners(steps: Mapping[str, Step], step: Step, places: Array) -> Array:
    """Which source every place belongs to; -1 for none."""
    ends = np.cumsum([steps[s].size for s in step.sources])
    return np.where(places < 0, -1, np.searchsorted(ends, places, side="right"))


def _seen(steps: Mapping[str, Step], step: Step, places: Array, norm: str, reach: Reach) -> Fraction:
    """The constant of a vector that holds these places: l1 and l2 grow with the copies of an entry."""
    copies, owners = np.bincount(places[places >= 0].ravel(), minlength=1), _owners(steps, step, places)
    most = [int(copies[places[owners == i]].max(initial=0)) for i in range(len(step.sources))]
    terms = [(n, reach[s][norm]) for n, s in zip(most, step.sources, strict=True) if n]
    if norm == "linf":
        return max((r for _, r in terms), default=Fraction(0))
    if norm == "l1":
        return sum((n * r for n, r in terms), Fraction(0))
    return arith.root_above(sum((n * r * r for n, r in terms), Fraction(0)))


def _rule(steps: Mapping[str, Step], step: Step, norm: str, reach: Reach) -> Fraction:
    if isinstance(step, Map):
        whole = _interpolated(step, step.index, norm) * _seen(steps, step, step.view, norm, reach)
        places = np.append(step.view, -1)[step.index]
        owners = _owners(steps, step, places)
        parts = (
            _interpolated(step, np.where(owners == i, places, -1), norm) * reach[s][norm]
            for i, s in enumerate(step.sources)
        )
        return min(whole, sum(parts, Fraction(0)))
    if isinstance(step, Order):
        return _seen(steps, step, np.append(step.view, -1)[step.groups], norm, reach)
    joint = _seen(steps, step, step.view, norm, reach)
    if isinstance(step, Reflect):
        # The identity or a reflection on every piece: an isometry in l2, in others within the embedding of a group.
        return joint if norm == "l2" else joint * arith.root_above(Fraction(step.vectors.shape[1]))
    if isinstance(step, Scalar):
        steepest = max(float(np.abs(step.low).max()), float(np.abs(step.high).max()))
        return joint * Fraction(STEEPEST.get(step.law, steepest))
    if isinstance(step, Bounded) and norm in step.gains:
        return joint * step.gains[norm]
    raise NotCovered(f"the {norm} gain of {type(step).__name__} is not covered by the checker")


def _interpolated(step: Map, places: Array, norm: str) -> Fraction:
    """Largest sum of absolute entries of a row (linf) or column (l1); the root of their product for l2."""
    kernel, there = np.abs(step.kernel), places >= 0
    copies = np.bincount(places[there], minlength=1)
    row = (kernel @ np.swapaxes(there, 1, 2)).max(initial=0.0) if norm != "l1" else 1.0
    weights = np.broadcast_to(kernel.sum(1)[:, None], there.shape)
    column = np.bincount(places[there], weights[there], 1).max() if norm != "linf" else 1.0
    count = sum(kernel.shape[1:]) + int(copies.max()) + 8 + step.rounded
    gain = Fraction(float(row)) * Fraction(float(column)) * Fraction(1 + 2 * arith.gamma(count)) ** 2
    return arith.root_above(gain) if norm == "l2" else gain


# -- chains of maps by their matrix


def matrix_of(chain: Sequence[Map]) -> tuple[Array, Array]:
    """Matrices [blocks, m, n] whose largest norm is that of the chain, and bounds of the errors of their entries."""
    first = chain[0]
    known = first.index[first.index >= 0]
    if len(chain) == 1 and not first.rounded and len(np.unique(known)) == known.size:
        return first.kernel, np.zeros(
            (1, 1, 1)
        )  # every entry is read once: independent blocks, each repeated
    signal = identity(0, len(first.view))
    for k, step in enumerate(chain):
        signal = mapped(step, signal if k == 0 else signal.rows(step.view))
    return signal.parts[0][None], signal.errors(0)[None]


def _dense(matrices: Array, error: Array, gain: float, exact: bool) -> bool:
    if not exact:
        apart = float(arith.interpolated(error).max()) if error.any() else 0.0
        return arith.norms_at_most(matrices, apart, np.full(len(matrices), gain))
    if error.any():
        raise NotCovered("exact checking covers matrices that are stored as they are")
    return all(arith.exact_norm_at_most(m, gain) for m in matrices if m.any())


# -- convolutions by their symbol


def _torus(chain: Sequence[Map], gain: float, torus: Any, exact: bool) -> bool:
    """One convolution with channelwise scalings around it, through its symbol S(f) = sum_a K[a] exp(2 pi i f.a).

    Statement: the convolution with zero padding is a compression of the one on any torus of N points that no tap wraps around;
        the norm is at most the largest |S(f)| over f in (Z + t) / N for t in {0, 1/2} (t: multiply by exp(2 pi i t x / N) on both
        sides). On smaller grids the largest value over all f is at most that on the grid over cos(pi d / N), d = (taps - 1) / 2,
        for each axis. Strides: positions modulo the stride are channels.
    Source: Sedghi, Gupta, Long, ICLR 2019; Bernstein-Szego inequality (Borwein, Erdelyi, theorem 5.1.3).
    """
    kernel, relative, sizes = kernel_of(chain)
    need(not exact and isinstance(torus, list) and len(torus) == len(sizes), "a torus")
    for (n, twist), size, taps in zip(torus, sizes, kernel.shape[3:], strict=True):
        need(type(n) is int and 1 <= n <= 1 << 15 and twist in (0, 1), "a torus")
        if n < size:
            need(n > 2 * taps, "a torus that is too small")
            gain *= (math.cos(math.pi * (taps - 1) / 2 / n) - 2.0**-50) * (1 - 2.0**-50)
    return _symbols_at_most(kernel, relative, torus_points(kernel, torus), gain)


def torus_points(kernel: Array, torus: Any) -> Array:
    """Half of the frequencies (j + t) / N of each axis, as integers over 2 N: the other half has conjugate values."""
    points, halved = [], False
    for count, (size, twist) in zip(kernel.shape[3:], torus, strict=True):
        own = [(2 * j + twist, 2 * size) for j in range(size)] if count > 1 else [(0, 1)]
        points.append([(r, n) for r, n in own if 2 * r <= n] if count > 1 and not halved else own)
        halved |= count > 1
    need(math.prod(map(len, points)) <= _MOST, "a torus with too many frequencies")
    return np.array(list(itertools.product(*points)), dtype=np.int64)


def kernel_of(chain: Sequence[Map]) -> tuple[Array, float, list[int]]:
    """Kernel [groups, out, in, *taps] at stride 1, relative error of its entries, smallest torus for each axis."""
    place = [i for i, step in enumerate(chain) if step.lattice]
    plain = all(np.array_equal(step.view, np.arange(len(step.view))) for step in chain[1:])
    need(len(place) == 1 and plain, "not one convolution with scalings")
    conv, relative = chain[place[0]], 0.0
    assert conv.lattice is not None
    kernel, shape, stride, dilation, padding, adjoint = conv.lattice
    for i, step in enumerate(chain):
        if i == place[0]:
            continue
        need(
            step.kernel.shape[1:] == (1, 1) and np.array_equal(step.index.ravel(), np.arange(step.size)),
            "a scaling",
        )
        inner = (i < place[0]) != adjoint
        factor = step.kernel.reshape(shape[0] if inner else kernel.shape[0] * kernel.shape[1], -1)
        need((factor == factor[:, :1]).all(), "a scaling that differs within a channel")
        split = factor[:, 0].reshape(len(kernel), -1)
        split = split[:, None, :] if inner else split[:, :, None]
        kernel = kernel * split.reshape(*split.shape, *(1,) * (kernel.ndim - 3))
        relative += arith.gamma(8)
    sizes = []
    for axis, n in enumerate(shape[1:]):
        s, d, (before, after) = stride[axis], dilation[axis], padding[axis]
        tap_last = np.moveaxis(kernel, 3 + axis, -1)
        reach = d * (tap_last.shape[-1] - 1)
        coarse = reach // s + 1
        spread = np.zeros((*tap_last.shape[:-1], coarse * s))
        spread[..., : reach + 1 : d] = tap_last
        # Position s Q + phase: the phase joins the channels, Q counts taps.
        phases = np.moveaxis(
            np.moveaxis(spread.reshape(*tap_last.shape[:-1], coarse, s), -1, 3), -1, 4 + axis
        )
        kernel = phases.reshape(*kernel.shape[:2], -1, *phases.shape[4:])
        first, last, outputs = before // s, (n - 1 + before) // s, (n + before + after - reach - 1) // s + 1
        # Tap Q - p for inputs first..last and outputs p < outputs; no other tap is congruent to it modulo N.
        sizes.append(max(last + 1, coarse - first + outputs - 1, outputs, coarse))
    used = (kernel != 0).any((0, 1, *range(3, kernel.ndim)))
    return kernel[:, :, used] if used.any() else kernel, relative, sizes


def symbol_at(kernel: Array, grid: Array) -> Array:
    """S at frequencies grid[..., 0] / grid[..., 1] as real matrices [points, groups, 2 out, 2 in]."""
    phase = np.ones((len(grid), 1), dtype=np.complex128)
    for axis, count in enumerate(kernel.shape[3:]):
        turns = (grid[:, axis, :1] * np.arange(count)) % grid[:, axis, 1:]
        angle = 2.0 * math.pi * (turns / grid[:, axis, 1:])
        own = np.cos(angle) + 1j * np.sin(angle)
        phase = (phase[:, :, None] * own[:, None, :]).reshape(len(grid), -1)
    flat = kernel.reshape(-1, phase.shape[1])
    re, im = ((part @ flat.T).reshape(len(grid), *kernel.shape[:3]) for part in (phase.real, phase.imag))
    return np.concatenate([np.concatenate([re, -im], -1), np.concatenate([im, re], -1)], -2)


def _symbols_at_most(kernel: Array, relative: float, grid: Array, limit: float) -> bool:
    """|S(f)| <= limit at every frequency of the grid.

    A reduced turn is exact up to u, its angle to 4u relatively, so cosine and sine to 4u 2 pi + 4u < 32u; a product of two such
    numbers of modulus 1 adds its terms and 4u: 100u an axis is generous. Sums over taps add gamma_taps in either part.
    """
    taps = kernel.shape[3:]
    absolute = arith.interpolated(arith.sums(kernel, tuple(range(3, kernel.ndim)))).max()
    rounding = 2.0 * (100 * len(taps) * 2.0**-53 + arith.gamma(math.prod(taps) + 8)) + relative * (
        1 + 2.0**-20
    )
    step = max(1, _WORK // (4 * kernel.shape[0] * max(kernel.shape[1:3]) ** 2))
    for start in range(0, len(grid), step):
        values = symbol_at(kernel, grid[start : start + step])
        if not arith.norms_at_most(
            values, float(absolute) * rounding * 1.01, np.full(values.shape[:2], limit)
        ):
            return False
    return True
