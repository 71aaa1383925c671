"""Seeded classifiers of the 8x8 digits of scikit-learn, and the five test images that bounds around points are compared on.

Names: relu-64x2 or tanh-64x3 (width x hidden layers), and cnn. Adam, 40 epochs in batches of 64, seed 0.
"""

from __future__ import annotations

import torch
from torch import nn


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training images [n, 64] of ink / 16 and their labels, test images and theirs; a quarter is for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    x, y = torch.tensor(data.data / 16.0, dtype=torch.float32), torch.tensor(data.target)
    parts = train_test_split(x, y, test_size=0.25, random_state=0, stratify=y)
    train_x, test_x, train_y, test_y = (torch.as_tensor(part) for part in parts)
    return train_x, train_y, test_x, test_y


def untrained(name: str) -> nn.Sequential:
    """The layers of a network by name."""
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
    """The network in float64, and test images 1 to 5, which every network of the family gets right."""
    x, y, test, _ = digits()
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
