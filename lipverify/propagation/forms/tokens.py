"""How far the entries of a token, and their gradients as one map to l2, reach together.

Legend: for a token z of n entries, z - centre = C't + sum over symbols of M_k eta_k, an l2 norm of a sum of parts A_j xi_j in
which |xi_j| <= 1: entries of t over a cube, or t over an l2 ball; symbols one by one, groups of them, or a whole block, where an
l2 norm of their errors together is known. The gradients along a unit direction are such a sum as well. Three bounds of it:
    entry by entry      the l2 norm of what `measure` says of each entry: for many parts up to sqrt n times too large
    part by part        a sum of spectral norms
    jointly             |sum A_j xi_j|^2 <= sigma([A_j / sqrt w_j])^2 * sum w_j  for every w > 0 (Cauchy and Schwarz);
                        w_j = |A_j|, or above it: at most the sum over parts, and about it over sqrt n where directions differ
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.ir.norm import Norm
from lipverify.linalg.lengths import euclidean_norm
from lipverify.linalg.rounding import gamma
from lipverify.propagation.forms.domain import FAR
from lipverify.propagation.forms.gram import TINY, Gram, Rows, balance, estimate, estimate_tall, tall_norm
from lipverify.propagation.forms.symbols import Block, Form, Symbols, by_group

_SMALL = 2e-4
"""Blocks of symbols below this share of what came before are measured roughly."""


@dataclass(frozen=True)
class Tokens:
    """Facts of all tokens along one axis: norms [count, kinds, *shape without it], far [count, *shape without it].

    norms: sup |d(entries)/dx| from the norm of each kind to l2; far: sup |entries - centre|_2.
    """

    norms: Tensor
    far: Tensor


@dataclass(frozen=True)
class _Part:
    """Parts of the sum for every token: rows [count, rows, tokens] that scale rows of the matrix, and the sum of weights."""

    scale: Tensor
    weight: Tensor
    """[count, tokens]."""


def token_norms(symbols: Symbols, form: Form, slopes: Tensor, axis: int) -> Tokens:
    """Of the entries along one axis of the sample; slopes [count, kinds, *shape]: of single entries."""
    domain = symbols.domain
    width = form.centre.shape[axis + 1]
    entry: Tensor = euclidean_norm(slopes, dim=axis + 2) * (FAR + 4.0 * gamma(width + 16))
    loose: Tensor = euclidean_norm(form.slack, dim=axis + 2) * (FAR + 4.0 * gamma(width + 16))
    if form.matrix is None:
        return Tokens(entry, loose[:, 0])
    matrix = form.matrix.movedim(axis + 2, 2)
    rest = matrix.shape[3:]
    # [count or 1, tokens, rows, width], so that the rows of a block are one piece of memory for every token.
    matrix = matrix.flatten(3).permute(0, 3, 1, 2).contiguous()
    first, later = matrix[:, :, : domain.rows], matrix[:, :, domain.rows :]
    lifted, rough = first, first.new_zeros(())
    if domain.front is not None:
        by_row = first.permute(0, 2, 3, 1)
        lifted = domain.lifted(by_row).permute(0, 3, 1, 2)
        lengths = euclidean_norm(by_row, dim=2)
        rough = 2.0 * gamma(domain.rows + 8) * torch.einsum("r,brc->bc", domain.front.columns, lengths)
    blocks = []
    for block in symbols.blocks:
        if block.start >= later.shape[2]:
            break
        part = later[:, :, block.start : block.end]
        known = symbols.two is not None and block.whole is not None
        about = estimate_tall(part) if known else None
        blocks.append((block, part, euclidean_norm(part, dim=3).mT, about))
    slack = loose.flatten(2)
    wide = FAR + 4.0 * gamma(matrix.shape[2] * width + 16)
    alone = {kind: _first_rows(symbols, lifted, kind) for kind in domain.kinds}
    found = []
    for place in range(1 + len(domain.kinds)):
        kind = domain.kinds[max(place - 1, 0)]
        reach = domain.reach[:, None] if place == 0 else torch.ones_like(domain.reach[:, None])
        start = alone[kind] * reach * FAR
        more = (rough * reach).expand(domain.count, -1)
        gram, weights = Gram(), torch.zeros_like(start)
        shares = [(lifted, [_inputs(symbols, lifted, kind, start, place == 0)])]
        shares += [
            (part, _ways(symbols, block, length, about, place)) for block, part, length, about in blocks
        ]
        for part, ways in shares:
            weights = weights + gram.add_balanced(part, [(way.scale, way.weight) for way in ways])
        total = gram.norm() * weights.sqrt()
        if kind is Norm.LINF:
            total = total + start
        found.append((total + more + slack[:, place]) * wide)
    together = torch.stack(found, 1).nan_to_num(nan=torch.inf, posinf=torch.inf)
    together = together.reshape(*together.shape[:2], *rest)
    return Tokens(torch.minimum(entry, together[:, 1:]), together[:, 0])


def joint_norm(
    symbols: Symbols, matrix: Tensor, slopes: Tensor, slack: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Bounds of |diag(weight) dz/dx| from l2 to l2 for all entries together: [count]. l2 only.

    Jointly, as one token; the weights are estimates of the spectral norms of blocks. Overflow leaves the bound entry by entry.

    Args:
        matrix: [count or 1, rows, entries]; slopes, slack [count, entries]: of single gradients in l2, none of them weighed.
        weight: [count, entries], >= 0.
    """
    assert symbols.two is not None
    domain, place = symbols.domain, 1 + symbols.two
    length = FAR + 4.0 * gamma(matrix.shape[2] + 16)
    if weight is not None:
        slopes, slack = slopes * weight * FAR, slack * weight * FAR
    crude: Tensor = euclidean_norm(slopes, dim=1) * length
    used = (slopes > 0).any(0).nonzero().flatten()
    if len(used) == 0:
        return crude
    if len(used) < matrix.shape[2]:
        matrix = matrix[:, :, used]
        weight = weight if weight is None else weight[:, used]
    rows = domain.rows

    def weighed(start: int, end: int) -> Tensor:
        part = matrix[:, start:end]
        return part if weight is None else part * weight.unsqueeze(1)

    first = weighed(0, rows)
    extra = torch.zeros_like(crude)
    if domain.front is not None:
        rough = torch.einsum("r,brc->bc", domain.front.columns, first.abs())
        extra = extra + 2.0 * gamma(rows + 8) * euclidean_norm(rough, dim=1)
        first = domain.lifted(first)
    reach = (estimate(first).expand(domain.count) * domain.stretch).clamp_min(TINY)
    gram, weights = Gram(), reach
    gram.add(first * (domain.stretch / reach.sqrt())[:, None, None])
    for block in symbols.blocks:
        if rows + block.start >= matrix.shape[1]:
            break
        part = Rows.of(weighed(rows + block.start, rows + block.end))
        sizes = part.lengths()
        # A block that hardly counts is added by itself.
        alone = (symbols.errors[:, place, block.start : block.end] * sizes).sum(1) * FAR
        if block.whole is not None:
            alone = torch.minimum(alone, euclidean_norm(sizes, dim=1) * block.whole[:, 1] * FAR)
        if bool((alone < _SMALL * weights).all()):
            extra = extra + alone
            continue
        joint = _balanced(
            part, _ways(symbols, block, sizes.unsqueeze(2), torch.ones_like(crude)[:, None], place)
        )
        gram.add_scaled(part, joint.scale)
        weights = weights + joint.weight[:, 0]
    total = gram.norm() * weights.sqrt()
    wide = FAR + 4.0 * gamma(matrix.shape[1] * matrix.shape[2] + 16)
    total = (total + extra + euclidean_norm(slack, dim=1) * length) * wide
    return torch.minimum(crude, total.nan_to_num(nan=torch.inf, posinf=torch.inf))


def _first_rows(symbols: Symbols, lifted: Tensor, kind: Norm) -> Tensor:
    """sup over |t| <= 1 of |C't|_2 for each token: lifted [count or 1, tokens, rows, width] -> [count, tokens].

    l2: sigma(C); l1: the longest row; linf: jointly, |C't|^2 = |(C/w)' (w t)|^2 <= sigma(C/w)^2 sum w^2, for every w > 0.
    """
    domain = symbols.domain
    length = euclidean_norm(lifted, dim=3)  # [count or 1, tokens, inputs]
    if kind is Norm.L2:
        found = tall_norm(lifted) * domain.stretch
    elif kind is Norm.LINF:
        found = length.amax(2) * FAR
    else:
        weight = length.sqrt().clamp_min(TINY)
        found = tall_norm(lifted / weight.unsqueeze(3)) * euclidean_norm(weight, dim=2)
    return (found * (FAR + 4.0 * gamma(length.shape[2] + 16))).expand(domain.count, -1)


def _inputs(symbols: Symbols, lifted: Tensor, kind: Norm, alone: Tensor, values: bool) -> _Part:
    """The part of the inputs, `alone` [count, tokens] long: over a cube every input is one of its own; none over an l1 ball."""
    domain = symbols.domain
    rows, count = lifted.shape[2], domain.count
    if kind is Norm.LINF:
        return _Part(alone.new_zeros(count, rows, alone.shape[1]), torch.zeros_like(alone))
    if kind is Norm.L2:
        reach = domain.reach[:, None] if values else 1.0
        least = alone.clamp_min(TINY)
        scale = reach * domain.stretch / least.sqrt()
        return _Part(scale.unsqueeze(1).expand(-1, rows, -1), least)
    half = lifted.new_ones(count, rows)
    if values:
        half = domain.half if domain.front is None else domain.front.order(domain.half)
    return _singly(half, euclidean_norm(lifted, dim=3).mT)


def _singly(size: Tensor, length: Tensor) -> _Part:
    """Every row a part of its own: size [count, rows], length [count or 1, rows, tokens]."""
    size = size.unsqueeze(2)
    weight = (size * length).clamp_min(TINY)
    return _Part(size / weight.sqrt(), weight.sum(1))


def _ways(symbols: Symbols, block: Block, length: Tensor, about: Tensor | None, place: int) -> list[_Part]:
    """The symbols of one block as singles, as groups and all together, as far as each is known.

    length [count or 1, symbols, tokens]: of their rows; about [count or 1, tokens]: the spectral norm of all of them, roughly.
    """
    found = [_singly(symbols.errors[:, place, block.start : block.end], length)]
    if block.groups is not None:
        bounds, of = block.groups.bounds[:, place], block.groups.place
        joint = by_group(length, of, bounds.shape[1]) * FAR
        weight = (bounds.unsqueeze(2) * joint).clamp_min(TINY)
        found.append(_Part((bounds.unsqueeze(2) / weight.sqrt())[:, of], weight.sum(1)))
    if about is not None and block.whole is not None and place in (0, 1 + (symbols.two or 0)):
        whole = block.whole[:, min(place, 1)].unsqueeze(1)
        weight = (whole * about).clamp_min(TINY)
        found.append(_Part((whole / weight.sqrt()).unsqueeze(1).expand(found[0].scale.shape), weight))
    return found


def _balanced(rows: Rows, ways: list[_Part]) -> _Part:
    """The way with the least root of norm times weight, balanced."""
    best: _Part | None = None
    for way in ways:
        level, weight = balance(rows.estimate(way.scale).square().unsqueeze(1), way.weight)
        part = _Part(way.scale * level.sqrt().unsqueeze(1), weight)
        if best is None:
            best = part
            continue
        better = weight < best.weight
        best = _Part(
            torch.where(better.unsqueeze(1), part.scale, best.scale), torch.where(better, weight, best.weight)
        )
    assert best is not None  # there is a way
    return best
