"""Matrix products and convolutions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipverify import ops
from lipverify.frontends.builder import Operand, Value
from lipverify.frontends.building.vanishing import contracted
from lipverify.frontends.onnx.call import Call
from lipverify.frontends.onnx.registry import lower
from lipverify.frontends.onnx.translators.windows import explicit_pads, positive, window

_MAX_STACK = 4096


@lower.register("MatMul")
def product(c: Call) -> Value:
    """A product of matrices, one of them computed."""
    b, (left, right) = c.build, (c.operand(0), c.operand(1))
    for x in (left, right):
        if isinstance(x, Tensor) and math.prod(x.shape[:-2]) > _MAX_STACK:
            raise c.refuse(f"product with more than {_MAX_STACK} stored matrices", "use fewer")
    # A vector beside a stack of matrices is a row on the left and a column on the right.
    if isinstance(left, Value) and left.rank == 1 and isinstance(right, Tensor) and right.ndim > 2:
        product = b.matmul(b.unsqueeze(left, [0]), right)
        return b.squeeze(product, [product.rank - 2])
    if isinstance(right, Value) and right.rank == 1 and isinstance(left, Tensor) and left.ndim > 2:
        product = b.matmul(left, b.unsqueeze(right, [1]))
        return b.squeeze(product, [product.rank - 1])
    return b.matmul(left, right)


@lower.register("Gemm")
def _gemm(c: Call) -> Value:
    b = c.build
    left, right = (_matrix(c, i, name) for i, name in enumerate(("transA", "transB")))
    alpha, beta = c.attribute("alpha", 1.0), c.attribute("beta", 1.0)
    bias = c.operand(2) if c.raw(2) is not None else None
    if isinstance(left, Value) and isinstance(right, Tensor) and alpha == beta == 1:
        weight = right.T.contiguous()
        flat = None if isinstance(bias, Value) else _row(bias, weight.shape[0])
        plain = b.linear(left, weight, flat)
        return plain if bias is None or flat is not None else b.plus(plain, bias)
    stored = isinstance(left, Tensor) and isinstance(right, Tensor)
    product: Operand = contracted(b, left, right) if stored else b.matmul(left, right)  # type: ignore[arg-type]
    if alpha != 1:
        product = _times(c, product, alpha)
    if bias is not None:
        return b.plus(product, bias if beta == 1 else _times(c, bias, beta))
    assert isinstance(product, Value)
    return product


def _matrix(c: Call, position: int, flag: str) -> Operand:
    found = c.operand(position)
    if (found.rank if isinstance(found, Value) else found.ndim) != 2:
        raise c.invalid(f"its input {position} is no matrix")
    if not c.flag(flag):
        return found
    return c.build.transpose(found, (1, 0)) if isinstance(found, Value) else found.T


def _row(bias: Tensor | None, size: int) -> Tensor | None:
    """The bias as one number for each output, if it has that form."""
    if (
        bias is None
        or bias.numel() not in (1, size)
        or bias.ndim > 2
        or (bias.ndim == 2 and bias.shape[0] != 1)
    ):
        return None
    return bias.reshape(-1).expand(size).contiguous()


def _times(c: Call, x: Operand, factor: float) -> Operand:
    """alpha or beta; a stored tensor is rounded once, to its own type."""
    if isinstance(x, Value):
        return c.build.times(x, c.build.number(factor))
    return c.build.held((x.to(torch.float64) * factor).to(x.dtype), x, torch.tensor(factor))


@lower.register("Conv")
def convolution(c: Call) -> Value:
    """A convolution with a stored kernel."""
    x, weight = c.value(), c.stored(1, "weight")
    kernel = _kernel(c, weight)
    where = window(c, kernel, x.source_shape[-len(kernel) :])
    op = ops.Conv(
        weight,
        _bias(c, weight.shape[0]),
        where.stride,
        where.padding,
        where.dilation,
        _groups(c, weight.shape[0]),
    )
    return c.build.conv(x, op)


def _kernel(c: Call, weight: Tensor) -> tuple[int, ...]:
    kernel = tuple(weight.shape[2:])
    if weight.ndim not in (3, 4, 5):
        raise c.refuse("convolutions over one to three spatial axes are covered")
    if tuple(c.attribute("kernel_shape", kernel)) != kernel:
        raise c.invalid(f"kernel_shape {c.attribute('kernel_shape')} for a weight {list(weight.shape)}")
    return kernel


def _bias(c: Call, size: int) -> Tensor | None:
    bias = c.optional(2, "bias")
    if bias is not None and tuple(bias.shape) != (size,):
        raise c.invalid(f"bias {list(bias.shape)} for {size} channels")
    return bias


def _groups(c: Call, channels: int) -> int:
    groups: int = c.attribute("group", 1)
    if groups < 1 or channels % groups:
        raise c.invalid(f"{channels} channels in {groups} groups")
    return groups


@lower.register("ConvTranspose")
def _conv_transpose(c: Call) -> Value:
    x, weight = c.value(), c.stored(1, "weight")
    kernel = _kernel(c, weight)
    rank = len(kernel)
    stride, dilation = positive(c, "strides", rank), positive(c, "dilations", rank)
    added = tuple(c.attribute("output_padding") or [0] * rank)
    if len(added) != rank or any(
        not 0 <= n < max(s, d) for n, s, d in zip(added, stride, dilation, strict=True)
    ):
        raise c.invalid(f"output_padding {list(added)[:8]} with strides {list(stride)}")
    sizes = x.source_shape[-rank:]
    if len(sizes) != rank:
        raise c.invalid(f"a window over {rank} axes of a tensor {list(x.source_shape)}")
    full = [
        s * (size - 1) + extra + d * (k - 1) + 1
        for size, k, s, d, extra in zip(sizes, kernel, stride, dilation, added, strict=True)
    ]
    mode = c.choice("auto_pad", "NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
    pads = explicit_pads(c, rank)
    if mode != "NOTSET" and "pads" in c.attributes and (mode != "VALID" or any(a or b for a, b in pads)):
        raise c.invalid(f"both auto_pad {mode} and pads are given")
    wanted = c.attribute("output_shape")
    if wanted is not None and len(wanted) == rank + 2:
        wanted = wanted[2:]  # some exporters write batch and channels too
    if wanted is None and mode.startswith("SAME"):
        wanted = [size * s for size, s in zip(sizes, stride, strict=True)]
    if wanted is not None:
        if len(wanted) != rank:
            raise c.invalid(f"output_shape {wanted[:8]} for {rank} spatial axes")
        # What is wanted beyond the full output is zeros behind it, as output_padding says them.
        more = [max(want - have, 0) for have, want in zip(full, wanted, strict=True)]
        added = tuple(own + extra for own, extra in zip(added, more, strict=True))
        if any(n >= max(s, d) for n, s, d in zip(added, stride, dilation, strict=True)):
            raise c.refuse(
                f"an output {wanted} so much larger than the full one {full} is not covered",
                "set output_padding",
            )
        full = [have + extra for have, extra in zip(full, more, strict=True)]
        pads = _cut(full, wanted, behind=mode != "SAME_UPPER")
    if any(n < sum(pair) for n, pair in zip(full, pads, strict=True)):
        raise c.invalid(f"cuts {[list(pair) for pair in pads]} of an output {full}")
    groups = _groups(c, weight.shape[0])
    op = ops.ConvTranspose(
        weight, _bias(c, weight.shape[1] * groups), stride, tuple(pads), added, dilation, groups
    )
    return c.build.conv(x, op)


def _cut(full: list[int], wanted: list[int], behind: bool) -> list[tuple[int, int]]:
    """What to cut (before, after) of the full output; an odd total takes the extra entry from the front if `behind`."""
    totals = [have - want for have, want in zip(full, wanted, strict=True)]
    halves = [(total - total // 2, total // 2) for total in totals]
    return halves if behind else [(after, before) for before, after in halves]
