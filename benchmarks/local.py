"""Bounds around five digits: `local`, its coarser and tighter relatives, and auto_LiRPA where it can be imported.

    python benchmarks/local.py [--only relu-64x2@0.1] [--all] [--out reports/bench-local]

One thread. A bound is the mean over five images of the largest of ten rows (linf to linf); seconds are for all 50 problems.
Rows that were measured stay; --only measures some again. LIPVERIFY_LIRPA may name a folder that holds auto_LiRPA.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
sys.path[:0] = [folder for folder in os.environ.get("LIPVERIFY_LIRPA", "").split(os.pathsep) if folder]

from digit_networks import trained  # noqa: E402
from dots import dots, number  # noqa: E402
from lipsdp import hardware  # noqa: E402

NETWORKS = (
    *(f"{kind}-{width}x{depth}" for kind in ("relu", "tanh") for depth in (2, 3) for width in (32, 64, 128)),
    "cnn",
)
RADII = ("1/255", "8/255", "0.1")
CHEAP = ("local:interval", "local:recurjac", "local", "lirpa")
DOCUMENTED = "lirpa:alpha"
"""auto_LiRPA as its documentation has it, with its planes searched; as `lirpa` one point at a time, since batches are wrong."""
ANYTIME = {"local-sdp": 30.0, "local-bab": 34.0}
"""Seconds for all five points together; auto_LiRPA needs 34 s to optimise its bounds on relu-64x2 at 0.1."""
REPEATS = 5
COLOURS = {
    "local": "#0b6e4f",
    "local-sdp": "#1b4965",
    "local-bab": "#8e5572",
    "lirpa": "#b23a48",
    DOCUMENTED: "#e07a87",
    "local:recurjac": "#e09f3e",
    "local:interval": "#999999",
}
PROMISES = {
    ("relu-64x2", "0.1"): {"local": 148.0, "best": 122.0, "faster": 10.0},
    ("relu-64x3", "0.1"): {"local": 275.0, "best": 185.0, "faster": 10.0},
    ("tanh-64x3", "8/255"): {"local": 165.0},
    ("cnn", "0.1"): {"local": 183.0, "best": 183.0},
}
"""Largest bounds; `best`: of local-sdp and local-bab; `faster`: least ratio of auto_LiRPA's time to that of `local`."""


def measure(network: str, radius: str) -> dict[str, Any]:
    """All methods on one network and radius."""
    import torch

    import lipverify as lv
    from lipverify.analyzers.protocol import Compute
    from lipverify.analyzers.registry import names
    from lipverify.falsify import Search, falsify

    torch.set_num_threads(1)
    net, points = trained(network)
    graph = lv.extract(net, torch.zeros(2, 64, dtype=torch.float64))
    query = lv.Query(lv.Norm.LINF, lv.Norm.LINF, lv.Ball(points, float(Fraction(radius)), "linf"))
    witness = falsify(graph, query, Compute(), Search(seconds=10.0))
    wanted = (*CHEAP, DOCUMENTED, *ANYTIME)
    methods = {name: once(name, graph, query) for name in wanted if name in names() or name == DOCUMENTED}
    ours = methods["local"]["upper"]
    return {
        "network": network,
        "radius": radius,
        "load": round(os.getloadavg()[0], 2),
        "lower": float(witness.value.mean()),
        "methods": methods,
        "bound_ratio": {name: found["upper"] / ours for name, found in methods.items() if "upper" in found},
    }


def once(name: str, graph: Any, query: Any) -> dict[str, Any]:
    """One method: its mean bound, and the median of its times."""
    import statistics

    from lipverify.analyzers.lirpa.analyzer import Lirpa
    from lipverify.analyzers.local.analyzer import Local
    from lipverify.analyzers.protocol import Compute
    from lipverify.analyzers.registry import resolve

    own = {"local": Local(with_product=False), DOCUMENTED: Lirpa(optimize=True)}
    method = own.get(name) or resolve(name)
    reason = method.reject(graph, query)
    if reason is not None:
        return {"refused": reason}
    times: list[float] = []
    spent: list[float] = []
    for _ in range(1 if name in ANYTIME else REPEATS):
        begun, worked = time.perf_counter(), time.process_time()
        deadline = time.monotonic() + ANYTIME[name] if name in ANYTIME else None
        certificate = method.bound(graph, query, Compute(deadline=deadline))
        times.append(time.perf_counter() - begun)
        spent.append(time.process_time() - worked)
        if sum(times) > 10.0:
            break
    found = {
        "upper": float(certificate.upper.mean()),
        "uppers": certificate.upper.tolist(),
        "seconds": statistics.median(times),
        "cpu_seconds": statistics.median(spent),
    }
    version = getattr(certificate.evidence, "version", None)
    return found if version is None else {**found, "version": version}


def promises(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What this benchmark should show, and whether it does; None where a method was not measured."""
    found = []
    for row in rows:
        wanted = PROMISES.get((row["network"], row["radius"]))
        if wanted is None:
            continue
        uppers = {name: m["upper"] for name, m in row["methods"].items() if "upper" in m}
        kept: dict[str, bool | None] = {"local": uppers["local"] <= wanted["local"]}
        best = [uppers[name] for name in ANYTIME if name in uppers]
        if "best" in wanted:
            kept["best"] = min(best) <= wanted["best"] if best else None
        if "faster" in wanted:
            kept["faster"] = None
            if "lirpa" in uppers:
                ratio = row["methods"]["lirpa"]["cpu_seconds"] / row["methods"]["local"]["cpu_seconds"]
                kept["faster"] = ratio >= wanted["faster"]
        found.append({"network": row["network"], "radius": row["radius"], "wanted": wanted, "kept": kept})
    return found


def readme(result: dict[str, Any]) -> str:
    machine = result["hardware"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    head = ["network", "radius", "sampled", *(f"{name} | s" for name in COLOURS), "load"]
    lines = [
        "# Local bounds around digits",
        "",
        "Generated by `make bench-local`. Balls of norm linf, constants from linf to linf: mean over five test images of the",
        "largest of ten rows; `sampled` is the mean slope of the steepest pairs found. One thread, processor seconds for all 50",
        "problems (median of several runs; one run for `local-sdp` and `local-bab`, which get 30 and 34 s). `lirpa` is CROWN of",
        "auto_LiRPA without alpha optimisation, checked against samples and intervals (times include that check); `lirpa:alpha`",
        "is auto_LiRPA as its documentation has it, planes searched, but one point at a time: its batches are wrong with ReLU.",
        "",
        f"{machine['processor']}, {machine['cores']} cores; Python {machine['python']}, {versions}. `load`: load average "
        "when the row was measured.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * (len(COLOURS) * 2 + 4),
    ]
    for row in result["rows"]:
        cells = [row["network"], row["radius"], number(row["lower"], 4)]
        for name in COLOURS:
            found = row["methods"].get(name, {})
            cells += [number(found.get("upper"), 5), number(found.get("cpu_seconds"), 3)]
        lines.append("| " + " | ".join([*cells, str(row["load"])]) + " |")
    lines += ["", "| network | radius | wanted | kept |", "|---|---|---|---|"]
    words = {True: "yes", False: "no", None: "not measured"}
    for row in result["promises"]:
        wanted = ", ".join(f"{name} {value:g}" for name, value in row["wanted"].items())
        kept = ", ".join(f"{name}: {words[value]}" for name, value in row["kept"].items())
        lines.append(f"| {row['network']} | {row['radius']} | {wanted} | {kept} |")
    return "\n".join([*lines, "", "![times and bounds](plot.svg)", ""])


def write(result: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    labelled = [{**row, "network": f"{row['network']}, {row['radius']}"} for row in result["rows"]]
    caption = "Processor seconds on one thread; beside each point its bound relative to local's"
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(readme(result), encoding="utf-8")
    (folder / "plot.svg").write_text(dots(labelled, COLOURS, "cpu_seconds", caption), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", help="NETWORK@RADIUS, measured again; may be given several times"
    )
    parser.add_argument(
        "--all", action="store_true", help="every network of the design, not only the promised rows"
    )
    parser.add_argument("--out", type=Path, default=Path("reports/bench-local"))
    options = parser.parse_args()
    every = [(network, radius) for network in NETWORKS for radius in RADII]
    wanted = every if options.all else list(PROMISES)
    if options.only:
        wanted = [(network, radius) for network, _, radius in (word.partition("@") for word in options.only)]
        unknown = [pair for pair in wanted if pair not in every]
        if unknown:
            sys.exit(f"no such row: {unknown[0][0]}@{unknown[0][1]}")
    path = options.out / "result.json"
    rows: dict[tuple[str, str], Any] = {}
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))["rows"]
        rows = {(row["network"], row["radius"]): row for row in before}
    for pair in wanted:
        if pair in rows and not options.only:
            continue
        rows[pair] = measure(*pair)
        ordered = [rows[key] for key in every if key in rows]
        result = {
            "schema": "lipverify.bench-local/1",
            "hardware": hardware(),
            "rows": ordered,
            "promises": promises(ordered),
        }
        write(result, options.out)
        shown = {name: number(m.get("upper"), 5) for name, m in rows[pair]["methods"].items()}
        print(f"{pair[0]} {pair[1]}: sampled {number(rows[pair]['lower'], 4)}, {shown}", flush=True)
    missed = [row for row in promises(list(rows.values())) if False in row["kept"].values()]
    for row in missed:
        print(f"missed: {row}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
