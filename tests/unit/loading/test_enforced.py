"""Weights of transformers with enforced constants beside a description of what they do not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify.errors import UsageError
from lipverify.loading.enforced import read_enforced, roles
from tests.token_networks import Enforced, Shape

SHAPE = Shape(blocks=2, rotary=True, causal=True, scale=3.0)
SAYS: dict[str, Any] = {
    "kind": "enforced",
    "blocks": 2,
    "heads": 2,
    "softmax_scale": 3.0,
    "residual_scale": 1.0,
    "final_scale": 1.0,
    "gelu": "tanh",
    "rotary": 100.0,
    "causal": True,
    "order": None,
}
ORDER = ["q", "k", "v", "w", "mlp_in", "mlp_out"]


def arrays(net: Enforced) -> dict[str, Any]:
    """By role, heads apart."""
    found: dict[str, Any] = {"embed": np.eye(8, dtype=np.float32)[:5] * 2.0}
    for k, b in enumerate(net.blocks):
        parts = dict(zip(ORDER, (b.q, b.k, b.v, b.w, b.up, b.down), strict=True))
        found |= {f"blocks.{k}.{role}": part.detach().numpy() for role, part in parts.items()}
        found[f"blocks.{k}.q"] = found[f"blocks.{k}.q"].reshape(2, 4, 8)
    return found | {"out": net.out.detach().numpy()}


def saved(folder: Path, changes: dict[str, Any] | None = None, numbered: bool = False) -> tuple[Path, Path]:
    torch.manual_seed(0)
    found = arrays(Enforced(SHAPE))
    says = dict(SAYS)
    if numbered:
        says["order"] = [name.rpartition(".")[2] for name in found]
        np.savez(folder / "w.npz", *found.values())
    else:
        np.savez(folder / "w.npz", **found)
    says = {key: value for key, value in {**says, **(changes or {})}.items() if value != "gone"}
    (folder / "w.json").write_text(json.dumps(says))
    return folder / "w.npz", folder / "w.json"


@pytest.mark.parametrize("numbered", [False, True])
def test_the_network_is_the_one_that_was_described(tmp_path: Path, numbered: bool) -> None:
    weights, says = saved(tmp_path, numbered=numbered)
    graph = lv.load(weights, arch=str(says), input_shape=(3, 8))
    torch.manual_seed(0)
    net = Enforced(SHAPE)
    x = torch.randn(4, 3, 8)
    assert torch.allclose(lv.evaluate(graph, x), net(x), atol=1e-5)
    assert any("--within 0.707107 covers" in note for note in graph.origin.notes)
    assert not graph.origin.trusted_code


def test_its_constant_is_checked(tmp_path: Path) -> None:
    weights, says = saved(tmp_path)
    graph = lv.load(weights, arch=str(says), input_shape=(3, 8))
    region = lv.Bounded(1.0)
    (row,) = lv.audit(graph, norm="token-rms", region=region, analyzers="tokens").rows
    assert row.certificate is not None
    assert str(row.certificate.rigour) == "checked", row.certificate.unchecked


@pytest.mark.parametrize("key", SAYS)
def test_what_is_missing_is_an_error(tmp_path: Path, key: str) -> None:
    weights, says = saved(tmp_path, {key: "gone"})
    with pytest.raises(UsageError, match=f"does not say {key}"):
        lv.load(weights, arch=str(says), input_shape=(3, 8))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": True}, "says heads"),
        ({"heads": 3}, "3 heads of queries"),
        ({"blocks": 3}, "block 2 has no q"),
        ({"blocks": 1}, "has q of block 1"),
        ({"residual_scale": 4.5}, "says residual_scale"),
        ({"softmax_scale": float("nan")}, "says softmax_scale"),
        ({"gelu": "sigmoid"}, "says gelu"),
        ({"rotary": True}, "says rotary"),
        ({"order": ["q"]}, "no number of its own"),
        ({"order": ["queries"]}, "says order"),
        ({"eps": 1.0}, "unknown key"),
    ],
)
def test_what_does_not_fit_is_an_error(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    _, says = saved(tmp_path, changes)
    torch.manual_seed(0)
    tensors = {name: torch.from_numpy(np.array(a)) for name, a in arrays(Enforced(SHAPE)).items()}
    with pytest.raises(UsageError, match=words):
        roles(read_enforced(says), tensors)


def test_shapes_and_names_are_looked_at(tmp_path: Path) -> None:
    _, says = saved(tmp_path)
    tensors = {name: torch.from_numpy(np.array(a)) for name, a in arrays(Enforced(SHAPE)).items()}
    described = read_enforced(says)
    with pytest.raises(UsageError, match=r"k of block 1 is \[8, 7\]"):
        roles(described, {**tensors, "blocks.1.k": torch.zeros(8, 7)})
    with pytest.raises(UsageError, match="says no role of its own"):
        roles(described, {**tensors, "scale": torch.zeros(1)})
    with pytest.raises(UsageError, match="says no role of its own"):
        roles(described, {**tensors, "other.0.q": tensors["blocks.0.q"]})


def test_the_length_of_a_sequence_is_asked_for(tmp_path: Path) -> None:
    weights, says = saved(tmp_path)
    with pytest.raises(UsageError, match="--input-shape N,8"):
        lv.load(weights, arch=str(says))
