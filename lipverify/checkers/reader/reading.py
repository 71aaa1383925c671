"""How a claim reads the inputs of an ONNX file that has several, or that leaves sizes open: what varies, what stands for others.

The sentence of the claim says it in the words made here. Numbers that stand for an input are of its type, and of its sizes where
the file tells those.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lipverify.checkers.kernel.account import charge
from lipverify.checkers.kernel.program import Array
from lipverify.errors import UnreadableCertificate

FIXED_KINDS = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")


@dataclass(frozen=True)
class Stated:
    """What stands for an input: one number for all entries, or the tensor of a digest."""

    kind: str
    shape: tuple[int, ...]
    value: float | int | None
    digest: str | None

    def words(self) -> str:
        """The type, the sizes, and the number or the digest."""
        held = f"{self.value!r}" if self.digest is None else f"the tensor with digest {self.digest}"
        return f"of type {self.kind} and shape {list(self.shape)} fixed at {held}"


@dataclass(frozen=True)
class Reading:
    """inputs: names and sizes of those that vary, one after the other in one vector where there are several.

    arrays: of what is fixed, by name, once they are known.
    """

    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    fixed: Mapping[str, Stated] = field(default_factory=dict)
    arrays: Mapping[str, Array] = field(default_factory=dict, compare=False)

    def words(self) -> str:
        """As a sentence ends: `, a function of its input 'x' of shape [2] with 'h' of type int8 and shape [] fixed at 0`."""
        listed = " and ".join(f"{name!a} of shape {list(shape)}" for name, shape in self.inputs)
        vector = "" if len(self.inputs) == 1 else ", one after the other as one vector"
        held = " and ".join(f"{name!a} {value.words()}" for name, value in self.fixed.items())
        many = "s" * (len(self.inputs) > 1)
        return f", a function of its input{many} {listed}{vector}{f' with {held}' if held else ''}"

    def to_json(self) -> dict[str, Any]:
        """As in a certificate."""
        return {
            "inputs": [{"name": name, "shape": list(shape)} for name, shape in self.inputs],
            "fixed": [
                {
                    "name": name,
                    "kind": s.kind,
                    "shape": list(s.shape),
                    "value": s.value.hex() if isinstance(s.value, float) else s.value,
                    "digest": s.digest,
                }
                for name, s in self.fixed.items()
            ],
        }

    def known(self, beside: Mapping[str, Array], digest_of: Any) -> Reading:
        """With its arrays, those of digests from beside the certificate; equal numbers are held once."""
        # What a runtime is given is written out: its bytes, and twice on the way.
        charge(4 * sum(math.prod(stated.shape) for stated in self.fixed.values()))
        found = {}
        for name, stated in self.fixed.items():
            if stated.digest is None:
                assert stated.value is not None
                found[name] = np.broadcast_to(np.array(stated.value, np.dtype(stated.kind)), stated.shape)
                continue
            array = beside.get(f"fixed.{stated.digest}")
            if array is None or digest_of(array) != stated.digest:
                raise UnreadableCertificate(
                    f"the numbers of input {name[:40]!a} are not there, or other ones"
                )
            if array.dtype != np.dtype(stated.kind) or array.shape != stated.shape:
                raise UnreadableCertificate(f"the numbers of input {name[:40]!a} are of another type or size")
            found[name] = array
        return Reading(self.inputs, self.fixed, found)


def stating(
    inputs: Sequence[tuple[str, tuple[int, ...]]], fixed: Mapping[str, Array], digest_of: Any
) -> Reading:
    """The reading that fixes these arrays: equal numbers are stated, others by their digest."""
    stated = {}
    for name, array in fixed.items():
        same = array.size > 0 and bool((array == array.flat[0]).all())
        number = array.flat[0].item() if same else None
        if isinstance(number, bool):
            number = int(number)
        digest = None if same else digest_of(array)
        stated[name] = Stated(array.dtype.name, array.shape, number, digest)
    return Reading(tuple(inputs), stated, dict(fixed))


# -- for a runtime, which is only held against what was read


def fed(data: bytes, reading: Reading) -> bytes:
    """The bytes of the file as one of one input: fixed numbers stored, several inputs cut from one vector, sizes told."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.ModelProto.FromString(data)
    graph = model.graph
    values = {value.name: value for value in graph.input}
    shapes, defaults = dict(reading.inputs), [t for t in graph.initializer if t.name not in reading.fixed]
    del graph.initializer[:]
    graph.initializer.extend(defaults)
    for name, array in reading.arrays.items():
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    stored = {t.name for t in graph.initializer}
    own = [v for v in graph.input if v.name in stored and v.name not in reading.fixed]
    del graph.input[:]
    kind = values[reading.inputs[0][0]].type.tensor_type.elem_type
    if len(shapes) == 1:
        ((name, shape),) = reading.inputs
        graph.input.extend([helper.make_tensor_value_info(name, kind, shape), *own])
        return bytes(model.SerializeToString())
    start, nodes, whole = 0, [], "inputs of the claim"
    for k, (name, shape) in enumerate(reading.inputs):
        size = math.prod(shape)
        for what, numbers in (
            ("places", np.arange(start, start + size)),
            ("sizes", np.array(shape, np.int64)),
        ):
            graph.initializer.append(numpy_helper.from_array(numbers, f"{whole}/{what} {k}"))
        nodes.append(helper.make_node("Gather", [whole, f"{whole}/places {k}"], [f"{whole}/{k}"], axis=0))
        nodes.append(helper.make_node("Reshape", [f"{whole}/{k}", f"{whole}/sizes {k}"], [name]))
        start += size
    later = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *later])
    graph.input.extend([helper.make_tensor_value_info(whole, kind, [start]), *own])
    return bytes(model.SerializeToString())
