"""Operator norms with known answers, compared with 40-digit arithmetic: never below, and sharp where exact."""

import math

import mpmath
import pytest
import torch

from lipverify.linalg.dense import gram_norm, operator_norm

mpmath.mp.dps = 40
SHARP = mpmath.mpf(10) ** -12


def matrix(rows):
    return torch.tensor(rows, dtype=torch.float64)


def hilbert(n):
    return matrix([[1 / (i + j + 1) for j in range(n)] for i in range(n)])


def hadamard(n):
    return matrix([[(-1) ** (i & j).bit_count() for j in range(n)] for i in range(n)])


def cumulative_sum(n):
    return torch.ones(n, n, dtype=torch.float64).tril()


def forward_difference(n):
    return torch.eye(n, dtype=torch.float64)[1:] - torch.eye(n, dtype=torch.float64)[:-1]


def second_difference(n):
    eye = torch.eye(n, dtype=torch.float64)
    return 2 * eye - eye.roll(1, 0).tril() - eye.roll(-1, 0).triu()


def householder(n):
    return torch.eye(n, dtype=torch.float64) - torch.full((n, n), 2 / n, dtype=torch.float64)


def exact_l2(a):
    """40 digits for the matrix of float64 entries as it is stored."""
    rows = mpmath.matrix([[mpmath.mpmathify(v) for v in row] for row in a.tolist()])
    svd = mpmath.svd_c if a.is_complex() else mpmath.svd_r
    return svd(rows, compute_uv=False)[0]


def check(bound, exact, slack=SHARP):
    value = mpmath.mpf(float(bound))
    assert value >= exact
    assert value <= exact * (1 + slack)


ROOT = mpmath.sqrt
MAGIC3 = [[8, 1, 6], [3, 5, 7], [4, 9, 2]]
MAGIC4 = [[16, 2, 3, 13], [5, 11, 10, 8], [9, 7, 6, 12], [4, 14, 15, 1]]

# Matrices whose float64 entries are the exact ones, so that the closed form is the norm of what is stored.
CLOSED_FORMS = {
    "golden ratio": ([[1, 1], [0, 1]], "l2", "l2", (1 + ROOT(5)) / 2),
    "1234 l2": ([[1, 2], [3, 4]], "l2", "l2", ROOT(15 + ROOT(221))),
    "1234 linf": ([[1, 2], [3, 4]], "linf", "linf", 7),
    "1234 l1": ([[1, 2], [3, 4]], "l1", "l1", 6),
    "1234 l2 -> linf": ([[1, 2], [3, 4]], "l2", "linf", 5),
    "1234 l1 -> l2": ([[1, 2], [3, 4]], "l1", "l2", ROOT(20)),
    "1234 l1 -> linf": ([[1, 2], [3, 4]], "l1", "linf", 4),
    "signs linf -> l1": ([[1, -2], [3, 4]], "linf", "l1", 8),
    "signs linf -> l2": ([[1, -2], [3, 4]], "linf", "l2", ROOT(50)),
    "signs l2 -> l1": ([[1, -2], [3, 4]], "l2", "l1", ROOT(40)),
    "nilpotent": ([[0, 2], [0, 0]], "l2", "l2", 2),
    "row [3, 4]": ([[3, 4]], "l2", "l2", 5),
    "ones 7 x 3": ([[1] * 3] * 7, "l2", "l2", ROOT(21)),
    "Hadamard 8": (hadamard(8).tolist(), "l2", "l2", ROOT(8)),
    "permutation": ([[0, 1, 0], [0, 0, 1], [1, 0, 0]], "l2", "l2", 1),
    "Householder 4": (householder(4).tolist(), "l2", "l2", 1),
    "magic 3": (MAGIC3, "l2", "l2", 15),
    "magic 4": (MAGIC4, "l2", "l2", 34),
    "diagonal": ([[1, 0, 0], [0, -5, 0], [0, 0, 3]], "l2", "l2", 5),
    "cumulative sum 2": (cumulative_sum(2).tolist(), "l2", "l2", 1 / (2 * mpmath.sin(mpmath.pi / 10))),
    "cumulative sum 10": (cumulative_sum(10).tolist(), "l2", "l2", 1 / (2 * mpmath.sin(mpmath.pi / 42))),
    "forward difference 9 x 10": (
        forward_difference(10).tolist(),
        "l2",
        "l2",
        2 * mpmath.cos(mpmath.pi / 20),
    ),
    "second difference 10": (second_difference(10).tolist(), "l2", "l2", 4 * mpmath.cos(mpmath.pi / 22) ** 2),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_form(name):
    rows, norm_in, norm_out, exact = CLOSED_FORMS[name]
    check(operator_norm(matrix(rows), norm_in, norm_out), mpmath.mpf(exact))


@pytest.mark.parametrize("name", [n for n, case in CLOSED_FORMS.items() if case[1] == case[2] == "l2"])
def test_gram_iteration_is_an_upper_bound_too(name):
    rows, _, _, exact = CLOSED_FORMS[name]
    check(gram_norm(matrix(rows), 12), mpmath.mpf(exact), slack=mpmath.mpf("1e-3"))


@pytest.mark.parametrize(
    ("rows", "norms", "exact"),
    [
        ([[1, 2], [3, 4]], ("linf", "linf"), 7.0),
        ([[1, 2], [3, 4]], ("l1", "l1"), 6.0),
        ([[1, 2], [3, 4]], ("l2", "linf"), 5.0),
        ([[3, 4]], ("l2", "l2"), 5.0),
        ([[0, 2], [0, 0]], ("l2", "l2"), 2.0),
        ([[1, 0, 0], [0, -5, 0], [0, 0, 3]], ("l2", "l2"), 5.0),
        ([[0, 1, 0], [0, 0, 1], [1, 0, 0]], ("l2", "l2"), 1.0),
        (MAGIC3, ("l2", "l2"), 15.0),
        (MAGIC4, ("l2", "l2"), 34.0),
        ([[0, 0], [0, 0]], ("l2", "l2"), 0.0),
    ],
)
def test_exact_to_the_last_bit(rows, norms, exact):
    assert operator_norm(matrix(rows), *norms).item() == exact


@pytest.mark.parametrize("n", [5, 10])
def test_hilbert(n):
    golden = {5: "1.5670506910982308", 10: "1.7519196702651775"}[n]
    bound = operator_norm(hilbert(n), "l2", "l2")
    check(bound, exact_l2(hilbert(n)))
    assert abs(mpmath.mpf(bound.item()) - mpmath.mpf(golden)) < 1e-12
    assert bound.item() < math.pi


def test_discrete_fourier_transform():
    angle = torch.arange(6, dtype=torch.float64).outer(torch.arange(6, dtype=torch.float64)) * (math.pi / 3)
    dft = torch.complex(angle.cos(), -angle.sin())
    bound = operator_norm(dft, "l2", "l2")
    check(bound, exact_l2(dft))
    assert abs(bound.item() - math.sqrt(6)) < 1e-12


def test_rotation():
    rotation = matrix([[0.6, -0.8], [0.8, 0.6]])
    check(operator_norm(rotation, "l2", "l2"), exact_l2(rotation))


@pytest.mark.parametrize("seed", range(12))
def test_random_matrices_against_40_digits(seed):
    generator = torch.Generator().manual_seed(seed)
    m, n = (int(v) for v in torch.randint(1, 7, (2,), generator=generator))
    real = torch.randn(m, n, dtype=torch.float64, generator=generator)
    a = real if seed % 2 else torch.complex(real, torch.randn(m, n, dtype=torch.float64, generator=generator))
    if seed % 3 == 0:
        a = a[:, :1] @ a[:1, :]
    exact = exact_l2(a)
    check(operator_norm(a, "l2", "l2"), exact)
    check(gram_norm(a, 14), exact, slack=mpmath.mpf("1e-3"))
