"""How a pass changes a graph: some nodes are replaced, each keeps its name and the function it computes.

Because every surviving name computes what it computed before, any set of replacements found in one graph fits together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lipverify.errors import InternalError
from lipverify.interpreter import infer_shape
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Op, Shape


class Draft:
    """New nodes that together compute what the node `root` computes. The last one takes over its name."""

    def __init__(self, graph: Graph, root: Node) -> None:
        self._graph = graph
        self._root = root
        self._added: dict[str, Node] = {}
        self._device = graph_device(graph)

    def add(self, op: Op, *inputs: str) -> str:
        """One more node on nodes of the graph or of this draft; its name."""
        op = op.to(device=self._device)
        shape = infer_shape(op, tuple(self.shape(name) for name in inputs))
        name = self._fresh(f"{self._root.name}.{op.kind().lower()}")
        self._added[name] = Node(name, op, inputs, shape, source=self._root.source)
        return name

    def chain(self, ops: Sequence[Op], name: str) -> str:
        """Operators of one input, applied one after the other."""
        for op in ops:
            name = self.add(op, name)
        return name

    def shape(self, name: str) -> Shape:
        """Sample shape of a node of the graph or of this draft."""
        return self._added[name].shape if name in self._added else self._graph[name].shape

    def finish(self, name: str) -> Replacement:
        """The replacement whose result is this node.

        Raises:
            InternalError: the shape is not that of the replaced node.
        """
        if self.shape(name) != self._root.shape:
            raise InternalError(
                f"a rewrite of {self._root.describe()} gives the shape {list(self.shape(name))}"
            )
        last = self._added.pop(name, None)
        if last is None:
            return name
        return (*self._added.values(), replace(last, name=self._root.name))

    def _fresh(self, name: str) -> str:
        unique, count = name, 1
        while unique in self._graph.consumers or unique in self._added:
            unique, count = f"{name}.{count}", count + 1
        return unique


def graph_device(graph: Graph) -> torch.device:
    """Where the parameters are; the CPU if there are none."""
    for node in graph.nodes:
        for value in vars(node.op).values():
            if isinstance(value, Tensor):
                return value.device
    return torch.device("cpu")


Replacement = tuple[Node, ...] | str
"""The nodes to put in place of one node, the last with its name; or the name of a node that computes the same."""


def substitute(graph: Graph, replacements: Mapping[str, Replacement]) -> Graph:
    """The graph with these nodes replaced and what is no longer needed removed; the same object if there are none."""
    if not replacements:
        return graph

    def resolve(name: str) -> str:
        while isinstance(target := replacements.get(name), str):
            name = target
        return name

    nodes: list[Node] = []
    for node in graph.nodes:
        put = replacements.get(node.name, (node,))
        if not isinstance(put, str):
            nodes.extend(replace(new, inputs=tuple(resolve(name) for name in new.inputs)) for new in put)
    outputs = tuple(resolve(name) for name in graph.outputs)
    return replace(graph, nodes=tuple(nodes), outputs=outputs).pruned()
