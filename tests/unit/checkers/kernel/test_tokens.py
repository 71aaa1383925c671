"""Norms of tokens, on programs by hand: what is taken for one vector is one, and no pair is steeper than what is proved."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from lipverify.checkers.evaluation import evaluate_with_deviations
from lipverify.checkers.kernel.arithmetic import gamma
from lipverify.checkers.kernel.program import (
    Affine,
    Constant,
    Output,
    Product,
    Program,
    Softmax,
    View,
    checked,
)
from lipverify.checkers.norms import Norm, Tokens
from lipverify.checkers.theories.tokens import constant_of
from lipverify.errors import NotCovered
from tests.tiers import tier
from tests.unit.checkers.kernel.programs import Array, Writing

NONE = View((), np.empty(0, np.int64))
COUNT = tier(30, 4_000)


def proved(program: Program, width: int, out: Norm | str = "linf", within: float | None = 1.0) -> Fraction:
    domain = None if within is None else Tokens("token-l2", width, within)
    with np.errstate(all="ignore"):
        return constant_of(program, domain, (Norm("token-l2", width), out))


def steepness(program: Program, width: int, x: Array, y: Array) -> float:
    """The largest slope of pairs [pairs, inputs], from the change of a token to that of an entry, less what is rounding."""
    size = program.steps[-1].size
    shown = Output("y", View((len(program.steps) - 1,), np.arange(size)), (size,))
    moved = np.linalg.norm((x - y).reshape(len(x), -1, width), axis=2).max(1)
    (one, two), (near, far) = (
        [v[0] for v in evaluate_with_deviations(replace(program, outputs=(shown,)), z, 2.0**-53)]
        for z in (x, y)
    )
    return float(((np.abs(one - near) - 10 * (two + far)).max(1) / moved).max())


def pairs(rng: np.random.Generator, tokens: int, width: int, count: int = 60) -> tuple[Array, Array]:
    """Near pairs whose tokens have at most the norm 1."""
    x = rng.standard_normal((count, tokens, width))
    x /= np.maximum(1, np.linalg.norm(x, axis=2).max(1))[:, None, None] * 1.01
    d = rng.standard_normal(x.shape)
    d[::3] = np.sign(d[::3])
    d *= 1e-4 / np.linalg.norm(d, axis=2).max(1)[:, None, None]
    return x.reshape(count, -1), (x + d).reshape(count, -1)


def summed(w: Writing, product: int, index: Array) -> int:
    """Sums [n] of products at places index [n, terms]."""
    return w.put(Affine(w.view(product), len(index), np.ones((1, 1, index.shape[1])), index[None]))


def gram(w: Writing, source: int, at: Array) -> int:
    """z_i'z_j for vectors at places [n, terms] of one source, [n * n]."""
    n, terms = at.shape
    left, right = np.repeat(at, n, 0).ravel(), np.tile(at, (n, 1)).ravel()
    product = w.put(Product(View((source,), left), left.size, View((source,), right)))
    return summed(w, product, np.arange(left.size).reshape(-1, terms))


def test_one_softmax_over_two_orders_of_the_same_tokens_gives_two_averages() -> None:
    """1000 (sum_j p_ij x_j - sum_j p_ij x_(2-j)) is not 0."""
    w, token = Writing(6), np.arange(6).reshape(3, 2)
    gram(w, 0, token)
    weights = w.softmax(3)
    values = np.stack([token, token[::-1]])  # [orders, j, e]
    o, i, e, j = np.meshgrid(np.arange(2), np.arange(3), np.arange(2), np.arange(3), indexing="ij")
    view = View((weights,), (3 * i + j).ravel()), View((0,), values[o, j, e].ravel())
    product = w.put(Product(view[0], o.size, view[1]))
    summed(w, product, np.arange(o.size).reshape(-1, 3))
    w.put(Affine(w.view(), 6, np.array([[[1000.0, -1000.0]]]), np.arange(12).reshape(2, 6).T[None]))
    x, y = np.array([[0.5, 0, 0, 0.3, -0.5, 0]]), np.array([[0.4, 0, 0, 0.3, -0.4, 0]])
    found = steepness(w.program(), 2, x, y)
    assert 500 < found < proved(w.program(), 2)


def test_a_sum_of_products_reads_what_its_view_shows() -> None:
    """The products 4 to 7, of which the factors are 1000 times as large."""
    w = Writing(8)
    w.dense(np.diag([1.0] * 4 + [1000.0] * 4))
    product = w.put(Product(w.view(1), 8, View((1,), np.array([1, 2, 3, 0, 5, 6, 7, 4]))))
    w.put(Affine(View((product,), np.arange(4, 8)), 1, np.ones((1, 1, 4)), np.arange(4).reshape(1, 1, 4)))
    x = np.array([[0, 0, 0, 0, 0.5, 0.5, 0.5, 0.5]])
    found = steepness(w.program(), 8, x, 0.9 * x)
    assert 1e6 < found < proved(w.program(), 8)


@pytest.mark.parametrize("places", [[0, 1, 0, 1], [1, 0, -1, 1]])
def test_products_that_are_shown_twice_or_left_out(places: list[int]) -> None:
    w = Writing(2)
    product = w.put(Product(w.view(0), 2, View((0,), np.array([1, 0]))))
    w.put(Affine(View((product,), np.array(places)), 1, np.ones((1, 1, 4)), np.arange(4).reshape(1, 1, 4)))
    x = np.full((1, 2), 0.7)
    assert steepness(w.program(), 2, x, 0.99 * x) < proved(w.program(), 2)


def test_a_factor_may_hold_entries_of_several_tokens() -> None:
    """Products of channels, over tokens of which the first counts 1000 times as much."""
    w = Writing(4)
    scales = np.array([1000.0, 1.0])[:, None, None] * np.eye(2)
    w.put(Affine(w.view(0), 4, scales, np.arange(4).reshape(2, 1, 2)))
    gram(w, 1, np.array([[0, 2], [1, 3]]))
    x = np.array([[0.7, 0.7, 0.0, 0.0]])
    found = steepness(w.program(), 2, x, 0.99 * x)
    assert 9e5 < found < proved(w.program(), 2)


def test_equal_numbers_that_are_rounded_may_stand_for_different_ones() -> None:
    """Two keys c (1, 0), the real second one c (1 + 2^-53): what they differ by moves with the query."""
    w, c = Writing(4), 2.0**75
    one = w.put(Constant(NONE, 1, np.ones(1)))
    stored = np.array([c, 0, c, 0]).reshape(4, 1, 1)
    keys = w.put(Affine(w.view(one), 4, stored, np.zeros((4, 1, 1), np.int64), None, 1))
    both, token = w.sum(0, keys), np.arange(4).reshape(2, 2)
    left, right = np.repeat(token, 2, 0).ravel(), np.tile(token, (2, 1)).ravel()
    summed(w, w.put(Product(View((0,), left), 8, View((both,), right))), np.arange(8).reshape(4, 2))
    w.softmax(2)
    assert proved(w.program(), 2) > c * 2.0**-53 / 4


@pytest.mark.parametrize("rounded", [1 << 20, 1 << 36])
def test_the_norm_of_rounded_numbers_is_that_of_the_real_ones(rounded: int) -> None:
    """(x_0 + x_1, x_0 - x_1) has the constant 2, of each number 1 + gamma that much more."""
    w, sums = Writing(2), np.array([[[1.0, 1.0], [1.0, -1.0]]])
    w.put(Affine(w.view(0), 2, sums, np.array([[[0, 1]]]), None, rounded))
    assert proved(w.program(), 1, Norm("token-l2", 2), None) >= 2 * (1 + gamma(rounded) / (1 + 2.0**-40))


@pytest.mark.parametrize("law", ["", "Relu"])
@pytest.mark.parametrize("first", [1e-110, 1e110])
def test_numbers_beyond_float64_on_the_way_are_refused_or_bounded(first: float, law: str) -> None:
    """x / c / .. / c c .. c: the identity on what is positive."""
    w = Writing(2)
    for factor in [first] * 4 + [1 / first] * 4:
        w.dense(np.diag([factor, 1.0]))
        if law:
            w.scalar(law)
    w.dense(np.array([[1.0, 0.0]]))
    if law:
        assert proved(w.program(), 1) >= 1 - 1e-12
    else:
        with pytest.raises(NotCovered, match=r"rounds to 0|beyond float64"):
            proved(w.program(), 1)


def test_what_no_input_moves_has_the_constant_0() -> None:
    w = Writing(2)
    w.put(Affine(NONE, 2, np.ones((1, 1, 1)), np.full((1, 2, 1), -1), np.array([1.0, 2.0])))
    assert proved(w.program(), 2) == 0


def random_program(rng: np.random.Generator, tokens: int, width: int) -> Program:
    """Attention with views, orders and factors as they come, then a few random steps."""
    w = Writing(tokens * width)
    for _ in range(int(rng.integers(0, 3))):
        w.put(_random_affine(rng, w))
        if rng.random() < 0.5:
            w.scalar(str(rng.choice(["Relu", "Tanh", "Sigmoid", "Abs", "Silu"])))
    source, size = len(w.steps) - 1, w.steps[-1].size
    # Scores of vectors that may hold entries of several tokens.
    terms, count = int(rng.integers(1, 4)), int(rng.integers(2, 4))
    vectors = np.arange(count * terms).reshape(count, -1) % size
    if rng.random() < 0.5:
        vectors = rng.integers(0, size, (count, terms))
    gram(w, source, vectors)
    if rng.random() < 0.3:
        w.dense(np.diag(rng.choice([1.0, 3.0, -2.0], count * count)))
    weights = w.put(Softmax(w.view(), count * count, rng.permutation(count * count).reshape(count, count)))
    # Averages: the entries of a row of weights, each with a value, in one of two orders.
    values, run = (0, width) if rng.random() < 0.7 else (source, 1)
    lines = int(rng.integers(1, 5))
    met = [rng.integers(0, w.steps[values].size // run, count) for _ in range(2)]
    tables = run * np.array([met[0], met[0][::-1], met[1]]) + int(rng.integers(0, run))
    rows = rng.integers(0, count, lines)
    mixed = np.array([rng.permutation(count) if rng.random() < 0.5 else np.arange(count) for _ in rows])
    left = (count * rows[:, None] + mixed).ravel()
    right = np.take_along_axis(tables[rng.integers(0, 3, lines)], mixed, 1).ravel()
    shift = rng.permutation(left.size)
    product = w.put(Product(View((weights,), left[shift]), left.size, View((values,), right[shift])))
    shown = View((product,), np.argsort(shift))
    w.put(Affine(shown, lines, np.ones((1, 1, count)), np.arange(left.size).reshape(1, lines, count)))
    for _ in range(int(rng.integers(1, 3))):
        w.put(_random_affine(rng, w))
    return w.program()


def _random_affine(rng: np.random.Generator, w: Writing) -> Affine:
    """Sums of a few entries of the step before and an earlier one; a third with rounded numbers, a third with few of them."""
    sources = tuple(dict.fromkeys((len(w.steps) - 1, int(rng.integers(0, len(w.steps))))))
    total = sum(w.steps[s].size for s in sources)
    groups, out, positions, terms = (int(v) for v in rng.integers(1, 4, 4))
    kernel = rng.choice([1.0, -1.0, 0.5], (groups, out, terms)) * 10.0 ** rng.integers(-1, 3, (groups, 1, 1))
    if rng.random() < 0.5:
        kernel[:] = kernel[0]
    shown = int(rng.integers(1, 7))
    view = View(sources, rng.integers(-1, total, shown))
    offset = rng.choice([0.0, 1.0, -2.0], groups * out * positions) if rng.random() < 0.4 else None
    rounded = 1 << 44 >> 5 if rng.random() < 0.3 else 0
    index = rng.integers(-1, shown, (groups, positions, terms))
    return checked(Affine(view, groups * out * positions, kernel, index, offset, rounded), w.steps)  # type: ignore[return-value]


def real(rng: np.random.Generator, program: Program) -> Program:
    """A program whose rounded numbers are others, as far off as they may be."""

    def moved(step: Affine) -> Affine:
        sign = rng.choice([-1.0, 1.0], step.kernel.shape)
        return replace(step, kernel=step.kernel * (1 + sign * gamma(step.rounded)))

    return replace(
        program, steps=tuple(moved(s) if isinstance(s, Affine) and s.rounded else s for s in program.steps)
    )


@pytest.mark.parametrize("block", range(4))
def test_no_pair_of_a_random_program_is_steeper_than_what_is_proved(block: int) -> None:
    bounded = 0
    for seed in range(COUNT):
        rng = np.random.default_rng([block, seed])
        tokens, width = int(rng.integers(1, 4)), int(rng.integers(1, 4))
        program = random_program(rng, tokens, width)
        try:
            limit = proved(program, width)
        except NotCovered:
            continue
        bounded += 1
        x, y = pairs(rng, tokens, width)
        assert steepness(real(rng, program), width, x, y) <= limit, (block, seed)
    assert bounded > COUNT / 3
