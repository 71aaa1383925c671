"""A network with Householder activations and orthogonal matrices: l2 constant 1 by construction.

Singla, Singla, Feizi, ICLR 2022, Improved deterministic l2 robustness on CIFAR-10 and CIFAR-100: for each pair
of features z either stays or is reflected, by the sign of w'z with |w| = 1. Both pieces are isometries and meet where w'z = 0.
The matrices are trained and deployed as those of digits-maxmin-orthogonal.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

# Rounding to float32 moves the singular values of these matrices by far less; `deploy` measures.
SHRINK = 1 - 2e-7


class Householder(nn.Module):
    """Reflects the pair (x_i, x_{i+n}) at a line of angle t_i / 2 where it lies below that line."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.angle = nn.Parameter(torch.full((width // 2,), torch.pi / 2))

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        sine, cosine = torch.sin(self.angle), torch.cos(self.angle)
        above = first * torch.sin(self.angle / 2) - second * torch.cos(self.angle / 2) > 0
        return torch.cat(
            (
                torch.where(above, first, first * cosine + second * sine),
                torch.where(above, second, first * sine - second * cosine),
            ),
            dim=1,
        )


def build() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 64), Householder(64), nn.Linear(64, 64), Householder(64), nn.Linear(64, 10)
    ).eval()


def trainable() -> nn.Module:
    network = build()
    for layer in network:
        if isinstance(layer, nn.Linear):
            orthogonal(layer, orthogonal_map="householder", use_trivialization=False)
    return network


def deploy(trained: nn.Module) -> nn.Module:
    network = build()
    for source, target in zip(trained, network, strict=True):
        if isinstance(source, Householder):
            target.load_state_dict(source.state_dict())
            continue
        left, _, right = torch.linalg.svd(source.weight.detach().double(), full_matrices=False)
        weight = (SHRINK * (left @ right)).float()
        if torch.linalg.matrix_norm(weight.double(), ord=2) > 1 - 1e-8:
            raise ArithmeticError("a deployed weight has norm above 1")
        target.weight.data.copy_(weight)
        target.bias.data.copy_(source.bias.detach())
    return network
