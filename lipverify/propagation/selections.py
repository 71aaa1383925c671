"""Which terms of a maximum can be the largest, over a ball: by their ranges, and by linear bounds of differences of two terms.

A term that another one exceeds everywhere can be left out: the maximum of the others is the same function. What is left makes its
planes, and says which derivatives it can have: the gradient of one of these terms, or a convex combination of theirs.
Source: Clarke, Optimization and Nonsmooth Analysis, proposition 2.3.12, for the gradients of a maximum.

Legend: possible [terms, count, *shape]: whether a term is kept, for each centre and entry of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lipverify import ops
from lipverify.errors import InternalError
from lipverify.ir.graph import Graph, Node
from lipverify.ir.interval import Interval
from lipverify.ir.op import Constant, Input
from lipverify.propagation.functionals import Functionals
from lipverify.propagation.knowledge import Knowledge

WORK = 1e9
"""Numbers that the differences of one maximum's terms may take for each centre; pairs beyond are told apart by ranges alone."""


def selects(node: Node) -> bool:
    """Whether the node is the largest or the smallest of its inputs, entry by entry."""
    return isinstance(node.op, ops.Maximum | ops.Minimum)


def by_ranges(graph: Graph, node: Node, boxes: list[Interval]) -> Tensor:
    """The terms of a maximum or minimum that no other one exceeds by its range alone.

    A term that is never above an earlier one is left out as well: in a circle of such terms some would be strictly smaller.
    """
    lower, upper = (torch.stack(ends) for ends in zip(*((b.lower, b.upper) for b in boxes), strict=True))
    if isinstance(node.op, ops.Minimum):
        lower, upper = -upper, -lower
    possible = torch.ones_like(lower, dtype=torch.bool)
    for i in range(len(lower)):
        for j in range(len(lower)):
            if i == j:
                continue
            possible[i] &= (upper[i] > lower[j]) if j < i else (upper[i] >= lower[j])
            if j < i:
                possible[i] &= ~_same(graph, node.inputs[i], node.inputs[j], lower[0])
    return possible


def _same(graph: Graph, first: str, second: str, like: Tensor) -> Tensor:
    """Where two terms are the same entry of the same node, as where a window hangs over the border: [count, *shape]."""
    if first == second:
        return torch.ones_like(like, dtype=torch.bool)
    ends = graph[first], graph[second]
    gathers = [node.op for node in ends if isinstance(node.op, ops.Gather) and len(node.shape) == 1]
    if len(gathers) < 2 or ends[0].inputs != ends[1].inputs:
        return torch.zeros_like(like, dtype=torch.bool)
    one, other = (op.indices.to(like.device) for op in gathers)
    return (one == other).expand_as(like)


def weights(possible: Tensor) -> tuple[Interval, ...]:
    """How much of the derivative goes to every term: 1 for the only one, from 0 to 1 for one of several, 0 for the others."""
    alone = possible & (possible.sum(0) == 1)
    return tuple(Interval(low.double(), high.double()) for low, high in zip(alone, possible, strict=True))


def compared(known: Knowledge, node: Node, memory: int, expired: Callable[[], bool]) -> Tensor:
    """The terms of a maximum or minimum that can be the largest or smallest; ranges of its inputs have to be known.

    Statement: a term is left out only where its difference to another one is strictly negative over the whole ball, or as in
        `by_ranges`.

    Raises:
        InternalError: no term is left, although the ball holds inputs.
    """
    graph = known.graph
    possible = by_ranges(graph, node, [known.ranges[name] for name in node.inputs])
    flat = possible.flatten(2)
    before = graph.nodes[: [n.name for n in graph.nodes].index(node.name)]
    widest, total = max(n.size for n in before), sum(n.size for n in before)
    chunk = max(1, memory // (2 * 8 * 6 * widest))
    left = int(WORK * known.count / (2 * total))
    names, sign = node.inputs, -1.0 if isinstance(node.op, ops.Minimum) else 1.0
    computed = [k for k, name in enumerate(names) if not isinstance(graph[name].op, Constant)]
    for i in computed:
        for j in computed:
            if j >= i or names[i] == names[j]:
                continue
            rows = torch.nonzero(flat[i] & flat[j])[: max(left, 0)]
            left -= len(rows)
            for some in rows.split(chunk) if len(rows) else ():
                if expired():
                    break
                owner, entry = some.T
                one = flat.new_zeros(len(some), node.size, dtype=torch.float64)
                one[torch.arange(len(some), device=one.device), entry] = sign
                first = one.reshape(-1, *node.shape)
                low, high = _difference(known, before, {names[i]: first, names[j]: -first}, owner)
                flat[i, owner, entry] &= ~(high < 0)
                flat[j, owner, entry] &= ~(low > 0)
    none = ~possible.any(0)
    if bool(none.any()):
        if known.empty is None:
            raise InternalError("every term of a maximum was found to be smaller than another one")
        known.empty |= none.flatten(1).any(1)
        possible |= none
    return possible


def _difference(
    known: Knowledge, before: tuple[Node, ...], start: Mapping[str, Tensor], owner: Tensor
) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds of a functional of some nodes: [rows] each."""
    walk = Functionals.start(known, dict(start), owner)
    walk.mirror()
    for step in reversed(before):
        if not isinstance(step.op, Input):
            walk.step(step)
    return walk.ends()
