"""Leaves out entries that the output does not read, as those of other tokens where a classifier reads one token alone.

Legend: need[node] says for every axis of a sample which positions are read, None for all. From the readers to what they read:
views move positions; entrywise operators, rows of a matrix product, of a softmax and of what mixes other axes keep them. A node
of which different positions are read by different readers keeps all of these. The rest computes what it computed before.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import overload

import torch
from torch import Tensor

from lipverify import ops
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Constant, Op, Shape
from lipverify.passes.rewriting import graph_device
from lipverify.rules import slopes

Need = tuple[tuple[int, ...] | None, ...]
"""For every axis the positions that are read, in order; None: all."""
_ENTRYWISE = (ops.Scale, ops.DivideBy, ops.Add, ops.Sub, ops.Mul, ops.Div)


def without_unread_entries(graph: Graph) -> Graph:
    """The selected output alone, of fewer entries on the way where it does not read all; the same nodes where it does."""
    graph = replace(graph, outputs=(graph.output.name,), output_index=0).pruned()
    kept: dict[str, Need] = {graph.output.name: _all(graph.output.shape)}
    asked: dict[str, tuple[Need, ...]] = {}
    for node in reversed(graph.nodes):
        shapes = tuple(graph[name].shape for name in node.inputs)
        kept[node.name] = _kept(node, shapes, kept.get(node.name, _all(node.shape)))
        asked[node.name] = _asked(node, shapes, kept[node.name])
        for name, part in zip(node.inputs, asked[node.name], strict=True):
            kept[name] = _union(kept[name], part) if name in kept else part
    if all(need == _all(graph[name].shape) for name, need in kept.items()):
        return graph
    return _Writer(graph, kept, asked).written()


def _all(shape: Shape) -> Need:
    return (None,) * len(shape)


def _union(first: Need, second: Need) -> Need:
    return tuple(
        None if a is None or b is None else tuple(sorted({*a, *b}))
        for a, b in zip(first, second, strict=True)
    )


def _kept(node: Node, shapes: tuple[Shape, ...], need: Need) -> Need:
    """What a node computes where these entries are read: all along axes that it mixes, and of operators not known here."""
    op, last = node.op, len(node.shape) - 1

    def all_along(*axes: int) -> Need:
        return tuple(None if axis in axes else part for axis, part in enumerate(need))

    match op:
        case Constant() | ops.Slice() | ops.Gather() | ops.Transpose():
            return need
        case ops.Reshape():
            (shape,) = shapes
            moved = all(
                part is None or _same_axis(shape, node.shape, i) is not None for i, part in enumerate(need)
            )
            return need if moved else _all(node.shape)
        case ops.Linear():
            return all_along(last)
        case ops.LayerNorm(shape=own) | ops.RMSNorm(shape=own):
            return all_along(*range(last + 1 - len(own), last + 1))
        case ops.BatchNorm(axis=axis) | ops.Softmax(axis=axis) | ops.MaskedSoftmax(axis=axis):
            return all_along(axis)
    known = isinstance(op, (*_ENTRYWISE, ops.MatMul)) or _scalar(op)
    return need if known and all(len(shape) == last + 1 for shape in shapes) else _all(node.shape)


def _asked(node: Node, shapes: tuple[Shape, ...], need: Need) -> tuple[Need, ...]:
    """What a node reads of each input for the entries that it keeps."""
    match node.op:
        case ops.Slice() | ops.Gather():
            return (_along(node.op, shapes[0], need),)
        case _ if need == _all(node.shape):
            return tuple(_all(shape) for shape in shapes)
        case ops.Transpose(order=order):
            return (tuple(need[order.index(axis)] for axis in range(len(order))),)
        case ops.Reshape():
            return (_through_reshape(shapes[0], node.shape, need),)
        case ops.MatMul():
            batch = tuple(_fitting(need, shape, node.shape)[:-2] for shape in shapes)
            return ((*batch[0], need[-2], None), (*batch[1], None, need[-1]))
    return tuple(_fitting(need, shape, node.shape) for shape in shapes)


def _scalar(op: Op) -> bool:
    """Whether it is one function of every entry, without numbers for each."""
    return slopes.covers(type(op)) and not any(isinstance(value, Tensor) for value in vars(op).values())


def _fitting(need: Need, shape: Shape, whole: Shape) -> Need:
    """Of an operand that may be stretched along some axes, and may be longer along those of which all is kept."""
    return tuple(part if have == size else None for part, have, size in zip(need, shape, whole, strict=True))


def _along(op: Op, shape: Shape, need: Need) -> Need:
    """Positions of the input of a slice or gather, in order and each once; None along its axis for all."""
    axis, taken = _taken(op, shape)
    own = need[axis]
    read = taken if own is None else tuple(taken[i] for i in own)
    found = tuple(sorted(set(read)))
    return (*need[:axis], None if len(found) == shape[axis] else found, *need[axis + 1 :])


def _taken(op: Op, shape: Shape) -> tuple[int, tuple[int, ...]]:
    assert isinstance(op, ops.Slice | ops.Gather)
    positions = torch.arange(shape[op.axis])
    if isinstance(op, ops.Slice):
        return op.axis, tuple(positions[op.start : op.stop : op.step].tolist())
    return op.axis, tuple(positions[op.indices.cpu()].flatten().tolist())


def _same_axis(have: Shape, want: Shape, axis: int) -> int | None:
    """The axis of `have` that axis `axis` of `want` is, in a reshape of one to the other."""
    before = math.prod(want[:axis])
    for other, size in enumerate(have):
        if size == want[axis] and math.prod(have[:other]) == before:
            return other
    return None


def _through_reshape(have: Shape, want: Shape, need: Need) -> Need:
    found: list[tuple[int, ...] | None] = [None] * len(have)
    for axis, part in enumerate(need):
        other = None if part is None else _same_axis(have, want, axis)
        if other is not None:
            found[other] = part
    return tuple(found)


class _Writer:
    """The graph again, with the entries that are kept of every node."""

    def __init__(self, graph: Graph, kept: dict[str, Need], asked: dict[str, tuple[Need, ...]]) -> None:
        self.graph, self.kept, self.asked = graph, kept, asked
        self.device = graph_device(graph)
        self.nodes: list[Node] = []
        self.names = {node.name for node in graph.nodes}

    def written(self) -> Graph:
        for node in self.graph.nodes:
            need = self.kept[node.name]
            inputs = tuple(
                self._view(node, name, part)
                for name, part in zip(node.inputs, self.asked[node.name], strict=True)
            )
            shape = _shape(node.shape, need)
            self.nodes.append(Node(node.name, self._op(node, need, shape), inputs, shape, node.source))
        return replace(self.graph, nodes=tuple(self.nodes))

    def _view(self, reader: Node, name: str, part: Need) -> str:
        """A node with exactly these entries of `name`, of which more may be kept."""
        whole = self.graph[name].shape
        shape = _shape(whole, self.kept[name])
        for axis, (own, have) in enumerate(zip(part, self.kept[name], strict=True)):
            if own == have:
                continue
            assert own is not None  # what is kept holds what is asked
            op = self._taking(axis, own, have, whole[axis])
            shape = (*shape[:axis], len(own), *shape[axis + 1 :])
            unique = f"{reader.name}:read"
            while unique in self.names:
                unique += "'"
            self.names.add(unique)
            self.nodes.append(Node(unique, op, (name,), shape, reader.source))
            name = unique
        return name

    def _taking(self, axis: int, asked: tuple[int, ...], have: tuple[int, ...] | None, size: int) -> Op:
        """Takes the positions that are asked from those that are kept; a slice, which copies nothing, of neighbours."""
        places = {position: i for i, position in enumerate(range(size) if have is None else have)}
        index = [places[position] for position in asked]
        if index and index == list(range(index[0], index[0] + len(index))):
            return ops.Slice(axis, index[0], index[0] + len(index))
        return ops.Gather(axis, torch.tensor(index, device=self.device))

    def _op(self, node: Node, need: Need, shape: Shape) -> Op:
        """The operator for the entries that are kept."""
        op = node.op
        match op:
            case ops.Slice() | ops.Gather():
                axis, taken = _taken(op, self.graph[node.inputs[0]].shape)
                read = taken if need[axis] is None else tuple(taken[i] for i in need[axis] or ())
                (part,) = self.asked[node.name]
                size = self.graph[node.inputs[0]].shape[axis]
                return self._taking(axis, read, part[axis], size)
            case ops.Reshape():
                return ops.Reshape(shape)
            case ops.MaskedSoftmax(axis=axis, kept=kept):
                return ops.MaskedSoftmax(axis, _read(kept.expand(node.shape), need))
            case Constant(value=value):
                return Constant(_read(value, need))
            case ops.Scale(scale=scale, shift=shift):
                return ops.Scale(_read(scale, need), _read(shift, need))
            case ops.DivideBy(divisor=divisor):
                return ops.DivideBy(_read(divisor, need))
        return op


def _shape(shape: Shape, need: Need) -> Shape:
    return tuple(size if part is None else len(part) for size, part in zip(shape, need, strict=True))


@overload
def _read(value: Tensor, need: Need) -> Tensor: ...
@overload
def _read(value: None, need: Need) -> None: ...
def _read(value: Tensor | None, need: Need) -> Tensor | None:
    """What is read of a tensor that may be stretched along axes of size 1, or lack some in front."""
    if value is None:
        return None
    for axis, part in enumerate(need, value.ndim - len(need)):
        if axis >= 0 and part is not None and value.shape[axis] > 1:
            value = value.index_select(axis, torch.tensor(part, device=value.device))
    return value
