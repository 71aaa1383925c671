"""Small ONNX models, and the comparison of their import with the reference evaluator of onnx."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from lipverify.frontends.onnx import extract_onnx
from lipverify.interpreter import evaluate_all
from lipverify.ir.graph import Graph

Array = Any
IR_VERSIONS = {
    7: 3,
    8: 3,
    9: 4,
    10: 5,
    11: 6,
    12: 7,
    13: 7,
    14: 7,
    15: 8,
    16: 8,
    17: 8,
    18: 8,
    19: 9,
    20: 9,
    21: 10,
}


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> Any:
    """A node whose name is its first output."""
    return helper.make_node(op, list(inputs), list(outputs), name=f"{outputs[0]}_node", **attributes)


def model(
    nodes: Sequence[Any],
    shape: Sequence[int | str | None],
    opset: int = 17,
    constants: Mapping[str, Array] | None = None,
    outputs: Sequence[str] = ("y",),
    *,
    kind: int = TensorProto.FLOAT,
    **fields: Any,
) -> Any:
    """A model with the input `x` of this shape; float64 constants become float32."""
    stored = [
        numpy_helper.from_array(
            np.asarray(a, np.float32) if np.asarray(a).dtype == np.float64 else np.asarray(a), n
        )
        for n, a in (constants or {}).items()
    ]
    given = [helper.make_tensor_value_info("x", kind, shape)]
    if opset < 9:  # older files list their stored tensors as inputs too
        given += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in stored]
    results = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
    graph = helper.make_graph(list(nodes), "g", given, results, stored)
    fields.setdefault("opset_imports", [helper.make_opsetid("", opset)])
    return helper.make_model(graph, ir_version=IR_VERSIONS.get(opset, 10), **fields)


def in_double(nodes: Sequence[Any], shape: Sequence[int | str | None], constants: Mapping[str, Any]) -> Any:
    """A model of float64 throughout."""
    found = model(nodes, shape, 13, kind=TensorProto.DOUBLE)
    stored = [numpy_helper.from_array(np.asarray(a, np.float64), n) for n, a in constants.items()]
    found.graph.initializer.extend(stored)
    return found


def samples(graph: Graph, count: int, seed: int = 0) -> torch.Tensor:
    """Random samples of several sizes, float32."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((count, *graph.input_shape), generator=generator)
    return x * torch.logspace(-1, 0.7, count).reshape(-1, *(1,) * len(graph.input_shape))


def by_reference(source: Any, x: Array) -> list[Array]:
    """What the evaluator of onnx gives."""
    with np.errstate(all="ignore"):
        return list(ReferenceEvaluator(source).run(None, {"x": x}))


def by_onnxruntime(source: Any, x: Array) -> list[Array]:
    """What onnxruntime gives, for the few forms that the evaluator of onnx lacks or gets wrong."""
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(
        source.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, {"x": x}))


def agrees(
    source: Any,
    *,
    batched: bool = True,
    tolerance: float = 2e-5,
    reader: Callable[[Any, Array], list[Array]] = by_reference,
    **options: Any,
) -> Graph:
    """Imports a model and compares every output with a reader of the model; returns the graph.

    batched: the input has a batch axis in front, and so have the outputs.
    """
    graph = extract_onnx(source, **options)
    assert graph.origin.import_check is not None
    assert graph.origin.import_check.samples > 0
    x = samples(graph, 5)
    mine = evaluate_all(graph, x)
    for i, row in enumerate(x):
        wanted = reader(source, row[None].numpy() if batched else row.numpy())
        for name, right in zip(graph.outputs, wanted, strict=True):
            value = mine[name]
            left = value.expand(len(x), *value.shape[1:])[i].numpy()
            expected = np.asarray(right).reshape(left.shape)
            scale = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)))
            np.testing.assert_allclose(left, expected, rtol=0, atol=tolerance * scale, err_msg=name)
    return graph


def random(*shape: int, seed: int = 0) -> Array:
    """Normal float32 numbers that differ from call to call only by their shape and seed."""
    return np.random.default_rng([*shape, seed]).standard_normal(shape).astype(np.float32)


def ints(*numbers: int) -> Array:
    """A stored list of whole numbers."""
    return np.array(numbers, np.int64)
