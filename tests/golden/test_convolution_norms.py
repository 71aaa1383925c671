"""Norms of convolutions with known answers, compared with 40-digit arithmetic, and the famous wrong formulas."""

import mpmath
import pytest
import torch

from lipverify.linalg.convolution import (
    circular_convolution_norm,
    convolution_norm,
    convolution_norm_any_size,
)
from lipverify.linalg.dense import operator_norm
from lipverify.linalg.geometry import Convolution
from lipverify.linalg.symbol import Symbol, polyphase, torus_maximum

mpmath.mp.dps = 40
PI = mpmath.pi
SOBEL = [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]
LAPLACIAN = [[0, -1, 0], [-1, 4, -1], [0, -1, 0]]
ROW = [[0, 0, 0], [1, 0, -1], [0, 0, 0]]


def kernel(taps):
    return torch.tensor(taps, dtype=torch.float64)[None, None]


def zero_padded(weight, n, *, pad, stride=1, groups=1):
    axes = weight.ndim - 2
    return convolution_norm(
        weight,
        input_size=(n,) * axes,
        stride=(stride,) * axes,
        padding=(pad,) * axes,
        dilation=(1,) * axes,
        groups=groups,
    )


def circular(weight, n):
    axes = weight.ndim - 2
    return circular_convolution_norm(
        weight, input_size=(n,) * axes, stride=(1,) * axes, dilation=(1,) * axes, groups=1
    )


def frequency_bound(weight, n, pad):
    """The torus and the supremum alone, without the matrix that a small image would allow."""
    axes = weight.ndim - 2
    placed = Convolution.of(weight, (1,) * axes, (1,) * axes, 1).placed((n,) * axes, (pad,) * axes)
    symbol = Symbol(polyphase(placed.weight, placed.stride, placed.dilation))
    return torus_maximum(symbol, placed.embedding_sizes) * 2.0**placed.exponent


def check(bound, exact, slack="1e-11"):
    value = mpmath.mpf(float(bound))
    assert value >= exact
    assert value <= exact * (1 + mpmath.mpf(slack))


@pytest.mark.parametrize(
    ("taps", "n", "exact"),
    [
        ([1, -1], 6, 2),
        ([1, -1], 5, 2 * mpmath.sin(2 * PI / 5)),
        ([0.25, 0.5, 0.25], 7, 1),
        (SOBEL, 8, 8),
        (LAPLACIAN, 6, 8),
        ([[1] * 3] * 3, 5, 9),
        ([[1] * 3] * 3, 2, 9),
    ],
)
def test_circular(taps, n, exact):
    check(circular(kernel(taps), n), mpmath.mpf(exact))


ZERO_PADDED = [
    ([1, -1], 5, (1, 0), 2 * mpmath.cos(PI / 11)),
    ([1, -1], 5, (0, 1), 2 * mpmath.cos(PI / 11)),
    ([1, -1], 5, (1, 1), 2 * mpmath.cos(PI / 12)),
    (LAPLACIAN, 8, (1, 1), 4 + 4 * mpmath.cos(PI / 9)),
    ([1, 1, 1], 10, (1, 1), 1 + 2 * mpmath.cos(PI / 11)),
    ([[1] * 3] * 3, 10, (1, 1), (1 + 2 * mpmath.cos(PI / 11)) ** 2),
    (ROW, 6, (1, 1), 2 * mpmath.cos(PI / 7)),
]


@pytest.mark.parametrize(("taps", "n", "pad", "exact"), ZERO_PADDED)
def test_zero_padded(taps, n, pad, exact):
    check(zero_padded(kernel(taps), n, pad=pad), mpmath.mpf(exact))


@pytest.mark.parametrize(("taps", "n", "pad", "exact"), ZERO_PADDED)
def test_zero_padded_by_frequencies_alone(taps, n, pad, exact):
    check(frequency_bound(kernel(taps), n, pad), mpmath.mpf(exact), slack="0.06")


@pytest.mark.parametrize(("taps", "n"), [([1, 1, 1], 10), ([[1] * 3] * 3, 10), (LAPLACIAN, 8)])
def test_a_half_twisted_torus_is_exact_for_symmetric_averages(taps, n):
    exact = {
        1: 1 + 2 * mpmath.cos(PI / 11),
        2: (1 + 2 * mpmath.cos(PI / 11)) ** 2,
        3: 4 + 4 * mpmath.cos(PI / 9),
    }
    which = 3 if taps is LAPLACIAN else kernel(taps).ndim - 2
    check(frequency_bound(kernel(taps), n, (1, 1)), exact[which], slack="1e-9")


@pytest.mark.parametrize(
    ("taps", "exact"),
    [([1, -1], 2), ([1, 1, 1], 3), (SOBEL, 8), (LAPLACIAN, 8), ([[1] * 3] * 3, 9), (ROW, 2)],
)
def test_any_size(taps, exact):
    axes = kernel(taps).ndim - 2
    bound = convolution_norm_any_size(kernel(taps), stride=(1,) * axes, dilation=(1,) * axes, groups=1)
    check(bound, mpmath.mpf(exact), slack="1.1e-4")


@pytest.mark.parametrize(
    ("taps", "n", "pad", "exact"),
    [(ROW, 6, (1, 1), 2 * mpmath.cos(PI / 7)), ([1, -1], 5, (1, 0), 2 * mpmath.cos(PI / 11))],
)
def test_circular_fft_trap(taps, n, pad, exact):
    """The n-point circular value lies below the zero-padded norm, so printing it would be caught here."""
    assert mpmath.mpf(float(circular(kernel(taps), n))) < exact
    check(zero_padded(kernel(taps), n, pad=pad), mpmath.mpf(exact))
    assert frequency_bound(kernel(taps), n, pad) >= exact


def test_circular_fft_trap_values():
    assert abs(float(zero_padded(kernel(ROW), 6, pad=(1, 1))) - 1.801938) < 5e-7
    assert abs(float(circular(kernel(ROW), 6)) - 1.732051) < 5e-7
    assert abs(float(zero_padded(kernel(ROW), 30, pad=(1, 1))) - 1.989739) < 5e-7
    assert abs(float(circular(kernel(ROW), 30)) - 1.989044) < 5e-7


def test_reshaped_kernel_trap():
    """The norm of the kernel as an out x (in taps) matrix is 3; the convolution of large images has norm 9."""
    ones = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    reshaped = operator_norm(ones.reshape(1, 9), "l2", "l2").item()
    exact = (1 + 2 * mpmath.cos(PI / 33)) ** 2
    assert reshaped == 3.0
    assert reshaped < exact
    check(zero_padded(ones, 32, pad=(1, 1)), exact, slack="1e-9")


def test_patch_embedding_is_the_reshaped_matrix():
    weight = torch.tensor([[1.0, 2], [3, 4]], dtype=torch.float64).reshape(2, 1, 2)
    for stride in (2, 3):
        check(zero_padded(weight, 8, pad=(0, 0), stride=stride), mpmath.sqrt(15 + mpmath.sqrt(221)))


def test_depthwise_is_the_largest_channel():
    weight = torch.stack([2 * torch.eye(3), torch.ones(3, 3)]).double()[:, None]
    bound = convolution_norm_any_size(weight, stride=(1, 1), dilation=(1, 1), groups=2)
    check(bound, mpmath.mpf(9), slack="1.1e-4")


def test_pointwise_convolution_is_its_matrix():
    weight = torch.tensor([[1.0, 1], [0, 1]], dtype=torch.float64).reshape(2, 2, 1, 1)
    check(zero_padded(weight, 9, pad=(0, 0)), (1 + mpmath.sqrt(5)) / 2)
