"""How many numbers a folded node gives, from shapes and small lists alone: known before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from lipverify.frontends.onnx import forms
from lipverify.frontends.onnx.call import Call
from lipverify.frontends.onnx.lowering import Stored

Size = Callable[[Call, list[Stored]], int]


def _broadcast(call: Call, arrays: list[Stored]) -> int:
    return math.prod(np.broadcast_shapes(*(a.shape for a in arrays)))


def _same(call: Call, arrays: list[Stored]) -> int:
    return arrays[0].size


def _twice(call: Call, arrays: list[Stored]) -> int:
    return 2 * arrays[0].size


def _total(call: Call, arrays: list[Stored]) -> int:
    return sum(a.size for a in arrays)


def _wanted(call: Call, arrays: list[Stored]) -> int:
    """ConstantOfShape: the product of a stored list."""
    sizes = call.ints(0, "shape") or []
    if any(size < 0 for size in sizes):
        raise call.invalid(f"impossible shape {sizes[:8]}")
    return math.prod(sizes)


def _expanded(call: Call, arrays: list[Stored]) -> int:
    sizes = call.ints(1, "shape") or []
    return math.prod(common(call, arrays[0].shape, sizes))


def common(call: Call, shape: Sequence[int], target: Sequence[int]) -> tuple[int, ...]:
    """Both shapes broadcast together, without numpy's limit on sizes."""
    rank = max(len(shape), len(target))
    pair = [(1,) * (rank - len(s)) + tuple(s) for s in (shape, target)]
    if any((a != b and 1 not in (a, b)) or b < 0 for a, b in zip(*pair, strict=True)):
        raise call.invalid(f"{list(shape)} does not expand to {list(target)[:16]}")
    return tuple(a if b == 1 else b for a, b in zip(*pair, strict=True))


def _tiled(call: Call, arrays: list[Stored]) -> int:
    return int(arrays[0].size * math.prod(max(n, 0) for n in call.ints(1, "repeats") or []))


def _range_length(call: Call, arrays: list[Stored]) -> int:
    start, limit, delta = (a.reshape(()).item() for a in arrays)
    if delta == 0 or not all(math.isfinite(n) for n in (start, limit, delta)):
        raise call.invalid("a range with these ends and this step never ends")
    return max(int(np.ceil((limit - start) / delta)), 0)


def _gathered(call: Call, arrays: list[Stored]) -> int:
    data, indices = arrays
    axis = forms.normalised(call, call.attribute("axis", 0), data.ndim)
    return int(indices.size * math.prod(size for a, size in enumerate(data.shape) if a != axis))


def _gathered_nd(call: Call, arrays: list[Stored]) -> int:
    data, indices = arrays
    return indices.size * math.prod(data.shape)


def _padded(call: Call, arrays: list[Stored]) -> int:
    pads = forms.pads(call, arrays[0].ndim)
    return math.prod(size + a + b for size, (a, b) in zip(arrays[0].shape, pads, strict=True))


def _product(call: Call, arrays: list[Stored]) -> int:
    a, b = arrays[0].shape, arrays[1].shape
    if call.op == "Gemm":
        rows: int = a[1] if call.flag("transA") else a[0]
        columns: int = b[0] if call.flag("transB") else b[1]
        return rows * columns
    stack = np.broadcast_shapes(a[:-2], b[:-2])
    return math.prod(stack) * math.prod(a[-2:-1]) * (b[-1] if len(b) > 1 else 1)


def contracted(call: Call, arrays: list[Stored]) -> int:
    """Multiplications for one number of the result."""
    if call.op == "MatMul":
        return int(arrays[0].shape[-1])
    if call.op == "Gemm":
        return int(arrays[0].shape[0 if call.flag("transA") else 1])
    return 1


def _one_hot(call: Call, arrays: list[Stored]) -> int:
    return arrays[0].size * max(int(arrays[1].reshape(-1)[0]), 0)


def _positions(call: Call, arrays: list[Stored]) -> int:
    return arrays[0].size * max(arrays[0].ndim, 1)


def _indexed(call: Call, arrays: list[Stored]) -> int:
    return arrays[1].size


# Exact rearrangements and choices: folding them rounds nothing.
MOVES = {
    "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Concat", "Slice", "Split", "Gather",
    "GatherElements", "GatherND", "Expand", "Tile", "ConstantOfShape", "Where", "Shape", "Size", "Dropout", "Pad",
    "Trilu", "ScatterND", "ScatterElements", "DepthToSpace", "SpaceToDepth", "Compress", "ReverseSequence",
}  # fmt: skip
SIZES: dict[str, Size] = {
    **dict.fromkeys(
        ["Add", "Sub", "Mul", "Div", "Pow", "Mod", "Max", "Min", "Sum", "Mean", "Where", "Equal", "Less", "Greater",
         "LessOrEqual", "GreaterOrEqual", "And", "Or", "Xor", "PRelu", "BitShift"],
        _broadcast,
    ),
    **dict.fromkeys(
        ["Identity", "Cast", "CastLike", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split",
         "Dropout", "Trilu", "ScatterND", "ScatterElements", "DepthToSpace", "SpaceToDepth", "Compress", "Neg", "Abs",
         "Sqrt", "Exp", "Log", "Floor", "Ceil", "Round", "Sign", "Not", "Relu", "LeakyRelu", "Elu", "Selu", "Celu",
         "Sigmoid", "HardSigmoid", "Tanh", "Softplus", "Softsign", "Erf", "Reciprocal", "Sin", "Cos", "Clip", "IsNaN",
         "IsInf", "Softmax", "LogSoftmax", "CumSum", "BatchNormalization", "DequantizeLinear", "QuantizeLinear", "ReduceSum",
         "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ArgMax",
         "ArgMin", "Shape", "Size"],
        _same,
    ),
    "TopK": _twice,
    "Concat": _total,
    "ConstantOfShape": _wanted,
    "Expand": _expanded,
    "Tile": _tiled,
    "Range": _range_length,
    "Gather": _gathered,
    "GatherElements": _indexed,
    "GatherND": _gathered_nd,
    "Pad": _padded,
    "MatMul": _product,
    "Gemm": _product,
    "OneHot": _one_hot,
    "NonZero": _positions,
}  # fmt: skip
