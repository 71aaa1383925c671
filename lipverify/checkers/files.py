"""Files as the checker reads them: strict JSON, strict safetensors, ONNX."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lipverify.checkers.arithmetic import Array, NotCovered, need
from lipverify.checkers.operators import run
from lipverify.checkers.steps import Call, Program

MAX_CERTIFICATE, MAX_MODEL = 64 << 20, 4 << 30
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8"}


@dataclass(frozen=True)
class Model:
    """What is known of a model without any certificate.

    tensors: by digest, as stored. program: what it computes, where the file tells (None: `reason`). binding: `file` (operators
    and weights are the file's), `weights` (a file of weights alone) or `graph` (a graph in memory, known by `digest`).
    """

    name: str
    sha256: str | None
    tensors: Mapping[str, Array]
    binding: str
    program: Program | None = None
    outputs: tuple[str, ...] = ()
    reason: str = ""
    digest: str | None = None


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
        need(len(dict(pairs)) == len(pairs), "a name occurs twice")
        return dict(pairs)

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
    header, tensors, base, end = parse_json(data[8 : 8 + length]), {}, 8 + length, 0
    header.pop("__metadata__", None)
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        (start, stop), shape = entry["data_offsets"], entry["shape"]
        need(entry.keys() == {"dtype", "shape", "data_offsets"} and len(shape) <= 8, "fields of a tensor")
        need(all(type(n) is int and n >= 0 for n in (start, stop, *shape)), "sizes of a tensor")
        need(start == end and start <= stop <= len(data) - base, "tensors overlap or leave a gap")
        end = stop
        if entry["dtype"] in _TYPES:
            dtype, count = np.dtype(_TYPES[entry["dtype"]]), math.prod(shape)
            need(stop - start == count * dtype.itemsize, "a tensor's bytes")
            tensors[name] = np.frombuffer(data, dtype, count, base + start).reshape(shape)
    need(base + end == len(data), "tensors do not fill the file")
    return tensors


def digest_of(array: Array) -> str:
    """sha256 of type, shape and little-endian numbers of a stored tensor."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return hashlib.sha256(f"{array.dtype.name}{list(array.shape)}".encode() + little.tobytes()).hexdigest()


def read_model(path: Path) -> Model:
    """A model file: ONNX (operators and weights), safetensors (weights), or weights that only their digest names."""
    data = read_bytes(path, MAX_MODEL)
    sha256, name = hashlib.sha256(data).hexdigest(), path.name
    if data[8:9] == b"{" and struct.unpack_from("<Q", data)[0] <= len(data):
        return Model(name, sha256, {digest_of(a): a for a in parse_safetensors(data).values()}, "weights")
    if data[:2] in (b"PK", b"\x80\x02", b"\x80\x04"):
        return Model(name, sha256, {}, "weights")
    try:
        return Model(name, sha256, {}, "file", *_onnx(data))
    except NotCovered as error:
        return Model(name, sha256, {}, "file", None, (), str(error))


def _onnx(data: bytes) -> tuple[Program, tuple[str, ...]]:
    """Operators of an ONNX file, read with no help from the importer whose work is being checked."""
    import onnx

    try:
        model = onnx.ModelProto.FromString(data)
    except Exception:  # whatever the parser says of a stranger's bytes is one refusal
        need(False, "neither safetensors nor ONNX")
    graph, stored = model.graph, {}
    version = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if model.functions or not 7 <= version <= 24:
        raise NotCovered(f"functions and operator set {version} are not covered by the checker")
    for tensor in graph.initializer:
        if tensor.data_location:
            raise NotCovered("external data is not covered by the checker")
        stored[tensor.name] = onnx.numpy_helper.to_array(tensor)
    inputs = [value for value in graph.input if value.name not in stored]
    need(len(inputs) == 1, "the model has several inputs")
    sizes = inputs[0].type.tensor_type.shape.dim
    shape = [d.dim_value or (1 if i == 0 else 0) for i, d in enumerate(sizes)]
    if min(shape, default=0) < 1 or 1 not in (shape[0], len(shape)):
        raise NotCovered(f"inputs of shape {shape} are not covered by the checker")
    program = Program(inputs[0].name, shape, stored, version)
    # Operators behind no output are not looked at; backwards, every one comes before its inputs.
    wanted, calls = {value.name for value in graph.output}, []
    for node in reversed(graph.node):
        if not wanted.isdisjoint(node.output):
            wanted |= set(node.input)
            calls.append(node)
    for node in reversed(calls):
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        given = {k: v.decode() if isinstance(v, bytes) else v for k, v in given.items()}
        if node.op_type == "Constant" and set(given) == {"value"}:
            stored[node.output[0]] = onnx.numpy_helper.to_array(given["value"])
        elif node.domain not in ("", "ai.onnx"):
            raise NotCovered(f"the domain {node.domain[:40]!a} is not covered by the checker")
        elif node.op_type == "Split":
            for part, name in enumerate(node.output):
                given |= {"part": part, "parts": len(node.output)}
                run(program, Call("Split", list(node.input), name, given))
        else:
            run(program, Call(node.op_type, list(node.input), node.output[0], given))
    return program, tuple(value.name for value in graph.output)
