"""An LDLT network on 8x8 digits: l2 constant 1 by construction, which no product of norms can see.

The semidefinite condition of LipSDP with all multipliers 1 is block tridiagonal; its block LDL' factorisation is positive for
every choice of the free W_i and a_i > 0 below, and each C_i is read off from it (LDLT parametrisation of Lipschitz networks,
2025). With R'R = W'W + a I and O O' = W W' + a I:

    C_1 = sqrt2 W_1 R_1^-1,    C_i = c_i sqrt2 sqrt(a_{i-1}) W_i R_i^-1 O_{i-1}^-1,    c_i = sqrt2, and 1 in the last layer.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

# What is left for the rounding of weights to float32 and for the finite accuracy of a certificate.
SHRINK = 1 - 1e-4
WIDTHS = (64, 48, 48, 10)


class LDLT(nn.Module):
    """The trainable network: W_i, log a_i and biases."""

    def __init__(self) -> None:
        super().__init__()
        pairs = list(pairwise(WIDTHS))
        self.weights = nn.ParameterList(torch.randn(m, n) / n**0.5 for n, m in pairs)
        self.log_a = nn.Parameter(torch.full((len(pairs),), -1.0))
        self.biases = nn.ParameterList(torch.zeros(m) for _, m in pairs)

    def matrices(self) -> list[Tensor]:
        """The effective weights C_i."""
        found: list[Tensor] = []
        before: Tensor | None = None
        for i, (weight, log_a) in enumerate(zip(self.weights, self.log_a, strict=True)):
            a = torch.exp(log_a)
            m, n = weight.shape
            eye = torch.eye(max(m, n), dtype=weight.dtype)
            upper = torch.linalg.cholesky(weight.T @ weight + a * eye[:n, :n]).T
            scaled = torch.linalg.solve_triangular(upper, weight, upper=True, left=False)
            if before is not None:
                scaled = torch.linalg.solve_triangular(before, scaled, upper=False, left=False)
                scaled = scaled * 2**0.5 * torch.exp(self.log_a[i - 1] / 2)
            found.append(scaled * (1 if i == len(self.weights) - 1 else 2**0.5))
            before = torch.linalg.cholesky(weight @ weight.T + a * eye[:m, :m])
        return found

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = zip(self.matrices(), self.biases, strict=True)
        for weight, bias in hidden:
            x = torch.relu(nn.functional.linear(x, weight, bias))
        return nn.functional.linear(x, *last)


def build() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(WIDTHS[:-1]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(*WIDTHS[-2:])).eval()


def trainable() -> nn.Module:
    return LDLT()


def deploy(trained: LDLT) -> nn.Module:
    network = build()
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    trained = trained.double()
    for target, weight, bias in zip(linear, trained.matrices(), trained.biases, strict=True):
        target.weight.data.copy_((SHRINK if target is linear[-1] else 1) * weight.detach())
        target.bias.data.copy_(bias.detach())
    return network
