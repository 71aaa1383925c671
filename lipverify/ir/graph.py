"""A network as a frozen, validated, topologically ordered DAG of named nodes.

The batch axis is not part of any shape: a node of shape (3, 32, 32) computes tensors [batch, 3, 32, 32].
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from lipverify.errors import InternalError, UsageError
from lipverify.ir.op import Input, Op, Shape
from lipverify.ir.reading import Reading
from lipverify.ir.shown import Shown, sizes

if TYPE_CHECKING:
    import networkx


@dataclass(frozen=True)
class Node(Shown):
    """One operator application. `inputs` are node names, `shape` is the sample shape of the result."""

    name: str
    op: Op
    inputs: tuple[str, ...]
    shape: Shape
    source: str = ""
    """Where the node comes from: a layer or node name of the file, for people. Not part of the digest."""

    @property
    def size(self) -> int:
        """Numbers in one sample of the result."""
        return math.prod(self.shape)

    def __repr__(self) -> str:
        return f"Node({self.describe()})"

    def describe(self) -> str:
        """`Linear "fc1" [10]`: how a node is named in messages; strange characters are escaped."""
        from lipverify.loading.names import display

        return f'{self.op.kind()} "{display(self.name)}" {list(self.shape)}'


@dataclass(frozen=True)
class ImportCheck:
    """How far the interpreter of the graph differs from the source it was imported from, on random inputs."""

    samples: int
    max_abs_difference: float
    max_abs_output: float
    reference: str


@dataclass(frozen=True)
class Origin:
    """Where a graph was imported from. Nothing here is part of the graph's digest."""

    format: str = "python"
    path: str | None = None
    sha256: str | None = None
    trusted_code: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    import_check: ImportCheck | None = None
    part: str | None = None
    """What of the model this graph computes, in words, where that is not its first output."""
    output: int | str = 0
    """Which output of the model this graph computes, by its place or its name."""
    margin: tuple[int, int] | None = None
    """The two entries of that output whose difference it computes."""
    reading: Reading | None = None
    """How it reads the inputs of the model file, where the file alone does not say it."""
    outputs: tuple[str, ...] = ()
    """Names of all outputs of the model file, in its order."""
    beside: tuple[tuple[str, str], ...] = ()
    """Name and SHA-256 of every file beside the model file that holds tensors of it."""


@dataclass(frozen=True)
class Graph(Shown):
    """Nodes in topological order; exactly one of them is an `Input`.

    Raises:
        InternalError: names collide, an input is used before it is computed, or an output does not exist.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    output_index: int = 0
    origin: Origin = field(default_factory=Origin, compare=False)

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for node in self.nodes:
            if node.name in seen:
                raise InternalError(f"two nodes are called {node.name!r}")
            for name in node.inputs:
                if name not in seen:
                    raise InternalError(f"node {node.name!r} uses {name!r} before it is computed")
            if any(size < 0 for size in node.shape):
                raise InternalError(f"node {node.name!r} has the impossible shape {node.shape}")
            seen.add(node.name)
        if sum(isinstance(node.op, Input) for node in self.nodes) != 1:
            raise InternalError("a graph needs exactly one input node")
        if not self.outputs or any(name not in seen for name in self.outputs):
            raise InternalError("a graph needs outputs that exist")
        if not 0 <= self.output_index < len(self.outputs):
            raise InternalError(f"output index {self.output_index} of {len(self.outputs)} outputs")

    def __repr__(self) -> str:
        from lipverify.loading.names import display, display_path

        name = self.origin.format if self.origin.path is None else display_path(self.origin.path)
        part = "" if self.origin.part is None else f", {display(self.origin.part, 100)}"
        size = f"{sizes(self.input_shape)} to {sizes(self.output_shape)}"
        return f"Graph({name}: {size}, {len(self.nodes)} nodes, {self.parameters():,} parameters{part})"

    def summary(self) -> str:
        """The nodes as a table of text: name, operator, shape of the result, what it reads, numbers that are stored."""
        from lipverify.loading.names import display

        rows = [("node", "operator", "shape", "inputs", "parameters")]
        for node in self.nodes:
            stored = node.op.parameters()
            reads = ", ".join(display(name, 40) for name in node.inputs)
            rows.append(
                (
                    display(node.name, 60),
                    node.op.kind(),
                    sizes(node.shape),
                    reads,
                    f"{stored:,}" if stored else "",
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
        ]
        return "\n".join([repr(self), *(line.rstrip() for line in lines)])

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __getitem__(self, name: str) -> Node:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def consumers(self) -> dict[str, tuple[str, ...]]:
        """For every node the nodes that read it, one entry for each use."""
        uses: dict[str, list[str]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in node.inputs:
                uses[name].append(node.name)
        return {name: tuple(users) for name, users in uses.items()}

    @cached_property
    def input(self) -> Node:
        """The input node."""
        return next(node for node in self.nodes if isinstance(node.op, Input))

    @property
    def output(self) -> Node:
        """The selected output node."""
        return self[self.outputs[self.output_index]]

    @property
    def input_shape(self) -> Shape:
        """Sample shape of the input."""
        return self.input.shape

    @property
    def output_shape(self) -> Shape:
        """Sample shape of the selected output."""
        return self.output.shape

    def has(self, *kinds: type[Op]) -> bool:
        """Whether a node is one of these operators."""
        return any(isinstance(node.op, kinds) for node in self.nodes)

    def select(self, index: int) -> Graph:
        """The same network with another of its outputs, without the nodes that output does not need.

        Raises:
            UsageError: there is no such output.
        """
        if not 0 <= index < len(self.outputs):
            listed = ", ".join(f"{i}: {self[name].describe()}" for i, name in enumerate(self.outputs))
            only = "one output, " if len(self.outputs) == 1 else ""
            raise UsageError(f"there is no output {index}; the model has {only}{listed}")
        return replace(self, outputs=(self.outputs[index],), output_index=0).pruned()

    def pruned(self) -> Graph:
        """The same network without nodes that no output needs (the input node stays)."""
        needed = set(self.outputs) | {self.input.name}
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.inputs)
        return replace(self, nodes=tuple(node for node in self.nodes if node.name in needed))

    def append(self, op: Op, shape: Shape, name: str) -> Graph:
        """The network followed by one more operator on the selected output."""
        unique = name
        while unique in self._by_name:
            unique += "'"
        node = Node(unique, op, (self.output.name,), shape, source=name)
        return replace(self, nodes=(*self.nodes, node), outputs=(unique,), output_index=0)

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Graph:
        """The same network with its parameters in another type or place (`Op.to`)."""
        nodes = tuple(replace(node, op=node.op.to(dtype=dtype, device=device)) for node in self.nodes)
        return replace(self, nodes=nodes)

    @cached_property
    def digest(self) -> str:
        """sha256 over operators, parameters, wiring, shapes and the selected output. Names do not count."""
        digest = hashlib.sha256(b"lipverify.graph/1")
        index = {node.name: i for i, node in enumerate(self.nodes)}
        for node in self.nodes:
            node.op.update_digest(digest)
            digest.update(f"|in={[index[name] for name in node.inputs]}|shape={list(node.shape)}\n".encode())
        digest.update(f"output={index[self.output.name]}".encode())
        return digest.hexdigest()

    def parameters(self) -> int:
        """Numbers stored in all operators."""
        return sum(node.op.parameters() for node in self.nodes)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The widest floating-point type among the parameters: the type the file computes in; float32 if there are none.

        A single number written in a program has no say, as in torch's type promotion, unless there is nothing else.
        """
        found: dict[bool, torch.dtype] = {}
        for node in self.nodes:
            for value in vars(node.op).values():
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    known = found.get(value.ndim > 0)
                    found[value.ndim > 0] = torch.promote_types(known, value.dtype) if known else value.dtype
        return found.get(True) or found.get(False) or torch.float32

    def operators(self) -> dict[str, int]:
        """How often each operator occurs (the input is not counted), most frequent first."""
        return dict(Counter(n.op.kind() for n in self.nodes if not isinstance(n.op, Input)).most_common())

    def to_networkx(self) -> networkx.MultiDiGraph:
        """A view for drawing and path queries; node attributes `op` and `shape`, edge attribute `position`."""
        import networkx

        view = networkx.MultiDiGraph()
        for node in self.nodes:
            view.add_node(node.name, op=node.op.kind(), shape=node.shape)
        for node in self.nodes:
            for position, name in enumerate(node.inputs):
                view.add_edge(name, node.name, position=position)
        return view
