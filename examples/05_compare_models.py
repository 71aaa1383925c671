"""Several networks side by side, in one report that opens offline: which is the tamest, and where does each method lose?"""

import tempfile
from pathlib import Path

import torch
from torch import nn

import lipverify as lv


def network(activation: nn.Module) -> lv.Graph:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 24), activation, nn.Linear(24, 24), activation, nn.Linear(24, 2))
    return lv.extract(module.eval(), torch.zeros(2, 6))


graphs = {"ReLU": network(nn.ReLU()), "tanh": network(nn.Tanh()), "GELU": network(nn.GELU())}
methods = ["product", "lipsdp-fast", "lipsdp"]
found = lv.compare(graphs, analyzers=methods, budget=60)
for name in graphs:
    bounds = {method: found.upper(name, method) for method in methods}
    print(f"{name}: " + ", ".join(f"{method} {bound:.3f}" for method, bound in bounds.items()))

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "report.html"
    found.to_html(path)
    print(f"report of {path.stat().st_size // 1000} kB, one file")
