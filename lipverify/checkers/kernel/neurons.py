"""Programs as neurons: scalar functions and products behind affine maps; differences of two points as neurons with slopes.

A maximum, a sort, a reflection, a softmax and a normalisation are written as scalar functions, products and affine maps first.
Layers are the scalar functions, products and implicit layers of what that gives, in order; -1 is the input. A layer reads one
number for each neuron; a product reads two vectors, one after the other, and is two sets of neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from lipverify.checkers.kernel.arithmetic import Array, need
from lipverify.checkers.kernel.curves import curve
from lipverify.checkers.kernel.program import (
    Affine,
    Constant,
    Implicit,
    Input,
    Normalise,
    Order,
    Product,
    Program,
    Reflect,
    Scalar,
    Softmax,
    Step,
    View,
)
from lipverify.checkers.kernel.signals import INPUT, ONE, Signal, added, identity, mapped, sprouted, stacked
from lipverify.errors import NotCovered

# Fewest comparators for the small sizes (Knuth, The Art of Computer Programming, volume 3, section 5.3.4).
_SORTS = {1: [], 2: [[(0, 1)]], 3: [[(0, 1)], [(1, 2)], [(0, 1)]], 4: [[(0, 1), (2, 3)], [(0, 2), (1, 3)], [(1, 2)]],
          5: [[(0, 3), (1, 4)], [(0, 2), (1, 3)], [(0, 1), (2, 4)], [(1, 2), (3, 4)], [(2, 3)]]}  # fmt: skip
Slopes = tuple[Array, Array]


@dataclass(frozen=True)
class Extreme(Affine):
    """An affine step whose results are the larger (or smaller) of the entries `pairs` [size, 2] of what it reads.

    Without pairs: a copy of what maxima read, from the ranges of which theirs follow better than through comparators.
    """

    pairs: Array = field(default_factory=lambda: np.empty((0, 2), dtype=np.int64))
    larger: bool = True


@dataclass(frozen=True)
class Within(Product):
    """A product whose results are known to lie in [low, high]."""

    low: float
    high: float


class Elementary(NamedTuple):
    """A program in elementary steps. place: where every step of the program it came from is; layers: the places of the layers."""

    steps: tuple[Step, ...]
    place: dict[int, int]
    layers: tuple[int, ...]

    def size(self, layer: int) -> int:
        """How many numbers a layer reads."""
        step = self.steps[self.layers[layer] if layer >= 0 else 0]
        return step.size * (2 if isinstance(step, Product) else 1)

    def between(self, start: int, end: int) -> list[int]:
        """The steps behind `end`, as far as `start`.

        Raises:
            UnreadableCertificate: `end` is no function of `start` alone.
        """
        found = behind(self.steps, end, start)
        early = [k for k in found if k < start and not isinstance(self.steps[k], Constant)]
        need(start <= end and not early, "a step that is no function of the other alone")
        return found


def behind(steps: Sequence[Step], end: int, start: int = 0) -> list[int]:
    """The steps that one is computed from, in order, as far as `start`."""
    found = {start, end}
    for k in range(end, start, -1):
        step = steps[k]
        if k in found:
            found |= {*step.view.sources, *(step.other.sources if isinstance(step, Product) else ())}
    return sorted(found)


def elementary(program: Program) -> Elementary:
    """What is behind the last step of a program, in elementary steps."""
    writer = _Writer()
    for k in behind(program.steps, len(program.steps) - 1):
        writer.write(k, program.steps[k])
    layers = [k for k, s in enumerate(writer.steps) if isinstance(s, Scalar | Product | Implicit)]
    return Elementary(tuple(writer.steps), writer.place, tuple(layers))


class _Writer:
    """Elementary steps so far. Vectors are views of them."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.place: dict[int, int] = {}

    def write(self, number: int, step: Step) -> None:
        x = self._moved(step.view)
        if isinstance(step, Order):
            x = self._sum([1.0], [x], larger=True)
            found = self._maximum(x, step.groups) if not step.whole else self._sorted(x, step.groups)
        elif isinstance(step, Reflect):
            found = self._reflected(x, step.groups, step.vectors)
        elif isinstance(step, Softmax):
            found = self._softmax(x, step.groups)
        elif isinstance(step, Normalise):
            found = self._normalised(x, step)
        elif isinstance(step, Product):
            found = self._put(replace(step, view=x, other=self._moved(step.other)))
        else:
            found = self._put(replace(step, view=x))
        if len(found.sources) > 1 or not np.array_equal(found.places, np.arange(step.size)):
            found = self._sum([1.0], [found])
        self.place[number] = found.sources[0]

    def _put(self, step: Step) -> View:
        self.steps.append(step)
        return View((len(self.steps) - 1,), np.arange(step.size))

    def _moved(self, view: View) -> View:
        return View(tuple(self.place[s] for s in view.sources), view.places)

    def _joined(self, views: Sequence[View]) -> View:
        """Several views, one after another."""
        sources = tuple(dict.fromkeys(s for v in views for s in v.sources))
        starts = dict(
            zip(sources, np.cumsum([0, *(self.steps[s].size for s in sources)]).tolist(), strict=False)
        )
        places = []
        for v in views:
            table = [np.arange(self.steps[s].size) + starts[s] for s in v.sources]
            places.append(np.append(np.concatenate([*table, np.empty(0, np.int64)]), -1)[v.places])
        return View(sources, np.concatenate(places))

    def _sum(self, factors: Sequence[float] | Array, views: Sequence[View], rounded: int = 0, offset: Array | None = None,
             larger: bool | None = None) -> View:  # fmt: skip
        """Entry by entry the sum of factors times views; factors: [terms] or [size, terms]."""
        count, n = len(views), len(views[0].places)
        kernel = np.atleast_2d(np.asarray(factors, dtype=np.float64))[:, None]
        index = np.arange(count * n).reshape(count, n).T.reshape(len(kernel), -1, count)
        step = Affine(self._joined(views), n, kernel, index, offset, rounded)
        if larger is not None:
            pairs = np.arange(count * n).reshape(count, n).T[:, : 2 if count > 1 else 0]
            step = Extreme(step.view, n, kernel, index, offset, rounded, None, pairs, larger)
        return self._put(step)

    def _dense(
        self, matrix: Array, x: View, groups: Array, rounded: int = 0, offset: float | None = None
    ) -> View:
        """matrix [out, count] on every row of groups [n, count] of places in x; results [n, out]."""
        (n, _), out = groups.shape, len(matrix)
        shift = None if offset is None else np.full(n * out, offset)
        found = self._put(Affine(x, n * out, matrix[None], groups[None], shift, rounded))
        return View(found.sources, found.places.reshape(out, n).T.ravel())

    def _scalar(self, law: str, x: View, **settings: float) -> View:
        return self._put(Scalar(x, len(x.places), law, tuple(settings.items())))

    def _compared(self, p: View, q: View) -> tuple[View, View]:
        """max = q + r, min = p - r with r = relu(p - q)."""
        r = self._scalar("Relu", self._sum([1.0, -1.0], [p, q]))
        # Three terms, so that both of the compared are among what is read.
        high = self._sum([0.0, 1.0, 1.0], [p, q, r], larger=True)
        return high, self._sum([1.0, 0.0, -1.0], [p, q, r], larger=False)

    def _maximum(self, x: View, groups: Array) -> View:
        rows = [[i for i in row if i >= 0] for row in groups.tolist()]
        while max(map(len, rows)) > 1:
            pairs = [pair for r in rows for pair in zip(r[::2], r[1::2], strict=False)]
            kept = [r[-1] for r in rows if len(r) % 2]
            p, q = (View(x.sources, x.places[[pair[k] for pair in pairs]]) for k in (0, 1))
            x = self._joined([self._compared(p, q)[0], View(x.sources, x.places[kept])])
            won, rest = iter(range(len(pairs))), iter(range(len(pairs), len(pairs) + len(kept)))
            rows = [
                [next(won) for _ in range(len(r) // 2)] + [next(rest) for _ in range(len(r) % 2)]
                for r in rows
            ]
        return View(x.sources, x.places[[r[0] for r in rows]])

    def _sorted(self, x: View, groups: Array) -> View:
        if groups.shape[1] not in _SORTS:
            raise NotCovered(f"sorts of {groups.shape[1]} numbers have no form as neurons in the checker")
        wires, n = [View(x.sources, x.places[column]) for column in groups.T], len(groups)
        for stage in _SORTS[groups.shape[1]]:
            high, low = self._compared(*(self._joined([wires[pair[k]] for pair in stage]) for k in (0, 1)))
            for place, (i, j) in enumerate(stage):
                rows = slice(place * n, (place + 1) * n)
                wires[i], wires[j] = (View(v.sources, v.places[rows]) for v in (low, high))
        joined = self._joined(wires)
        return View(joined.sources, joined.places.reshape(-1, n).T.ravel())

    def _reflected(self, x: View, groups: Array, vectors: Array) -> View:
        """x + 2 w r / |w|^2 with r = relu(-w'x) for every group."""
        (runs, many, length), size = groups.shape, groups.size
        v = self._put(Affine(x, runs * many, -vectors[:, None, :], groups.swapaxes(0, 1)))
        r, owners, scale = self._scalar("Relu", v), np.empty(size, dtype=np.int64), np.empty(size)
        # Results of an affine step: all runs of the first vector, then of the second.
        owners[groups.ravel()] = np.arange(runs * many).reshape(many, runs).T.ravel().repeat(length)
        scale[groups] = 2.0 * vectors / (vectors * vectors).sum(1, keepdims=True)
        return self._sum(
            np.stack([np.ones(size), scale], 1), [x, View(r.sources, r.places[owners])], length + 3
        )

    def _softmax(self, x: View, groups: Array) -> View:
        """exp(u) / sum exp(u) with u = x - mean(x), which changes nothing."""
        n, count = groups.shape
        u = self._dense(np.eye(count) - 1.0 / count, x, groups, 2)
        e = self._scalar("Exp", u)
        r = self._scalar(
            "Reciprocal", self._dense(np.ones((1, count)), e, np.arange(n * count).reshape(n, count))
        )
        view = View(r.sources, r.places.repeat(count))
        return self._put(Within(e, n * count, view, 0.0, 1.0))

    def _normalised(self, x: View, step: Normalise) -> View:
        """weight u / sqrt(mean of u^2 + epsilon) + bias, u = x or x - mean(x): |u_i| is at most root n times that root."""
        n, count = step.groups.shape
        u = self._dense(np.eye(count) - (1.0 / count if step.centred else 0.0), x, step.groups, 2)
        rows = np.arange(n * count).reshape(n, count)
        mean = self._dense(np.full((1, count), 1.0 / count), self._scalar("Square", u), rows, 2, step.epsilon)
        r, most = self._scalar("Power", mean, exponent=-0.5), float(np.sqrt(count)) * (1.0 + 2.0**-40)
        y = self._put(Within(u, n * count, View(r.sources, r.places.repeat(count)), -most, most))
        return self._sum(step.weight.reshape(-1, 1), [y], 0, step.bias.ravel())


Layer = Callable[[int, Step, Signal], Signal]


def follow(p: Elementary, start: int, end: int, layer: Layer, constants: bool,
           extreme: Callable[[Extreme, Signal, Signal], Signal] = lambda step, x, y: y) -> Signal:  # fmt: skip
    """The signal of a step; `layer` says what a layer makes of what it reads.

    constants: whether they count; differences of two points do not see them. extreme: what follows from knowing that results are
    maxima or minima.
    """
    signals: dict[int, Signal] = {}

    def seen(view: View) -> Signal:
        if not view.sources:
            return Signal({INPUT: np.zeros((len(view.places), p.steps[start].size))})
        return stacked([signals[s] for s in view.sources]).rows(view.places)

    for k in p.between(start, end):
        step = p.steps[k]
        if k == start:
            signals[k] = layer(-1, step, identity(INPUT, step.size))
        elif isinstance(step, Input | Constant):
            values = step.values if isinstance(step, Constant) and constants else np.zeros(step.size)
            signals[k] = Signal({ONE: values[:, None]}, None, 0, False, 0.0, np.array([values, values]))
        elif isinstance(step, Affine):
            x = seen(step.view)
            signals[k] = mapped(step.kernel, step.index, x, step.offset if constants else None, step.rounded)
            signals[k] = extreme(step, x, signals[k]) if isinstance(step, Extreme) else signals[k]
        else:
            x = seen(step.view)
            x = stacked([x, seen(step.other)]) if isinstance(step, Product) else x
            signals[k] = layer(p.layers.index(k), step, x)
    return signals[end]


def everywhere(step: Step) -> Slopes:
    """The range of slopes of what a layer reads, for any two points.

    Raises:
        NotCovered: it has no bound.
    """
    if isinstance(step, Product):
        raise NotCovered("a product of two values has no slopes everywhere")
    assert isinstance(step, Scalar | Implicit)
    slopes = step.slopes if isinstance(step, Scalar) else None
    low, high = (
        np.broadcast_to(np.float64(e), step.size) for e in curve(step.law, step.settings, slopes).everywhere
    )
    if not bool(np.isfinite(low).all() and np.isfinite(high).all()):
        raise NotCovered(f"the slopes of {step.law} have no bound everywhere")
    return low, high


@dataclass
class Differences:
    """w = s v with s in [0, span] for every neuron, v a signal of the input and of neurons of earlier blocks, or of its own.

    The difference of any two points of a part of which the slopes are known, and its derivative at almost every point. Neurons
    with one possible slope are none. layers: which layer a block is of, and which of its numbers the neurons are.
    """

    blocks: list[Signal]
    spans: list[Array]
    layers: list[tuple[int, Array, Array]]
    inputs: int
    output: Signal

    @property
    def sizes(self) -> list[int]:
        return [len(s) for s in self.spans]


def differences(p: Elementary, start: int, end: int, slopes: Callable[[int], Slopes | None]) -> Differences:
    """Neurons between two steps, with slopes of layers as given, or (None) those everywhere."""
    found = Differences([], [], [], p.steps[start].size, identity(INPUT, 1))

    def layer(k: int, step: Step, v: Signal) -> Signal:
        if k < 0:
            return v
        given = slopes(k)
        low, high = everywhere(step) if given is None else given
        if isinstance(step, Implicit):
            return _implicit(found, k, step, v, low, high)
        if not bool(np.isfinite(low).all() and np.isfinite(high).all()):
            raise NotCovered("slopes that have no bound, of what an implicit layer says nothing about")
        free = np.flatnonzero(high > low)
        y = sprouted(len(found.blocks), v, low, free)
        if len(free):
            # low + span >= high exactly: the difference is rounded up.
            found.spans.append(np.where(low == 0, high, np.nextafter(high - low, np.inf))[free])
            found.layers.append((k, free, low[free]))
            found.blocks.append(v.rows(free))
        half = np.arange(y.height // 2)
        return added(y.rows(half), y.rows(half + len(half))) if isinstance(step, Product) else y

    found.output = follow(p, start, end, layer, constants=False)
    return found


def _implicit(found: Differences, k: int, step: Implicit, x: Signal, low: Array, high: Array) -> Signal:
    """z = s v with v = W z + U x: a block that feeds itself.

    Statement: z exists and is unique where the block of the matrix of `multipliers` is positive definite: 2D > s (DW' + WD).
    Source: Revay, Wang, Manchester 2020 (arXiv 2010.01732).
    """
    if not bool((low >= 0).all() and (high > 0).all()):
        raise NotCovered("implicit layers with falling activations are not covered by the checker")
    n, key = step.size, len(found.blocks)
    drive = mapped(step.inputs[None], np.arange(x.height)[None, None], x)
    z = identity(key, n)._replace(growth=x.growth)
    found.layers.append((k, np.arange(n), np.zeros(n)))
    found.blocks.append(added(drive, mapped(step.recurrent[None], np.arange(n)[None, None], z)))
    found.spans.append(np.array(high))
    return z
