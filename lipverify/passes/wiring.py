"""Where every entry of a chain of views comes from, as exact integers.

A view moves, copies or drops entries. Running its own forward rule on the positions instead of the values gives the map.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from lipverify import ops
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Op, Shape
from lipverify.rules import forward

_VIEWS = (
    ops.Reshape,
    ops.Transpose,
    ops.Slice,
    ops.Gather,
    ops.Concat,
    ops.Expand,
    ops.Upsample,
    ops.DepthToSpace,
)


def is_view(node: Node) -> bool:
    """Whether every entry of the result is an entry of an input."""
    return type(node.op) in _VIEWS or (isinstance(node.op, ops.Pad) and node.op.mode != "constant")


class Wiring:
    """Numbers all entries of the nodes that are not views, and follows those numbers through the views."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._ids: dict[str, Tensor] = {}
        self._starts: list[int] = []
        self._owners: list[Node] = []
        self._end = 0

    def ids(self, name: str) -> Tensor:
        """For every entry of a node the number of the computed entry it copies: int64, the node's sample shape."""
        waiting = [name]
        while waiting:
            node = self._graph[waiting[-1]]
            missing = [below for below in node.inputs if below not in self._ids] if is_view(node) else []
            if missing:
                waiting.extend(missing)
                continue
            waiting.pop()
            if node.name not in self._ids:
                self._ids[node.name] = self._follow(node)
        return self._ids[name]

    def owners(self, ids: Tensor) -> list[Node]:
        """The nodes whose entries have these numbers."""
        return [self._owners[i] for i in self._owner_positions(ids).unique().tolist()]

    def local(self, ids: Tensor) -> Tensor:
        """Row-major positions within the owning nodes."""
        return ids - torch.tensor(self._starts)[self._owner_positions(ids)]

    def start(self, node: Node) -> int:
        """Number of the first entry of a node that is not a view."""
        return self._starts[self._owners.index(node)]

    def _owner_positions(self, ids: Tensor) -> Tensor:
        return torch.bucketize(ids, torch.tensor(self._starts), right=True) - 1

    def _follow(self, node: Node) -> Tensor:
        if is_view(node):
            op = node.op.to(device="cpu")
            return forward(op, *(self._ids[below].unsqueeze(0) for below in node.inputs)).squeeze(0)
        self._starts.append(self._end)
        self._owners.append(node)
        self._end += node.size
        return torch.arange(self._starts[-1], self._end).reshape(node.shape)


def view_ops(have: Shape, want: Shape, index: Tensor) -> list[Op]:
    """The fewest operators we know that copy the entries `index` (row-major positions) of a `have` tensor to a `want` tensor."""
    flat = index.flatten()
    total = math.prod(have)
    if flat.numel() == total and torch.equal(flat, torch.arange(total)):
        return _reshape(have, want)
    positions = torch.arange(total).reshape(have)
    if flat.numel() == total and len(have) <= 4:
        for order in itertools.permutations(range(len(have))):
            if torch.equal(positions.permute(order).flatten(), flat):
                return [ops.Transpose(order), *_reshape(tuple(have[axis] for axis in order), want)]
    for axis, size in enumerate(have):
        before, after = math.prod(have[:axis]), math.prod(have[axis + 1 :])
        if before * after == 0 or flat.numel() % (before * after):
            continue
        taken = (flat.reshape(before, -1, after)[0, :, 0] // after) % size
        if torch.equal(positions.index_select(axis, taken).flatten(), flat):
            gathered = (*have[:axis], taken.numel(), *have[axis + 1 :])
            return [ops.Gather(axis, taken), *_reshape(gathered, want)]
    return [*_reshape(have, (total,)), ops.Gather(0, flat), *_reshape((flat.numel(),), want)]


def _reshape(have: Shape, want: Shape) -> list[Op]:
    return [] if have == want else [ops.Reshape(want)]
