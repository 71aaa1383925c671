"""Reflections, implicit layers, convolutions and exact integers: proofs just above the constant, none below it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lipverify.checkers.kernel import Constant, Program, Subject, parse_steps, prove
from lipverify.checkers.kernel.neurons import differences
from lipverify.checkers.kernel.program import Affine, Lattice, checked
from lipverify.checkers.kernel.ranges import Ranges
from lipverify.checkers.reader.onnx import read_onnx
from lipverify.errors import NotCovered, RefutedCertificate, UnreadableCertificate
from tests.onnx_models import model, node
from tests.unit.checkers.kernel.programs import Array, Writing, ball, mlp

TWO = ["l2", "l2"]


def proves(
    program: Program, *steps: dict[str, Any], exact: bool = False, regions: Any = (), **arrays: Array
) -> bool:
    subject = Subject(program, list(regions), exact)
    try:
        prove(parse_steps(list(steps), arrays, subject), subject)
    except NotCovered:
        raise
    except (RefutedCertificate, UnreadableCertificate):
        return False
    return True


def lipsdp(program: Program, limit: float, blocks: list[str], **fields: Any) -> dict[str, Any]:
    last = len(program.steps) - 1
    default = {"start": 0, "end": last, "ranges": None, "wider": None, "weights": None, "norms": TWO}
    rows = [0, program.steps[last].size]
    return {"step": "multipliers", **default, "rows": rows, "blocks": blocks, "limit": limit.hex()} | fields


def product(program: Program, limit: float, norm: str = "l2", gains: tuple[int, ...] = ()) -> dict[str, Any]:
    return {"step": "product", "start": 0, "end": len(program.steps) - 1, "gains": list(gains), "norms": [norm, norm],
            "limit": limit.hex()}  # fmt: skip


def test_reflections_are_isometries_by_either_proof(rng: np.random.Generator) -> None:
    """The largest l1 and linf norms of a reflection in three dimensions are 5/3 and below root 3."""
    w = Writing(12)
    w.reflect(rng.standard_normal((2, 3)) * [[1e-3], [40.0]])
    program = w.program()
    assert proves(program, product(program, 1.0))
    for norm in ("l1", "linf"):
        assert proves(program, product(program, 1.7321, norm))
        assert not proves(program, product(program, 5 / 3, norm))
    # A little above |w|^2 / 2, where the matrix is singular and no rounding is allowed for; two runs of two vectors.
    squares = np.repeat((program.steps[1].vectors ** 2).sum(1) / 2, 2)
    for limit, holds in ((1 + 1e-9, True), (1 - 1e-9, False)):
        assert proves(program, lipsdp(program, limit, ["d"]), d=squares * (1 + 1e-10)) is holds


def implicit(recurrent: Array, inputs: Array, law: str = "Relu") -> Program:
    w = Writing(inputs.shape[1])
    w.implicit(recurrent, inputs, law=law)
    return w.program()


def gained(program: Program, limit: float, d: Array, exact: bool = False) -> bool:
    step = {"step": "implicit", "of": 1, "multipliers": "d", "limit": limit.hex()}
    return proves(program, step, exact=exact, d=np.asarray(d))


def test_an_implicit_layer_has_the_gain_of_its_multipliers_and_no_less() -> None:
    """Diagonal layers have a gain in closed form: z = relu(w z + u x) gives u / (1 - w) where w < 1."""
    w, u = np.array([-3.0, 0.5, 0.9, -0.2]), np.array([1.0, 2.0, 0.1, 3.0])
    program, exact = implicit(np.diag(w), np.diag(u)), float((u / (1 - w)).max())
    d = exact**2 * (1 - w)  # 2 D (1 - w) >= u^2 + D^2 / rho holds with the largest room at D = rho (1 - w)
    assert gained(program, exact * (1 + 1e-9), d)
    assert gained(program, exact * (1 + 1e-6), d, exact=True)
    for scale in (0.2, 0.7, 1.0, 1.5, 4.0):
        assert not gained(program, exact * (1 - 1e-9), scale * d)
        assert not gained(program, exact * (1 - 1e-6), scale * d, exact=True)


def test_a_layer_without_a_unique_equilibrium_has_no_proof(rng: np.random.Generator) -> None:
    """z = relu(2 z - x) has two solutions for x = 1, and so has every layer with a real eigenvalue above 1."""
    for recurrent in (np.array([[2.0]]), np.array([[0.0, 3.0], [1.0, 0.0]]), np.array([[1.0]])):
        program = implicit(recurrent, np.eye(len(recurrent)))
        for _ in range(40):
            assert not gained(program, 10.0 ** rng.uniform(0, 12), 10.0 ** rng.uniform(-8, 8, len(recurrent)))


def test_slopes_of_implicit_layers_count(rng: np.random.Generator) -> None:
    """A sigmoid has slopes to 1/4: its layer is that of a ReLU with a quarter of both matrices."""
    w, u = 0.5 * rng.standard_normal((4, 4)), rng.standard_normal((4, 2))
    for limit, d in itertools.product(np.geomspace(0.1, 10, 20), (1.0, 5.0, 25.0)):
        one = gained(implicit(w, u, "Sigmoid"), float(limit), np.full(4, 16 * d))
        assert one == gained(implicit(w / 4, u / 4), float(limit), np.full(4, d))


def test_what_an_implicit_layer_says_nothing_about_has_slopes_everywhere() -> None:
    rng = np.random.default_rng(0)
    w = Writing(3)
    w.dense(rng.standard_normal((5, 3)))
    w.scalar("Tanh")
    w.implicit(0.1 * rng.standard_normal((4, 4)), rng.standard_normal((4, 5)))
    w.scalar("Tanh")
    w.dense(rng.standard_normal((2, 4)))
    subject = Subject(w.program(), [ball(np.ones(3), 0.01)])
    ranges = Ranges(subject.elements, subject.regions[0], ())
    assert (ranges.slopes[0][1] - ranges.slopes[0][0]).max() < 0.1
    assert (ranges.slopes[2][0] == 0).all()
    assert (ranges.slopes[2][1] == 1).all()
    low, high = ranges.chain.ranges(ranges.output)
    assert np.isinf(low).all()
    assert np.isinf(high).all()
    found = differences(subject.elements, 0, len(subject.elements.steps) - 1, ranges.slopes.get)
    assert found.sizes == [5, 4, 4]
    # The ball before the layer, everything behind it.
    steps = [{"step": "ranges", "region": 0, "conditions": []},
             {"step": "jacobian", "start": 0, "end": 2, "ranges": 0, "rows": [0, 5], "norms": TWO, "limit": (9.0).hex()},
             {"step": "implicit", "of": 3, "multipliers": "d", "limit": (20.0).hex()},
             {"step": "product", "start": 2, "end": 5, "gains": [2], "norms": TWO, "limit": (200.0).hex()},
             {"step": "compose", "first": 1, "second": 3}]  # fmt: skip
    fact = prove(parse_steps(steps, {"d": np.full(4, 20.0)}, subject), subject)[-1]
    assert isinstance(fact, Constant)
    assert (fact.part.region, fact.start, fact.end) == (0, 0, 5)
    nothing = {"step": "value", "ranges": 0, "rows": [0, 1], "sign": 1, "limit": (-1e300).hex()}
    assert not proves(subject.program, steps[0], nothing, regions=subject.regions)


def test_convolutions_are_proved_at_their_norm_on_the_torus_and_by_their_matrix(
    rng: np.random.Generator,
) -> None:
    w, size = Writing(2 * 8), 8
    taps = rng.standard_normal((1, 3, 2, 3))
    places = np.arange(0, size, 2)[:, None] + np.arange(-1, 2)
    there = np.where((places >= 0) & (places < size), places, -1)
    index = np.concatenate([np.where(there >= 0, there + c * size, -1) for c in (0, 1)], 1)[None]
    lattice = Lattice(taps, (2, size), (2,), (1,), ((1, 0),), False)
    w.put(Affine(w.view(), 12, taps.reshape(1, 3, 6), index, None, 0, lattice))
    program = w.program()
    matrix = np.zeros((12, 16))
    for o, p, t in np.ndindex(3, 4, 6):
        if index[0, p, t] >= 0:
            matrix[o * 4 + p, index[0, p, t]] += taps.reshape(3, 6)[o, t]
    norm = float(np.linalg.norm(matrix, 2))
    dense = {"step": "gain", "chain": [1], "torus": None}
    assert proves(program, dense | {"limit": (norm * (1 + 1e-9)).hex()})
    assert not proves(program, dense | {"limit": (norm * (1 - 1e-9)).hex()})
    torus = dense | {"torus": [[6, 0]]}
    assert proves(program, torus | {"limit": (2 * norm).hex()})
    for axis in ([[n, t]] for n in (4, 5, 6, 9) for t in (0, 1)):
        assert not proves(program, dense | {"torus": axis, "limit": (norm * (1 - 1e-9)).hex()})


OTHERWISE: dict[str, Any] = {
    "a smaller weight": lambda own: {"weight": own.weight / 2},
    "a weight turned": lambda own: {"weight": own.weight[..., ::-1]},
    "another image": lambda own: {"image": (2, 9)},
    "another stride": lambda own: {"stride": (1,)},
    "another dilation": lambda own: {"dilation": (2,)},
    "another padding": lambda own: {"padding": ((0, 1),)},
    "its adjoint": lambda own: {"adjoint": not own.adjoint},
}


@pytest.mark.parametrize("change", OTHERWISE)
@pytest.mark.parametrize("transposed", [False, True])
def test_a_step_is_the_convolution_that_it_is_said_to_be(change: str, transposed: bool) -> None:
    """Gains on a torus are those of the lattice: one that says another map than the step is no program."""
    op, shape, pads = ("ConvTranspose", (2, 3, 3), [1, 1]) if transposed else ("Conv", (3, 2, 3), [1, 0])
    taps = np.random.default_rng(0).standard_normal(shape)
    source = model([node(op, ["x", "w"], ["y"], strides=[2], pads=pads)], [1, 2, 8], 13, {"w": taps})
    program = read_onnx(source.SerializeToString()).program
    step = next(s for s in program.steps if isinstance(s, Affine))
    assert step.lattice is not None
    with pytest.raises(UnreadableCertificate, match="does not fit together"):
        checked(
            replace(step, lattice=step.lattice._replace(**OTHERWISE[change](step.lattice))), program.steps[:1]
        )


def scaled_convolution(*powers: int) -> tuple[Program, dict[str, Any]]:
    """A convolution with one tap 2^p, behind scalings by powers of two, and its gain on a torus without the limit."""
    w, places = Writing(4), np.arange(4)
    for p in powers[:-1]:
        w.put(Affine(w.view(), 4, np.full((1, 1, 1), 2.0**p), places[None, :, None]))
    taps, around = np.array([[[[0.0, 2.0 ** powers[-1], 0.0]]]]), places[:, None] + np.arange(-1, 2)
    index = np.where((around >= 0) & (around < 4), around, -1)[None]
    w.put(Affine(w.view(), 4, taps[0], index, None, 0, Lattice(taps, (1, 4), (1,), (1,), ((1, 1),), False)))
    return w.program(), {"step": "gain", "chain": list(range(1, len(powers) + 1)), "torus": [[8, 0]]}


@pytest.mark.parametrize("powers", [(-400, -400, -400), (-300, -101), (399, 300, 2)], ids=str)
def test_a_torus_of_products_that_are_lost_is_not_covered(powers: tuple[int, ...]) -> None:
    """2^-1200 is 0 in float64: a gain of 0 was proved for it, though later layers may multiply by as much."""
    program, gain = scaled_convolution(*powers)
    for limit in (0.0, 2.0**-1074, 1.0):
        with pytest.raises(NotCovered, match="products of stored numbers"):
            proves(program, gain | {"limit": limit.hex()})


def test_a_torus_of_small_products_is_proved_at_their_size() -> None:
    program, gain = scaled_convolution(-200, -199)
    assert proves(program, gain | {"limit": (2.0**-399 * (1 + 1e-9)).hex()})
    for limit in (0.0, 2.0**-1074, 2.0**-399 * (1 - 1e-9)):
        assert not proves(program, gain | {"limit": limit.hex()})


def test_the_exact_tier_agrees(rng: np.random.Generator) -> None:
    program = mlp(np.random.default_rng(3), (3, 6, 5, 2))
    blocks = {"a": np.full(6, 4.0), "b": np.full(5, 9.0)}
    for limit in np.geomspace(1.0, 100.0, 12):
        step = lipsdp(program, float(limit), ["a", "b"])
        if proves(program, step, exact=True, **blocks):
            assert proves(program, lipsdp(program, float(limit) * (1 + 1e-9), ["a", "b"]), **blocks)
        else:
            assert not proves(program, lipsdp(program, float(limit) * (1 - 1e-9), ["a", "b"]), **blocks)
    norm = float(np.linalg.norm(program.steps[1].kernel[0], 2))
    gain = {"step": "gain", "chain": [1], "torus": None}
    assert proves(program, gain | {"limit": (norm * (1 + 1e-9)).hex()}, exact=True)
    assert not proves(program, gain | {"limit": (norm * (1 - 1e-9)).hex()}, exact=True)
    with pytest.raises(NotCovered):
        proves(
            program,
            {"step": "ranges", "region": 0, "conditions": []},
            exact=True,
            regions=[ball(np.zeros(3), 0.1)],
        )


def test_a_sign_that_is_lost_to_underflow_is_not_claimed() -> None:
    """The derivative is -2^-1200, which no product of floats shows."""
    w = Writing(1)
    for factor in (2.0**-400, -(2.0**-400), 2.0**-400):
        w.dense(np.array([[factor]]))
    step = {"step": "sign", "ranges": None, "row": 0, "input": 0}
    assert not proves(w.program(), step | {"sign": 1})
    w = Writing(1)
    for factor in (2.0**-100, -(2.0**-100)):
        w.dense(np.array([[factor]]))
    assert not proves(w.program(), step | {"sign": 1})
    assert proves(w.program(), step | {"sign": -1})


def test_products_of_gains_need_no_neurons() -> None:
    """Sorts of many numbers and softmax of a hundred thousand have gains, and cost nothing but their own size."""
    w = Writing(64)
    w.sort(16)
    assert proves(w.program(), product(w.program(), 1.0))
    with pytest.raises(NotCovered, match="sorts of 16"):
        proves(
            w.program(), {"step": "ranges", "region": 0, "conditions": []}, regions=[ball(np.zeros(64), 0.1)]
        )
    w = Writing(100_000)
    w.softmax(100_000)
    assert proves(w.program(), product(w.program(), 0.5))
    assert len(Subject(w.program()).elements.steps) < 9
