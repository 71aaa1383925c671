"""`deviate` whose balls and copies are shared out: the whole answer, of parts in any order; `test_cluster.py` has workers."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify import ops, units
from lipverify.errors import LipverifyError
from lipverify.ir.certificate import Rigour
from lipverify.questions import sharing
from lipverify.questions.deviation import Deviation
from lipverify.questions.sharing import ask_all
from lipverify.units import Lost
from tests.networks import chain, tensor


@pytest.fixture
def pair(rng: np.random.Generator) -> tuple[lv.Graph, lv.Graph]:
    weights = [tensor(rng, 6, 4), tensor(rng, 5, 6), tensor(rng, 3, 5)]
    return chain(weights, ops.ReLU()), chain([w.float().half().double() for w in weights], ops.ReLU())


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> dict[int, Any]:
    """Units of three balls run here, as they come out of a pickle, the last first; those in this table come back as it says."""
    instead: dict[int, Any] = {}

    def here(solve: Any, shared: Any, *given: Any, scheduler: str, **more: Any) -> Iterator[tuple[int, Any]]:
        found = dict(units.results(solve, pickle.loads(pickle.dumps(shared)), *given, **more)) | instead
        return iter(sorted(found.items(), reverse=True))

    monkeypatch.setattr(sharing, "results", here)
    monkeypatch.setattr(sharing, "AT_ONCE", 3)
    return instead


def test_chunks_are_the_whole(
    pair: tuple[lv.Graph, lv.Graph], rng: np.random.Generator, lost: dict[int, Any]
) -> None:
    region = lv.Ball(tensor(rng, 4, 4), 0.1)
    whole = lv.deviation(*pair, region)
    found = lv.deviation(*pair, region, scheduler="tcp://here")
    assert found.rigour is Rigour.CHECKED, found.unchecked
    assert torch.as_tensor(found.upper) == pytest.approx(torch.as_tensor(whole.upper), rel=1e-6)
    assert bool((torch.as_tensor(found.lower) >= 0.9 * torch.as_tensor(whole.lower)).all())
    here, there = whole.to_json(), found.to_json()
    assert here.keys() == there.keys()
    for name in ("kept", "apart", "query", "question", "statement", "spectra"):
        assert there[name] == here[name]
    for row, known in zip(there["layers"], here["layers"], strict=True):
        assert row == known | {key: pytest.approx(known[key]) for key in ("own", "carried")}
    assert found.page(there).count("<table") == whole.page(here).count("<table")


def test_copies_over_a_box_are_units_of_their_own(
    pair: tuple[lv.Graph, lv.Graph], lost: dict[int, Any]
) -> None:
    f, g = pair
    asked = [Deviation(f, other, lv.InputBox((4,), 0.0, 1.0)) for other in (g, f)]
    changed, same = ask_all(asked, scheduler="tcp://here")
    assert [answer.question for answer in (changed, same)] == asked
    assert changed.rigour is same.rigour is Rigour.CHECKED
    assert changed.upper >= changed.shown > 0.0
    assert same.upper == 0.0


def test_a_unit_that_ends_its_workers_is_named(
    pair: tuple[lv.Graph, lv.Graph], rng: np.random.Generator, lost: dict[int, Any]
) -> None:
    lost[1] = Lost("its process was ended")
    with pytest.raises(LipverifyError, match="regions 3 to 5 of copy 1: its process was ended"):
        lv.deviation(*pair, lv.Ball(tensor(rng, 7, 4), 0.1), scheduler="tcp://here")


def test_without_time_first_facts_are_an_answer(
    pair: tuple[lv.Graph, lv.Graph], rng: np.random.Generator, lost: dict[int, Any]
) -> None:
    region = lv.Ball(tensor(rng, 7, 4), 0.1)
    question = Deviation(*pair, region)
    question.prepare()
    heads = (question.over(region[:1]),)
    parts = [sharing._unit(heads, 0, region[k : k + 1], torch.device("cpu"), 0, 0.0) for k in range(7)]
    found = sharing._gathered(question, parts).found.facts["difference"]
    centres = question.at(region.center)["difference"]
    assert found.upper.shape == (7, 3)
    assert bool(((found.lower <= centres.lower) & (centres.upper <= found.upper)).all())
