"""No witness lies above any bound, on random networks, half of them treated as large; exact constants of small ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify import ops
from lipverify.analyzers.protocol import Compute
from lipverify.analyzers.registry import resolve
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Query
from tests import networks
from tests.soundness.large import pretended
from tests.soundness.search import search
from tests.tiers import FULL, tier

BLOCKS, COUNT = 4, tier(12, 2000)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_no_witness_lies_above_a_bound(block: int) -> None:
    with pretended(block % 2 == 1):
        found = search(range(block * 1_000_000, block * 1_000_000 + COUNT // BLOCKS), budget=tier(3, 20))
    assert found.wrong == []
    assert found.answers["product"] > COUNT // BLOCKS // 4
    assert found.refused_claims > COUNT // BLOCKS // 8


def test_networks_that_were_wrong_once() -> None:
    """Certificates for l_inf whose inputs or neurons had no influence, or compared equal numbers, did not check."""
    found = search([10_000_180, 20_000_398, 18, 1_000_008, 5104, 2380, 2620, 2740])
    assert found.wrong == []
    assert found.checked["lipsdp"] + found.checked["lipsdp-fast"] >= 3


def exact_constant(first: np.ndarray, second: np.ndarray, norm: str) -> float:
    """Of x -> second relu(first x) on the plane: every sector between the neurons' lines has one gradient."""
    lines = [np.arctan2(w[1], w[0]) + s * np.pi / 2 for w in first if w.any() for s in (-1, 1)]
    edges = np.sort(np.mod(lines, 2 * np.pi)) if lines else np.zeros(1)
    middles = (edges + np.append(edges[1:], edges[0] + 2 * np.pi)) / 2
    best = 0.0
    for angle in middles:
        active = first @ np.array([np.cos(angle), np.sin(angle)]) > 0
        gradient = second @ (first * active[:, None])
        order = {"l2": 2, "linf": 1, "l1": np.inf}[norm]
        best = max(best, float(np.linalg.norm(gradient[0], order)))
    return best


def small(first: np.ndarray, second: np.ndarray) -> Graph:
    weights = [torch.tensor(w, dtype=torch.float32) for w in (first, second)]
    return networks.chain(weights, ops.ReLU())


def test_bounds_of_all_small_relu_networks_hold_their_exact_constants() -> None:
    """2-2-1 with weights in {-1, 0, 1}: all 729, up to the order and sign of what does not matter; or half."""
    tight: dict[str, int] = {}
    place = 0
    rows = [np.array(r, dtype=float) for r in itertools.product((-1, 0, 1), repeat=2)]
    pairs = list(itertools.combinations_with_replacement(range(9), 2))
    for (i, j), signs in itertools.product(pairs, ((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (1.0, 0.0))):
        first, second = np.stack([rows[i], rows[j]]), np.array([signs])
        graph = small(first, second)
        place += 1
        if not FULL and place % 4 < 2:
            continue
        for norm in ("l2", "linf") if FULL else (("l2", "linf")[place % 2],):
            exact = exact_constant(first, second, norm)
            ball = lv.Ball(torch.zeros(1, 2, dtype=torch.float64), 1.0, "linf")
            for name, region in (("product", None), ("lipsdp-fast", None), ("local", ball))[
                : 3 if norm == "linf" else 2
            ]:
                query = Query(Norm.parse(norm), Norm.parse(norm), *([region] if region is not None else []))
                method = resolve(name)
                if method.reject(graph, query) is not None:
                    continue
                upper = method.bound(graph, query, Compute()).upper
                assert upper is not None
                value = float(upper.reshape(-1)[0])
                assert value >= exact * (1 - 1e-12), (name, norm, first, second, value, exact)
                tight[name] = tight.get(name, 0) + int(value <= exact * (1 + 1e-4) + 1e-12)
    assert min(tight.values()) > (
        50 if FULL else 20
    )  # the exact constants are reached often, so they are not idle


def test_relations_between_networks(rng: np.random.Generator) -> None:
    """What must not change a constant, or must change it in a known way, does so to every proved bound."""
    for seed in range(tier(3, 60)):
        r = np.random.default_rng(seed)
        first, second, third = (networks.tensor(r, m, n) for m, n in ((6, 4), (5, 6), (3, 5)))
        chain = lambda *w: networks.chain(list(w), ops.ReLU())  # noqa: E731
        order = torch.tensor(r.permutation(6))
        q, _ = np.linalg.qr(r.standard_normal((4, 4)))
        dead = torch.cat([first, torch.zeros(1, 4)]), torch.cat([second, networks.tensor(r, 5, 1)], 1)
        twice = torch.cat([first, first[:1]]), torch.cat([second, second[:, :1] / 2], 1)
        twice[1][:, 0] /= 2
        for name in ("product", "lipsdp"):

            def upper(graph: Graph, name: str = name) -> float:
                result = lv.audit(graph, analyzers=[name], search=lv_search())
                assert str(result.rows[0].certificate.rigour) == "checked"
                return float(result.best.upper)

            base = upper(chain(first, second, third))
            near = pytest.approx(base, rel=3e-4)
            assert upper(chain(first, second, 2.5 * third)) == pytest.approx(2.5 * base, rel=3e-4)
            assert upper(chain(first[order], second[:, order], third)) == near
            assert (
                upper(chain(torch.tensor(first.double().numpy() @ q), second.double(), third.double()))
                == near
            )
            assert upper(chain(dead[0], dead[1], third)) <= base * (1 + 3e-4) or name == "product"
            if name == "lipsdp":
                assert upper(chain(twice[0], twice[1], third)) == near
                assert base <= float(lv.audit(chain(first, second, third), search=lv_search()).best.upper)
            composed = upper(chain(first, second)) * upper(chain(third))
            assert base <= composed * (1 + 1e-6)


def lv_search() -> object:
    from lipverify.falsify import Search

    return Search(restarts=2, rounds=2, seconds=0.05)
