"""Every script in examples/ runs and prints what it promises."""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from tests.processes import run
from tests.tiers import also

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("[0-9][0-9]_*.py"))
ALONE = ("08_write_my_own_analyzer.py", "09_write_my_own_operator.py", "10_gate_a_pipeline.py")
"""What they register, or that they end, is nobody else's business: each has a process of its own."""
SAYS = {
    "01_bound_a_network.py": ("product: L <= ", "lipsdp: L <= "),
    "02_onnx_file.py": ("import check", "l2: ", "linf: "),
    "03_local_bounds.py": ("everywhere: L <= ", "radius 0.02: "),
    "04_certified_radii.py": ("point 0", "point 3", "certified"),
    "05_compare_models.py": ("ReLU: product ", "GELU: product ", "one file"),
    "06_monotone.py": ("around patient 0", "all patients", ": increasing", ": neither", "falls by"),
    "07_maxmin_or_relu.py": ("digits-relu-mlp: accuracy", "<= L <= 0.9999995"),
    "08_write_my_own_analyzer.py": ("with-margin: ", "not Linear"),
    "09_write_my_own_operator.py": ("product: ", "lipsdp: "),
    "10_gate_a_pipeline.py": ("orthogonal: exit 0", "cnn: exit 3", "<failure"),
    "11_verify_a_certificate.py": ("valid: L <= ", "RefutedCertificate"),
    "12_changed_copy.py": (
        "digits-int8: no output moves by more than 1.7",
        "labels are certified to be kept",
    ),
    "13_policy_in_the_loop.py": (
        "without the gain: the plant with this gain does not settle",
        "near 0, checked: runs of x+",
    ),
    "14_two_player_game.py": ("margin at least 0.", "proved again: "),
    "15_private_training.py": ("at most 2.0000 (checked)", "at epsilon 5.9"),
    "16_pendulum.py": ("checked: runs of x+", "stay within 0.2", "within 1 radian: policy less gain"),
    "17_a_robot_and_its_sensors.py": ("checked: measurements wrong by", "to stay within 0.05"),
}


def alone(script: str, folder: Path) -> str:
    done = run(EXAMPLES / script, folder=folder, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def here(script: str, folder: Path) -> str:
    """Run as a program in this process, which has torch."""
    out = io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        torch.random.fork_rng(devices=[]),
        mock.patch.object(sys, "argv", [script]),
    ):
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    return out.getvalue()


def test_there_are_examples_for_the_first_steps() -> None:
    assert set(SAYS) <= set(SCRIPTS)


@pytest.mark.parametrize(
    "script",
    [
        also(s, "seconds each; `make examples` runs it") if s[:2] in ("05", "10", "12", "16", "17") else s
        for s in SCRIPTS
    ],
)
def test_an_example_runs(script: str, tmp_path: Path) -> None:
    said = alone(script, tmp_path) if script in ALONE else here(script, tmp_path)
    for words in SAYS.get(script, ()):
        assert words in said
    # An example leaves nothing behind in the folder it is run from.
    assert not list(tmp_path.iterdir()) or script not in SAYS
