"""Bound a torch module of your own: how much can its output change?"""

import torch
from torch import nn

import lipverify as lv

torch.manual_seed(0)
module = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)).eval()

# The example only shows the shape: a batch of at least two samples.
graph = lv.extract(module, torch.zeros(2, 4))
result = lv.audit(graph, norm="l2", analyzers=["product", "lipsdp"], budget=5)

for row in result.rows:
    print(f"{row.analyzer}: L <= {row.upper:.4f}")
print(f"and a pair of inputs shows L >= {result.lower.value:.4f}")
