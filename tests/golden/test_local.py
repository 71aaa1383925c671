"""Local bounds of seeded digit classifiers and of third-party networks, against numbers found with independent programs.

The networks are trained here by a fixed recipe; where another machine's arithmetic trains others, the test says so and skips.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch import nn

import lipverify as lv
from lipverify.analyzers.local.analyzer import Local
from lipverify.analyzers.protocol import Compute
from lipverify.analyzers.registry import resolve
from lipverify.interpreter import evaluate
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query

FULL = os.environ.get("LIPVERIFY_SOUNDNESS") == "full"
slow = pytest.mark.skipif(not FULL, reason="trains networks; set LIPVERIFY_SOUNDNESS=full")

# Sum of the absolute parameters, and mean over five points of the largest of ten rows at radii 1/255, 8/255 and 0.1.
DIGITS = {
    "relu-32x2": (563.5709642591537, (75.45, 84.59, 108.77)),
    "relu-64x2": (1052.3756317881198, (85.32, 104.18, 147.93)),
    "relu-64x3": (1300.0051125801238, (122.67, 164.63, 274.72)),
    "tanh-64x3": (1456.3397865958032, (52.7, 165.0, 740.0)),
    "cnn": (517.2280480396184, (107.0, 124.1, 183.0)),
}


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    selection = pytest.importorskip("sklearn.model_selection")
    data = sklearn_datasets.load_digits()
    x, y = torch.tensor(data.data / 16.0, dtype=torch.float32), torch.tensor(data.target)
    train_x, test_x, train_y, _ = (
        torch.as_tensor(t)
        for t in selection.train_test_split(x, y, test_size=0.25, random_state=0, stratify=y)
    )
    return train_x, train_y, test_x


def untrained(name: str) -> nn.Sequential:
    if name == "cnn":
        return nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10),
        )  # fmt: skip
    kind, size = name.split("-")
    width, depth = (int(number) for number in size.split("x"))
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [nn.Linear(width if index else 64, width), nn.ReLU() if kind == "relu" else nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def trained(name: str) -> tuple[nn.Sequential, torch.Tensor]:
    """Adam, 40 epochs in batches of 64, seed 0; and test images 1 to 5, which every network of the family gets right."""
    x, y, test = digits()
    torch.manual_seed(0)
    net = untrained(name)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        order = torch.randperm(len(x), generator=generator)
        for batch in order.split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
    return net.double().eval(), test[1:6].double()


@slow
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


REAL = {
    "oval-cifar-base/cifar_base_kw.onnx": (
        ((0.485, 0.456, 0.406), (0.225, 0.225, 0.225)), (50, 123, 299), (0.47, 1.18, 1.88)
    ),
    "converted/cifar-resnet2b.onnx": (
        ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)), (622, 812, 732), (1.40, 3.1, 2.4)
    ),
}  # fmt: skip


@pytest.mark.skipif(not FULL, reason="most of a minute; set LIPVERIFY_SOUNDNESS=full")
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
