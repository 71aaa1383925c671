"""Channels were cut away: paired by those that are left, the copy is bounded more tightly than side by side."""

import torch
from torch import nn

import lipverify as lv

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
# The eight hidden neurons that matter most, in any order.
kept = (net[0].weight.norm(dim=1) * net[2].weight.norm(dim=0)).topk(8).indices
small = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
with torch.no_grad():
    small[0].weight.copy_(net[0].weight[kept])
    small[0].bias.copy_(net[0].bias[kept])
    small[2].weight.copy_(net[2].weight[:, kept])
    small[2].bias.copy_(net[2].bias)

f, g = (lv.extract(module, torch.zeros(2, 6)) for module in (net, small))
box = lv.InputBox((6,), 0.0, 1.0)
apart = lv.deviation(f, g, box)
paired = lv.deviation(f, g, box, survivors={"0": kept.tolist()})
print(
    f"side by side they differ by at most {apart.upper:.4f}, paired by at most {paired.upper:.4f} ({paired.rigour})"
)
print(f"at one input they differ by {paired.lower:.4f}")
assert paired.lower <= paired.upper <= apart.upper
