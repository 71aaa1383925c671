"""Sums of products of stored numbers: where underflow takes part in them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipverify.frontends.building.nodes import Nodes


def may_vanish(a: Tensor, b: Tensor) -> bool:
    """Whether a product of a number of a that is not 0 and one of b can lie below the normal numbers of their type."""
    sizes = [x.detach().abs().double() for x in (a, b)]
    if not all(bool((x > 0).any()) for x in sizes):
        return False
    exponents = [math.frexp(float(x[x > 0].min()))[1] - 1 for x in sizes]
    return sum(exponents) < math.frexp(torch.finfo(torch.promote_types(a.dtype, b.dtype)).tiny)[1]


def contracted(b: Nodes, left: Tensor, right: Tensor) -> Tensor:
    """A product of two stored matrices.

    An entry that is a normal number is off by less than its roundings where terms of its sum underflow; a smaller one with
    a term that is not 0 may be nothing else than what underflow left of it.

    Raises:
        UnsupportedModel: such an entry.
    """
    found = left @ right
    if may_vanish(left, right):
        terms = (left != 0).double() @ (right != 0).double()
        b.held(found, terms)
    return found
