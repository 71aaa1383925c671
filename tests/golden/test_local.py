"""Local bounds of seeded digit classifiers and of third-party networks, against numbers found with independent programs.

The networks are trained here by a fixed recipe; where another machine's arithmetic trains others, the test says so and skips.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify.analyzers.local.analyzer import Local
from lipverify.analyzers.local.sdp import LocalSDP
from lipverify.analyzers.protocol import Compute
from lipverify.analyzers.registry import resolve
from lipverify.interpreter import evaluate
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query
from tests.tiers import long

trains = long("trains networks")

# Sum of the absolute parameters, and mean over five points of the largest of ten rows at radii 1/255, 8/255 and 0.1.
DIGITS = {
    "relu-32x2": (563.5709642591537, (75.45, 84.59, 108.77)),
    "relu-64x2": (1052.3756317881198, (85.32, 104.18, 147.93)),
    "relu-64x3": (1300.0051125801238, (122.67, 164.63, 274.72)),
    "tanh-64x3": (1456.3397865958032, (52.7, 165.0, 740.0)),
    "cnn": (517.2280480396184, (107.0, 124.1, 183.0)),
}


def trained(name: str):  # type: ignore[no-untyped-def]
    """The recipe of the benchmark."""
    pytest.importorskip("sklearn")
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "digit_networks.py"
    spec = importlib.util.spec_from_file_location("digit_networks", path)
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe.trained(name)


@trains
@pytest.mark.parametrize("name", list(DIGITS))
def test_digit_classifiers(name: str) -> None:
    net, points = trained(name)
    checksum, expected = DIGITS[name]
    found = sum(float(p.detach().abs().sum()) for p in net.parameters())
    if abs(found - checksum) > 1e-3:
        pytest.skip(f"this machine trains another network: checksum {found}, not {checksum}")
    graph = lv.extract(net, torch.zeros(2, 64, dtype=torch.float64))
    for radius, bound in zip((1 / 255, 8 / 255, 0.1), expected, strict=True):
        query = Query(Norm.LINF, Norm.LINF, Ball(points, radius))
        upper = Local(with_product=False).bound(graph, query, Compute()).upper
        assert upper is not None
        if name.startswith("relu"):
            assert float(upper.mean()) == pytest.approx(bound, abs=0.006)
        else:
            assert float(upper.mean()) <= bound


# Mean over five points of the largest of ten rows at radius 0.1: the semidefinite bound is far below the linear one.
SEMIDEFINITE = {"relu-64x2": (109.0, 117.0), "relu-64x3": (155.0, 173.0), "cnn": (127.0, 151.0)}


@trains
@pytest.mark.parametrize("name", list(SEMIDEFINITE))
def test_semidefinite_bounds_of_digit_classifiers(name: str) -> None:
    net, points = trained(name)
    if abs(sum(float(p.detach().abs().sum()) for p in net.parameters()) - DIGITS[name][0]) > 1e-3:
        pytest.skip("this machine trains another network")
    graph = lv.extract(net, torch.zeros(2, 64, dtype=torch.float64))
    query = Query(Norm.LINF, Norm.LINF, Ball(points, 0.1))
    upper = LocalSDP().bound(graph, query, Compute()).upper
    assert upper is not None
    sampled, expected = SEMIDEFINITE[name]
    assert sampled < float(upper.mean()) <= expected


REAL = {
    "oval-cifar-base/cifar_base_kw.onnx": (
        ((0.485, 0.456, 0.406), (0.225, 0.225, 0.225)), (50, 123, 299), (0.47, 1.18, 1.88)
    ),
    "converted/cifar-resnet2b.onnx": (
        ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)), (622, 812, 732), (1.40, 3.1, 2.4)
    ),
}  # fmt: skip


@long("most of a minute")
@pytest.mark.parametrize("name", list(REAL))
def test_convolutional_networks_in_small_l2_balls(name: str, third_party) -> None:  # type: ignore[no-untyped-def]
    """The first three images classified correctly, radius 0.1 in model units: neurons left open, and LipSDP on their slopes."""
    ((mean, std), unstable, expected) = REAL[name]
    data = np.load(third_party / "inputs" / "cifar10.npz")
    graph = lv.load(third_party / name)
    shift, scale = (torch.tensor(t, dtype=torch.float64)[:, None, None] for t in (mean, std))
    x = (torch.tensor(data["images"]).double() / 255 - shift) / scale
    right = evaluate(graph.to(dtype=torch.float64), x).argmax(1) == torch.tensor(data["labels"])
    for index, image in enumerate(x[right][:3]):
        ball = Ball(image[None], 0.1, Norm.L2)
        ranges = lv.bounds(graph, ball)
        boxes = [ranges[node.inputs[0]] for node in graph.nodes if node.op.kind() == "ReLU"]
        count = sum(int(((box.lower < 0) & (box.upper > 0)).sum()) for box in boxes)
        assert abs(count - unstable[index]) <= 2
        upper = resolve("lipsdp").bound(graph, Query(region=ball), Compute()).upper
        assert upper is not None
        assert float(upper) <= expected[index]
