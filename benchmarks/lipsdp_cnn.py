"""Real convolutional networks in the LipSDP benchmark: the sibling folder shared/checkpoints, two threads, one process each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKPOINTS = Path(__file__).resolve().parents[2] / "shared" / "checkpoints"
THREADS = 2
SECONDS = 75.0
"""For one search; loading and the other methods come on top."""


@dataclass(frozen=True)
class Network:
    """A file of the checkpoints and the bound that LipSDP has to reach on it."""

    name: str
    file: str
    target: float


NETWORKS = (
    Network("kw-mnist-cnn", "converted/kw-mnist-cnn.onnx", 55.0),
    Network("mnist-convsmall", "mnist-convsmall/convSmallRELU__Point.onnx", 19.5),
    Network("oval-cifar-base", "oval-cifar-base/cifar_base_kw.onnx", 5.45),
    Network("keras-mnist-maxpool", "keras-mnist-maxpool/cnn_max_mninst2.onnx", 126.0),
    Network("mnist-lenet-ckpt", "converted/mnist-lenet-ckpt.onnx", 27200.0),
    Network("cifar-resnet2b", "converted/cifar-resnet2b.onnx", 48.0),
)


def measure(path: str, target: float, seconds: float) -> dict[str, Any]:
    """All methods on one file, in this process."""
    import lipverify as lv
    from lipverify.analyzers.lipsdp.canonical import canonical_form
    from lipverify.analyzers.lipsdp.solver import Settings, fast, solve
    from lipverify.analyzers.product import Product
    from lipverify.analyzers.protocol import Compute
    from lipverify.ir.region import Query

    graph = lv.load(path)
    begun = time.monotonic()
    system = canonical_form(graph)
    materialised = time.monotonic() - begun
    certificate = Product().bound(graph, Query(), Compute())
    # One closed form only: ECLipsE-Fast itself.
    closed_at = time.monotonic()
    closed = fast(system, Compute(), shares=(1.0,))
    closed_seconds = time.monotonic() - closed_at
    started = time.monotonic()
    found = solve(system, Compute(deadline=started + seconds), Settings(tol=1e-3))
    return {
        "neurons": system.neurons,
        "blocks": list(system.sizes),
        "product": float(certificate.upper),
        "eclipse_fast": closed.upper,
        "eclipse_fast_seconds": closed_seconds,
        "lipsdp": found.upper,
        "gap": found.gap,
        "materialise_seconds": materialised,
        "seconds": time.monotonic() - started,
        "seconds_to_target": next((t for t, bound in found.trace if bound <= target), None),
    }


def run_network(network: Network) -> dict[str, Any]:
    """The row of one network, or why there is none."""
    path = CHECKPOINTS / network.file
    row: dict[str, Any] = {"network": network.name, "target": network.target}
    if not path.exists():
        return {**row, "failed": "its file is not beside this repository"}
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}
    command = [sys.executable, __file__, str(path), str(network.target), str(SECONDS)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=8 * SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return {**row, "failed": f"not finished after {8 * SECONDS:.0f} s"}
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        return {**row, "failed": lines[-1][:200]}
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {**row, **found, "kept": found["lipsdp"] is not None and found["lipsdp"] <= network.target}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))))
