"""Branch and bound on the signs of ReLU arguments: outputs over one ball, all at once, as long as time lasts.

Legend: a leaf gives some neurons a sign; the leaves of a tree cover the ball; a tree for every output.
Source: Bunel et al., JMLR 21 (2020), branch and bound; De Palma et al., arXiv 2104.06718, for trying some neurons on the bound
itself before one is split.
Sound when: as `robustness.domains`: a leaf is closed with every rounding, and only trees without an open leaf count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.robustness.domains import Neurons, Rows, Search

STEPS, FIRST_STEPS = 8, 25
"""Steps of the search on a part, and on the whole ball."""
CANDIDATES = 24
"""Neurons whose two sides are tried before one is split: trees of 3 or 4 are four times and more as large."""
MEMORY, MOST = 64 << 20, 256
"""Bytes that the coefficients of one batch may take, about, and rows of one batch at most: more do not go faster."""

Path = tuple[tuple[int, int], ...]
"""The splits that lead to a leaf: the number of a neuron, and its sign there, 1 or -1."""


@dataclass(frozen=True)
class Hint:
    """What closed a leaf: lower slopes and betas [U] of the open neurons with these numbers [U]. Nothing here is trusted."""

    numbers: Tensor
    slopes: Tensor
    betas: Tensor


Tree = dict[Path, Hint | None]
"""The leaves of one output."""
Forest = dict[int, Tree]
"""Output -> its tree; one that is not there is the ball itself."""


def proved_on(
    neurons: Neurons,
    outputs: Sequence[int],
    start: Forest,
    expired: Callable[[], bool],
    most: int | None = None,
) -> Forest | None:
    """Trees that show these outputs to be positive on the ball; None where time, `most` rows or neurons were used up.

    Args:
        start: trees to begin with, of another ball around the same centre.
    """
    search, done = Search(neurons), {j: Tree() for j in outputs}
    rows, paths = begun(neurons, outputs, start)
    chunk, spent, steps = _chunk(neurons), 0, FIRST_STEPS
    waiting = torch.arange(len(rows)).split(chunk) if len(rows) else ()
    left: list[tuple[Rows, list[Path]]] = [
        (rows.take(some), [paths[k] for k in some.tolist()]) for some in waiting
    ]
    opened: tuple[Rows, list[Path]] | None = None
    while left or opened is not None:
        if not left:
            assert opened is not None
            rows, paths = opened
            # The hardest parts first: it is there that a proof fails.
            order = rows.upper.argsort(descending=True)
            now, later = order[: max(1, chunk // 2)], order[max(1, chunk // 2) :]
            halves = _split(search, rows.take(now), [paths[k] for k in now.tolist()], chunk)
            if halves is None:
                return None
            left, steps = [halves], STEPS
            opened = (rows.take(later), [paths[k] for k in later.tolist()]) if len(later) else None
        rows, paths = left.pop()
        best, closed = search.searched(rows, steps, expired)
        for k in closed.nonzero().flatten().tolist():
            done[int(best.output[k])][paths[k]] = hint(neurons, best, k)
        rest = (~closed).nonzero().flatten()
        if len(rest):
            more = best.take(rest), [paths[k] for k in rest.tolist()]
            opened = more if opened is None else (Rows.joined(opened[0], more[0]), [*opened[1], *more[1]])
        spent += len(closed)
        if (left or opened is not None) and (expired() or (most is not None and spent >= most)):
            return None
    return done


def hint(neurons: Neurons, rows: Rows, k: int) -> Hint:
    """The slopes and betas of one row. Slopes in single precision: they may be anything."""
    return Hint(neurons.open, rows.slopes[k].float(), rows.betas[k].clone())


def begun(neurons: Neurons, outputs: Sequence[int], start: Forest) -> tuple[Rows, list[Path]]:
    """A row for every leaf that there is."""
    paths = [(j, path, known) for j in outputs for path, known in start.get(j, {(): None}).items()]
    width, device = len(neurons.open), neurons.open.device
    zeros = torch.zeros(len(paths), width, dtype=torch.float64, device=device)
    signs, betas, slopes = zeros.clone(), zeros.clone(), neurons.slopes().expand(len(paths), width).clone()
    columns: dict[int, tuple[Tensor, Tensor]] = {}
    for row, (_, path, known) in enumerate(paths):
        if known is not None:
            if id(known.numbers) not in columns:
                columns[id(known.numbers)] = neurons.places(known.numbers)
            old, new = columns[id(known.numbers)]
            slopes[row, new], betas[row, new] = known.slopes[old].double(), known.betas[old]
        for number, side in path:
            if number in neurons.column:
                signs[row, neurons.column[number]] = side
    rows = Rows(
        torch.tensor([j for j, _, _ in paths], dtype=torch.int64, device=device),
        signs,
        slopes,
        betas,
        torch.full((len(paths),), torch.inf, dtype=torch.float64, device=device),
        zeros,
    )
    return rows, [path for _, path, _ in paths]


def _chunk(neurons: Neurons) -> int:
    size = sum(node.size for node in neurons.known.graph.nodes)
    return int(max(2, min(MOST, MEMORY // (8 * 6 * size))))


def _split(search: Search, rows: Rows, paths: list[Path], chunk: int) -> tuple[Rows, list[Path]] | None:
    """Both sides of one neuron of every row; None where a row has none left."""
    score = rows.scores.masked_fill(rows.signs != 0, -1.0)
    best, column = score.topk(min(CANDIDATES, score.shape[1]), dim=1)
    n, k = column.shape
    if k == 0 or not bool((best[:, 0] >= 0).all()):
        return None
    sides = torch.tensor([1.0, -1.0], dtype=torch.float64, device=score.device)
    choice = torch.zeros(n, dtype=torch.int64, device=score.device)
    if k > 1:
        tried = _with_signs(rows, column.flatten().repeat_interleave(2), sides.repeat(n * k), 2 * k)
        pieces = torch.arange(len(tried), device=score.device).split(2 * chunk)
        upper = torch.cat([search.once(tried.take(some)) for some in pieces]).reshape(n, k, 2)
        # What both sides gain, no more than closing them; of equal ones the better side.
        room = rows.upper[:, None, None]
        gain = torch.minimum((room - upper).clamp(min=0.0), room.clamp(min=0.0))
        value = gain.amin(2) + 1e-3 * gain.amax(2)
        choice = value.masked_fill(best < 0, -1.0).argmax(1)
    chosen = column.gather(1, choice[:, None])[:, 0]
    children = _with_signs(rows, chosen.repeat_interleave(2), sides.repeat(n), 2)
    numbers = search.neurons.open[chosen].tolist()
    names = [(*path, (number, side)) for path, number in zip(paths, numbers, strict=True) for side in (1, -1)]
    return children, names


def _with_signs(rows: Rows, columns: Tensor, sides: Tensor, times: int) -> Rows:
    """Every row so many times, each with one more sign: columns, sides [rows * times]."""
    many = rows.take(torch.arange(len(rows), device=columns.device).repeat_interleave(times))
    many.signs[torch.arange(len(many), device=columns.device), columns] = sides
    return many
