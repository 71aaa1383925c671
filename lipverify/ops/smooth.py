"""Smooth scalar activations, and scalar functions that have no global constant (they occur inside patterns)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lipverify.ir.op import Op
from lipverify.ops.activation import activation

_LINE, _POSITIVE, _INSIDE = (-8.0, 8.0), (0.1, 8.0), (-0.99, 0.99)
"""Where those without a global constant are tried."""


def _softplus(op: Softplus, x: Tensor) -> Tensor:
    # torch switches to the identity above a threshold; logaddexp has no jump.
    return torch.logaddexp(op.beta * x, torch.zeros_like(x)) / op.beta


def _celu(op: CELU, x: Tensor) -> Tensor:
    # The derivative of torch's own celu rounds 1 / alpha to float32.
    return torch.where(x > 0, x, op.alpha * torch.expm1(x.clamp(max=0.0) / op.alpha))


@activation(lambda op, x: torch.sigmoid(x), onnx="Sigmoid", aten="sigmoid special_expit", word="Sigmoid")
@dataclass(frozen=True, eq=False)
class Sigmoid(Op):
    """1 / (1 + exp(-x))."""


@activation(lambda op, x: torch.tanh(x), onnx="Tanh", aten="tanh", word="Tanh")
@dataclass(frozen=True, eq=False)
class Tanh(Op):
    """Hyperbolic tangent."""


@activation(_softplus, onnx="Softplus", word="Softplus", settings="beta")
@dataclass(frozen=True, eq=False)
class Softplus(Op):
    """log(1 + exp(beta x)) / beta."""

    beta: float = 1.0


@activation(lambda op, x: functional.elu(x, op.alpha), word="Elu", settings="alpha")
@dataclass(frozen=True, eq=False)
class ELU(Op):
    """x for x > 0, alpha (exp(x) - 1) below."""

    alpha: float = 1.0


@activation(
    lambda op, x: op.gamma * functional.elu(x, op.alpha), aten="selu", word="Selu", settings="alpha gamma"
)
@dataclass(frozen=True, eq=False)
class SELU(Op):
    """gamma * (x for x > 0, alpha (exp(x) - 1) below)."""

    alpha: float = 1.6732632423543772848170429916717
    gamma: float = 1.0507009873554804934193349852946


@activation(_celu, word="Celu", settings="alpha")
@dataclass(frozen=True, eq=False)
class CELU(Op):
    """x for x > 0, alpha (exp(x / alpha) - 1) below; alpha > 0."""

    alpha: float = 1.0


@activation(lambda op, x: functional.gelu(x, approximate="tanh" if op.tanh else "none"))
@dataclass(frozen=True, eq=False)
class GELU(Op):
    """x Phi(x); `tanh`: the usual approximation by a hyperbolic tangent."""

    tanh: bool = False


@activation(lambda op, x: x * torch.sigmoid(op.beta * x), aten="silu", word="Silu", settings="beta")
@dataclass(frozen=True, eq=False)
class SiLU(Op):
    """x sigmoid(beta x); beta = 1 is SiLU or Swish, 1.702 QuickGELU."""

    beta: float = 1.0


@activation(lambda op, x: functional.mish(x), onnx="Mish", aten="mish", word="Mish")
@dataclass(frozen=True, eq=False)
class Mish(Op):
    """x tanh(softplus(x))."""


@activation(lambda op, x: functional.softsign(x), onnx="Softsign", word="Softsign")
@dataclass(frozen=True, eq=False)
class Softsign(Op):
    """x / (1 + |x|)."""


@activation(lambda op, x: x - torch.tanh(x), word="Tanhshrink")
@dataclass(frozen=True, eq=False)
class Tanhshrink(Op):
    """x - tanh(x)."""


@activation(lambda op, x: functional.logsigmoid(x), aten="log_sigmoid", word="LogSigmoid")
@dataclass(frozen=True, eq=False)
class LogSigmoid(Op):
    """log sigmoid(x)."""


@activation(lambda op, x: torch.sin(x), onnx="Sin", aten="sin", word="Sin")
@dataclass(frozen=True, eq=False)
class Sin(Op):
    """Sine."""


@activation(lambda op, x: torch.cos(x), onnx="Cos", aten="cos", word="Cos")
@dataclass(frozen=True, eq=False)
class Cos(Op):
    """Cosine."""


@activation(lambda op, x: torch.erf(x), onnx="Erf", aten="erf special_erf", word="Erf")
@dataclass(frozen=True, eq=False)
class Erf(Op):
    """Error function."""


@activation(lambda op, x: torch.atan(x), onnx="Atan", aten="atan arctan", word="Atan")
@dataclass(frozen=True, eq=False)
class Atan(Op):
    """Inverse tangent."""


@activation(lambda op, x: torch.asinh(x), onnx="Asinh", aten="asinh arcsinh", word="Asinh")
@dataclass(frozen=True, eq=False)
class Asinh(Op):
    """Inverse hyperbolic sine."""


@activation(lambda op, x: torch.sinh(x), onnx="Sinh", aten="sinh", domain=_LINE)
@dataclass(frozen=True, eq=False)
class Sinh(Op):
    """Hyperbolic sine: no global constant."""


@activation(lambda op, x: torch.cosh(x), onnx="Cosh", aten="cosh", domain=_LINE)
@dataclass(frozen=True, eq=False)
class Cosh(Op):
    """Hyperbolic cosine: no global constant."""


@activation(lambda op, x: torch.tan(x), onnx="Tan", aten="tan", domain=(-1.5, 1.5))
@dataclass(frozen=True, eq=False)
class Tan(Op):
    """Tangent: no global constant."""


@activation(lambda op, x: torch.asin(x), onnx="Asin", aten="asin arcsin", domain=_INSIDE)
@dataclass(frozen=True, eq=False)
class Asin(Op):
    """Inverse sine on [-1, 1]: no constant up to the ends."""


@activation(lambda op, x: torch.acos(x), onnx="Acos", aten="acos arccos", domain=_INSIDE)
@dataclass(frozen=True, eq=False)
class Acos(Op):
    """Inverse cosine on [-1, 1]: no constant up to the ends."""


@activation(lambda op, x: torch.atanh(x), onnx="Atanh", aten="atanh arctanh", domain=_INSIDE)
@dataclass(frozen=True, eq=False)
class Atanh(Op):
    """Inverse hyperbolic tangent on (-1, 1): no constant up to the ends."""


@activation(lambda op, x: torch.acosh(x), onnx="Acosh", aten="acosh arccosh", domain=(1.01, 8.0))
@dataclass(frozen=True, eq=False)
class Acosh(Op):
    """Inverse hyperbolic cosine on [1, infinity): no constant up to the end."""


@activation(lambda op, x: torch.log(x), onnx="Log", aten="log", word="Log", domain=_POSITIVE)
@dataclass(frozen=True, eq=False)
class Log(Op):
    """Natural logarithm on (0, infinity): no constant up to the end."""


@activation(lambda op, x: torch.exp(x), aten="exp", word="Exp", domain=_LINE)
@dataclass(frozen=True, eq=False)
class Exp(Op):
    """Exponential: no global constant."""


@activation(lambda op, x: torch.pow(x, op.exponent), word="Pow", settings="exponent")
@dataclass(frozen=True, eq=False)
class Power(Op):
    """x ** exponent: no global constant unless the exponent is 1."""

    exponent: float


@activation(lambda op, x: torch.sqrt(x), onnx="Sqrt", aten="sqrt", word="Sqrt", domain=_POSITIVE)
@dataclass(frozen=True, eq=False)
class Sqrt(Op):
    """Square root: no global constant."""


@activation(
    lambda op, x: torch.reciprocal(x),
    onnx="Reciprocal",
    aten="reciprocal",
    word="Reciprocal",
    domain=_POSITIVE,
)
@dataclass(frozen=True, eq=False)
class Reciprocal(Op):
    """1 / x: no global constant."""
