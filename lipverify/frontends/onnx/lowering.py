"""The builder with the limits that a stranger's graph is held to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipverify import ops
from lipverify.errors import InvalidFile
from lipverify.frontends.builder import Builder, Value
from lipverify.ir.op import Op
from lipverify.loading.names import display
from lipverify.loading.onnx_weights import LARGE

MAX_NUMBERS = 1 << 27
"""Numbers in one computed tensor of one sample."""
MAX_TOTAL_NUMBERS = 1 << 31
"""Numbers in all computed tensors of one sample together."""
MAX_NODES = 100_000
MAX_PRODUCTS = 1 << 36
"""Multiplications that one sample needs in matrix products and convolutions."""

Stored = NDArray[Any]
"""A tensor of the file that does not depend on the input, or one computed from such tensors alone."""


class OnnxBuilder(Builder):
    """The builder as translators of this front end see it."""

    def __init__(self, dtype: torch.dtype, *, symbolic_batch: bool) -> None:
        super().__init__(symbolic_batch=symbolic_batch)
        self.dtype = dtype
        """The type of the graph's input."""
        self.stored_dtype = dtype
        self._numbers = 0
        self._products = 0

    def add(self, op: Op, operands: Sequence[Value], batch: int | None) -> Value:
        """One more node, within the limits.

        Raises:
            UnsupportedModel: the graph becomes too large to be evaluated.
        """
        result = super().add(op, operands, batch)
        size = math.prod(result.shape)
        if size == 0 or any(n < 0 for n in result.shape):
            raise self.refuse(f"computes a tensor without entries, {list(result.shape)}", operands)
        self._numbers += size
        self._products += size * _products_per_number(op, operands)
        if size > MAX_NUMBERS:
            raise self.refuse(f"computes a tensor of {size} numbers, more than {MAX_NUMBERS}", operands)
        if len(self._nodes) > MAX_NODES or self._numbers > MAX_TOTAL_NUMBERS:
            what = f"{len(self._nodes)} nodes with {self._numbers} numbers"
            raise self.refuse(f"the graph up to here has {what}, which is too large", operands)
        if self._products > MAX_PRODUCTS:
            raise self.refuse(f"one sample needs more than {MAX_PRODUCTS} multiplications", operands)
        return result

    def invalid(self, what: str) -> InvalidFile:
        """The error to raise where the node in work contradicts itself or the operator's definition."""
        return InvalidFile(f'{self.what} "{display(self.where)}": {what}; export the model again')

    def number(self, value: float) -> Tensor:
        """A setting of the file, exactly, in the narrowest type that holds it and is no narrower than the graph's."""
        if not math.isfinite(value):
            raise self.refuse(f"computes with {value}")
        for dtype in (self.dtype, torch.float32):
            tensor = torch.tensor(value, dtype=dtype)
            if float(tensor) == value:
                return tensor
        return torch.tensor(value, dtype=torch.float64)

    def tensor(self, array: Stored) -> Tensor:
        """A stored tensor as an operand of real arithmetic: floating-point types are kept, integers become the graph's type.

        Raises:
            UnsupportedModel: it holds infinity or NaN, or numbers that are not real.
        """
        tensor = as_torch(array)
        if tensor is None or tensor.is_complex():
            raise self.refuse(
                f"computes with stored numbers of type {array.dtype}", (), "export real numbers"
            )
        if not tensor.is_floating_point():
            return tensor.to(self.dtype)
        if not bool(tensor.isfinite().all()):
            raise self.refuse(
                "computes with a stored infinity or NaN",
                (tensor,),
                "use a large finite number, or leave that part out",
            )
        return tensor


def as_torch(array: Stored) -> Tensor | None:
    """The same numbers in torch; None for types that torch lacks.

    Memory is shared with large tensors of the file, which are there once (`loading.onnx_weights`), and copied else.
    """
    given, array = array, np.ascontiguousarray(array).reshape(array.shape)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    if array.dtype.kind not in "biuf" or array.dtype.name.startswith("float8"):
        return None
    own = not np.may_share_memory(given, array) or array.nbytes >= LARGE
    return torch.from_numpy(array if own and array.flags.writeable else array.copy())


def _products_per_number(op: Op, operands: Sequence[Value]) -> int:
    """Multiplications behind one number of the result."""
    if isinstance(op, ops.Linear):
        return int(op.weight.shape[-1])
    if isinstance(op, (ops.Conv, ops.ConvTranspose)):
        return math.prod(op.weight.shape[1:])
    if isinstance(op, (ops.MaxPool, ops.AvgPool)):
        return math.prod(op.kernel)
    if isinstance(op, ops.MatMul):
        return operands[0].shape[-1]
    return 1
