"""LipSDP bounds with known answers: the optimum of the program by cone solvers, published networks, and exact constants.

he:h:n networks: h hidden layers of n neurons, 20 inputs, one output, weights N(0, 2 / fan-in), generator default_rng(1000 h + n).
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lipverify import ops
from lipverify.analyzers.lipsdp.analyzer import LipSDP, LipSDPFast
from lipverify.analyzers.lipsdp.solver import Settings
from lipverify.analyzers.product import Product
from lipverify.analyzers.protocol import Compute
from lipverify.frontends.builder import Builder
from lipverify.ir.graph import Graph, Origin
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op
from lipverify.ir.region import Query
from tests.networks import chain, tensor
from tests.tiers import also

CHECKPOINTS = Path(__file__).parents[3] / "shared" / "checkpoints"
LINF = Query(Norm.LINF, Norm.LINF)


def he(depth: int, width: int, inputs: int = 20, outputs: int = 1, seed: int | None = None) -> Graph:
    generator = np.random.default_rng(1000 * depth + width if seed is None else seed)
    widths = [inputs, *[width] * depth, outputs]
    weights = [
        torch.from_numpy(generator.standard_normal((o, i)) * math.sqrt(2 / i))
        for i, o in itertools.pairwise(widths)
    ]
    return chain(weights, ops.ReLU())


def bound(
    graph: Graph, query: Query | None = None, method: LipSDP | LipSDPFast | Product | None = None
) -> float:
    found = (method or LipSDP()).bound(graph, query or Query(), Compute())
    assert found.upper is not None
    return float(found.upper)


@pytest.mark.parametrize(
    ("depth", "width", "optimum", "closed"),
    [
        (2, 20, 4.033451, 6.6216),
        (4, 20, 12.519937, 23.254),
        (8, 20, 79.666115, 284.87),
        (2, 50, 5.033327, 7.8107),
        (4, 50, 16.536324, 34.535),
        (8, 50, 228.3628, 879.09),
    ],
)
def test_optimum_of_the_program_on_random_networks(
    depth: int, width: int, optimum: float, closed: float
) -> None:
    # The optimum is known to the digits given: never below it, and within the 0.1 % that the analyzer promises.
    assert optimum * (1 - 1e-7) <= bound(he(depth, width)) <= optimum * (1 + 1e-3)
    # Several closed forms are tried: at least as good as ECLipsE-Fast.
    assert optimum <= bound(he(depth, width), method=LipSDPFast()) <= closed * (1 + 1e-4)


@pytest.mark.parametrize(("depth", "program"), [(1, 8.985), (2, 16.621), (3, 25.285)])
def test_linf_inputs_to_one_output(depth: int, program: float) -> None:
    graph = he(depth, 20)
    found = bound(graph, LINF)
    assert found == pytest.approx(program, rel=2e-4)
    # Many times below the product, and below the detour through l2.
    assert found < 0.75 * bound(graph, LINF, Product())
    assert found <= math.sqrt(20) * bound(graph)


def test_scs_promises_too_little_with_status_optimal_and_is_not_believed() -> None:
    """A solver's objective is no bound: here it is 1 % below the optimum. Its multipliers are evaluated again."""
    pytest.importorskip("cvxpy")
    from lipverify.analyzers.lipsdp.canonical import looped_form
    from lipverify.analyzers.lipsdp.reference import solve_reference
    from lipverify.analyzers.lipsdp.repair import evaluated_again

    system = looped_form(he(4, 10, inputs=5))
    optimum = solve_reference(system, "CLARABEL").objective
    said = solve_reference(system, "SCS", eps=1e-3)
    assert said.status == "optimal"
    assert said.objective < 0.99 * optimum
    proved = evaluated_again(system, said, Compute())
    assert proved.upper is not None
    assert proved.upper >= optimum * (1 - 1e-6)
    assert repr(said.objective) in proved.message


def test_coupled_multipliers_would_be_too_low_and_do_not_exist() -> None:
    """The counterexample to LipSDP-Network: the truth is 0.8925, coupled multipliers return 0.238 of it."""
    first = torch.tensor([[-0.659, -0.2286], [-0.6558, -0.2414]], dtype=torch.float64)
    last = torch.tensor([[0.976, -1.2771]], dtype=torch.float64)
    patterns = torch.tensor(list(itertools.product((0.0, 1.0), repeat=2)), dtype=torch.float64)
    truth = max(float(((last * p) @ first).norm()) for p in patterns)
    assert truth == pytest.approx(0.8925, abs=5e-5)
    assert truth <= bound(chain([first, last], ops.ReLU())) <= truth * (1 + 1e-5)
    assert not any("coup" in name or "network" in name for name in vars(Settings()))
    assert set(vars(LipSDP())) == {"settings", "pieces"}


# -- activations


@pytest.mark.parametrize(
    ("op", "constant"),
    [
        (ops.GELU(), 1.128905),
        (ops.GELU(tanh=True), 1.129),
        (ops.SiLU(), 1.09984),
        (ops.LeakyReLU(3.0), 3.0),
        (ops.LeakyReLU(-2.0), 2.0),
        (ops.Sigmoid(), 0.25),
        (ops.Tanh(), 1.0),
    ],
    ids=lambda value: value.kind() if isinstance(value, Op) else None,
)
def test_one_layer_has_the_largest_slope(op: Op, constant: float) -> None:
    """Never the slope 1 that ReLU has: the constant of x -> phi(x) is the largest |slope| (golden values 4 to 16)."""
    exact = {"GELU": 1.1289041451851548, "SiLU": 1.0998393201288669}.get(op.kind(), constant)
    if op.kind() == "GELU" and getattr(op, "tanh", False):
        exact = 1.1289930686587718
    one = torch.ones(1, 1, dtype=torch.float64)
    found = bound(chain([one, one], op))
    # The tolerance of the search is 2e-5 of the square.
    assert exact <= found <= constant * (1 + 2e-5)


# -- sorting, reflecting


def orthogonal(rng: np.random.Generator, n: int) -> Tensor:
    return torch.linalg.qr(torch.from_numpy(rng.standard_normal((n, n)))).Q


def sorting(weights: list[Tensor], layer: Op) -> Graph:
    b = Builder(symbolic_batch=True)
    v = b.input((1, weights[0].shape[1]), 0)
    for index, weight in enumerate(weights):
        b.where = f"layer{index}"
        v = b.linear(v, weight)
        if index < len(weights) - 1:
            v = b.add(layer, (v,), v.batch)
    return b.graph([v], Origin())


@pytest.mark.parametrize(
    ("group", "depth"),
    [(2, 1), (2, 6), also((2, 18), "seven seconds"), (3, 1), (3, 3), (4, 1), (4, 2), (5, 1), (5, 2)],
)
def test_orthogonal_sorting_networks_have_constant_one(
    group: int, depth: int, rng: np.random.Generator
) -> None:
    n = 2 * group
    graph = sorting([orthogonal(rng, n) for _ in range(depth + 1)], ops.GroupSort(group, 0))
    assert 1.0 - 1e-12 <= bound(graph) <= 1.00005


@pytest.mark.parametrize("depth", [1, 4, 10])
def test_orthogonal_reflecting_networks_have_constant_one(depth: int, rng: np.random.Generator) -> None:
    layer = ops.Householder(torch.from_numpy(rng.standard_normal((4, 2))), 0)
    graph = sorting([orthogonal(rng, 8) for _ in range(depth + 1)], layer)
    assert 1.0 - 1e-12 <= bound(graph) <= 1.00005


@pytest.mark.parametrize(("depth", "width"), [(1, 8), (2, 8), (2, 16)])
def test_maxmin_is_never_looser_than_the_published_constraints(depth: int, width: int) -> None:
    pytest.importorskip("cvxpy")
    from lipverify.analyzers.lipsdp.analyzer import LipSDPReference

    generator = np.random.default_rng(depth * 100 + width)
    widths = [8, *[width] * depth, 4]
    weights = [
        torch.from_numpy(generator.standard_normal((o, i)) * math.sqrt(2 / i))
        for i, o in itertools.pairwise(widths)
    ]
    graph = sorting(weights, ops.GroupSort(2, 0))
    ours = bound(graph)
    for constraints, slack in (("group", 1e-3), ("group-diagonal", 0.0)):
        published = LipSDPReference(constraints=constraints).bound(graph, Query(), Compute())  # type: ignore[arg-type]
        assert published.upper is not None
        assert ours <= float(published.upper) * (1 + slack)
    # S = P = 0 loses strictly.
    assert ours < 0.97 * float(published.upper)
    assert ours < 0.9 * bound(graph, method=Product())


@pytest.mark.parametrize(("group", "depth", "width", "published"), [(3, 1, 12, 4.696), (4, 1, 12, 4.648)])
def test_comparators_of_larger_groups_are_below_the_product(
    group: int, depth: int, width: int, published: float, rng: np.random.Generator
) -> None:
    weights = [tensor(rng, width, 8).double(), tensor(rng, 4, width).double()]
    graph = sorting(weights, ops.GroupSort(group, 0))
    assert bound(graph) < 0.95 * bound(graph, method=Product())


# -- published networks


def test_the_example_of_lipsdp_on_mnist() -> None:
    """784-50-10 of the LipSDP authors: 24.3663 by the program, 26.809 in closed form, 31.5 by the product."""
    scipy_io = pytest.importorskip("scipy.io")

    file = CHECKPOINTS / "lipsdp-mnist-mat"
    if not file.exists():
        pytest.skip("needs shared/checkpoints/lipsdp-mnist-mat beside the project")
    stored = scipy_io.loadmat(next(file.glob("*.mat")))
    weights = [torch.from_numpy(np.asarray(w, dtype=np.float64)) for w in stored["weights"].ravel()]
    graph = chain(weights, ops.ReLU())
    assert 24.3663 * (1 - 3e-6) <= bound(graph) <= 24.3663 * (1 + 1e-4)
    assert bound(graph, method=LipSDPFast()) <= 26.81
    assert bound(graph, method=Product()) == pytest.approx(31.5, rel=2e-3)
    label = chain([weights[0], weights[1][8:9]], ops.ReLU())
    assert 11.9167 * (1 - 5e-6) <= bound(label) <= 11.9167 * (1 + 1e-4)


def test_the_two_layer_network_of_eclipse() -> None:
    """lyr2n80: 0.737257 by the program, 0.80903 by ECLipsE-Fast."""
    file = (
        next(iter((CHECKPOINTS / "eclipse-npz").glob("*lyr2n80*.npz")), None)
        if CHECKPOINTS.exists()
        else None
    )
    if file is None:
        pytest.skip("needs shared/checkpoints/eclipse-npz beside the project")
    with np.load(file) as stored:
        weights = [
            torch.from_numpy(stored[name].astype(np.float64))
            for name in sorted(stored)
            if "w" in name.lower()
        ]
    graph = chain(weights, ops.ReLU())
    assert 0.737257 * (1 - 1e-6) <= bound(graph) <= 0.737257 * (1 + 1e-4)
    assert bound(graph, method=LipSDPFast()) <= 0.8091
