"""A differential fuzzer of readers: small valid models, changed in meaning or in bytes, read by the checker and run by a runtime.

Whenever the checker's reader accepts a file and onnxruntime evaluates it, they must compute the same function. The check of
agreement that every verification makes is not used, so that the reader itself is tested.
"""

from __future__ import annotations

import random as stdlib_random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lipverify.checkers.evaluation import evaluate, evaluate_with_deviations
from lipverify.checkers.kernel import Program
from lipverify.checkers.reader import model_of_bytes
from lipverify.checkers.reader.onnx import input_of, only
from tests import control_flow_files
from tests.onnx_models import model, node, random
from tests.soundness import models
from tests.unit.checkers.reader import test_masks
from tests.unit.frontends import test_onnx_qgemm, test_onnx_qlinear
from tests.unit.frontends.test_onnx_operators import CASES

Random = stdlib_random.Random
_TYPES = (
    TensorProto.FLOAT,
    TensorProto.DOUBLE,
    TensorProto.FLOAT16,
    TensorProto.INT64,
    TensorProto.INT32,
    TensorProto.BOOL,
)
_NUMBERS = (0, 1, -1, 2, -2, 3, 4, 5, 7, 100, -100, 2**31, -(2**31), 2**63 - 1, -(2**63))
_REALS = (0.0, 1.0, -1.0, 0.5, 2.0, 1e-5, 1e-3, 100.0, -0.0, 1e30, float("inf"), float("nan"))
_WORDS = (
    *(
        "NOTSET",
        "VALID",
        "SAME_UPPER",
        "SAME_LOWER",
        "constant",
        "reflect",
        "edge",
        "wrap",
        "DCR",
        "CRD",
        "none",
        "tanh",
    ),
    *("nearest", "linear", "half_pixel", "asymmetric", "align_corners", "floor", "ceil", ""),
)
_SETTINGS = (
    *(
        "axis",
        "axes",
        "alpha",
        "beta",
        "gamma",
        "pads",
        "strides",
        "dilations",
        "kernel_shape",
        "group",
        "auto_pad",
    ),
    *(
        "ceil_mode",
        "count_include_pad",
        "storage_order",
        "perm",
        "keepdims",
        "noop_with_empty_axes",
        "epsilon",
        "momentum",
    ),
    *(
        "training_mode",
        "spatial",
        "mode",
        "value",
        "split",
        "num_outputs",
        "starts",
        "ends",
        "to",
        "k",
        "largest",
        "sorted",
    ),
    *(
        "transA",
        "transB",
        "output_padding",
        "output_shape",
        "allowzero",
        "blocksize",
        "approximate",
        "bias",
        "lambd",
    ),
    *("stash_type", "num_groups", "upper"),
)


@dataclass
class Found:
    """How a run went. wrong: seed of the mutant, and what differed; overflows: files some of whose values are beyond the type
    that they are computed in, which a bound over real numbers leaves out: rows without a number there are not compared.
    """

    made: int = 0
    accepted: int = 0
    compared: int = 0
    overflows: int = 0
    seconds: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    unable: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


# -- models to begin with


def seeds() -> list[Any]:
    """A valid model of every operator in every operator set of the importer's tests, and some of several operators."""
    found = []
    for case in CASES:
        for opset in case.opsets:
            inputs = case.inputs or ("x", *case.constants)
            shown_outputs = [name for name in case.outputs if name != "i"]
            nodes = [node(case.op, inputs, case.outputs, **case.attributes)]
            found.append(model(nodes, [1, *case.shape], opset, dict(case.constants), shown_outputs))
    masks = [test_masks.source(nodes, stored) for nodes, stored, _ in test_masks.READ.values()]
    dense = [test_onnx_qgemm.gemm(**settings) for settings in test_onnx_qgemm.CASES]
    dense += [test_onnx_qlinear.chain(**settings) for settings in test_onnx_qlinear.CASES]
    bodies = control_flow_files.files()
    return [*found, *_networks(), *masks, *dense, *bodies, *(random_model(seed) for seed in range(60))]


def random_model(seed: int) -> Any:
    """One of the random models over all pairs of operators."""
    pairs = models.pairs()
    return models.model(np.random.default_rng(seed), models.Reached(), pairs[seed % len(pairs)]).proto


def _networks() -> Iterator[Any]:
    weights = {"w": random(6, 6), "b": random(6), "v": random(6, 4, seed=3)}
    half = {"r": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    gate = [("Gemm", "x w b", "a"), ("Sigmoid", "a", "s"), ("Mul", "a s", "y")]
    yield _network(gate, [1, 6], {k: weights[k] for k in "wb"})
    rounded = [("QuantizeLinear", "x s z", "q"), ("DequantizeLinear", "q s z", "y")]
    yield _network(rounded, [1, 6], {"s": np.float32(0.043), "z": np.uint8(101)})
    yield from _integers()
    yield _rounded_for_microsoft()
    erf = [
        ("Div", "x r", "a"),
        ("Erf", "a", "e"),
        ("Add", "e one", "g"),
        ("Mul", "x g", "h"),
        ("Mul", "h half", "y"),
    ]
    yield _network(erf, [1, 6], half)
    sort = [
        ("Split", "x", "a b"),
        ("Max", "a b", "m"),
        ("Min", "a b", "n"),
        ("Concat", "m n", "c"),
        ("MatMul", "c v", "y"),
    ]
    yield _network(sort, [1, 6], {"v": weights["v"]}, Split={"axis": 1}, Concat={"axis": 1})
    attention = [
        ("MatMul", "x q", "a"),
        ("Transpose", "x", "t"),
        ("MatMul", "a t", "s"),
        ("Softmax", "s", "p"),
        ("MatMul", "p x", "y"),
    ]
    yield _network(
        attention, [1, 3, 4], {"q": random(4, 4)}, Transpose={"perm": [0, 2, 1]}, Softmax={"axis": -1}
    )
    norm = [("LayerNormalization", "x w b", "a"), ("Relu", "a", "h"), ("Add", "h x", "y")]
    yield _network(norm, [1, 2, 6], {"w": random(6), "b": random(6)}, 17, LayerNormalization={"axis": -1})
    image = [
        ("Conv", "x k c", "a"),
        ("Relu", "a", "r"),
        ("MaxPool", "r", "m"),
        ("Flatten", "m", "f"),
        ("Gemm", "f l", "y"),
    ]
    stored = {"k": random(3, 2, 3, 3), "c": random(3), "l": random(12, 5)}
    yield _network(
        image,
        [1, 2, 4, 4],
        stored,
        Conv={"pads": [1] * 4},
        MaxPool={"kernel_shape": [2, 2], "strides": [2, 2]},
    )
    sizes = [
        ("Shape", "x", "s"),
        ("Gather", "s z", "n"),
        ("Unsqueeze", "n q", "u"),
        ("Concat", "u l", "t"),
        ("Reshape", "x t", "y"),
    ]
    yield _network(
        sizes, [1, 2, 3], {"z": np.int64(0), "q": np.array([0]), "l": np.array([-1])}, Concat={"axis": 0}
    )
    chosen = [("Shape", "x", "s"), ("ConstantOfShape", "r", "c"), ("Mul", "c m", "n"), ("Equal", "e n", "q")]
    chosen += [("Where", "q s e", "t"), ("Expand", "x t", "y")]
    yield _network(chosen, [1, 2, 3], {"r": np.array([3]), "m": np.array([-1]), "e": np.array([-1, 2, 3])},
                   ConstantOfShape={"value": numpy_helper.from_array(np.array([1]))})  # fmt: skip
    ends = {"a": np.int64(0), "d": np.int64(2), "two": np.int64(2)}
    steps = [("Size", "x", "n"), ("Sub", "n two", "b"), ("Range", "a b d", "i"), ("Gather", "x i", "y")]
    yield _network(steps, [1, 8], ends, Gather={"axis": 1})
    logic = [
        ("Mod", "i0 six", "i"),
        ("Less", "i j", "p"),
        ("GreaterOrEqual", "i k", "q"),
        ("And", "p q", "r"),
        ("Not", "r", "n"),
        ("Or", "n p", "o"),
    ]
    logic += [
        ("Greater", "i j", "u"),
        ("LessOrEqual", "i k", "v"),
        ("And", "u v", "w"),
        ("Or", "w r", "c"),
        ("Where", "c x o2", "a"),
    ]
    logic += [("Where", "o a x2", "y")]
    numbers = {
        "i0": np.arange(6) - 6 * (np.arange(6) % 2),
        "six": np.array(6),
        "j": np.array(4),
        "k": np.array([1]),
        "o2": random(6),
        "x2": random(6, seed=1),
    }
    yield _network(logic, [1, 6], numbers)
    coded = [
        ("DequantizeLinear", "q s z", "w"),
        ("MatMul", "x w", "a"),
        ("Mul", "g h", "f"),
        ("Add", "a f", "y"),
    ]
    codes = {"q": np.arange(-9, 9, dtype=np.int8).reshape(6, 3), "s": np.array([0.1, 0.2, 0.3], np.float32)}
    codes |= {"z": np.array([0, 1, -2], np.int8), "g": random(3), "h": random(3, seed=1)}
    yield _network(coded, [1, 6], codes, 19, DequantizeLinear={"axis": 1})
    folded = [
        ("Add", "v e", "t"),
        ("Sqrt", "t", "r"),
        ("Div", "g r", "k"),
        ("Sub", "x m", "c"),
        ("Mul", "c k", "d"),
        ("Neg", "m", "n"),
    ]
    folded += [("Mul", "n k", "b"), ("Add", "d b", "y")]
    parts = {
        "v": np.abs(random(6)) + np.float32(0.1),
        "e": np.float32(1e-3),
        "g": random(6),
        "m": random(6, seed=2),
    }
    yield _network(folded, [1, 6], parts)
    rms = [
        ("RMSNormalization", "x w", "a"),
        ("Swish", "a", "s"),
        ("Exp", "s", "e"),
        ("Add", "e one", "p"),
        ("Log", "p", "y"),
    ]
    yield _network(rms, [1, 2, 6], {"w": random(6), "one": np.float32(1)}, 24)
    roots = [("Mul", "x x", "q"), ("Add", "q one", "p"), ("Sqrt", "p", "r"), ("Div", "x r", "y")]
    yield _network(roots, [1, 6], {"one": np.float32(1)})
    tokens = [("Concat", "token x", "a"), ("Max", "a floor", "m"), ("Sub", "one m", "y")]
    yield _network(
        tokens,
        [1, 2, 3],
        {"token": random(1, 1, 3), "floor": random(3, 3), "one": random(3)},
        Concat={"axis": 1},
    )


def _rounded_for_microsoft() -> Any:
    """Both operators of rounding as onnxruntime's own operator set has them, a scale for each row."""
    scales = {"s": np.array([0.05, 0.1], np.float32), "z": np.array([7, 3], np.uint8)}
    named: dict[str, Any] = {"domain": "com.microsoft", "axis": 1}
    nodes = [node("QuantizeLinear", ["x", "s", "z"], ["q"], **named),
             node("DequantizeLinear", ["q", "s", "z"], ["y"], **named)]  # fmt: skip
    return model(nodes, [1, 2, 3], constants=scales, opset_imports=test_onnx_qlinear.IMPORTS)


def _integers() -> Iterator[Any]:
    """Products of integers, as they are and over a scale."""
    rng = np.random.default_rng(0)
    scales = {"s": np.float32(0.043), "z": np.uint8(101), "sw": np.float32(0.02), "zw": np.int8(-3), "sy": np.float32(0.11),
              "zy": np.uint8(120), "b": np.arange(-2, 1, dtype=np.int32)}  # fmt: skip
    for image in (False, True):
        shape = [1, 2, 4, 4] if image else [1, 6]
        weight = rng.integers(-90, 90, (3, 2, 3, 3) if image else (6, 3)).astype(np.int8)
        plain, over = ("ConvInteger", "QLinearConv") if image else ("MatMulInteger", "QLinearMatMul")
        begun = ("QuantizeLinear", "x s z", "q")
        cast = {"Cast": {"to": 1}}
        stored = {name: scales[name] for name in ("s", "z", "zw")} | {"w": weight}
        yield _network([begun, (plain, "q w z zw", "i"), ("Cast", "i", "y")], shape, stored, **cast)
        stored = (
            scales | {"w": weight} if image else {k: v for k, v in scales.items() if k != "b"} | {"w": weight}
        )
        operands = "q s z w sw zw sy zy" + (" b" if image else "")
        yield _network([begun, (over, operands, "i"), ("DequantizeLinear", "i sy zy", "y")], shape, stored)


def _network(
    steps: list[tuple[str, str, str]], shape: list[int], stored: Any, opset: int = 13, **settings: Any
) -> Any:
    nodes = [
        node(op, inputs.split(), outputs.split(), **settings.get(op, {})) for op, inputs, outputs in steps
    ]
    return model(nodes, shape, opset, stored)


# -- changes


def _setting(rng: Random, name: str) -> Any:
    kind = rng.randrange(4)
    if kind == 0:
        return helper.make_attribute(name, rng.choice(_NUMBERS))
    if kind == 1:
        return helper.make_attribute(name, rng.choice(_REALS))
    if kind == 2:
        return helper.make_attribute(name, rng.choice(_WORDS))
    return helper.make_attribute(
        name, [rng.choice(_NUMBERS[:8]) for _ in range(rng.randrange(1, 5))], attr_type=7
    )


def _change_setting(rng: Random, m: Any) -> None:
    settings = [(n, a) for n in m.graph.node for a in n.attribute]
    if not settings or rng.random() < 0.25:
        rng.choice(m.graph.node).attribute.append(_setting(rng, rng.choice(_SETTINGS)))
        return
    at, setting = rng.choice(settings)
    kind = rng.randrange(6)
    if kind == 0:
        at.attribute.remove(setting)
    elif kind == 1:
        setting.name = rng.choice(_SETTINGS)
    elif kind == 2:
        at.attribute.append(setting)
    elif setting.type == 7 and setting.ints:
        k = rng.randrange(len(setting.ints))
        values = [*setting.ints]
        if kind == 3:
            values[k] = rng.choice(_NUMBERS[:9] if rng.random() < 0.8 else _NUMBERS)
        elif kind == 4:
            del values[k]
        else:
            values.insert(k, rng.choice(_NUMBERS[:6]))
        del setting.ints[:]
        setting.ints.extend(values)
    elif setting.type == 2:
        setting.i = rng.choice(_NUMBERS)
    elif setting.type == 1:
        setting.f = rng.choice(_REALS)
    elif setting.type == 3:
        setting.s = rng.choice(_WORDS).encode()
    else:
        setting.type = rng.randrange(8)


def _change_wiring(rng: Random, m: Any) -> None:
    nodes, kind = m.graph.node, rng.randrange(10)
    at = rng.choice(nodes)
    names = [
        *(i.name for i in m.graph.input),
        *(t.name for t in m.graph.initializer),
        *(o for n in nodes for o in n.output),
        "",
    ]
    if kind == 0 and at.input:
        at.input[rng.randrange(len(at.input))] = rng.choice(names)
    elif kind == 1:
        at.input.append(rng.choice(names))
    elif kind == 2 and at.input:
        del at.input[rng.randrange(len(at.input))]
    elif kind == 3:
        at.output.append(rng.choice([*names, "extra"]))
    elif kind == 4 and len(at.input) > 1:
        values = [*at.input]
        rng.shuffle(values)
        del at.input[:]
        at.input.extend(values)
    elif kind == 5:
        at.op_type = rng.choice([*(n.op_type for n in nodes), *(c.op for c in CASES)])
    elif kind == 6:
        order = [*nodes]
        rng.shuffle(order)
        del nodes[:]
        nodes.extend(order)
    elif kind == 7:
        nodes.append(at)
    elif kind == 8:
        at.domain = rng.choice(["ai.onnx", "com.microsoft", "ai.onnx.ml", "own"])
    else:
        nodes.append(
            helper.make_node(
                rng.choice(["Relu", "Identity", "Neg"]),
                [rng.choice(names[:-1])],
                [rng.choice([*names[:-1], "extra"])],
            )
        )


def _change_stored(rng: Random, m: Any) -> None:
    if not m.graph.initializer:
        return _change_wiring(rng, m)
    tensor, kind = rng.choice(m.graph.initializer), rng.randrange(9)
    array = numpy_helper.to_array(tensor)
    if kind == 0 and array.size:
        array = array.copy()
        array.reshape(-1)[rng.randrange(array.size)] = rng.choice(_NUMBERS[:10])
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    elif kind == 1:
        target = helper.tensor_dtype_to_np_dtype(rng.choice(_TYPES))
        with np.errstate(all="ignore"):
            tensor.CopyFrom(numpy_helper.from_array(array.astype(target), tensor.name))
    elif kind == 2:
        tensor.data_type = rng.choice(_TYPES)
    elif kind == 3:
        dims = [*tensor.dims, 1] if rng.random() < 0.5 else [1, *tensor.dims]
        del tensor.dims[:]
        tensor.dims.extend(dims)
    elif kind == 4:
        tensor.name = rng.choice([*(t.name for t in m.graph.initializer), "x", "y", "spare"])
    elif kind == 5:
        m.graph.initializer.append(
            numpy_helper.from_array(np.zeros_like(array) if rng.random() < 0.5 else array, tensor.name)
        )
    elif kind == 6:
        m.graph.node.insert(
            0, helper.make_node("Constant", [], [tensor.name], value=numpy_helper.from_array(array))
        )
        if rng.random() < 0.7:
            m.graph.initializer.remove(tensor)
    elif kind == 7:
        dims = None if rng.random() < 0.2 else list(tensor.dims) if rng.random() < 0.7 else [1, 2]
        m.graph.input.append(
            helper.make_tensor_value_info(tensor.name, rng.choice([tensor.data_type, 1, 7]), dims)
        )
    elif array.dtype == np.float32:
        tensor.float_data.extend(array.reshape(-1).tolist())
        if rng.random() < 0.7:
            tensor.ClearField("raw_data")
    return None


def _change_graph(rng: Random, m: Any) -> None:
    kind, value = rng.randrange(9), m.graph.input[0]
    shape = value.type.tensor_type.shape
    if kind == 0:
        value.type.tensor_type.elem_type = rng.choice(_TYPES)
    elif kind == 1:
        # Everything in another type of numbers.
        target = rng.choice((TensorProto.DOUBLE, TensorProto.FLOAT16))
        for info in (*m.graph.input, *m.graph.output):
            if info.type.tensor_type.elem_type == TensorProto.FLOAT:
                info.type.tensor_type.elem_type = target
        for tensor in m.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT:
                array = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(target))
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    elif kind == 2 and shape.dim:
        shape.dim[rng.randrange(len(shape.dim))].dim_value = rng.choice((0, 1, 2, 3, 4, 6, 7))
    elif kind == 3 and shape.dim:
        shape.dim[rng.randrange(len(shape.dim))].dim_param = "N"
    elif kind == 4:
        del shape.dim[rng.randrange(max(len(shape.dim), 1)) :]
    elif kind == 5:
        names = [o for n in m.graph.node for o in n.output] + [t.name for t in m.graph.initializer] + ["x"]
        name = rng.choice(names)
        m.graph.output.append(helper.make_tensor_value_info(name, rng.choice((1, 1, 1, 7)), None))
    elif kind == 6:
        m.graph.output[0].type.tensor_type.elem_type = rng.choice(_TYPES)
    elif kind == 7:
        m.opset_import[0].version = rng.randrange(1, 30)
    else:
        m.ir_version = rng.randrange(1, 15)


def _change_bytes(rng: Random, data: bytes) -> bytes:
    kind, at = rng.randrange(7), rng.randrange(len(data))
    if kind == 0:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + data[at + 1 :]
    if kind == 2:
        return data[:at] + bytes([rng.randrange(256)]) + data[at:]
    return _change_message(rng, data)


def _change_message(rng: Random, data: bytes) -> bytes:
    """Fields of a message, or of one inside: one again, longer than need be, unknown, of another number, in another order."""
    fields = list(_fields(data))
    inner = [
        k for k, (_, wire, body) in enumerate(fields) if wire == 2 and len(body) > 3 and _is_message(body)
    ]
    if inner and rng.random() < 0.7:
        k = rng.choice(inner)
        fields[k] = *fields[k][:2], _change_message(rng, fields[k][2])
        return b"".join(_encoded(f) for f in fields)
    kind, k = rng.randrange(6), rng.randrange(len(fields))
    if kind == 0:
        fields.insert(rng.randrange(len(fields) + 1), fields[k])
    elif kind == 1:
        return b"".join(_encoded(f, padded=n == k) for n, f in enumerate(fields))
    elif kind == 2:
        more = [
            (99, 2, b"abc"),
            (9, 0, b"\x01"),
            (7, 0, b"\x01"),
            (21, 5, bytes(4)),
            (1, 2, b""),
            (13, 2, b""),
            (14, 0, b"\x01"),
        ]
        fields.insert(k, rng.choice(more))
    elif kind == 3:
        fields[k] = rng.randrange(1, 30), *fields[k][1:]
    elif kind == 4:
        del fields[k]
    else:
        rng.shuffle(fields)
    return b"".join(_encoded(f) for f in fields)


def _is_message(data: bytes) -> bool:
    try:
        return b"".join(_encoded(f) for f in _fields(data)) == data and all(
            0 < n < 30 for n, _, _ in _fields(data)
        )
    except IndexError:
        return False


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


def _fields(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(number, wire type, content) of a valid message without groups."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 2:
            size, at = _varint(data, at)
            yield tag >> 3, wire, data[at : at + size]
        elif wire == 0:
            _, end = _varint(data, at)
            size = end - at
            yield tag >> 3, wire, data[at:end]
        else:
            size = {5: 4, 1: 8}.get(wire, len(data))
            yield tag >> 3, wire, data[at : at + size]
        at += size


def _number(value: int, padded: bool = False) -> bytes:
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + (bytes([value | 128, 0]) if padded else bytes([value]))


def _encoded(found: tuple[int, int, bytes], padded: bool = False) -> bytes:
    number, wire, body = found
    return _number(number << 3 | wire, padded) + (_number(len(body), padded) if wire == 2 else b"") + body


_CHANGES: dict[str, Callable[[Random, Any], None]] = {
    "setting": _change_setting, "wiring": _change_wiring, "stored": _change_stored, "graph": _change_graph,
}  # fmt: skip


def _changed(rng: Random, m: Any, change: Callable[[Random, Any], None]) -> None:
    """A change of the graph, or, where it has bodies, of one of them half of the time."""
    bodies = [a.g for n in m.graph.node for a in n.attribute if a.HasField("g") and a.g.input and a.g.node]
    if not bodies or rng.random() < 0.5:
        change(rng, m)
        return
    body, inner = rng.choice(bodies), onnx.ModelProto()
    inner.CopyFrom(m)
    inner.graph.CopyFrom(body)
    change(rng, inner)
    body.CopyFrom(inner.graph)


def mutant(seed: int, begin: list[bytes]) -> tuple[str, bytes]:
    """What was changed, and the bytes."""
    rng = Random(seed)
    data = rng.choice(begin)
    kind = rng.choice(
        ["setting", "setting", "setting", "wiring", "wiring", "stored", "stored", "graph", "bytes"]
    )
    if kind == "bytes":
        return kind, _change_bytes(rng, data)
    m = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        try:
            _changed(rng, m, _CHANGES[kind])
        except (ValueError, TypeError, OverflowError):
            continue  # a change that the library itself does not let through
        kind = rng.choice(list(_CHANGES)) if rng.random() < 0.5 else kind
    return kind, m.SerializeToString()


# -- comparison


def difference(data: bytes, found: Found, seed: int = 0) -> str | None:
    """What onnxruntime computes otherwise than the reader says; None where they agree, or one of them refuses the file."""
    import onnxruntime

    model = model_of_bytes("mutant.onnx", data)
    if model.program is None:
        return None
    found.accepted += 1
    outputs = [k for k in range(len(model.program.outputs)) if k not in model.refused]
    name, shape, kind, _ = input_of(data)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    rng = np.random.default_rng(seed)
    size = model.program.steps[0].size
    x = np.stack(
        [
            rng.standard_normal(size),
            3 * rng.standard_normal(size),
            -np.abs(rng.standard_normal(size)),
            np.zeros(size),
        ]
    )
    x = x.astype(kind)
    names = [model.program.outputs[k].name for k in outputs]
    try:
        # What is refused, or what no output needs, is not run: a runtime may not survive it (onnxruntime 1.31 ends with a
        # violation of memory at Max(a, b, "")), and `verify` does not run it either.
        session = onnxruntime.InferenceSession(only(data, names), options, providers=["CPUExecutionProvider"])
        theirs = [session.run(names, {name: row.reshape(shape)}) for row in x]
    except Exception as error:
        found.unable[str(error).replace("\n", " ")[:90]] += 1
        return None
    found.compared += 1
    # onnxruntime computes some operators of float64 in float32.
    unit = 2.0**-10 if kind.itemsize == 2 else 2.0**-23
    results, deviations = evaluate_with_deviations(model.program, x.astype(np.float64), unit)
    within = _within(model.program, x, 6e4 if kind.itemsize == 2 else 1e37)
    found.overflows += not within.all()
    for place, k in enumerate(outputs):
        output = model.program.outputs[k]
        ours, spread = results[k], deviations[k]
        shapes = {np.shape(row[place])[len(np.shape(row[place])) - len(output.shape) :] for row in theirs}
        if shapes != {tuple(output.shape)} or any(np.size(row[place]) != ours.shape[1] for row in theirs):
            return f"output {output.name!r} has shape {output.shape}, onnxruntime's {[np.shape(r[place]) for r in theirs[:1]]}"
        right = np.stack([np.asarray(row[place], np.float64).reshape(-1) for row in theirs])
        limit = 6e4 if kind.itemsize == 2 else 1e37
        fine = np.isfinite(ours) & (np.abs(ours) < limit) & np.isfinite(spread)
        with np.errstate(all="ignore"):
            off = np.abs(ours - right) - (
                64.0 * spread + unit * np.abs(ours) + (2.0**-23 if kind.itemsize == 2 else 1e-36)
            )
        bad = fine & ~(off <= 0) & (within[:, None] | np.isfinite(right))
        if bad.any():
            r, c = np.argwhere(bad)[0]
            return f"output {output.name!r}[{c}] is {ours[r, c]!r} for the reader, {right[r, c]!r} for onnxruntime"
    return None


def _within(program: Program, x: Any, limit: float) -> Any:
    """Of which inputs [batch, n] all results are below `limit`: [batch]. Others may be no numbers in the type of the file."""
    with np.errstate(all="ignore"):
        return np.all(
            [(np.abs(values) < limit).all(1) for values in evaluate(program, x.astype(np.float64))], axis=0
        )


def run(count: int, first: int = 0, until: float = float("inf")) -> Found:
    """Reads and runs `count` mutants with seeds from `first` on, or fewer until the clock `until` (time.monotonic)."""
    started, found = time.monotonic(), Found()
    begin = [m.SerializeToString() for m in seeds()]
    for seed in range(first, first + count):
        if time.monotonic() > until:
            break
        kind, data = mutant(seed, begin)
        found.made += 1
        found.kinds[kind] += 1
        reason = difference(data, found, seed)
        if reason is not None:
            found.wrong.append(f"{seed} ({kind}): {reason}")
    found.seconds = time.monotonic() - started
    return found
