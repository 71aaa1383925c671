"""Gains for the product: chains of affine steps, and how each is to be proved. Candidates; the kernel proves them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from lipverify import memory
from lipverify.checkers.kernel import gains
from lipverify.checkers.kernel.elementary import behind
from lipverify.checkers.kernel.language import Subject
from lipverify.checkers.kernel.neurons import everywhere
from lipverify.checkers.kernel.program import Affine, Implicit, Product
from lipverify.checkers.kernel.theorems import Fact, Gained
from lipverify.deadline import look
from lipverify.errors import NotCovered, UnreadableCertificate
from lipverify.linalg.eigen import spectral_estimate
from lipverify.linalg.symbol import Symbol, torus_work
from lipverify.ops import implicit

Array = np.ndarray[Any, np.dtype[Any]]
ROOM, DENSE_WORK, DENSE_ENTRIES = 1e-6, 2e10, 1 << 24
WIDE, TORUS_WORK = 48, 1e10
"""Channels from which on norms of symbols are estimated in single precision, and the multiplications that all tori may take."""


@dataclass(frozen=True)
class Stage:
    """A proof step `gain` or `implicit`, and the step of the program whose gain it is."""

    kind: str
    last: int
    fields: Mapping[str, Any]
    roomy: bool = False
    """Whether its limit is so far above what was estimated that its proof, which takes the time, is left to the checker."""

    @property
    def key(self) -> tuple[str, str]:
        """The same for the same step of a proof."""
        return self.kind, repr(self.fields)


def constant(
    subject: Subject, start: int, end: int, norms: tuple[str, str], facts: Sequence[Fact]
) -> Fraction:
    """What gains prove together."""
    given = {fact.last: (fact.first, fact.gains) for fact in facts if isinstance(fact, Gained)}
    steps = subject.program.steps
    return gains.product_constant(steps, start, end, norms, given, subject.factors)


def stages(subject: Subject, start: int, end: int) -> Iterator[Stage]:
    """Chains of affine steps between two others, as long as a proof is affordable, and implicit layers alone."""
    steps = subject.program.steps
    between = [k for k in behind(steps, end, start) if k > start]
    readers: dict[int, int] = {}
    for k in between:
        step = steps[k]
        for view in [step.view, *([step.other] if isinstance(step, Product) else [])]:
            for source in view.sources:
                readers[source] = readers.get(source, 0) + 1
    chains: list[list[int]] = []
    where: dict[int, list[int]] = {}
    for k in between:
        step = steps[k]
        if not isinstance(step, Affine):
            continue
        sources = step.view.sources
        before = steps[sources[0]] if sources else None
        joined = len(sources) == 1 and sources[0] in where and readers[sources[0]] == 1
        if joined and before is not None and len(before.view.sources) == 1:
            where[k] = where[sources[0]]
        else:
            chains.append([])
            where[k] = chains[-1]
        where[k].append(k)
    for chain in chains:
        yield from _staged({k: step for k in chain if isinstance(step := steps[k], Affine)})
    for k in between:
        step = steps[k]
        if isinstance(step, Implicit):
            yield from _implicit(k, step)


def _staged(chain: dict[int, Affine]) -> Iterator[Stage]:
    steps = list(chain.values())
    if len(steps[0].view.sources) > 1 or (len(steps) == 1 and _diagonal(steps[0])):
        return  # sums of several values and scalings alone have a rule
    if _affordable(steps):
        yield _dense(chain)
        return
    piece: dict[int, Affine] = {}
    for k, step in [*chain.items(), (-1, None)]:
        together = [*piece.values(), *([step] if step is not None else [])]
        if piece and (step is None or not _one_convolution(together)):
            yield from _convolution(piece)
            piece = {}
        if step is not None:
            piece[k] = step


def _blocks(step: Affine) -> bool:
    """Whether every entry is read once: then the map is made of small blocks."""
    known = step.index[step.index >= 0]
    return len(np.unique(known)) == known.size


def _diagonal(step: Affine) -> bool:
    return step.kernel.shape[1:] == (1, 1)


def _one_convolution(steps: Sequence[Affine]) -> bool:
    """Whether steps are scalings, or one convolution with scalings of its channels: others have gains of their own."""
    if not all(step.lattice or _diagonal(step) for step in steps):
        return False
    if not any(step.lattice for step in steps):
        return True
    try:
        gains.kernel_of(steps)
    except UnreadableCertificate:
        return False
    return True


def _affordable(steps: Sequence[Affine]) -> bool:
    rows, columns = steps[-1].size, len(steps[0].view.places)
    short, long = sorted((rows, columns))
    most = max(columns, *(s.size for s in steps))
    work = 2.0 * short**2 * long + 1.5 * short**3
    return work < DENSE_WORK and max(rows * columns, columns * most) < 4 * DENSE_ENTRIES


def _dense(chain: dict[int, Affine]) -> Stage:
    steps = list(chain.values())
    columns, most = len(steps[0].view.places), max(step.size for step in steps)
    if len(steps) > 1 or not _blocks(steps[0]):
        needed, available = 8.0 * 6 * columns * max(columns, most), memory.free()
        if needed > available:
            raise NotCovered(
                f"a matrix of {columns} columns needs about {needed / 1e9:.1f} GB, {available / 1e9:.1f} GB are available"
            )
    matrices, _ = gains.matrix_of(list(chain.values()))
    size = max((_norm(m) for m in matrices if m.size), default=0.0)
    # The shift of a verified Cholesky grows with the square of the side.
    size *= 1 + ROOM / 100 + 3e-16 * min(matrices.shape[1:]) ** 2
    return Stage("gain", list(chain)[-1], {"chain": list(chain), "torus": None, "limit": size.hex()})


def _norm(matrix: Array) -> float:
    """About the largest singular value; of large matrices from the smaller of the two products with the transpose."""
    if min(matrix.shape) <= WIDE:
        return float(np.linalg.norm(matrix, 2))
    return spectral_estimate(torch.from_numpy(np.ascontiguousarray(matrix)))


def _convolution(piece: dict[int, Affine]) -> Iterator[Stage]:
    """The torus, or grid, with the smallest proved gain."""
    steps = list(piece.values())
    if not any(step.lattice for step in steps):
        for k, step in piece.items():
            if not _diagonal(step):
                yield _dense({k: step})
        return
    kernel, _, exact = gains.kernel_of(steps)
    symbol, sizes = Symbol(torch.from_numpy(kernel)), [n if n <= 80 else 80 for n in exact]
    choices = [
        choice
        for choice in itertools.product(*([(n + more, t) for more in (0, 1) for t in (1, 0)] for n in sizes))
        if math.prod(n for n, _ in choice) <= 1 << 13
    ]
    if not choices:
        raise NotCovered("a convolution on a large image is not covered by the checker")
    # Of wide kernels few tori are looked at, the smallest one first, and in single precision.
    wide = min(kernel.shape[1:3]) > WIDE
    if wide:
        choices = choices[: max(1, int(TORUS_WORK / torus_work(symbol, sizes)))]
    peaks = []
    for choice in choices:
        if wide:
            peaks.append(symbol.torus_peak([(n, twist / 2) for n, twist in choice]))
        else:
            peaks.append(max(_peaks(kernel, gains.torus_points(kernel, choice))))
    best = min(peaks)
    torus = [list(pair) for pair in choices[peaks.index(best)]]
    for (n, _), size, taps in zip(torus, exact, kernel.shape[3:], strict=True):
        best /= 1.0 if n >= size else math.cos(math.pi * (taps - 1) / 2 / n)
    limit = (best * (1 + (2.0**-16 if wide else 1e-7))).hex()
    yield Stage("gain", list(piece)[-1], {"chain": list(piece), "torus": torus, "limit": limit}, wide)


def _peaks(kernel: Array, grid: Array) -> Iterator[float]:
    for start in range(0, len(grid), 256):
        look()
        values = gains.symbol_at(kernel, grid[start : start + 256])
        yield float(np.linalg.norm(values, 2, (-2, -1)).max())


def _implicit(of: int, step: Implicit) -> Iterator[Stage]:
    """The candidates that a contraction and diagonal multipliers give, the smaller gain first.

    Both are inequalities with a multiplier K for changes of z (`ops.implicit.monotone`); the checker's go backwards through the
    layer, with D = rho / (s^2 K): the two Schur complements differ by K on both sides.
    """
    w, u, s = step.recurrent, step.inputs, float(everywhere(step)[1].max())
    candidates = []
    shrink = s * float(np.linalg.norm(w, 2))
    if shrink < 1:
        rho = (s * float(np.linalg.norm(u, 2)) / (1 - shrink)) ** 2
        candidates.append((rho, np.full(len(w), 1 / (1 - shrink))))
    found = implicit.multipliers(torch.from_numpy(w.copy()), torch.from_numpy(u.copy()), s)
    if found is not None:
        candidates.append((found[0], found[1].numpy()))
    for rho, k in sorted(candidates, key=lambda pair: pair[0]):
        gain = math.sqrt(rho) * (1 + ROOM / 10)
        fields = {"of": of, "multipliers": gain**2 / (s * s * k), "limit": gain.hex()}
        yield Stage("implicit", of, fields)


def implicit_layers(subject: Subject, start: int, end: int) -> list[int]:
    """The implicit layers between two steps: without a gain of their own there is no product."""
    steps = subject.program.steps
    return [k for k in behind(steps, end, start) if k > start and isinstance(steps[k], Implicit)]
