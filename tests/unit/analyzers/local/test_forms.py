"""Bounds by affine forms that the checker's own ranges of derivatives prove."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify.analyzers.local import forms
from tests.onnx_models import model, node


@pytest.fixture
def normalised(tmp_path: Path) -> lv.Graph:
    """4 - 6 - normalisation - GELU - 3."""
    r = np.random.default_rng(0)
    stored = {
        "w": r.standard_normal((4, 6)),
        "v": r.standard_normal((6, 3)),
        "g": 1.0 + r.random(6),
        "b": r.standard_normal(6),
    }
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("LayerNormalization", ["a", "g", "b"], ["n"]),
        node("Sigmoid", ["n"], ["s"]),
        node("Mul", ["n", "s"], ["h"]),
        node("MatMul", ["h", "v"], ["y"]),
    ]
    held = {name: array.astype(np.float32) for name, array in stored.items()}
    path = tmp_path / "normalised.onnx"
    path.write_bytes(model(nodes, [1, 4], 17, held).SerializeToString())
    return lv.load(path)


def audited(graph: lv.Graph, radius: float) -> lv.Certificate:
    x = torch.tensor([[0.3, -1.0, 0.5, 0.2], [1.0, 0.4, -0.6, 0.8]], dtype=torch.float64)
    (row,) = lv.audit(graph, region=lv.Ball(x, radius, "l2"), analyzers=["local"]).rows
    assert row.certificate is not None
    return row.certificate


def test_small_balls_around_a_normalisation_are_checked(normalised: lv.Graph) -> None:
    found = audited(normalised, 0.01)
    assert found.rigour.name == "CHECKED"
    assert lv.verify(found, normalised).upper == pytest.approx(found.upper.tolist(), rel=1e-12)


def test_what_is_not_proved_says_what_would_be(normalised: lv.Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    found = audited(normalised, 0.6)
    assert found.rigour.name == "REAL"
    assert "the checker alone proves" in found.unchecked
    monkeypatch.setattr(forms, "LONGEST", 0.0)
    assert "own ranges of derivatives" in audited(normalised, 0.01).unchecked
