"""Entries of steps as polynomials of degree 2 in entries of earlier steps, by factors that are powers of 2: exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from lipverify.checkers.kernel.account import charge
from lipverify.checkers.kernel.arithmetic import Array
from lipverify.checkers.kernel.program import Affine, Product, Scalar, Step, View, by_source, sizes_of


class Linear(NamedTuple):
    """Entries sum_t factor_t x_t: [size, terms] each, variables numbered over all steps."""

    factor: Array
    one: Array


class Quadratic(NamedTuple):
    """Entries sum_t factor_t x_t y_t."""

    factor: Array
    one: Array
    two: Array


class Polynomials:
    """Entries of steps in entries of earlier ones, by exact factors. starts: the first variable of each step."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = steps
        self.starts = np.cumsum([0, *(s.size for s in steps)])
        self._linear: dict[int, Linear] = {}
        self._quadratic: dict[int, Quadratic | None] = {}

    def linear(self, k: int) -> Linear:
        """Entries as differences of two others, or multiples of one, as far back as that goes."""
        if k not in self._linear:
            own = np.arange(self.steps[k].size)[:, None] + self.starts[k]
            found = Linear(np.ones(own.shape), own)
            step = self.steps[k]
            if isinstance(step, Affine) and _exact(step) and step.index.shape[2] <= 2:
                inner = self._shown(step.view, self.linear, 1)
                other = None if inner is None else Linear(*_summed(step, *inner))
                if other is not None and other.factor.shape[1] <= 2 and _near(other.factor):
                    found = other
            self._linear[k] = found
        return self._linear[k]

    def squared(self, k: int) -> bool:
        """Whether any square is among what entries are sums of: elsewhere nothing is expanded."""
        return any(_square(step) for step in self._behind(k))

    def _behind(self, k: int) -> Iterator[Step]:
        """The step, and all that its entries are sums of."""
        seen, left = set[int](), [k]
        while left:
            k = left.pop()
            if k not in seen:
                seen.add(k)
                yield self.steps[k]
                left += self.steps[k].reads if _exact(self.steps[k]) else ()

    def quadratic(self, k: int) -> Quadratic | None:
        """Entries as sums of products of two others; None where they are none."""
        if k not in self._quadratic:
            self._quadratic[k] = self._of(self.steps[k])
        return self._quadratic[k]

    def _of(self, step: Step) -> Quadratic | None:
        if isinstance(step, Scalar) and step.law == "Square":
            rooted = self._shown(step.view, self._under_root, 2)
            return self.multiplied(step.view, step.view) if rooted is None else Quadratic(*rooted)
        if isinstance(step, Product):
            return self.multiplied(step.view, step.other)
        inner = self._shown(step.view, self.quadratic, 2) if _exact(step) else None
        found = None if inner is None else Quadratic(*_summed(step, *inner))
        return found if found is not None and _near(found.factor) else None

    def alike(self, k: int) -> tuple[Quadratic | None, float]:
        """Entries over the factor that all their terms have, up to the roundings of the step, and that factor."""
        step = self.steps[k]
        first = float(step.kernel.flat[0]) if isinstance(step, Affine) and step.offset is None else 0.0
        if not isinstance(step, Affine) or first <= 0 or not (step.kernel == first).all():
            return self.quadratic(k), 1.0
        inner = self._shown(step.view, self.quadratic, 2)
        ones = replace(step, kernel=np.ones_like(step.kernel))
        found = None if inner is None else Quadratic(*_summed(ones, *inner))
        return found if found is not None and _near(found.factor) else None, first

    def _under_root(self, k: int) -> tuple[Array, ...] | None:
        """The square of a root of a sum of squares; None for other steps."""
        step = self.steps[k]
        if not (isinstance(step, Scalar) and step.law == "Sqrt"):
            return None
        sums = (s for source in step.reads for s in self._behind(source))
        positive = all(
            _square(s) or (isinstance(s, Affine) and _exact(s) and bool((s.kernel >= 0).all())) for s in sums
        )
        return self._shown(step.view, self.quadratic, 2) if positive else None

    def multiplied(self, one: View, two: View) -> Quadratic | None:
        """What a view shows times what another one does, entry by entry."""
        x, y = self._shown(one, self.linear, 1), self._shown(two, self.linear, 1)
        if x is None or y is None:
            return None
        shape = len(x[0]), x[0].shape[1], y[0].shape[1]
        a, b = np.broadcast_to(x[1][:, :, None], shape), np.broadcast_to(y[1][:, None, :], shape)
        found = x[0][:, :, None] * y[0][:, None, :], np.minimum(a, b), np.maximum(a, b)
        product = Quadratic(*(v.reshape(shape[0], -1) for v in found))
        return product if _near(product.factor) else None

    def _shown(
        self, view: View, of: Callable[[int], tuple[Array, ...] | None], degree: int
    ) -> tuple[Array, ...] | None:
        """What a view shows, factors 0 behind shorter entries and for the number 0."""
        shown = []
        for source, at, entries in by_source(view, sizes_of(view, self.steps)):
            found = of(source)
            if found is None:
                return None
            shown.append((at, [v[entries] for v in found]))
        most = max((v[0].shape[1] for _, v in shown), default=1)
        charge(3 * len(view.places) * most)
        factor = np.zeros((len(view.places), most))
        variables = [np.zeros(factor.shape, dtype=np.int64) for _ in range(degree)]
        for at, (f, *vs) in shown:
            factor[at, : f.shape[1]] = f
            for all_of, v in zip(variables, vs, strict=True):
                all_of[at, : v.shape[1]] = v
        return factor, *variables


def _square(step: Step) -> bool:
    """Entries times themselves."""
    if isinstance(step, Product):
        one, two = step.view, step.other
        return one.sources == two.sources and np.array_equal(one.places, two.places)
    return isinstance(step, Scalar) and step.law == "Square"


def _exact(step: Step) -> bool:
    """An affine step without constants whose factors are small powers of 2: products with them round nothing."""
    if not isinstance(step, Affine) or step.rounded or (step.offset is not None and step.offset.any()):
        return False
    return bool(((np.abs(np.frexp(step.kernel)[0]) == 0.5) | (step.kernel == 0)).all()) and _near(step.kernel)


def _near(factor: Array) -> bool:
    """Sums of a million of them, and of their halves, are exact."""
    size = np.abs(factor)
    return bool(((size == 0) | ((size >= 2.0**-12) & (size <= 2.0**12))).all()) and factor.shape[-1] < 1 << 20


def _summed(step: Step, factor: Array, *variables: Array) -> tuple[Array, ...]:
    assert isinstance(step, Affine)
    groups, out, terms = step.kernel.shape
    positions, inner = step.index.shape[1], factor.shape[1]
    shape = groups, out, positions, terms, inner
    charge((1 + len(variables)) * math.prod(shape))
    gone = step.index < 0
    f = np.where(gone[..., None], 0.0, factor[step.index])[:, None] * step.kernel[:, :, None, :, None]
    return tuple(
        np.broadcast_to(v, shape).reshape(-1, terms * inner)
        for v in (f, *(v[step.index][:, None] for v in variables))
    )


def collected(entry: Array, one: Array, two: Array, factor: Array) -> tuple[Array, Array, Array, Array]:
    """Equal products of an entry together; without those that cancel."""
    if not len(entry):
        return entry, one, two, factor
    order = np.lexsort([two, one, entry])
    e, a, b, c = (v[order] for v in (entry, one, two, factor))
    new = np.concatenate([[True], (e[1:] != e[:-1]) | (a[1:] != a[:-1]) | (b[1:] != b[:-1])])
    total = np.add.reduceat(c, np.flatnonzero(new))
    there = total != 0
    return e[new][there], a[new][there], b[new][there], total[there]
