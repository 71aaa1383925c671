"""Element types along a graph, held against the definitions of the operators.

A graph here computes with real numbers, whatever type its source has. So types that a runtime would refuse, or would compute
something else with, must not pass unnoticed: a product of float16 and float32 numbers, or of 8-bit integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx

from lipverify.errors import InvalidFile

_NAMES = {
    1: "float", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "double", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
    21: "uint4", 22: "int4",
}  # fmt: skip


class ElementTypes:
    """What is known: name of a tensor -> its code in onnx.TensorProto.DataType. Names without an entry are not checked."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def declare(self, graph: Any) -> None:
        """Takes over what inputs and initialisers of a graph say."""
        for value in graph.input:
            if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type in _NAMES:
                self.known[value.name] = value.type.tensor_type.elem_type
        for tensor in graph.initializer:
            self.known[tensor.name] = tensor.data_type

    def check(self, node: Any, schema: Any, invalid: Callable[[str], InvalidFile]) -> dict[str, str]:
        """The types that the operator's type variables stand for.

        Raises:
            InvalidFile: an input has a type that the operator does not take, or two inputs differ that must not.
        """
        allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
        bound: dict[str, str] = {}
        for position, name, formal in _paired(node.input, schema.inputs):
            if name not in self.known:
                continue
            kind = f"tensor({_NAMES[self.known[name]]})"
            taken = allowed.get(formal.type_str, {formal.type_str})
            if kind not in taken and any(text.startswith("tensor(") for text in taken):
                raise invalid(f"its input {position} is a {kind}, which this operator does not take")
            homogeneous = (
                formal.is_homogeneous or formal.option != onnx.defs.OpSchema.FormalParameterOption.Variadic
            )
            if formal.type_str in allowed and homogeneous:
                first = bound.setdefault(formal.type_str, kind)
                if first != kind:
                    raise invalid(f"its inputs mix a {first} and a {kind}, which this operator does not take")
        return bound

    def record(self, node: Any, schema: Any, bound: dict[str, str], results: Sequence[Any]) -> None:
        """What is known of a node's outputs. results: what they became, stored ones as arrays."""
        allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        for position, name, formal in _paired(node.output, schema.outputs):
            result = results[position] if position < len(results) else None
            kind = bound.get(formal.type_str)
            choices = allowed.get(formal.type_str, [formal.type_str])
            if isinstance(result, np.ndarray):
                code = _of_array(result)
            elif kind is None and len(choices) == 1:
                code = _code(choices[0])
            else:
                code = _code(kind) if kind is not None else self._from_attributes(node)
            if code is None:
                self.known.pop(name, None)
            else:
                self.known[name] = code

    def _from_attributes(self, node: Any) -> int | None:
        """Conversions name their result's type."""
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype", "output_dtype") and attribute.i in _NAMES:
                return int(attribute.i)
        if node.op_type == "CastLike":
            return self.known.get(node.input[1])
        return self.known.get(node.input[1]) if node.op_type == "DequantizeLinear" else None


def _paired(names: Sequence[str], formals: Sequence[Any]) -> Iterator[tuple[int, str, Any]]:
    """Positions and names with their formal parameters; the last one may take any number of them."""
    for position, name in enumerate(names):
        if name and formals:
            yield position, name, formals[min(position, len(formals) - 1)]


def type_proto(code: int, shape: Sequence[int]) -> bytes:
    """A type of the ONNX format, as the functions of operators ask for it."""
    return onnx.helper.make_tensor_type_proto(code, list(shape)).SerializeToString()  # type: ignore[no-any-return]


def _code(kind: str) -> int | None:
    return next((code for code, name in _NAMES.items() if kind == f"tensor({name})"), None)


def _of_array(array: Any) -> int | None:
    try:
        return int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
    except (KeyError, ValueError, TypeError):
        return None
