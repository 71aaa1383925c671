"""The matrix of LipSDP at every frequency, one block of channels eliminated after another.

Legend: A over blocks (input, neurons in order), A_00 = I, A_kk = 2 L_k, A_kj = -L_k H_kj(w) for j < k, L_k one multiplier a
channel. With y = V w the bound is upper^2 = lambda_max(V A^-1 V*), feasible when A > 0 at every frequency.
A block is eliminated when all that reads it is there. A strided reader stands at the coarser frequency; the aliases of that
frequency are independent of one another until then, so what a block adds to coarser ones is a sum over its aliases.

Frequencies of the coarsest torus are independent of one another until the end, so that a slab of them at a time is enough.

Layout: arrays over the frequencies of a torus that is f times as fine as the coarsest one (N points, half of them on the
first axis by conjugation) are [f, N // 2 + 1, f, n, ..., ...]: entry (a, h, b, k) is the frequency (a N + h, b N + c_k), c the
columns in hand.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lipverify.analyzers.lipsdp.frequencies.form import INPUT, Form, Kernel, Pair, Path
from lipverify.deadline import look
from lipverify.errors import UnsupportedModel


class Frequencies:
    """Symbols of a form at some frequencies, and the elimination for given multipliers.

    columns: numerators on the second axis of the coarsest torus, all of them where none are given. keep: whether symbols stay
    where they are wanted again; else they are made anew, which is cheap beside eliminating with them.
    """

    def __init__(self, form: Form, device: torch.device | None = None, single: bool = False,
                 columns: range | None = None, keep: bool = True) -> None:  # fmt: skip
        self.form, self.device, self.single, self.keep = form, device or torch.device("cpu"), single, keep
        self.real, self.complex = (
            (torch.float32, torch.complex64) if single else (torch.float64, torch.complex128)
        )
        coarsest, some = form.coarsest, next(iter(form.torus))
        points = form.points(some)
        self.count: Pair = points[0] * some[0] // coarsest[0], points[1] * some[1] // coarsest[1]
        self.half, self.columns = self.count[0] // 2 + 1, columns or range(self.count[1])
        self.fine = {s: (coarsest[0] // s[0], coarsest[1] // s[1]) for s in form.torus}
        """How much finer than the coarsest torus that of a scale is."""
        self.scales = [block.reads.scale for block in form.blocks]
        self.channels = [block.reads.channels for block in form.blocks]
        self.order = self._order()
        # The output stands behind all blocks, as one more that is never eliminated.
        self.out = len(self.scales)
        self.scales.append(form.last.scale)
        self.channels.append(form.last.channels if form.rows is None else len(form.rows))
        self._symbols: dict[tuple[int, int], Tensor] = {}
        self._seen: dict[tuple[int, int], Tensor] = {}
        self._spectrum: Tensor | None = None

    def slabs(self, count: int) -> list[Frequencies]:
        """These frequencies in about so many parts, of whole columns."""
        n = len(self.columns)
        if count <= 1 or n == 1:
            return [self]
        width = -(-n // min(count, n))
        return [Frequencies(self.form, self.device, self.single, self.columns[k : k + width], False)
                for k in range(0, n, width)]  # fmt: skip

    def between(self, k: int, j: int) -> Tensor:
        """The symbol H_kj, of block k (`out`: the last value) over block j, at the frequencies of j."""
        if (k, j) in self._symbols:
            return self._symbols[k, j]
        reads = self.form.last if k == self.out else self.form.blocks[k].reads
        found = self.symbol(reads.parts[j], j, reads.scale)
        if self.keep:
            self._symbols[k, j] = found
        return found

    def weights(self) -> Tensor:
        """How often each frequency of the half torus counts in a sum over all: [half]."""
        w = torch.full((self.half,), 2.0, dtype=self.real, device=self.device)
        w[0] = 1.0
        if self.count[0] % 2 == 0:
            w[-1] = 1.0
        return w

    # -- symbols

    def frequencies(self, scale: Pair, axis: int) -> tuple[Tensor, int]:
        """Numerators over the torus of a scale, in layout, and its points: [f, half] or [f, n]."""
        f, n = self.fine[scale][axis], self.count[axis]
        kept = range(self.half) if axis == 0 else self.columns
        return torch.arange(f)[:, None] * n + torch.arange(kept.start, kept.stop)[None], f * n

    def phases(self, kernel: Kernel, scale: Pair, axis: int) -> Tensor:
        """exp(2 pi i w (dilation k - before)) at the frequencies of a scale: [f, kept, taps]. Turns are reduced as integers."""
        numerators, points = self.frequencies(scale, axis)
        shifts = kernel.dilation[axis] * torch.arange(kernel.weight.shape[2 + axis]) - kernel.before[axis]
        turns = torch.remainder(numerators[..., None] * shifts, points).double() / points
        return torch.polar(torch.ones_like(turns), 2.0 * math.pi * turns).to(self.device)

    def layout(self, scale: Pair) -> tuple[int, int, int, int]:
        """The first four axes of arrays over the frequencies of a scale."""
        f = self.fine[scale]
        return f[0], self.half, f[1], len(self.columns)

    def symbol(self, paths: Sequence[Path], source: int, target: Pair) -> Tensor:
        """The sum over paths at the frequencies of the source, [f, half, f, N, out, in], over the root of all strides."""
        eye = torch.eye(self.channels[source], dtype=self.complex, device=self.device)
        begin = self.scales[source]
        total: Tensor | None = None
        for path in paths:
            product, scale = eye.expand(*self.layout(begin), -1, -1), begin
            for kernel in path:
                one = self._kernel(kernel, scale, begin)
                product = one if scale == begin and kernel is path[0] else one @ product
                scale = scale[0] * kernel.stride[0], scale[1] * kernel.stride[1]
            total = product if total is None else total + product
        assert total is not None
        return total / math.sqrt((target[0] // begin[0]) * (target[1] // begin[1]))

    def _kernel(self, kernel: Kernel, scale: Pair, source: Pair) -> Tensor:
        """A kernel's symbol, read at the finer frequencies of a source."""
        rows, columns = self.phases(kernel, scale, 0), self.phases(kernel, scale, 1)
        weight = kernel.weight.to(self.device, self.complex)
        found = torch.einsum("ahk,bnl,oikl->ahbnoi", rows.to(self.complex), columns.to(self.complex), weight)
        # Frequency a N + h of the source is frequency (a mod g) N + h of the coarser torus.
        return self.repeated(found, scale, source)

    # -- the order of elimination

    def _order(self) -> list[tuple[str, int]]:
        """("add", k) and ("eliminate", k): a block goes when its readers are there and nothing finer is left."""
        count = len(self.scales)
        readers = {j: [k for k in range(count) if j in self.form.blocks[k].reads.parts] for j in range(count)}
        order: list[tuple[str, int]] = []
        live: list[int] = []
        for k in range(count):
            order.append(("add", k))
            live.append(k)
            while (j := self._next(live, readers, k)) is not None:
                order.append(("eliminate", j))
                live.remove(j)
        return order

    def _next(self, live: list[int], readers: Mapping[int, list[int]], now: int) -> int | None:
        finest = max((self.fine[self.scales[j]] for j in live), default=(1, 1))
        for j in live:
            done = j not in self.form.last.parts and all(k <= now for k in readers[j])
            if done and self.fine[self.scales[j]] == finest:
                return j
        return None

    # -- elimination

    @property
    def spectrum(self) -> Tensor:
        """The rows of the run behind the last value over unitary coefficients, at the last value's frequencies.

        [f, half, f, N, m, c]. Two products with phases, so that roundings are those of ordinary sums.
        """
        if self._spectrum is not None:
            return self._spectrum
        form = self.form
        assert form.rows is not None
        n, c, scale = form.last.size, form.last.channels, form.last.scale
        rows = form.rows.reshape(-1, c, *n).to(self.device, self.complex)
        phases = []
        for axis in (0, 1):
            kernel = Kernel(
                torch.zeros(1, 1, n[0] if axis == 0 else 1, n[1] if axis else 1), (1, 1), (1, 1), (0, 0)
            )
            phases.append(self.phases(kernel, scale, axis).to(self.complex))
        found = torch.einsum("mcxy,ahx->mcyah", rows, phases[0])
        found = torch.einsum("mcyah,bny->ahbnmc", found, phases[1])
        found = found / math.sqrt(math.prod(form.points(scale)))
        self._spectrum = found if self.keep else None
        return found

    def finer(self, i: int, k: int) -> Pair:
        """How fine the finer of two tori is.

        Raises:
            UnsupportedModel: neither is finer along both axes.
        """
        a, b = self.fine[self.scales[i]], self.fine[self.scales[k]]
        both = max(a[0], b[0]), max(a[1], b[1])
        if both not in (a, b):
            raise UnsupportedModel(
                "blocks of which neither is finer along both axes have no form over frequencies"
            )
        return both

    def seen(self, i: int, k: int) -> Tensor:
        """H_i0 H_k0*, summed over aliases, at the finer frequencies of both."""
        if (i, k) not in self._seen:
            finer = self.finer(i, k)
            product = self.between(i, INPUT) @ self.between(k, INPUT).mH
            found = folded(product, self.fine[self.scales[INPUT]], finer)
            if not self.keep:
                return found
            self._seen[i, k] = found
        return self._seen[i, k]

    def reading(self, j: int) -> Tensor:
        """The output over block j at the frequencies of j: [f, half, f, N, outputs, channels]."""
        symbol = self.between(self.out, j)
        if self.form.rows is None:
            return symbol
        return self.repeated(self.spectrum, self.form.last.scale, self.scales[j]) @ symbol

    def repeated(self, values: Tensor, scale: Pair, at: Pair) -> Tensor:
        """Values over the frequencies of one scale, read at those of a finer one."""
        times = [f // g for f, g in zip(self.fine[at], self.fine[scale], strict=True)]
        return values.repeat(times[0], 1, times[1], 1, 1, 1) if max(times) > 1 else values


class Reduced:
    """A over the blocks that are live, each pair at the frequencies of the finer one."""

    def __init__(
        self, frequencies: Frequencies, matrix: dict[tuple[int, int], Tensor], live: list[int]
    ) -> None:
        self.of, self.matrix, self.live = frequencies, matrix, live
        self.given: dict[int, Tensor] = {}
        self.untouched = True
        """Whether A_00 is still I."""
        self.outside: Tensor | None = None
        """What roundings may add to the diagonal at the output, [f, half, f, N, m]."""

    def copy(self) -> Reduced:
        """One that can go on without changing this one."""
        other = Reduced(self.of, dict(self.matrix), list(self.live))
        other.given, other.untouched = dict(self.given), self.untouched
        return other

    def add(self, k: int, multipliers: Tensor | None, arithmetic: Arithmetic) -> None:
        """One more block of neurons, or the input."""
        of = self.of
        if multipliers is not None:
            multipliers = multipliers.to(of.device, of.real)
        ones = torch.ones(of.channels[k], dtype=of.real, device=of.device)
        diagonal = torch.diag_embed(ones if multipliers is None else 2.0 * multipliers).to(of.complex)
        layout = of.layout(of.scales[k])
        self.matrix[k, k] = diagonal.expand(*layout, -1, -1)
        self.live.append(k)
        if multipliers is not None:
            self.given[k] = multipliers
        for j in of.form.blocks[k].reads.parts:
            assert multipliers is not None
            known = j == INPUT and self.untouched and arithmetic.plain and INPUT in self.live
            self.matrix[k, j] = of.between(k, j) if known else arithmetic.coupled(self, k, j, multipliers)

    def eliminate(self, j: int, arithmetic: Arithmetic) -> bool:
        """Whether block j could be eliminated: its own block is positive definite."""
        self.live.remove(j)
        readers = [i for i in self.live if (i, j) in self.matrix or (j, i) in self.matrix]
        if INPUT in readers and self.untouched and arithmetic.plain:
            self._filled(arithmetic)
        a = self.matrix.pop((j, j))
        if not readers:
            return True
        if j == INPUT and self.untouched and arithmetic.plain:
            # What stands there are symbols alone. Products of symbols that no multiplier changes.
            for x, i in enumerate(readers):
                for k in readers[: x + 1]:
                    seen = self.given[i][:, None] * self.of.seen(i, k) * self.given[k]
                    old = self.matrix.get((i, k))
                    self.matrix[i, k] = -seen if old is None else old - seen
            for i in readers:
                del self.matrix[i, INPUT]
            return True
        columns = [
            self.matrix.pop((i, j)).mH if (i, j) in self.matrix else self.matrix.pop((j, i)) for i in readers
        ]
        gram = arithmetic.eliminated(a, torch.cat(columns, -1))
        if gram is None:
            return False
        self.untouched = self.untouched and INPUT not in readers
        ends = list(itertools.accumulate((self.of.channels[i] for i in readers), initial=0))
        fine = self.of.fine
        for x, i in enumerate(readers):
            for y, k in enumerate(readers[: x + 1]):
                part = gram[..., ends[x] : ends[x + 1], ends[y] : ends[y + 1]]
                finer = self.of.finer(i, k)
                arithmetic.subtract(self, i, k, part, fine[self.of.scales[j]], finer)
        return True

    def _filled(self, arithmetic: Arithmetic) -> None:
        """Multipliers beside the symbols of the input, which is not the next to go."""
        for i, multipliers in self.given.items():
            if (i, INPUT) in self.matrix:
                self.matrix[i, INPUT] = arithmetic.coupled(self, i, INPUT, multipliers)
        self.untouched = False

    def read_out(self, arithmetic: Arithmetic) -> Tensor | None:
        """V A^-1 V*: summed over frequencies [m, m] where there are rows, else at those of the output, [f, half, f, N, c, c].

        None where A is not positive definite.
        """
        of, fine = self.of, self.of.fine
        if INPUT in self.live and self.untouched and arithmetic.plain:
            self._filled(arithmetic)
        for j in self.live:
            self.matrix[of.out, j] = arithmetic.read(self, j)
        self.live.append(of.out)
        while len({of.scales[j] for j in self.live[:-1]}) > 1 or (
            of.form.rows is None and len(self.live) > 1
        ):
            finest = max(self.live[:-1], key=lambda j: fine[of.scales[j]])
            if not self.eliminate(finest, arithmetic):
                return None
        known = self.matrix.get((of.out, of.out))
        if of.form.rows is None:
            assert known is not None
            return (
                -known + torch.diag_embed(self.outside).to(known.dtype)
                if self.outside is not None
                else -known
            )
        blocks = self.live[:-1]
        rows = [torch.cat([self._entry(i, k) for k in blocks], -1) for i in blocks]
        reading = torch.cat([self.matrix[of.out, k] for k in blocks], -1)
        found = arithmetic.total(torch.cat(rows, -2), reading, of.weights())
        return None if found is None else arithmetic.summed(self, found, known)

    def _entry(self, i: int, k: int) -> Tensor:
        if (i, k) in self.matrix:
            return self.matrix[i, k]
        if (k, i) in self.matrix:
            return self.matrix[k, i].mH
        some = self.matrix[i, i]
        return some.new_zeros(*some.shape[:-1], self.of.channels[k])


Choose = Callable[[int, Sequence[Reduced]], Tensor]


def reduced(slabs: Sequence[Frequencies], choose: Choose, arithmetic: Arithmetic) -> list[Reduced] | None:
    """What is left of A for the blocks that the last value reads, in each slab; None where A is not positive definite.

    choose: the multipliers [channels] of a block of neurons, when everything before it is there in all slabs.
    """
    states = [Reduced(each, {}, []) for each in slabs]
    for what, k in slabs[0].order:
        look()
        if what == "add":
            multipliers = None if k == INPUT else choose(k, states)
            for state in states:
                state.add(k, multipliers, arithmetic)
        elif not all(state.eliminate(k, arithmetic) for state in states):
            return None
    return states


class Arithmetic(Protocol):
    """How the entries of A are computed: in floating point, or from below with every rounding accounted for."""

    plain: bool

    def coupled(self, state: Reduced, k: int, j: int, multipliers: Tensor) -> Tensor:
        """-L_k H_kj."""
        ...

    def read(self, state: Reduced, j: int) -> Tensor:
        """The output over block j: rows and symbol, at the frequencies of j."""
        ...

    def eliminated(self, a: Tensor, b: Tensor) -> Tensor | None:
        """b* a^-1 b for a [..., n, n] Hermitian, b [..., n, k]; None where a is not positive definite."""
        ...

    def subtract(self, state: Reduced, i: int, k: int, part: Tensor, have: Pair, want: Pair) -> None:
        """A_ik less the sum of `part` over aliases."""
        ...

    def total(self, a: Tensor, rows: Tensor, weights: Tensor) -> Tensor | None:
        """The real part of rows a^-1 rows*, summed over frequencies, of which each counts as `weights` [half] say: [m, m]."""
        ...

    def summed(self, state: Reduced, total: Tensor, known: Tensor | None) -> Tensor:
        """The total, and what blocks of finer scales have given before: A at the output."""
        ...


class Plain:
    """In floating point, for searches."""

    plain = True

    def coupled(self, state: Reduced, k: int, j: int, multipliers: Tensor) -> Tensor:
        return -multipliers[:, None] * state.of.between(k, j)

    def read(self, state: Reduced, j: int) -> Tensor:
        return state.of.reading(j)

    def summed(self, state: Reduced, total: Tensor, known: Tensor | None) -> Tensor:
        if known is None:
            return total
        return total - (known.real * state.of.weights()[:, None, None, None, None]).sum((0, 1, 2, 3))

    def eliminated(self, a: Tensor, b: Tensor) -> Tensor | None:
        factor, failed = torch.linalg.cholesky_ex(a)
        if bool(failed.any()):
            return None
        half = torch.linalg.solve_triangular(factor, b, upper=False)
        gram: Tensor = half.mH @ half
        return gram

    def subtract(self, state: Reduced, i: int, k: int, part: Tensor, have: Pair, want: Pair) -> None:
        part, old = folded(part, have, want), state.matrix.get((i, k))
        state.matrix[i, k] = -part if old is None else old - part

    def total(self, a: Tensor, rows: Tensor, weights: Tensor) -> Tensor | None:
        factor, failed = torch.linalg.cholesky_ex(a)
        if bool(failed.any()):
            return None
        half = (
            torch.linalg.solve_triangular(factor, rows.mH, upper=False)
            * weights.sqrt()[:, None, None, None, None]
        )
        # One real product over all frequencies: Re(z* w) = Re z Re w + Im z Im w.
        flat = torch.view_as_real(half).movedim(-1, -2).reshape(-1, half.shape[-1])
        return flat.T @ flat


def folded(values: Tensor, have: Pair, want: Pair) -> Tensor:
    """Sums over the aliases of coarser frequencies: from a torus `have` times finer than the coarsest to one `want` times
    finer.
    """
    if have == want:
        return values
    s = have[0] // want[0], have[1] // want[1]
    _, half, _, n, *rest = values.shape
    # Alias a of the fine torus is alias a mod g of the coarser one.
    return values.reshape(s[0], want[0], half, s[1], want[1], n, *rest).sum((0, 3))
