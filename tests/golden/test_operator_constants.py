"""Exactly known constants of single operators, two-sided: never below the value, and above it by at most one part in 10^4.

Numbers are closed forms evaluated to 40 digits and checked by independent means (dense scans of the derivative, numeric
Jacobians); the comment gives the form.
"""

from __future__ import annotations

import math

import pytest
import torch

from lipverify import ops, rules
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op, Shape
from lipverify.rules import Gain, Unbounded

L1, L2, LINF = Norm.L1, Norm.L2, Norm.LINF
NO_PADS = ((0, 0), (0, 0))


def same(norm: Norm) -> tuple[Norm, Norm]:
    return norm, norm


def joined(gain: Gain) -> float:
    """The gain of an operator all of whose inputs are the same tensor."""
    return float(
        torch.linalg.vector_norm(torch.tensor(gain.factors, dtype=torch.float64), ord=gain.joint.order)
    )


def sharp(bound: float, value: float) -> None:
    assert value <= bound <= value * (1 + 1e-4)


ACTIVATIONS: list[tuple[Op, float]] = [
    (ops.ReLU(), 1.0),
    (ops.Abs(), 1.0),
    (ops.LeakyReLU(0.01), 1.0),
    (ops.LeakyReLU(3.0), 3.0),  # max(1, |slope|)
    (ops.PReLU(torch.tensor([-2.0])), 2.0),
    (ops.Sigmoid(), 0.25),
    (ops.Tanh(), 1.0),
    (ops.Softplus(1.0), 1.0),
    (ops.Softplus(5.0), 1.0),  # beta does not scale the constant
    (ops.ELU(1.0), 1.0),
    (ops.ELU(2.0), 2.0),  # alpha, at 0 from below
    (ops.CELU(2.0), 1.0),
    (ops.SELU(), 1.7580993408473769),  # gamma alpha
    (ops.GELU(False), 1.1289041451851548),  # Phi(sqrt 2) + sqrt 2 phi(sqrt 2)
    (ops.GELU(True), 1.1289930686587718),  # larger than the erf form
    (ops.SiLU(1.0), 1.0998393201288669),  # sigma (1 + x (1 - sigma)) where x tanh(x/2) = 2
    (ops.SiLU(1.702), 1.0998393201288669),  # scale invariant
    (ops.Mish(), 1.0884981612517279),
    (ops.Hardswish(), 1.5),  # (2x + 3)/6 at 3
    (ops.Hardsigmoid(1 / 6, 0.5), 1 / 6),
    (ops.Clip(-1.0, 1.0), 1.0),
    (ops.Clip(0.0, 6.0), 1.0),
    (ops.Softsign(), 1.0),
    (ops.Tanhshrink(), 1.0),
    (ops.LogSigmoid(), 1.0),
    (ops.Sin(), 1.0),
    (ops.Cos(), 1.0),
    (ops.Erf(), 1.1283791670955126),  # 2/sqrt(pi) = 1.12837916709551257389...
]


@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.parametrize(
    ("op", "value"), ACTIVATIONS, ids=lambda x: x.kind() if isinstance(x, Op) else f"{x:.4g}"
)
def test_activation(op: Op, value: float, norm: Norm) -> None:
    gain = rules.gain(op, ((7,),), norm, norm)
    sharp(gain.factors[0], value)


def test_the_constant_of_erf_is_above_the_exact_number() -> None:
    # 2/sqrt(pi) lies above the float64 1.1283791670955126 by 0.07 units in the last place: the nearest number is too small.
    assert rules.gain(ops.Erf(), ((1,),), L2, L2).factors[0] > 1.1283791670955126


def test_the_two_often_quoted_roundings_of_gelu_are_not_used() -> None:
    assert rules.gain(ops.GELU(False), ((1,),), L2, L2).factors[0] > 1.12890
    assert rules.gain(ops.GELU(True), ((1,),), L2, L2).factors[0] > 1.12899


UNBOUNDED: list[tuple[Op, tuple[Shape, ...]]] = [
    (ops.Exp(), ((3,),)),
    (ops.Power(2.0), ((3,),)),
    (ops.Power(0.5), ((3,),)),
    (ops.Mul(), ((3,), (3,))),
    (ops.Div(), ((3,), (3,))),
    (ops.Reciprocal(), ((3,),)),
    (ops.Sqrt(), ((3,),)),
    (ops.LayerNorm((3,), None, None, 0.0), ((3,),)),
    (ops.RMSNorm((3,), None, 0.0), ((3,),)),
    (ops.CELU(-1.0), ((3,),)),
    (ops.BatchNorm(*(torch.ones(3),) * 3, torch.tensor([1.0, 0.0, 1.0]), 0.0), ((3,),)),
    (ops.DivideBy(torch.tensor([1.0, 0.0, 2.0])), ((3,),)),
    (ops.Householder(torch.zeros(1, 3)), ((3,),)),
    # Dot-product attention contains products of computed matrices: Kim, Papamakarios, Mnih 2021.
    (ops.MatMul(), ((2, 3), (3, 2))),
]


@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.parametrize(("op", "shapes"), UNBOUNDED, ids=lambda x: x.kind() if isinstance(x, Op) else "")
def test_unbounded(op: Op, shapes: tuple[Shape, ...], norm: Norm) -> None:
    with pytest.raises(Unbounded, match=r"\w+ \w+ \w+"):
        rules.gain(op, shapes, norm, norm)


def pool(kernel: Shape, stride: Shape) -> ops.MaxPool:
    return ops.MaxPool(kernel, stride, ((0, 0),) * len(kernel), (1,) * len(kernel))


def average(kernel: Shape, stride: Shape) -> ops.AvgPool:
    return ops.AvgPool(kernel, stride, ((0, 0),) * len(kernel), True, (0,) * len(kernel))


VECTOR: list[tuple[str, Op, Shape, tuple[Norm, Norm], float]] = [
    ("softmax-2", ops.Softmax(0), (2,), same(L2), 0.5),
    ("softmax-10", ops.Softmax(0), (10,), same(L2), 0.5),
    ("softmax", ops.Softmax(0), (10,), same(L1), 0.5),
    ("softmax", ops.Softmax(0), (10,), same(LINF), 0.5),
    ("softmax", ops.Softmax(0), (10,), (L1, LINF), 0.25),
    ("softmax", ops.Softmax(0), (10,), (LINF, L1), 1.0),
    ("log-softmax", ops.LogSoftmax(0), (10,), same(L2), 3.1622776601683793),  # sqrt n
    ("log-softmax", ops.LogSoftmax(0), (10,), same(LINF), 2.0),
    *(("max", ops.ReduceMax((0,), False), (9,), same(norm), 1.0) for norm in Norm),
    *(("sort", ops.GroupSort(9), (9,), same(norm), 1.0) for norm in Norm),
    *(("maxmin", ops.GroupSort(2), (8,), same(norm), 1.0) for norm in Norm),
    ("householder", ops.Householder(torch.tensor([[0.6, 0.8], [3.0, -1.0]])), (4,), same(L2), 1.0),
    ("householder", ops.Householder(torch.tensor([[3.0, 4.0]])), (2,), same(L1), 0.28 + 0.96),
    ("maxpool-k2s2", pool((2,), (2,)), (1, 8), same(L2), 1.0),
    ("maxpool-k3s1", pool((3,), (1,)), (1, 9), same(L2), 1.7320508075688773),  # sqrt ceil(k/s)
    ("maxpool-k3s2-2d", pool((3, 3), (2, 2)), (2, 9, 9), same(L2), 2.0),
    ("maxpool-k3s1-2d", pool((3, 3), (1, 1)), (2, 7, 7), same(L2), 3.0),
    ("maxpool-k3s2-2d", pool((3, 3), (2, 2)), (2, 9, 9), same(L1), 4.0),
    ("maxpool-k3s1-2d", pool((3, 3), (1, 1)), (2, 7, 7), same(LINF), 1.0),
    ("avgpool-k2s2-2d", average((2, 2), (2, 2)), (2, 8, 8), same(L2), 0.5),
    ("avgpool-k3s3", average((3,), (3,)), (2, 9), same(L2), 0.57735026918962576),
    ("avgpool-k3s1", average((3,), (1,)), (2, 9), same(LINF), 1.0),
    # The rows overlap: [1, 1]/2 on 3 entries has norm cos(pi/6) = sqrt(3)/2.
    ("avgpool-k2s1", average((2,), (1,)), (1, 3), same(L2), 0.86602540378443865),
    ("mean-49", ops.ReduceMean((1, 2), False), (3, 7, 7), same(L2), 0.14285714285714286),
    ("sum-49", ops.ReduceSum((1, 2), False), (3, 7, 7), same(L2), 7.0),
    ("upsample", ops.Upsample((1, 2, 2)), (3, 4, 4), same(L2), 2.0),
    ("replicate", ops.Pad(((0, 0), (1, 1)), "replicate"), (1, 5), same(L2), 1.414213562373095),
    ("circular", ops.Pad(((0, 0), (1, 1)), "circular"), (1, 5), same(L2), 1.414213562373095),
    *(
        (name, op, shape, same(norm), 1.0)
        for norm in Norm
        for name, op, shape in (
            ("zero-pad", ops.Pad(((0, 0), (1, 1))), (1, 5)),
            ("flatten", ops.Reshape((6,)), (2, 3)),
            ("permute", ops.Transpose((1, 0)), (2, 3)),
            ("pixel-shuffle", ops.DepthToSpace(2, True), (4, 2, 2)),
        )
    ),
    (
        "batchnorm",
        ops.BatchNorm(torch.tensor([3.0]), torch.zeros(1), torch.zeros(1), torch.tensor([3.75]), 0.25),
        (1, 4),
        same(L2),
        1.5,
    ),
    ("layernorm-8", ops.LayerNorm((8,), None, None, 0.25), (8,), same(L2), 2.0),
    ("layernorm", ops.LayerNorm((8,), None, None, 1e-5), (8,), same(L2), 316.22776601683793),
    ("rmsnorm", ops.RMSNorm((8,), None, 0.25), (8,), same(L2), 2.0),
    ("repeat", ops.Gather(0, torch.tensor([0, 1, 1, 1])), (2,), same(L2), 1.7320508075688773),
    ("expand", ops.Expand((4, 3)), (1, 3), same(L2), 2.0),
    ("linear", ops.Linear(torch.tensor([[1.0, 2.0], [3.0, 4.0]])), (2,), same(L2), 5.4649857042190427),
    ("linear", ops.Linear(torch.tensor([[1.0, 2.0], [3.0, 4.0]])), (5, 2), same(L2), 5.4649857042190427),
    ("linear", ops.Linear(torch.tensor([[1.0, 2.0], [3.0, 4.0]])), (2,), same(LINF), 7.0),
    ("linear", ops.Linear(torch.tensor([[1.0, 2.0], [3.0, 4.0]])), (2,), same(L1), 6.0),
    ("linear", ops.Linear(torch.tensor([[1.0, 2.0], [3.0, 4.0]])), (2,), (L2, LINF), 5.0),
    ("linear", ops.Linear(torch.tensor([[1.0, 2.0], [3.0, 4.0]])), (2,), (L1, L2), 4.4721359549995794),
    ("linear", ops.Linear(torch.tensor([[1.0, -2.0], [3.0, 4.0]])), (2,), (LINF, L1), 8.0),
]


@pytest.mark.parametrize(
    ("name", "op", "shape", "norms", "value"),
    [pytest.param(*row, id=f"{row[0]}-{row[3][0]}-{row[3][1]}-{i}") for i, row in enumerate(VECTOR)],
)
def test_vector_operator(name: str, op: Op, shape: Shape, norms: tuple[Norm, Norm], value: float) -> None:
    (factor,) = rules.gain(op, (shape,), *norms).factors
    sharp(factor, value)


def test_softmax_with_temperature() -> None:
    temperature = ops.DivideBy(torch.tensor(0.1, dtype=torch.float64))
    product = math.prod(rules.gain(op, ((4,),), L2, L2).factors[0] for op in (temperature, ops.Softmax(0)))
    sharp(product, 5.0)


def test_two_copies_side_by_side() -> None:
    sharp(joined(rules.gain(ops.Concat(0), ((3,), (3,)), L2, L2)), 1.414213562373095)
    sharp(joined(rules.gain(ops.Concat(0), ((3,), (3,)), LINF, LINF)), 1.0)
    sharp(joined(rules.gain(ops.Concat(0), ((3,), (3,)), L1, L1)), 2.0)


@pytest.mark.parametrize("norm", list(Norm))
def test_residual_sum_is_sharp_and_a_difference_is_sound(norm: Norm) -> None:
    # x + relu(x) has slope 2; x - x is 0, which the rule for two separate tensors cannot see.
    sharp(joined(rules.gain(ops.Add(), ((3,), (3,)), norm, norm)), 2.0)
    assert joined(rules.gain(ops.Sub(), ((3,), (3,)), norm, norm)) >= 0.0


def test_empty_and_single_layers() -> None:
    assert rules.gain(ops.Linear(torch.zeros(0, 3)), ((3,),), L2, L2).factors == (0.0,)
    assert rules.gain(ops.Linear(torch.zeros(3, 0)), ((0,),), L2, L2).factors == (0.0,)
    assert rules.gain(ops.Linear(torch.tensor([[-0.0]])), ((1,),), L2, L2).factors == (0.0,)
    assert rules.gain(ops.Linear(torch.tensor([[-3.0]])), ((1,),), L2, L2).factors == (3.0,)
    assert rules.gain(ops.Softmax(0), ((1,),), L2, L2).factors == (0.0,)
    assert rules.gain(ops.LayerNorm((1,), None, None, 1e-5), ((1,),), L2, L2).factors == (0.0,)
    assert rules.gain(ops.Constant(torch.ones(3)), (), L2, L2).factors == ()


def box(lower: float, upper: float) -> Interval:
    return Interval(
        torch.tensor([[lower]], dtype=torch.float64), torch.tensor([[upper]], dtype=torch.float64)
    )


LOCAL: list[tuple[Op, float, float, float]] = [
    (ops.ReLU(), -2.0, -1.0, 0.0),
    (ops.Power(2.0), -1.0, 3.0, 6.0),
    (ops.Sigmoid(), 2.0, 3.0, 0.10499358540350652),
    (ops.Tanh(), 1.0, 2.0, 0.41997434161402607),
    (ops.Sqrt(), 0.25, 4.0, 1.0),
    # Maxima of the derivative inside the box, which its ends do not show.
    (ops.GELU(False), 0.5, 3.0, 1.1289041451851548),
    (ops.SiLU(1.0), 1.0, 9.0, 1.0998393201288669),
    (ops.Mish(), 0.0, 5.0, 1.0884981612517279),
    (ops.Hardswish(), 2.0, 5.0, 1.5),
    (ops.Sigmoid(), -3.0, 4.0, 0.25),
    # sin has slope cos: |cos 4| on [4, 4.5], the end with the larger absolute value.
    (ops.Sin(), 4.0, 4.5, 0.65364362086361194),
]


@pytest.mark.parametrize(
    ("op", "lower", "upper", "value"), LOCAL, ids=[f"{row[0].kind()}-{row[1]:g}" for row in LOCAL]
)
def test_local_slope(op: Op, lower: float, upper: float, value: float) -> None:
    found = rules.slopes(op, box(lower, upper), (1,))
    sharp(max(abs(found.lower.item()), abs(found.upper.item())), value)


def test_product_on_a_box() -> None:
    x = Interval(torch.full((1, 1), -3.0, dtype=torch.float64), torch.full((1, 1), 3.0, dtype=torch.float64))
    product = rules.interval(ops.Mul(), x, x)
    assert -9.0 * (1 + 1e-12) <= product.lower.item() <= -9.0
    sharp(product.upper.item(), 9.0)
