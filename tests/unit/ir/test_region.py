"""Balls, norms and boxes: what they hold and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch

from lipverify.errors import InternalError, UsageError
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query


@pytest.mark.parametrize("radius", [-1.0, math.nan, math.inf])
def test_impossible_radii(radius: float) -> None:
    with pytest.raises(UsageError):
        Ball(torch.zeros(1, 2), radius)


def test_impossible_balls() -> None:
    with pytest.raises(UsageError, match="not finite"):
        Ball(torch.tensor([[math.nan, 0.0]]), 0.1)
    with pytest.raises(UsageError, match="outside the input box"):
        Ball(torch.full((1, 2), 2.0), 0.1, box=(0.0, 1.0))
    with pytest.raises(UsageError, match="wrong order"):
        Ball(torch.zeros(1, 2), 0.1, box=(1.0, 0.0))
    with pytest.raises(UsageError, match="l1 ball"):
        Ball(torch.zeros(1, 2), 0.1, Norm.L1)


@pytest.mark.parametrize("norm", [Norm.L2, Norm.LINF])
def test_projected_points_lie_inside(norm: Norm) -> None:
    ball = Ball(torch.rand(3, 4), 0.2, norm, box=(0.0, 1.0))
    points = ball.project(ball.center + torch.randn(50, 3, 4, dtype=torch.float64))
    step = (points - ball.center).flatten(2)
    assert float(torch.linalg.vector_norm(step, ord=norm.order, dim=2).max()) <= 0.2 * (1 + 1e-12)
    assert float(points.min()) >= 0.0
    assert float(points.max()) <= 1.0
    assert ball.enclosure().contains(points[0])


def test_a_tiny_ball_does_not_collapse() -> None:
    ball = Ball(torch.ones(1, 1), 1e-300)
    box = ball.enclosure()
    assert float(box.lower) < 1.0 < float(box.upper)


def test_norms_and_their_duals() -> None:
    assert [norm.dual.dual for norm in Norm] == list(Norm)
    with pytest.raises(UsageError, match="choose l1"):
        Norm.parse("l3")


def test_an_interval_is_never_inverted_or_nan() -> None:
    with pytest.raises(InternalError):
        Interval(torch.ones(2), torch.zeros(2))
    with pytest.raises(InternalError):
        Interval(torch.tensor([math.nan]), torch.tensor([1.0]))


def test_the_question_in_words() -> None:
    assert "for all pairs of inputs" in Query().words()
    assert "radius 0.1" in Query(region=Ball(torch.zeros(1, 2), 0.1)).words()
