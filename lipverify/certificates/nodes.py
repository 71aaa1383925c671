"""The graph in the checker's words: operators of ONNX and a few beside them, on arrays with a first axis of size 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipverify import ops
from lipverify.checkers import NotCovered
from lipverify.checkers.files import digest_of
from lipverify.checkers.operators import run
from lipverify.checkers.steps import Call, Program
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Input

Array = np.ndarray[Any, np.dtype[Any]]
Told = tuple[str, list[Tensor | None], dict[str, Any]]
"""Operator, stored operands after the computed ones, settings."""


@dataclass(frozen=True)
class Described:
    """A graph as the certificate writes it, and as the checker reads that again."""

    document: dict[str, Any]
    tensors: dict[str, str]
    """Name -> digest."""
    arrays: dict[str, Array]
    """Digest -> tensor."""
    program: Program
    output: str


def described(graph: Graph) -> Described:
    """The checker's form of a graph.

    Raises:
        NotCovered: an operator or a type of numbers that the checker does not know.
    """
    graph = graph.pruned()
    shape = [1, *graph.input_shape]
    calls: list[Call] = []
    tensors: dict[str, str] = {}
    arrays: dict[str, Array] = {}
    stored: dict[str, Array] = {}
    for node in graph.nodes:
        if isinstance(node.op, Input):
            continue
        told = TABLE.get(type(node.op))
        if told is None:
            raise NotCovered(f"{node.describe()}: operator {node.op.kind()} is not covered by the checker")
        op, operands, given = told(node)
        inputs = list(node.inputs)
        for k, operand in enumerate(operands):
            name = "" if operand is None else f"{node.name}/{k}"
            inputs.append(name)
            if operand is not None:
                stored[name] = _array(operand)
                tensors[name] = digest_of(stored[name])
                arrays[tensors[name]] = stored[name]
        calls.append(Call(op, inputs, node.name, given))
    program = Program(graph.input.name, shape, stored, 17)
    for call in calls:
        run(program, call)
    rows = [{"op": c.op, "inputs": list(c.inputs), "output": c.output,
             "given": {k: v.hex() if isinstance(v, float) else v for k, v in c.given.items()}} for c in calls]  # fmt: skip
    document = {"input": graph.input.name, "shape": shape, "nodes": rows}
    return Described(document, tensors, arrays, program, graph.output.name)


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


def _scalar(name: str, **fields: str) -> Callable[[Node], Told]:
    def told(node: Node) -> Told:
        given = {key: float(getattr(node.op, field)) for key, field in fields.items()}
        given = {key: v for key, v in given.items() if name != "Clip" or math.isfinite(v)}
        if any(not math.isfinite(v) for v in given.values()) or (name == "Softplus" and given["beta"] == 0):
            raise NotCovered(f"{node.describe()}: this setting is not covered by the checker")
        return name, [], given

    return told


def _implicit(node: Node) -> Told:
    op: Any = node.op
    name, operands, given = TABLE[type(op.activation)](replace(node, op=op.activation))
    if operands:
        raise NotCovered(f"{node.describe()}: this activation is not covered by the checker")
    return "Implicit", [op.recurrent, op.inputs], given | {"activation": name}


def _reduced(name: str) -> Callable[[Node], Told]:
    def told(node: Node) -> Told:
        op: Any = node.op
        return name, [], {"axes": _next(op.axes), "keepdims": int(op.keepdims)}

    return told


def _normalised(name: str) -> Callable[[Node], Told]:
    def told(node: Node) -> Told:
        op: Any = node.op
        return name, [op.weight], {"axis": -len(op.shape), "epsilon": op.eps}

    return told


_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
TABLE: dict[type, Callable[[Any], Told]] = {
    ops.Linear: lambda n: ("Gemm", [n.op.weight, n.op.bias], {"transB": 1}),
    ops.Scale: lambda n: ("Scale", [n.op.scale, n.op.shift], {}),
    ops.DivideBy: lambda n: ("Div", [n.op.divisor], {}),
    ops.Conv: lambda n: ("Conv", [n.op.weight, n.op.bias], {"group": n.op.groups, **_window(n.op)}),
    ops.ConvTranspose: lambda n: ("ConvTranspose", [n.op.weight, n.op.bias],
                                  {"group": n.op.groups, "output_padding": list(n.op.output_padding), **_window(n.op)}),
    ops.DepthToSpace: lambda n: ("DepthToSpace", [], {"blocksize": n.op.block, "mode": "CRD" if n.op.column_first else "DCR"}),
    ops.Implicit: lambda n: _implicit(n),
    ops.Householder: lambda n: ("Householder", [n.op.vectors], {"axis": n.op.axis + 1}),
    ops.Add: lambda n: ("Add", [], {}), ops.Sub: lambda n: ("Sub", [], {}),
    ops.Concat: lambda n: ("Concat", [], {"axis": n.op.axis + 1}), ops.BatchNorm: _batch_norm,
    ops.Reshape: lambda n: ("Reshape", [], {"shape": [1, *n.op.shape]}),
    ops.Transpose: lambda n: ("Transpose", [], {"perm": [0, *_next(n.op.order)]}),
    ops.Slice: lambda n: ("Slice", [], {"axes": [n.op.axis + 1], "starts": [n.op.start], "ends": [n.op.stop],
                                        "steps": [n.op.step]}),
    ops.Gather: lambda n: ("Gather", [n.op.indices], {"axis": n.op.axis + 1}),
    ops.Pad: lambda n: ("Pad", [], {"pads": [0, *(a for a, _ in n.op.padding), 0, *(b for _, b in n.op.padding)],
                                    "mode": _MODES[n.op.mode]}),
    ops.Upsample: lambda n: ("Repeat", [], {"factors": [1, *n.op.factors]}),
    ops.Expand: lambda n: ("Expand", [], {"shape": [1, *n.op.shape]}), ops.AvgPool: _average,
    ops.MaxPool: lambda n: _pool(n, "MaxPool"), ops.Maximum: lambda n: ("Max", [], {}), ops.Minimum: lambda n: ("Min", [], {}),
    ops.ReduceSum: _reduced("ReduceSum"), ops.ReduceMean: _reduced("ReduceMean"), ops.ReduceMax: _reduced("ReduceMax"),
    ops.ReduceMin: _reduced("ReduceMin"), ops.Softmax: lambda n: ("Softmax", [], {"axis": n.op.axis + 1}),
    ops.GroupSort: lambda n: ("GroupSort", [], {"axis": n.op.axis + 1, "group": n.op.group,
                                                "descending": int(n.op.descending)}),
    ops.LayerNorm: _normalised("LayerNormalization"), ops.RMSNorm: _normalised("RMSNormalization"),
    ops.PReLU: lambda n: ("PRelu", [n.op.slope], {}), ops.Clip: _scalar("Clip", min="low", max="high"),
    ops.LeakyReLU: _scalar("LeakyRelu", alpha="slope"),
    ops.Hardsigmoid: _scalar("HardSigmoid", alpha="alpha", beta="beta"), ops.Softplus: _scalar("Softplus", beta="beta"),
    ops.ELU: _scalar("Elu", alpha="alpha"), ops.SELU: _scalar("Selu", alpha="alpha", gamma="gamma"),
    ops.CELU: _scalar("Celu", alpha="alpha"),
    ops.GELU: lambda n: ("Gelu", [], {"approximate": "tanh"} if n.op.tanh else {}), ops.SiLU: _scalar("Silu", beta="beta"),
    ops.ReLU: _scalar("Relu"), ops.Hardswish: _scalar("HardSwish"),
    **{getattr(ops, name): _scalar(name) for name in ("Abs", "Sigmoid", "Tanh", "Mish", "Softsign", "Tanhshrink", "LogSigmoid",
                                                      "Sin", "Cos", "Erf")},
}  # fmt: skip
