"""Values over positions: convolutions as taps, the same at every position, read off the steps of a program."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lipverify.checkers.kernel.account import STEP, charge
from lipverify.checkers.kernel.arithmetic import Array, need, sums
from lipverify.checkers.kernel.elementary import Elementary, behind
from lipverify.checkers.kernel.neurons import everywhere
from lipverify.checkers.kernel.program import Affine, Scalar
from lipverify.errors import NotCovered


def covered(condition: object, what: str) -> None:
    """NotCovered unless the condition holds: networks of another form, not proofs of another one."""
    if not condition:
        raise NotCovered(f"{what}: no form over frequencies in the checker")


Pair = tuple[int, int]


class Tap(NamedTuple):
    """y[q] = sum_k weight[:, :, k] x[stride q + offsets[k]]; weight: [out, in, taps], offsets: [taps, 2].

    Entries are within gamma(rounded) of theirs, relative to what `size` [out, in] sums over taps; None: of absolute values.
    """

    weight: Array
    offsets: Array
    stride: Pair
    rounded: int
    size: Array | None = None


class Wave(NamedTuple):
    """A value over positions: sums over blocks and paths of taps. scale: positions of the start that one stands for.

    inside: it is 0 on the torus outside its window of `size` positions.
    """

    parts: dict[int, list[tuple[Tap, ...]]]
    channels: int
    size: Pair
    scale: Pair
    inside: bool


def waves_of(
    p: Elementary, start: int, last: int, image: Sequence[int], points: Pair
) -> tuple[list[Wave], Wave]:
    """What blocks of neurons between two steps read, block 0 being the start, and the last value; points: of the torus there."""
    need(len(image) == 3 and math.prod(image) == p.steps[start].size, "an image of another size")
    first = Wave({0: [()]}, image[0], (image[1], image[2]), (1, 1), True)
    need(all(n >= size for n, size in zip(points, first.size, strict=True)), "a torus smaller than a window")
    blocks, known = [first], {start: first}
    for k in behind(p.steps, last, start):
        step = p.steps[k]
        charge(0, STEP)
        if k == start:
            continue
        if isinstance(step, Affine) and step.view.sources:
            known[k] = _mapped(step, [known[s] for s in step.view.sources], blocks, points)
            continue
        if not isinstance(step, Scalar):
            raise NotCovered(f"{type(step).__name__} over positions is not covered by the checker")
        x = known[step.view.sources[0]]
        whole = len(step.view.sources) == 1 and step.size == x.channels * math.prod(x.size)
        covered(
            whole and np.array_equal(step.view.places, np.arange(step.size)),
            "a scalar function of moved numbers",
        )
        low, high = (end.reshape(x.channels, -1) for end in everywhere(step))
        known[k] = _grown(blocks, x, np.minimum(low.min(1), 0.0), np.maximum(high.max(1), 0.0))
    return blocks, known[last]


def _grown(blocks: list[Wave], x: Wave, low: Array, high: Array) -> Wave:
    """low v + span w: neurons w with slopes in [0, 1] in the window and 0 outside, one more block."""
    span = np.where(low == 0, high, np.nextafter(high - low, np.inf))
    parts: dict[int, list[tuple[Tap, ...]]] = {len(blocks): [() if (span == 1).all() else (_scaling(span),)]}
    if low.any():
        parts |= {j: [(*path, _scaling(low)) for path in paths] for j, paths in x.parts.items()}
    blocks.append(x)
    return x._replace(parts=parts, inside=True)


def _scaling(values: Array) -> Tap:
    return Tap(np.diag(values)[:, :, None], np.zeros((1, 2), np.int64), (1, 1), 0)


def _mapped(step: Affine, xs: list[Wave], blocks: list[Wave], points: Pair) -> Wave:
    """An affine step as taps of values of one size: whatever it reads where, the same at every position, is looked at."""
    (h, w), scale, stride = xs[0].size, xs[0].scale, (1, 1)
    size, kernel, index = (h, w), step.kernel, step.index
    covered(all((x.size, x.scale) == ((h, w), scale) for x in xs), "values of different sizes")
    if step.lattice is not None and not step.lattice.adjoint:
        _, _, *taps = step.lattice.weight.shape[1:]
        rows = zip((h, w), taps, *step.lattice[2:5], strict=False)
        counts = [(n + a + b - d * (t - 1) - 1) // s + 1 for n, t, s, d, (a, b) in rows]
        (size, stride) = ((*counts, 1)[:2], (*step.lattice.stride, 1)[:2])  # type: ignore[assignment]
    positions, terms = math.prod(size), index.shape[2]
    if index.shape[1] == 1 < positions and kernel.shape[1] == 1 and len(index) % positions == 0:
        kernel, index = kernel.reshape(-1, positions, terms), index.reshape(-1, positions, terms)
        covered((kernel == kernel[:, :1]).all(), "a scaling that differs within a channel")
        kernel = kernel[:, :1]
    (groups, all_positions, _), out = index.shape, kernel.shape[1]
    covered(positions > 0 and all_positions % positions == 0, "results that are no whole channels")
    runs, starts = all_positions // positions, np.cumsum([0, *(x.channels * h * w for x in xs)])
    charge(6 * index.size)
    places = np.append(step.view.places, -1)[index].reshape(groups, runs, positions, terms).swapaxes(2, 3)
    used = (places >= 0).any(-1)
    first = (places >= 0).argmax(-1)
    at = np.take_along_axis(places, first[..., None], -1)[..., 0]
    owner = np.clip(np.searchsorted(starts, at, "right") - 1, 0, len(xs) - 1)
    channel, place = np.divmod(at - starts[owner], h * w)
    offset = np.stack(
        [place // w - stride[0] * (first // size[1]), place % w - stride[1] * (first % size[1])], -1
    )
    reads = [offset[..., a, None] + stride[a] * np.arange(size[a]) for a in (0, 1)]
    there = [(r >= 0) & (r < n) for r, n in zip(reads, (h, w), strict=True)]
    inside = there[0][..., :, None] & there[1][..., None, :]
    base = (starts[owner] + channel * h * w)[..., None, None]
    wanted = np.where(inside, base + reads[0][..., :, None] * w + reads[1][..., None, :], -1)
    covered((wanted.reshape(places.shape) == places)[used].all(), "a map that differs between positions")
    for a, n in enumerate((h, w)):
        own = reads[a][used]
        torus = points[a] // scale[a]
        need(torus >= n - own.min(initial=0) and torus > own.max(initial=0), "a torus that taps wrap around")
        need(
            points[a] % (scale[a] * stride[a]) == 0 and torus // stride[a] >= size[a],
            "a torus smaller than a window",
        )
    outside = used & ~inside.all((-2, -1))
    result: dict[int, list[tuple[Tap, ...]]] = {}
    numbers = (np.arange(groups)[:, None, None] * out + np.arange(out)[:, None]) * runs + np.arange(runs)
    for s, x in enumerate(xs):
        chosen = used & (owner == s)
        if (outside & chosen).any() and not x.inside:
            x = _grown(blocks, x, np.zeros(x.channels), np.ones(x.channels))
        offsets, which = np.unique(offset[chosen], axis=0, return_inverse=True)
        (g, r, t), which = np.nonzero(chosen), which.reshape(-1)
        entries = np.stack([g, r, channel[chosen], which])
        covered(len(np.unique(entries, axis=1).T) == len(g), "a number that is read twice")
        charge(len(numbers.reshape(-1)) * x.channels * len(offsets))
        weight = np.zeros((numbers.size, x.channels, len(offsets)))
        weight[numbers[g, :, r], channel[chosen][:, None], which[:, None]] = kernel[g, :, t]
        for j, paths in x.parts.items():
            tap = Tap(weight, offsets, stride, step.rounded)
            result.setdefault(j, []).extend((*path, tap) for path in paths)
    kept = all(x.inside for x in xs) and stride == (1, 1) and not offset[used].any()
    return Wave(result, numbers.size, size, (scale[0] * stride[0], scale[1] * stride[1]), kept)


def read_by(p: Elementary, last: int, through: int, x: Wave) -> Wave:
    """What `through` is of a value over positions, by a chain of affine steps: one position, a tap for each of the window."""
    rows, absolute, count, k = np.ones((1, 1)), np.ones((1, 1)), 0, through
    covered(last != through, "values over positions at the end")
    while k != last:
        step = p.steps[k]
        if not isinstance(step, Affine) or len(step.view.sources) != 1:
            raise NotCovered(
                "something else than a chain of affine steps behind positions is not covered by the checker"
            )
        if k == through:
            charge(2 * step.size**2)
            rows = absolute = np.eye(step.size)
        (k,) = step.view.sources
        places, kernel = np.append(step.view.places, -1)[step.index].ravel() + 1, step.kernel
        rows = _back(rows, kernel, places, p.steps[k].size)
        absolute = _back(absolute, np.abs(kernel), places, p.steps[k].size)
        count += sum(kernel.shape[1:]) + int(np.bincount(places).max()) + step.rounded + 8
    where = np.stack(np.meshgrid(*map(np.arange, x.size), indexing="ij"), -1).reshape(-1, 2)
    weight, size = (m.reshape(len(rows), x.channels, -1) for m in (rows, absolute))
    tap = Tap(weight, where, (1, 1), count, sums(size, 2))
    return x._replace(
        parts={j: [(*path, tap) for path in paths] for j, paths in x.parts.items()}, channels=len(rows)
    )


def _back(m: Array, kernel: Array, places: Array, width: int) -> Array:
    """Rows over the results of an affine step as rows over the numbers that it reads at these places, from 1 on."""
    shares = m.reshape(len(m), *kernel.shape[:2], -1).swapaxes(2, 3) @ kernel[None]
    charge(shares.size + len(m) * width, shares.size * kernel.shape[1])
    return np.stack([np.bincount(places, s.ravel(), width + 1)[1:] for s in shares])
