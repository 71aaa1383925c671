"""Up to which version each operator of ONNX was read against its translator.

A version number counts changes of one operator's definition. A newer one than stands here may mean something else, so it is
refused until somebody has compared both texts; all older ones from operator set 7 on are covered.
"""

from __future__ import annotations

OPSETS = range(7, 29)
"""Operator sets that are read as they are; older ones are converted to the first of them."""

_NEWEST: dict[int, str] = {
    1: "Not",
    7: "And Or Xor",
    9: "Shrink TfIdfVectorizer",
    10: "ConvInteger MatMulInteger QLinearConv StringNormalizer Upsample",
    11: (
        "ConcatFromSequence DynamicQuantizeLinear NonMaxSuppression Scatter SequenceAt SequenceConstruct SequenceEmpty "
        "SequenceErase SequenceInsert SequenceLength"
    ),
    13: (
        "Abs ArgMax ArgMin Ceil Clip Concat Erf Exp Expand Floor Gather GatherElements GatherND Gemm Greater Hardmax LRN "
        "Less Log LogSoftmax MatMul Max Mean MeanVarianceNormalization Min Neg NonZero Reciprocal ReduceSum Sigmoid Sign "
        "Slice Softmax SoftmaxCrossEntropyLoss Sqrt Sum Tanh Tile"
    ),
    14: "Add CumSum Div Mul Relu Sub Trilu",
    15: "BatchNormalization Pow",
    16: "GreaterOrEqual LeakyRelu LessOrEqual PRelu Where",
    17: "BlackmanWindow HammingWindow HannWindow LayerNormalization MelWeightMatrix STFT SequenceMap",
    18: (
        "BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im ReduceL1 ReduceL2 ReduceMean ReduceProd "
        "ReduceSumSquare ScatterElements ScatterND Split"
    ),
    19: "Equal Resize",
    20: (
        "AffineGrid DFT Gelu ImageDecoder IsInf IsNaN ReduceMax ReduceMin RegexFullMatch StringConcat StringSplit"
    ),
    21: "GroupNormalization QLinearMatMul",
    22: (
        "Acos Acosh Asin Asinh Atan Atanh AveragePool Bernoulli Conv ConvTranspose Cos Cosh DeformConv Det Dropout Elu "
        "EyeLike GRU GlobalAveragePool GlobalLpPool GlobalMaxPool GridSample HardSigmoid HardSwish InstanceNormalization "
        "LSTM LpNormalization LpPool MaxPool MaxRoiPool MaxUnpool Mish Multinomial NegativeLogLikelihoodLoss RNN "
        "RandomNormal RandomNormalLike RandomUniform RandomUniformLike RoiAlign Round Selu Sin Sinh Softplus Softsign Tan "
        "ThresholdedRelu"
    ),
    23: "RMSNormalization RotaryEmbedding",
    24: "SplitToSequence Swish TensorScatter TopK",
    25: (
        "Attention CastLike Constant ConstantOfShape Flatten Identity If Loop Pad Reshape Scan Shape Size Squeeze "
        "Transpose Unsqueeze"
    ),
    26: "BitCast CumProd",
    27: "CausalConvWithState LinearAttention Range",
    28: (
        "BitShift Cast Celu Compress DepthToSpace DequantizeLinear Einsum Mod OneHot Optional OptionalGetElement "
        "OptionalHasElement QuantizeLinear ReduceLogSum ReduceLogSumExp ReverseSequence SpaceToDepth SwiGLU Unique"
    ),
}  # fmt: skip
NEWEST = {name: version for version, names in _NEWEST.items() for name in names.split()}
"""Operator -> the newest version that was read."""
