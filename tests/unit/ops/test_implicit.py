"""Implicit layers: equilibria to machine precision, proofs of uniqueness, and refusals where there is none."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from lipverify import ops, rules, testing
from lipverify.errors import Undecided, UnsupportedModel, UsageError
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op
from lipverify.ops.implicit import Implicit, contraction, monotone, response
from tests.clocks import within


def monotone_layer(
    seed: int, size: int, inputs: int, margin: float, activation: Op | None = None
) -> Implicit:
    """W = (1 - m) I - A'A + B - B' (Winston, Kolter 2020): one plus the margin, and as far from a contraction as one likes."""
    rng = np.random.default_rng(seed)
    first, second = (
        rng.standard_normal((size, size)) / size**0.5,
        3.0 * rng.standard_normal((size, size)) / size**0.5,
    )
    recurrent = (1 - margin) * np.eye(size) - first.T @ first + second - second.T
    drive, bias = rng.standard_normal((size, inputs)), rng.standard_normal(size)
    parts = [torch.tensor(m) for m in (recurrent, drive, bias)]
    return Implicit(*parts, activation or ops.ReLU())


@pytest.mark.parametrize(
    "activation", [ops.ReLU(), ops.Tanh(), ops.Sigmoid(), ops.LeakyReLU(0.1)], ids=lambda a: a.kind()
)
@pytest.mark.parametrize("margin", [1.0, 0.05])
def test_equilibrium_to_machine_precision(activation: Op, margin: float) -> None:
    op = monotone_layer(3, 30, 4, margin, activation)
    assert float(torch.linalg.matrix_norm(op.recurrent, 2)) > 3
    x = 5.0 * torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = rules.forward(op, x)
    again = rules.forward(activation, z @ op.recurrent.T + x @ op.inputs.T + op.bias)
    assert float((again - z).abs().max()) <= 1e-12 * (1 + float(z.abs().max()))
    # The same equilibrium in float32, up to its own precision.
    single = rules.forward(op.to(dtype=torch.float32), x.float()).double()
    assert float((single - z).abs().max()) <= 1e-3 * (1 + float(z.abs().max()))


def slope_jacobian(op: Implicit, slopes: Tensor) -> Tensor:
    """dz/dx for given slopes of the neurons."""
    size = len(op.recurrent)
    return torch.linalg.solve(
        torch.eye(size).double() - slopes[:, None] * op.recurrent, slopes[:, None] * op.inputs
    )


@pytest.mark.parametrize("seed", range(10))
def test_no_slope_pattern_exceeds_the_response(seed: int) -> None:
    op = monotone_layer(seed, 6, 3, 0.3)
    patterns = torch.tensor(list(itertools.product((0.0, 1.0), repeat=6)), dtype=torch.float64)
    largest = max(float(torch.linalg.matrix_norm(slope_jacobian(op, p), 2)) for p in patterns)
    assert contraction(op, Norm.L2, op.inputs) is None
    assert largest <= float(response(op)) <= 12 * largest


def test_contraction_is_the_quotient() -> None:
    op = Implicit(torch.tensor([[0.0, 0.5], [-0.5, 0.0]]), 3.0 * torch.eye(2))
    found = contraction(op, Norm.L2, op.inputs)
    assert found is not None
    assert float(found) == pytest.approx(6.0, rel=1e-12)
    # Rotations with these slopes are further from their worst case: the multiplier sees it.
    assert float(response(op)) < 4.0


def test_unequal_weights_are_found() -> None:
    # K = I fails, since the symmetric part of W has the eigenvalue (1 + sqrt(37)) / 4; triangular with a small diagonal.
    op = Implicit(torch.tensor([[0.5, 3.0], [0.0, 0.0]]), torch.eye(2))
    assert contraction(op, Norm.L2, op.inputs) is None
    assert monotone(op, op.inputs) is not None


@pytest.mark.parametrize(
    "op",
    [
        Implicit(torch.tensor([[1.0]]), torch.tensor([[1.0]])),
        Implicit(torch.tensor([[0.0, 2.0], [2.0, 0.0]]), torch.eye(2)),
        Implicit(torch.tensor([[1.0 + 2.0**-40]], dtype=torch.float64), torch.ones(1, 1).double()),
        # Monotone for ReLU, not for a slope of 2, and negative slopes need a contraction.
        Implicit(torch.tensor([[0.9]]), torch.tensor([[1.0]]), None, ops.LeakyReLU(2.0)),
        Implicit(torch.tensor([[-2.0]]), torch.tensor([[1.0]]), None, ops.GELU()),
    ],
)
def test_without_a_proof_every_bound_is_refused(op: Implicit) -> None:
    with pytest.raises(rules.Unbounded, match="fixed point is unique"):
        rules.gain(op, ((op.inputs.shape[1],),), Norm.L2, Norm.L2)
    box = torch.zeros(1, op.inputs.shape[1], dtype=torch.float64)
    with pytest.raises(UnsupportedModel):
        rules.interval(op, Interval(box, box))


def test_just_below_the_limit_is_proved() -> None:
    op = Implicit(torch.tensor([[1.0 - 2.0**-30]], dtype=torch.float64), torch.ones(1, 1).double())
    # z = z (1 - h) + x has the slope 1 / h.
    assert 2.0**30 <= float(response(op)) <= 2.0**30 * (1 + 1e-4)


def test_a_search_that_fails_says_so() -> None:
    # z = relu(2 z + 1) has no solution.
    op = Implicit(torch.tensor([[2.0]]).double(), torch.ones(1, 1).double())
    with pytest.raises(Undecided, match="machine precision"):
        rules.forward(op, torch.ones(1, 1).double())


def test_derivative_is_that_of_the_equilibrium() -> None:
    op = monotone_layer(5, 12, 3, 0.4, ops.Tanh())
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_(
        True
    )
    assert torch.autograd.gradcheck(lambda v: rules.forward(op, v), (x,), atol=1e-6)


def test_boxes_with_an_infinite_side_end_where_the_activation_ends() -> None:
    op = monotone_layer(6, 5, 2, 0.5, ops.Tanh())
    lower = torch.tensor([[0.0, -float("inf")], [-1.0, -1.0]], dtype=torch.float64)
    upper = torch.tensor([[1.0, float("inf")], [1.0, 1.0]], dtype=torch.float64)
    found = rules.interval(op, Interval(lower, upper))
    assert bool((found.lower >= -1.0 - 1e-12).all() & (found.upper <= 1.0 + 1e-12).all())


@pytest.mark.parametrize(
    "build",
    [
        lambda: Implicit(torch.zeros(2, 3), torch.zeros(2, 1)),
        lambda: Implicit(torch.zeros(2, 2), torch.zeros(3, 1)),
        lambda: Implicit(torch.zeros(2, 2), torch.zeros(2, 1), torch.zeros(3)),
        lambda: Implicit(torch.zeros(2, 2), torch.zeros(2, 1), None, ops.Softmax(0)),
        lambda: Implicit(torch.zeros(2, 2), torch.zeros(2, 1), None, ops.PReLU(torch.ones(2))),
    ],
)
def test_what_does_not_fit_is_refused(build) -> None:
    with pytest.raises(UsageError):
        build()


@pytest.mark.parametrize("wrong", [lambda g: 1.0, lambda g: g / 2], ids=["one", "half"])
def test_a_wrong_gain_is_refuted(wrong) -> None:
    case = testing.OperatorCase(Implicit(torch.tensor([[0.9, 0.0], [0.0, -0.2]]), torch.eye(2)), ((2,),))
    testing.check_gain_not_below(case)

    def mutant(op: Implicit, *args: object) -> rules.Gain:
        return rules.Gain(tuple(wrong(g) for g in present(op, *args).factors))

    with testing.replaced_rule(rules.gain, Implicit, mutant) as present, pytest.raises(AssertionError):
        testing.check_gain_not_below(case)


def test_a_wide_layer_takes_seconds() -> None:
    op = monotone_layer(0, 300, 20, 0.5)
    # Eigenvalue problems of a long descent would take minutes.
    with within(60):
        assert float(response(op)) > 0
