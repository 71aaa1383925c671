"""One ONNX node as translators see it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipverify.errors import InvalidFile, UnsupportedModel
from lipverify.frontends.builder import Masked, Operand, Value
from lipverify.frontends.building.choices import ADVICE, Choice
from lipverify.frontends.onnx.lowering import OnnxBuilder, Stored
from lipverify.loading.names import display

_MAX_LIST = 1 << 16
"""Entries of a stored list of sizes, axes or pads."""

Result = Value | Masked | Stored
"""What a name of the file became, where it is a tensor of real numbers."""
Named = Result | Choice
"""What a name of the file became."""


@dataclass(frozen=True)
class Call:
    """A node with its inputs looked up. `version`: of the operator set; `used`: which outputs anything reads; `names`: of the
    inputs in the file."""

    build: OnnxBuilder
    op: str
    version: int
    inputs: tuple[Named | None, ...]
    used: tuple[bool, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    def attribute(self, name: str, default: Any = None) -> Any:
        """A setting: int, float, str, list of these, or a stored tensor."""
        return self.attributes.get(name, default)

    def raw(self, position: int) -> Result | None:
        """An input as it is; None where it is left out.

        Raises:
            UnsupportedModel: it is a comparison of computed numbers.
        """
        found = self._at(position)
        if isinstance(found, Choice):
            raise self.refuse(found.reason, ADVICE)
        return found

    def raws(self, start: int = 0) -> list[Result | None]:
        """All inputs from one on, as they are. Raises as `raw`."""
        return [self.raw(position) for position in range(start, len(self.inputs))]

    def comparison(self, position: int) -> Choice | None:
        """An input that is a comparison of computed numbers, or None."""
        found = self._at(position)
        return found if isinstance(found, Choice) else None

    def _at(self, position: int) -> Named | None:
        return self.inputs[position] if position < len(self.inputs) else None

    def operand(self, position: int) -> Operand:
        """An input that takes part in real arithmetic: a computed value or a stored tensor of finite numbers."""
        found = self.raw(position)
        if found is None:
            raise self.build.invalid(f"its input {position} is missing")
        if isinstance(found, Masked):
            raise self.refuse(
                "computes with -infinity, which only a softmax, a maximum or an exponential may"
            )
        return found if isinstance(found, Value) else self.finite(position, found)

    def extended(self, position: int, infinity: float = -math.inf) -> tuple[Operand, Tensor | None]:
        """An input that may hold this infinity: finite numbers, and where they count (None: everywhere)."""
        found = self.raw(position)
        if isinstance(found, Masked) and infinity < 0:
            return found.value, found.kept
        if isinstance(found, np.ndarray) and found.dtype.kind == "f" and bool((found == infinity).any()):
            endless = found == infinity
            return self.finite(
                position, np.where(endless, np.zeros((), found.dtype), found)
            ), torch.from_numpy(np.asarray(~endless))
        return self.operand(position), None

    def finite(self, position: int, array: Stored) -> Tensor:
        """A stored input as an operand of real arithmetic.

        Raises:
            InvalidFile: it holds infinity or NaN.
        """
        if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
            bad = ~np.isfinite(array.astype(np.float64) if array.dtype.name == "bfloat16" else array)
            if bool(bad.any()):
                index = [int(i) for i in np.unravel_index(int(np.argmax(bad)), array.shape)]
                name = display(self.names[position], 60) if position < len(self.names) else ""
                raise InvalidFile(
                    f'{self.build.what} "{display(self.build.where)}": computes with infinity or NaN (tensor "{name}", index '
                    f"{index}); no bound exists for such weights"
                )
        return self.build.tensor(array)

    def operands(self) -> list[Operand]:
        """All inputs of an operator that takes any number of them."""
        return [self.operand(position) for position in range(len(self.inputs))]

    def value(self, position: int = 0) -> Value:
        """An input that has to depend on the graph's input."""
        found = self.raw(position)
        if isinstance(found, Value):
            return found
        if isinstance(found, Masked):
            raise self.refuse(
                "computes with -infinity, which only a softmax, a maximum or an exponential may"
            )
        raise self.refuse(self._elsewhere(position))

    def _elsewhere(self, position: int) -> str:
        """Why a stored input is refused: another one is the computed one."""
        computed = [i for i, x in enumerate(self.inputs) if isinstance(x, (Value, Masked))]
        return (
            f"its input {computed[0]} depends on the graph's input and its input {position} is stored; this operator is covered "
            "the other way round"
        )

    def stored(self, position: int, role: str) -> Tensor:
        """An input that has to be stored, such as a weight; finite numbers."""
        return self.finite(position, self.array(position, role))

    def optional(self, position: int, role: str) -> Tensor | None:
        """`stored`, or None where the input is left out."""
        return None if self.raw(position) is None else self.stored(position, role)

    def array(self, position: int, role: str) -> Stored:
        """An input that has to be stored, as it is in the file."""
        found = self.raw(position)
        if found is None:
            raise self.build.invalid(f"its {role} is missing")
        if isinstance(found, (Value, Masked)):
            raise self.refuse(
                f"its {role} depends on the graph's input", "only stored numbers are covered there"
            )
        return found

    def ints(self, position: int, role: str) -> list[int] | None:
        """A stored list of whole numbers, or None where the input is left out."""
        if self.raw(position) is None:
            return None
        array = self.array(position, role)
        if array.dtype.kind not in "iu" or array.size > _MAX_LIST or array.ndim > 1:
            raise self.build.invalid(
                f"its {role} is no list of whole numbers ({array.dtype} {list(array.shape)})"
            )
        return [int(n) for n in array.reshape(-1)]

    def scalar(self, position: int, role: str) -> float | None:
        """A stored single number, infinity allowed, or None where the input is left out."""
        if self.raw(position) is None:
            return None
        array = self.array(position, role)
        if array.size != 1:
            raise self.build.invalid(f"its {role} has shape {list(array.shape)}, not one number")
        return float(array.reshape(()).astype(np.float64))

    def flag(self, name: str, default: int = 0) -> bool:
        """A setting that is 0 or 1."""
        found = self.attribute(name, default)
        if found not in (0, 1):
            raise self.build.invalid(f"its {name} is {found}, not 0 or 1")
        return bool(found)

    def choice(self, name: str, default: str, *allowed: str) -> str:
        """A setting that is one of a few words."""
        found: str = self.attribute(name, default)
        if found not in allowed:
            raise self.refuse(f"{name} {found[:40]!r} is not covered", f"use one of {', '.join(allowed)}")
        return found

    def refuse(self, reason: str, remedy: str = "") -> UnsupportedModel:
        """The error to raise for a node that no rule covers."""
        shapes: Any = [x.value if isinstance(x, Choice) else x for x in self.inputs if x is not None]
        return self.build.refuse(reason, shapes, remedy)

    def invalid(self, what: str) -> InvalidFile:
        """The error to raise for a node that contradicts the operator's definition."""
        return self.build.invalid(what)
