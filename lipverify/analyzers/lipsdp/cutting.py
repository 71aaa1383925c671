"""Where a network may be cut: values that every path from input to output crosses, and what LipSDP would need between two."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from lipverify import ops
from lipverify.analyzers.lipsdp.canonical import commuted
from lipverify.analyzers.lipsdp.comparators import sorting_network
from lipverify.analyzers.lipsdp.factor import filled
from lipverify.analyzers.lipsdp.neurons import INPUT
from lipverify.analyzers.lipsdp.solver import estimate_of_shapes
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Constant, Input
from lipverify.rules import Unbounded, linear, naming, slopes


@dataclass(frozen=True)
class Need:
    """Bytes that LipSDP needs on a graph, and multiplications of one step of its search; rough, from shapes alone."""

    bytes: float
    work: float
    neurons: int


def cut_points(graph: Graph) -> list[Node]:
    """Values that every path from the input to the output crosses, in order, without those inside a run of affine layers.

    Source: in topological order, a value is crossed by all paths exactly when no earlier value that depends on the input is
    read after it.
    """
    place = {node.name: index for index, node in enumerate(graph.nodes)}
    dependent = _dependent(graph)
    furthest = -1
    found = []
    for index, node in enumerate(graph.nodes):
        if node.name not in dependent:
            continue
        if furthest <= index and not isinstance(node.op, Input) and node.name != graph.output.name:
            found.append(node)
        furthest = max([furthest, *(place[user] for user in graph.consumers[node.name])])
    return [node for node in found if not _inside_run(graph, node)]


def _dependent(graph: Graph) -> set[str]:
    found: set[str] = set()
    for node in graph.nodes:
        if isinstance(node.op, Input) or any(name in found for name in node.inputs):
            found.add(node.name)
    return found


def _inside_run(graph: Graph, node: Node) -> bool:
    """Affine, and read by one node alone that is affine or an activation: the cut behind that one is as good or better."""
    users = [graph[name] for name in graph.consumers[node.name]]
    return (
        linear.covers(type(node.op))
        and len(users) == 1
        and (linear.covers(type(users[0].op)) or contracts(users[0]))
    )


def contracts(node: Node) -> bool:
    """Whether the node works on entries or groups of one value: cutting there, it can stand alone between two pieces."""
    return slopes.covers(type(node.op)) or isinstance(node.op, ops.GroupSort | ops.Householder)


def between(graph: Graph, first: Node, last: Node) -> Graph:
    """The piece of the graph that computes `last` from `first`, a value all paths to `last` cross; names stay."""
    place = {node.name: index for index, node in enumerate(graph.nodes)}
    dependent = _dependent(graph)
    nodes = [Node(first.name, Input(), (), first.shape, first.source)]
    nodes += [
        node
        for node in graph.nodes
        if place[node.name] <= place[last.name]
        and (node.name not in dependent or place[node.name] > place[first.name])
    ]
    return Graph(tuple(nodes), (last.name,)).pruned()


def need(graph: Graph) -> Need:
    """What LipSDP needs on a graph whose nodes all have a form as neurons: `solver.estimate` for dense blocks."""
    shapes = _shapes(commuted(graph, None)[0])
    sizes, inputs, outputs = shapes.sizes, shapes.inputs, shapes.outputs
    given = sum(float(sizes[k]) * (inputs if key == INPUT else sizes[key]) for k, key in shapes.couplings)
    given += sum(float(outputs) * sizes[key] for key in shapes.read if key != INPUT)
    held, work = estimate_of_shapes(sizes, _later(shapes), inputs, outputs, given)
    return Need(held + shapes.largest, work, sum(sizes))


@dataclass(frozen=True)
class _Shapes:
    """A block system without numbers."""

    inputs: int
    outputs: int
    sizes: tuple[int, ...]
    couplings: tuple[tuple[int, int], ...]
    """(block, what it reads: an earlier block or INPUT)"""
    read: frozenset[int]
    """What the output reads."""
    largest: float
    """Bytes of the largest value while the system is being assembled."""


def _later(shapes: _Shapes) -> tuple[tuple[int, ...], ...]:
    """As `fill_pattern`: blocks are neighbours when one reads the other, or both read the input (dense: all its entries)."""
    driven = [k for k, key in shapes.couplings if key == INPUT]
    inner = [(k, key) for k, key in shapes.couplings if key != INPUT]
    return filled(len(shapes.sizes), (*inner, *itertools.combinations(driven, 2)))


def _shapes(graph: Graph) -> _Shapes:
    sizes: list[int] = []
    couplings: list[tuple[int, int]] = []
    keys: dict[str, frozenset[int]] = {}
    largest = 0.0
    for node in graph.nodes:
        sources: frozenset[int] = frozenset().union(*(keys[name] for name in node.inputs))
        if isinstance(node.op, Input):
            keys[node.name] = frozenset({INPUT})
        elif isinstance(node.op, Constant):
            keys[node.name] = frozenset()
        elif linear.covers(type(node.op)):
            keys[node.name] = sources
        else:
            passed = sources if _passes(node, graph) else frozenset()
            for size in _blocks(node, graph):
                couplings += [(len(sizes), key) for key in sources]
                passed = passed | {len(sizes)}
                sources = sources | {len(sizes)}
                sizes.append(size)
            keys[node.name] = passed
        width = sum(graph.input.size if key == INPUT else sizes[key] for key in keys[node.name])
        largest = max(largest, 16.0 * node.size * width)
    return _Shapes(
        graph.input.size,
        graph.output.size,
        tuple(sizes),
        tuple(dict.fromkeys(couplings)),
        keys[graph.output.name],
        largest,
    )


def _passes(node: Node, graph: Graph) -> bool:
    """Whether the node's value also depends on its sources directly, beside its neurons."""
    if not slopes.covers(type(node.op)):
        return True
    with naming(node):
        try:
            found = slopes(node.op.to(dtype=torch.float64), None, graph[node.inputs[0]].shape)
        except Unbounded:
            return True  # if it has slopes at all, then by what its argument can be
    return bool((found.lower != 0).any())


def _blocks(node: Node, graph: Graph) -> Iterable[int]:
    """Neurons of a node, block by block."""
    op = node.op
    if isinstance(op, ops.GroupSort):
        return [len(stage) * (node.size // op.group) for stage in sorting_network(op.group)]
    if isinstance(op, ops.Householder):
        return [node.size // op.vectors.shape[1]]
    if isinstance(op, ops.MaxPool):
        return _rounds(math.prod(op.kernel), node.size)
    if isinstance(op, ops.ReduceMax | ops.ReduceMin):
        return _rounds(graph[node.inputs[0]].size // max(node.size, 1), node.size)
    if isinstance(op, ops.Maximum | ops.Minimum):
        return [node.size] * (len(node.inputs) - 1)
    return [node.size]


def _rounds(count: int, size: int) -> list[int]:
    """Comparisons of a tournament, round by round."""
    rounds = []
    while count > 1:
        rounds.append(size * (count // 2))
        count -= count // 2
    return rounds
