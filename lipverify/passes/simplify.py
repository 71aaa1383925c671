"""The passes in their order, to a fixed point."""

from __future__ import annotations

from collections.abc import Callable

from lipverify.ir.graph import Graph
from lipverify.passes.agreement import check_agreement, compares_every_node
from lipverify.passes.drop_identities import drop_identities
from lipverify.passes.lift_scalars import lift_scalars
from lipverify.passes.merge_bias import merge_bias
from lipverify.passes.merge_duplicates import merge_duplicates
from lipverify.passes.read_parts import read_parts
from lipverify.passes.recognize_activations import recognize_activations
from lipverify.passes.recognize_extrema import recognize_extrema
from lipverify.passes.recognize_normalization import recognize_normalization
from lipverify.passes.recognize_softmax import recognize_softmax
from lipverify.passes.recognize_sorting import recognize_sorting

PASSES: tuple[Callable[[Graph], Graph], ...] = (
    drop_identities,
    merge_duplicates,
    read_parts,
    merge_bias,
    recognize_extrema,
    recognize_sorting,
    recognize_activations,
    recognize_normalization,
    recognize_softmax,
)
"""Cleaning comes first: it shows the recognisers which operands are the same tensor."""

_ROUNDS = 100
"""More than any spelling needs; whatever is left after so many rounds stays as it is, and is still the same function."""


def simplify(graph: Graph) -> Graph:
    """The same real function in fewer and better known operators; unneeded nodes are removed.

    Every rewrite is exact over the real numbers: no parameter is rounded. Each pass that changed the graph is checked against
    its input in float64; for a large graph the result is checked once, against the original. A graph that no pass changes
    comes back with the same digest. Samples that are single numbers become vectors of one number at last.

    Raises:
        InternalError: a pass changed the function.
    """
    original = graph = graph.pruned()
    each = compares_every_node(original)
    for _ in range(_ROUNDS):
        start = graph
        for run in PASSES:
            before, graph = graph, run(graph)
            if each and graph is not before:
                check_agreement(before, graph, run.__name__)
        if graph is start:
            break
    if not each and graph is not original:
        check_agreement(original, graph, simplify.__name__)
    return lift_scalars(graph)
