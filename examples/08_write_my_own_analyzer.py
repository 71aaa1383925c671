"""An analyzer of your own is a class with a name, a reason to refuse, and a bound. See examples/plugin for a package."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

import lipverify as lv
from lipverify.analyzers.product import Product
from lipverify.analyzers.protocol import Compute
from lipverify.ops import Linear


@dataclass(frozen=True)
class WithMargin:
    """The product bound with a margin, for networks that end with a linear layer.

    Statement: |f(x) - f(y)| <= upper |x - y| for all x, y.
    Source: elementary; the margin is at least 1.
    Sound when: the product bound is.
    """

    margin: float = 1.0
    name: ClassVar[str] = "with-margin"

    def __post_init__(self) -> None:
        if not self.margin >= 1:
            raise lv.UsageError(f"a margin below 1 would shrink a bound: {self.margin}")

    def reject(self, graph: lv.Graph, query: lv.Query) -> str | None:
        if not isinstance(graph.output.op, Linear):
            return f"the last layer is {graph.output.describe()}, not Linear"
        return Product().reject(graph, query)

    def bound(self, graph: lv.Graph, query: lv.Query, compute: Compute) -> lv.Certificate:
        found = Product().bound(graph, query, compute)
        return replace(found, upper=found.upper * self.margin, made_by=repr(self))


module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
for network in (module, nn.Sequential(*module[:2])):
    graph = lv.extract(network, torch.zeros(2, 4))
    result = lv.audit(graph, analyzers=["product", WithMargin(1.25)], budget=2)
    for row in result.rows:
        print(f"{row.analyzer}: {row.refused or f'{row.upper:.4f}'}")
