"""The last look at a program: pairs of a maximum and a minimum become sorts; what no output reads is dropped, steps and rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from lipverify.checkers.kernel.account import charge
from lipverify.checkers.kernel.program import (
    Affine,
    Array,
    Order,
    Output,
    Product,
    Program,
    Step,
    View,
    by_source,
    checked,
    sizes_of,
    views_of,
)


def finished(program: Program) -> Program:
    """The same outputs from the steps they read, in the same order."""
    merged = _with_sorts(program)
    needed = {0} | {s for output in merged.outputs for s in output.view.sources}
    for k in range(len(merged.steps) - 1, 0, -1):
        if k in needed:
            needed |= {s for view in views_of(merged.steps[k]) for s in view.sources}
    draft, read = _Draft(merged), _read(merged, needed)
    for old in sorted(needed):
        charge(0)  # whoever waits may have waited long enough
        draft.keep(old, read[old])
    return draft.program()


def _read(program: Program, needed: set[int]) -> dict[int, Array]:
    """Which results of the needed steps some needed step, or an output, reads: [size] each."""
    found = {k: np.zeros(program.steps[k].size, bool) for k in needed}
    views = [view for k in needed for view in views_of(program.steps[k])]
    for view in (*views, *(output.view for output in program.outputs)):
        for s, _, places in by_source(view, sizes_of(view, program.steps)):
            found[s][places] = True
    return found


class _Draft:
    """A program made of the steps of another one. table: where the results of an old step are in a new one."""

    def __init__(self, old: Program) -> None:
        self.old = old
        self.steps: list[Step] = []
        self.place: dict[int, tuple[int, Array | None]] = {}

    def add(self, step: Step) -> int:
        self.steps.append(checked(step, self.steps))
        return len(self.steps) - 1

    def keep(self, old: int, read: Array | None = None) -> None:
        """The step, of a map the rows alone of which one of the results `read` [size] is."""
        step = self.old.steps[old]
        moved = replace(step, view=self.moved(step.view))
        if isinstance(moved, Product):
            moved = replace(moved, other=self.moved(moved.other))
        table: Array | None = None
        if isinstance(moved, Affine) and read is not None and len(moved.kernel) == 1:
            rows = np.asarray(read.reshape(moved.kernel.shape[1], -1).any(1))
            if rows.any() and not rows.all() and (moved.lattice is None or not moved.lattice.adjoint):
                moved, table = _with_rows(moved, rows)
        self.place[old] = self.add(moved), table

    def moved(self, view: View) -> View:
        """The same numbers, in the new steps."""
        found = [self.place[s] for s in view.sources]
        sources = tuple(dict.fromkeys(new for new, _ in found))
        # Two steps that became one are read at the places of that one.
        if len(sources) == len(found) and all(table is None for _, table in found):
            return View(sources, view.places)
        starts = dict(
            zip(sources, np.cumsum([0, *(self.steps[s].size for s in sources)]).tolist(), strict=False)
        )
        places = np.full(len(view.places), -1)
        for s, at, own in by_source(view, sizes_of(view, self.old.steps)):
            new, table = self.place[s]
            places[at] = starts[new] + (own if table is None else table[own])
        return View(sources, places)

    def program(self) -> Program:
        outputs = tuple(Output(o.name, self.moved(o.view), o.shape) for o in self.old.outputs)
        return Program(tuple(self.steps), outputs, self.old.shape)


def _with_rows(step: Affine, rows: Array) -> tuple[Affine, Array]:
    """Some rows of a map of one group, and where its results are among theirs; 0 where they are not."""
    count, positions = int(rows.sum()), step.index.shape[1]
    table = np.zeros((len(rows), positions), np.int64)
    table[rows] = np.arange(count * positions).reshape(count, positions)
    offset = None if step.offset is None else step.offset.reshape(len(rows), -1)[rows].reshape(-1)
    lattice = step.lattice and step.lattice._replace(weight=step.lattice.weight[:, rows])
    small = replace(step, size=count * positions, kernel=step.kernel[:, rows], offset=offset, lattice=lattice)
    return small, table.reshape(-1)


class _Pairs(NamedTuple):
    """Pairs of entries of earlier steps: low, high [n], low < high, in the order of low; row: which group each pair is."""

    low: Array
    high: Array
    row: Array


def _pairs(entries: Array, groups: Array) -> _Pairs | None:
    """The pairs that groups choose from entries; None unless they are disjoint pairs of them."""
    if groups.shape[1] != 2 or bool((groups < 0).any()) or bool((entries[groups] < 0).any()):
        return None
    chosen = np.sort(entries[groups], axis=1)
    row = np.argsort(chosen[:, 0], kind="stable")
    once = len(np.unique(chosen)) == chosen.size
    return _Pairs(chosen[row, 0], chosen[row, 1], row) if once else None


def _negative(step: Step) -> bool:
    """Whether a step is -x, entry by entry."""
    if not isinstance(step, Affine) or step.kernel.shape != (step.size, 1, 1) or step.offset is not None:
        return False
    if step.rounded:
        return False
    return bool((step.kernel == -1).all()) and np.array_equal(step.index.reshape(-1), np.arange(step.size))


class _Choices:
    """What steps choose from. Every step is looked at once, however many others read an entry of it."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps, self.starts = steps, np.cumsum([0, *(step.size for step in steps)])
        self.behind = {k: self.entries(step.view) for k, step in enumerate(steps) if _negative(step)}

    def entries(self, view: View) -> Array:
        """What a view shows, as places in the joined results of all steps; -1 for none."""
        found = np.full(len(view.places), -1)
        for s, at, places in by_source(view, sizes_of(view, self.steps)):
            found[at] = places + self.starts[s]
        return found

    def of(self, k: int) -> tuple[_Pairs | None, bool]:
        """The pairs that a step chooses from, and whether it takes the largest: a maximum, or -max of negatives."""
        step = self.steps[k]
        if isinstance(step, Order) and not step.whole:
            return _pairs(self.entries(step.view), step.groups), True
        if k not in self.behind or len(step.view.sources) != 1:
            return None, False
        order = self.steps[step.view.sources[0]]
        if not isinstance(order, Order) or order.whole or len(step.view.places) != order.size:
            return None, False
        if not np.array_equal(step.view.places, np.arange(order.size)):
            return None, False
        if not all(s in self.behind for s in order.view.sources):
            return None, False
        found = np.full(len(order.view.places), -1)
        for s, at, places in by_source(order.view, sizes_of(order.view, self.steps)):
            found[at] = self.behind[s][places]
        return _pairs(found, order.groups), False


def _with_sorts(program: Program) -> Program:
    """A maximum and a minimum of the same disjoint pairs are one sort, of which both read their half."""
    choices = _Choices(program.steps)
    found: dict[tuple[bytes, bytes], dict[bool, tuple[int, _Pairs]]] = {}
    for k in range(len(program.steps)):
        pairs, largest = choices.of(k)
        if pairs is not None:
            same = found.setdefault((pairs.low.tobytes(), pairs.high.tobytes()), {})
            same.setdefault(largest, (k, pairs))
    sides = [both for both in found.values() if len(both) == 2]
    if not sides:
        return program
    draft, done, starts = _Draft(program), {}, choices.starts
    mine = {k: (n, largest, pairs) for n, both in enumerate(sides) for largest, (k, pairs) in both.items()}
    for k, step in enumerate(program.steps):
        if k not in mine:
            draft.keep(k)
            continue
        n, largest, pairs = mine[k]
        if n not in done:
            # The entries are there by now: both steps read all of them.
            entries = np.stack([pairs.low, pairs.high], 1).reshape(-1)
            owner = np.searchsorted(starts, entries, side="right") - 1
            sources, place = np.unique(owner, return_inverse=True)
            sizes = np.cumsum([0, *(program.steps[s].size for s in sources)])
            view = draft.moved(View(tuple(sources.tolist()), entries - starts[owner] + sizes[place]))
            done[n] = draft.add(Order(view, len(entries), np.arange(len(entries)).reshape(-1, 2), True))
        table = np.empty(step.size, np.int64)
        table[pairs.row] = 2 * np.arange(step.size) + largest
        draft.place[k] = done[n], table
    return draft.program()
