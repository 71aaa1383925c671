"""How far each value of a network moves with its input, for one choice of slopes; a ranking, never a bound."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.op import Constant, Input
from lipverify.propagation.knowledge import is_affine
from lipverify.rules import linear

LARGEST = 1 << 26
"""Numbers in all tangents, beyond which every value counts alike."""
LEAST = 1e-3


def reach(
    graph: Graph, middle: Mapping[str, tuple[Tensor, ...]], dual: Norm, device: torch.device
) -> dict[str, Tensor]:
    """For each node the `dual` norms of the gradients of its entries, with these slopes [*shape]: node -> [size]."""
    size = graph.input.size
    if size * sum(node.size for node in graph.nodes) > LARGEST:
        return {node.name: torch.ones(node.size, dtype=torch.float64, device=device) for node in graph.nodes}
    tangents: dict[str, Tensor] = {}
    found = {}
    for node in graph.nodes:
        arguments = [tangents[name] for name in node.inputs]
        if isinstance(node.op, Input):
            tangent = torch.eye(size, dtype=torch.float64, device=device).reshape(size, *node.shape)
        elif isinstance(node.op, Constant):
            tangent = torch.zeros(size, *node.shape, dtype=torch.float64, device=device)
        elif is_affine(node):
            tangent = linear(node.op, *arguments).expand(size, *node.shape)
        else:
            tangent = sum(
                (s * t for s, t in zip(middle[node.name], arguments, strict=True)),
                torch.zeros(size, *node.shape, dtype=torch.float64, device=device),
            )
        tangents[node.name] = tangent
        found[node.name] = torch.linalg.vector_norm(tangent.flatten(1), ord=dual.order, dim=0)
    # Slopes may cancel where others would not: everything counts a little.
    largest = max(float(value.max()) for value in found.values() if len(value))
    least = LEAST * largest if largest > 0.0 else 1.0
    return {name: value.clamp_min(least) for name, value in found.items()}
