"""What people hold, given to the verbs as it is: every way gives the number of the plain one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lipverify as lv
from lipverify import zoo
from lipverify.falsify import Search

QUICK: dict[str, Any] = {"analyzers": "product", "search": Search(seconds=0.05)}


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def graph(module: nn.Module, x: torch.Tensor) -> lv.Graph:
    return lv.extract(module, x)


def test_networks(module: nn.Module, graph: lv.Graph, x: torch.Tensor) -> None:
    plain = lv.audit(graph, **QUICK).upper
    for example in (x, x.double(), x.numpy(), x.tolist(), x[:1], np.zeros((2, 4), dtype=np.uint8)):
        assert lv.audit(module, example=example, **QUICK).upper == plain
    assert lv.audit(Path("zoo:wine-selu"), **QUICK).upper == lv.audit(lv.load("zoo:wine-selu"), **QUICK).upper


def test_a_module_is_exported_with_the_points_it_is_asked_about(
    module: nn.Module, graph: lv.Graph, x: torch.Tensor
) -> None:
    ball = lv.Ball(x, 0.1)
    assert torch.equal(
        lv.audit(module, region=ball, **QUICK).upper, lv.audit(graph, region=ball, **QUICK).upper
    )
    assert torch.equal(lv.bounds(module, ball).output.upper, lv.bounds(graph, ball).output.upper)
    found = lv.radii(module, x.numpy(), method="crown", proofs=False).radius
    assert torch.equal(found, lv.radii(graph, x, method="crown", proofs=False).radius)


@pytest.mark.parametrize(
    "norms", [("l2", "L2", 2, 2.0, "2", lv.Norm.L2), ("linf", "inf", math.inf, "Linf", np.inf)]
)
def test_norms(norms: tuple[Any, ...], graph: lv.Graph) -> None:
    first, *others = (lv.audit(graph, norm=norm, **QUICK).upper for norm in norms)
    assert all(upper == first for upper in others)
    assert {lv.Norm.parse(norm) for norm in norms} == {lv.Norm.parse(norms[0])}


def test_points_and_labels(graph: lv.Graph, x: torch.Tensor, tmp_path: Path) -> None:
    y = lv.evaluate(graph, x).argmax(1)
    np.savez(tmp_path / "test.npz", x=x.double().numpy(), y=y.numpy())

    def radii(*given: Any) -> list[float]:
        found: list[float] = lv.radii(graph, *given, method="crown", proofs=False).radius.tolist()
        return found

    plain = radii(x, y)
    assert max(plain) > 0
    for points, labels in ((x.numpy(), y.numpy()), (x.tolist(), y.tolist()), (list(x), y.double())):
        assert radii(points, labels) == plain
    assert radii(tmp_path / "test.npz") == plain
    assert radii(x[0], y[0]) == plain[:1]


def test_analyzers_and_times(graph: lv.Graph) -> None:
    search = Search(seconds=0.05)
    for analyzers in ("product,lipsdp-fast", ["product", "lipsdp-fast"], ("product", " lipsdp-fast ,")):
        found = lv.audit(graph, analyzers=analyzers, search=search, budget="30s")
        assert [row.analyzer for row in found.rows] == ["product", "lipsdp-fast"]


def test_comparisons_of_a_list(module: nn.Module, graph: lv.Graph, x: torch.Tensor) -> None:
    found = lv.compare([graph, "zoo:wine-selu", module], example=x, analyzers="product", budget=12)
    assert list(found.models) == ["model 1", "zoo:wine-selu", "model 3"]
    assert found.upper("model 1", "product") == found.upper("model 3", "product")


def test_boxes_of_any_kind_and_only_of_the_right_shape(graph: lv.Graph, x: torch.Tensor) -> None:
    low, high = np.full(4, -5.0), [5.0, 5.0, 5.0, 5.0]
    ball = lv.Ball(x.tolist(), 0.1, 2, box=(low, high))
    assert torch.equal(
        lv.bounds(graph, ball).output.upper, lv.bounds(graph, lv.Ball(x, 0.1, "l2", (-5, 5))).output.upper
    )
    for box in ((np.zeros(3), 1), (torch.zeros(3, 3, 4), 9), (math.nan, 9)):
        with pytest.raises(lv.UsageError):
            lv.Ball(x, 0.1, box=box)


def test_what_is_given_is_not_shared(x: torch.Tensor) -> None:
    mine = x.double()
    ball = lv.Ball(mine, 0.1)
    mine += 1
    assert torch.equal(ball.center, x.double())


def test_norms_of_queries_are_norms() -> None:
    assert lv.Query("l2", "linf") == lv.Query(lv.Norm.L2, lv.Norm.LINF)


def test_evaluation_takes_the_type_of_its_points(graph: lv.Graph, x: torch.Tensor) -> None:
    assert lv.evaluate(graph, x.double()).dtype is torch.float64
    assert torch.equal(lv.evaluate(graph, x.tolist()), lv.evaluate(graph, x))


def test_the_remedies_of_sentences_are_there_in_python(graph: lv.Graph, x: torch.Tensor) -> None:
    refused = lv.audit(graph, analyzers="local", search=Search(seconds=0.05)).rows[0].refused
    assert refused is not None
    assert "region=lv.Ball(x, radius)" in refused
    assert (
        lv.audit(graph, region=lv.Ball(x, 0.1), analyzers="local", search=Search(seconds=0.05)).best
        is not None
    )
    with pytest.raises(lv.UsageError, match="norm='l2'"):
        lv.radii(graph, x, norm="linf", method="smoothing")
    folder = zoo.root() / "digits-relu-mlp"
    with pytest.raises(lv.UsageError, match=r"arch=\.\.\., trust_code=True"):
        lv.load(folder / "weights.safetensors")
    arch = f"{folder / 'model.py'}:build"
    with pytest.raises(lv.UsageError, match="input_shape="):
        lv.load(folder / "weights.safetensors", arch=arch, trust_code=True)
    assert lv.load(
        folder / "weights.safetensors", arch=arch, trust_code=True, input_shape=(64,)
    ).input_shape == (64,)
