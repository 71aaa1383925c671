"""Networks of comparators: sorting and maxima as scalar neurons."""

from __future__ import annotations

import torch
from torch import Tensor

from lipverify.analyzers.lipsdp.neurons import Canonical, Signal, stacked

# Fewest comparators for the small sizes (Knuth, The Art of Computer Programming, volume 3, section 5.3.4).
_SMALL: dict[int, list[list[tuple[int, int]]]] = {
    1: [],
    2: [[(0, 1)]],
    3: [[(0, 1)], [(1, 2)], [(0, 1)]],
    4: [[(0, 1), (2, 3)], [(0, 2), (1, 3)], [(1, 2)]],
    5: [[(0, 3), (1, 4)], [(0, 2), (1, 3)], [(0, 1), (2, 4)], [(1, 2), (3, 4)], [(2, 3)]],
}


def sorting_network(size: int) -> list[list[tuple[int, int]]]:
    """Stages of disjoint comparators (i, j), i < j, that sort ascending; Batcher's merge exchange beyond five."""
    if size in _SMALL:
        return _SMALL[size]
    stages = []
    top = 1 << ((size - 1).bit_length() - 1)
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            stages.append([(i, i + d) for i in range(size - d) if i & p == r])
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return [stage for stage in stages if stage]


def tournament(form: Canonical, v: Signal, members: Tensor, name: str) -> Signal:
    """The maximum of v over each row of `members` [size, count]; -1 stands for a padded entry that never wins."""
    # Pools that differ in length (borders) are worked on together, one neuron a comparison that really happens.
    pool = [[int(entry) for entry in row if entry >= 0] for row in members.tolist()]
    current, entries = v, pool
    while max(len(row) for row in entries) > 1:
        left: list[int] = []
        right: list[int] = []
        kept: list[int] = []
        slots: list[list[tuple[bool, int]]] = []
        for row in entries:
            slot = []
            for first, second in zip(row[::2], row[1::2], strict=False):
                slot.append((True, len(left)))
                left.append(first)
                right.append(second)
            if len(row) % 2:
                slot.append((False, len(kept)))
                kept.append(row[-1])
            slots.append(slot)
        won = form.compare(current.rows(torch.tensor(left)), current.rows(torch.tensor(right)), name)[0]
        current = stacked([won, current.rows(torch.tensor(kept))]) if kept else won
        entries = [[place if fought else len(left) + place for fought, place in slot] for slot in slots]
    return current.rows(torch.tensor([row[0] for row in entries]))
