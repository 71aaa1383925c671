"""Operators that are refused for a reason worth telling."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from lipverify import ops
from lipverify.frontends.builder import Value
from lipverify.frontends.onnx.call import Call
from lipverify.frontends.onnx.registry import lower

_JUMPS = (
    "jumps, so it is not continuous and has no Lipschitz constant",
    "leave it out of the exported model",
)
_QUANTISED = (
    "chooses its step by the numbers it rounds",
    "quantise with stored scales",
)
_RANDOM = ("is random", "export in evaluation mode, without noise")
_FINITE = (
    "asks whether computed numbers are finite, which real numbers always are",
    "leave it out of the exported model",
)
_SEQUENCE = ("sequences of tensors are not covered", "export tensors alone")

_REASONS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        ["Floor", "Ceil", "Round", "Mod", "ArgMax", "ArgMin", "Hardmax", "OneHot", "NonZero", "Equal", "And",
         "Or", "Xor", "Unique", "NonMaxSuppression",
         "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"],
        _JUMPS,
    ),
    **dict.fromkeys(
        ["DynamicQuantizeLinear"],
        _QUANTISED,
    ),
    **dict.fromkeys(["SequenceAt", "SplitToSequence", "ConcatFromSequence", "SequenceConstruct", "SequenceInsert"], _SEQUENCE),
    "IsInf": _FINITE,
    "MaxRoiPool": ("maxima over regions of their own are not covered", "use MaxPool"),
    **dict.fromkeys(
        ["GridSample", "DeformConv", "RoiAlign"],
        ("samples at positions that depend on the graph's input, or takes maxima there", "use stored positions"),
    ),
}  # fmt: skip


_RANDOM_OPERATORS = (
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
)
REFUSED = (*_REASONS, "IsNaN", "MaxUnpool", *_RANDOM_OPERATORS)
"""All operators that this file answers for."""


@lower.register("IsNaN")
def _is_nan(c: Call) -> np.ndarray[Any, Any]:
    """Of a softmax: nowhere, as every row of one that is read sees a key. Exporters guard masked attention by it."""
    x = c.raw(0)
    if isinstance(x, Value) and isinstance(c.build.node(x.name).op, (ops.Softmax, ops.MaskedSoftmax)):
        return np.zeros(x.source_shape, np.bool_)
    raise c.refuse(*_FINITE)


@lower.register("MaxUnpool")
def _max_unpool(c: Call) -> NoReturn:
    """With stored positions and no stated shape it is read by its matrix."""
    if isinstance(c.raw(1), Value):
        raise c.refuse("places entries by computed positions, which jump", "use stored positions")
    raise c.refuse("readers disagree what a stated output shape does to positions", "leave output_shape out")


def _register(name: str, reason: str, remedy: str, *, refuses: bool) -> None:
    @lower.register(name)
    def translate(c: Call) -> NoReturn:
        raise c.refuse(reason, remedy)

    # Random numbers are no constants: nodes without computed inputs are refused too.
    translate.refuses = refuses  # type: ignore[attr-defined]


for _name, (_reason, _remedy) in _REASONS.items():
    _register(_name, _reason, _remedy, refuses=False)
for _name in _RANDOM_OPERATORS:
    _register(_name, *_RANDOM, refuses=True)
