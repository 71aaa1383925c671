"""How the difference of two results follows from the difference of the arguments, operator by operator.

Legend: p, q the operator in the first and in the second network, a_i and b_i its arguments there, d_i = a_i - b_i (None where it
is zero for sure), y = p(a_1 ..) - q(b_1 ..). Every rule is exact over the reals for the stored numbers.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace

import torch
from torch import Tensor

from lipverify import ops
from lipverify.interpreter import infer_shape
from lipverify.ir.graph import Node
from lipverify.ir.op import Op, Shape
from lipverify.ops.change import CHOOSING, Change, Same, has_change
from lipverify.rules import Rule


class Draft:
    """Nodes of a difference, on top of the two networks. shapes: of every node by name."""

    def __init__(self, shapes: dict[str, Shape], prefix: str = "d.") -> None:
        self.shapes, self.prefix = dict(shapes), prefix
        self.nodes: list[Node] = []
        self.source = ""
        """What the nodes to come belong to, for people."""
        self.own: list[str] = []
        """Nodes that hold what the parameters of one layer alone add to the difference."""

    def add(self, op: Op, *inputs: str) -> str:
        """One more node; its name."""
        name = f"{self.prefix}{len(self.nodes)}"
        shape = infer_shape(op, tuple(self.shapes[i] for i in inputs))
        self.nodes.append(Node(name, op, inputs, shape, self.source))
        self.shapes[name] = shape
        return name

    def total(self, parts: list[str]) -> str | None:
        """The sum of nodes of one shape; None for no nodes, which is zero."""
        if not parts:
            return None
        found = parts[0]
        for part in parts[1:]:
            found = self.add(ops.Add(), found, part)
        return found

    def met(self, d: str, a: str, b: str) -> str:
        """The carried difference, met with the difference of the two branches: neither knows more than the other."""
        return self.add(Same(), d, self.add(ops.Sub(), a, b))


class Pair:
    """Two nodes whose difference is asked for. first, second: their names in the joined graph; a, b, d: of their inputs."""

    def __init__(
        self,
        draft: Draft,
        first: str,
        second: str,
        a: tuple[str, ...],
        b: tuple[str, ...],
        d: tuple[str | None, ...],
    ) -> None:
        self.draft, self.first, self.second, self.a, self.b, self.d = draft, first, second, a, b, d

    def given(self, index: int) -> str:
        """The difference of one input as a node, also where it is zero."""
        d = self.d[index]
        if d is None:
            d = self.draft.add(
                ops.Constant(torch.zeros(self.draft.shapes[self.a[index]], dtype=torch.float64))
            )
        return d


carry: Rule[str | None] = Rule(
    "carry", "p(a) - q(b) from the carried differences: (p, q, pair) -> node, None for zero"
)


def equal(p: Op, q: Op) -> bool:
    """Whether two operators are the same function of the same stored numbers."""
    digests = []
    for op in (p, q):
        digest = hashlib.sha256()
        op.update_digest(digest)
        digests.append(digest.digest())
    return digests[0] == digests[1]


def covered(op: Op) -> bool:
    """Whether the difference of two results of such an operator follows from that of its arguments."""
    return carry.covers(type(op)) or has_change(op)


def carried(p: Op, q: Op, pair: Pair) -> str | None:
    """The node of y; None for zero. The operators pair up (`alike`) and are `covered`."""
    return carry(p, q, pair) if carry.covers(type(p)) and type(p) is type(q) else _changed(p, q, pair)


def exact_difference(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """s, e in float64 with s + e = x - y exactly, for float64 x, y.

    Source: Knuth, The Art of Computer Programming 2, section 4.2.2, theorem B. Sound when: nothing overflows; what does is
    infinite or not a number, and `difference` refuses it.
    """
    x, y = x.to(torch.float64), -y.to(torch.float64)
    s = x + y
    t = s - x
    return s, (x - (s - t)) + (y - t)


def _changed(p: Op, q: Op, pair: Pair) -> str:
    """phi(a) - psi(b) = (psi(a) - psi(b)) + (phi(a) - psi(a)); the second part only where the functions differ."""
    draft = pair.draft
    parts = []
    if any(d is not None for d in pair.d):
        d = [pair.given(i) for i in range(len(pair.d))]
        if not isinstance(
            q, CHOOSING
        ):  # there the range of every entry would be needed, and little is gained
            d = [draft.met(*three) for three in zip(d, pair.a, pair.b, strict=True)]
        parts.append(draft.add(Change(q), *d, *pair.a, *pair.b))
    if not equal(p, q):
        parts.append(draft.add(ops.Sub(), pair.first, draft.add(q, *pair.a)))
        draft.own.append(parts[-1])
    found = draft.total(parts)
    assert found is not None
    return found


@carry.register(ops.Linear, ops.Conv, ops.ConvTranspose)
def _weighted(
    p: ops.Linear | ops.Conv | ops.ConvTranspose, q: ops.Linear | ops.Conv | ops.ConvTranspose, pair: Pair
) -> str | None:
    """W a + s - V b - t = V d + (W - V) a + (s - t), with W - V and s - t as pairs of float64 numbers."""
    draft, parts = pair.draft, []
    if pair.d[0] is not None:
        parts.append(draft.add(linear_part(q), pair.d[0]))
    weights = exact_difference(p.weight, q.weight)
    biases = exact_difference(*_biases(p, q))
    for weight, bias in zip(weights, biases, strict=True):
        if bool(weight.any()) or bool(bias.any()):
            parts.append(
                draft.add(replace(p, weight=weight, bias=bias if bool(bias.any()) else None), pair.a[0])
            )
            draft.own.append(parts[-1])
    return draft.total(parts)


def _biases(p: Op, q: Op) -> tuple[Tensor, Tensor]:
    zero = torch.zeros(outputs(p), dtype=torch.float64)
    first, second = getattr(p, "bias", None), getattr(q, "bias", None)
    return zero if first is None else first, zero if second is None else second


def outputs(op: Op) -> int:
    """How many numbers a bias of the operator has."""
    if isinstance(op, ops.ConvTranspose):
        return int(op.weight.shape[1]) * op.groups
    assert isinstance(op, ops.Linear | ops.Conv)
    return int(op.weight.shape[0])


@carry.register(ops.Scale)
def _scaled(p: ops.Scale, q: ops.Scale, pair: Pair) -> str | None:
    """As `_weighted`, with diagonal matrices."""
    draft, parts = pair.draft, []
    if pair.d[0] is not None:
        parts.append(pair.d[0] if q.scale is None else draft.add(ops.Scale(q.scale, None), pair.d[0]))
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    scales = exact_difference(one if p.scale is None else p.scale, one if q.scale is None else q.scale)
    shifts = exact_difference(zero if p.shift is None else p.shift, zero if q.shift is None else q.shift)
    for scale, shift in zip(scales, shifts, strict=True):
        if bool(scale.any()) or bool(shift.any()):
            parts.append(draft.add(ops.Scale(scale, shift if bool(shift.any()) else None), pair.a[0]))
            draft.own.append(parts[-1])
    return draft.total(parts)


_MOVES = (
    ops.Reshape, ops.Transpose, ops.Slice, ops.Gather, ops.Upsample, ops.DepthToSpace, ops.Expand, ops.AvgPool,
    ops.ReduceSum, ops.ReduceMean,
)  # fmt: skip
"""Linear operators of one input without stored numbers to differ in."""


RUNS = (
    ops.Linear, ops.Conv, ops.ConvTranspose, ops.Scale, ops.BatchNorm, ops.DivideBy, ops.Pad, ops.Quantize, *_MOVES,
)  # fmt: skip
"""Operators of one input that are affine, or affine but for rounding. Runs may be written in several ways: a normalisation
folded into a convolution, integers instead of real numbers."""

Step = tuple[Op, str]
"""An operator of a run, with the node it reads."""


def linear_part(op: Op) -> Op:
    """An operator of a run without its constant and without rounding."""
    if isinstance(op, ops.BatchNorm):
        return replace(op, mean=torch.zeros_like(op.mean), bias=torch.zeros_like(op.bias))
    if isinstance(op, ops.Pad):
        return replace(op, fill=0.0)
    if isinstance(op, ops.Scale):
        return replace(op, shift=None)
    if isinstance(op, ops.Quantize):
        return ops.DivideBy(torch.tensor(op.step, dtype=torch.float64))
    return replace(op, bias=None) if isinstance(op, ops.Linear | ops.Conv | ops.ConvTranspose) else op


def affine_part(op: Op) -> list[Op]:
    """An operator of a run without rounding."""
    if not isinstance(op, ops.Quantize):
        return [op]
    shift = [ops.Scale(None, torch.tensor(float(op.zero), dtype=torch.float64))] if op.zero else []
    return [linear_part(op), *shift]


def run_changed(p: list[Step], q: list[Step], first: str, a: str, d: str | None, draft: Draft) -> str | None:
    """The difference of two runs p(a) - q(b), `first` the node of p(a).

    With P and Q the runs without rounding and L the linear part of Q: L d + (P(a) - Q(a)) + e_p - e_q, where e carries the
    rounding errors of a run through the operators behind them: p(a) = P(a) + e_p.
    """
    parts: list[str] = []
    if d is not None:
        for op, _ in q:
            d = draft.add(linear_part(op), d)
        parts.append(d)
    exact, other = ([part for op, _ in run for part in affine_part(op)] for run in (p, q))
    if len(exact) != len(other) or not all(equal(x, y) for x, y in zip(exact, other, strict=True)):
        whole = any(isinstance(op, ops.Quantize) for op, _ in p)
        ends = _chain(exact, a, draft) if whole else first, _chain(other, a, draft)
        parts.append(draft.add(ops.Sub(), *ends))
        draft.own.append(parts[-1])
    for run, sign in ((p, 1.0), (q, -1.0)):
        error = _rounding(run, draft)
        if error is not None:
            parts.append(error if sign > 0 else draft.add(ops.Scale(torch.tensor(sign), None), error))
            draft.own.append(parts[-1])
    return draft.total(parts)


def _chain(run: list[Op], x: str, draft: Draft) -> str:
    for op in run:
        x = draft.add(op, x)
    return x


def _rounding(run: list[Step], draft: Draft) -> str | None:
    """What the rounding of a run adds to its result."""
    error: str | None = None
    for op, reads in run:
        if error is not None:
            error = draft.add(linear_part(op), error)
        if isinstance(op, ops.Quantize):
            own = draft.add(ops.RoundingError(op.step), reads)
            error = own if error is None else draft.add(ops.Add(), error, own)
    return error


def saturated(clip: Op, x: str, y: str, d: str | None, draft: Draft, turned: bool) -> str:
    """x - clip(y), where d = x - y: clip(x) - clip(y) + (x - clip(x)). turned: clip(x) - y."""
    parts = []
    if d is not None:
        parts.append(draft.add(Change(clip), draft.met(d, x, y), x, y))
    end = y if turned else x
    held = draft.add(clip, end)
    parts.append(draft.add(ops.Sub(), *((held, end) if turned else (end, held))))
    draft.own.append(parts[-1])
    found = draft.total(parts)
    assert found is not None
    return found


@carry.register(ops.Quantize)
def _quantised(p: ops.Quantize, q: ops.Quantize, pair: Pair) -> str | None:
    """Equal ones: d / s and both rounding errors."""
    return run_changed([(p, pair.a[0])], [(q, pair.b[0])], pair.first, pair.a[0], pair.d[0], pair.draft)


@carry.register(ops.BatchNorm, ops.DivideBy)
def _factors(p: ops.BatchNorm | ops.DivideBy, q: ops.BatchNorm | ops.DivideBy, pair: Pair) -> str | None:
    """p(a) - q(b) = L d + (p(a) - q(a)), L the linear part of q. Its factors are roots and quotients, no numbers of float64: both
    operators read one argument, so that linear bounds see their difference."""
    draft, parts = pair.draft, []
    if pair.d[0] is not None:
        parts.append(draft.add(linear_part(q), pair.d[0]))
    if not equal(p, q):
        parts.append(draft.add(ops.Sub(), pair.first, draft.add(q, pair.a[0])))
        draft.own.append(parts[-1])
    return draft.total(parts)


@carry.register(*_MOVES)
def _moved(p: Op, q: Op, pair: Pair) -> str | None:
    assert pair.d[0] is not None
    return pair.draft.add(q, pair.d[0])


@carry.register(ops.Pad)
def _padded(p: ops.Pad, q: ops.Pad, pair: Pair) -> str | None:
    assert pair.d[0] is not None
    return pair.draft.add(linear_part(q), pair.d[0])


@carry.register(ops.Add, ops.Sub)
def _summed(p: ops.Add | ops.Sub, q: ops.Add | ops.Sub, pair: Pair) -> str | None:
    first, second = pair.d
    if second is None:
        return first
    if first is None:
        return (
            second if isinstance(p, ops.Add) else pair.draft.add(ops.Scale(torch.tensor(-1.0), None), second)
        )
    return pair.draft.add(p, first, second)


@carry.register(ops.Concat)
def _beside(p: ops.Concat, q: ops.Concat, pair: Pair) -> str | None:
    return pair.draft.add(p, *(pair.given(i) for i in range(len(pair.d))))


@carry.register(ops.Constant)
def _stored(p: ops.Constant, q: ops.Constant, pair: Pair) -> str | None:
    parts = [part for part in exact_difference(p.value, q.value) if bool(part.any())]
    found = pair.draft.total([pair.draft.add(ops.Constant(part)) for part in parts])
    if found is not None:
        pair.draft.own.append(found)
    return found


@carry.register(ops.Mul, ops.MatMul)
def _multiplied(p: ops.Mul | ops.MatMul, q: ops.Mul | ops.MatMul, pair: Pair) -> str | None:
    """a_1 a_2 - b_1 b_2 = d_1 a_2 + b_1 d_2."""
    draft, (first, second) = pair.draft, pair.d
    parts = [] if first is None else [draft.add(p, first, pair.a[1])]
    parts += [] if second is None else [draft.add(p, pair.b[0], second)]
    return draft.total(parts)


def alike(p: Op, q: Op, shapes: tuple[tuple[Shape, ...], tuple[Shape, ...]]) -> bool:
    """Whether two operators are equal, or differ in nothing but numbers that `carry` can subtract."""
    if type(p) is not type(q) or shapes[0] != shapes[1]:
        return False
    if equal(p, q):
        return True
    if isinstance(p, ops.Linear | ops.Conv | ops.ConvTranspose):
        return isinstance(q, type(p)) and p.weight.shape == q.weight.shape and _settings(p) == _settings(q)
    if isinstance(p, ops.BatchNorm):
        return isinstance(q, ops.BatchNorm) and p.axis == q.axis
    numbers = isinstance(p, ops.Scale | ops.DivideBy | ops.Constant)
    return numbers or (has_change(p) and not isinstance(p, CHOOSING))


def _settings(op: Op) -> list[tuple[str, object]]:
    """Everything that is no tensor, and not whether there is a bias."""
    values = ((field.name, getattr(op, field.name)) for field in fields(op))
    return [(name, value) for name, value in values if name != "bias" and not isinstance(value, Tensor)]
