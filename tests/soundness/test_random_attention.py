"""Random networks of attention: no bound lies below a witness, nothing breaks, every kind is drawn; mistakes are noticed."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from lipverify import ops
from lipverify.analyzers.local.analyzer import Local
from lipverify.analyzers.tokens import Tokens
from tests.networks import chain
from tests.soundness import attention
from tests.soundness import attention_kinds as kinds
from tests.soundness.attention import Attended, attend
from tests.tiers import tier

BLOCKS, COUNT = 2, tier(8, 2_000)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_bounds_hold(block: int) -> None:
    found = attend(range(block * COUNT // BLOCKS, (block + 1) * COUNT // BLOCKS))
    assert found.wrong == []
    assert found.errors == []
    assert 2 * found.answers.total() >= COUNT // BLOCKS  # others are refused, with their reason
    assert found.compared.total() > 20 * COUNT // BLOCKS


def test_a_run_goes_on_from_what_was_written() -> None:
    first, second = attend([3]), attend([4])
    written = json.loads(json.dumps(first.to_json()))
    assert Attended.from_json(written).to_json() == written
    assert (Attended.from_json(written) + second).kinds == (first + second).kinds


def test_every_choice_is_drawn() -> None:
    """Three hundred networks, unread."""
    seen = {word for seed in range(300) for word in kinds.drawn(np.random.default_rng((seed, 16))).words()}
    assert seen >= {
        f"{field.name}: {value}"
        for field in dataclasses.fields(kinds.Kind)
        for value in {
            "mask": kinds.MASKS,
            "rotation": kinds.ROTATIONS,
            "norm": kinds.NORMS,
            "place": kinds.PLACES,
            "inner": kinds.INNER,
            "layers": kinds.LAYERS,
            "sums": kinds.SUMS,
            "weights": kinds.WEIGHTS,
            "end": kinds.ENDS,
            "start": kinds.STARTS,
            "eps": (1e-5, 1e-2, 1.0),
        }.get(field.name, (True, False))
    }


def test_witnesses_are_right_where_gelu_is_flat() -> None:
    """At -11.6 torch's derivative is 0.7 % too steep, and lay above bounds."""
    graph, z = chain([torch.eye(1, dtype=torch.float64)] * 2, ops.GELU()), -11.6
    right = math.erfc(-z / 2**0.5) / 2 + z * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    met = attention._jacobians(graph, torch.full((1, 1), z, dtype=torch.float64))
    assert float(met) == pytest.approx(right, rel=1e-12)


@pytest.mark.parametrize("where", ["tokens", "local"])
def test_a_bound_that_is_a_little_too_small_is_noticed(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Witnesses reach nine tenths of some bounds of every kind."""
    kind: Any = Tokens if where == "tokens" else Local
    right = kind.bound

    def smaller(self: Any, *given: Any) -> Any:
        found = right(self, *given)
        assert isinstance(found.upper, torch.Tensor)
        return dataclasses.replace(found, upper=0.9 * found.upper)

    monkeypatch.setattr(kind, "bound", smaller)
    for seed in range(40):
        if attend([seed]).wrong:
            return
    pytest.fail("no witness contradicts it")
