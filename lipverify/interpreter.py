"""Evaluates a graph: what its nodes compute, in any floating-point type and on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from lipverify import ops as _ops  # registers the rules
from lipverify.errors import UsageError
from lipverify.ir.graph import Graph
from lipverify.ir.op import Input, Op, Shape
from lipverify.rules import forward, slopes

del _ops


def evaluate(graph: Graph, x: Tensor) -> Tensor:
    """The selected output for a batch. x [batch, *input shape] -> [batch, *output shape].

    Computes in the type and on the device of x; the parameters must be there already (`Graph.to`).

    Raises:
        UsageError: x has another shape than the input of the graph.
    """
    return _run(graph, x, keep=False)[graph.output.name]


def evaluate_converted(graph: Graph, x: Tensor) -> Tensor:
    """The selected output in the type and on the device of x, wherever the parameters are: those of one node after the other are
    converted, so that no second copy of a large network is made. Raises as `evaluate`."""
    return _run(graph, x, keep=False, convert=True)[graph.output.name]


def evaluate_all(graph: Graph, x: Tensor) -> dict[str, Tensor]:
    """Every node's value for a batch: name -> [batch, *shape]."""
    return _run(graph, x, keep=True)


def _run(graph: Graph, x: Tensor, *, keep: bool, convert: bool = False) -> dict[str, Tensor]:
    if tuple(x.shape[1:]) != graph.input_shape:
        raise UsageError(
            f"the model takes samples of shape {list(graph.input_shape)}, not {list(x.shape[1:])}"
        )
    values: dict[str, Tensor] = {}
    waiting = {name: len(users) for name, users in graph.consumers.items()}
    for node in graph.nodes:
        if isinstance(node.op, Input):
            values[node.name] = x
            continue
        op = node.op.to(dtype=x.dtype, device=x.device) if convert else node.op
        values[node.name] = forward(op, *(values[name] for name in node.inputs))
        for name in node.inputs:
            waiting[name] -= 1
            if not keep and waiting[name] == 0 and name != graph.output.name:
                values.pop(name, None)  # frees memory of wide networks early
    output = graph.output.name
    if values[output].shape[0] != x.shape[0]:  # an output that does not depend on the input
        values[output] = values[output].expand(x.shape[0], *values[output].shape[1:])
    return values


def infer_shape(op: Op, input_shapes: tuple[Shape, ...]) -> Shape:
    """The sample shape an operator gives, by running its forward rule without data.

    Raises:
        RuntimeError, IndexError: the operator does not fit these shapes.
    """
    if slopes.covers(type(op)) and not op.parameters():
        return input_shapes[0]  # a scalar function; asking torch takes milliseconds for some of them
    # A batch of none computes nothing. Shapes alone (the device "meta") would do too, but torch then loads its compiler.
    inputs = [torch.empty((0, *shape)) for shape in input_shapes]
    return tuple(forward(op.to(device="cpu", dtype=torch.float32), *inputs).shape[1:])
