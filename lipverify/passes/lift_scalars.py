"""Samples that are single numbers become vectors of one number: everything behind the front ends counts on an axis.

A network that ends with `squeeze(-1)`, or a sum over the only axis, has such samples.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from lipverify import ops
from lipverify.errors import InternalError
from lipverify.interpreter import evaluate_all
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Constant, Input, Op

_REDUCTIONS = (
    ops.ReduceSum | ops.ReduceMean | ops.ReduceMax | ops.ReduceMin | ops.ReduceNorm | ops.ReduceLogSumExp
)


def lift_scalars(graph: Graph) -> Graph:
    """The same network with shape (1,) in place of every shape () but the input's; the same object where there is none.

    Raises:
        InternalError: that changed the numbers.
    """
    if all(node.shape or isinstance(node.op, Input) for node in graph.nodes):
        return graph
    taken = {node.name for node in graph.nodes}
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.shape or isinstance(node.op, Input):
            nodes.append(node)
            continue
        op = node.op
        rank = len(graph[node.inputs[0]].shape) if node.inputs else 0
        if isinstance(op, _REDUCTIONS) and rank > 1:
            name = f"{node.name}:kept"
            while name in taken:
                name += "'"
            taken.add(name)
            nodes.append(Node(name, replace(op, keepdims=True), node.inputs, (1,) * rank, node.source))
            nodes.append(replace(node, op=ops.Reshape((1,)), inputs=(name,), shape=(1,)))
        else:
            nodes.append(replace(node, op=_lifted(op), shape=(1,)))
    lifted = replace(graph, nodes=tuple(nodes))
    _check(graph, lifted)
    return lifted


def _lifted(op: Op) -> Op:
    if isinstance(op, _REDUCTIONS):
        return replace(op, keepdims=True)
    if isinstance(op, ops.Reshape):
        return ops.Reshape((1,))
    if isinstance(op, Constant):
        return Constant(op.value.reshape(1))
    return op


def _check(before: Graph, after: Graph) -> None:
    x = torch.randn((2, *before.input_shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    old, new = (evaluate_all(graph.to(dtype=torch.float64), x) for graph in (before, after))
    for node in before.nodes:
        size = after[node.name].shape
        same = new[node.name].shape[1:] == size and torch.equal(
            old[node.name].reshape(-1).nan_to_num(), new[node.name].reshape(-1).nan_to_num()
        )
        if not same:
            raise InternalError(f"writing {node.describe()} as a vector changed it; please report it")
