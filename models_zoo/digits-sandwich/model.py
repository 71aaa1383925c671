"""Sandwich layers on 8x8 digits: l2 constant 1 by construction, which no product of norms can see.

Wang, Manchester, ICML 2023, Direct parameterization of Lipschitz-bounded deep networks:
sqrt2 A' Psi relu(sqrt2 Psi^-1 B x + b) is 1-Lipschitz for A A' + B B' = I and any positive diagonal Psi; the last layer is
B x + b. A and B come from free matrices by the Cayley transform.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

# What is left for the rounding of weights to float32 and for the finite accuracy of a certificate.
SHRINK = 1 - 1e-4
WIDTHS = (64, 48, 48, 10)


class Sandwich(nn.Module):
    """One layer by its free parameters: square X and Y for Cayley, log Psi, b."""

    def __init__(self, inputs: int, outputs: int, last: bool) -> None:
        super().__init__()
        self.last = last
        self.square = nn.Parameter(torch.randn(outputs, outputs) / outputs**0.5)
        self.tall = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.log_psi = nn.Parameter(torch.zeros(outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def factors(self) -> tuple[Tensor, Tensor]:
        """A [outputs, outputs] and B [outputs, inputs] with A A' + B B' = I."""
        eye = torch.eye(len(self.square), dtype=self.square.dtype)
        z = self.square - self.square.T + self.tall.T @ self.tall
        both = torch.linalg.solve(eye + z, torch.cat((eye - z, -2 * self.tall), dim=0), left=False)
        return both[: len(eye)].T, both[len(eye) :].T

    def matrices(self) -> tuple[Tensor, Tensor | None]:
        """What stands before and after the activation."""
        a, b = self.factors()
        if self.last:
            return b, None
        psi = torch.exp(self.log_psi)
        return 2**0.5 * b / psi[:, None], 2**0.5 * a.T * psi

    def forward(self, x: Tensor) -> Tensor:
        before, after = self.matrices()
        z = nn.functional.linear(x, before, self.bias)
        return z if after is None else torch.relu(z) @ after.T


def build() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(WIDTHS[:-1]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Linear(outputs, outputs, bias=False)]
    return nn.Sequential(*layers, nn.Linear(*WIDTHS[-2:])).eval()


def trainable() -> nn.Module:
    last = len(WIDTHS) - 2
    return nn.Sequential(*(Sandwich(WIDTHS[i], WIDTHS[i + 1], i == last) for i in range(last + 1)))


def deploy(trained: nn.Module) -> nn.Module:
    network = build()
    linear = iter(layer for layer in network if isinstance(layer, nn.Linear))
    for source in trained.double():
        before, after = source.matrices()
        target = next(linear)
        target.weight.data.copy_((SHRINK if after is None else 1) * before.detach())
        target.bias.data.copy_(source.bias.detach())
        if after is not None:
            next(linear).weight.data.copy_(after.detach())
    return network
