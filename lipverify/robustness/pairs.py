"""Differences of two outputs: the network of all of them at once, and their values at a point with rounding accounted for."""

from __future__ import annotations

import torch
from torch import Tensor

from lipverify.errors import UnsupportedModel
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph
from lipverify.ir.graphs import one_row
from lipverify.ir.interval import Interval
from lipverify.ops import Linear, Reshape
from lipverify.propagation.points import values


def classes(graph: Graph) -> int:
    """How many classes the network tells apart.

    Raises:
        UnsupportedModel: fewer than two outputs, there is no label to keep; or a label for each of several positions.
    """
    count = graph.output.size
    if count < 2:
        raise UnsupportedModel(
            f"a label needs at least two outputs; {graph.output.describe()} is a single number, choose another --output"
        )
    if not one_row(graph):
        raise UnsupportedModel(
            f"{graph.output.describe()} holds several labels, and a radius is about one; export one position of it as the "
            "output, [classes]"
        )
    return count


def flat(graph: Graph) -> Graph:
    """The network with its outputs in one row."""
    if len(graph.output_shape) == 1:
        return graph
    size = graph.output.size
    return graph.append(Reshape((size,)), (size,), "flatten")


def rivals(graph: Graph, label: int) -> tuple[int, ...]:
    """All classes but one."""
    return tuple(j for j in range(graph.output.size) if j != label)


def differences(graph: Graph, label: int) -> Graph:
    """The network with outputs f_label - f_j for every rival j, in the order of `rivals`."""
    graph = flat(graph)
    others = rivals(graph, label)
    rows = torch.zeros(len(others), graph.output.size, dtype=graph.dtype)
    rows[:, label] = 1.0
    rows[torch.arange(len(others)), torch.tensor(others)] = -1.0
    return graph.append(Linear(rows, None), (len(others),), "margins")


def predict(graph: Graph, x: Tensor) -> int:
    """The class with the largest output for one sample [*input shape], evaluated in float64."""
    return int(evaluate(graph.to(dtype=torch.float64), x[None].double()).flatten().argmax())


def enclosed(graph: Graph, x: Tensor) -> Interval:
    """The outputs of a network at one stored point [*input shape], every rounding accounted for: [outputs].

    Raises:
        UnsupportedModel: a node without an interval rule.
    """
    box = values(graph, x[None], enough=1e-9)
    return Interval(box.lower.flatten(), box.upper.flatten())
