"""Operators of several rounds drawn at random: recurrent layers, If, Loop, Scan; equations, sorts, products of integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from tests.onnx_models import ints, node
from tests.soundness.drawing import Draw, Drawn, Step
from tests.unit.frontends import test_onnx_qgemm

_LAWS = ("Tanh", "Sigmoid", "Relu", "Softsign")
_GATES, _COUNTS = {"RNN": 1, "GRU": 3, "LSTM": 4}, {"RNN": 1, "GRU": 2, "LSTM": 3}


def _recurrent(d: Draw) -> Drawn:
    """All operands that may be left out, in both layouts, with stored lengths and states."""
    op = d.rng.choice(tuple(_GATES))
    length, inputs, hidden = d.some(1, 3, 3)
    direction = d.rng.choice((None, "forward", "reverse", "bidirectional"))
    ways = 2 if direction == "bidirectional" else 1
    batched = d.opset >= 14 and d.rng.random() < 0.1  # of which onnxruntime runs none
    gates = _GATES[op] * hidden
    operands = [d.store(d.real(ways, gates, inputs)), d.store(d.real(ways, gates, hidden))]
    states = (1, ways, hidden) if batched else (ways, 1, hidden)

    def some(chance: float, array: Callable[[], Any]) -> str:
        return d.store(array()) if d.rng.random() < chance else ""

    operands.append(some(0.7, lambda: d.real(ways, 2 * gates)))
    operands.append(some(0.3, lambda: np.array([d.rng.randint(1, length)], np.int32)))
    operands.append(some(0.5, lambda: d.real(*states) * d.rng.choice((0, 1, 1))))
    if op == "LSTM":
        operands += [some(0.5, lambda: d.real(*states)), some(0.3, lambda: d.real(ways, 3 * hidden))]
    settings: dict[str, Any] = {
        "hidden_size": hidden, "direction": direction,
        "layout": int(batched) if batched or (d.opset >= 14 and d.rng.random() < 0.5) else None,
    }  # fmt: skip
    if d.rng.random() < 0.4:
        settings["activations"] = [d.rng.choice(_LAWS) for _ in range(_COUNTS[op] * ways)]
    if op == "GRU":
        settings["linear_before_reset"] = d.rng.choice((None, 0, 1))
    shape = [1, length, inputs] if batched else [length, 1, inputs]
    outputs = ["y", "h", "c"] if op == "LSTM" else ["y", "h"]
    wanted = d.rng.choice((["y"], ["h"], outputs))
    writes = [name if name in wanted else "" for name in outputs]
    while not writes[-1]:
        writes.pop()
    return d.chain([(op, ["x", *operands], writes, settings)], shape, wanted)


# -- bodies


def _info(d: Draw, name: str, kind: int, shape: list[int]) -> Any:
    """What a body says of a value: type and shape, or the type alone. Without shapes of single numbers onnxruntime runs none."""
    told = d.rng.random() < (0.6 if shape else 0.97)
    return helper.make_tensor_value_info(name, kind, shape if told else None)


def _body(d: Draw, steps: list[Step], inputs: list[Any], outputs: list[str], truth: str | None = None) -> Any:
    """A graph of these steps. truth: the output that is a truth value."""
    nodes = [
        node(op, reads, writes, **{k: v for k, v in given.items() if v is not None})
        for op, reads, writes, given in steps
    ]
    told = [
        helper.make_tensor_value_info(n, TensorProto.BOOL if n == truth else TensorProto.FLOAT, None)
        for n in outputs
    ]
    return helper.make_graph(nodes, f"body{d.rng.randrange(10**6)}", inputs, told)


def _mixed(d: Draw, state: str, row: str, size: int) -> list[Step]:
    """Steps from a state and another value, both of so many entries, to `after` and `seen`."""
    kept = d.store(d.real(size))
    ends = d.rng.choice(("Tanh", "Relu", "Identity", "Sigmoid"))
    op = d.rng.choice(("Add", "Sub", "Mul", "Max"))
    pair = d.rng.choice(([state, row], [row, state]))
    return [
        (op, pair, ["b0"], {}), (d.rng.choice(("Mul", "Add")), ["b0", kept], ["b1"], {}), (ends, ["b1"], ["after"], {}),
        (d.rng.choice(("Sub", "Min")), d.rng.choice((["after", state], [row, "after"])), ["seen"], {}),
    ]  # fmt: skip


def _scan(d: Draw) -> Drawn:
    rank, size = d.rng.randint(2, 3), 6
    shape = [1, *d.some(1, 3, rank - 1)]
    axis = d.rng.randrange(-rank, rank)
    row = [n for k, n in enumerate(shape) if k != axis % rank]
    size = row[-1]
    body = _body(d, _mixed(d, "h", "row", size), [_info(d, "h", TensorProto.FLOAT, row), _info(d, "row", TensorProto.FLOAT, row)],
                 ["after", "seen"])  # fmt: skip
    settings = {
        "num_scan_inputs": 1, "body": body, "scan_input_axes": [axis] if axis % rank else d.rng.choice((None, [axis])),
        "scan_input_directions": d.rng.choice((None, [0], [1])), "scan_output_directions": d.rng.choice((None, [0], [1])),
        "scan_output_axes": d.rng.choice((None, [d.rng.randrange(-rank, rank)])),
    }  # fmt: skip
    return d.chain([("Scan", [d.store(d.real(*row)), "x"], ["end", "y"], settings)], shape, ["y", "end"])


def _loop(d: Draw) -> Drawn:
    size = d.rng.randint(1, 3)
    steps = _mixed(d, "h", "x" if d.rng.random() < 0.5 else "h", size)
    if d.rng.random() < 0.5:
        # How often it ran takes part.
        steps += [("Cast", ["k"], ["f"], {"to": TensorProto.FLOAT}), ("Add", ["seen", "f"], ["told"], {})]
    course = d.rng.randrange(3)
    if course == 0:
        steps.append(("Identity", ["going"], ["on"], {}))
    elif course == 1:
        steps.append(
            (
                d.rng.choice(("Less", "LessOrEqual")) if d.opset >= 12 else "Less",
                ["k", d.store(np.array(d.rng.randint(-1, 3)))],
                ["on"],
                {},
            )
        )
    else:
        steps.append(("Identity", [d.store(np.array(d.rng.random() < 0.7))], ["on"], {}))
    count = d.rng.choice(("", d.store(np.array(d.rng.randint(0, 4))), d.store(ints(d.rng.randint(0, 4)))))
    go = d.rng.choice(("", d.store(np.array(d.rng.random() < 0.8))))
    if not count and course != 1:
        count = d.store(np.array(2))
    shape = [1, size]
    inputs = [
        _info(d, "k", TensorProto.INT64, []),
        _info(d, "going", TensorProto.BOOL, []),
        _info(d, "h", TensorProto.FLOAT, shape),
    ]
    last = "told" if steps[-2][2] == ["told"] else "seen"
    body = _body(d, steps, inputs, ["on", "after", last], "on")
    return d.chain([("Loop", [count, go, "x"], ["end", "y"], {"body": body})], shape, ["y", "end"])


def _branch(d: Draw) -> Drawn:
    shape, which = d.shape(), np.array(d.rng.random() < 0.5)
    sides = {}
    for name in ("then", "else"):
        own, other = d.rng.choice(("x", "z")), d.rng.choice(("x", d.store(d.real(shape[-1]))))
        steps: list[Step] = [
            (d.rng.choice(("Tanh", "Neg", "Relu")), [own], [f"{name}0"], {}),
            (d.rng.choice(("Add", "Mul", "Sub")), [f"{name}0", other], [f"{name}1"], {}),
        ]
        sides[f"{name}_branch"] = _body(d, steps, [], [f"{name}1"])
    condition = d.store(which if d.rng.random() < 0.5 else which[None])
    return d.chain([("Sigmoid", ["x"], ["z"], {}), ("If", [condition], ["y"], sides)], shape)


def _course(d: Draw) -> Drawn:
    d.opset = max(d.opset, 11 if d.rng.random() < 0.95 else 8)
    return d.rng.choice((_scan, _loop, _branch))(d)


# -- equations, sorts


def _einsum(d: Draw) -> Drawn:
    """One operand moved, or two multiplied, of which one may be x again."""
    d.opset = max(d.opset, 12)
    sizes = {letter: d.rng.randint(1, 3) for letter in "abcij"} | {"a": 1}
    first = "a" + "".join(d.rng.sample("bcij", d.rng.randint(1, 3)))
    if d.rng.random() < 0.2:
        moved = "".join(d.rng.sample(first, len(first)))
        return d.made("Einsum", [sizes[k] for k in first], equation=f"{first}->{moved}")
    second = "".join(d.rng.sample("abcij", d.rng.randint(1, 3)))
    both = sorted(set(first + second))
    written = "".join(d.rng.sample(both, d.rng.randint(1, len(both))))
    twice = d.rng.random() < 0.2
    if twice:
        second = "".join(d.rng.sample(first, len(first)))
        if [sizes[k] for k in second] != [sizes[k] for k in first]:
            second = first
        written = "".join(k for k in written if k in first) or first
    other = "x" if twice else d.store(d.real(*(sizes[k] for k in second)))
    terms, reads = [first, second], ["x", other]
    if d.rng.random() < 0.5:
        terms, reads = terms[::-1], reads[::-1]
    space = d.rng.choice(("", " "))
    equation = f"{terms[0]},{space}{terms[1]}{space}->{space}{written}"
    return d.chain([("Einsum", reads, ["y"], {"equation": equation})], [sizes[k] for k in first])


def _top(d: Draw) -> Drawn:
    shape = d.shape(1, 4)
    axis = d.rng.choice((None, d.axis(len(shape))))
    count = d.rng.randint(1, shape[-1 if axis is None else axis])
    settings: dict[str, Any] = {"axis": axis}
    if d.opset >= 11:
        settings |= {"largest": d.rng.choice((None, 0, 1)), "sorted": d.rng.choice((None, 1, 1, 0))}
    reads = ["x"] if d.opset < 10 else ["x", d.store(ints(count))]
    settings |= {"k": count} if d.opset < 10 else {}
    return d.chain([("TopK", reads, ["y", "i"], settings)], shape)


# -- products of integers


def _products(d: Draw) -> Drawn:
    """Layers of integers: convolutions with windows, products of matrices, scales and zero points for all or for each."""
    image, over = d.rng.random() < 0.5, d.rng.random() < 0.5
    kind, own = d.rng.choice((np.uint8, np.int8)), d.rng.choice((np.int8, np.int8, np.uint8))
    d.opset = max(d.opset, 10)
    # Weights of 6 bits: kernels without VNNI cut sums of others.
    low, high = (-30, 31) if own is np.int8 else (0, 61)
    out = d.rng.randint(1, 3)
    settings: dict[str, Any] = {}
    if image:
        groups = d.rng.randint(1, 2)
        into, out = groups * d.rng.randint(1, 2), groups * out
        kernel = d.some(1, 3, 2)
        shape, weight = (
            [1, into, *d.some(3, 5, 2)],
            d.numbers.integers(low, high, (out, into // groups, *kernel)),
        )
        settings = {
            "group": d.rng.choice((None, 1)) if groups == 1 else groups,
            "strides": d.rng.choice((None, d.some(1, 2, 2))),
            "pads": d.rng.choice((None, d.some(0, 1, 4))),
            "dilations": d.rng.choice((None, d.some(1, 2, 2))),
        }
        each = (out,)
    else:
        shape = [1, *d.some(1, 4, d.rng.randint(1, 2))]
        weight = d.numbers.integers(low, high, (shape[-1], out))
        each = (out,)
    many = d.rng.random() < 0.5
    middle = 0 if kind is np.int8 else 120

    def zero(of: Any, size: tuple[int, ...] = ()) -> str:
        return d.store((d.numbers.integers(-3, 4, size) + (0 if of is np.int8 else 30)).astype(of))

    scale, start = d.store(np.float32(0.03)), d.store(np.array(middle + d.rng.randint(-5, 5), kind))
    kept = d.store(weight.astype(own))
    zeros = zero(own, each if many and d.rng.random() < 0.5 else ())
    begun: Step = ("QuantizeLinear", ["x", scale, start], ["q"], {})
    if not over:
        reads = ["q", kept, *d.rng.choice(([], [start], [start, zeros]))]
        whole: Step = ("ConvInteger" if image else "MatMulInteger", reads, ["i"], settings)
        return d.chain([begun, whole, ("Cast", ["i"], ["y"], {"to": TensorProto.FLOAT})], shape)
    by = d.store((0.01 + 0.02 * d.numbers.random(each if many else ())).astype(np.float32))
    after, end = d.store(np.float32(0.11)), d.store(np.array(middle, kind))
    reads = ["q", scale, start, kept, by, zeros, after, end]
    if image and d.rng.random() < 0.5:
        reads.append(d.store(d.numbers.integers(-50, 50, out).astype(np.int32)))
    op = "QLinearConv" if image else "QLinearMatMul"
    return d.chain(
        [begun, (op, reads, ["p"], settings), ("DequantizeLinear", ["p", after, end], ["y"], {})], shape
    )


def _microsoft(d: Draw) -> Drawn:
    """QGemm, and rounding as onnxruntime's own operator set has it."""
    if d.rng.random() < 0.6:
        return test_onnx_qgemm.gemm(
            each=d.rng.random() < 0.5, shift=d.rng.randint(-3, 3), bias=d.rng.random() < 0.7, rounded=d.rng.random() < 0.7,
            kind=d.rng.choice((np.uint8, np.int8)), transB=d.rng.choice((0, 1)), alpha=d.rng.choice((1.0, 0.5, 0.3, 2.0)),
        )  # fmt: skip
    shape = [1, *d.some(1, 3, d.rng.randint(1, 3))]
    axis = d.rng.choice((None, d.rng.randrange(-len(shape), len(shape))))
    many = axis is not None and d.rng.random() < 0.6
    size = (shape[axis],) if many and axis is not None else ()
    kind = d.rng.choice((np.uint8, np.int8, np.int16, np.uint16))
    scale = d.store((0.02 + 0.1 * d.numbers.random(size)).astype(np.float32))
    zero = d.store(
        (d.numbers.integers(0, 5, size) + (100 if kind in (np.uint8, np.uint16) else 0)).astype(kind)
    )
    named = {"domain": "com.microsoft", "axis": axis}
    steps: list[Step] = [
        ("QuantizeLinear", ["x", scale, zero], ["q"], named),
        ("DequantizeLinear", ["q", scale, zero], ["y"], named),
    ]
    found = d.chain(steps, shape)
    found.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return found


COURSES: dict[str, Callable[[Draw], Drawn]] = {
    "GRU LSTM RNN": _recurrent, "If Loop Scan": _course, "Einsum": _einsum, "TopK": _top,
    "ConvInteger MatMulInteger QLinearConv QLinearMatMul": _products,
    "com.microsoft.QGemm com.microsoft.DequantizeLinear com.microsoft.QuantizeLinear": _microsoft,
}  # fmt: skip
"""The operators that each draws -> how."""
