"""Layer normalisation and its relatives without a mean.

Legend: for a token z of n entries, P = I - 11'/n (RMSNorm: P = I), y = P z, s = sqrt(|y|^2/n + eps), f = y/s, |f|^2 <= n;
where z is divided by its length, all n that follow but those of P are 1, which nothing below uses. Of s = sqrt(max(|y|^2, e))
a token that may reach the floor e is known to have slope 1/sqrt(e) and no more; others never see the floor.
J = (P - f f'/n)/s. P and J are symmetric, 0 <= J <= I/s. Reference T = (P - h h'/n)/r with numbers h, r near f, s at `middle`.
With v = |P m|_2/sqrt n, d = rho/sqrt n and |z - m|_2 <= rho:    s >= s_lo = sqrt(max(0, v - d)^2 + eps), and for v > d
    |J(z) - J(m)|_2 <= 2/sqrt 3 * d/(eps + v (v - d)).
Proof: the second derivative in a unit direction u at angle t from y is, with a = |f|/sqrt n <= 1, a/(s^2 sqrt n) times the map
that is cos t on the complement of y and u, and [[3 (1 - a^2) cos t, sin t], [sin t, cos t]] on them: its norm times a is at
most 2/sqrt 3. Along the segment s^2 >= (v - t d)^2 + eps, and the integral of d/((v - t d)^2 + eps) over t in [0, 1] is
atan(sqrt(eps) d/(eps + v (v - d)))/sqrt(eps).
Likewise for a direction w of length sqrt n with y'w/n >= a on all values and v = (P m)'w/n: by Cauchy and Schwarz
|y|/sqrt n >= y'w/n, a number that the form bounds as one functional, in which errors of entries cancel; hence
s >= sqrt(max(0, a)^2 + eps), and along the segment s^2 >= ((1 - t) v + t a)^2 + eps, with which the integral is at most
d/(eps + v a) for v >= a > 0.
And entry by entry by interval arithmetic on boxes shrunk towards the middle, whose deviations grow with the box.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipverify import ops
from lipverify.errors import UnsupportedModel
from lipverify.ir.graph import Node
from lipverify.linalg.lengths import euclidean_norm
from lipverify.linalg.rounding import gamma
from lipverify.ops.enclosure import Enclosure
from lipverify.propagation.forms.domain import FAR
from lipverify.propagation.forms.symbols import Facts, Form, checked
from lipverify.propagation.forms.tokens import Tokens, joint_norm, token_norms
from lipverify.propagation.forms.unit import Unit, floored
from lipverify.propagation.strips import Strip

if TYPE_CHECKING:
    from lipverify.propagation.forms.sweep import Sweep

CURVATURE = 1.1547005383792517
"""Above 2/sqrt 3."""
_Normal = ops.LayerNorm | ops.RMSNorm | Unit
ENTRIES = 1 << 22
"""Entries of all tokens' Jacobians up to which they are bounded one by one."""


@dataclass(frozen=True)
class _Token:
    """Tokens [count, tokens, n]: the middle, its normalised value h and deviation r, and how far they may be from the truth."""

    mean: bool
    eps: float
    floor: tuple[float, float]
    n: int
    per: float
    """What |y|^2 is divided by: n, or 1."""
    middle: Tensor
    h: Tensor
    r: Tensor
    """[count, tokens, 1]."""
    y: Enclosure
    f: Enclosure
    s: Enclosure

    @classmethod
    def of(cls, op: _Normal, middle: Tensor) -> _Token:
        n, x = middle.shape[-1], Enclosure.of(middle)
        mean = isinstance(op, ops.LayerNorm)
        per, floor = (1.0, op.floor) if isinstance(op, Unit) else (float(n), (0.0, 0.0))
        y = x - x.sum((-1,)) / float(n) if mean else x
        s = (floored(y.square().sum((-1,)) / per, floor) + op.eps).sqrt()
        if not bool((s.lower > 0).all()):
            raise UnsupportedModel("without eps it divides by a number that may be zero here; set eps > 0")
        f = y / s
        h, r = f.lower / 2 + f.upper / 2, s.lower / 2 + s.upper / 2
        return cls(mean, op.eps, floor, n, per, middle, h, r, y, f, s)

    def through(self, part: Tensor) -> Tensor:
        """T applied along the last axis of [count, any, tokens, n]."""
        h, r = self.h.unsqueeze(1), self.r.unsqueeze(1)
        centred = part - part.mean(-1, keepdim=True) if self.mean else part
        return (centred - h * ((h * part).sum(-1, keepdim=True) / self.per)) / r

    def absolute(self, part: Tensor) -> Tensor:
        """At least |T| applied to numbers >= 0."""
        h, r = self.h.abs().unsqueeze(1), self.r.unsqueeze(1)
        whole = part + part.mean(-1, keepdim=True) if self.mean else part
        found = (whole + h * ((h * part).sum(-1, keepdim=True) / self.per)) / r
        return found * (FAR + 4.0 * gamma(2 * self.n + 32))

    def doubt(self) -> Tensor:
        """|T - J(middle)|_2 at most: [count, tokens]."""
        root = math.sqrt(self.per)
        off = euclidean_norm(self.f.upper - self.f.lower, dim=-1) * (FAR + 4.0 * gamma(self.n + 16))
        least = self.s.lower[..., 0]
        wide = (self.s.upper - self.s.lower)[..., 0]
        found: Tensor = (wide / (least * least) + off * (2.0 * root + off) / (self.per * least)) * FAR
        return found


def normalised(sweep: Sweep, node: Node) -> Form:
    """Over the last axes of the sample.

    Raises:
        UnsupportedModel: eps is 0 and a token may be constant.
    """
    op, name = node.op, node.inputs[0]
    assert isinstance(op, _Normal)
    asked = sweep.ask(name)
    sweep.fence(node)
    n = math.prod(op.shape)
    form, count = sweep.forms[name], sweep.domain.count
    matrix = form.matrix
    if matrix is None:
        matrix = form.centre.new_zeros(1, sweep.domain.rows, *form.centre.shape[1:])

    def flat(part: Tensor, before: int) -> Tensor:
        return part.reshape(*part.shape[:before], -1, n)

    z = Form(flat(form.centre, 1), flat(matrix, 2), flat(form.slack, 2), flat(form.size, 2))
    facts = Facts(flat(asked.lower, 1), flat(asked.upper, 1), flat(asked.slopes, 2))
    point = Enclosure(flat(sweep.point[name].lower, 1), flat(sweep.point[name].upper, 1))
    shift = torch.zeros_like(facts.lower[..., :1])
    if isinstance(op, ops.LayerNorm):
        shift = torch.maximum(facts.upper, -facts.lower).mean(-1, keepdim=True) * (FAR + 4.0 * gamma(n + 16))
        z, facts, point = _without_mean(sweep, z, facts, point)
    token = _Token.of(op, facts.lower / 2 + facts.upper / 2)
    given = None if isinstance(op, Unit) else op.weight
    weight = z.centre.new_ones(n) if given is None else given.to(torch.float64).flatten()
    known = token_norms(sweep.symbols, z, facts.slopes, 1)
    norms = known.norms
    along = _along(sweep, token, z, facts, point)
    rho, slope, least, near = _steepness(sweep, token, z, facts, point, known, along)
    errors, groups, steep = _errors(sweep, token, facts, norms, rho, slope, (least, near), along)
    caps = (norms / least.unsqueeze(1) * FAR).unsqueeze(-1)
    form = _reference(token, z, op, weight, n)
    errors = errors * weight.abs() * FAR
    groups = groups * weight.abs().max() * FAR
    caps = caps * weight.abs() * FAR
    box = sweep.boxes[node.name]
    sweep.boxes[node.name] = replace(
        box, slopes=torch.minimum(box.slopes, caps.reshape(count, -1, *node.shape))
    )
    form, errors, lost = _given_up(sweep, form, errors, caps, box, token, op, weight)
    sweep.strips[node.name] = _strip(
        token, errors[:, 0], lost, weight, _bias(op, z.centre), node.shape, shift
    )
    whole = _whole(sweep, z, facts, errors, steep * weight.abs().max() * FAR, groups, lost)
    plain = euclidean_norm(errors, dim=-1) * (FAR + 4.0 * gamma(n + 16))
    groups = torch.where(lost[:, None], plain, torch.minimum(groups, plain))
    assert form.matrix is not None

    def back(part: Tensor, before: int) -> Tensor:
        return part.reshape(*part.shape[:before], *node.shape)

    moved = Form(back(form.centre, 1), back(form.matrix, 2), back(form.slack, 2), back(form.size, 2))
    single = len(op.shape) == 1
    return sweep.symbols.fresh(
        moved,
        back(errors, 2),
        whole,
        groups.reshape(*groups.shape[:2], *node.shape[:-1]) if single else None,
    )


def _without_mean(sweep: Sweep, z: Form, facts: Facts, point: Enclosure) -> tuple[Form, Facts, Enclosure]:
    """The same of y = P z, of which layer normalisation is a function: what moves all entries of a token moves y nowhere."""
    n = z.centre.shape[-1]
    form = z.centred()
    at = point - point.sum((-1,)) / float(n)
    box = Enclosure(facts.lower, facts.upper)
    inside = box - box.sum((-1,)) / float(n)
    slopes = (facts.slopes + facts.slopes.mean(-1, keepdim=True)) * (FAR + 4.0 * gamma(n + 16))
    found, _ = sweep.symbols.facts(form, at)
    return form, checked(found.meet(Facts(inside.lower, inside.upper, slopes)), "centred token"), at


def _along(sweep: Sweep, token: _Token, z: Form, facts: Facts, point: Enclosure) -> tuple[Tensor, Tensor]:
    """Lower bounds of y'w/n along the direction w of the middle: at P middle, and at all values. [count, tokens] each, >= 0."""
    assert z.matrix is not None
    n, wide = token.n, FAR + 4.0 * gamma(token.n + 16)
    length = euclidean_norm(token.h, dim=-1)
    # Any w serves; h / |h|, and 0, of which nothing follows, for a token whose middle is constant.
    w = torch.where((length > 0).unsqueeze(-1), token.h / length.clamp_min(1e-300).unsqueeze(-1), 0.0)
    size = torch.einsum("bkti,bti->bkt", z.size, w.abs()) * wide
    form = Form(
        (z.centre * w).sum(-1),
        torch.einsum("brti,bti->brt", z.matrix.expand(len(w), *z.matrix.shape[1:]), w),
        torch.einsum("bkti,bti->bkt", z.slack, w.abs()) * wide + 2.0 * gamma(n + 16) * size,
        size,
    )
    given = Enclosure.of(w)

    def times(part: Enclosure) -> Enclosure:
        total = (part * given).sum((-1,))
        return Enclosure(total.lower[..., 0], total.upper[..., 0])

    found, _ = sweep.symbols.facts(form, times(point))
    lower = torch.maximum(found.lower, times(Enclosure(facts.lower, facts.upper)).lower)
    root = euclidean_norm(w, dim=-1) * wide * math.sqrt(token.per) * FAR
    start, values = (
        (low.clamp_min(0.0) / root.clamp_min(1e-300)) * (2.0 - FAR) for low in (times(token.y).lower, lower)
    )
    return start, values


def _steepness(
    sweep: Sweep,
    token: _Token,
    z: Form,
    facts: Facts,
    point: Enclosure,
    known: Tokens,
    along: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """How far a token is from its middle in l2, |J - T| on all of that, and the smallest deviations s: [count, tokens] each.

    Two of these: at values of the token, and on all segments from the middle to them, which may leave the box of centred ranges.
    """
    n, root = token.n, math.sqrt(token.per)
    wide = FAR + 4.0 * gamma(n + 16)
    radius = torch.maximum(facts.upper - token.middle, token.middle - facts.lower)
    offset = torch.maximum((point.upper - token.middle).abs(), (token.middle - point.lower).abs()) * FAR
    start = euclidean_norm(offset, dim=-1)
    ways = [
        euclidean_norm(radius, dim=-1),
        start + sweep.domain.reach[:, None] * known.norms[:, 0],
        euclidean_norm(z.centre - token.middle, dim=-1) + known.far,
    ]
    rho = torch.stack(ways).amin(0) * wide
    whole = token.y.square().sum((-1,)).lower[..., 0].clamp_min(0.0).sqrt() * (2.0 - FAR)
    # Also entry by entry, from the smallest |y_i| on the range.
    nearest = torch.maximum(facts.lower, -facts.upper).clamp_min(0.0)
    entries = torch.linalg.vector_norm(nearest, dim=-1) * (2.0 - wide) / root * (2.0 - FAR)
    curved = (whole - rho).clamp_min(0.0) / root * (2.0 - FAR)
    start, values = along
    straight = torch.minimum(start, values)
    lows = torch.maximum(torch.maximum(curved, entries), values), torch.maximum(curved, straight)
    least, near = (
        (((low * low * (2.0 - FAR)).clamp_min(token.floor[0]) + token.eps) * (2.0 - FAR)).sqrt() * (2.0 - FAR)
        for low in lows
    )
    if not bool((near > 0).all()):
        raise UnsupportedModel("without eps it divides by a number that may be zero on this ball")
    slope = torch.full_like(rho, torch.inf)
    for first, last in ((whole / root, curved), (start, straight)):
        found = CURVATURE * rho / root / ((token.eps + first * last) * (2.0 - FAR)) * FAR
        slope = torch.minimum(slope, found.masked_fill(last <= 0, torch.inf))
    slope = slope.masked_fill((lows[1] * lows[1] * (2.0 - FAR) < token.floor[1]), torch.inf)
    return rho, slope, least, near


def _errors(
    sweep: Sweep,
    token: _Token,
    facts: Facts,
    norms: Tensor,
    rho: Tensor,
    slope: Tensor,
    smallest: tuple[Tensor, Tensor],
    direct: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Before the weight, errors of entries [count, 1 + kinds, tokens, n], of tokens in l2 (without n), and |J - T|."""
    most, along = ((1.0 / low + 1.0 / token.s.lower[..., 0]) * FAR for low in smallest)
    doubt = token.doubt()
    # mean over t of slope t, or of the constant.
    value = (torch.minimum(slope / 2, along) + doubt) * rho * FAR
    steep = (torch.minimum(slope, most) + doubt) * FAR
    groups = torch.cat([value.unsqueeze(1), steep.unsqueeze(1) * norms], 1) * FAR
    errors = groups.unsqueeze(-1).expand(*groups.shape, token.n)
    if token.middle.numel() * token.n <= ENTRIES:
        radius = torch.maximum(facts.upper - token.middle, token.middle - facts.lower) * FAR
        parts = [k / sweep.shells for k in range(1, sweep.shells + 1)]
        start, values = direct[0], torch.minimum(*direct)
        devs = [
            _deviation(token, radius * part, (start + part * (values - start)) * (2.0 - FAR), smallest[1])
            for part in parts
        ]
        mean = torch.stack(devs).sum(0) / sweep.shells
        single = torch.cat(
            [
                (mean @ radius.unsqueeze(-1)).squeeze(-1).unsqueeze(1),
                (devs[-1].unsqueeze(1) @ facts.slopes.unsqueeze(-1)).squeeze(-1),
            ],
            1,
        )
        single = single * (FAR + 4.0 * gamma(token.n + 16))
        if token.floor[1] > 0:  # of functions without one
            single = single.masked_fill(slope.isinf()[:, None, :, None], torch.inf)
        errors = torch.minimum(errors, single)
    return errors, groups, steep


def _deviation(token: _Token, radius: Tensor, least: Tensor, near: Tensor) -> Tensor:
    """sup |J - T| entry by entry on the box around the middle, where |y|/sqrt n >= least and s >= near: [count, tokens, n, n].

    It grows with the box and falls with `least`.
    """
    n, root = token.n, math.sqrt(token.per)
    mean = radius.mean(-1, keepdim=True)
    spread = (radius * (1.0 - 2.0 / n) + mean if token.mean else radius) * (FAR + 4.0 * gamma(n + 16))
    if token.mean:  # the middle itself need not be centred
        away = torch.maximum((token.y.upper - token.middle).abs(), (token.middle - token.y.lower).abs())
        spread = torch.minimum(spread, (radius + away) * FAR)
    spread = spread.clamp_min(0.0)
    y = token.y + Enclosure(-spread, spread)
    step = euclidean_norm(radius, dim=-1).unsqueeze(-1) * (FAR + 4.0 * gamma(n + 16))
    size = token.y.square().sum((-1,)).sqrt()
    size = size + Enclosure(-step, step)
    by_norm = size.clipped(0.0, math.inf).square() / token.per
    by_entry = y.square().sum((-1,)) / token.per
    directly = (least * least * (2.0 - FAR)).unsqueeze(-1)
    variance = Enclosure(
        torch.maximum(torch.maximum(by_norm.lower, by_entry.lower), directly),
        torch.minimum(by_norm.upper, by_entry.upper),
    )
    s = (floored(variance, token.floor) + token.eps).sqrt()
    s = Enclosure(*(torch.maximum(end, near.unsqueeze(-1)) for end in (s.lower, s.upper)))
    f = (y / s).clipped(-root * FAR, root * FAR)
    inverse = 1.0 / s
    a = Enclosure(f.lower.unsqueeze(-1), f.upper.unsqueeze(-1))
    b = Enclosure(f.lower.unsqueeze(-2), f.upper.unsqueeze(-2))
    j = _projection(token) - a * b / token.per
    j = j * Enclosure(inverse.lower.unsqueeze(-1), inverse.upper.unsqueeze(-1))
    h = Enclosure.of(token.h)
    outer = Enclosure(h.lower.unsqueeze(-1), h.upper.unsqueeze(-1)) * Enclosure(
        h.lower.unsqueeze(-2), h.upper.unsqueeze(-2)
    )
    t = (_projection(token) - outer / token.per) / Enclosure.of(token.r.unsqueeze(-1))
    return torch.maximum(j.upper - t.lower, t.upper - j.lower).clamp_min(0.0) * FAR


def _projection(token: _Token) -> Enclosure:
    """P [n, n]."""
    eye = Enclosure.of(torch.eye(token.n, dtype=torch.float64, device=token.h.device))
    return eye - Enclosure.of(1.0) / float(token.n) if token.mean else eye


def _reference(token: _Token, z: Form, op: _Normal, weight: Tensor, n: int) -> Form:
    """(h + T (z - middle)) weight + bias."""
    assert z.matrix is not None
    bias = _bias(op, z.centre)
    centre = (token.h + token.through((z.centre - token.middle).unsqueeze(1))[:, 0]) * weight + bias
    matrix = token.through(z.matrix.expand(len(token.h), *z.matrix.shape[1:])) * weight
    sizes = z.size.clone()
    sizes[:, 0] += token.middle.abs()
    size = token.absolute(sizes) * weight.abs() * FAR
    slack = token.absolute(z.slack) * weight.abs() * FAR + 2.0 * gamma(2 * n + 64) * size
    off = (token.f.upper - token.f.lower) + 2.0 * gamma(16) * token.h.abs()
    slack[:, 0] += (off * weight.abs() + 2.0 * gamma(16) * bias.abs()) * FAR
    size[:, 0] += token.h.abs() * weight.abs() + bias.abs()
    return Form(centre, matrix, slack, size)


def _strip(
    token: _Token,
    half: Tensor,
    lost: Tensor,
    weight: Tensor,
    bias: Tensor,
    shape: tuple[int, ...],
    shift: Tensor,
) -> Strip:
    """(h + T (z - middle)) weight + bias within the errors of values, or h weight + bias where that was given up.

    shift [count, tokens, 1]: bound of |mean of z|. The errors are those of T P z; T (z - P z) is not quite 0, because entries of
    h, which were rounded, do not quite add up to 0: it is h times their mean times that of z, over r.
    """
    stay = (~lost).to(half).unsqueeze(-1)
    n, per, mean = token.n, token.per, token.mean

    def through(part: Tensor, h: Tensor, r: Tensor, stay: Tensor, weight: Tensor) -> Tensor:
        """weight T for a symmetric T; its adjoint has the weight first."""
        flat = part.reshape(len(part), -1, n) * weight
        centred = flat - flat.mean(-1, keepdim=True) if mean else flat
        return ((centred - h * ((h * flat).sum(-1, keepdim=True) / per)) / r * stay).reshape(part.shape)

    def absolute(part: Tensor, h: Tensor, r: Tensor, stay: Tensor, weight: Tensor) -> Tensor:
        flat = part.reshape(len(part), -1, n)
        whole = flat + flat.mean(-1, keepdim=True) if mean else flat
        found = (whole + h.abs() * ((h.abs() * flat).sum(-1, keepdim=True) / per)) / r * stay
        return (found * weight.abs()).reshape(part.shape)

    one = torch.ones_like(weight)
    moved = through(token.middle, token.h, token.r, stay, one).reshape(token.h.shape) * weight
    size = absolute(token.middle.abs(), token.h, token.r, stay, weight).reshape(token.h.shape)
    lean = token.h.mean(-1, keepdim=True).abs() + 4.0 * gamma(n + 16) * token.h.abs().mean(-1, keepdim=True)
    doubt = (token.f.upper - token.f.lower) * weight.abs() + 8.0 * gamma(2 * n + 32) * (
        size + token.h.abs() * weight.abs() + bias.abs()
    )
    doubt = doubt + token.h.abs() * weight.abs() * lean * shift / token.r * (FAR * FAR)
    return Strip(
        (token.h * weight + bias - moved).reshape(len(half), *shape),
        ((half + doubt) * FAR).reshape(len(half), *shape),
        (token.h, token.r, stay, weight.expand(len(half), 1, n)),
        lambda a, *facts: (through(a, *facts),),
        absolute,
    )


def _bias(op: _Normal, like: Tensor) -> Tensor:
    bias = op.bias if isinstance(op, ops.LayerNorm) else None
    return like.new_zeros(like.shape[-1]) if bias is None else bias.to(torch.float64).flatten()


def _given_up(
    sweep: Sweep,
    form: Form,
    errors: Tensor,
    caps: Tensor,
    box: Facts,
    token: _Token,
    op: _Normal,
    weight: Tensor,
) -> tuple[Form, Tensor, Tensor]:
    """Tokens whose form has exploded become constants with errors: their range, slope 1/s_lo. lost [count, tokens]."""
    assert form.matrix is not None
    centre = token.h * weight + _bias(op, token.h)
    lower, upper = box.lower.reshape(centre.shape), box.upper.reshape(centre.shape)
    inside = torch.maximum(upper - centre, centre - lower) * FAR
    known = torch.cat([inside.unsqueeze(1), caps], 1)
    lost = sweep.lost(known, sweep.symbols.measure(form.matrix) + form.slack + errors)
    if not bool(lost.any()):
        return form, errors, lost
    stay = (~lost).to(form.centre).unsqueeze(-1)
    errors = torch.where(lost[:, None, :, None], known, errors)
    form = replace(
        form,
        centre=torch.where(lost.unsqueeze(-1), centre, form.centre),
        matrix=form.matrix * stay.unsqueeze(1),
        slack=form.slack * stay.unsqueeze(1),
    )
    return form, errors, lost


def _whole(
    sweep: Sweep, z: Form, facts: Facts, errors: Tensor, steep: Tensor, groups: Tensor, lost: Tensor
) -> Tensor | None:
    """The errors of all tokens together, in l2: tokens weighed by the norms of their deviations."""
    two = sweep.symbols.two
    if two is None:
        return None
    assert z.matrix is not None
    weight = steep.masked_fill(lost, 0.0).unsqueeze(-1).expand(z.centre.shape).flatten(1)
    found = joint_norm(
        sweep.symbols,
        z.matrix.flatten(2),
        facts.slopes[:, two].flatten(1),
        z.slack[:, 1 + two].flatten(1),
        weight,
    )
    rest = euclidean_norm(errors[:, 1 + two] * lost.to(errors).unsqueeze(-1), dim=(1, 2))
    value = euclidean_norm(groups[:, 0], dim=1)
    plain = euclidean_norm(errors[:, 0], dim=(1, 2))
    value = torch.where(lost.any(1), plain, torch.minimum(value, plain))
    return torch.stack([value, found + rest], 1) * (FAR + 4.0 * gamma(errors[0, 0].numel() + 16))
