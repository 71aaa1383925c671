"""Constant folding: nodes whose inputs are all stored are computed, in the file's own type, within fixed limits.

The size of a result is known before anything is allocated. Common operators of shape arithmetic are computed by numpy,
the others by the reference evaluator of onnx.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lipverify.frontends.building.vanishing import may_vanish
from lipverify.frontends.onnx import forms
from lipverify.frontends.onnx.call import Call
from lipverify.frontends.onnx.fold_sizes import MOVES, SIZES, common, contracted
from lipverify.frontends.onnx.lowering import Stored, as_torch
from lipverify.loading.names import display

MAX_BYTES = 64 << 20
"""Bytes of one folded result."""
MAX_TOTAL_BYTES = 1 << 30
"""Bytes of all folded results together."""
MAX_WORK = 1 << 32
"""Numbers read, written and multiplied in all folded nodes together."""


def folds(domain: str, op: str) -> bool:
    """Whether an operator can be computed here where all its inputs are stored."""
    return not domain and op in SIZES


class Folder:
    """Computes nodes without computed inputs; keeps the account of what that has cost."""

    def __init__(self) -> None:
        self.computed: list[str] = []
        """Nodes that computed with real numbers, not only moved them."""
        self._bytes = 0
        self._work = 0

    def fold(self, call: Call, domain: str, node: Any) -> list[Stored]:
        """The results of one node of the file.

        Raises:
            UnsupportedModel: the operator is not folded, or the result is too large.
            InvalidFile: the node contradicts itself.
        """
        arrays = [x for x in call.inputs if isinstance(x, np.ndarray)]
        if not folds(domain, call.op):
            raise call.refuse(
                "this operator is not covered where all inputs are stored", "fold constants before exporting"
            )
        try:
            self._account(call, arrays)
            found = _held(call, node)
        except (
            ValueError,
            TypeError,
            IndexError,
            RuntimeError,
            KeyError,
            AssertionError,
            OverflowError,
        ) as error:
            reason = display(str(error).strip().splitlines()[0] if str(error).strip() else "", 80)
            raise call.invalid(f"it cannot be computed from its stored inputs ({reason})") from None
        if call.op not in MOVES and any(a.dtype.kind not in "iub" for a in (*arrays, *found)):
            self.computed.append(call.build.where)
        return found

    def _account(self, call: Call, arrays: list[Stored]) -> None:
        numbers = SIZES[call.op](call, arrays)
        width = max([a.dtype.itemsize for a in arrays] + [8 if not arrays else 1])
        if call.op == "Cast":
            width = 8
        if numbers * width > MAX_BYTES:
            raise call.refuse(
                f"computes a stored tensor of {numbers} numbers, more than {MAX_BYTES} bytes",
                "export a smaller constant",
            )
        self._bytes += numbers * width
        self._work += numbers * contracted(call, arrays)
        if call.op not in MOVES:
            self._work += sum(a.size for a in arrays)
        if self._bytes > MAX_TOTAL_BYTES or self._work > MAX_WORK:
            raise call.refuse("stored tensors take too much to compute", "fold constants before exporting")


_SUMS = {"MatMul": 1.0, "ReduceMean": 1.0, "ReduceSumSquare": 1.0, "ReduceL2": 0.5, "Mean": 1.0}
"""Sums in which single terms may underflow, with the power of their sum that the results are."""


def _held(call: Call, node: Any) -> list[Stored]:
    """The results, none of which lost more than a rounding to underflow: later factors make any number of what is left.

    IEEE 754 tells an underflow only where the tiny result is not exact. A conversion is the rounding that the file asks for.
    In sums n terms that underflow are off by less than n times the smallest normal number times a rounding.

    Raises:
        UnsupportedModel: a result that underflows.
    """
    arrays = [x for x in call.inputs if isinstance(x, np.ndarray)]
    sums = call.op in _SUMS and all(a.dtype.kind in "fiu" for a in arrays)
    under: Any = "ignore" if sums or call.op in ("Cast", "CastLike", "QuantizeLinear") else "raise"
    try:
        with np.errstate(all="ignore", under=under):
            found = _computed(call, node)
    except FloatingPointError:
        found = None
    kind = next((a.dtype for a in arrays if a.dtype.kind == "f"), np.dtype(np.float64))
    if found is not None and sums:
        least = float(np.finfo(kind).tiny) * max(a.size for a in arrays)
        small = [np.abs(x.astype(np.float64)) < least ** _SUMS[call.op] for x in found if x.dtype.kind == "f"]
        if any(bool(s.any()) for s in small) and _underflows(call, node, small[0]):
            found = None
    if found is None:
        names = ", ".join(f'"{display(name, 40)}"' for name in call.names if name)
        tensors: Any = arrays
        raise call.build.vanished(kind, tensors, f" ({names})" if names else "")
    return found


def _underflows(call: Call, node: Any, small: Stored) -> bool:
    """Whether terms of sums underflow that are `small`."""
    arrays = [x for x in call.inputs if isinstance(x, np.ndarray)]
    if call.op == "MatMul":
        # Threads of a matrix product have flags of their own.
        a, b = (as_torch(x) for x in arrays)
        if a is None or b is None or not may_vanish(a, b):
            return False
        terms = np.matmul(*((x != 0).astype(np.float64) for x in arrays))
        return bool((small & (terms > 0)).any())
    try:
        with np.errstate(all="ignore", under="raise"):
            _computed(call, node)
    except FloatingPointError:
        return True
    return False


def _computed(call: Call, node: Any) -> list[Stored]:
    arrays = [x for x in call.inputs if isinstance(x, np.ndarray)]
    quick = _QUICK.get(call.op)
    results = quick(call, *arrays) if quick else _by_reference(call, node)
    return [np.asarray(result) for result in (results if isinstance(results, (list, tuple)) else [results])]


def _by_reference(call: Call, node: Any) -> list[Stored]:
    """One node, evaluated by onnx."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    names = [name for name in node.input if name]
    value_info = onnx.helper.make_empty_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "fold",
        [value_info(n) for n in dict.fromkeys(names)],
        [value_info(n) for n in node.output if n],
    )
    opset = onnx.helper.make_opsetid("", call.version)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    feeds = dict(zip(node.input, call.inputs, strict=False))
    return list(ReferenceEvaluator(model).run(None, {name: feeds[name] for name in names}))


def _cast(call: Call, x: Stored) -> Stored:
    import onnx

    try:
        kind = onnx.helper.tensor_dtype_to_np_dtype(call.attribute("to"))
    except (KeyError, TypeError):
        kind = np.dtype(object)
    if kind.kind not in "biuf" and kind.name != "bfloat16":
        raise call.refuse(f"converts to {kind}", "export real numbers of 16, 32 or 64 bits")
    return x.astype(kind)


def _divide(call: Call, a: Any, b: Any) -> Any:
    if a.dtype.kind not in "iu":
        return a / b
    if bool((b == 0).any()):
        raise call.invalid("divides by a stored zero")
    # Whole numbers are divided towards zero.
    quotient = np.abs(a) // np.abs(b)
    return np.where((a < 0) != (b < 0), -quotient, quotient).astype(a.dtype)


def _dequantize(call: Call, x: Stored, scale: Stored, zero: Stored | None = None) -> Stored:
    """(x - zero) * scale, with one scale for all, one for each entry of an axis, or one for each block of an axis."""
    if x.dtype.kind not in "iu":
        raise call.refuse("dequantises other types than integers", "export floating-point weights")
    block = call.attribute("block_size", 0)
    if block:
        axis = forms.normalised(call, call.attribute("axis", 1), x.ndim)
        blocks = [-(-n // block) if i == axis else n for i, n in enumerate(x.shape)]
        if block < 0 or scale.ndim != x.ndim or list(scale.shape) != blocks:
            raise call.invalid(f"scales {list(scale.shape)} for blocks of {block} in {list(x.shape)}")
        whole = np.arange(x.shape[axis]) // block
        scale, zero = np.take(scale, whole, axis), None if zero is None else np.take(zero, whole, axis)
    elif scale.size > 1:
        shape = [1] * x.ndim
        shape[forms.normalised(call, call.attribute("axis", 1), x.ndim)] = -1
        scale, zero = scale.reshape(shape), None if zero is None else zero.reshape(shape)
    offset = x.astype(np.int64) - (0 if zero is None else zero.astype(np.int64))
    return offset.astype(scale.dtype) * scale


def _gather(call: Call, data: Stored, indices: Stored) -> Stored:
    axis = forms.normalised(call, call.attribute("axis", 0), data.ndim)
    size = data.shape[axis]
    if bool(((indices < -size) | (indices >= size)).any()):
        raise call.invalid(f"indices outside an axis of size {size}")
    return np.take(data, indices, axis=axis)


def _squeeze(call: Call, data: Stored, *_: Stored) -> Stored:
    axes = forms.axes(call, 13)
    return np.squeeze(data, None if axes is None else tuple(forms.all_normalised(call, axes, data.ndim)))


def _unsqueeze(call: Call, data: Stored, *_: Stored) -> Stored:
    axes = forms.axes(call, 13)
    if axes is None:
        raise call.invalid("it has no axes")
    return np.expand_dims(data, tuple(forms.all_normalised(call, axes, data.ndim + len(axes))))


def _slice(call: Call, data: Stored, *_: Stored) -> Stored:
    index = [slice(None)] * data.ndim
    for cut in forms.cuts(call, data.shape):
        index[cut.axis] = slice(cut.start, cut.stop, cut.step)
    return data[tuple(index)]


def _split(call: Call, data: Stored, *_: Stored) -> list[Stored]:
    axis = forms.normalised(call, call.attribute("axis", 0), data.ndim)
    sizes = forms.split_sizes(call, data.shape[axis], len(call.used))
    return list(np.split(data, np.cumsum(sizes)[:-1], axis=axis))


def _constant_of_shape(call: Call, shape: Stored) -> Stored:
    fill = call.attribute("value")
    value = np.zeros(1, np.float32) if fill is None else fill
    if value.size != 1:
        raise call.invalid("its value is not one number")
    return np.full([int(n) for n in shape], value.reshape(()), value.dtype)


def _range(call: Call, start: Stored, limit: Stored, delta: Stored) -> Stored:
    return np.arange(start.item(), limit.item(), delta.item()).astype(start.dtype)


def _shape(call: Call, data: Stored) -> Stored:
    return shape_of(call, data.shape)


def shape_of(call: Call, shape: Sequence[int]) -> Stored:
    """What Shape gives for a tensor of this shape; since operator set 15 it may take a part of it."""
    return np.asarray(shape[call.attribute("start", 0) : call.attribute("end", len(shape))], np.int64)


def size_of(call: Call, shape: Sequence[int]) -> Stored:
    """What Size gives for a tensor of this shape."""
    return np.asarray(math.prod(shape), np.int64)


_Quick = Callable[..., Any]
_QUICK: dict[str, _Quick] = {
    "Identity": lambda call, x: x,
    "Cast": _cast,
    "Add": lambda call, a, b: a + b,
    "Sub": lambda call, a, b: a - b,
    "Mul": lambda call, a, b: a * b,
    "Div": _divide,
    "DequantizeLinear": _dequantize,
    "Mean": lambda call, *xs: sum(xs[1:], xs[0]) / len(xs),
    "Neg": lambda call, x: -x,
    "Sqrt": lambda call, x: np.sqrt(x),
    "Equal": lambda call, a, b: a == b,
    "Less": lambda call, a, b: a < b,
    "Greater": lambda call, a, b: a > b,
    "Not": lambda call, x: ~x,
    "Where": lambda call, c, a, b: np.where(c, a, b),
    "MatMul": lambda call, a, b: np.matmul(a, b),
    "Concat": lambda call, *xs: np.concatenate(xs, axis=call.attribute("axis")),
    "Expand": lambda call, x, shape: np.broadcast_to(x, common(call, x.shape, [int(n) for n in shape])),
    "Tile": lambda call, x, repeats: np.tile(x, [int(n) for n in repeats]),
    "Range": _range,
    "ConstantOfShape": _constant_of_shape,
    "Gather": _gather,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": lambda call, x, shape: x.reshape(forms.reshaped(call, x.shape, [int(n) for n in shape])),
    "Transpose": lambda call, x: np.transpose(x, call.attribute("perm")),
    "Slice": _slice,
    "Split": _split,
    "Shape": _shape,
    "Size": lambda call, x: size_of(call, x.shape),
}
