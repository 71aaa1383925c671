"""The search for multipliers over frequencies: a closed form to begin with, then quasi-Newton steps on their logarithms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lipverify.analyzers.lipsdp.frequencies.elimination import Frequencies, Plain, Reduced, reduced
from lipverify.analyzers.lipsdp.system import BlockSystem
from lipverify.analyzers.protocol import Compute, Interruption, keeping_best


@dataclass(frozen=True)
class Multipliers:
    """One for every channel of the blocks over positions, one for every neuron of the dense part; all positive."""

    channels: tuple[Tensor, ...]
    neurons: tuple[Tensor, ...] = ()

    @property
    def all(self) -> tuple[Tensor, ...]:
        """In one row."""
        return (*self.channels, *self.neurons)


def squares(slabs: Sequence[Frequencies], multipliers: Multipliers) -> Tensor | None:
    """Eigenvalues whose largest is the squared bound; None where the multipliers are infeasible.

    Of several slabs only what is left is kept: gradients eliminate each of them again.
    """
    grams: list[Tensor] = []
    for slab in slabs:
        again = len(slabs) > 1 and any(m.requires_grad for m in multipliers.channels)
        one: Tensor | None = (
            checkpoint(_gram, slab, *multipliers.channels, use_reentrant=False)
            if again
            else _gram(slab, *multipliers.channels)
        )
        if one is None:
            return None
        grams.append(one)
    return _squares(slabs, grams, multipliers.neurons)


def _squares(slabs: Sequence[Frequencies], grams: list[Tensor], neurons: Sequence[Tensor]) -> Tensor | None:
    """As `squares`, from V A^-1 V* of each slab."""
    form = slabs[0].form
    gram: Tensor | None = torch.cat(grams, 3) if form.rows is None else sum(grams[1:], grams[0])
    assert gram is not None
    if form.dense is not None:
        # Small, and one number after another: on the CPU, where the dense part is.
        gram = behind(form.dense, gram.double().cpu(), neurons)
    if gram is None:
        return None
    found: Tensor = torch.linalg.eigvalsh((gram + gram.mH) / 2).flatten()
    return found


def _gram(slab: Frequencies, *channels: Tensor) -> Tensor | None:
    """V A^-1 V* of the frequencies of a slab."""
    states = reduced([slab], lambda k, _: channels[k - 1], Plain())
    return None if states is None else states[0].read_out(Plain())


def behind(system: BlockSystem, k: Tensor, neurons: Sequence[Tensor]) -> Tensor | None:
    """V A^-1 V' of the outputs of the dense part, whose inputs have the covariance k: [outputs, outputs]."""
    matrix, reading, free = dense_matrix(system, k, neurons)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed):
        return None
    half = torch.linalg.solve_triangular(factor, reading.T, upper=False)
    found: Tensor = free + half.T @ half
    return found


def dense_parts(
    system: BlockSystem, k: Tensor, neurons: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """D U, V0, D C, V and D of the dense part with all its blocks together."""
    ends = list(itertools.accumulate(system.sizes, initial=0))
    inputs, couplings = k.new_zeros(ends[-1], system.inputs), k.new_zeros(ends[-1], ends[-1])
    outputs = k.new_zeros(system.outputs, ends[-1])
    for i, part in system.U.items():
        inputs[ends[i] : ends[i + 1]] = part
    for (i, j), part in system.C.items():
        couplings[ends[i] : ends[i + 1], ends[j] : ends[j + 1]] = part
    for i, part in system.V.items():
        outputs[:, ends[i] : ends[i + 1]] = part
    first = k.new_zeros(system.outputs, system.inputs) if system.V0 is None else system.V0
    d = torch.cat(list(neurons)) if len(neurons) else k.new_zeros(0)
    return d[:, None] * inputs, first, d[:, None] * couplings, outputs, d


def dense_matrix(system: BlockSystem, k: Tensor, neurons: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """A over the neurons of the dense part after its inputs, the outputs over it, and what the inputs give them alone."""
    driven, first, scaled, outputs, d = dense_parts(system, k, neurons)
    matrix = torch.diag(2.0 * d) - scaled - scaled.T - driven @ k @ driven.T
    return (matrix + matrix.T) / 2, outputs + first @ k @ driven.T, first @ k @ first.T


def closed_form(
    slabs: Sequence[Frequencies], told: Callable[[float], None] | None = None
) -> Multipliers | None:
    """One number for each block, 1 / the largest eigenvalue of what its neurons read: feasible, and cheap.

    told: the bound that they give, before it is proved.

    Source: Xu, Sivaranjani, NeurIPS 2024 (arXiv 2404.04375), ECLipsE-Fast, at every frequency.
    """
    channels: list[Tensor] = []

    def choose(k: int, states: Sequence[Reduced]) -> Tensor:
        ones = torch.ones(states[0].of.channels[k], dtype=states[0].of.real, device=states[0].of.device)
        largest = max(_seen_by(k, state, ones) for state in states)
        channels.append((ones / largest if largest > 0 else ones).double().cpu())
        return channels[-1]

    states = reduced(slabs, choose, Plain())
    read = [state.read_out(Plain()) for state in states or []]
    grams = [gram for gram in read if gram is not None]
    if not grams or len(grams) < len(read):
        return None
    system, neurons = slabs[0].form.dense, list[Tensor]()
    if system is not None:
        gram = sum(each.double().cpu() for each in grams)
        assert isinstance(gram, Tensor)
        for i, n in enumerate(system.sizes):
            # What block i reads, through everything before it.
            part = BlockSystem(system.inputs, n, system.sizes[:i], {j: m for j, m in system.U.items() if j < i},
                               {key: m for key, m in system.C.items() if key[0] < i},
                               {j: m for (t, j), m in system.C.items() if t == i}, system.U.get(i), system.names[:i])  # fmt: skip
            seen = behind(part, gram, neurons)
            if seen is None:
                return None
            largest = float(torch.linalg.eigvalsh(seen)[-1])
            neurons.append(torch.full((n,), 1.0 / largest if largest > 0 else 1.0, dtype=torch.float64))
    if told is not None and (found := _squares(slabs, grams, neurons)) is not None:
        told(float(found.max().clamp_min(0.0).sqrt()))
    return Multipliers(tuple(channels), tuple(neurons))


def _seen_by(k: int, state: Reduced, ones: Tensor) -> float:
    """About the largest eigenvalue of what the neurons of block k read, in one slab."""
    trial = state.copy()
    trial.add(k, ones, Plain())
    trial.matrix[k, k] = torch.zeros_like(trial.matrix[k, k])
    for j in sorted(state.live, key=lambda j: state.of.fine[state.of.scales[j]], reverse=True):
        if not trial.eliminate(j, Plain()):
            break
    return _largest(-trial.matrix[k, k])


_SIDE = 48
"""Blocks larger than this get their largest eigenvalue by a power method: a multiplier need not be exact."""


def _largest(seen: Tensor) -> float:
    """About the largest eigenvalue of Hermitian matrices [..., n, n], rather above than below."""
    n = seen.shape[-1]
    if n <= _SIDE:
        return float(torch.linalg.eigvalsh((seen + seen.mH) / 2).max())
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(n, 2, generator=generator, dtype=torch.float64).to(seen.device, seen.dtype)
    v = start.expand(*seen.shape[:-1], 2)
    size = torch.ones(1)
    for _ in range(12):
        v = seen @ v
        size = torch.linalg.vector_norm(v, dim=-2, keepdim=True)
        v = v / size.clamp_min(1e-30)
    return 1.02 * float(size.max())


@dataclass
class Search:
    """Steps of L-BFGS on the logarithms of all multipliers; the objective is a smooth maximum of the logarithms of eigenvalues.

    Source of the steps: Nocedal, Wright, Numerical Optimization, algorithm 7.4, with backtracking; infeasible steps are halved.
    """

    slabs: Sequence[Frequencies]
    compute: Compute
    evaluations: int = 1000
    """Of the objective with its gradient, at most."""
    history: int = 20
    sharpness: tuple[float, ...] = (3.0, 30.0, 300.0)
    steps: int = 60
    """For each sharpness."""
    resolution: float = 1e-4
    """Relative gain of ten steps below which the search goes on to the next sharpness."""

    def run(self, first: Multipliers) -> tuple[Multipliers, Interruption]:
        """The best multipliers found by the deadline; never worse than the first."""
        self._left = self.evaluations
        self._shapes = [len(m) for m in first.all]
        self._count = len(first.channels)
        self._best: tuple[float, Tensor] = (math.inf, torch.cat([m.log() for m in first.all]))
        with keeping_best(until=self.compute.deadline) as interruption:
            theta = self._best[1]
            for beta in self.sharpness:
                theta = self._descend(theta, beta)
                if self._over():
                    break
        return self._split(self._best[1].exp()), interruption

    def _over(self) -> bool:
        return self._left <= 0 or self.compute.expired()

    def _split(self, values: Tensor) -> Multipliers:
        parts = values.split(self._shapes)
        return Multipliers(tuple(parts[: self._count]), tuple(parts[self._count :]))

    def _value(self, theta: Tensor, beta: float) -> tuple[float, Tensor] | None:
        self._left -= 1
        theta = theta.detach().requires_grad_(True)
        found = squares(self.slabs, self._split(theta.exp()))
        if found is None:
            return None
        logs = found.double().clamp_min(1e-300).log()
        objective = torch.logsumexp(beta * logs, 0) / beta
        (gradient,) = torch.autograd.grad(objective, theta)
        bound = float(logs.detach().max())
        if bound < self._best[0]:
            self._best = bound, theta.detach()
            self.compute.report("lipsdp over frequencies", math.exp(bound / 2))
        if not bool(torch.isfinite(gradient).all()):
            return None
        return float(objective.detach()), gradient

    def _descend(self, theta: Tensor, beta: float) -> Tensor:
        known = None if self._over() else self._value(theta, beta)
        if known is None:
            return theta
        value, gradient = known
        pairs: list[tuple[Tensor, Tensor]] = []
        values = [value]
        for _ in range(self.steps):
            direction = -_two_loops(gradient, pairs)
            step = 1.0 if pairs else min(1.0, 1.0 / float(gradient.abs().sum()))
            slope = float(direction @ gradient)
            if slope >= 0:
                break
            for _ in range(20):
                if self._over():
                    return theta
                tried = self._value(theta + step * direction, beta)
                if tried is not None and tried[0] <= value + 1e-4 * step * slope:
                    break
                step /= 2.0 if tried is not None else 4.0
            else:
                break
            s, y = step * direction, tried[1] - gradient
            if float(s @ y) > 1e-12 * float(y @ y):
                pairs = [*pairs[-self.history + 1 :], (s, y)]
            theta, (value, gradient) = theta + s, tried
            values.append(value)
            if len(values) > 10 and values[-11] - value < 2.0 * self.resolution:
                break
        return theta


def _two_loops(gradient: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The inverse Hessian of the last steps times the gradient."""
    q, factors = gradient.clone(), []
    for s, y in reversed(pairs):
        a = float(s @ q) / float(s @ y)
        factors.append(a)
        q = q - a * y
    if pairs:
        s, y = pairs[-1]
        q = q * (float(s @ y) / float(y @ y))
    for (s, y), a in zip(pairs, reversed(factors), strict=True):
        q = q + (a - float(y @ q) / float(s @ y)) * s
    return q
