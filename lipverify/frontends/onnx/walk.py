"""Walks an ONNX graph in topological order and lowers it, node by node, for a batch of one."""

from __future__ import annotations

import heapq
from collections import ChainMap
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import onnx
import torch
from onnx import AttributeProto, numpy_helper

from lipverify.errors import InvalidFile
from lipverify.frontends.builder import Masked, Value
from lipverify.frontends.building.choices import ADVICE, COMPARES, Choice
from lipverify.frontends.onnx import by_matrix, control_flow, functions
from lipverify.frontends.onnx.call import Call, Named, Result
from lipverify.frontends.onnx.constants import Folder, folds, shape_of, size_of
from lipverify.frontends.onnx.element_types import ElementTypes
from lipverify.frontends.onnx.lowering import OnnxBuilder, Stored
from lipverify.frontends.onnx.registry import DEFINED_DOMAINS, STANDARD_DOMAINS, lower
from lipverify.frontends.onnx.versions import NEWEST
from lipverify.loading.names import display
from lipverify.loading.onnx_structure import names_read, needed_nodes

Scope = MutableMapping[str, Named | None]

MAX_STEPS = 400_000
"""Nodes looked at, those of unrolled loops and of the bodies of functions counted each time."""


class Walk:
    """One pass over a graph. versions: the version of every operator set by its domain ("" is the standard one)."""

    def __init__(self, build: OnnxBuilder, versions: dict[str, int], outer: Walk | None = None) -> None:
        self.build = build
        self.versions = versions
        self.folder: Folder = Folder() if outer is None else outer.folder
        self.types = ElementTypes()
        self.steps: list[int] = [0] if outer is None else outer.steps
        self.inside: str | None = None if outer is None else build.where
        """The node of the file whose definition is walked; None in the file's own graph."""

    def run(
        self, graph: Any, outer: Scope, wanted: Iterable[str], held: Mapping[str, Stored] | None = None
    ) -> Mapping[str, Result | None]:
        """What the graph's values became, as far as the wanted ones need them. held: its stored tensors beside the message.

        Raises:
            UnsupportedModel: a node that no rule covers; or a wanted value is a comparison of computed numbers.
        """
        scope: Scope = ChainMap({}, _Initialisers(graph, held or {}), outer)  # type: ignore[arg-type]
        if isinstance(graph, onnx.GraphProto):
            self.types.declare(graph)
        order, read = needed(graph, wanted)
        for node in order:
            self._locate(node)
            results = self._lower(node, scope, read)
            for name, result in zip(node.output, results, strict=False):
                if name:
                    scope[name] = result
            for position, name in enumerate(node.output):
                if name in read and position >= len(results):
                    raise self.build.refuse(f"its output {position} is not covered")
        for name in wanted:
            if isinstance(found := scope[name], Choice):
                self.build.where, self.build.what = name, "output"
                raise self.build.refuse(f"this output {found.reason}", (found.value,), ADVICE)
        return cast(Mapping[str, Result | None], scope)

    def _locate(self, node: Any) -> None:
        self.steps[0] += 1
        own = node.name or next((name for name in node.output if name), node.op_type)
        self.build.where = own if self.inside is None else f"{self.inside}/{own}"
        self.build.what = display(
            node.op_type if node.domain in STANDARD_DOMAINS else f"{node.domain}::{node.op_type}", 60
        )
        if self.steps[0] > MAX_STEPS:
            raise self.build.refuse(f"more than {MAX_STEPS} nodes, loops and functions written out")

    def _lower(self, node: Any, scope: Scope, read: set[str]) -> Sequence[Named | None]:
        domain = "" if node.domain in STANDARD_DOMAINS else node.domain
        schema = check_schema(self.build, node, domain, self.versions) if domain in DEFINED_DOMAINS else None
        bound = {} if schema is None else self.types.check(node, schema, self.build.invalid)
        attributes = {a.name: _attribute(self.build, a) for a in node.attribute}
        inputs = tuple(scope[name] if name else None for name in node.input)
        used = tuple(name in read for name in node.output)
        version = self.versions.get(domain, 0)
        call = Call(self.build, node.op_type, version, inputs, used, attributes, tuple(node.input))
        self._refuse_wrapping(call, domain, node)
        if node.op_type == "CastLike" and self.types.known.get(node.input[-1]) in _HALF_BYTES:
            raise call.refuse(
                "converts to integers of four bits, which wrap around",
                "export real numbers of 16, 32 or 64 bits",
            )
        results = self._results(call, domain, node, schema, scope)
        if schema is not None:
            self.types.record(node, schema, bound, results)
            if node.op_type == "QuantizeLinear":
                self.types.known.setdefault(node.output[0], onnx.TensorProto.UINT8)
        elif domain == "com.microsoft" and len(node.input) > (place := _ZERO_POINTS.get(node.op_type, 99)):
            self.types.known[node.output[0]] = self.types.known.get(node.input[place], onnx.TensorProto.UINT8)
        return results

    def _refuse_wrapping(self, call: Call, domain: str, node: Any) -> None:
        """Arithmetic of computed integers wraps around or rounds in the file's type; ours is that of real numbers."""
        if domain or node.op_type in _OF_INTEGERS:
            return
        if node.op_type == "Resize" and call.attribute("mode", "nearest") == "nearest":
            return  # copies
        for name, x in zip(node.input, call.inputs, strict=True):
            if isinstance(x, Value) and self.types.known.get(name) in _INTEGERS:
                raise call.refuse(
                    "computes with integers, which wrap around in the file's type", "dequantise first"
                )

    def _results(
        self, call: Call, domain: str, node: Any, schema: Any, scope: Scope
    ) -> Sequence[Named | None]:
        if any(isinstance(x, Choice) for x in call.inputs):
            if domain or node.op_type not in _TAKE_CHOICES:
                raise call.refuse(COMPARES, ADVICE)
            translate = lower.find(node.domain, node.op_type)
            assert translate is not None
            return [translate(call)]
        if not domain and node.op_type in control_flow.OPERATORS:
            return control_flow.OPERATORS[node.op_type](self, call, scope, node)
        if not domain and node.op_type == "Constant":
            return [constant(call)]
        first = call.raw(0)
        if not domain and node.op_type in ("Shape", "Size") and isinstance(first, (Value, Masked)):
            return [(shape_of if node.op_type == "Shape" else size_of)(call, first.source_shape)]
        translate = lower.find(node.domain, node.op_type)
        stored = not any(isinstance(x, (Value, Masked)) for x in call.inputs)
        if stored and not getattr(translate, "refuses", False) and folds(domain, node.op_type):
            return [*self.folder.fold(call, domain, node)]
        if not domain and by_matrix.applies(call):
            return [by_matrix.lowered(call, node)]
        body = (
            None if translate is not None and not stored else functions.body(self, call, domain, node, schema)
        )
        if body is not None:
            return functions.expanded(self, call, node, schema, body)
        if stored and not getattr(translate, "refuses", False):
            return [*self.folder.fold(call, domain, node)]
        if translate is None:
            remedy = f'replace it, or teach it to lipverify with @lower.register("{self.build.what}")'
            raise call.refuse("this operator is not covered", remedy)
        if isinstance(first, Masked) and node.op_type in _MOVES and not domain:
            # Where it is -infinity moves as the entries do.
            value, kept = (
                replace(call, inputs=(x, *call.inputs[1:])) for x in (first.value, first.kept.numpy().copy())
            )
            moved, mask = translate(value), self.folder.fold(kept, domain, node)[0]
            return [Masked(moved, torch.from_numpy(mask.copy()))]
        found = translate(call)
        return list(found) if isinstance(found, (list, tuple)) else [found]


_TAKE_CHOICES = ("Where", "Not", "Cast", "Identity", "Mul", "Add")
"""Operators that may take a comparison of computed numbers; whether it jumps there, they say themselves."""
_INTEGERS = (2, 3, 4, 5, 6, 7, 12, 13, 21, 22)
"""Codes of integer types."""
_HALF_BYTES = (21, 22)
"""Codes of integers of four bits, which are held in bytes."""
_ZERO_POINTS = {
    "QGemm": 8, "QLinearAdd": 7, "QLinearMul": 7, "QLinearConcat": 1, "QuantizeLinear": 2,
    **dict.fromkeys((f"QLinear{name}" for name in ("Sigmoid", "LeakyRelu", "AveragePool", "GlobalAveragePool", "Softmax")), 4),
}  # fmt: skip
"""Operators of onnxruntime -> which operand is the zero point of the result, whose type is that of the result."""
_OF_INTEGERS = (
    "DequantizeLinear", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "Cast", "Identity", "Reshape",
    "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Concat", "Split", "Expand", "MaxPool", "Shape", "Size",
    "Pad",
)  # fmt: skip
"""Operators that compute with integers as with real numbers, or only move them."""
_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Expand", "Slice", "Gather", "Flatten")


_KEPT = 1 << 20
"""Bytes up to which a stored tensor is kept decoded: larger ones are read by one node, which has them as parameters then."""


class _Initialisers(dict[str, Stored]):
    """The stored tensors of a graph, decoded when they are read."""

    def __init__(self, graph: Any, held: Mapping[str, Stored]) -> None:
        super().__init__()
        self._held = held
        self._protos = {tensor.name: tensor for tensor in getattr(graph, "initializer", ())}

    def __contains__(self, name: object) -> bool:
        return name in self._protos

    def __missing__(self, name: str) -> Stored:
        if name in self._held:
            return self._held[name]
        found: Stored = numpy_helper.to_array(self._protos[name])
        if found.dtype.name in ("int4", "uint4"):  # two in a byte of the file, bytes here
            found = found.astype(np.int8 if found.dtype.name == "int4" else np.uint8)
        if found.nbytes <= _KEPT:
            self[name] = found
        return found


def needed(graph: Any, wanted: Iterable[str]) -> tuple[list[Any], set[str]]:
    """The nodes that these values depend on, in topological order as close to the file's as possible, and all names they read.

    Raises:
        InvalidFile: the graph has a cycle.
    """
    positions, read = needed_nodes(graph, wanted)
    nodes = list(graph.node)
    writer = {name: i for i in positions for name in nodes[i].output if name}
    sources = {i: {writer[name] for name in names_read(nodes[i]) if name in writer} for i in positions}
    readers: dict[int, list[int]] = {i: [] for i in positions}
    for i, found in sources.items():
        for source in found:
            readers[source].append(i)
    ready = [i for i, found in sources.items() if not found]
    heapq.heapify(ready)
    missing = {i: len(found) for i, found in sources.items()}
    order = []
    while ready:
        i = heapq.heappop(ready)
        order.append(nodes[i])
        for reader in readers[i]:
            missing[reader] -= 1
            if missing[reader] == 0:
                heapq.heappush(ready, reader)
    if len(order) < len(positions):
        raise InvalidFile("the ONNX graph has a cycle; export it again")
    return order, read


def check_schema(build: OnnxBuilder, node: Any, domain: str, versions: dict[str, int]) -> Any:
    """Holds a node of a domain that onnx defines against its definition there, and gives that definition.

    Raises:
        UnsupportedModel: the operator set has no such operator, or one that nobody has read yet.
        InvalidFile: inputs or attributes the operator does not have.
    """
    version = versions.get(domain)
    if version is None:
        raise build.invalid(f'the model does not say which version of "{display(domain, 40)}" it uses')
    try:
        schema = onnx.defs.get_schema(node.op_type, version, domain)
    except onnx.defs.SchemaError:
        raise build.refuse(
            f"operator set {version} of ONNX has no such operator", (), "export the model again"
        ) from None
    if schema.deprecated:
        raise build.refuse(
            f"this operator was removed from operator set {version}", (), "export the model again"
        )
    if not domain and schema.since_version > NEWEST.get(node.op_type, schema.since_version):
        raise build.refuse(
            f"version {schema.since_version} of this operator is newer than the one that is covered, "
            f"{NEWEST[node.op_type]}; export with an older opset_version"
        )
    if not schema.min_input <= len(node.input) <= schema.max_input:
        raise build.invalid(f"it has {len(node.input)} inputs")
    if not schema.min_output <= len(node.output) <= schema.max_output:
        raise build.invalid(f"it has {len(node.output)} outputs")
    for attribute in node.attribute:
        known = schema.attributes.get(attribute.name)
        if known is None:
            raise build.invalid(
                f'operator set {version} gives it no attribute "{display(attribute.name, 40)}"'
            )
        if int(known.type) != attribute.type:
            raise build.invalid(f'its attribute "{attribute.name}" is not of the type that the operator has')
    present = {attribute.name for attribute in node.attribute}
    for name, known in schema.attributes.items():
        if known.required and name not in present:
            raise build.invalid(f'its attribute "{name}" is missing')
    return schema


def _attribute(build: OnnxBuilder, attribute: Any) -> Any:
    """The Python form of an attribute; tensors become arrays."""
    if attribute.ref_attr_name:
        raise build.invalid("it refers to an attribute of a function outside one")
    if attribute.type == AttributeProto.TENSOR:
        return numpy_helper.to_array(attribute.t)
    found = onnx.helper.get_attribute_value(attribute)
    if attribute.type == AttributeProto.STRING:
        return found.decode("utf-8", "replace")
    if attribute.type == AttributeProto.STRINGS:
        return [text.decode("utf-8", "replace") for text in found]
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
