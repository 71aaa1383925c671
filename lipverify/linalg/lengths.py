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
