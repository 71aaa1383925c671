"""Every operator of the torch front end against eager torch, odd shapes included."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lipverify.errors import UnsupportedModel
from lipverify.frontends.torch_export import extract
from lipverify.interpreter import evaluate
from tests.torch_functions import Function, check

SCALAR = {
    "relu": (lambda m, x: F.relu(x), "ReLU"),
    "leaky_relu": (lambda m, x: F.leaky_relu(x, 0.2), "LeakyReLU"),
    "rrelu": (lambda m, x: F.rrelu(x, training=False), "LeakyReLU"),
    "elu": (lambda m, x: F.elu(x, 0.7), "ELU"),
    "selu": (lambda m, x: F.selu(x), "SELU"),
    "celu": (lambda m, x: F.celu(x, 1.3), "CELU"),
    "sigmoid": (lambda m, x: torch.sigmoid(x), "Sigmoid"),
    "hardsigmoid": (lambda m, x: F.hardsigmoid(x), "Hardsigmoid"),
    "tanh": (lambda m, x: torch.tanh(x), "Tanh"),
    "softplus": (lambda m, x: F.softplus(x), "Softplus"),
    "softplus_beta": (lambda m, x: F.softplus(x, beta=2.5, threshold=30), "Softplus"),
    "gelu": (lambda m, x: F.gelu(x), "GELU"),
    "gelu_tanh": (lambda m, x: F.gelu(x, approximate="tanh"), "GELU"),
    "silu": (lambda m, x: F.silu(x), "SiLU"),
    "mish": (lambda m, x: F.mish(x), "Mish"),
    "hardswish": (lambda m, x: F.hardswish(x), "Hardswish"),
    "hardtanh": (lambda m, x: F.hardtanh(x, -0.3, 0.9), "Clip"),
    "relu6": (lambda m, x: F.relu6(x), "Clip"),
    "clamp": (lambda m, x: x.clamp(-0.5, 2), "Clip"),
    "clamp_min": (lambda m, x: x.clamp_min(0.25), "Clip"),
    "clamp_max": (lambda m, x: x.clamp(max=0.25), "Clip"),
    "threshold": (lambda m, x: F.threshold(x, 0.5, 0.5), "Clip"),
    "abs": (lambda m, x: x.abs(), "Abs"),
    "neg": (lambda m, x: -x, "Scale"),
    "log_sigmoid": (lambda m, x: F.logsigmoid(x), "LogSigmoid"),
    "sin": (lambda m, x: x.sin(), "Sin"),
    "cos": (lambda m, x: x.cos(), "Cos"),
    "erf": (lambda m, x: torch.erf(x), "Erf"),
    "exp": (lambda m, x: x.exp(), "Exp"),
    "square": (lambda m, x: x.square(), "Power"),
    "cube": (lambda m, x: x**3, "Power"),
    "scale": (lambda m, x: x * 0.1, "Scale"),
    "divide": (lambda m, x: x / 0.3, "DivideBy"),
    "shift": (lambda m, x: x + 1.7, "Scale"),
    "subtract": (lambda m, x: x - 2, "Scale"),
    "rsub": (lambda m, x: 2.5 - x, "Scale"),
    "prelu_one": (lambda m, x: F.prelu(x, m.c[:1]), "PReLU"),
    "prelu_channels": (lambda m, x: F.prelu(x, m.c), "PReLU"),
}


@pytest.fixture(scope="module", params=[(4,), (4, 3, 5)], ids=str)
def scalar_functions(request):
    """All scalar functions as the outputs of one module: one export for all of them."""
    module = Function(lambda m, x: tuple(function(m, x) for function, _ in SCALAR.values())).eval()
    return module, extract(module, torch.zeros(2, *request.param))


@pytest.mark.parametrize("name", SCALAR)
def test_scalar_function(name, scalar_functions):
    module, graph = scalar_functions
    index = list(SCALAR).index(name)
    alone = graph.select(index)
    assert alone.operators() == {SCALAR[name][1]: 1}
    for batch, scale in ((1, 1.0), (3, 5.0)):
        x = scale * torch.randn(batch, *graph.input_shape, generator=torch.Generator().manual_seed(batch))
        wanted = module(x)[index]
        found = evaluate(alone.to(dtype=torch.float32), x)
        assert found.shape == wanted.shape
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=4e-6 * max(float(wanted.abs().max()), 1e-3))


def test_softmax_and_its_kin():
    check(lambda m, x: x.softmax(-1), (3, 5), operators={"Softmax": 1})
    check(lambda m, x: F.log_softmax(x, 1), (3, 5), operators={"LogSoftmax": 1})


POSITIVE = {
    "sqrt": lambda m, x: x.sqrt(),
    "reciprocal": lambda m, x: x.reciprocal(),
    "rsqrt": lambda m, x: x.rsqrt(),
    "number over value": lambda m, x: 2 / x,
    "value over value": lambda m, x: x[:, :2] / x[:, 2:],
    "root": lambda m, x: x**0.5,
}


@pytest.mark.parametrize("name", POSITIVE)
def test_functions_of_positive_numbers(name):
    check(POSITIVE[name], (4,), positive=True)


COMPOSED = {
    "tanhshrink": (lambda m, x: F.tanhshrink(x), (4,)),
    "softsign": (lambda m, x: F.softsign(x), (4,)),
    "expm1": (lambda m, x: torch.expm1(x / 10), (4,)),
    "glu": (lambda m, x: F.glu(x, 1), (6, 3)),
    "clamp by tensors": (lambda m, x: x.clamp(-m.c, m.c), (4,)),
    "swish by hand": (lambda m, x: x * torch.sigmoid(x), (4,)),
    "add alpha": (lambda m, x: torch.add(x, x.relu(), alpha=0.3), (4,)),
    "sub alpha": (lambda m, x: torch.sub(x, x.relu(), alpha=3), (4,)),
    "rsub alpha": (lambda m, x: torch.rsub(x, x.relu(), alpha=2), (4,)),
    "stored minus value": (lambda m, x: m.c - x, (4,)),
    "stored over value": (lambda m, x: m.c / (x.abs() + 1), (4,)),
    "integer tensor": (lambda m, x: x * m.i + m.i, (4,)),
    "maximum": (lambda m, x: torch.maximum(x, x.flip(1)), (4,)),
    "minimum with stored": (lambda m, x: torch.minimum(x, m.c), (3, 4)),
    "max other": (lambda m, x: torch.max(x, -x), (4,)),
    "broadcast": (lambda m, x: x[:, :, None] * 0.5 + x[:, None, :], (3,)),
    "masked by a stored mask": (lambda m, x: torch.where(m.mask, x, 0.5), (7,)),
    "masked fill": (lambda m, x: x.masked_fill(m.mask, -1.5), (2, 7)),
    "two branches by a stored mask": (lambda m, x: torch.where(m.mask, x, 2 * x), (7,)),
    "zeros like": (lambda m, x: torch.maximum(x, torch.zeros_like(x)), (4,)),
    "full like": (lambda m, x: x + torch.full_like(x, 0.3), (2, 4)),
    "new ones": (lambda m, x: x + x.new_ones(x.shape[0], 4), (4,)),
    "zeros of the batch": (lambda m, x: torch.cat([x, torch.zeros(x.shape[0], 3)], 1), (4,)),
    "a mask of the batch": (lambda m, x: x * (~(m.c[:4] > 0).expand(x.shape[0], 4)).float(), (4,)),
    "bias token": (lambda m, x: torch.cat([m.c[:3].expand(x.shape[0], 1, 3), x], 1), (2, 3)),
    "dtype round trip": (lambda m, x: x.double().tanh().float(), (4,)),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_composed(name):
    check(*COMPOSED[name])


LINEAR = {
    "linear": (lambda m, x: F.linear(x, m.w, m.w[:, 0]), (7,)),
    "linear without bias on more axes": (lambda m, x: F.linear(x, m.w), (2, 3, 7)),
    "vector weight": (lambda m, x: F.linear(x, m.v), (3, 7)),
    "mm": (lambda m, x: torch.mm(x, m.w.t()), (7,)),
    "matmul": (lambda m, x: x @ m.w.T, (3, 7)),
    "matmul from the left": (lambda m, x: m.w @ x, (7, 2)),
    "matmul with a vector": (lambda m, x: x @ m.v, (3, 7)),
    "addmm": (lambda m, x: torch.addmm(m.w[:, 0], x, m.w.T), (7,)),
    "addmm scaled": (lambda m, x: torch.addmm(m.w[:, 0], x, m.w.T, beta=0.5, alpha=2), (7,)),
    "bmm of values": (lambda m, x: torch.bmm(x, x.transpose(1, 2)), (3, 4)),
    "einsum over two axes": (lambda m, x: torch.einsum("bcij,oij->boc", x, m.k[:, 0]), (2, 3, 2)),
    "einsum, stored first": (lambda m, x: torch.einsum("oi,bi->bo", m.w, x), (7,)),
    "einsum": (lambda m, x: torch.einsum("bti,oi->bto", x, m.w), (3, 7)),
    "einsum, a stack of stored matrices": (lambda m, x: torch.einsum("bhi,hji->bhj", x, m.k[:4, 0]), (4, 2)),
    "einsum without a result": (lambda m, x: torch.einsum("oi,bti", m.w, x), (3, 7)),
    "einsum, one operand": (lambda m, x: torch.einsum("bij->bj", x), (3, 4)),
    "einsum of scores": (lambda m, x: torch.einsum("bqhd,bkhd->bhqk", x, 2 * x + 1), (5, 2, 3)),
    "einsum of averages": (lambda m, x: torch.einsum("bhqk,bkhd->bqhd", x, x.permute(0, 3, 1, 2)), (2, 4, 3)),
    "einsum of axes not named": (lambda m, x: torch.einsum("...id,...jd->...ij", x, x + 1), (2, 5, 3)),
    "einsum of rows": (lambda m, x: torch.einsum("bi,bi->b", x, x)[:, None], (4,)),
    "einsum, outer": (lambda m, x: torch.einsum("bi,bj->bij", x, x), (4,)),
    "einsum, summed first": (lambda m, x: torch.einsum("bij,bk->bik", x, x[:, 0]), (3, 4)),
    "bilinear": (
        lambda m, x: F.bilinear(x, x[:, :3], m.k[:, :, 0, :2].repeat(1, 2, 2)[:, :4, :3], m.k[:, 0, 0, 0]),
        (4,),
    ),
    "bilinear, stored first": (
        lambda m, x: F.bilinear(
            m.c[:4].expand(x.shape[0], 4), x, m.k[:, 0, :, :2].repeat(1, 2, 2)[:, :4, :3]
        ),
        (3,),
    ),
    "distances from stored rows": (lambda m, x: torch.cdist(x, m.w), (7,)),
    "distances of stored rows": (lambda m, x: torch.cdist(m.w[:3], x.unsqueeze(1), p=1.0), (7,)),
    "attention": (lambda m, x: F.scaled_dot_product_attention(x, 2 * x, x + 1), (2, 3, 4)),
    "attention scale": (lambda m, x: F.scaled_dot_product_attention(x, x, x, scale=0.3), (2, 3, 4)),
}


@pytest.mark.parametrize("name", LINEAR)
def test_matrix_product(name):
    check(*LINEAR[name])


CONVOLUTION = {
    "conv2d": (nn.Conv2d(3, 4, 3), (3, 7, 6)),
    "stride, padding": (nn.Conv2d(3, 4, (3, 2), stride=(2, 3), padding=(1, 2)), (3, 8, 7)),
    "dilation, groups": (nn.Conv2d(4, 6, 3, dilation=2, groups=2, bias=False), (4, 7, 8)),
    "same": (nn.Conv2d(3, 4, (4, 3), padding="same", dilation=(1, 2)), (3, 7, 6)),
    "valid": (nn.Conv2d(3, 4, 2, padding="valid"), (3, 7, 6)),
    "circular": (nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="circular"), (3, 7, 6)),
    "reflect": (nn.Conv2d(3, 4, 3, padding=2, padding_mode="reflect"), (3, 7, 6)),
    "replicate": (nn.Conv1d(3, 4, 3, padding=2, padding_mode="replicate"), (3, 7)),
    "conv1d": (nn.Conv1d(3, 4, 3, stride=2, padding=1), (3, 8)),
    "conv1d same": (nn.Conv1d(2, 2, 4, padding="same"), (2, 5)),
    "transposed 2d": (nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), (3, 4, 5)),
    "transposed 2d groups": (
        nn.ConvTranspose2d(4, 2, (2, 3), stride=(3, 2), dilation=2, groups=2),
        (4, 3, 4),
    ),
    "transposed 1d": (nn.ConvTranspose1d(3, 4, 3, stride=2, padding=2), (3, 6)),
}


@pytest.mark.parametrize("name", CONVOLUTION)
def test_convolution(name):
    layer, sample = CONVOLUTION[name]
    check(lambda m, x: layer(x), sample)


POOLING = {
    "max": (lambda m, x: F.max_pool2d(x, 3, 2, 1), (2, 7, 8)),
    "max ceil": (lambda m, x: F.max_pool2d(x, 3, 2, ceil_mode=True), (2, 8, 7)),
    "max dilated": (lambda m, x: F.max_pool2d(x, 2, 1, dilation=2), (2, 7, 6)),
    "max 1d": (lambda m, x: F.max_pool1d(x, 3), (2, 10)),
    "max with indices": (lambda m, x: F.max_pool2d(x, 2, return_indices=True)[0], (2, 4, 6)),
    "average": (lambda m, x: F.avg_pool2d(x, (2, 3), 2, 1), (2, 7, 8)),
    "average uncounted": (lambda m, x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), (2, 7, 8)),
    "average ceil": (lambda m, x: F.avg_pool2d(x, 3, 2, ceil_mode=True), (2, 8, 6)),
    "average ceil padded": (lambda m, x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), (2, 8, 6)),
    "average 1d": (lambda m, x: F.avg_pool1d(x, 3, 2, 1, True, False), (2, 9)),
    "global": (lambda m, x: F.adaptive_avg_pool2d(x, 1), (2, 5, 6)),
    "global 1d": (lambda m, x: F.adaptive_avg_pool1d(x, 1), (2, 5)),
    "adaptive": (lambda m, x: F.adaptive_avg_pool2d(x, (2, 3)), (2, 4, 9)),
    "adaptive none": (lambda m, x: F.adaptive_avg_pool2d(x, (None, 3)), (2, 4, 9)),
    "adaptive max": (lambda m, x: F.adaptive_max_pool2d(x, (2, 1)), (2, 4, 9)),
    "adaptive max global": (lambda m, x: F.adaptive_max_pool1d(x, 1), (2, 9)),
    "mean": (lambda m, x: x.mean((-1, -2)), (2, 5, 6)),
    "mean keepdim": (lambda m, x: x.mean(1, keepdim=True), (2, 5)),
    "sum": (lambda m, x: x.sum(dim=(1, 3)), (2, 5, 3)),
    "amax": (lambda m, x: x.amax((2, 1)), (2, 5)),
    "amin": (lambda m, x: x.amin(-1, True), (2, 5)),
    "variance": (lambda m, x: x.var((1, 2)), (4, 3)),
    "variance by hand": (lambda m, x: (x - x.mean(-1, True)) / (x.var(-1, False, True) + 0.1).sqrt(), (4, 3)),
    "deviation": (lambda m, x: x.std(1, keepdim=True), (4,)),
    "norm": (lambda m, x: x.norm(dim=(1, 2)), (4, 3)),
    "l1 norm": (lambda m, x: x.norm(p=1, dim=-1, keepdim=True), (4, 3)),
    "pairwise distance": (lambda m, x: F.pairwise_distance(x, torch.ones(4)), (4,)),
    "pairwise distance in l1": (lambda m, x: F.pairwise_distance(x, 2 * x, p=1.0, keepdim=True), (4,)),
    "max norm": (lambda m, x: torch.linalg.vector_norm(x, math.inf, dim=1), (4,)),
    "normalise": (lambda m, x: F.normalize(x), (4,)),
    "max dim": (lambda m, x: x.max(dim=1)[0], (2, 5)),
    "min dim": (lambda m, x: x.min(dim=2, keepdim=True).values, (2, 5)),
}


@pytest.mark.parametrize("name", POOLING)
def test_pooling_and_reduction(name):
    check(*POOLING[name])


def with_statistics(layer):
    for name in ("running_mean", "running_var", "weight", "bias"):
        if (tensor := getattr(layer, name, None)) is not None:
            tensor.data.copy_(
                torch.rand(tensor.shape, generator=torch.Generator().manual_seed(len(name))) + 0.3
            )
    return layer.eval()


NORMALISATION = {
    "batch 1d": (nn.BatchNorm1d(4), (4,)),
    "batch 1d on a sequence": (nn.BatchNorm1d(4), (4, 3)),
    "batch 2d": (nn.BatchNorm2d(4, eps=0.1), (4, 3, 2)),
    "batch without affine part": (nn.BatchNorm2d(4, affine=False), (4, 3, 2)),
    "layer": (nn.LayerNorm(4), (3, 4)),
    "layer over two axes": (nn.LayerNorm((3, 4), eps=0.01, elementwise_affine=False), (2, 3, 4)),
    "rms": (nn.RMSNorm(4), (3, 4)),
    "rms eps": (nn.RMSNorm((3, 4), eps=0.1), (2, 3, 4)),
    "instance": (nn.InstanceNorm1d(4, affine=True), (4, 3)),
    "instance with running statistics": (nn.InstanceNorm2d(4, track_running_stats=True), (4, 3, 2)),
    "group": (nn.GroupNorm(2, 4), (4, 3, 2)),
    "group without affine part": (nn.GroupNorm(3, 6, affine=False), (6, 5)),
}


@pytest.mark.parametrize("name", NORMALISATION)
def test_normalisation(name):
    layer, sample = NORMALISATION[name]
    with_statistics(layer)
    check(lambda m, x: layer(x), sample)


SHAPES = {
    "view": (lambda m, x: x.view(x.shape[0], -1), (2, 3, 4)),
    "view without the batch size": (lambda m, x: x.view(-1, 4, 6), (2, 3, 4)),
    "reshape of a transposed": (lambda m, x: x.transpose(1, 2).reshape(x.size(0), 6, 2), (3, 4)),
    "reshape by size arithmetic": (lambda m, x: x.reshape(x.shape[0], x.shape[1] * x.shape[2]), (3, 4)),
    "batch axis moved and back": (lambda m, x: (x.transpose(0, 1) + m.v).transpose(0, 1), (3, 7)),
    "unit axis before the batch": (
        lambda m, x: x.permute(1, 0, 2).reshape(1, x.shape[0], 3)[0].tanh(),
        (1, 3),
    ),
    "flatten": (lambda m, x: x.flatten(1), (2, 3, 4)),
    "flatten part": (lambda m, x: x.flatten(-2), (2, 3, 4)),
    "unflatten": (lambda m, x: x.unflatten(1, (-1, 3)), (6, 2)),
    "squeeze": (lambda m, x: x.squeeze(1).squeeze(-1), (1, 4, 1)),
    "squeeze not": (lambda m, x: x.squeeze(1), (3,)),
    "squeeze several": (lambda m, x: x.squeeze((1, 3)), (1, 4, 1)),
    "unsqueeze": (lambda m, x: x.unsqueeze(0).relu().squeeze(0).unsqueeze(-1), (4,)),
    "permute": (lambda m, x: x.permute(0, 3, 1, 2), (2, 3, 4)),
    "mT": (lambda m, x: x.mT, (3, 4)),
    "movedim": (lambda m, x: x.movedim(1, -1), (2, 3, 4)),
    "expand": (lambda m, x: x.unsqueeze(1).expand(-1, 3, -1), (4,)),
    "repeat": (lambda m, x: x.repeat(1, 2, 3), (2, 3)),
    "repeat with a new axis": (lambda m, x: x.unsqueeze(1).repeat(1, 2, 1), (3,)),
    "repeat_interleave": (lambda m, x: x.repeat_interleave(2, dim=1), (3,)),
    "clone, contiguous, detach": (lambda m, x: x.t().contiguous().clone().t().detach(), (3,)),
    "slice": (lambda m, x: x[:, 1:-1, ::2], (5, 7)),
    "select": (lambda m, x: x[:, -2], (5, 3)),
    "index": (lambda m, x: x[:, m.i], (5, 3)),
    "index of two axes": (lambda m, x: x[:, m.i, m.i], (5, 4)),
    "index by a matrix": (lambda m, x: x[:, :, m.i.view(2, 2)], (2, 5)),
    "index by a list": (lambda m, x: x[:, [2, -1, 0]], (5,)),
    "index by a mask": (lambda m, x: x[..., m.mask], (2, 7)),
    "index_select": (lambda m, x: x.index_select(2, m.i), (2, 5)),
    "flip": (lambda m, x: x.flip(-1), (2, 5)),
    "roll": (lambda m, x: x.roll(2, -1), (2, 5)),
    "cat": (lambda m, x: torch.cat([x, m.c.expand(x.shape[0], 4), -x], -1), (4,)),
    "stack": (lambda m, x: torch.stack([x, 2 * x, x], -1), (4,)),
    "split": (lambda m, x: torch.cat(x.split(2, 1)[::-1], 1), (5, 2)),
    "split sizes": (lambda m, x: torch.cat(x.split([1, 3, 1], -1)[1:], -1), (2, 5)),
    "chunk": (lambda m, x: torch.cat(x.chunk(3, 1)[::-1], 1), (7,)),
    "unbind": (lambda m, x: x.unbind(1)[2], (3, 4)),
    "slice assignment": (lambda m, x: assigned(x, (slice(None), slice(1, 3)), 2 * x[:, :2]), (5,)),
    "strided assignment": (lambda m, x: assigned(x, (slice(None), slice(None, None, 2)), m.c[:3]), (5,)),
    "entry assignment": (lambda m, x: assigned(x, (slice(None), 1), 0.5), (3, 2)),
    "pad": (lambda m, x: F.pad(x, (1, 2, 0, 3), value=0.7), (2, 3)),
    "crop": (lambda m, x: F.pad(x, (-1, 2)), (2, 5)),
    "pad reflect": (lambda m, x: F.pad(x, (2, 1, 1, 0), mode="reflect"), (2, 4, 5)),
    "pad replicate": (lambda m, x: F.pad(x, (2, 1), mode="replicate"), (2, 4)),
    "pad circular": (lambda m, x: F.pad(x, (1, 2, 3, 0), mode="circular"), (2, 4, 5)),
    "pixel_shuffle": (lambda m, x: F.pixel_shuffle(x, 2), (8, 3, 2)),
    "pixel_unshuffle": (lambda m, x: F.pixel_unshuffle(x, 2), (2, 4, 6)),
    "channel_shuffle": (lambda m, x: F.channel_shuffle(x, 3), (6, 2, 2)),
    "upsample": (lambda m, x: F.interpolate(x, scale_factor=2), (2, 3, 4)),
    "upsample unequal": (lambda m, x: F.interpolate(x, size=(6, 4)), (2, 3, 4)),
    "upsample broken": (lambda m, x: F.interpolate(x, scale_factor=1.5), (2, 3, 4)),
    "upsample linear": (lambda m, x: F.interpolate(x, scale_factor=2.5, mode="linear"), (2, 5)),
    "upsample bilinear": (
        lambda m, x: F.interpolate(x, (7, 9), mode="bilinear", align_corners=True),
        (2, 3, 4),
    ),
    "upsample exact": (lambda m, x: F.interpolate(x, size=(7,), mode="nearest-exact"), (2, 3)),
    "sort": (lambda m, x: x.sort(dim=1).values, (5, 2)),
    "sort descending": (lambda m, x: torch.sort(x, descending=True, stable=True)[0], (5,)),
    "topk": (lambda m, x: x.topk(4, dim=1).values, (4, 3)),
    "topk smallest few": (lambda m, x: x.topk(2, dim=-1, largest=False).values, (3, 5)),
}


def assigned(x, index, entry):
    x = x.clone()
    x[index] = entry
    return x


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    check(*SHAPES[name])


def test_number_of_the_program_is_kept_exactly():
    graph = check(lambda m, x: x * 0.1, (3,))
    assert float(graph.output.op.scale) == 0.1
    assert math.prod(graph.output.op.scale.shape) == 1


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda m, x: x * (x > 0), "ReLU"),
        (lambda m, x: torch.where(x <= 0, torch.zeros_like(x), x), "ReLU"),
        (lambda m, x: torch.where(x > 0, x, 0.2 * x), "LeakyReLU"),
        (lambda m, x: torch.where(x >= 0, x, m.c * x), "PReLU"),
        (lambda m, x: (x < 0).float() * x, "Clip"),
        (lambda m, x: torch.where(x > 0, x, 0.5 * (torch.exp(x) - 1)), "ELU"),
        (lambda m, x: torch.where(x > 0, x, torch.exp(x) - 1), "ELU"),
        (lambda m, x: x * (x > 0) + 0.2 * x * (x <= 0), "Clip"),
    ],
)
def test_relu_written_as_a_choice(function, kind):
    assert kind in check(function, (4,)).operators()


def test_a_number_does_not_change_the_type_of_the_graph():
    graph = extract(nn.Sequential(nn.Linear(3, 2), Function(lambda m, x: 0.1 * x)).eval(), torch.zeros(2, 3))
    assert graph.dtype is torch.float32


def test_upsampling_by_whole_factors_is_one_operator():
    check(lambda m, x: F.interpolate(x, scale_factor=(2, 3)), (2, 3, 4), operators={"Upsample": 1})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_types(dtype):
    layer = nn.Linear(4, 3, dtype=dtype)
    module = nn.Sequential(layer, nn.Tanh()).eval()
    graph = extract(module, torch.zeros(2, 4, dtype=dtype))
    assert graph.dtype is dtype
    assert torch.equal(graph["0.linear"].op.weight, layer.weight)


_ANGLES = torch.outer(torch.arange(5.0), 1 / 10.0 ** torch.arange(2))


def _pairs(x):
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())


def _turns():
    return torch.polar(torch.ones_like(_ANGLES), _ANGLES)


PAIRS = {
    "turned tokens": lambda m, x: torch.view_as_real(_pairs(x) * _turns().view(5, 1, 2)).flatten(-2),
    "turned heads": lambda m, x: torch.view_as_real(_pairs(x.transpose(1, 2)) * _turns()).flatten(-2),
    "two dependent factors": lambda m, x: torch.view_as_real(_pairs(x) * _pairs(x.flip(-1))),
    "parts": lambda m, x: torch.cat([(_pairs(x) * 2.0).real, (_turns()[:, None] * _pairs(x)).imag], -1),
    "made of parts": lambda m, x: torch.view_as_real(torch.complex(x[..., ::2], x[..., 1::2]) * x[..., :2]),
}


def test_complex_products_are_read_as_pairs():
    module = Function(lambda m, x: tuple(function(m, x) for function in PAIRS.values())).eval()
    graph, x = extract(module, torch.zeros(2, 5, 2, 4)), torch.randn(3, 5, 2, 4)
    for index, wanted in enumerate(module(x)):
        got = evaluate(graph.select(index).to(dtype=torch.float64), x.double())
        assert torch.allclose(got, wanted.double(), atol=1e-5)


def test_other_complex_numbers_are_refused():
    with pytest.raises(
        UnsupportedModel, match="complex numbers; multiply complex numbers and take them apart"
    ):
        extract(Function(lambda m, x: _pairs(x).abs()).eval(), torch.zeros(2, 4))
