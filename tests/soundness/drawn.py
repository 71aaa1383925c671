"""Operators with settings drawn at random, in every operator set: read by the checker, and run by a runtime.

Other than changed files (`readers.mutant`) nearly all of these are valid, with settings that fit each other. `FAMILIES` draw
every operator that the reader has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.onnx_models import ints
from tests.soundness.drawing import Draw, Drawn
from tests.soundness.drawn_courses import COURSES
from tests.soundness.drawn_stored import STORED
from tests.unit.frontends import test_onnx_qlinear


def _slice(d: Draw) -> Drawn:
    shape = d.shape(2, 5)
    axes = d.rng.sample(range(len(shape)), d.rng.randint(1, len(shape)))
    begin, steps = d.some(-7, 7, len(axes)), [d.rng.choice((1, 1, 2, 3, -1, -2)) for _ in axes]
    ends = [d.rng.choice((d.rng.randint(-7, 7), 2**31 - 1, -(2**31), 2**63 - 1)) for _ in axes]
    if d.opset < 10:
        return d.made("Slice", shape, starts=begin, ends=ends, axes=axes)
    return d.made("Slice", shape, tuple(d.store(ints(*a)) for a in (begin, ends, axes, steps)))


def _pad(d: Draw) -> Drawn:
    shape, mode = (
        d.shape(2, 4),
        d.rng.choice(["constant", "reflect", "edge", *(["wrap"] if d.opset >= 19 else [])]),
    )
    pads = d.some(-1 if mode == "constant" else 0, 2 if mode == "constant" else 1, 2 * len(shape))
    fill = d.rng.choice((0.0, 1.5, -2.0))
    if d.opset < 11:
        return d.made("Pad", shape, mode=mode, pads=pads, value=fill)
    return d.made("Pad", shape, (d.store(ints(*pads)), d.store(np.float32(fill))), mode=mode)


def _resize(d: Draw) -> Drawn:
    shape = [1, 2, *d.some(1, 9, 2)]
    if d.opset < 11:
        scales = np.array([1, 1, *d.some(1, 3, 2)], np.float32)
        if d.opset < 9:
            return d.made("Upsample", shape, scales=scales.tolist())
        return d.made("Upsample" if d.opset == 9 else "Resize", shape, (d.store(scales),))
    settings = {
        "coordinate_transformation_mode": d.rng.choice(["asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners", None]),
        "nearest_mode": d.rng.choice(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil", None]),
    }  # fmt: skip
    empty = d.store(np.zeros(0, np.float32))
    if d.rng.random() < 0.5:
        part = [d.rng.choice((2.0, 3.0, 0.5, 1.5, 0.25, 1 / 3, 0.2, 0.7, 2.5)) for _ in range(2)]
        return d.made("Resize", shape, (empty, d.store(np.array([1, 1, *part], np.float32))), **settings)
    return d.made(
        "Resize",
        shape,
        (empty, empty if d.opset < 13 else "", d.store(ints(1, 2, *d.some(1, 9, 2)))),
        **settings,
    )


def _window(d: Draw, rank: int) -> dict[str, Any]:
    """Strides, dilations and pads."""
    found: dict[str, Any] = {"strides": d.rng.choice((None, d.some(1, 3, rank)))}
    if d.rng.random() < 0.4:
        return found | {"auto_pad": d.rng.choice(("SAME_UPPER", "SAME_LOWER", "VALID"))}
    return found | {"pads": d.rng.choice((None, d.some(0, 1, 2 * rank)))}


def _pool(d: Draw) -> Drawn:
    rank, op = d.rng.randint(1, 2), d.rng.choice(("MaxPool", "AveragePool"))
    settings = _window(d, rank) | {"kernel_shape": d.some(1, 3, rank)}
    if d.opset >= (10 if op == "MaxPool" else 19) and d.rng.random() < 0.4:
        settings["dilations"] = d.some(1, 2, rank)
    if d.opset >= 10:
        settings["ceil_mode"] = d.rng.choice((None, 0, 1))
    if op == "AveragePool":
        settings["count_include_pad"] = d.rng.choice((None, 0, 1))
    return d.made(op, [1, 2, *d.some(2, 7, rank)], **settings)


def _conv(d: Draw) -> Drawn:
    rank, groups = d.rng.randint(1, 2), d.rng.randint(1, 2)
    into, out = groups * d.rng.randint(1, 2), groups * d.rng.randint(1, 2)
    settings = _window(d, rank) | {"group": groups, "dilations": d.rng.choice((None, d.some(1, 2, rank)))}
    shape, kernel = [1, into, *d.some(2, 6, rank)], d.some(1, 3, rank)
    op = d.rng.choice(("Conv", "ConvTranspose"))
    ends = (out, into // groups) if op == "Conv" else (into, out // groups)
    operands = (d.store(d.real(*ends, *kernel)), *([d.store(d.real(out))] if d.rng.random() < 0.5 else []))
    if op == "ConvTranspose":
        settings["output_padding"] = d.rng.choice((None, d.some(0, 1, rank)))
    return d.made(op, shape, operands, **settings)


def _reduce(d: Draw) -> Drawn:
    shape = d.shape()
    op = d.rng.choice(_REDUCTIONS)
    axes = d.rng.sample(range(len(shape)), d.rng.randint(0, len(shape)))
    axes = [a - len(shape) if d.opset >= 11 and d.rng.random() < 0.3 else a for a in axes]
    keep = d.rng.choice((None, 0, 1))
    if d.opset < (13 if op == "ReduceSum" else 18):
        return d.made(op, shape, axes=axes or None, keepdims=keep)
    operands = (d.store(ints(*axes)),) if axes else ()
    return d.made(op, shape, operands, keepdims=keep, noop_with_empty_axes=d.rng.choice((None, 0, 1)))


_REDUCTIONS = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare")


def _softmax(d: Draw) -> Drawn:
    shape = d.shape()
    return d.made(
        d.rng.choice(("Softmax", "LogSoftmax")), shape, axis=d.rng.choice((None, d.axis(len(shape))))
    )


def _split(d: Draw) -> Drawn:
    shape = d.shape(2, 4)
    axis = d.axis(len(shape))
    first = d.rng.randint(1, max(1, shape[axis] - 1))
    cut = [first, shape[axis] - first]
    if d.opset < 13:
        return d.made("Split", shape, outputs=2, axis=axis, split=cut)
    if d.opset >= 18 and d.rng.random() < 0.5:
        return d.made("Split", shape, outputs=2, axis=axis, num_outputs=2)
    return d.made("Split", shape, (d.store(ints(*cut)),), 2, axis=axis)


def _gather(d: Draw) -> Drawn:
    shape = d.shape(1, 4)
    axis = d.axis(len(shape))
    n = shape[axis]
    picks = d.numbers.integers(-n if d.opset >= 11 else 0, n, size=d.rng.choice(((), (2,), (2, 2))))
    return d.made("Gather", shape, (d.store(picks),), axis=axis)


def _gemm(d: Draw) -> Drawn:
    a, b, c = d.some(1, 3, 3)
    first, second = d.rng.choice((None, 0, 1)), d.rng.choice((None, 0, 1))
    bias = d.rng.choice(([1], [c], [a, 1], [1, c], [a, c]))
    operands = (d.store(d.real(*([c, b] if second else [b, c]))), d.store(d.real(*bias)))
    return d.made("Gemm", [b, a] if first else [a, b], operands, transA=first, transB=second,
                  alpha=d.rng.choice((None, 0.5, -2.0)), beta=d.rng.choice((None, 0.5, 2.0)))  # fmt: skip


def _norm(d: Draw) -> Drawn:
    op = d.rng.choice(_NORMS)
    shape = [1, 4, *d.some(2, 4, d.rng.randint(1, 2))]
    epsilon = d.rng.choice((None, 1e-2, 1e-6))
    if op in ("LayerNormalization", "RMSNormalization"):
        axis = d.rng.randint(-len(shape) + 1, len(shape) - 1) or 1
        tail = shape[axis:]
        scale = d.real(*(tail if d.rng.random() < 0.7 else [d.rng.choice((1, n)) for n in tail]))
        bias = (d.store(d.real(*tail)),) if op == "LayerNormalization" and d.rng.random() < 0.5 else ()
        return d.made(op, shape, (d.store(scale), *bias), axis=axis, epsilon=epsilon)
    pair = (d.store(d.real(4)), d.store(d.real(4)))
    if op == "BatchNormalization":
        return d.made(
            op,
            shape,
            (*pair, d.store(d.real(4)), d.store(np.abs(d.real(4)) + np.float32(0.1))),
            epsilon=epsilon,
        )
    if op == "InstanceNormalization":
        return d.made(op, shape, pair, epsilon=epsilon)
    groups = d.rng.choice((1, 2, 4))
    each = pair if d.opset >= 21 else (d.store(d.real(groups)), d.store(d.real(groups)))
    return d.made(op, shape, each, epsilon=epsilon, num_groups=groups)


_NORMS = (
    "LayerNormalization",
    "RMSNormalization",
    "BatchNormalization",
    "InstanceNormalization",
    "GroupNormalization",
)


def _activation(d: Draw) -> Drawn:
    op, shape = d.rng.choice(_ACTIVATIONS), d.shape()
    a = d.rng.choice((0.5, -0.5, 2.0, 1.0, 0.1, 3.7))
    if op == "PRelu":
        return d.made(op, shape, (d.store(d.real(*d.rng.choice(([1], shape, shape[-1:])))),))
    if op == "Pow":
        return d.made(op, shape, (d.store(np.float32(d.rng.choice((2, 3, 1, 4)))),))
    if op == "Clip":
        low, high = sorted(map(float, d.real(2)))
        if d.opset < 11:
            return d.made(op, shape, min=d.rng.choice((None, low)), max=d.rng.choice((None, high)))
        ends = [d.rng.choice(("", d.store(np.float32(end)))) for end in (low, high)]
        return d.made(op, shape, tuple(ends))
    settings: dict[str, dict[str, Any]] = {
        "Selu": {"alpha": a, "gamma": d.rng.choice((1.0, 2.0, 0.5))}, "HardSigmoid": {"alpha": a, "beta": 0.5},
        "Shrink": {"bias": abs(a), "lambd": abs(a)}, "Gelu": {"approximate": d.rng.choice(("none", "tanh"))},
    }  # fmt: skip
    plain = {"alpha": a}
    return d.made(op, shape, **(settings.get(op, plain) if d.rng.random() < 0.8 else {}))


_ACTIVATIONS = (
    "LeakyRelu",
    "Elu",
    "Celu",
    "Selu",
    "HardSigmoid",
    "ThresholdedRelu",
    "Shrink",
    "Gelu",
    "Swish",
    "PRelu",
    "Clip",
    "Pow",
)


def _move(d: Draw) -> Drawn:
    op, shape = d.rng.choice(_MOVES), [1, *d.some(1, 4, 3)]
    settings: dict[str, Any] = {}
    operands: tuple[str, ...] = ()
    if op == "Transpose":
        settings = {"perm": d.rng.choice((None, d.rng.sample(range(4), 4)))}
    elif op == "Tile":
        operands = (d.store(ints(1, *d.some(1, 2, 3))),)
    elif op == "Expand":
        shape = [1, 1, *d.some(1, 3, 2)]
        operands = (d.store(ints(*d.rng.choice(([1], [1, 3, 1, 1], shape)))),)
    elif op == "DepthToSpace":
        shape, settings = (
            [1, 8, 2, 3],
            {"blocksize": 2, "mode": d.rng.choice(("DCR", "CRD")) if d.opset >= 11 else None},
        )
    elif op == "SpaceToDepth":
        shape, settings = [1, 2, 4, 6], {"blocksize": 2}
    elif op == "Trilu":
        operands, settings = (d.store(np.array(d.rng.randint(-4, 4))),), {"upper": d.rng.choice((None, 0, 1))}
    elif op == "Flatten":
        settings = {"axis": d.rng.choice((None, d.axis(4)))}
    elif op == "Reshape":
        operands = (d.store(ints(*d.rng.choice(([-1], [1, -1], [0, -1], [0, 0, -1], [-1, shape[-1]])))),)
    return d.made(op, shape, operands, **settings)


_MOVES = (
    "Transpose",
    "Tile",
    "Expand",
    "DepthToSpace",
    "SpaceToDepth",
    "Trilu",
    "Flatten",
    "Squeeze",
    "Reshape",
)


def _several(d: Draw) -> Drawn:
    shape = d.shape()
    others = tuple(
        d.store(d.real(*d.rng.choice((shape, [1], shape[-1:])))) for _ in range(d.rng.randint(1, 3))
    )
    return d.made(d.rng.choice(("Sum", "Mean", "Max", "Min")), shape, others)


def _product(d: Draw) -> Drawn:
    shape = d.shape(1, 3)
    n = shape[-1]
    return d.made("MatMul", shape, (d.store(d.real(*d.rng.choice(([n], [n, 2], [1, n, 3], [2, n, 2])))),))


def _integers(d: Draw) -> Drawn:
    """Operators between layers of integers, with the settings of their tests and other types, operands and axes."""
    settings = dict(d.rng.choice(test_onnx_qlinear.CASES))
    settings["kind"] = d.rng.choice((np.uint8, np.int8))
    if settings["op"] in ("Concat", "Gather"):
        settings["axis"] = d.rng.randint(2, 3) - d.rng.choice((0, 4))
    if settings["op"] in ("Add", "Mul"):
        settings["operand"] = d.rng.choice(("twice", "stored"))
    if settings["op"] == "AveragePool":
        settings |= {"kernel_shape": d.some(1, 3, 2), "pads": [0] * 4, "strides": d.some(1, 2, 2)}
    if settings["op"] == "Softmax":
        settings |= {"axis": d.rng.choice((-1, 1, 3)), "opset": d.rng.choice((7, 11, 13, 17))}
    return test_onnx_qlinear.chain(**settings)


FAMILIES: dict[str, Callable[[Draw], Drawn]] = {
    "Slice": _slice, "Pad": _pad, "Resize Upsample": _resize, "MaxPool AveragePool": _pool, "Conv ConvTranspose": _conv,
    " ".join(_REDUCTIONS): _reduce, "Softmax LogSoftmax": _softmax, "Split": _split, "Gather": _gather,
    "Gemm": _gemm, "MatMul": _product, " ".join(_NORMS): _norm, " ".join(_ACTIVATIONS): _activation, " ".join(_MOVES): _move,
    "Sum Mean Max Min": _several, "QuantizeLinear DequantizeLinear Concat " + " ".join(
        f"com.microsoft.QLinear{op}" for op in
        ("Add", "Mul", "Sigmoid", "LeakyRelu", "AveragePool", "GlobalAveragePool", "Softmax", "Concat")
    ): _integers, **STORED, **COURSES,
}  # fmt: skip
"""The operators that each draws -> how: all of the reader's."""


def drawn(family: str, seed: int) -> bytes:
    """The bytes of one model."""
    data: bytes = FAMILIES[family](Draw(seed)).SerializeToString()
    return data
