"""Radii of third-party networks and of the zoo's digits networks; writes the table beside this file.

    python reports/radii/build.py [--only NAME ...] [--go-on] [--jobs 2] [--so-far] [--proofs COUNT]

Every row is one run of `lipverify radius` in a process of its own. Rows are kept in `runs/` (not committed) with their journals:
a run that was stopped goes on where it was, a finished one is not repeated unless `--only` names it. Third-party rows need
the folder `shared/checkpoints` beside this checkout. `--proofs` asks instead how many radii the checker proves, of the first
points of every row, and writes proofs.json: budgets are those of as many points, and count processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
CHECKPOINTS = HERE.parents[2] / "shared" / "checkpoints"
RUNS = HERE / "runs"
DIGITS = "digits:"
"""Before the name of a network of `benchmarks/digit_networks.py`, which is trained here."""
RESNET = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
OVAL = ((0.485, 0.456, 0.406), (0.225, 0.225, 0.225))
MINUTES = "75s"
QUARTER = "15m"
MNIST, CIFAR = "inputs/mnist.npz", "inputs/cifar10.npz"


@dataclass(frozen=True)
class Run:
    """One row.

    correct: the first points that are classified correctly, else simply the first ones; budget: of the command; wanted: the
    mean radius that published methods reach on the same points.
    """

    model: str
    data: str
    points: int
    norm: str
    correct: bool = False
    normalised: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    budget: str | None = None
    wanted: float | None = None


ROWS = {
    "linf digits relu-32x2": Run(DIGITS + "relu-32x2", "", 5, "linf", budget=MINUTES, wanted=0.0697),
    "linf digits relu-64x2": Run(DIGITS + "relu-64x2", "", 5, "linf", budget=MINUTES, wanted=0.0667),
    "linf digits relu-64x3": Run(DIGITS + "relu-64x3", "", 5, "linf", budget=MINUTES, wanted=0.0536),
    "linf digits cnn": Run(DIGITS + "cnn", "", 5, "linf", budget=MINUTES, wanted=0.0736),
    "l2 oval-cifar-base": Run("oval-cifar-base/cifar_base_kw.onnx", CIFAR, 20, "l2", True, OVAL, QUARTER),
    "l2 cifar-resnet2b": Run("converted/cifar-resnet2b.onnx", CIFAR, 20, "l2", True, RESNET, QUARTER),
    "l2 kw-mnist-cnn": Run("converted/kw-mnist-cnn.onnx", MNIST, 20, "l2", True, budget=QUARTER),
    "linf kw-mnist-cnn": Run("converted/kw-mnist-cnn.onnx", MNIST, 100, "linf", budget="9m"),
    "linf mnist-mlp-3x50": Run("mnist-mlp-3x50/mnist_relu_3_50.onnx", MNIST, 100, "linf", budget="9m"),
    "linf cifar-resnet2b": Run(
        "converted/cifar-resnet2b.onnx", CIFAR, 50, "linf", normalised=RESNET, budget="9m"
    ),
}


def of_digits(row: Run, jobs: int) -> dict[str, Any]:
    """The document of a network that is trained here, in this process."""
    import lipverify as lv
    from lipverify.loading.arguments import parse_duration

    sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))
    from digit_networks import trained

    network, x = trained(row.model.removeprefix(DIGITS))
    graph = lv.extract(network, x[:2])
    budget = None if row.budget is None else parse_duration(row.budget)
    return lv.radii(graph, x[: row.points], norm=row.norm, budget=budget, jobs=jobs).to_json()


def points_of(row: Run, path: Path, count: int | None = None) -> None:
    """The points of a row, or its first: in [0, 1], or as the network takes them where it is normalised outside the file."""
    from lipverify import pipeline
    from lipverify.robustness.pairs import predict

    stored = np.load(CHECKPOINTS / row.data)
    x = torch.from_numpy(stored["images"].astype(np.float64) / 255.0)
    y = torch.from_numpy(stored["labels"].astype(np.int64))
    if row.normalised is not None:
        mean, std = (torch.tensor(v, dtype=torch.float64).reshape(-1, 1, 1) for v in row.normalised)
        x = (x - mean) / std
    graph = pipeline.load(str(CHECKPOINTS / row.model))
    x = x.reshape(len(x), *graph.input_shape)
    keep = list(range(len(x)))
    if row.correct:
        keep = [k for k in keep if predict(graph, x[k]) == int(y[k])]
    keep = keep[: row.points]
    if len(keep) < row.points:
        raise SystemExit(f"only {len(keep)} of {row.points} points for {row.model}")
    keep = keep[:count]
    np.savez(path, x=x[keep].numpy(), y=y[keep].numpy())


def run(name: str, row: Run, jobs: int, again: bool) -> dict[str, Any]:
    """The document of one row; goes on with what is there."""
    folder = RUNS / name.replace(" ", "-")
    result = folder / "result.json"
    if again or not result.exists():
        RUNS.mkdir(exist_ok=True)
        if row.model.startswith(DIGITS):
            document = of_digits(row, jobs)
            folder.mkdir(exist_ok=True)
            result.write_text(json.dumps({**document, "wall_seconds": document["seconds"]}))
            return _summary(row, json.loads(result.read_text()))
        data = RUNS / f"{folder.name}.npz"
        points_of(row, data)
        command = [sys.executable, "-m", "lipverify", "radius", str(CHECKPOINTS / row.model)]
        command += ["--data", str(data), "--norm", row.norm, "--jobs", str(jobs), "--out", str(folder)]
        command += [] if row.budget is None else ["--budget", row.budget]
        command += ["--force"] if again else ["--resume"]
        started = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        document = json.loads(result.read_text())
        document["wall_seconds"] = time.monotonic() - started
        result.write_text(json.dumps(document))
    document = json.loads(result.read_text())
    return _summary(row, document)


CLOCK = "import sys, time; time.monotonic = time.process_time; from lipverify.cli import main; sys.exit(main(sys.argv[1:]))"
"""The command line on a clock of its own: budgets are then as much work beside busy processes as alone."""


def proofs(row: Run, count: int) -> dict[str, Any]:
    """How many of the radii of the first points the checker proves, and why it does not prove the others."""
    from lipverify.loading.arguments import parse_duration

    count = min(count, row.points)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if row.model.startswith(DIGITS):
            model, data = _saved_digits(row, count, folder)
        else:
            model, data = CHECKPOINTS / row.model, folder / "points.npz"
            points_of(row, data, count)
        seconds = parse_duration(row.budget or QUARTER) * count / row.points
        command = [sys.executable, "-c", CLOCK, "radius", str(model), "--data", str(data), "--norm", row.norm]
        command += ["--jobs", "1", "--budget", str(seconds), "--out", str(folder / "out")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(
            command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        document = json.loads((folder / "out" / "result.json").read_text())
    found = [p for p in document["points"] if p["radius"] > 0]
    why = Counter(str(p.get("unchecked")) for p in found if p["rigour"] != "checked")
    return {
        "points": len(document["points"]),
        "with_a_radius": len(found),
        "checked": sum(p["rigour"] == "checked" for p in found),
        "unchecked": dict(why),
        "methods": dict(Counter(p["method"] for p in found)),
    }


def _saved_digits(row: Run, count: int, folder: Path) -> tuple[Path, Path]:
    """A network of `benchmarks/digit_networks.py` as a file, and its points."""
    sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))
    from digit_networks import trained

    network, x = trained(row.model.removeprefix(DIGITS))
    torch.onnx.export(network, (x[:1],), folder / "net.onnx", dynamo=False, verbose=False)
    np.savez(folder / "points.npz", x=x[:count].numpy(), y=network(x[:count]).argmax(1).numpy())
    return folder / "net.onnx", folder / "points.npz"


def unfinished(name: str) -> dict[str, Any] | None:
    """A document of the points that a run has done so far, from its journal; None where there are none."""
    from lipverify import __version__
    from lipverify.documents import environment
    from lipverify.robustness.plan import Record

    path = RUNS / name.replace(" ", "-") / "journal.jsonl"
    if not path.exists():
        return None
    # A line that was cut has no end.
    lines = path.read_text().splitlines(keepends=True)
    entries = [json.loads(line[9:]) for line in lines if line.endswith("\n")]
    found = [Record.from_json(e["record"]) for e in entries if e["kind"] == "point"]
    if not found:
        return None
    return {
        "points": [record.to_json() for record in sorted(found, key=lambda r: r.index)],
        "seconds": sum(record.seconds for record in found),
        "refused": None,
        "environment": environment(),
        "tool": {"version": __version__},
    }


def _summary(row: Run, document: dict[str, Any]) -> dict[str, Any]:
    correct = [p for p in document["points"] if p["label"] == p["predicted"]]
    names = list(dict.fromkeys(m for p in correct for m in p.get("by_method", {})))
    means = {m: float(np.mean([p["by_method"].get(m, 0.0) for p in correct])) for m in names}
    attacked = [p["attack_radius"] for p in correct if p["attack_radius"] is not None]
    return {
        "points": len(document["points"]),
        "points_wanted": row.points,
        "correct": len(correct),
        "norm": row.norm,
        "normalised": row.normalised is not None,
        "mean_radius": means,
        "never_below": all(
            p["radius"] >= max(p["by_method"].values()) for p in correct if p.get("by_method")
        ),
        "mean_gain_over_crown": float(
            np.mean(
                [p["radius"] / p["by_method"]["crown"] - 1 for p in correct if p["by_method"].get("crown")]
            )
        ),
        "mean_attack": float(np.mean(attacked)) if attacked else None,
        "attacked": len(attacked),
        "seconds": document.get("wall_seconds", document["seconds"]),
        "seconds_a_point": float(np.mean([p["seconds"] for p in document["points"]])),
        "refused": document["refused"],
        "budget": row.budget,
        "wanted": row.wanted,
        "never_above_attack": all(
            p["radius"] <= p["attack_radius"] for p in correct if p["attack_radius"] is not None
        ),
        "environment": document["environment"],
        "lipverify": document["tool"]["version"],
    }


def table(results: dict[str, Any]) -> str:
    """The rows as Markdown."""
    names = ["global", "crown", "alpha-crown", "local", "branching", "auto"]
    lines = [
        "# Certified radii",
        "",
        "Generated by `python reports/radii/build.py`. Mean radii over the points classified correctly; `auto` is the radius",
        "printed. Gain: of `auto` over CROWN's margin radius, mean over points. Rows named l2: the first twenty images that are",
        "classified correctly. Inputs in [0, 1], or normalised by the network's own mean and deviation where marked: radii are",
        "then in normalised units. Seconds: of the whole command (a row that was resumed counts its last part), and mean of",
        "one point in its process. Wanted: the larger mean radius of published methods on the same points. Over alpha-crown:",
        "gain of the mean. A row of fewer points than wanted is not finished: its seconds are those of its points together.",
        "Rows named digits: networks of `benchmarks/digit_networks.py`, test images 1 to 5, in one process.",
        "",
        "| row | points | correct | "
        + " | ".join(names)
        + " | wanted | attack | gain over crown | over alpha-crown | seconds | a point | budget |",
        "|" + "---|" * (len(names) + 10),
    ]
    for name, row in results.items():
        radii = [f"{row['mean_radius'][m]:.4f}" if m in row["mean_radius"] else "" for m in names]
        attack = "" if row["mean_attack"] is None else f"{row['mean_attack']:.4f}"
        open_points = row.get("points_wanted", row["points"]) > row["points"]
        count = f"{row['points']} of {row['points_wanted']}" if open_points else row["points"]
        cells = [name + (" (normalised)" if row["normalised"] else ""), count, row["correct"], *radii]
        means, wanted = row["mean_radius"], row.get("wanted")
        cells += [
            "" if wanted is None else f"{wanted:.4f}",
            attack,
            f"{100 * row['mean_gain_over_crown']:.1f} %",
        ]
        alpha = means.get("alpha-crown")
        cells += [f"{100 * (means['auto'] / alpha - 1):.1f} %" if alpha else "", f"{row['seconds']:.0f}"]
        cells += [f"{row['seconds_a_point']:.1f}", row["budget"] or "none"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="*", action="extend", help="rows to make, again where they are there", default=None
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--go-on", action="store_true", help="with --only: do not begin finished rows again")
    parser.add_argument(
        "--so-far", action="store_true", help="only add what unfinished runs have done already"
    )
    parser.add_argument(
        "--proofs", type=int, metavar="COUNT", help="how many radii of so many points are proved"
    )
    options = parser.parse_args()
    if options.proofs is not None:
        for name in options.only or ROWS:
            found = proofs(ROWS[name], options.proofs)
            _write_proofs({**_proved(), name: found})
            print(name, found, flush=True)
        return
    path = HERE / "result.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in () if options.so_far else options.only or ROWS:
        finished = (RUNS / name.replace(" ", "-") / "result.json").exists()
        results[name] = run(
            name, ROWS[name], options.jobs, options.only is not None and finished and not options.go_on
        )
        _write(results)
        print(name, results[name]["mean_radius"])
    if options.so_far:
        for name, row in ROWS.items():
            if name not in results and (document := unfinished(name)) is not None:
                results[name] = _summary(row, document)
        _write(results)


def _proved() -> dict[str, Any]:
    path = HERE / "proofs.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _write_proofs(found: dict[str, Any]) -> None:
    ordered = {key: found[key] for key in ROWS if key in found}
    (HERE / "proofs.json").write_text(json.dumps(ordered, indent=1) + "\n")
    _write(json.loads((HERE / "result.json").read_text()))


def table_of_proofs(found: dict[str, Any]) -> str:
    """How many radii the checker proves, as Markdown."""
    lines = [
        "",
        "# Proofs of radii",
        "",
        "By `--proofs`: the first points of each row, and how many of their radii the checker proves. Budgets are those of as",
        "many points, in processor time; methods are those whose radius is the largest.",
        "",
        "| row | points | with a radius | checked | methods | why not |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        methods = ", ".join(f"{method} {count}" for method, count in row["methods"].items())
        why = "; ".join(f"{count}: {reason}" for reason, count in row["unchecked"].items())
        lines.append(
            f"| {name} | {row['points']} | {row['with_a_radius']} | {row['checked']} | {methods} | {why} |"
        )
    return "\n".join(lines) + "\n" if found else ""


def _write(results: dict[str, Any]) -> None:
    ordered = {key: results[key] for key in ROWS if key in results}
    (HERE / "result.json").write_text(json.dumps(ordered, indent=1) + "\n")
    (HERE / "README.md").write_text(table(ordered) + table_of_proofs(_proved()))


if __name__ == "__main__":
    main()
