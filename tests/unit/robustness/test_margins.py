"""Margins over balls: maxima written as ReLUs, and those of auto_LiRPA, which are compared and never believed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify import ops, zoo
from lipverify.analyzers.lirpa import margins as foreign
from lipverify.analyzers.lirpa.analyzer import available
from lipverify.analyzers.protocol import Compute
from lipverify.errors import Refuted, UnsupportedModel
from lipverify.interpreter import evaluate
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball
from lipverify.propagation import bounds
from lipverify.robustness.balls import Balls
from lipverify.robustness.pairs import differences, predict
from tests.networks import chain, tensor


@pytest.mark.parametrize(("norm", "radius"), [(Norm.L2, 0.12), (Norm.LINF, 0.04)])
def test_maxima_written_as_relus_carry_farther(norm: Norm, radius: float, rng: np.random.Generator) -> None:
    graph = lv.load("zoo:digits-cnn")
    x = zoo.points("digits-cnn", 1)[0][0].double()
    pairs = differences(graph, predict(graph, x))
    balls = Balls(pairs, x, norm, None, True, False, Compute())
    assert balls.written is not None
    found = balls.ranges(radius)
    plain = bounds(pairs, Ball(x[None], radius, norm))
    assert bool((found.output.lower >= plain.output.lower).all())
    smallest = float(found.output.lower.min())
    assert float(plain.output.lower.min()) < smallest - 0.05
    # Names stay, ranges hold: what LipSDP reads belongs to the graph it reads.
    assert set(plain) <= set(found)
    step = torch.tensor(rng.standard_normal((200, *x.shape)))
    step = (
        step.sign() * radius
        if norm is Norm.LINF
        else step * (radius / step.flatten(1).norm(dim=1))[:, None, None, None]
    )
    values = evaluate(pairs.to(dtype=torch.float64), x + step)
    assert bool((values >= found.output.lower - 1e-9).all())
    # A smaller ball, looked at later, lies inside.
    assert bool((balls.ranges(radius / 2).output.lower >= found.output.lower).all())


def test_without_the_package_the_method_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setattr(foreign, "available", lambda: False)
    graph = chain([tensor(rng, 8, 3), tensor(rng, 3, 8)], ops.ReLU())
    with pytest.raises(UnsupportedModel, match="pip install"):
        lv.radii(graph, torch.tensor(rng.random((1, 3))), method="lirpa")


@pytest.mark.parametrize("norm", [Norm.L2, Norm.LINF])
def test_a_bound_above_a_sampled_margin_is_refused(norm: Norm, rng: np.random.Generator) -> None:
    graph = chain([tensor(rng, 8, 3), tensor(rng, 3, 8)], ops.ReLU())
    margins = object.__new__(foreign.ForeignMargins)
    margins.exact, margins.x, margins.norm = graph.to(dtype=torch.float64), torch.tensor(rng.random(3)), norm
    margins.generator = torch.Generator().manual_seed(0)
    ball = Ball(margins.x[None], 0.1, norm)
    values = evaluate(margins.exact, margins.x[None])[0]
    below = bounds(graph, ball).output.lower[0]
    margins._compare(below, ball)
    with pytest.raises(Refuted, match="not used"):
        margins._compare(torch.where(torch.arange(3) == 1, values + 0.1, below), ball)


@pytest.mark.skipif(not available(), reason="auto_LiRPA is not importable")
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_radii_of_the_package_are_near_ours(norm: str, rng: np.random.Generator) -> None:
    graph = chain([tensor(rng, 16, 4), tensor(rng, 16, 16), tensor(rng, 3, 16)], ops.ReLU())
    x = torch.tensor(rng.random((3, 4)))
    theirs = lv.radii(graph, x, norm=norm, method="lirpa")
    ours = lv.radii(graph, x, norm=norm, method="crown")
    assert theirs.assumptions()
    assert set(theirs.method) == {"lirpa"}
    assert torch.allclose(theirs.radius, ours.radius, rtol=0.1)
    assert bool((theirs.radius <= theirs.attack_radius).all())
