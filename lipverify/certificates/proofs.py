"""Evidence of analyzers in the checker's form. Nothing here needs trust: gains and multipliers are candidates until proved."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipverify.analyzers.lipsdp.evidence import Multipliers, Proof, Proofs
from lipverify.analyzers.lipsdp.neurons import Layer
from lipverify.checkers import NotCovered, gains
from lipverify.checkers.multipliers import System, needed
from lipverify.checkers.signals import INPUT, ONE
from lipverify.checkers.steps import Implicit, Map, Program
from lipverify.errors import RefutedCertificate
from lipverify.ir.certificate import Gains
from lipverify.ops import implicit

Array = np.ndarray[Any, np.dtype[Any]]
TOLERANCE, CONVOLUTION_TOLERANCE = 1e-6, 2e-3
_APART, _NEAR, _TINY = 2.0**40, 2.0**8, 2.0**-200
"""What a proof may add to a bound, relatively."""
_DENSE_WORK, _DENSE_ENTRIES, _QUICK = 2e10, 1 << 24, 2e8


# -- product: chains of maps with gains


def product_stages(program: Program, output: str) -> list[dict[str, Any]]:
    """Chains of maps as long as a proof is affordable."""
    steps = needed(program, output)
    readers: dict[str, int] = {}
    for step in steps.values():
        for source in step.sources:
            readers[source] = readers.get(source, 0) + 1
    chains: list[list[str]] = []
    where: dict[str, list[str]] = {}
    for name, step in steps.items():
        if not isinstance(step, Map):
            continue
        source = step.sources[0]
        if (
            len(step.sources) == 1
            and source in where
            and readers[source] == 1
            and len(steps[source].sources) == 1
        ):
            where[name] = where[source]
        else:
            chains.append([])
            where[name] = chains[-1]
        where[name].append(name)
    stages = [stage for chain in chains for stage in _staged({n: steps[n] for n in chain})]
    return stages + [_implicit(name, step) for name, step in steps.items() if isinstance(step, Implicit)]


def _implicit(name: str, step: Implicit) -> dict[str, Any]:
    """The smaller of the gains that a contraction and diagonal multipliers prove.

    Both are inequalities with a multiplier K for changes of z (`ops.implicit.monotone`); the checker's go backwards through the
    layer, with D = rho / (s^2 K): the two Schur complements differ by K on both sides.
    """
    w, u, s = step.recurrent, step.inputs, step.slope
    candidates = []
    shrink = s * float(np.linalg.norm(w, 2))
    if shrink < 1:
        rho = (s * float(np.linalg.norm(u, 2)) / (1 - shrink)) ** 2
        candidates.append((rho, np.full(len(w), 1 / (1 - shrink))))
    found = implicit.multipliers(torch.from_numpy(w), torch.from_numpy(u), s)
    if found is not None:
        candidates.append((found[0], found[1].numpy()))
    for rho, k in sorted(candidates, key=lambda pair: pair[0]):
        gain = math.sqrt(rho) * (1 + TOLERANCE / 10)
        d = gain**2 / (s * s * k)
        stage = {
            "steps": [name],
            "by": "multipliers",
            "gain": gain.hex(),
            "multipliers": [v.hex() for v in d.tolist()],
        }
        try:
            gains.implicit_gain(step, stage)
        except RefutedCertificate:
            continue
        return stage
    raise NotCovered(f"the implicit layer {name[:60]} has no multipliers that the checker accepts")


def _staged(chain: dict[str, Any]) -> Iterator[dict[str, Any]]:
    steps = list(chain.values())
    if len(steps[0].sources) > 1 or (len(steps) == 1 and _diagonal(steps[0])):
        return  # sums of several values and scalings alone have a rule
    if _affordable(steps):
        yield _dense(chain)
        return
    piece: dict[str, Any] = {}
    for name, step in [*chain.items(), ("", None)]:
        together = [*piece.values(), *([step] if step is not None else [])]
        fits = (
            all(s.lattice or _diagonal(s) for s in together) and sum(bool(s.lattice) for s in together) <= 1
        )
        if piece and (step is None or not fits):
            yield from _convolution(piece)
            piece = {}
        if step is not None:
            piece[name] = step


def _diagonal(step: Map) -> bool:
    return step.kernel.shape[1:] == (1, 1)


def _affordable(steps: Sequence[Map]) -> bool:
    rows, columns = steps[-1].size, len(steps[0].view)
    short, long = sorted((rows, columns))
    most = max(columns, *(s.size for s in steps))
    inner = columns * most
    return (
        2.0 * short**2 * long + 1.5 * short**3 < _DENSE_WORK
        and max(rows * columns, inner) < 4 * _DENSE_ENTRIES
    )


def _dense(chain: dict[str, Any]) -> dict[str, Any]:
    matrices, _ = gains.matrix_of(list(chain.values()))
    size = max((float(np.linalg.norm(m, 2)) for m in matrices if m.size), default=0.0)
    # The shift of a verified Cholesky grows with the square of the side.
    size *= 1 + TOLERANCE / 100 + 3e-16 * min(matrices.shape[1:]) ** 2
    return {"steps": list(chain), "by": "dense", "gain": size.hex()}


def _convolution(piece: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The torus, or grid, with the smallest proved gain."""
    steps = list(piece.values())
    if not any(step.lattice for step in steps):
        for name, step in piece.items():
            if not _diagonal(step):
                yield _dense({name: step})
        return
    kernel, _, sizes = gains.kernel_of(steps)
    best, torus = math.inf, None
    sizes = [n if n <= 80 else 80 for n in sizes]
    for choice in itertools.product(*([(n + more, t) for more in (0, 1) for t in (1, 0)] for n in sizes)):
        if math.prod(n for n, _ in choice) > 1 << 13:
            continue
        peak = max(_peaks(kernel, gains.torus_points(kernel, choice)))
        if peak < best:
            best, torus = peak, [list(pair) for pair in choice]
    if torus is None:
        raise NotCovered("a convolution on a large image is not covered by the checker")
    _, _, exact = gains.kernel_of(steps)
    for (n, _), size, taps in zip(torus, exact, kernel.shape[3:], strict=True):
        best /= 1.0 if n >= size else math.cos(math.pi * (taps - 1) / 2 / n)
    yield {"steps": list(piece), "by": "torus", "torus": torus, "gain": (best * (1 + 1e-7)).hex()}


def _peaks(kernel: Array, grid: Array) -> Iterator[float]:
    for start in range(0, len(grid), 256):
        values = gains.symbol_at(kernel, grid[start : start + 256])
        half = values.shape[-2] // 2, values.shape[-1] // 2
        whole = values[..., : half[0], : half[1]] + 1j * values[..., half[0] :, : half[1]]
        yield float(np.linalg.norm(whole, 2, (-2, -1)).max())


def too_small(evidence: Gains, program: Program) -> str | None:
    """The first stage of an analyzer whose gain is below the norm of its matrix, for l2; an error of ours."""
    for stage in evidence.steps:
        if stage.gain is None or not all(name in program.values for name in stage.nodes):
            continue
        chain = [program.steps[name] for name in stage.nodes if name in program.steps]
        maps = [step for step in chain if isinstance(step, Map)]
        joined = all(b.sources[0] in stage.nodes for b in maps[1:])
        if not maps or len(maps) < len(chain) or not joined or len(maps[0].sources) > 1:
            continue
        last = program.values[stage.nodes[-1]]
        plain = all(
            np.array_equal(step.view, np.arange(program.steps[step.sources[0]].size)) for step in maps
        ) and np.array_equal(last.places.ravel(), np.arange(maps[-1].size))
        if not plain or program.steps[last.sources[0]] is not maps[-1]:
            continue  # something is copied or dropped on the way: another matrix
        short, long = sorted((maps[-1].size, len(maps[0].view)))
        if short**2 * long < _QUICK and _affordable(maps):
            matrices, _ = gains.matrix_of(maps)
            norm = max((float(np.linalg.norm(m, 2)) for m in matrices if m.size), default=0.0)
            if norm > stage.gain * (1 + TOLERANCE):
                return f"the gain {stage.gain!r} of {', '.join(stage.nodes)[:80]} is below {norm!r}"
    return None


# -- LipSDP: multipliers


def lipsdp_parts(
    evidence: Multipliers | Proofs,
    system: System,
    centre: int = 0,
    layers: Sequence[Layer] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Parts of a proof, one for each output where outputs are bounded by themselves, and their arrays by name.

    layers: whose neurons the multipliers are those of; by default those of the system.
    """
    parts: list[dict[str, Any]] = []
    arrays: dict[str, Tensor] = {}
    if isinstance(evidence, Multipliers):
        proofs: Sequence[Any] = [(None, evidence.diagonals[centre], evidence.exponents[centre], None)]
    else:
        proofs = [(p.outputs, p.diagonals, p.exponents, _inverse(p)) for p in evidence.centres[centre]]
    for n, (outputs, diagonals, exponents, weights) in enumerate(proofs):
        names, own = [], f"{centre:04d}.{n:04d}"
        for k, d in enumerate(multipliers(diagonals, exponents, system, layers, weights)):
            names.append(f"multipliers.{own}.{k:04d}")
            arrays[names[-1]] = torch.from_numpy(d)
        if weights is not None:
            arrays[f"weights.{own}"] = torch.from_numpy(weights)
        named = None if weights is None else f"weights.{own}"
        parts += [{"row": row, "weights": named, "blocks": names} for row in (outputs or [None])]
    return parts, arrays


def _inverse(proof: Proof) -> Array | None:
    """1 / weights, the diagonal T of the checker; inputs without influence get a share that does not matter."""
    if proof.weights is None:
        return None
    weights = np.ldexp(proof.weights.detach().cpu().double().numpy(), 2 * proof.weights_exponent)
    known = weights > 0
    least = 1.0 / float(weights[known].max()) if known.any() else 1.0
    return np.where(known, 1.0 / np.where(known, weights, 1.0), math.ldexp(least, -30))


def multipliers(
    diagonals: Sequence[Tensor],
    exponents: Sequence[int],
    system: System,
    layers: Sequence[Layer] | None = None,
    weights: Array | None = None,
) -> list[Array]:
    """Positive float64 multipliers of every neuron. weights: the diagonal T of the inputs, by default ones.

    Neurons without influence have none of their own (zero): they get numbers so small, or so large, that they do not matter.
    """
    found = []
    for values, exponent in zip(diagonals, exponents, strict=True):
        diagonal = np.ldexp(values.detach().cpu().double().numpy(), 2 * exponent)
        if not bool(np.isfinite(diagonal).all()):
            raise NotCovered("multipliers beyond float64 are not covered by the checker")
        found.append(diagonal)
    if layers is not None:
        found = _aligned(found, layers, system)
    if [len(d) for d in found] != system.sizes:
        raise NotCovered("the checker arranges the neurons of this network in another way")
    return _filled(found, system, weights) if any((d <= 0).any() for d in found) else found


def _aligned(diagonals: list[Array], layers: Sequence[Layer], system: System) -> list[Array]:
    """Multipliers of the system's own neurons; where it knows a slope that the analyzer did not, none is needed.

    Where one more neuron of the analyzer has a known slope, its term in the inequality vanishes, and the rest still holds.
    """
    filled = [(layer.size, layer.free.numpy()) for layer in layers]
    if [size for size, _ in filled] != [size for size, _ in system.layers]:
        raise NotCovered("the checker arranges the layers of this network in another way")
    left, found = iter(diagonals), []
    for (size, theirs), (_, ours) in zip(filled, system.layers, strict=True):
        whole = np.zeros(size)
        if len(theirs):
            diagonal = next(left, np.empty(0))
            if len(diagonal) != len(theirs):
                raise NotCovered("the multipliers are those of other ranges")
            whole[theirs] = diagonal
        if len(ours):
            found.append(whole[ours])
    return found


def _filled(diagonals: list[Array], system: System, weights: Array | None) -> list[Array]:
    """Multipliers for neurons that the analyzer left out, where it left zeros.

    In the checker's matrix neuron i meets what it reads, j, in the entry -C_ij d_j (U_ij for an input, which has T_j where a
    neuron has d_j: as if d_j were 1 / T_j). Without neuron i the
    rest of the matrix loses (C_ij d_j)^2 / d_i, without neuron j it loses C_ij^2 d_j: nothing that matters when d_i is `_APART`
    above C_ij^2 d_j. So neurons that drive nothing of influence are made that dear, in order, and those that nothing drives
    that cheap, backwards; among themselves `_NEAR` is enough. Not further: a zero known up to rounding stays harmless.
    """
    known = np.concatenate([d[d > 0] for d in diagonals])
    low = float(known.min()) if len(known) else 1.0
    reached = _driven(diagonals, system)
    found = [d.copy() for d in diagonals]
    for k, block in enumerate(system.blocks):
        dear = np.full(len(found[k]), low)
        for key, matrix in block.parts.items():
            if key != ONE and matrix.shape[1]:
                read = (
                    found[key]
                    if key != INPUT
                    else 1.0 / (np.ones(matrix.shape[1]) if weights is None else weights)
                )
                apart = _APART if key == INPUT else np.where(diagonals[key] > 0, _APART, _NEAR)
                dear = np.maximum(dear, (matrix**2 * (apart * read)).max(1))
        found[k] = np.where((diagonals[k] <= 0) & reached[k], dear, found[k])
    for j in reversed(range(len(found))):
        cheap = np.full(len(found[j]), low / _APART)
        for k in range(j + 1, len(found)):
            part = system.blocks[k].parts.get(j)
            if part is not None and part.size:
                most = found[k] / np.where(diagonals[k] > 0, _APART, _NEAR)
                cheap = np.minimum(cheap, (most[:, None] / np.maximum(part**2, _TINY)).min(0))
        last = system.output.parts.get(j)
        if last is not None and last.size:
            cheap /= np.maximum(1.0, (last**2).max(0))
        found[j] = np.where((diagonals[j] <= 0) & ~reached[j], cheap, found[j])
    return found


def _driven(diagonals: list[Array], system: System) -> list[Array]:
    """For every block, which neurons an input reaches."""
    found: list[Array] = []
    for block, d in zip(system.blocks, diagonals, strict=True):
        reached = np.zeros(len(d), dtype=bool)
        for key, matrix in block.parts.items():
            if key != ONE:
                reached |= (matrix[:, slice(None) if key == INPUT else found[key]] != 0).any(1)
        found.append(reached)
    return found
