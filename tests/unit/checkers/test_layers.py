"""Reflections, implicit layers and transposed convolutions in the checker: proofs just above the constant, none below it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify import ops, rules
from lipverify.certificates import described
from lipverify.checkers.gains import implicit_gain, prove_product
from lipverify.checkers.multipliers import System, prove_lipsdp
from lipverify.checkers.steps import Implicit, Program
from lipverify.errors import RefutedCertificate
from lipverify.falsify import Search
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Input
from tests.networks import chain, tensor
from tests.unit.checkers.test_graph import signal_of

SIZE = 4


def alone(op: ops.Op, shape: tuple[int, ...]) -> Program:
    result = tuple(rules.forward(op, torch.zeros(1, *shape)).shape[1:])
    graph = Graph((Node("x", Input(), (), shape), Node("y", op, ("x",), result)), ("y",))
    return described(graph).program


def proves(system: System, multipliers: list[Any], upper: float) -> bool:
    try:
        prove_lipsdp(system, multipliers, upper)
    except RefutedCertificate:
        return False
    return True


def implicit(recurrent: Any, inputs: Any, slope: float = 1.0) -> Implicit:
    return Implicit(("x",), np.arange(inputs.shape[1]), len(inputs), recurrent, inputs, slope)


def gained(step: Implicit, gain: float, multipliers: Any) -> bool:
    stage = {
        "steps": ["y"],
        "by": "multipliers",
        "gain": gain.hex(),
        "multipliers": [float(d).hex() for d in multipliers],
    }
    try:
        implicit_gain(step, stage)
    except RefutedCertificate:
        return False
    return True


@pytest.mark.parametrize("axis", [0, 1])
def test_reflections_are_isometries_by_either_proof(axis: int, rng: np.random.Generator) -> None:
    """Lengths of the vectors do not matter, nor along which axis they lie."""
    op = ops.Householder(
        torch.tensor(rng.standard_normal((2, 3)) * [[1e-3], [40.0]], dtype=torch.float32), axis
    )
    program = alone(op, (6, 2) if axis == 0 else (2, 6))
    assert prove_product(program, "y", ("l2", "l2"), []) == 1
    # The largest l1 and linf norms of a reflection in three dimensions are 5/3 and below root 3.
    for norm in ("l1", "linf"):
        assert 5 / 3 <= prove_product(program, "y", (norm, norm), []) <= 1.7321
    system = System(program, "y")
    # A little above |w|^2 / 2, where the matrix is singular and no rounding is allowed for.
    one = [_squares(op, system.sizes[0]) * (1 + 1e-10)]
    assert proves(system, one, 1.0 + 1e-9)
    assert not proves(system, one, 1.0 - 1e-9)


def _squares(op: ops.Householder, count: int) -> Any:
    """Multipliers |w|^2 / 2 of the scaled vectors, for all runs of the first vector, then of the second."""
    vectors = op.vectors.double().numpy()
    vectors = np.ldexp(vectors, -np.frexp(np.abs(vectors).max(1, keepdims=True))[1])
    return np.repeat((vectors**2).sum(1) / 2.0, count // len(vectors))


def test_an_implicit_layer_has_the_gain_of_its_multipliers_and_no_less(rng: np.random.Generator) -> None:
    """Diagonal layers have a gain in closed form: z = relu(w z + u x) gives u / (1 - w) where w < 1."""
    w, u = np.array([-3.0, 0.5, 0.9, -0.2]), np.array([1.0, 2.0, 0.1, 3.0])
    step, exact = implicit(np.diag(w), np.diag(u)), float((u / (1 - w)).max())
    k = exact**2 * (1 - w)  # 2 D (1 - w) >= u^2 + D^2 / rho holds with the largest room at D = rho (1 - w)
    assert gained(step, exact * (1 + 1e-9), k)
    for scale in (0.2, 0.7, 1.0, 1.5, 4.0):
        assert not gained(step, exact * (1 - 1e-9), scale * k)


def test_a_layer_without_a_unique_equilibrium_has_no_proof(rng: np.random.Generator) -> None:
    """z = relu(2 z - x) has two solutions for x = 1, and so has every layer with a real eigenvalue above 1."""
    for recurrent in (np.array([[2.0]]), np.array([[0.0, 3.0], [1.0, 0.0]]), np.array([[1.0]])):
        step = implicit(recurrent, np.eye(len(recurrent)))
        for _ in range(50):
            assert not gained(step, 10.0 ** rng.uniform(0, 12), 10.0 ** rng.uniform(-8, 8, len(recurrent)))


def test_multipliers_of_implicit_layers_must_be_positive_numbers() -> None:
    step = implicit(np.zeros((2, 2)), np.eye(2))
    for bad in ([1.0, -1.0], [1.0, 0.0], [1.0, float("nan")], [1.0, float("inf")], [1.0]):
        with pytest.raises(Exception, match=r"multipliers|not hexadecimal"):
            implicit_gain(step, {"gain": (2.0).hex(), "multipliers": [d.hex() for d in bad]})
    with pytest.raises(Exception, match="implicit"):
        implicit_gain(
            replace(Program("x", (1, 2), {}, 17).steps["x"]), {"gain": (2.0).hex(), "multipliers": []}
        )


@pytest.mark.parametrize("slope", [0.25, 3.0])
def test_slopes_of_implicit_layers_count(slope: float, rng: np.random.Generator) -> None:
    """phi with slopes to s: z = s w, so that scaling s against W and U changes nothing."""
    recurrent, inputs = 0.2 * rng.standard_normal((SIZE, SIZE)), rng.standard_normal((SIZE, 2))
    scaled, plain = implicit(recurrent, inputs, slope), implicit(slope * recurrent, slope * inputs)
    for gain in np.geomspace(0.5, 50, 40):
        for d in (1.0, 5.0, 25.0):
            # Multipliers of w and of z differ by s^2.
            one, other = (
                gained(scaled, gain, np.full(SIZE, d / slope**2)),
                gained(plain, gain, np.full(SIZE, d)),
            )
            assert one == other


def test_a_transposed_convolution_is_proved_at_its_norm(rng: np.random.Generator) -> None:
    op = ops.ConvTranspose(tensor(rng, 4, 3, 3, 2), None, (2, 1), ((1, 1), (0, 1)), (1, 0), (1, 2), 2)
    program = alone(op, (4, 5, 4))

    size = float(np.linalg.norm(signal_of(program, "y").parts[-1], 2))
    sizes = [16, 16]
    stage: dict[str, Any] = {"steps": ["y"], "by": "torus", "torus": [[n, 0] for n in sizes]}
    assert float(prove_product(program, "y", ("l2", "l2"), [stage | {"gain": (1.5 * size).hex()}])) >= size
    with pytest.raises(RefutedCertificate):
        prove_product(program, "y", ("l2", "l2"), [stage | {"gain": (size * (1 - 1e-9)).hex()}])


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_reflections_over_balls_are_proved(norm: str, rng: np.random.Generator) -> None:
    graph = chain(
        [tensor(rng, 6, 4), tensor(rng, 6, 6), tensor(rng, 3, 6)], ops.Householder(tensor(rng, 2, 3))
    )
    ball = lv.Ball(torch.tensor(rng.standard_normal((2, 4))), 0.1, norm)
    result = lv.audit(graph, norm=norm, region=ball, analyzers=["local"], search=Search(seconds=0.2))
    (row,) = result.rows
    assert row.certificate is not None
    assert str(row.certificate.rigour) == "checked", row.certificate.unchecked
    # Some reflections are decided in so small a ball, so that the bound is below the one for the whole space.
    everywhere = lv.audit(graph, norm=norm, analyzers=["product"], search=Search(seconds=0.2)).best
    assert float(row.certificate.upper.max()) < float(everywhere.upper)
