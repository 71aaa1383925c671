"""Networks that nobody in this project made: what is imported computes what the file computes, the rest is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

import lipverify as lv
from lipverify import derived
from lipverify.errors import UnsupportedModel
from lipverify.frontends.onnx import extract_onnx
from tests.clocks import within
from tests.conftest import THIRD_PARTY

pytestmark = [
    pytest.mark.third_party,
    pytest.mark.skipif(not THIRD_PARTY.is_dir(), reason="the sibling folder shared/checkpoints is absent"),
]

REFUSED = {
    "quant_model": 'onnx.brevitas::Quant "Quant_4": operators of this domain are not covered',
    "past": 'the output depends on 8 inputs \\("input_ids", "position_ids"',
    "silero_vad_16k_op15": 'the output depends on 3 inputs \\("input", "state", "sr"\\)',
}
SHAPES = {
    "ACASXU_run2a_1_1_batch_2000": ((5,), (5,)),
    "cifar_base_kw": ((3, 32, 32), (10,)),
    "cnn_max_mninst2": ((28, 28, 1), (10,)),
    "model_v8": ((900, 120), (1,)),
    "float_model": ((3, 4, 4), (3, 12, 12)),
    "go1_policy": ((48,), (12,)),
    "version-slim-320_without_postprocessing": ((3, 240, 320), (4420, 2)),
    "modadd-transformer": ((2, 128), (59,)),
    "groupsort-wine": ((11,), (1,)),
}


def files() -> list[Path]:
    return sorted(THIRD_PARTY.glob("**/*.onnx"))


def test_all_are_here() -> None:
    stems = {path.stem for path in files()}
    assert len(stems) >= 27
    assert set(REFUSED) | set(SHAPES) <= stems


@pytest.mark.parametrize("path", [p for p in files() if p.stem not in REFUSED], ids=lambda p: p.stem)
def test_imported(path: Path) -> None:
    with within(60):
        graph = extract_onnx(path)
    check = graph.origin.import_check
    assert check is not None
    assert check.samples >= 6
    assert check.max_abs_difference < 1e-4 * check.max_abs_output
    if path.stem in SHAPES:
        assert (graph.input_shape, graph.output_shape) == SHAPES[path.stem]


@pytest.mark.parametrize("path", [p for p in files() if p.stem in REFUSED], ids=lambda p: p.stem)
def test_refused(path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=REFUSED[path.stem]) as caught:
        extract_onnx(path)
    assert caught.value.exit_code == 5
    assert "export" in str(caught.value) or "--input" in str(caught.value)


def test_normalisation_inside_a_policy_is_kept() -> None:
    """Sub and Mul by stored numbers stand before the first layer: units are those of the raw observation."""
    path = next(p for p in files() if p.stem == "go1_policy")
    graph = extract_onnx(path)
    assert [node.op.kind() for node in graph.nodes[1:3]] == ["Scale", "Scale"]


def test_a_margin_for_the_sensors_of_a_robot_follows_from_the_policys_constant() -> None:
    """As examples/17_a_robot_and_its_sensors.py, by hand: .05 = .02 L margin / (1 - .9)."""
    path = next(p for p in files() if p.stem == "go1_policy")
    audit = lv.audit(lv.load(path), analyzers=["product"], budget=60)
    found = derived.disturbed(0.9, audit, 2.3e-5, amplification=0.02)
    assert float(audit.certificates["product"].upper) == pytest.approx(10751.3, rel=1e-4)
    assert found.upper == pytest.approx(0.02 * 10751.3 * 2.3e-5 / 0.1, rel=1e-4)
    assert str(found.rigour) == "checked"


def test_two_outputs_of_a_detector() -> None:
    path = next(p for p in files() if p.stem.startswith("version-slim"))
    graph = extract_onnx(path)
    assert [graph[name].shape for name in graph.outputs] == [(4420, 2), (4420, 4)]
    assert extract_onnx(path, output=1).output_shape == (4420, 4)
    assert graph.operators()["BatchNorm"] == 25
