"""Softmax from exponentials and their sum."""

from __future__ import annotations

from lipverify import ops
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Op, Shape
from lipverify.passes.reductions import broadcast_reduction
from lipverify.passes.rewriting import Draft, Replacement, substitute


def recognize_softmax(graph: Graph) -> Graph:
    """exp(x) over its sum along one axis as Softmax, also where the maximum along that axis is subtracted from x first."""
    found: dict[str, Replacement] = {}
    for node in graph.nodes:
        if isinstance(node.op, ops.Div | ops.Mul):
            match = _softmax(graph, node)
            if match is not None:
                draft = Draft(graph, node)
                found[node.name] = draft.finish(draft.add(ops.Softmax(match[1]), match[0]))
    return substitute(graph, found)


def _softmax(graph: Graph, node: Node) -> tuple[str, int] | None:
    """The argument and the axis."""
    steps: tuple[type[Op], ...] = () if isinstance(node.op, ops.Div) else (ops.Reciprocal,)
    orders = [node.inputs] if isinstance(node.op, ops.Div) else [node.inputs, node.inputs[::-1]]
    for exponential, total in orders:
        above = graph[exponential]
        axes = _reduced(graph, total, exponential, ops.ReduceSum, steps)
        if isinstance(above.op, ops.Exp) and axes is not None and len(axes) == 1:
            return _without_maximum(graph, above.inputs[0], axes), axes[0]
    return None


def _without_maximum(graph: Graph, name: str, axes: Shape) -> str:
    """x where the node is x minus its maximum: softmax does not change when the same number is taken from every entry."""
    node = graph[name]
    if isinstance(node.op, ops.Sub):
        x, subtracted = node.inputs
        if _reduced(graph, subtracted, x, ops.ReduceMax, ()) == axes:
            return x
    return name


def _reduced(
    graph: Graph, name: str, of: str, kind: type[Op], steps: tuple[type[Op], ...]
) -> tuple[int, ...] | None:
    """The axes of a reduction of one given node, copied back, with nothing but these functions behind it."""
    found = broadcast_reduction(graph, name, graph[of].shape)
    if found is None or found.reduce.inputs != (of,) or type(found.reduce.op) is not kind:
        return None
    assert isinstance(found.reduce.op, ops.ReduceSum | ops.ReduceMax)
    return found.reduce.op.axes if tuple(type(op) for op in found.steps) == steps else None
