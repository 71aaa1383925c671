"""Certified operator norms of convolutions with zero padding, over any number of spatial axes.

The map sends x [in, *size] to y[o, p] = sum_{i,a} K[o,i,a] x[i, stride p + dilation a - before], x zero outside.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lipverify.errors import UsageError
from lipverify.linalg import dense
from lipverify.linalg.geometry import Convolution, Padding
from lipverify.linalg.rounding import Upper
from lipverify.linalg.symbol import Symbol, circular_maximum, polyphase, supremum, torus_maximum, torus_work

# A torus is worth a search when its frequencies may miss the supremum by more than this.
_TORUS_GAIN = 2.5e-3
# Estimated real multiplications of a dense l2 bound: always taken, and taken when the torus may be this far off.
_QUICK_WORK, _LONG_WORK, _LOOSE = 2e10, 1e11, 5e-2
_LARGEST_MATRIX = 30_000_000


def convolution_norm(
    weight: Tensor,
    *,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Padding,
    dilation: Sequence[int],
    groups: int,
    norm_in: str = "l2",
    norm_out: str = "l2",
) -> Upper:
    """Upper bound of the operator norm of a zero-padded convolution on inputs of one size.

    Statement: |y|_out <= bound |x|_in for every x [in, *input_size].
    Source: l2 -> l2 is the smallest of: the matrix itself when small (or when no two outputs share an input), the
        embedding into a torus without wrap-around (`symbol.torus_maximum`), the supremum of the symbol
        (`symbol.supremum`). l1 -> any and any -> linf are maxima of column or row norms, exact up to rounding.
        linf -> l1, linf -> l2 and l2 -> l1 are NP-hard and get certified inequalities (`_hard`).
    Sound when: the assumptions of `lipverify.linalg` hold.

    Args:
        weight: [out, in / groups, *taps], real floating point, any device.
        input_size, stride, dilation: one integer per spatial axis; padding: (before, after) per spatial axis.
        norm_in, norm_out: "l1", "l2" or "linf".

    Raises:
        UsageError: arguments that do not fit together, a non-finite weight, an empty output.
    """
    convolution = Convolution.of(weight, stride, dilation, groups).placed(input_size, padding)
    return _bound(convolution, norm_in, norm_out).scale(convolution.exponent)


def transposed_convolution_norm(
    weight: Tensor,
    *,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Padding,
    dilation: Sequence[int],
    groups: int,
    output_padding: Sequence[int] = (),
    norm_in: str = "l2",
    norm_out: str = "l2",
) -> Upper:
    """Upper bound of the operator norm of a transposed convolution, the adjoint of a strided one.

    Statement: |y|_out <= bound |x|_in; the adjoint has the same norm between the dual norms, in opposite order.
    Source and errors: as `convolution_norm`, for the convolution that maps the output size back to `input_size`.

    Args:
        weight: [in, out / groups, *taps], which is the weight of that convolution.
        input_size: of the transposed convolution. output_padding: extra rows at the end, below the stride.
    """
    convolution = Convolution.of(weight, stride, dilation, groups)
    extra = tuple(output_padding) or (0,) * convolution.axes
    if not len(extra) == len(input_size) == len(padding) == convolution.axes:
        raise UsageError(
            f"a {convolution.axes}-D transposed convolution needs as many sizes, paddings and output paddings"
        )
    size = tuple(
        (m - 1) * s - sum(pad) + dil * (taps - 1) + 1 + more
        for m, s, pad, dil, taps, more in zip(
            input_size, stride, padding, dilation, convolution.taps, extra, strict=True
        )
    )
    convolution = convolution.placed(size, padding)
    if convolution.output_size != tuple(input_size):
        raise UsageError(
            f"output padding {extra} does not fit stride {tuple(stride)} on input size {tuple(input_size)}"
        )
    return _bound(convolution, dense.dual(norm_out), dense.dual(norm_in)).scale(convolution.exponent)


def convolution_norm_any_size(
    weight: Tensor,
    *,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    norm_in: str = "l2",
    norm_out: str = "l2",
) -> Upper:
    """Upper bound of the norm of a zero-padded convolution that holds for every input size and padding.

    Statement, Source: as `convolution_norm`; l2 -> l2 by `symbol.supremum`.

    Raises:
        UsageError: also for linf -> l1, linf -> l2 and l2 -> l1, whose norms grow with the input size.
    """
    convolution = Convolution.of(weight, stride, dilation, groups)
    for norm in (norm_in, norm_out):
        dense.dual(norm)  # refuses unknown names
    if not bool(convolution.weight.any()):
        return Upper.zero()
    if norm_in == norm_out == "l2":
        symbol = _symbol(convolution)
        upper = _as_matrix(symbol) if symbol.is_constant else Upper.of(supremum(symbol))
    elif norm_in == "l1" or norm_out == "linf":
        upper = _rows_or_columns(convolution, norm_in, norm_out)
    else:
        raise UsageError(
            f"the {norm_in} -> {norm_out} norm of a convolution grows with the input size: give the size"
        )
    return upper.scale(convolution.exponent)


def circular_convolution_norm(
    weight: Tensor, *, input_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int], groups: int
) -> Upper:
    """Upper bound of the l2 norm of a convolution with circular padding that keeps size / stride positions per axis.

    Statement: the map is block diagonal in the discrete Fourier basis, so its norm is the largest norm of the symbol at
        the frequencies j / (size / stride), exact up to rounding. It is no bound for zero padding.
    Source: Sedghi, Gupta, Long, "The singular values of convolutional layers", ICLR 2019, theorem 6.

    Raises:
        UsageError: a stride that does not divide the size; otherwise as `convolution_norm`.
    """
    convolution = Convolution.of(weight, stride, dilation, groups)
    if len(input_size) != convolution.axes or any(
        n < 1 or n % s for n, s in zip(input_size, stride, strict=True)
    ):
        raise UsageError(
            f"stride {tuple(stride)} does not divide the circular input size {tuple(input_size)}"
        )
    if not bool(convolution.weight.any()):
        return Upper.zero()
    sizes = [n // s for n, s in zip(input_size, stride, strict=True)]
    return Upper.of(circular_maximum(_symbol(convolution), sizes)).scale(convolution.exponent)


def _symbol(convolution: Convolution) -> Symbol:
    return Symbol(polyphase(convolution.weight, convolution.stride, convolution.dilation))


def _as_matrix(symbol: Symbol) -> Upper:
    """No two outputs share an input (patch embedding, 1 x 1): the map is copies of one matrix per group."""
    return dense.operator_norm_upper(symbol.kernel.flatten(2), "l2", "l2")


def _bound(convolution: Convolution, norm_in: str, norm_out: str) -> Upper:
    for norm in (norm_in, norm_out):
        dense.dual(norm)  # refuses unknown names
    if norm_in == norm_out == "l2":
        return _spectral(convolution)
    if norm_in == "l1" or norm_out == "linf":
        return _rows_or_columns(convolution, norm_in, norm_out)
    return _hard(convolution, norm_in, norm_out)


def _spectral(convolution: Convolution) -> Upper:
    if not bool(convolution.weight.any()):
        return Upper.zero()
    symbol = _symbol(convolution)
    if symbol.is_constant:
        return _as_matrix(symbol)
    work = _matrix_work(convolution)
    if work < _QUICK_WORK:
        return dense.operator_norm_upper(convolution.matrix(), "l2", "l2")
    sizes = convolution.embedding_sizes
    gain = sum((math.pi * d / n) ** 2 / 2 for d, n in zip(symbol.degrees, sizes, strict=True))
    # A torus maximum is never above the supremum; it costs more on large images, where it gains nothing.
    if gain > _TORUS_GAIN and torus_work(symbol, sizes) < _LONG_WORK:
        upper = Upper.of(torus_maximum(symbol, sizes))
    else:
        upper = Upper.of(supremum(symbol))
    if gain > _LOOSE and work < _LONG_WORK:
        upper = min(upper, dense.operator_norm_upper(convolution.matrix(), "l2", "l2"))
    return upper


def _matrix_work(convolution: Convolution) -> float:
    """Real multiplications of the dense l2 bound, a rough count; infinite above the memory limit."""
    groups, rows, columns = convolution.matrix_shape
    if groups * rows * columns > _LARGEST_MATRIX:
        return math.inf
    short, long = sorted((rows, columns))
    if groups == 1 and short >= dense.LANCZOS_SIDE:
        return 2.0 * short**2 * long + 1.5 * short**3 + 300.0 * short * long
    return groups * (4.0 * short**2 * long + 10.0 * short**3)


def _rows_or_columns(convolution: Convolution, norm_in: str, norm_out: str) -> Upper:
    """Maxima over columns (input l1) or rows (output linf): exact, one masked kernel per kind of position."""
    columns = norm_in == "l1"
    sizes = _line_norms(convolution, norm_out if columns else dense.dual(norm_in), columns=columns)
    return Upper.of(sizes.max().item())


def _line_norms(convolution: Convolution, norm: str, *, columns: bool) -> Tensor:
    """Largest norm of the rows (columns) that belong to each output (input) channel, over all positions: [channels]."""
    groups, outputs, inputs = convolution.weight.shape[:3]
    lines = convolution.weight.transpose(1, 2) if columns else convolution.weight
    lines = lines.reshape(groups * (inputs if columns else outputs), -1, *convolution.taps)
    best = torch.zeros(len(lines), dtype=torch.float64, device=lines.device)
    masks = [convolution.tap_masks(axis, columns=columns) for axis in range(convolution.axes)]
    for choice in itertools.product(*masks):
        chosen = lines
        for axis, taps in enumerate(choice):
            chosen = chosen.index_select(2 + axis, torch.tensor(taps, device=lines.device))
        if chosen.numel():
            best = torch.maximum(best, dense.vector_norms(chosen.flatten(1), norm))
    return best


def _hard(convolution: Convolution, norm_in: str, norm_out: str) -> Upper:
    """Certified inequalities for linf -> l1, linf -> l2 and l2 -> l1, block by block when the matrix is small.

    |A|_{linf -> out} <= |(row sums)|_out, |A|_{l2 -> l1} <= |(column sums)|_2 (its adjoint), and the l2 norm times the
    square root of the number of entries of an linf input and of an l1 output.
    """
    groups, rows, columns = convolution.matrix_shape
    entries = (groups * columns if norm_in == "linf" else 1) * (groups * rows if norm_out == "l1" else 1)
    upper = _spectral(convolution) * Upper.of(entries).sqrt()
    positions = math.prod(convolution.size if norm_in == "l2" else convolution.output_size)
    sums = _line_norms(convolution, "l1", columns=norm_in == "l2").tolist()
    if norm_in == "linf" and norm_out == "l1":
        upper = min(upper, Upper.sum(sums) * positions)
    else:
        upper = min(upper, Upper.root_sum_squares(sums) * Upper.of(positions).sqrt())
    if _matrix_work(convolution) < _QUICK_WORK:
        # Blocks act on separate inputs and outputs: bounds add up (linf -> l1) or in squares (one side l2).
        blocks = dense.operator_norm(convolution.matrix(), norm_in, norm_out).tolist()
        both = norm_in == "linf" and norm_out == "l1"
        upper = min(upper, Upper.sum(blocks) if both else Upper.root_sum_squares(blocks))
    return upper
