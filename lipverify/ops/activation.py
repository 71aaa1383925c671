"""One row for a scalar activation: its value, what the checker and the formats call it, where it can be tried.

From the row come the `forward` and `gain` rules, the spellings of both front ends, the word of certificates (the checker has its
own row: that is its independence) and a case of the conformance suite. What has to be argued stays beside the operator: `slopes`,
`interval`, `relax`, for a smooth one all three from its `curve`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from lipverify.ir.op import Op
from lipverify.ops.scalar import scalar_gain
from lipverify.rules import forward, gain

Kind = TypeVar("Kind", bound=type[Op])


class Row(NamedTuple):
    """onnx, aten: names in formats that have no settings there. word: of the checker; settings: its pairs (name, field).

    domain: where it has slopes that are bounded; None: everywhere.
    """

    kind: type[Op]
    onnx: str
    aten: tuple[str, ...]
    word: str
    settings: tuple[tuple[str, str], ...]
    domain: tuple[float, float] | None

    @property
    def plain(self) -> bool:
        """Whether it is an operator without being told settings."""
        return all(field.default is not MISSING for field in fields(self.kind))


ROWS: list[Row] = []


def activation(
    value: Callable[[Any, Tensor], Tensor],
    *,
    onnx: str = "",
    aten: str = "",
    word: str = "",
    settings: str = "",
    domain: tuple[float, float] | None = None,
) -> Callable[[Kind], Kind]:
    """Decorator of an operator: its row.

    Args:
        value: (op, x) -> what it computes, entry by entry. aten: names between spaces. settings: fields that the checker is told,
            `alpha`, or `alpha:slope` where it calls them otherwise.
    """

    def add(kind: Kind) -> Kind:
        told = tuple((name, field or name) for name, _, field in (s.partition(":") for s in settings.split()))
        ROWS.append(Row(kind, onnx, tuple(aten.split()), word, told, domain))
        forward.register(kind)(value)
        gain.register(kind)(scalar_gain)
        return kind

    return add


class Spelling(NamedTuple):
    """An operator, its name in ONNX and its names in torch's aten; empty where a format has none without settings."""

    op: Op
    onnx: str = ""
    aten: tuple[str, ...] = ()


def spellings() -> list[Spelling]:
    """What formats call the activations that have no settings there."""
    return [Spelling(row.kind(), row.onnx, row.aten) for row in ROWS if row.onnx or row.aten]
