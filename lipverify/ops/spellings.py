"""What formats call the operators that have no settings there: one row for each, read by both front ends.

Operators with settings have translators of their own, which turn the settings of a format into those of the operator.
"""

from __future__ import annotations

from typing import NamedTuple

from lipverify.ir.op import Op
from lipverify.ops import piecewise, smooth


class Spelling(NamedTuple):
    """A scalar function, its name in ONNX and its names in torch's aten; empty where a format has none without settings."""

    op: Op
    onnx: str = ""
    aten: tuple[str, ...] = ()


SPELLINGS = (
    Spelling(piecewise.ReLU(), "Relu", ("relu",)),
    Spelling(piecewise.Clip(0.0, 6.0), "", ("relu6",)),
    Spelling(piecewise.Abs(), "Abs", ("abs",)),
    Spelling(piecewise.Hardsigmoid(1 / 6, 0.5), "", ("hardsigmoid",)),
    Spelling(piecewise.Hardswish(), "HardSwish", ("hardswish",)),
    Spelling(smooth.SELU(), "", ("selu",)),
    Spelling(smooth.Sigmoid(), "Sigmoid", ("sigmoid", "special_expit")),
    Spelling(smooth.Tanh(), "Tanh", ("tanh",)),
    Spelling(smooth.Softplus(), "Softplus"),
    Spelling(smooth.Softsign(), "Softsign"),
    Spelling(smooth.SiLU(), "", ("silu",)),
    Spelling(smooth.Mish(), "Mish", ("mish",)),
    Spelling(smooth.LogSigmoid(), "", ("log_sigmoid",)),
    Spelling(smooth.Erf(), "Erf", ("erf", "special_erf")),
    Spelling(smooth.Exp(), "", ("exp",)),
    Spelling(smooth.Log(), "Log", ("log",)),
    Spelling(smooth.Sqrt(), "Sqrt", ("sqrt",)),
    Spelling(smooth.Power(2.0), "", ("square",)),
    Spelling(smooth.Reciprocal(), "Reciprocal", ("reciprocal",)),
    Spelling(smooth.Sin(), "Sin", ("sin",)),
    Spelling(smooth.Cos(), "Cos", ("cos",)),
    Spelling(smooth.Tan(), "Tan", ("tan",)),
    Spelling(smooth.Atan(), "Atan", ("atan", "arctan")),
    Spelling(smooth.Asin(), "Asin", ("asin", "arcsin")),
    Spelling(smooth.Acos(), "Acos", ("acos", "arccos")),
    Spelling(smooth.Sinh(), "Sinh", ("sinh",)),
    Spelling(smooth.Cosh(), "Cosh", ("cosh",)),
    Spelling(smooth.Asinh(), "Asinh", ("asinh", "arcsinh")),
    Spelling(smooth.Acosh(), "Acosh", ("acosh", "arccosh")),
    Spelling(smooth.Atanh(), "Atanh", ("atanh", "arctanh")),
)
