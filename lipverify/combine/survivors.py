"""A copy with fewer channels, written in the shape of its original: what was cut away is there again, and nothing reads it.

Numbers that are put back are 0 and are multiplied by stored zeros, so that both are the same function in exact arithmetic. Which
channel of the original a channel of the copy is, the caller says; a wrong answer makes the pair loose, and no bound wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipverify import ops
from lipverify.combine.agreement import require_close, samples
from lipverify.errors import UsageError
from lipverify.interpreter import evaluate, infer_shape
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Input, Op, Shape
from lipverify.loading.names import display
from lipverify.ops.change import has_change
from lipverify.rules import forward

Axis = tuple[int, ...] | None
"""Which entries of an axis of the original an axis of the copy holds, in this order; None: all of them."""
Kept = tuple[Axis, ...]
Map = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Grown:
    """The copy in the shape of the original.

    kept: of every node of fewer entries that is no affine map, in the order of the graph, its shape in the original, and what the
    copy has of it.
    """

    graph: Graph
    kept: tuple[tuple[Shape, Kept], ...] = ()


def channels_of(layer: str, channels: Any) -> tuple[int, ...]:
    """The channels of a layer, as a map says them. Raises UsageError unless they are different whole numbers from 0 on."""
    whole = isinstance(channels, (list, tuple)) and all(type(n) is int and n >= 0 for n in channels)
    if not whole or not channels or len(set(channels)) < len(channels):
        raise UsageError(
            f'--survivors: layer "{display(str(layer), 60)}" needs a list of different channels, counted from 0'
        )
    return tuple(channels)


def grown(f: Graph, g: Graph, survivors: Map) -> Grown:
    """g in the shape of f. survivors: layer of f -> its channels that g has; layers that are as wide in both may be left out.

    Statement: over the reals the graph computes g.

    Raises:
        UsageError: the networks are not of one structure, the map names no layer, channels that are not there or too many, or
            what was cut away would be read.
    """
    if not isinstance(survivors, Mapping):
        raise UsageError(
            "survivors are a mapping: the name of a layer -> a list of its channels that are left"
        )
    f, g = f.to(dtype=torch.float64).pruned(), g.to(dtype=torch.float64).pruned()
    work = _Growing(f, g, {name: channels_of(name, channels) for name, channels in survivors.items()})
    nodes = tuple(work.node(m) for m in f.nodes)
    for name, kept in zip(f.outputs, (work.kept[name] for name in f.outputs), strict=True):
        if any(axis is not None for axis in kept):
            raise _refused(f[name], "entries of the output were cut away")
    found = Graph(nodes, f.outputs, f.output_index, replace(g.origin))
    x = samples(f)
    require_close(evaluate(g, x), evaluate(found, x), "the copy in the shape of its original")
    return Grown(found, tuple(work.fewer))


def _refused(node: Node, why: str) -> UsageError:
    return UsageError(
        f"--survivors: {node.describe()}: {why}; leave --survivors out, and the networks are bounded side by side"
    )


class _Growing:
    """Nodes of f with the parameters of g, one after another. kept: node of f -> what the node of g holds of it."""

    def __init__(self, f: Graph, g: Graph, survivors: dict[str, tuple[int, ...]]) -> None:
        self.f, self.g = f, g
        self.partner = _partners(f, g)
        self.kept: dict[str, Kept] = {}
        self.fewer: list[tuple[Shape, Kept]] = []
        self.told = {self._layer(name): channels for name, channels in survivors.items()}
        if len(self.told) < len(survivors):
            raise UsageError("--survivors names a layer twice, by two of its names")

    def _layer(self, name: str) -> str:
        """The layer with weights that is meant: by its name, that of its node in the file, or that of its module."""
        layers = [
            node for node in self.f.nodes if isinstance(node.op, (ops.Linear, ops.Conv, ops.ConvTranspose))
        ]
        found = [n.name for n in layers if name in (n.name, n.source, n.name.rpartition(".")[0])]
        if len(found) != 1:
            known = ", ".join(display(node.name, 40) for node in layers[:12])
            raise UsageError(
                f'--survivors: no layer "{display(name, 60)}" in the original, or several (its layers: {known})'
            )
        return found[0]

    def node(self, m: Node) -> Node:
        n = self.g[self.partner[m.name]]
        given = [self.kept[name] for name in m.inputs]
        op, kept = self._grown(m, n, given)
        shape = (
            m.shape
            if isinstance(op, Input)
            else infer_shape(op, tuple(self.f[name].shape for name in m.inputs))
        )
        sizes = tuple(size if axis is None else len(axis) for size, axis in zip(m.shape, kept, strict=True))
        if shape != m.shape or sizes != n.shape:
            raise _refused(m, f"its counterpart is {n.describe()}, where the map leaves {list(sizes)}")
        self.kept[m.name] = kept
        if has_change(m.op) and any(axis is not None for axis in kept):
            self.fewer.append((m.shape, kept))
        return replace(m, op=op)

    def _grown(self, m: Node, n: Node, given: list[Kept]) -> tuple[Op, Kept]:
        """The operator of g in the shape of f, and what of its result g has."""
        p, q = m.op, n.op
        if isinstance(p, (ops.Linear, ops.Conv, ops.ConvTranspose)):
            return self._weighted(m, n, given[0])
        whole = all(axis is None for kept in given for axis in kept)
        if whole:
            return q, (None,) * len(m.shape)
        rule = next((rule for kinds, rule in _RULES if isinstance(p, kinds)), None)
        if rule is None and has_change(p) and len(m.inputs) == 1:
            rule = _scalar
        if rule is None:
            raise _refused(m, "it reads channels that were cut away together with others")
        return rule(m, n, given, [self.f[name].shape for name in m.inputs])

    def _weighted(self, m: Node, n: Node, given: Kept) -> tuple[Op, Kept]:
        p, q = m.op, n.op
        assert isinstance(p, (ops.Linear, ops.Conv, ops.ConvTranspose))
        assert isinstance(q, type(p))
        out, into = (1, 0) if isinstance(p, ops.ConvTranspose) else (0, 1)
        groups = getattr(p, "groups", 1)
        count = int(p.weight.shape[out]) * (groups if isinstance(p, ops.ConvTranspose) else 1)
        had = int(q.weight.shape[out]) * (getattr(q, "groups", 1) if isinstance(p, ops.ConvTranspose) else 1)
        told: Axis = self.told.get(m.name)
        channel = len(m.shape) - 1 if isinstance(p, ops.Linear) else 0
        read = given[channel]
        if told is None and had != count:
            raise UsageError(
                f'--survivors: layer "{display(m.name)}" has {count} channels and {had} of them are left in the copy; say which'
            )
        if told is not None and (len(told) != had or max(told) >= count):
            raise UsageError(
                f'--survivors: layer "{display(m.name)}": {len(told)} channels below {max(told) + 1} are named; the original has '
                f"{count}, the copy {had}"
            )
        if told is None and read is None and groups == getattr(q, "groups", 1):
            return q, (None,) * len(m.shape)
        if any(axis is not None for k, axis in enumerate(given) if k != channel):
            raise _refused(m, "channels were cut away along another axis than the one it works on")
        weight = torch.zeros(p.weight.shape, dtype=torch.float64)
        rows = range(count) if told is None else told
        if groups > 1:
            if (
                not groups == count == int(p.weight.shape[out]) == self.f[m.inputs[0]].shape[0]
                or getattr(q, "groups", 1) != had
            ):
                raise _refused(m, f"its {groups} groups hold several channels each")
            if (range(count) if read is None else read) != rows:
                raise _refused(m, "every channel is read by one of its own, and the map keeps others")
            weight[list(rows)] = q.weight
        else:
            columns = range(p.weight.shape[into]) if read is None else read
            places = (rows, columns) if out == 0 else (columns, rows)
            if (len(places[0]), len(places[1]), *p.weight.shape[2:]) != tuple(q.weight.shape):
                raise _refused(
                    m,
                    f"weights {list(q.weight.shape)} of the copy, where the map leaves {[len(x) for x in places]}",
                )
            weight[torch.tensor(places[0])[:, None], torch.tensor(places[1])] = q.weight
        bias = None if q.bias is None else torch.zeros(count, dtype=torch.float64)
        if bias is not None and q.bias is not None:
            bias[list(rows)] = q.bias
        kept = tuple(told if k == channel else None for k in range(len(m.shape)))
        found = replace(q, weight=weight, bias=bias)
        return (found if isinstance(found, ops.Linear) else replace(found, groups=groups)), kept


def _partners(f: Graph, g: Graph) -> dict[str, str]:
    """Node of f -> node of g, from the outputs on."""
    if f.input_shape != g.input_shape:
        raise UsageError("--survivors: the networks have inputs of different shapes")
    found: dict[str, str] = {}
    todo = [(f.output.name, g.output.name)]
    while todo:
        one, other = todo.pop()
        m, n = f[one], g[other]
        if found.setdefault(one, other) != other:
            raise _refused(m, "two nodes of the copy do what it does")
        if type(m.op) is not type(n.op) or len(m.inputs) != len(n.inputs) or len(m.shape) != len(n.shape):
            raise _refused(m, f"in the copy {n.describe()} stands in its place")
        todo.extend(pair for pair in zip(m.inputs, n.inputs, strict=True) if found.get(pair[0]) != pair[1])
    return found


def places_of(shape: Shape, kept: Kept) -> Any:
    """Flat places in the original of all entries of the copy."""
    axes = [
        np.arange(size) if axis is None else np.array(axis) for size, axis in zip(shape, kept, strict=True)
    ]
    return np.ravel_multi_index(np.ix_(*axes), shape) if axes else np.zeros((), np.int64)


# -- rules: (node of f, node of g, what g has of the inputs, their shapes in f) -> operator and what g has

Rule = Callable[[Node, Node, list[Kept], list[Shape]], tuple[Op, Kept]]


def _widened(value: Tensor, shape: Shape, kept: Kept, fill: float) -> Tensor:
    """A parameter of the copy as one that broadcasts to `shape`, with `fill` where nothing is kept."""
    given = value.to(torch.float64).reshape(*(1,) * (len(shape) - value.ndim), *value.shape)
    sizes = [
        shape[k] if kept[k] is not None and given.shape[k] > 1 else given.shape[k] for k in range(len(shape))
    ]
    found = torch.full(sizes, fill, dtype=torch.float64)
    axes: list[Any] = [
        np.array(axis) if axis is not None and given.shape[k] > 1 else np.arange(given.shape[k])
        for k, axis in enumerate(kept)
    ]
    found[np.ix_(*axes)] = given
    return found


def _scalar(m: Node, n: Node, given: list[Kept], shapes: list[Shape]) -> tuple[Op, Kept]:
    changed = {
        field.name: _widened(value, shapes[0], given[0], 0.0)
        for field in fields(n.op)
        if isinstance(value := getattr(n.op, field.name), Tensor) and value.numel() > 1
    }
    op = replace(n.op, **changed) if changed else n.op
    if not bool(forward(op, torch.zeros((1, *shapes[0]), dtype=torch.float64)).isfinite().all()):
        raise _refused(m, "it has no value at 0, which stands for channels that were cut away")
    return op, given[0]


def _affine(m: Node, n: Node, given: list[Kept], shapes: list[Shape]) -> tuple[Op, Kept]:
    fill = 1.0 if isinstance(n.op, ops.DivideBy) else 0.0
    changed = {
        field.name: _widened(value, shapes[0], given[0], fill)
        for field in fields(n.op)
        if isinstance(value := getattr(n.op, field.name), Tensor)
    }
    return replace(n.op, **changed), given[0]


def _normalised(m: Node, n: Node, given: list[Kept], shapes: list[Shape]) -> tuple[Op, Kept]:
    p, q = m.op, n.op
    assert isinstance(p, ops.BatchNorm)
    assert isinstance(q, ops.BatchNorm)
    axis = given[0][p.axis]
    if axis is None:
        return q, given[0]
    size = shapes[0][p.axis]
    weight, bias, mean, var = (
        _widened(value, (size,), (axis,), fill)
        for value, fill in ((q.weight, 0.0), (q.bias, 0.0), (q.mean, 0.0), (q.var, 1.0))
    )
    return replace(q, weight=weight, bias=bias, mean=mean, var=var), given[0]


def _moved(m: Node, n: Node, given: list[Kept], shapes: list[Shape]) -> tuple[Op, Kept]:
    """Where every entry goes is asked of both operators."""

    def through(op: Op, numbers: Any) -> Any:
        return (
            forward(op, torch.from_numpy(np.asarray(numbers, np.float64))[None])[0].numpy().astype(np.int64)
        )

    came = through(m.op, np.arange(int(np.prod(shapes[0]))).reshape(shapes[0]))
    goes = np.full(int(np.prod(shapes[0])), -1)
    goes[came.reshape(-1)] = np.arange(came.size)
    found = goes[through(n.op, places_of(shapes[0], given[0]))]
    once = len(np.unique(came)) == came.size
    axes: list[Axis] = []
    for k, each in enumerate(np.unravel_index(np.maximum(found, 0), m.shape)):
        rows = np.moveaxis(each, k, 0).reshape(found.shape[k], -1)
        axes.append(
            None
            if rows.shape[0] == m.shape[k] and (rows[:, 0] == np.arange(len(rows))).all()
            else tuple(rows[:, 0].tolist())
        )
    if not once or (found < 0).any() or not np.array_equal(places_of(m.shape, tuple(axes)), found):
        raise _refused(m, "it moves channels that were cut away between others")
    return m.op, tuple(axes)


def _windows(m: Node, n: Node, given: list[Kept], shapes: list[Shape]) -> tuple[Op, Kept]:
    """Windows over the last axes, or over axes that are padded or repeated: the others stay by themselves."""
    p = m.op
    if isinstance(p, ops.Pad):
        free = [pair == (0, 0) for pair in p.padding]
    elif isinstance(p, ops.Upsample):
        free = [factor == 1 for factor in p.factors]
    else:
        assert isinstance(p, (ops.MaxPool, ops.AvgPool))
        free = [k < len(m.shape) - len(p.kernel) for k in range(len(m.shape))]
    if any(axis is not None and not alone for axis, alone in zip(given[0], free, strict=True)):
        raise _refused(m, "it reads channels that were cut away together with others")
    return n.op, given[0]


def _reduced(m: Node, n: Node, given: list[Kept], shapes: list[Shape]) -> tuple[Op, Kept]:
    p = m.op
    assert isinstance(p, (ops.ReduceSum, ops.ReduceMean, ops.ReduceMax, ops.ReduceMin))
    if any(given[0][axis] is not None for axis in p.axes):
        raise _refused(m, "it reads channels that were cut away together with others")
    return n.op, tuple(axis for k, axis in enumerate(given[0]) if p.keepdims or k not in p.axes)


def _merged(m: Node, n: Node, given: list[Kept], shapes: list[Shape]) -> tuple[Op, Kept]:
    kept: list[Axis] = []
    for k in range(1, len(m.shape) + 1):
        found = {
            axes[-k] for axes, shape in zip(given, shapes, strict=True) if len(shape) >= k and shape[-k] > 1
        }
        if len(found) > 1:
            raise _refused(m, "the map keeps other channels of one of its inputs than of the other")
        kept.insert(0, found.pop() if found else None)
    return n.op, tuple(kept)


def _joined(m: Node, n: Node, given: list[Kept], shapes: list[Shape]) -> tuple[Op, Kept]:
    p = m.op
    assert isinstance(p, ops.Concat)
    axes: list[Axis] = []
    for k in range(len(m.shape)):
        if k != p.axis:
            found = {each[k] for each in given}
            if len(found) > 1:
                raise _refused(m, "the map keeps other channels of one of its inputs than of the other")
            axes.append(found.pop())
            continue
        places: list[int] = []
        start = 0
        for each, shape in zip(given, shapes, strict=True):
            own = each[k]
            places += [start + j for j in (range(shape[k]) if own is None else own)]
            start += shape[k]
        axes.append(None if places == list(range(start)) else tuple(places))
    return n.op, tuple(axes)


_RULES: tuple[tuple[tuple[type[Op], ...], Rule], ...] = (
    ((ops.Scale, ops.DivideBy), _affine),
    ((ops.BatchNorm,), _normalised),
    ((ops.Reshape, ops.Transpose, ops.Slice, ops.Gather, ops.DepthToSpace), _moved),
    ((ops.MaxPool, ops.AvgPool, ops.Pad, ops.Upsample), _windows),
    ((ops.ReduceSum, ops.ReduceMean, ops.ReduceMax, ops.ReduceMin), _reduced),
    ((ops.Add, ops.Sub, ops.Mul, ops.Maximum, ops.Minimum), _merged),
    ((ops.Concat,), _joined),
)
