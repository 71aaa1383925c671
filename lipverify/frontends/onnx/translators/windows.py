"""Strides, dilations and paddings of operators that slide a window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lipverify.frontends.onnx.call import Call
from lipverify.ir.op import Shape
from lipverify.ops.convolution import Pads

_LARGEST = 1 << 24


@dataclass(frozen=True)
class Window:
    """One size for each spatial axis. `automatic`: the padding follows from auto_pad."""

    kernel: Shape
    stride: Shape
    dilation: Shape
    padding: Pads
    automatic: bool


def window(call: Call, kernel: Sequence[int], sizes: Sequence[int]) -> Window:
    """The window of a convolution or pooling with this kernel over spatial axes of these sizes.

    SAME_UPPER and SAME_LOWER give ceil(size / stride) positions; an odd total padding puts the extra entry behind or before.
    """
    rank = len(kernel)
    if len(sizes) != rank:
        raise call.invalid(f"a window over {rank} axes of a tensor with {len(sizes)} spatial axes")
    stride = positive(call, "strides", rank)
    dilation = positive(call, "dilations", rank)
    if any(not 1 <= k <= _LARGEST for k in kernel):
        raise call.invalid(f"impossible window {list(kernel)}")
    mode = call.choice("auto_pad", "NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
    pads = explicit_pads(call, rank)
    if mode != "NOTSET":
        # Readers differ in which of the two counts.
        if "pads" in call.attributes and (mode != "VALID" or any(a or b for a, b in pads)):
            raise call.invalid(f"both auto_pad {mode} and pads are given")
        if mode != "VALID":
            pads = []
            for size, k, s, d in zip(sizes, kernel, stride, dilation, strict=True):
                total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
                small, large = total // 2, total - total // 2
                pads.append((small, large) if mode == "SAME_UPPER" else (large, small))
    for size, pair, k, d in zip(sizes, pads, kernel, dilation, strict=True):
        if size + sum(pair) < (span := d * (k - 1) + 1):
            raise call.invalid(f"a window of {span} entries over an axis of {size}, padded by {list(pair)}")
    return Window(tuple(kernel), stride, dilation, tuple(pads), mode != "NOTSET")


def positive(call: Call, name: str, rank: int) -> Shape:
    """Strides or dilations: at least 1, by default 1."""
    given = call.attribute(name) or [1] * rank
    if len(given) != rank or any(not 1 <= n <= _LARGEST for n in given):
        raise call.invalid(f"its {name} {list(given)[:8]} do not fit {rank} spatial axes")
    return tuple(given)


def explicit_pads(call: Call, rank: int) -> list[tuple[int, int]]:
    """The attribute pads: all beginnings, then all ends."""
    given = call.attribute("pads") or [0] * (2 * rank)
    if len(given) != 2 * rank or any(not 0 <= n <= _LARGEST for n in given):
        raise call.invalid(f"its pads {list(given)[:8]} do not fit {rank} spatial axes")
    return list(zip(given[:rank], given[rank:], strict=True))
