"""How far changed copies of networks answer differently; writes the tables beside this file.

    python reports/deviation/build.py [--only NAME ...]

Rows are kept in result.json; a row that is there is made again only where `--only` names it. Int8 copies of third-party
networks are made here with onnxruntime's quantiser. Rows that need the folder `shared/checkpoints` beside this checkout are
left as they are without it.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lipverify as lv
from lipverify import ops, zoo
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball
from lipverify.questions.compared import saturates
from lipverify.questions.deviation import deviation
from lipverify.questions.question import Answer
from lipverify.reporting.format import Magnitude, lower_text, upper_text
from lipverify.zoo.network import load_data, test_data

HERE = Path(__file__).resolve().parent
CHECKPOINTS = HERE.parents[2] / "shared" / "checkpoints"
F = "zoo:digits-relu-mlp"
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
PIXEL = 1 / 255
REGIONS = {
    "linf 1/64": (Norm.LINF, 1 / 64), "linf 1/16": (Norm.LINF, 1 / 16), "l2 .1": (Norm.L2, 0.1), "l2 .5": (Norm.L2, 0.5),
}  # fmt: skip
Row = dict[str, Any]


def row(answer: Answer, started: float) -> Row:
    """What a table says of an answer.

    Raises:
        lv.LipverifyError: the budget ended before there was a bound.
    """
    if answer.upper is None or answer.lower is None:
        raise lv.UsageError("the budget ended before there was a bound")
    upper, lower = (
        torch.atleast_1d(torch.as_tensor(v, dtype=torch.float64)) for v in (answer.upper, answer.lower)
    )
    document = answer.to_json()
    kept = {
        k: document["kept"][k]
        for k in ("points", "same_label_now", "certified", "checked")
        if k in document.get("kept", {})
    }
    beyond = [r for r in document.get("saturation", ()) if saturates(r)]
    return {
        "upper": float(upper.mean()), "largest": float(upper.max()), "witness": float(lower.mean()),
        "ratio": float((upper / lower)[lower > 0].max()) if lower.any() else None,
        "regions": len(upper), "rigour": str(answer.rigour),
        "unchecked": document["unchecked"], "kept": kept, "changed": len(document.get("kept", {}).get("changed", ())),
        "saturation": beyond[:4], "apart": len(document["apart"]), "seconds": round(time.process_time() - started, 1),
    }  # fmt: skip


def digits(other: str, region: str, held_out: bool = True) -> Callable[[], Row]:
    """held_out: whether the points of the box are those that the network was not trained on."""

    def made() -> Row:
        f, g = lv.load(F), lv.load(other)
        x, correct = (test_data("digits-relu-mlp")[0].double(), zoo.points("digits-relu-mlp", 60)[0].double())
        if not held_out:
            known = zoo.card("digits-relu-mlp")
            x = load_data(known.training.data, known.input_shape).x_train.double()
        started = time.process_time()
        if region == "box":
            return row(deviation(f, g, lv.InputBox(f.input_shape, 0.0, 1.0), x=x), started)
        norm, radius = REGIONS[region]
        return row(deviation(f, g, Ball(correct, radius, norm, (0.0, 1.0))), started)

    return made


def images(data: str, normalised: Any = None) -> torch.Tensor:
    """All images of a file, [count, channels, height, width], in the units of the network."""
    with np.load(CHECKPOINTS / "inputs" / data) as stored:
        x = torch.tensor(stored["images"].astype(np.float64) / 255.0)
    if normalised is None:
        return x
    mean, spread = (torch.tensor(v, dtype=torch.float64).reshape(-1, 1, 1) for v in normalised)
    return (x - mean) / spread


def quantised(model: Path, x: torch.Tensor, folder: Path) -> Path:
    """The model's int8 copy, by the quantiser of onnxruntime: operands between QuantizeLinear and DequantizeLinear."""
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    name = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).get_inputs()[0].name

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest: Iterator[torch.Tensor] = iter(x.float())

        def get_next(self) -> dict[str, Any] | None:
            found = next(self.rest, None)
            return None if found is None else {name: found[None].numpy()}

    logging.disable(logging.WARNING)
    path = folder / f"{model.stem}-int8.onnx"
    quantize_static(model, path, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                    weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8)  # fmt: skip
    return path


def int8_copy(
    name: str, data: str, region: str, points: int, budget: float, normalised: Any = None
) -> Callable[[], Row]:
    def made() -> Row:
        x = images(data, normalised)
        ends = (0.0, 1.0)
        spread = 1.0
        if normalised is not None:
            mean, std = (np.array(v) for v in normalised)
            ends, spread = (
                (float(((0.0 - mean) / std).min()), float(((1.0 - mean) / std).max())),
                float(std.max()),
            )
        model = CHECKPOINTS / "converted" / f"{name}.onnx"
        with tempfile.TemporaryDirectory() as folder:
            f, g = lv.load(model), lv.load(quantised(model, x[:100], Path(folder)))
            started = time.process_time()
            if region == "box":
                return row(
                    deviation(f, g, lv.InputBox(f.input_shape, *ends), x=x[:points], budget=budget),
                    started,
                )
            ball = Ball(x[:points], PIXEL / spread, Norm.LINF, ends)
            return row(deviation(f, g, ball, budget=budget), started)

    return made


def rounded(f: Graph, kind: str) -> Graph:
    """The copy with float16 numbers, or with int8 weights, one scale for each output or channel."""
    nodes = []
    for node in f.nodes:
        op = node.op
        if isinstance(op, ops.Linear | ops.Conv):
            if kind == "float16":
                bias = None if op.bias is None else op.bias.half().to(op.bias.dtype)
                op = replace(op, weight=op.weight.half().to(op.weight.dtype), bias=bias)
            else:
                w = op.weight.double().flatten(1)
                scale = (w.abs().amax(1, keepdim=True) / 127).clamp_min(1e-30)
                op = replace(
                    op, weight=((w / scale).round() * scale).reshape(op.weight.shape).to(op.weight.dtype)
                )
        nodes.append(replace(node, op=op))
    return replace(f, nodes=tuple(nodes), origin=replace(f.origin, path=None, sha256=None))


def convolutions(name: str, region: str) -> Callable[[], Row]:
    def made() -> Row:
        f = lv.load(f"zoo:{name}")
        g = rounded(f, "int8")
        x = zoo.points(name, 6)[0].double()
        started = time.process_time()
        if region == "box":
            return row(deviation(f, g, lv.InputBox(f.input_shape, 0.0, 1.0), x=x), started)
        norm, radius = REGIONS[region]
        return row(deviation(f, g, Ball(x, radius, norm, (0.0, 1.0))), started)

    return made


def acas(kind: str, radius: float, budget: float | None) -> Callable[[], Row]:
    def made() -> Row:
        (model,) = (CHECKPOINTS / "acasxu-1-1").glob("*.onnx")
        f = lv.load(model)
        g = rounded(f, kind)
        started = time.process_time()
        if radius >= 0.5:
            return row(deviation(f, g, lv.InputBox(f.input_shape, -0.5, 0.5), budget=budget), started)
        rng = torch.Generator().manual_seed(0)
        x = (torch.rand(8, f.input.size, generator=rng, dtype=torch.float64) - 0.5) * (1 - 2 * radius)
        ball = Ball(x.reshape(8, *f.input_shape), radius, Norm.LINF)
        return row(deviation(f, g, ball, budget=budget), started)

    return made


def saturating() -> Row:
    """The pair that is around: made for pixels of 0 to 255, quantised for far smaller numbers."""
    f, g = (
        lv.load(CHECKPOINTS / name) for name in ("cntk-mnist/mnist.onnx", "mnist-int8/quantized_model.onnx")
    )
    x = images("mnist.npz")[:20].reshape(20, *f.input_shape) * 255.0
    started = time.process_time()
    return row(deviation(f, g, Ball(x, 1.0, Norm.LINF, (0.0, 255.0)), budget=30.0), started)


ROWS: dict[str, tuple[bool, Callable[[], Row]]] = {
    **{f"{other.split('-')[1]}, {region}": (False, digits(other, region)) for other in ("zoo:digits-int8", "zoo:digits-pruned")
       for region in (*REGIONS, "box")},
    "int8, box, training images": (False, digits("zoo:digits-int8", "box", held_out=False)),
    **{f"{name} int8, {region}": (False, convolutions(name, region)) for name in ("digits-plain-cnn", "digits-resnet")
       for region in ("linf 1/64", "linf 1/16", "box")},
    "kw-mnist-cnn, 100 images, 1/255": (True, int8_copy("kw-mnist-cnn", "mnist.npz", "balls", 100, 180.0)),
    "kw-mnist-cnn, box": (True, int8_copy("kw-mnist-cnn", "mnist.npz", "box", 100, 60.0)),
    "cifar-resnet2b, 100 images, 1/255": (True, int8_copy("cifar-resnet2b", "cifar10.npz", "balls", 100, 40.0, CIFAR)),
    "cifar-resnet2b, box": (True, int8_copy("cifar-resnet2b", "cifar10.npz", "box", 100, 20.0, CIFAR)),
    "acasxu-1-1 float16, 8 boxes of radius .02": (True, acas("float16", 0.02, 240.0)),
    "acasxu-1-1 int8, 8 boxes of radius .02": (True, acas("int8", 0.02, 240.0)),
    "acasxu-1-1 float16, whole box": (True, acas("float16", 0.5, 40.0)),
    "acasxu-1-1 int8, whole box": (True, acas("int8", 0.5, 40.0)),
    "cntk-mnist against mnist-int8, 20 images, 1 of 255": (True, saturating),
}  # fmt: skip


def _ends(pair: list[float]) -> str:
    return f"{pair[0]:.4g} to {pair[1]:.4g}"


def page(rows: dict[str, Row]) -> str:
    """README.md."""
    lines = [
        "# How far changed copies answer differently", "",
        "Made by `python reports/deviation/build.py`. Largest entry of |f - g|, means over regions; `checked`:",
        "proved again by the checker from both files. CPU seconds: search, bound, proof, its check. Labels kept: of test points",
        "whose label both networks give everywhere in their ball, or (box) whose lead is larger than the difference can be.",
        "",
        "| pair, region | regions | bound | witness | largest ratio | rigour | labels kept | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name in (name for name in ROWS if name in rows):
        r = rows[name]
        if "error" in r:
            lines.append(f"| {name} | | | | | {r['error']} | | |")
            continue
        kept = f"{100 * r['kept']['certified']:.1f} % of {r['kept']['points']}" if r["kept"] else ""
        bound, witness = upper_text(Magnitude(r["upper"]), 4), lower_text(r["witness"], 4)
        numbers = f"{bound} | {witness} | {r['ratio'] or math.nan:.3g}"
        lines.append(f"| {name} | {r['regions']} | {numbers} | {r['rigour']} | {kept} | {r['seconds']} |")
    said = [(name, r) for name, r in rows.items() if r.get("unchecked")]
    if said:
        lines += ["", "Not checked, and why:", ""] + [f"- {name}: {r['unchecked']}" for name, r in said]
    cut = [(name, r["saturation"]) for name, r in rows.items() if r.get("saturation")]
    if cut:
        lines += [
            "",
            "Quantisers that saturate (values over the region against what the integers represent):",
            "",
        ]
        lines += [
            f"- {name}: `{s['node']}` {_ends(s['range'])} against {_ends(s['represents'])}"
            for name, beyond in cut for s in beyond[:2]
        ]  # fmt: skip
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    # Budgets are of processor seconds, so that what a row says does not hang on what else the machine does.
    time.monotonic = time.process_time
    result = HERE / "result.json"
    rows = json.loads(result.read_text()) if result.exists() else {}
    for name, (foreign, make) in ROWS.items():
        if (name in rows and not any(word in name for word in asked.only)) or (
            foreign and not CHECKPOINTS.is_dir()
        ):
            continue
        if asked.only and not any(word in name for word in asked.only):
            continue
        try:
            rows[name] = make()
        except lv.LipverifyError as error:
            rows[name] = {"error": str(error)[:200]}
        print(name, json.dumps(rows[name]), flush=True)
        result.write_text(json.dumps({k: rows[k] for k in ROWS if k in rows}, indent=1) + "\n")
        (HERE / "README.md").write_text(page(rows))
    (HERE / "README.md").write_text(page(rows))


if __name__ == "__main__":
    main()
