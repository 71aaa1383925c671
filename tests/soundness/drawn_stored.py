"""Operators of stored tensors drawn at random: arithmetic, comparisons, conversions, sizes, and what they choose of x."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper

from tests.onnx_models import ints
from tests.soundness.drawing import Draw, Drawn, Step

_KINDS = (np.int64, np.int64, np.float32, np.float32, np.int32)
_TYPES = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.INT32, TensorProto.INT8,
          TensorProto.UINT8, TensorProto.BOOL, TensorProto.BFLOAT16)  # fmt: skip


def _broadcast(d: Draw, shape: list[int]) -> list[int]:
    """A shape that broadcasts to this one: some last axes of it, some of them 1."""
    kept = shape[d.rng.randrange(len(shape) + 1) :]
    return [d.rng.choice((1, n, n)) for n in kept]


def _array(d: Draw, shape: list[int], kind: Any) -> Any:
    """Small whole numbers, which meet one another; halves of them where the type has such."""
    return (d.numbers.integers(-6, 7, shape) / (1 if np.issubdtype(kind, np.integer) else 2)).astype(kind)


def _unary(d: Draw) -> Drawn:
    op = d.rng.choice(_UNARY)
    if op.startswith("Global"):
        return d.made(op, [1, *d.some(1, 3, d.rng.randint(2, 3))])
    if op == "Dropout":
        if d.opset < 12:
            return d.made(op, d.shape(), ratio=d.rng.choice((None, 0.3)))
        training = d.rng.choice(("", d.store(np.array(False)), d.store(np.array(d.rng.random() < 0.2))))
        return d.made(op, d.shape(), (d.store(np.float32(0.3)), training), seed=d.rng.choice((None, 3)))
    if op in ("Log", "Sqrt", "Reciprocal"):
        # Of what is positive: where one is no number, nothing is compared.
        return d.chain([("Exp", ["x"], ["e"], {}), (op, ["e"], ["y"], {})], d.shape())
    return d.made(op, d.shape())


_UNARY = (
    "Abs", "Asinh", "Atan", "Cos", "Dropout", "Erf", "Exp", "GlobalAveragePool", "GlobalMaxPool", "HardSwish", "Identity", "Log",
    "Mish", "Neg", "Reciprocal", "Relu", "Sigmoid", "Sin", "Softplus", "Softsign", "Sqrt", "Tanh",
)  # fmt: skip


def _binary(d: Draw) -> Drawn:
    """x, what is computed of it, and a stored tensor, on either side, broadcast either way."""
    op, shape = d.rng.choice(("Add", "Sub", "Mul", "Div")), d.shape()
    other = d.rng.choice((_broadcast(d, shape), [d.rng.randint(1, 3), *shape[1:]], [2, *shape]))
    numbers = d.real(*other)
    if op == "Div":
        numbers = np.where(np.abs(numbers) < 0.1, np.float32(0.5), numbers).astype(np.float32)
    kept = d.store(numbers)
    if d.rng.random() < 0.3:
        # 2 + x^2 is above 0, as a divisor has to be.
        base: list[Step] = [("Mul", ["x", "x"], ["s"], {}), ("Add", ["s", d.store(np.float32(2))], ["t"], {})]
        reads = d.rng.choice((["x", "t"], ["t", "t"], [kept, "t"]))
        return d.chain([*base, (op, reads, ["y"], {})], shape)
    reads = d.rng.choice((["x", kept], [kept, "x"]))
    return d.chain([(op, reads, ["y"], {})], shape)


def _condition(d: Draw, shape: list[int], steps: list[Step], depth: int = 2) -> str:
    """The name of stored truth values that broadcast to this shape, as operators make them of numbers."""
    name, draw = f"t{len(steps)}", d.rng.random()
    if depth and draw < 0.5:
        op = d.rng.choice(("And", "Or", "Not"))
        reads = [_condition(d, shape, steps, depth - 1) for _ in range(1 if op == "Not" else 2)]
        name = f"t{len(steps)}"
        steps.append((op, reads, [name], {}))
        return name
    if draw < 0.6:
        return d.store(d.numbers.random(_broadcast(d, shape)) < 0.5)
    if draw < 0.7:
        steps.append(("IsNaN", [d.store(d.real(*_broadcast(d, shape)))], [name], {}))
        return name
    op = d.rng.choice(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"))
    kind = d.rng.choice(_KINDS)
    reads = [d.store(_array(d, _broadcast(d, shape), kind)) for _ in range(2)]
    steps.append((op, reads, [name], {}))
    return name


def _logic(d: Draw) -> Drawn:
    """x or stored numbers, by truth values that are computed of stored ones."""
    shape, steps = d.shape(), list[Step]()
    by = _condition(d, shape, steps)
    sides = ["x", d.rng.choice(("x", d.store(d.real(*_broadcast(d, shape)))))]
    d.rng.shuffle(sides)
    return d.chain([*steps, ("Where", [by, *sides], ["y"], {})], shape)


def _remainder(d: Draw) -> Drawn:
    """Entries of x at places that are computed as remainders."""
    n, kind = d.rng.randint(2, 5), d.rng.choice((np.int64, np.int64, np.int32))
    numbers, by = (
        d.numbers.integers(-20, 20, d.some(1, 3, d.rng.randint(0, 2))),
        np.array(d.rng.choice((n, n, -n))),
    )
    reads = [d.store(numbers.astype(kind)), d.store(by.astype(kind))]
    steps: list[Step] = [
        ("Mod", reads, ["i"], {"fmod": d.rng.choice((None, 0, 0, 1))}),
        ("Gather", ["x", "i"], ["y"], {"axis": 1}),
    ]
    return d.chain(steps, [1, n])


def _converted(d: Draw) -> Drawn:
    """x times stored numbers that went through another type, or were made of one."""
    n, op = d.rng.randint(1, 4), d.rng.choice(("Cast", "CastLike", "ConstantOfShape"))
    kind = d.rng.choice((np.float32, np.float16, np.int64, np.int32, np.int8, np.uint8, np.bool_))
    numbers = (d.numbers.standard_normal(n) * d.rng.choice((1.0, 3.0, 100.0))).astype(kind)
    target = d.rng.choice(_TYPES)
    if op == "ConstantOfShape":
        value = d.rng.choice((None, numpy_helper.from_array(numbers[:1])))
        first: Step = (op, [d.store(ints(n))], ["c"], {"value": value})
    elif op == "Cast":
        first = (op, [d.store(numbers)], ["c"], {"to": target})
    else:
        like = np.zeros(1, d.rng.choice((np.float32, np.float16, np.int64, np.int32, np.int8, np.bool_)))
        first = (op, [d.store(numbers), d.store(like)], ["c"], {})
    return d.chain(
        [first, ("Cast", ["c"], ["f"], {"to": TensorProto.FLOAT}), ("Mul", ["x", "f"], ["y"], {})], [1, n]
    )


def _sizes(d: Draw) -> Drawn:
    """Shapes, sizes and ranges, as numbers beside x."""
    op, shape = d.rng.choice(("Shape", "Size", "Range", "Unsqueeze")), d.shape(1, 4)
    if op == "Unsqueeze":
        count = d.rng.randint(1, 2)
        rank = len(shape) + count
        axes = [a - d.rng.choice((0, rank if d.opset >= 11 else 0)) for a in d.rng.sample(range(rank), count)]
        if d.opset < 13:
            return d.made(op, shape, axes=axes)
        return d.made(op, shape, (d.store(ints(*axes)),))
    if op == "Range":
        start, step = d.rng.randint(-5, 5), d.rng.choice((1, 2, 3, -1, -2))
        stop = start + step * d.rng.randint(1, 4) - d.rng.choice((0, 0, step // 2))
        kind = d.rng.choice((np.int64, np.int64, np.int64, np.int32, np.float32))
        reads = [d.store(np.array(v, kind)) for v in (start, stop, step)]
        shape = [1, d.rng.choice((1, len(range(start, stop, step)) or 1))]
        first: Step = (op, reads, ["i"], {})
    elif op == "Size":
        first = (op, ["x"], ["i"], {})
    else:
        ends = (None, *range(-4, 5)) if d.opset >= 15 else (None,)
        first = (op, ["x"], ["s"], {"start": d.rng.choice(ends), "end": d.rng.choice(ends)})
        sums: Step = ("ReduceSum", ["s"], ["i"], {"keepdims": d.rng.choice((0, 1))})
        return d.chain([first, ("Cast", ["s"], ["f"], {"to": TensorProto.FLOAT}), (*sums[:1], ["f"], ["g"], sums[3]),
                        ("Mul", ["x", "g"], ["y"], {})], shape)  # fmt: skip
    return d.chain(
        [first, ("Cast", ["i"], ["f"], {"to": TensorProto.FLOAT}), ("Add", ["x", "f"], ["y"], {})], shape
    )


STORED: dict[str, Callable[[Draw], Drawn]] = {
    " ".join(_UNARY): _unary, "Add Sub Mul Div": _binary,
    "And Or Not IsNaN Equal Greater GreaterOrEqual Less LessOrEqual Where": _logic, "Mod": _remainder,
    "Cast CastLike ConstantOfShape": _converted, "Shape Size Range Unsqueeze": _sizes,
}  # fmt: skip
"""The operators that each draws -> how."""
