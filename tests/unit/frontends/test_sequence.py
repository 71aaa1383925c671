"""Chains of torch's own modules: the same graph with and without tracing, and whatever is more is traced."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn

from lipverify import zoo
from lipverify.frontends.torch_export.export import traced
from lipverify.frontends.torch_export.sequence import chained

CHAINS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "convolutions": (
        nn.Sequential(
            nn.Sequential(nn.Conv2d(2, 4, 3, (2, 1), (1, 0), groups=2), nn.BatchNorm2d(4), nn.SiLU()),
            nn.MaxPool2d((2, 3), 2, (1, 1), ceil_mode=True),
            nn.AvgPool2d(2, 1, 1, count_include_pad=False),
            nn.Dropout(),
            nn.Flatten(1, 2),
            nn.Linear(4, 2, bias=False),
            nn.ELU(0.5),
        ),
        (2, 9, 6),
    ),
    "sequences": (
        nn.Sequential(nn.Conv1d(3, 2, 2, dilation=2), nn.BatchNorm1d(2, affine=False), nn.Tanh(), nn.Flatten(), nn.SELU()),
        (3, 5),
    ),
    "one module": (nn.Linear(3, 2), (3,)),
    "shared": (nn.Sequential(*2 * [nn.Linear(3, 3), nn.LeakyReLU(0.3)], nn.Identity(), nn.Sigmoid()), (2, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_has_the_graph_that_tracing_gives(name: str) -> None:
    torch.manual_seed(0)
    module, shape = CHAINS[name]
    module.eval()
    example = torch.zeros(2, *shape)
    graph = chained(module, example)
    assert graph is not None
    assert graph.digest == traced(module, example).digest
    assert [n.name for n in graph.nodes] == [n.name for n in traced(module, example).nodes]


def _hooked() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    module[0].register_forward_hook(lambda *_: None)
    return module


def _own_forward() -> nn.Module:
    module = nn.Linear(3, 3)
    module.forward = lambda x: x  # type: ignore[method-assign]
    return module


class _Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "hook": _hooked,
    "forward of its own": _own_forward,
    "subclass": lambda: nn.Sequential(_Doubled(3, 3)),
    "parametrized": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
    "in place": lambda: nn.Sequential(nn.ReLU(inplace=True)),
    "samples flattened": lambda: nn.Sequential(nn.Flatten(0)),
    "other type": lambda: nn.Linear(3, 3).double(),
    "training": lambda: nn.Sequential(nn.Linear(3, 3)).train(),
    "no entry": lambda: nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)),
    "unbatched convolution": lambda: nn.Conv2d(2, 2, 1),
    "reflected border": lambda: nn.Conv1d(3, 3, 3, padding=1, padding_mode="reflect"),
    "wrong size": lambda: nn.Linear(4, 3),
    "nothing": lambda: nn.Sequential(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_more_than_a_chain_is_traced(name: str) -> None:
    module = OTHERS[name]()
    module = module if name == "training" else module.eval()
    shape = {"unbatched convolution": (3, 3), "reflected border": (3, 4)}.get(name, (3,))
    assert chained(module, torch.zeros(2, *shape)) is None


def test_chains_of_the_zoo_are_the_graphs_of_tracing() -> None:
    module, card = zoo.load_module("digits-cnn")
    example = zoo.example_input(card)
    graph = chained(module, example)
    assert graph is not None
    assert graph.digest == traced(module, example).digest


def test_a_chain_is_read_without_the_machinery_of_tracing() -> None:
    code = "import sys, lipverify as lv; lv.load('zoo:digits-cnn'); print('torch._dynamo' in sys.modules)"
    # A process of its own: those of the tests begin with torch as a whole.
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=250
    )
    assert done.stdout.split() == ["False"], done.stderr[-2000:]
