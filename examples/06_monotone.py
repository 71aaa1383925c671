"""Does the predicted risk only rise when one measurement grows? Proved for one patient, and for all of them by construction."""

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

import lipverify as lv

data = load_breast_cancer()
chosen = ["mean radius", "mean texture", "mean concavity", "worst area"]
columns = [list(data.feature_names).index(name) for name in chosen]
x = torch.tensor(data.data[:, columns])
x = (x - x.mean(0)) / x.std(0)
malignant = torch.tensor(1.0 - data.target, dtype=torch.float64)[:, None]


class NotNegative(nn.Linear):
    """Uses the absolute values of its weights: a network of these and of ReLUs never falls in any input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.abs(), self.bias)


def train(kind: type[nn.Linear]) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(kind(4, 16), nn.ReLU(), kind(16, 16), nn.ReLU(), kind(16, 1)).double()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(net(x), malignant).backward()
        optimizer.step()
    print(f"\n{kind.__name__}: {float(((net(x) > 0) == (malignant > 0.5)).double().mean()):.1%} right")
    return net.eval()


def show(where: str, graph: lv.Graph, region: object) -> None:
    for found in lv.monotone(graph, region, names=chosen, budget=10).findings:
        low, high = found.slope
        print(f"  {where}, {found.name}: {found.verdict}, slope in [{low:.3f}, {high:.3f}]")
        if found.falls is not None and found.rises is not None:
            print(
                f"    one pair of inputs falls by {-found.falls.change:.3f}, one rises by {found.rises.change:.3f}"
            )


everybody = (x.amin(0), x.amax(0))
for kind in (nn.Linear, NotNegative):
    graph = lv.extract(train(kind), x[:2])
    show("around patient 0", graph, lv.Ball(x[:1], 0.25, box=everybody))
    show("all patients", graph, everybody)
