"""Recognises pairs that are sorted: MaxMin and GroupSort in any spelling by maxima, minima and views.

A tensor whose entries are the maximum and the minimum of disjoint pairs of entries of one source, each exactly once, is a
permutation of that source with sorted pairs. Where the entries come from is compared as integers, so every wiring that is
such a permutation is found, and nothing else is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify import ops
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Op, Shape
from lipverify.passes.rewriting import Draft, Replacement, substitute
from lipverify.passes.wiring import Wiring, is_view, view_ops
from lipverify.rules import forward

_LARGEST, _SMALLEST = (ops.Maximum, ops.ReduceMax), (ops.Minimum, ops.ReduceMin)


@dataclass(frozen=True)
class _Pairs:
    """A tensor of shape `shape` that holds the minimum of source entries (low[k], high[k]) at its position at_min[k], and
    their maximum at at_max[k]. All [pairs], row-major positions, low ascending."""

    source: Node
    shape: Shape
    low: Tensor
    high: Tensor
    at_min: Tensor
    at_max: Tensor


def recognize_sorting(graph: Graph) -> Graph:
    """MaxMin as GroupSort; GroupSort between views on the shape of the layer it follows."""
    found: dict[str, Replacement] = {}
    wiring = Wiring(graph)
    # 1: holds entries of a maximum, 2: of a minimum, through views alone. A tensor below a recognised one is a view of that.
    holds: dict[str, int] = {}
    for node in graph.nodes:
        holds[node.name] = 0
        if isinstance(node.op, ops.GroupSort):
            moved = _before_views(graph, node, node.op)
            if moved is not None:
                found[node.name] = moved
        elif isinstance(node.op, _LARGEST) and _pair_ids(graph, wiring, node) is not None:
            holds[node.name] = 1
        elif isinstance(node.op, _SMALLEST) and _pair_ids(graph, wiring, node) is not None:
            holds[node.name] = 2
        elif is_view(node):
            for name in node.inputs:
                holds[node.name] |= holds[name]
            if holds[node.name] == 3 and (pairs := _pairs(graph, wiring, node)) is not None:
                found[node.name] = _sorted(graph, node, pairs)
                holds[node.name] = 0
    return substitute(graph, found)


def _pair_ids(graph: Graph, wiring: Wiring, node: Node) -> tuple[Tensor, Tensor] | None:
    """The two entries that every entry of a maximum or minimum chooses from, [size] each; None if they are not two."""
    if isinstance(node.op, ops.Maximum | ops.Minimum):
        if len(node.inputs) != 2:
            return None
        first, second = (wiring.ids(name).flatten() for name in node.inputs)
    else:
        assert isinstance(node.op, ops.ReduceMax | ops.ReduceMin)
        shape, axes = graph[node.inputs[0]].shape, node.op.axes
        if math.prod(shape[axis] for axis in axes) != 2:
            return None
        first, second = wiring.ids(node.inputs[0]).movedim(axes, tuple(range(len(axes)))).reshape(2, -1)
    return torch.minimum(first, second), torch.maximum(first, second)


def _pairs(graph: Graph, wiring: Wiring, node: Node) -> _Pairs | None:
    """The pairs whose extremes the node holds, each once as minimum and once as maximum; None if it is anything else."""
    ids = wiring.ids(node.name).flatten()
    low, high = torch.empty_like(ids), torch.empty_like(ids)
    largest = torch.empty_like(ids, dtype=torch.bool)
    if ids.numel() == 0 or ids.numel() % 2:
        return None
    for owner in wiring.owners(ids):
        if not isinstance(owner.op, _LARGEST + _SMALLEST):
            return None
        chosen = _pair_ids(graph, wiring, owner)
        if chosen is None:
            return None
        start = wiring.start(owner)
        here = (ids >= start) & (ids < start + owner.size)
        low[here], high[here] = (side[ids[here] - start] for side in chosen)
        largest[here] = isinstance(owner.op, _LARGEST)
    sources = wiring.owners(torch.cat((low, high)))
    if len(sources) != 1:
        return None
    low, high = wiring.local(low), wiring.local(high)
    # Sorted by pair, the minimum first: positions [pairs, 2].
    order = ((low * sources[0].size + high) * 2 + largest).argsort()
    at = order.reshape(-1, 2)
    same = bool((low[at[:, 0]] == low[at[:, 1]]).all() and (high[at[:, 0]] == high[at[:, 1]]).all())
    low, high, largest = low[at[:, 0]], high[at[:, 0]], largest[at]
    once = torch.cat((low, high)).unique().numel() == 2 * low.numel()
    if not (same and once and not bool(largest[:, 0].any()) and bool(largest[:, 1].all())):
        return None
    return _Pairs(sources[0], node.shape, low, high, at[:, 0], at[:, 1])


def _sorted(graph: Graph, node: Node, pairs: _Pairs) -> Replacement:
    """GroupSort with views around it in place of a node that holds sorted pairs."""
    before, shape, axis = _arrangement(pairs)
    positions = torch.arange(pairs.source.size).reshape(1, *pairs.source.shape)
    for op in before:
        positions = forward(op, positions)
    where = torch.empty(pairs.source.size, dtype=torch.int64)
    where[positions.flatten()] = torch.arange(positions.numel())
    ends = torch.stack((where[pairs.low], where[pairs.high])).sort(dim=0).values
    choices: list[list[Op]] = []
    for descending in (False, True):
        index = torch.empty(2 * len(pairs.low), dtype=torch.int64)
        index[pairs.at_min], index[pairs.at_max] = ends[int(descending)], ends[int(not descending)]
        sort = ops.GroupSort(2, axis, descending)
        choices.append([sort, *view_ops(shape, pairs.shape, index)])
        if shape != pairs.source.shape and math.prod(shape) == pairs.source.size:
            back = ops.Reshape(pairs.source.shape)
            choices.append([sort, back, *view_ops(pairs.source.shape, pairs.shape, index)])
    draft = Draft(graph, node)
    chain = [*before, *min(choices, key=len)]
    return draft.finish(draft.chain(chain, pairs.source.name))


def _arrangement(pairs: _Pairs) -> tuple[list[Op], Shape, int]:
    """Views that bring every pair side by side along one axis; the shape they give; that axis."""
    have, size = pairs.source.shape, pairs.source.size
    step = int(pairs.high[0] - pairs.low[0])
    strided = (pairs.high - pairs.low == step) & (pairs.low // step % 2 == 0)
    if 2 * len(pairs.low) == size and bool(strided.all()):
        for shape in (have, pairs.shape):
            axis = group_axis(shape, 2, step)
            if axis is not None:
                return ([] if shape == have else [ops.Reshape(shape)]), shape, axis
        shape = (size // step, step) if step > 1 else (size,)
        return [ops.Reshape(shape)], shape, 0
    for axis, length in enumerate(have):
        after = math.prod(have[axis + 1 :])
        first = (pairs.low < length * after) & (pairs.low % after == 0)
        order = torch.stack((pairs.low[first] // after, pairs.high[first] // after), dim=1).flatten()
        if len(order) * size != 2 * len(pairs.low) * length or bool((order >= length).any()):
            continue
        taken = torch.arange(size).reshape(have).index_select(axis, order).movedim(axis, -1).reshape(-1, 2)
        wanted = torch.stack((pairs.low, pairs.high), dim=1)
        if torch.equal(taken[taken[:, 0].argsort()], wanted):
            return [ops.Gather(axis, order)], (*have[:axis], len(order), *have[axis + 1 :]), axis
    order = torch.stack((pairs.low, pairs.high), dim=1).flatten()
    flatten: list[Op] = [] if len(have) == 1 else [ops.Reshape((size,))]
    return [*flatten, ops.Gather(0, order)], (len(order),), 0


def group_axis(shape: Shape, group: int, step: int) -> int | None:
    """The axis along which runs of `group` entries are `step` apart in row-major order, if it divides into such runs."""
    for axis, size in enumerate(shape):
        if size and size % group == 0 and math.prod(shape[axis + 1 :]) == step:
            return axis
    return None


def _before_views(graph: Graph, node: Node, op: ops.GroupSort) -> Replacement | None:
    """Reshape or Transpose, then GroupSort: the same groups sorted first, if they lie along one axis there too."""
    view = graph[node.inputs[0]]
    if isinstance(view.op, ops.Transpose):
        axis: int | None = view.op.order[op.axis]
    elif isinstance(view.op, ops.Reshape):
        axis = group_axis(graph[view.inputs[0]].shape, op.group, math.prod(view.shape[op.axis + 1 :]))
    else:
        return None
    if axis is None:
        return None
    draft = Draft(graph, node)
    chain = [ops.GroupSort(op.group, axis, op.descending), view.op]
    return draft.finish(draft.chain(chain, view.inputs[0]))
