"""What translators of torch operators work with: the builder, and the results that are no tensors of a graph."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lipverify.frontends.builder import Builder, Masked, Operand, Value
from lipverify.frontends.building.choices import Choice
from lipverify.ir.op import Shape

INFINITE = "computes with -infinity, which only a softmax takes, as a mask"
NOISE = (
    "call module.eval() first, which ends dropout; noise that forward draws itself, as gumbel_softmax does, stays: leave it out, "
    "or store one draw of it as a buffer"
)
"""What to do about random numbers that are drawn in evaluation mode too."""


class BatchSize(int):
    """A whole number that depends on the batch size, taken for a batch of one."""


@dataclass(frozen=True)
class Forbidden:
    """A result that must not be used, and why: indices of a maximum, comparisons."""

    reason: str


class Lowerer(Builder):
    """The builder as translators of this front end see it."""

    def __init__(self, dtype: torch.dtype, device: torch.device, batch: torch.SymInt | None) -> None:
        super().__init__(symbolic_batch=True)
        self.dtype = dtype
        """The type the module computes in."""
        self.stored_dtype = dtype
        self.device = device
        """Where the module's tensors lie."""
        self.batch_symbol: Any = None if batch is None else batch.node.expr
        """The batch size as the exported program writes it; None: nothing was exported."""
        self.expected: Any = None
        """What the exported program knows of the result of the node in work: a tensor without data, or several."""

    def counts_samples(self, size: Any) -> bool:
        """Whether a size in the exported program depends on the batch size."""
        return isinstance(size, torch.SymInt) and self.batch_symbol in size.node.expr.free_symbols

    def sizes(self) -> list[int]:
        """The expected shape; -1 where it is not a plain number."""
        return [-1 if isinstance(size, torch.SymInt) else int(size) for size in self.expected.shape]

    def relabel(self, v: Value, shape: Shape, batch: int) -> Value:
        """The same entries in the same order under another sample shape, with the batch axis at `batch`."""
        return self.view(v, shape, batch)

    def number(self, value: Any) -> Tensor:
        """A Python number of the program, kept exactly: float64 whatever the module computes in."""
        if isinstance(value, BatchSize):
            raise self.refuse("computes with the batch size", (), "a sample's result must not depend on it")
        if isinstance(value, complex) or not isinstance(value, (int, float)):
            raise self.refuse(f"computes with {value!r}, which is not a real number")
        if not math.isfinite(value):
            raise self.refuse(f"computes with {value}")
        return torch.tensor(float(value), dtype=torch.float64)

    def operand(self, value: Any, *, infinite: bool = False) -> Operand:
        """An argument of arithmetic: values and stored tensors as they are, numbers and integer tensors as floats.

        infinite: stored infinities may stay, as limits that nothing reaches.
        """
        if isinstance(value, Value):
            return value
        if isinstance(value, Choice):
            raise self.refuse(value.reason)
        if isinstance(value, Tensor):
            if value.is_complex():
                raise self.refuse("computes with complex numbers", (value,))
            tensor = value if value.is_floating_point() else value.to(self.dtype)
            if not infinite and not bool(tensor.isfinite().all()):
                raise self.refuse("computes with infinity or NaN", (tensor,), "store finite numbers")
            return tensor
        return self.number(value)

    def extended(self, value: Any) -> tuple[Operand, Tensor | None]:
        """An argument that may hold -infinity: finite numbers, and where they count (None: everywhere)."""
        if isinstance(value, Masked):
            return value.value, value.kept
        if isinstance(value, float) and value == -math.inf:
            return torch.zeros((), dtype=self.dtype), torch.zeros((), dtype=torch.bool)
        if isinstance(value, Tensor) and value.is_floating_point() and bool((value == -math.inf).any()):
            kept = value != -math.inf
            return self.operand(torch.where(kept, value, torch.zeros_like(value))), kept
        return self.operand(value), None

    def cast(self, dtype: torch.dtype) -> None:
        """Accepts a conversion to a floating-point type at least as precise as the module's; refuses every other one."""
        if not dtype.is_floating_point:
            raise self.refuse(f"converts to {dtype}, which jumps or leaves the real numbers")
        new, own = torch.finfo(dtype), torch.finfo(self.dtype)
        if new.eps > own.eps or new.max < own.max:
            raise self.refuse(
                f"rounds to {dtype} inside a module of type {self.dtype}", (), "export in one type"
            )
        if dtype != self.dtype:
            self.notes.append(f"{self.where} converts to {dtype}; the function in real numbers is the same")

    def value(self, argument: Any) -> Value:
        """An argument that has to depend on the input.

        Raises:
            UnsupportedModel: it is stored, so another argument depends on the input.
        """
        if isinstance(argument, Value):
            return argument
        raise self.refuse(
            "an argument other than the first one depends on the input", (), "only the first one may"
        )

    def stored(self, argument: Any, role: str) -> Tensor:
        """An argument that must not depend on the input, such as a weight."""
        if isinstance(argument, Tensor):
            return argument
        raise self.refuse(f"the {role} depends on the input", (), "only stored numbers are covered there")

    def optional(self, argument: Any, role: str) -> Tensor | None:
        """`stored`, or None."""
        return None if argument is None else self.stored(argument, role)
