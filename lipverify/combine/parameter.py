"""A stored parameter as a second part of the input."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipverify.combine.agreement import require_equal
from lipverify.errors import UsageError
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Constant, Input
from lipverify.ops import Reshape, Slice

INPUT = "x"


def with_parameter(graph: Graph, name: str) -> Graph:
    """(x, p) -> the network at x with the stored tensor of the `Constant` node `name` replaced by p.

    The new input is one row: the entries of x, then those of p, each in row-major order; at the stored value it is the old
    network, which is tested.

    Raises:
        UsageError: there is no such node, or it is no stored tensor.
    """
    node = next((node for node in graph.nodes if node.name == name), None)
    if node is None or not isinstance(node.op, Constant):
        found = "there is no such node" if node is None else f"{node.describe()} is none"
        raise UsageError(f"{name!r} should name a stored tensor that other operators read, but {found}")
    stored = node.op.value
    start, size, count = graph.input, graph.input.size, node.size
    if any(other.name == INPUT and other is not start for other in graph.nodes):
        raise UsageError(f"a node is called {INPUT!r}, which is the name of the new input")
    nodes = [Node(INPUT, Input(), (), (size + count,))]
    for part, first, old in (("part", 0, start), ("parameter", size, node)):
        cut = f"{INPUT}.{part}"
        nodes.append(Node(cut, Slice(0, first, first + old.size, 1), (INPUT,), (old.size,)))
        nodes.append(Node(f"{cut}.shaped", Reshape(old.shape), (cut,), old.shape))
    names = {start.name: f"{INPUT}.part.shaped", name: f"{INPUT}.parameter.shaped"}
    for other in graph.nodes:
        if other is start or other is node:
            continue
        inputs = tuple(names.get(i, i) for i in other.inputs)
        nodes.append(Node(other.name, other.op, inputs, other.shape, other.source))
    if len({n.name for n in nodes}) != len(nodes):
        raise UsageError(f"names of the network begin with {INPUT!r} and a dot; rename them first")
    found_graph = Graph(tuple(nodes), (names.get(graph.output.name, graph.output.name),))

    def at_stored(x: Tensor) -> Tensor:
        value = stored.to(x).reshape(1, -1).expand(len(x), count)
        return evaluate(found_graph.to(dtype=x.dtype), torch.cat([x.reshape(len(x), size), value], 1))

    require_equal(graph, at_stored, "with_parameter")
    assert found_graph.input.size == size + math.prod(node.shape)
    return found_graph
