"""n + z (h - n): where z is in [0, 1] it lies between n and h, which says more than sums and products one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lipverify.checkers.kernel.account import STEP, charge
from lipverify.checkers.kernel.arithmetic import Array
from lipverify.checkers.kernel.program import Affine, Product, Step, View, by_source, sizes_of


class Blended(NamedTuple):
    """What is blended, by views; h as a view, or stored numbers [size]."""

    n: View
    product: View
    z: View
    h: View | Array


def blend_of(steps: Sequence[Step], step: Affine) -> Blended | None:
    """The blend that a sum of two vectors is, if it is one; None for everything else. step: one that may follow `steps`.

    Every name of an entry (its step, its place there) is compared with that of the entry it has to be.
    """
    if not _entrywise(step, [1.0, 1.0]) or step.offset is not None:
        return None
    charge(0, STEP + 64 * step.size)
    terms = [View(step.view.sources, step.view.places[step.index[0, :, k]]) for k in (0, 1)]
    for n, product in (terms, terms[::-1]):
        names = _named(steps, product)
        if names is None or not isinstance(made := steps[names[0]], Product):
            continue
        factors = [View(v.sources, v.places[names[1]]) for v in (made.view, made.other)]
        for z, difference in (factors, factors[::-1]):
            h = _other_end(steps, difference, n)
            if h is not None:
                return Blended(n, product, z, h)
    return None


def _other_end(steps: Sequence[Step], difference: View, n: View) -> View | Array | None:
    """h where the view shows h - n entry by entry."""
    names, wanted = _named(steps, difference), _named(steps, n)
    if names is None or wanted is None or not isinstance(step := steps[names[0]], Affine):
        return None
    if _entrywise(step, [-1.0]):
        own = View(step.view.sources, step.view.places[step.index.reshape(-1)[names[1]]])
        stored = np.zeros(step.size) if step.offset is None else step.offset
        return stored[names[1]] if _same(_named(steps, own), wanted) else None
    for signs, minus in (([1.0, -1.0], 1), ([-1.0, 1.0], 0)):
        if _entrywise(step, signs) and step.offset is None:
            index = step.index[0][names[1]]
            taken, h = (View(step.view.sources, step.view.places[index[:, k]]) for k in (minus, 1 - minus))
            if _same(_named(steps, taken), wanted):
                return h
    return None


def _entrywise(step: Affine, factors: Sequence[float]) -> bool:
    """Whether entry i is a sum of one entry each, times these factors, of what is read; every entry read is there."""
    kernel, index, count = step.kernel, step.index, len(factors)
    each = kernel.shape[:2] == (1, 1) or (count == 1 and kernel.shape[1:] == (1, 1) and index.shape[1] == 1)
    if not each or kernel.shape[2] != count or step.rounded or bool((index < 0).any()):
        return False
    return bool((kernel == np.array(factors)).all()) and bool((step.view.places[index] >= 0).all())


def _named(steps: Sequence[Step], view: View) -> tuple[int, Array] | None:
    """The one step that all entries of a view come from, and their places there."""
    found = [(step, places) for step, _, places in by_source(view, sizes_of(view, steps))]
    if len(found) != 1 or bool((view.places < 0).any()):
        return None
    return found[0]


def _same(one: tuple[int, Array] | None, other: tuple[int, Array]) -> bool:
    return one is not None and one[0] == other[0] and np.array_equal(one[1], other[1])
