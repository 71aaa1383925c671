"""A network whose logits are convex in the image: weights behind the first layer are not negative, activations rise and bend up.

Amos, Xu, Kolter, ICML 2017 (arXiv 1609.07152). Passes from the input into every layer are free. Trained with weights that are cut
at 0 in every step, deployed with the cut ones: there is nothing to be cut any more.
"""

import torch
from torch import Tensor, nn

HIDDEN = 48


class Convex(nn.Module):
    """x -> z1 -> z2 -> logits, with a pass of x into z2 and into the logits."""

    def __init__(self, cut: bool = False) -> None:
        super().__init__()
        self.cut = cut
        self.first = nn.Linear(64, HIDDEN)
        self.second, self.second_pass = nn.Linear(HIDDEN, HIDDEN), nn.Linear(64, HIDDEN, bias=False)
        self.head, self.head_pass = nn.Linear(HIDDEN, 10), nn.Linear(64, 10, bias=False)

    def of(self, layer: nn.Linear, z: Tensor) -> Tensor:
        """A layer behind convex values."""
        weight = layer.weight.clamp(min=0.0) if self.cut else layer.weight
        return nn.functional.linear(z, weight, layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        z = nn.functional.relu(self.first(x))
        z = nn.functional.relu(self.of(self.second, z) + self.second_pass(x))
        return self.of(self.head, z) + self.head_pass(x)


def build() -> nn.Module:
    return Convex().eval()


def trainable() -> nn.Module:
    network = Convex(cut=True)
    with torch.no_grad():
        for layer in (network.second, network.head):
            layer.weight.abs_().mul_(0.5)  # half of the entries would never move
    return network


def deploy(trained: nn.Module) -> nn.Module:
    network = build()
    network.load_state_dict(trained.state_dict())
    with torch.no_grad():
        for layer in (network.second, network.head):
            layer.weight.clamp_(min=0.0)
    return network
