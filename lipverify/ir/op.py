"""Operators are data: frozen dataclasses that hold parameters and nothing else.

Every mathematical fact about an operator is a function registered on a rule (`lipverify.rules`), in the operator's own
file under `lipverify.ops`. An operator holds no bounds, no device, no position in a graph.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Op:
    """Base of all operators. Shapes and axes are those of one sample: the batch axis is never counted."""

    @classmethod
    def kind(cls) -> str:
        """The name people see, and the name that enters the digest."""
        return cls.__name__

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Self:
        """A copy with floating-point parameters in another type or place. Integer parameters keep their type."""
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = value.to(
                    device=device, dtype=dtype if value.is_floating_point() else None
                )
        return replace(self, **changed) if changed else self

    def parameters(self) -> int:
        """How many numbers the operator stores in tensors."""
        return sum(v.numel() for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor))

    def update_digest(self, digest: hashlib._Hash) -> None:
        """Feeds name, settings and parameters, byte by byte, into a running hash."""
        digest.update(self.kind().encode())
        for field in fields(self):
            value = getattr(self, field.name)
            digest.update(f"|{field.name}=".encode())
            if isinstance(value, Tensor):
                # A fresh copy: an expanded tensor of one entry counts as contiguous but has no byte view.
                value = value.detach().cpu().clone(memory_format=torch.contiguous_format)
                digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
                digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
            else:
                digest.update(repr(value).encode())


@dataclass(frozen=True, eq=False)
class Input(Op):
    """The sample the user gives, in raw model units."""


@dataclass(frozen=True, eq=False)
class Constant(Op):
    """A tensor that does not depend on the input. value: the sample's shape."""

    value: Tensor
