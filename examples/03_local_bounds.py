"""Bounds around single inputs: there a network is far tamer than over the whole space."""

import torch
from torch import nn

import lipverify as lv

torch.manual_seed(0)
module = nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 2)).eval()
graph = lv.extract(module, torch.zeros(2, 8))

everywhere = lv.audit(graph, norm="linf", analyzers=["product"], budget=3)
print(f"everywhere: L <= {everywhere.best.upper:.3f}")

points = torch.rand(3, 8)
for radius in (0.5, 0.1, 0.02):
    # The ball is cut by the box of possible inputs: pixels stay in [0, 1].
    ball = lv.Ball(points, radius=radius, norm="linf", box=(0, 1))
    local = lv.audit(graph, norm="linf", region=ball, analyzers=["local"], budget=3)
    pairs = zip(local.lower.value.tolist(), local.best.upper.tolist(), strict=True)
    print(f"radius {radius}: " + ", ".join(f"{low:.3f} <= L <= {high:.3f}" for low, high in pairs))
