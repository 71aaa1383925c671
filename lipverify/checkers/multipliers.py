"""Proof of a LipSDP bound from multipliers alone: the block system is assembled from the steps, then one Cholesky decides."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from lipverify.checkers import arithmetic as arith
from lipverify.checkers.arithmetic import Array, NotCovered, need
from lipverify.checkers.balls import Ball, Chain, Lines, Split, kinked, located, met
from lipverify.checkers.functions import Curve
from lipverify.checkers.signals import INPUT, ONE, Signal, combined, identity, mapped, stacked
from lipverify.checkers.steps import Implicit, Map, Order, Program, Reflect, Scalar, Step
from lipverify.errors import RefutedCertificate

MAX_ROWS = 10_000
# Fewest comparators for the small sizes (Knuth, The Art of Computer Programming, volume 3, section 5.3.4).
_SORTS = {1: [], 2: [[(0, 1)]], 3: [[(0, 1)], [(1, 2)], [(0, 1)]], 4: [[(0, 1), (2, 3)], [(0, 2), (1, 3)], [(1, 2)]],
          5: [[(0, 3), (1, 4)], [(0, 2), (1, 3)], [(0, 1), (2, 4)], [(1, 2), (3, 4)], [(2, 3)]]}  # fmt: skip


class System:
    """Blocks of neurons w = phi(v), with v as signals of the input and earlier blocks.

    Slopes are in [0, 1]. With a ball they are those over the range of v, within the splits of a part; what is known there has no
    neuron, and smooth activations (`curves`: with the ranges of v) are neurons as they are, with `slopes` in other ranges.
    read: what every layer reads (-1: the input itself); known: slopes of every layer, which may be given.
    """

    def __init__(self, program: Program, output: str, ball: Ball | None = None, splits: Sequence[Split] = (),
                 given: Sequence[tuple[Array, Array]] | None = None) -> None:  # fmt: skip
        self.blocks: list[Signal] = []
        self.sizes: list[int] = []
        self.layers: list[tuple[int, Array]] = []
        self.read: dict[int, Signal] = {}
        self.known: list[tuple[Array, Array]] = []
        self.slopes: list[tuple[Array, Array]] = []
        self.curves: dict[int, tuple[Curve, tuple[Array, Array]]] = {}
        self.smooth: list[int] = []
        self.splits, self.chain, self._given = splits, None, given
        self._of, self.local = (program, output), ball is not None or given is not None
        if ball is not None:
            low, high = met(splits, -1, ball.low, ball.high)
            self.chain = Chain(ball._replace(low=low, high=high), bool(splits))
            self.read[-1] = self._input(len(low))
        signals: dict[str, Signal] = {}
        for name, step in needed(program, output).items():
            x = stacked([signals[s] for s in step.sources]).rows(step.view) if step.sources else None
            signals[name] = self._input(step.size) if x is None else self._encoded(step, x)
        self.inputs, self.output, self.outputs = program.steps[program.input].size, signals[output], 0
        self.outputs = program.steps[output].size

    def _input(self, size: int) -> Signal:
        x = identity(INPUT, size)
        return x if self.chain is None else x._replace(ends=np.array(self.chain.ranges(x)))

    def _encoded(self, step: Step, x: Signal) -> Signal:
        if isinstance(step, Map):
            return mapped(step, x, None if self.chain is None else step.offset)
        if isinstance(step, Scalar):
            return self._sloped(x, step.low, step.high, step.law, step.curve)
        if isinstance(step, Order) and not step.whole:
            return self._maximum(self._between(x), step.groups)
        if isinstance(step, Order) and step.groups.shape[1] in _SORTS:
            return self._sorted(self._between(x), step.groups)
        if isinstance(step, Reflect):
            return self._reflected(x, step.groups, step.vectors)
        if isinstance(step, Implicit) and not self.local:
            return self._implicit(x, step)
        raise NotCovered(f"no form of {type(step).__name__} as neurons in the checker")

    def _sloped(
        self, v: Signal, low: Array, high: Array, law: str = "Relu", curve: Curve | None = None
    ) -> Signal:
        """phi(v) = low v + span w with slopes of w in [0, 1]; no neuron where low = high."""
        if self._given is not None:
            low, high = self._given[len(self.layers)]
        if self.chain is not None:
            ends = met(self.splits, len(self.layers), *self.chain.ranges(v))
            self.read[len(self.layers)] = v
            if curve is not None:
                return self._curved(v, low, high, curve, ends)
            left = np.where(low < 1.0, low, high)
            low, high, values = located(law, low, high, left, ends)
        self.known.append((low, high))
        free, kernel = np.flatnonzero(high > low), np.zeros((1, 1, 1))
        self.layers.append((len(low), free))
        # low + span >= high exactly: the difference is rounded up.
        span = np.where(low == 0, high, np.nextafter(high - low, np.inf))[free]
        key, spread = len(self.blocks), np.zeros((len(low), len(free)))
        spread[free, np.arange(len(free))] = span
        at, kernel = np.arange(len(low)), low[:, None, None]
        fixed = (
            mapped(Map((), at, len(low), kernel, at[:, None, None]), v)
            if low.any() or len(free) == 0
            else None
        )
        if len(free) == 0 and fixed is not None:
            return fixed if self.chain is None else fixed._replace(ends=values)
        self.blocks.append(v.rows(free))
        self.sizes.append(len(free))
        self.slopes.append((np.zeros(len(free)), np.ones(len(free))))
        if self.chain is not None:
            self.chain.put(self.blocks[-1], kinked(ends[0][free], ends[1][free], left[free] < 1.0))
        w = Signal({key: spread}, None, 0, bool((span == 1).all()), v.growth)
        result = w if fixed is None else combined(fixed, w, 1.0)
        return result if self.chain is None else result._replace(ends=values)

    def _curved(self, v: Signal, low: Array, high: Array, curve: Curve, ends: tuple[Array, Array]) -> Signal:
        """w = phi(v), every entry a neuron."""
        assert self.chain is not None
        key, (first, last) = len(self.blocks), curve.slopes(*ends)
        first, last = np.clip(first, low, high), np.clip(last, low, high)
        k = curve.secant(*ends, first, last)
        values, (under, over) = curve.around(np.zeros_like(k), *ends), curve.around(k, *ends)
        self.smooth.append(len(self.layers))
        self.layers.append((len(low), np.arange(len(low))))
        self.known.append((first, last))
        self.slopes.append((first, last))
        self.curves[key] = curve, ends
        self.blocks.append(v)
        self.sizes.append(len(low))
        self.chain.put(v, Lines(k, under, k, over, *values), reads=ends)
        return identity(key, len(low))._replace(growth=v.growth, ends=np.array(values))

    def within(self, slopes: Sequence[Array]) -> System:
        """The system for multipliers: as it is, or with smooth activations between these slopes, which hold the known ones."""
        need(len(slopes) == len(self.smooth), "slopes of other layers")
        given = list(self.known)
        for layer, pair in zip(self.smooth, slopes, strict=True):
            low, high = given[layer]
            need(pair.shape == (2, len(low)) and bool(np.isfinite(pair).all()), "slopes of another layer")
            if not bool(((pair[0] <= low) & (high <= pair[1])).all()):
                raise RefutedCertificate("slopes of activations that are not shown to be in the ranges given")
            given[layer] = pair[0], pair[1]
        return System(*self._of, given=given) if self.smooth else self

    def _reflected(self, x: Signal, groups: Array, vectors: Array) -> Signal:
        """x + 2 w r / |w|^2 with r = relu(-w'x) for every group."""
        count = groups.size // vectors.shape[1]
        owners = np.empty(groups.size, dtype=np.int64)
        owners[groups.ravel()] = np.arange(count).repeat(vectors.shape[1])
        kernel = -vectors[:, None, :]
        v = mapped(Map((), np.arange(groups.size), count, kernel, groups.swapaxes(0, 1)), x)
        # In the order of the blocks of a map: all runs of the first vector, then of the second.
        back = np.arange(count).reshape(len(vectors), -1).T.ravel()
        r = self._sloped(v, np.zeros(count), np.ones(count)).rows(back[owners])
        scale = np.empty(groups.size)
        scale[groups] = 2.0 * vectors / (vectors * vectors).sum(1, keepdims=True)
        at = np.arange(groups.size)
        long = Map((), at, groups.size, scale[:, None, None], at[:, None, None], vectors.shape[1] + 3)
        return combined(x, mapped(long, r), 1.0)

    def _implicit(self, x: Signal, step: Implicit) -> Signal:
        """z = s w with slopes of w in [0, 1], v = s W w + U x: a block that feeds itself.

        Statement: z exists and is unique, because the block of M is positive definite, 2D > s (DW' + WD): see `prove_lipsdp`.
        Source: Revay, Wang, Manchester 2020 (arXiv 2010.01732).
        """
        n, key = step.size, len(self.blocks)
        columns, own = np.arange(len(step.view))[None, None], np.arange(n)
        drive = Map((), columns.ravel(), n, step.inputs[None], columns)
        loop = Map((), own, n, step.slope * step.recurrent[None], own[None, None], 1)
        v = combined(mapped(drive, x), mapped(loop, identity(key, n)), 1.0)
        self.layers.append((n, own))
        self.blocks.append(v)
        self.sizes.append(n)
        w = identity(key, n)._replace(growth=v.growth)
        return mapped(Map((), own, n, np.full((n, 1, 1), step.slope), own[:, None, None]), w)

    def _between(self, v: Signal) -> Signal:
        """With ranges, from which those of maxima and sorts follow better than through comparators."""
        return v if self.chain is None else v._replace(ends=np.array(self.chain.ranges(v)))

    def _compared(self, p: Signal, q: Signal) -> tuple[Signal, Signal]:
        """max = q + r, min = p - r with r = relu(p - q)."""
        v = combined(p, q, -1.0)
        n = len(next(iter(v.parts.values())))
        r = self._sloped(v, np.zeros(n), np.ones(n))
        high, low = combined(q, r, 1.0), combined(p, r, -1.0)
        if p.ends is None or q.ends is None:
            return high, low
        return high._replace(ends=np.maximum(p.ends, q.ends)), low._replace(ends=np.minimum(p.ends, q.ends))

    def _maximum(self, v: Signal, groups: Array) -> Signal:
        rows = [[i for i in row if i >= 0] for row in groups.tolist()]
        while max(map(len, rows)) > 1:
            left, right = ([i for r in rows for i in r[k : len(r) // 2 * 2 : 2]] for k in (0, 1))
            kept = [r[-1] for r in rows if len(r) % 2]
            v = stacked([self._compared(v.rows(left), v.rows(right))[0], v.rows(kept)])
            won, rest = iter(range(len(left))), iter(range(len(left), len(left) + len(kept)))
            rows = [[*itertools.islice(won, len(r) // 2), *itertools.islice(rest, len(r) % 2)] for r in rows]
        return v.rows([r[0] for r in rows])

    def _sorted(self, v: Signal, groups: Array) -> Signal:
        wires, n = [v.rows(column) for column in groups.T], len(groups)
        for stage in _SORTS[groups.shape[1]]:
            p, q = (stacked([wires[pair[k]] for pair in stage]) for k in (0, 1))
            high, low = self._compared(p, q)
            for place, (i, j) in enumerate(stage):
                rows = np.arange(place * n, (place + 1) * n)
                wires[i], wires[j] = low.rows(rows), high.rows(rows)
        return stacked(wires).rows(np.arange(groups.size).reshape(-1, n).T.ravel())


def needed(program: Program, output: str) -> dict[str, Step]:
    """The steps behind one of them, in order."""
    found = {output}
    for name in reversed(program.steps):
        found |= set(program.steps[name].sources) if name in found else set()
    return {name: step for name, step in program.steps.items() if name in found or name == program.input}


def prove_lipsdp(system: System, blocks: Sequence[Array], upper: float, exact: bool = False,
                 weights: Array | None = None, row: int | None = None) -> None:  # fmt: skip
    """|f(x) - f(y)|_2 <= upper |x - y|_2, or RefutedCertificate; with weights tau: upper |x - y|_inf; of one output with `row`.

    Statement: with D > 0 diagonal, J'g = V0'g + U'c, b = V'g + C'c, c_i between 0 and b_i, the matrix

            | T   U'               V0'   |
        M = | U   2D - DC' - CD   -DV'   |  >= 0   gives   |T^-1/2 J'g|^2 <= |T^-1/2 (V0'g + U'c)|^2 + 2 c'D(b - c) <= rho |g|^2,
            | V0  -VD             rho    |

        T = I, rho = upper^2; or T = diag(tau), rho sum(tau) = upper^2: |J d|^2 <= rho d'T d <= rho sum(tau) |d|_inf^2.
    Source: LipSDP-Neuron (Fazlyab et al., NeurIPS 2019) in reverse mode, by the Schur complement of T. Blocks that feed
        themselves have C on the diagonal too. M is proved positive definite, so 2D - DC' - CD is: every I - C diag(t) with t in
        [0, 1] is invertible and the equilibrium unique (El Ghaoui et al. 2021, arXiv 1908.06315).
    """
    last = system.output if row is None else system.output.rows([row])
    sizes = [system.inputs, *system.sizes, system.outputs if row is None else 1]
    tau = np.ones(system.inputs) if weights is None else weights
    d = [tau, *blocks, np.ones(sizes[-1])]
    need([m.shape for m in d] == [(n,) for n in sizes], "multipliers of another network")
    need(all(np.isfinite(m).all() and (m > 0).all() for m in d), "multipliers that are not positive")
    if sum(sizes) > MAX_ROWS:
        raise NotCovered(f"a matrix of {sum(sizes)} rows is too large for the checker")
    ends = np.cumsum([0, *sizes])
    place = [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]
    total = sum(map(Fraction, tau.tolist())) if weights is not None else Fraction(1)
    rho = arith.below(Fraction(upper) ** 2 / total)
    diagonal = np.concatenate([tau, *(2.0 * m for m in blocks), np.full(sizes[-1], rho)])
    if not bool((diagonal > 2.0**-400).all() and (diagonal < 2.0**400).all()):
        raise NotCovered("multipliers or a bound near the ends of float64 are not covered by the checker")
    # Powers of two on both sides: exact, and the diagonal becomes 1/2 to 2.
    half = np.ldexp(1.0, -(np.frexp(diagonal)[1] // 2))
    matrix, slack, exactly = np.zeros((ends[-1], ends[-1])), np.zeros(ends[-1]), []
    for r, signal in enumerate([*system.blocks, last], start=1):
        for key, part in signal.parts.items():
            if key == ONE:
                continue
            here, there, factor = (
                place[r],
                place[key + 1],
                np.ones(system.inputs) if key == INPUT else -d[key + 1],
            )
            if exact and (signal.rounds or system.local):
                raise NotCovered("exact checking covers chains whose matrices are stored as they are")
            exactly.append((here, there, part, factor))
            block = (half[here][:, None] * (part * factor)) * half[there]
            error = (signal.errors(key) + 2.0**-52 * np.abs(part)) * np.abs(factor)
            error = (half[here][:, None] * error) * half[there]
            matrix[here, there] += block
            matrix[there, here] += block.T
            slack[here] += arith.sums(error, 1)
            slack[there] += arith.sums(error, 0)
    places = np.arange(len(matrix))
    matrix[places, places] += half * diagonal * half
    slack = slack * (1 + 2.0**-30) + 2.0**-50 * np.diagonal(matrix)
    if not (arith.exactly_definite(arith.exact_blocks(diagonal, half, exactly)) if exact
            else arith.positive_definite(matrix, slack)):  # fmt: skip
        raise RefutedCertificate(f"the multipliers do not prove {upper!r}")
