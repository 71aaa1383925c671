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
from lipverify.linalg.dense import quadratic_bound
from lipverify.linalg.lengths import euclidean_norm
from lipverify.linalg.rounding import gamma
from lipverify.propagation.forms.domain import FAR
from lipverify.propagation.forms.symbols import GRAM_STEPS, Block, Form, Symbols, by_group, largest

_TINY = 1e-150
"""Weights are at least this: parts that are smaller count as much."""
_SMALL = 2e-4
"""Blocks of symbols below this share of what came before are measured roughly."""
_FACTORED = 128
"""Gram matrices of at least this side are bounded by a factorisation."""
_LOST = 1e-290
"""Above what underflows in a Gram matrix and when rows are scaled."""


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
    rest, matrix = matrix.shape[3:], matrix.flatten(3)  # [count or 1, rows, width, tokens]
    first, later = matrix[:, : domain.rows], matrix[:, domain.rows :]
    lifted = domain.lifted(first)
    rough = first.new_zeros(())
    if domain.front is not None:
        lengths = euclidean_norm(first, dim=2)
        rough = 2.0 * gamma(domain.rows + 8) * torch.einsum("r,brc->bc", domain.front.columns, lengths)
    blocks = []
    for block in symbols.blocks:
        if block.start >= later.shape[1]:
            break
        part = later[:, block.start : block.end]
        known = symbols.two is not None and block.whole is not None
        about = _about(part.movedim(3, 1)) if known else None
        blocks.append((block, part, euclidean_norm(part, dim=2), about))
    slack = loose.flatten(2)
    wide = FAR + 4.0 * gamma(matrix.shape[1] * width + 16)
    tokens = torch.cat([lifted, later], 1).movedim(3, 1)
    alone = {kind: _first_rows(symbols, lifted, kind) for kind in domain.kinds}
    found = []
    for place in range(1 + len(domain.kinds)):
        kind = domain.kinds[max(place - 1, 0)]
        reach = domain.reach[:, None] if place == 0 else torch.ones_like(domain.reach[:, None])
        start = alone[kind] * reach * FAR
        more = (rough * reach).expand(domain.count, -1)
        joint = [_inputs(symbols, lifted, kind, start, place == 0)]
        joint += [_block(symbols, *some, place) for some in blocks]
        scale = torch.cat([part.scale for part in joint], 1).movedim(2, 1).unsqueeze(3)
        weight = torch.stack([part.weight for part in joint]).sum(0)
        total = _tall(tokens * scale) * weight.sqrt()
        if kind is Norm.LINF:
            total = total + start
        found.append((total + more + slack[:, place]) * wide)
    together = torch.stack(found, 1).nan_to_num(nan=torch.inf, posinf=torch.inf)
    together = together.reshape(*together.shape[:2], *rest)
    return Tokens(torch.minimum(entry, together[:, 1:]), together[:, 0])


def _tall(matrix: Tensor) -> Tensor:
    """Upper bounds of spectral norms of many rows, [..., rows, columns] -> [...], by one product; infinite at overflow.

    |A|^2 <= |fl(A'A)| + gamma |A|_F^2, and |A|_F^2 is the trace, but for rounding.
    """
    gram = matrix.mT @ matrix
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    error = 4.0 * gamma(matrix.shape[-2] + matrix.shape[-1] + 16) * trace + _LOST
    return ((_largest_eigenvalue(gram) + error) * FAR).sqrt() * FAR


def _largest_eigenvalue(gram: Tensor) -> Tensor:
    """Upper bounds of the quadratic forms of matrices that are symmetric but for rounding: [..., n, n] -> [...].

    Of large ones a threshold above an estimate is proved, by one factorisation.
    """
    n = gram.shape[-1]
    if n < _FACTORED or not bool(gram.isfinite().all()):
        return largest(gram, GRAM_STEPS - 1)
    estimate = _estimate(gram)
    bound, proved = quadratic_bound(gram, estimate * 1.01)
    proved &= (estimate > 1e-100) & (estimate < 1e100)
    return bound if bool(proved.all()) else torch.where(proved, bound, largest(gram, GRAM_STEPS - 1))


def joint_norm(symbols: Symbols, matrix: Tensor, slopes: Tensor, slack: Tensor) -> Tensor:
    """Bounds of |dz/dx| from l2 to l2 for all entries together: [count]. l2 only.

    Jointly, as one token; the weights are estimates of the spectral norms of blocks.

    Args:
        matrix: [count or 1, rows, entries]; slopes, slack [count, entries]: of single gradients in l2.
    """
    assert symbols.two is not None
    domain, place = symbols.domain, 1 + symbols.two
    length = FAR + 4.0 * gamma(matrix.shape[2] + 16)
    crude: Tensor = euclidean_norm(slopes, dim=1) * length
    used = (slopes > 0).any(0).nonzero().flatten()
    if len(used) == 0 or not bool(matrix.isfinite().all()):
        return crude
    matrix, rows = matrix[:, :, used], domain.rows
    first = domain.lifted(matrix[:, :rows])
    own = _estimate(first).expand(domain.count)
    extra = torch.zeros_like(crude)
    if domain.front is not None:
        rough = torch.einsum("r,brc->bc", domain.front.columns, matrix[:, :rows].abs())
        extra = extra + 2.0 * gamma(rows + 8) * euclidean_norm(rough, dim=1)
    found, weights, parts = [first], [], []
    reach = (own * domain.stretch).clamp_min(_TINY)
    parts.append((domain.stretch / reach.sqrt())[:, None].expand(-1, first.shape[1]))
    weights.append(reach)
    for block in symbols.blocks:
        if rows + block.start >= matrix.shape[1]:
            break
        part = matrix[:, rows + block.start : rows + block.end]
        sizes = euclidean_norm(part, dim=2)
        joint = _block(symbols, block, part, sizes.unsqueeze(2), _estimate(part).unsqueeze(1), place)
        # A block that hardly counts is added by itself.
        weight = joint.weight[:, 0]
        alone = (symbols.errors[:, place, block.start : block.end] * sizes).sum(1) * FAR
        if block.whole is not None:
            alone = torch.minimum(alone, euclidean_norm(sizes, dim=1) * block.whole[:, 1] * FAR)
        if bool((alone < _SMALL * sum(weights)).all()):
            extra = extra + alone
            continue
        found.append(part)
        parts.append(joint.scale[:, :, 0])
        weights.append(weight)
    scaled = torch.cat(found, 1) * torch.cat(parts, 1).unsqueeze(2)
    total = _tall(scaled) * torch.stack(weights).sum(0).sqrt()
    wide = FAR + 4.0 * gamma(matrix.shape[1] * matrix.shape[2] + 16)
    total = (total + extra + euclidean_norm(slack, dim=1) * length) * wide
    return torch.minimum(crude, total.nan_to_num(nan=torch.inf, posinf=torch.inf))


def _estimate(matrix: Tensor, steps: int = 5) -> Tensor:
    """About the spectral norms [..., rows, columns] -> [...], by a few power iterations: no bound."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(matrix.shape[-1], 1, dtype=torch.float64, generator=generator).to(matrix)
    vector = start.expand(*matrix.shape[:-2], -1, 1)
    for _ in range(steps):
        vector = matrix.mT @ (matrix @ vector)
        vector = vector / vector.norm(dim=-2, keepdim=True).clamp_min(_TINY)
    found: Tensor = (matrix @ vector).norm(dim=(-2, -1))
    return found


def _about(matrix: Tensor) -> Tensor:
    """As `_estimate`, of matrices with many more rows than columns."""
    return _estimate(matrix.mT @ matrix).sqrt()


def _first_rows(symbols: Symbols, lifted: Tensor, kind: Norm) -> Tensor:
    """sup over |t| <= 1 of |C't|_2 for each token: lifted [count or 1, rows, width, tokens] -> [count, tokens].

    l2: sigma(C); l1: the longest row; linf: jointly, |C't|^2 = |(C/w)' (w t)|^2 <= sigma(C/w)^2 sum w^2, for every w > 0.
    """
    domain = symbols.domain
    length = euclidean_norm(lifted, dim=2)  # [count or 1, inputs, tokens]
    tokens = lifted.movedim(3, 1)  # [count or 1, tokens, inputs, width]
    if kind is Norm.L2:
        found = _tall(tokens) * domain.stretch
    elif kind is Norm.LINF:
        found = length.amax(1) * FAR
    else:
        weight = length.sqrt().clamp_min(_TINY)
        scaled = tokens / weight.movedim(2, 1).unsqueeze(3)
        found = _tall(scaled) * euclidean_norm(weight, dim=1)
    return (found * (FAR + 4.0 * gamma(length.shape[1] + 16))).expand(domain.count, -1)


def _inputs(symbols: Symbols, lifted: Tensor, kind: Norm, alone: Tensor, values: bool) -> _Part:
    """The part of the inputs, `alone` [count, tokens] long: over a cube every input is one of its own; none over an l1 ball."""
    domain = symbols.domain
    rows, count = lifted.shape[1], domain.count
    if kind is Norm.LINF:
        return _Part(alone.new_zeros(count, rows, alone.shape[1]), torch.zeros_like(alone))
    if kind is Norm.L2:
        reach = domain.reach[:, None] if values else 1.0
        least = alone.clamp_min(_TINY)
        scale = reach * domain.stretch / least.sqrt()
        return _Part(scale.unsqueeze(1).expand(-1, rows, -1), least)
    half = lifted.new_ones(count, rows)
    if values:
        half = domain.half if domain.front is None else domain.front.order(domain.half)
    return _singly(half, euclidean_norm(lifted, dim=2))


def _singly(size: Tensor, length: Tensor) -> _Part:
    """Every row a part of its own: size [count, rows], length [count or 1, rows, tokens]."""
    size = size.unsqueeze(2)
    weight = (size * length).clamp_min(_TINY)
    return _Part(size / weight.sqrt(), weight.sum(1))


def _block(
    symbols: Symbols, block: Block, part: Tensor, length: Tensor, about: Tensor | None, place: int
) -> _Part:
    """The symbols of one block, as singles, groups or all together, whichever weighs least, token by token."""
    best = _singly(symbols.errors[:, place, block.start : block.end], length)
    others = []
    if block.groups is not None:
        bounds, of = block.groups.bounds[:, place], block.groups.place
        joint = by_group(length, of, bounds.shape[1]) * FAR
        weight = (bounds.unsqueeze(2) * joint).clamp_min(_TINY)
        others.append(_Part((bounds.unsqueeze(2) / weight.sqrt())[:, of], weight.sum(1)))
    if about is not None and block.whole is not None and place in (0, 1 + (symbols.two or 0)):
        whole = block.whole[:, min(place, 1)].unsqueeze(1)
        weight = (whole * about).clamp_min(_TINY)
        others.append(_Part((whole / weight.sqrt()).unsqueeze(1).expand(best.scale.shape), weight))
    for other in others:
        better = other.weight < best.weight
        best = _Part(
            torch.where(better.unsqueeze(1), other.scale, best.scale),
            torch.where(better, other.weight, best.weight),
        )
    return best
