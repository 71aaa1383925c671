"""A file of one type of floats written in float64: what its roundings hide can be compared there."""

from __future__ import annotations

from typing import Any

import numpy as np


def widened(data: bytes, name: str) -> bytes | None:
    """A file of the type of this input alone, float32 or float16, without subgraphs, in float64; None where it holds another type
    of floats."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.ModelProto.FromString(data)
    graph = model.graph
    own = next((i.type.tensor_type.elem_type for i in graph.input if i.name == name), None)
    others = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE} - {own}
    if own not in (TensorProto.FLOAT, TensorProto.FLOAT16):
        return None

    def wide(tensor: Any) -> None:
        if tensor.data_type == own:
            values = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return None
    scales = {
        name for node in graph.node if node.op_type in ("Resize", "Upsample") for name in node.input[1:]
    }
    del graph.value_info[:]
    stored = [t for t in graph.initializer if t.name not in scales]
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                if own != TensorProto.FLOAT:
                    return None
                value = attribute.f if attribute.name == "value_float" else list(attribute.floats)
                attribute.CopyFrom(
                    helper.make_attribute("value", numpy_helper.from_array(np.array(value, np.float64)))
                )
            elif attribute.HasField("t") and scales.isdisjoint(node.output):
                stored.append(attribute.t)
            elif node.op_type == "Cast" and attribute.name == "to":
                if attribute.i in {*others, TensorProto.BFLOAT16}:
                    return None
                attribute.i = TensorProto.DOUBLE if attribute.i == own else attribute.i
    if any(t.data_type in others for t in graph.initializer) or any(t.data_type in others for t in stored):
        return None
    for tensor in stored:
        wide(tensor)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == own:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    return bytes(model.SerializeToString())
