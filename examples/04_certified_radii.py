"""How far may an input move before the label can change? Radii that are proved, beside adversarial examples found."""

import torch
from torch import nn

import lipverify as lv

torch.manual_seed(0)
module = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
graph = lv.extract(module, torch.zeros(2, 5))

x = torch.rand(4, 5)
labels = module(x).argmax(dim=1)
found = lv.radii(graph, x, labels, norm="linf", method="crown", budget=10)
for row, (radius, attack) in enumerate(zip(found.radius.tolist(), found.attack_radius.tolist(), strict=True)):
    print(
        f"point {row}, label {int(labels[row])}: certified {radius:.4f}, adversarial example at {attack:.4f}"
    )
print(f"certified accuracy at 0.05: {found.certified_accuracy(0.05):.2f}")
