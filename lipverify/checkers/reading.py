"""Files as the checker reads them: strict JSON, strict safetensors, and the operators of an ONNX file it knows itself."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lipverify.checkers.arithmetic import Array
from lipverify.checkers.graph import Graph, Node, NotCovered, digest_of, need, node_of

MAX_CERTIFICATE, MAX_MODEL = 64 << 20, 4 << 30
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8"}


@dataclass(frozen=True)
class Model:
    """What is known of a model without any certificate.

    tensors: by digest, as stored. outputs: the graph's identities, where the file tells its architecture.
    """

    name: str
    sha256: str | None
    tensors: Mapping[str, Array]
    binding: str
    """`file`: the file holds operators and weights; `weights`: weights alone; `graph`: a graph in memory."""
    outputs: tuple[str, ...] | None = None
    reason: str = ""
    """Why a file that holds an architecture could not be read as one."""


def read_bytes(path: Path, limit: int) -> bytes:
    """A regular file of at most `limit` bytes."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb") as file:
        status = os.fstat(handle)
        need(stat.S_ISREG(status.st_mode), f"{path.name[:80]!a} is not a regular file")
        need(status.st_size <= limit, f"{path.name[:80]!a} is larger than {limit} bytes")
        return file.read(limit + 1)


def parse_json(data: bytes) -> Any:
    """JSON without duplicate names, infinities or long integers."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        need(len(table) == len(pairs), "a name occurs twice")
        return table

    def integer(digits: str) -> int:
        need(len(digits) <= 18, "an integer has too many digits")
        return int(digits)

    def refuse(number: str) -> None:
        need(False, f"{number} is no number")

    try:
        text = data.decode("utf-8", "strict")
        return json.loads(text, object_pairs_hook=unique, parse_int=integer, parse_constant=refuse)
    except (ValueError, RecursionError):
        return need(False, "not JSON in UTF-8")


def parse_safetensors(data: bytes) -> dict[str, Array]:
    """Tensors that tile the file exactly."""
    need(len(data) >= 8, "fewer than 8 bytes")
    (length,) = struct.unpack_from("<Q", data)
    need(length <= len(data) - 8 and length <= 16 << 20, "a header that does not fit")
    header = parse_json(data[8 : 8 + length])
    need(isinstance(header, dict), "a header that is no table")
    header.pop("__metadata__", None)
    base, end = 8 + length, 0
    for entry in header.values():
        need(
            isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"},
            "fields of a tensor",
        )
        for numbers in (entry["shape"], entry["data_offsets"]):
            need(
                isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers),
                "sizes of a tensor",
            )
        need(len(entry["data_offsets"]) == 2 and len(entry["shape"]) <= 8, "sizes of a tensor")
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        (start, stop), count = entry["data_offsets"], math.prod(entry["shape"])
        need(start == end and start <= stop, "tensors overlap or leave a gap")
        end = stop
        if entry["dtype"] in _TYPES:
            dtype = np.dtype(_TYPES[entry["dtype"]])
            need(stop - start == count * dtype.itemsize and base + stop <= len(data), "a tensor's bytes")
            tensors[name] = np.frombuffer(data, dtype, count, base + start).reshape(entry["shape"])
    need(base + end == len(data), "tensors do not fill the file")
    return tensors


def read_model(path: Path) -> Model:
    """A model file: ONNX (operators and weights), safetensors (weights), or weights that only their digest names."""
    data = read_bytes(path, MAX_MODEL)
    sha256, name = hashlib.sha256(data).hexdigest(), path.name
    if data[8:9] == b"{" and len(data) > 8 and struct.unpack_from("<Q", data)[0] <= len(data):
        arrays = parse_safetensors(data)
        return Model(name, sha256, {digest_of(a): a for a in arrays.values()}, "weights")
    if data[:2] in (b"PK", b"\x80\x02", b"\x80\x04"):
        return Model(name, sha256, {}, "weights")
    try:
        graph = _Onnx(data)
        return Model(name, sha256, graph.pool, "file", graph.identities())
    except NotCovered as error:
        return Model(name, sha256, {}, "file", (), str(error))


class _Onnx:
    """Operators of an ONNX file, translated with no help from the importer whose work is being checked."""

    def __init__(self, data: bytes) -> None:
        import onnx
        from onnx import numpy_helper

        try:
            model = onnx.ModelProto.FromString(data)
        except Exception:
            need(False, "neither safetensors nor ONNX")
        graph = model.graph
        if model.functions or any(o.domain not in ("", "ai.onnx") for o in model.opset_import):
            raise NotCovered("functions and operator sets of other domains are not covered by the checker")
        self.version = max((o.version for o in model.opset_import), default=0)
        if not 7 <= self.version <= 24:
            raise NotCovered(f"operator set {self.version} is not covered by the checker")
        need(
            not any(t.data_location for t in graph.initializer), "external data is not covered by the checker"
        )
        self.stored: dict[str, Array] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.nodes: dict[str, Node] = {}
        self.pool: dict[str, Array] = {}
        self.outputs = [value.name for value in graph.output]
        self.alias: dict[str, str] = {}
        inputs = [value for value in graph.input if value.name not in self.stored]
        need(len(inputs) == 1, "the model has several inputs")
        shape = [d.dim_value if d.HasField("dim_value") else 0 for d in inputs[0].type.tensor_type.shape.dim]
        if len(shape) < 2 or shape[0] not in (0, 1) or min(shape[1:]) < 1:
            raise NotCovered(f"inputs of shape {shape} are not covered by the checker")
        self._add(inputs[0].name, "Input", (), {}, {}, tuple(shape[1:]))
        for node in graph.node:
            self._lower(node, {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute})

    def identities(self) -> tuple[str, ...]:
        names = [self._value(name).name for name in self.outputs]
        return tuple(Graph(self.nodes, name).identity(name) for name in names)

    def _value(self, name: str) -> Node:
        name = self.alias.get(name, name)
        if name not in self.nodes:
            raise NotCovered("a stored tensor where a computed one is expected")
        return self.nodes[name]

    def _add(self, name: str, op: str, inputs: tuple[str, ...], settings: Mapping[str, Any], tensors: Mapping[str, Array],
             shape: tuple[int, ...] | None = None) -> None:  # fmt: skip
        known = {field: (array, digest_of(array)) for field, array in tensors.items()}
        self.pool.update({digest: array for array, digest in known.values()})
        need(name not in self.nodes, "two nodes write one value")
        self.nodes[name] = node_of(name, op, self.nodes, inputs, settings, known, shape)

    def _lower(self, node: Any, given: dict[str, Any]) -> None:
        if node.op_type not in _ONNX or node.domain not in ("", "ai.onnx"):
            raise NotCovered(f"ONNX operator {node.op_type[:40]!a} is not covered by the checker")
        known, translate = _ONNX[node.op_type]
        if unknown := set(given) - set(known.split()):
            raise NotCovered(
                f"attribute {min(unknown)[:40]!a} of {node.op_type} is not covered by the checker"
            )
        translate(self, node, given)

    def operand(self, node: Any, position: int) -> Array:
        """A stored input."""
        name = node.input[position]
        if name not in self.stored:
            raise NotCovered(f"{node.op_type} of several computed tensors is not covered by the checker")
        return self.stored[name]

    def unary(self, node: Any, op: str, settings: Mapping[str, Any] | None = None, **tensors: Array) -> None:
        self._add(node.output[0], op, (self._value(node.input[0]).name,), settings or {}, tensors)

    def join(self, node: Any, op: str, settings: Mapping[str, Any] | None = None) -> None:
        self._add(
            node.output[0], op, tuple(self._value(name).name for name in node.input), settings or {}, {}
        )

    def sample(self, array: Array, like: Node) -> Array:
        """A stored operand without the axes of size 1 that broadcasting adds in front."""
        while array.ndim > len(like.shape):
            need(array.shape[0] == 1, "a stored operand that tells samples apart")
            array = array[0]
        return array


def _constant(g: _Onnx, node: Any, a: dict[str, Any]) -> None:
    from onnx import numpy_helper

    g.stored[node.output[0]] = numpy_helper.to_array(a["value"])


def _gemm(g: _Onnx, node: Any, a: dict[str, Any]) -> None:
    if a.get("alpha", 1.0) != 1 or a.get("beta", 1.0) != 1 or a.get("transA", 0):
        raise NotCovered("a scaled or transposed Gemm is not covered by the checker")
    right = g.operand(node, 1)
    g.unary(node, "Linear", weight=right if a.get("transB", 0) else np.ascontiguousarray(right.T))


def _matmul(g: _Onnx, node: Any, a: dict[str, Any]) -> None:
    right = g.operand(node, 1)
    need(right.ndim == 2, "a stored factor that is no matrix")
    g.unary(node, "Linear", weight=np.ascontiguousarray(right.T))


def _arithmetic(g: _Onnx, node: Any, a: dict[str, Any]) -> None:
    kinds = [name in g.stored for name in node.input]
    if not any(kinds):
        if node.op_type not in ("Add", "Sub"):
            raise NotCovered(f"{node.op_type} of computed tensors is not covered by the checker")
        return g.join(node, node.op_type)
    place = kinds.index(True)
    if place == 0 and node.op_type in ("Sub", "Div"):
        raise NotCovered(f"{node.op_type} from a stored tensor is not covered by the checker")
    x = g._value(node.input[1 - place])
    operand = g.sample(g.stored[node.input[place]], x)
    need(np.broadcast_shapes(operand.shape, x.shape) == x.shape, "a stored operand larger than the tensor")
    field = {"Add": "shift", "Sub": "shift", "Mul": "scale", "Div": "divisor"}[node.op_type]
    op = "DivideBy" if node.op_type == "Div" else "Scale"
    return g._add(node.output[0], op, (x.name,), {}, {field: operand})


def _window(g: _Onnx, node: Any, a: dict[str, Any], kernel: tuple[int, ...]) -> dict[str, Any]:
    n = len(kernel)
    if (
        a.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
        or a.get("ceil_mode", 0)
        or a.get("storage_order", 0)
    ):
        raise NotCovered("automatic padding and rounding up are not covered by the checker")
    pads = a.get("pads", [0] * 2 * n)
    need(len(pads) == 2 * n and tuple(a.get("kernel_shape", kernel)) == kernel, "a window")
    return {"stride": tuple(a.get("strides", [1] * n)), "padding": tuple(zip(pads[:n], pads[n:], strict=True)),
            "dilation": tuple(a.get("dilations", [1] * n))}  # fmt: skip


def _conv(g: _Onnx, node: Any, a: dict[str, Any]) -> None:
    weight = g.operand(node, 1)
    g.unary(
        node, "Conv", {**_window(g, node, a, weight.shape[2:]), "groups": a.get("group", 1)}, weight=weight
    )


def _pool(g: _Onnx, node: Any, a: dict[str, Any]) -> None:
    kernel = tuple(a["kernel_shape"])
    settings = {"kernel": kernel, **_window(g, node, a, kernel)}
    if node.op_type == "AveragePool":
        need(set(settings.pop("dilation")) == {1}, "a dilated average")
        settings |= {
            "count_include_pad": bool(a.get("count_include_pad", 0)),
            "uncounted": (0,) * len(kernel),
        }
    g.unary(node, "MaxPool" if node.op_type == "MaxPool" else "AvgPool", settings)


def _global(g: _Onnx, node: Any, a: dict[str, Any]) -> None:
    axes = tuple(range(1, len(g._value(node.input[0]).shape)))
    g.unary(node, "ReduceMean", {"axes": axes, "keepdims": True})


def _batch_norm(g: _Onnx, node: Any, a: dict[str, Any]) -> None:
    need(not a.get("training_mode", 0), "batch normalisation in training mode")
    settings = {"eps": a.get("epsilon", float(np.float32(1e-5))), "axis": 0}
    g.unary(node, "BatchNorm", settings, weight=g.operand(node, 1), var=g.operand(node, 4))


def _reshape(g: _Onnx, node: Any, a: dict[str, Any]) -> None:
    x = g._value(node.input[0])
    if node.op_type == "Flatten":
        need(a.get("axis", 1) == 1, "a flattened batch")
        target = [1, -1]
    else:
        target = [int(n) for n in g.operand(node, 1)]
        need(not a.get("allowzero", 0), "a reshape to size 0")
    full = (1, *x.shape)
    target = [full[i] if n == 0 else n for i, n in enumerate(target)]
    target = [-x.size // math.prod(target) if n == -1 else n for n in target]
    if target[0] != 1:
        raise NotCovered("a reshape of the batch axis is not covered by the checker")
    g.unary(node, "Reshape", {"shape": tuple(target[1:])})


def _transpose(g: _Onnx, node: Any, a: dict[str, Any]) -> None:
    need(a["perm"][0] == 0, "a transposed batch")
    g.unary(node, "Transpose", {"order": tuple(axis - 1 for axis in a["perm"][1:])})


def _slice(g: _Onnx, node: Any, a: dict[str, Any]) -> None:
    given = [[int(n) for n in g.operand(node, i)] for i in range(1, len(node.input))]
    need(2 <= len(given) <= 4, "a slice without ends")
    starts, ends = given[:2]
    x = g._value(node.input[0])
    axes = [n % (len(x.shape) + 1) for n in given[2]] if len(given) > 2 else list(range(len(starts)))
    steps = given[3] if len(given) > 3 else [1] * len(starts)
    cuts = list(zip(axes, starts, ends, steps, strict=True))
    need(all(axis > 0 for axis in axes), "a sliced batch")
    for i, (axis, start, stop, step) in enumerate(cuts):
        need(step > 0, "a slice backwards")
        start, stop, step = slice(start, stop, step).indices(x.shape[axis - 1])
        name = node.output[0] if i == len(cuts) - 1 else f"{node.output[0]}\0{i}"
        g._add(name, "Slice", (x.name,), {"axis": axis - 1, "start": start, "stop": stop, "step": step}, {})
        x = g.nodes[name]


def _pad(g: _Onnx, node: Any, a: dict[str, Any]) -> None:
    pads = [int(n) for n in g.operand(node, 1)]
    half = len(pads) // 2
    need(half == len(g._value(node.input[0]).shape) + 1 and not any(node.input[3:]), "a padding of some axes")
    need(pads[0] == pads[half] == 0 and a.get("mode", b"constant") == b"constant", "a padding")
    g.unary(
        node, "Pad", {"padding": tuple(zip(pads[1:half], pads[half + 1 :], strict=True)), "mode": "constant"}
    )


def _concat(g: _Onnx, node: Any, a: dict[str, Any]) -> None:
    axis = a["axis"] if a["axis"] >= 0 else a["axis"] + len(g._value(node.input[0]).shape) + 1
    g.join(node, "Concat", {"axis": axis - 1})


def _clip(g: _Onnx, node: Any, a: dict[str, Any]) -> None:
    ends = [a.get("min", -math.inf), a.get("max", math.inf)]
    for i, name in enumerate(node.input[1:]):
        ends[i] = float(g.operand(node, i + 1).reshape(())) if name else ends[i]
    g.unary(node, "Clip", {"low": float(ends[0]), "high": float(ends[1])})


def _identity(g: _Onnx, node: Any, a: dict[str, Any]) -> None:
    need(
        len(node.input) == 1 or (node.op_type == "Dropout" and not any(node.input[2:])),
        "a dropout in training mode",
    )
    if node.input[0] in g.stored:
        g.stored[node.output[0]] = g.stored[node.input[0]]
    else:
        g.alias[node.output[0]] = g._value(node.input[0]).name


def _with(op: str, **fields: tuple[str, float]) -> Callable[..., None]:
    """A scalar activation: field = (attribute, default); attributes are float32."""

    def translate(g: _Onnx, node: Any, a: dict[str, Any]) -> None:
        g.unary(
            node,
            op,
            {key: float(np.float32(a.get(name, default))) for key, (name, default) in fields.items()},
        )

    return translate


_WINDOW = "auto_pad ceil_mode dilations kernel_shape pads strides storage_order"
_ONNX: dict[str, tuple[str, Callable[..., None]]] = {
    "Constant": ("value", _constant), "Gemm": ("alpha beta transA transB", _gemm), "MatMul": ("", _matmul),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), ("", _arithmetic)), "Conv": (f"group {_WINDOW}", _conv),
    "MaxPool": (_WINDOW, _pool), "AveragePool": (f"count_include_pad {_WINDOW}", _pool), "GlobalAveragePool": ("", _global),
    "BatchNormalization": ("epsilon momentum training_mode", _batch_norm), "Reshape": ("allowzero", _reshape),
    "Flatten": ("axis", _reshape), "Transpose": ("perm", _transpose), "Concat": ("axis", _concat), "Clip": ("min max", _clip),
    "Slice": ("", _slice), "Pad": ("mode", _pad), "Identity": ("", _identity), "Dropout": ("ratio seed", _identity),
    "Relu": ("", _with("ReLU")), **{op: ("", _with(op)) for op in ("Sigmoid", "Tanh", "Abs", "Softsign", "Erf")},
    "LeakyRelu": ("alpha", _with("LeakyReLU", slope=("alpha", 0.01))),
    "Elu": ("alpha", _with("ELU", alpha=("alpha", 1.0))), "Softplus": ("", _with("Softplus", beta=("", 1.0))),
}  # fmt: skip
