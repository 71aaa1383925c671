"""Which layers of two programs are likely to be counterparts: hints for a proof, which is valid whatever is paired."""

from __future__ import annotations

import math
from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np

from lipverify.checkers.kernel.elementary import Elementary
from lipverify.checkers.kernel.program import Affine, Program, Scalar
from lipverify.combine.survivors import Kept, places_of
from lipverify.ir.op import Shape


def some_of_them(
    p: Elementary, count: int, kept: Sequence[tuple[Shape, Kept]]
) -> dict[int, tuple[int, Sequence[int] | None]]:
    """Layers of the second network with those of the first, of which there are `count`, that they are some neurons of.

    A layer is a node of as many entries, or a part of what the next node does (a maximum over a window), channel by channel.
    """
    layers = [k for k, n in enumerate(p.layers) if isinstance(p.steps[n], Scalar)]
    found: dict[int, tuple[int, Sequence[int] | None]] = {}
    places = [places_of(shape, axes).ravel() for shape, axes in kept]
    sizes = [(math.prod(shape), len(own)) for (shape, _), own in zip(kept, places, strict=True)]
    last = -1
    for first, second in zip(
        [k for k in layers if k < count], [k for k in layers if k >= count], strict=False
    ):
        pair = p.size(first), p.size(second)
        last = next((i for i in range(last + 1, len(kept)) if sizes[i] == pair), last)
        shape, axes = kept[max(last, 0)]
        if pair == sizes[max(last, 0)]:
            found[second] = first, places[max(last, 0)].tolist()
        elif axes[0] is not None and pair[0] * len(axes[0]) == pair[1] * shape[0] and pair[0] % shape[0] == 0:
            each = np.arange(pair[0]).reshape(shape[0], -1)
            found[second] = first, each[list(axes[0])].ravel().tolist()
        elif pair[0] == pair[1]:
            found[second] = first, None
    return found


def weight(program: Program) -> float:
    return sum(float(np.abs(s.kernel).sum()) for s in program.steps if isinstance(s, Affine))


def counterparts(p: Elementary, count: int) -> list[tuple[int, int]]:
    """Layers of the first network, of which there are `count`, with those of the second that are likely to do the same."""
    steps = [p.steps[k] for k in p.layers]
    kinds = [f"{s.law} {s.size}" if isinstance(s, Scalar) else f"{k}" for k, s in enumerate(steps)]
    sizes = [str(s.size) for s in steps]
    best: list[tuple[int, int]] = []
    for names in (kinds, sizes):
        match = SequenceMatcher(None, names[:count], names[count:], autojunk=False)
        found = [(b.a + i, count + b.b + i) for b in match.get_matching_blocks() for i in range(b.size)]
        found = [pair for pair in found if all(isinstance(steps[k], Scalar) for k in pair)]
        best = found if len(found) > len(best) else best
    return best
