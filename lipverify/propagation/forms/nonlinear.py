"""Which rule follows which operator, and scalar functions.

A node that is not affine becomes a fixed linear map, its reference, plus new symbols for what that leaves out. Any reference
is sound; the rules choose one near the middle of the node's range.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipverify import ops
from lipverify.errors import UnsupportedModel
from lipverify.ir.graph import Node
from lipverify.ir.interval import Interval
from lipverify.ir.op import Constant, Input, Op
from lipverify.linalg.lengths import euclidean_norm
from lipverify.linalg.rounding import gamma
from lipverify.ops.enclosure import Enclosure
from lipverify.propagation.forms.bilinear import product, quotient
from lipverify.propagation.forms.domain import FAR
from lipverify.propagation.forms.normalised import normalised
from lipverify.propagation.forms.softmax import softmax
from lipverify.propagation.forms.symbols import Form
from lipverify.propagation.forms.tokens import joint_norm
from lipverify.propagation.forms.unit import Unit
from lipverify.propagation.knowledge import is_affine
from lipverify.rules import interval, relax, slopes

if TYPE_CHECKING:
    from lipverify.propagation.forms.sweep import Sweep


_KINDS: tuple[type[Op], ...] = (Input, Constant, ops.Mul, ops.MatMul, ops.Div)
_KINDS = (*_KINDS, ops.Softmax, ops.MaskedSoftmax, ops.LayerNorm, ops.RMSNorm, Unit)


def covers(node: Node) -> bool:
    """Whether a node has a form."""
    return type(node.op) in _KINDS or is_affine(node) or slopes.covers(type(node.op))


def form_of(sweep: Sweep, node: Node) -> Form:
    """The form of a node that is not affine.

    Raises:
        UnsupportedModel: no rule covers it, or it is not bounded on its range.
    """
    if isinstance(node.op, ops.Mul | ops.MatMul):
        return product(sweep, node)
    if isinstance(node.op, ops.Div):
        return quotient(sweep, node)
    if isinstance(node.op, ops.Softmax | ops.MaskedSoftmax):
        return softmax(sweep, node)
    if isinstance(node.op, ops.LayerNorm | ops.RMSNorm | Unit):
        return normalised(sweep, node)
    if not slopes.covers(type(node.op)):
        raise UnsupportedModel("it has no affine form; choose another analyzer or an output before it")
    return scalar(sweep, node)


def scalar(sweep: Sweep, node: Node) -> Form:
    """f(z) with slopes in [a, b] on the range: reference k, errors of gradients max(b - k, k - a) |dz|.

    Values: between two parallel lines where the operator has them (`relax`), which are of slope k then; else
    f(z) = f(mid) + k (z - mid) + [-1, 1] max(b - k, k - a) |z - mid|.
    """
    name, op = node.inputs[0], node.op
    known = sweep.ask(name)
    form, box = sweep.forms[name], Interval(known.lower, known.upper)
    found = slopes(op, box, node.shape)
    a, b = (end.expand(known.lower.shape) for end in (found.lower, found.upper))
    k, offset, error = _line(node, box, a, b)
    far = torch.maximum(b - k, k - a).clamp_min(0.0) * FAR
    # Rounding of k c + offset and of k M: three operations each.
    size = k.abs().unsqueeze(1) * form.size * FAR
    size[:, 0] += offset.abs()
    slack = (k.abs().unsqueeze(1) * form.slack + 2.0 * gamma(16) * size) * FAR
    sweep.fence(node)
    if form.matrix is None:
        slack[:, 0] += error
        return Form(k * form.centre + offset, None, slack, size)
    errors = torch.cat([error.unsqueeze(1), far.unsqueeze(1) * known.slopes * FAR], 1)
    moved = Form(k * form.centre + offset, form.matrix * k.unsqueeze(1), slack, size)
    return sweep.symbols.fresh(moved, errors, _whole(sweep, form, known.slopes, far, error))


def _line(node: Node, box: Interval, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Slope, offset and half width of a strip around f on its range."""
    op, exact = node.op, a == b
    if isinstance(op, ops.ReLU):
        # The middle slope makes errors of gradients smallest.
        low, high = box.lower.clamp(max=0.0), box.upper.clamp(min=0.0)
        k = torch.where(exact, a, torch.full_like(a, 0.5))
        top = torch.maximum(-k * low, (1.0 - k) * high) * FAR
        top = torch.where(exact, torch.zeros_like(top), top)
        return k, top / 2, top / 2
    lines = relax(op, box) if relax.covers(type(op)) else None
    if lines is not None and len(lines.lower.slopes) == len(lines.upper.slopes) == 1:
        below, above = lines.lower, lines.upper
        k = below.slopes[0].expand_as(a)
        inside = (k >= a) & (k <= b) & (k == above.slopes[0])
        if bool(inside.all()):
            offset = (below.offset / 2 + above.offset / 2).expand_as(a)
            half = torch.maximum(above.offset - offset, offset - below.offset)
            return k, offset, torch.nextafter(half, torch.full_like(half, torch.inf)).clamp_min(0.0)
    k, middle = a / 2 + b / 2, box.lower / 2 + box.upper / 2
    at = Enclosure.of(interval(op, Interval(middle, middle))) - Enclosure.of(k) * Enclosure.of(middle)
    offset = (at.lower / 2 + at.upper / 2).expand_as(a)
    wide = torch.maximum(at.upper - offset, offset - at.lower)
    reach = torch.maximum(box.upper - middle, middle - box.lower)
    half = (torch.maximum(b - k, k - a) * reach + wide) * FAR
    return k, offset, half.clamp_min(0.0)


def _whole(sweep: Sweep, form: Form, slopes: Tensor, far: Tensor, error: Tensor) -> Tensor | None:
    """The errors of all entries together, in l2: |diag(far) dz/dx| with its spectral norm."""
    two = sweep.symbols.two
    if two is None or not bool((far > 0).any()):
        return None
    assert form.matrix is not None
    weight = far.flatten(1)
    value = euclidean_norm(error.flatten(1), dim=1) * (FAR + 4.0 * gamma(error[0].numel() + 16))
    slope = joint_norm(
        sweep.symbols,
        form.matrix.flatten(2),
        slopes[:, two].flatten(1),
        form.slack[:, 1 + two].flatten(1),
        weight,
    )
    return torch.stack([value, slope * FAR], 1)
