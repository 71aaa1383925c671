"""LipSDP inside an audit: valid at any budget, an interrupt keeps the best bound, and the document says so."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import lipverify as lv
from lipverify import ops, pipeline
from lipverify.cli import main
from lipverify.falsify import Search
from lipverify.ir.graph import Graph
from tests.faults import run_function
from tests.interrupts import Stop
from tests.networks import chain, tensor
from tests.onnx_models import model, node

BRIEF = Search(restarts=4, rounds=4, seconds=0.2)


def deep(depth: int, width: int) -> Graph:
    rng = np.random.default_rng(0)
    widths = [20, *[width] * depth, 5]
    return chain([tensor(rng, o, i, scale=(2 / i) ** 0.5) for i, o in itertools.pairwise(widths)], ops.ReLU())


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_an_interrupt_keeps_the_best_bound(norm: str) -> None:
    graph = deep(4, 20)
    free = lv.audit(graph, norm=norm, analyzers=["product", "lipsdp"], search=BRIEF)
    stopped = lv.audit(
        graph,
        norm=norm,
        analyzers=["product", "lipsdp", "lipsdp-fast"],
        search=BRIEF,
        report=Stop("lipsdp step", 4),
    )
    product, lipsdp, fast = stopped.rows
    assert lipsdp.interrupted
    assert lipsdp.certificate is not None
    upper, best, layered = (float(row.upper) for row in (lipsdp, free.rows[1], product))  # type: ignore[arg-type]
    assert best <= upper * (1 + 1e-6)
    assert upper < layered
    assert upper >= float(stopped.lower.value)
    # What was not begun has no number, and says why.
    assert fast.refused == "interrupted before it began"
    document = stopped.to_json()
    assert document["results"][1]["interrupted"] is True
    assert any("interrupted" in note for note in document["results"][1]["notes"])
    assert pipeline.exit_code(stopped) == 130
    assert pipeline.exit_code(free) == 0
    assert not any("interrupted" in row for row in free.to_json()["results"])


def test_an_interrupt_of_an_analyzer_without_a_bound_keeps_the_others() -> None:
    stopped = lv.audit(deep(2, 10), analyzers=["lipsdp", "product"], search=BRIEF, report=Stop("product", 1))
    assert stopped.rows[0].certificate is not None
    assert stopped.rows[1].refused == "interrupted before it had a bound"
    assert pipeline.exit_code(stopped) == 130


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("budget", [0.05, 0.5, 2.0])
def test_any_budget_gives_a_bound_and_keeps_to_it(norm: str, budget: float) -> None:
    graph = deep(6, 40)
    search = Search(restarts=2, rounds=1, seconds=0.01)
    result = lv.audit(graph, norm=norm, analyzers=["lipsdp"], budget=budget, search=search)
    (row,) = result.rows
    assert row.certificate is not None, row.refused
    assert row.certificate.trace
    times, bounds = zip(*row.certificate.trace, strict=True)
    assert list(times) == sorted(times)
    assert list(bounds) == sorted(bounds, reverse=True)
    assert bounds[-1] <= float(row.upper) * (1 + 1e-6)  # type: ignore[arg-type]
    assert float(row.upper) >= float(result.lower.value)  # type: ignore[arg-type]
    assert pipeline.exit_code(result) == 0


def test_control_c_on_the_command_line_writes_what_was_found(tmp_path: Path) -> None:
    """The signal comes when the search says its third step: on no machine too early or too late."""
    rng = np.random.default_rng(0)
    widths = [20, *[40] * 5, 5]
    constants = {
        f"w{k}": (rng.standard_normal((o, i)) * (2 / i) ** 0.5).astype(np.float32)
        for k, (i, o) in enumerate(itertools.pairwise(widths))
    }
    nodes, last = [], "x"
    for k in range(len(widths) - 1):
        end = "y" if k == len(widths) - 2 else f"v{k}"
        nodes.append(node("Gemm", [last, f"w{k}"], [end], transB=1))
        last = end
        if end != "y":
            nodes.append(node("Relu", [end], [f"r{k}"]))
            last = f"r{k}"
    path, out = tmp_path / "deep.onnx", tmp_path / "report"
    onnx.save(model(nodes, ["N", 20], constants=constants), path)

    def program() -> None:
        said, write = itertools.count(1), sys.stderr.write

        def heard(text: str) -> int:
            if "lipsdp step" in text and next(said) == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return write(text)

        sys.stderr.write = heard  # type: ignore[method-assign]
        command = ["audit", path, "--analyzers", "product,lipsdp", "--verbose", "--out", out]
        sys.argv = ["lipverify", *map(str, command)]
        main()

    done = run_function(program, out)
    assert done.returncode == 130, done.stderr
    document = json.loads((out / "result.json").read_text())
    product, lipsdp = document["results"]
    assert lipsdp["interrupted"] is True
    assert document["lower"]["value"] <= lipsdp["upper"] < product["upper"]
    assert (out / "report.html").exists()
