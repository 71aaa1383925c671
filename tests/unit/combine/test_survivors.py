"""Copies with fewer channels, paired with their originals by the channels that are left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lipverify as lv
from lipverify.combine import difference
from lipverify.combine.survivors import grown
from lipverify.errors import UsageError
from tests.command import lipverify

Map = dict[str, list[int]]


class Net(nn.Module):
    """kind: what stands between the two convolutions; 6 and 8 channels, 10 hidden numbers, or the lengths of `kept`."""

    def __init__(self, kind: str, first: int = 6, second: int = 8, hidden: int = 10) -> None:
        super().__init__()
        groups = first if kind == "depthwise" else 1
        self.kind, self.a, self.n = kind, nn.Conv2d(1, first, 3, padding=1), nn.BatchNorm2d(first)
        self.p, self.d = nn.PReLU(first), nn.Conv2d(first, first, 3, padding=1, groups=groups)
        wide = 2 * first if kind == "concat" else first
        self.b = nn.Conv2d(wide, second, 3)
        self.c, self.e = nn.Linear(4 * second, hidden), nn.Linear(hidden, 3)
        # Statistics that are no numbers of a fresh layer.
        self.n.running_mean, self.n.running_var = (
            torch.linspace(-0.2, 0.3, first),
            torch.linspace(0.5, 2.0, first),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.a(x))
        if self.kind == "norm":
            h = self.n(h)
        if self.kind == "prelu":
            h = self.p(h - 0.1)
        if self.kind == "residual":
            h = torch.sigmoid(h + self.d(h))
        if self.kind == "depthwise":
            h = torch.tanh(self.d(h))
        if self.kind == "concat":
            h = torch.cat([h, self.d(h)], 1)
        h = nn.functional.avg_pool2d(h, 2) if self.kind == "mean" else nn.functional.max_pool2d(h, 2)
        return self.e(torch.sigmoid(self.c(self.b(h).flatten(1))))


KEPT: Map = {"a": [0, 2, 3, 5], "b": [7, 1, 2, 3, 4, 6], "c": [9, 0, 1, 2, 3, 4, 5]}


def pair(kind: str, noise: float = 0.0) -> tuple[Net, Net, Map]:
    """A network, and what is left of it when channels are cut away."""
    torch.manual_seed(0)
    f = Net(kind).eval()
    g = Net(kind, *(len(kept) for kept in KEPT.values())).eval()
    a, b, c = (torch.tensor(kept) for kept in KEPT.values())
    read = torch.cat([a, 6 + a]) if kind == "concat" else a
    flat = (4 * b[:, None] + torch.arange(4)).reshape(-1)
    state = f.state_dict()
    new = {
        "a.weight": state["a.weight"][a], "a.bias": state["a.bias"][a], "p.weight": state["p.weight"][a],
        "d.weight": state["d.weight"][a] if kind == "depthwise" else state["d.weight"][a][:, a], "d.bias": state["d.bias"][a],
        "b.weight": state["b.weight"][b][:, read], "b.bias": state["b.bias"][b],
        "c.weight": state["c.weight"][c][:, flat], "c.bias": state["c.bias"][c], "e.weight": state["e.weight"][:, c],
        "e.bias": state["e.bias"],
        **{f"n.{part}": state[f"n.{part}"][a] for part in ("weight", "bias", "running_mean", "running_var")},
        "n.num_batches_tracked": state["n.num_batches_tracked"],
    }  # fmt: skip
    g.load_state_dict({name: value + noise * torch.randn(value.shape) if value.is_floating_point() else value
                       for name, value in new.items()})  # fmt: skip
    kept = dict(KEPT)
    if kind in ("residual", "depthwise", "concat"):
        kept["d"] = KEPT["a"]
    return f, g, kept


def graphs(*nets: nn.Module) -> tuple[lv.Graph, ...]:
    return tuple(lv.extract(net, torch.zeros(2, 1, 8, 8)) for net in nets)


@pytest.mark.parametrize("kind", ["plain", "norm", "prelu", "residual", "depthwise", "concat", "mean"])
def test_a_copy_in_the_shape_of_its_original_computes_the_copy(kind: str) -> None:
    f, g, kept = pair(kind)
    one, other = graphs(f, g)
    found = grown(one, other, kept).graph
    assert [node.shape for node in found.nodes] == [node.shape for node in one.nodes]
    x = torch.randn(20, 1, 8, 8, dtype=torch.float64)
    wanted = g.double()(x).detach()
    assert torch.allclose(lv.evaluate(found, x), wanted, rtol=0, atol=1e-12 * float(wanted.abs().max()))
    # All that is read of what was cut away is read with a stored zero: other numbers there change nothing.
    layer = found["b.conv2d"].op
    assert isinstance(layer, lv.ops.Conv)
    assert not layer.weight[:, [1, 4]].any()


def test_the_pair_is_bounded_and_proved_more_tightly_than_side_by_side() -> None:
    f, g, kept = pair("plain", 1e-3)
    one, other = graphs(f, g)
    box = lv.InputBox((1, 8, 8), 0.0, 1.0)
    near = lv.deviation(one, other, box, survivors=kept, budget=4.0)
    x = torch.rand(500, 1, 8, 8, dtype=torch.float64)
    seen = (
        (lv.evaluate(one.to(dtype=torch.float64), x) - lv.evaluate(other.to(dtype=torch.float64), x))
        .abs()
        .max()
    )
    assert near.rigour.name == "CHECKED"
    assert near.proved.issued is not None
    assert lv.verify(near.proved.issued, [one, other]).upper == near.upper
    apart = lv.bounds(difference(one, other).graph, box).output
    assert float(seen) <= float(near.upper) < 0.97 * float(torch.maximum(apart.upper, -apart.lower).max())
    # Channels in a wrong place: a valid range, and a loose one.
    wrong = lv.bounds(difference(one, grown(one, other, kept | {"a": [5, 3, 2, 0]}).graph).graph, box).output
    assert float(torch.maximum(wrong.upper, -wrong.lower).max()) >= float(seen)


CASES: list[tuple[Callable[[Map], Map], str]] = [
    (lambda m: {k: v for k, v in m.items() if k != "a"}, 'layer "a.conv2d" has 6 channels and 4 of them are left'),
    (lambda m: m | {"a": [0, 1, 2]}, "3 channels below 3 are named; the original has 6, the copy 4"),
    (lambda m: m | {"a": [0, 1, 2, 6]}, "4 channels below 7 are named"),
    (lambda m: m | {"a": [0, 1, 1, 2]}, "different channels"), (lambda m: m | {"z": [0]}, 'no layer "z"'),
    (lambda m: m | {"a": [-1, 0, 1, 2]}, "different channels"), (lambda m: m | {"a.conv2d": m["a"]}, "names a layer twice"),
    (lambda m: m | {"a": [True, 0, 2, 3]}, "different channels"), (lambda m: m | {"d": [0, 1, 2, 3]}, "other channels"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), CASES)
def test_maps_that_do_not_fit_are_refused(change: Callable[[Map], Map], words: str) -> None:
    f, g, kept = pair("residual")
    one, other = graphs(f, g)
    with pytest.raises(UsageError, match=words):
        grown(one, other, change(kept))


def test_other_structures_are_refused() -> None:
    one, other = graphs(pair("plain")[0], pair("mean")[1])
    with pytest.raises(UsageError, match=r"stands in its place.*side by side"):
        grown(one, other, KEPT)


@pytest.mark.parametrize(("text", "words"), [
    ("{", "is not JSON"), ("[1]", "names no layer"), ("{}", "names no layer"), ('{"0": [0], "0": [1]}', "names a layer twice"),
    ('{"0": 3}', "a list of different channels"), ('{"0": [0.5, 1]}', "a list of different channels"),
])  # fmt: skip
def test_files_that_are_no_maps_are_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(text)
    done = lipverify(
        "deviate",
        "zoo:digits-relu-mlp",
        "zoo:digits-int8",
        "--box",
        "0,1",
        "--survivors",
        tmp_path / "map.json",
    )
    assert done.returncode == 2
    assert words in done.stderr


def test_the_command_takes_a_map(tmp_path: Path) -> None:
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, 2)).eval() for n in (6, 3)]
    kept = torch.tensor([0, 2, 5])
    with torch.no_grad():
        for part, value in (("weight", nets[0][0].weight[kept]), ("bias", nets[0][0].bias[kept])):
            getattr(nets[1][0], part).copy_(value)
        nets[1][2].weight.copy_(nets[0][2].weight[:, kept])
        nets[1][2].bias.copy_(nets[0][2].bias)
    paths = [tmp_path / f"{name}.onnx" for name in "fg"]
    for net, path in zip(nets, paths, strict=True):
        torch.onnx.export(net, (torch.zeros(1, 4),), path, dynamo=False, verbose=False, input_names=["x"])
    (tmp_path / "map.json").write_text(json.dumps({"/0/Gemm": kept.tolist()}))

    def upper(*more: Any) -> float:
        done = lipverify("deviate", *paths, "--box", "0,1", *more, "--json")
        assert done.returncode == 0, done.stderr
        return float(json.loads(done.stdout)["upper"])

    assert upper("--survivors", tmp_path / "map.json") <= upper()
    done = lipverify("deviate", *paths, paths[1], "--box", "0,1", "--survivors", tmp_path / "map.json")
    assert done.returncode == 2
    assert "give two models" in done.stderr
