"""From a graph to neurons on tori: blocks of channels that convolutions couple, and a dense part behind them.

Statement: let every slope range contain 0. A zero-padded convolution followed by such activations is a circular convolution
on a
    torus on which nothing wraps around into the window, followed by the activations inside the window and slope 0 outside.
    Slope 0 is an allowed slope, so a LipSDP bound of the circular network bounds the zero-padded one.
What a convolution reads outside the window has to be 0: behind an activation it is. Elsewhere (a convolution of a sum, say)
a block of neurons that keeps the window and takes the rest stands between: identity inside, slope 0 outside, slopes in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lipverify import ops
from lipverify.analyzers.affine_runs import Run, absolute, run_matrix
from lipverify.analyzers.lipsdp.canonical import canonical_form, commuted
from lipverify.analyzers.lipsdp.cutting import between
from lipverify.analyzers.lipsdp.system import BlockSystem
from lipverify.errors import UnsupportedModel
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Op
from lipverify.linalg.rounding import gamma
from lipverify.rules import linear, slopes

Pair = tuple[int, int]
"""One number for each of two axes; networks over one axis have a second one of size 1."""
INPUT = 0
"""The block that is the input; neurons are blocks from 1 on."""


class Kernel(NamedTuple):
    """y[q] = sum_k weight[k] x[stride q + dilation k - before] on a torus. weight: [out, in, taps, taps], float64.

    rounded: roundings behind an entry of `weight`.
    """

    weight: Tensor
    stride: Pair
    dilation: Pair
    before: Pair
    rounded: int = 0


Path = tuple[Kernel, ...]
"""Kernels from a block to a value, the first one first."""


@dataclass(frozen=True)
class Signal:
    """A value over positions: the sum over blocks and paths. `inside`: it is 0 outside its window of `size` positions.

    scale: how many positions of the input one position stands for.
    """

    parts: Mapping[int, tuple[Path, ...]]
    channels: int
    size: Pair
    scale: Pair
    inside: bool


@dataclass(frozen=True)
class Block:
    """Neurons with slopes in [0, 1] in the window, 0 outside. reads: what they are applied to; name: of their node."""

    reads: Signal
    name: str


class Reading(NamedTuple):
    """Positions first..last of a window of `size`, at a scale: a torus must keep them apart from the window's other side."""

    scale: Pair
    size: Pair
    first: Pair
    last: Pair


@dataclass(frozen=True)
class Form:
    """Blocks in order, block 0 the input; the last value over positions; the matrix of the affine run behind it, and what
    follows.

    rows: [m, channels * positions] of the window, None where the output is a value over positions; dense: from these m
    numbers to the output, None where they are the output. spread: what every entry of `rows` is, roughly, the sum of in
    absolute values."""

    blocks: tuple[Block, ...]
    last: Signal
    torus: Mapping[Pair, Pair]
    """Points of the torus of every scale, for each axis."""
    rows: Tensor | None = None
    rows_error: float = 0.0
    """Entries of `rows` are within this of the real ones."""
    dense: BlockSystem | None = None
    behind: tuple[str, str] | None = None
    """The nodes that the matrix `rows` goes from and to; None where there is none."""

    @property
    def coarsest(self) -> Pair:
        """The largest scale of each axis."""
        return _largest(self.torus)

    def points(self, scale: Pair) -> Pair:
        """Points of the torus at a scale."""
        return self.torus[scale]


def _largest(scales: Mapping[Pair, object] | Sequence[Pair]) -> Pair:
    found = list(scales)
    return max(s[0] for s in found), max(s[1] for s in found)


@dataclass
class _Compiler:
    """Signals by node while a graph is walked."""

    blocks: list[Block] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    signals: dict[str, Signal] = field(default_factory=dict)

    def neurons(self, reads: Signal, low: Tensor, high: Tensor, name: str) -> Signal:
        """phi(v) with slopes in [low, high] for each channel, 0 in between: low v + (high - low) w."""
        key = len(self.blocks)
        self.blocks.append(Block(reads, name))
        span = torch.where(low == 0, high, torch.nextafter(high - low, torch.full_like(low, math.inf)))
        parts: dict[int, tuple[Path, ...]] = {key: (_diagonal(span),)}
        if bool(low.any()):
            kept = _diagonal(low)
            parts |= {k: tuple((*path, *kept) for path in paths) for k, paths in reads.parts.items()}
        return Signal(parts, reads.channels, reads.size, reads.scale, True)

    def convolved(self, x: Signal, kernel: Kernel, size: Pair, name: str) -> Signal:
        """A kernel applied to a value, which is cut to its window before, where the kernel looks outside."""
        taps = kernel.weight.shape[2:]
        first = tuple(-b for b in kernel.before)
        geometry = zip(kernel.stride, size, kernel.dilation, taps, kernel.before, strict=True)
        last = tuple(s * (n - 1) + d * (t - 1) - b for s, n, d, t, b in geometry)
        outside = any(f < 0 or e >= n for f, e, n in zip(first, last, x.size, strict=True))
        if outside and not x.inside:
            zero = torch.zeros(x.channels, dtype=torch.float64)
            x = self.neurons(x, zero, zero + 1, f"{name} (window)")
        self.readings.append(Reading(x.scale, x.size, (first[0], first[1]), (last[0], last[1])))
        parts = {key: tuple(_behind(path, kernel) for path in paths) for key, paths in x.parts.items()}
        scale = x.scale[0] * kernel.stride[0], x.scale[1] * kernel.stride[1]
        return Signal(parts, kernel.weight.shape[0], size, scale, False)

    def largest(self, wires: list[Signal], name: str) -> Signal:
        """The maximum of values, by comparisons q + relu(p - q)."""
        while len(wires) > 1:
            pairs = zip(wires[0::2], wires[1::2], strict=False)
            won = []
            for p, q in pairs:
                zero = torch.zeros(p.channels, dtype=torch.float64)
                r = self.neurons(_sum(p, _negated(q)), zero, zero + 1, name)
                won.append(replace(_sum(q, r), inside=p.inside and q.inside))
            wires = won + (wires[-1:] if len(wires) % 2 else [])
        return wires[0]


def _diagonal(values: Tensor) -> Path:
    if bool((values == 1).all()):
        return ()
    return (Kernel(torch.diag(values)[:, :, None, None], (1, 1), (1, 1), (0, 0)),)


def _pointwise(kernel: Kernel) -> bool:
    return kernel.weight.shape[2:] == (1, 1) and kernel.stride == (1, 1) and kernel.before == (0, 0)


def _scaling(kernel: Kernel) -> bool:
    """Whether every channel is multiplied by a number of its own."""
    matrix = kernel.weight[:, :, 0, 0]
    return (
        _pointwise(kernel)
        and matrix.shape[0] == matrix.shape[1]
        and torch.equal(matrix, torch.diag(matrix.diagonal()))
    )


def _behind(path: Path, kernel: Kernel) -> Path:
    """A path with one more kernel; scalings of channels are multiplied into their neighbours."""
    if path and _scaling(kernel):
        last = path[-1]
        weight = last.weight * kernel.weight[:, :, 0, 0].diagonal()[:, None, None, None]
        return (*path[:-1], last._replace(weight=weight, rounded=last.rounded + kernel.rounded + 1))
    if path and _scaling(path[-1]):
        first = path[-1]
        weight = kernel.weight * first.weight[:, :, 0, 0].diagonal()[None, :, None, None]
        return (*path[:-1], kernel._replace(weight=weight, rounded=first.rounded + kernel.rounded + 1))
    return (*path, kernel)


def _sum(*signals: Signal) -> Signal:
    parts: dict[int, tuple[Path, ...]] = {}
    for signal in signals:
        for key, paths in signal.parts.items():
            parts[key] = (*parts.get(key, ()), *paths)
    return replace(signals[0], parts=parts, inside=all(s.inside for s in signals))


def _negated(x: Signal) -> Signal:
    minus = Kernel(-torch.eye(x.channels, dtype=torch.float64)[:, :, None, None], (1, 1), (1, 1), (0, 0))
    return replace(
        x, parts={k: tuple(_behind(path, minus) for path in paths) for k, paths in x.parts.items()}
    )


# -- a graph


def form_of(graph: Graph) -> Form:
    """The form of the graph's selected output.

    Raises:
        UnsupportedModel: no positions at the input, a node without a form over positions, or parts that do not follow one
        another.
    """
    graph = commuted(graph.pruned(), None)[0]
    entry = _entry(graph)
    walk, place = _Compiler(), {node.name: k for k, node in enumerate(graph.nodes)}
    first_dense: Node | None = None
    for node in graph.nodes:
        if place[node.name] < place[entry.name]:
            continue
        if node is entry:
            shape = _size(node)
            walk.blocks.append(Block(Signal({}, node.shape[0], shape, (1, 1), True), node.name))
            walk.signals[node.name] = Signal({INPUT: ((),)}, node.shape[0], shape, (1, 1), True)
            continue
        step = _STEPS.get(type(node.op), _scalar if slopes.covers(type(node.op)) else None)
        known = all(name in walk.signals for name in node.inputs)
        if not known or step is None or not _spatial(node, entry, graph):
            first_dense = first_dense or node
            continue
        walk.signals[node.name] = step(walk, node, [walk.signals[name] for name in node.inputs], graph)
    if first_dense is None:
        return _closed(walk, walk.signals[graph.output.name])
    source = graph[first_dense.inputs[0]]
    run = _run(graph, source)
    behind = [node for node in graph.nodes if place[node.name] > place[run[-1].name] or node in run]
    names = (
        {m.name for m in behind} | walk.signals.keys() | {n.name for n in graph.nodes[: place[entry.name]]}
    )
    if any(n.name not in names for n in graph.nodes) or any(
        name in walk.signals and node is not run[0] for node in behind for name in node.inputs
    ):
        raise UnsupportedModel(
            f"{first_dense.describe()} has no form over frequencies, and is not all that follows"
        )
    rows, error = _rows(run, source)
    dense = (
        None if run[-1].name == graph.output.name else canonical_form(between(graph, run[-1], graph.output))
    )
    return replace(_closed(walk, walk.signals[source.name]), rows=rows, rows_error=error, dense=dense,
                   behind=(source.name, run[-1].name))  # fmt: skip


def _entry(graph: Graph) -> Node:
    """The input, or where it has been put into the shape of channels and positions: numbers only change places until then."""
    node = graph.input
    while len(node.shape) not in (2, 3) or isinstance(
        _only_reader(graph, node).op, ops.Reshape | ops.Transpose
    ):
        node = _only_reader(graph, node)
        if not isinstance(node.op, ops.Reshape | ops.Transpose):
            raise UnsupportedModel(
                f"{graph.input.describe()} has no positions that convolutions could run over"
            )
    if len(node.shape) not in (2, 3):
        raise UnsupportedModel(f"{graph.input.describe()} has no positions that convolutions could run over")
    return node


def _only_reader(graph: Graph, node: Node) -> Node:
    users = graph.consumers[node.name]
    return graph[users[0]] if len(users) == 1 else node


def _size(node: Node) -> Pair:
    return (node.shape[1], node.shape[2]) if len(node.shape) == 3 else (node.shape[1], 1)


def _spatial(node: Node, entry: Node, graph: Graph) -> bool:
    """Whether a value still has positions; one that is left over (a global mean) belongs to the dense part."""
    return len(node.shape) == len(entry.shape) and (
        math.prod(node.shape[1:]) > 1 or node.name == graph.output.name
    )


def _closed(walk: _Compiler, last: Signal) -> Form:
    """The smallest tori on which nothing wraps around."""
    scales = {signal.scale for signal in (*walk.signals.values(), *(b.reads for b in walk.blocks))} | {
        last.scale
    }
    coarsest = _largest(list(scales))
    if any(c % s for scale in scales for c, s in zip(coarsest, scale, strict=True)):
        raise UnsupportedModel("strides that do not divide one another have no form over frequencies")
    needed = [Reading(s.scale, s.size, (0, 0), (s.size[0] - 1, s.size[1] - 1)) for s in
              (*walk.signals.values(), *(b.reads for b in walk.blocks), last)]  # fmt: skip
    points = []
    for axis in (0, 1):
        count = 1
        for r in (*walk.readings, *needed):
            least = max(r.size[axis], r.size[axis] - r.first[axis], r.last[axis] + 1)
            count = max(count, -(-least * r.scale[axis] // coarsest[axis]))
        points.append(count)
    torus = {
        scale: (points[0] * coarsest[0] // scale[0], points[1] * coarsest[1] // scale[1]) for scale in scales
    }
    return Form(tuple(walk.blocks), last, torus)


def _run(graph: Graph, source: Node) -> list[Node]:
    """The affine nodes behind the last value over positions, each the only reader of the one before."""
    found: list[Node] = []
    node = source
    while len(users := graph.consumers[node.name]) == 1 and node.name != graph.output.name:
        following = graph[users[0]]
        if not linear.covers(type(following.op)) or len(following.inputs) > 1:
            break
        found.append(following)
        node = following
    if not found:
        raise UnsupportedModel(f"{source.describe()} is read by something that has no form over frequencies")
    return found


def _rows(run: list[Node], source: Node) -> tuple[Tensor, float]:
    """The matrix [m, size of source] of a run, and a bound of the error of its entries."""
    arithmetic = [n for n in run if not isinstance(n.op, ops.Reshape | ops.Transpose)]
    if math.prod(run[-1].shape) * source.size > _ENTRIES:
        raise UnsupportedModel(f"{run[-1].describe()} reads {source.size} numbers: its matrix is too large")
    affine = Run(tuple(run), (source.shape,))
    found = run_matrix(affine, lambda op: op)
    if len(arithmetic) == 1 and isinstance(arithmetic[0].op, ops.Linear):
        return found, 0.0
    # Componentwise |computed - exact| <= gamma |A_k| ... |A_1| (Higham, section 3.5), whose own rounding the factor 2 covers.
    count = sum(math.prod(node.shape) + 16 for node in (source, *run))
    return found, 2.0 * gamma(count) * float(run_matrix(affine, absolute).max())


_ENTRIES = 1 << 27


# -- operators


def _conv(walk: _Compiler, node: Node, inputs: list[Signal], graph: Graph) -> Signal:
    op = node.op
    assert isinstance(op, ops.Conv)
    weight = op.weight.double().cpu()
    if op.groups > 1:
        weight = _ungrouped(weight, op.groups)
    if weight.shape[0] * weight.shape[1] > 1 << 22:
        raise UnsupportedModel(
            f"{node.describe()} has too many channels for dense matrices at every frequency"
        )
    if weight.ndim == 3:
        weight = weight[..., None]
    pads = [pair[0] for pair in op.padding]
    kernel = Kernel(weight, _pair(op.stride, 1), _pair(op.dilation, 1), _pair(pads, 0))
    return walk.convolved(inputs[0], kernel, _size(node), node.name)


def _pair(values: Sequence[int], other: int) -> Pair:
    return (values[0], values[1]) if len(values) > 1 else (values[0], other)


def _ungrouped(weight: Tensor, groups: int) -> Tensor:
    out, inner = weight.shape[0] // groups, weight.shape[1]
    whole = weight.new_zeros(weight.shape[0], inner * groups, *weight.shape[2:])
    for g in range(groups):
        whole[g * out : (g + 1) * out, g * inner : (g + 1) * inner] = weight[g * out : (g + 1) * out]
    return whole


def _channelwise(walk: _Compiler, node: Node, inputs: list[Signal], graph: Graph) -> Signal:
    op, channels, rank = node.op, node.shape[0], len(node.shape)
    rounded = 0
    if isinstance(op, ops.BatchNorm):
        if op.axis != 0:
            raise UnsupportedModel(f"{node.describe()} normalises another axis than the channels")
        # One addition, one square root, one division, one product.
        factor, rounded = op.weight.double() / torch.sqrt(op.var.double() + op.eps), 4
    elif isinstance(op, ops.DivideBy):
        factor, rounded = 1.0 / op.divisor.double(), 1
    else:
        assert isinstance(op, ops.Scale)
        factor = torch.ones(()) if op.scale is None else op.scale.double()
    shape = (
        (channels,) if isinstance(op, ops.BatchNorm) else (1,) * (rank - factor.ndim) + tuple(factor.shape)
    )
    if any(size != 1 for size in shape[1:]):
        raise UnsupportedModel(f"{node.describe()} scales positions of one channel by different numbers")
    values = factor.cpu().double().reshape(-1).expand(channels)
    kernel = Kernel(torch.diag(values)[:, :, None, None], (1, 1), (1, 1), (0, 0), rounded)
    parts = {key: tuple(_behind(path, kernel) for path in paths) for key, paths in inputs[0].parts.items()}
    return replace(inputs[0], parts=parts)


def _average(walk: _Compiler, node: Node, inputs: list[Signal], graph: Graph) -> Signal:
    op = node.op
    assert isinstance(op, ops.AvgPool)
    padded = any(side for pair in op.padding for side in pair)
    if any(op.uncounted) or (padded and not op.count_include_pad) or len(op.kernel) != len(node.shape) - 1:
        raise UnsupportedModel(f"{node.describe()} has means of different counts at its edges")
    kernel = _pair(op.kernel, 1)
    weight = torch.diag(torch.full((node.shape[0],), 1.0 / math.prod(kernel), dtype=torch.float64))
    weight = weight[:, :, None, None].expand(-1, -1, *kernel).contiguous()
    before = _pair([pair[0] for pair in op.padding], 0)
    return walk.convolved(
        inputs[0], Kernel(weight, _pair(op.stride, 1), (1, 1), before, 1), _size(node), node.name
    )


def _pooled(walk: _Compiler, node: Node, inputs: list[Signal], graph: Graph) -> Signal:
    op = node.op
    assert isinstance(op, ops.MaxPool)
    if any(side for pair in op.padding for side in pair) or len(op.kernel) != len(node.shape) - 1:
        raise UnsupportedModel(f"{node.describe()} has padding: no form over frequencies")
    kernel, stride, dilation = _pair(op.kernel, 1), _pair(op.stride, 1), _pair(op.dilation, 1)
    eye = torch.eye(node.shape[0], dtype=torch.float64)[:, :, None, None]
    places = [(i * dilation[0], j * dilation[1]) for i in range(kernel[0]) for j in range(kernel[1])]
    wires = [
        walk.convolved(inputs[0], Kernel(eye, stride, (1, 1), (-i, -j)), _size(node), node.name)
        for i, j in places
    ]
    return walk.largest(wires, node.name)


def _added(walk: _Compiler, node: Node, inputs: list[Signal], graph: Graph) -> Signal:
    if any(
        (s.channels, s.size, s.scale) != (inputs[0].channels, inputs[0].size, inputs[0].scale) for s in inputs
    ):
        raise UnsupportedModel(f"{node.describe()} adds values of different positions")
    return _sum(inputs[0], *(_negated(s) if isinstance(node.op, ops.Sub) else s for s in inputs[1:]))


def _sliced(walk: _Compiler, node: Node, inputs: list[Signal], graph: Graph) -> Signal:
    op, x = node.op, inputs[0]
    assert isinstance(op, ops.Slice)
    eye = torch.eye(x.channels, dtype=torch.float64)
    if op.axis == 0:
        return walk.convolved(x, _matrix_kernel(eye[op.start : op.stop : op.step]), _size(node), node.name)
    stride, before = [1, 1], [0, 0]
    stride[op.axis - 1], before[op.axis - 1] = op.step, -op.start
    kernel = Kernel(eye[:, :, None, None], (stride[0], stride[1]), (1, 1), (before[0], before[1]))
    return walk.convolved(x, kernel, _size(node), node.name)


def _padded(walk: _Compiler, node: Node, inputs: list[Signal], graph: Graph) -> Signal:
    op, x = node.op, inputs[0]
    assert isinstance(op, ops.Pad)
    if op.mode != "constant":
        raise UnsupportedModel(
            f"{node.describe()} repeats what is inside; only stored numbers around it have a form here"
        )
    (first, last), *positions = op.padding
    eye = torch.eye(x.channels, dtype=torch.float64)
    matrix = torch.cat([eye.new_zeros(first, x.channels), eye, eye.new_zeros(last, x.channels)])
    before = _pair([pair[0] for pair in positions], 0)
    kernel = _matrix_kernel(matrix)._replace(before=before)
    return walk.convolved(x, kernel, _size(node), node.name)


def _matrix_kernel(matrix: Tensor) -> Kernel:
    return Kernel(matrix[:, :, None, None].contiguous(), (1, 1), (1, 1), (0, 0))


def _joined(walk: _Compiler, node: Node, inputs: list[Signal], graph: Graph) -> Signal:
    op = node.op
    assert isinstance(op, ops.Concat)
    if op.axis != 0:
        raise UnsupportedModel(
            f"{node.describe()} joins positions; only channels side by side have a form here"
        )
    eye, start, parts = torch.eye(node.shape[0], dtype=torch.float64), 0, list[Signal]()
    for x in inputs:
        kernel = _matrix_kernel(eye[:, start : start + x.channels])
        parts.append(replace(walk.convolved(x, kernel, _size(node), node.name), inside=x.inside))
        start += x.channels
    return _added(walk, node, parts, graph)


def _scalar(walk: _Compiler, node: Node, inputs: list[Signal], graph: Graph) -> Signal:
    found = slopes(node.op.to(dtype=torch.float64, device="cpu"), None, node.shape)
    low, high = (end.double().expand(1, *node.shape)[0].flatten(1) for end in (found.lower, found.upper))
    if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise UnsupportedModel(f"{node.describe()} has no bounded slopes")
    return walk.neurons(inputs[0], low.amin(1).clamp(max=0.0), high.amax(1).clamp(min=0.0), node.name)


Step = Callable[[_Compiler, Node, list[Signal], Graph], Signal]
_STEPS: dict[type[Op], Step] = {
    ops.Conv: _conv, ops.BatchNorm: _channelwise, ops.Scale: _channelwise, ops.DivideBy: _channelwise, ops.AvgPool: _average,
    ops.MaxPool: _pooled, ops.Add: _added, ops.Sub: _added, ops.Slice: _sliced, ops.Pad: _padded,
    ops.Concat: _joined,
}  # fmt: skip
