"""LipSDP against a cone solver, one thread, everything in one run.

    python benchmarks/lipsdp.py [--quick] [--only NETWORK ...] [--out reports/bench-lipsdp]

Every method runs in a process of its own with a time limit. Ours is timed from the graph to the certified bound, several
times before and after its peers; the cone solvers by the time they report themselves, without CVXPY's modelling, which
favours them. Ratios are those of processor time, so that a busy machine does not move them; wall time is kept beside it.
A solver's objective is not a bound: beside it stands what its multipliers prove. An interrupted run goes on with the rows it
has not measured; `--only` measures single rows of a finished one again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from lipsdp_cnn import NETWORKS, run_network
from lipsdp_report import number, write

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
REPEATS = 5


@dataclass(frozen=True)
class Case:
    """A network he-inputs-widthxdepth-outputs or digits-widthxdepth, and what a peer gets in processor seconds (0: not run)."""

    name: str
    clarabel: float = 0.0
    scs: float = 0.0
    budget: float = 0.0
    """Seconds for one search of ours, run once; 0: to the tolerance, several times."""


QUICK = (
    Case("he-10-10x2-5", 20, 20),
    Case("he-10-20x3-5", 20, 20),
    Case("he-64-50x10-10"),
)
FULL = (
    Case("he-10-10x2-5", 60, 60),
    Case("he-10-20x3-5", 60, 60),
    Case("he-20-30x4-10", 900, 120),
    Case("digits-50x2", 900, 120),
    Case("he-20-50x3-10", 900, 120),
    Case("he-64-50x10-10", 0, 120),
    Case("he-64-50x20-10"),
    Case("he-64-200x3-10", 0, 120),
    Case("he-64-1000x3-10", budget=120),
    Case("he-64-200x20-10", budget=180),
    Case("he-64-50x50-10", budget=120),
    Case("digits-100x4", 0, 180),
)
TARGETS = {"he-20-30x4-10": 100.0, "he-20-50x3-10": 1000.0, "digits-50x2": 5000.0}
"""Least ratio of Clarabel's time to ours; the bound may exceed its optimum by a thousandth."""


# -- networks


def he_weights(name: str) -> list[np.ndarray]:
    """N(0, 2 / fan-in), layer by layer from default_rng(0)."""
    _, inputs, hidden, outputs = name.split("-")
    width, depth = map(int, hidden.split("x"))
    rng = np.random.default_rng(0)
    widths = [int(inputs), *[width] * depth, int(outputs)]
    return [rng.standard_normal((o, i)) * np.sqrt(2.0 / i) for i, o in itertools.pairwise(widths)]


def digits_weights(name: str) -> list[np.ndarray]:
    """A ReLU network on the 8x8 digits of scikit-learn (ink / 16), Adam, 60 epochs, seed 0."""
    import torch
    from sklearn.datasets import load_digits

    width, depth = map(int, name.split("-")[1].split("x"))
    torch.manual_seed(0)
    data = load_digits()
    x, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    widths = [64, *[width] * depth, 10]
    layers: list[torch.nn.Module] = []
    for i, o in itertools.pairwise(widths):
        layers += [torch.nn.Linear(i, o), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(60):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
    return [layer.weight.detach().double().numpy() for layer in network if isinstance(layer, torch.nn.Linear)]


def graph_of(weights: list[np.ndarray]) -> Any:
    """The chain of dense layers and ReLUs as a graph; biases do not matter to a bound for the whole space."""
    import torch

    from lipverify import ops
    from lipverify.frontends.builder import Builder
    from lipverify.ir.graph import Origin

    b = Builder(symbolic_batch=True)
    v = b.input((1, weights[0].shape[1]), 0)
    for index, weight in enumerate(weights):
        b.where = f"layer{index}"
        v = b.linear(v, torch.from_numpy(weight))
        if index < len(weights) - 1:
            v = b.elementwise(ops.ReLU(), v)
    return b.graph([v], Origin())


# -- one method on one network, in a process of its own


def run_method(method: str, weights: list[np.ndarray], budget: float = 0.0) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    from lipverify.analyzers.lipsdp.canonical import canonical_form, looped_form
    from lipverify.analyzers.lipsdp.reference import solve_reference
    from lipverify.analyzers.lipsdp.repair import evaluated_again
    from lipverify.analyzers.lipsdp.solver import fast, solve
    from lipverify.analyzers.product import Product
    from lipverify.analyzers.protocol import Compute
    from lipverify.ir.region import Query

    graph, compute = graph_of(weights), Compute()
    if method in ("clarabel", "scs"):
        begun, worked = time.perf_counter(), time.process_time()
        found = solve_reference(canonical_form(graph), method.upper())
        seconds, cpu = time.perf_counter() - begun, time.process_time() - worked
        again = evaluated_again(looped_form(graph), found, compute)
        return {
            "upper": again.upper,
            "objective": found.objective,
            "status": found.status,
            "seconds": found.seconds if found.seconds is not None else seconds,
            "seconds_with_modelling": seconds,
            # Only the whole call can be measured; the solver's share of it is that of the wall time.
            "cpu_seconds": cpu * (found.seconds or seconds) / seconds,
        }
    # The first call of every kernel is slower than all others.
    solve(canonical_form(graph_of(he_weights("he-4-6x2-3"))), compute)
    times: list[float] = []
    cpu_times: list[float] = []
    result: dict[str, Any] = {}
    started = time.perf_counter()
    for _ in range(REPEATS):
        begun, worked = time.perf_counter(), time.process_time()
        if method == "product":
            certificate = Product().bound(graph, Query(), compute)
            result = {"upper": float(certificate.upper)}
        else:
            # The closed form with one share is ECLipsE-Fast.
            limit = replace(compute, deadline=time.monotonic() + budget) if budget else compute
            system = canonical_form(graph)
            solution = solve(system, limit) if method == "lipsdp" else fast(system, compute, shares=(1.0,))
            result = {"upper": solution.upper, "gap": solution.gap, "iterations": solution.iterations}
            if method == "lipsdp" and solution.upper is not None:
                within = (t for t, bound in solution.trace if bound <= 1.01 * solution.upper)
                result["seconds_to_percent"] = next(within, None)
        times.append(time.perf_counter() - begun)
        cpu_times.append(time.process_time() - worked)
        if budget or time.perf_counter() - started > 60:
            break
    return {**result, "times": times, "cpu_times": cpu_times}


def measured(method: str, weights: Path, limit: float, budget: float = 0.0) -> dict[str, Any]:
    """What a child process prints, or why there is nothing. limit: processor seconds."""
    environment = {**os.environ, **dict.fromkeys(THREADS, "1")}
    command = [sys.executable, __file__, "--child", method, str(weights), str(limit), str(budget)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=5 * limit, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not finished after {limit:.0f} s", "limit": limit}
    if done.returncode == -signal.SIGXCPU:
        return {"failed": f"not finished after {limit:.0f} s", "limit": limit}
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        return {"failed": lines[-1][:200]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def run_case(case: Case, folder: Path) -> dict[str, Any]:
    weights = digits_weights(case.name) if case.name.startswith("digits") else he_weights(case.name)
    path = folder / f".{case.name}.npz"
    np.savez(path, *weights)
    try:
        results: dict[str, Any] = {}
        for method in ("lipsdp", "lipsdp-fast", "product"):
            results[method] = measured(method, path, 600, case.budget)
        for method, limit in (("clarabel", case.clarabel), ("scs", case.scs)):
            results[method] = measured(method, path, limit) if limit else {"failed": "not run at this size"}
        again = {} if case.budget else measured("lipsdp", path, 600)
        for kind in ("times", "cpu_times"):
            results["lipsdp"].setdefault(kind, []).extend(again.get(kind, []))
    finally:
        path.unlink()
    for found in results.values():
        if found.get("times"):
            found["seconds"] = statistics.median(found["times"])
            found["cpu_seconds"] = statistics.median(found["cpu_times"])
    return {
        "network": case.name,
        "neurons": sum(len(w) for w in weights[:-1]),
        "methods": results,
        **ratios(results),
    }


def ratios(results: dict[str, Any]) -> dict[str, Any]:
    """Bounds and times relative to ours."""
    ours = results["lipsdp"]
    found: dict[str, Any] = {"bound_ratio": {}, "time_ratio": {}}
    for method, theirs in results.items():
        if method == "lipsdp" or theirs.get("upper") is None or ours.get("upper") is None:
            continue
        found["bound_ratio"][method] = theirs["upper"] / ours["upper"]
        found["time_ratio"][method] = theirs["cpu_seconds"] / ours["cpu_seconds"]
        if "objective" in theirs:
            found["bound_ratio"][f"{method}-objective"] = theirs["objective"] / ours["upper"]
    return found


# -- the run


def hardware() -> dict[str, Any]:
    """Processor and versions; nothing that names the machine."""
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    packages = ("lipverify", "torch", "numpy", "scipy", "cvxpy", "clarabel", "scs")
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": 1,
        "load_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def targets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The promises of this benchmark, and whether they were kept."""
    found = []
    for row in rows:
        least = TARGETS.get(row["network"])
        if least is None:
            continue
        clarabel = row["methods"]["clarabel"]
        if "objective" not in clarabel:
            found.append({"network": row["network"], "kept": None, "why": clarabel["failed"]})
            continue
        excess = row["methods"]["lipsdp"]["upper"] / clarabel["objective"]
        speed = row["time_ratio"]["clarabel"]
        kept = excess <= 1.001 and speed >= least
        found.append(
            {
                "network": row["network"],
                "bound_over_optimum": excess,
                "time_ratio": speed,
                "least": least,
                "kept": kept,
            }
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a minute instead of half an hour")
    parser.add_argument(
        "--only", action="append", metavar="NETWORK", help="measure this row of the last run again"
    )
    parser.add_argument("--out", type=Path, default=Path("reports/bench-lipsdp"))
    parser.add_argument(
        "--child", nargs=4, metavar=("METHOD", "WEIGHTS", "SECONDS", "BUDGET"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.child:
        method, path, limit, budget = options.child
        resource.setrlimit(resource.RLIMIT_CPU, (int(float(limit)), int(float(limit)) + 5))
        with np.load(path) as stored:
            print(json.dumps(run_method(method, [stored[name] for name in stored.files], float(budget))))
        return 0
    for name in THREADS:
        os.environ[name] = "1"
    options.out.mkdir(parents=True, exist_ok=True)
    result = measure_all(options.out, options.quick, set(options.only or ()))
    missed = [row for row in (*result["targets"], *result["convolutional"]) if row.get("kept") is False]
    for row in missed:
        print(f"target missed: {row}", file=sys.stderr)
    return 1 if missed else 0


def measure_all(out: Path, quick: bool, only: set[str]) -> dict[str, Any]:
    """Measures what is wanted and not yet there; after every row what is known is kept in the folder."""
    unfinished = out / ".unfinished.json"
    finished = out / "result.json"
    start = finished if only else unfinished
    result: dict[str, Any] = {"schema": "lipverify.bench-lipsdp/2", "hardware": hardware()}
    known = json.loads(start.read_text()) if start.exists() else {}
    result["networks"] = known.get("networks", [])
    result["convolutional"] = known.get("convolutional", [])
    result["hardware"] = known.get("hardware", result["hardware"])
    cases = QUICK if quick else FULL
    networks = () if quick else NETWORKS
    names = {item.name for item in (*cases, *networks)}
    if only - names:
        raise SystemExit(
            f"no such row: {', '.join(sorted(only - names))}; there are {', '.join(sorted(names))}"
        )
    work = [("networks", case.name, partial(run_case, case, out)) for case in cases]
    work += [("convolutional", network.name, partial(run_network, network)) for network in networks]
    order = [name for _, name, _ in work]
    for section, name, run in work:
        there = any(row["network"] == name for row in result[section])
        if name not in only if only else there:
            continue
        row = run()
        rows = [kept for kept in result[section] if kept["network"] != name] + [row]
        result[section] = sorted(rows, key=lambda kept: order.index(kept["network"]))
        result["targets"] = targets(result["networks"])
        unfinished.write_text(json.dumps(result))
        print(f"{name}: {summary(row)}", flush=True)
    result["targets"] = targets(result["networks"])
    write(result, out)
    unfinished.unlink(missing_ok=True)
    return result


def summary(row: dict[str, Any]) -> str:
    """One line of progress."""
    ours = row["methods"]["lipsdp"] if "methods" in row else {**row, "upper": row.get("lipsdp")}
    return (
        f"{number(ours.get('upper'))} in {number(ours.get('seconds'), 3)} s {ours.get('failed', '')}".rstrip()
    )


if __name__ == "__main__":
    sys.exit(main())
