"""Maxima, sorting and reflections as affine maps and ReLUs, each comparison with one unknown slope; or maxima whole.

max(p, q) = q + r and min(p, q) = p - r with one r = relu(p - q). The two outputs of a comparator share r, so its gradient
uses one unknown slope s: (g_p, g_q) = (g_min, g_max) + s (d, -d) with d = g_max - g_min.
A reflection is x + 2 w relu(-w'x) / |w|^2.
Whole maxima are one operator of their terms, of which only those count that can be the largest (`propagation.selections`).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lipverify import ops
from lipverify.analyzers.lipsdp.comparators import sorting_network
from lipverify.analyzers.local.spelled import spelled
from lipverify.deadline import look
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Constant, Op, Shape
from lipverify.ops.convolution import flat_pads
from lipverify.ops.pooling import windows

MOST_TERMS = 25
"""Of a maximum that stays whole: pairs of terms are compared one by one."""


def elementary(graph: Graph, whole: bool = False, kept: tuple[type[Op], ...] = ()) -> Graph:
    """The selected output with maxima, minima, pooling, sorting and reflections written out as affine maps and ReLUs, and
    norms and soft maxima as in `spelled`; other nodes stay as they are.

    Names stay: a node that was written out gives its name to the last node of its replacement.

    Args:
        whole: maxima and minima of few terms stay one operator, of gathered entries where they are over windows or axes; a
            ReLU that alone reads a maximum is one more term of it, 0.
        kept: operators that the reader has rules for, and that stay as they are.
    """
    single = replace(graph, outputs=(graph.output.name,), output_index=0).pruned()
    writer = _Writer({node.name for node in single.nodes}, kept)
    for node in single.nodes:
        shapes = [single[name].shape for name in node.inputs]
        if whole and writer.keep(single, node):
            continue
        writer.write(node, shapes)
    return replace(single, nodes=tuple(writer.nodes))


class _Writer:
    def __init__(self, taken: set[str], kept: tuple[type[Op], ...]) -> None:
        self.nodes: list[Node] = []
        self.taken, self.kept = taken, kept
        self.source = ""

    def emit(self, op: Op, inputs: tuple[str, ...], shape: Shape, name: str | None = None) -> str:
        if name is None:
            name = f"{self.source}:{len(self.nodes)}"
            while name in self.taken:
                name += "'"
            self.taken.add(name)
        self.nodes.append(Node(name, op, inputs, shape, self.source))
        return name

    def keep(self, graph: Graph, node: Node) -> bool:
        """Writes a maximum or minimum as one operator, if it is one of few terms; a ReLU behind it together with it."""
        op = node.op
        if isinstance(op, ops.ReLU):
            behind = graph[node.inputs[0]]
            if not (
                isinstance(behind.op, ops.MaxPool | ops.ReduceMax | ops.Maximum)
                and self._joined(graph, behind)
            ):
                return False
            self._whole(graph, behind, node, zero=True)
            return True
        if not isinstance(op, ops.MaxPool | ops.ReduceMax | ops.ReduceMin | ops.Maximum | ops.Minimum):
            return False
        if _count(graph, node) > MOST_TERMS:
            return False
        if not self._joined(graph, node):
            self._whole(graph, node, node)
        return True

    def _whole(self, graph: Graph, node: Node, last: Node, zero: bool = False) -> None:
        """A maximum or minimum as one operator of gathered entries, with the name of `last`; zero: 0 is one more term."""
        self.source = last.name
        op, size = node.op, (node.size,)
        if isinstance(op, ops.Maximum | ops.Minimum):
            terms = [self.flat(name, node.size) for name in dict.fromkeys(node.inputs)]
        else:
            shape = graph[node.inputs[0]].shape
            source = self.flat(node.inputs[0], graph[node.inputs[0]].size)
            terms = [self.emit(ops.Gather(0, index), (source,), size) for index in _members(node, shape)]
        if zero:
            terms.append(self.emit(Constant(torch.zeros(size)), (), size))
        if len(terms) > 1:
            kind = ops.Minimum() if isinstance(op, ops.ReduceMin | ops.Minimum) else ops.Maximum()
            terms = [self.emit(kind, tuple(terms), size)]
        self.emit(ops.Reshape(node.shape), (terms[0],), node.shape, last.name)

    @staticmethod
    def _joined(graph: Graph, node: Node) -> bool:
        """Whether a maximum of few terms is read by one ReLU and nobody else."""
        readers = graph.consumers[node.name]
        return (
            isinstance(node.op, ops.MaxPool | ops.ReduceMax | ops.Maximum)
            and len(readers) == 1
            and isinstance(graph[readers[0]].op, ops.ReLU)
            and graph.output.name != node.name
            and _count(graph, node) <= MOST_TERMS
        )

    def write(self, node: Node, shapes: list[Shape]) -> None:
        look()
        self.source, op = node.name, node.op
        if isinstance(op, ops.Maximum | ops.Minimum):
            self._extremum(node)
        elif isinstance(op, ops.MaxPool | ops.ReduceMax | ops.ReduceMin):
            self._tournament(node, shapes[0])
        elif isinstance(op, ops.GroupSort):
            self._sort(node)
        elif isinstance(op, ops.Householder):
            self._reflect(node)
        elif isinstance(op, self.kept) or not spelled(node, shapes, self.emit):
            self.nodes.append(node)

    def excess(self, p: str, q: str, shape: Shape) -> str:
        """relu(p - q)."""
        return self.emit(ops.ReLU(), (self.emit(ops.Sub(), (p, q), shape),), shape)

    def higher(self, p: str, q: str, shape: Shape, name: str | None = None) -> str:
        return self.emit(ops.Add(), (q, self.excess(p, q, shape)), shape, name)

    def lower(self, p: str, q: str, shape: Shape, name: str | None = None) -> str:
        return self.emit(ops.Sub(), (p, self.excess(p, q, shape)), shape, name)

    def _extremum(self, node: Node) -> None:
        compare = self.higher if isinstance(node.op, ops.Maximum) else self.lower
        found = node.inputs[0]
        if len(node.inputs) == 1:
            self.emit(ops.Reshape(node.shape), (found,), node.shape, node.name)
        for index, other in enumerate(node.inputs[1:], start=2):
            found = compare(found, other, node.shape, node.name if index == len(node.inputs) else None)

    def flat(self, name: str, size: int) -> str:
        return self.emit(ops.Reshape((size,)), (name,), (size,))

    def picked(self, name: str, index: Tensor) -> str:
        count = len(index)
        first = int(index[0]) if count else 0
        if bool((index == torch.arange(first, first + count)).all()):
            # A part of what is there already, not a copy.
            return self.emit(ops.Slice(0, first, first + count), (name,), (count,))
        return self.emit(ops.Gather(0, index), (name,), (count,))

    def _tournament(self, node: Node, shape: Shape) -> None:
        """Rounds of comparators between the first and the second half of all members, for all results at once."""
        members = _members(node, shape)  # [places, results]
        compare = self.lower if isinstance(node.op, ops.ReduceMin) else self.higher
        source = self.flat(node.inputs[0], int(torch.tensor(shape).prod()) if shape else 1)
        current = self.picked(source, members.flatten())
        places, size = members.shape
        while places > 1:
            half, odd = places // 2, places % 2
            rows = torch.arange(places * size)
            p, q = (
                self.picked(current, rows[: half * size]),
                self.picked(current, rows[half * size : 2 * half * size]),
            )
            won = compare(p, q, (half * size,))
            if odd:
                rest = self.picked(current, rows[2 * half * size :])
                won = self.emit(ops.Concat(0), (won, rest), ((half + 1) * size,))
            current, places = won, half + odd
        self.emit(ops.Reshape(node.shape), (current,), node.shape, node.name)

    def _sort(self, node: Node) -> None:
        op = node.op
        assert isinstance(op, ops.GroupSort)
        index = torch.arange(node.size).reshape(node.shape).unflatten(op.axis, (-1, op.group))
        members = index.movedim(op.axis + 1, 0).reshape(op.group, -1)  # [place, groups]
        source, width = self.flat(node.inputs[0], node.size), (members.shape[1],)
        wires = [self.picked(source, members[place]) for place in range(op.group)]
        for stage in sorting_network(op.group):
            for i, j in stage:
                r = self.excess(wires[i], wires[j], width)
                wires[i], wires[j] = (
                    self.emit(ops.Sub(), (wires[i], r), width),
                    self.emit(ops.Add(), (wires[j], r), width),
                )
        if op.descending:
            wires.reverse()
        order = torch.empty(node.size, dtype=torch.int64)
        order[members.flatten()] = torch.arange(node.size)
        joined = self.emit(ops.Concat(0), tuple(wires), (node.size,))
        self.emit(ops.Reshape(node.shape), (self.picked(joined, order),), node.shape, node.name)

    def _reflect(self, node: Node) -> None:
        """The stored matrices round by a few units; bounds charge more than that for every product with them."""
        op = node.op
        assert isinstance(op, ops.Householder)
        vectors = op.vectors.to(torch.float64)
        groups, size = vectors.shape
        index = torch.arange(node.size).reshape(node.shape).movedim(op.axis, -1).reshape(-1, groups, size)
        repeats = len(index)
        spread = torch.zeros(node.size, repeats * groups, dtype=torch.float64, device=vectors.device)
        column = torch.arange(repeats * groups).reshape(repeats, groups, 1).expand_as(index)
        spread[index.flatten(), column.flatten()] = vectors.expand(repeats, groups, size).flatten()
        source = self.flat(node.inputs[0], node.size)
        along = self.emit(ops.Linear(-spread.T.contiguous()), (source,), (spread.shape[1],))
        r = self.emit(ops.ReLU(), (along,), (spread.shape[1],))
        back = 2.0 * spread / (vectors**2).sum(1).repeat(repeats)
        moved = self.emit(ops.Linear(back), (r,), (node.size,))
        self.emit(
            ops.Reshape(node.shape),
            (self.emit(ops.Add(), (source, moved), (node.size,)),),
            node.shape,
            node.name,
        )


def _count(graph: Graph, node: Node) -> int:
    """How many terms each result of a maximum or minimum has."""
    if isinstance(node.op, ops.Maximum | ops.Minimum):
        return len(node.inputs)
    return len(_members(node, graph[node.inputs[0]].shape))


def _members(node: Node, shape: Shape) -> Tensor:
    """Row-major positions of the entries each result is taken over: [places, results]."""
    op = node.op
    index = torch.arange(int(torch.tensor(shape).prod()) if shape else 1).reshape(shape)
    if isinstance(op, ops.MaxPool):
        padded = torch.nn.functional.pad(index.double()[None], flat_pads(op.padding), value=-1.0)
        held = windows(padded, op.kernel, op.stride, op.dilation)[0].flatten(-len(op.kernel)).to(torch.int64)
        # Where a window hangs over the border an entry of it is listed twice: the maximum stays the same.
        held = torch.where(held < 0, held.amax(-1, keepdim=True), held)
        return held.reshape(-1, held.shape[-1]).T
    assert isinstance(op, ops.ReduceMax | ops.ReduceMin)
    kept = [axis for axis in range(len(shape)) if axis not in op.axes]
    return index.permute(*op.axes, *kept).reshape(-1, node.size)
