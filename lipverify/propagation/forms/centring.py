"""Keys minus a multiple of their sum: a softmax does not see a common shift of its logits.

With h = 1 - fl(1 - 1/n), both 1 - h and h are exact, and k_j - h sum_i k_i moves all logits q.k_j of a row by the same number:
the rewritten network computes the same function exactly. Forms of it are often tighter, where tokens read the same inputs,
and often looser: neither one always wins.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from lipverify import ops
from lipverify.ir.graph import Graph, Node

_SUFFIX = ":centred"


def centred(graph: Graph) -> Graph | None:
    """The graph with the keys of every attention shifted; None where no product reaches nothing but a softmax."""
    chains = {node.name: chain for node in graph.nodes if (chain := _chain(graph, node))}
    if not chains:
        return None
    moved = {name for chain in chains.values() for name in chain}
    nodes: list[Node] = []
    for node in graph.nodes:
        inputs = tuple(name + _SUFFIX if name in moved else name for name in node.inputs)
        if node.name in chains:
            keys = graph[node.inputs[1]]
            n = keys.shape[-1]
            h = 1.0 - (1.0 - 1.0 / n)
            weight = torch.full((n, n), -h, dtype=torch.float64).fill_diagonal_(1.0 - h)
            shift = node.name + ":keys"
            nodes.append(Node(shift, ops.Linear(weight), (node.inputs[1],), keys.shape))
            inputs = (node.inputs[0], shift)
        name = node.name + _SUFFIX if node.name in moved else node.name
        nodes.append(replace(node, name=name, inputs=inputs))
    return replace(graph, nodes=tuple(nodes))


def _chain(graph: Graph, node: Node) -> tuple[str, ...]:
    """The nodes from a matrix product up to the softmax along its last axis that alone reads it; none where it is not so."""
    if not isinstance(node.op, ops.MatMul) or node.shape[-1] < 2:
        return ()
    names = [node.name]
    while True:
        readers = graph.consumers[names[-1]]
        if len(readers) != 1 or names[-1] == graph.output.name:
            return ()
        reader = graph[readers[0]]
        if isinstance(reader.op, ops.Softmax | ops.MaskedSoftmax):
            return tuple(names) if reader.op.axis == len(node.shape) - 1 else ()
        if not _same_along_rows(reader):
            return ()
        names.append(reader.name)


def _same_along_rows(node: Node) -> bool:
    """Whether a node multiplies all logits of a row by one number: constants may be added, a mask for example."""
    if isinstance(node.op, ops.Scale):
        factor = node.op.scale
    elif isinstance(node.op, ops.DivideBy):
        factor = node.op.divisor
    else:
        return False
    return factor is None or factor.ndim == 0 or factor.shape[-1] == 1 or node.shape[-1] == 1
