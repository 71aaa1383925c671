"""Puts an added constant back into the linear map it was the bias of."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lipverify import ops
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Op
from lipverify.passes.rewriting import Draft, Replacement, substitute

_Biased = ops.Linear | ops.Conv | ops.ConvTranspose


def merge_bias(graph: Graph) -> Graph:
    """Linear, Conv or ConvTranspose without bias, then a stored shift of its features: one operator with a bias.

    Exact: the bias holds the very numbers of the shift. Views between the two are kept behind the merged operator.
    """
    found: dict[str, Replacement] = {}
    for node in graph.nodes:
        if isinstance(node.op, ops.Scale) and node.op.scale is None and node.op.shift is not None:
            replacement = _merged(graph, node, node.op.shift)
            if replacement is not None:
                found[node.name] = replacement
    return substitute(graph, found)


def _merged(graph: Graph, node: Node, shift: Tensor) -> Replacement | None:
    views: list[Op] = []
    shift = torch.broadcast_to(shift, node.shape)
    below = graph[node.inputs[0]]
    while isinstance(below.op, ops.Reshape | ops.Transpose) and _only_for(graph, below):
        views.append(below.op)
        source = graph[below.inputs[0]]
        if isinstance(below.op, ops.Transpose):
            shift = shift.permute([below.op.order.index(axis) for axis in range(len(below.op.order))])
        else:
            shift = shift.reshape(source.shape)
        below = source
    if not isinstance(below.op, _Biased) or not _only_for(graph, below):
        return None
    bias = _bias(below.op, shift)
    if bias is None:
        return None
    draft = Draft(graph, node)
    merged = draft.add(replace(below.op, bias=bias), *below.inputs)
    return draft.finish(draft.chain(views[::-1], merged))


def _only_for(graph: Graph, node: Node) -> bool:
    """Whether exactly one other node reads this one, and no output does."""
    return len(graph.consumers[node.name]) == 1 and node.name not in graph.outputs


def _bias(op: _Biased, shift: Tensor) -> Tensor | None:
    """The shift as one number for each feature; None if it differs within a feature or there is a bias already."""
    if op.bias is not None or shift.dtype != op.weight.dtype or 0 in shift.shape:
        return None
    features = shift.movedim(-1 if isinstance(op, ops.Linear) else 0, 0)
    features = features.reshape(len(features), -1)
    first = features[:, :1]
    return first.squeeze(1).clone() if bool((features == first).all()) else None
