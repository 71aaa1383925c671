"""Labels of outputs that hold several, as a class for each position of a sequence: the largest entry of all is none of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify import ops
from lipverify.questions.deviation import Deviation
from lipverify.robustness.plan import Plan
from tests.networks import chain


def network(shape: tuple[int, ...], shift: float = 0.0) -> lv.Graph:
    rng = np.random.default_rng(0)
    layers = [torch.tensor(rng.standard_normal(size)) for size in ((8, 4), (6, 8))]
    layers[1] = layers[1] + shift
    graph = chain(layers, ops.ReLU())
    return graph.append(ops.Reshape(shape), shape, "positions")


X = torch.tensor(np.random.default_rng(1).standard_normal((2, 4)))
PLAN = Plan(lv.Norm.LINF, "crown", attack=None)


def test_radii_are_about_one_label() -> None:
    with pytest.raises(lv.UnsupportedModel, match=r"holds several labels.*one position"):
        lv.radii(network((2, 3)), X, plan=PLAN)
    assert lv.radii(network((6, 1)), X, plan=PLAN).to_json()["points"][0]["radius"] > 0


def test_the_checker_takes_no_radius_of_several_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipverify.robustness.pairs.one_row", lambda graph: True)
    found = lv.radii(network((2, 3)), X, plan=PLAN)
    assert found.issued is None
    assert "which holds several" in str(found.to_json())


@pytest.mark.parametrize("forced", [False, True])
def test_deviations_tell_no_labels_of_several(forced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    f, g = network((2, 3)), network((2, 3), 1e-3)
    region = lv.Ball(X, 0.01, lv.Norm.LINF)
    with pytest.raises(lv.UsageError, match="along one axis"):
        Deviation(f, g, region, "pairs", X)
    if forced:
        monkeypatch.setattr("lipverify.questions.deviation.one_row", lambda graph: True)
    document = lv.deviation(f, g, region, x=X).to_json()
    assert ("kept" in document) == forced
    assert ("which holds several" in str(document)) == forced
