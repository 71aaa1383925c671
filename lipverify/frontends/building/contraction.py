"""Sums over the indices that an equation names, as einsum of torch and ONNX spells them.

Legend: in "bqhd,bkhd->bhqk" an index that both terms and the result have (b, h) counts pairs of matrices; one that both terms
have and the result lacks (d) is summed over; one of a single term (q, k) counts rows or columns, or is summed over first where
the result lacks it. "..." stands for the axes a term does not name, the last of them aligned.
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence

import torch
from torch import Tensor

from lipverify import ops
from lipverify.errors import InvalidFile
from lipverify.frontends.builder import Builder, Operand, Value
from lipverify.loading.names import display


def einsum(b: Builder, equation: str, operands: Sequence[Operand]) -> Value:
    """Of one or two operands, at least one of them computed.

    Raises:
        UnsupportedModel: more operands, or an index twice in one term. InvalidFile: the equation does not fit its operands.
    """
    terms, right = _spelled(b, equation, operands)
    pairs = [_diagonal(b, x, term) for x, term in zip(operands, terms, strict=True)]
    operands, terms = [x for x, _ in pairs], [term for _, term in pairs]
    if len(operands) > 2 or len(set(right)) < len(right):
        raise b.refuse(
            f"einsum {equation[:40]!r} is not covered",
            operands,
            "contract two tensors at a time, with every index once in a term",
        )
    sizes: dict[str, int] = {}
    for term, x in zip(terms, operands, strict=True):
        for index, size in zip(term, _shape(x), strict=True):
            if sizes.setdefault(index, size) != size:
                raise _misfit(b, equation)
    if not set(right) <= sizes.keys():
        raise _misfit(b, equation)
    parts = []
    for k, (term, x) in enumerate(zip(terms, operands, strict=True)):
        elsewhere = {*right, *"".join(terms[:k] + terms[k + 1 :])}
        gone = [i for i, index in enumerate(term) if index not in elsewhere]
        if gone:
            x = b.reduce(ops.ReduceSum, x, gone, False) if isinstance(x, Value) else x.sum(gone)
        parts.append((x, "".join(index for index in term if index in elsewhere)))
    if len(parts) == 1:
        ((x, term),) = parts
        assert isinstance(x, Value)
        return b.transpose(x, [term.index(index) for index in right])
    (first, own), (second, other) = parts
    if isinstance(first, Value) and isinstance(second, Tensor):
        return _with_stored(b, first, own, second, other, right, sizes)
    if isinstance(first, Tensor) and isinstance(second, Value):
        return _with_stored(b, second, other, first, own, right, sizes)
    return _products(b, first, own, second, other, right, sizes)


def _diagonal(b: Builder, x: Operand, term: str) -> tuple[Operand, str]:
    """The entries at which indices that a term has twice are equal, under a term that has each of them once."""
    while (twice := next((i for i in term if term.count(i) > 1), None)) is not None:
        first, second = [k for k, index in enumerate(term) if index == twice][:2]
        shape = _shape(x)
        if shape[first] != shape[second]:
            break  # told where sizes are compared
        if isinstance(x, Tensor):
            x = x.diagonal(dim1=first, dim2=second)
        else:
            size, others = shape[first], [k for k in range(len(term)) if k not in (first, second)]
            v = b.free(x, first, second)
            v = b.transpose(v, [*others, first, second])
            v = b.reshape(v, [*v.source_shape[:-2], size * size])
            x = b.gather(v, v.rank - 1, torch.arange(size) * (size + 1))
        term = "".join(index for k, index in enumerate(term) if k not in (first, second)) + twice
    return x, term


def _spelled(b: Builder, equation: str, operands: Sequence[Operand]) -> tuple[list[str], str]:
    """Terms and result of single letters, without ... and with the result that an equation may leave out."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        raise _misfit(b, equation)
    free = [letter for letter in string.ascii_letters if letter not in equation]
    named = [len(term.replace("...", "")) for term in terms]
    more = [len(_shape(x)) - n if "..." in t else 0 for t, n, x in zip(terms, named, operands, strict=True)]
    if min(more) < 0 or max(more) > len(free):
        raise _misfit(b, equation)
    rest = "".join(free[: max(more)])
    spelled = [term.replace("...", rest[len(rest) - k :], 1) for term, k in zip(terms, more, strict=True)]
    for term, x in zip(spelled, operands, strict=True):
        if len(term) != len(_shape(x)) or not (term.isalpha() or not term):
            raise _misfit(b, equation)
    if not arrow:
        every = "".join(spelled)
        return spelled, rest + "".join(sorted(i for i in set(every) - set(rest) if every.count(i) == 1))
    result = right.replace("...", rest, 1)
    if result and not result.isalpha():
        raise _misfit(b, equation)
    return spelled, result


def _misfit(b: Builder, equation: str) -> InvalidFile:
    return InvalidFile(f'{b.what} "{display(b.where)}": einsum {equation[:40]!r} does not fit its inputs')


def _shape(x: Operand) -> Sequence[int]:
    return x.source_shape if isinstance(x, Value) else x.shape


def _with_stored(
    b: Builder, x: Value, own: str, weight: Tensor, other: str, right: str, sizes: dict[str, int]
) -> Value:
    """One matrix product where no index counts pairs of matrices."""
    inner = [i for i in own if i in other]
    if any(i in right for i in inner):
        return _products(b, x, own, weight, other, right, sizes)
    new, kept = [i for i in other if i not in own], [i for i in own if i not in other]
    columns, rows = ([sizes[i] for i in some] for some in (inner, new))
    matrix = weight.permute([other.index(i) for i in (*new, *inner)]).reshape(
        math.prod(rows), math.prod(columns)
    )
    v = b.transpose(x, [own.index(i) for i in (*kept, *inner)])
    lead = list(v.source_shape[: len(kept)])
    product = b.linear(b.reshape(v, [*lead, matrix.shape[1]]), matrix.contiguous())
    order = [*kept, *new]
    return b.transpose(b.reshape(product, [*lead, *rows]), [order.index(i) for i in right])


def _products(
    b: Builder, x: Operand, own: str, y: Operand, other: str, right: str, sizes: dict[str, int]
) -> Value:
    """A stack of matrix products."""
    stack = [i for i in right if i in own and i in other]
    inner = [i for i in own if i in other and i not in right]
    rows, columns = [i for i in own if i not in other], [i for i in other if i not in own]

    def matrices(part: Operand, term: str, before: list[str], after: list[str]) -> Operand:
        order = [term.index(i) for i in (*stack, *before, *after)]
        shape = [sizes[i] for i in stack] + [math.prod(sizes[i] for i in some) for some in (before, after)]
        if isinstance(part, Tensor):
            return part.permute(order).reshape(shape).contiguous()
        turned = b.transpose(part, order)
        if max(len(before), len(after)) > 1:
            return b.reshape(turned, shape)
        alone = [len(stack) + k for k, some in enumerate((before, after)) if not some]
        return b.unsqueeze(turned, alone) if alone else turned

    product = b.matmul(matrices(x, own, rows, inner), matrices(y, other, inner, columns))
    order = [*stack, *rows, *columns]
    alone = [len(stack) + k for k, some in enumerate((rows, columns)) if not some]
    if max(len(rows), len(columns)) > 1:
        product = b.reshape(product, [sizes[i] for i in order])
    elif alone:
        product = b.squeeze(product, alone)
    return b.transpose(product, [order.index(i) for i in right])
