"""From a graph to the one form that LipSDP solves: affine maps between blocks of scalar neurons with slopes in [0, 1].

Every value of the graph is followed as an affine function of the input and of all neurons so far (constants do not matter for
differences and are dropped). A scalar activation with slopes in [a, b] is a v + (b - a) w with one neuron w of slope [0, 1];
neurons with a = b need none. Maxima and sorting are comparators with one neuron each: r = relu(p - q), max = q + r,
min = p - r. That is tighter than two ReLUs a pair, and for pairs as tight as the constraints of Pauli et al. (ICLR 2024) with all
multipliers free (design comparison in `docs/math.md`). A product of two values with known ranges is two neurons:
p q - p' q' = q (p - p') + p' (q - q').

Source of the encoding: Fazlyab et al. 2019 (arXiv 1906.04893) for slopes; the comparator identities are elementary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lipverify import memory, ops
from lipverify.analyzers.lipsdp.comparators import sorting_network, tournament
from lipverify.analyzers.lipsdp.neurons import INPUT, Canonical, Layer, Signal, add, stacked
from lipverify.analyzers.lipsdp.system import BlockSystem, LoopedSystem
from lipverify.errors import UnsupportedModel
from lipverify.ir.graph import Graph, Node
from lipverify.ir.interval import Interval
from lipverify.ir.op import Constant, Input, Op, Shape
from lipverify.ops.implicit import response, slope_range
from lipverify.ops.pooling import windows
from lipverify.propagation import bounded_slopes, everywhere
from lipverify.rules import Slopes, Unbounded, interval, linear, naming, slopes

MAX_BYTES = 12 << 30
"""Systems whose dense matrices need more are refused with the size they need."""

Encoder = Callable[["Canonical", Node, list[Signal], list[Node]], Signal]


def canonical_form(
    graph: Graph, boxes: Mapping[str, Interval] | None = None, device: torch.device | None = None
) -> BlockSystem:
    """The block system of a graph's selected output.

    Args:
        boxes: range of every node's value for one centre of a region ([1, *shape]); slopes are then those over the region.

    Raises:
        UnsupportedModel: a node has no such form (softmax, products of computed values, ...), or the matrices are too large.
    """
    refuse_loops(graph)
    return looped_form(graph, boxes, device).causal


def looped_form(
    graph: Graph, boxes: Mapping[str, Interval] | None = None, device: torch.device | None = None
) -> LoopedSystem:
    """As `canonical_form`, for graphs with implicit layers too."""
    refuse_unencodable(graph)
    refuse_too_large(graph)
    return _assembled(*_followed(graph, boxes, device or torch.device("cpu")))


def layers_of_neurons(graph: Graph, boxes: Mapping[str, Interval] | None) -> list[Layer]:
    """The layers of scalar neurons of the form, with their slopes over a ball or (None) everywhere."""
    form = _followed(graph, boxes, torch.device("cpu"))[0]
    return [Layer(size, free, *ends) for (size, free), ends in zip(form.free, form.slopes, strict=True)]


def _followed(
    graph: Graph, boxes: Mapping[str, Interval] | None, device: torch.device
) -> tuple[Canonical, Signal, Graph]:
    """The neurons of a graph, its output as a signal of them, and the graph they are those of."""
    graph, boxes = commuted(graph, boxes)
    form = Canonical(device)
    # Factors of products have to have a range, and arguments of functions without slopes on the whole line; that of other
    # values does not matter where slopes are those everywhere.
    factors = everywhere(graph) if boxes is None and graph.has(ops.Mul) else {}
    steep = bounded_slopes(graph, factors or None) if boxes is None else {}
    signals: dict[str, Signal] = {}
    waiting = {name: len(users) for name, users in graph.consumers.items()}
    for node in graph.nodes:
        sources = [graph[name] for name in node.inputs]
        read = [signals[name] for name in node.inputs]
        if factors and isinstance(node.op, ops.Mul):
            read = [_within(form, x, factors[name]) for x, name in zip(read, node.inputs, strict=True)]
        signal = _encode(form, node, read, sources, steep.get(node.name))
        if boxes is not None and node.name in boxes:
            signal = _within(form, signal, boxes[node.name])
        signals[node.name] = signal
        for name in node.inputs:
            waiting[name] -= 1
            if waiting[name] == 0 and name != graph.output.name:
                del signals[name]
    return form, signals[graph.output.name], graph


def scalar_neurons(graph: Graph) -> int:
    """How many neurons the scalar functions of the form have at least, everywhere, without a matrix of it: comparisons of maxima
    and sorts come on top."""
    moved, _ = commuted(graph, None)
    count, steep = 0, bounded_slopes(moved)
    for node in moved.nodes:
        kind = type(node.op)
        if slopes.covers(kind) and kind not in ENCODERS and not linear.covers(kind):
            shape = moved[node.inputs[0]].shape
            found = steep.get(node.name) or slopes(node.op, None, shape)
            count += int((found.upper > found.lower).expand(1, *shape).sum())
    return count


def _within(form: Canonical, signal: Signal, box: Interval) -> Signal:
    """The signal with its range; box: [1, *shape]."""
    return replace(signal, box=(box.lower.flatten().to(form.device), box.upper.flatten().to(form.device)))


def available() -> int:
    """Bytes that dense matrices may take: what is free, and never more than `MAX_BYTES`."""
    return min(MAX_BYTES, memory.free())


def encodable(node: Node) -> bool:
    """Whether the node has a canonical form."""
    kind = type(node.op)
    return (
        isinstance(node.op, Input | Constant)
        or kind in ENCODERS
        or linear.covers(kind)
        or slopes.covers(kind)
    )


def refuse_unencodable(graph: Graph) -> None:
    """Raises UnsupportedModel naming the first nodes without a canonical form, or without finite slopes."""
    missing = [node.describe() for node in graph.nodes if not encodable(node)]
    if missing:
        raise UnsupportedModel(f"no form as neurons with bounded slopes for {', '.join(missing[:3])}")


def refuse_unbounded(graph: Graph) -> None:
    """Raises UnsupportedModel naming the first product with a factor that is not bounded over all inputs."""
    if not graph.has(ops.Mul):
        return
    ranges = everywhere(graph)
    for node in graph.nodes:
        for name in node.inputs if isinstance(node.op, ops.Mul) else ():
            if not bool((ranges[name].lower.isfinite() & ranges[name].upper.isfinite()).all()):
                raise UnsupportedModel(
                    f"{node.describe()}: its factor {graph[name].describe()} is not bounded over all inputs, so its slope in "
                    "the other one has no bound; give a region around points (--data FILE --radius R)"
                )


def refuse_loops(graph: Graph) -> None:
    """Raises UnsupportedModel naming the first implicit layer: its neurons feed themselves."""
    for node in graph.nodes:
        if isinstance(node.op, ops.Implicit):
            raise UnsupportedModel(f"{node.describe()} feeds its own neurons; use the analyzer lipsdp-cvxpy")


def refuse_too_large(graph: Graph) -> None:
    """Raises UnsupportedModel with the size that dense matrices between neighbouring blocks would need."""
    widths = [node.size for node in graph.nodes if not linear.covers(type(node.op))]
    needed = 8 * sum(
        3 * a * a + 2 * a * b for a, b in zip(widths, [*widths[1:], graph.output.size], strict=True)
    )
    if needed > available():
        raise UnsupportedModel(
            f"LipSDP needs about {needed / 2**30:.0f} GiB of dense matrices for layers of up to {max(widths)} neurons; "
            f"{available() / 2**30:.1f} GiB are available: give a larger --memory, or ask product; over all inputs lipsdp "
            "needs less where a network can be cut into pieces"
        )


def commuted(
    graph: Graph, boxes: Mapping[str, Interval] | None
) -> tuple[Graph, Mapping[str, Interval] | None]:
    """ReLU behind max pooling instead of before it: the same function with fewer neurons (both are monotone)."""
    by_name = {node.name: node for node in graph.nodes}
    ranges = dict(boxes or {})
    for pool in graph.nodes:
        relu = by_name[pool.inputs[0]] if isinstance(pool.op, ops.MaxPool) else pool
        if not isinstance(relu.op, ops.ReLU) or relu is pool:
            continue
        if len(graph.consumers[relu.name]) == 1 and relu.name not in graph.outputs:
            # The names stay with the places: consumers of the pool now read the ReLU that stands there.
            by_name[relu.name] = Node(relu.name, pool.op, relu.inputs, pool.shape, pool.source)
            by_name[pool.name] = Node(pool.name, relu.op, (relu.name,), pool.shape, relu.source)
            if relu.inputs[0] in ranges:
                ranges[relu.name] = interval(pool.op, ranges[relu.inputs[0]])
    moved = replace(graph, nodes=tuple(by_name[node.name] for node in graph.nodes))
    return moved, None if boxes is None else ranges


def _encode(
    form: Canonical, node: Node, inputs: list[Signal], sources: list[Node], steep: Slopes | None = None
) -> Signal:
    """steep: slopes of a scalar function that are known otherwise."""
    if isinstance(node.op, Input):
        return Signal({INPUT: form.eye(node.size)}, node.size)
    if isinstance(node.op, Constant):
        value = node.op.value.double().flatten().to(form.device)
        return Signal({}, node.size, (value, value))
    encoder = ENCODERS.get(type(node.op))
    if encoder is not None:
        return encoder(form, node, inputs, sources)
    if linear.covers(type(node.op)):
        return affine_signal(node, inputs, sources)
    return _scalar(form, node, inputs[0], sources[0], steep)


def affine_signal(node: Node, inputs: list[Signal], sources: list[Node]) -> Signal:
    """The linear part applied to every column of every source."""
    if len(sources) == 1 and isinstance(sources[0].op, Input):
        whole = _of_the_input(node, sources[0])
        return Signal({INPUT: whole.to(inputs[0].parts[INPUT].device)}, node.size)
    keys = {key for signal in inputs for key in signal.parts}
    parts = {}
    for key in keys:
        width = next(s.parts[key].shape[1] for s in inputs if key in s.parts)
        arguments = []
        for signal, source in zip(inputs, sources, strict=True):
            matrix = signal.parts.get(key)
            if matrix is None:
                template = next(s.parts[key] for s in inputs if key in s.parts)
                arguments.append(template.new_zeros(width, *source.shape))
            else:
                arguments.append(matrix.T.reshape(width, *source.shape))
        op = node.op.to(dtype=torch.float64, device=arguments[0].device)
        parts[key] = linear(op, *arguments).reshape(width, -1).T.contiguous()
    return Signal(parts, node.size)


_FIRST: WeakKeyDictionary[Op, dict[tuple[Shape, Shape], Tensor]] = WeakKeyDictionary()
"""Matrices of operators that read the input, by both shapes (one operator may stand in graphs of different images): the
costliest of a form, and the same for every region and output."""


def _of_the_input(node: Node, source: Node) -> Tensor:
    """The matrix of an affine operator that reads the input itself, [node size, input size]. Not to be changed in place."""
    known = _FIRST.setdefault(node.op, {})
    matrix = known.get((source.shape, node.shape))
    if matrix is None:
        unit = torch.eye(source.size, dtype=torch.float64).reshape(source.size, *source.shape)
        op = node.op.to(dtype=torch.float64, device=torch.device("cpu"))
        matrix = linear(op, unit).reshape(source.size, -1).T.contiguous()
        known[source.shape, node.shape] = matrix
    return matrix


def _scalar(form: Canonical, node: Node, v: Signal, source: Node, found: Slopes | None) -> Signal:
    if found is None:
        box = None
        if v.box is not None:
            box = Interval(v.box[0].reshape(1, *source.shape), v.box[1].reshape(1, *source.shape))
        op = node.op.to(dtype=torch.float64, device=form.device)
        with naming(node):
            found = slopes(op, box, source.shape)
    low, high = (end.expand(1, *source.shape).flatten().to(form.device) for end in (found.lower, found.upper))
    return form.sloped(v, low.double(), high.double(), node.name)


def _sort(form: Canonical, node: Node, inputs: list[Signal], sources: list[Node]) -> Signal:
    op = node.op
    assert isinstance(op, ops.GroupSort)
    index = (
        torch.arange(node.size)
        .reshape(node.shape)
        .unflatten(op.axis, (-1, op.group))
        .movedim(op.axis + 1, -1)
    )
    members = index.reshape(-1, op.group)
    wires = [inputs[0].rows(members[:, place]) for place in range(op.group)]
    for stage in sorting_network(op.group):
        low, high = [i for i, _ in stage], [j for _, j in stage]
        p, q = stacked([wires[i] for i in low]), stacked([wires[j] for j in high])
        top, bottom = form.compare(p, q, node.name)
        for place, (i, j) in enumerate(stage):
            rows = torch.arange(place * len(members), (place + 1) * len(members))
            wires[i], wires[j] = bottom.rows(rows), top.rows(rows)
    if op.descending:
        wires.reverse()
    order = torch.empty(node.size, dtype=torch.int64)
    order[members.T.reshape(-1)] = torch.arange(node.size)
    return stacked(wires).rows(order)


def _product(form: Canonical, node: Node, inputs: list[Signal], sources: list[Node]) -> Signal:
    if any(signal.box is None for signal in inputs):
        raise UnsupportedModel(f"{node.describe()} has a factor of which no range is known")
    return form.product(inputs[0], inputs[1], node.name)


def _householder(form: Canonical, node: Node, inputs: list[Signal], sources: list[Node]) -> Signal:
    """x + 2 w relu(-w'x) / |w|^2 on every group."""
    op = node.op
    assert isinstance(op, ops.Householder)
    vectors = op.vectors.to(form.device, torch.float64)
    unit = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    index = torch.arange(node.size).reshape(node.shape).movedim(op.axis, -1).reshape(-1, vectors.numel())
    repeats = len(index)
    spread = torch.zeros(node.size, repeats * len(vectors), dtype=torch.float64, device=form.device)
    groups = index.reshape(repeats, *vectors.shape)
    for repeat in range(repeats):
        for group in range(len(vectors)):
            spread[groups[repeat, group], repeat * len(vectors) + group] = unit[group]
    x = replace(inputs[0], box=None)
    along = Signal({key: -(spread.T @ matrix) for key, matrix in x.parts.items()}, spread.shape[1])
    r = form.neurons(along, node.name)
    return add(x, Signal({key: 2 * spread @ matrix for key, matrix in r.parts.items()}, x.size))


def _implicit(form: Canonical, node: Node, inputs: list[Signal], sources: list[Node]) -> Signal:
    """z = s w, w = phi(v) / s with slopes in [0, 1], v = s W w + U x: a block that feeds itself.

    The proof of a unique z is not needed for the bound, but without one there is no function to bound.
    """
    op = node.op.to(dtype=torch.float64, device=form.device)
    assert isinstance(op, ops.Implicit)
    if len(node.shape) != 1:
        raise UnsupportedModel(f"{node.describe()} has a form for single vectors only; flatten its input")
    try:
        response(op)
    except Unbounded as error:
        raise UnsupportedModel(f"{node.describe()}: {error}") from None
    low, high = slope_range(op)
    if low < 0.0:
        raise UnsupportedModel(
            f"{node.describe()} has an activation with negative slopes; only slopes from 0 have a form here"
        )
    key = len(form.blocks)
    parts = {source: op.inputs @ matrix for source, matrix in inputs[0].parts.items()}
    w = form.neurons(Signal({**parts, key: high * op.recurrent}, node.size), node.name)
    return w.scaled(torch.full((node.size,), high, dtype=torch.float64, device=form.device))


def _max_pool(form: Canonical, node: Node, inputs: list[Signal], sources: list[Node]) -> Signal:
    op = node.op
    assert isinstance(op, ops.MaxPool)
    shape = sources[0].shape
    index = torch.arange(math.prod(shape), dtype=torch.float64).reshape(1, *shape)
    padded = torch.nn.functional.pad(index, ops.convolution.flat_pads(op.padding), value=-1)
    members = (
        windows(padded, op.kernel, op.stride, op.dilation).flatten(-len(op.kernel)).reshape(node.size, -1)
    )
    return tournament(form, inputs[0], members.to(torch.int64), node.name)


def _reduce_max(form: Canonical, node: Node, inputs: list[Signal], sources: list[Node]) -> Signal:
    return tournament(form, inputs[0], _members(node, sources[0]), node.name)


def _reduce_min(form: Canonical, node: Node, inputs: list[Signal], sources: list[Node]) -> Signal:
    return _negated(tournament(form, _negated(inputs[0]), _members(node, sources[0]), node.name))


def _members(node: Node, source: Node) -> Tensor:
    """For every entry of a reduction the entries it is taken over: [size, count]."""
    assert isinstance(node.op, ops.ReduceMax | ops.ReduceMin)
    index = torch.arange(source.size).reshape(source.shape)
    kept = [axis for axis in range(len(source.shape)) if axis not in node.op.axes]
    return index.permute(*kept, *node.op.axes).reshape(node.size, -1)


def _maximum(form: Canonical, node: Node, inputs: list[Signal], sources: list[Node]) -> Signal:
    result = inputs[0]
    for other in inputs[1:]:
        result = form.compare(result, other, node.name)[0]
    return result


def _minimum(form: Canonical, node: Node, inputs: list[Signal], sources: list[Node]) -> Signal:
    result = inputs[0]
    for other in inputs[1:]:
        result = form.compare(result, other, node.name)[1]
    return result


def _negated(v: Signal) -> Signal:
    box = None if v.box is None else (-v.box[1], -v.box[0])
    return Signal({key: -matrix for key, matrix in v.parts.items()}, v.size, box)


ENCODERS: dict[type, Encoder] = {
    ops.GroupSort: _sort,
    ops.Householder: _householder,
    ops.Implicit: _implicit,
    ops.MaxPool: _max_pool,
    ops.Mul: _product,
    ops.ReduceMax: _reduce_max,
    ops.ReduceMin: _reduce_min,
    ops.Maximum: _maximum,
    ops.Minimum: _minimum,
}


def _assembled(form: Canonical, output: Signal, graph: Graph) -> LoopedSystem:
    U, C, loops = {}, {}, {}
    for k, block in enumerate(form.blocks):
        for key, matrix in block.parts.items():
            if not bool(matrix.any()):
                continue
            if key == INPUT:
                U[k] = matrix
            elif key == k:
                loops[k] = matrix
            else:
                C[k, key] = matrix
    V = {key: matrix for key, matrix in output.parts.items() if key != INPUT and bool(matrix.any())}
    causal = BlockSystem(
        inputs=graph.input.size,
        outputs=output.size,
        sizes=tuple(block.size for block in form.blocks),
        U=U,
        C=C,
        V=V,
        V0=output.parts.get(INPUT),
        names=tuple(form.names),
    )
    return LoopedSystem(causal, loops)
