"""A plain torch module from a graph, in the few operators whose gradients auto_LiRPA can bound.

Dense layers, convolutions, ReLU, tanh, sigmoid, sums and differences stay; every other affine operator becomes a dense matrix;
maxima and sorting become ReLUs. Normalisation behind a dense or convolutional layer is merged into it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from lipverify import ops
from lipverify.analyzers.local.comparators import elementary
from lipverify.errors import UnsupportedModel
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Input
from lipverify.propagation.knowledge import is_affine
from lipverify.rules import forward, linear

LARGEST_MATRIX = 1 << 24
"""Entries of the dense matrix of an affine operator that has no layer of its own."""
ACTIVATIONS = {ops.ReLU: torch.relu, ops.Tanh: torch.tanh, ops.Sigmoid: torch.sigmoid}


def plain_graph(graph: Graph) -> Graph:
    """The graph with maxima written out and normalisation merged, float64."""
    return _merged(elementary(graph).to(dtype=torch.float64))


def reason_to_refuse(graph: Graph) -> str | None:
    """The first node of a plain graph that has no form here."""
    for node in graph.nodes:
        op = node.op
        if isinstance(op, Input | ops.LeakyReLU) or type(op) in ACTIVATIONS:
            continue
        if not is_affine(node):
            return f"auto_LiRPA bounds no gradient of {node.describe()}"
        if _native(op):
            continue
        if max(node.size * graph[name].size for name in node.inputs) > LARGEST_MATRIX:
            return f"{node.describe()} would become a dense matrix of more than {LARGEST_MATRIX} entries"
    return None


def _native(op: object) -> bool:
    if isinstance(op, ops.Conv):
        return op.weight.ndim == 4 and all(before == after for before, after in op.padding)
    return isinstance(op, ops.Linear | ops.Add | ops.Sub | ops.Reshape)


class Plain(nn.Module):
    """Computes what the graph computes, x [batch, *input shape] -> [batch, outputs]. dtype of the parameters: as given.

    Raises:
        UnsupportedModel: a node without a form here; it is named.
    """

    def __init__(self, graph: Graph, dtype: torch.dtype) -> None:
        super().__init__()
        reason = reason_to_refuse(graph)
        if reason is not None:
            raise UnsupportedModel(reason)
        self.graph = graph
        self.layers = nn.ModuleDict()
        self.numbers = {node.name: index for index, node in enumerate(graph.nodes)}
        for node in graph.nodes:
            for place, layer in enumerate(_layers(graph, node)):
                self.layers[f"{self.numbers[node.name]}-{place}"] = layer.to(dtype)
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """The selected output, flat."""
        values: dict[str, Tensor] = {}
        for node in self.graph.nodes:
            if isinstance(node.op, Input):
                values[node.name] = x
                continue
            values[node.name] = self._value(node, [values[name] for name in node.inputs])
        return values[self.graph.output.name].flatten(1)

    def _value(self, node: Node, inputs: list[Tensor]) -> Tensor:
        op = node.op
        if isinstance(op, ops.LeakyReLU):
            # There is no gradient of LeakyReLU: x = relu(x) - relu(-x).
            return torch.relu(inputs[0]) - op.slope * torch.relu(-inputs[0])
        if type(op) in ACTIVATIONS:
            shaped: Tensor = ACTIVATIONS[type(op)](inputs[0])
            return shaped
        if isinstance(op, ops.Add):
            return inputs[0] + inputs[1]
        if isinstance(op, ops.Sub):
            return inputs[0] - inputs[1]
        if isinstance(op, ops.Reshape):
            return inputs[0].reshape(-1, *node.shape)
        if isinstance(op, ops.Linear | ops.Conv) and _native(op):
            return self._layer(node, 0, inputs[0])
        total = self._layer(node, 0, inputs[0].flatten(1))
        for place, value in enumerate(inputs[1:], start=1):
            total = total + self._layer(node, place, value.flatten(1))
        return total if len(node.shape) == 1 else total.reshape(-1, *node.shape)

    def _layer(self, node: Node, place: int, x: Tensor) -> Tensor:
        found: Tensor = self.layers[f"{self.numbers[node.name]}-{place}"](x)
        return found


def _layers(graph: Graph, node: Node) -> list[nn.Module]:
    op = node.op
    if isinstance(op, Input | ops.LeakyReLU | ops.Add | ops.Sub | ops.Reshape) or type(op) in ACTIVATIONS:
        return []
    if isinstance(op, ops.Linear):
        return [_dense(op.weight, op.bias)]
    if isinstance(op, ops.Conv) and _native(op):
        out, height, width = op.weight.shape[0], *op.weight.shape[2:]
        (rows, _), (columns, _) = op.padding
        conv = nn.Conv2d(
            op.weight.shape[1] * op.groups, out, (height, width), (op.stride[0], op.stride[1]), (rows, columns),
            (op.dilation[0], op.dilation[1]), op.groups, op.bias is not None,
        )  # fmt: skip
        conv.weight = nn.Parameter(op.weight, requires_grad=False)
        if op.bias is not None:
            conv.bias = nn.Parameter(op.bias, requires_grad=False)
        return [conv]
    return _matrices(graph, node)


def _matrices(graph: Graph, node: Node) -> list[nn.Module]:
    """The affine operator column by column: one matrix for each input, the constant with the first."""
    shapes = [graph[name].shape for name in node.inputs]
    zeros = [torch.zeros(1, *shape, dtype=torch.float64) for shape in shapes]
    shift = forward(node.op, *zeros).flatten()
    found: list[nn.Module] = []
    for place, shape in enumerate(shapes):
        size = graph[node.inputs[place]].size
        units = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
        rest = [unit.expand(size, *unit.shape[1:]) for unit in zeros]
        columns = linear(node.op, *[units if i == place else other for i, other in enumerate(rest)])
        found.append(_dense(columns.reshape(size, -1).T.contiguous(), shift if place == 0 else None))
    return found


def _dense(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def _merged(graph: Graph) -> Graph:
    """BatchNorm behind a layer that nobody else reads becomes part of the layer: the same function up to rounding."""
    nodes = {node.name: node for node in graph.nodes}
    for node in graph.nodes:
        op, before = node.op, nodes[node.inputs[0]] if node.inputs else node
        if not isinstance(op, ops.BatchNorm) or not isinstance(before.op, ops.Linear | ops.Conv):
            continue
        channels_last = isinstance(before.op, ops.Linear) and len(before.shape) != 1
        if (
            op.axis != 0
            or channels_last
            or len(graph.consumers[before.name]) != 1
            or before.name in graph.outputs
        ):
            continue
        factor = op.weight / torch.sqrt(op.var + op.eps)
        weight = before.op.weight * factor.reshape(-1, *(1,) * (before.op.weight.ndim - 1))
        bias = torch.zeros_like(op.bias) if before.op.bias is None else before.op.bias
        merged = replace(before.op, weight=weight, bias=(bias - op.mean) * factor + op.bias)
        nodes[node.name] = Node(node.name, merged, before.inputs, node.shape, node.source)
    return replace(graph, nodes=tuple(nodes[node.name] for node in graph.nodes)).pruned()
