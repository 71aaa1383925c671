"""Maxima and minima of two tensors that are spelled by ReLU, or by each other."""

from __future__ import annotations

from lipverify import ops
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Op
from lipverify.passes.rewriting import Draft, Replacement, substitute
from lipverify.passes.scalar_algebra import number


def recognize_extrema(graph: Graph) -> Graph:
    """relu(a - b) + b as the maximum, a - relu(a - b) and -max(-a, -b) as the minimum of a and b; -min(-a, -b) likewise."""
    found: dict[str, Replacement] = {}
    for node in graph.nodes:
        match = _of_difference(graph, node) or _negated(graph, node)
        if match is not None:
            draft = Draft(graph, node)
            found[node.name] = draft.finish(draft.add(*match))
    return substitute(graph, found)


_Match = tuple[Op, *tuple[str, ...]]


def _of_difference(graph: Graph, node: Node) -> _Match | None:
    terms = _terms(graph, node)
    if terms is None:
        return None
    for (sign, relu), (other_sign, other) in (terms, terms[::-1]):
        difference = graph[graph[relu].inputs[0]] if isinstance(graph[relu].op, ops.ReLU) else None
        sides = None if difference is None else _terms(graph, difference)
        if sides is None or {sides[0][0], sides[1][0]} != {1, -1} or other_sign != 1:
            continue
        (_, a), (_, b) = sides if sides[0][0] == 1 else sides[::-1]
        if sign == 1 and other == b:
            return ops.Maximum(), a, b
        if sign == -1 and other == a:
            return ops.Minimum(), a, b
    return None


_Terms = tuple[tuple[int, str], tuple[int, str]]


def _terms(graph: Graph, node: Node) -> _Terms | None:
    """Two signed nodes whose sum the node is."""
    if not isinstance(node.op, ops.Add | ops.Sub):
        return None
    (s, first), (t, second) = (_signed(graph, name) for name in node.inputs)
    return (s, first), (-t if isinstance(node.op, ops.Sub) else t, second)


def _signed(graph: Graph, name: str) -> tuple[int, str]:
    """The node, or what it is the negative of."""
    opposite = _negative_of(graph, name)
    return (1, name) if opposite is None else (-1, opposite)


def _negative_of(graph: Graph, name: str) -> str | None:
    op = graph[name].op
    if isinstance(op, ops.Scale) and number(op.scale, 1) == -1 and number(op.shift, 0) == 0:
        return graph[name].inputs[0]
    return None


def _negated(graph: Graph, node: Node) -> _Match | None:
    below = _negative_of(graph, node.name)
    if below is None:
        return None
    inputs = [_negative_of(graph, name) for name in graph[below].inputs]
    if not inputs or None in inputs:
        return None
    names = [name for name in inputs if name is not None]
    match graph[below].op:
        case ops.Maximum():
            return ops.Minimum(), *names
        case ops.Minimum():
            return ops.Maximum(), *names
        case ops.ReduceMax(axes=axes, keepdims=keepdims):
            return ops.ReduceMin(axes, keepdims), *names
        case ops.ReduceMin(axes=axes, keepdims=keepdims):
            return ops.ReduceMax(axes, keepdims), *names
    return None
