"""Settings that moved from attributes to inputs between operator sets, read in either form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lipverify.frontends.onnx.call import Call


def axes(call: Call, since: int, position: int = 1) -> list[int] | None:
    """The axes an operator works on: an attribute before operator set `since`, an input from there on."""
    if call.version < since:
        found: list[int] | None = call.attribute("axes")
        return found
    return call.ints(position, "axes")


def normalised(call: Call, axis: int, rank: int) -> int:
    """An axis counted from the front.

    Raises:
        InvalidFile: there is no such axis.
    """
    if not -rank <= axis < rank:
        raise call.invalid(f"axis {axis} of a tensor with {rank} axes")
    return axis % rank


def all_normalised(call: Call, axes: Sequence[int], rank: int) -> list[int]:
    """Different axes counted from the front.

    Raises:
        InvalidFile: one does not exist or occurs twice.
    """
    found = [normalised(call, axis, rank) for axis in axes]
    if len(set(found)) < len(found):
        raise call.invalid(f"axes {list(axes)} name one axis twice")
    return found


def reshaped(call: Call, shape: Sequence[int], target: Sequence[int]) -> list[int]:
    """The shape that Reshape gives: 0 copies a size unless `allowzero`, -1 is what remains."""
    sizes = list(target)
    if not call.flag("allowzero"):
        for position, size in enumerate(sizes):
            if size == 0:
                if position >= len(shape):
                    raise call.invalid(f"shape {sizes} copies axis {position} of {list(shape)}")
                sizes[position] = shape[position]
    if sizes.count(-1) > 1 or any(size < -1 for size in sizes):
        raise call.invalid(f"impossible shape {list(target)}")
    total, known = math.prod(shape), math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        if known == 0 or total % known:
            raise call.invalid(f"{list(shape)} does not reshape to {list(target)}")
        sizes[sizes.index(-1)] = total // known
    if math.prod(sizes) != total:
        raise call.invalid(f"{list(shape)} does not reshape to {list(target)}")
    return sizes


def split_sizes(call: Call, size: int, outputs: int) -> list[int]:
    """Lengths of the parts of Split: an attribute before operator set 13, then an input, or `num_outputs` from 18 on."""
    given = call.attribute("split") if call.version < 13 else call.ints(1, "split")
    count = call.attribute("num_outputs")
    if given is not None and count is not None:
        raise call.invalid("both split and num_outputs are given")
    if given is None:
        if count is not None and count != outputs:
            raise call.invalid(f"num_outputs {count} for {outputs} outputs")
        part = -(-size // outputs)
        if count is None and size % outputs:
            raise call.invalid(f"an axis of size {size} does not split into {outputs} equal parts")
        given = [part] * (outputs - 1) + [size - part * (outputs - 1)]
    if len(given) != outputs or sum(given) != size or any(n < 0 for n in given):
        raise call.invalid(f"an axis of size {size} does not split into {list(given)[:8]}")
    return list(given)


@dataclass(frozen=True)
class Cut:
    """Entries start, start + step, ... before stop of one axis, by Python's rules."""

    axis: int
    start: int
    stop: int
    step: int


def cuts(call: Call, shape: Sequence[int]) -> list[Cut]:
    """What Slice takes of a tensor: attributes before operator set 10, inputs from there on."""
    if call.version < 10:
        starts, ends = call.attribute("starts"), call.attribute("ends")
        chosen, steps = call.attribute("axes"), None
    else:
        starts, ends = call.ints(1, "starts"), call.ints(2, "ends")
        chosen, steps = call.ints(3, "axes"), call.ints(4, "steps")
    if starts is None or ends is None:
        raise call.invalid("it has no starts and ends")
    chosen = list(range(len(starts))) if chosen is None else chosen
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(chosen) == len(steps) or 0 in steps:
        raise call.invalid("its starts, ends, axes and steps do not fit together")
    found = []
    for axis, start, stop, step in zip(
        all_normalised(call, chosen, len(shape)), starts, ends, steps, strict=True
    ):
        if step < 0 and start < -shape[axis]:
            # Readers disagree whether this begins at entry 0 or takes nothing.
            raise call.invalid(f"a backward slice begins at {start} of an axis of size {shape[axis]}")
        found.append(Cut(axis, start, stop, step))
    return found


def pads(call: Call, rank: int) -> list[tuple[int, int]]:
    """(before, after) for every axis of Pad: an attribute before operator set 11, an input from there on."""
    given = call.attribute("pads") if call.version < 11 else call.ints(1, "pads")
    if given is None:
        raise call.invalid("it has no pads")
    chosen = call.ints(3, "axes") if call.version >= 18 else None
    where = list(range(rank)) if chosen is None else all_normalised(call, chosen, rank)
    if len(given) != 2 * len(where):
        raise call.invalid(f"{len(given)} pads for {len(where)} axes")
    found = [(0, 0)] * rank
    for position, axis in enumerate(where):
        found[axis] = (given[position], given[position + len(where)])
    return found
