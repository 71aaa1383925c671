"""How wrong may a walking robot's sensors be? Give its policy as an ONNX file; without one it is a random network.

    python 17_a_robot_and_its_sensors.py go1_policy.onnx

The policy of the Go1 robot is in google-deepmind/mujoco_playground (48 observations, normalised inside; 12 joint targets).
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

import lipverify as lv
from lipverify import derived

# Two facts about the body that somebody states, not this example: how fast its steps forget, and what a unit of action moves.
CONTRACTION, MOVED = 0.9, 0.02
# The state may be wrong by this much, in l2.
ALLOWED = 0.05

with tempfile.TemporaryDirectory() as folder:
    if len(sys.argv) > 1:
        path = Path(sys.argv[1])
    else:
        torch.manual_seed(0)
        form = nn.Sequential(
            nn.Linear(48, 64), nn.SiLU(), nn.Linear(64, 32), nn.SiLU(), nn.Linear(32, 12), nn.Tanh()
        )
        path = Path(folder) / "policy.onnx"
        torch.onnx.export(form.eval(), (torch.zeros(1, 48),), path, dynamo=False)
    graph = lv.load(path)
    audit = lv.audit(graph, analyzers=["product"], budget=60)
    certificate = audit.certificates["product"]
    upper, slope = float(certificate.upper), float(torch.as_tensor(audit.lower.value))
    print(
        f"{certificate.rigour}: actions change by at most {upper:.6g} times what observations do; a pair has {slope:.4g}"
    )

    # The answer is linear in the error of the sensors: the margin is what makes it the state's own.
    one = derived.disturbed(CONTRACTION, audit, 1.0, amplification=MOVED)
    margin = ALLOWED / one.upper * (1 - 1e-9)
    found = derived.disturbed(CONTRACTION, audit, margin, amplification=MOVED)
    print(f"{found.rigour}: {found.statement}")
    print(f"sensors may be wrong by {margin:.3g} in l2, for the state to stay within {ALLOWED}")
    assert found.upper <= ALLOWED
    # Proved again from the file: the constant, and the sum over all steps.
    assert derived.verify_derived(found).value == found.upper
