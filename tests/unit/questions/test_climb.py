"""The untrusted search ends at inputs that lie in their region exactly."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

import lipverify as lv
from lipverify.analyzers.protocol import Compute
from lipverify.questions.climb import Climb, climb


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("size", "radius"), [(1.0, 0.3), (1000.0, 1e-9), (0.1, 1 / 255)])
def test_points_lie_in_their_balls_exactly(norm: str, size: float, radius: float) -> None:
    rng = torch.Generator().manual_seed(0)
    center = size * torch.randn(8, 6, generator=rng, dtype=torch.float64)
    for box in (None, (float(center.min()), float(center.max()))):
        ball = lv.Ball(center, radius, norm, box)
        found = climb(lambda x: x.sum(1), ball, Compute(), 1.0, Climb(4, 8))
        assert bool(((found - center).sum(1) >= 0).all())
        for x, c in zip(found, center, strict=True):
            steps = [Fraction(a) - Fraction(b) for a, b in zip(x.tolist(), c.tolist(), strict=True)]
            far = max(map(abs, steps)) ** 2 if norm == "linf" else sum(step * step for step in steps)
            assert far <= Fraction(radius) ** 2
            if box is not None:
                assert all(box[0] <= a <= box[1] for a in x.tolist())


def test_the_search_climbs() -> None:
    ball = lv.Ball(torch.zeros(1, 3), 2.0, "linf")
    found = climb(lambda x: (x * torch.tensor([1.0, -2.0, 3.0])).sum(1), ball, Compute(), 1.0, Climb())
    assert found.tolist() == [[2.0, -2.0, 2.0]]
