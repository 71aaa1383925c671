"""Maps from logits to the simplex, with the Lipschitz constants of their entries."""

from __future__ import annotations

import torch
from torch import Tensor

from lipverify.linalg.rounding import up


def simplex_map(name: str, logits: Tensor, temperature: float) -> Tensor:
    """Rows [batch, classes] of non-negative numbers with sum 1; rows with NaN become 0. temperature multiplies the logits."""
    scaled = logits.double() * temperature
    bad = ~scaled.isfinite().all(dim=1, keepdim=True)
    scaled = scaled.masked_fill(bad, 0.0)
    if name == "hardmax":
        found = torch.zeros_like(scaled).scatter(1, scaled.argmax(dim=1, keepdim=True), 1.0)
    elif name == "softmax":
        found = scaled.softmax(dim=1)
    else:
        found = sparsemax(scaled)
    return found.masked_fill(bad, 0.0)


def sparsemax(z: Tensor) -> Tensor:
    """The Euclidean projection of every row onto the simplex (Martins, Astudillo, ICML 2016, arXiv 1602.02068)."""
    ordered = z.sort(dim=1, descending=True).values
    sums = ordered.cumsum(dim=1)
    places = torch.arange(1, z.shape[1] + 1, dtype=z.dtype, device=z.device)
    support = (1.0 + places * ordered > sums).sum(dim=1, keepdim=True)
    threshold = (sums.gather(1, support - 1) - 1.0) / support
    return (z - threshold).clamp_min(0.0)


def entry_constant(name: str, temperature: float, differences: Tensor) -> float | None:
    """A Lipschitz constant of x -> map(f(x))_a, from the constants [rivals] of the differences f_a - f_j; None for hardmax.

    Statement: softmax: t p_a sum_j p_j grad(f_a - f_j), at most t p_a (1 - p_a) max K <= t/4 max K. sparsemax with support S:
        t/|S| sum_{j in S} grad(f_a - f_j), at most t (1 - 1/classes) max K; outside the support it is 0.
    """
    if name == "hardmax":
        return None
    largest = float(differences.max())
    share = 0.25 if name == "softmax" else 1.0 - 1.0 / (len(differences) + 1)
    return up(up(up(temperature * share)) * largest)
