"""What people hold as numbers, to tensors of ours: torch, numpy, lists, and whatever numpy makes an array of."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipverify.errors import UsageError
from lipverify.loading.names import display


def shown(given: object) -> str:
    """The kind of a value for messages, and the value where it is short."""
    said = repr(given) if isinstance(given, str | int | float | bool | None) else ""
    kind = given.__name__ + " (a class)" if isinstance(given, type) else type(given).__name__
    return (
        f"{display(said, 40)} ({kind})"
        if 0 < len(said) <= 40 and given is not None
        else display(said or kind, 60)
    )


def numbers(given: Any, what: str) -> Tensor:
    """A tensor of our own on the CPU, float64: no gradient, no memory shared with the caller.

    Args:
        given: a tensor, an array, numbers in lists, or anything numpy makes an array of numbers of.
        what: its name in messages.

    Raises:
        UsageError: something else, complex numbers, lists of different lengths.
    """
    if isinstance(given, Tensor):
        return in_place(given, what).cpu()
    if given is None or isinstance(given, str | bytes | dict | set | type):
        raise UsageError(f"{what} must be numbers (a tensor, an array or lists), not {shown(given)}")
    try:
        if isinstance(given, list | tuple) and any(isinstance(one, Tensor) for one in given):
            return torch.stack([numbers(one, what) for one in given])
        array = np.asarray(given)
    except (ValueError, TypeError, RuntimeError):
        raise UsageError(f"{what} must be numbers in rows of equal length, not {shown(given)}") from None
    if array.dtype.kind not in "fiub":
        kind = "Python objects" if array.dtype.kind == "O" else str(array.dtype)
        raise UsageError(
            f"{what} must be real numbers (a tensor, an array or lists), not {kind}: {shown(given)}"
        )
    return torch.from_numpy(np.array(array, dtype=np.float64))


def in_place(given: Any, what: str) -> Tensor:
    """As `numbers`; a tensor stays on its device."""
    if isinstance(given, Tensor):
        return real(given, what).detach().to(torch.float64, copy=True)
    return numbers(given, what)


def real(given: Tensor, what: str) -> Tensor:
    """A dense tensor of real numbers. Raises UsageError for sparse, quantised, complex and empty-handed (meta) ones."""
    odd = [
        word
        for word, is_one in (
            ("complex", given.is_complex()),
            ("sparse", given.layout is not torch.strided),
            ("quantised", given.is_quantized),
            ("meta (it has no values)", given.is_meta),
        )
        if is_one
    ]
    if odd:
        raise UsageError(f"{what} must be a tensor of real numbers, not {' and '.join(odd)}")
    return given


def whole(given: Any, what: str) -> int:
    """An integer, as Python, numpy or torch write it. Raises UsageError."""
    if isinstance(given, Tensor | np.ndarray) and given.ndim == 0:
        given = given.item()
    if isinstance(given, bool) or not isinstance(given, Integral):
        raise UsageError(f"{what} must be a whole number, not {shown(given)}")
    return int(given)


def number(given: Any, what: str) -> float:
    """One finite real number. Raises UsageError."""
    if isinstance(given, Tensor | np.ndarray) and given.ndim == 0:
        given = given.item()
    if isinstance(given, bool) or not isinstance(given, Real) or not math.isfinite(given):
        raise UsageError(f"{what} must be a finite number, not {shown(given)}")
    return float(given)


def pair(given: Any, what: str, end: Callable[[Any, str], Any] = numbers) -> tuple[Any, Any]:
    """Two ends (low, high), each taken by `end`. Raises UsageError."""
    several = list(given) if isinstance(given, list | tuple) else []
    if isinstance(given, Tensor | np.ndarray) and given.ndim:
        several = list(given)
    if len(several) != 2:
        raise UsageError(f"{what} must be two ends (low, high), not {shown(given)}")
    return end(several[0], f"the lower end of {what}"), end(several[1], f"the upper end of {what}")
