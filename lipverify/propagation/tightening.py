"""Linear bounds of the values that operators which are not affine read: which ones, and how far they are pushed back."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable

import torch
from torch import Tensor

from lipverify import ops
from lipverify.errors import InternalError, UnsupportedModel
from lipverify.ir.graph import Graph, Node
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Constant, Input
from lipverify.ops.change import undecided
from lipverify.ops.curves import curve
from lipverify.propagation.functionals import Functionals, ends_of
from lipverify.propagation.knowledge import Knowledge, is_affine
from lipverify.propagation.searched import searched_upper
from lipverify.rules import slopes

TRIED = 16
"""Entries of a node that are bounded first, to see whether linear bounds tell anything new."""
NARROWER = 2.0**-10
"""Of a range: what counts as narrower."""
CLOSE, SPACED = 16, 8
"""Operators on the way back up to which each one is asked what it already gives, and how many lie between questions behind."""
_ENTRYWISE = (ops.Scale, ops.BatchNorm, ops.DivideBy, ops.Reshape, ops.Transpose)
"""Affine operators whose entries depend on one entry each, and on another one each: interval arithmetic loses nothing."""
_COPIES = (ops.Slice, ops.Gather, ops.Pad, ops.Upsample, ops.DepthToSpace, ops.Expand, ops.Concat)


def targets(graph: Graph, norm: Norm, strips: Container[str] = ()) -> set[str]:
    """Nodes worth a backward pass: affine ones (or with strips), loose so far, that a non-affine operator (or nobody) reads.

    Interval arithmetic is exact on a box while entries do not meet: through entrywise maps, and through one sum of
    independent entries. It is loose behind a second sum, and behind any sum over an l2 ball.
    """
    independent, loose, chosen = set[str](), set[str](), set[str]()
    for node in graph.nodes:
        if isinstance(node.op, Input):
            independent.update({node.name} if norm is Norm.LINF else ())
        elif node.name in strips:
            loose.add(node.name)
        elif isinstance(node.op, Constant) or not is_affine(node):
            continue
        elif isinstance(node.op, _ENTRYWISE):
            independent.update({node.name} if node.inputs[0] in independent else ())
            loose.update({node.name} if node.inputs[0] in loose else ())
        elif isinstance(node.op, _COPIES):
            loose.update({node.name} if any(name in loose for name in node.inputs) else ())
        elif not (len(node.inputs) == 1 and node.inputs[0] in independent):
            loose.add(node.name)
        readers = [graph[name] for name in graph.consumers[node.name]]
        read = not readers or node.name == graph.output.name or any(not is_affine(r) for r in readers)
        if read and node.name in loose:
            chosen.add(node.name)
            loose.discard(node.name)
    return chosen


def tightened(
    known: Knowledge, node: Node, memory: int, expired: Callable[[], bool], *, tried: bool = False
) -> Interval:
    """The node's range intersected with linear bounds of the entries that need it.

    tried: of a few of them first, and of the others only where those became narrower.
    """
    box = known.ranges[node.name]
    lower, upper = box.lower.clone().flatten(1), box.upper.clone().flatten(1)
    rows = torch.nonzero(_unsettled(known, node, lower, upper))
    before = _until(known, node)
    if tried and len(rows) > 4 * TRIED:
        some = rows[:: len(rows) // TRIED]
        _push(known, node, before, some, lower, upper)
        if not bool(_narrower(box, lower, upper).any()):
            return box
    chunk = max(1, memory // (2 * 8 * 6 * max(n.size for n in known.graph.nodes)))
    for part in rows.split(chunk) if len(rows) else ():
        if expired():
            break
        _push(known, node, before, part, lower, upper)
    shape = (known.count, *node.shape)
    return Interval(lower.reshape(shape), upper.reshape(shape))


def narrows(known: Knowledge, nodes: Iterable[Node], expired: Callable[[], bool]) -> bool:
    """Whether linear bounds of a few entries of these nodes say more than their ranges do."""
    for node in nodes:
        if expired():
            break
        box = known.ranges[node.name]
        lower, upper = box.lower.clone().flatten(1), box.upper.clone().flatten(1)
        rows = torch.nonzero(_unsettled(known, node, lower, upper))
        if len(rows) == 0:
            continue
        _push(known, node, _until(known, node), rows[:: -(-len(rows) // TRIED)], lower, upper)
        if bool(_narrower(box, lower, upper).any()):
            return True
    return False


def _until(known: Knowledge, node: Node) -> tuple[Node, ...]:
    """The nodes up to this one."""
    return known.graph.nodes[: [n.name for n in known.graph.nodes].index(node.name) + 1]


def _narrower(box: Interval, lower: Tensor, upper: Tensor) -> Tensor:
    """Entries [count, size] whose range became narrower by more than rounding does."""
    before = (box.upper - box.lower).flatten(1)
    return (upper - lower) < (1.0 - NARROWER) * before


def _push(
    known: Knowledge, node: Node, before: tuple[Node, ...], rows: Tensor, lower: Tensor, upper: Tensor
) -> None:
    """Bounds of the entries `rows` [n, 2] (centre, entry), from both sides, written into lower and upper.

    At non-affine nodes on the way the ranges of the frontier already give a bound: what it settles goes no further.
    """
    owner, entry = rows[:, 0], rows[:, 1]
    curved, passed = _curved(known, node), 0
    start = lower.new_zeros(len(rows), node.size, dtype=known.precision.dtype)
    start[torch.arange(len(rows), device=rows.device), entry] = 1.0
    walk = Functionals.start(known, {node.name: start.reshape(-1, *node.shape)}, owner)
    for step in reversed(before):
        if step.name not in walk.coefficients or isinstance(step.op, Input):
            continue
        # Without a plane both sides are the same functional: a constant only adds to it, as an affine node does.
        if is_affine(step) or isinstance(step.op, Constant):
            walk.step(step)
            continue
        if not walk.mirrored:
            walk.mirror()
        walk.step(step)
        if step.name == node.name:
            continue
        passed += 1
        if passed > CLOSE and passed % SPACED:
            continue
        _write(known, walk.ends(), owner, entry, lower, upper)
        if curved:
            continue
        open_rows = _unsettled(known, node, lower, upper)[owner, entry]
        if int(open_rows.sum()) < 0.9 * len(owner):
            walk.keep(open_rows)
            owner, entry = owner[open_rows], entry[open_rows]
            if len(owner) == 0:
                return
    if not walk.mirrored:
        walk.mirror()
    _write(known, walk.ends(), owner, entry, lower, upper)


def searched(known: Knowledge, node: Node, memory: int, expired: Callable[[], bool]) -> Interval:
    """The node's range intersected with bounds by searched planes, for the entries whose range still matters."""
    box = known.ranges[node.name]
    lower, upper = box.lower.clone().flatten(1), box.upper.clone().flatten(1)
    rows = torch.nonzero(_unsettled(known, node, lower, upper))
    before = _until(known, node)
    # Both signs; slopes, their moments and gradients, and the coefficients kept for differentiation.
    chunk = max(1, memory // (2 * 8 * 12 * sum(n.size for n in before)))
    for some in rows.split(chunk) if len(rows) else ():
        if expired():
            break
        owner, entry = some.T
        place = torch.arange(len(some), device=rows.device)
        start = lower.new_zeros(2 * len(some), node.size)
        start[2 * place, entry], start[2 * place + 1, entry] = 1.0, -1.0
        found = searched_upper(
            known, node, start.reshape(-1, *node.shape), owner.repeat_interleave(2), before
        )
        _write(known, ends_of(found), owner, entry, lower, upper)
    shape = (known.count, *node.shape)
    return Interval(lower.reshape(shape), upper.reshape(shape))


def _write(
    known: Knowledge, found: tuple[Tensor, Tensor], owner: Tensor, entry: Tensor, lower: Tensor, upper: Tensor
) -> None:
    """Intersects with found: lower and upper bounds of the entries, [n] each.

    Where the ends cross the part of the ball is empty, and the entry stays as it was.
    """
    if not found[0].shape == found[1].shape == owner.shape:
        raise InternalError(f"{len(owner)} entries have bounds of shape {list(found[0].shape)}")
    low = torch.maximum(lower[owner, entry], found[0])
    high = torch.minimum(upper[owner, entry], found[1])
    if known.empty is not None:
        apart = low > high
        known.empty[owner[apart]] = True
        high, low = (
            torch.where(apart, upper[owner, entry], high),
            torch.where(apart, lower[owner, entry], low),
        )
    upper[owner, entry], lower[owner, entry] = high, low


def _unsettled(known: Knowledge, node: Node, lower: Tensor, upper: Tensor) -> Tensor:
    """Entries [count, size] whose range matters: those where some reader is not yet affine on the range."""
    readers = [known.graph[name] for name in known.graph.consumers[node.name]]
    everything = torch.ones_like(lower, dtype=torch.bool)
    if node.name == known.graph.output.name or not readers:
        return everything
    needed = torch.zeros_like(everything)
    box = Interval(lower.reshape(-1, *node.shape), upper.reshape(-1, *node.shape))
    for reader in readers:
        if is_affine(reader):
            continue
        found = _wanted(known, reader, node.name, box)
        if found is None:
            return everything
        needed |= found.expand(box.lower.shape).flatten(1)
    return needed


def _curved(known: Knowledge, node: Node) -> bool:
    """Whether a smooth activation reads the node: that is settled at single points and far out only, and asking takes longest."""
    return any(curve.covers(type(known.graph[name].op)) for name in known.graph.consumers[node.name])


def _wanted(known: Knowledge, reader: Node, name: str, box: Interval) -> Tensor | None:
    """Entries of an input `name` with this box that a node which is not affine can still use: None for all of them."""
    op = reader.op
    if isinstance(op, ops.Same):  # it hands the value on
        if reader.name == known.graph.output.name:
            return None
        nodes = [known.graph[each] for each in known.graph.consumers[reader.name]]
        parts = [_wanted(known, each, reader.name, box) for each in nodes]
        if not parts or any(part is None for part in parts):
            return None
        return torch.stack([part.expand(box.lower.shape) for part in parts if part is not None]).any(0)
    if isinstance(op, ops.Maximum):
        # What another term exceeds everywhere is never the maximum, however small it is.
        others = [known.ranges.get(each) for each in reader.inputs if each != name]
        exceeded = [box.upper < other.lower for other in others if other is not None]
        return ~torch.stack([part.expand(box.lower.shape) for part in exceeded]).any(0) if exceeded else None
    try:
        if isinstance(op, ops.Change) and len(reader.inputs) == 3 and slopes.covers(type(op.of)):
            place = reader.inputs.index(name)
            if place > 0:
                return undecided(op, box, box)
            ends = [known.ranges.get(each) for each in reader.inputs[1:]]
            return None if ends[0] is None or ends[1] is None else undecided(op, ends[0], ends[1])
        if not slopes.covers(type(op)):
            return None
        found = slopes(op, box, known.graph[name].shape)
    except UnsupportedModel:
        return None
    return found.lower < found.upper
