"""Programs in elementary steps: maxima, sorts, reflections, softmax and normalisation by affine maps, scalar functions, products.

Layers are the scalar functions, products and implicit layers of what that gives, in order; -1 is the input. A layer reads one
number for each neuron; a product reads two vectors, one after the other, and is two sets of neurons. With maxima whole, a maximum
is a layer too, and reads all first terms, then all second ones, and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from lipverify.checkers.kernel import program as steps
from lipverify.checkers.kernel.account import STEP, charge
from lipverify.checkers.kernel.arithmetic import Array, need
from lipverify.checkers.kernel.blends import blend_of
from lipverify.checkers.kernel.program import Affine, Constant, Product, Program, Scalar, Step, View
from lipverify.checkers.kernel.signals import Signal
from lipverify.errors import NotCovered

# Fewest comparators for the small sizes (Knuth, The Art of Computer Programming, volume 3, section 5.3.4).
_SORTS = {1: [], 2: [[(0, 1)]], 3: [[(0, 1)], [(1, 2)], [(0, 1)]], 4: [[(0, 1), (2, 3)], [(0, 2), (1, 3)], [(1, 2)]],
          5: [[(0, 3), (1, 4)], [(0, 2), (1, 3)], [(0, 1), (2, 4)], [(1, 2), (3, 4)], [(2, 3)]]}  # fmt: skip
_MOST, _TERMS, _PAIRED = 1 << 22, 25, 20


@dataclass(frozen=True)
class Ranged(Affine):
    """A copy of what maxima read, from the ranges of which theirs follow better than through comparators."""


@dataclass(frozen=True)
class Extreme(Affine):
    """Entry i is the larger (sign 1) or smaller (-1) of entries i and size + i of what it reads."""

    sign: float = 1.0


@dataclass(frozen=True)
class Blend(Affine):
    """n + z (h - n): entry i of what it reads, plus entry size + i; h and z are the entries 2 size + i and 3 size + i."""


@dataclass(frozen=True)
class Within(Product):
    """A product whose results are known to lie in [-most, most], or [0, most]."""

    least: float
    most: float


@dataclass(frozen=True)
class Largest(Step):
    """Entry i is the largest of entries i, size + i, 2 size + i... of what it reads."""


class Elementary(NamedTuple):
    """place: where every step of the program it came from is; layers: the steps that are layers."""

    steps: tuple[Step, ...]
    place: dict[int, int]
    layers: tuple[int, ...]

    def size(self, layer: int) -> int:
        """How many numbers a layer reads."""
        step = self.steps[self.layers[layer] if layer >= 0 else 0]
        return (
            len(step.view.places)
            if isinstance(step, Largest)
            else step.size * (1 + isinstance(step, Product))
        )


def met(step: Step, x: Signal, y: Signal) -> Signal:
    """What is known of a maximum, a minimum or a blend from the ranges of what it reads, x, beside that of the sum, y."""
    if x.ends is None or y.ends is None or not isinstance(step, Extreme | Blend):
        return y
    n, ends = step.size, x.ends
    if isinstance(step, Extreme):
        choose = np.maximum if step.sign > 0 else np.minimum
        low, high = choose(ends[:, :n], ends[:, n : 2 * n])
    else:
        low, high = (c(ends[k, :n], ends[k, 2 * n : 3 * n]) for k, c in ((0, np.minimum), (1, np.maximum)))
        between = (ends[0, 3 * n :] >= 0) & (ends[1, 3 * n :] <= 1)
        low, high = np.where(between, low, -np.inf), np.where(between, high, np.inf)
    return y._replace(ends=np.array([np.maximum(y.ends[0], low), np.minimum(y.ends[1], high)]))


def behind(steps: Sequence[Step], end: int, start: int = 0) -> list[int]:
    """The steps that one is computed from, in order, as far as `start`.

    Raises:
        UnreadableCertificate: `end` is no function of `start` alone.
    """
    charge(0, (1 + max(0, end - start)) * STEP // 64)
    found = {start, end}
    for k in range(end, start, -1):
        found |= set(steps[k].reads) if k in found else set()
    alone = all(k >= start or isinstance(steps[k], Constant) for k in found)
    need(start <= end and alone, "a step that is no function of the other alone")
    return sorted(found)


def elementary(program: Program, whole: bool = False) -> Elementary:
    """What is behind the last step of a program, in elementary steps; whole: maxima of few terms stay what they are."""
    writer = _Writer(program if whole else None)
    for k in behind(program.steps, len(program.steps) - 1):
        writer.write(k, program.steps[k])
    layers = [
        k for k, s in enumerate(writer.steps) if isinstance(s, Scalar | Product | steps.Implicit | Largest)
    ]
    return Elementary(tuple(writer.steps), writer.place, tuple(layers))


class _Writer:
    """Elementary steps so far. Vectors are views of them."""

    def __init__(self, whole: Program | None) -> None:
        self.whole = whole
        self.steps: list[Step] = []
        self.place: dict[int, int] = {}

    def write(self, number: int, step: Step) -> None:
        x = View(tuple(self.place[s] for s in step.view.sources), step.view.places)
        order = self.rectified(step)
        if order is not None:
            below = View(tuple(self.place[s] for s in order.view.sources), order.view.places)
            y = self.largest(below, order.groups, step is not order)
        elif isinstance(step, steps.Order):
            x = self.put(Ranged(x, len(x.places), *_entrywise(len(x.places), [1.0])))
            y = self.sort(x, step.groups) if step.whole else self.maximum(x, step.groups)
        elif isinstance(step, steps.Reflect):
            y = self.reflect(x, step.groups, step.vectors)
        elif isinstance(step, steps.Softmax):
            y = self.softmax(x, step.groups)
        elif isinstance(step, steps.Normalise):
            y = self.normalise(x, step)
        elif isinstance(step, Product):
            other = View(tuple(self.place[s] for s in step.other.sources), step.other.places)
            y = self.put(replace(step, view=x, other=other))
        else:
            y = self.put(replace(step, view=x))
            if isinstance(step, Affine):
                y = self.blended(y)
        # All of one step in order, no less of it: the step of the program stands for it from here on.
        if len(y.sources) > 1 or not np.array_equal(y.places, np.arange(self.steps[y.sources[0]].size)):
            y = self.sum([1.0], y)
        need(self.steps[y.sources[0]].size == step.size, "a step that another one does not stand for")
        self.place[number] = y.sources[0]

    def put(self, step: Step) -> View:
        charge(4 * step.size + (step.index.size + step.kernel.size if isinstance(step, Affine) else 0), STEP)
        self.steps.append(step if isinstance(step, Largest) else steps.checked(step, self.steps))
        return View((len(self.steps) - 1,), np.arange(step.size))

    def joined(self, views: Sequence[View]) -> View:
        """Several views, one after another."""
        counts = [sum(self.steps[s].size for s in v.sources) for v in views]
        starts = np.cumsum([0, *counts[:-1]])
        places = [np.where(v.places < 0, -1, v.places + n) for v, n in zip(views, starts, strict=True)]
        return View(tuple(s for v in views for s in v.sources), np.concatenate(places))

    def sum(self, factors: Any, *views: View, rounded: int = 0, offset: Array | None = None) -> View:
        """Entry by entry the sum of factors times views; factors: [terms] or [size, terms]."""
        n = len(views[0].places)
        return self.put(Affine(self.joined(views), n, *_entrywise(n, factors), offset, rounded))

    def dense(self, matrix: Array, x: View, groups: Array, rounded: int = 0, offset: float = 0.0) -> View:
        """matrix [out, count] on every row of groups [n, count] of places in x; results [n, out]."""
        size = len(groups) * len(matrix)
        y = self.put(Affine(x, size, matrix[None], groups[None], np.full(size, offset), rounded))
        return View(y.sources, y.places.reshape(len(matrix), -1).T.ravel())

    def scalar(self, law: str, x: View, **settings: float) -> View:
        return self.put(Scalar(x, len(x.places), law, tuple(settings.items())))

    def compared(self, p: View, q: View) -> tuple[View, View]:
        """max = q + r, min = p - r with r = relu(p - q)."""
        views, n = self.joined([p, q, self.scalar("Relu", self.sum([1.0, -1.0], p, q))]), len(p.places)
        kernels = (_entrywise(n, [0.0, 1.0, 1.0]), 1.0), (_entrywise(n, [1.0, 0.0, -1.0]), -1.0)
        high, low = (self.put(Extreme(views, n, *k, None, 0, None, sign)) for k, sign in kernels)
        return high, low

    def rectified(self, step: Step) -> steps.Order | None:
        """The maxima that a step is, or of which it is the ReLU, where they stay whole."""
        if isinstance(step, Scalar) and step.law == "Relu" and len(step.view.sources) == 1 and self.whole:
            behind = self.whole.steps[step.view.sources[0]]
            if np.array_equal(step.view.places, np.arange(behind.size)):
                step = behind
        if self.whole is None or not isinstance(step, steps.Order) or step.whole:
            return None
        return step if step.groups.shape[1] <= _TERMS else None

    def largest(self, x: View, groups: Array, zero: bool) -> View:
        """The maxima of groups, and of 0 if `zero`, as one layer: a missing term is the first one again."""
        there = groups >= 0
        if not there.any(1).all():
            raise NotCovered("a maximum of nothing")
        first = np.take_along_axis(groups, there.argmax(1)[:, None], 1)
        places = x.places[np.where(there, groups, first)].T.ravel()
        if zero:
            places = np.append(places, np.full(len(groups), -1))
        return self.put(Largest(View(x.sources, places), len(groups)))

    def maximum(self, x: View, groups: Array) -> View:
        if groups.size > _MOST:
            raise NotCovered(f"maxima of {groups.size} numbers are too many for the checker")
        charge(16 * groups.size)
        rows = [[i for i in row if i >= 0] for row in groups.tolist()]
        while max(map(len, rows)) > 1:
            pairs = [pair for r in rows for pair in zip(r[::2], r[1::2], strict=False)]
            kept = [r[-1] for r in rows if len(r) % 2]
            p, q = (View(x.sources, x.places[[pair[k] for pair in pairs]]) for k in (0, 1))
            rest = View(x.sources, x.places[np.array(kept, dtype=np.int64)])
            x = self.joined([self.compared(p, q)[0], rest])
            won, left = iter(range(len(pairs))), iter(range(len(pairs), len(pairs) + len(kept)))
            rows = [[next(won) for _ in r[1::2]] + [next(left) for _ in range(len(r) % 2)] for r in rows]
        return View(x.sources, x.places[[r[0] for r in rows]])

    def blended(self, y: View) -> View:
        """The sum that was put last, as a blend if it is one."""
        step = self.steps[-1]
        assert isinstance(step, Affine)
        found = blend_of(self.steps, step)
        if found is None:
            return y
        self.steps.pop()
        h, none = found.h, View((), np.empty(0, np.int64))
        if not isinstance(h, View):
            h = self.put(Constant(none, step.size, h))
        kernel = _entrywise(step.size, [1.0, 1.0, 0.0, 0.0])
        return self.put(Blend(self.joined([found.n, found.product, h, found.z]), step.size, *kernel))

    def sort(self, x: View, groups: Array) -> View:
        if groups.shape[1] not in _SORTS:
            raise NotCovered(f"sorts of {groups.shape[1]} numbers have no form as neurons in the checker")
        wires, n = [View(x.sources, x.places[column]) for column in groups.T], len(groups)
        for stage in _SORTS[groups.shape[1]]:
            high, low = self.compared(*(self.joined([wires[pair[k]] for pair in stage]) for k in (0, 1)))
            for place, (i, j) in enumerate(stage):
                rows = slice(place * n, (place + 1) * n)
                wires[i], wires[j] = (View(v.sources, v.places[rows]) for v in (low, high))
        y = self.joined(wires)
        return View(y.sources, y.places.reshape(-1, n).T.ravel())

    def reflect(self, x: View, groups: Array, vectors: Array) -> View:
        """x + 2 w r / |w|^2 with r = relu(-w'x) for every group."""
        (runs, many, length), size = groups.shape, groups.size
        v = self.put(Affine(x, runs * many, -vectors[:, None, :], groups.swapaxes(0, 1)))
        r, owners, scale = self.scalar("Relu", v), np.empty(size, dtype=np.int64), np.empty(size)
        # Results of an affine step: all runs of the first vector, then of the second.
        owners[groups.ravel()] = np.arange(runs * many).reshape(many, runs).T.ravel().repeat(length)
        scale[groups] = 2.0 * vectors / (vectors * vectors).sum(1, keepdims=True)
        factors = np.stack([np.ones(size), scale], 1)
        return self.sum(factors, x, View(r.sources, r.places[owners]), rounded=length + 3)

    def centred(self, x: View, groups: Array) -> View:
        """Every entry less the mean of its row of groups [n, count]; results in the order of groups."""
        count = groups.shape[1]
        mean = self.dense(np.full((1, count), 1.0 / count), x, groups, 1)
        own = View(x.sources, x.places[groups.ravel()])
        return self.sum([1.0, -1.0], own, View(mean.sources, mean.places.repeat(count)))

    def softmax(self, x: View, groups: Array) -> View:
        """1 / (1 + sum over the others of exp(x_j - x_i)); of many exp(u) / sum exp(u) with u = x - mean(x)."""
        n, count = groups.shape
        if 1 < count <= _PAIRED:
            others = groups[:, [[j for j in range(count) if j != i] for i in range(count)]]
            own = np.broadcast_to(groups[:, :, None], others.shape)
            pairs = [View(x.sources, x.places[g.ravel()]) for g in (others, own)]
            e = self.scalar("Exp", self.sum([1.0, -1.0], *pairs))
            rows = np.arange(others.size).reshape(n * count, count - 1)
            return self.scalar("Reciprocal", self.dense(np.ones((1, count - 1)), e, rows, 0, 1.0))
        e = self.scalar("Exp", self.centred(x, groups))
        total = self.dense(np.ones((1, count)), e, np.arange(n * count).reshape(n, count))
        r = self.scalar("Reciprocal", total)
        return self.put(Within(e, n * count, View(r.sources, r.places.repeat(count)), 0.0, 1.0))

    def normalise(self, x: View, step: steps.Normalise) -> View:
        """weight u / sqrt(mean of u^2 + epsilon) + bias, u = x or x - mean(x): |u_i| is at most root n times that root."""
        n, count = step.groups.shape
        own = View(x.sources, x.places[step.groups.ravel()])
        u = self.centred(x, step.groups) if step.centred else own
        squares, rows = self.scalar("Square", u), np.arange(n * count).reshape(n, count)
        mean = self.dense(np.full((1, count), 1.0 / count), squares, rows, 1, step.epsilon)
        r, most = self.scalar("Power", mean, exponent=-0.5), float(np.sqrt(count)) * (1.0 + 2.0**-40)
        y = self.put(Within(u, n * count, View(r.sources, r.places.repeat(count)), -most, most))
        return self.sum(step.weight.reshape(-1, 1), y, offset=step.bias.ravel())


def _entrywise(n: int, factors: Any) -> tuple[Array, Array]:
    """Kernel and index of the sum of vectors of n numbers, one after another, times factors [terms] or [n, terms]."""
    kernel = np.atleast_2d(np.asarray(factors, dtype=np.float64))[:, None]
    terms = kernel.shape[2]
    return kernel, np.arange(terms * n).reshape(terms, n).T.reshape(len(kernel), -1, terms)
