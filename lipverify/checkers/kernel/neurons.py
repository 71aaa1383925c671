"""Differences of two points, and derivatives, as neurons with slopes that are given from outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from lipverify.checkers.kernel.account import STEP, charge
from lipverify.checkers.kernel.arithmetic import Array
from lipverify.checkers.kernel.curves import curve
from lipverify.checkers.kernel.elementary import Blend, Elementary, Extreme, Largest, Ranged, behind
from lipverify.checkers.kernel.program import Affine, Constant, Implicit, Input, Product, Scalar, Step, View
from lipverify.checkers.kernel.signals import (
    INPUT,
    ONE,
    Signal,
    added,
    identity,
    mapped,
    sprouted,
    stacked,
    stored,
)
from lipverify.errors import NotCovered

_CROWD = 1 << 11
"""Numbers of a sum, times its sources, from which on a block of its own takes less than writing it out again."""
Slopes = tuple[Array, Array]
Known = Callable[[Step, Signal, Signal], Signal]


def follow(
    p: Elementary,
    start: int,
    end: int,
    layer: Callable[[int, Step, Signal], Signal],
    known: Known | None,
    cut: Callable[[Signal], Signal] | None = None,
) -> Signal:
    """The signal of a step; `layer` says what a layer makes of what it reads.

    known: what follows of maxima, minima, blends, and of what maxima read. With it constants count, which differences
    of two points do not see. cut: what becomes of sums of many sources, which all that follows would else be written in.
    """
    signals: dict[int, Signal] = {}
    layers = {step: k for k, step in enumerate(p.layers)}

    def seen(view: View) -> Signal:
        if not view.sources:
            zeros = np.zeros((len(view.places), p.steps[start].size))
            return Signal({INPUT: zeros}, ends=np.zeros((2, len(zeros))))
        return stacked([signals[s] for s in view.sources]).rows(view.places)

    order = behind(p.steps, end, start)
    last = {source: k for k in order for source in p.steps[k].reads}
    for k in order:
        step = p.steps[k]
        charge(0, STEP)
        if k == start:
            signals[k] = layer(-1, step, identity(INPUT, step.size))
        elif isinstance(step, Input | Constant):
            values = step.values if isinstance(step, Constant) and known else np.zeros(step.size)
            signals[k] = Signal({ONE: values[:, None]}, None, 0, False, 0.0, np.array([values, values]))
        elif isinstance(step, Affine):
            x = seen(step.view)
            y = mapped(step.kernel, step.index, x, step.offset if known else None, step.rounded)
            y = known(step, x, y) if known and isinstance(step, Extreme | Ranged | Blend) else y
            signals[k] = cut(y) if cut is not None and crowded(y) else y
        else:
            x = seen(step.view)
            x = stacked([x, seen(step.other)]) if isinstance(step, Product) else x
            signals[k] = layer(layers[k], step, x)
        # What no later step reads is let go: signals are the largest part of what is held.
        signals = {source: x for source, x in signals.items() if last.get(source, end + 1) > k}
    return signals[end]


def crowded(x: Signal) -> bool:
    """Whether a signal is a sum of more than twice as many numbers as it has, and large enough for a block of its own."""
    width = sum(m.shape[1] for key, m in x.parts.items() if key != ONE)
    large = width > 2 * x.height and width * x.height >= _CROWD
    return large and not any(bool(np.isnan(m).any()) for m in x.parts.values())


def bilinear(p: Elementary) -> bool:
    """Whether a program has products, and so sums that are cut: what gates and attention read is a function of all before."""
    return any(isinstance(p.steps[k], Product) for k in p.layers)


def everywhere(step: Step) -> Slopes:
    """The range of slopes of a layer for any two points; NotCovered where it has no bound."""
    if isinstance(step, Scalar | Implicit):
        f = curve(step.law, step.settings, step.slopes if isinstance(step, Scalar) else None)
        low, high = (np.broadcast_to(np.float64(end), step.size) for end in f.everywhere)
        if bool(np.isfinite(low).all() and np.isfinite(high).all()):
            return low, high
    if isinstance(step, Largest):
        return np.zeros(len(step.view.places)), np.ones(len(step.view.places))
    raise NotCovered(f"slopes of {type(step).__name__} {getattr(step, 'law', '')} have no bound everywhere")


@dataclass
class Differences:
    """w = s v with s in [0, span] for every neuron, v a signal of the input and of neurons of earlier blocks, or of its own.

    The difference of any two points of a part of which the slopes are known, and its derivative at almost every point. Neurons
    with one possible slope are none. layers: of every block its layer, which of its numbers the neurons are, their least slopes.
    among: of blocks of maxima, which neurons are terms of one: their slopes have the sum 1. cuts: blocks with w = v, sums that
    others read.
    """

    inputs: int
    blocks: list[Signal]
    spans: list[Array]
    layers: list[tuple[int, Array, Array]]
    output: Signal
    among: dict[int, Array] = field(default_factory=dict)
    cuts: set[int] = field(default_factory=set)

    @property
    def sizes(self) -> list[int]:
        return [len(s) for s in self.spans]

    def put(self, v: Signal, span: Array, layer: int, free: Array, least: Array) -> None:
        self.blocks.append(v)
        self.spans.append(span)
        self.layers.append((layer, free, least))

    def cut(self, v: Signal) -> Signal:
        key, zero = len(self.blocks), np.zeros(v.height)
        self.put(v, zero + 1.0, -1, np.arange(v.height), zero)
        self.cuts.add(key)
        return identity(key, v.height)._replace(growth=v.growth)


def differences(
    p: Elementary,
    start: int,
    end: int,
    slopes: Callable[[int], Slopes | None],
    factor: Array | None = None,
    cut: bool = False,
) -> Differences:
    """Neurons between two steps, with slopes of layers as given, or (None) those everywhere.

    factor: of a difference at the start, which is `factor` times another vector, of which everything is then a function.
    cut: whether sums may be blocks, where the program is `bilinear`.
    """
    size = p.steps[start].size if factor is None else factor.shape[1]
    found = Differences(size, [], [], [], identity(INPUT, 1))

    def layer(k: int, step: Step, v: Signal) -> Signal:
        if k < 0:
            return v if factor is None else stored(INPUT, factor)
        low, high = slopes(k) or everywhere(step)
        if not bool(np.isfinite(low).all() and np.isfinite(high).all()):
            raise NotCovered("slopes without a bound: of a rounding, or a product behind an implicit layer")
        if isinstance(step, Implicit):
            return _implicit(found, k, step, v, low, high)
        free = np.flatnonzero(high > low)
        if isinstance(step, Largest):
            alone = low.reshape(-1, step.size)
            only = np.where(alone.any(0), alone.argmax(0) * step.size + np.arange(step.size), -1)
            y = sprouted(len(found.blocks), v.rows(only), 1.0 * (only >= 0), free % step.size)
            if len(free):
                found.among[len(found.blocks)] = _together(free % step.size)
        else:
            y = sprouted(len(found.blocks), v, low, free)
        if len(free):
            # low + span >= high exactly: the difference is rounded up.
            span = np.where(low == 0, high, np.nextafter(high - low, np.inf))
            found.put(v.rows(free), span[free], k, free, low[free])
        half = np.arange(y.height // 2)
        return added(y.rows(half), y.rows(half + len(half))) if isinstance(step, Product) else y

    found.output = follow(p, start, end, layer, None, found.cut if cut and bilinear(p) else None)
    return found


def _together(owner: Array) -> Array:
    """[groups, members] of the places with one owner; fewer members are filled up with the first one."""
    order = np.argsort(owner, kind="stable")
    _, first, counts = np.unique(owner[order], return_index=True, return_counts=True)
    column = np.arange(counts.max())
    return np.asarray(order[first[:, None] + np.where(column < counts[:, None], column, 0)])


def _implicit(found: Differences, k: int, step: Implicit, x: Signal, low: Array, high: Array) -> Signal:
    """z = s v with v = W z + U x: a block that feeds itself.

    Statement: z exists and is unique where the block of the matrix of `multipliers` is positive definite: 2D > s (DW' + WD).
    Source: Revay, Wang, Manchester 2020 (arXiv 2010.01732).
    """
    if not bool((low >= 0).all() and (high > 0).all()):
        raise NotCovered("implicit layers with falling activations are not covered by the checker")
    own, z = np.arange(step.size), identity(len(found.blocks), step.size)._replace(growth=x.growth)
    drive = mapped(step.inputs[None], np.arange(x.height)[None, None], x)
    loop = mapped(step.recurrent[None], own[None, None], z)
    found.put(added(drive, loop), np.array(high), k, own, np.zeros(step.size))
    return z
