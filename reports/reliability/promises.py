"""Whether `--budget` and `--memory` are kept: every network of the sibling folder `shared/checkpoints`, and networks made here.

    python reports/reliability/promises.py [--budgets 10,60] [--memory 4g] [--only NAME] [--commands audit,lipsdp,local,radius]

Each run is the command line in a process of its own, whose deadline clock is its processor time: what other programs do on the
machine changes nothing. A promise of T seconds is kept where the process, its start and the reading of the model included, used
at most 1.1 T + 3 s of one core, and printed the product with its lower bound, or a refusal, or that there was no time for it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CHECKPOINTS = HERE.parents[2] / "shared" / "checkpoints"
CHILD = "import time; time.monotonic = time.process_time; from lipverify.cli import main; main()"
GIB = 2**30
LOCAL = ["--norm", "linf", "--data", "{points}", "--limit", "1", "--radius", "0.02"]
COMMANDS = {
    "audit": ["audit", "{model}"],
    "lipsdp": ["audit", "{model}", "--analyzers", "lipsdp-fast,lipsdp"],
    "local": ["audit", "{model}", "--analyzers", "local,local-bab", *LOCAL],
    "radius": ["radius", "{model}", "--data", "{points}", "--limit", "3"],
    "inspect": ["inspect", "{model}"],
}


def networks() -> list[tuple[str, Path]]:
    """(name, file) of every ONNX file, the converted ones included, and of the pickle that must be refused."""
    found = []
    for path in sorted(CHECKPOINTS.glob("*/*.onnx")):
        folder = path.parent.name
        several = len(list(path.parent.glob("*.onnx"))) > 1
        found.append(
            (path.stem if folder == "converted" else f"{folder}/{path.stem}" if several else folder, path)
        )
    return found + [("ppo-cartpole-pickle", path) for path in CHECKPOINTS.glob("ppo-cartpole-pickle/*.pt")]


def points(path: Path, folder: Path) -> Path | None:
    """A file of three points that the model takes, in the middle of usual ranges, with the labels it gives them itself."""
    import numpy as np
    import torch

    import lipverify as lv
    from lipverify.interpreter import evaluate

    try:
        graph = lv.load(path)
    except lv.LipverifyError:
        return None
    x = np.random.default_rng(0).uniform(0.25, 0.75, (3, *graph.input_shape))
    with torch.no_grad():
        y = evaluate(graph.to(dtype=torch.float64), torch.from_numpy(x)).flatten(1).argmax(1).numpy()
    target = folder / "points.npz"
    np.savez(target, x=x, y=y)
    return target


def run(arguments: list[str], most: float) -> tuple[int, float, float, str, str]:
    """Exit status, processor seconds (children included), peak MiB, and what it said. Ends what uses more than `most` seconds."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, "-c", CHILD, *arguments]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_CPU, (int(most), int(most) + 5))
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os.execve(sys.executable, command, environment)
        _, status, used = os.wait4(child, 0)
        out.seek(0)
        err.seek(0)
        said = out.read().decode(errors="replace"), err.read().decode(errors="replace")
    code = os.waitstatus_to_exitcode(status)
    return code, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, *said


def measured(
    name: str, model: Path, kind: str, budget: float | None, memory: str | None, most: float
) -> dict[str, Any]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        places = {"model": str(model)}
        arguments = COMMANDS[kind]
        if any("{points}" in word for word in arguments):
            data = points(model, Path(folder))
            if data is None:
                return {"network": name, "command": kind, "refused": "does not load"}
            places["points"] = str(data)
        command = [word.format(**places) for word in arguments] + ["--json"]
        if kind != "inspect":
            command += ["--budget", f"{budget:g}s"] if budget else []
            command += ["--memory", memory] if memory else []
        code, cpu, peak, out, err = run(command, most)
    row = {
        "network": name,
        "command": kind,
        "budget": budget,
        "memory": memory,
        "exit": code,
        "cpu": round(cpu, 1),
        "peak_mib": round(peak),
    }
    return row | {"kept": code >= 0 and (budget is None or cpu <= 1.1 * budget + 3.0)} | said(kind, out, err)


def said(kind: str, out: str, err: str) -> dict[str, Any]:
    """What the process printed, in short."""
    document = json.loads(out) if out.strip().startswith("{") else None
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    if document is None:
        return {"said": errors[-1][:200] if errors else err.strip()[-200:]}
    if kind == "radius":
        radii = [point.get("radius") for point in document.get("points", [])]
        return {"radii": radii, "seconds": document.get("seconds")}
    if kind == "inspect":
        return {"analyzers": len(document.get("analyzers", []))}
    rows = {
        row["analyzer"]: row.get("upper", row.get("log10_upper", (row.get("refused") or "")[:160]))
        for row in document["results"]
    }
    ranks = {row["analyzer"]: row.get("rigour") for row in document["results"]}
    return {
        "upper": rows,
        "rigour": ranks,
        "lower": document["lower"]["value"],
        "note": document["lower"].get("note"),
        "seconds": round(document["seconds"], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budgets", default="10")
    parser.add_argument("--commands", default="audit,lipsdp,local,radius")
    parser.add_argument("--memory")
    parser.add_argument("--only", help="part of a network's name")
    parser.add_argument("--folder", type=Path, help="also every ONNX file of this folder, and only those")
    parser.add_argument("--out", type=Path, default=HERE / "promises.json")
    parser.add_argument("--fresh", action="store_true", help="forget the rows that are there")
    options = parser.parse_args()
    chosen = (
        networks() if options.folder is None else [(p.stem, p) for p in sorted(options.folder.glob("*.onnx"))]
    )
    rows: list[dict[str, Any]] = []
    if options.out.exists() and not options.fresh:
        rows = json.loads(options.out.read_text())["rows"]
    for budget in (float(text) for text in options.budgets.split(",")):
        for name, model in chosen:
            if options.only and options.only not in name:
                continue
            for kind in options.commands.split(","):
                row = measured(name, model, kind, budget, options.memory, 4.0 * budget + 30.0)
                same = ("network", "command", "budget", "memory")
                rows = [r for r in rows if any(r.get(k) != row.get(k) for k in same)] + [row]
                print(json.dumps(row), flush=True)
                options.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    broken = [row for row in rows if row.get("kept") is False]
    print(
        f"{len(rows)} runs, {len(broken)} promises broken",
        *(f"{r['network']} {r['command']}" for r in broken),
        sep="\n  ",
    )


if __name__ == "__main__":
    main()
