"""The checker's own operators compute what the package's operators compute, and its proofs hold against dense matrices."""

from __future__ import annotations

import ast
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify import checkers, ops, rules, testing
from lipverify.certificates import described, issue, model_of, verify
from lipverify.checkers import affine, lipsdp, product
from lipverify.checkers.graph import FIELDS, LINEAR
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
        if c.op.kind() in FIELDS and c.op.kind() in LINEAR and c.op.kind() != "Concat"
    ]


def single(case: testing.OperatorCase) -> Graph:
    """One operator on one input; a second operand is the input as well."""
    shape = case.input_shapes[0]
    result = tuple(rules.forward(case.op, *(torch.zeros(1, *s) for s in case.input_shapes)).shape[1:])
    inputs = ("x",) * len(case.input_shapes)
    return Graph((Node("x", Input(), (), shape), Node("y", case.op, inputs, result)), ("y",))


@pytest.mark.parametrize("case", covered_cases(), ids=str)
def test_linear_parts_agree_with_the_package(case: testing.OperatorCase, rng: np.random.Generator) -> None:
    try:
        known = described(single(case)).graph
    except checkers.NotCovered:
        pytest.skip("the checker refuses this setting")
    node = known.nodes["y"]
    x = [rng.standard_normal((3, *shape)) for shape in case.input_shapes]
    exact = case.op.to(dtype=torch.float64)
    expected = rules.linear(exact, *map(torch.from_numpy, x)).numpy()
    np.testing.assert_allclose(LINEAR[node.op](node, False, *x), expected, rtol=1e-12, atol=1e-13)
    signal = affine.apply(known, node, [affine.Signal.identity(-1, x[0][0].size)] * len(x))
    total = rules.linear(
        exact, *(torch.eye(x[0][0].size, dtype=torch.float64).reshape(-1, *s) for s in case.input_shapes)
    )
    error = np.abs(signal.parts[-1] - total.reshape(len(total), -1).numpy().T)
    assert (error <= signal.errors(-1) + 1e-15 * signal.sizes[-1]).all()


def scalar_cases() -> list[testing.OperatorCase]:
    return [c for c in testing.operator_cases() if rules.slopes.covers(type(c.op)) and c.op.kind() in FIELDS]


@pytest.mark.parametrize("case", scalar_cases(), ids=str)
def test_slopes_hold_those_of_the_package(case: testing.OperatorCase) -> None:
    node = described(single(case)).graph.nodes["y"]
    ours = node.slopes(case.input_shapes[0])
    assert ours is not None
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
        known = described(graph).graph
        nodes = [known.nodes["y"]]
        size = float(np.linalg.norm(product.matrix_of(known, nodes)[0], 2))
        kernel, _, sizes = product.kernel_of(known, nodes)
        below = {"nodes": ["y"], "gain": (size * (1 - 1e-9)).hex()}
        for more, twist in ((0, 0), (0, 1), (1, 0), (3, 1)):
            torus = [[n + more, twist] for n in sizes]
            values = product.symbol_at(kernel, product.torus_points(kernel, torus))
            peak = float(np.linalg.norm(values, 2, (-2, -1)).max())
            assert peak >= size * (1 - 1e-9)
            stage = {"nodes": ["y"], "by": "torus", "torus": torus}
            assert product.prove_product(known, "l2", [{**stage, "gain": (peak * (1 + 1e-9)).hex()}]) >= size
            with pytest.raises(RefutedCertificate):
                product.prove_product(known, "l2", [{**below, **stage}])
        with pytest.raises(RefutedCertificate):
            product.prove_product(known, "l2", [{**below, "by": "symbol"}])
        fine = np.array([[[i, 64], [j, 64]] for i in range(64) for j in range(64)])
        top = float(np.linalg.norm(product.symbol_at(kernel, fine), 2, (-2, -1)).max()) * 1.03
        assert (
            product.prove_product(known, "l2", [{"nodes": ["y"], "by": "symbol", "gain": top.hex()}]) == top
        )


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
    with pytest.raises(InternalError, match="does not check"):
        issue(wrong, graph, Query(), result.rows[0].method, 0.0)


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
    known = described(graph).graph
    values = [d.numpy() for d in certificate.evidence.diagonals[0]]
    upper = float(certificate.upper)
    for exact in (False, True):
        lipsdp.prove_lipsdp(known, values, upper, exact)
        with pytest.raises(RefutedCertificate):
            lipsdp.prove_lipsdp(known, values, upper * (1 - 1e-4), exact)


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
    import json

    from lipverify.checkers.certificate import KEYS

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
