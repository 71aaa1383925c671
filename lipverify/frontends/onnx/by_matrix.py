"""Operators that are linear in one of their inputs where the others are stored, by their matrix.

The matrix is what the evaluator of onnx gives for every unit vector, in float64. It is small, or the operator is refused.
Which operators are linear in which input is known from their definitions; that is also checked on random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch

from lipverify.frontends.builder import Value
from lipverify.frontends.onnx.call import Call
from lipverify.frontends.onnx.lowering import Stored

LARGEST_INPUT, LARGEST_MATRIX = 2048, 1 << 22

LINEAR_IN: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "GridSample": (0,), "DeformConv": (0, 1, 3, 4), "Col2Im": (0,), "DFT": (0,),
    "STFT": (0, 2), "AffineGrid": (0,), "RoiAlign": (0,), "MaxUnpool": (0,), "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2), "LayerNormalization": (1, 2), "RMSNormalization": (1,),
    "PRelu": (1,), "DequantizeLinear": (1,),
}  # fmt: skip
"""Operator -> inputs in which it is affine, each alone."""
_AFFINE = (
    "Conv",
    "ConvTranspose",
    "BatchNormalization",
    "InstanceNormalization",
    "LayerNormalization",
)
_ADDED = {
    **{(op, place): 3 - place for op in _AFFINE for place in (1, 2)},
    ("DeformConv", 0): 3, ("DeformConv", 1): 3, ("DeformConv", 3): 1, ("DeformConv", 4): 3,
}  # fmt: skip
"""Operator and the input that varies -> the stored input that is 0 in its linear part: a bias, or the weights beside a bias."""


def applies(call: Call) -> bool:
    """Whether one input alone depends on the graph's input, and the operator is affine in it but has no translation there."""
    places = [i for i, x in enumerate(call.inputs) if isinstance(x, Value)]
    if len(places) != 1 or places[0] not in LINEAR_IN.get(call.op, ()) or any(call.used[1:]):
        return False
    if call.op == "MaxUnpool" and call.raw(2) is not None:
        return False  # readers disagree what an output shape does to positions
    if call.op == "RoiAlign" and call.attribute("mode", "avg") != "avg":
        return False
    return not (call.op == "BatchNormalization" and call.attribute("training_mode", 0))


def lowered(call: Call, node: Any) -> Value:
    """The operator as a dense layer.

    Raises:
        UnsupportedModel: too large, or not affine on random numbers.
    """
    b = call.build
    place = next(i for i, x in enumerate(call.inputs) if isinstance(x, Value))
    x = call.value(place)
    size = math.prod(x.source_shape)
    if size > LARGEST_INPUT:
        raise call.refuse(f"is linear, and its matrix for {size} numbers is too large", "use a smaller input")
    if x.batch is not None and b.symbolic_batch:
        raise call.refuse("is taken for one sample at a time only", "fix the batch size at 1")
    run = _evaluator(call, node, place, x.source_shape)
    offset = run(np.zeros(size))
    if size * offset.size > LARGEST_MATRIX:
        raise call.refuse(
            f"is linear, and its matrix {offset.size} x {size} is too large", "use a smaller input"
        )
    added = _ADDED.get((call.op, place))
    alone = run if added is None else _evaluator(call, node, place, x.source_shape, added)
    matrix = _linear_part(call, alone, size)
    flat = b.view(x, (size,), None)
    # In the type of the model, as all that is computed from stored numbers alone.
    weight = torch.from_numpy(matrix).to(b.dtype)
    shift = torch.from_numpy(offset.reshape(-1).copy()).to(b.dtype) if bool(offset.any()) else None
    kind = str(b.dtype).removeprefix("torch.")
    b.notes.append(
        f"{b.where} ({b.what}) is linear; its matrix was computed by onnx {onnx.__version__} and rounded to {kind}: what it "
        "gives is what is certified"
    )
    return b.reshape(b.linear(flat, weight, shift), list(offset.shape))


def _linear_part(call: Call, run: Callable[[Stored], Stored], size: int) -> Stored:
    """Its matrix [results, size], from the operator without what it adds: beside a large number a difference of two results
    would lose the entries.

    Raises:
        UnsupportedModel: something is added to what the input changes all the same, or the operator is not linear.
    """
    rest = run(np.zeros(size)).reshape(-1)
    matrix = np.stack([run(unit).reshape(-1) for unit in np.eye(size)], axis=-1) - rest[:, None]
    moved = matrix.any(axis=1)
    probe = np.random.default_rng(0).standard_normal(size)
    wanted, given = run(probe).reshape(-1), matrix @ probe
    gap = np.abs(wanted - given)[moved].max(initial=0.0)
    still = bool((wanted == rest)[~moved].all()) and not rest[moved].any()
    if (
        not bool(np.isfinite(matrix).all())
        or not still
        or not gap <= 1e-4 * np.abs(wanted)[moved].max(initial=0.0)
    ):
        raise call.refuse("is not linear with these settings")
    return matrix


def _evaluator(
    call: Call, node: Any, place: int, shape: tuple[int, ...], zero: int | None = None
) -> Callable[[Stored], Stored]:
    """The operator as a function of its input at `place`; zero: another stored input that is taken for 0."""
    from onnx.reference import ReferenceEvaluator

    inputs, given = list(node.input), list(call.inputs)
    if zero is not None and zero < len(inputs) and inputs[zero]:
        node = onnx.NodeProto.FromString(node.SerializeToString())
        inputs[zero] = node.input[zero] = "/".join(inputs)  # another operand may be the same tensor
        given[zero] = np.zeros_like(call.array(zero, "stored operand"))
    info = onnx.helper.make_empty_tensor_value_info
    names = list(dict.fromkeys(name for name in inputs if name))
    graph = onnx.helper.make_graph([node], "one", [info(n) for n in names], [info(node.output[0])])
    opset = onnx.helper.make_opsetid("", call.version)
    evaluator = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10))
    stored = {
        name: x.astype(np.float64) if x.dtype.kind == "f" else x
        for name, x in zip(inputs, given, strict=True)
        if isinstance(x, np.ndarray)
    }

    def run(x: Stored) -> Stored:
        try:
            with np.errstate(all="ignore"):
                found = evaluator.run(None, {**stored, inputs[place]: x.reshape(shape)})[0]
        except Exception as error:
            text = str(error).strip().splitlines()
            raise call.refuse(
                f"the evaluator of onnx cannot compute it ({text[0][:80] if text else ''})"
            ) from None
        return np.asarray(found, np.float64)

    return run
