"""A graph under construction: nodes, names, refusals, and where the source has its batch axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipverify import ops
from lipverify.errors import InvalidFile, UnsupportedModel
from lipverify.interpreter import infer_shape
from lipverify.ir.graph import Graph, Node, Origin
from lipverify.ir.op import Constant, Input, Op, Shape
from lipverify.loading.names import display


@dataclass(frozen=True)
class Value:
    """A tensor that depends on the input. shape: of one sample; batch: which axis of the source's tensor is the batch."""

    name: str
    shape: Shape
    batch: int | None

    @property
    def rank(self) -> int:
        """Axes of the source's tensor."""
        return len(self.shape) + (self.batch is not None)

    @property
    def source_shape(self) -> Shape:
        """Shape of the source's tensor for a batch of one."""
        if self.batch is None:
            return self.shape
        return (*self.shape[: self.batch], 1, *self.shape[self.batch :])


Operand = Value | Tensor


@dataclass(frozen=True)
class Masked:
    """A tensor of extended numbers: `value` where `kept` [source shape] holds, -infinity elsewhere."""

    value: Value
    kept: Tensor

    @property
    def rank(self) -> int:
        """Axes of the source's tensor."""
        return self.value.rank

    @property
    def batch(self) -> int | None:
        """Which axis of the source's tensor is the batch."""
        return self.value.batch

    @property
    def source_shape(self) -> Shape:
        """Shape of the source's tensor for a batch of one."""
        return self.value.source_shape


class Nodes:
    """Collects nodes and follows the batch axis."""

    def __init__(self, *, symbolic_batch: bool) -> None:
        self.symbolic_batch = symbolic_batch
        self.where = "input"
        """Name of the source's node in work, for messages and node names."""
        self.what = "Input"
        """Operator name of the source's node in work, for messages."""
        self.notes: list[str] = []
        self.stored_dtype = torch.float32
        """The type of matrices of 0 and 1 that the builder makes."""
        self.device = torch.device("cpu")
        """Where stored tensors lie."""
        self.reflections: dict[tuple[object, ...], Value] = {}
        """Reflections already in the graph, for the other member of each pair."""
        self._nodes: list[Node] = []
        self._names: dict[str, int] = {}

    def refuse(
        self, reason: str, operands: Sequence[Operand | Masked] = (), remedy: str = ""
    ) -> UnsupportedModel:
        """The error to raise for the source's node in work: node, operator, shapes, reason, remedy."""
        shapes = ", ".join(
            str(list(x.source_shape if isinstance(x, (Value, Masked)) else x.shape)) for x in operands
        )
        shown = f" {shapes}" if shapes else ""
        advice = f"; {remedy}" if remedy else ""
        return UnsupportedModel(f'{self.what} "{display(self.where)}"{shown}: {reason}{advice}')

    def node(self, name: str) -> Node:
        """A node built so far."""
        return next(node for node in reversed(self._nodes) if node.name == name)

    def held(self, values: Tensor, *factors: Tensor) -> Tensor:
        """`values`, entrywise: products where two `factors` are given, which broadcast to them; with one, 0 where that is 0.

        Only a 0 among its factors makes a result 0: where one is smaller than all normal numbers of its type, no relative
        error bounds what its rounding lost, and later factors can make any number of it. A factor of 1 or -1 loses nothing.

        Raises:
            UnsupportedModel: a result underflows.
        """
        if not values.is_floating_point():
            return values
        lost = values.abs() < torch.finfo(values.dtype).tiny
        for factor in factors:
            lost = lost & (factor != 0)
            if len(factors) == 2:
                lost = lost & (factor.abs() != 1)
        if bool(lost.any()):
            raise self.vanished(values.dtype, factors)
        return values

    def vanished(self, dtype: object, operands: Sequence[Operand], named: str = "") -> UnsupportedModel:
        """The error to raise where what is computed from stored numbers underflows."""
        kind = str(dtype).removeprefix("torch.")
        reason = f"computes a number from stored ones{named} that is too small for {kind} and would count as 0, or nearly so"
        return self.refuse(reason, operands, "compute it before exporting, or scale the stored numbers")

    def input(self, source_shape: Shape, batch: int | None, name: str = "input") -> Value:
        """The one input of the graph."""
        shape = tuple(size for axis, size in enumerate(source_shape) if axis != batch)
        unique = self._unique(name)
        self._nodes.append(Node(unique, Input(), (), shape, source=name))
        return Value(unique, shape, batch)

    def add(self, op: Op, operands: Sequence[Value], batch: int | None) -> Value:
        """One more node; its sample shape comes from the operator's forward rule."""
        try:
            shape = infer_shape(op, tuple(v.shape for v in operands))
        except (RuntimeError, IndexError, ValueError) as error:
            raise InvalidFile(
                f'{self.what} "{display(self.where)}": {op.kind()} does not fit its inputs '
                f"{[list(v.shape) for v in operands]} ({display(str(error), 120)}); the file contradicts itself"
            ) from None
        name = self._unique(self.where)
        self._nodes.append(Node(name, op, tuple(v.name for v in operands), shape, source=self.where))
        return Value(name, shape, batch)

    def graph(self, outputs: Sequence[Operand], origin: Origin) -> Graph:
        """The finished graph, without nodes that no output needs."""
        values = [v if isinstance(v, Value) else self.constant(v, None) for v in outputs]
        notes = (*origin.notes, *self.notes)
        nodes, names = tuple(self._nodes), tuple(v.name for v in values)
        return Graph(nodes, names, origin=replace(origin, notes=notes)).pruned()

    def constant(self, value: Tensor, batch: int | None) -> Value:
        """A stored tensor where the graph needs a node; an axis of size 1 at `batch` is dropped."""
        sample = value if batch is None else value.squeeze(batch)
        name = self._unique(self.where)
        self._nodes.append(Node(name, Constant(sample), (), tuple(sample.shape), source=self.where))
        return Value(name, tuple(sample.shape), batch)

    def _unique(self, name: str) -> str:
        unique, count = name, self._names.get(name, 0)
        while unique in self._names:
            count += 1
            unique = f"{name}.{count}"
        # Remembered, so that many nodes of one name do not search from the start each time.
        self._names[name] = count
        self._names.setdefault(unique, 0)
        return unique

    def axis(self, v: Value, axis: int) -> int:
        """The sample axis of a source axis that is not the batch axis."""
        source = axis + v.rank if axis < 0 else axis
        if not 0 <= source < v.rank:
            raise InvalidFile(
                f'{self.what} "{display(self.where)}": axis {axis} of a tensor {list(v.source_shape)}'
            )
        if source == v.batch:
            raise self.refuse(
                f"works along the batch axis {source}",
                (v,),
                "samples of a batch must not influence each other; export in evaluation mode",
            )
        return source - (v.batch is not None and source > v.batch)

    def free(self, v: Value, *axes: int) -> Value:
        """The same tensor with its batch axis counted as an ordinary axis of size 1, if one of these axes is the batch axis."""
        if v.batch is None or self.symbolic_batch or all(axis % v.rank != v.batch for axis in axes):
            return v
        return self.view(v, v.source_shape, None)

    def view(self, v: Value, shape: Shape, batch: int | None) -> Value:
        """The same entries in the same order under another sample shape."""
        if shape == v.shape:
            return Value(v.name, shape, batch)
        return self.add(ops.Reshape(shape), (v,), batch)
