"""LipSDP over frequencies as an analyzer, and as what `lipsdp` does where the neurons do not fit one program."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lipverify.analyzers.lipsdp.frequencies.elimination import Frequencies
from lipverify.analyzers.lipsdp.frequencies.form import Form, form_of
from lipverify.analyzers.lipsdp.frequencies.proof import proved
from lipverify.analyzers.lipsdp.frequencies.search import Multipliers, Search, closed_form
from lipverify.analyzers.lipsdp.solver import available_memory
from lipverify.analyzers.protocol import Compute
from lipverify.errors import UnsupportedModel
from lipverify.ir.certificate import Certificate, Rigour
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Everywhere, Query
from lipverify.memory import share

if TYPE_CHECKING:
    from lipverify.certificates import writing

SECONDS, RATE, LARGE = 300.0, 2e10, 2e10
"""What all may take where no budget is given, in multiplications a second of one core: counted, so that no clock decides;
and the work of one evaluation from which on searches are in float32."""
OTHERS, FEWEST = 5.0, 4
"""Evaluations that the closed form and both proofs count as, and fewer than which are no search."""


@dataclass(frozen=True)
class ChannelMultipliers:
    """Evidence: the torus and the multipliers, one a channel of every convolutional block and one a neuron behind them."""

    torus: tuple[tuple[tuple[int, int], tuple[int, int]], ...]
    """(scale, points) for each scale."""
    blocks: tuple[str, ...]
    channels: tuple[Tensor, ...]
    neurons: tuple[Tensor, ...]
    image: tuple[int, int, int]
    """Channels and positions of the input."""
    behind: tuple[str, str] | None
    """The nodes between which the dense part begins."""
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "channel-multipliers",
            "torus": [{"scale": list(scale), "points": list(points)} for scale, points in self.torus],
            "blocks": list(self.blocks),
            "channels": [m.tolist() for m in self.channels],
            "neurons": [m.tolist() for m in self.neurons],
            "notes": list(self.notes),
        }

    def proof(self, writer: writing.Writer, part: writing.Part) -> int:
        """One step: the checker forms all symbols itself."""
        from lipverify.analyzers.lipsdp.proof import prove_channels

        return prove_channels(self, writer, part)


def work_of(form: Form) -> tuple[float, float]:
    """Bytes that the symbols and one elimination hold, and multiplications of one evaluation with its gradient; rough, from
    shapes.
    """
    held, work = 0.0, 0.0
    for block in form.blocks[1:]:
        frequencies = 0.5 * math.prod(form.points(block.reads.scale))
        for source in block.reads.parts:
            fine = 0.5 * math.prod(form.points(form.blocks[source].reads.scale))
            inner = form.blocks[source].reads.channels
            held += 16.0 * max(fine, frequencies) * inner * block.reads.channels
            work += (
                12.0
                * max(fine, frequencies)
                * inner
                * block.reads.channels
                * (inner + 2 * block.reads.channels)
            )
    if form.rows is not None:
        ends = 0.5 * math.prod(form.points(form.last.scale))
        held += 16.0 * ends * form.last.channels * len(form.rows)
        work += 12.0 * ends * form.last.channels * len(form.rows) * (len(form.rows) + form.last.channels)
    return held, work


def refuses_frequencies(graph: Graph, query: Query) -> str | None:
    """Why there is no bound over frequencies: norms, region, a node without a form, or memory."""
    if not (query.norm_in is query.norm_out is Norm.L2 and isinstance(query.region, Everywhere)):
        return "answers l2 to l2 for the whole input space; ask lipsdp or local"
    try:
        form = form_of(graph)
    except UnsupportedModel as error:
        return str(error)
    return _too_large(form)


_TIMES, _SLAB = 12.0, 1 << 30
"""What a gradient holds, in symbols and one elimination; bytes of a slab of frequencies, where it may be smaller."""


def slabs_of(form: Form, single: bool) -> int:
    """In how many parts the frequencies are taken, for memory."""
    held = work_of(form)[0] * _TIMES / (2 if single else 1)
    return math.ceil(held / share(_SLAB))


def _too_large(form: Form) -> str | None:
    some = next(iter(form.torus))
    columns = form.points(some)[1] * some[1] // form.coarsest[1]
    held, limit = work_of(form)[0] * _TIMES / columns, available_memory(torch.device("cpu"))
    if held > limit:
        return f"needs about {held / 2**30:.1f} GiB for symbols at every frequency; {limit / 2**30:.1f} GiB are available"
    return None


def bound_frequencies(
    analyzer: object, graph: Graph, query: Query, compute: Compute, searched: bool = True
) -> Certificate:
    """The bound that the best multipliers found prove, or those in closed form.

    Raises:
        UnsupportedModel: as `refuses_frequencies` says, or no multipliers that prove a bound.
    """
    form = form_of(graph)
    reason = _too_large(form)
    if reason is not None:
        raise UnsupportedModel(reason)
    # Searches of large networks are in float32; the proof is in float64 either way.
    _, work = work_of(form)
    single = work > LARGE
    begun = time.monotonic()
    searching = Frequencies(form, compute.device, single).slabs(slabs_of(form, single))
    first = closed_form(searching, partial(compute.report, "lipsdp over frequencies"))
    # The proof is in float64, and an evaluation with every rounding.
    reserve = min(4.0 * (time.monotonic() - begun), 0.75 * compute.remaining())
    if first is None:
        raise UnsupportedModel("no feasible multipliers over frequencies in closed form")
    candidates, notes = [first], ["one multiplier a channel, over frequencies"]
    interrupted = False
    # Gradients of several slabs eliminate each of them twice.
    each = max(work * (1.0 if len(searching) == 1 else 4.0 / 3.0), 1.0)
    evaluations = int((SECONDS * RATE - OTHERS * work) / each)
    if searched and evaluations >= FEWEST:
        soon = None if compute.deadline is None else compute.deadline - reserve
        best, interruption = Search(searching, replace(compute, deadline=soon), evaluations).run(first)
        candidates.insert(0, best)
        interrupted, notes = interruption.happened, [*notes, *interruption.notes]
    elif searched:
        notes.append("multipliers in closed form: a search would take longer than five minutes")
    frequencies = Frequencies(form, compute.device).slabs(slabs_of(form, False)) if single else searching
    for multipliers in candidates:
        upper = proved(frequencies, multipliers)
        if upper is not None:
            return _certificate(
                analyzer, graph, query, form, multipliers, float(upper), tuple(notes), interrupted
            )
    raise UnsupportedModel("the multipliers found over frequencies prove no bound in float64")


def _certificate(analyzer: object, graph: Graph, query: Query, form: Form, multipliers: Multipliers, upper: float,
                 notes: tuple[str, ...], interrupted: bool) -> Certificate:  # fmt: skip
    evidence = ChannelMultipliers(
        tuple(sorted(form.torus.items())),
        tuple(block.name for block in form.blocks[1:]),
        tuple(m.cpu() for m in multipliers.channels),
        tuple(m.cpu() for m in multipliers.neurons),
        (form.blocks[0].reads.channels, *form.blocks[0].reads.size),
        form.behind,
        notes,
    )
    return Certificate(
        upper=torch.tensor(math.nextafter(upper, math.inf), dtype=torch.float64),
        query=query,
        rigour=Rigour.REAL,
        evidence=evidence,
        made_by=repr(analyzer),
        graph_digest=graph.digest,
        interrupted=interrupted,
    )


@dataclass(frozen=True)
class LipSDPFrequencies:
    """LipSDP of a convolutional network with one multiplier a channel, over frequencies: any size of image.

    Statement: |f(x) - f(y)|_2 <= upper |x - y|_2 for all x, y.
    Source: LipSDP-Neuron (Fazlyab et al., NeurIPS 2019, arXiv 1906.04893) with multipliers that are constant over positions,
    which makes the program block diagonal in the discrete Fourier basis (Sedghi, Gupta, Long, ICLR 2019, for the symbols of
    convolutions).
    Sound when: operators over positions are convolutions, scalings of channels, averages, maxima without padding, sums, slices,
    zero padding and scalar activations; what follows them is dense.
    Proof: lipverify/analyzers/lipsdp/frequencies/proof.py:proved
    """

    name: ClassVar[str] = "lipsdp:frequencies"

    def reject(self, graph: Graph, query: Query) -> str | None:
        """Names the node without a form over frequencies, or the memory that would be needed."""
        return refuses_frequencies(graph, query)

    def bound(self, graph: Graph, query: Query, compute: Compute) -> Certificate:
        """Proved from the multipliers alone, every rounding accounted for."""
        reason = self.reject(graph, query)
        if reason is not None:
            raise UnsupportedModel(reason)
        return bound_frequencies(self, graph, query, compute)
