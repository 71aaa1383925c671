"""Which tap meets which input: the geometry of a zero-padded convolution, without any norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipverify.errors import UsageError
from lipverify.linalg import dense

Padding = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Convolution:
    """A convolution scaled by a power of two; `placed` gives it an input size."""

    weight: (
        Tensor  # [groups, out / groups, in / groups, *taps] float64, largest entry in [1/2, 1), or all zero
    )
    exponent: int  # the kernel is weight * 2^exponent
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    size: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, weight: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int) -> Convolution:
        """From a weight [out, in / groups, *taps]; UsageError for arguments that do not fit together."""
        axes = weight.ndim - 2
        if axes < 1:
            raise UsageError(f"a convolution weight is [out, in / groups, *taps], not {tuple(weight.shape)}")
        if len(stride) != axes or len(dilation) != axes:
            raise UsageError(f"stride and dilation of a {axes}-D convolution need {axes} numbers each")
        if min(*stride, *dilation, groups) < 1:
            raise UsageError(
                f"stride {tuple(stride)}, dilation {tuple(dilation)}, groups {groups} must be positive"
            )
        if weight.numel() == 0 or weight.shape[0] % groups:
            raise UsageError(
                f"a weight of shape {tuple(weight.shape)} is empty or does not split into {groups} groups"
            )
        if weight.is_complex():
            raise UsageError("a convolution weight must be real")
        flat = dense.scaled(dense.validated(weight.reshape(1, -1), "l2", "l2"))
        values = flat.values.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        return cls(values, int(flat.exponent), tuple(stride), tuple(dilation))

    def placed(self, size: Sequence[int], padding: Padding) -> Convolution:
        """On inputs of `size` with (before, after) zeros per axis; UsageError when nothing comes out."""
        if len(size) != self.axes or len(padding) != self.axes or any(len(pad) != 2 for pad in padding):
            raise UsageError(
                f"a {self.axes}-D convolution needs {self.axes} input sizes and pairs of padding"
            )
        if min(size) < 1 or min(min(pad) for pad in padding) < 0:
            raise UsageError(
                f"input size {tuple(size)} must be positive, padding {list(padding)} non-negative"
            )
        result = replace(self, size=tuple(size), padding=tuple((int(a), int(b)) for a, b in padding))
        if min(result.output_size) < 1:
            raise UsageError(f"a kernel of {self.taps} taps leaves no output on input size {result.size}")
        return result

    @property
    def axes(self) -> int:
        return self.weight.ndim - 3

    @property
    def taps(self) -> tuple[int, ...]:
        return tuple(self.weight.shape[3:])

    @property
    def output_size(self) -> tuple[int, ...]:
        return tuple(
            (n + sum(pad) - dil * (taps - 1) - 1) // s + 1
            for n, pad, dil, taps, s in zip(
                self.size, self.padding, self.dilation, self.taps, self.stride, strict=True
            )
        )

    @property
    def matrix_shape(self) -> tuple[int, int, int]:
        groups, outputs, inputs = self.weight.shape[:3]
        return groups, outputs * math.prod(self.output_size), inputs * math.prod(self.size)

    def matrix(self) -> Tensor:
        """The diagonal blocks of the map, [groups, out / groups * positions, in / groups * positions], exact."""
        result = self.weight
        for axis in range(self.axes):
            # [taps, outputs, inputs] of zeros and ones; each entry of the result meets at most one tap, so sums are exact.
            meets = self._meets(axis).to(result)
            result = torch.tensordot(result, meets, dims=([3], [0]))
        # Now [groups, out, in, p_1, t_1, p_2, t_2, ...].
        count = self.axes
        order = [0, 1, *range(3, 3 + 2 * count, 2), 2, *range(4, 4 + 2 * count, 2)]
        return result.permute(order).reshape(self.matrix_shape)

    def _meets(self, axis: int) -> Tensor:
        taps, outputs, n = self.taps[axis], self.output_size[axis], self.size[axis]
        a = torch.arange(taps)[:, None, None] * self.dilation[axis]
        p = torch.arange(outputs)[None, :, None] * self.stride[axis]
        return (p + a - self.padding[axis][0]) == torch.arange(n)[None, None, :]

    def tap_masks(self, axis: int, *, columns: bool) -> list[list[int]]:
        """The maximal sets of taps that one output position reads (or that read one input position) along an axis.

        Before `placed`, those of an unbounded input: all taps, or all taps of one residue modulo the stride.
        """
        taps, s, dil = self.taps[axis], self.stride[axis], self.dilation[axis]
        if not self.size:
            classes = range(s) if columns else range(1)
            found = {frozenset(a for a in range(taps) if not columns or dil * a % s == r) for r in classes}
        else:
            n, before, outputs = self.size[axis], self.padding[axis][0], self.output_size[axis]
            reads = [[(a, s * p + dil * a - before) for a in range(taps)] for p in range(outputs)]
            lines: dict[int, set[int]] = {}
            for p, pairs in enumerate(reads):
                for a, t in pairs:
                    if 0 <= t < n:
                        lines.setdefault(t if columns else p, set()).add(a)
            found = {frozenset(line) for line in lines.values()}
        return [sorted(line) for line in found if line and not any(line < other for other in found)]

    @property
    def embedding_sizes(self) -> tuple[int, ...]:
        """Per axis, the smallest torus on which the polyphase convolution does not wrap around.

        Output p reads the polyphase inputs t = p + b, 0 <= b < taps'. On a torus of N points it also reads t when
        p + b - t is a non-zero multiple of N; there is none once N > |p + b - t| for all outputs and inputs in use.
        """
        sizes = []
        for axis, n in enumerate(self.size):
            before, outputs, s = self.padding[axis][0], self.output_size[axis], self.stride[axis]
            span = self.dilation[axis] * (self.taps[axis] - 1)
            coarse = span // s + 1
            # Outputs that see padding only are zero rows; inputs behind the last output are zero columns.
            p_first = max(0, -(-(before - span) // s))
            p_last = min(outputs - 1, (before + n - 1) // s)
            t_first = max(before // s, p_first)
            t_last = min((before + n - 1) // s, p_last + coarse - 1)
            sizes.append(1 + max(t_last - p_first, p_last + coarse - 1 - t_first, 0))
        return tuple(sizes)
