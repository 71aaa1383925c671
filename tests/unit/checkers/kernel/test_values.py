"""Values over all inputs, and products whose factors are bounded by them: proofs just above the constant, none below it."""

from __future__ import annotations

import numpy as np
import pytest

from lipverify.checkers.kernel.elementary import Blend, elementary
from lipverify.checkers.kernel.program import Affine, Program, Scalar, View
from lipverify.checkers.kernel.ranges import Ranges
from lipverify.checkers.kernel.values import slopes_everywhere
from lipverify.errors import NotCovered
from tests.unit.checkers.kernel.programs import Array, Writing, ball
from tests.unit.checkers.kernel.test_layers import lipsdp, product, proves


def gate(a: float, b: float) -> Program:
    """sigmoid(a x) tanh(b x): everywhere at most a/4 + b steep by its factors."""
    w = Writing(1)
    first = w.scalar("Sigmoid", w.dense(np.array([[a]]), None, 0))
    w.product(first, w.scalar("Tanh", w.dense(np.array([[b]]), None, 0)))
    return w.program()


def test_products_of_bounded_values_pass_changes_times_the_other_factor() -> None:
    program = gate(8.0, 3.0)
    assert proves(program, product(program, 5.0 * (1 + 1e-12)))
    assert not proves(program, product(program, 5.0 * (1 - 1e-9)))
    (slopes,) = slopes_everywhere(elementary(program)).values()
    # Of sigmoid the range of tanh, of tanh that of sigmoid.
    assert np.array(slopes).tolist() == [[-1.0, 0.0], [1.0, 1.0]]


def test_multipliers_take_slopes_everywhere() -> None:
    program = gate(1.0, 1.0)
    blocks = {"s": np.array([4.0]), "t": np.array([1.0]), "p": np.array([1.0, 1.0])}
    best = min(
        m
        for m in np.linspace(1.0, 6.0, 200)
        if proves(program, lipsdp(program, m, ["s", "t", "p"]), **blocks)
    )
    x = np.linspace(-3, 3, 1001)
    y = np.tanh(x) / (1 + np.exp(-x))
    assert best >= np.abs(np.diff(y) / np.diff(x)).max()
    assert not proves(program, lipsdp(program, 0.5, ["s", "t", "p"]), **blocks)


def test_a_law_without_slopes_everywhere_has_those_of_what_it_reads() -> None:
    """exp of a number held in [-1, 2]: at most e^2 steep, in gains and by multipliers, which read the same slopes."""
    w = Writing(1)
    w.scalar("Exp", w.scalar("Clip", 0, min=-1.0, max=2.0))
    program = w.program()
    assert proves(program, product(program, np.exp(2.0) * (1 + 1e-9)))
    assert not proves(program, product(program, np.exp(2.0) * (1 - 1e-9)))
    ((low, high),) = slopes_everywhere(elementary(program)).values()
    assert np.exp(-1.0) * (1 - 1e-9) <= low[0] <= np.exp(-1.0)
    assert np.exp(2.0) <= high[0] <= np.exp(2.0) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("law", "held"),
    [
        ("Exp", {"max": 2.0}),
        ("Exp", {}),
        ("Log", {"min": -1.0, "max": 2.0}),
        ("Sqrt", {"min": 0.0, "max": 2.0}),
    ],
)
def test_a_law_whose_argument_may_be_where_it_has_none_has_no_slopes(
    law: str, held: dict[str, float]
) -> None:
    w = Writing(1)
    w.scalar(law, w.scalar("Clip", 0, **held))
    program = w.program()
    assert slopes_everywhere(elementary(program)) == {}
    with pytest.raises(NotCovered):
        proves(program, product(program, 1e30))


@pytest.mark.parametrize("unbounded", ["Relu", "Softplus", "Atan"])
def test_a_factor_of_which_nothing_is_known_has_no_slopes(unbounded: str) -> None:
    w = Writing(2)
    first, second = w.scalar("Sigmoid", 0), w.scalar(unbounded, 0)
    w.product(first, second)
    assert slopes_everywhere(elementary(w.program())) == {}


def test_a_layer_that_reads_numbers_0_alone_is_bounded() -> None:
    """A view without sources ended in a failed assertion."""
    w = Writing(2)
    first = w.put(Scalar(View((), np.array([-1, -1])), 2, "Sigmoid"))
    w.product(first, w.scalar("Tanh", 0))
    program = w.program()
    ((low, high),) = slopes_everywhere(elementary(program)).values()
    assert np.abs(np.array([low, high])[:, 2:] - 0.5).max() < 1e-12
    assert proves(program, product(program, 0.5 * (1 + 1e-9)))
    assert not proves(program, product(program, 0.5 * (1 - 1e-9)))


def blended(swapped: bool = False, sign: float = -1.0) -> Program:
    """n + z (h - n) of two units each: n = tanh(3 x), z = sigmoid(x), h = tanh(-2 x); swapped: other entries of n."""
    w = Writing(2)
    n = w.scalar("Tanh", w.dense(3 * np.eye(2), None, 0))
    h = w.scalar("Tanh", w.dense(-2 * np.eye(2), None, 0))
    z = w.scalar("Sigmoid", 0)
    order = np.array([1, 0]) if swapped else np.arange(2)
    places = np.stack([np.arange(2), 2 + order], 1)[None]
    difference = w.put(Affine(View((h, n), np.arange(4)), 2, np.array([[[1.0, sign]]]), places))
    w.sum(n, w.product(z, difference))
    return w.program()


def values(x: Array) -> Array:
    n, h, z = np.tanh(3 * x), np.tanh(-2 * x), 1 / (1 + np.exp(-x))
    return np.asarray(n + z * (h - n))


def test_a_blend_lies_between_its_ends() -> None:
    p = elementary(blended())
    assert isinstance(p.steps[-1], Blend)
    around = Ranges(p, ball(np.zeros(2), 2.0, "linf"), ())
    assert around.output.ends is not None
    low, high = around.output.ends
    y = values(np.random.default_rng(0).uniform(-2, 2, (2000, 2)))
    assert bool(((low <= y) & (y <= high)).all())
    assert bool(((low >= -1 - 1e-9) & (high <= 1 + 1e-9)).all())


@pytest.mark.parametrize("other", [{"swapped": True}, {"sign": 1.0}])
def test_what_is_no_blend_is_not_taken_for_one(other: dict[str, bool]) -> None:
    """Another entry is taken off, or one is added: values leave [-1, 1]."""
    p = elementary(blended(**other))
    assert not any(isinstance(step, Blend) for step in p.steps)
