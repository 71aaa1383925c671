"""Whole networks in the spellings people use, through torch.export, against the modules themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lipverify.frontends.torch_export import extract
from lipverify.interpreter import evaluate


def agrees(module: nn.Module, *sample: int, dtype: torch.dtype = torch.float32):
    """Extracts with the import check on, compares once more on inputs of our own, returns the graph."""
    graph = extract(module, torch.zeros(2, *sample, dtype=dtype))
    generator = torch.Generator().manual_seed(7)
    x = 2 * torch.randn(5, *sample, generator=generator).to(dtype)
    with torch.no_grad():
        wanted = module(x.clone())
    found = evaluate(graph.to(dtype=dtype), x)
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert graph.origin.import_check is not None
    assert graph.origin.import_check.max_abs_output > 0
    return graph


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_mlp():
    graph = agrees(nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3)).eval(), 7)
    assert graph.operators() == {"Linear": 2, "ReLU": 1}
    assert [node.name for node in graph] == ["input", "0.linear", "1.relu", "2.linear"]
    assert graph.input_shape == (7,)
    assert graph.output_shape == (3,)


def test_cnn_with_batch_norm_and_dropout():
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(4 * 2 * 3, 2),
    ).eval()
    module[1].running_mean.normal_()
    module[1].running_var.uniform_(0.5, 2)
    graph = agrees(module, 3, 9, 11)
    assert graph.operators() == {
        "Conv": 1,
        "BatchNorm": 1,
        "ReLU": 1,
        "MaxPool": 1,
        "Reshape": 1,
        "Linear": 1,
    }
