"""LipSDP with one multiplier a channel: convolutions are diagonal over the frequencies of a torus, whatever the size of an image.

Statement: let every range of slopes hold 0. A convolution of what is 0 outside its window is a circular one on every torus around
    which no tap wraps into the window, and slope 0 outside makes what follows 0 there again: LipSDP of the circular network
    bounds the zero-padded one. With x and neurons w = s v, s in [0, 1], v = H z, L one number a channel, A = I, 2L, -LH satisfies
    z*Az <= |x|^2, and is block diagonal over frequencies. If it is definite, d = Vz is R e with |e| <= |x| for RR' >= VA^-1 V*.
Source: Fazlyab et al. 2019; Sedghi, Gupta, Long, ICLR 2019, for symbols. Strides: a coarse frequency sees all its aliases.
Layout: arrays over the frequencies of a scale are [f, half, f, n, ...], entry (a, h, b, k) the frequency (a N + h, b n + k) of a
    torus that is f times as fine as the coarsest, N by n points, of which half is enough by conjugation.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Any

from lipverify.checkers.kernel import language as is_
from lipverify.checkers.kernel.arithmetic import Array, need
from lipverify.checkers.kernel.language import Rows, Subject
from lipverify.checkers.kernel.multipliers import multipliers_hold
from lipverify.checkers.kernel.neurons import differences
from lipverify.checkers.kernel.theorems import Constant, Facts, Part, shown, theorem
from lipverify.checkers.theories.frequencies.elimination import Spread
from lipverify.checkers.theories.frequencies.waves import read_by, waves_of
from lipverify.errors import NotCovered


def multipliers_of(scope: is_.Scope, name: Any) -> Array:
    """Positive numbers, as many as there are, far from the ends of float64."""
    need(type(name) is str and name in scope.arrays, "an array that is not there")
    found = scope.array(name, (scope.arrays[name].size,))
    if not bool(((found > 2.0**-200) & (found < 2.0**200)).all()):
        raise NotCovered("multipliers near the ends of float64 are not covered by the checker")
    return found


Sizes = Annotated[tuple[int, ...], is_.listed(lambda s, v: s.integer(v, 1, (1 << 15) + 1))]
Channels = Annotated[tuple[Array, ...], is_.listed(multipliers_of)]
Behind = Annotated[
    tuple[Array, ...], lambda s, v: s.by_layer(v, lambda name, n: s.array(name, (n,)), "through")
]


@theorem
def frequencies(facts: Facts, *, start: is_.StepId, last: is_.StepId, through: is_.StepId, end: is_.StepId, image: Sizes,
                torus: Sizes, channels: Channels, blocks: Behind, limit: is_.Limit) -> Constant:  # fmt: skip
    """LipSDP with one multiplier a channel up to a value over positions, at every frequency; from there on as above."""
    need(not facts.subject.exact, "exact checking covers no frequencies")
    subject = facts.subject
    factor = spread(subject, start, last, through, image, torus, channels)
    shown(factor is not None, "the multipliers of channels are not shown to be feasible")
    assert factor is not None
    shown(
        held_behind(subject, through, end, factor, blocks, limit), f"the multipliers do not prove {limit!r}"
    )
    return Constant(
        Part(), Fraction(limit), start, end, Rows(0, subject.program.steps[end].size), ("l2", "l2")
    )


def spread(subject: Subject, start: int, last: int, through: int, image: Sequence[int], torus: Sequence[int],
           channels: Sequence[Array]) -> Array | None:  # fmt: skip
    """R: a difference of what `through` gives is R e, |e| at most the difference at the start; None if not shown."""
    p = subject.elements
    need(len(torus) == 2, "a torus of other axes")
    blocks, value = waves_of(p, p.place[start], p.place[last], image, (torus[0], torus[1]))
    sizes = [x.channels for x in blocks[1:]]
    need([len(m) for m in channels] == sizes, f"multipliers of other channels than {sizes}")
    wanted = read_by(p, p.place[last], p.place[through], value)
    return Spread((torus[0], torus[1]), blocks, wanted).factor(channels)


def held_behind(
    subject: Subject, through: int, end: int, factor: Array, blocks: Sequence[Array], limit: float
) -> bool:
    """Whether what follows from a step changes at most limit times as much as e, where differences of the step are factor e."""
    p = subject.elements
    found = differences(p, p.place[through], p.place[end], lambda k: None, factor)
    places = {k: n for n, k in enumerate(subject.layers(through, end))}
    own = [blocks[places[k]][free] for k, free, _ in found.layers]
    return multipliers_hold(found, found.output, own, limit)
