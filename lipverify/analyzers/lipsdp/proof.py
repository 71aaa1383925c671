"""Multipliers of LipSDP as steps of a proof (docs/proof-format.md): of the whole network, of single outputs, of pieces."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from lipverify.analyzers.lipsdp.canonical import layers_of_neurons
from lipverify.certificates.writing import Layer, Part, Writer
from lipverify.errors import NotCovered
from lipverify.propagation import bounds

if TYPE_CHECKING:
    from lipverify.analyzers.lipsdp.evidence import Multipliers, Parts, Proof, Proofs
    from lipverify.analyzers.lipsdp.frequencies.analyzer import ChannelMultipliers

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Layers = Callable[[], Sequence[Layer]]


def prove_multipliers(evidence: Multipliers, writer: Writer, part: Part) -> int:
    """One set of multipliers for all outputs together, in l2."""
    diagonals = scaled(evidence.diagonals[part.centre], evidence.exponents[part.centre])
    return writer.multipliers(part, diagonals, layers=around(writer, part))


def prove_outputs(evidence: Proofs, writer: Writer, part: Part) -> int:
    """Multipliers for all outputs, or for single ones that together are all of them."""
    layers = around(writer, part)
    return writer.rows(
        part,
        [fact for proof in evidence.centres[part.centre] for fact in facts_of(proof, writer, part, layers)],
    )


def facts_of(proof: Proof, writer: Writer, part: Part, layers: Layers | None) -> list[int]:
    """What one set of multipliers proves: of all outputs together, or of every output that it is for."""
    diagonals, weights = scaled(proof.diagonals, proof.exponents), inverse(proof)
    rows: Sequence[int | None] = proof.outputs or (None,)
    return [writer.multipliers(part, diagonals, row=row, weights=weights, layers=layers) for row in rows]


def prove_pieces(evidence: Parts, writer: Writer, part: Part) -> int:
    """The constants of pieces multiply: every path passes the values between them, which are measured in l2."""
    spans = [(piece, writer.span(piece.first, piece.last)) for piece in evidence.parts]
    # Where the checker has no step between two values, nothing happens between them.
    there = [(piece, span) for piece, span in spans if span is not None]
    found: int | None = None
    for index, (piece, span) in enumerate(there):
        norms = (
            part.norms[0] if index == 0 else "l2",
            part.norms[1] if index == len(there) - 1 else "l2",
        )
        if abs(piece.log10_upper) > 300:
            raise NotCovered("the constant of a piece is near the ends of float64")
        inner = writer.between(part, span, norms, 10.0**piece.log10_upper)
        evidenced = getattr(piece.evidence, "proof", None)
        fact = writer.product(inner) if evidenced is None else evidenced(writer, inner)
        found = fact if found is None else writer.add("compose", first=found, second=fact)
    if found is None:
        raise NotCovered("the pieces hold no step of the checker")
    return found


def prove_channels(evidence: ChannelMultipliers, writer: Writer, part: Part) -> int:
    """One multiplier a channel up to where the dense part begins, one a neuron from there on."""
    if evidence.behind is None:
        raise NotCovered("bounds over frequencies of networks that end in values over positions")
    last, through = (writer.step(name) for name in evidence.behind)
    scale, points = evidence.torus[0]
    torus = [n * s for n, s in zip(points, scale, strict=True)]
    channels = [m.double().numpy() for m in evidence.channels]
    # The checker's matrix behind positions is that of gradients pushed back: its multipliers are the reciprocals.
    neurons = [1.0 / m.double().numpy() for m in evidence.neurons]
    return writer.frequencies(part, (last, through), evidence.image, torus, channels, neurons)


def scaled(diagonals: Sequence[torch.Tensor], exponents: Sequence[int]) -> list[Array]:
    """Multipliers as float64 numbers.

    Raises:
        NotCovered: one of them is beyond float64.
    """
    found = [
        np.ldexp(d.detach().cpu().double().numpy(), 2 * e) for d, e in zip(diagonals, exponents, strict=True)
    ]
    if not all(bool(np.isfinite(d).all()) for d in found):
        raise NotCovered("multipliers beyond float64 are not covered by the checker")
    return found


def inverse(proof: Proof) -> Array | None:
    """1 / weights, the diagonal T of the checker; inputs without influence get a share that does not matter."""
    if proof.weights is None:
        return None
    weights = np.ldexp(proof.weights.detach().cpu().double().numpy(), 2 * proof.weights_exponent)
    known = weights > 0
    least = 1.0 / float(weights[known].max()) if known.any() else 1.0
    return np.where(known, 1.0 / np.where(known, weights, 1.0), math.ldexp(least, -30))


def around(writer: Writer, part: Part) -> Layers | None:
    """The neurons of the analyzer over a ball; the checker's ranges may be tighter, so that it has fewer of them."""
    return None if part.region is None else partial(_layers, writer, part)


def _layers(writer: Writer, part: Part) -> list[Layer]:
    ranges = bounds(writer.graph, writer.ball(part))
    found = layers_of_neurons(writer.graph, ranges)
    return [Layer(layer.size, *(end.cpu().numpy() for end in layer[1:])) for layer in found]
