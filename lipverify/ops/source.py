"""The two operators without inputs from other layers: Input and Constant."""

from __future__ import annotations

from torch import Tensor

from lipverify.ir.op import Constant, Input
from lipverify.rules import forward


@forward.register(Input)
def _input(op: Input, x: Tensor) -> Tensor:
    return x


@forward.register(Constant)
def _constant(op: Constant) -> Tensor:
    # Batch size 1: every operator broadcasts over the batch axis.
    return op.value.unsqueeze(0)
