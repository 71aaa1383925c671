"""What `--scheduler` gains: points a second on 1 and 2 workers, and what follows for 1,000; writes cluster.md beside this file.

    python reports/reliability/cluster.py [--workers 1,2]

Workers are processes of this machine, each with one thread. The same points are given to `radius` and `audit`; searches run
on the workers, proofs here, so both are measured apart: a run with all its time, and what the searches are of it. Times are those
on the wall: what else the machine does makes them longer.
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


def searched(verb: str, graph: lv.Graph, x: torch.Tensor, address: str) -> tuple[float, float]:
    """Seconds of a run with --scheduler, and of the searches in it."""
    ended: list[float] = []

    def stage(name: str, best: float | None) -> None:
        # The first proof begins where the last unit has come back.
        if name.startswith("proof") and not ended:
            ended.append(time.monotonic())

    begun = time.monotonic()
    if verb == "radius":
        lv.radii(graph, x, method="crown", scheduler=address, proofs=False)
        return time.monotonic() - begun, time.monotonic() - begun
    region, given = lv.Ball(x, 0.05, "linf"), {"norm": "linf", "search": Search(rounds=20)}
    lv.audit(graph, region=region, analyzers=["local"], scheduler=address, report=stage, **given)
    return time.monotonic() - begun, ended[0] - begun


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
            searched("audit", graph, x[:16], address)  # the workers import lipverify once
            begun = time.monotonic()
            list(units.results(empty, None, [(k,) for k in range(EMPTY)], EMPTY, scheduler=address))
            way = (time.monotonic() - begun) / EMPTY
            for verb in ("radius", "audit"):
                whole, search = searched(verb, graph, x, address)
                rows.append({"verb": verb, "workers": workers, "whole": whole, "search": search, "way": way})
                print(rows[-1], flush=True)
    (HERE / "cluster.md").write_text(page(rows), encoding="utf-8")


def page(rows: list[dict[str, Any]]) -> str:
    """The table, and what follows for many workers."""
    lines = [
        "# Throughput of --scheduler",
        "",
        f"Made by `reports/reliability/cluster.py` on a machine of {os.cpu_count()} cores, which did other things too:",
        f"{POINTS} points of `{MODEL}`, `radius` by crown without proofs, `audit` by local with proofs, which are made",
        "where the command runs. A unit of `radius` is a point, one of `audit` 16 points.",
        "",
        "| command | workers | searches | points a second | proofs |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        proofs = f"{row['whole'] - row['search']:.1f} s" if row["verb"] == "audit" else "-"
        rate = POINTS / row["search"]
        lines.append(f"| {row['verb']} | {row['workers']} | {row['search']:.1f} s | {rate:.1f} | {proofs} |")
    way = min(row["way"] for row in rows)
    lines += [
        "",
        f"A unit that does nothing takes {1e3 * way:.1f} ms of whoever gives the units out: {1 / way:.0f} a second at most.",
        f"Estimate for {MANY:,} workers, from the runs with the fewest, where nothing else limits:",
        "",
    ]
    for verb in ("radius", "audit"):
        few = min((row for row in rows if row["verb"] == verb), key=lambda row: row["workers"])
        rate = POINTS / few["search"] / few["workers"]
        size = 1 if verb == "radius" else 16
        most = min(MANY * rate, size / way)
        told = "the workers" if MANY * rate <= size / way else "giving units out"
        lines.append(f"- `{verb}`: {most:,.0f} points a second in searches, limited by {told}.")
    audits = [row for row in rows if row["verb"] == "audit"]
    proofs = min((row["whole"] - row["search"]) / POINTS for row in audits)
    lines.append(
        f"- Proofs of `audit` take {1e3 * proofs:.0f} ms a point here whatever the workers do: {1 / proofs:,.0f} points a second."
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
