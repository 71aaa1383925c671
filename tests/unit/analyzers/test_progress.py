"""A number that progress shows bounds all that was asked: no single ball, output or row of it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from lipverify import ops
from lipverify.analyzers.lipsdp.analyzer import LipSDP
from lipverify.analyzers.local.analyzer import Local
from lipverify.analyzers.local.bab import LocalBaB
from lipverify.analyzers.local.sdp import LocalSDP
from lipverify.analyzers.protocol import Compute
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Everywhere, Query
from tests.networks import chain, tensor


@pytest.mark.parametrize("norm", [Norm.L2, Norm.LINF])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "analyzer", [Local(), LocalSDP(), LocalBaB(leaves=8), LipSDP()], ids=lambda a: a.name
)
def test_numbers_of_progress_are_bounds_of_all(analyzer: Any, count: int, norm: Norm) -> None:
    rng = np.random.default_rng(3)
    weights = [tensor(rng, o, i) for i, o in itertools.pairwise((4, 12, 12, 3))]
    weights[-1][1] *= 20.0  # one output is far steeper than the others
    graph = chain(weights, ops.ReLU())
    region = Ball(torch.from_numpy(rng.standard_normal((count, 4))) * 2.0, 0.3, norm)
    query = Query(norm, norm, Everywhere() if isinstance(analyzer, LipSDP) else region)
    shown: list[float] = []
    compute = Compute(report=lambda stage, best: None if best is None else shown.append(best))
    found = analyzer.bound(graph, query, compute).upper
    assert found is not None
    if count == 1 and not isinstance(analyzer, Local):
        assert shown or norm is Norm.LINF or isinstance(analyzer, LocalBaB)
    assert all(best >= float(found.max()) * (1 - 1e-6) for best in shown)
