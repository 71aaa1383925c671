"""Every bound in a norm of tokens lies above every slope of a pair, on random networks of attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import lipverify as lv
from lipverify.propagation.points import slopes_below
from tests.tiers import tier
from tests.token_networks import Block, Enforced, Shape

COUNT = tier(3, 2_000)


def random_network(seed: int) -> tuple[nn.Module, int, int]:
    """A network, its tokens and their width: heads, masks, rotations, norms in front and behind."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    heads, tokens = int(rng.integers(1, 4)), int(rng.integers(2, 5))
    width = heads * 2 * int(rng.integers(1, 3))
    kind = rng.integers(3)
    if kind == 0:
        shape = Shape(
            width=width,
            heads=heads,
            blocks=int(rng.integers(1, 4)),
            hidden=int(rng.integers(1, 9)),
            tokens=tokens,
            scale=float(rng.choice([0.5, 2.0, 8.0])),
            rotary=bool(rng.integers(2)),
            causal=bool(rng.integers(2)),
        )
        return Enforced(shape, float(rng.choice([0.5, 1.0, 3.0]))), tokens, width
    net = Block(width, heads, float(rng.choice([1e-5, 1e-2, 1.0])), behind=kind == 2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return net, tokens, width


@pytest.mark.parametrize("seed", range(COUNT))
def test_no_pair_is_steeper_than_the_bound(seed: int) -> None:
    net, tokens, width = random_network(seed)
    graph = lv.extract(net.double(), example=torch.randn(2, tokens, width, dtype=torch.float64))
    rng = torch.Generator().manual_seed(seed)
    norm = lv.Norm.TOKEN_RMS if seed % 2 else lv.Norm.TOKEN_L2
    out = lv.Norm.LINF if seed % 3 == 0 else norm
    most = 10.0 ** float(torch.rand(1, generator=rng) * 2 - 1)
    region = lv.Bounded(most, norm)
    result = lv.audit(graph, norm=norm, norm_out=out, region=region, analyzers="tokens", seed=seed)
    (row,) = result.rows
    assert row.certificate is not None, row.refused
    assert str(row.certificate.rigour) == "checked", row.certificate.unchecked
    assert result.lower.value <= result.upper
    x = region.project(torch.randn(40, tokens, width, generator=rng, dtype=torch.float64) * most * 3)
    near = x + 1e-3 * most * torch.randn(x.shape, generator=rng, dtype=torch.float64)
    y = torch.where(torch.rand(40, 1, 1, generator=rng) < 0.5, near, x.roll(1, 0)) * 0.999
    slopes = slopes_below(graph, x, region.project(y), norm, out)
    assert bool((slopes <= result.upper).all())
