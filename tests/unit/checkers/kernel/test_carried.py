"""Differences of two networks, with those of their layers carried along: they hold what is true, whatever is paired."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lipverify.checkers.kernel import Condition, Program, Region, Subject, parse_steps, prove
from lipverify.checkers.kernel import signals as signals_of
from lipverify.checkers.kernel.curves import Lines
from lipverify.checkers.kernel.program import Affine, Scalar
from lipverify.checkers.kernel.ranges import Ranges
from lipverify.checkers.theories import carried as carried_of
from lipverify.checkers.theories.carried import Base, Carried
from lipverify.errors import NotCovered, UnreadableCertificate
from tests.unit.checkers.kernel.programs import Array, Writing, ball, evaluate, mlp, points

LAWS: dict[str, dict[str, float]] = {
    **{law: {} for law in ("Relu", "Tanh", "Sigmoid", "HardSwish", "Abs", "Sin")},
    "LeakyRelu": {"alpha": 0.1}, "Silu": {"beta": 1.3}, "Clip": {"min": -0.5, "max": 0.7},
}  # fmt: skip
NAMES = list(LAWS)


def near(program: Program, rng: np.random.Generator, size: float, law: str | None = None) -> Program:
    """The same network with other weights, and other scalar functions where `law` names one."""
    w = Writing(program.steps[0].size)
    for step in program.steps[1:]:
        if isinstance(step, Affine):
            assert step.offset is not None
            moved = step.kernel[0] + size * rng.standard_normal(step.kernel[0].shape)
            w.dense(moved, step.offset + size * rng.standard_normal(len(step.offset)))
        else:
            assert isinstance(step, Scalar)
            w.scalar(law or step.law, **LAWS[law or step.law])
    return w.program()


def folded(rng: np.random.Generator, widths: tuple[int, ...]) -> Program:
    """Layers with neurons that are always on, always off, and open; or rounded ones, each with a step of its own."""
    w, n = Writing(widths[0]), widths[0]
    for m in widths[1:-1]:
        w.dense(rng.standard_normal((m, n)), rng.choice([-20.0, 0.0, 20.0], m))
        if rng.random() < 0.5:
            w.scalar("Relu")
        else:
            w.scalar("Round", slopes=rng.choice([0.25, 0.5, 1.0], m), min=-16.0, max=15.0)
        n = m
    w.dense(rng.standard_normal((widths[-1], n)))
    return w.program()


def drawn(rng: np.random.Generator) -> tuple[Program, Program]:
    if rng.random() < 0.3:
        widths = (3, *[int(rng.integers(2, 5))] * int(rng.integers(1, 4)), 2)
        return folded(rng, widths), folded(rng, widths)
    widths = (3, *(int(n) for n in rng.integers(3, 8, rng.integers(1, 4))), 2)
    law = str(rng.choice(NAMES))
    first = mlp(rng, widths, law, **LAWS[law])
    other = str(rng.choice(NAMES)) if rng.random() < 0.2 else None
    return first, near(first, rng, float(10 ** rng.uniform(-9, 0)), other)


def pairs_of(subject: Subject, rng: np.random.Generator) -> dict[int, Base]:
    """Counterparts, in either direction; or layers that are not computed from it, of the same network too, and any neurons of
    them where the sizes differ, and sometimes where not."""
    elements = subject.elements
    count = len(elements.layers) // 2
    way = rng.integers(4)
    if way < 2:
        return {(k + count * (way == 0)): Base(k + count * (way == 1)) for k in range(count)}
    sizes = [elements.size(k) for k in range(2 * count)]
    free = [(k, j) for k in range(2 * count) for j in range(2 * count) if j < k or j // count > k // count]
    others = {k: [j for i, j in free if i == k] for k in range(2 * count)}
    found = {}
    for k, known in others.items():
        if known and rng.random() < 0.8:
            j = int(rng.choice(known))
            some = sizes[j] != sizes[k] or rng.random() < 0.5
            found[k] = Base(j, rng.integers(0, sizes[j], sizes[k]) if some else None)
    return found


def region_of(rng: np.random.Generator) -> Region:
    return ball(rng.uniform(-1, 1, 3), 10 ** rng.uniform(-2, 0.5), str(rng.choice(["l2", "linf"])))


def differences_are_inside(seed: int) -> None:
    rng = np.random.default_rng(seed)
    f, g = drawn(rng)
    subject, region = Subject(f.beside(g)), region_of(rng)
    conditions: tuple[Condition, ...] = ()
    if rng.random() < 0.3:
        entry = int(rng.integers(3))
        conditions = (Condition(-1, entry, float(region.centre[entry]), bool(rng.random() < 0.5)),)
    x = points(rng, region, 300)
    for c in conditions:
        x = x[(x[:, c.entry] >= c.at) if c.above else (x[:, c.entry] <= c.at)]
    y = evaluate(subject.program.steps, x)
    assert y.shape[1] == 6
    found = Carried(subject.elements, region, conditions, pairs_of(subject, rng))
    for form in found.outputs:
        low, high = found.chain.ranges(form)
        room = 1e-13 * np.abs(y).max(initial=1.0)
        assert (y >= low - room).all()
        assert (y <= high + room).all()


@pytest.mark.parametrize("seed", range(60))
def test_differences_of_random_networks(seed: int) -> None:
    differences_are_inside(seed)


def test_carried_differences_are_far_smaller_and_those_of_one_network_next_to_nothing() -> None:
    rng = np.random.default_rng(5)
    f = mlp(rng, (3, 20, 20, 20, 2))
    region = ball(np.zeros(3), 2.0)
    for size, wanted in ((1e-3, 0.02), (0.0, 1e-9)):
        subject = Subject(f.beside(near(f, rng, size)))
        found = Carried(subject.elements, region, (), {3 + k: Base(k) for k in range(3)})
        alone, carried = (
            max(np.abs(end).max() for end in found.chain.ranges(form.rows(range(4, 6))))
            for form in found.outputs
        )
        assert alone > 1.0
        assert carried < wanted * alone


def test_forms_of_one_network_alone_are_what_they_were() -> None:
    f = mlp(np.random.default_rng(6), (3, 8, 2))
    subject = Subject(f.beside(f))
    region = ball(np.zeros(3), 0.5)
    found = Carried(subject.elements, region, (), {1: Base(0)})
    plain = Ranges(subject.elements, region, ())
    for one, other in zip(found.chain.ranges(found.output), plain.chain.ranges(plain.output), strict=True):
        assert np.allclose(one, other, rtol=1e-12, atol=1e-12)


def test_pairs_of_different_sizes_or_of_products_are_refused() -> None:
    f = mlp(np.random.default_rng(7), (3, 8, 6, 2))
    subject = Subject(f.beside(f))
    with pytest.raises(UnreadableCertificate, match="as many numbers"):
        Carried(subject.elements, ball(np.zeros(3), 0.5), (), {1: Base(0)})


CHAIN = Writing(2)
"""Its second layer has a neuron that is always on, and one that is open: 9 + 5 max(y, 0) and max(max(y, 0) - 0.01, 0)."""
CHAIN.dense(np.eye(2))
CHAIN.scalar("Relu")
CHAIN.dense(np.array([[0.0, 5.0], [0.0, 1.0]]), np.array([9.0, -0.01]))
CHAIN.scalar("Relu")
CHAIN.dense(np.eye(2))


@pytest.mark.parametrize("pairs", [{0: 1}, {2: 3}, {0: 1, 2: 3}, {1: 0, 2: 3}], ids=str)
def test_layers_written_by_what_is_computed_from_them_are_refused(
    pairs: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """9 + 5 y was held to be 9: what one neuron was to another was overwritten."""
    f = CHAIN.program()
    subject = Subject(f.beside(f), [ball(np.full(2, 0.25), 1.0)])
    step = {"step": "carried", "region": 0, "conditions": [], "pairs": [list(p) for p in pairs.items()]}
    with pytest.raises(UnreadableCertificate, match="computed from it"):
        prove(parse_steps([step], {}, subject), subject)
    # Nor does it pass where the order of layers is not looked at.
    monkeypatch.setattr(carried_of, "behind", lambda steps, end: [])
    with pytest.raises(ValueError, match="functions of themselves"):
        prove(parse_steps([step], {}, subject), subject)


WRITTEN = [
    {1: 0},
    {2: 0},
    {2: 1},
    {3: 0},
    {3: 2},
    {0: 2},
    {0: 3},
    {1: 2},
    {0: 2, 1: 3},
    {0: 3, 2: 1},
    {1: 0, 2: 1, 3: 1},
]


@pytest.mark.parametrize("pairs", WRITTEN, ids=str)
def test_layers_written_by_others_hold(pairs: dict[int, int]) -> None:
    rng, f, region = np.random.default_rng(0), CHAIN.program(), ball(np.full(2, 0.25), 1.0)
    subject = Subject(f.beside(f))
    y = evaluate(subject.program.steps, points(rng, region, 300))
    low, high = (
        found := Carried(subject.elements, region, (), {k: Base(j) for k, j in pairs.items()})
    ).chain.ranges(found.carried)
    assert (low - 1e-12 <= y).all()
    assert (y <= high + 1e-12).all()


def test_a_number_of_its_own_overwrites_no_other() -> None:
    v = signals_of.Signal({0: np.eye(2)})
    with pytest.raises(ValueError, match="functions of themselves"):
        signals_of.sprouted(0, v, np.ones(2), np.array([1]))
    assert signals_of.sprouted(1, v, np.ones(2), np.array([1])).parts.keys() == {0, 1}


def test_products_with_lines_of_convolutions_leave_nothing_out() -> None:
    rng = np.random.default_rng(0)
    a, m = np.zeros((640, 900)), np.zeros((900, 500))
    for row in range(len(a)):
        at = 20 * (row % 40)
        a[row, at : at + 40] = rng.standard_normal(40) * (rng.random(40) < 0.7)
    a[:3], m[::2, :450] = 0.0, rng.standard_normal((450, 450))
    found, sizes = signals_of.product(a, m), np.abs(a) @ np.abs(m)
    assert 4 * np.count_nonzero(a) < a.size
    assert (np.abs(found - a @ m) <= 1e-14 * sizes).all()
    assert ((found != 0) == (sizes != 0)).mean() > 0.999


def test_two_networks_of_different_inputs_are_no_pair() -> None:
    rng = np.random.default_rng(8)
    with pytest.raises(UnreadableCertificate, match="different inputs"):
        mlp(rng, (3, 4, 2)).beside(mlp(rng, (2, 4, 2)))


def _swapped(original: Callable[..., tuple[Lines, object]]) -> Callable[..., object]:
    """Chords with the ends of e exchanged."""
    return lambda phi, psi, e, a, b, steep: original(phi, psi, (-e[1], -e[0]), a, b, steep)


def _one_sided(original: Callable[..., tuple[Lines, object]]) -> Callable[..., object]:
    """The lines of b taken where those of a belong."""
    return lambda phi, psi, e, a, b, steep: original(phi, psi, e, b, a, steep)


def _hull(original: Callable[..., object]) -> Callable[..., object]:
    """Quotients of A alone, not of the hull."""
    return lambda f, a, b: original(f, a, a)


def _other(original: Callable[..., object]) -> Callable[..., object]:
    """Functions taken as one though they are two."""
    return lambda one, other: True


def _free(original: Callable[..., object]) -> Callable[..., object]:
    """The change of the weights forgotten: what both networks share is all that is left."""

    def minus(b: signals_of.Signal, a: signals_of.Signal) -> signals_of.Signal:
        found = original(b, a)
        assert isinstance(found, signals_of.Signal)
        parts: dict[int, Array] = {k: m if k >= 2 else 0 * m for k, m in found.parts.items()}
        return found._replace(parts=parts)

    return minus


@pytest.mark.parametrize(("name", "mistake"), [
    ("_lines", _swapped), ("_lines", _one_sided), ("_quotients", _hull), ("same", _other), ("_minus", _free),
])  # fmt: skip
def test_wrong_rules_are_noticed(
    name: str, mistake: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carried_of, name, mistake(getattr(carried_of, name)))

    def all_hold() -> None:
        for seed in range(120):
            differences_are_inside(seed)

    with pytest.raises((AssertionError, NotCovered)):  # or ranges contradict each other
        all_hold()
