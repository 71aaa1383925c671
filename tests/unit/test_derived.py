"""What follows from certified constants: golden numbers from two ways each, proofs again, and forgeries."""

from __future__ import annotations

import doctest
import importlib
import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify import derived, ops
from lipverify.certificates import model_of
from lipverify.checkers import derivations
from lipverify.checkers.closed_forms import RULES, exponential_above, positive_definite
from lipverify.derived.derivation import derive
from lipverify.derived.networks import audited
from lipverify.errors import (
    BudgetEnded,
    Refuted,
    RefutedCertificate,
    Undecided,
    UnreadableCertificate,
    UnsupportedModel,
    UsageError,
)
from lipverify.interpreter import evaluate
from lipverify.ir.certificate import Rigour
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Input
from tests.command import lipverify
from tests.networks import chain, tensor
from tests.onnx_models import model, node, random

DOUBLE = ([[1.0, 0.1], [0.0, 1.0]], [[0.005], [0.1]])
PLANT = ([[0.9, 0.1], [0.0, 0.8]], [[0.0], [1.0]])


def rotation(seed: int, rows: int, columns: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.standard_normal((max(rows, columns),) * 2))[0]
    return torch.from_numpy(q[:rows, :columns].copy())


# -- golden numbers, each from another way than the rule's


@pytest.mark.parametrize(
    ("steps", "last", "sequence"),
    [(5, 2.236068, 3.513337), (20, 4.472136, 13.053899), (100, 10.0, 63.980938)],
)
def test_recurrences_with_unit_norms(steps: int, last: float, sequence: float) -> None:
    matrix = np.tril(np.ones((steps, steps)))
    found = {of: derived.recurrent(1.0, 1.0, steps, of=of).upper for of in ("last", "sequence", "each")}
    assert found["last"] == pytest.approx(math.sqrt(steps), rel=1e-14) == pytest.approx(last, abs=5e-7)
    assert found["sequence"] == pytest.approx(sequence, abs=5e-7)
    assert found["sequence"] == pytest.approx(1.0 / (2.0 * math.sin(math.pi / (4 * steps + 2))), rel=1e-12)
    assert found["sequence"] == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-12)
    assert found["sequence"] >= np.linalg.norm(matrix, 2) * (1.0 - 1e-14)
    assert found["each"] == steps


@pytest.mark.parametrize("states", [0.0, 0.5, 2.97])
def test_recurrences_are_norms_of_matrices(states: float) -> None:
    steps, inputs = 8, 2.98
    powers = np.subtract.outer(np.arange(steps), np.arange(steps))
    matrix = inputs * np.tril(states ** np.maximum(powers, 0).astype(float))
    assert derived.recurrent(inputs, states, steps).upper == pytest.approx(
        np.linalg.norm(matrix[-1]), rel=1e-12
    )
    sequence = derived.recurrent(inputs, states, steps, of="sequence").upper
    assert sequence == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-9)
    assert sequence >= np.linalg.norm(matrix, 2) * (1.0 - 1e-14)


def test_tails_and_values() -> None:
    for factor, exponent, golden in ((2, 31.25, 2.6810e-14), (8, 7.8125, 4.0465e-4)):
        tail = derived.stability_tail(1000, 0.05, 1.0, 1.0, deviation=0.1, factor=factor)
        assert tail.upper == pytest.approx(math.exp(-exponent), rel=1e-13) == pytest.approx(golden, rel=1e-4)
    for steps, terms, golden in ((0, 4000, 9.174312), (3, 3, 2.684881)):
        value = derived.q_constant(1.0, 0.9, 0.99, steps=steps).upper
        assert value == pytest.approx(sum(0.891**k for k in range(terms)), rel=1e-12)
        assert value == pytest.approx(golden, abs=5e-7)
    assert derived.generator_tail(2.0, 6.0).upper == pytest.approx(2 * math.exp(-4.5), rel=1e-13)
    assert derived.generator_tail(2.0, 0.0).upper == 1.0
    assert derived.grid_margin(1.0, 0.1, 2).upper == pytest.approx(math.hypot(0.05, 0.05), rel=1e-14)
    assert derived.grid_margin(1.0, 0.1, 2).upper == pytest.approx(0.0707107, abs=5e-8)
    assert derived.grid_margin(1.0, 0.1, 3, norm="linf").upper == pytest.approx(0.05)
    with pytest.raises(UsageError, match="not below 1"):
        derived.q_constant(1.0, 2.0, 0.5)


@pytest.mark.parametrize("x", [Fraction(0), Fraction(1, 3), Fraction(1), Fraction(125, 4), Fraction(10**9)])
def test_exponentials_from_above(x: Fraction) -> None:
    from mpmath import mp

    with mp.workprec(400):
        wanted = mp.exp(-mp.mpf(x.numerator) / x.denominator)
        found = exponential_above(x)
        ratio = mp.mpf(found.numerator) / found.denominator / wanted
        assert ratio >= 1
        assert x >= 4096 or ratio < 1 + mp.mpf(10) ** -30


def test_definiteness_is_exact() -> None:
    edge = [[Fraction(1), Fraction(1)], [Fraction(1), Fraction(1)]]
    assert not positive_definite(edge)
    assert positive_definite([edge[0], [Fraction(1), 1 + Fraction(1, 10**60)]])
    assert not positive_definite([edge[0], [Fraction(1), 1 - Fraction(1, 10**60)]])


def test_games() -> None:
    found = derived.game([1.0, 1.0], [[0.0, 4.0], [0.1, 0.0]])
    assert found.lower == pytest.approx(1.0 - math.sqrt(0.4), rel=1e-9) == pytest.approx(0.367544, abs=5e-7)
    assert found.details["weights"][1] / found.details["weights"][0] == pytest.approx(40.0, rel=1e-6)
    low, high = derived.game_band((1.0, 1.0), (4.0, 0.1))
    assert (low, high) == (pytest.approx(5.0807, abs=1e-4), pytest.approx(314.9193, abs=1e-4))
    scan = [
        derived.game([1.0, 1.0], [[0.0, 4.0], [0.1, 0.0]], weights=[1.0, w]).lower
        for w in np.geomspace(low, high, 25)
    ]
    assert max(scan) <= found.lower * (1 + 1e-9)
    assert scan[0] == pytest.approx(0.0, abs=1e-9) == pytest.approx(scan[-1], abs=1e-9)
    assert derived.game([1.0, 1.0], [[0.0, 4.0], [0.1, 0.0]], weights=[1.0, 1.0]).lower == pytest.approx(
        -1.05
    )
    with pytest.raises(UsageError, match="margin above 0"):
        derived.game_step(
            derived.game([1.0, 1.0], [[0, 4.0], [0.1, 0]], weights=[1.0, 1.0]), [1, 1], [[0, 4], [0.1, 0]]
        )


def test_runge_kutta_contracts_in_the_same_disk_as_euler() -> None:
    """Dahlquist and Jeltsch: b_i a_ij + b_j a_ji - b_i b_j + b_i [i = j] is positive semidefinite: radius 1."""
    b = [Fraction(1, 6), Fraction(1, 3), Fraction(1, 3), Fraction(1, 6)]
    a = [[Fraction(0)] * 4 for _ in range(4)]
    a[1][0], a[2][1], a[3][2] = Fraction(1, 2), Fraction(1, 2), Fraction(1)
    matrix = [
        [b[i] * a[i][j] + b[j] * a[j][i] - b[i] * b[j] + (b[i] if i == j else 0) for j in range(4)]
        for i in range(4)
    ]
    assert positive_definite([row[:3] for row in matrix[:3]])
    assert all(row[0] - row[1] + row[2] - row[3] == 0 for row in matrix)  # singular: the radius is exactly 1


@pytest.mark.parametrize("method", ["euler", "runge-kutta"])
def test_steps_bring_strategies_together(method: str) -> None:
    rng = np.random.default_rng(1)
    jacobian = np.array(
        [[1.0, 0.0, 0.6, -0.3], [0.0, 1.4, 0.2, 0.5], [-0.5, 0.1, 1.2, 0.0], [0.3, -0.4, 0.0, 0.9]]
    )
    norms = [
        [np.linalg.norm(jacobian[2 * i : 2 * i + 2, 2 * j : 2 * j + 2], 2) * (1 + 1e-12) for j in range(2)]
        for i in range(2)
    ]
    found = derived.game([1.0, 0.9], norms)
    step = derived.game_step(found, [norms[0][0], norms[1][1]], norms).lower * 0.999
    scale = np.sqrt(np.repeat(found.details["weights"], 2))

    def moved(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        k1 = -jacobian @ x
        if method == "euler":
            return x + step * k1
        k2 = -jacobian @ (x + step / 2 * k1)
        k3 = -jacobian @ (x + step / 2 * k2)
        return x + step / 6 * (k1 + 2 * k2 + 2 * k3 - jacobian @ (x + step * k3))

    for x in rng.standard_normal((50, 4)):
        assert np.linalg.norm(scale * moved(x)) < np.linalg.norm(scale * x)


def test_loops() -> None:
    allowed = derived.largest_constant(*PLANT)
    sweep = [np.linalg.norm(np.linalg.solve(np.exp(1j * t) * np.eye(2) - np.array(PLANT[0]), np.array(PLANT[1])), 2)
             for t in np.linspace(0, math.pi, 2001)]  # fmt: skip
    assert max(sweep) == pytest.approx(7.071068, abs=1e-6)
    assert allowed == pytest.approx(1.0 / max(sweep), rel=1e-6) == pytest.approx(0.141421, abs=1e-6)
    found = derived.closed_loop(0.14, *PLANT)
    assert 0.9 < found.upper < 1.0
    assert derived.verify_derived(found).value == found.upper
    with pytest.raises(Undecided, match=r"0\.1415,.*0\.14142"):
        derived.closed_loop(0.1415, *PLANT)
    with pytest.raises(Undecided):
        derived.closed_loop(0.0, [[1.1]], [[1.0]])


def test_loops_refuse_networks_of_other_sizes() -> None:
    with pytest.raises(UsageError, match=r"maps \[13\] to \[3\]"):
        derived.closed_loop(audited(chain([0.01 * torch.ones(3, 13)]), ["product"]), *PLANT)
    with pytest.raises(UsageError, match="not negative"):
        derived.closed_loop(-0.01, *PLANT)


def test_constants_of_balls_say_nothing_of_the_whole_space() -> None:
    """The slope is 1 near -1 and 100 at 1, and every rule but those of loops near 0 is about everywhere."""
    steep = chain([torch.full((1, 1), 10.0)] * 2, ops.LeakyReLU(0.01)).to(dtype=torch.float64)
    center = torch.full((1, 1), -1.0, dtype=torch.float64)
    near = audited(steep, ["local"], lv.Ball(center, 0.01))
    assert near.best is not None
    assert near.upper is not None
    assert near.upper.item() == pytest.approx(1.0)
    plant = [[0.5]], [[1.0]]
    for use in (
        lambda known: derived.closed_loop(known, *plant),
        lambda known: derived.closed_loop(known, [[1.1]], [[1.0]]),  # not stable, and not for this constant
        lambda known: derived.disturbed(0.5, known, 0.1),
        lambda known: derived.generator_tail(known, 1.0),
        lambda known: derived.critic_distance(steep, center, center + 1.0, known),
        lambda known: derived.q_constant(1.0, known, 0.9),
        lambda known: derived.value_error(0.5, known, 1.0),
        lambda known: derived.grid_margin(known, 0.1, 1),
        lambda known: derived.recurrent(known, 0.5, 3),
        lambda known: derived.recurrent(1.0, known, 3, of="sequence"),
        lambda known: derived.stability_tail(10, 0.1, known, 1.0, deviation=0.1),
        lambda known: derived.game([(1.0, known)], [[0.0]]),
    ):
        for known in (near, near.best.certificate):
            with pytest.raises(
                UsageError, match=r"radius 0\.01 .*does not hold everywhere; audit without a region"
            ):
                use(known)
    with pytest.raises(UsageError, match=r"not about a ball around 0; .*linf ball around 0 of radius 1\.0"):
        derived.closed_loop(near, *plant, radius=1.0)
    with pytest.raises(UsageError, match="a radius is a finite number"):
        derived.closed_loop(near, *plant, radius=math.nan)


def test_a_ball_around_0_serves_a_loop_in_its_box_alone() -> None:
    flat = chain([torch.full((1, 2), 0.05), torch.ones(1, 1)], ops.Tanh()).to(dtype=torch.float64)
    for norm, radius, holds in (
        ("linf", 0.5, True),
        ("linf", 0.4, False),
        ("l2", 0.71, True),
        ("l2", 0.7, False),
    ):
        known = audited(flat, ["local"], lv.Ball(torch.zeros(1, 2, dtype=torch.float64), radius, norm))
        if holds:
            found = derived.closed_loop(known, *PLANT, radius=0.5)
            assert derived.verify_derived(found).value == found.upper
        else:
            with pytest.raises(UsageError, match="does not hold the box"):
                derived.closed_loop(known, *PLANT, radius=0.5)


def test_a_loop_with_a_policy_comes_together_as_fast_as_proved() -> None:
    rng = np.random.default_rng(0)
    gain = np.array([[-0.8, -1.2]])
    small = chain([tensor(rng, 8, 2, scale=0.2), tensor(rng, 1, 8, scale=0.2)], ops.Tanh())
    head = Node("gain", ops.Linear(torch.from_numpy(gain)), (small.input.name,), (1,))
    policy = Graph((*small.nodes, head, Node("sum", ops.Add(), (small.output.name, "gain"), (1,))), ("sum",))
    found = derived.closed_loop(policy, *DOUBLE, gain)
    assert found.rigour is Rigour.CHECKED
    assert found.details["constant"] < found.details["allowed"]
    assert derived.verify_derived(found).certificates[0]["number"] == "constant"
    shape = np.array(found.details["shape"])
    x, y = (torch.from_numpy(rng.standard_normal((200, 2)) * 5) for _ in range(2))
    after = [
        z @ torch.tensor(DOUBLE[0]).double().T
        + evaluate(policy.to(dtype=torch.float64), z) @ torch.tensor(DOUBLE[1]).double().T
        for z in (x, y)
    ]
    sizes = [
        np.sqrt(np.einsum("ni,ij,nj->n", d, shape, d))
        for d in ((x - y).numpy(), (after[0] - after[1]).numpy())
    ]
    assert (sizes[1] <= found.upper * sizes[0]).all()
    with pytest.raises(UsageError, match="at 0"):
        derived.closed_loop(
            chain([tensor(rng, 8, 2), tensor(rng, 1, 8)], ops.Sigmoid()), *DOUBLE, gain, radius=0.1
        )


def test_a_pendulum_is_what_a_linear_plant_leaves() -> None:
    """theta'' = 9.81 sin(theta) + u by steps of .05: |sin(t) - t| <= r^2 / 6 |t| for angles up to r."""
    dt, r = 0.05, 0.2
    plant = [[1.0, dt], [dt * 9.81, 1.0]], [[0.0], [dt]]
    gain, remainder = [[-20.0, -6.0]], dt * 9.81 * r**2 / 6
    found = derived.closed_loop(0.1, *plant, gain, radius=r, remainder=remainder, direction=[[0.0], [1.0]])
    assert found.rule == "loop-remainder"
    plain = derived.closed_loop(0.1, *plant, gain, radius=r)
    assert plain.upper < found.upper < 1.0
    assert derived.verify_derived(found).value == found.upper
    shape, level = np.array(found.details["shape"]), found.details["level"]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 2))
    x *= np.sqrt(level / np.einsum("ni,ij,nj->n", x, shape, x))[:, None]
    assert np.abs(x).max() <= r
    for _ in range(100):
        # Any policy that differs from the gain by at most .1 |x|.
        u = x @ np.array(gain)[0] + 0.1 * np.linalg.norm(x, axis=1) * rng.uniform(-1, 1, len(x))
        after = np.stack([x[:, 0] + dt * x[:, 1], x[:, 1] + dt * (9.81 * np.sin(x[:, 0]) + u)], 1)
        before, now = (np.sqrt(np.einsum("ni,ij,nj->n", z, shape, z)) for z in (x, after))
        assert (now <= found.upper * before).all()
        x = after
    with pytest.raises(Undecided, match="remainders below"):
        derived.closed_loop(0.1, *plant, gain, radius=r, remainder=1.0)
    with pytest.raises(UsageError, match="radius"):
        derived.closed_loop(0.1, *plant, gain, remainder=remainder)


def test_a_sector_falls_at_every_corner_and_so_in_between() -> None:
    """A double integrator under any policy whose derivatives lie in the sector: runs stay in the ellipsoid."""
    low, high = [[-0.9, -8.0]], [[-0.3, -0.8]]
    found = derived.closed_loop((low, high), *DOUBLE, radius=0.5, by="sector")
    assert found.rule == "loop-sector"
    assert derived.verify_derived(found).value == found.upper < 1.0
    half = np.linalg.norm((np.array(high) - low) / 2)
    with pytest.raises(
        Undecided, match="shown stable up to"
    ):  # from a norm around the middle nothing follows
        derived.closed_loop(float(half), *DOUBLE, (np.array(high) + low) / 2, radius=0.5)
    shape, level = np.array(found.details["shape"]), found.details["level"]
    rng, (a, b) = np.random.default_rng(0), map(np.array, DOUBLE)
    x = rng.standard_normal((300, 2))
    x *= np.sqrt(level / np.einsum("ni,ij,nj->n", x, shape, x))[:, None]
    assert np.abs(x).max() <= 0.5
    for _ in range(50):
        u = (x * rng.uniform(low[0], high[0], x.shape)).sum(1, keepdims=True)
        after = x @ a.T + u @ b.T
        before, now = (np.sqrt(np.einsum("ni,ij,nj->n", z, shape, z)) for z in (x, after))
        assert (now <= found.upper * before * (1 + 1e-12)).all()
        x = after
    with pytest.raises(UsageError, match="fall at a corner"):
        derive(
            "loop-sector",
            dynamics=DOUBLE[0],
            control=DOUBLE[1],
            low=low,
            high=[[0.3, 0.8]],
            radius=0.5,
            rate=found.upper,
            shape=shape,
            level=level,
        )
    with pytest.raises(UsageError, match="lower ends first"):
        derived.closed_loop((high, low), *DOUBLE, radius=0.5, by="sector")


def test_corners_of_a_sector_take_time_that_is_counted(tmp_path: Path) -> None:
    """Ten free derivatives of sixteen states took a minute, whatever `seconds` said."""
    found = derived.closed_loop(([[-0.9, -8.0]], [[-0.3, -0.8]]), *DOUBLE, radius=0.5, by="sector")
    found.save(tmp_path / "loop.json")
    assert derivations.verify_derivation(tmp_path / "loop.json", []).value == found.upper
    with pytest.raises(BudgetEnded, match="time for checking is over"):
        derivations.verify_derivation(tmp_path / "loop.json", [], seconds=0.0)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A raw FileNotFoundError said nothing of what was asked for."""
    found = derived.grid_margin(2.0, 0.1, 2)
    result = audited(chain([torch.eye(2)]), ["product"])
    for write in (found.save, found.to_html, result.to_html, result.certificates["product"].save):
        with pytest.raises(UsageError, match="cannot be written: No such file or directory"):
            write(tmp_path / "away" / "found.json")


def test_the_sector_of_a_network_holds_its_slopes() -> None:
    rng = np.random.default_rng(4)
    policy = chain([tensor(rng, 8, 2), tensor(rng, 1, 8)], ops.Tanh()).to(dtype=torch.float64)
    low, high = derived.sector(policy, 0.2)
    x = (torch.rand(200, 2, dtype=torch.float64) * 2 - 1) * 0.2
    slopes = torch.func.vmap(torch.func.jacrev(lambda v: evaluate(policy, v[None])[0]))(x)
    assert bool((slopes >= torch.from_numpy(low)).all())
    assert bool((slopes <= torch.from_numpy(high)).all())
    spread = slopes.amax(0) - slopes.amin(0)
    assert bool((torch.from_numpy(high - low) <= 4 * spread + 1e-9).all())
    with pytest.raises(UsageError, match="at 0"):
        derived.closed_loop(
            chain([tensor(rng, 8, 2), tensor(rng, 1, 8)], ops.Sigmoid()), *DOUBLE, radius=0.1, by="sector"
        )
    with pytest.raises(UsageError, match="radius"):
        derived.closed_loop(policy, *DOUBLE, by="sector")


def test_a_remainder_that_is_not_bounded_by_the_shape_proves_nothing() -> None:
    """largest and smallest are data: the rule shows that they bound the shape."""
    plant = {"dynamics": [[0.5, 0.0], [0.0, 0.5]], "control": [[0.0], [1.0]], "gain": [[0.0, 0.0]]}
    shape = {"shape": [[1.0, 0.0], [0.0, 4.0]], "multiplier": 20.0, "rate": 0.9, "level": 1.0, "radius": 2.0}
    more = {"constant": 0.01, "direction": [[1.0, 0.0], [0.0, 1.0]], "remainder": 0.01}
    assert derive("loop-remainder", **plant, **shape, **more, largest=4.1, smallest=0.9).upper < 0.93
    for largest, smallest in ((3.9, 0.9), (4.1, 1.1), (4.1, 0.0)):
        with pytest.raises(UsageError, match="bound the shape"):
            derive("loop-remainder", **plant, **shape, **more, largest=largest, smallest=smallest)


def test_near_zero_a_set_stays_where_the_constant_holds() -> None:
    rng = np.random.default_rng(2)
    gain = np.array([[-0.8, -1.2]])
    first, last = tensor(rng, 6, 2, scale=1.0), tensor(rng, 1, 6, scale=0.6)
    rest = torch.from_numpy(gain) - last @ first
    nodes = (Node("x", Input(), (), (2,)), Node("a", ops.Linear(first), ("x",), (6,)), Node("t", ops.Tanh(), ("a",), (6,)),
             Node("b", ops.Linear(last), ("t",), (1,)), Node("l", ops.Linear(rest), ("x",), (1,)),
             Node("y", ops.Add(), ("b", "l"), (1,)))  # fmt: skip
    policy = Graph(nodes, ("y",))  # its slope at 0 is the gain
    with pytest.raises(Undecided):
        derived.closed_loop(policy, *DOUBLE, gain)
    found = derived.closed_loop(policy, *DOUBLE, gain, radius=0.2)
    assert found.rule == "loop-near"
    assert found.rigour is Rigour.CHECKED
    shape, level = np.array(found.details["shape"]), found.details["level"]
    ends = np.sqrt(level * np.linalg.inv(shape).diagonal())
    assert ends.max() <= 0.2
    assert ends.max() == pytest.approx(0.2, rel=1e-6)
    assert derived.verify_derived(found).value < 1.0
    wider = dict(found.numbers)
    wider["level"] = (level * 1.01).hex()
    with pytest.raises(UnreadableCertificate, match="in the box"):
        derivations.parse(
            {**found.to_json(), "numbers": {**found.to_json()["numbers"], "level": wider["level"]}}
        )[0].value()


def test_sensitivities_of_rotations() -> None:
    """In closed form; and 300 gradients of unit inputs at temperature 20 stay below, the largest within a hundredth."""
    weights = [rotation(0, 32, 16), rotation(1, 32, 32), rotation(2, 10, 32)]
    graph = chain(weights, ops.GroupSort(2)).to(dtype=torch.float64)
    found = derived.sensitivity(graph, 1.0)
    golden = 1.414214, 2.449490
    assert [one.upper for one in found.layers.values()] == pytest.approx([golden[0]] * 3, abs=5e-7)
    assert found.upper == pytest.approx(math.sqrt(6.0), rel=1e-6) == pytest.approx(golden[1], abs=5e-7)
    rng, largest = np.random.default_rng(3), 0.0
    x = torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal((300, 16))), dim=1)
    for row, label in zip(x, rng.integers(10, size=300), strict=True):
        used = [w.clone().requires_grad_() for w in weights]
        h = row
        for w in used[:-1]:
            pairs = (w @ h).unflatten(0, (-1, 2))
            h = torch.stack([pairs.amax(1), pairs.amin(1)], 1).flatten()
        loss = torch.nn.functional.cross_entropy(20.0 * (used[-1] @ h)[None], torch.tensor([label])) / 20.0
        sizes = [float(g.norm()) for g in torch.autograd.grad(loss, used)]
        assert math.hypot(*sizes) <= found.upper
        assert max(sizes) <= found.layers[next(iter(found.layers))].upper
        largest = max(largest, *sizes)
    assert largest > 0.99 * golden[0]
    assert found.noise(2.0) == 2.0 * found.upper
    assert derived.sensitivity(graph, 1.0, neighbours="replace-one").upper == pytest.approx(
        2.0 * found.upper, rel=1e-12
    )
    assert derived.verify_derived(found.total).value == found.upper


def test_no_gradient_of_a_sample_is_above_its_sensitivity() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, stride=2, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 3, 2, groups=1), torch.nn.Tanh(),
        torch.nn.Flatten(), torch.nn.Linear(27, 5),
    ).double()  # fmt: skip
    shape = (2, 8, 8)
    graph = lv.extract(net, torch.zeros(2, *shape, dtype=torch.float64))
    found = derived.sensitivity(graph, 3.0)
    named = dict(zip(found.layers, [name for name, _ in net.named_parameters()], strict=True))
    worst = dict.fromkeys(found.layers, 0.0)
    for seed in range(40):
        x = torch.randn(1, *shape, dtype=torch.float64)
        x = 3.0 * x / x.norm()
        net.zero_grad()
        torch.nn.functional.cross_entropy(net(x), torch.tensor([seed % 5])).backward()
        for label, name in named.items():
            grad = net.get_parameter(name).grad
            assert grad is not None
            worst[label] = max(worst[label], float(grad.norm()))
    for label, size in worst.items():
        assert 0.0 < size <= found.layers[label].upper, label


USES = {
    "again": (4, lambda w, k: w, torch.eye(2)),
    "transposed": (4, lambda w, k: w.T if k % 2 else w, torch.eye(2).flip(0)),
    "turned": (2, lambda w, k: -w if k else w, torch.eye(2)),
    "in part": (2, lambda w, k: w[:1] if k else w, torch.eye(2)),
}


class Tied(torch.nn.Module):
    """One tensor several times."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.count, self.form, start = USES[how]
        self.w = torch.nn.Parameter(start)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for k in range(self.count):
            x = torch.nn.functional.linear(x, self.form(self.w, k))
        return x


@pytest.mark.parametrize("how", USES)
def test_a_tensor_that_is_used_again_has_one_gradient(how: str) -> None:
    """Four uses counted as four tensors: 2 for 4."""
    net = Tied(how)
    x = torch.tensor([[1.0, 0.0]])
    found = derived.sensitivity(lv.extract(net.eval(), x), 1.0, 1.0)
    y = net(x)
    (y @ (y / y.norm()).detach().T).sum().backward()
    assert net.w.grad is not None
    worst = float(net.w.grad.norm())
    assert worst * (1.0 - 1e-5) <= found.upper <= 1.5 * worst
    assert all(one.upper >= worst * (1.0 - 1e-5) for one in found.layers.values())


def test_numbers_that_may_be_parameters_are_refused_or_frozen() -> None:
    """A PReLU behind a layer counted as no parameter: 1 for 1.22."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.PReLU(2))
    graph = lv.extract(net.eval(), torch.zeros(1, 2))
    name = graph.output.name
    with pytest.raises(UnsupportedModel, match=f"frozen=\\('{name}',\\)"):
        derived.sensitivity(graph, 1.0)
    assert derived.sensitivity(graph, 1.0, frozen=[name]).layers.keys() == {f"{graph.nodes[1].name} weight"}
    with pytest.raises(UsageError, match="no node"):
        derived.sensitivity(graph, 1.0, frozen=["z"])


def test_sensitivities_refuse_what_passes_by() -> None:
    x = Node("x", Input(), (), (3,))
    skip = Graph(
        (x, Node("a", ops.Linear(torch.eye(3)), ("x",), (3,)), Node("y", ops.Add(), ("a", "x"), (3,))), ("y",)
    )
    with pytest.raises(UnsupportedModel, match="passes by"):
        derived.sensitivity(skip, 1.0)
    with pytest.raises(UsageError, match="no loss"):
        derived.sensitivity(skip, 1.0, "hinge")


def test_critics_do_not_gain_by_scale() -> None:
    rng = np.random.default_rng(0)
    weights = [tensor(rng, 16, 3), tensor(rng, 1, 16)]
    first, second = (torch.from_numpy(rng.standard_normal((50, 3))) + shift for shift in (0.0, 0.7))
    found = []
    for scale in (1.0, 3.0):
        critic = chain([weights[0], scale * weights[1]], ops.ReLU())
        audit = audited(critic, ["product"])
        found.append(derived.critic_distance(critic, first, second, audit))
    assert found[0].lower == pytest.approx(found[1].lower, rel=1e-6)
    from scipy.optimize import linear_sum_assignment

    costs = torch.cdist(first, second).numpy()
    rows, columns = linear_sum_assignment(costs)
    assert 0.0 < found[0].lower <= costs[rows, columns].mean()
    with pytest.raises(UsageError, match="other side"):
        _ = found[0].upper


def test_epsilon_of_all_samples() -> None:
    assert derived.epsilon(1.0, 4, 1e-5) == pytest.approx(derived.epsilon(0.5, 1, 1e-5))
    from scipy.stats import norm

    e = derived.epsilon(2.0, 9, 1e-6)
    assert norm.cdf(-e / 1.5 + 0.75) - math.exp(e) * norm.cdf(-e / 1.5 - 0.75) == pytest.approx(
        1e-6, rel=1e-6
    )


def test_epsilons_are_not_below_the_curve() -> None:
    """Probabilities near the ends of float64 were rounded: 38.18 was printed for 38.67."""
    from mpmath import mp

    with mp.workdps(60):
        for size, delta in ((1.0, 1e-320), (1.0, 1e-16), (1000.0, 1e-5), (1e-6, 1e-12), (1e6, 1e-9)):
            e, m = mp.mpf(derived.epsilon(1.0 / size, 1, delta)), mp.mpf(1) / (mp.mpf(1.0 / size))
            assert mp.ncdf(-e / m + m / 2) - mp.exp(e) * mp.ncdf(-e / m - m / 2) <= delta
            assert size < 1e-3 or e < 1.001 * m * m / 2 + 40 * m
    for given in (
        (1.0, math.inf, 1e-5),
        (1e-300, 1, 1e-5),
        (math.inf, 1, 1e-5),
        (1.0, 2.5, 1e-5),
        (1.0, 10**400, 1e-5),
        (1.0, 1, math.nan),
    ):
        with pytest.raises(UsageError):
            derived.epsilon(*given)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda g: derived.game_step(g, [0.1, 0.1], [[0, 0.01], [0.01, 0]]), "contradict each other"),
        (lambda g: derived.game_step(g, [1.0], [[0, 0.1], [0.1, 0]]), "2 players have 2 own constants"),
        (lambda g: derived.q_constant(1.0, 0.1, 2.0), "a discount above 1"),
        (lambda g: derived.value_error(5.0, 1.0, 1.0), "a discount above 1"),
        (lambda g: derived.largest_constant(*PLANT, digits=400), "digits are a whole number"),
        (lambda g: derived.closed_loop(0.1, *PLANT, radius=0.0), "a radius is a finite number above 0"),
        (lambda g: derived.grid_margin(1.0, 0.1, 2, norm=[]), "is no norm"),  # type: ignore[arg-type]
        (lambda g: derived.recurrent("1", 1.0, 5), "is a number, not '1'"),  # type: ignore[arg-type]
    ],
)
def test_numbers_without_a_meaning_are_refused(ask: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ask(derived.game([1.0, 1.0], [[0.0, 0.1], [0.1, 0.0]]))


def test_the_command_of_loops_takes_a_sector() -> None:
    """lv.closed_loop refused the two matrices that its page names."""
    found = lv.closed_loop(([[-0.1]], [[0.1]]), [[0.5]], [[1.0]], radius=1.0, by="sector")
    assert 0.6 <= found.upper < 0.601
    with pytest.raises(Undecided, match="no quadratic form"):
        lv.closed_loop(([[-0.1]], [[0.1]]), [[1.5]], [[1.0]], radius=1.0, by="sector")


# -- documents


@pytest.fixture(scope="module")
def certified() -> derived.Derived:
    rng = np.random.default_rng(5)
    return derived.generator_tail(
        audited(chain([tensor(rng, 6, 4), tensor(rng, 3, 6)], ops.ReLU()), ["product"]), 9.0
    )


def changed(document: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(document))
    place = found
    *path, last = name.split("/")
    for key in path:
        place = place[key]
    place[last] = value
    return found


def test_documents_are_proved_again(certified: derived.Derived, tmp_path: Path) -> None:
    certified.save(tmp_path / "tail.json")
    graph = certified.graphs["constant"]
    found = derived.verify_derived(tmp_path / "tail.json", [graph])
    assert found.value == certified.upper
    assert found.stated == ()
    assert repr(certified.upper) in found.claim
    for forged in (
        changed(
            certified.to_json(),
            "numbers/constant",
            {**certified.to_json()["numbers"]["constant"], "upper_hex": (1e-3).hex()},
        ),
        changed(certified.to_json(), "value_hex", (certified.upper / 2).hex()),
        changed(certified.to_json(), "value", certified.upper / 2),
        changed(
            certified.to_json(), "statement", certified.statement.replace(repr(certified.upper), "0.001")
        ),
        changed(certified.to_json(), "numbers/constant/sha256", "0" * 64),
        changed(certified.to_json(), "numbers/constant/certificate", "../tail-constant.json"),
        changed(certified.to_json(), "numbers/distance", (-1.0).hex()),
        changed(certified.to_json(), "rule", "grid"),
        changed(certified.to_json(), "numbers/more", 1),
    ):
        (tmp_path / "derivation.json").write_text(json.dumps(forged))
        for file in tmp_path.glob("tail-*"):
            (tmp_path / file.name.replace("tail-", "derivation-")).write_bytes(file.read_bytes())
        with pytest.raises((Refuted, UnreadableCertificate)):
            derived.verify_derived(tmp_path / "derivation.json", [graph])
    other = chain([torch.eye(4, dtype=torch.float64)])
    with pytest.raises(UnreadableCertificate):
        derived.verify_derived(tmp_path / "tail.json", [other])
    with pytest.raises(RefutedCertificate, match="not at most"):
        derivations.verify_derivation(tmp_path / "tail.json", [model_of(graph)], at_most=1e-9)
    with pytest.raises(RefutedCertificate, match="not at most"):
        derivations.verify_derivation(tmp_path / "tail.json", [model_of(graph)], at_most=math.nan)


EDGES = [
    True,
    -1,
    1 << 40,
    "1",
    None,
    [],
    {},
    "0x1.0p+0x",
    (-1.0).hex(),
    "nan",
    "inf",
    "-0x0.0p+0",
    float("1e300").hex(),
    [[]],
    0.5,
]


@pytest.mark.parametrize("rule", sorted(RULES))
def test_numbers_of_another_kind_are_unreadable(rule: str) -> None:
    """Every number of every rule replaced by every edge: a typed refusal or a value, never an error of another kind."""
    kinds = {"assumed": (0.5).hex(), "count": 1, "number": (1.0).hex(), "size": (0.5).hex(), "constant": (0.5).hex(),
             "numbers": [(1.0).hex()],
             "sizes": [(0.5).hex()], "constants": [(0.5).hex()], "matrix": [[(0.5).hex()]]}  # fmt: skip
    plain = {name: kinds[kind] for name, kind in RULES[rule].takes.items()}
    for name in plain:
        for edge in EDGES:
            document = {"schema": derivations.SCHEMA, "rule": rule, "numbers": {**plain, name: edge}, "value": 0.0,
                        "value_hex": (0.0).hex(), "statement": "", "tool": {}, "created": "", "environment": {}}  # fmt: skip
            try:
                value = derivations.parse(document)[0].value()
            except UnreadableCertificate:
                continue
            assert isinstance(value, Fraction)


def test_pages_say_what_went_in(certified: derived.Derived, tmp_path: Path) -> None:
    page = certified.to_html(tmp_path / "page.html")
    assert "stated" in page
    assert "|f(x) - f(y)|" in page
    assert f"{certified.upper:.6g}" in page
    assert "Derived(generator: upper" in repr(certified)


@pytest.mark.parametrize("module", ["closed", "games", "loops", "privacy"])
def test_docstrings_show_what_comes_out(module: str) -> None:
    found = doctest.testmod(importlib.import_module(f"lipverify.derived.{module}"))
    assert found.attempted > 0
    assert found.failed == 0


def test_verify_takes_derivations_of_files(tmp_path: Path) -> None:
    proto = model([node("Gemm", ["x", "w"], ["a"]), node("Relu", ["a"], ["h"]), node("Gemm", ["h", "v"], ["y"])],
                  ["N", 3], constants={"w": random(3, 5), "v": random(5, 2)})  # fmt: skip
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    derived.generator_tail(audited(lv.load(tmp_path / "net.onnx"), ["product"]), 30.0).save(
        tmp_path / "tail.json"
    )
    command = ["verify", str(tmp_path / "tail.json"), "--model", str(tmp_path / "net.onnx")]
    said = json.loads(lipverify(*command, "--json").stdout)
    assert said["valid"]
    assert said["rule"] == "generator"
    assert lipverify(*command, "--at-most", "1e-30").returncode == 3
    assert lipverify(*command, "--norm", "l2").returncode == 2


def test_a_grid_takes_the_constant_of_the_network_for_its_margins(tmp_path: Path) -> None:
    """y = (2, -2) |x - 1/2| + (-.2, .2): margins 1.6 at the points of a grid of pitch 1, and -.4 between them."""
    graph = chain([torch.tensor([[1.0]]), torch.tensor([[2.0], [-2.0]])], ops.Abs())
    network = audited(graph, ["product"])
    found = derived.grid_margin(network, 1.0, 1)
    assert found.rule == "grid-network"
    assert found.upper == pytest.approx(2.0, rel=1e-6)  # |margin(x) - margin(y)| <= 4 |x - y|
    assert found.upper >= 1.6
    with pytest.raises(UsageError, match="in l2"):
        derived.grid_margin(network, 1.0, 100, norm="linf")
    margin = audited(lv.margin(graph, 0, 1), ["product"])
    assert margin.best is not None
    assert margin.best.certificate is not None
    for known in (margin, margin.best.certificate):
        with pytest.raises(UsageError, match="is about output 0 minus output 1: audit the whole output"):
            derived.grid_margin(known, 1.0, 1)
    other = replace(found, certificates={"constant": margin.best.certificate})
    with pytest.raises(UnreadableCertificate, match="difference of two outputs"):
        derived.verify_derived(other, [margin.graph])


@pytest.mark.parametrize("steps", [1000, 65536])
def test_sums_that_grow_beyond_float64_are_refused_at_once(steps: int) -> None:
    with pytest.raises(UsageError, match="beyond float64"):
        derived.q_constant(2.0**100, 2.0**100, 1.0, steps=steps)


def test_lists_that_are_certified_in_part_are_stated(tmp_path: Path) -> None:
    """Of two couplings one came with a certificate: the other was not said to be stated."""
    network = audited(chain([torch.tensor([[0.25]])]), ["product"])
    given = {"curvature": [1.0, 1.0], "shifted": [0.0, 0.0], "weights": [1.0, 1.0], "vector": [1.0, 1.0]}
    found = derive("game", **given, couplings=[0.0, network, 0.5, 0.0])
    assert derived.verify_derived(found).stated == ("shifted", "couplings")
    whole = derive("generator", constant=network, distance=1.0)
    assert derived.verify_derived(whole).stated == ()


def test_the_checker_refuses_loops_with_networks_of_other_sizes() -> None:
    """A certificate about three numbers of thirteen proves nothing of a policy of one number of two."""
    loop = derived.closed_loop(0.1, *PLANT)
    given = {name: number for name, number in loop.numbers.items() if name != "constant"}
    exact = {name: _numbers(value) for name, value in given.items()}
    for shape, holds in (((1, 2), True), ((3, 13), False)):
        network = audited(chain([torch.full(shape, 0.01)]), ["product"])
        found = derive("loop", constant=network, **exact)
        if holds:
            assert derived.verify_derived(found).value == found.upper
        else:
            with pytest.raises(UnreadableCertificate, match="other sizes"):
                derived.verify_derived(found)


def test_certificates_exchanged_between_two_constants_prove_nothing() -> None:
    """|U| = 1/4 and |W| = 2 exchanged passed: the last of five states came out at 2.07 of 4.62."""

    def of(rows: int, columns: int, size: float) -> Any:
        return audited(chain([torch.eye(rows, columns, dtype=torch.float64) * size]), ["product"])

    inputs, states = of(2, 3, 0.25), of(2, 2, 2.0)
    assert (
        derived.verify_derived(derive("recurrent-last", steps=5, inputs=inputs, states=states)).stated == ()
    )
    with pytest.raises(UnreadableCertificate, match="does not fit"):
        derived.verify_derived(derive("recurrent-last", steps=5, inputs=states, states=inputs))
    heads, tails = [of(3, 3, 1.0), of(3, 5, 1.0)], [of(2, 3, 1.0), of(2, 4, 1.0)]
    layers = {"offsets": [0.0, 0.0], "factors": [1.0, 1.0], "neighbours": 1, "reach": 1.0}
    for more in ({"heads": heads}, {"heads": heads[:1] * 2, "tails": [tails[0], of(5, 4, 1.0)]},
                 {"heads": heads[:1] * 2, "loss": of(1, 7, 1.0)}):  # fmt: skip
        given = {"loss": 1.0, "tails": tails, **layers, **more}
        with pytest.raises(UnreadableCertificate, match="does not fit"):
            derived.verify_derived(derive("sensitivity", **given))
    own, other = of(2, 3, 0.1), of(3, 3, 0.1)
    game = {"curvature": [1.0, 1.0], "weights": [1.0, 1.0], "vector": [1.0, 1.0]}
    right = {"shifted": [own, other], "couplings": [0.0, own, other, 0.0]}
    assert derived.verify_derived(derive("game", **game, **right)).stated == (
        "couplings",
    )  # 0 on the diagonal
    with pytest.raises(UnreadableCertificate, match="does not fit"):
        derived.verify_derived(derive("game", **game, **{**right, "couplings": [0.0, other, own, 0.0]}))
    for old, new in ((of(1, 3, 1.0), of(1, 2, 1.0)), (of(1, 3, 1.0), of(2, 3, 1.0))):
        found = derive("stability", samples=9, factor=2, epsilon=1.0, deviation=1.0, old=old, new=new)
        with pytest.raises(UnreadableCertificate, match="does not fit"):
            derived.verify_derived(found)


def _numbers(value: Any) -> Any:
    return [_numbers(v) for v in value] if isinstance(value, list) else float.fromhex(value)


def test_derivations_fail_closed(certified: derived.Derived, tmp_path: Path) -> None:
    for name in ("gone.json", "a\0b", "\ud800"):
        forged = changed(certified.to_json(), "numbers/constant/certificate", name)
        (tmp_path / "tail.json").write_text(json.dumps(forged))
        with pytest.raises(UnreadableCertificate):
            derived.verify_derived(tmp_path / "tail.json", [certified.graphs["constant"]])
    certified.save(tmp_path / "tail.json")
    model = model_of(certified.graphs["constant"])
    with pytest.raises(BudgetEnded, match="time"):
        derivations.verify_derivation(tmp_path / "tail.json", [model], seconds=0.0)
    assert derivations.verify_derivation(tmp_path / "tail.json", [model], exact=True).value == certified.upper


def test_which_file_a_constant_is_of_is_said_and_can_be_expected(tmp_path: Path) -> None:
    """Functions of one size can be exchanged, and what is proved stays true: it says which is which, and NAME=FILE asks."""
    audits = {}
    for name in ("u", "w"):
        weights = {"m": random(4, 4, seed=ord(name)) / 8}
        (tmp_path / f"{name}.onnx").write_bytes(
            model([node("MatMul", ["x", "m"], ["y"])], [1, 4], constants=weights).SerializeToString()
        )
        audits[name] = audited(lv.load(tmp_path / f"{name}.onnx"), ["product"])
    found = derived.recurrent(audits["u"], audits["w"], 5, of="last")
    found.save(tmp_path / "rec.json")
    u, w = (str(tmp_path / f"{name}.onnx") for name in ("u", "w"))
    said = lipverify("verify", str(tmp_path / "rec.json"), "--model", u, "--model", w)
    assert said.returncode == 0
    assert "; inputs: 'u.onnx', output 0 ('y') of the file with sha256" in said.stdout
    assert "; states: 'w.onnx', output 0 ('y') of the file with sha256" in said.stdout

    def given(*models: str) -> Any:
        return lipverify(
            "verify", str(tmp_path / "rec.json"), *(part for m in models for part in ("--model", m))
        )

    assert given(f"inputs={u}", f"states={w}").returncode == 0
    assert given(f"inputs={u}", w).returncode == 0
    turned = given(f"inputs={w}", f"states={u}")
    assert turned.returncode == 3
    assert "inputs is the constant of 'u.onnx', not of 'w.onnx'" in turned.stderr
    assert given(f"inputs={u}", f"states={w}", f"gain={w}").returncode == 3
    assert "those are: inputs, states" in " ".join(
        given(f"inputs={u}", f"states={w}", f"gain={w}").stderr.split()
    )
    assert given(f"inputs={tmp_path}/none.onnx", w).returncode == 2
    forgotten = given(u)
    assert forgotten.returncode == 7
    assert "rec-states.json is about 'w.onnx' with sha256" in " ".join(forgotten.stderr.split())
    (tmp_path / "rec-states.json").unlink()
    assert "it rests on 'rec-states.json', which cannot be read" in " ".join(given(u, w).stderr.split())
