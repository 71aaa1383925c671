"""Walks an ONNX graph in topological order and lowers it, node by node, for a batch of one."""

from __future__ import annotations

import heapq
from collections import ChainMap
from collections.abc import Iterable, MutableMapping
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, numpy_helper

from lipverify.errors import InvalidFile
from lipverify.frontends.builder import Value
from lipverify.frontends.onnx.call import Call
from lipverify.frontends.onnx.constants import Folder, shape_of, size_of
from lipverify.frontends.onnx.lowering import OnnxBuilder, Stored
from lipverify.frontends.onnx.registry import STANDARD_DOMAINS, lower
from lipverify.loading.names import display

Scope = MutableMapping[str, Value | Stored]


class Walk:
    """One pass over a graph. versions: the version of every operator set by its domain ("" is the standard one)."""

    def __init__(self, build: OnnxBuilder, versions: dict[str, int]) -> None:
        self.build = build
        self.versions = versions
        self.folder = Folder()

    def run(self, graph: Any, outer: Scope, wanted: Iterable[str]) -> Scope:
        """What the graph's values became, as far as the wanted ones need them."""
        scope: Scope = ChainMap({}, _Initialisers(graph), outer)  # type: ignore[arg-type]
        order, read = needed(graph, wanted)
        for node in order:
            self.build.where = node.name or next((name for name in node.output if name), node.op_type)
            self.build.what = display(
                node.op_type if node.domain in STANDARD_DOMAINS else f"{node.domain}::{node.op_type}", 60
            )
            results = self._lower(node, scope, read)
            for name, result in zip(node.output, results, strict=False):
                if name:
                    scope[name] = result
            for position, name in enumerate(node.output):
                if name in read and position >= len(results):
                    raise self.build.refuse(f"its output {position} is not covered")
        return scope

    def _lower(self, node: Any, scope: Scope, read: set[str]) -> list[Value | Stored]:
        domain = "" if node.domain in STANDARD_DOMAINS else node.domain
        if not domain:
            check_schema(self.build, node, self.versions[""])
        attributes = {a.name: _attribute(self.build, a) for a in node.attribute}
        inputs = tuple(scope[name] if name else None for name in node.input)
        used = tuple(name in read for name in node.output)
        call = Call(self.build, node.op_type, self.versions.get(domain, 0), inputs, used, attributes)
        if not domain and node.op_type == "Constant":
            return [constant(call)]
        if not domain and node.op_type == "If":
            return self._branch(call, scope, node)
        first = inputs[0] if inputs else None
        if not domain and node.op_type in ("Shape", "Size") and isinstance(first, Value):
            return [(shape_of if node.op_type == "Shape" else size_of)(call, first.source_shape)]
        translate = lower.find(node.domain, node.op_type)
        stored = not any(isinstance(x, Value) for x in inputs)
        if stored and not getattr(translate, "refuses", False):
            return [*self.folder.fold(call, domain, node)]
        if translate is None:
            remedy = f'replace it, or teach it to lipverify with @lower.register("{self.build.what}")'
            raise call.refuse("this operator is not covered", remedy)
        found = translate(call)
        return list(found) if isinstance(found, (list, tuple)) else [found]

    def _branch(self, call: Call, scope: Scope, node: Any) -> list[Value | Stored]:
        """An If whose condition is known is one of its branches."""
        condition = call.raw(0)
        if condition is None or isinstance(condition, Value):
            raise call.refuse(
                "branches on computed numbers, so it is not continuous", "export the branch you need"
            )
        if condition.size != 1:
            raise call.invalid("its condition is not one number")
        name = "then_branch" if bool(condition.reshape(()).item()) else "else_branch"
        branch = call.attribute(name)
        names = [value.name for value in branch.output]
        if len(names) < len(node.output):
            raise call.invalid("its branch has fewer outputs than the node")
        inner = self.run(branch, scope, [n for n, use in zip(names, call.used, strict=False) if use])
        return [inner[n] if use else np.zeros(0) for n, use in zip(names, call.used, strict=False)]


class _Initialisers(dict[str, Stored]):
    """The stored tensors of a graph, decoded when they are read."""

    def __init__(self, graph: Any) -> None:
        super().__init__()
        self._protos = {tensor.name: tensor for tensor in graph.initializer}

    def __contains__(self, name: object) -> bool:
        return name in self._protos

    def __missing__(self, name: str) -> Stored:
        found: Stored = numpy_helper.to_array(self._protos[name])
        self[name] = found
        return found


def needed(graph: Any, wanted: Iterable[str]) -> tuple[list[Any], set[str]]:
    """The nodes that these values depend on, in topological order as close to the file's as possible, and all names they read.

    Raises:
        InvalidFile: the graph has a cycle.
    """
    writer = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    reads: dict[int, set[str]] = {}
    read = set(wanted)
    stack = [writer[name] for name in read if name in writer]
    while stack:
        i = stack.pop()
        if i in reads:
            continue
        reads[i] = {name for name in _names(graph.node[i]) if name}
        read |= reads[i]
        stack.extend(writer[name] for name in reads[i] if name in writer)
    sources = {i: {writer[name] for name in names if name in writer} for i, names in reads.items()}
    readers: dict[int, list[int]] = {i: [] for i in reads}
    for i, found in sources.items():
        for source in found:
            readers[source].append(i)
    ready = [i for i, found in sources.items() if not found]
    heapq.heapify(ready)
    missing = {i: len(found) for i, found in sources.items()}
    order = []
    while ready:
        i = heapq.heappop(ready)
        order.append(graph.node[i])
        for reader in readers[i]:
            missing[reader] -= 1
            if missing[reader] == 0:
                heapq.heappush(ready, reader)
    if len(order) < len(reads):
        raise InvalidFile("the ONNX graph has a cycle; export it again")
    return order, read


def _names(node: Any) -> Iterable[str]:
    """What a node reads, its subgraphs included."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for deeper in inner.node:
                yield from _names(deeper)
            yield from (value.name for value in inner.output)


def check_schema(build: OnnxBuilder, node: Any, version: int) -> None:
    """Holds a node of the standard domain against its definition.

    Raises:
        UnsupportedModel: the operator set has no such operator. InvalidFile: inputs or attributes the operator does not have.
    """
    try:
        schema = onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        raise build.refuse(
            f"operator set {version} of ONNX has no such operator", (), "export the model again"
        ) from None
    if schema.deprecated:
        raise build.refuse(
            f"this operator was removed from operator set {version}", (), "export the model again"
        )
    if not schema.min_input <= len(node.input) <= schema.max_input:
        raise build.invalid(f"it has {len(node.input)} inputs")
    if not schema.min_output <= len(node.output) <= schema.max_output:
        raise build.invalid(f"it has {len(node.output)} outputs")
    for attribute in node.attribute:
        known = schema.attributes.get(attribute.name)
        if known is None or int(known.type) != attribute.type:
            raise build.invalid(
                f'operator set {version} gives it no attribute "{display(attribute.name, 40)}"'
            )
    present = {attribute.name for attribute in node.attribute}
    for name, known in schema.attributes.items():
        if known.required and name not in present:
            raise build.invalid(f'its attribute "{name}" is missing')


def _attribute(build: OnnxBuilder, attribute: Any) -> Any:
    """The Python form of an attribute; tensors become arrays."""
    if attribute.ref_attr_name:
        raise build.invalid("it refers to an attribute of a function outside one")
    if attribute.type == AttributeProto.TENSOR:
        return numpy_helper.to_array(attribute.t)
    found = onnx.helper.get_attribute_value(attribute)
    if attribute.type == AttributeProto.STRING:
        return found.decode("utf-8", "replace")
    if attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS):
        return list(found)
    return found


def constant(call: Call) -> Stored:
    """What a Constant node holds, in any of its forms."""
    if len(call.attributes) != 1:
        raise call.invalid(f"it holds {len(call.attributes)} values")
    (name, value), *_ = call.attributes.items()
    if name == "value":
        return value  # type: ignore[no-any-return]
    kinds = {
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    if name not in kinds:
        raise call.refuse(f"holds {name}, which is no tensor of real numbers")
    return np.asarray(value, kinds[name])
