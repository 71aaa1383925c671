"""SDP-based Lipschitz layers on 8x8 digits: l2 constant 1 by construction, which no product of norms can see.

Araujo, Havens, Delattre, Allauzen, Hu, ICLR 2023, A unified algebraic perspective on Lipschitz neural networks:
x - 2 W T^-1 relu(W'x + b) with T = diag(sum_j |W'W|_ij q_j / q_i) is 1-Lipschitz, because T - W'W >= 0.
The last layer is scaled by its rows in the same way: |D^-1/2 W| <= 1 for D = diag(sum_j |WW'|_ij).
"""

import torch
from torch import Tensor, nn

# What is left for the rounding of weights to float32 and for the finite accuracy of a certificate.
SHRINK = 1 - 1e-4


class SLL(nn.Module):
    """x - outer relu(inner x), the deployed form: both matrices stored."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x - self.outer(torch.relu(self.inner(x)))


class TrainableSLL(nn.Module):
    """The same layer by its free parameters: W, q = exp(balance), b."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) / width**0.5)
        self.balance = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def scales(self) -> Tensor:
        gram = (self.weight.T @ self.weight).abs()
        return (gram * torch.exp(self.balance[None, :] - self.balance[:, None])).sum(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(x @ self.weight + self.bias)
        return x - 2 * (z / self.scales()) @ self.weight.T


class Rows(nn.Module):
    """Linear without bias whose rows are scaled until its norm is at most 1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5)

    @property
    def weight(self) -> Tensor:
        return self.raw / (self.raw @ self.raw.T).abs().sum(dim=1, keepdim=True).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


def build() -> nn.Module:
    return nn.Sequential(SLL(64), SLL(64), SLL(64), nn.Linear(64, 10, bias=False)).eval()


def trainable() -> nn.Module:
    return nn.Sequential(TrainableSLL(64), TrainableSLL(64), TrainableSLL(64), Rows(64, 10))


def deploy(trained: nn.Module) -> nn.Module:
    network = build()
    trained = trained.double()
    for source, target in zip(trained[:-1], network[:-1], strict=True):
        target.inner.weight.data.copy_(source.weight.T.detach())
        target.inner.bias.data.copy_(source.bias.detach())
        target.outer.weight.data.copy_(2 * (source.weight / source.scales()).detach())
    network[-1].weight.data.copy_(SHRINK * trained[-1].weight.detach())
    return network
