"""Rounding to multiples of a step: lines and ranges hold it, on either side of ties, and it is carried as an error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lipverify.checkers.evaluation import evaluate
from lipverify.checkers.kernel import Program, Subject, curves
from lipverify.checkers.kernel.curves import Curve, curve
from lipverify.checkers.kernel.neurons import differences
from lipverify.checkers.kernel.program import Affine, Scalar
from lipverify.checkers.kernel.ranges import Ranges
from lipverify.checkers.theories.carried import Base, Carried
from lipverify.errors import NotCovered, UnreadableCertificate
from tests.unit.checkers.kernel.programs import Writing, ball, mlp, points


def rounding(steps: list[float], least: float = -128.0, most: float = 127.0) -> Curve:
    return curve("Round", (("min", least), ("max", most)), np.array(steps))


def lines_hold(seed: int) -> None:
    rng = np.random.default_rng(seed)
    f = rounding(list(10 ** rng.uniform(-3, 1, 40)), float(rng.integers(-9, 1)), float(rng.integers(1, 9)))
    low = rng.uniform(-10, 10, 40) * f.step
    high = low + 10 ** rng.uniform(-6, 1.3, 40) * f.step
    lines = f.lines(low, high, *f.slopes(low, high))
    for t in np.linspace(0.0, 1.0, 201):
        x = np.clip(low + t * (high - low), low, high)
        # Either side of a tie: what is next to it may be rounded the other way.
        for side in (x - 2.0**-22 * f.step, x, x + 2.0**-22 * f.step):
            y = f.value(side)
            room = 1e-12 * (1 + np.abs(x))
            assert (y >= lines.below * x + lines.under - room).all()
            assert (y <= lines.above * x + lines.over + room).all()
            assert ((lines.low - room <= y) & (y <= lines.high + room)).all()


@pytest.mark.parametrize("seed", range(20))
def test_lines_hold_what_is_rounded(seed: int) -> None:
    lines_hold(seed)


@pytest.mark.parametrize("mistake", [
    lambda f: replace_of(f, step=f.step / 2), lambda f: replace_of(f, held=f.held._replace(value=lambda x: x)),
], ids=["half a step too little", "ends forgotten"])  # fmt: skip
def test_wrong_rules_are_noticed(mistake: Callable[[Curve], Curve], monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Curve._rounded
    monkeypatch.setattr(curves.Curve, "_rounded", lambda f, low, high: honest(mistake(f), low, high))

    def all_hold() -> None:
        for seed in range(20):
            lines_hold(seed)

    with pytest.raises(AssertionError):
        all_hold()


def replace_of(f: Curve, **fields: object) -> Curve:
    return f._replace(**fields)  # type: ignore[arg-type]


def quantised(f: Program, step: float) -> Program:
    """Every activation, and the input, rounded to multiples of a step."""
    w = Writing(f.steps[0].size)

    def rounded() -> None:
        view = w.view()
        settings = (("min", -128.0), ("max", 127.0))
        w.put(Scalar(view, len(view.places), "Round", settings, np.full(len(view.places), step)))

    rounded()
    for old in f.steps[1:]:
        if isinstance(old, Affine):
            w.dense(old.kernel[0], old.offset)
        else:
            w.put(replace(old, view=w.view()))
            rounded()
    return w.program()


@pytest.mark.parametrize("seed", range(20))
def test_differences_to_a_quantised_copy_are_held(seed: int) -> None:
    rng = np.random.default_rng(seed)
    f = mlp(rng, (3, 8, 6, 2))
    g = quantised(f, 2.0 ** rng.integers(-9, -3))
    subject, region = Subject(f.beside(g)), ball(rng.uniform(-1, 1, 3), 10 ** rng.uniform(-2, 0))
    scalar = [subject.elements.steps[k] for k in subject.elements.layers]
    second = [k for k, s in enumerate(scalar) if k >= 2 and isinstance(s, Scalar) and s.law == "Relu"]
    found = Carried(subject.elements, region, (), dict(zip(second, (Base(0), Base(1)), strict=True)))
    y = evaluate(subject.program, points(rng, region, 400))[-1]
    for form in found.outputs:
        low, high = found.chain.ranges(form)
        assert (y >= low - 1e-12).all()
        assert (y <= high + 1e-12).all()


def test_what_is_rounded_has_no_slopes() -> None:
    f = quantised(mlp(np.random.default_rng(0), (3, 4, 2)), 0.1)
    subject = Subject(f, [ball(np.zeros(3), 0.5)])
    slopes = Ranges(subject.elements, subject.regions[0], ()).slopes
    for known in (slopes.get, lambda k: None):
        with pytest.raises(NotCovered, match="bound"):
            differences(subject.elements, 0, len(subject.elements.steps) - 1, known)


@pytest.mark.parametrize(("steps", "ends"), [([0.0], (-1.0, 1.0)), ([-0.1], (-1.0, 1.0)), ([0.1], (1.0, -1.0)),
                                             ([0.1], (-1.5, 1.0)), ([0.1], (-1.0, np.inf))])  # fmt: skip
def test_steps_and_ends_are_what_they_have_to_be(steps: list[float], ends: tuple[float, float]) -> None:
    with pytest.raises(UnreadableCertificate):
        rounding(steps, *ends)
