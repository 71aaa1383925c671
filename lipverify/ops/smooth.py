"""Smooth scalar activations, and scalar functions that have no global constant (they occur inside patterns)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lipverify.ir.op import Op
from lipverify.rules import forward


@dataclass(frozen=True, eq=False)
class Sigmoid(Op):
    """1 / (1 + exp(-x))."""


@dataclass(frozen=True, eq=False)
class Tanh(Op):
    """Hyperbolic tangent."""


@dataclass(frozen=True, eq=False)
class Softplus(Op):
    """log(1 + exp(beta x)) / beta."""

    beta: float = 1.0


@dataclass(frozen=True, eq=False)
class ELU(Op):
    """x for x > 0, alpha (exp(x) - 1) below."""

    alpha: float = 1.0


@dataclass(frozen=True, eq=False)
class SELU(Op):
    """gamma * (x for x > 0, alpha (exp(x) - 1) below)."""

    alpha: float = 1.6732632423543772848170429916717
    gamma: float = 1.0507009873554804934193349852946


@dataclass(frozen=True, eq=False)
class CELU(Op):
    """x for x > 0, alpha (exp(x / alpha) - 1) below; alpha > 0."""

    alpha: float = 1.0


@dataclass(frozen=True, eq=False)
class GELU(Op):
    """x Phi(x); `tanh`: the usual approximation by a hyperbolic tangent."""

    tanh: bool = False


@dataclass(frozen=True, eq=False)
class SiLU(Op):
    """x sigmoid(beta x); beta = 1 is SiLU or Swish, 1.702 QuickGELU."""

    beta: float = 1.0


@dataclass(frozen=True, eq=False)
class Mish(Op):
    """x tanh(softplus(x))."""


@dataclass(frozen=True, eq=False)
class Softsign(Op):
    """x / (1 + |x|)."""


@dataclass(frozen=True, eq=False)
class Tanhshrink(Op):
    """x - tanh(x)."""


@dataclass(frozen=True, eq=False)
class LogSigmoid(Op):
    """log sigmoid(x)."""


@dataclass(frozen=True, eq=False)
class Sin(Op):
    """Sine."""


@dataclass(frozen=True, eq=False)
class Cos(Op):
    """Cosine."""


@dataclass(frozen=True, eq=False)
class Erf(Op):
    """Error function."""


@dataclass(frozen=True, eq=False)
class Atan(Op):
    """Inverse tangent."""


@dataclass(frozen=True, eq=False)
class Asinh(Op):
    """Inverse hyperbolic sine."""


@dataclass(frozen=True, eq=False)
class Sinh(Op):
    """Hyperbolic sine: no global constant."""


@dataclass(frozen=True, eq=False)
class Cosh(Op):
    """Hyperbolic cosine: no global constant."""


@dataclass(frozen=True, eq=False)
class Tan(Op):
    """Tangent: no global constant."""


@dataclass(frozen=True, eq=False)
class Asin(Op):
    """Inverse sine on [-1, 1]: no constant up to the ends."""


@dataclass(frozen=True, eq=False)
class Acos(Op):
    """Inverse cosine on [-1, 1]: no constant up to the ends."""


@dataclass(frozen=True, eq=False)
class Atanh(Op):
    """Inverse hyperbolic tangent on (-1, 1): no constant up to the ends."""


@dataclass(frozen=True, eq=False)
class Acosh(Op):
    """Inverse hyperbolic cosine on [1, infinity): no constant up to the end."""


@dataclass(frozen=True, eq=False)
class Log(Op):
    """Natural logarithm on (0, infinity): no constant up to the end."""


@dataclass(frozen=True, eq=False)
class Exp(Op):
    """Exponential: no global constant."""


@dataclass(frozen=True, eq=False)
class Power(Op):
    """x ** exponent: no global constant unless the exponent is 1."""

    exponent: float


@dataclass(frozen=True, eq=False)
class Sqrt(Op):
    """Square root: no global constant."""


@dataclass(frozen=True, eq=False)
class Reciprocal(Op):
    """1 / x: no global constant."""


@forward.register(Sigmoid)
def _sigmoid(op: Sigmoid, x: Tensor) -> Tensor:
    return torch.sigmoid(x)


@forward.register(Tanh)
def _tanh(op: Tanh, x: Tensor) -> Tensor:
    return torch.tanh(x)


@forward.register(Softplus)
def _softplus(op: Softplus, x: Tensor) -> Tensor:
    # torch switches to the identity above a threshold; logaddexp has no jump.
    return torch.logaddexp(op.beta * x, torch.zeros_like(x)) / op.beta


@forward.register(ELU)
def _elu(op: ELU, x: Tensor) -> Tensor:
    return functional.elu(x, op.alpha)


@forward.register(SELU)
def _selu(op: SELU, x: Tensor) -> Tensor:
    return op.gamma * functional.elu(x, op.alpha)


@forward.register(CELU)
def _celu(op: CELU, x: Tensor) -> Tensor:
    # The derivative of torch's own celu rounds 1 / alpha to float32.
    return torch.where(x > 0, x, op.alpha * torch.expm1(x.clamp(max=0.0) / op.alpha))


@forward.register(GELU)
def _gelu(op: GELU, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh" if op.tanh else "none")


@forward.register(SiLU)
def _silu(op: SiLU, x: Tensor) -> Tensor:
    return x * torch.sigmoid(op.beta * x)


@forward.register(Mish)
def _mish(op: Mish, x: Tensor) -> Tensor:
    return functional.mish(x)


@forward.register(Softsign)
def _softsign(op: Softsign, x: Tensor) -> Tensor:
    return functional.softsign(x)


@forward.register(Tanhshrink)
def _tanhshrink(op: Tanhshrink, x: Tensor) -> Tensor:
    return x - torch.tanh(x)


@forward.register(LogSigmoid)
def _log_sigmoid(op: LogSigmoid, x: Tensor) -> Tensor:
    return functional.logsigmoid(x)


@forward.register(Sin)
def _sin(op: Sin, x: Tensor) -> Tensor:
    return torch.sin(x)


@forward.register(Cos)
def _cos(op: Cos, x: Tensor) -> Tensor:
    return torch.cos(x)


@forward.register(Erf)
def _erf(op: Erf, x: Tensor) -> Tensor:
    return torch.erf(x)


@forward.register(Exp)
def _exp(op: Exp, x: Tensor) -> Tensor:
    return torch.exp(x)


@forward.register(Power)
def _power(op: Power, x: Tensor) -> Tensor:
    return torch.pow(x, op.exponent)


@forward.register(Sqrt)
def _sqrt(op: Sqrt, x: Tensor) -> Tensor:
    return torch.sqrt(x)


@forward.register(Reciprocal)
def _reciprocal(op: Reciprocal, x: Tensor) -> Tensor:
    return torch.reciprocal(x)


@forward.register(Atan)
def _atan(op: Atan, x: Tensor) -> Tensor:
    return torch.atan(x)


@forward.register(Asinh)
def _asinh(op: Asinh, x: Tensor) -> Tensor:
    return torch.asinh(x)


@forward.register(Sinh)
def _sinh(op: Sinh, x: Tensor) -> Tensor:
    return torch.sinh(x)


@forward.register(Cosh)
def _cosh(op: Cosh, x: Tensor) -> Tensor:
    return torch.cosh(x)


@forward.register(Tan)
def _tan(op: Tan, x: Tensor) -> Tensor:
    return torch.tan(x)


@forward.register(Asin)
def _asin(op: Asin, x: Tensor) -> Tensor:
    return torch.asin(x)


@forward.register(Acos)
def _acos(op: Acos, x: Tensor) -> Tensor:
    return torch.acos(x)


@forward.register(Atanh)
def _atanh(op: Atanh, x: Tensor) -> Tensor:
    return torch.atanh(x)


@forward.register(Acosh)
def _acosh(op: Acosh, x: Tensor) -> Tensor:
    return torch.acosh(x)


@forward.register(Log)
def _log(op: Log, x: Tensor) -> Tensor:
    return torch.log(x)
