"""What large inputs take; writes large.md beside this file.

    python reports/reliability/large.py

A model of 512 MB (five layers, external data) is read and bounded, and 100,000 points of 784 numbers (314 MB) are read for a
small network. Each run is the command line in a process of its own; peak is its resident memory, a quarter of a gigabyte of
libraries included.
"""

from __future__ import annotations

import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from promises import run  # noqa: E402

WIDE, INPUTS, CLASSES, POINTS = 6400, 784, 10, 100_000
BUDGET = 60.0


def network(path: Path, sizes: list[int]) -> Path:
    """Layers with ReLU between them, weights beside the file."""
    rng = np.random.default_rng(0)
    nodes, stored = [], []
    beside = path.with_suffix(".bin")
    with beside.open("wb") as out:
        for k, (before, after) in enumerate(pairwise(sizes)):
            weight = rng.standard_normal((after, before), dtype=np.float32) / np.float32(before**0.5)
            tensor = onnx.TensorProto(
                name=f"w{k}", dims=weight.shape, data_type=1, data_location=onnx.TensorProto.EXTERNAL
            )
            for key, value in (("location", beside.name), ("offset", out.tell()), ("length", weight.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            out.write(weight.tobytes())
            stored.append(tensor)
            nodes.append(onnx.helper.make_node("Gemm", [f"h{k}", f"w{k}"], [f"g{k}"], transB=1))
            nodes.append(onnx.helper.make_node("Relu", [f"g{k}"], [f"h{k + 1}"]))
    ends = [
        onnx.helper.make_tensor_value_info(name, 1, ["n", size])
        for name, size in (("h0", sizes[0]), (f"g{len(sizes) - 2}", sizes[-1]))
    ]
    graph = onnx.helper.make_graph(nodes[:-1], "layers", ends[:1], ends[1:], stored)
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(made.SerializeToString())
    return path


def commands(folder: Path) -> list[tuple[str, list[str]]]:
    """What is run, with the words that the page has for it."""
    large = str(network(folder / "large.onnx", [INPUTS, *[WIDE] * 4, CLASSES]))
    small = str(network(folder / "small.onnx", [INPUTS, 32, CLASSES]))
    points = str(folder / "points.npy")
    np.save(points, np.random.default_rng(1).random((POINTS, INPUTS), dtype=np.float32))
    budget = ["--budget", f"{BUDGET:g}s"]
    around = ["--data", points, *budget]
    balls = ["audit", small, *around, "--radius", "0.01", "--analyzers", "product"]
    return [
        ("`inspect` of the model", ["inspect", large]),
        ("`audit --analyzers product` of the model", ["audit", large, "--analyzers", "product", *budget]),
        (
            "`audit --analyzers product --memory 2g` of the model",
            ["audit", large, "--analyzers", "product", "--memory", "2g", *budget],
        ),
        ("`radius --limit 10` of the points", ["radius", small, *around, "--limit", "10"]),
        ("`radius` of the points", ["radius", small, *around, "--method", "global"]),
        ("`audit --radius 0.01` around the points", balls),
        (
            "`audit --radius 0.01 --memory 2g --out` around the points",
            [*balls, "--memory", "2g", "--out", str(folder / "balls")],
        ),
    ]


def main() -> None:
    lines = [
        "# Large inputs",
        "",
        f"Made by `reports/reliability/large.py`, which says what is run; budgets are {BUDGET:g} s of processor time.",
        "",
        "| run | exit | processor time | peak |",
        "|---|---:|---:|---:|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for words, arguments in commands(Path(folder)):
            code, seconds, peak, _, said = run([*arguments, "--json"], 10.0 * BUDGET)
            lines.append(f"| {words} | {code} | {seconds:.0f} s | {peak:.0f} MiB |")
            errors = [line for line in said.splitlines() if line.startswith("error:")]
            print(lines[-1], *errors[:1], flush=True)
    (HERE / "large.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
