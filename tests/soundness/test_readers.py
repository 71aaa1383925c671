"""The checker's reader against onnxruntime on changed files: where both read a file, they read the same function."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from lipverify.checkers.evaluation import evaluate, shown
from lipverify.checkers.reader import model_of_bytes, operators, subgraphs
from tests.soundness import drawn, readers
from tests.tiers import long, tier

PARTS = tier(2, 100)
EACH = tier(120, 1000)
DRAWN = tier(25, 5000)

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("part", range(PARTS))
def test_changed_files(part: int) -> None:
    found = readers.run(EACH, first=part * EACH)
    assert not found.wrong, found.wrong
    assert found.compared > EACH // 20


@pytest.mark.parametrize("part", range(tier(1, 200)))
def test_random_models(part: int) -> None:
    found = readers.Found()
    for seed in range(100 * part, 100 * part + 100):
        data = readers.random_model(seed).SerializeToString()
        assert readers.difference(data, found, seed) is None, seed
    assert found.compared > 90


def test_every_operator_is_changed() -> None:
    """The models to begin with are right where they are read, and have every operator."""
    found, seen = readers.Found(), set()
    for source in readers.seeds():
        data = source.SerializeToString()
        assert readers.difference(data, found) is None
        seen |= {".".join([*filter(None, [node.domain]), node.op_type]) for node in source.graph.node}
    assert found.compared > 600
    assert not operators.OPERATORS.keys() - seen


@pytest.mark.parametrize("family", drawn.FAMILIES)
def test_settings_drawn_at_random(family: str) -> None:
    """Every operator with settings, in every operator set: what is read is what runs. The agreement takes no part."""
    found = readers.Found()
    for seed in range(DRAWN):
        reason = readers.difference(drawn.drawn(family, seed), found, seed)
        assert reason is None, f"seed {seed}: {reason}"
    assert found.compared > DRAWN // 10


def test_every_operator_is_drawn() -> None:
    claimed = [op for family in drawn.FAMILIES for op in family.split()]
    assert sorted(claimed) == sorted([*operators.OPERATORS, *subgraphs.SUBGRAPHS])
    for family in drawn.FAMILIES:
        made = [onnx.ModelProto.FromString(drawn.drawn(family, seed)) for seed in range(120)]
        names = {".".join([*filter(None, [n.domain]), n.op_type]) for m in made for n in m.graph.node}
        assert set(family.split()) <= names, family


WRONG = {
    "a bias that is left out": ("Gemm", lambda given, stored: stored.update(b=stored["b"] + 1)),
    "another axis": ("Softmax", lambda given, stored: given.update(axis=1)),
    "another slope": ("LeakyRelu", lambda given, stored: given.update(alpha=0.31)),
    "a weight that is small": ("MatMul", lambda given, stored: stored.update(w=stored["w"] * np.float32(1.00002))),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_reading_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison itself: a reader that reads a slightly different file is caught."""
    from lipverify.checkers import reader

    op, change = WRONG[fault]
    case = next(
        c for c in readers.CASES if c.op == op and 13 in c.opsets and (op != "Softmax" or len(c.shape) > 1)
    )
    nodes = [readers.node(case.op, case.inputs or ("x", *case.constants), case.outputs, **case.attributes)]
    given, stored = dict(case.attributes), dict(case.constants)
    change(given, stored)
    other = [readers.node(case.op, case.inputs or ("x", *case.constants), case.outputs, **given)]
    true = readers.model(nodes, [1, *case.shape], 13, dict(case.constants)).SerializeToString()
    read = reader.model_of_bytes("m", readers.model(other, [1, *case.shape], 13, stored).SerializeToString())
    assert readers.difference(true, readers.Found()) is None
    monkeypatch.setattr(readers, "model_of_bytes", lambda name, data: read)
    assert readers.difference(true, readers.Found()) is not None


def test_versions_of_operators() -> None:
    """Every definition that onnx has of an operator is read or left out on purpose: a new one is noticed."""
    known: dict[str, set[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and not schema.deprecated:
            known.setdefault(schema.name, set()).add(schema.since_version)
    for op, (text, _) in operators.OPERATORS.items():
        if "." in op:  # of onnxruntime, which has one version of each
            continue
        listed = {int(v.lstrip("!")) for v in text.split()}
        assert listed <= known[op] | {10}, op
        assert {v for v in known[op] if v > min(listed)} <= listed, (op, known[op] - listed)


@long("a minute")
def test_operator_cases_of_onnx() -> None:
    """The cases that onnx brings along, one operand computed and the others stored: what is read has the expected numbers."""
    from onnx.backend.test.case.node import collect_testcases

    right = 0
    for case in collect_testcases(None):
        given, wanted = case.data_sets[0]
        if not all(isinstance(a, np.ndarray) for a in given):
            continue
        free = [k for k, a in enumerate(given) if a.dtype in (np.float32, np.float64) and a.size]
        for place in free[:2]:
            source = onnx.ModelProto()
            source.CopyFrom(case.model)
            del source.graph.input[:]
            source.graph.input.append(case.model.graph.input[place])
            for k, (value, array) in enumerate(zip(case.model.graph.input, given, strict=False)):
                if k != place:
                    source.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
            read = model_of_bytes(case.name, source.SerializeToString())
            if read.program is None:
                continue
            results = evaluate(read.program, given[place].astype(np.float64).reshape(1, -1))
            for k, output in enumerate(read.program.outputs):
                if k not in read.refused:
                    ours = shown(output.view, results)[0]
                    np.testing.assert_allclose(ours, np.ravel(wanted[k]), 1e-4, 1e-4, err_msg=case.name)
                    right += 1
    assert right > 700
