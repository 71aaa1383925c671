"""Random programs and what they are in elementary steps: every step has one that stands for it, number for number."""

from __future__ import annotations

import numpy as np
import pytest

from lipverify.checkers.kernel.elementary import elementary
from lipverify.checkers.kernel.program import (
    Affine,
    Normalise,
    Order,
    Product,
    Reflect,
    Scalar,
    Softmax,
    Step,
    View,
)
from tests.tiers import tier
from tests.unit.checkers.kernel.programs import Writing, results

KINDS = ("sum", "scalar", "maximum", "sort", "reflection", "product", "softmax", "normalisation")


def read(rng: np.random.Generator, w: Writing, count: int) -> View:
    """Numbers of one or two earlier steps: often the first ones in order, not all of them; also the number 0."""
    sources = tuple(
        rng.choice(len(w.steps), min(len(w.steps), int(rng.integers(1, 3))), replace=False).tolist()
    )
    size = sum(w.steps[s].size for s in sources)
    in_order = rng.random() < 0.5 and size >= count
    places = np.arange(count) if in_order else rng.integers(0, size, count)
    if rng.random() < 0.2:
        places[rng.integers(count)] = -1
    return View(sources, places)


def step(rng: np.random.Generator, w: Writing, kind: str) -> Step:
    n = int(rng.integers(1, 7))
    if kind == "sum":
        terms, out = int(rng.integers(1, 3)), int(rng.integers(1, 4))
        index = rng.integers(-1, n, (1, out, terms))
        return Affine(read(rng, w, n), out, rng.choice([-1.0, 0.5, 1.0], (1, 1, terms)), index)
    if kind == "scalar":
        return Scalar(read(rng, w, n), n, str(rng.choice(["Relu", "Tanh", "Abs"])))
    if kind == "product":
        return Product(read(rng, w, n), n, read(rng, w, n))
    if kind == "maximum":
        width, rows = int(rng.integers(1, 4)), int(rng.integers(1, n + 1))
        groups = np.sort(rng.permuted(np.tile(np.arange(n), (rows, 1)), axis=1)[:, :width], axis=1)
        if rng.random() < 0.5:  # the first ones, one each: a window of one entry
            groups = np.arange(rows)[:, None]
        if rng.random() < 0.5:  # and padding beside it
            groups = np.append(groups, np.full((rows, 1), -1), 1)
        return Order(read(rng, w, n), rows, groups, False)
    count, runs = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    view, groups = read(rng, w, count * runs), rng.permutation(count * runs).reshape(runs, count)
    if kind == "sort":
        return Order(view, groups.size, groups, True)
    if kind == "reflection":
        vector = rng.uniform(0.5, 1.0, (1, count))
        return Reflect(view, groups.size, groups[:, None], vector)
    if kind == "softmax":
        return Softmax(view, groups.size, groups)
    stored = rng.standard_normal((2, *groups.shape)) + 2.0
    return Normalise(view, groups.size, groups, stored[0], stored[1], 0.5, bool(rng.integers(2)))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("seed", range(tier(40, 4000)))
def test_every_step_has_one_that_stands_for_it(seed: int, whole: bool) -> None:
    """A maximum of one term each was a view of the first numbers of what it read, and stood for all of them: 1.42 for 1001."""
    rng = np.random.default_rng(seed)
    w = Writing(int(rng.integers(1, 4)))
    for kind in rng.choice(KINDS, int(rng.integers(1, 8))):
        w.put(step(rng, w, str(kind)))
    found, x = elementary(w.program(), whole), rng.standard_normal((3, w.steps[0].size))
    wanted, ours = results(w.steps, x), results(found.steps, x)
    for k, place in found.place.items():
        assert found.steps[place].size == w.steps[k].size
        np.testing.assert_allclose(ours[place], wanted[k], rtol=1e-8, atol=1e-8)
