"""The checker's own operators compute what the package's operators compute, and its proofs hold against dense matrices."""

from __future__ import annotations

import ast
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify import checkers, ops, rules, testing
from lipverify.certificates import described, issue, model_of, verify
from lipverify.certificates.nodes import TABLE
from lipverify.checkers import gains
from lipverify.checkers.multipliers import System, prove_lipsdp
from lipverify.checkers.proofs import ending
from lipverify.checkers.signals import Signal, identity, mapped, stacked
from lipverify.checkers.steps import Map, Program, Scalar
from lipverify.errors import InternalError, RefutedCertificate
from lipverify.falsify import Search
from lipverify.ir.certificate import Certificate, Gains, Rigour, Step
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Input
from lipverify.ir.region import Query
from tests import networks

PACKAGE = Path(checkers.__file__).parent
QUICK = Search(seconds=0.1)


def covered_cases() -> list[testing.OperatorCase]:
    return [
        c
        for c in testing.operator_cases()
        if type(c.op) in TABLE and rules.linear.covers(type(c.op)) and len(set(c.input_shapes)) == 1
    ]


def single(case: testing.OperatorCase) -> Graph:
    """One operator on one input; a second operand is the input as well."""
    shape = case.input_shapes[0]
    result = tuple(rules.forward(case.op, *(torch.zeros(1, *s) for s in case.input_shapes)).shape[1:])
    inputs = ("x",) * len(case.input_shapes)
    return Graph((Node("x", Input(), (), shape), Node("y", case.op, inputs, result)), ("y",))


def signal_of(program: Program, output: str) -> Signal:
    """The result of an affine program as a matrix on the input."""
    signals = {program.input: identity(-1, program.steps[program.input].size)}
    for name, step in program.steps.items():
        if step.sources:
            assert isinstance(step, Map)
            signals[name] = mapped(step, stacked([signals[s] for s in step.sources]).rows(step.view))
    return signals[output]


@pytest.mark.parametrize("case", covered_cases(), ids=str)
def test_linear_parts_agree_with_the_package(case: testing.OperatorCase) -> None:
    try:
        known = described(single(case))
    except checkers.NotCovered:
        pytest.skip("the checker refuses this setting")
    signal = signal_of(known.program, ending(known.program, known.output))
    exact = case.op.to(dtype=torch.float64)
    columns = math.prod(case.input_shapes[0])
    total = rules.linear(
        exact, *(torch.eye(columns, dtype=torch.float64).reshape(-1, *s) for s in case.input_shapes)
    )
    error = np.abs(signal.parts[-1] - total.reshape(len(total), -1).numpy().T)
    assert (error <= signal.errors(-1) + 1e-15 * signal.size(-1)).all()


def scalar_cases() -> list[testing.OperatorCase]:
    return [c for c in testing.operator_cases() if rules.slopes.covers(type(c.op)) and type(c.op) in TABLE]


@pytest.mark.parametrize("case", scalar_cases(), ids=str)
def test_slopes_hold_those_of_the_package(case: testing.OperatorCase) -> None:
    step = described(single(case)).program.steps["y"]
    assert isinstance(step, Scalar)
    ours = [end.reshape(case.input_shapes[0]) for end in (step.low, step.high)]
    # Difference quotients at random points: independent of both tables.
    x = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    flat = rules.forward(
        case.op.to(dtype=torch.float64),
        x.reshape(-1, *(1,) * len(case.input_shapes[0])).expand(-1, *case.input_shapes[0]),
    )
    quotients = (flat[1:] - flat[:-1]) / (x[1:] - x[:-1]).reshape(-1, *(1,) * len(case.input_shapes[0]))
    assert (quotients.amin(0).numpy() >= ours[0] - 1e-9).all()
    assert (quotients.amax(0).numpy() <= ours[1] + 1e-9).all()


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (2, 0)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_symbols_never_fall_below_the_matrix(
    stride: int, padding: tuple[int, int], dilation: int, rng: np.random.Generator
) -> None:
    for groups in (1, 2):
        weight = torch.tensor(rng.standard_normal((4, 4 // groups, 3, 2)), dtype=torch.float32)
        op = ops.Conv(weight, None, (stride, 1), (padding, (1, 0)), (dilation, 1), groups)
        x = torch.zeros(1, 4, 7, 6)
        graph = Graph(
            (Node("x", Input(), (), (4, 7, 6)), Node("y", op, ("x",), tuple(rules.forward(op, x).shape[1:]))),
            ("y",),
        )
        program = described(graph).program
        chain = [program.steps["y"]]
        size = float(np.linalg.norm(signal_of(program, "y").parts[-1], 2))
        kernel, _, sizes = gains.kernel_of(chain)
        below = {"steps": ["y"], "gain": (size * (1 - 1e-9)).hex()}
        for more, twist in ((0, 0), (0, 1), (1, 0), (3, 1)):
            torus = [[n + more, twist] for n in sizes]
            values = gains.symbol_at(kernel, gains.torus_points(kernel, torus))
            peak = float(np.linalg.norm(values, 2, (-2, -1)).max())
            assert peak >= size * (1 - 1e-9)
            stage = {"steps": ["y"], "by": "torus", "torus": torus}
            good = [{**stage, "gain": (peak * (1 + 1e-9)).hex()}]
            assert gains.prove_product(program, "y", ("l2", "l2"), good, False) >= size
            with pytest.raises(RefutedCertificate):
                gains.prove_product(program, "y", ("l2", "l2"), [{**below, **stage}], False)
        # A grid that is too small for the image: what lies between its points is covered by the cosine.
        coarse = [[2 * taps + 1 + more, 0] for taps, more in zip(kernel.shape[3:], (0, 1), strict=True)]
        peak = float(
            np.linalg.norm(gains.symbol_at(kernel, gains.torus_points(kernel, coarse)), 2, (-2, -1)).max()
        )
        for (n, _), taps in zip(coarse, kernel.shape[3:], strict=True):
            peak /= math.cos(math.pi * (taps - 1) / 2 / n)
        stage = {"steps": ["y"], "by": "torus", "torus": coarse}
        assert peak >= size
        assert (
            gains.prove_product(program, "y", ("l2", "l2"), [{**stage, "gain": (peak * 1.001).hex()}], False)
            >= size
        )
        with pytest.raises(RefutedCertificate):
            gains.prove_product(program, "y", ("l2", "l2"), [{**below, **stage}], False)


def mlp(rng: np.random.Generator, *widths: int) -> Graph:
    weights = [
        torch.tensor(rng.standard_normal((m, n)) * np.sqrt(2 / n), dtype=torch.float32)
        for n, m in itertools.pairwise(widths)
    ]
    return networks.chain(weights, ops.ReLU())


def test_a_planted_underestimate_is_caught(rng: np.random.Generator) -> None:
    """What twenty steps of an iteration from below give is no bound, and the checker says so."""
    graph = mlp(rng, 30, 40, 10)
    result = lv.audit(graph, search=QUICK)
    certificate = result.certificates["product"]
    assert certificate.rigour is Rigour.CHECKED
    assert isinstance(certificate.evidence, Gains)
    steps = tuple(
        Step(s.nodes, None if s.gain is None else s.gain * (0.99 if s.gain != 1.0 else 1.0), s.log10_reach)
        for s in certificate.evidence.steps
    )
    assert certificate.upper is not None
    wrong = Certificate(
        upper=certificate.upper * 0.98,
        query=Query(),
        rigour=Rigour.REAL,
        evidence=Gains(steps),
        made_by="wrong",
        graph_digest=graph.digest,
    )
    with pytest.raises(InternalError, match="does not check") as caught:
        issue(wrong, graph, Query(), result.rows[0].method, 0.0)
    kept = Path(str(caught.value).rsplit(" ", 1)[1])
    document = json.loads(kept.read_text())
    assert document["rigour"] == "real"
    assert document["proof"]["kind"] == "gains"


@pytest.mark.parametrize("name", ["product", "lipsdp-fast"])
def test_certificates_survive_the_disk(name: str, rng: np.random.Generator, tmp_path: Path) -> None:
    graph = mlp(rng, 6, 9, 7, 3)
    found = lv.audit(graph, analyzers=[name], search=QUICK)
    found.certificates[name].save(tmp_path / "c.json")
    verdict = verify(tmp_path / "c.json", graph)
    assert verdict.upper == found.best.upper
    assert verify(tmp_path / "c.json", graph, exact=True).upper == verdict.upper
    with pytest.raises(lv.UnreadableCertificate):
        verify(tmp_path / "c.json", mlp(rng, 6, 9, 7, 3))
    again = lv.audit(graph, analyzers=[name], search=QUICK).certificates[name]
    first, second = (c.issued.files("c.json") for c in (found.certificates[name], again))
    assert {k: _without_times(v) for k, v in first.items()} == {
        k: _without_times(v) for k, v in second.items()
    }


def _without_times(data: bytes) -> bytes:
    return b"\n".join(line for line in data.splitlines() if b"_seconds" not in line)


def test_multipliers_are_proved_with_little_room_and_not_below(rng: np.random.Generator) -> None:
    graph = mlp(rng, 8, 20, 20, 5)
    certificate = lv.audit(graph, analyzers=["lipsdp"], search=QUICK).certificates["lipsdp"]
    system = System(described(graph).program, described(graph).output)
    values = [d.numpy() for d in certificate.evidence.diagonals[0]]
    upper = float(certificate.upper)
    for exact in (False, True):
        prove_lipsdp(system, values, upper, exact)
        with pytest.raises(RefutedCertificate):
            prove_lipsdp(system, values, upper * (1 - 1e-4), exact)


def test_the_checker_imports_numpy_alone() -> None:
    code = "import lipverify.checkers, sys; print([m for m in ('torch', 'cvxpy', 'scipy', 'onnx') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
    allowed = {"lipverify.checkers", "lipverify.errors", "numpy", "onnx"}
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                standard = name.split(".")[0] in sys.stdlib_module_names
                assert standard or any(name == a or name.startswith(f"{a}.") for a in allowed), (
                    path.name,
                    name,
                )


def test_no_iteration_from_below_stands_behind_an_upper_bound() -> None:
    """Lanczos in `linalg.dense` only proposes thresholds; nothing else may know a method that converges from below."""
    words = ("power_iteration", "power iteration", "spectral_norm(", "lobpcg", "svds(", "eigsh(")
    for path in PACKAGE.parent.rglob("*.py"):
        if path.name == "falsify.py" or "bounds" in path.parts or "testing" in path.parts:
            continue
        code = ast.unparse(_without_texts(ast.parse(path.read_text(encoding="utf-8")))).lower()
        assert not [word for word in words if word in code], path


def _without_texts(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return tree


def test_the_schema_names_the_fields_the_checker_reads() -> None:
    from lipverify.checkers.claims import KEYS

    schema = json.loads((PACKAGE / "certificate.schema.json").read_text(encoding="utf-8"))
    own = {"": schema, **schema["properties"], **schema["$defs"]}
    for kind, fields in KEYS.items():
        assert set(own[kind]["properties"]) - {"log10_upper"} == set(fields.split()), kind
        assert own[kind]["additionalProperties"] is False


def test_models_in_memory_are_bound_by_their_content(rng: np.random.Generator) -> None:
    graph = mlp(rng, 4, 5, 2)
    model = model_of(graph)
    assert model.binding == "graph"
    assert len(model.tensors) == 2
