"""Every ONNX operator that is covered, in the operator sets where its form changed, against the reference evaluator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from lipverify.frontends.onnx import lower
from tests.onnx_models import agrees, by_onnxruntime, by_reference, ints, model, node, random

ALL = (7, 9, 11, 13, 17, 21)


@dataclass
class Case:
    """One node y = op(x, *constants) on samples of `shape`; `before` and `others` name what does not fit that form."""

    op: str
    shape: tuple[int, ...] = (6,)
    constants: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    opsets: tuple[int, ...] = (13, 21)
    inputs: tuple[str, ...] | None = None
    outputs: tuple[str, ...] = ("y",)
    note: str = ""
    symbolic: bool = True
    tolerance: float = 2e-5
    runtime: tuple[int, ...] = ()
    """Operator sets where onnxruntime is compared with, because the evaluator of onnx lacks this form or misreads it."""

    def __str__(self) -> str:
        return f"{self.op}{'-' + self.note if self.note else ''}"


def C(op: str, shape: tuple[int, ...] = (6,), opsets: tuple[int, ...] = (13, 21), **rest: Any) -> Case:
    return Case(op, shape, opsets=opsets, **rest)


IMAGE = (4, 6, 5)
ACTIVATIONS = [
    *(C(op, opsets=ALL) for op in ("Relu", "Abs", "Sigmoid", "Tanh", "Softplus", "Softsign", "Exp", "Neg", "Identity")),
    C("OptionalGetElement", opsets=(18, 21)),
    *(C(op, opsets=(7, 13, 17)) for op in ("Sin", "Cos")),
    *(C(op, opsets=(9, 13, 20)) for op in ("Erf",)),
    C("Reciprocal", opsets=(7, 13)),
    C("LeakyRelu", opsets=(7, 17), note="default"),
    C("LeakyRelu", attributes={"alpha": 0.3}, note="alpha"),
    C("Elu", opsets=(7, 13), attributes={"alpha": 0.7}),
    C("Selu", opsets=(7, 13)),
    C("Selu", attributes={"alpha": 1.5, "gamma": 0.9}, note="own"),
    C("Celu", opsets=(12, 17), attributes={"alpha": 2.0}),
    C("HardSigmoid", opsets=(7, 13)),
    C("HardSigmoid", attributes={"alpha": 0.5, "beta": 0.3}, note="own"),
    C("HardSwish", opsets=(14, 21)),
    C("Mish", opsets=(18, 21)),
    C("Gelu", opsets=(20, 21)),
    C("Gelu", opsets=(20,), attributes={"approximate": "tanh"}, note="tanh"),
    C("ThresholdedRelu", opsets=(10, 13), attributes={"alpha": 0.0}),
    C("Shrink", opsets=(9, 13), attributes={"bias": 0.4, "lambd": 0.4}),
    C("PRelu", IMAGE, opsets=(7, 9, 17), constants={"s": random(4, 1, 1)}),
    C("PRelu", opsets=(9,), constants={"s": np.array([0.2], np.float32)}, note="one"),
    C("Clip", opsets=(7, 9), attributes={"min": -0.5, "max": 1.5}),
    C("Clip", opsets=(11, 13, 17), constants={"lo": np.float32(-0.5), "hi": np.float32(1.5)}, note="inputs"),
    C("Clip", constants={"hi": np.float32(0.5)}, inputs=("x", "", "hi"), note="upper"),
    C("Clip", constants={"lo": np.float32(0.5)}, note="lower"),
    C("Clip", opsets=(13,), constants={"lo": np.float32(2.0), "hi": np.float32(1.0)}, note="crossed"),
    C("Dropout", opsets=(7, 10), attributes={"ratio": 0.5}),
    C("Dropout", opsets=(12, 13), constants={"r": np.float32(0.5)}, note="ratio"),
    C("Dropout", constants={"r": np.float32(0.5), "t": np.bool_(False)}, note="inference"),
]  # fmt: skip
SOFTMAX = [
    # Below 13 the evaluator of onnx ignores that all axes from `axis` on are one.
    C(op, shape, opsets=opsets, attributes=attributes, note=note, runtime=(7, 11) if len(shape) > 1 else ())
    for op in ("Softmax", "LogSoftmax")
    for shape, opsets, attributes, note in [
        ((6,), ALL, {}, "default"),
        ((3, 4), (7, 11, 13, 17), {"axis": 2}, "last"),
        ((3, 4), (7, 11, 13, 17), {"axis": 1}, "middle"),
        ((3, 4), (7, 11, 13), {}, "default3d"),
        ((3, 4, 2), (11, 13), {"axis": -2}, "negative"),
        ((5, 1, 1), (9, 13), {"axis": 1}, "ones"),
    ]
]
ARITHMETIC = [
    *(C(op, opsets=ALL, constants={"c": random(6) + 3}) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")),
    *(
        C(op, IMAGE, opsets=(7, 13), constants={"c": random(4, 1, 1) + 3}, note="broadcast")
        for op in ("Add", "Sub", "Mul", "Div")
    ),
    *(
        C(op, IMAGE, opsets=(8, 13), constants={"c": random(4, 1, 1)}, inputs=("c", "x"), note="left")
        for op in ("Add", "Sub", "Mul", "Max", "Min")
    ),
    C("Div", constants={"c": random(6)}, inputs=("c", "x"), note="left", opsets=(7, 13)),
    *(C(op, inputs=("x", "x"), opsets=(7, 13), note="twice") for op in ("Add", "Mul", "Max", "Min")),
    *(
        C(op, constants={"a": random(6), "b": random(6, seed=1)}, inputs=("x", "a", "x", "b"), opsets=(8, 13), note="many")
        for op in ("Sum", "Mean", "Max", "Min")
    ),
    *(C(op, inputs=("x",), opsets=(8, 13), note="single") for op in ("Sum", "Mean", "Max", "Min")),
    *(C("Pow", constants={"p": np.float32(p)}, opsets=(7, 13), note=str(p)) for p in (1.0, 2.0, 3.0)),
    C("Pow", constants={"p": np.full((2, 6), 2.0, np.float32)}, shape=(1, 6), note="broadcast"),
    C("Where", constants={"c": np.array([True, False, True, False, True, True]), "b": random(6)}, inputs=("c", "x", "b"),
      opsets=(9, 16)),
    C("Where", constants={"c": np.array([True, False, True, False, True, True]), "b": random(6)}, inputs=("c", "b", "x"),
      opsets=(9, 16), note="swapped"),
    C("Where", constants={"c": np.array([[True], [False]])}, inputs=("c", "x", "x"), shape=(1, 6), note="enlarged"),
    C("Where", constants={"c": np.bool_(True), "b": random(3, 6)}, inputs=("c", "x", "b"), shape=(1, 6), note="all"),
    C("Trilu", (4, 5), opsets=(14, 17), constants={"k": np.int64(1)}),
    C("Trilu", (4, 5), opsets=(14, 17), constants={"k": np.int64(-9)}, attributes={"upper": 0}, note="lower"),
]  # fmt: skip
PRODUCTS = [
    C("MatMul", opsets=ALL, constants={"w": random(6, 4)}),
    C("MatMul", (3, 6), opsets=(7, 13), constants={"w": random(6, 4)}, note="rows"),
    C("MatMul", (3, 6), opsets=(7, 13), constants={"w": random(5, 3)}, inputs=("w", "x"), note="left"),
    C("MatMul", (2, 3, 6), constants={"w": random(2, 6, 4)}, note="stacked"),
    C("MatMul", (2, 3, 6), constants={"w": random(2, 5, 3)}, inputs=("w", "x"), note="stacked-left"),
    C("MatMul", (6, 3), constants={"w": random(1, 3, 2)}, note="one-stack"),
    C("MatMul", (3, 6), constants={"w": random(6)}, note="vector"),
    C("MatMul", (6, 6), inputs=("x", "x"), note="bilinear"),
    C("Gemm", opsets=ALL, constants={"w": random(6, 4), "b": random(4)}),
    C("Gemm", opsets=ALL, constants={"w": random(4, 6), "b": random(1, 4)}, attributes={"transB": 1}, note="transB"),
    C("Gemm", opsets=(11, 13), constants={"w": random(6, 4)}, note="plain"),
    C("Gemm", constants={"w": random(6, 4), "b": np.float32(0.5)}, attributes={"alpha": 0.3, "beta": 2.0}, note="scaled"),
    C("Gemm", constants={"w": random(6, 4), "b": np.array([0.5], np.float32)}, note="scalar"),
    C("Gemm", constants={"w": random(3, 1), "b": random(3, 6)}, inputs=("w", "x", "b"), note="left", symbolic=False),
    C("Gemm", constants={"w": random(1, 4), "b": random(6, 4)}, attributes={"transA": 1}, note="transA", symbolic=False),
    C("Einsum", (3, 6), constants={"w": random(6, 4)}, attributes={"equation": "bij,jk->bik"}, opsets=(12, 17)),
    C("Einsum", (3, 6), constants={"w": random(2, 3, 6)}, attributes={"equation": "bij, hij -> hb"}, note="two", opsets=(12,)),
    C("Einsum", (3, 6), constants={"w": random(2, 6)}, attributes={"equation": "hj,bij->bhi"}, inputs=("w", "x"), note="left"),
]  # fmt: skip
W2, W1 = random(5, 4, 3, 3), random(5, 4, 3)
CONVOLUTIONS = [
    C("Conv", IMAGE, opsets=ALL, constants={"w": W2, "b": random(5)}),
    C("Conv", IMAGE, opsets=(7, 11), constants={"w": W2}, attributes={"pads": [1, 0, 2, 1], "strides": [2, 1]}, note="pads"),
    C("Conv", IMAGE, constants={"w": random(6, 2, 2, 3)}, attributes={"group": 2, "kernel_shape": [2, 3]}, note="group"),
    C("Conv", (4, 9, 9), constants={"w": W2}, attributes={"dilations": [2, 3]}, note="dilated"),
    *(
        C("Conv", size, opsets=(7, 13), constants={"w": random(5, 4, 2, 3)}, attributes={"auto_pad": mode, "strides": [2, 3]},
          note=f"{mode}-{size[1]}")
        for mode in ("SAME_UPPER", "SAME_LOWER", "VALID") for size in ((4, 6, 5), (4, 7, 9))
    ),
    C("Conv", (4, 8), opsets=(7, 13), constants={"w": W1, "b": random(5)}, attributes={"pads": [1, 2]}, note="1d"),
    C("ConvTranspose", (4, 3, 4), opsets=(7, 11), constants={"w": random(4, 3, 3, 2), "b": random(3)},
      attributes={"strides": [2, 3]}),
    C("ConvTranspose", (4, 3, 4), constants={"w": random(4, 3, 3, 2)}, note="padded",
      attributes={"strides": [2, 3], "pads": [1, 0, 0, 1], "output_padding": [1, 2]}),
    C("ConvTranspose", (4, 3, 4), constants={"w": random(4, 1, 3, 2)}, attributes={"group": 2, "dilations": [2, 1]},
      note="group", runtime=(13, 21)),
    *(
        C("ConvTranspose", (4, 3, 4), constants={"w": random(4, 3, 3, 4)}, note=mode,
          attributes={"auto_pad": mode, "strides": [2, 3]}) for mode in ("SAME_UPPER", "SAME_LOWER", "VALID")
    ),
    C("ConvTranspose", (4, 3, 4), constants={"w": random(4, 3, 3, 4)}, note="shape", runtime=(13, 21),
      attributes={"output_shape": [6, 11], "strides": [2, 3]}),
    C("ConvTranspose", (4, 5), constants={"w": random(4, 3, 4)}, attributes={"strides": [2]}, note="1d"),
    C("BatchNormalization", IMAGE, opsets=(7, 9, 14, 15), runtime=(7, 9),
      constants={"s": random(4), "b": random(4, seed=1), "m": random(4, seed=2), "v": np.abs(random(4, seed=3)) + 0.1}),
    C("BatchNormalization", opsets=(9, 15), attributes={"epsilon": 0.01}, note="flat", runtime=(9,),
      constants={"s": random(6), "b": random(6, seed=1), "m": random(6, seed=2), "v": np.abs(random(6, seed=3)) + 0.1}),
    C("LayerNormalization", (3, 6), opsets=(17, 21), constants={"s": random(6), "b": random(6, seed=1)}),
    C("LayerNormalization", (3, 6), opsets=(17,), constants={"s": random(3, 6)}, attributes={"axis": 1, "epsilon": 0.1},
      note="two"),
    C("InstanceNormalization", IMAGE, opsets=(7, 17), constants={"s": random(4), "b": random(4, seed=1)}, tolerance=1e-4),
    C("GroupNormalization", IMAGE, opsets=(21,), constants={"s": random(4), "b": random(4, seed=1)},
      attributes={"num_groups": 2}, tolerance=1e-4),
]  # fmt: skip
POOLING = [
    *(
        C(op, (2, 14, 13), opsets=opsets, attributes={"kernel_shape": [3, 2], **attributes}, note=note,
          runtime=(7, 13) if note == "lower" else ())
        for op in ("MaxPool", "AveragePool")
        for opsets, attributes, note in [
            (ALL, {}, "plain"),
            ((7, 11), {"strides": [3, 3]}, "cut"),
            ((8, 19), {"strides": [2, 3], "pads": [1, 0, 2, 1]}, "pads"),
            ((10, 13, 19), {"strides": [3, 3], "ceil_mode": 1}, "ceil"),
            ((10, 19), {"strides": [3, 3], "ceil_mode": 1, "pads": [2, 1, 2, 1]}, "ceil-pads"),
            ((7, 13), {"strides": [3, 2], "auto_pad": "SAME_UPPER"}, "upper"),
            ((7, 13), {"strides": [3, 2], "auto_pad": "SAME_LOWER"}, "lower"),
            ((7, 13), {"strides": [2, 2], "auto_pad": "VALID"}, "valid"),
        ]
    ),
    C("MaxPool", (2, 9, 8), opsets=(10, 13), attributes={"kernel_shape": [2, 3], "dilations": [3, 2]}, note="dilated"),
    C("MaxPool", (2, 9), opsets=(8, 13), attributes={"kernel_shape": [3], "strides": [2]}, note="1d"),
    C("AveragePool", (2, 9), opsets=(7, 13), attributes={"kernel_shape": [3], "pads": [1, 1]}, note="1d"),
    C("AveragePool", (2, 9, 8), opsets=(7, 13, 19),
      attributes={"kernel_shape": [3, 3], "pads": [1, 2, 0, 1], "count_include_pad": 1}, note="include"),
    C("GlobalAveragePool", IMAGE, opsets=(7, 13)),
    C("GlobalMaxPool", IMAGE, opsets=(7, 13)),
]  # fmt: skip
REDUCTIONS = [
    case
    for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare")
    for since in (13 if op == "ReduceSum" else 18,)
    for case in [
        C(op, (3, 4, 5), opsets=(7, 11) if since == 13 else (7, 11, 13, 17), attributes={"axes": [2, 3]}),
        C(op, (3, 4), opsets=(11,), attributes={"axes": [-1], "keepdims": 0}, note="drop"),
        C(op, (3, 4, 5), opsets=(since, 21), constants={"a": ints(-1, 1)}, note="input"),
        C(op, (3, 4), opsets=(since, 18), constants={"a": ints(1)}, attributes={"keepdims": 0}, note="input-drop"),
        C(op, (3, 4), opsets=(7, 13, 18), note="all", symbolic=False),
        *([C(op, (3, 4), opsets=(since, 18), attributes={"noop_with_empty_axes": 1}, note="noop")] if op in
          ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin") else []),
    ]
]  # fmt: skip
SHAPES = [
    C("Reshape", (3, 4), opsets=ALL, constants={"s": ints(-1, 12)}),
    C("Reshape", (3, 4), opsets=(7, 13), constants={"s": ints(0, 2, -1)}, note="zero"),
    C("Reshape", (3, 4), opsets=(14, 21), constants={"s": ints(1, -1, 6)}, attributes={"allowzero": 1}, note="allowzero"),
    C("Flatten", IMAGE, opsets=ALL),
    C("Flatten", (1, 3, 4), opsets=(9, 11), attributes={"axis": 2}, note="2"),
    C("Flatten", (3, 4), opsets=(11, 13), attributes={"axis": -2}, note="negative"),
    C("Flatten", (3, 4), opsets=(9, 13), attributes={"axis": 0}, note="0", symbolic=False),
    C("Flatten", (3, 4), opsets=(9, 13), attributes={"axis": 3}, note="3", symbolic=False),
    C("Transpose", IMAGE, opsets=ALL, attributes={"perm": [0, 2, 3, 1]}),
    C("Transpose", (3, 4), opsets=(7,), note="reverse"),
    C("Transpose", (3, 4), attributes={"perm": [2, 0, 1]}, note="batch-moves"),
    C("Squeeze", (1, 3, 1), opsets=(7, 11), attributes={"axes": [1, 3]}),
    C("Squeeze", (1, 3, 1), opsets=(13, 21), constants={"a": ints(1, -1)}, note="input"),
    C("Squeeze", (1, 3, 1), opsets=(7, 13), note="all", symbolic=False),
    C("Unsqueeze", (3,), opsets=(7, 11), attributes={"axes": [1, 3]}),
    C("Unsqueeze", (3,), opsets=(13, 21), constants={"a": ints(-1, 1)}, note="input"),
    C("Expand", (3, 1), opsets=(8, 13), constants={"s": ints(1, 3, 4)}),
    C("Expand", (3, 1), constants={"s": ints(4)}, note="shorter"),
    C("Expand", (3,), constants={"s": ints(2, 1, 3)}, note="longer"),
    C("Tile", (3, 2), opsets=(7, 13), constants={"r": ints(1, 2, 3)}),
    C("Tile", (3,), constants={"r": ints(2, 1)}, symbolic=False, note="batch"),
    C("Pad", (3, 4), opsets=(7, 10), attributes={"pads": [0, 1, 2, 0, 0, 3], "value": 1.5}),
    C("Pad", (3, 4), opsets=(11, 13, 21), constants={"p": ints(0, 1, 2, 0, 0, 3)}, note="input"),
    C("Pad", (3, 4), constants={"p": ints(0, 1, 2, 0, 0, 3), "v": np.float32(-2.5)}, note="fill"),
    C("Pad", (3, 4), opsets=(18, 21), constants={"p": ints(1, 2), "v": np.float32(0.5), "a": ints(-1)}, note="axes"),
    C("Pad", (3, 4), opsets=(11, 13), constants={"p": ints(0, -1, 1, 0, 0, -2)}, note="cut", runtime=(11, 13)),
    C("Pad", (3, 4), opsets=(7,), attributes={"pads": [0, 2, 3, 0, 1, 2], "mode": "reflect"}, note="reflect-old"),
    C("Pad", (3, 4), constants={"p": ints(0, 2, 3, 0, 1, 2)}, attributes={"mode": "reflect"}, note="reflect"),
    C("Pad", (3, 4), constants={"p": ints(0, 2, 5, 0, 1, 2)}, attributes={"mode": "edge"}, note="edge"),
    C("Pad", (3, 4), opsets=(19, 21), constants={"p": ints(0, 2, 3, 0, 1, 2)}, attributes={"mode": "wrap"}, note="wrap"),
    C("DepthToSpace", (12, 2, 3), opsets=(7, 13), attributes={"blocksize": 2}),
    C("DepthToSpace", (12, 2, 3), opsets=(11, 13), attributes={"blocksize": 2, "mode": "CRD"}, note="CRD"),
    C("SpaceToDepth", (3, 4, 6), opsets=(7, 13), attributes={"blocksize": 2}),
    C("Cast", opsets=(7, 13, 19), attributes={"to": 1}),
    C("CastLike", opsets=(15, 19), constants={"c": random(1)}),
]  # fmt: skip
INDEXING = [
    C("Concat", (3, 4), opsets=(7, 13), constants={"c": random(1, 2, 4)}, attributes={"axis": 1}, inputs=("x", "c", "x"),
      symbolic=False),
    C("Concat", (3, 4), opsets=(11, 13), inputs=("x", "x"), attributes={"axis": -1}, note="twice"),
    C("Concat", (3, 4), inputs=("x",), attributes={"axis": 2}, note="single"),
    C("Split", (7, 2), opsets=(7, 11), attributes={"axis": 1, "split": [3, 4]}, outputs=("y", "z")),
    C("Split", (6, 2), opsets=(7, 13), attributes={"axis": 1}, outputs=("y", "z"), note="equal"),
    C("Split", (7, 2), opsets=(13, 21), constants={"s": ints(3, 4)}, attributes={"axis": -2}, outputs=("y", "z"),
      note="input"),
    C("Split", (7, 2), opsets=(18, 21), attributes={"axis": 1, "num_outputs": 3}, outputs=("y", "z", "w"), note="uneven"),
    C("Slice", (7, 5), opsets=(7, 9), attributes={"starts": [1, -3], "ends": [6, 100], "axes": [1, 2]}),
    C("Slice", (7, 5), opsets=(10, 13), constants={"s": ints(0, 1), "e": ints(2**31, -1)}, note="no-axes"),
    C("Slice", (7, 5), opsets=(10, 13), constants={"s": ints(1), "e": ints(7), "a": ints(-2), "t": ints(3)}, note="steps"),
    C("Slice", (7, 5), opsets=(10, 13), constants={"s": ints(-1), "e": ints(-100), "a": ints(2), "t": ints(-2)},
      note="backwards"),
    C("Gather", (7, 5), opsets=(7, 13), constants={"i": ints(4, 0, 4, -1)}, attributes={"axis": 1}),
    C("Gather", (7, 5), opsets=(11, 13), constants={"i": np.int64(2)}, attributes={"axis": 2}, note="one"),
    C("Gather", (7, 5), constants={"i": np.array([[0, 1], [6, 2]])}, attributes={"axis": 1}, note="matrix"),
    C("Gather", (7, 5), constants={"i": np.array([[0, 1], [3, 2]])}, attributes={"axis": 2}, note="last"),
    C("TopK", (7,), opsets=(9,), attributes={"k": 7, "axis": 1}, outputs=("y", "i"), note="old"),
    C("TopK", (7,), opsets=(10, 11, 13), constants={"k": ints(7)}, outputs=("y", "i")),
    C("TopK", (7, 2), opsets=(11, 13), constants={"k": ints(3)}, attributes={"largest": 0, "axis": 1}, outputs=("y", "i"),
      note="smallest"),
]  # fmt: skip
RESIZING = [
    C("Upsample", IMAGE, opsets=(7,), attributes={"scales": [1.0, 1.0, 2.0, 3.0]}, note="attribute", runtime=(7,)),
    C("Upsample", IMAGE, opsets=(9,), constants={"s": np.array([1, 1, 2, 3], np.float32)}),
    C("Upsample", IMAGE, opsets=(9,), constants={"s": np.array([1, 1, 1.5, 2.5], np.float32)}, note="uneven", runtime=(9,)),
    C("Resize", IMAGE, opsets=(10,), constants={"s": np.array([1, 1, 2, 3], np.float32)}, note="10", runtime=(10,)),
    C("Resize", IMAGE, opsets=(10,), constants={"s": np.array([1, 1, 0.5, 1.5], np.float32)}, note="10-uneven", runtime=(10,)),
    *(
        C("Resize", IMAGE, opsets=(11, 13, 19), runtime=(11, 13, 19) if place == "align_corners" and rounding == "floor" else (),
          constants={"r": np.zeros(0, np.float32), "s": np.array([1, 1, a, b], np.float32)}, note=f"{place}-{rounding}-{a}-{b}",
          attributes={"coordinate_transformation_mode": place, "nearest_mode": rounding})
        for place in ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
        for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
        for a, b in ((2.0, 3.0), (0.5, 1.5 if place != "align_corners" else 1.2))
    ),
    C("Resize", IMAGE, opsets=(13, 18), inputs=("x", "", "", "z"), constants={"z": ints(1, 4, 12, 7)}, note="sizes",
      symbolic=False),
    C("Resize", IMAGE, opsets=(18, 19), inputs=("x", "", "", "z"), constants={"z": ints(12, 10)}, attributes={"axes": [2, 3]},
      note="axes"),
    C("Resize", IMAGE, opsets=(19,), inputs=("x", "", "s"), constants={"s": np.array([1, 1, 2, 3], np.float32)},
      attributes={"coordinate_transformation_mode": "half_pixel_symmetric"}, note="symmetric"),
]  # fmt: skip
GRID = np.array([[[[-0.5, 0.3], [0.9, -1.2]], [[0.1, 0.1], [2.0, 0.0]]]], np.float32)
LINEAR = [
    *(C(op, opsets=(9, 22)) for op in ("Asinh", "Sinh", "Cosh")),
    *(C(op, opsets=(7, 22)) for op in ("Atan", "Tan")),
    C("Shrink", opsets=(9, 13), attributes={"bias": 0.0, "lambd": 0.0}, note="none"),
    C("CumSum", (3, 4), opsets=(11, 14), constants={"a": np.int64(2)}),
    C("CumSum", (3, 4), constants={"a": np.int64(-2)}, attributes={"exclusive": 1, "reverse": 1}, note="back"),
    C("CumProd", (4,), opsets=(26,), constants={"a": np.int64(1)}),
    C("GatherElements", (5,), opsets=(11, 13), constants={"i": np.array([[4, 0, -1]])}, attributes={"axis": 1}, symbolic=False),
    C("GatherND", (4, 3), opsets=(12, 13), constants={"i": np.array([[[0, 1], [0, 3]]])}, symbolic=False),
    C("GatherND", (4, 3), opsets=(13,), constants={"i": np.array([[2, 0]])}, attributes={"batch_dims": 1}, note="batched",
      symbolic=False),
    C("ScatterElements", (5,), opsets=(11, 16), constants={"z": random(1, 9), "i": np.array([[0, 2, 4, 6, 8]])},
      inputs=("z", "i", "x"), attributes={"axis": 1}, symbolic=False),
    *(
        C("ScatterElements", (5,), opsets=(18,), constants={"i": np.array([[1, 3]]), "u": random(1, 2)},
          attributes={"axis": 1, "reduction": way}, note=way, symbolic=False)
        for way in ("add", "mul", "max", "min")
    ),
    C("ScatterElements", (3,), opsets=(18,), inputs=("z", "i", "x"),
      constants={"z": random(1, 2), "i": np.array([[1, 1, 0]])},
      attributes={"axis": 1, "reduction": "add"}, note="together", symbolic=False),
    C("Scatter", (5,), opsets=(9,), constants={"i": np.array([[1, 3]]), "u": random(1, 2)}, attributes={"axis": 1},
      symbolic=False, runtime=(9,)),
    C("ScatterND", (5,), opsets=(11, 18), constants={"i": np.array([[0, 1], [0, 4]]), "u": random(2)}, symbolic=False),
    C("Compress", (5,), opsets=(9, 11), constants={"c": np.array([True, False, True])}, attributes={"axis": 1}),
    C("ReverseSequence", (4, 2), constants={"n": np.array([3])}, attributes={"time_axis": 1, "batch_axis": 0}, symbolic=False),
    C("TensorScatter", (2, 3), opsets=(24,), constants={"z": random(1, 4, 3), "w": np.array([1])}, inputs=("z", "x", "w"),
      symbolic=False),
    C("GridSample", (2, 4, 5), opsets=(16, 20, 22), constants={"g": GRID}, symbolic=False),
    C("Conv", (2, 3, 3), opsets=(13,), constants={"v": random(1, 2, 5, 5)}, inputs=("v", "x"), note="kernel", symbolic=False),
    C("LayerNormalization", (4,), opsets=(17,), constants={"v": random(3, 4)}, inputs=("v", "x"), note="weight", symbolic=False),
    C("Einsum", (3, 6), constants={"w": random(3, 6, 4)}, attributes={"equation": "bij,ijk->bik"}, note="stack", opsets=(12,)),
    C("Einsum", (5, 2, 3), attributes={"equation": "bqhd, bkhd -> bhqk"}, inputs=("x", "x"), note="scores", opsets=(12, 17)),
    C("Einsum", (2, 5, 3), attributes={"equation": "...id,...jd->...ij"}, inputs=("x", "x"), note="dots", opsets=(12,)),
    C("Einsum", (3, 6), attributes={"equation": "bij->bji"}, inputs=("x",), note="turned", opsets=(12,)),
    C("Einsum", (3, 6), attributes={"equation": "bij->bi"}, inputs=("x",), note="summed", opsets=(12,)),
    C("MatMul", (2, 3, 6), constants={"w": random(1, 2, 6, 4)}, note="four", symbolic=False),
    C("Pow", (3,), constants={"p": np.array([1.0, 2.0, 3.0], np.float32)}, opsets=(13,), note="several"),
    C("Pow", (3,), constants={"b": np.array([0.5, 2.0, 3.0], np.float32)}, inputs=("b", "x"), opsets=(13,), note="exponential"),
    C("SpaceToDepth", (2, 4, 4), opsets=(13,), attributes={"blocksize": 2}, note="again"),
]  # fmt: skip
NORMS = [
    C("ReduceL2", (3, 4), opsets=(13,), attributes={"axes": [2]}),
    C("ReduceL2", (3, 4), opsets=(18,), constants={"a": ints(1, 2)}, attributes={"keepdims": 0}, note="input"),
    C("ReduceLogSumExp", (3, 4), opsets=(13,), attributes={"axes": [2]}),
    C("ReduceLogSum", (3, 4), opsets=(13,), attributes={"axes": [2], "keepdims": 1}),
    C("ReduceProd", (3, 5), opsets=(13,), attributes={"axes": [2], "keepdims": 0}),
    C("LpNormalization", (3, 4), opsets=(7, 22)),
    C("LpNormalization", (3, 4), opsets=(22,), attributes={"p": 1, "axis": 1}, note="l1", runtime=(22,)),
    C("LpPool", (2, 5, 6), opsets=(11, 18), attributes={"kernel_shape": [2, 3], "strides": [2, 1], "pads": [1, 0, 0, 1]},
      tolerance=1e-4),
    C("GlobalLpPool", (2, 3, 4), opsets=(7,), attributes={"p": 3}, tolerance=1e-4, runtime=(7,)),
    C("LRN", (4, 2, 3), opsets=(7, 13), attributes={"size": 3, "alpha": 0.5}, runtime=(7, 13)),
    C("AveragePool", (2, 7, 7), opsets=(19, 22), attributes={"kernel_shape": [2, 2], "dilations": [2, 3]}, note="dilated"),
    C("AveragePool", (2, 7, 7), opsets=(22,), attributes={"kernel_shape": [2, 2], "dilations": [2, 3], "pads": [1, 1, 1, 1],
      "count_include_pad": 1}, note="dilated-pads"),
    C("MeanVarianceNormalization", (2, 3, 3), opsets=(13,), attributes={"axes": [2, 3]}),
]  # fmt: skip
RECURRENT = [
    C(op, (1, 3), opsets=(14, 22), constants={"w": random(2, g * 2, 3), "r": random(2, g * 2, 2), "b": random(2, g * 4)},
      attributes={"hidden_size": 2, "direction": "bidirectional"}, symbolic=False)
    for op, g in (("RNN", 1), ("GRU", 3), ("LSTM", 4))
]  # fmt: skip
BLENDS = [
    C("Resize", (2, 3, 4), opsets=(13, 19), inputs=("x", "", "s"), constants={"s": np.array([1, 1, 2, 1.5], np.float32)},
      attributes={"mode": mode, "coordinate_transformation_mode": place}, note=f"{mode}-{place}", tolerance=1e-4)
    for mode in ("linear", "cubic")
    for place in ("half_pixel", "asymmetric", "pytorch_half_pixel")
] + [
    C("Resize", (2, 3, 4), opsets=(18,), inputs=("x", "", "", "z"), constants={"z": ints(1, 2, 2, 2)},
      attributes={"mode": "linear", "antialias": 1}, note="antialias", tolerance=1e-4),
    C("Resize", (2, 3, 4), opsets=(18,), inputs=("x", "", "", "z"), constants={"z": ints(7, 8)},
      attributes={"axes": [2, 3], "keep_aspect_ratio_policy": "not_larger"}, note="ratio"),
    C("Resize", (2, 4, 4), opsets=(13,), inputs=("x", "r", "", "z"), tolerance=1e-4,
      constants={"r": np.array([0, 0, 0.2, 0.3, 1, 1, 0.9, 1.2], np.float32), "z": ints(1, 2, 3, 3)},
      attributes={"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 2.0},
      note="crop"),
]  # fmt: skip
DEFINED = [
    C("Swish", (4,), opsets=(24,), attributes={"alpha": 1.5}),
    C("RMSNormalization", (4,), opsets=(23,), constants={"s": random(4)}),
    C("RotaryEmbedding", (1, 2, 4), opsets=(23,), constants={"c": random(1, 2, 2), "s": random(1, 2, 2, seed=1)}, symbolic=False),
]  # fmt: skip
CASES = [
    *ACTIVATIONS,
    *LINEAR,
    *NORMS,
    *RECURRENT,
    *BLENDS,
    *DEFINED,
    *SOFTMAX,
    *ARITHMETIC,
    *PRODUCTS,
    *CONVOLUTIONS,
    *POOLING,
    *REDUCTIONS,
    *SHAPES,
    *INDEXING,
    *RESIZING,
]
ROWS = [pytest.param(case, opset, id=f"{case}-{opset}") for case in CASES for opset in case.opsets]


@pytest.mark.parametrize(("case", "opset"), ROWS)
def test_agrees_with_the_reference(case: Case, opset: int) -> None:
    inputs = case.inputs or ("x", *case.constants)
    nodes = [node(case.op, inputs, case.outputs, **case.attributes)]
    shown = [name for name in case.outputs if name != "i"]
    constants = dict(case.constants)
    for batch in ("N", 1) if case.symbolic else (1,):
        agrees(
            model(nodes, [batch, *case.shape], opset, constants, shown),
            tolerance=case.tolerance,
            reader=by_onnxruntime if opset in case.runtime else by_reference,
        )


def test_every_translator_is_tested_or_refused() -> None:
    tested = {case.op for case in CASES}
    elsewhere = {"Sqrt", "Log", "Asin", "Acos", "Acosh", "Atanh"}  # not defined on random numbers
    from lipverify.frontends.onnx.translators.refused import REFUSED

    classical = {name for name in lower.names() if "::" in name}
    quantized = {
        "QuantizeLinear",
        "DequantizeLinear",
        "ConvInteger",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
    }
    signs = {
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Not",
        "Sign",
    }  # test_onnx_choices, test_pieces
    assert set(lower.names()) - tested - set(REFUSED) - classical - quantized - signs == elsewhere
