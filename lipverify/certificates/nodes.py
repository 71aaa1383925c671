"""The graph in the checker's words (`rules.stated`): operators of ONNX and a few beside them, with a first axis of size 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipverify import ops
from lipverify.checkers import digest_of
from lipverify.checkers.kernel.program import Program
from lipverify.checkers.reader import architecture
from lipverify.errors import NotCovered, UnsupportedModel
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Constant, Input, Op
from lipverify.ops.activation import ROWS
from lipverify.rules import Word, stated

Array = np.ndarray[Any, np.dtype[Any]]
Told = Word | list[Word]


@dataclass(frozen=True)
class Described:
    """A graph as the certificate writes it, and as the checker reads that again."""

    document: dict[str, Any]
    tensors: dict[str, str]
    """Name -> digest."""
    arrays: dict[str, Array]
    """Digest -> tensor."""
    program: Program


def described(graph: Graph) -> Described:
    """The checker's form of a graph.

    Raises:
        NotCovered: an operator or a type of numbers that the checker does not know.
    """
    graph = graph.pruned()
    nodes: list[dict[str, Any]] = []
    tensors: dict[str, str] = {}
    arrays: dict[str, Array] = {}
    stored: dict[str, Array] = {}
    for node in graph.nodes:
        if isinstance(node.op, Input):
            continue
        if isinstance(node.op, Constant):
            # No operator of the reader: a stored tensor under the name of the node, which others read.
            stored[node.name] = _array(node.op.value[None])
            tensors[node.name] = digest_of(stored[node.name])
            arrays[tensors[node.name]] = stored[node.name]
            continue
        words = _words(node)
        for place, (op, operands, given) in enumerate(words):
            last = place == len(words) - 1
            inputs = []
            for k, operand in enumerate(operands):
                name = f"{node.name}/{place}.{k}"
                if operand is None:
                    inputs.append("")
                elif isinstance(operand, int):
                    inputs.append(node.inputs[operand] if operand >= 0 else f"{node.name}/{place - 1}")
                else:
                    inputs.append(name)
                    stored[name] = _array(operand)
                    tensors[name] = digest_of(stored[name])
                    arrays[tensors[name]] = stored[name]
            settings = {key: _written(value) for key, value in given.items()}
            output = node.name if last else f"{node.name}/{place}"
            nodes.append({"op": op, "inputs": inputs, "output": output, "given": settings})
    document = {
        "input": graph.input.name,
        "shape": [1, *graph.input_shape],
        "nodes": nodes,
        "outputs": [graph.output.name],
    }
    return Described(document, tensors, arrays, architecture(document, stored))


def _words(node: Node) -> list[Word]:
    """The node as words with all their operands."""
    if not stated.covers(type(node.op)):
        raise NotCovered(f"{node.describe()}: operator {node.op.kind()} is not covered by the checker")
    try:
        told = stated(node.op, node)
    except UnsupportedModel as error:
        raise NotCovered(f"{node.describe()}: {error}") from error
    if isinstance(told, tuple) and len(told) == 3 and isinstance(told[0], str):
        op, operands, given = told
        return [(op, [*range(len(node.inputs)), *operands], given)]
    return list(told)


def _written(value: Any) -> Any:
    return value.hex() if isinstance(value, float) else value


def _array(value: Tensor) -> Array:
    if value.dtype not in (torch.float16, torch.float32, torch.float64, torch.int64):
        raise NotCovered(f"tensors of type {value.dtype} are not covered by the checker")
    return value.detach().cpu().contiguous().numpy()


def _next(axes: tuple[int, ...]) -> list[int]:
    return [axis + 1 for axis in axes]


def _window(op: Any) -> dict[str, Any]:
    pads = [pair[side] for side in (0, 1) for pair in op.padding]
    return {
        "strides": list(op.stride),
        "pads": pads,
        "dilations": list(getattr(op, "dilation", None) or (1,) * len(op.stride)),
    }


def _pool(node: Node, name: str, **more: Any) -> Told:
    op: Any = node.op
    if len(op.kernel) != len(node.shape) - 1:
        raise NotCovered(f"{node.describe()}: windows over other axes than all but the first are not covered")
    return name, [], {"kernel_shape": list(op.kernel), **_window(op), **more}


def _average(node: Node) -> Told:
    op: Any = node.op
    if any(op.uncounted):
        raise NotCovered(f"{node.describe()}: an average rounded up is not covered by the checker")
    return _pool(node, "AveragePool", count_include_pad=int(op.count_include_pad))


def _batch_norm(node: Node) -> Told:
    op: Any = node.op
    if op.axis != 0:
        raise NotCovered(
            f"{node.describe()}: batch normalisation of another axis is not covered by the checker"
        )
    return "BatchNormalization", [op.weight, op.bias, op.mean, op.var], {"epsilon": op.eps}


def _scalar(name: str, settings: tuple[tuple[str, str], ...]) -> Callable[[Node], Told]:
    def told(node: Node) -> Told:
        given = {key: float(getattr(node.op, field)) for key, field in settings}
        given = {key: v for key, v in given.items() if name != "Clip" or math.isfinite(v)}
        if any(not math.isfinite(v) for v in given.values()) or (name == "Softplus" and given["beta"] == 0):
            raise NotCovered(f"{node.describe()}: this setting is not covered by the checker")
        return name, [], given

    return told


def _implicit(node: Node) -> Told:
    op: Any = node.op
    inner = _TABLE.get(type(op.activation))
    told = inner(replace(node, op=op.activation)) if inner is not None else ("", [None], {})
    if isinstance(told, list) or told[1]:
        raise NotCovered(f"{node.describe()}: this activation is not covered by the checker")
    return "Implicit", [op.recurrent, op.inputs, op.bias], {**told[2], "activation": told[0]}


def _reduced(name: str) -> Callable[[Node], Told]:
    def told(node: Node) -> Told:
        op: Any = node.op
        return name, [], {"axes": _next(op.axes), "keepdims": int(op.keepdims)}

    return told


def _norm(node: Node) -> Told:
    op: Any = node.op
    if op.order != 2:
        raise NotCovered(f"{node.describe()}: norms of another order than 2 are not covered by the checker")
    return [
        ("Mul", [0, 0], {}),
        ("ReduceSum", [-1], {"axes": _next(op.axes), "keepdims": int(op.keepdims)}),
        ("Sqrt", [-1], {}),
    ]


def _normalised(name: str) -> Callable[[Node], Told]:
    def told(node: Node) -> Told:
        op: Any = node.op
        operands = [op.weight] if name == "RMSNormalization" else [op.weight, op.bias]
        return name, operands, {"axis": -len(op.shape), "epsilon": op.eps}

    return told


def _pad(node: Node) -> Told:
    op: Any = node.op
    pads = [0, *(before for before, _ in op.padding), 0, *(after for _, after in op.padding)]
    given = {"pads": pads, "mode": _MODES[op.mode]}
    return "Pad", [], given | ({"value": float(op.fill)} if op.mode == "constant" else {})


def _gated(law: str) -> Callable[[Node], Told]:
    """outer * x * sigmoid(inner x), or outer * x * (1 + erf(inner x))."""

    def told(node: Node) -> Told:
        op: Any = node.op
        inner, outer = (_number(node, value) for value in (op.inner, op.outer))
        shifted: Iterator[Word] = iter(
            [("Scale", [-1, None, _number(node, Fraction(1))], {})] if law == "Erf" else []
        )
        return [
            ("Scale", [0, inner], {}),
            (law, [-1], {}),
            *shifted,
            ("Mul", [0, -1], {}),
            ("Scale", [-1, outer], {}),
        ]

    return told


def _tanh_gate(node: Node) -> Told:
    """outer * x * (1 + tanh(x (cubic x^2 + linear)))."""
    op: Any = node.op
    linear, cubic, outer = (_number(node, value) for value in (op.linear, op.cubic, op.outer))
    return [
        ("Mul", [0, 0], {}),
        ("Scale", [-1, cubic, linear], {}),
        ("Mul", [0, -1], {}),
        ("Tanh", [-1], {}),
        ("Scale", [-1, None, _number(node, Fraction(1))], {}),
        ("Mul", [0, -1], {}),
        ("Scale", [-1, outer], {}),
    ]


def _number(node: Node, value: Fraction) -> Tensor:
    if Fraction(float(value)) != value:
        raise NotCovered(f"{node.describe()}: its constants are no numbers of float64")
    return torch.tensor(float(value), dtype=torch.float64)


_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
_TABLE: dict[type[Op], Callable[[Any], Told]] = {
    ops.Linear: lambda n: ("Gemm", [n.op.weight, n.op.bias], {"transB": 1}),
    ops.Scale: lambda n: ("Scale", [n.op.scale, n.op.shift], {}),
    ops.DivideBy: lambda n: ("Div", [n.op.divisor], {}),
    ops.Conv: lambda n: ("Conv", [n.op.weight, n.op.bias], {"group": n.op.groups, **_window(n.op)}),
    ops.ConvTranspose: lambda n: ("ConvTranspose", [n.op.weight, n.op.bias],
                                  {"group": n.op.groups, "output_padding": list(n.op.output_padding), **_window(n.op)}),
    ops.DepthToSpace: lambda n: ("DepthToSpace", [], {"blocksize": n.op.block, "mode": "CRD" if n.op.column_first else "DCR"}),
    ops.Implicit: lambda n: _implicit(n),
    ops.Householder: lambda n: ("Householder", [n.op.vectors], {"axis": n.op.axis + 1}),
    ops.Add: lambda n: ("Add", [], {}), ops.Sub: lambda n: ("Sub", [], {}), ops.Mul: lambda n: ("Mul", [], {}),
    ops.Div: lambda n: ("Div", [], {}), ops.MatMul: lambda n: ("MatMul", [], {}),
    ops.ErfGate: _gated("Erf"), ops.SigmoidGate: _gated("Sigmoid"), ops.TanhGate: _tanh_gate,
    ops.Concat: lambda n: ("Concat", [], {"axis": n.op.axis + 1}), ops.BatchNorm: _batch_norm,
    ops.Reshape: lambda n: ("Reshape", [], {"shape": [1, *n.op.shape]}),
    ops.Transpose: lambda n: ("Transpose", [], {"perm": [0, *_next(n.op.order)]}),
    ops.Slice: lambda n: ("Slice", [], {"axes": [n.op.axis + 1], "starts": [n.op.start], "ends": [n.op.stop],
                                        "steps": [n.op.step]}),
    ops.Gather: lambda n: ("Gather", [n.op.indices], {"axis": n.op.axis + 1}),
    ops.Pad: _pad,
    ops.Upsample: lambda n: ("Repeat", [], {"factors": [1, *n.op.factors]}),
    ops.Expand: lambda n: ("Expand", [], {"shape": [1, *n.op.shape]}), ops.AvgPool: _average,
    ops.MaxPool: lambda n: _pool(n, "MaxPool"), ops.Maximum: lambda n: ("Max", [], {}), ops.Minimum: lambda n: ("Min", [], {}),
    ops.ReduceSum: _reduced("ReduceSum"), ops.ReduceMean: _reduced("ReduceMean"), ops.ReduceMax: _reduced("ReduceMax"),
    ops.ReduceNorm: _norm, ops.ReduceMin: _reduced("ReduceMin"), ops.Softmax: lambda n: ("Softmax", [], {"axis": n.op.axis + 1}),
    ops.MaskedSoftmax: lambda n: ("MaskedSoftmax", [n.op.kept.to(torch.int64)], {"axis": n.op.axis + 1}),
    ops.GroupSort: lambda n: ("GroupSort", [], {"axis": n.op.axis + 1, "group": n.op.group,
                                                "descending": int(n.op.descending)}),
    ops.LayerNorm: _normalised("LayerNormalization"), ops.RMSNorm: _normalised("RMSNormalization"),
    ops.PReLU: lambda n: ("PRelu", [n.op.slope], {}),
    ops.GELU: lambda n: ("Gelu", [], {"approximate": "tanh"} if n.op.tanh else {}),
    **{row.kind: _scalar(row.word, row.settings) for row in ROWS if row.word},
}  # fmt: skip
for _kind, _told in _TABLE.items():
    stated.register(_kind)(lambda op, node, told=_told: told(node))
