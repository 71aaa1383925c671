"""What a network of tokens does to single ones, as tests look for it: never part of a bound."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def token_steepest(network: nn.Module, tokens: int, width: int, sizes: Sequence[float]) -> float:
    """The largest change of an output token found where no input token moves by more than 1 per unit; inputs of these sizes."""
    network, generator = network.double(), torch.Generator().manual_seed(1)
    found = 0.0
    for size in sizes:
        x = size * torch.randn(1, tokens, width, generator=generator, dtype=torch.float64)
        j = torch.autograd.functional.jacobian(network, x).reshape(tokens, -1, tokens, width)
        for i in range(tokens):
            d = torch.randn(tokens, width, generator=generator, dtype=torch.float64)
            for _ in range(20):  # each input token along what moves the output token most
                d = d / d.norm(dim=1, keepdim=True).clamp_min(1e-12)
                y = torch.einsum("oja,ja->o", j[i], d)
                found = max(found, float(y.norm()))
                d = torch.einsum("oja,o->ja", j[i], y)
    return found
