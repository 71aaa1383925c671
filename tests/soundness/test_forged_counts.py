"""What of a file of weights takes part is counted by its tensors, not by their numbers."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify import checkers
from lipverify.loading.safetensors import write_safetensors
from tests.soundness.test_forged import certificate, forged

LAYERS = "import torch\ndef make(): return torch.nn.Sequential(*(torch.nn.Linear(2, 2, bias=False) for _ in range({})))\n"


def saved(count: int) -> bytes:
    return write_safetensors({f"{k}.weight": 10.0 * torch.eye(2) for k in range(count)})


@pytest.mark.parametrize("layers", [1, 2])
def test_equal_tensors_are_several(layers: int, tmp_path: Path) -> None:
    """Of two layers 10 I a certificate about one, "at most 10", said that all of the file takes part: the network has 100."""
    mine, both = tmp_path / "mine.safetensors", tmp_path / "both.safetensors"
    mine.write_bytes(saved(layers))
    both.write_bytes(saved(2))
    (tmp_path / "a.py").write_text(LAYERS.format(layers))
    graph = lv.load(mine, arch=f"{tmp_path}/a.py:make", trust_code=True, input_shape=(2,))
    verdict = checkers.verify_file(forged(certificate(graph, tmp_path), both), both)
    assert verdict.weights is not None
    assert (verdict.weights["stored"], verdict.weights["used"]) == (2, layers)
    assert verdict.claim.startswith("not all of the file takes part: 1 of 2") is (layers == 1)


def test_repeated_numbers_are_tensors_of_the_file() -> None:
    """Tensors that repeat the numbers of a storage are none that a certificate can name, and counted all the same."""
    buffer = io.BytesIO()
    one = torch.ones(1)
    torch.save({"a": one, "b": one.expand(9), "c": one.expand(3, 3)}, buffer)
    model = checkers.model_of_bytes("m.pt", buffer.getvalue())
    assert model.holds(np.ones(1, np.float32))
    assert (model.stored, len(model.tensors)) == (3, 1)
