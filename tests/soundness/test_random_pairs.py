"""No sampled difference of two random networks leaves its proved range; the same search finds planted mistakes."""

from __future__ import annotations

import pytest
import torch

import lipverify as lv
from lipverify.combine import difference
from tests.soundness.pairs import MISTAKES, fuzz, noticed, rounding_noticed, spread_pair
from tests.tiers import tier

BLOCKS, COUNT = 4, tier(48, 10_000)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_no_difference_leaves_its_range(block: int) -> None:
    torch.set_num_threads(1)
    outcome = fuzz(range(block * 1_000_000, block * 1_000_000 + COUNT // BLOCKS))
    assert not outcome.wrong
    assert outcome.pairs > COUNT // BLOCKS * 0.6
    assert outcome.proved > 0
    assert outcome.reach > 0.99  # the ranges are close to what they hold, or nothing was tested


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_of_the_change_are_found(mistake: str) -> None:
    assert noticed(mistake) is not None


def test_the_rounding_of_a_difference_of_weights_is_part_of_it() -> None:
    f, g, exact = spread_pair()
    # At x = (1, 1): (1e8 + 1e-8) - (1e8 - 1e-8), while 1e8 + 1e-8 rounds to 1e8 twice.
    x = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    box = lv.bounds(difference(f, g).graph, lv.Ball(x, 1e-300, "linf"), method="interval").output
    assert float(box.lower) <= float(exact) <= float(box.upper)
    assert rounding_noticed()
