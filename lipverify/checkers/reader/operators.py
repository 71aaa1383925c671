"""All operators: those of ONNX with the versions of their definitions that are read, and the words of certificates."""

from __future__ import annotations

from lipverify.checkers.reader.activations import ACTIVATIONS, PLAIN
from lipverify.checkers.reader.building import FLOATS, Builder, Value
from lipverify.checkers.reader.calls import Call
from lipverify.checkers.reader.folding import FOLDED
from lipverify.checkers.reader.groups import GROUPS, SORTS
from lipverify.checkers.reader.integers import INTEGERS
from lipverify.checkers.reader.layers import IMPLICIT, LAYERS
from lipverify.checkers.reader.matrices import MATRICES
from lipverify.checkers.reader.moves import MOVES, Results, Run, moving, repeat
from lipverify.checkers.reader.quantisation import QUANTISATION
from lipverify.checkers.reader.recurrent import RECURRENT
from lipverify.checkers.reader.refusals import need, shown
from lipverify.checkers.reader.resizing import RESIZING
from lipverify.checkers.reader.sums import SCALE, SUMS
from lipverify.checkers.reader.windows import CONVOLUTIONS


def run(p: Builder, c: Call) -> Results:
    """The results of one operator.

    Raises:
        NotCovered: an operator, version, setting, operand or result that is not read.
    """
    versions, translate = (WORDS if c.words else OPERATORS).get(c.op, ("", None))
    need(translate is not None, f"operator {shown(c.op)} is not covered by the checker")
    assert translate is not None
    if not c.words:
        need(
            _covers(versions, c.version), f"{c.op} of operator set {c.version} is not covered by the checker"
        )
    whole = any(isinstance(x, Value) and x.kind not in FLOATS for x in c.operands)
    need(not whole or c.op in _OF_INTEGERS, f"{c.op} of computed integers is not covered by the checker")
    results = translate(p, c)
    c.finish()
    need(len(results) >= c.results, f"{c.op} with more results than the checker covers")
    return results


def _covers(versions: str, opset: int) -> bool:
    """versions: since when each definition holds; one with ! in front is not read."""
    known = [(int(v.lstrip("!")), v[0] != "!") for v in versions.split()]
    return max([pair for pair in known if pair[0] <= opset], default=(0, False))[1]


_OF_INTEGERS = (
    "DequantizeLinear", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "MaxPool", "Cast",
    "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "com.microsoft.QGemm", "com.microsoft.DequantizeLinear",
    "Concat", "Split", "Gather", "Expand", "Pad", "Resize", "Upsample", *INTEGERS,
)  # fmt: skip
"""What is the same for integers of a few bits as for the real numbers that they are."""
OPERATORS: dict[str, tuple[str, Run]] = {
    **MOVES,
    **RESIZING,
    **FOLDED,
    **QUANTISATION,
    **INTEGERS,
    **SUMS,
    **MATRICES,
    **CONVOLUTIONS,
    **GROUPS,
    **LAYERS,
    **ACTIVATIONS,
    **RECURRENT,
}
"""Operator -> since when each of its definitions holds (! before one that is not read), and how it is read."""
_SPOKEN = (
    "Gemm MatMul Conv ConvTranspose Add Sub Mul Div Sum Mean Neg BatchNormalization MaxPool AveragePool ReduceSum ReduceMean "
    "ReduceMax ReduceMin Max Min Softmax LogSoftmax LayerNormalization RMSNormalization PRelu Clip Pow Concat Reshape Transpose "
    "Slice Gather Pad Expand DepthToSpace Identity Flatten Squeeze Unsqueeze"
)
WORDS: dict[str, tuple[str, Run]] = {
    **{name: OPERATORS[name] for name in _SPOKEN.split()},
    **PLAIN,
    **SCALE,
    **SORTS,
    **IMPLICIT,
    "Repeat": ("", moving(repeat)),
}
"""The operators in which a certificate states an architecture: those of ONNX that the front ends speak, and a few beside them."""
