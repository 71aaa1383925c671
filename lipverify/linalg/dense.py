"""Certified operator norms of dense matrices, batched over leading dimensions.

Legend: W is an m x n matrix taken as the map x -> W x; |.|_F is the Frobenius norm; u = 2^-53; V is an untrusted basis.
The matrix is first divided by a power of two that brings its largest entry into [1/2, 1), so that no square overflows
and every underflow is far below the rounding that is accounted for.
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import torch
from torch import Tensor

from lipverify.errors import InternalError, UsageError
from lipverify.linalg.eigen import eigh, eigvalsh
from lipverify.linalg.rounding import Upper, gamma, inflate, sum_up

NORMS = ("l1", "l2", "linf")
_DUAL = {"l1": "linf", "l2": "l2", "linf": "l1"}

# Up to here an unbatched matrix is summed in exact arithmetic; larger ones carry gamma_n.
_EXACT_ENTRIES = 4096
# Sign vectors are enumerated up to this many coordinates: 2^15 products.
ENUMERATED_SIDE = 16
# From here on a threshold near a Lanczos estimate is tried before eigenvectors.
LANCZOS_SIDE = 256
# Above, a bound 1e-6 too large is preferred to minutes of eigenvectors.
_LONG_SIDE = 1500
# From here on symbols are not multiplied again with their factor, which would cost more than the factor.
_LARGE_SIDE = 48
# Bounds of matrices of at most so many entries are kept, the last so many of them.
_KEPT_ENTRIES, _KEPT_AT_MOST = 1 << 22, 1024
_KEPT: dict[tuple[object, ...], Tensor] = {}
# The eigenvector basis of a larger Gram matrix takes minutes; `interpolation_bound` is the caller's explicit choice.
LARGEST_SIDE = 8192


def operator_norm(matrix: Tensor, norm_in: str, norm_out: str) -> Tensor:
    """Upper bound of max |W x|_out / |x|_in, one float64 per matrix of the batch.

    Statement: |W x|_out <= bound |x|_in for every x, real or complex.
    Source: l2 -> l2 by `spectral_bound`; l1 -> any and any -> linf are maxima of column or row norms (Higham, 2nd edition,
        section 6.2), exact up to rounding. linf -> l1, linf -> l2 and l2 -> l1 are NP-hard: real matrices with at
        most 16 coordinates on an linf side (input linf, or output l1 seen through the adjoint) are enumerated over
        signs, exact up to rounding; others get the smallest of several certified inequalities (`_cheap_hard_bound`).
    Sound when: the assumptions of `lipverify.linalg` hold.

    Args:
        matrix: [..., m, n], float64 or complex128 (float32, float16, bfloat16, complex64 convert exactly), any device.
        norm_in, norm_out: "l1", "l2" or "linf".

    Returns:
        float64 tensor of the batch shape on the device of `matrix`; 0 for zero and empty matrices.

    Raises:
        UsageError: unknown norm, a non-finite entry, not a matrix, an l2 problem above `LARGEST_SIDE`.
        OverflowError: the bound is above the largest float64; `operator_norm_upper` has no such limit.
    """
    problem = scaled(validated(matrix, norm_in, norm_out))
    return _unscaled(_bound(problem.values, norm_in, norm_out), problem.exponent)


def operator_norm_upper(matrix: Tensor, norm_in: str, norm_out: str) -> Upper:
    """The largest bound of the batch, as a number that cannot overflow; see `operator_norm`."""
    problem = scaled(validated(matrix, norm_in, norm_out))
    bounds = _bound(problem.values, norm_in, norm_out).reshape(-1).tolist()
    exponents = problem.exponent.reshape(-1).tolist()
    return Upper.largest(Upper.of(b).scale(e) for b, e in zip(bounds, exponents, strict=True))


def interpolation_bound(matrix: Tensor) -> Tensor:
    """Cheap l2 upper bound min(|W|_F, sqrt(|W|_1 |W|_inf)): for matrices too large for `operator_norm`.

    Statement: |W x|_2 <= bound |x|_2. Usually several times the norm.
    Source: Riesz-Thorin interpolation between l1 and linf; Higham, 2nd edition, (6.19).
    Sound when: the assumptions of `lipverify.linalg` hold.
    """
    problem = scaled(validated(matrix, "l2", "l2"))
    return _unscaled(_interpolation(problem.values), problem.exponent)


def gram_norm(matrix: Tensor, steps: int = 10) -> Tensor:
    """Upper bound of the l2 norm by Gram iteration, without eigenvalues.

    Statement: with A_0 = W and A_{t+1} = A_t' A_t, |W| = |A_t|^(1/2^t) <= |A_t|_F^(1/2^t) at every t.
    Source: Delattre, Barthelemy, Araujo, Allauzen, "Efficient bound of Lipschitz constant for convolutional layers by
        Gram iteration", ICML 2023, theorem 1. The float error e_t of A_t is carried: e <- 2 f e + e^2 + gamma f^2.
    Sound when: the assumptions of `lipverify.linalg` hold. Shapes and errors as for `operator_norm`.
    """
    if steps < 0:
        raise UsageError(f"gram_norm needs a non-negative number of steps, not {steps}")
    problem = scaled(validated(matrix, "l2", "l2"))
    return _unscaled(_gram_bound(problem.values, steps), problem.exponent)


class _Scaled(NamedTuple):
    values: Tensor  # [..., m, n], largest entry of each matrix in [1/2, sqrt 2), or all zero
    exponent: Tensor  # [...] int64: the matrix is values * 2^exponent


def dual(norm: str) -> str:
    """The dual of a vector norm; UsageError for an unknown name."""
    if norm not in NORMS:
        raise UsageError(f"unknown norm {norm!r}; choose one of {', '.join(NORMS)}")
    return _DUAL[norm]


def validated(matrix: Tensor, norm_in: str, norm_out: str) -> Tensor:
    """The matrix in float64 or complex128, exactly; UsageError for what no norm is defined for."""
    for norm in (norm_in, norm_out):
        dual(norm)
    if matrix.ndim < 2:
        raise UsageError(f"an operator norm needs a matrix, not a tensor of shape {tuple(matrix.shape)}")
    if not (matrix.is_floating_point() or matrix.is_complex()):
        raise UsageError(
            f"an operator norm needs a real or complex floating point matrix, not {matrix.dtype}"
        )
    if not bool(torch.isfinite(matrix).all()):
        where = (~torch.isfinite(matrix)).nonzero()[0].tolist()
        raise UsageError(f"the matrix of shape {tuple(matrix.shape)} has a non-finite entry at {where}")
    return matrix.detach().resolve_conj().to(torch.complex128 if matrix.is_complex() else torch.float64)


def scaled(matrix: Tensor) -> _Scaled:
    """Divides by a power of two; entries below 2^-1022 of the largest may lose digits (a relative 2^-1000, absorbed)."""
    if matrix.numel() == 0:
        return _Scaled(matrix, torch.zeros(matrix.shape[:-2], dtype=torch.int64, device=matrix.device))
    parts = torch.view_as_real(matrix).flatten(-2) if matrix.is_complex() else matrix
    _, exponent = torch.frexp(parts.abs().amax((-2, -1)))
    exponent = exponent.to(torch.int64)
    # Two factors, because 2^1074 is no float64; both are exact.
    half = torch.div(-exponent, 2, rounding_mode="floor")
    first, second = _power_of_two(half), _power_of_two(-exponent - half)
    return _Scaled(matrix * first[..., None, None] * second[..., None, None], exponent)


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent, exact, for exponents of normal numbers: the bits are written, no elementary function is trusted."""
    return ((exponent + 1023) << 52).view(torch.float64)


def _unscaled(bound: Tensor, exponent: Tensor) -> Tensor:
    """bound 2^exponent, rounded up; OverflowError above the largest float64."""
    half = torch.div(exponent, 2, rounding_mode="floor")
    result = bound * _power_of_two(half) * _power_of_two(exponent - half)
    if not bool(torch.isfinite(result).all()):
        raise OverflowError("an operator norm is above the largest float64; use operator_norm_upper")
    # Exact unless the result is subnormal, where one rounding to nearest happened.
    stepped = torch.nextafter(result, torch.full_like(result, math.inf))
    return torch.where((result < 2.0**-1021) & (bound > 0), stepped, result)


def _bound(a: Tensor, norm_in: str, norm_out: str) -> Tensor:
    """Of equal matrices once: every step of a recurrent network has the same ones."""
    if a.numel() > _KEPT_ENTRIES:
        return _bound_anew(a, norm_in, norm_out)
    bits = torch.view_as_real(a) if a.is_complex() else a
    digest = hashlib.blake2b(bits.cpu().contiguous().numpy().tobytes()).digest()
    key = (digest, tuple(a.shape), str(a.dtype), str(a.device), norm_in, norm_out)
    if key not in _KEPT:
        found = _bound_anew(a, norm_in, norm_out)
        while len(_KEPT) >= _KEPT_AT_MOST:
            _KEPT.pop(next(iter(_KEPT)), None)
        _KEPT[key] = found
    return _KEPT[key].clone()


def _bound_anew(a: Tensor, norm_in: str, norm_out: str) -> Tensor:
    if a.numel() == 0:
        return torch.zeros(a.shape[:-2], dtype=torch.float64, device=a.device)
    if norm_in == "l1":
        return vector_norms(a.mT, norm_out).amax(-1)
    if norm_out == "linf":
        return vector_norms(a, _DUAL[norm_in]).amax(-1)
    if norm_in == norm_out == "l2":
        return _spectral(a)
    return _hard_bound(a, norm_in, norm_out)


def _magnitude(a: Tensor) -> Tensor:
    """Entrywise absolute value, rounded up."""
    return inflate(a.abs(), 4 * gamma(1)) if a.is_complex() else a.abs()


def vector_norms(a: Tensor, norm: str) -> Tensor:
    """Upper bounds of the norms of the rows of `a` ([..., m, n] -> [..., m]), entries scaled as by `scaled`."""
    size = _magnitude(a)
    if norm == "linf":
        return size.amax(-1)
    if a.ndim == 2 and a.numel() <= _EXACT_ENTRIES and not a.is_complex():
        rows = size.tolist()
        exact = [sum_up(r) if norm == "l1" else float(Upper.root_sum_squares(r)) for r in rows]
        return torch.tensor(exact, dtype=torch.float64, device=a.device)
    if norm == "l1":
        return inflate(size.sum(-1), gamma(a.shape[-1]))
    return inflate(size.square().sum(-1).sqrt(), gamma(a.shape[-1] + 4))


def _frobenius(a: Tensor) -> Tensor:
    if a.is_complex():
        # Squares of real and imaginary parts: no root for each entry.
        size = torch.view_as_real(a.resolve_conj()).square().sum((-3, -2, -1)).sqrt()
        return inflate(size, gamma(2 * a.shape[-2] * a.shape[-1] + 4))
    return vector_norms(a.flatten(-2)[..., None, :], "l2")[..., 0]


def _length(a: Tensor) -> Tensor:
    """As `_frobenius`, for error terms: by rounded sums at every size, where exact ones would gain nothing and cost most."""
    return inflate(_magnitude(a).square().sum((-2, -1)).sqrt(), gamma(a.shape[-2] * a.shape[-1] + 4))


def _interpolation(a: Tensor) -> Tensor:
    columns, rows = vector_norms(a.mT, "l1").amax(-1), vector_norms(a, "l1").amax(-1)
    if a.ndim == 2 and a.numel() <= _EXACT_ENTRIES:
        mixed = torch.full_like(rows, float((Upper.of(columns.item()) * rows.item()).sqrt()))
    else:
        mixed = inflate((columns * rows).sqrt(), 4 * gamma(1))
    return torch.minimum(mixed, _frobenius(a))


def _product_error(inner: int, is_complex: bool) -> float:
    """c with |fl(A B) - A B|_F <= c |A|_F |B|_F for a product of inner length `inner`.

    Real: gamma_inner, entrywise (Higham, section 3.5). Complex: each part is a real product of length 2 inner, so
    sqrt2 gamma_{2 inner}; the three-multiplication variant needs 3 gamma_{inner + 4} in one part: 4 gamma_{2 inner + 4}
    covers both.
    """
    return 4.0 * gamma(2 * inner + 4) if is_complex else gamma(inner)


def _spectral(a: Tensor) -> Tensor:
    """Smallest of the certified l2 bounds; equal to the largest entry when no row or column has two entries."""
    if max(a.shape[-2:]) > LARGEST_SIDE and min(a.shape[-2:]) > LARGEST_SIDE:
        raise UsageError(
            f"the l2 norm of a {a.shape[-2]} x {a.shape[-1]} matrix needs an eigenvalue problem above {LARGEST_SIDE};"
            " use interpolation_bound for a cheap certified bound"
        )
    if min(a.shape[-2:]) == 1:
        return _frobenius(a)
    if a.ndim > 2 and math.prod(a.shape[:-2]) == 1:
        return _spectral(a.reshape(a.shape[-2:])).reshape(a.shape[:-2])
    cheap = _interpolation(a)
    used = a != 0
    monomial = (used.sum(-1).amax(-1) <= 1) & (used.sum(-2).amax(-1) <= 1)
    if bool(monomial.all()):
        return _magnitude(a).amax((-2, -1))
    tall = a if a.shape[-2] >= a.shape[-1] else a.mH
    if a.ndim == 2 and tall.shape[-1] >= LANCZOS_SIDE:
        # Several times cheaper than eigenvectors, as long as Lanczos finds the largest singular value.
        estimate, side = _lanczos_estimate(tall), tall.shape[-1]
        for slack in (side * 2.0**-49, 5e-10, *((1e-6,) if side > _LONG_SIDE else ())):
            bound, proved = threshold_bound(tall, estimate * (1.0 + slack))
            if bool(proved):
                return torch.minimum(cheap, bound)
    bound = torch.minimum(cheap, spectral_residual_bound(tall))
    return torch.where(monomial, _magnitude(a).amax((-2, -1)), bound)


def _lanczos_estimate(a: Tensor, steps: int = 120) -> Tensor:
    """|W|_2 from below, unproved: Lanczos on W'W with full reorthogonalisation, from a fixed start."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(a.shape[-1], dtype=torch.float64, generator=generator).to(a)
    basis, diagonal, beside = [start / start.norm()], [], []
    for _ in range(steps):
        image = a.mH @ (a @ basis[-1])
        diagonal.append(torch.vdot(basis[-1], image).real)
        known = torch.stack(basis, dim=1)
        for _ in range(2):
            image = image - known @ (known.mH @ image)
        size = image.norm()
        # What is left of an invariant subspace is rounding, and no direction: normalised it would stretch anything.
        if not bool(size > 1e-12 * diagonal[0].abs()):
            break
        beside.append(size)
        basis.append(image / size)
    count = len(diagonal)
    projected = torch.diag(torch.stack(diagonal))
    for index, size in enumerate(beside[: count - 1]):
        projected[index, index + 1] = projected[index + 1, index] = size
    largest: Tensor = eigvalsh(projected)[-1]
    return largest.clamp(min=0.0).sqrt()


def spectral_residual_bound(a: Tensor) -> Tensor:
    """Upper bound of |W|_2 from an untrusted, nearly orthonormal basis V of eigenvectors of W'W.

    Statement: |W| <= |W V| / sqrt(1 - d) with d >= |I - V'V|, because |V x|^2 >= (1 - d) |x|^2 and V is onto;
        |W V|^2 <= the largest absolute row sum of (W V)'(W V), which is nearly diagonal.
    Source: Rump, "Verified bounds for singular values", BIT 51 (2011), in the form for one norm. Every product carries
        its error `_product_error`.
    Sound when: entries are scaled to [1/2, 1) and m >= n.
    """
    m, n = a.shape[-2:]
    _, basis = eigh(a.mH @ a)
    image = a @ basis
    size_basis = _length(basis)
    inner, outer = _product_error(n, a.is_complex()), _product_error(m, a.is_complex())
    image_error = inner * _length(a) * size_basis
    squared = _hermitian_norm(image.mH @ image) + outer * _length(image).square()
    defect = _hermitian_norm(basis.mH @ basis - torch.eye(n, dtype=a.dtype, device=a.device))
    defect = inflate(defect + inner * size_basis.square(), 8 * gamma(1))
    if not bool((defect < 0.5).all()):
        raise InternalError(f"the eigenvectors of a {m} x {n} matrix are not orthonormal")
    # Each of the sums and products of scalars above and below rounds a few times: 32 roundings are more than there are.
    return inflate((inflate(squared, 8 * gamma(1)).sqrt() + image_error) / (1.0 - defect).sqrt(), gamma(32))


def threshold_bound(a: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Tries to prove |W|_2 <= threshold, several times faster than `operator_norm`: (bounds, proved).

    Statement: where `proved`, |W| <= bound, and bound exceeds the threshold c by rounding errors only. For any R,
        W'W = c^2 I - R'R - E gives |W|^2 <= c^2 + |E|; R is an untrusted Cholesky factor of c^2 I - W'W.
    Source: Rump, "Verification of positive definiteness", BIT 46 (2006), with the residual instead of a backward error; of large
        complex matrices on the CPU, whose factor LAPACK makes, with the backward error |E| <= gamma |R*| |R| after all (Higham,
        theorem 10.3, with 8n + 64 roundings for complex products and blocked sums).
    Sound when: as `spectral_residual_bound`; the threshold is not tiny (above 2^-100).

    Args:
        a: [..., m, n], m >= n. threshold: broadcastable to the batch shape.
    """
    m, n = a.shape[-2:]
    square = threshold.square().expand(a.shape[:-2])
    shifted = torch.diag_embed(square[..., None].expand(*square.shape, n)).to(a.dtype) - a.mH @ a
    factor, info = torch.linalg.cholesky_ex(shifted, upper=True)
    outer, inner = _product_error(m, a.is_complex()), _product_error(n, a.is_complex())
    if n >= _LARGE_SIDE and a.is_complex() and a.device.type == "cpu":
        residual, inner = torch.zeros_like(square), gamma(8 * n + 64)
    else:
        residual = _hermitian_norm(shifted - factor.mH @ factor)
    # Rounding of c^2, of the difference on the diagonal and of the products.
    error = square * gamma(4) + outer * _frobenius(a).square() + inner * _frobenius(factor).square()
    bound = inflate((square + inflate(residual + error, 8 * gamma(1))).sqrt(), 8 * gamma(1))
    proved = (info == 0) & torch.isfinite(bound)
    return torch.where(proved, bound, torch.zeros_like(bound)), proved


def quadratic_bound(matrix: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Tries to prove x'G x <= threshold |x|^2 for all x: (bounds, proved), as `threshold_bound`, of which this is one half.

    Statement: where `proved`, x'G x <= bound |x|^2. G = c I - R'R - E, symmetric or not, gives x'G x <= (c + |E|) |x|^2.
    Source, and sound when: as `threshold_bound`. matrix: [..., n, n], real.
    """
    n = matrix.shape[-1]
    level = threshold.expand(matrix.shape[:-2])
    shifted = torch.diag_embed(level[..., None].expand(*level.shape, n)) - matrix
    factor, info = torch.linalg.cholesky_ex(shifted, upper=True)
    residual = _hermitian_norm(shifted - factor.mT @ factor)
    # Rounding of the differences, on the diagonal and of the residual, and of the product.
    most = matrix.diagonal(dim1=-2, dim2=-1).abs().amax(-1) + level
    error = most * gamma(4) + _product_error(n, False) * _length(factor).square()
    bound = inflate(level + inflate(residual + error, 8 * gamma(1)), 8 * gamma(1))
    proved = (info == 0) & torch.isfinite(bound)
    return torch.where(proved, bound, torch.zeros_like(bound)), proved


def _hermitian_norm(a: Tensor) -> Tensor:
    """Upper bound of the l2 norm that is sharp for nearly diagonal matrices."""
    # What is off the diagonal is rounding, and the diagonal is real: no root for each entry.
    size = a.real.abs() + a.imag.abs() if a.is_complex() else a.abs()
    product = size.sum(-1).amax(-1) * size.sum(-2).amax(-1)
    return inflate(product.sqrt(), gamma(a.shape[-1] + 5))


def _gram_bound(a: Tensor, steps: int) -> Tensor:
    """Gram iteration on scaled matrices; see `gram_norm`."""
    a = a if a.shape[-2] >= a.shape[-1] else a.mH
    if a.numel() == 0:
        return torch.zeros(a.shape[:-2], dtype=torch.float64, device=a.device)
    error = torch.zeros(a.shape[:-2], dtype=torch.float64, device=a.device)
    zero = (a == 0).all(-1).all(-1)
    shifts: list[Tensor] = []
    for _ in range(steps):
        size = _frobenius(a)
        error = (
            size * error * 2.0 + error.square() + _product_error(a.shape[-2], a.is_complex()) * size.square()
        )
        a, shift = scaled(a.mH @ a)
        # 2^-s is exact; the rounding of scaling (underflow) is at most n^2 2^-1022, covered by the floor.
        error = inflate(error * _power_of_two(-shift), 8 * gamma(1)) + 2.0**-900
        shifts.append(shift)
    bound = inflate(_frobenius(a) + error, 2 * gamma(1))
    for shift in reversed(shifts):
        bound = inflate((bound * _power_of_two(shift)).sqrt(), 4 * gamma(1))
    return torch.where(zero, torch.zeros_like(bound), bound)


def _hard_bound(a: Tensor, norm_in: str, norm_out: str) -> Tensor:
    """linf -> l1, linf -> l2, l2 -> l1: signs when a sign side is small, else inequalities."""
    if norm_in == "l2" or (norm_out == "l1" and a.shape[-2] < a.shape[-1]):
        # The adjoint maps the dual of the output norm to the dual of the input norm with the same norm.
        a, norm_in, norm_out = a.mT, _DUAL[norm_out], _DUAL[norm_in]
    if a.is_complex() or a.shape[-1] > ENUMERATED_SIDE:
        return _cheap_hard_bound(a, norm_out)
    return torch.minimum(_enumerated(a, norm_out), _cheap_hard_bound(a, norm_out))


def _enumerated(a: Tensor, norm_out: str) -> Tensor:
    """max over s in {-1, 1}^n of |W s|: a convex function on the cube is largest at a vertex; s and -s agree."""
    n = a.shape[-1]
    codes = torch.arange(1 << (n - 1), device=a.device)
    result = torch.zeros(a.shape[:-2], dtype=torch.float64, device=a.device)
    for chunk in codes.split(4096):
        bits = (chunk[None, :] >> torch.arange(n, device=a.device)[:, None]) & 1
        signs = 1.0 - 2.0 * bits.to(torch.float64)
        result = torch.maximum(result, _column_norms(a @ signs, norm_out).amax(-1))
    # |fl(W s) - W s| <= gamma_n |W| 1 in each row.
    error = gamma(n) * _column_norms(_magnitude(a).sum(-1, keepdim=True), norm_out)[..., 0]
    return inflate(result + inflate(error, gamma(n + 4)), 4 * gamma(1))


def _column_norms(a: Tensor, norm: str) -> Tensor:
    rounded = gamma(a.shape[-2] + 4)
    return inflate(a.abs().sum(-2) if norm == "l1" else a.square().sum(-2).sqrt(), rounded)


def _cheap_hard_bound(a: Tensor, norm_out: str) -> Tensor:
    """Certified inequalities for linf -> l1 and linf -> l2 (never a sampled value).

    |W x|_out <= |(row l1 norms)|_out, since |W x|_i <= row sum i; |W x|_out <= sum of column norms;
    |W x|_2 <= sqrt(n) |W|_2 |x|_inf, and another sqrt(m) for l1.
    """
    m, n = a.shape[-2:]
    by_rows = vector_norms(vector_norms(a, "l1")[..., None, :], norm_out)[..., 0]
    by_columns = vector_norms(vector_norms(a.mT, norm_out)[..., None, :], "l1")[..., 0]
    entries = n if norm_out == "l2" else m * n
    by_spectrum = inflate(_spectral(a) * math.sqrt(entries), 4 * gamma(1))
    return torch.minimum(torch.minimum(by_rows, by_columns), by_spectrum)
