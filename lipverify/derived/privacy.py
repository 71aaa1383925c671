"""How far one sample can move the gradient of a loss: noise for private training without clipping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from lipverify import ops
from lipverify.derived.computed import OfNetwork
from lipverify.derived.derivation import Derived, Known, derive
from lipverify.derived.networks import audited
from lipverify.errors import UnsupportedModel, UsageError
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Input
from lipverify.propagation.points import values

LOSSES = {
    "cross-entropy": math.nextafter(math.sqrt(2.0), 2.0),
    "mean-absolute": 1.0,
    "binary-cross-entropy": 1.0,
}
"""Constants of losses in the logits (l2); tempered ones, loss(t f) / t, have the same."""


MOST_STEPS = 10**12
STRONGEST = 1e6
"""Of sqrt(steps) / multiplier: up to there the rounding of an epsilon (about its square) is far below what is added to it."""


@dataclass(frozen=True)
class Sensitivity:
    """total: of all parameters together; layers: of each tensor, by the name of its node and `weight` or `bias`."""

    total: Derived
    layers: dict[str, Derived]

    @property
    def upper(self) -> float:
        """The largest change of the summed gradient, in l2."""
        return self.total.upper

    def noise(self, multiplier: float) -> float:
        """Standard deviation of normal noise on the summed gradient, for a noise multiplier.

        Raises:
            UsageError: a multiplier that is no finite number above 0.
        """
        if (
            isinstance(multiplier, bool)
            or not isinstance(multiplier, int | float)
            or not 0.0 < multiplier < math.inf
        ):
            raise UsageError(f"a noise multiplier is a finite number above 0, not {multiplier!r}")
        return multiplier * self.upper


def sensitivity(
    graph: Graph,
    reach: float,
    loss: str | float = "cross-entropy",
    *,
    neighbours: str = "add-or-remove",
    frozen: Sequence[str] = (),
    analyzers: Sequence[str] = ("product",),
) -> Sensitivity:
    """How far the sum of per-sample gradients moves when one sample comes, goes, or is replaced.

    Statement: |sum of gradients over a set - the same over a neighbouring set|_2 <= upper, in all weights and biases of Linear
        and Conv together, for inputs of l2 norm at most `reach` and a loss whose gradient in the outputs is at most its constant.
        Per tensor: loss * tail * factor * |what the layer reads|, where the tail is the constant of what comes behind, what is
        read is at most |head(0)| + head * reach, and the factor is 1 for a matrix, sqrt of the size of the kernel for a
        convolution, sqrt of the number of places for its bias.
    Source: chain rule; each of the kernel's offsets pairs one window of the input with the gradient (Cauchy and Schwarz).
        Bethune et al. 2024 (arXiv 2305.16202); their factor of a convolution is an average, this one is an upper bound.
        Where one tensor is used k times its gradient is the sum of k terms, whose square is at most k times the sum of squares.
    Sound when: tensors of the graph are parameters of their own. Two that hold the same numbers, in any order, with other signs
        or in part, count as uses of one; what a graph does not show (a multiple, a parametrisation such as a spectral norm, a
        batch normalisation that was folded) is yours to know.
        Useful for networks whose layers are 1-Lipschitz; for others the figure is far above
        usual clipping norms.

    Args:
        loss: a name of `LOSSES`, or its constant. neighbours: add-or-remove, or replace-one, which doubles.
        frozen: names of nodes whose stored numbers are not trained (`graph.summary()` lists them).
        analyzers: for heads and tails.

    Raises:
        UsageError: an unknown loss, relation or node. UnsupportedModel: a network without parameters, in which something passes
        by a layer with parameters (residual blocks), or with stored numbers that are no layer's and not said to be frozen.
    """
    if isinstance(loss, str) and loss not in LOSSES:
        raise UsageError(f"{loss!r} is no loss: {', '.join(LOSSES)}, or its constant as a number")
    relations = {"add-or-remove": 1, "replace-one": 2}
    if neighbours not in relations:
        raise UsageError(f"{neighbours!r}: {' or '.join(relations)}")
    constant = LOSSES[loss] if isinstance(loss, str) else float(loss)
    graph = graph.to(dtype=torch.float64).pruned()
    _refuse_others(graph, frozen)
    heads: list[Known] = []
    offsets: list[float | OfNetwork] = []
    tails: list[Known] = []
    factors: list[float] = []
    names: list[str] = []
    tensors: list[torch.Tensor] = []
    for place, node in enumerate(graph.nodes):
        if not isinstance(node.op, ops.Linear | ops.Conv) or node.name in frozen:
            continue
        _alone(graph, place)
        tail: Known = 1.0 if node is graph.output else audited(_behind(graph, place), analyzers)
        head: Known = 1.0
        offset: float | OfNetwork = 0.0
        if node.inputs[0] != graph.input.name:
            ahead = Graph(graph.nodes, (node.inputs[0],)).pruned()
            head, offset = audited(ahead, analyzers), OfNetwork(partial(_at_zero, ahead))
        weight, bias = _factors(node)
        for name, values_, h, o, factor in (
            (f"{node.name} weight", node.op.weight, head, offset, weight),
            (f"{node.name} bias", node.op.bias, 0.0, 1.0, bias),
        ):
            if factor and values_ is not None:
                names.append(name)
                tensors.append(values_)
                heads.append(h)
                offsets.append(o)
                tails.append(tail)
                factors.append(factor)
    if not names:
        raise UnsupportedModel("no Linear or Conv in this network: nothing has a gradient")
    uses = _uses(tensors)
    factors = [_above(f, len(of)) for f, of in zip(factors, uses, strict=True)]
    rows = [tuple([part[i] for i in of] for part in (heads, offsets, tails, factors)) for of in uses]
    found = [
        derive(
            "sensitivity",
            neighbours=relations[neighbours],
            loss=constant,
            reach=reach,
            heads=h,
            offsets=o,
            tails=t,
            factors=f,
        )
        for h, o, t, f in (*rows, (heads, offsets, tails, factors))
    ]
    return Sensitivity(found[-1], dict(zip(names, found, strict=False)))


def epsilon(multiplier: float, steps: int, delta: float, *, rate: float = 1.0) -> float:
    """The epsilon of `steps` noisy gradients at this delta.

    Source: of all samples at once (rate 1) the exact curve of the normal mechanism, delta = P(-e/m + m/2) - exp(e) P(-e/m - m/2)
        for m = sqrt(steps) / multiplier (Balle, Wang 2018; compositions of normal mechanisms are one, Dong, Roth, Su 2022);
        of samples drawn by Poisson sampling the Renyi accountant of the package dp-accounting.

    Args:
        multiplier: noise over sensitivity. rate: share of the samples in each step.

    Raises:
        UsageError: dp-accounting is not installed; numbers that have no meaning.

    >>> round(epsilon(1.0, 1, 1e-5), 4)
    4.3772
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or not 0 < steps <= MOST_STEPS:
        raise UsageError(f"steps are a whole number from 1 to {MOST_STEPS}, not {steps!r}")
    if not (0.0 < multiplier < math.inf and 0.0 < delta < 1.0 and 0.0 < rate <= 1.0):
        raise UsageError(
            "a positive multiplier, delta between 0 and 1, a rate above 0 and at most 1, all of them finite"
        )
    size = math.sqrt(steps) / multiplier
    if not size <= STRONGEST:
        raise UsageError(
            f"so little noise says nothing: sqrt(steps) over the multiplier is above {STRONGEST:g}"
        )
    if rate == 1.0:
        return _normal(max(size, 1e-9), delta)
    try:
        from dp_accounting import dp_event
        from dp_accounting.rdp import RdpAccountant
    except ImportError:
        raise UsageError(
            "an epsilon with sampled batches needs dp-accounting: pip install 'lipverify[privacy]'"
        ) from None
    accountant = RdpAccountant()
    accountant.compose(dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(multiplier)), steps)
    return float(accountant.get_epsilon(delta))


def _normal(size: float, delta: float) -> float:
    from scipy.optimize import brentq
    from scipy.special import log_ndtr

    def beyond(e: float) -> float:
        """log of what is beyond e, less that of delta. In logarithms: probabilities near the ends of float64 are not rounded."""
        first, second = (float(log_ndtr(-e / size + sign * size / 2.0)) for sign in (1.0, -1.0))
        less = e + second - first
        return first + math.log(-math.expm1(less)) - math.log(delta) if less < 0.0 else -math.inf

    if beyond(0.0) <= 0.0:
        return 0.0
    high = 1.0
    while beyond(high) > 0.0:
        high *= 2.0
    low = high / 2.0 if high > 1.0 else 0.0
    while beyond(high) == -math.inf:  # what is left is below the rounding of the difference
        middle = (low + high) / 2.0
        low, high = (middle, high) if beyond(middle) > 0.0 else (low, middle)
        if high - low <= 1e-12:
            break
    # The root, and what its tolerance may have taken.
    root = high if beyond(high) == -math.inf else float(brentq(beyond, low, high, xtol=1e-12))
    return root * (1.0 + 1e-12) + 1e-9


def _factors(node: Node) -> tuple[float, float]:
    """Of the weight and of the bias; 0 without a bias."""
    op = node.op
    if isinstance(op, ops.Linear):
        rows = math.prod(node.shape[:-1])
        return 1.0, 0.0 if op.bias is None else _root(rows)
    assert isinstance(op, ops.Conv)
    return _root(math.prod(op.weight.shape[2:])), 0.0 if op.bias is None else _root(math.prod(node.shape[1:]))


def _refuse_others(graph: Graph, frozen: Sequence[str]) -> None:
    """Stored numbers that are no weight of a layer may be parameters, whose gradients nothing here bounds."""
    if not isinstance(frozen, (list, tuple, set, frozenset)):
        raise UsageError("frozen is a list of names of nodes")
    known = {node.name for node in graph.nodes}
    for name in frozen:
        if not isinstance(name, str) or name not in known:
            raise UsageError(f"there is no node {name!r}, which should be frozen")
    for node in graph.nodes:
        stored = any(isinstance(v, torch.Tensor) and v.is_floating_point() for v in vars(node.op).values())
        if stored and not isinstance(node.op, ops.Linear | ops.Conv) and node.name not in frozen:
            raise UnsupportedModel(
                f"{node.describe()} holds numbers that may be parameters, and gradients are bounded in those of Linear and Conv "
                f"alone; if they are not trained, say frozen=({node.name!r},)"
            )


def _uses(tensors: Sequence[torch.Tensor]) -> list[list[int]]:
    """For every tensor the places of all that may be uses of one parameter: chains of tensors that are `_related`.

    To count too many as one is sound, and costs the root of their number.
    """
    sizes = [np.sort(np.abs(t.double().flatten().numpy())) for t in tensors]
    group = list(range(len(tensors)))
    for j, b in enumerate(sizes):
        for i, a in enumerate(sizes[:j]):
            if group[i] != group[j] and _related(a, b):
                group = [group[j] if g == group[i] else g for g in group]
    return [[j for j, h in enumerate(group) if h == g] for g in group]


def _related(a: Any, b: Any) -> bool:
    """Whether the sizes of entries of one, sorted, are among those of the other: in any order, with any signs, up to rounding."""
    few, many = sorted((a[a > 0], b[b > 0]), key=len)
    if not len(few):
        return len(a) == len(b) and not len(many)
    places = np.searchsorted(many, few * (1.0 - _SAME))
    return bool(
        (places < len(many)).all() and (many[np.minimum(places, len(many) - 1)] <= few * (1.0 + _SAME)).all()
    )


_SAME = 1e-6
"""What rounding in float32 may change, relatively."""


def _above(factor: float, count: int) -> float:
    """sqrt(count) times the factor, rounded up."""
    return factor if count == 1 else float(np.nextafter(factor * _root(count), math.inf))


def _root(count: int) -> float:
    found = math.sqrt(count)
    return found if found * found == count and found == int(found) else float(np.nextafter(found, math.inf))


def _alone(graph: Graph, place: int) -> None:
    """Everything passes through this node: no node behind it reads one ahead of it."""
    ahead = {node.name for node in graph.nodes[:place] if not isinstance(node.op, ops.Constant)}
    for node in graph.nodes[place + 1 :]:
        passing = [name for name in node.inputs if name in ahead]
        if passing:
            raise UnsupportedModel(
                f"{node.describe()} reads {passing[0]}, which passes by {graph.nodes[place].describe()}: sensitivities are for "
                "networks in which everything passes through every layer with parameters"
            )


def _behind(graph: Graph, place: int) -> Graph:
    """What the node's value becomes."""
    node = graph.nodes[place]
    kept = [n for n in graph.nodes[:place] if isinstance(n.op, ops.Constant)]
    start = Node(node.name, Input(), (), node.shape)
    return Graph((start, *kept, *graph.nodes[place + 1 :]), (graph.output.name,)).pruned()


def _at_zero(graph: Graph) -> float:
    """|f(0)|_2 from above."""
    found = values(graph, torch.zeros(1, *graph.input_shape, dtype=torch.float64))
    size = torch.maximum(found.lower.abs(), found.upper.abs()).flatten().tolist()
    return float(np.nextafter(math.hypot(*size) * (1.0 + 1e-12), math.inf)) if any(size) else 0.0
