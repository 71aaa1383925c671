"""Bounds around real images on networks of other people: which rows there are, how one is measured, and their tables."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

LIMIT_SECONDS = 1100


@dataclass(frozen=True)
class Around:
    """One row. radius: as the command line takes it, in units of the model's input. No budget: numbers depend on no clock."""

    name: str
    file: str
    images: str
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    """The model reads (image / 255 - shift) / scale, channel by channel."""
    radius: str
    count: int
    norm: str = "linf"
    ball: str = "linf"
    analyzer: str = "local"
    correct: bool = False
    """Only images that the network classifies correctly."""
    wanted: tuple[float, ...] = ()
    """Largest bounds for the points, where there is a target."""


MNIST = ("mnist", (0.0,), (1.0,), "1/255", 10)
OVAL = ("cifar10", (0.485, 0.456, 0.406), (0.225,) * 3)
RESNET = ("cifar10", (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
_OVAL_FILE, _RESNET_FILE = "oval-cifar-base/cifar_base_kw.onnx", "converted/cifar-resnet2b.onnx"

LOCAL = (
    Around("mnist-mlp-3x50", "mnist-mlp-3x50/mnist_relu_3_50.onnx", *MNIST),
    Around("kw-mnist-cnn", "converted/kw-mnist-cnn.onnx", *MNIST),
    Around("mnist-convsmall", "mnist-convsmall/convSmallRELU__Point.onnx", *MNIST),
    Around("cntk-mnist", "cntk-mnist/mnist.onnx", "mnist", (0.0,), (1 / 255,), "1", 10),
    Around("oval-cifar-base", _OVAL_FILE, *OVAL, f"{1 / 255 / 0.225!r}", 10),
    # The channels have scales of their own: the ball of the smallest holds one grey level in each.
    Around("cifar-resnet2b", _RESNET_FILE, *RESNET, f"{1 / 255 / 0.2435!r}", 10),
)
"""Ten images, one grey level in every pixel."""

SMALL = {"count": 3, "norm": "l2", "analyzer": "local-sdp", "correct": True}
BALLS = (
    Around("oval-cifar-base l2 0.1", _OVAL_FILE, *OVAL, "0.1", ball="l2", wanted=(0.47, 1.18, 1.88), **SMALL),
    Around("oval-cifar-base linf 2/255", _OVAL_FILE, *OVAL, "2/255", wanted=(0.39, 1.12, 1.78), **SMALL),
    Around("cifar-resnet2b l2 0.1", _RESNET_FILE, *RESNET, "0.1", ball="l2", wanted=(1.40, 3.1, 2.4), **SMALL),
    Around(
        "cifar-resnet2b l2 0.5", _RESNET_FILE, *RESNET, "0.5", ball="l2", wanted=(33.7, 30.5, 29.4), **SMALL
    ),
)  # fmt: skip
"""l2 constants of the first three images classified correctly; radii in units of the model's input."""


def points(row: Around, checkpoints: Path) -> np.ndarray:
    """The images in units and shape of the model's input."""
    import torch

    import lipverify as lv

    with np.load(checkpoints / "inputs" / f"{row.images}.npz") as stored:
        images, labels = stored["images"].astype(np.float64) / 255, stored["labels"]
    shift, scale = (np.array(numbers)[:, None, None] for numbers in (row.shift, row.scale))
    x = (images - shift) / scale
    graph = lv.load(checkpoints / row.file)
    x = x.reshape(len(x), *graph.input_shape)
    if row.correct:
        scores = lv.evaluate(graph.to(dtype=torch.float64), torch.from_numpy(x))
        x = x[scores.flatten(1).argmax(1).numpy() == labels]
    return x[: row.count]


def measure(row: Around, checkpoints: Path) -> dict[str, Any]:
    """One command as a user would run it, on one thread: processor seconds then do not depend on what else is running."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "points.npz"
        np.savez(data, x=points(row, checkpoints))
        command = [sys.executable, "-m", "lipverify", "audit", str(checkpoints / row.file), "--json"]
        command += ["--data", str(data), "--radius", row.radius, "--norm", row.norm, "--ball", row.ball]
        command += ["--analyzers", row.analyzer]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        started, worked = time.monotonic(), processor_seconds()
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False, env=environment
            )
        except subprocess.TimeoutExpired:
            return {"exit": None, "seconds": LIMIT_SECONDS, "said": f"stopped after {LIMIT_SECONDS} s"}
    found: dict[str, Any] = {
        "exit": done.returncode,
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(processor_seconds() - worked, 1),
        "load": round(os.getloadavg()[0], 1),
        "analyzer": row.analyzer,
        "query": f"{row.norm} constant, {row.ball} balls of radius {float_text(row.radius)}",
        "wanted": list(row.wanted),
    }
    if done.returncode != 0:
        return {**found, "said": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    document = json.loads(done.stdout)
    (result,) = document["results"]
    return {
        **found,
        "upper": result["upper"],
        "checked": sum(result["checked"]) if "checked" in result else 0,
        "lower": document["lower"]["value"],
        "analysis_seconds": round(result["seconds"], 1),
    }


def _times(found: dict[str, Any]) -> str:
    proved = f"{found['checked']} of {len(found['upper'])}" if "checked" in found else ""
    return f"{found['analysis_seconds']} | {found.get('cpu_seconds', '')} | {found['load']} | {proved}"


def processor_seconds() -> float:
    """Of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def float_text(text: str) -> str:
    return text if "/" in text else f"{float(text):.4g}"


def tables(results: dict[str, Any]) -> str:
    """Both sections as Markdown."""
    lines = [
        "",
        "# Around ten real images",
        "",
        "linf to linf constants on balls of one grey level (1/255 of a pixel) in units of each model's input, by `local`, on one",
        "thread. Seconds are those of the analyzer for all ten points; `cpu`: processor seconds of the whole command, import,",
        "search for the lower bound and proofs included; `load`: load average at the end (2 cores: seconds are upper ends);",
        "`checked`: points whose bound the checker has proved.",
        "",
        "| network | query | s for all | cpu | load | checked | mean upper | mean lower | upper / lower, mean and largest |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in LOCAL:
        found = results.get("local", {}).get(row.name)
        if found is None:
            continue
        if "upper" not in found:
            lines.append(f"| {row.name} | | | | | | {found['said']} | | |")
            continue
        upper, lower = np.array(found["upper"]), np.array(found["lower"])
        ratio = upper / lower
        lines.append(
            f"| {row.name} | {found['query']} | {_times(found)} | {upper.mean():.6g} | {lower.mean():.6g} | "
            f"{ratio.mean():.3f}, {ratio.max():.3f} |"
        )
    lines += [
        "",
        "# Small balls around three images",
        "",
        "l2 to l2 constants, first three images of `inputs/cifar10.npz` that the network classifies correctly, radii in units of",
        "the model's input; seconds of the analyzer for the three points together, ranges included; `cpu` and `load` as above.",
        "",
        "| network and ball | analyzer | s for three | cpu | load | checked | upper | wanted at most | sampled lower |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in BALLS:
        found = results.get("balls", {}).get(row.name)
        if found is None:
            continue
        if "upper" not in found:
            lines.append(f"| {row.name} | {row.analyzer} | | | | | {found['said']} | | |")
            continue
        upper, lower, wanted = (
            " / ".join(f"{value:.4g}" for value in found[key]) for key in ("upper", "lower", "wanted")
        )
        lines.append(f"| {row.name} | {found['analyzer']} | {_times(found)} | {upper} | {wanted} | {lower} |")
    return "\n".join(lines) + "\n"
