"""Inputs of affine forms: rows that no input reaches."""

from __future__ import annotations

import pytest
import torch

from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball
from lipverify.propagation.forms.domain import Domain, Front


@pytest.mark.parametrize("ball", [Norm.L2, Norm.LINF])
@pytest.mark.parametrize("norm", [Norm.L1, Norm.LINF])
def test_rows_that_read_no_input_move_by_nothing(ball: Norm, norm: Norm) -> None:
    """Behind neurons that are dead on every ball no column of the first rows is left."""
    domain = Domain.of(Ball(torch.zeros(2, 3).double(), 0.5, ball), norm, torch.device("cpu"))
    domain.front, domain.rows = Front.of(torch.zeros(3, 2).double()), 2
    found = domain.sizes(torch.ones(2, 2, 4).double())
    assert found.shape == (2, 1 + len(domain.kinds), 4)
    assert not bool(found.any())
