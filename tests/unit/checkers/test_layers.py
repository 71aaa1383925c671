"""Reflections and implicit layers over balls and in audits: rows are `checked`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify import ops
from lipverify.falsify import Search
from tests.networks import chain, tensor


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_reflections_over_balls_are_proved(norm: str, rng: np.random.Generator) -> None:
    graph = chain(
        [tensor(rng, 6, 4), tensor(rng, 6, 6), tensor(rng, 3, 6)], ops.Householder(tensor(rng, 2, 3))
    )
    ball = lv.Ball(torch.tensor(rng.standard_normal((2, 4))), 0.1, norm)
    result = lv.audit(graph, norm=norm, region=ball, analyzers=["local"], search=Search(seconds=0.2))
    (row,) = result.rows
    assert row.certificate is not None
    assert str(row.certificate.rigour) == "checked", row.certificate.unchecked
    # Some reflections are decided in so small a ball, so that the bound is below the one for the whole space.
    everywhere = lv.audit(graph, norm=norm, analyzers=["product"], search=Search(seconds=0.2)).best
    assert float(row.certificate.upper.max()) < float(everywhere.upper)
