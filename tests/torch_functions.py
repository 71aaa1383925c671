"""Functions of tensors as modules, extracted and compared with eager torch."""

from __future__ import annotations

import torch
from torch import nn

from lipverify.frontends.torch_export import extract
from lipverify.interpreter import evaluate


class Function(nn.Module):
    """A function of a tensor as a module, with a few stored tensors to play with."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        generator = torch.Generator().manual_seed(3)
        self.register_buffer("w", torch.randn(5, 7, generator=generator))
        self.register_buffer("v", torch.randn(7, generator=generator))
        self.register_buffer("c", torch.rand(4, generator=generator) + 0.5)
        self.register_buffer("i", torch.tensor([3, 0, 0, 2]))
        self.register_buffer("k", torch.randn(6, 2, 3, 2, generator=generator))
        self.register_buffer("mask", torch.tensor([True, False, True, True, False, False, True]))

    def forward(self, x):
        return self.function(self, x)


def check(function, sample, *, dtype=torch.float32, positive=False, operators=None):
    module = Function(function).to(dtype).eval()
    graph = extract(module, torch.zeros(2, *sample, dtype=dtype), check=not positive)
    for batch, scale in ((1, 1.0), (3, 5.0)):
        x = scale * torch.randn(batch, *sample, dtype=dtype, generator=torch.Generator().manual_seed(batch))
        x = x.abs() + 0.1 if positive else x
        wanted = module(x.clone())
        found = evaluate(graph.to(dtype=dtype), x)
        assert found.shape == wanted.shape
        size = max(float(wanted.abs().max()), 1e-3)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=4e-6 * size, check_dtype=True)
    if operators is not None:
        assert graph.operators() == operators
    return graph
