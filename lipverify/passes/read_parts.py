"""A slice of a concatenation reads the parts that it needs, not all of them: states of one step of a sequence that others follow.

Exact: entries are copied. What no slice needs any more is no longer part of the graph, and bounds of what reads a part are not
those of everything that lies beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipverify import ops
from lipverify.ir.graph import Graph, Node
from lipverify.passes.rewriting import Draft, Replacement, substitute
from lipverify.passes.wiring import Wiring, is_view


def read_parts(graph: Graph) -> Graph:
    """The graph where slices of concatenations that need some of the parts, each of them whole, are put together of those."""
    wiring, found = Wiring(graph), dict[str, Replacement]()
    for node in graph.nodes:
        parts = _parts(graph, graph[node.inputs[0]]) if isinstance(node.op, ops.Slice) else 0
        if parts > 1:
            runs = _runs(wiring, wiring.ids(node.name))
            if runs is not None and len(runs) < parts:
                found[node.name] = _put_together(graph, node, runs)
    return substitute(graph, found)


def _parts(graph: Graph, node: Node) -> int:
    """How many parts a concatenation has, parts of parts too, through views of one tensor alone; 0 of other nodes."""
    while is_view(node) and len(node.inputs) == 1:
        node = graph[node.inputs[0]]
    if not isinstance(node.op, ops.Concat):
        return 0
    return sum(max(1, _parts(graph, graph[name])) for name in node.inputs)


def _runs(wiring: Wiring, ids: Tensor) -> list[Node] | None:
    """The computed nodes whose entries, all of each in order, the entries are one after the other; None where they are not."""
    flat, found = ids.flatten(), list[Node]()
    done = 0
    while done < len(flat):
        (owner,) = wiring.owners(flat[done : done + 1])
        first = wiring.start(owner)
        if not torch.equal(flat[done : done + owner.size], torch.arange(first, first + owner.size)):
            return None
        found.append(owner)
        done += owner.size
    return found


def _put_together(graph: Graph, node: Node, parts: list[Node]) -> Replacement:
    draft = Draft(graph, node)
    if len(parts) == 1:
        name = parts[0].name
    else:
        name = draft.add(ops.Concat(0), *(draft.add(ops.Reshape((part.size,)), part.name) for part in parts))
    return draft.finish(name if draft.shape(name) == node.shape else draft.add(ops.Reshape(node.shape), name))
