"""Rows of a softmax.

Legend: z the logits of a row, p = softmax(z), D_ab = z_a - z_b. J = diag(p) - pp', so (J dz)_a is the sum over b of
p_a p_b (dz_a - dz_b): only differences count. Reference: (R z)_a = sum over b of q_ab (z_a - z_b) with numbers q_ab near the
products p_a p_b. What it leaves out:
    values      sum_b  mean over t of dev_ab(t) * sup |D_ab - middle's|,      dev_ab(t) = sup |p_a p_b - q_ab| over the box of
                differences shrunk by t towards the middle; it grows with t, so a right Riemann sum is above its mean
    gradients   sum_b  dev_ab(1) |dD_ab|
Probabilities from differences: p_a = 1 / (1 + sum over b != a of exp(-D_ab)). Also |dp_a| <= p_a (1 - p_a) max_b |dD_ab|, and
sum_a |dp_a v| <= osc(dz v) / 2 because the softmax maps linf to l1 with constant 4 P (1 - P) of half the oscillation.
The numbers q_ab, and a second bound of errors of values, are those of `_secant`: p_a = sigmoid(y_a) lies between two parallel
lines, and y_a = -log sum over b != a of exp(-D_ab), concave in D, below its tangent at the middle. It is less than that by
log E exp(s - E s) at most, s_b the decrease of D_ab, b drawn with the tangent's weights w: at most (range of s)^2 / 8
(Hoeffding's lemma) and sum of w_b (exp(d_b) - 1 - d_b), d_b = s_b - s_* for any one key *.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipverify.ir.graph import Node
from lipverify.ir.interval import Interval
from lipverify.linalg.lengths import euclidean_norm
from lipverify.linalg.rounding import gamma
from lipverify.ops import MaskedSoftmax, Sigmoid, Softmax
from lipverify.propagation.forms.domain import FAR
from lipverify.propagation.forms.symbols import Facts, Form, largest
from lipverify.propagation.forms.tokens import joint_norm, token_norms
from lipverify.propagation.strips import Strip
from lipverify.rules import relax

if TYPE_CHECKING:
    from lipverify.propagation.forms.sweep import Sweep

PAIRS, MORE_PAIRS = 12, 24
"""Logits in a row up to which every difference gets facts of its own: always, and where forms of the logits are loose."""
LOOSE = 1.02
"""Gradients of logits above this many times those of the reference network: differences know what symbols they share."""
CHUNK = 1 << 26
"""Bytes for the differences of a few rows."""
_EXP = gamma(4096)
"""Above the relative error of exponentials of rounded arguments below 750, and of sums of a thousand of them and a quotient."""


@dataclass
class _Rows:
    """Rows [count, rows, n] of logits: the form and its facts, and those of all differences D_ab [count, rows, n, n]."""

    form: Form
    facts: Facts
    lower: Tensor
    upper: Tensor
    steep: Tensor
    """[count, kinds, rows, n, n]."""
    pairs: bool
    kept: Tensor | None = None
    """[rows, n]: keys that a mask keeps; None: all."""


def softmax(sweep: Sweep, node: Node) -> Form:
    """Along any one axis of the sample."""
    op = node.op
    assert isinstance(op, Softmax | MaskedSoftmax)
    sweep.ask(node.inputs[0])
    sweep.fence(node)
    last = len(node.shape) - 1
    rows = _rows(sweep, node, op.axis, last)
    shape = _moved(torch.empty(node.shape, device="meta"), op.axis, last, 0).shape
    form, errors, row_whole, groups = _softmax(sweep, node, rows, op.axis)

    def back(part: Tensor, before: int) -> Tensor:
        return part.reshape(*part.shape[:before], *shape).movedim(-1, op.axis + before)

    assert form.matrix is not None
    moved = Form(back(form.centre, 1), back(form.matrix, 2), back(form.slack, 2), back(form.size, 2))
    grouped = groups.reshape(*groups.shape[:2], *shape[:-1]) if op.axis == last else None
    return sweep.symbols.fresh(moved, back(errors, 2), row_whole, grouped)


def _moved(part: Tensor, axis: int, last: int, before: int) -> Tensor:
    return part.movedim(axis + before, last + before)


def _rows(sweep: Sweep, node: Node, axis: int, last: int) -> _Rows:
    """The logits with the axis of the softmax last and all others flattened."""
    name = node.inputs[0]
    form, known, point = sweep.forms[name], sweep.facts[name], sweep.point[name]
    n = node.shape[axis]

    def flat(part: Tensor, before: int) -> Tensor:
        return _moved(part, axis, last, before).reshape(*part.shape[:before], -1, n)

    matrix = form.matrix
    if matrix is None:
        matrix = form.centre.new_zeros(1, sweep.domain.rows, *form.centre.shape[1:])
    logits = Form(flat(form.centre, 1), flat(matrix, 2), flat(form.slack, 2), flat(form.size, 2))
    facts = Facts(flat(known.lower, 1), flat(known.upper, 1), flat(known.slopes, 2))
    lower, upper = _apart(facts.lower, -facts.upper), _apart(facts.upper, -facts.lower)
    lower, upper = _out(lower, -1.0), _out(upper, 1.0)
    steep = _apart(facts.slopes, facts.slopes) * FAR
    pairs = n <= PAIRS or (n <= MORE_PAIRS and _loose(sweep, logits, facts))
    if pairs:
        ends = flat(point.lower, 1), flat(point.upper, 1)
        lower, upper, steep = _differences(sweep, logits, Interval(*ends), (lower, upper, steep))
    eye = torch.eye(n, dtype=torch.bool, device=lower.device)
    out, kept = eye, None
    if isinstance(node.op, MaskedSoftmax):
        kept = flat(node.op.kept.expand(node.shape), 0)
        out = eye | ~_apart_kept(kept)
    lower, upper, steep = (part.masked_fill(out, 0.0) for part in (lower, upper, steep))
    return _Rows(logits, facts, lower, upper, steep, pairs, kept)


def _loose(sweep: Sweep, logits: Form, facts: Facts) -> bool:
    """Whether what nodes before left out is more than a sliver of the gradients of the logits."""
    assert logits.matrix is not None
    reference = sweep.domain.sizes(logits.matrix[:, : sweep.domain.rows].flatten(2))[:, 1:]
    return bool((facts.slopes.flatten(2).amax(2) > LOOSE * reference.amax(2)).any())


def _apart_kept(kept: Tensor) -> Tensor:
    """Pairs of keys that are both kept: [rows, n, n]."""
    return kept.unsqueeze(-1) & kept.unsqueeze(-2)


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """a_i + b_j: [..., n, n]."""
    return a.unsqueeze(-1) + b.unsqueeze(-2)


def _out(value: Tensor, sign: float) -> Tensor:
    return torch.nextafter(value, torch.full_like(value, sign * torch.inf))


def _differences(
    sweep: Sweep, logits: Form, point: Interval, known: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Ranges and gradients of all differences of two logits of a row, inside those that are known."""
    n, count = logits.centre.shape[-1], logits.centre.shape[1]
    a, b = torch.triu_indices(n, n, 1, device=logits.centre.device)
    lower, upper, steep = (part.clone() for part in known)
    assert logits.matrix is not None
    each = 8 * logits.matrix.shape[0] * logits.matrix.shape[1] * max(len(a), 1)
    for some in torch.arange(count, device=a.device).split(max(1, CHUNK // each)):

        def apart(part: Tensor, some: Tensor = some) -> Tensor:
            rows = part[..., some, :]
            return rows[..., a] - rows[..., b]

        def joint(part: Tensor, some: Tensor = some) -> Tensor:
            rows = part[..., some, :]
            return (rows[..., a] + rows[..., b]) * FAR

        size = joint(logits.size)
        # One rounding of each difference.
        slack = joint(logits.slack) + 2.0**-52 * size
        ends = point.lower[..., some, :], point.upper[..., some, :]
        at = Interval(
            _out(ends[0][..., a] - ends[1][..., b], -1.0), _out(ends[1][..., a] - ends[0][..., b], 1.0)
        )
        found, _ = sweep.symbols.facts(Form(apart(logits.centre), apart(logits.matrix), slack, size), at)
        place = (slice(None), some[:, None], a, b), (slice(None), some[:, None], b, a)
        for (low, high), here in (
            ((found.lower, found.upper), place[0]),
            ((-found.upper, -found.lower), place[1]),
        ):
            lower[here] = torch.maximum(lower[here], low)
            upper[here] = torch.minimum(upper[here], high)
        for kind in range(steep.shape[1]):
            part = steep[:, kind]
            best = torch.minimum(part[place[0]], found.slopes[:, kind])
            part[place[0]], part[place[1]] = best, best
    return lower, upper, steep


def _softmax(sweep: Sweep, node: Node, rows: _Rows, axis: int) -> tuple[Form, Tensor, Tensor | None, Tensor]:
    """Form and errors of the probabilities [count, rows, n], without new symbols; whole and groups as in `fresh`."""
    logits, n = rows.form, rows.lower.shape[-1]
    eye = torch.eye(n, dtype=torch.float64, device=rows.lower.device)
    middle = (
        (rows.lower + rows.upper)[..., :, 0] / 2
        if rows.pairs
        else rows.facts.lower / 2 + rows.facts.upper / 2
    )
    pair = 1.0 - eye if rows.kept is None else _apart_kept(rows.kept) * (1.0 - eye)
    p = torch.softmax(middle if rows.kept is None else middle.masked_fill(~rows.kept, -torch.inf), -1)
    at = _apart(middle, -middle)
    doubt = 2.0**-51 * (middle.abs().unsqueeze(-1) + middle.abs().unsqueeze(-2))
    below = (rows.lower - at - doubt).clamp(max=0.0) * pair
    above = (rows.upper - at + doubt).clamp(min=0.0) * pair
    far = torch.maximum(-below, above) * FAR
    pl, pu = _probabilities(rows.lower, rows.upper, rows.kept, pair)
    q = p.unsqueeze(-1) * p.unsqueeze(-2) * pair
    secant = _secant(rows, at, far, pair)
    # Its slopes are near the middle of those on the box, for gradients too.
    usable = secant[2].isfinite()
    q = torch.where(usable.unsqueeze(-1), secant[1], q)

    def deviation(t: float) -> Tensor:
        """sup |p_a p_b - q_ab| on the box of differences around the middle, shrunk by t."""
        low, high = _probabilities(at + t * below * FAR, at + t * above * FAR, rows.kept, pair)
        most = (high.unsqueeze(-1) * high.unsqueeze(-2)).clamp(max=0.25)
        least = low.unsqueeze(-1) * low.unsqueeze(-2)
        return torch.maximum(most - q, q - least).clamp_min(0.0) * pair * (1.0 + _EXP) + 2.0**-50 * q

    devs = [deviation(k / sweep.shells) for k in range(1, sweep.shells + 1)]
    mean, last = torch.stack(devs).sum(0) / sweep.shells, devs[-1]
    if rows.pairs:
        value, slope = (mean * far).sum(-1), (last.unsqueeze(1) * rows.steep).sum(-1)
    else:
        single = torch.maximum((rows.facts.upper - middle).abs(), (middle - rows.facts.lower).abs()) * FAR
        value = _entrywise(mean, _diagonal(q, pl, pu), single.unsqueeze(1))[:, 0]
        slope = _entrywise(last, _diagonal(q, pl, pu), rows.facts.slopes)
    wide = FAR + 4.0 * gamma(n + 16)
    errors = torch.cat([value.unsqueeze(1), slope], 1) * wide
    better = usable & (secant[2] < errors[:, 0])
    errors[:, 0] = torch.where(better, secant[2], errors[:, 0])
    start = torch.where(better, secant[0], p)
    # |dp_a| <= p_a (1 - p_a) max_b |dD_ab|, from the ranges of the probabilities.
    most = _parabola(pl, pu)[1]
    steepest = rows.steep.amax(-1)
    caps = most.unsqueeze(1) * steepest * FAR
    form = _reference(logits, start, q, middle)
    assert form.matrix is not None
    far = sweep.symbols.measure(form.matrix) + form.slack + errors
    reached = far[:, 1:]
    inside = torch.maximum(pu - p, p - pl) * FAR
    # Where the form has exploded a constant is better, and all later facts with it.
    lost = sweep.lost(torch.cat([inside.unsqueeze(1), caps], 1), far)
    if bool(lost.any()):
        stay = (~lost).to(p).unsqueeze(-1)
        errors = torch.where(lost[:, None, :, None], torch.cat([inside.unsqueeze(1), caps], 1), errors)
        form = replace(
            form,
            centre=torch.where(lost.unsqueeze(-1), p, form.centre),
            matrix=form.matrix * stay.unsqueeze(1),
            slack=form.slack * stay.unsqueeze(1),
        )
        reached = torch.where(lost[:, None, :, None], caps, reached)
    _strip(sweep, node, axis, middle, (start, q, errors[:, 0]), (p, inside), lost)
    total = torch.minimum(steepest.amax(-1) / 2 * FAR, torch.minimum(caps, reached).sum(-1) * wide)
    _keep(sweep, node, axis, rows, (p, pl, pu), caps, total)
    lap = torch.diag_embed(last.sum(-1) * wide) + last
    spread = largest(lap)  # [count, rows]
    # R and J do not see the mean of a row.
    whole, groups = _norms(sweep, logits.centred(), errors, spread, lost)
    return form, errors, whole, groups


def _probabilities(lower: Tensor, upper: Tensor, kept: Tensor | None, pair: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest p_a over boxes of differences [..., n, n]; pair: 1 where both keys are kept and not the same."""
    low = (1.0 - _EXP) / (1.0 + _exp(-lower, pair).sum(-1))
    high = (1.0 + _EXP) / (1.0 + _exp(-upper, pair).sum(-1)) + torch.finfo(torch.float64).tiny
    if kept is not None:
        low, high = low.masked_fill(~kept, 0.0), high.masked_fill(~kept, 0.0)
    return low.clamp(0.0, 1.0), high.clamp(0.0, 1.0)


def _exp(value: Tensor, pair: Tensor) -> Tensor:
    """Exponentials of the pairs that count, 0 elsewhere."""
    return value.masked_fill(pair == 0.0, -torch.inf).exp()


def _secant(rows: _Rows, at: Tensor, far: Tensor, pair: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre m, slopes s [count, rows, n, n] and half width: p_a is within it of m_a + sum s_ab (D_ab - middle's).

    The half width is infinite where a row has one key, or its differences are hundreds.
    """
    terms = _exp(-at, pair)
    total = terms.sum(-1)
    weights = terms / total.unsqueeze(-1)
    low, high = -_exp(-rows.lower, pair).sum(-1).log(), -_exp(-rows.upper, pair).sum(-1).log()
    y = -total.log()
    slack = 4.0 * _EXP + 2.0**-48 * (low.abs() + high.abs() + y.abs())
    usable = low.isfinite() & high.isfinite() & y.isfinite() & (total > 0)
    low, high = (torch.where(usable, end, torch.zeros_like(end)) for end in (low - slack, high + slack))
    lines = relax(Sigmoid(), Interval(torch.minimum(low, high), torch.maximum(low, high)))
    if not lines.lower.slopes:
        return torch.zeros_like(y), torch.zeros_like(at), torch.full_like(y, torch.inf)
    k = lines.lower.slopes[0].expand_as(y)
    below, above = lines.lower.offset, lines.upper.offset
    # sum over b of w_b (exp(d_b) - 1 - d_b) around the heaviest key, and Hoeffding's lemma.
    weights = torch.where(usable.unsqueeze(-1), weights, torch.zeros_like(weights))
    heaviest = weights.argmax(-1)
    beside = far.gather(
        -2, heaviest.unsqueeze(-1).expand_as(far)
    )  # [.., a, b]: how far D of b and the heaviest key moves
    bulge = (weights * (beside.expm1() - beside)).sum(-1)
    if rows.pairs:
        apart = (far.unsqueeze(-3) * pair.unsqueeze(-1) * pair.unsqueeze(-2)).amax((-2, -1))
    else:  # also the pairs with a itself
        apart = far.amax((-2, -1)).unsqueeze(-1).expand_as(y)
    bulge = torch.nan_to_num(bulge, nan=torch.inf) * (1.0 + _EXP) + _EXP * weights.amax(-1)
    rise = torch.minimum(bulge, apart * apart / 8.0 * FAR)
    slopes = k.unsqueeze(-1) * weights * pair
    centre = k * (y - rise / 2) + (below + above) / 2
    doubt = k * slack + _EXP * ((slopes * far).sum(-1) + (k * (y.abs() + rise) + centre.abs()))
    half = ((above - below) / 2 + k * rise / 2 + doubt + 2.0**-50 * (above.abs() + below.abs())) * FAR
    half = torch.where(usable & (k >= 0) & half.isfinite(), half, torch.full_like(half, torch.inf))
    return torch.where(usable, centre, torch.zeros_like(centre)), slopes, half


def _parabola(pl: Tensor, pu: Tensor) -> tuple[Tensor, Tensor]:
    """The range of p (1 - p): it peaks inside where the range holds 1/2."""
    a, b = pl * (1.0 - pl), pu * (1.0 - pu)
    top = torch.where((pl <= 0.5) & (pu >= 0.5), torch.full_like(a, 0.25), torch.maximum(a, b))
    return torch.minimum(a, b) * (1.0 - 2.0**-50), top * FAR


def _diagonal(q: Tensor, pl: Tensor, pu: Tensor) -> Tensor:
    """sup |p_a (1 - p_a) - sum over b of q_ab|: what R leaves out on its diagonal."""
    least, most = _parabola(pl, pu)
    total = q.sum(-1)
    return (
        torch.maximum(most - total, total - least).clamp_min(0.0) * FAR
        + 2.0 * gamma(q.shape[-1] + 16) * total
    )


def _entrywise(dev: Tensor, diagonal: Tensor, sizes: Tensor) -> Tensor:
    """sum over b of |J - R|_ab sizes_b with entries of single logits, the diagonal among them: sizes [count, kinds, rows, n]."""
    beside = (dev.unsqueeze(1) @ sizes.unsqueeze(-1)).squeeze(-1)
    own = torch.minimum(dev.sum(-1) * (FAR + 4.0 * gamma(dev.shape[-1] + 16)), diagonal)
    return beside + own.unsqueeze(1) * sizes


def _reference(logits: Form, p: Tensor, q: Tensor, middle: Tensor) -> Form:
    """p + R (z - middle) with R = diag(row sums of q) - q, whose rows sum to zero exactly in exact arithmetic."""
    n = p.shape[-1]
    r = torch.diag_embed(q.sum(-1)) - q
    wide = FAR + 4.0 * gamma(n + 16)

    def through(a: Tensor, part: Tensor) -> Tensor:
        return torch.einsum("brij,bk...rj->bk...ri", a, part)

    assert logits.matrix is not None
    centre = p + torch.einsum("brij,brj->bri", r, logits.centre - middle)
    matrix = through(r, logits.matrix.expand(len(p), *logits.matrix.shape[1:]))
    sizes = logits.size.clone()
    sizes[:, 0] += middle.abs()
    size = through(r.abs(), sizes) * wide
    slack = through(r.abs(), logits.slack) * wide + 2.0 * gamma(n + 32) * size
    # p itself is the softmax of the middle up to the errors of exponentials.
    slack[:, 0] += _EXP * p
    size[:, 0] += p
    return Form(centre, matrix, slack, size)


def _strip(
    sweep: Sweep,
    node: Node,
    axis: int,
    middle: Tensor,
    reference: tuple[Tensor, Tensor, Tensor],
    constant: tuple[Tensor, Tensor],
    lost: Tensor,
) -> None:
    """m + R (z - middle) within a half width, or a constant where that is narrower or the reference was given up.

    Args:
        reference: m, slopes, half width; constant: the value and half width.
    """
    last, n = len(node.shape) - 1, middle.shape[-1]
    shape = _moved(torch.empty(node.shape, device="meta"), axis, last, 0).shape
    m, q, half = reference
    fixed = lost.unsqueeze(-1) | (constant[1] < half)
    m, half = torch.where(fixed, constant[0], m), torch.where(fixed, constant[1], half)
    q = q.masked_fill(fixed.unsqueeze(-1), 0.0)
    r = torch.diag_embed(q.sum(-1)) - q
    moved = torch.einsum("brij,brj->bri", r, middle)
    doubt = _EXP * m.abs() + 4.0 * gamma(n + 16) * torch.einsum("brij,brj->bri", r.abs(), middle.abs())

    def back(part: Tensor) -> Tensor:
        return part.reshape(len(part), *shape).movedim(-1, axis + 1)

    def through(r: Tensor, part: Tensor) -> Tensor:
        rows = _moved(part, axis, last, 1).reshape(len(part), -1, n)
        if len(r) == 1:  # one ball: a product of matrices for each row of logits
            return back((rows.transpose(0, 1) @ r[0].mT).transpose(0, 1))
        return back((r @ rows.unsqueeze(-1)).squeeze(-1))

    sweep.strips[node.name] = Strip(
        back(m - moved),
        back((half + doubt) * FAR),
        (r,),
        lambda a, r: (through(r.mT, a),),
        lambda z, r: through(r.abs(), z),
    )


def _keep(
    sweep: Sweep,
    node: Node,
    axis: int,
    rows: _Rows,
    probabilities: tuple[Tensor, Tensor, Tensor],
    caps: Tensor,
    total: Tensor,
) -> None:
    """Facts of the result: ranges and gradients of single probabilities, and how far rows move together."""
    p, pl, pu = probabilities
    last = len(node.shape) - 1
    shape = _moved(torch.empty(node.shape, device="meta"), axis, last, 0).shape

    def back(part: Tensor, before: int) -> Tensor:
        return part.reshape(*part.shape[:before], *shape).movedim(-1, axis + before)

    have = sweep.boxes[node.name]
    sweep.boxes[node.name] = have.meet(Facts(back(pl, 1), back(pu, 1), back(caps, 2)))
    sweep.middles[node.name] = back(p, 1)
    if axis != last:
        return
    n = p.shape[-1]
    point = sweep.point[node.name]
    start = torch.maximum(
        (point.upper.reshape(p.shape) - p).abs(), (p - point.lower.reshape(p.shape)).abs()
    ).sum(-1)
    reach = sweep.domain.reach[:, None]
    moved = torch.minimum(torch.maximum(pu - p, p - pl).sum(-1), start + reach * total[:, 0])
    moved = moved * (FAR + 4.0 * gamma(n + 16))
    sweep.shares[node.name] = (
        total.reshape(*total.shape[:2], *shape[:-1]),
        moved.reshape(len(moved), *shape[:-1]),
    )


def _norms(
    sweep: Sweep, centred: Form, errors: Tensor, spread: Tensor, lost: Tensor
) -> tuple[Tensor | None, Tensor]:
    """l2 norms of the errors of rows, and of all: a row's matrix of deviations, of norm `spread`, on centred logits."""
    n = errors.shape[-1]
    wide = FAR + 4.0 * gamma(n + 16)
    assert centred.matrix is not None
    far = sweep.symbols.measure(centred.matrix) + centred.slack
    norms = token_norms(sweep.symbols, centred, far[:, 1:] * FAR, 1).norms
    groups = euclidean_norm(errors, dim=-1) * wide
    by_row = norms * spread.unsqueeze(1) * FAR
    groups[:, 1:] = torch.where(lost.unsqueeze(1), groups[:, 1:], torch.minimum(groups[:, 1:], by_row))
    two = sweep.symbols.two
    if two is None:
        return None, groups
    rest = groups[:, 1 + two].masked_fill(~lost, 0.0)
    weight = spread.masked_fill(lost, 0.0).unsqueeze(-1).expand(errors[:, 0].shape).flatten(1)
    slope = joint_norm(
        sweep.symbols,
        centred.matrix.flatten(2),
        far[:, 1 + two].flatten(1),
        centred.slack[:, 1 + two].flatten(1),
        weight,
    )
    slope = slope + euclidean_norm(rest, dim=1)
    value = euclidean_norm(errors[:, 0].flatten(1), dim=1)
    return torch.stack([value, slope], 1) * (FAR + 4.0 * gamma(errors[:, 0, ..., 0].numel() * n + 16)), groups
