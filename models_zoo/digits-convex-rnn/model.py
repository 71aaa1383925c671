"""An RNN whose logits are convex in the sequence and change by at most as much as the sequence does.

h_t = relu(U x_t + W h_{t-1} + b), logits A h_8 + P x, with W, A >= 0, |W| <= 1, |U| <= 1 / sqrt(8), |A|, |P| <= 1/2:
|h_8 - h_8'| is at most |U| sum |x_t - x_t'| <= |U| sqrt(8) |x - x'|. The order matters: entries are cut at 0 first, norms are
taken of what is left. (The positive part of an orthogonal matrix has a norm far above 1; reports/pitfalls shows code that
cuts last.)
"""

import math

import torch
from torch import Tensor, nn

STEPS, HIDDEN = 8, 48
SHRINK = 1 - 2e-6
"""Rounding weights to float32 moves a norm by at most 2^-24 sqrt(48)."""


def longest(weight: Tensor, steps: int = 12) -> Tensor:
    """About the spectral norm: a power iteration from a vector without zeros, in plain products that any machine repeats."""
    with torch.no_grad():
        v = torch.ones(weight.shape[1], dtype=weight.dtype) + 0.1 * torch.arange(
            weight.shape[1], dtype=weight.dtype
        )
        for _ in range(steps):
            v = weight.T @ (weight @ v)
            v = v / (v * v).sum().sqrt().clamp_min(1e-20)
    return ((weight @ v) ** 2).sum().sqrt()


class Rows(nn.Module):
    """Logits from the state after the last of eight rows; the state before the first is zero."""

    def __init__(self, free: bool = False) -> None:
        super().__init__()
        self.free = free
        self.rows = nn.RNN(8, HIDDEN, nonlinearity="relu", batch_first=True)
        self.head, self.head_pass = nn.Linear(HIDDEN, 10), nn.Linear(STEPS * 8, 10, bias=False)

    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """U, W, A and P within their bounds, of free ones."""
        into, state = self.rows.weight_ih_l0, self.rows.weight_hh_l0.clamp(min=0.0)
        head = self.head.weight.clamp(min=0.0)
        return (
            into / (math.sqrt(STEPS) * longest(into)),
            state / longest(state).clamp_min(1.0),
            head / (2.0 * longest(head)),
            self.head_pass.weight / (2.0 * longest(self.head_pass.weight)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 8 rows, 8 pixels] to [batch, 10]."""
        if not self.free:
            return self.head(self.rows(x)[0][:, -1]) + self.head_pass(x.flatten(1))
        into, state, head, head_pass = self.weights()
        bias = self.rows.bias_ih_l0 + self.rows.bias_hh_l0
        h = x.new_zeros(len(x), HIDDEN)
        for row in x.unbind(1):
            h = nn.functional.relu(nn.functional.linear(row, into, bias) + nn.functional.linear(h, state))
        return nn.functional.linear(h, head, self.head.bias) + nn.functional.linear(x.flatten(1), head_pass)


def build() -> nn.Module:
    return Rows().eval()


def trainable() -> nn.Module:
    network = Rows(free=True)
    with torch.no_grad():
        network.rows.weight_hh_l0.copy_(torch.eye(HIDDEN) + 0.1 * network.rows.weight_hh_l0.abs())
        network.head.weight.abs_()
    return network


def deploy(trained: nn.Module) -> nn.Module:
    network = build()
    network.load_state_dict(trained.state_dict())
    with torch.no_grad():
        bounds = (1 / math.sqrt(STEPS), 1.0, 0.5, 0.5)
        rows = network.rows
        targets = (rows.weight_ih_l0, rows.weight_hh_l0, network.head.weight, network.head_pass.weight)
        for found, most, target in zip(trained.weights(), bounds, targets, strict=True):
            exact = found.double()
            norm = torch.linalg.matrix_norm(exact, ord=2)
            target.copy_(exact * torch.clamp(SHRINK * most / norm, max=1.0))
            excess = torch.linalg.matrix_norm(target.double(), ord=2) / most - 1
            if excess > -1e-7:
                raise ArithmeticError(
                    f"a deployed weight has a norm of 1 + {float(excess):.1e} times its bound"
                )
    return network
