"""A deep-equilibrium network on 8x8 digits: one implicit ReLU layer.

Trained with W = (1 - MARGIN) I - A'A + B - B', which is well-posed whatever A and B are (Winston, Kolter, NeurIPS 2020,
arXiv 2006.08591), and deployed with the plain W rounded to float32.
"""

import torch
from torch import Tensor, nn

from lipverify.nn import Implicit, implicit

MARGIN = 0.5
SIZE = 40


class Monotone(nn.Module):
    """The implicit layer in its trainable form."""

    def __init__(self) -> None:
        super().__init__()
        self.dissipative = nn.Parameter(torch.randn(SIZE, SIZE) / (2 * SIZE**0.5))
        self.rotating = nn.Parameter(torch.randn(SIZE, SIZE) / (2 * SIZE**0.5))
        self.inputs = nn.Parameter(torch.randn(SIZE, 64) / 8)
        self.bias = nn.Parameter(torch.zeros(SIZE))

    def recurrent(self) -> Tensor:
        a, b = self.dissipative, self.rotating
        return (1 - MARGIN) * torch.eye(SIZE) - a.T @ a + b - b.T

    def forward(self, x: Tensor) -> Tensor:
        return implicit(x, self.recurrent(), self.inputs, self.bias, "relu")


def build() -> nn.Module:
    return nn.Sequential(Implicit(64, SIZE), nn.Linear(SIZE, 10)).eval()


def trainable() -> nn.Module:
    return nn.Sequential(Monotone(), nn.Linear(SIZE, 10))


def deploy(trained: nn.Module) -> nn.Module:
    network = build()
    source, target = trained[0], network[0]
    target.recurrent.data.copy_(source.recurrent().detach())
    target.inputs.data.copy_(source.inputs.detach())
    target.bias.data.copy_(source.bias.detach())
    network[1].load_state_dict(trained[1].state_dict())
    return network
