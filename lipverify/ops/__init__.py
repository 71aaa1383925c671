"""Operators, one file for each family with every rule of its members. Importing this package registers all of them."""

from lipverify.ir.op import Constant, Input, Op, Shape
from lipverify.ops import powers as _powers
from lipverify.ops import smooth_curves as _smooth_curves
from lipverify.ops import source as _source
from lipverify.ops.affine import DivideBy, Linear, Scale
from lipverify.ops.change import Change, Same
from lipverify.ops.convolution import Conv, ConvTranspose
from lipverify.ops.gated import ClipGate, ErfGate, SigmoidGate, TanhGate
from lipverify.ops.implicit import Implicit
from lipverify.ops.merge import Add, Concat, Div, MatMul, Maximum, Minimum, Mul, Sub
from lipverify.ops.normalization import BatchNorm, LayerNorm, RMSNorm
from lipverify.ops.piecewise import Abs, Clip, Hardsigmoid, Hardswish, LeakyReLU, PReLU, ReLU
from lipverify.ops.pooling import AvgPool, MaxPool, ReduceMax, ReduceMean, ReduceMin, ReduceSum
from lipverify.ops.quantization import Quantize, RoundingError
from lipverify.ops.reshaping import DepthToSpace, Expand, Gather, Pad, Reshape, Slice, Transpose, Upsample
from lipverify.ops.smooth import (
    CELU,
    ELU,
    GELU,
    SELU,
    Cos,
    Erf,
    Exp,
    LogSigmoid,
    Mish,
    Power,
    Reciprocal,
    Sigmoid,
    SiLU,
    Sin,
    Softplus,
    Softsign,
    Sqrt,
    Tanh,
    Tanhshrink,
)
from lipverify.ops.softmax import LogSoftmax, MaskedSoftmax, Softmax
from lipverify.ops.sorting import GroupSort, Householder

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "SELU",
    "Abs",
    "Add",
    "AvgPool",
    "BatchNorm",
    "Change",
    "Clip",
    "ClipGate",
    "Concat",
    "Constant",
    "Conv",
    "ConvTranspose",
    "Cos",
    "DepthToSpace",
    "Div",
    "DivideBy",
    "Erf",
    "ErfGate",
    "Exp",
    "Expand",
    "Gather",
    "GroupSort",
    "Hardsigmoid",
    "Hardswish",
    "Householder",
    "Implicit",
    "Input",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LogSigmoid",
    "LogSoftmax",
    "MaskedSoftmax",
    "MatMul",
    "MaxPool",
    "Maximum",
    "Minimum",
    "Mish",
    "Mul",
    "Op",
    "PReLU",
    "Pad",
    "Power",
    "Quantize",
    "RMSNorm",
    "ReLU",
    "Reciprocal",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceSum",
    "Reshape",
    "RoundingError",
    "Same",
    "Scale",
    "Shape",
    "SiLU",
    "Sigmoid",
    "SigmoidGate",
    "Sin",
    "Slice",
    "Softmax",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Sub",
    "Tanh",
    "TanhGate",
    "Tanhshrink",
    "Transpose",
    "Upsample",
]

del _powers, _smooth_curves, _source
