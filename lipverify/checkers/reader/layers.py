"""Layers that look at a group of entries as a whole: softmax and normalisations; implicit layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lipverify.checkers.kernel.program import (
    Array,
    Implicit,
    Normalise,
    Softmax,
)
from lipverify.checkers.reader.activations import SETTINGS
from lipverify.checkers.reader.building import (
    Builder,
    Value,
)
from lipverify.checkers.reader.calls import Call
from lipverify.checkers.reader.masks import Masked, kept_softmax, lines_of
from lipverify.checkers.reader.moves import Results, Run, axis_of
from lipverify.checkers.reader.refusals import need


def _softmax(p: Builder, c: Call) -> Results:
    """Along an axis; before operator set 13 over all axes from one on."""
    scores = c.marked(0, Masked)
    x = c.value(p, 0) if scores is None else scores.value
    old = c.version < 13 and not c.words
    axis = axis_of(c.integer("axis", 1 if old else -1), x.places.ndim)
    groups = lines_of(p, x, axis, old)
    if scores is not None:
        return [kept_softmax(p, x, scores.kept, groups)]
    return [_in_place(p, x, Softmax(p.view(x), x.places.size, groups), groups)]


def _masked_softmax(p: Builder, c: Call) -> Results:
    """A word of certificates: of every line along an axis the entries that are kept (1 of 1 and 0), and 0 for the others."""
    x, kept = c.value(p, 0), c.stored(1)
    axis = axis_of(c.integer("axis", -1), x.places.ndim)
    whole = kept.dtype == np.int64 and (1, *kept.shape) == x.shape and bool(((kept == 0) | (kept == 1)).all())
    need(whole and axis > 0, "a mask of another shape")
    return [kept_softmax(p, x, kept[None] == 1, lines_of(p, x, axis))]


def _log_softmax(p: Builder, c: Call) -> Results:
    """The logarithm of the softmax, of which none may be 0."""
    c.any(0)
    (y,) = _softmax(p, c)
    assert isinstance(y, Value)
    return [p.scalar(y, "Log")]


def _in_place(p: Builder, x: Value, step: Softmax | Normalise, groups: Array) -> Value:
    """The results of a step, which come in the order of its groups, where their arguments were."""
    p.charge(2 * groups.size)
    y = p.add(step, [groups.size], x.kind)
    places = np.empty(groups.size, np.int64)
    places[groups.reshape(-1)] = y.places
    return y._replace(places=places.reshape(x.shape))


def _layer_norm(p: Builder, c: Call) -> Results:
    """LayerNormalization and RMSNormalization: over all axes from one on."""
    x = c.value(p, 0)
    axis, centred = axis_of(c.integer("axis", -1), x.places.ndim), c.op == "LayerNormalization"
    epsilon, _ = c.number("epsilon", 1e-5), c.integer("stash_type", 1)
    need(c.results == 1, "statistics of a normalisation are not covered by the checker")
    tail = x.shape[axis:]
    scale = c.optional(1, x.kind)
    bias = c.optional(2, x.kind) if centred else None
    return [
        _normalised(p, x, p.positions(x).reshape(-1, math.prod(tail)), tail, scale, bias, epsilon, centred)
    ]


def _normalised(p: Builder, x: Value, groups: Array, tail: Sequence[int], scale: Array | None, bias: Array | None,
                epsilon: float, centred: bool) -> Value:  # fmt: skip
    """scale, bias: anything that broadcasts to a group of shape `tail`, or [groups, count]."""
    need(epsilon > 0, "a normalisation without epsilon is not covered by the checker")
    p.charge(3 * groups.size)

    def full(a: Array | None, default: float) -> Array:
        a = np.full(1, default) if a is None else a
        if a.shape == groups.shape and len(tail) != 2:
            return np.ascontiguousarray(a)
        need(np.broadcast_shapes(a.shape, tuple(tail)) == tuple(tail), "a weight of another size")
        row = np.broadcast_to(a, tuple(tail)).reshape(1, -1)
        return np.ascontiguousarray(np.broadcast_to(row, groups.shape))

    step = Normalise(p.view(x), x.places.size, groups, full(scale, 1.0), full(bias, 0.0), epsilon, centred)
    return _in_place(p, x, step, groups)


def _group_norm(p: Builder, c: Call) -> Results:
    """InstanceNormalization, one group for each channel, and GroupNormalization with weights for each channel."""
    x = c.value(p, 0)
    need(x.places.ndim >= 3 and x.shape[0] == 1, "a normalisation of another shape")
    channels = x.shape[1]
    count = channels if c.op == "InstanceNormalization" else c.integer("num_groups", None)
    need(count > 0 and channels % count == 0, "groups of channels")
    epsilon = c.number("epsilon", 1e-5)
    if c.version >= 21:
        c.integer("stash_type", 1)
    scale, bias = c.reals(1, x.kind), c.reals(2, x.kind)
    need(scale.shape == bias.shape == (channels,), "weights of another size")
    groups = p.positions(x).reshape(count, -1)
    p.charge(4 * groups.size)
    each = math.prod(x.shape[2:])
    full = [np.repeat(a, each).reshape(groups.shape) for a in (scale, bias)]
    step = Normalise(p.view(x), x.places.size, groups, full[0], full[1], epsilon, True)
    need(epsilon > 0, "a normalisation without epsilon is not covered by the checker")
    return [_in_place(p, x, step, groups)]


def _implicit(p: Builder, c: Call) -> Results:
    """A word of certificates: the z with z = phi(W z + U x + b)."""
    x = c.value(p, 0)
    recurrent, inputs, bias = c.reals(1, x.kind), c.reals(2, x.kind), c.optional(3, x.kind)
    law = c.text("activation", "")
    need(
        x.places.ndim == 2 and law in SETTINGS and law not in ("PRelu",),
        "this implicit layer is not covered by the checker",
    )
    settings = {key: c.number(key, default) for key, default in SETTINGS[law].items()}
    need(
        recurrent.shape == (len(inputs), len(inputs))
        and inputs.ndim == 2
        and inputs.shape[1] == x.places.size,
        "an implicit layer",
    )
    known = np.abs(np.concatenate([recurrent.ravel(), inputs.ravel()]))
    need(
        bool(((known[known > 0] >= 2.0**-400) & (known[known > 0] <= 2.0**400)).all()),
        "numbers near the ends of float64 are not covered by the checker",
    )
    p.charge(recurrent.size + inputs.size)
    given = tuple(sorted(settings.items()))
    return [
        p.add(Implicit(p.view(x), len(inputs), recurrent, inputs, bias, law, given), (1, len(inputs)), x.kind)
    ]


LAYERS: dict[str, tuple[str, Run]] = {
    "Softmax": ("1 11 13", _softmax),
    "LogSoftmax": ("1 11 13", _log_softmax),
    "LayerNormalization": ("17", _layer_norm),
    "RMSNormalization": ("23", _layer_norm),
    "InstanceNormalization": ("6 22", _group_norm),
    "GroupNormalization": ("21", _group_norm),
}
IMPLICIT: dict[str, tuple[str, Run]] = {"Implicit": ("", _implicit), "MaskedSoftmax": ("", _masked_softmax)}
