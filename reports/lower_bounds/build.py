"""Lower bounds as a user gets them: `lipverify audit --analyzers product` of third-party networks, l2, everywhere.

    python reports/lower_bounds/build.py

Writes README.md beside this file: the witness of each network, the best figure known from longer searches by hand, their ratio,
and what the whole audit cost, start-up, product and proofs included, in processor seconds.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CHECKPOINTS = HERE.parents[1] / ".." / "shared" / "checkpoints"
NETWORKS = {
    "kw-mnist-cnn": ("converted/kw-mnist-cnn.onnx", 39.1),
    "cifar-resnet20": ("converted/cifar-resnet20.onnx", 74.4),
    "cifar-resnet2b": ("converted/cifar-resnet2b.onnx", 7.36),
    "oval-cifar-base": ("oval-cifar-base/cifar_base_kw.onnx", 2.43),
    "mnist-convsmall": ("mnist-convsmall/convSmallRELU__Point.onnx", 14.03),
    "mnist-lenet-ckpt": ("converted/mnist-lenet-ckpt.onnx", 312.0),
    "keras-mnist-maxpool": ("keras-mnist-maxpool/cnn_max_mninst2.onnx", 39.9),
}


def spent() -> float:
    """Processor seconds of all child processes so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def row(name: str) -> str:
    """One line of the table."""
    path, known = NETWORKS[name]
    before = spent()
    command = [
        sys.executable,
        "-m",
        "lipverify",
        "audit",
        str(CHECKPOINTS / path),
        "--analyzers",
        "product",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    document = json.loads(done.stdout)
    lower, upper = document["lower"]["value"], document["results"][0]["upper"]
    if lower > upper:
        raise SystemExit(f"{name}: a lower bound of {lower} above an upper bound of {upper}")
    return (
        f"| {name} | {lower:.4g} | {known:g} | {lower / known:.2f} | {upper:.4g} | {spent() - before:.1f} |"
    )


def main() -> None:
    """Measures and writes."""
    lines = [
        "# Lower bounds of third-party networks",
        "",
        "`python reports/lower_bounds/build.py`: l2 to l2, everywhere, `lipverify audit --analyzers product`, seed 0;",
        "processor seconds of the whole command.",
        "",
        "| network | witness | known | ratio | product | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name in NETWORKS:
        lines.append(row(name))
        print(lines[-1], flush=True)
    (HERE / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
