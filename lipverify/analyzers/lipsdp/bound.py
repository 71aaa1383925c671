"""The number that is shown: a certified Lipschitz bound from multipliers alone, every rounding accounted for.

Nothing of the search is trusted. The Cholesky factor and the half-solved border are candidates; what is proved about them
is a residual with its error bound, under the assumptions of `lipverify.linalg`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lipverify.analyzers.lipsdp.factor import Factor, Pencil
from lipverify.analyzers.lipsdp.ordering import sparse_order
from lipverify.analyzers.lipsdp.reduction import live_neurons, restricted, scaled, times_power
from lipverify.analyzers.lipsdp.system import Couplings
from lipverify.deadline import look
from lipverify.errors import InternalError
from lipverify.linalg.dense import operator_norm_upper, spectral_residual_bound
from lipverify.linalg.dense import scaled as scaled_matrix
from lipverify.linalg.rounding import Upper, gamma, inflate

# Absorbs every underflow: entries are near 1 after scaling, and scalings of more than 2^250 are refused.
_UNDERFLOW = 2.0**-400
_WIDEST = 2.0**250


def certified_upper(
    system: Couplings, multipliers: Sequence[Tensor], exponents: Sequence[int] | None = None
) -> Upper | None:
    """A certified l2 bound of the network from the diagonal D, or None where A(D) > 0 cannot be proved.

    Statement: |y(x) - y(x')|_2 <= bound |x - x'|_2 for all x, x' and all activations with slopes in [0, 1].
    Source: LipSDP-Neuron (Fazlyab et al., NeurIPS 2019) in reverse mode. For an output direction g put b = V'g + C'c with
        c_i = slope_i b_i, so that J'g = V0'g + U'c and c_i (b_i - c_i) >= 0. Then for D >= 0

            |J'g|^2 <= |V0'g + U'c|^2 + 2 sum_i D_i c_i (b_i - c_i) = |V0'g|^2 + 2 c'Bg - c'Ac,

        A = 2D - DC' - CD - UU', B = DV' + UV0'. Let L be any lower triangular and y any matrix, E = A - LL' - diag(t) and
        F = B' - yL'. If t_i >= sum_j |E_ij| + sum_g |F_gi| for all i, then by diagonal dominance
        |V0'g|^2 + 2 c'Bg - c'Ac <= (|(V0, y)|^2 + max_g sum_i |F_gi|) |g|^2: the right-hand side is the square of the bound.
        E and F are computed with their error (Higham, section 3.5; the magnitudes |L||L|' as products with a vector).
        Where C has loops (implicit layers), A > 0 also proves that I - C Delta is invertible for all 0 <= Delta <= I:
        c = Delta C'c gives c'Ac = -2 sum_i D_i c_i (b_i - c_i) - |U'c|^2 <= 0 with b = C'c, hence c = 0.
    Sound when: the assumptions of `lipverify.linalg` hold.

    Args:
        multipliers: one float64 vector per block; entries of neurons that no input reaches, or that reach no output,
            are not looked at. All others must be positive.
        exponents: the multipliers are values 4^exponent, 0 by default.
    """
    live = live_neurons(system)
    powers = [0] * len(live) if exponents is None else list(exponents)
    values = [d[chosen] for d, chosen in zip(multipliers, live, strict=True) if len(chosen)]
    powers = [e for e, chosen in zip(powers, live, strict=True) if len(chosen)]
    small = restricted(system, live)
    if not small.sizes:
        return Upper.zero() if system.V0 is None else operator_norm_upper(system.V0, "l2", "l2")
    prepared = _prepared(small, values, powers)
    if prepared is None:
        return None
    proved = _prove(prepared.system, prepared.d, weighted=False)
    return None if proved is None else proved.scale(prepared.output_exponent)


def certified_weighted(
    system: Couplings, multipliers: Sequence[Tensor], exponents: Sequence[int]
) -> Upper | None:
    """As `certified_upper` for a system whose block 0 is its input, D_0 the squares of the input scales (see `linf`).

    Statement: |J diag(D_0)^(1/2)|_2 <= bound for every admissible Jacobian J.
    Source: |t|^2 in the norm of D_0 is the maximum of 2 e'D_0 t - e'D_0 e over e; with e as block 0 of c and U as its
        couplings, A gets the diagonal block D_0 and the rest of the argument is that of `certified_upper`.
    Sound when: as there; every multiplier is positive.
    """
    prepared = _prepared(system, list(multipliers), list(exponents))
    if prepared is None:
        return None
    proved = _prove(prepared.system, prepared.d, weighted=True)
    return None if proved is None else proved.scale(prepared.output_exponent)


def certified_functionals(
    system: Couplings,
    multipliers: Sequence[Tensor],
    exponents: Sequence[int],
    functionals: Tensor,
) -> list[Upper] | None:
    """A certified bound for each functional of the outputs (rows of `functionals` [m, outputs]) from one and the same D.

    Statement, Source, Sound when: `certified_upper`, whose inequality holds for every output direction g: the square of the
        bound of g is |(V0, y)'g|^2 + max_g' sum_i |F_g'i| |g|^2.
    """
    live = live_neurons(system)
    values = [d[chosen] for d, chosen in zip(multipliers, live, strict=True) if len(chosen)]
    powers = [e for e, chosen in zip(exponents, live, strict=True) if len(chosen)]
    small = restricted(system, live)
    if not small.sizes:
        direct = small.V0 if small.V0 is not None else functionals.new_zeros(small.outputs, small.inputs)
        return [_length(row, direct) for row in functionals]
    return _functionals(_prepared(small, values, powers), functionals, weighted=False)


def certified_weighted_functionals(
    system: Couplings, multipliers: Sequence[Tensor], exponents: Sequence[int], functionals: Tensor
) -> list[Upper] | None:
    """As `certified_functionals` for a system whose block 0 is its input: see `certified_weighted`."""
    return _functionals(_prepared(system, list(multipliers), list(exponents)), functionals, weighted=True)


def _functionals(prepared: _Prepared | None, functionals: Tensor, weighted: bool) -> list[Upper] | None:
    found = None if prepared is None else _evidence(prepared.system, prepared.d, weighted)
    if prepared is None or found is None:
        return None
    squares = [Upper.root_sum_squares(row.abs().tolist()) for row in functionals]
    return [
        _length(row, found.border).hypot(size * found.defect.sqrt()).scale(prepared.output_exponent)
        for row, size in zip(functionals, squares, strict=True)
    ]


def _length(row: Tensor, matrix: Tensor) -> Upper:
    """|row @ matrix|_2, rounding included: gamma times |row| |matrix| for the product, the sum of squares exactly."""
    error = 2.0 * gamma(len(row) + 4) * (row.abs() @ matrix.abs())
    return Upper.root_sum_squares(inflate((row @ matrix).abs() + error, 0.0).tolist())


class _Prepared(NamedTuple):
    """The same system with multipliers in [1/2, 2), outputs in units of 2^output_exponent."""

    system: Couplings
    d: Tensor
    output_exponent: int


def _prepared(system: Couplings, values: list[Tensor], powers: list[int]) -> _Prepared | None:
    """Measures every neuron in its own power of two, exactly."""
    d = torch.cat(values)
    if not bool(((d > 0) & torch.isfinite(d)).all()):
        return None
    units: list[Tensor] = []
    exponents: list[int] = []
    for value, power in zip(values, powers, strict=True):
        mantissa, exponent = torch.frexp(value)
        even = torch.div(exponent, 2, rounding_mode="floor")
        middle = int(even.median())
        exponents.append(middle + power)
        # value / mantissa is the power of two 2^exponent; halved where odd, so that its root is exact too.
        whole = times_power(torch.where(exponent % 2 == 0, value, value / 2) / mantissa, -2 * middle)
        units.append(whole.sqrt())
    joined = torch.cat(units)
    if not bool((joined.amax() < _WIDEST) & (joined.amin() > 1.0 / _WIDEST)):
        return None
    output_exponent = max((exponents[k] for k in system.V), default=0)
    largest = _output_size(system, exponents)
    far = largest - output_exponent > _FAR
    system = scaled(system, exponents, largest if far else output_exponent)
    if far:
        # Squares of the outputs' entries would overflow in the neurons' unit; in their own nothing may be lost below.
        output_exponent, ends = largest, [*system.V.values(), *([] if system.V0 is None else [system.V0])]
        if any(bool(((m != 0) & (m.abs() < 2.0**-_LOST)).any()) for m in ends):
            return None
    system = replace(
        system,
        U={k: m / units[k][:, None] for k, m in system.U.items()},
        C={(k, j): m * units[j] / units[k][:, None] for (k, j), m in system.C.items()},
        V={k: m * units[k] for k, m in system.V.items()},
    )
    middles = torch.cat([torch.full_like(u, e - p) for u, e, p in zip(units, exponents, powers, strict=True)])
    return _Prepared(system, _mantissas(d, joined, middles), output_exponent)


def _output_size(system: Couplings, exponents: Sequence[int]) -> int:
    """The power of two next to the largest entry of what gives outputs, neurons in their own units."""
    sizes = [(float(m.abs().amax()), exponents[k]) for k, m in system.V.items() if m.numel()]
    if system.V0 is not None and system.V0.numel():
        sizes.append((float(system.V0.abs().amax()), 0))
    return max((math.frexp(size)[1] + e for size, e in sizes if 0.0 < size < math.inf), default=0)


_FAR, _LOST = 200, 1000
"""Powers of two: beyond the first outputs are measured in a unit of their own; below the second a scaling may not be exact."""


def _mantissas(d: Tensor, units: Tensor, middles: Tensor) -> Tensor:
    """d / (units 2^middles)^2, exact: two divisions, because 4^middle may be no float64."""
    power = torch.exp2(middles)
    return d / power / units / power / units


@dataclass(frozen=True)
class _Dominance:
    """What diagonal dominance has to cover."""

    neurons: Tensor
    """Upper bounds of sum_j |E_ij| + sum_g |F_gi|."""
    outputs: Tensor
    """Upper bounds of sum_i |F_gi|."""


class _Evidence(NamedTuple):
    """(V0, y) and a bound of max_g sum_i |F_gi| for a D whose A(D) > 0 was proved."""

    border: Tensor
    defect: Upper


def _prove(system: Couplings, d: Tensor, weighted: bool) -> Upper | None:
    found = _evidence(system, d, weighted)
    if found is None:
        return None
    norm = _norm(found.border)
    return (norm * norm + found.defect).sqrt()


def _evidence(system: Couplings, d: Tensor, weighted: bool) -> _Evidence | None:
    # The same statement with the neurons in an order that costs less.
    ordered = None if weighted else sparse_order(system)
    if ordered is not None:
        system, d = ordered[0], d[ordered[1]]
    pencil = Pencil(system, weighted)
    if not all(
        bool(torch.isfinite(t).all()) for t in (pencil.V, pencil.direct, pencil.Y0, *pencil.C.values())
    ):
        return None
    # Large enough for |L||L|' in nearly all cases (a second round costs as much again), small beside the margin of A.
    shift = 32.0 * _unit(system, pencil) * _magnitude(system, pencil, d)
    direct = [] if system.V0 is None else [system.V0]
    for _ in range(4):
        factor = pencil.eliminate(lambda j, _: d[pencil.part[j]], shift, known=d)
        if factor is None:
            return None
        border = factor.forward(pencil.border(d))
        if not bool(torch.isfinite(border).all()):
            return None
        stacked = torch.cat([*direct, border], 1)
        # Any unit serves; this one keeps the defect comparable to the margin. Squares of large entries would overflow.
        exponent = _exponent(stacked)
        need = _dominance(system, factor, border, shift, exponent)
        # Comparisons with NaN are false, so that a NaN never passes.
        if bool((shift >= need.neurons).all()) and bool(torch.isfinite(need.outputs).all()):
            defect = float(need.outputs.amax()) if len(need.outputs) else 0.0
            return _Evidence(stacked, Upper.of(defect).scale(2 * exponent))
        shift = torch.maximum(shift, 2.0 * need.neurons)
    return None


def _exponent(matrix: Tensor) -> int:
    """The power of two next to the Frobenius norm, as far as float64 has it and its inverse; 0 of an empty or infinite matrix."""
    largest = float(matrix.abs().amax()) if matrix.numel() else 0.0
    if not 0.0 < largest < math.inf:
        return 0
    power = math.frexp(largest)[1]
    size = float(torch.linalg.matrix_norm(times_power(matrix, -power)))
    return min(max(power + round(math.log2(size)), -1000), 1000)


def _norm(matrix: Tensor) -> Upper:
    """The certified l2 norm of a matrix with few rows."""
    problem = scaled_matrix(matrix)
    return Upper.of(float(spectral_residual_bound(problem.values.T))).scale(int(problem.exponent))


def _unit(system: Couplings, pencil: Pencil) -> float:
    """gamma of the longest inner product behind an entry of E or F: the stored entry, and one term per eliminated neuron."""
    rows = [*system.U.values()] + ([] if system.V0 is None else [system.V0])
    # Products with a zero factor are exact.
    widest = max((int((m != 0).sum(1).amax()) for m in rows if m.numel()), default=0)
    before = list(pencil.sizes)
    for j, touched in enumerate(pencil.later):
        for k in touched:
            before[k] += pencil.sizes[j]
    return gamma(max(before) + widest + 2 * len(pencil.sizes) + 16)


def _magnitude(system: Couplings, pencil: Pencil, d: Tensor) -> Tensor:
    """Row sums of |2D| + D|C|' + |C|D + |U||U|'."""
    result = 2.0 * d
    for (k, j), matrix in system.C.items():
        size = matrix.abs()
        here, there = pencil.part[k], pencil.part[j]
        result[here] += size @ d[there]
        result[there] += d[there] * size.sum(0)
    reach = pencil.zeros(system.inputs)
    for matrix in system.U.values():
        reach += matrix.abs().sum(0)
    for k, matrix in system.U.items():
        result[pencil.part[k]] += matrix.abs() @ reach
    return result


def _dominance(system: Couplings, factor: Factor, border: Tensor, shift: Tensor, exponent: int) -> _Dominance:
    """Certified row sums of |E| and |F|: the computed residuals plus gamma times the magnitudes they are made of."""
    pencil, d, unit = factor.pencil, factor.d, _unit(system, factor.pencil)
    scale = 2.0**-exponent
    border, outer = border * scale, pencil.border(d) * scale
    sums = _Sums(pencil, _magnitude(system, pencil, d) + shift, _border_magnitude(system, pencil, d, scale))
    residual = _Residual(pencil, d, shift)
    for j in range(len(pencil.sizes)):
        look()
        here, touched = pencil.part[j], pencil.later[j]
        z = factor.cross[j]
        # Rows of L in column j: L_jj and -Z.
        column = factor.chol[j] if z is None else torch.cat([factor.chol[j], -z])
        places = [here, *(pencil.part[k] for k in touched)]
        outer_part = border[:, here] @ column.T
        start = 0
        for place in places:
            width = place.stop - place.start
            outer[:, place] -= outer_part[:, start : start + width]
            start += width
        sums.add_product(column.abs(), places, border[:, here].abs())
        residual.subtract(j, column)
        for k, block in residual.finished(j):
            sums.add_block(k, j, block)
    return sums.total(outer.abs(), unit)


class _Residual:
    """A - diag(shift) - LL', block by block: a block is complete once its column has been eliminated."""

    def __init__(self, pencil: Pencil, d: Tensor, shift: Tensor) -> None:
        self.pencil, self.d, self.shift = pencil, d, shift
        self.blocks: dict[tuple[int, int], Tensor] = {}

    def _block(self, k: int, l: int) -> Tensor:
        if (k, l) in self.blocks:
            return self.blocks[k, l]
        pencil = self.pencil
        gram, weight, back = pencil.gram.get((k, l)), pencil.C.get((k, l)), pencil.C.get((l, k))
        shape = (pencil.sizes[k], pencil.sizes[l])
        block = pencil.zeros(*shape) if gram is None else -gram
        if weight is not None:
            block.addcmul_(weight, self.d[pencil.part[l]], value=-1.0)
        if back is not None:
            block.addcmul_(back.T, self.d[pencil.part[k], None], value=-1.0)
        if k == l:
            block.diagonal().add_(pencil.leading[k] * self.d[pencil.part[k]] - self.shift[pencil.part[k]])
        self.blocks[k, l] = block
        return block

    def subtract(self, j: int, column: Tensor) -> None:
        rows = (j, *self.pencil.later[j])
        parts = column.split([self.pencil.sizes[k] for k in rows])
        for position, k in enumerate(rows):
            for l, other in zip(rows[: position + 1], parts, strict=False):
                self._block(k, l).addmm_(parts[position], other.T, alpha=-1.0)

    def finished(self, j: int) -> list[tuple[int, Tensor]]:
        # Blocks that were never written are zero in A and in LL'.
        return [(k, self.blocks.pop((k, j))) for k in (j, *self.pencil.later[j])]


class _Sums:
    """Row sums of |E|, |F| and of the magnitudes behind them."""

    def __init__(self, pencil: Pencil, magnitude: Tensor, border: tuple[Tensor, Tensor]) -> None:
        self.pencil = pencil
        self.magnitude = magnitude
        self.columns, self.rows = border
        """Of |F|: column sums [N] and row sums [m]."""
        self.residual = torch.zeros_like(magnitude)

    def add_product(self, column: Tensor, places: list[slice], border: Tensor) -> None:
        """Magnitudes of one column of L: |L||L|'1, |y||L|'1 and 1'|y||L|'."""
        weight = column.sum(0)
        self.rows = self.rows + border @ weight
        product, outer = column @ weight, column @ border.sum(0)
        start = 0
        for place in places:
            width = place.stop - place.start
            self.magnitude[place] += product[start : start + width]
            self.columns[place] += outer[start : start + width]
            start += width

    def add_block(self, k: int, j: int, block: Tensor) -> None:
        size = block.abs_()
        self.residual[self.pencil.part[k]] += size.sum(1)
        if k != j:
            self.residual[self.pencil.part[j]] += size.sum(0)

    def total(self, border: Tensor, unit: float) -> _Dominance:
        # Sums of non-negative terms: the relative error of all of them together is below gamma of 8 N + 100.
        slack = 1.0 + gamma(8 * (self.pencil.neurons + len(border)) + 100)
        neurons = self.residual + border.sum(0) + unit * (self.magnitude + self.columns)
        outputs = border.sum(1) + unit * self.rows
        return _Dominance(
            inflate(neurons * slack, 0.0) + _UNDERFLOW, inflate(outputs * slack, 0.0) + _UNDERFLOW
        )


def _border_magnitude(system: Couplings, pencil: Pencil, d: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Column and row sums of |V|D + |V0||U|', outputs in units of 1 / scale."""
    size = pencil.V.abs() * d
    columns, rows = size.sum(0), size.sum(1)
    if system.V0 is not None:
        direct = system.V0.abs()
        reach = pencil.zeros(system.inputs)
        for k, matrix in system.U.items():
            reach += matrix.abs().sum(0)
            columns[pencil.part[k]] += matrix.abs() @ direct.sum(0)
        rows = rows + direct @ reach
    return columns * scale, rows * scale


def combination(first: Sequence[Tensor], second: Sequence[Tensor], share: float) -> tuple[Tensor, ...]:
    """(1 - share) first + share second: A is linear and Y convex in D, so a feasible second repairs a borderline first."""
    if len(first) != len(second):
        raise InternalError("multipliers of different systems")
    return tuple(torch.lerp(a, b, share) for a, b in zip(first, second, strict=True))
