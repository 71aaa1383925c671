"""Attention straight from torch: masks, local bounds beside sampled gradients, radii, and what a deadline leaves."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

import lipverify as lv
from lipverify import ops
from lipverify.analyzers.local.analyzer import Local
from lipverify.analyzers.protocol import Compute
from lipverify.errors import Undecided, UnsupportedModel
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph, Node
from lipverify.ir.norm import Norm
from lipverify.ir.op import Input, Op
from lipverify.ir.region import Ball, Query

TOKENS, WIDTH = 4, 8


class Attention(nn.Module):
    """One attention on normalised tokens with a mask."""

    def __init__(self, mask: Tensor | None) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(WIDTH), nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        found: Tensor = self.attention(y, y, y, attn_mask=self.mask, need_weights=False)[0]
        return found


def graph_of(module: nn.Module, shape: tuple[int, ...]) -> Graph:
    return lv.extract(
        module.eval(), example=torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    )


def largest_gradient(graph: Graph, ball: Ball, norm: Norm) -> float:
    """The largest dual norm of a gradient of an output at sampled points of the first ball."""
    exact = graph.to(dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    best = 0.0
    for _ in range(6):
        step = torch.randn(ball.center[0].shape, generator=generator, dtype=torch.float64)
        step = step.sign() if ball.norm is Norm.LINF else step / step.norm()
        x = ball.center[0] + ball.radius * step
        jacobian = torch.func.jacrev(lambda x: evaluate(exact, x[None])[0].flatten())(x).flatten(1)
        best = max(best, float(torch.linalg.vector_norm(jacobian, ord=norm.dual.order, dim=1).max()))
    return best


INFINITE = torch.full((TOKENS, TOKENS), float("-inf")).triu(1)
MASKS = {
    "none": None,
    "causal": INFINITE,
    "booleans": torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1),
    "numbers": INFINITE + torch.linspace(-1.0, 1.0, TOKENS),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_torch(name: str) -> None:
    torch.manual_seed(0)
    graph = graph_of(Attention(MASKS[name]), (TOKENS, WIDTH))
    masked = any(node.op.kind() == "MaskedSoftmax" for node in graph.nodes)
    assert masked == (name != "none")
    ball = Ball(torch.randn(1, TOKENS, WIDTH), 0.01, "linf")
    upper = Local(with_product=False).bound(graph, Query(Norm.LINF, Norm.LINF, ball), Compute()).upper
    assert upper is not None
    witness = largest_gradient(graph, ball, Norm.LINF)
    assert witness <= float(upper) < 1.5 * witness
    # A mask is no reason to write the softmax out: over wide boxes its sum would be a divisor that may be 0.
    wide = Ball(ball.center, 0.1, "linf")
    upper = Local(with_product=False).bound(graph, Query(Norm.LINF, Norm.LINF, wide), Compute()).upper
    assert upper is not None
    assert largest_gradient(graph, wide, Norm.LINF) <= float(upper) < 100.0


def test_an_encoder_layer_has_local_bounds_and_radii() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, 0.0, batch_first=True, norm_first=True)
    graph = graph_of(nn.Sequential(layer, nn.Flatten(), nn.Linear(TOKENS * WIDTH, 3)), (TOKENS, WIDTH))
    x = torch.randn(1, TOKENS, WIDTH)
    for norm, radius in ((Norm.LINF, 0.01), (Norm.L2, 0.03)):
        ball = Ball(x, radius, norm)
        upper = Local(with_product=False).bound(graph, Query(norm, norm, ball), Compute()).upper
        assert upper is not None
        assert largest_gradient(graph, ball, norm) <= float(upper) < 10.0
    record = lv.radii(graph, x, norm="linf", method="crown").records[0]
    assert 0.0 < record.radius < (record.attack_radius or torch.inf)


def test_without_time_there_is_no_bound() -> None:
    torch.manual_seed(0)
    graph = graph_of(Attention(None), (TOKENS, WIDTH))
    query = Query(Norm.L2, Norm.L2, Ball(torch.randn(1, TOKENS, WIDTH), 0.1, "l2"))
    with pytest.raises(Undecided, match="no time"):
        Local(with_product=False).bound(graph, query, Compute(deadline=time.monotonic() - 1.0))


def test_layer_norms_do_not_see_what_moves_all_entries_of_a_token() -> None:
    """One input adds to all entries as much as 100 times what tells them apart; the norm's slope in it is 0."""
    torch.manual_seed(0)
    layer = nn.Linear(3, WIDTH)
    with torch.no_grad():
        layer.weight[:, 0] = 100.0
    graph = graph_of(nn.Sequential(layer, nn.LayerNorm(WIDTH)), (3,))
    for norm in (Norm.LINF, Norm.L2):
        ball = Ball(torch.ones(1, 3), 0.02, norm)
        upper = Local(with_product=False).bound(graph, Query(norm, norm, ball), Compute()).upper
        assert upper is not None
        witness = largest_gradient(graph, ball, norm)
        assert witness <= float(upper) < 3.0 * witness


@pytest.mark.parametrize("behind", [None, ops.Softmax(0)])
def test_norms_of_tiny_numbers_are_not_zero(behind: Op | None) -> None:
    """relu(x 1e-170) 1e170 has the slope 1 where x > 0; the squares of its weights underflow."""
    tiny = torch.eye(2, dtype=torch.float64) * 1e-170
    nodes = [
        Node("input", Input(), (), (2,)),
        Node("small", ops.Linear(tiny, None), ("input",), (2,)),
        Node("relu", ops.ReLU(), ("small",), (2,)),
        Node("large", ops.Linear(torch.eye(2, dtype=torch.float64) * 1e170, None), ("relu",), (2,)),
    ]
    if behind is not None:
        nodes.append(Node("behind", behind, ("large",), (2,)))
    graph = Graph(tuple(nodes), (nodes[-1].name,))
    for center in (-0.5, 0.5):
        ball = Ball(torch.full((1, 2), center, dtype=torch.float64), 1.0, "l2")
        upper = Local(with_product=False).bound(graph, Query(Norm.L2, Norm.L2, ball), Compute()).upper
        assert upper is not None
        assert float(upper) >= (1.0 if behind is None else 0.5) - 1e-9


def test_products_that_underflow_are_charged() -> None:
    """x 1e-330 is 0 in float64, and a later factor makes it x again: no bound, rather than 0."""
    nodes = [Node("input", Input(), (), (2,))]
    for factor in (1e-110, 1e-110, 1e-110, 1e110, 1e110, 1e110):
        weight = torch.eye(2, dtype=torch.float64) * factor
        nodes.append(Node(f"linear{len(nodes)}", ops.Linear(weight, None), (nodes[-1].name,), (2,)))
        nodes.append(Node(f"relu{len(nodes)}", ops.ReLU(), (nodes[-1].name,), (2,)))
    nodes.append(Node("softmax", ops.Softmax(0), (nodes[-1].name,), (2,)))
    graph = Graph(tuple(nodes), ("softmax",))
    ball = Ball(torch.tensor([[0.5, 0.7]], dtype=torch.float64), 0.1, "l2")
    with pytest.raises(UnsupportedModel, match="largest float64"):
        Local(with_product=False).bound(graph, Query(Norm.L2, Norm.L2, ball), Compute())
