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
from lipverify.certificates.fitting import neurons
from lipverify.checkers.envelope import FIELDS
from lipverify.checkers.evaluation import evaluate
from lipverify.checkers.kernel import Subject, gains
from lipverify.checkers.kernel.curves import curve
from lipverify.checkers.kernel.multipliers import multipliers_hold
from lipverify.checkers.kernel.program import Affine, Scalar
from lipverify.errors import InternalError
from lipverify.falsify import Search
from lipverify.ir.certificate import Certificate, Gains, Rigour, Step
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Input
from lipverify.ir.region import Query
from tests import networks
from tests.unit.checkers.graphs import matrix_of, program_of

PACKAGE = Path(checkers.__file__).parent
QUICK = Search(seconds=0.1)


def covered_cases() -> list[testing.OperatorCase]:
    return [
        c
        for c in testing.operator_cases()
        if rules.stated.covers(type(c.op)) and len(set(c.input_shapes)) == 1
    ]


def single(case: testing.OperatorCase) -> Graph:
    """One operator on one input; a second operand is the input as well."""
    shape = case.input_shapes[0]
    result = tuple(rules.forward(case.op, *(torch.zeros(1, *s) for s in case.input_shapes)).shape[1:])
    inputs = ("x",) * len(case.input_shapes)
    return Graph((Node("x", Input(), (), shape), Node("y", case.op, inputs, result)), ("y",))


@pytest.mark.parametrize("case", covered_cases(), ids=str)
def test_words_of_the_checker_compute_what_operators_compute(
    case: testing.OperatorCase, rng: np.random.Generator
) -> None:
    graph = single(case)
    try:
        program = program_of(graph)
    except checkers.NotCovered:
        pytest.skip("the checker refuses this setting")
    x = np.abs(rng.standard_normal((5, program.steps[0].size))) + 0.1
    points = torch.from_numpy(x).reshape(5, *case.input_shapes[0])
    exact = case.op.to(dtype=torch.float64)
    theirs = rules.forward(exact, *(points for _ in case.input_shapes)).expand(5, *graph.output_shape)
    ours = evaluate(program, x)[-1]
    scale = 1 + np.abs(ours).max()
    assert ours == pytest.approx(theirs.reshape(5, -1).numpy(), abs=1e-9 * scale)


def scalar_cases() -> list[testing.OperatorCase]:
    return [
        c
        for c in testing.operator_cases()
        if c.bounded and rules.slopes.covers(type(c.op)) and rules.stated.covers(type(c.op))
    ]


@pytest.mark.parametrize("case", scalar_cases(), ids=str)
def test_slopes_hold_those_of_the_package(case: testing.OperatorCase) -> None:
    try:
        program = described(single(case)).program
    except checkers.NotCovered:
        pytest.skip("the checker refuses this setting")
    steps = [step for step in program.steps if isinstance(step, Scalar)]
    if len(steps) != 1:
        pytest.skip("several words")
    (step,) = steps
    ours = [np.broadcast_to(end, step.size) for end in curve(step.law, step.settings, step.slopes).everywhere]
    # Difference quotients at random points: independent of both tables.
    x = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    shape = case.input_shapes[0]
    flat = rules.forward(
        case.op.to(dtype=torch.float64), x.reshape(-1, *(1,) * len(shape)).expand(-1, *shape)
    )
    quotients = (flat[1:] - flat[:-1]) / (x[1:] - x[:-1]).reshape(-1, *(1,) * len(shape))
    known = quotients.isfinite().flatten(1).all(1)
    quotients = quotients[known].flatten(1)
    scale = _outer(case.op)
    assert (quotients.amin(0).numpy() / scale >= ours[0] - 1e-9).all()
    assert (quotients.amax(0).numpy() / scale <= ours[1] + 1e-9).all()


def _outer(op: object) -> float:
    """The factor behind the activation of a gate, which is a step of its own."""
    return float(getattr(op, "outer", 1.0))


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
        program = program_of(graph)
        chain = [step for step in program.steps if isinstance(step, Affine) and step.lattice is not None]
        size = float(np.linalg.norm(matrix_of(program), 2))
        kernel, _, sizes = gains.kernel_of(chain)
        for more, twist in ((0, 0), (0, 1), (1, 0), (3, 1)):
            torus = [(n + more, twist) for n in sizes]
            values = gains.symbol_at(kernel, gains.torus_points(kernel, torus))
            peak = float(np.linalg.norm(values, 2, (-2, -1)).max())
            assert peak >= size * (1 - 1e-9)
            assert gains.chain_gains(chain, peak * (1 + 1e-9), torus, False) is not None
            assert gains.chain_gains(chain, size * (1 - 1e-9), torus, False) is None
        # A grid that is too small for the image: what lies between its points is covered by the cosine.
        coarse = [(2 * taps + 1 + more, 0) for taps, more in zip(kernel.shape[3:], (0, 1), strict=True)]
        peak = float(
            np.linalg.norm(gains.symbol_at(kernel, gains.torus_points(kernel, coarse)), 2, (-2, -1)).max()
        )
        for (n, _), taps in zip(coarse, kernel.shape[3:], strict=True):
            peak /= math.cos(math.pi * (taps - 1) / 2 / n)
        assert peak >= size
        assert gains.chain_gains(chain, peak * 1.001, coarse, False) is not None
        assert gains.chain_gains(chain, size * (1 - 1e-9), coarse, False) is None


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
    assert "below" in str(caught.value)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("name", ["product", "lipsdp"])
def test_what_floats_prove_integers_prove(
    name: str, scale: float, rng: np.random.Generator, tmp_path: Path
) -> None:
    """An optimum lies nearer to the edge of definiteness than factors on a grid of 2^-50 showed."""
    graph = networks.chain([scale * networks.tensor(rng, 40, 5), networks.tensor(rng, 3, 40)], ops.ReLU())
    found = lv.audit(graph, analyzers=[name], search=QUICK)
    found.certificates[name].save(tmp_path / "c.json")
    assert verify(tmp_path / "c.json", graph, exact=True).upper == found.best.upper


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
    subject = Subject(program_of(graph))
    found = neurons(subject, 0, len(subject.program.steps) - 1, None, {})
    values = [d.numpy() for d in certificate.evidence.diagonals[0]]
    upper = float(certificate.upper)
    for exact in (False, True):
        assert multipliers_hold(found, found.output, values, upper, None, exact)
        assert not multipliers_hold(found, found.output, values, upper * (1 - 1e-4), None, exact)


def test_the_checker_imports_numpy_alone() -> None:
    code = "import lipverify.checkers, sys; print([m for m in ('torch', 'cvxpy', 'scipy', 'onnx') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=True
    )
    assert done.stdout.strip() == "[]"
    # A look at the deadline can only end the work.
    allowed = {"lipverify.checkers", "lipverify.errors", "lipverify.deadline", "numpy", "onnx", "onnxruntime"}
    for path in PACKAGE.rglob("*.py"):
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
        if "falsify" in path.parts or "bounds" in path.parts or "testing" in path.parts:
            continue
        code = ast.unparse(_without_texts(ast.parse(path.read_text(encoding="utf-8")))).lower()
        assert not [word for word in words if word in code], path


def _without_texts(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return tree


def test_the_schema_names_the_fields_the_checker_reads() -> None:
    schema = json.loads((PACKAGE.parents[1] / "docs" / "certificate.schema.json").read_text(encoding="utf-8"))
    own = {"": schema, **schema["$defs"]}
    for kind, names in FIELDS.items():
        told = {"reading", "beside"} if kind == "model" else set()  # only of files that need them
        assert set(own[kind]["properties"]) == {*names.split(), *told}, kind
        assert told.isdisjoint(own[kind]["required"])
        assert own[kind]["additionalProperties"] is False


def test_models_in_memory_are_bound_by_their_content(rng: np.random.Generator) -> None:
    graph = mlp(rng, 4, 5, 2)
    model = model_of(graph)
    assert model.binding == "graph"
    assert len(model.tensors) == 2
