"""Small programs by hand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from lipverify.checkers.kernel.program import (
    Affine,
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
    checked,
)
from lipverify.checkers.kernel.ranges import Region

Array = np.ndarray[Any, np.dtype[Any]]


class Writing:
    """Steps so far; each reads the whole result of the one before, unless it is told otherwise."""

    def __init__(self, inputs: int) -> None:
        self.steps: list[Step] = []
        self.put(Input(View((), np.empty(0, dtype=np.int64)), inputs))

    def put(self, step: Step) -> int:
        self.steps.append(checked(step, self.steps))
        return len(self.steps) - 1

    def view(self, *sources: int) -> View:
        found = sources or (len(self.steps) - 1,)
        return View(found, np.arange(sum(self.steps[s].size for s in found)))

    def dense(self, weight: Array, bias: Array | None = None, *sources: int) -> int:
        view, n = self.view(*sources), weight.shape[1]
        return self.put(Affine(view, len(weight), weight[None], np.arange(n)[None, None], bias))

    def scalar(self, law: str, *sources: int, slopes: Array | None = None, **settings: float) -> int:
        view = self.view(*sources)
        return self.put(Scalar(view, len(view.places), law, tuple(settings.items()), slopes))

    def sum(self, first: int, second: int) -> int:
        n = self.steps[first].size
        places = np.arange(2 * n).reshape(1, 2, n).swapaxes(1, 2)
        return self.put(Affine(self.view(first, second), n, np.ones((1, 1, 2)), places))

    def product(self, first: int, second: int) -> int:
        return self.put(Product(self.view(first), self.steps[first].size, self.view(second)))

    def sort(self, group: int, whole: bool = True) -> int:
        view = self.view()
        groups = np.arange(len(view.places)).reshape(-1, group)
        return self.put(Order(view, groups.size if whole else len(groups), groups, whole))

    def reflect(self, vectors: Array) -> int:
        view, vectors = self.view(), np.ldexp(vectors, -np.frexp(np.abs(vectors).max(1, keepdims=True))[1])
        groups = np.arange(len(view.places)).reshape(-1, *vectors.shape)
        return self.put(Reflect(view, groups.size, groups, vectors))

    def implicit(self, recurrent: Array, inputs: Array, bias: Array | None = None, law: str = "Relu") -> int:
        return self.put(Implicit(self.view(), len(recurrent), recurrent, inputs, bias, law))

    def softmax(self, count: int) -> int:
        view = self.view()
        return self.put(Softmax(view, len(view.places), np.arange(len(view.places)).reshape(-1, count)))

    def normalise(
        self, count: int, weight: Array, bias: Array, epsilon: float = 1e-2, centred: bool = True
    ) -> int:
        view = self.view()
        groups = np.arange(len(view.places)).reshape(-1, count)
        tiled = (np.broadcast_to(v, groups.shape).copy() for v in (weight, bias))
        return self.put(Normalise(view, groups.size, groups, *tiled, epsilon, centred))

    def program(self) -> Program:
        return Program(tuple(self.steps))


def mlp(rng: np.random.Generator, widths: Sequence[int], law: str = "Relu", **settings: float) -> Program:
    w = Writing(widths[0])
    for k, (n, m) in enumerate(itertools.pairwise(widths)):
        w.dense(rng.standard_normal((m, n)) / np.sqrt(n), 0.3 * rng.standard_normal(m))
        if k < len(widths) - 2:
            w.scalar(law, **settings)
    return w.program()


def ball(centre: Array, radius: float, norm: str = "linf") -> Region:
    low, high = np.nextafter(centre - radius, -np.inf), np.nextafter(centre + radius, np.inf)
    return Region(centre, radius, norm, low, high)
