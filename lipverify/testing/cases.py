"""Cases for every built-in operator: awkward shapes, strides, pads, signs and parameters. Stored numbers are float32."""

from __future__ import annotations

import math
from dataclasses import fields
from fractions import Fraction

import torch
from torch import Tensor

from lipverify import ops
from lipverify.ir.op import Op, Shape
from lipverify.ops.activation import ROWS
from lipverify.ops.change import has_change
from lipverify.ops.convolution import Pads
from lipverify.testing.case import DifferenceCase, OperatorCase, SameCase


def operator_cases() -> list[OperatorCase]:
    """At least one case for every built-in operator; the same ones in the same order at every call."""
    return [
        *_affine(),
        *_convolutions(),
        *_merging(),
        *_scalar(),
        *_pooling(),
        *_reshaping(),
        *_other(),
        *_differences(),
    ]


def _numbers(*shape: int, seed: int = 0, low: float | None = None) -> Tensor:
    rng = torch.Generator().manual_seed(1000 * seed + math.prod(shape) + len(shape))
    if low is None:
        return torch.randn(shape, generator=rng)
    return low + torch.rand(shape, generator=rng)


def _case(op: Op, *shapes: Shape, label: str = "") -> OperatorCase:
    return OperatorCase(op, shapes, label)


def _affine() -> list[OperatorCase]:
    sparse = _numbers(6, 4, seed=1) * (_numbers(6, 4, seed=2) > 0)
    return [
        _case(ops.Input(), (3,)),
        _case(ops.Constant(_numbers(2, 3))),
        _case(ops.Linear(_numbers(5, 7), _numbers(5)), (7,)),
        _case(ops.Linear(_numbers(3, 4), None), (2, 3, 4), label="last-axis"),
        _case(ops.Linear(sparse, _numbers(6)), (4,), label="sparse"),
        _case(ops.Linear(torch.tensor([[-2.0]]), None), (1,), label="one"),
        _case(ops.Linear(torch.zeros(3, 2), None), (2,), label="zero"),
        _case(ops.Linear(torch.tensor([[0.0, 2.0], [0.0, 0.0]]), None), (2,), label="nilpotent"),
        _case(ops.Scale(_numbers(3, 1, 1), _numbers(3, 1, 1, seed=1)), (3, 2, 2), label="channel"),
        _case(ops.Scale(None, _numbers(4)), (4,), label="shift"),
        _case(ops.Scale(torch.tensor(-2.5), None), (4,), label="one"),
        _case(ops.DivideBy(_numbers(4, low=0.2)), (3, 4)),
        _case(ops.DivideBy(torch.tensor(-3.0)), (3,), label="negative"),
        _case(_batch_norm(3, 0, 0.05), (3, 2, 2)),
        _case(_batch_norm(4, 1, 3.0), (2, 4), label="last-axis"),
        _case(ops.LayerNorm((6,), None, None, 0.25), (6,), label="plain"),
        _case(ops.LayerNorm((2, 4), _numbers(2, 4), _numbers(2, 4), 0.5), (3, 2, 4), label="two-axes"),
        _case(ops.LayerNorm((2,), None, None, 1e-5), (2,), label="pair"),
        _case(ops.LayerNorm((1,), None, None, 1e-2), (3, 1), label="single"),
        _case(ops.RMSNorm((6,), None, 0.25), (6,), label="plain"),
        _case(ops.RMSNorm((4,), _numbers(4), 0.5), (3, 4), label="weight"),
        _case(ops.RMSNorm((1,), None, 0.5), (2, 1), label="single"),
    ]


def _batch_norm(channels: int, axis: int, low: float) -> ops.BatchNorm:
    weight, bias, mean = (_numbers(channels, seed=s) for s in (3, 4, 5))
    # Variances on both sides of 1: below it a root enlarges, above it it reduces.
    return ops.BatchNorm(weight, bias, mean, _numbers(channels, seed=6, low=low), 1e-3, axis)


def _convolutions() -> list[OperatorCase]:
    def conv(weight: Tensor, bias: bool = False, **settings: object) -> ops.Conv:
        axes = weight.ndim - 2
        plain = {"stride": (1,) * axes, "padding": ((0, 0),) * axes, "dilation": (1,) * axes, "groups": 1}
        shift = _numbers(weight.shape[0], seed=9) if bias else None
        return ops.Conv(weight, shift, **{**plain, **settings})  # type: ignore[arg-type]

    def transposed(weight: Tensor, **settings: object) -> ops.ConvTranspose:
        axes = weight.ndim - 2
        plain = {
            "stride": (1,) * axes,
            "padding": ((0, 0),) * axes,
            "output_padding": (0,) * axes,
            "dilation": (1,) * axes,
            "groups": 1,
        }
        return ops.ConvTranspose(weight, None, **{**plain, **settings})  # type: ignore[arg-type]

    return [
        _case(conv(torch.tensor([[[1.0, 0.0, -1.0]]]), padding=((1, 1),)), (1, 6), label="circular-trap"),
        _case(
            conv(torch.ones(1, 1, 3, 3), padding=((1, 1), (1, 1))), (1, 4, 4), label="reshaped-kernel-trap"
        ),
        _case(conv(_numbers(3, 2, 3), bias=True, padding=((2, 0),)), (2, 5), label="one-sided"),
        _case(conv(_numbers(2, 3, 2, 3), stride=(2, 1), padding=((1, 0), (1, 1))), (3, 4, 3), label="stride"),
        _case(
            conv(_numbers(2, 1, 3), dilation=(2,), padding=((2, 2),), groups=2),
            (2, 6),
            label="dilated-depthwise",
        ),
        _case(conv(_numbers(4, 2, 2), stride=(3,), groups=2), (4, 7), label="grouped-stride-above-kernel"),
        _case(conv(_numbers(3, 2, 2, 2), stride=(2, 2)), (2, 4, 4), label="patches"),
        _case(conv(_numbers(3, 4, 1, 1), bias=True), (4, 2, 2), label="1x1"),
        _case(
            transposed(_numbers(2, 3, 3), stride=(2,), padding=((1, 1),), output_padding=(1,)),
            (2, 4),
            label="stride",
        ),
        _case(
            transposed(_numbers(2, 1, 2, 3), stride=(2, 1), padding=((0, 1), (1, 0))),
            (2, 2, 3),
            label="uneven",
        ),
        _case(transposed(_numbers(4, 1, 3), dilation=(2,), groups=2), (4, 3), label="dilated-grouped"),
    ]


def _merging() -> list[OperatorCase]:
    three = ((4,), (4,), (4,))
    positive = ((-10.0, 10.0), (0.5, 10.0))
    return [
        _case(ops.Add(), (2, 3), (2, 3)),
        _case(ops.Sub(), (4,), (4,)),
        _case(ops.Maximum(), *three),
        _case(ops.Minimum(), *three[:2]),
        _case(ops.Concat(0), (3,), (5,)),
        _case(ops.Concat(1), (2, 1), (2, 3), (2, 2), label="three"),
        OperatorCase(ops.Mul(), ((4,), (4,)), bounded=False),
        OperatorCase(ops.Div(), ((4,), (4,)), domains=positive, bounded=False),
        OperatorCase(ops.MatMul(), ((2, 2, 3), (2, 3, 2)), bounded=False),
    ]


def _scalar() -> list[OperatorCase]:
    """Activations on one vector; `label` names the parameters."""
    plain = [row for row in ROWS if row.plain]
    bounded: list[tuple[Op, str]] = [
        *((row.kind(), "") for row in plain if row.domain is None and not fields(row.kind)),
        (ops.SELU(), ""),
        *((ops.LeakyReLU(slope), f"{slope:g}") for slope in (0.01, 3.0, -0.5, -2.0, 1.0)),
        (ops.PReLU(torch.tensor([0.25, -2.0, 1.5, 0.0, 0.1, 1.0])), "six"),
        *(
            (ops.Clip(low, high), f"{low:g}..{high:g}")
            for low, high in ((0.0, 6.0), (-1.0, 1.0), (-math.inf, 0.3))
        ),
        (ops.Hardsigmoid(1 / 6, 0.5), "torch"),
        (ops.Hardsigmoid(-0.7, 0.2), "falling"),
        *((ops.Softplus(beta), f"{beta:g}") for beta in (1.0, 5.0, 0.1)),
        *((ops.ELU(alpha), f"{alpha:g}") for alpha in (1.0, 2.0, 0.3, -0.5)),
        *((ops.CELU(alpha), f"{alpha:g}") for alpha in (1.0, 2.0, 0.2)),
        (ops.GELU(False), "erf"),
        (ops.GELU(True), "tanh"),
        *((ops.SiLU(beta), f"{beta:g}") for beta in (1.0, 1.702, -0.5, 0.0)),
        (ops.ErfGate(Fraction(0.70710677), Fraction(1, 2)), "stored-gelu"),
        (ops.ErfGate(Fraction(-3, 2), Fraction(2)), "falling"),
        (
            ops.TanhGate(Fraction(0.7978845834732056), Fraction(0.035677410662174225), Fraction(1, 2)),
            "stored-gelu",
        ),
        (ops.SigmoidGate(Fraction(1.702), Fraction(-2)), "negative"),
        (ops.ClipGate(Fraction(1, 6), Fraction(1, 2), Fraction(1)), "hardswish"),
        (ops.ClipGate(Fraction(-1, 3), Fraction(3, 4), Fraction(2)), "falling"),
        (ops.ClipGate(Fraction(1, 5), Fraction(5, 2), Fraction(1)), "far"),
        (ops.PiecewiseLinear((-0.5, 0.5), (1.0, 0.0, 1.0), 0.0), "softshrink"),
        (ops.PiecewiseLinear((-1.0, 0.1, 2.0), (0.3, -2.0, 0.0, 1.5), 0.7), "bent"),
        (ops.Power(1.0), "1"),
        (ops.Power(0.0), "0"),
    ]
    line, positive = (-8.0, 8.0), (0.1, 8.0)
    unbounded: list[tuple[Op, str, tuple[float, float]]] = [
        *((row.kind(), "", row.domain) for row in plain if row.domain is not None),
        *((ops.Power(exponent), f"{exponent:g}", line) for exponent in (2.0, 3.0, 4.0)),
        *((ops.Power(exponent), f"{exponent:g}", positive) for exponent in (0.5, 2.5, -1.0, -1.5, -2.0)),
        (ops.Power(-3.0), "-3", (-8.0, -0.1)),
        (ops.Tan(), "beside", (1.7, 4.6)),
        (ops.Reciprocal(), "negative", (-8.0, -0.1)),
    ]
    # Another cubic term than that of GELU: its rule adds the difference on both sides.
    distant = ops.TanhGate(Fraction(-1, 2), Fraction(-1, 100), Fraction(3))
    return [
        *(_case(op, (6,), label=label) for op, label in bounded),
        OperatorCase(distant, ((6,),), "distant", point_width=0.2),
        _case(ops.PReLU(_numbers(3, 1, 1)), (3, 2, 2), label="channels"),
        *(OperatorCase(op, ((6,),), label, (domain,), bounded=False) for op, label, domain in unbounded),
    ]


def _pooling() -> list[OperatorCase]:
    def pool(kernel: Shape, stride: Shape, padding: Pads, dilation: Shape) -> ops.MaxPool:
        return ops.MaxPool(kernel, stride, padding, dilation)

    none = ((0, 0), (0, 0))
    return [
        _case(pool((2,), (2,), ((0, 0),), (1,)), (2, 6), label="disjoint"),
        _case(pool((3,), (1,), ((1, 1),), (1,)), (2, 6), label="overlapping"),
        _case(pool((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1)), (1, 6, 5), label="stem"),
        _case(pool((3,), (1,), ((0, 0),), (2,)), (1, 8), label="dilated"),
        _case(pool((3,), (2,), ((0, 0),), (2,)), (1, 9), label="dilated-stride"),
        _case(pool((2, 3), (1, 2), ((0, 1), (1, 0)), (2, 1)), (2, 4, 5), label="uneven"),
        _case(pool((2,), (3,), ((0, 0),), (1,)), (1, 8), label="gaps"),
        _case(ops.AvgPool((2, 2), (2, 2), none, True, (0, 0)), (2, 4, 4), label="disjoint"),
        _case(ops.AvgPool((3,), (1,), ((1, 1),), True, (0,)), (2, 6), label="counted-pads"),
        _case(ops.AvgPool((3,), (1,), ((1, 1),), False, (0,)), (2, 6), label="uncounted-pads"),
        _case(
            ops.AvgPool((3, 2), (2, 1), ((1, 1), (0, 1)), False, (1, 0)), (1, 4, 3), label="ceil-uncounted"
        ),
        _case(ops.AvgPool((3, 2), (2, 1), ((1, 1), (0, 1)), True, (1, 0)), (1, 4, 3), label="ceil-counted"),
        _case(ops.ReduceSum((0, 2), False), (2, 3, 2)),
        _case(ops.ReduceMean((1, 2), True), (3, 2, 3)),
        _case(ops.ReduceMean((0,), False), (7,), label="vector"),
        _case(ops.ReduceMax((1,), False), (3, 4)),
        _case(ops.ReduceMin((0, 1), True), (3, 2)),
        _case(ops.ReduceNorm((1,), False), (2, 4)),
        _case(ops.ReduceNorm((0, 1), True, 3), (3, 2), label="cubic"),
        OperatorCase(ops.Normalize((1,)), ((2, 3),), "l2", ((0.1, 8.0),), bounded=False),
        OperatorCase(ops.Normalize((0,), 1), ((3,),), "l1", ((-8.0, -0.1),), bounded=False),
        _case(ops.ReduceLogSumExp((1,), True), (2, 4)),
        _case(ops.ReduceLogSumExp((0,), False), (5,), label="vector"),
    ]


def _reshaping() -> list[OperatorCase]:
    return [
        _case(ops.Reshape((6,)), (2, 3)),
        _case(ops.Transpose((2, 0, 1)), (2, 3, 4)),
        _case(ops.Slice(1, 1, 6, 2), (2, 7)),
        _case(ops.Gather(0, torch.tensor([2, 0, 2, 2])), (3, 2), label="repeats"),
        _case(ops.Gather(1, torch.tensor([1])), (2, 3), label="one"),
        _case(ops.Pad(((0, 0), (1, 2)), "constant", 1.5), (2, 3), label="constant"),
        _case(ops.Pad(((0, 0), (2, 1)), "reflect"), (2, 4), label="reflect"),
        _case(ops.Pad(((1, 0), (1, 2)), "replicate"), (2, 3), label="replicate"),
        _case(ops.Pad(((0, 0), (1, 1)), "circular"), (1, 4), label="circular"),
        _case(ops.Upsample((1, 2, 3)), (2, 2, 2)),
        _case(ops.DepthToSpace(2, True), (8, 1, 2), label="crd"),
        _case(ops.DepthToSpace(2, False), (8, 2, 1), label="dcr"),
        _case(ops.Expand((3, 2, 4)), (3, 1, 4)),
    ]


def _other() -> list[OperatorCase]:
    return [
        _case(ops.GroupSort(2), (6,), label="maxmin"),
        _case(ops.GroupSort(3, 0, True), (6, 2), label="descending"),
        _case(ops.GroupSort(4, 1), (2, 4), label="full"),
        _case(ops.Householder(_numbers(3, 2)), (6,), label="pairs"),
        _case(ops.Householder(_numbers(2, 3), 1), (2, 6), label="triples"),
        *_implicit(),
        _case(ops.Softmax(0), (5,)),
        _case(ops.Softmax(1), (2, 2), label="pairs"),
        _case(ops.Softmax(0), (1, 3), label="single"),
        _case(ops.MaskedSoftmax(1, torch.ones(4, 4).tril().bool()), (4, 4), label="causal"),
        _case(ops.MaskedSoftmax(0, torch.tensor([True, False, True, True])), (4,), label="gap"),
        _case(ops.LogSoftmax(0), (5,)),
        _case(ops.LogSoftmax(0), (2, 3), label="pairs"),
    ]


def _implicit() -> list[OperatorCase]:
    """A contraction, monotone layers that are none, and one whose proof needs unequal weights."""
    inner = _numbers(4, 4, seed=3)
    contraction = 0.6 * inner / torch.linalg.matrix_norm(inner, 2)
    first, second = 0.4 * _numbers(5, 5, seed=1), 0.8 * _numbers(5, 5, seed=2)
    monotone = 0.7 * torch.eye(5) - first.T @ first + second - second.T
    triangular = torch.tensor([[0.0, 3.0], [0.0, 0.5]])
    return [
        _case(ops.Implicit(contraction, _numbers(4, 3), _numbers(4)), (3,), label="contraction"),
        _case(ops.Implicit(monotone, _numbers(5, 3), _numbers(5)), (3,), label="monotone"),
        _case(ops.Implicit(monotone, _numbers(5, 2), None, ops.Tanh()), (2,), label="tanh"),
        _case(ops.Implicit(contraction, _numbers(4, 2), None), (3, 2), label="last-axis"),
        _case(ops.Implicit(0.7 * contraction, _numbers(4, 3), None, ops.GELU()), (3,), label="gelu"),
        _case(ops.Implicit(triangular, _numbers(2, 3), None), (3,), label="triangular"),
        _case(ops.Implicit(0.3 * triangular, _numbers(2, 3), None, ops.LeakyReLU(2.5)), (3,), label="steep"),
    ]


def _differences() -> list[OperatorCase]:
    """Rounding to steps; the change of every scalar activation, and of operators that choose among entries."""
    inner = [*_scalar(), *_pooling()[:2]]
    inner += [_case(ops.ReduceMax((1,), False), (3, 4)), _case(ops.ReduceMin((0, 1), True), (3, 2))]
    inner += [_case(ops.GroupSort(2), (6,)), _case(ops.GroupSort(3, 0, True), (6, 2), label="descending")]
    inner += [_case(kind(), (2, 3), (2, 3)) for kind in (ops.Maximum, ops.Minimum)]
    steps = [ops.Quantize(0.05, 113), ops.Quantize(0.75), ops.RoundingError(0.3)]
    found = [OperatorCase(op, ((6,),), bounded=False) for op in steps]
    found += [SameCase(ops.Same(), ((3,), (3,)), bounded=False)]
    for case in inner:
        if not has_change(case.op):
            continue
        label = f"{case.op.kind()}-{case.label}".rstrip("-")
        change = ops.Change(case.op)
        domains = case.domains * 3 if len(case.domains) > 1 else case.domains
        shapes = case.input_shapes * 3
        found.append(DifferenceCase(change, shapes, label, domains, False, max(case.point_width, 1e-7)))
    return found
