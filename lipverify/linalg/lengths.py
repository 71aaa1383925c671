"""Norms of vectors as mantissa and exponent, rounded to either side: nothing overflows and nothing underflows."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lipverify.linalg.rounding import gamma

_ORDER = {"l1": 1.0, "l2": 2.0, "linf": math.inf}


def length_above(rows: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """(m, e) with |row| <= m 2^e, for rows [count, n] whose entries are off by at most one rounding each: [count] both.

    norm: of a row, or of tokens, runs of w numbers: `token-l2/w` is the largest l2 norm of one, `token-rms/w` that over root w.
    """
    return _length(rows, norm, 1.0 + 2.0 * gamma(rows.shape[1] + 8))


def length_below(rows: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """(m, e) with |row| >= m 2^e, as `length_above`."""
    return _length(rows, norm, 1.0 - 2.0 * gamma(rows.shape[1] + 8))


def _length(rows: Tensor, norm: str, factor: float) -> tuple[Tensor, Tensor]:
    values = rows.numpy()
    # Entries far below the largest may underflow: by at most 2^-1074 each, beside a norm of at least 1/2.
    exponent = np.frexp(np.abs(values).max(axis=1, initial=0.0))[1]
    scaled = torch.from_numpy(np.ldexp(values, -exponent[:, None]))
    name, _, width = norm.partition("/")
    if width:
        tokens = scaled.reshape(len(scaled), -1, int(width))
        longest = torch.linalg.vector_norm(tokens, dim=2).amax(1)
        mantissa = (longest / math.sqrt(int(width)) if name == "token-rms" else longest) * factor
    else:
        mantissa = torch.linalg.vector_norm(scaled, ord=_ORDER[norm], dim=1) * factor
    return mantissa, torch.from_numpy(exponent.astype(np.int64))


def small(part: Tensor) -> float:
    """Roots of sums of squares below this are not to be believed: what underflowed counts."""
    return float(torch.finfo(part.dtype).tiny ** 0.4)


def euclidean_norm(part: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """|part|_2 along axes, within what `gamma` of the entries and sixteen more operations charges relatively.

    Squares of numbers below 2^-511 underflow, and their root is too small or 0. Where a norm is below 2^-408 the entries are
    divided by their largest one first; elsewhere what underflows is below 2^-1022 beside a square of at least 2^-816. In float32
    2^-50, 2^-126 and 2^-100 take their places.
    """
    root: Tensor = torch.linalg.vector_norm(part, dim=dim)
    lost = root < small(part)
    axes = sorted(axis % part.ndim for axis in ((dim,) if isinstance(dim, int) else dim))
    if not math.prod(part.shape[axis] for axis in axes) or not bool(lost.any()):
        return root
    last = tuple(range(part.ndim - len(axes), part.ndim))
    rows = part.movedim(tuple(axes), last).flatten(last[0])[lost]
    most = rows.abs().amax(-1)
    scaled = torch.linalg.vector_norm(rows / torch.where(most > 0, most, 1.0)[:, None], dim=-1) * most
    found = root.clone()
    # Beside a subnormal number one rounding is no relative error.
    found[lost] = torch.where(most > 0, torch.nextafter(scaled, torch.full_like(scaled, math.inf)), 0.0)
    return found


def ratio_below(top: tuple[Tensor, Tensor], bottom: tuple[Tensor, Tensor]) -> Tensor:
    """top / bottom as float64, rounded down; at most the largest float64, 0 where the divisor is 0 or not finite."""
    quotient = top[0] / bottom[0] * (1.0 - 4.0 * gamma(1))
    quotient = torch.where((bottom[0] > 0) & quotient.isfinite(), quotient, 0.0)
    shift = np.clip((top[1] - bottom[1]).numpy(), -10_000, 10_000)
    with np.errstate(over="ignore", under="ignore"):
        found = np.minimum(np.ldexp(quotient.numpy(), shift), np.finfo(np.float64).max)
    # Scaling is exact above the smallest normal numbers.
    return torch.from_numpy(np.where(found < 2.0**-1000, np.maximum(np.nextafter(found, 0.0), 0.0), found))


def at_most(length: tuple[Tensor, Tensor], limit: float) -> Tensor:
    """Whether m 2^e <= limit, exactly: [count]."""
    mantissa, exponent = (part.numpy() for part in length)
    size, power = math.frexp(limit)
    with np.errstate(over="ignore", under="ignore"):
        # Both sides scaled by the limit's power of two; what underflows is far below it.
        moved = np.ldexp(mantissa, np.clip(exponent - power, -10_000, 10_000))
    return (
        torch.from_numpy((moved <= size) | (mantissa == 0.0))
        if limit > 0
        else torch.from_numpy(mantissa == 0.0)
    )
