"""Teach lipverify an operator it does not know: what it computes and how far it amplifies. See examples/plugin for a package."""

from dataclasses import dataclass

import torch
from torch import nn

import lipverify as lv
from lipverify.frontends.torch_export.registry import lower
from lipverify.ir.interval import Interval
from lipverify.ir.op import Op, Shape
from lipverify.ops.scalar import box_slopes, scalar_gain, uniform_slopes
from lipverify.rules import Slopes, forward, gain, slopes
from lipverify.testing import check_operator


@torch.library.custom_op("example::bent", mutates_args=())
def bent(x: torch.Tensor) -> torch.Tensor:
    """x / sqrt(1 + x^2), as an operator that modules call."""
    return x / torch.sqrt(1 + x * x)


bent.register_fake(torch.empty_like)


@dataclass(frozen=True, eq=False)
class Bent(Op):
    """y = x / sqrt(1 + x^2), entry by entry."""


lower.register("example.bent")(lambda builder, x: builder.elementwise(Bent(), x))
forward.register(Bent)(lambda op, x: x / torch.sqrt(1 + x * x))


@slopes.register(Bent)
def bent_slopes(op: Bent, box: Interval | None, shape: Shape) -> Slopes:
    """The derivative (1 + x^2)^(-3/2) lies in (0, 1]; no sharper range is offered over a box (examples/plugin has one)."""
    if box is None:
        return uniform_slopes(0.0, 1.0, shape)
    return box_slopes(Interval(torch.zeros_like(box.lower), torch.ones_like(box.lower)), shape)


gain.register(Bent)(scalar_gain)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 12), nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(bent(self.first(x)))


check_operator(Bent(), [(6,)])  # samples that try to refute the rules
torch.manual_seed(0)
result = lv.audit(lv.extract(Net().eval(), torch.zeros(2, 4)), analyzers=["product", "lipsdp"], budget=3)
for row in result.rows:
    print(f"{row.analyzer}: {result.lower.value:.4f} <= L <= {row.upper:.4f}")
