"""Radii and boxes of single features: from what is typed to the radius and the box of a ball."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lipverify.commands.start import Points
from lipverify.errors import UsageError
from lipverify.ir.graph import Graph
from lipverify.loading.arguments import Entries
from lipverify.loading.names import display

Box = tuple[float, float] | tuple[Tensor, Tensor]


def limits(
    graph: Graph,
    points: Points | None,
    radius: float | Entries | None,
    box: tuple[float, float] | Entries | None,
    free: Sequence[str] = (),
) -> tuple[float | None, Box | None]:
    """The radius and the box of the region that is asked for.

    Entries with a radius of their own are those of a linf ball of the largest radius, cut by a box around each centre; entries
    that are not free keep the value of the centre. Ends are rounded outward, so the region holds all that was asked for.

    Args:
        radius: one, or one for each entry; entries that are not named keep their value. box: one for all entries or one for each;
            entries that are not named have none. free: the entries that may change.

    Raises:
        UsageError: an entry that is not there or named twice, another number of entries than the model has, no points to keep
            entries at, a box without an end and no radius that makes one.
    """
    shape, features = graph.input_shape, () if points is None else points.stored.features
    if (free or isinstance(radius, Entries)) and points is None:
        raise UsageError("entries keep the value of a point: give --data")
    if isinstance(radius, float) or radius is None:
        largest, steps = radius, None
    else:
        found = radius.table(graph.input.size, features, "--radius")
        steps = torch.zeros(graph.input.size, dtype=torch.float64)
        for index, (size,) in found.items():
            steps[index] = size
        largest, steps = float(steps.max()), steps.reshape(shape)
    if free:
        if largest is None:
            raise UsageError("--free needs --radius: the entries that may change, and how far")
        moving = torch.zeros(graph.input.size, dtype=torch.float64)
        for name in free:
            moving[Entries.position(name, graph.input.size, features, "--free")] = 1.0
        steps = (largest if steps is None else steps) * moving.reshape(shape)
    ends = None if box is None else _ends(box, graph, features, bounded=largest is not None)
    if steps is None:
        return largest, ends
    assert points is not None
    x = points.x.double()
    lower, upper = (
        torch.where(steps > 0, torch.nextafter(x + s * steps, s * torch.full_like(x, torch.inf)), x)
        for s in (-1, 1)
    )
    if ends is not None:
        low, high = (torch.as_tensor(end, dtype=torch.float64) for end in ends)
        outside = ((x < low) | (x > high)).flatten(1).any(1)
        if bool(outside.any()):
            raise UsageError(f"point {int(outside.double().argmax())} lies outside the input box")
        lower, upper = torch.maximum(lower, low), torch.minimum(upper, high)
    # One box for a single centre is a box for all, which the checker knows.
    return largest, (lower[0], upper[0]) if len(x) == 1 else (lower, upper)


def _ends(box: tuple[float, float] | Entries, graph: Graph, features: tuple[str, ...], bounded: bool) -> Box:
    if not isinstance(box, Entries):
        return box
    found = box.table(graph.input.size, features, "--box")
    missing = [index for index in range(graph.input.size) if index not in found]
    if missing and not bounded:
        name = features[missing[0]] if features else str(missing[0])
        raise UsageError(
            f"--box says nothing about entry {display(name, 30)}; without --radius each entry needs LO:HI"
        )
    # A number that no ball of a finite radius reaches stands for no end.
    far = torch.finfo(torch.float64).max
    low = torch.full((graph.input.size,), -far, dtype=torch.float64)
    high = -low
    for index, (first, last) in found.items():
        low[index], high[index] = first, last
    return low.reshape(graph.input_shape), high.reshape(graph.input_shape)
