"""Complex numbers that depend on the input, as pairs of real ones: rotary embeddings multiply queries and keys by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lipverify.frontends.builder import Builder, Operand, Value

REASON = "computes with complex numbers"
REMEDY = "multiply complex numbers and take them apart, and do all else with their real and imaginary parts"


@dataclass(frozen=True)
class Pairs:
    """value: real parts and imaginary ones along a last axis of 2."""

    value: Value


def product(b: Builder, x: Any, other: Any) -> Pairs:
    """Of two numbers of which one is `Pairs`: (u + iv)(c + id) = (uc - vd) + i(vc + ud)."""
    if not isinstance(x, Pairs):
        x, other = other, x
    v = x.value
    swapped = b.gather(v, v.rank - 1, torch.tensor([1, 0]))
    sign = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    own: Operand
    turned: Operand
    if isinstance(other, Pairs):
        w = other.value
        own = b.gather(w, w.rank - 1, torch.tensor([0, 0]))
        turned = b.times(b.gather(w, w.rank - 1, torch.tensor([1, 1])), sign)
    elif isinstance(other, Tensor) and other.is_complex():
        own = torch.stack([other.real, other.real], -1)
        turned = torch.stack([-other.imag, other.imag], -1)
    elif isinstance(other, Value):
        return Pairs(b.times(v, b.unsqueeze(other, [other.rank])))
    else:
        return Pairs(b.times(v, other.unsqueeze(-1)))
    return Pairs(b.plus(b.times(v, own), b.times(swapped, turned)))
