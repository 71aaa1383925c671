"""Graphs from graphs, as far as names and wiring go: no operator is looked into."""

from __future__ import annotations

from dataclasses import replace

from lipverify.errors import UsageError
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Input, Shape
from lipverify.loading.names import display

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


def require_alike(first: Graph, second: Graph) -> None:
    """Two functions are compared on one input, and in what is the same output for both.

    Several inputs are one vector, in the order of their file: a file that lists them in another order, or cuts the vector at
    other places, takes other numbers for each of them. Names and sizes tell that, and which output is which, where both files
    have several.

    Raises:
        UsageError: inputs of different shapes, or several of other names or sizes or in another order; outputs whose names say
            that each stands at another place in the other file.
    """
    if first.input_shape != second.input_shape:
        raise UsageError(different_inputs(first, second))
    read = [graph.origin.reading for graph in (first, second)]
    names = [() if one is None else tuple(name for name, _ in one.inputs) for one in read]
    if names[0] != names[1] and max(map(len, names)) > 1:
        listed = " and ".join(", ".join(display(n, 30) for n in of) or "one input" for of in names)
        raise UsageError(
            f"the networks take their inputs in another order or by other names: {listed}; list them alike in both files, or "
            "let one vary and fix the others, --input NAME --constant OTHER=VALUE"
        )
    sizes = [() if one is None else tuple(_of_sample(shape) for _, shape in one.inputs) for one in read]
    if sizes[0] != sizes[1] and max(map(len, sizes)) > 1:
        listed = " and ".join(", ".join(str(list(shape)) for shape in of) for of in sizes)
        raise UsageError(
            f"the inputs {', '.join(display(n, 30) for n in names[0])} have the shapes {listed} in the two networks; two "
            "functions are compared on one input"
        )
    ours, theirs = (_output_name(graph) for graph in (first, second))
    if ours != theirs and (ours in second.origin.outputs or theirs in first.origin.outputs):
        raise UsageError(
            f"the output of the first network is {display(str(ours), 40)}, that of the second {display(str(theirs), 40)}, and "
            "names stand at other places in the other file; say which by its name, --output NAME (Python: output=)"
        )


def _of_sample(shape: Shape) -> Shape:
    """Without the axis of the batch, which holds one sample."""
    return shape[1:] if len(shape) > 1 and shape[0] == 1 else shape


def _output_name(graph: Graph) -> str | None:
    """Of the output that the graph computes, in its file; None where the file has no names."""
    place = graph.output_index if len(graph.outputs) > 1 else graph.origin.output
    if isinstance(place, str):
        return place
    names = graph.origin.outputs
    return names[place] if place < len(names) else None


def joined(first: Graph, second: Graph, prefixes: tuple[str, str] = ("f.", "g.")) -> Graph:
    """Both networks on one input; the outputs are the selected one of each.

    Raises:
        UsageError: as `require_alike`.
    """
    require_alike(first, second)
    parts = [
        renamed(graph, prefix, INPUT).pruned()
        for graph, prefix in zip((first, second), prefixes, strict=True)
    ]
    start = Node(INPUT, Input(), (), first.input_shape)
    nodes = [node for part in parts for node in part.nodes if not isinstance(node.op, Input)]
    return Graph((start, *nodes), tuple(part.output.name for part in parts))
