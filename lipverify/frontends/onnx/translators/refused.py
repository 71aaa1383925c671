"""Operators that are refused for a reason worth telling."""

from __future__ import annotations

from typing import NoReturn

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
_RECURRENT = ("recurrent layers are not covered", "export the layers before or behind them")
_SEQUENCE = ("sequences of tensors are not covered", "export tensors alone")
_LOG = ("is unbounded near 0 and not covered", "return what stands before it")

_REASONS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        ["Sign", "Floor", "Ceil", "Round", "Mod", "ArgMax", "ArgMin", "Hardmax", "OneHot", "NonZero", "Less", "LessOrEqual",
         "Greater", "GreaterOrEqual", "Equal", "And", "Or", "Xor", "Not", "IsNaN", "IsInf", "Unique", "NonMaxSuppression",
         "Compress", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"],
        _JUMPS,
    ),
    **dict.fromkeys(
        ["DynamicQuantizeLinear"],
        _QUANTISED,
    ),
    **dict.fromkeys(["LSTM", "GRU", "RNN"], _RECURRENT),
    **dict.fromkeys(["SequenceAt", "SplitToSequence", "ConcatFromSequence", "SequenceConstruct", "SequenceInsert"], _SEQUENCE),
    **dict.fromkeys(["Log", "ReduceLogSum", "ReduceLogSumExp"], _LOG),
    "ReduceProd": ("multiplies computed numbers with each other", "write the factors as separate outputs"),
    "ReduceL2": ("the Euclidean norm of computed numbers is not covered", "return its argument"),
    "LpNormalization": ("divides by a norm, which is unbounded near 0", "return its argument"),
    "MeanVarianceNormalization": ("normalises with the input's own statistics", "use LayerNormalization"),
    "LRN": ("local response normalisation is not covered", "use BatchNormalization"),
    "LpPool": ("pooling by a norm is not covered", "use AveragePool or MaxPool"),
    "GlobalLpPool": ("pooling by a norm is not covered", "use GlobalAveragePool"),
    "MaxRoiPool": ("chooses regions by computed numbers", ""),
    "RoiAlign": ("chooses regions by computed numbers", ""),
    "MaxUnpool": ("places entries by computed positions, which jump", ""),
    "GridSample": ("samples at computed positions", ""),
    "ScatterElements": ("writing into a tensor by index is not covered", "use Concat, Pad or a mask"),
    "ScatterND": ("writing into a tensor by index is not covered", "use Concat, Pad or a mask"),
    "CumSum": ("running sums are not covered", "multiply with a stored triangular matrix"),
}  # fmt: skip


_RANDOM_OPERATORS = (
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
)
REFUSED = (*_REASONS, *_RANDOM_OPERATORS)
"""All operators that this file answers for."""


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
