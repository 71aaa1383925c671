"""Gains that an analyzer states for single stages, held against what the stage does to vectors."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from lipverify.ir.certificate import Gains
from lipverify.ir.graph import Graph, Node
from lipverify.rules import linear

ROUNDS, SLACK, LARGEST = 24, 1e-6, 1 << 16
"""Steps towards the largest direction; what rounding may explain, relatively; sizes beyond which nothing is tried."""


def too_small(evidence: Gains, graph: Graph) -> str | None:
    """The first stage, a chain of affine operators, that stretches a vector by more than its gain in l2; None: no stage does."""
    for stage in evidence.steps:
        nodes = [node for node in graph.nodes if node.name in stage.nodes]
        if stage.gain is None or not _is_chain(nodes, graph):
            continue
        found = _stretched([node.op for node in nodes], graph[nodes[0].inputs[0]].shape)
        if found > stage.gain * (1 + SLACK):
            names = ", ".join(stage.nodes)[:80]
            return f"the gain {stage.gain!r} of {names} is below {found!r}, by which it stretches a vector"
    return None


def _is_chain(nodes: list[Node], graph: Graph) -> bool:
    if not nodes or any(
        not linear.covers(type(n.op)) or len(n.inputs) != 1 or n.size > LARGEST for n in nodes
    ):
        return False
    follow = all(b.inputs == (a.name,) for a, b in itertools.pairwise(nodes))
    return follow and graph[nodes[0].inputs[0]].size <= LARGEST


def _stretched(operators: list[object], shape: tuple[int, ...]) -> float:
    """|A v| / |v| for a vector v that is turned towards the largest direction."""
    exact = [op.to(dtype=torch.float64, device="cpu") for op in operators]  # type: ignore[attr-defined]

    def image(x: Tensor) -> Tensor:
        for op in exact:
            x = linear(op, x)
        return x

    v = torch.randn(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    best = 0.0
    for _ in range(ROUNDS):
        length = float(v.norm())
        if not 0.0 < length < float("inf"):
            break
        v = (v / length).requires_grad_(True)
        with torch.enable_grad():
            y = image(v)
        # In units of the largest entry, whose square may be no number.
        size = float(y.detach().abs().amax()) if y.numel() else 0.0
        if not 0.0 < size < float("inf"):
            break
        turned = y.detach() / size
        best = max(best, float(turned.norm()) * size / float(v.detach().norm()))
        (v,) = torch.autograd.grad(y, v, turned)
    return best
