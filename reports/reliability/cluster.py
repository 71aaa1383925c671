"""What `--scheduler` gains: points a second on 1 and 2 workers, and what follows for 1,000; writes cluster.md beside this file.

    python reports/reliability/cluster.py [--workers 1,2]

Workers are processes of this machine, each with one thread. The same points are given to `radius` and `audit`; searches run
on the workers, proofs here. What counts is processor time: of the busiest worker, which is how long the searches take where every
worker has a core of its own, and of the process that gives units out, in which the scheduler runs too. Whatever else the machine
does changes only the time on the wall, which stands beside.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import torch

import lipverify as lv
from lipverify import units
from lipverify.falsify import Search

HERE = Path(__file__).resolve().parent
MODEL = "zoo:digits-relu-mlp"
POINTS, EMPTY, MANY = 64, 400, 1000


def empty(shared: None, number: int, seconds: float | None) -> int:
    """A unit that costs nothing but its way."""
    return number


def searched(verb: str, graph: lv.Graph, x: torch.Tensor, address: str) -> dict[str, Any]:
    """Seconds of the searches of a run with --scheduler: on the wall, of the busiest worker, of this process; and of proofs."""
    ended: list[tuple[float, float]] = []

    def now() -> tuple[float, float]:
        return time.monotonic(), time.process_time()

    def stage(name: str, best: float | None) -> None:
        # The first proof begins where the last unit has come back.
        if name.startswith("proof") and not ended:
            ended.append(now())

    with distributed.Client(address) as client:
        before, begun = client.run(time.process_time), now()
        if verb == "radius":
            lv.radii(graph, x, method="crown", scheduler=address, proofs=False)
        else:
            region, given = lv.Ball(x, 0.05, "linf"), {"norm": "linf", "search": Search(rounds=20)}
            lv.audit(graph, region=region, analyzers=["local"], scheduler=address, report=stage, **given)
        proofs = time.process_time() - ended[0][1] if ended else None
        wall, here = (end - start for end, start in zip(ended[0] if ended else now(), begun, strict=True))
        used = [seconds - before[name] for name, seconds in client.run(time.process_time).items()]
    return {"wall": wall, "here": here, "worker": max(used), "proofs": proofs}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", default="1,2")
    counts = [int(text) for text in parser.parse_args().workers.split(",")]
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    graph = lv.load(MODEL)
    x = torch.from_numpy(np.random.default_rng(0).random((POINTS, *graph.input_shape)))
    rows: list[dict[str, Any]] = []
    for workers in counts:
        settings = {"n_workers": workers, "threads_per_worker": 1, "host": "127.0.0.1"}
        with distributed.LocalCluster(dashboard_address=None, **settings) as cluster:
            address = cluster.scheduler_address
            for verb in ("radius", "audit"):
                searched(verb, graph, x[: 16 * workers], address)  # the workers import lipverify once
            begun = time.process_time()
            list(units.results(empty, None, [(k,) for k in range(EMPTY)], EMPTY, scheduler=address))
            way = (time.process_time() - begun) / EMPTY
            for verb in ("radius", "audit"):
                found = searched(verb, graph, x, address)
                rows.append({"verb": verb, "workers": workers, "way": way, **found})
                print(rows[-1], flush=True)
    (HERE / "cluster.md").write_text(page(rows), encoding="utf-8")


def page(rows: list[dict[str, Any]]) -> str:
    """The table, and what follows for many workers."""
    lines = [
        "# Throughput of --scheduler",
        "",
        f"Made by `reports/reliability/cluster.py` on a machine of {os.cpu_count()} cores, which did other things too:",
        f"{POINTS} points of `{MODEL}`, `radius` by crown without proofs, `audit` by local with proofs, which are made",
        "where the command runs. A unit of `radius` is a point, one of `audit` 16 points. Worker, here: processor time of the",
        "busiest worker, and of the process with command and scheduler, in the searches. Points a second: of the worker's time.",
        "",
        "| command | workers | worker | here | on the wall | points a second | proofs |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        proofs = "-" if row["proofs"] is None else f"{row['proofs']:.1f} s"
        times = " | ".join(f"{row[name]:.1f} s" for name in ("worker", "here", "wall"))
        lines.append(
            f"| {row['verb']} | {row['workers']} | {times} | {POINTS / row['worker']:.1f} | {proofs} |"
        )
    way = min(row["way"] for row in rows)
    gained, limits = [], []
    for verb in ("radius", "audit"):
        mine = sorted((row for row in rows if row["verb"] == verb), key=lambda row: row["workers"])
        few, many = mine[0], mine[-1]
        cores = [f"{100 * row['worker'] / row['wall']:.0f} %" for row in (many, few)]
        with_cores, here = (few[name] / many[name] for name in ("worker", "wall"))
        gained.append(
            f"- `{verb}`, {many['workers']} workers for {few['workers']}: {with_cores:.2f} times as fast where each has a core; "
            f"here {here:.2f} times, since each had {cores[0]} of one, and {cores[1]} before."
        )
        rate, size = POINTS / few["worker"] / few["workers"], 1 if verb == "radius" else 16
        told = "the workers" if MANY * rate <= size / way else "giving units out"
        most = min(MANY * rate, size / way)
        limits.append(f"- `{verb}`: {most:,.0f} points a second in searches, limited by {told}.")
    lines += [
        "",
        *gained,
        "",
        f"A unit that does nothing takes {1e3 * way:.1f} ms of whoever gives the units out: {1 / way:.0f} a second at most.",
        f"Estimate for {MANY:,} workers, from the runs with the fewest, where nothing else limits:",
        "",
        *limits,
    ]
    audits = [row for row in rows if row["verb"] == "audit"]
    proofs = min(row["proofs"] for row in audits) / POINTS
    lines.append(
        f"- Proofs of `audit` take {1e3 * proofs:.0f} ms a point here whatever the workers do: {1 / proofs:,.0f} points a second."
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
