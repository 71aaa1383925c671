"""Gates of a program: arguments of activations and where they bend, entries of maxima, and how an input moves to turn one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lipverify.checkers.evaluation import behind, evaluate, shown
from lipverify.checkers.kernel.account import charge, held, returned
from lipverify.checkers.kernel.curves import curve
from lipverify.checkers.kernel.program import (
    Affine,
    Array,
    Normalise,
    Order,
    Product,
    Program,
    Reflect,
    Scalar,
    Softmax,
    Step,
    View,
    by_source,
    views_of,
)

_HELD = 1 << 22
"""Numbers of steps and gates that are evaluated at once, as long as one input does not need more."""
_FOLLOWED = 64
"""Gates that no compared input turns, of which it is asked what depends on them; of more, everything does."""
_BENDS = 4
"""Places where one activation bends, at most."""


_SLOW = {"Erf": 100, "ErfGate": 100, "Gelu": 100}
"""Products in the time of one value of a law that numpy has not: of others one or a few."""


def work_of(program: Program) -> int:
    """Products of numbers that one input takes, or as much time."""
    return sum(_work(step) for step in program.steps)


def _work(step: Step) -> int:
    if isinstance(step, Affine):
        return int(step.index.size * step.kernel.shape[1])
    if isinstance(step, Order):
        return int(step.groups.size) * (int(step.groups.shape[-1]).bit_length() if step.whole else 1)
    return step.size * _SLOW.get(step.law, 1) if isinstance(step, Scalar) else step.size


class _Block(NamedTuple):
    """Gates of one step, `size` of them. bend: taken off arguments of an activation, a number or [size]; None: of a maximum.

    width: of the groups that one gate is looked at in, 1 for an activation.
    """

    step: int
    size: int
    bend: float | Array | None
    width: int = 1


class Gates:
    """All gates of a program in one order; each is on where its number is positive."""

    def __init__(self, program: Program) -> None:
        self.program, self.blocks = program, _blocks(program)
        self.ends = np.cumsum([block.size for block in self.blocks], dtype=np.int64)
        self.count = int(self.ends[-1]) if self.blocks else 0
        self.numbers, self.work = sum(step.size for step in program.steps), work_of(program)

    def work_at(self, count: int) -> int:
        """Of so many gates of one input, at most."""
        return 4 * min(count, self.count) * max((block.width for block in self.blocks), default=1)

    def at(self, x: Array, chosen: Array) -> Array:
        """[n, chosen]: how far arguments are beyond a bend, and entries beyond the largest other one. x: [n, inputs]."""
        parts = self._parts(chosen)
        read = 2 * sum(places.size if groups is None else groups.size for _, _, places, groups in parts)
        found, rows = np.empty((len(x), len(chosen))), max(1, _HELD // (self.numbers + read + 1))
        before = held()
        charge(
            found.size + min(rows, len(x)) * (self.numbers + read),
            len(x) * (self.work + self.work_at(len(chosen))),
        )
        for start in range(0, len(x), rows):
            results = evaluate(self.program, x[start : start + rows])
            for block, at, places, groups in parts:
                z = shown(self.program.steps[block.step].view, results)
                if groups is not None:
                    found[start : start + rows, at] = _leads(z, groups)[:, places]
                else:
                    bend = block.bend[places] if isinstance(block.bend, np.ndarray) else block.bend
                    found[start : start + rows, at] = z[:, places] - bend
        # All of it ends with this call but what is given, which the caller's rows are far above.
        returned(before - held())
        return found

    def _parts(self, chosen: Array) -> list[tuple[_Block, Array, Array, Array | None]]:
        """Blocks that these gates are in: where they stand in `chosen`, their places in the arguments; or, of a maximum, in the
        leads of these groups [n, width], which are those that they are in."""
        own, found = np.searchsorted(self.ends, chosen, side="right"), []
        for k in np.unique(own):
            block, at = self.blocks[k], np.flatnonzero(own == k)
            places, groups = chosen[at] - (self.ends[k] - block.size), None
            if block.bend is None:
                which, row = np.unique(places // block.width, return_inverse=True)
                places = row * block.width + places % block.width
                groups = _groups(self.program.steps[block.step])[which]
            found.append((block, at, places, groups))
        return found

    def uphill(self, x: Array, chosen: Array, through: bool) -> tuple[Array, Array]:
        """[n], [n, inputs]: for row k the number of gate chosen[k], and how it changes with the input.

        through: as if activations that are flat there were the identity, so that gates behind closed ones have a direction too.
        """
        before = held()
        charge(4 * len(x) * self.numbers, 4 * len(x) * (self.work + self.work_at(len(chosen))))
        results = evaluate(self.program, x)
        slopes = [np.zeros_like(r) for r in results]
        numbers = np.zeros(len(x))
        own = np.searchsorted(self.ends, chosen, side="right")
        for k in np.unique(own):
            block, rows = self.blocks[k], np.flatnonzero(own == k)
            step, places = self.program.steps[block.step], chosen[rows] - (self.ends[k] - block.size)
            z = shown(step.view, results)
            back = np.zeros_like(z)
            if block.bend is not None:
                back[rows, places] = 1.0
                numbers[rows] = (z - block.bend)[rows, places]
            else:
                groups = _groups(step)
                group, own_place = groups[places // groups.shape[1]], groups.reshape(-1)[places]
                others = np.where(
                    (group < 0) | (group == own_place[:, None]), -np.inf, z[rows[:, None], group]
                )
                back[rows, own_place] = 1.0
                largest = others.argmax(1)
                back[rows, group[np.arange(len(rows)), largest]] -= 1.0
                numbers[rows] = z[rows, own_place] - others.max(1)
            _passed(step.view, back, slopes)
        for k in range(len(results) - 1, 0, -1):
            step = self.program.steps[k]
            if slopes[k].any():
                read = [shown(view, results) for view in views_of(step)]
                for view, back in zip(
                    views_of(step), _backward(step, read, results[k], slopes[k], through), strict=True
                ):
                    _passed(view, back, slopes)
        returned(before - held())
        return numbers, slopes[0]


def turned_alone(program: Program, x: Array, unseen: Sequence[Array], least: int) -> int:
    """How many gates stand at so many of the inputs where an entry is unseen, at least, as they stand at no other one, while at
    none of those all entries that may depend on the gate are seen. x: [n, inputs]; unseen: of each output, [n, size].

    Those of quantisers count for nothing, whose steps are the same behind their ends, nor those of smooth laws without a turn.
    """
    gates, at = Gates(program), np.any([one.any(1) for one in unseen], 0)
    if not at.any() or not gates.count:
        return 0
    chosen = np.concatenate(
        [
            np.arange(end - block.size, end)
            for block, end in zip(gates.blocks, gates.ends, strict=True)
            if _turns(program.steps[block.step])
        ]
        or [np.empty(0, np.int64)]
    )
    seen = np.zeros((2, 2, len(chosen)), np.int64)
    rows = max(1, _HELD // max(1, len(chosen)))
    for start in range(0, len(x), rows):
        on = gates.at(x[start : start + rows], chosen) > 0
        for k in (False, True):
            own = on[at[start : start + rows] == k]
            seen[int(k), 0] += (~own).sum(0)
            seen[int(k), 1] += own.sum(0)
    only = (seen[1] >= least) & (seen[0] == 0)
    found = np.flatnonzero(only.any(0))
    if len(found) > _FOLLOWED:
        return len(found)
    return sum(_unseen(gates, chosen[k], only[:, k], x[at], [one[at] for one in unseen]) for k in found)


def _unseen(gates: Gates, gate: int, sides: Array, x: Array, unseen: Sequence[Array]) -> bool:
    """Whether, on a side of a gate, an entry that may depend on it is unseen at all of the inputs x [n, inputs] of that side."""
    own = int(np.searchsorted(gates.ends, gate, side="right"))
    block, step = gates.blocks[own], gates.program.steps[gates.blocks[own].step]
    place = int(gate - (gates.ends[own] - block.size))
    places = np.array([place])
    if isinstance(step, Order):
        group = place // block.width
        places = (
            np.arange(group * block.width, (group + 1) * block.width) if step.whole else np.array([group])
        )
    charge(gates.numbers, gates.work)
    entries = [mine for mine in behind(gates.program, block.step, places) if mine.size]
    returned(gates.numbers)
    on = gates.at(x, np.array([gate]))[:, 0] > 0
    return any(
        bool((mine & one[on == side].all(0)).any())
        for side in np.flatnonzero(sides)
        for mine, one in zip(entries, unseen, strict=True)
    )


def _turns(step: Step) -> bool:
    if isinstance(step, Scalar):
        return step.law != "Round" and len(curve(step.law, step.settings, step.slopes).turns) > 0
    return isinstance(step, Order)


def _blocks(program: Program) -> list[_Block]:
    found = []
    for k, step in enumerate(program.steps):
        if isinstance(step, Scalar):
            found += [_Block(k, step.size, bend) for bend in _bends(step)]
        elif isinstance(step, Order | Softmax) and step.groups.shape[-1] > 1:
            found.append(_Block(k, step.groups.size, None, step.groups.shape[-1]))
    return found


def _bends(step: Scalar) -> list[float | Array]:
    """Where an activation turns: the checker's own places of it, and 0."""
    if step.law == "Round" and step.slopes is not None:
        ends = [value for _, value in step.settings]
        return [0.0, *(step.slopes * end for end in ends)]
    turns = [float(t) for t in curve(step.law, step.settings, step.slopes).turns if np.ndim(t) == 0]
    return [*dict.fromkeys(b for b in (0.0, *turns[:_BENDS]) if np.isfinite(b))]


def _groups(step: Step) -> Array:
    assert isinstance(step, Order | Softmax)
    return step.groups


def _leads(z: Array, groups: Array) -> Array:
    """Every entry of every group minus the largest other one of it."""
    y = np.append(z, np.full((len(z), 1), -np.inf), axis=1)[:, groups]
    top = np.partition(y, -2, axis=-1)[..., -2:]
    with np.errstate(all="ignore"):
        return np.asarray((y - np.where(y == top[..., 1:], top[..., :1], top[..., 1:])).reshape(len(z), -1))


def _passed(view: View, back: Array, slopes: list[Array]) -> None:
    """What changes with what a view shows, to the results that it shows. back: [n, view]."""
    for source, at, places in by_source(view, [slopes[s].shape[1] for s in view.sources]):
        rows = np.arange(len(back))[:, None]
        np.add.at(slopes[source], (rows, places), back[:, at])


def _backward(step: Step, read: Sequence[Array], y: Array, back: Array, through: bool) -> list[Array]:
    """For each view of a step [n, view]: how the sum of `back` times the results y changes with what it shows."""
    x = read[0]
    if isinstance(step, Affine):
        return [_adjoint(step, x, back)]
    if isinstance(step, Scalar):
        phi, d = curve(step.law, step.settings, step.slopes).value, 2.0**-20 * (1.0 + np.abs(x))
        slope = np.nan_to_num((phi(x + d) - phi(x - d)) / (2.0 * d), posinf=0.0, neginf=0.0)
        return [back * np.where(slope == 0, 1.0, slope) if through else back * slope]
    if isinstance(step, Product):
        return [back * read[1], back * x]
    if isinstance(step, Order | Softmax):
        found = np.zeros((len(x), x.shape[1] + 1))
        z = np.append(x, np.full((len(x), 1), -np.inf), axis=1)[:, step.groups]
        rows = np.arange(len(x))[:, None, None]
        if isinstance(step, Softmax):
            p, b = y.reshape(z.shape), back.reshape(z.shape)
            np.add.at(found, (rows, step.groups[None]), p * (b - (p * b).sum(-1, keepdims=True)))
        else:
            order = z.argsort(-1) if step.whole else z.argmax(-1)[..., None]
            places = np.take_along_axis(np.broadcast_to(step.groups, z.shape), order, -1)
            np.add.at(found, (rows, places), back.reshape(places.shape))
        return [found[:, :-1]]
    found = np.zeros_like(x)
    if isinstance(step, Reflect):
        b, w = back[:, step.groups], step.vectors
        turned = (x[:, step.groups] * w).sum(-1, keepdims=True) < 0
        along = np.where(turned, (b * w).sum(-1, keepdims=True) * 2.0 / (w * w).sum(-1, keepdims=True), 0.0)
        found[:, step.groups] = b - along * w
    if isinstance(step, Normalise):
        z, b = x[:, step.groups], step.weight * back.reshape(len(x), *step.groups.shape)
        z = z - z.mean(-1, keepdims=True) if step.centred else z
        scale = np.sqrt((z * z).mean(-1, keepdims=True) + step.epsilon)
        z = z / scale
        b = b - z * (b * z).mean(-1, keepdims=True)
        found[:, step.groups] = (b - b.mean(-1, keepdims=True) if step.centred else b) / scale
    return [found]


def _adjoint(step: Affine, x: Array, back: Array) -> Array:
    found = np.zeros((len(x), x.shape[1] + 1))
    groups, out, _ = step.kernel.shape
    for row, given in zip(found, back, strict=True):
        b = given.reshape(groups, out, step.index.shape[1])
        terms = np.matmul(np.swapaxes(b, 1, 2), step.kernel)
        row += np.bincount(step.index.reshape(-1) % len(row), terms.reshape(-1), len(row))
    return found[:, :-1]
