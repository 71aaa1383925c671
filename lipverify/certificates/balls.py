"""Evidence for balls in the checker's form: for every centre the product, ranges the checker computes itself, or multipliers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipverify.analyzers.lipsdp.canonical import commuted, layers_of_neurons
from lipverify.analyzers.lipsdp.evidence import Multipliers, Proofs
from lipverify.analyzers.lipsdp.neurons import Layer
from lipverify.analyzers.local.analyzer import JacobianRows
from lipverify.analyzers.local.bab import Trees
from lipverify.analyzers.local.comparators import elementary
from lipverify.analyzers.local.frontier import Leaf
from lipverify.analyzers.local.parts import away_from_kinks, within
from lipverify.analyzers.local.sdp import Smaller
from lipverify.certificates.proofs import TOLERANCE, lipsdp_parts, product_stages
from lipverify.certificates.trees import Growing, layers_of
from lipverify.checkers import NotCovered, arithmetic
from lipverify.checkers.balls import Ball, Split
from lipverify.checkers.gains import prove_product
from lipverify.checkers.jacobians import prove_local
from lipverify.checkers.multipliers import System, prove_lipsdp
from lipverify.checkers.steps import Program
from lipverify.errors import RefutedCertificate
from lipverify.ir.certificate import Certificate, Evidence
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball as Region
from lipverify.propagation import bounds

_SLACKS = (0.0, 2.0**-26, 2.0**-22, 0.99 * TOLERANCE)
_NOTHING = 2.0**-200


class SomeUnproved(NotCovered):
    """Some centre has no proof. proved: which ones have."""

    def __init__(self, message: str, proved: tuple[bool, ...]) -> None:
        super().__init__(message)
        self.proved = proved


def balls_of(region: Region) -> list[Ball]:
    """The region as the checker reads it."""
    boxes = region.enclosure()
    rows = (t.flatten(1).numpy() for t in (region.center, boxes.lower, boxes.upper))
    return [Ball(c, region.radius, str(region.norm), low, high) for c, low, high in zip(*rows, strict=True)]


def ball_proofs(
    certificate: Certificate,
    program: Program,
    step: str,
    graph: Graph,
    norms: tuple[str, str],
    ahead: bool = False,
) -> tuple[dict[str, Any], dict[str, Tensor], Tensor]:
    """A proof for every centre, and the bounds that they prove.

    ahead: ranges are expected to reach the bound and a little room, and not computed: whoever checks the certificate does that
        anyway, and on convolutional networks it is what takes the time.

    Raises:
        SomeUnproved: some centre has no proof within the tolerance; the first one is named.
    """
    region = certificate.query.region
    assert isinstance(region, Region)
    assert certificate.upper is not None
    found = _Proofs(program, step, graph, region, norms, ahead)
    upper, reasons = certificate.upper.clone(), {}
    for centre, ball in enumerate(balls_of(region)):
        try:
            upper[centre] = found.add(certificate.evidence, centre, ball, float(upper[centre]))
        except RefutedCertificate as error:
            reasons[centre] = str(error)
    if reasons:
        centre, reason = next(iter(reasons.items()))
        count = f"{len(upper) - len(reasons)} of {len(upper)} centres are proved"
        proved = tuple(k not in reasons for k in range(len(upper)))
        raise SomeUnproved(f"{count}; centre {centre}: {reason}", proved)
    return {"kind": "balls", "proofs": found.proofs, "of": found.of}, found.arrays, upper


class _Proofs:
    """Proofs so far; those that several centres share are there once."""

    def __init__(
        self, program: Program, step: str, graph: Graph, region: Region, norms: tuple[str, str], ahead: bool
    ) -> None:
        self.ahead = ahead
        self.program, self.step, self.graph, self.region, self.norms = program, step, graph, region, norms
        self.proofs: list[dict[str, Any]] = []
        self.of: list[int] = []
        self.arrays: dict[str, Tensor] = {}
        self._shared: dict[str, tuple[int, float]] = {}

    def add(self, evidence: Evidence, centre: int, ball: Ball, upper: float) -> float:
        """What the checker proves for this centre, at least `upper`."""
        if isinstance(evidence, Smaller):
            return self.add(evidence.parts[evidence.chosen[centre]], centre, ball, upper)
        if isinstance(evidence, JacobianRows):
            return self._product(upper) if evidence.from_product[centre] else self._local(ball, upper)
        if isinstance(evidence, Trees):
            return self._trees(evidence, centre, ball, upper)
        if isinstance(evidence, Multipliers | Proofs):
            return self._lipsdp(evidence, centre, ball, upper)
        raise NotCovered(
            f"evidence of the kind {type(evidence).__name__} over balls is not covered by the checker"
        )

    def _product(self, upper: float) -> float:
        if "product" not in self._shared:
            stages = product_stages(self.program, self.step)
            proved = arithmetic.above(prove_product(self.program, self.step, self.norms, stages))
            self._shared["product"] = self._put({"kind": "product", "stages": stages}), proved
        place, proved = self._shared["product"]
        self.of.append(place)
        return _within(proved, upper)

    def _local(self, ball: Ball, upper: float) -> float:
        proved = upper * (1 + _SLACKS[1])
        if not self.ahead:
            proved = _within(prove_local(System(self.program, self.step, ball), self.norms), upper)
        if "local" not in self._shared:
            self._shared["local"] = self._put({"kind": "local"}), 0.0
        self.of.append(self._shared["local"][0])
        return proved

    def _lipsdp(self, evidence: Multipliers | Proofs, centre: int, ball: Ball, upper: float) -> float:
        system = System(self.program, self.step, ball)
        diagonals = (
            evidence.diagonals[centre]
            if isinstance(evidence, Multipliers)
            else evidence.centres[centre][0].diagonals
        )
        layers = None
        if system.smooth or [len(d) for d in diagonals] != system.sizes:
            layers = self._layers(centre)
        system, slopes = _between(system, layers, f"slopes.{centre:04d}")
        parts, arrays = lipsdp_parts(evidence, system, centre, layers)
        arrays |= slopes
        read = {name: np.asarray(array) for name, array in arrays.items()}
        for slack in _SLACKS:
            try:
                for part in parts:
                    weights = None if part["weights"] is None else read[part["weights"]]
                    blocks = [read[name] for name in part["blocks"]]
                    prove_lipsdp(system, blocks, upper * (1 + slack), False, weights, part["row"])
            except RefutedCertificate as error:
                if isinstance(error, NotCovered) or slack == _SLACKS[-1]:
                    raise
                continue
            self.arrays |= arrays
            self.of.append(self._put(_multipliers(parts, slopes)))
            return upper * (1 + slack)
        raise AssertionError("unreachable")

    def _trees(self, evidence: Trees, centre: int, ball: Ball, upper: float) -> float:
        def make(splits: Sequence[Split]) -> System:
            return System(self.program, self.step, ball, splits)

        def other(leaf: Leaf, system: System, upper: float) -> dict[str, Any]:
            if leaf.proof is None:
                raise NotCovered("its multipliers were not kept")
            alone = leaf.outputs[1] - leaf.outputs[0] == 1
            proof = replace(leaf.proof, outputs=(leaf.outputs[0],) if alone else None)
            layers = None
            if system.smooth or [len(d) for d in proof.diagonals] != system.sizes:
                layers = self._layers_in_part(centre, leaf)
            system, slopes = _between(system, layers, f"leaf.slopes.{len(self.arrays):06d}")
            self.arrays |= slopes
            parts, arrays = lipsdp_parts(Proofs(Norm.L2, (), ((proof,),)), system, 0, layers)
            names = {name: f"leaf.{len(self.arrays) + k:06d}" for k, name in enumerate(arrays)}
            read = {names[name]: np.asarray(array) for name, array in arrays.items()}
            for part in parts:
                part["blocks"] = [names[name] for name in part["blocks"]]
                part["weights"] = names.get(part["weights"])
                weights = None if part["weights"] is None else read[part["weights"]]
                prove_lipsdp(
                    system, [read[name] for name in part["blocks"]], upper, False, weights, part["row"]
                )
            self.arrays |= {names[name]: array for name, array in arrays.items()}
            return _multipliers(parts, slopes)

        sizes = [size for size, _ in make(()).layers]
        growing = Growing(make, self.norms, other, layers_of(self.graph, sizes), upper * (1 + 2.0**-26))
        leaves = evidence.centres[centre]
        if any(leaf.by == "root" and leaf.upper >= upper for leaf in leaves):
            # The bound is that of the whole ball, which has a proof of its own.
            return self.add(evidence.root, centre, ball, upper)
        self.of.append(self._put(growing.trees(leaves)))
        return growing.upper

    def _layers(self, centre: int) -> list[Layer]:
        """The neurons of the analyzer; ranges of the checker may be tighter, so that it has fewer of them."""
        return layers_of_neurons(self.graph, bounds(self.graph, self._around(centre)))

    def _layers_in_part(self, centre: int, leaf: Leaf) -> list[Layer]:
        written = elementary(commuted(self.graph, None)[0]).to(dtype=torch.float64)
        conditions = within(written, [leaf.splits[: leaf.depth]], torch.device("cpu"))
        ranges = bounds(written, self._around(centre), within=conditions)
        return layers_of_neurons(written, away_from_kinks(written, dict(ranges)))

    def _around(self, centre: int) -> Region:
        known = self.region
        return Region(known.center[centre : centre + 1], known.radius, known.norm, known.box)

    def _put(self, proof: dict[str, Any]) -> int:
        self.proofs.append(proof)
        return len(self.proofs) - 1


def _between(system: System, layers: Sequence[Layer] | None, name: str) -> tuple[System, dict[str, Tensor]]:
    """The system with the slopes that multipliers were found for, as far as they hold those that the checker finds."""
    if layers is None or not system.smooth:
        return system, {}
    if [layer.size for layer in layers] != [size for size, _ in system.layers]:
        raise NotCovered("the checker arranges the layers of this network in another way")
    arrays = {}
    for k in system.smooth:
        low, high = system.known[k]
        ends = np.minimum(layers[k].low.numpy(), low), np.maximum(layers[k].high.numpy(), high)
        arrays[f"{name}.{k:04d}"] = torch.from_numpy(np.array(ends))
    return system.within([array.numpy() for array in arrays.values()]), arrays


def _multipliers(parts: list[dict[str, Any]], slopes: dict[str, Tensor]) -> dict[str, Any]:
    return {"kind": "lipsdp", "parts": parts} | ({"slopes": list(slopes)} if slopes else {})


def _within(proved: float, upper: float) -> float:
    # Beyond the smallest numbers a bound of 0, for a network that is constant there, would need none of the checker's margins.
    if proved > upper * (1 + TOLERANCE) + _NOTHING:
        raise NotCovered(f"the checker alone proves {proved:.6g}")
    return max(proved, upper)
