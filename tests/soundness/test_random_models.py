"""Random ONNX models over all operators: every range holds its samples, no slope lies above a constant, nothing breaks."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch

from lipverify import rules
from lipverify.ir.interval import Interval
from lipverify.ir.op import Constant
from lipverify.propagation.functionals import Functionals
from lipverify.testing.checks import replaced_rule
from tests.soundness.held import drawn, hold
from tests.soundness.large import pretended
from tests.soundness.models import KINDS, Reached, pairs
from tests.tiers import tier

BLOCKS, COUNT = 4, tier(12, 20_000)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_ranges_and_constants_hold(block: int) -> None:
    with pretended(block % 2 == 1):
        found = hold(range(block * COUNT // BLOCKS, (block + 1) * COUNT // BLOCKS))
    assert found.wrong == []
    assert found.errors == []
    assert found.answers["bounds linear"] > COUNT // BLOCKS // 2
    assert found.values > 50 * COUNT // BLOCKS


def test_models_reach_what_they_should() -> None:
    """Three hundred of them, unread: every operator, both kinds of operands, every habit."""
    reached = Reached()
    for seed in range(300):
        onnx.checker.check_model(drawn(seed, reached).proto)
    assert {name for pair in reached.pairs for name in pair} == {*KINDS, "input"}
    assert len(set(reached.pairs) & set(pairs())) > 800
    for name in ("Add", "Sub", "Mul", "Max", "Min", "Sum", "Where", "Concat"):
        places = {(place, how) for op, place, how in reached.operands if op == name}
        first = 1 if name == "Where" else 0
        assert places >= {(place, how) for place in (first, first + 1) for how in ("computed", "stored")}, (
            name
        )
    assert set(reached.widths) == {1, 2, 3, 4}
    assert set(reached.ranks) == {2, 3, 4}
    assert set(reached.habits) >= {
        "zero gains",
        "read twice",
        "read by nobody",
        "scalar stored",
        "computed operand broadcast",
        "pads with a value",
        "an output that is the input",
        "an output that is stored",
        "input read at depth 1",
        "input read at depth 3",
    }


def test_every_pair_can_be_built() -> None:
    """Some of all pairs, each asked for: the second operator reads the first one."""
    for index in np.random.default_rng(0).integers(0, len(pairs()), 200).tolist():
        reached = Reached()
        asked = drawn(index, reached).pair
        assert asked in reached.pairs


def test_a_constant_that_linear_bounds_forget_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Functionals.step

    def forgetful(walk: Functionals, node: Any) -> None:
        if isinstance(node.op, Constant):
            walk.coefficients.pop(node.name, None)
            return
        right(walk, node)

    monkeypatch.setattr(Functionals, "step", forgetful)
    found = hold(FAULTY)
    assert any("linear" in words for words in found.wrong)
    assert any("ends in the wrong order" in words for words in found.errors)


def test_a_constant_at_the_wrong_place_is_found() -> None:
    def moved(op: Constant) -> Interval:
        value = op.value.to(torch.float64)[None] + 0.5
        return Interval(value, value)

    with replaced_rule(rules.interval, Constant, moved):
        assert any("interval" in words for words in hold(FAULTY).wrong)


FAULTY = (6, 20)
"""Models in which a stored tensor matters."""
