"""Whether `--budget` and `--memory` are kept: every network of the sibling folder `shared/checkpoints`.

    python reports/reliability/promises.py [--budgets 10,60,300] [--memory 2g,4g] [--only NAME] [--commands audit,deviate] [--all]

Each run is the command line in a process of its own, whose deadline clock is its processor time: what other programs do on the
machine changes nothing. A promise of T seconds is kept where the process, its start and the reading of the model included, used
at most 1.1 T + 3 s of one core, and printed the product with its lower bound, or a refusal. A promise of memory is kept where
its peak is at most that plus 15 %.

Not every run is needed. One that ended within half of a smaller budget would have ended the same way with more: nothing in it was
cut. One whose peak without `--memory` was below it keeps it. `--all` runs them all the same. The table says which is which.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from lipverify.loading.arguments import parse_memory

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
    "deviate": ["deviate", "{model}", "{changed}", "--box", "0,1"],
    "deviate-ball": [
        "deviate",
        "{model}",
        "{changed}",
        "--data",
        "{points}",
        "--limit",
        "3",
        "--radius",
        "0.02",
    ],
    "compare": ["compare", "{model}", "--analyzers", "product,lipsdp-fast,lipsdp"],
    "inspect": ["inspect", "{model}"],
}
EVEN = 0.5
"""A run that used no more than this part of its budget was cut nowhere: searches take at most two thirds of what is left."""


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


def given(path: Path, folder: Path) -> dict[str, str]:
    """What the commands' words stand for: the model, a copy with weights of half precision, and a file of three points that the
    model takes, in the middle of usual ranges, with the labels it gives them itself; the latter only where it can be read."""
    import numpy as np
    import onnx
    import torch

    import lipverify as lv
    from lipverify.interpreter import evaluate

    found = {"model": str(path)}
    try:
        graph = lv.load(path)
    except lv.LipverifyError:
        return found
    x = np.random.default_rng(0).uniform(0.25, 0.75, (3, *graph.input_shape))
    with torch.no_grad():
        y = evaluate(graph.to(dtype=torch.float64), torch.from_numpy(x)).flatten(1).argmax(1).numpy()
    np.savez(folder / "points.npz", x=x, y=y)
    copy = onnx.load(path)
    for tensor in copy.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(copy, folder / "changed.onnx")
    return found | {"points": str(folder / "points.npz"), "changed": str(folder / "changed.onnx")}


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


def worded(kind: str, places: dict[str, str]) -> list[str] | None:
    """The words of a command; None where it needs what a model that does not load has not."""
    try:
        return [word.format(**places) for word in COMMANDS[kind]]
    except KeyError:
        return None


def measured(
    name: str, places: dict[str, str], kind: str, budget: float, memory: str | None
) -> dict[str, Any]:
    """One row of the table."""
    row = {"network": name, "command": kind, "budget": budget, "memory": memory}
    words = worded(kind, places)
    if words is None:
        return row | {"said": "does not load"}
    command = [*words, "--json"]
    if kind != "inspect":
        command += ["--budget", f"{budget:g}s"]
        command += ["--memory", memory] if memory else []
    code, cpu, peak, out, err = run(command, 4.0 * budget + 30.0)
    row |= {"exit": code, "cpu": round(cpu, 1), "peak_mib": round(peak)}
    within = code >= 0 and cpu <= 1.1 * budget + 3.0
    small = memory is None or peak * 2**20 <= 1.15 * parse_memory(memory)
    return row | {"kept": within, "memory_kept": small} | said(kind, out, err)


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
    if kind == "compare":
        found = document["audits"][0] if document.get("audits") else {}
        return {"rows": len(found.get("results", []))}
    if kind.startswith("deviate"):
        return {key: document.get(key) for key in ("upper", "lower", "rigour", "seconds")}
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


def concluded(rows: list[dict[str, Any]], row: dict[str, Any]) -> dict[str, Any] | None:
    """The row of a run that need not be made, with the run it follows from; None where it has to be."""
    for other in rows:
        if any(other[key] != row[key] for key in ("network", "command")) or not whole(other):
            continue
        if "exit" not in other:
            if "said" in other:
                return row | {"said": other["said"]}
            continue
        ended = other["budget"] == row["budget"] or (
            other["budget"] < row["budget"] and other["cpu"] <= EVEN * other["budget"]
        )
        most = None if row["memory"] is None else 2**-20 * parse_memory(row["memory"])
        if other["memory"] is None and ended and (most is None or other["peak_mib"] <= most):
            return row | {"kept": True, "memory_kept": True, "follows": other["budget"]}
    return None


def whole(row: dict[str, Any]) -> bool:
    """Whether it was run, or follows, and both promises were kept."""
    return bool(row.get("kept", True) and row.get("memory_kept", True) and not row.get("missing"))


def stored(rows: list[dict[str, Any]]) -> str:
    """The rows of runs, one in a line; the others follow from them again."""
    lines = ",\n ".join(json.dumps(row) for row in rows if "exit" in row)
    return f'{{"rows": [\n {lines}\n]}}\n'


def table(rows: list[dict[str, Any]]) -> str:
    """Processor seconds over the budget's end and largest peak, by command and promise."""
    lines = [
        "# Promises",
        "",
        "Made by `reports/reliability/promises.py`, which says what is run and what follows. Most: the largest processor time of",
        "a run as a part of what was promised (1.1 T + 3 s). Peak: the largest.",
        "",
        "| command | budget | memory | promises | run | follow | not run | broken | most | peak |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    kinds = list(COMMANDS)
    groups = {(r["command"], r["budget"], r["memory"] or "") for r in rows}
    for kind, budget, memory in sorted(groups, key=lambda g: (kinds.index(g[0]), g[1], g[2])):
        mine = [r for r in rows if (r["command"], r["budget"], r["memory"] or "") == (kind, budget, memory)]
        ran = [r for r in mine if "exit" in r]
        most = max((r["cpu"] / (1.1 * budget + 3.0) for r in ran), default=0.0)
        peak = max((r["peak_mib"] for r in ran), default=0)
        missing = sum("missing" in r for r in mine)
        broken = sum(not whole(r) for r in mine) - missing
        counts = f"{len(mine)} | {len(ran)} | {len(mine) - len(ran) - missing} | {missing} | {broken}"
        measured = f"{100 * most:.0f} % | {peak} MiB" if ran else "- | -"
        lines.append(f"| {kind} | {budget:g} s | {memory or 'free'} | {counts} | {measured} |")
    broken_rows = [r for r in rows if not whole(r) and "missing" not in r]
    lines += ["", "Broken:" if broken_rows else "None is broken."]
    for r in broken_rows:
        promise = f"{r['budget']:g} s, {r['memory'] or 'no limit of memory'}"
        used = f"{r['cpu']:g} s, {r['peak_mib']} MiB"
        lines.append(f"- {r['network']}, {r['command']}: {promise}; used {used}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budgets", default="10,60,300")
    parser.add_argument("--commands", default=",".join(kind for kind in COMMANDS if kind != "inspect"))
    parser.add_argument("--memory", default="", help="sizes, with commas; without: what is free")
    parser.add_argument("--only", default="", help="parts of networks' names, with commas")
    parser.add_argument("--folder", type=Path, help="every ONNX file of this folder instead")
    parser.add_argument("--out", type=Path, default=HERE / "promises.json")
    parser.add_argument("--all", action="store_true", help="also the runs that need not be made")
    parser.add_argument("--fresh", action="store_true", help="forget the rows that are there")
    parser.add_argument(
        "--resume", action="store_true", help="keep the rows that are there, where none is broken"
    )
    parser.add_argument(
        "--conclude", action="store_true", help="run nothing: only what follows from the rows"
    )
    options = parser.parse_args()
    chosen = (
        networks() if options.folder is None else [(p.stem, p) for p in sorted(options.folder.glob("*.onnx"))]
    )
    rows: list[dict[str, Any]] = []
    if options.out.exists() and not options.fresh:
        rows = json.loads(options.out.read_text())["rows"]
    budgets = sorted(float(text) for text in options.budgets.split(","))
    sizes = [size or None for size in options.memory.split(",")]
    for name, model in chosen:
        if not any(part in name for part in options.only.split(",")):
            continue
        with tempfile.TemporaryDirectory() as folder:
            places = given(model, Path(folder))
            for memory, budget, kind in product(sizes, budgets, options.commands.split(",")):
                row: dict[str, Any] = {"network": name, "command": kind, "budget": budget, "memory": memory}
                same = [r for r in rows if all(r[key] == value for key, value in row.items())]
                keep = options.resume and same and whole(same[0])
                if keep or (options.conclude and same and "exit" in same[0]):
                    continue
                rows = [r for r in rows if r not in same]
                follows = None if options.all else concluded(rows, row)
                if follows is None and options.conclude and worded(kind, places) is not None:
                    follows = row | {"missing": True}
                row = measured(name, places, kind, budget, memory) if follows is None else follows
                rows.append(row)
                print(json.dumps(row), flush=True)
                options.out.write_text(stored(rows))
    rows.sort(
        key=lambda r: (r["network"], list(COMMANDS).index(r["command"]), r["memory"] or "", r["budget"])
    )
    options.out.write_text(stored(rows))
    options.out.with_suffix(".md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
