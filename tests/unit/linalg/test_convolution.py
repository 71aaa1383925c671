"""Convolution norms against dense matrices built by torch, for random kernels, strides, paddings, dilations, groups."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from lipverify.errors import UsageError
from lipverify.linalg.convolution import (
    circular_convolution_norm,
    convolution_norm,
    convolution_norm_any_size,
    transposed_convolution_norm,
)
from lipverify.linalg.dense import NORMS, operator_norm
from lipverify.linalg.geometry import Convolution
from lipverify.linalg.symbol import Symbol, polyphase, supremum, torus_maximum

REFERENCE = 1e-13


def matrix_of(case):
    """The dense matrix, column by column through torch."""
    weight, size = case["weight"], case["input_size"]
    channels = weight.shape[1] * case["groups"]
    eye = torch.eye(channels * math.prod(size), dtype=torch.float64).reshape(-1, channels, *size)
    eye = F.pad(eye, [n for pad in reversed(case["padding"]) for n in pad])
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(size)]
    y = function(eye, weight, stride=case["stride"], dilation=case["dilation"], groups=case["groups"])
    return y.flatten(1).T


def random_case(seed):
    generator = torch.Generator().manual_seed(seed)

    def pick(options):
        return options[int(torch.randint(len(options), (1,), generator=generator))]

    axes = pick([1, 2])
    while True:
        case = {
            "input_size": tuple(pick(range(5, 13)) for _ in range(axes)),
            "stride": tuple(pick([1, 2, 3]) for _ in range(axes)),
            "padding": tuple((pick([0, 1, 2]), pick([0, 1, 2])) for _ in range(axes)),
            "dilation": tuple(pick([1, 2]) for _ in range(axes)),
            "groups": pick([1, 1, 2, 3]),
        }
        taps = [pick([1, 3, 5]) for _ in range(axes)]
        sizes = zip(case["input_size"], case["padding"], case["dilation"], taps, strict=True)
        if all(n + sum(pad) > dil * (k - 1) for n, pad, dil, k in sizes):
            break
    shape = (case["groups"] * pick([1, 2, 3]), pick([1, 2, 3]), *taps)
    return {"weight": torch.randn(shape, dtype=torch.float64, generator=generator), **case}


def without(case, *names):
    return {k: v for k, v in case.items() if k not in names}


@pytest.mark.parametrize("block", range(10))
def test_random_kernels_are_never_below_the_dense_norm(block):
    """200 kernels in ten blocks: the reported bound, the torus alone, and the bound for every size."""
    torus_ratios = []
    for seed in range(20 * block, 20 * block + 20):
        case = random_case(seed)
        reference = torch.linalg.svdvals(matrix_of(case))[0].item()
        bound = float(convolution_norm(**case))
        assert reference * (1 - REFERENCE) <= bound <= reference * (1 + 1e-9), seed
        assert float(convolution_norm_any_size(**without(case, "input_size", "padding"))) >= bound * (
            1 - 1e-9
        ), seed
        placed = Convolution.of(case["weight"], case["stride"], case["dilation"], case["groups"])
        placed = placed.placed(case["input_size"], case["padding"])
        symbol = Symbol(polyphase(placed.weight, placed.stride, placed.dilation))
        torus = torus_maximum(symbol, placed.embedding_sizes) * 2.0**placed.exponent
        assert torus >= reference * (1 - REFERENCE), seed
        torus_ratios.append(torus / reference)
    assert sorted(torus_ratios)[10] < 1.05


@pytest.mark.parametrize("seed", range(40))
def test_every_norm_pair_against_the_matrix(seed):
    case = random_case(1000 + seed)
    matrix = matrix_of(case)
    for norm_in, norm_out in itertools.product(NORMS, NORMS):
        bound = float(convolution_norm(**case, norm_in=norm_in, norm_out=norm_out))
        dense = operator_norm(matrix, norm_in, norm_out).item()
        if norm_in == "l1" or norm_out == "linf":
            assert bound == pytest.approx(dense, rel=1e-12)
            any_size = convolution_norm_any_size(
                **without(case, "input_size", "padding"), norm_in=norm_in, norm_out=norm_out
            )
            assert float(any_size) >= dense * (1 - 1e-12)
        else:
            x = torch.randn(matrix.shape[1], 200, dtype=torch.float64).sign()
            order = {"l1": 1, "l2": 2, "linf": math.inf}
            norms = torch.linalg.vector_norm(matrix @ x, order[norm_out], dim=0)
            stretched = norms / torch.linalg.vector_norm(x, order[norm_in], dim=0)
            assert stretched.max().item() <= bound * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(30))
def test_the_assembled_matrix_is_the_convolution(seed):
    case = random_case(2000 + seed)
    placed = Convolution.of(case["weight"], case["stride"], case["dilation"], case["groups"])
    placed = placed.placed(case["input_size"], case["padding"])
    blocks = placed.matrix() * 2.0**placed.exponent
    assert torch.equal(torch.block_diag(*blocks), matrix_of(case))


def test_the_torus_does_not_wrap_and_one_point_less_does():
    placed = Convolution.of(torch.ones(1, 1, 3), (1,), (1,), 1).placed((10,), ((1, 1),))
    assert placed.embedding_sizes == (11,)
    assert Convolution.of(torch.ones(1, 1, 3), (1,), (2,), 1).placed((10,), ((2, 2),)).embedding_sizes == (
        12,
    )
    symbol = Symbol(polyphase(placed.weight, (1,), (1,)))
    exact = 1 + 2 * math.cos(math.pi / 11)
    assert torus_maximum(symbol, (11,)) * 2 >= exact
    frequencies = (torch.arange(10, dtype=torch.float64)[:, None] + 0.5) / 10
    too_small = symbol.norms(frequencies - frequencies.round()).max().item() * 2
    assert too_small < exact


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
def test_scales(scale):
    case = random_case(7)
    bound = convolution_norm(**case)
    scaled = convolution_norm(**{**case, "weight": case["weight"] * scale})
    assert float(scaled) == pytest.approx(float(bound) * scale, rel=1e-9)


def test_orthogonal_rank_one_and_zero_kernels():
    shift = torch.zeros(2, 2, 3, 3, dtype=torch.float64)
    shift[0, 1, 0, 1] = shift[1, 0, 2, 2] = 1.0
    for size in ((9, 9), (40, 40), (300, 300)):
        kwargs = {
            "input_size": size,
            "stride": (1, 1),
            "padding": ((1, 1),) * 2,
            "dilation": (1, 1),
            "groups": 1,
        }
        assert 1.0 <= float(convolution_norm(shift, **kwargs)) <= 1.01
        rank_one = torch.ones(4, 3, 3, 3, dtype=torch.float64)
        n = size[0]
        exact = math.sqrt(12) * (1 + 2 * math.cos(math.pi / (n + 1))) ** 2
        assert exact * (1 - REFERENCE) <= float(convolution_norm(rank_one, **kwargs)) <= exact * 1.001
        assert float(convolution_norm(torch.zeros(4, 3, 3, 3), **kwargs)) == 0.0


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("norms", [("l2", "l2"), ("l1", "l1"), ("l2", "linf"), ("l1", "l2")])
def test_transposed_is_the_adjoint(seed, norms):
    case = random_case(3000 + seed)
    case["padding"] = tuple((min(pad), min(pad)) for pad in case["padding"])
    axes = len(case["input_size"])
    function = {1: F.conv_transpose1d, 2: F.conv_transpose2d}[axes]
    channels = case["weight"].shape[0]
    eye = torch.eye(channels * math.prod(case["input_size"]), dtype=torch.float64)
    y = function(
        eye.reshape(-1, channels, *case["input_size"]),
        case["weight"],
        stride=case["stride"],
        padding=tuple(pad[0] for pad in case["padding"]),
        dilation=case["dilation"],
        groups=case["groups"],
        output_padding=tuple(s - 1 for s in case["stride"]) if seed % 2 else 0,
    )
    extra = tuple(s - 1 for s in case["stride"]) if seed % 2 else ()
    exact = operator_norm(y.flatten(1).T, *norms).item()
    bound = transposed_convolution_norm(**case, output_padding=extra, norm_in=norms[0], norm_out=norms[1])
    assert exact * (1 - 1e-10) <= float(bound) <= exact * (1 + 1e-9)


@pytest.mark.parametrize(("size", "stride"), [((6, 8), (1, 1)), ((6, 8), (2, 1)), ((2, 6), (1, 3))])
def test_circular_against_the_matrix(size, stride):
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    eye = torch.eye(2 * math.prod(size), dtype=torch.float64).reshape(-1, 2, *size)
    y = F.conv2d(F.pad(eye, (1, 1, 1, 1), mode="circular"), weight, stride=stride)
    exact = torch.linalg.svdvals(y.flatten(1))[0].item()
    bound = float(
        circular_convolution_norm(weight, input_size=size, stride=stride, dilation=(1, 1), groups=1)
    )
    assert exact * (1 - REFERENCE) <= bound <= exact * (1 + 1e-10)


def test_supremum_is_above_every_frequency():
    weight = torch.randn(1, 5, 4, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    symbol = Symbol(weight / 4)
    points = torch.rand(3000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) - 0.5
    seen = torch.linalg.matrix_norm(symbol.evaluate(points)[0], 2).max().item()
    assert seen <= supremum(symbol) <= seen * 1.01


def test_zero_kernels_have_norm_zero():
    zero = torch.zeros(4, 2, 3, 3)
    kwargs = {"stride": (1, 1), "dilation": (1, 1), "groups": 1}
    assert float(convolution_norm_any_size(zero, **kwargs)) == 0.0
    assert float(convolution_norm_any_size(zero, **kwargs, norm_in="linf", norm_out="linf")) == 0.0
    assert float(circular_convolution_norm(zero, input_size=(5, 5), **kwargs)) == 0.0


def test_refusals():
    weight = torch.ones(4, 2, 3, 3)
    good = {"input_size": (8, 8), "stride": (1, 1), "padding": ((1, 1),) * 2, "dilation": (1, 1), "groups": 2}
    for wrong in (
        {"groups": 3},
        {"stride": (0, 1)},
        {"stride": (1,)},
        {"padding": ((-1, 0), (0, 0))},
        {"input_size": (8,)},
        {"input_size": (0, 8)},
        {"dilation": (9, 1)},
        {"norm_in": "l3"},
        {"norm_in": "linf", "norm_out": "l7"},
    ):
        with pytest.raises(UsageError):
            convolution_norm(weight, **{**good, **wrong})
    weight[0, 0, 0, 0] = math.nan
    with pytest.raises(UsageError, match="non-finite"):
        convolution_norm(weight, **good)
    with pytest.raises(UsageError, match="give the size"):
        convolution_norm_any_size(
            torch.ones(1, 1, 3), stride=(1,), dilation=(1,), groups=1, norm_in="linf", norm_out="l1"
        )
