"""Graphs from graphs, as far as names and wiring go: no operator is looked into."""

from __future__ import annotations

from dataclasses import replace

from lipverify.errors import UsageError
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Input

INPUT = "x"
"""The name of the one input of a joined graph; every other name there has a prefix with a dot."""


def renamed(graph: Graph, prefix: str, source: str) -> Graph:
    """The same network with `prefix` before every name; its input is called `source`."""
    name = {node.name: source if isinstance(node.op, Input) else prefix + node.name for node in graph.nodes}
    nodes = tuple(
        replace(node, name=name[node.name], inputs=tuple(name[i] for i in node.inputs))
        for node in graph.nodes
    )
    return replace(graph, nodes=nodes, outputs=tuple(name[output] for output in graph.outputs))


def one_row(graph: Graph) -> bool:
    """Whether the entries of the output stand along one axis, so that the largest of them is a label."""
    return sum(n != 1 for n in graph.output_shape) == 1


def different_inputs(first: Graph, second: Graph) -> str:
    """Why two networks cannot be joined."""
    few, more = sorted((first.input_shape, second.input_shape), key=len)
    shapes = f"{list(first.input_shape)} and {list(second.input_shape)}"
    said = f"the networks take inputs of different shapes, {shapes}; two functions are compared on one input"
    if len(more) == len(few) + 1 and more[1:] == few:
        said += f". {list(more)} may be a batch of {more[0]} that the export fixed: export it with a batch of one or of open size"
    return said


def joined(first: Graph, second: Graph, prefixes: tuple[str, str] = ("f.", "g.")) -> Graph:
    """Both networks on one input; the outputs are the selected one of each.

    Raises:
        UsageError: they take inputs of different shapes.
    """
    if first.input_shape != second.input_shape:
        raise UsageError(different_inputs(first, second))
    parts = [
        renamed(graph, prefix, INPUT).pruned()
        for graph, prefix in zip((first, second), prefixes, strict=True)
    ]
    start = Node(INPUT, Input(), (), first.input_shape)
    nodes = [node for part in parts for node in part.nodes if not isinstance(node.op, Input)]
    return Graph((start, *nodes), tuple(part.output.name for part in parts))
