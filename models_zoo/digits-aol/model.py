"""Almost-orthogonal layers with MaxMin on 8x8 digits: l2 constant at most 1 by construction.

Prach, Lampert, ECCV 2022, Almost-orthogonal layers for efficient general-purpose Lipschitz networks, theorem 1:
|P diag(sum_j |P'P|_ij)^-1/2| <= 1 for every matrix P. A wide matrix is scaled by its rows instead, which is the transposed
statement. The norms stay below 1 wherever the matrices are not orthogonal: the true constant is smaller than the claim.
"""

import torch
from torch import Tensor, nn

# Rounding to float32 moves the singular values of these matrices by far less; `deploy` measures.
SHRINK = 1 - 2e-7


class MaxMin(nn.Module):
    """Sorts neighbouring pairs; all maxima first, then all minima."""

    def forward(self, x: Tensor) -> Tensor:
        pairs = x.view(x.shape[0], -1, 2)
        return torch.cat((pairs.max(dim=2).values, pairs.min(dim=2).values), dim=1)


class AOL(nn.Linear):
    """Linear with the scaled weight; `effective` is what gets deployed."""

    def effective(self) -> Tensor:
        rows, columns = self.weight.shape
        if rows < columns:
            return self.weight / (self.weight @ self.weight.T).abs().sum(dim=1, keepdim=True).sqrt()
        return self.weight / (self.weight.T @ self.weight).abs().sum(dim=0, keepdim=True).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.effective(), self.bias)


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), MaxMin(), nn.Linear(64, 64), MaxMin(), nn.Linear(64, 10)).eval()


def trainable() -> nn.Module:
    network = nn.Sequential(AOL(64, 64), MaxMin(), AOL(64, 64), MaxMin(), AOL(64, 10))
    for layer in network:
        if isinstance(layer, AOL):
            nn.init.orthogonal_(layer.weight) if len(layer.weight) < 64 else nn.init.eye_(layer.weight)
    return network


def deploy(trained: nn.Module) -> nn.Module:
    network = build()
    for source, target in zip(trained.double(), network, strict=True):
        if isinstance(source, AOL):
            target.weight.data.copy_(SHRINK * source.effective().detach())
            target.bias.data.copy_(source.bias.detach())
            if torch.linalg.matrix_norm(target.weight.detach().double(), ord=2) > 1 - 1e-8:
                raise ArithmeticError("a deployed weight has norm above 1")
    return network
