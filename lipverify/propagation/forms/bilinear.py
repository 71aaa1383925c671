"""Products of two computed values.

x y = xc y + x yc - xc yc + (x - xc)(y - yc) for any xc, yc: the first three terms are the reference, and of the last one
|(x - xc)(y - yc)| <= rx ry,   |d((x - xc)(y - yc))| <= |dx| ry + rx |dy|, summed over the inner axis of a matrix product.
Dot products also token by token: |(x - xc).(y - yc)| <= |x - xc|_2 |y - yc|_2, and the same of gradients as maps to l2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipverify import ops
from lipverify.ir.graph import Node
from lipverify.ir.interval import Interval
from lipverify.linalg.lengths import euclidean_norm
from lipverify.linalg.rounding import gamma
from lipverify.propagation.forms.domain import FAR
from lipverify.propagation.forms.symbols import Facts, Form
from lipverify.propagation.forms.tokens import Tokens, joint_norm, token_norms
from lipverify.propagation.strips import Strip

if TYPE_CHECKING:
    from lipverify.propagation.forms.sweep import Sweep


def product(sweep: Sweep, node: Node) -> Form:
    """Of two nodes; where neither depends on the input nothing is new."""
    first, second = node.inputs
    a, b = sweep.ask(first), sweep.ask(second)
    x, y = sweep.forms[first], sweep.forms[second]
    dot = isinstance(node.op, ops.MatMul)
    mul = torch.matmul if dot else torch.mul
    terms = sweep.graph[first].shape[-1] if dot else 1
    xc = sweep.middles.get(first, a.lower / 2 + a.upper / 2)
    yc = sweep.middles.get(second, b.lower / 2 + b.upper / 2)
    rx, ry = sweep.radius(first, xc), sweep.radius(second, yc)
    wide = FAR + 4.0 * gamma(3 * terms + 32)
    big_x, big_y = xc.abs().unsqueeze(1), yc.abs().unsqueeze(1)
    size = (mul(big_x, y.size) + mul(x.size, big_y)) * wide
    size[:, 0] += mul(xc.abs(), yc.abs()) * wide
    slack = (mul(big_x, y.slack) + mul(x.slack, big_y)) * wide + 2.0 * gamma(3 * terms + 32) * size
    centre = mul(xc, y.centre) + mul(x.centre - xc, yc)
    sweep.fence(node)
    errors = torch.cat(
        [
            mul(rx, ry).unsqueeze(1),
            mul(a.slopes, ry.unsqueeze(1)) + mul(rx.unsqueeze(1), b.slopes),
        ],
        1,
    )
    errors = errors * wide
    if x.matrix is None and y.matrix is None:
        slack[:, 0] += errors[:, 0]
        return Form(centre, None, slack, size)
    groups = whole = None
    if dot and x.matrix is not None and y.matrix is not None:
        if first in sweep.shares:
            errors, groups = _averages(sweep, node, errors, (a, b), (xc, yc), ry)
        else:
            errors = _tokens(sweep, node, errors, (a, b), (xc, yc), (rx, ry))
    if sweep.symbols.two is not None and x.matrix is not None and y.matrix is not None:
        whole = (
            _heads(sweep, node, (a, b), (xc, yc), (rx, ry)) if dot else _gates(sweep, node, (a, b), (rx, ry))
        )
    sweep.strips[node.name] = _strip(xc, yc, errors[:, 0], dot)
    parts = []
    if y.matrix is not None:
        parts.append(mul(xc.unsqueeze(1), y.matrix))
    if x.matrix is not None:
        parts.append(mul(x.matrix, yc.unsqueeze(1)))
    return sweep.symbols.fresh(Form(centre, sweep.symbols.sum(parts), slack, size), errors, whole, groups)


def _strip(xc: Tensor, yc: Tensor, half: Tensor, dot: bool) -> Strip:
    """x y = xc y + x yc - xc yc + [-half, half]: of values alone, the mean of both pairs of McCormick planes or less."""
    mul = torch.matmul if dot else torch.mul
    terms = xc.shape[-1] if dot else 1
    doubt = 4.0 * gamma(terms + 16) * mul(xc.abs(), yc.abs())

    def back(a: Tensor, xc: Tensor, yc: Tensor) -> tuple[Tensor, ...]:
        return (a @ yc.mT, xc.mT @ a) if dot else (a * yc, xc * a)

    def absolute(x: Tensor, y: Tensor, xc: Tensor, yc: Tensor) -> Tensor:
        return mul(xc.abs(), y) + mul(x, yc.abs())

    return Strip(-mul(xc, yc), (half + doubt) * FAR, (xc, yc), back, absolute)


def _tokens(
    sweep: Sweep,
    node: Node,
    errors: Tensor,
    facts: tuple[Facts, Facts],
    middles: tuple[Tensor, Tensor],
    radii: tuple[Tensor, Tensor],
) -> Tensor:
    """Errors of dot products, row of x against column of y: no sum over the inner axis of products of single entries."""
    names, axes = node.inputs, (-1, -2)
    slopes, far = [], []
    for name, known, middle, radius, axis in zip(names, facts, middles, radii, axes, strict=True):
        form = sweep.forms[name]
        place = form.centre.ndim - 1 + axis
        found = token_norms(sweep.symbols, form, known.slopes, place)
        slopes.append(found.norms)
        far.append(_distance(sweep, name, middle, radius, found, axis))
    outer = [
        far[0].unsqueeze(-1) * far[1].unsqueeze(-2),
        *(
            (slopes[0][:, i].unsqueeze(-1) * far[1].unsqueeze(-2))
            + far[0].unsqueeze(-1) * slopes[1][:, i].unsqueeze(-2)
            for i in range(slopes[0].shape[1])
        ),
    ]
    return torch.minimum(errors, torch.stack(outer, 1) * FAR)


def _distance(sweep: Sweep, name: str, middle: Tensor, radius: Tensor, found: Tokens, axis: int) -> Tensor:
    """|z - middle|_2 along one axis at most: entry by entry, by the form, or by the mean value around the ball's middle."""
    width = middle.shape[axis]
    slack = FAR + 4.0 * gamma(width + 16)
    start = euclidean_norm(sweep.offset(name, middle), dim=axis) * slack
    reach = sweep.domain.reach.reshape(-1, *[1] * (start.ndim - 1))
    by_mean = (start + reach * found.norms[:, 0]) * FAR
    off = euclidean_norm(sweep.forms[name].centre - middle, dim=axis) * slack
    return torch.stack([euclidean_norm(radius, dim=axis) * slack, by_mean, (off + found.far) * FAR]).amin(0)


def _averages(
    sweep: Sweep,
    node: Node,
    errors: Tensor,
    facts: tuple[Facts, Facts],
    middles: tuple[Tensor, Tensor],
    ry: Tensor,
) -> tuple[Tensor, Tensor]:
    """Errors of rows of probabilities times values: sum |dp_j| <= total, sum |p_j - pc_j| <= moved, and the largest value."""
    total, moved = sweep.shares[node.inputs[0]]  # [count, kinds, ..., rows], [count, ..., rows]
    values, name = facts[1], node.inputs[1]
    far, steep = ry.amax(-2), values.slopes.amax(-2)
    entries = [
        moved.unsqueeze(-1) * far.unsqueeze(-2),
        *(
            total[:, i].unsqueeze(-1) * far.unsqueeze(-2) + moved.unsqueeze(-1) * steep[:, i].unsqueeze(-2)
            for i in range(total.shape[1])
        ),
    ]
    errors = torch.minimum(errors, torch.stack(entries, 1) * FAR)
    form = sweep.forms[name]
    keys = token_norms(sweep.symbols, form, values.slopes, form.centre.ndim - 2)
    length = _distance(sweep, name, middles[1], ry, keys, -1).amax(-1, keepdim=True)
    steepest = keys.norms.amax(-1, keepdim=True)
    groups = torch.cat(
        [
            (moved * length).unsqueeze(1),
            total * length.unsqueeze(1) + moved.unsqueeze(1) * steepest,
        ],
        1,
    )
    plain = euclidean_norm(errors, dim=-1) * (FAR + 4.0 * gamma(errors.shape[-1] + 16))
    return errors, torch.minimum(groups * FAR, plain)


def _heads(
    sweep: Sweep,
    node: Node,
    facts: tuple[Facts, Facts],
    middles: tuple[Tensor, Tensor],
    radii: tuple[Tensor, Tensor],
) -> Tensor:
    """The l2 norm of all errors of a matrix product: |(x - xc) dy|_F <= |x - xc|_F |dy|_2, matrix by matrix."""
    two = sweep.symbols.two
    assert two is not None
    slopes, far = [], []
    for name, known, middle, radius in zip(node.inputs, facts, middles, radii, strict=True):
        form = sweep.forms[name]
        assert form.matrix is not None
        rows, width = form.matrix.shape[1], middle[0, ..., :, :].shape[-2:].numel()
        matrix = form.matrix.reshape(len(form.matrix), rows, -1, width)
        steep = known.slopes[:, two].reshape(len(middle), -1, width)
        rest = form.slack[:, 1 + two].reshape(len(middle), -1, width)
        norms = torch.stack(
            [
                joint_norm(sweep.symbols, matrix[:, :, h], steep[:, h], rest[:, h])
                for h in range(matrix.shape[2])
            ],
            1,
        )
        slack = FAR + 4.0 * gamma(width + 16)
        plain, start = (
            euclidean_norm(part.reshape(len(middle), -1, width), dim=2) * slack
            for part in (radius, sweep.offset(name, middle))
        )
        slopes.append(norms)
        # Mean value: norms from l2 to l2 bound values only where the ball is one of l2.
        if sweep.domain.euclidean:
            plain = torch.minimum(plain, (start + sweep.domain.reach[:, None] * norms) * FAR)
        far.append(plain)
    size = max(len(part[0]) for part in far)
    value = euclidean_norm(far[0] * far[1], dim=1)
    slope = euclidean_norm(far[0] * slopes[1] + far[1] * slopes[0], dim=1)
    return torch.stack([value, slope], 1) * (FAR + 4.0 * gamma(size + 16))


def _gates(
    sweep: Sweep, node: Node, facts: tuple[Facts, Facts], radii: tuple[Tensor, Tensor]
) -> Tensor | None:
    """The same of an elementwise product: |diag(x - xc) dy| <= |diag(rx) dy|, and the other way round."""
    two = sweep.symbols.two
    assert two is not None
    size = sweep.domain.count, *node.shape
    value = euclidean_norm((radii[0] * radii[1]).expand(size).flatten(1), dim=1)
    total = torch.zeros_like(value)
    for place, name in enumerate(node.inputs):
        form, weight = sweep.forms[name], radii[1 - place]
        assert form.matrix is not None
        if form.centre.shape[1:] != node.shape:
            return None
        flat = weight.expand(size).flatten(1)
        total = total + joint_norm(
            sweep.symbols,
            form.matrix.flatten(2),
            facts[place].slopes[:, two].flatten(1),
            form.slack[:, 1 + two].flatten(1),
            flat,
        )
    return torch.stack([value, total], 1) * (FAR + 4.0 * gamma(node.size + 16))


def quotient(sweep: Sweep, node: Node) -> Form:
    """x / y = x (1 / y), with a node for the reciprocal in between.

    Raises:
        UnsupportedModel: the divisor may be zero on this ball.
    """
    from lipverify.propagation.forms.nonlinear import scalar

    first, second = node.inputs
    shape = sweep.graph[second].shape
    under = Node(f"{node.name}:reciprocal", ops.Reciprocal(), (second,), shape)
    sweep.forms[under.name] = scalar(sweep, under)
    at = sweep.point[second]
    from lipverify.rules import interval

    sweep.point = {**sweep.point, under.name: interval(under.op, Interval(at.lower, at.upper))}
    found = product(sweep, Node(node.name, ops.Mul(), (first, under.name), node.shape))
    del sweep.forms[under.name]
    del sweep.strips[node.name]  # of x and 1 / y: nothing about the divisor itself
    return found
