"""Bounds around points and radii of small vision transformers; writes the tables beside this file.

    python reports/transformers/build.py [--only NAME ...]

The networks are those of `benchmarks/transformers.py`, trained here. Rows are kept in result.json; a row that is there is made
again only where `--only` names it, and then no other one is made.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lipverify as lv
from lipverify.analyzers.lirpa.analyzer import available, outward, quietly
from lipverify.analyzers.local.analyzer import Local
from lipverify.analyzers.protocol import Compute
from lipverify.falsify import Search, falsify
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))
import transformers  # noqa: E402

BALLS = (
    (Norm.LINF, 1 / 255, "1/255"),
    (Norm.LINF, 2 / 255, "2/255"),
    (Norm.L2, 0.01, ".01"),
    (Norm.L2, 0.03, ".03"),
)
POINTS = 2
SECONDS = 4.0
"""Of the search for a witness."""
COMPARED = ("spelled", "bare")
"""Networks whose operators auto_LiRPA reads once their attention is written as matrix products."""
HALVINGS = 12
Row = dict[str, Any]


class Written(nn.Module):
    """Self-attention as matrix products, from the matrix of queries, keys and values."""

    def __init__(self, weight: Tensor, bias: Tensor, out: nn.Module) -> None:
        super().__init__()
        self.parts, self.out = nn.ModuleList(), out
        for w, b in zip(weight.detach().chunk(3), bias.detach().chunk(3), strict=True):
            part = nn.Linear(transformers.WIDTH, transformers.WIDTH)
            part.weight, part.bias = nn.Parameter(w.clone()), nn.Parameter(b.clone())
            self.parts.append(part)

    def forward(self, x: Tensor) -> Tensor:
        shape = -1, x.shape[1], transformers.HEADS, transformers.SIZE
        q, k, v = (part(x).reshape(shape).transpose(1, 2) for part in self.parts)
        weights = (q @ k.transpose(-1, -2) * transformers.SIZE ** (-0.5)).softmax(-1)
        found: Tensor = self.out((weights @ v).transpose(1, 2).reshape(-1, x.shape[1], transformers.WIDTH))
        return found


def foreign(network: nn.Module, x: Tensor, attacks: list[float]) -> list[float]:
    """linf radii of the first points by CROWN of auto_LiRPA, in single precision, by bisection up to the attack."""
    expected = network(x)
    for block in network.modules():
        if isinstance(block, transformers.Block):
            old = block.attention
            block.attention = (
                Written(old.parts.weight, old.parts.bias, old.out)
                if isinstance(old, transformers.Attention)
                else Written(old.attention.in_proj_weight, old.attention.in_proj_bias, old.attention.out_proj)
            )
    assert torch.allclose(network(x), expected, atol=1e-4)
    with quietly():
        import auto_LiRPA

        module = auto_LiRPA.BoundedModule(network, x[:1], bound_opts={"conv_mode": "matrix"})
    found = []
    for k, high in enumerate(attacks):
        point, low = x[k : k + 1], 0.0
        label = int(network(point).argmax())
        rows = torch.eye(10)[label] - torch.eye(10)
        rows = rows[torch.arange(10) != label][None]
        for _ in range(HALVINGS):
            middle = 0.5 * (low + high)
            lower, upper = outward(Ball(point.double(), middle, Norm.LINF).enclosure())
            around = auto_LiRPA.PerturbationLpNorm(norm=torch.inf, x_L=lower, x_U=upper)
            with quietly():
                bounded = auto_LiRPA.BoundedTensor(point, around)
                margins = module.compute_bounds(x=(bounded,), C=rows, method="CROWN", bound_upper=False)[0]
            low, high = (middle, high) if bool((margins > 0).all()) else (low, middle)
        found.append(low)
    return found


def constants(graph: Graph, x: torch.Tensor) -> list[Row]:
    """For the first point: the bound of `local`, what was found, and processor seconds of the bound."""
    rows = []
    for norm, radius, word in BALLS:
        query = Query(norm, norm, Ball(x[:1], radius, norm))
        started = time.process_time()
        upper = float(Local(with_product=False).bound(graph, query, Compute()).upper)  # type: ignore[arg-type]
        spent = time.process_time() - started
        lower = float(falsify(graph, query, Compute(), Search(seconds=SECONDS)).value.max())
        assert lower <= upper, (norm, radius)
        rows.append({"norm": norm.value, "radius": word, "upper": upper, "lower": lower, "seconds": spent})
    return rows


def radii(graph: Graph, x: torch.Tensor) -> Row:
    """linf radii of the first points by linear bounds, and what an attack finds."""
    started = time.process_time()
    records = lv.radii(graph, x[:POINTS], norm="linf", method="crown").records
    assert all(r.attack_radius is None or r.radius <= r.attack_radius for r in records)
    return {
        "radii": [r.radius for r in records],
        "attacks": [r.attack_radius for r in records],
        "seconds": (time.process_time() - started) / POINTS,
    }


def made(name: str) -> Row:
    network, x, share = transformers.trained(name)
    graph = lv.extract(network, x[:2])
    ours = radii(graph, x.to(torch.float64))
    if name in COMPARED and available():
        ours["foreign"] = foreign(network, x.to(torch.float32), ours["attacks"])
    return {
        "accuracy": share,
        "nodes": len(graph.nodes),
        "local": constants(graph, x.to(torch.float64)),
        "radius": ours,
    }


def ratio(row: Row) -> str:
    """Bound over witness; in words where the search found none."""
    return f"{row['upper'] / row['lower']:.3g}" if row["lower"] > 0 else "no witness"


def page(rows: dict[str, Row]) -> str:
    """The tables in words."""
    out = [
        "# Vision transformers: bounds around points and radii\n",
        "Generated by `python reports/transformers/build.py`. Networks of `benchmarks/transformers.py`, trained on 8x8 digits "
        "for seconds, with the entries of images in [0, 1]; one thread, processor seconds. `local` is the bound of the constant "
        "on a ball around the first test image that the network gets right, from linf to linf or from l2 to l2; the witness is "
        f"the slope of a stored pair in that ball that {SECONDS:g} s of search found. Radii are those of `--method crown` for "
        f"the first {POINTS} of these images in linf, beside the size of the smallest attack that was found.\n",
        "| network | right | ball | local | witness | ratio | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        for k, r in enumerate(row["local"]):
            first = f"| {name} | {100 * row['accuracy']:.1f} % " if k == 0 else "| | "
            out.append(
                f"{first}| {r['norm']} {r['radius']} | {r['upper']:.4g} | {r['lower']:.4g} | {ratio(r)} "
                f"| {r['seconds']:.1f} |"
            )
    out += ["", "| network | radii | of auto_LiRPA | attacks | s a point |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        r = row["radius"]
        attacks = ", ".join("none" if a is None else f"{a:.4f}" for a in r["attacks"])
        ours, theirs = (
            ", ".join(f"{v:.5f}" for v in values) for values in (r["radii"], r.get("foreign", []))
        )
        out.append(f"| {name} | {ours} | {theirs or '-'} | {attacks} | {r['seconds']:.1f} |")
    out.append(
        "\nEvery product, softmax and norm multiplies what the ones before it left open, so ratios grow fast with the radius. "
        "Where the range of a token reaches one with equal entries, a layer norm may have the slope 1/sqrt(eps), 316 here, "
        "and they jump."
    )
    missing = [name for name in transformers.NAMES if name not in rows]
    out.append(
        "\nRadii of auto_LiRPA are those of its CROWN in single precision, which accounts for no rounding, on "
        f"{' and '.join(COMPARED)} with attention written as matrix products."
        if any("foreign" in row["radius"] for row in rows.values())
        else "\nNot compared with CROWN of auto_LiRPA, which was not installed where this was made."
    )
    if missing:
        out.append(f"\nNot run: {', '.join(missing)}.")
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[])
    asked = parser.parse_args().only
    torch.set_num_threads(1)
    result = HERE / "result.json"
    rows = json.loads(result.read_text()) if result.exists() else {}
    for name in transformers.NAMES:
        if name not in asked if asked else name in rows:
            continue
        rows[name] = made(name)
        print(name, json.dumps(rows[name]), flush=True)
        kept = {k: rows[k] for k in transformers.NAMES if k in rows}
        result.write_text(json.dumps(kept, indent=1) + "\n")
        (HERE / "README.md").write_text(page(kept))


if __name__ == "__main__":
    main()
