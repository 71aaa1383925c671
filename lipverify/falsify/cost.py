"""What evaluating a network costs, counted: so that a seed decides a search and no clock."""

from __future__ import annotations

from lipverify.ir.graph import Graph
from lipverify.ops import Conv, ConvTranspose, Linear

MULTIPLICATIONS_A_SECOND = 1e9


def seconds_of(graph: Graph) -> float:
    """A rough count of one evaluation of one sample in float64, in seconds of one core."""
    return multiplications(graph) / MULTIPLICATIONS_A_SECOND


def multiplications(graph: Graph) -> float:
    """Of one evaluation of one sample, one for every value besides; rough."""
    work = 0.0
    for node in graph.nodes:
        match node.op:
            case Conv(weight=weight):
                work += node.size * weight[0].numel()
            case ConvTranspose(weight=weight):
                work += graph[node.inputs[0]].size * weight[0].numel()
            case Linear(weight=weight):
                work += node.size * weight.shape[1]
            case _:
                work += node.size
    return work
