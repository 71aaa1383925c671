"""Operators that are refused for a reason worth telling."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor

from lipverify.frontends.builder import Value
from lipverify.frontends.torch_export.lowering import NOISE, Lowerer
from lipverify.frontends.torch_export.registry import lower

_JUMPS = "it jumps, so it is not continuous and has no Lipschitz constant"
_RANDOM = "it is random"
_JUMPING = (
    "floor",
    "ceil",
    "round",
    "trunc",
    "frac",
    "heaviside",
    "floor_divide",
    "remainder",
    "fmod",
    "argmax",
    "argmin",
    "argsort",
    "one_hot",
    "bucketize",
    "searchsorted",
    "bitwise_and",
    "bitwise_or",
    "logical_and",
    "logical_or",
    "nonzero",
    "count_nonzero",
    "any",
    "all",
    "histc",
    "quantize_per_tensor",
    "fake_quantize_per_tensor_affine",
    "masked_select",
)
_REASONS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(_JUMPING, (_JUMPS, "")),
    **dict.fromkeys(
        ["native_dropout", "bernoulli", "rand_like", "randn_like", "normal"],
        (_RANDOM, NOISE),
    ),
    **dict.fromkeys(
        ["isnan", "isinf", "isfinite"],
        (
            "it asks whether computed numbers are finite, which real numbers always are",
            "leave it out of the model",
        ),
    ),
    **dict.fromkeys(
        ["item", "_local_scalar_dense"],
        ("it takes a computed number out of the graph", "keep the number as a tensor"),
    ),
    "embedding": ("token indices are not a continuous input", "start the model behind the embedding"),
}


def _register(name: str, reason: str, remedy: str) -> None:
    @lower.register(f"aten.{name}")
    def translate(b: Lowerer, *args: Any, **kwargs: Any) -> NoReturn:
        shown = [x for x in args if isinstance(x, (Value, Tensor))]
        raise b.refuse(reason, shown, remedy)


for _name, (_reason, _remedy) in _REASONS.items():
    _register(_name, _reason, _remedy)
