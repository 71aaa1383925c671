"""Attention as files spell it: operators that onnxruntime fuses, and those of operator set 23; checked against onnxruntime."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import lipverify as lv
from lipverify.errors import InvalidFile, UnsupportedModel, UsageError
from lipverify.falsify import Search
from lipverify.frontends.onnx import extract_onnx
from lipverify.interpreter import evaluate
from lipverify.ir.certificate import Rigour
from tests.onnx_models import agrees, by_onnxruntime, model, node, random

pytestmark = pytest.mark.usefixtures("asked_again")

BATCH, PLACES, WIDTH, HEADS = 1, 4, 12, 3
SHAPE = (BATCH, PLACES, WIDTH)


def fused(op: str, inputs: list[str], outputs: tuple[str, ...] = ("y",), **attributes: Any) -> Any:
    """A node of onnxruntime's own domain."""
    return node(op, inputs, outputs, domain="com.microsoft", **attributes)


def file(nodes: list[Any], constants: dict[str, Any], opset: int = 17, **options: Any) -> Any:
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return model(nodes, list(SHAPE), opset, constants, opset_imports=domains, **options)


def causal_numbers() -> np.ndarray[Any, Any]:
    return np.triu(np.full((1, 1, PLACES, PLACES), -np.inf, np.float32), 1)


def stored(**shapes: tuple[int, ...]) -> dict[str, Any]:
    return {name: random(*shape) for name, shape in shapes.items()}


ROTATION = {"cos": (8, 2), "sin": (8, 2)}
PACKED = stored(w=(WIDTH, 3 * WIDTH), b=(3 * WIDTH,))
THREE = [node("MatMul", ["x", name], [part]) for name, part in (("a", "q"), ("b", "k"), ("c", "v"))]
WEIGHTS = stored(a=(WIDTH, WIDTH), b=(WIDTH, WIDTH), c=(WIDTH, WIDTH))
GROUPS = {
    **stored(a=(WIDTH, 32), b=(WIDTH, 16), c=(WIDTH, 16)),
    "length": np.array([PLACES - 1], np.int32),
    "total": np.array(PLACES, np.int32),
}
GROUPED = ["q", "k", "v", "", "", "length", "total"]

CASES: dict[str, Callable[[], Any]] = {
    "gelu": lambda: file([fused("Gelu", ["x"])], {}),
    "gelu with bias": lambda: file([fused("BiasGelu", ["x", "b"])], stored(b=(WIDTH,))),
    "tanh gelu": lambda: file([fused("FastGelu", ["x", "b"])], stored(b=(WIDTH,))),
    "quick gelu": lambda: file([fused("QuickGelu", ["x"], alpha=1.5)], {}),
    "product of a transposed matrix": lambda: file(
        [fused("FusedMatMul", ["x", "w"], transB=1, alpha=0.5)], stored(w=(5, WIDTH))
    ),
    "product of two": lambda: file([fused("FusedMatMul", ["x", "x"], transB=1, alpha=0.25)], {}),
    "sum and norm": lambda: file(
        [
            node("Relu", ["x"], ["z"]),
            fused("SkipLayerNormalization", ["z", "x", "g", "s", "b"], ("n", "", "", "t"), epsilon=1e-5),
            node("Add", ["n", "t"], ["y"]),
        ],
        stored(g=(WIDTH,), s=(WIDTH,), b=(WIDTH,)),
    ),
    "sum and norm without mean": lambda: file(
        [fused("SkipSimplifiedLayerNormalization", ["x", "z", "g"], epsilon=1e-5)],
        stored(g=(WIDTH,), z=SHAPE),
    ),
    "rows that see nothing are guarded": lambda: file(
        [
            node("Where", ["seen", "x", "none"], ["s"]),
            node("Softmax", ["s"], ["p"], axis=-1),
            node("IsNaN", ["p"], ["bad"]),
            node("Where", ["bad", "zero", "p"], ["y"]),
        ],
        {
            "seen": np.tril(np.ones((1, PLACES, WIDTH), np.bool_)),
            "none": np.float32(-np.inf),
            "zero": np.float32(0),
        },
    ),
    "attention": lambda: file([fused("Attention", ["x", "w", "b"], num_heads=HEADS)], PACKED),
    "attention that looks back": lambda: file(
        [fused("Attention", ["x", "w", "b"], num_heads=HEADS, unidirectional=1, scale=0.3)], PACKED
    ),
    "attention with padding": lambda: file(
        [fused("Attention", ["x", "w", "b", "m"], num_heads=HEADS)],
        {**PACKED, "m": np.array([[1, 1, 1, 0]], np.int32)},
    ),
    "attention with numbers": lambda: file(
        [fused("Attention", ["x", "w", "b", "", "", "n"], num_heads=HEADS)],
        {**PACKED, **stored(n=(1, HEADS, PLACES, PLACES))},
    ),
    "narrow values": lambda: file(
        [fused("Attention", ["x", "w", "b"], num_heads=2, qkv_hidden_sizes=[8, 8, 4])],
        stored(w=(WIDTH, 20), b=(20,)),
    ),
    "heads": lambda: file(
        [*THREE, fused("MultiHeadAttention", ["q", "k", "v", "s"], num_heads=HEADS)],
        {**WEIGHTS, **stored(s=(3 * WIDTH,))},
    ),
    "heads with infinity": lambda: file(
        [*THREE, fused("MultiHeadAttention", ["q", "k", "v", "", "", "n"], num_heads=HEADS)],
        {**WEIGHTS, "n": causal_numbers()},
    ),
    "groups": lambda: file(
        [*THREE, fused("GroupQueryAttention", GROUPED, num_heads=4, kv_num_heads=2)], GROUPS
    ),
    "groups that turn": lambda: file(
        [
            *THREE,
            fused(
                "GroupQueryAttention",
                [*GROUPED, "cos", "sin"],
                num_heads=4,
                kv_num_heads=2,
                do_rotary=1,
                local_window_size=2,
            ),
        ],
        {**GROUPS, **stored(a=(WIDTH, 64), b=(WIDTH, 32), c=(WIDTH, 32), cos=(8, 8), sin=(8, 8))},
    ),
    "rotation": lambda: file(
        [fused("RotaryEmbedding", ["x", "p", "cos", "sin"])],
        {**stored(**ROTATION), "p": np.array([[0, 2, 1, 7]], np.int64)},
    ),
    "rotation of neighbours": lambda: file(
        [fused("RotaryEmbedding", ["x", "p", "cos", "sin"], interleaved=1)],
        {**stored(**ROTATION), "p": np.array([3], np.int64)},
    ),
    "23: queries and keys": lambda: file(
        [*THREE, node("Attention", ["q", "k", "v"], ["y"], q_num_heads=HEADS, kv_num_heads=HEADS)],
        WEIGHTS,
        23,
    ),
    "23: groups and a mask": lambda: file(
        [*THREE, node("Attention", ["q", "k", "v", "n"], ["y"], q_num_heads=4, kv_num_heads=2)],
        {**stored(a=(WIDTH, 16), b=(WIDTH, 8), c=(WIDTH, 8)), "n": causal_numbers()[0, 0]},
        23,
    ),
    "23: booleans": lambda: file(
        [*THREE, node("Attention", ["q", "k", "v", "n"], ["y"], q_num_heads=HEADS, kv_num_heads=HEADS)],
        {**WEIGHTS, "n": np.tril(np.ones((PLACES, PLACES), bool))},
        23,
    ),
    "23: looking back": lambda: file(
        [
            *THREE,
            node("Attention", ["q", "k", "v"], ["y"], q_num_heads=HEADS, kv_num_heads=HEADS, is_causal=1),
        ],
        WEIGHTS,
        23,
    ),
    "23: capped": lambda: file(
        [
            *THREE,
            node("Attention", ["q", "k", "v"], ["y"], q_num_heads=HEADS, kv_num_heads=HEADS, softcap=2.0),
        ],
        WEIGHTS,
        23,
    ),
    "23: rotation": lambda: file(
        [node("RotaryEmbedding", ["x", "cos", "sin", "p"], ["y"], num_heads=HEADS)],
        {**stored(**ROTATION), "p": np.array([[0, 2, 1, 7]], np.int64)},
        23,
    ),
    "23: norm without mean": lambda: file(
        [node("RMSNormalization", ["x", "g"], ["y"])], stored(g=(WIDTH,)), 23
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_computes_what_onnxruntime_computes(case: str) -> None:
    agrees(CASES[case](), reader=by_onnxruntime)


REFUSED: dict[str, tuple[Any, str]] = {
    "words": (
        lambda: file([fused("EmbedLayerNormalization", ["x", "", "e"])], stored(e=(9, WIDTH))),
        "looks up token indices.*take a tensor behind it as the input",
    ),
    "cache": (
        lambda: file([fused("Attention", ["x", "w", "b", "", "x"], num_heads=HEADS)], PACKED),
        "keeps keys and values of its past; export the model without a cache",
    ),
    "packed": (
        lambda: file([fused("MultiHeadAttention", ["x"], num_heads=HEADS)], {}),
        "packed in one tensor",
    ),
    "padding": (
        lambda: file(
            [*THREE, fused("GroupQueryAttention", GROUPED, num_heads=4, kv_num_heads=2)],
            {**GROUPS, "length": np.array([1], np.int32)},
        ),
        "sequences of other lengths than the 4 places",
    ),
    "no bias": (
        lambda: file([fused("Attention", ["x", "w"], num_heads=HEADS)], PACKED),
        "has no bias, without which onnxruntime cannot run it; store a bias of zeros",
    ),
    "a mask of numbers": (
        lambda: file(
            [fused("Attention", ["x", "w", "b", "m"], num_heads=HEADS)],
            {**PACKED, "m": np.ones((1, PLACES), np.float32)},
        ),
        "a mask of float32 is not covered; store whole numbers",
    ),
    "a mask of other sizes": (
        lambda: file(
            [fused("Attention", ["x", "w", "b", "m"], num_heads=HEADS)],
            {**PACKED, "m": np.ones((1, 2), np.int32)},
        ),
        r"a mask \[1, 2\] is not covered; store it as \[1, 4\] or \[1, 4, 4\]",
    ),
    "deviation": (
        lambda: file([fused("SkipLayerNormalization", ["x", "x", "g"], ("n", "y"))], stored(g=(WIDTH,))),
        "gives the mean or the deviation",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_covered_says_why(case: str) -> None:
    source, sentence = REFUSED[case]
    with pytest.raises(UnsupportedModel, match=sentence):
        extract_onnx(source())


def attention_of(**changed: Any) -> Any:
    given = {**PACKED, "n": np.zeros((1, HEADS, PLACES, PLACES), np.float32), **changed}
    return file([fused("Attention", ["x", "w", "b", "", "", "n"], num_heads=HEADS)], given)


def heads_of(key: list[Any], bias: tuple[int, ...] = (3 * WIDTH,), **constants: Any) -> Any:
    """Keys and values are `k`."""
    node_of = fused("MultiHeadAttention", ["x", "k", "k", "s"], num_heads=HEADS)
    return file([*key, node_of], {**stored(s=bias), **constants})


def groups_of(cos: Any = None, sin: Any = None, **counts: Any) -> Any:
    """Queries of 16 numbers, keys and values of 8 and, with cosines, turned."""
    counts = {"num_heads": 4, "kv_num_heads": 2, **counts}
    turned = {} if cos is None else {"cos": cos, "sin": cos if sin is None else sin}
    given = {**GROUPS, **stored(a=(WIDTH, 16), b=(WIDTH, 8), c=(WIDTH, 8)), **turned}
    return file(
        [*THREE, fused("GroupQueryAttention", [*GROUPED, *turned], do_rotary=int(bool(turned)), **counts)],
        given,
    )


def rotation_of(cos: Any, sin: Any, places: Any = (0,), **settings: Any) -> Any:
    given = {"cos": cos, "sin": sin, "p": np.array(places, np.int64)}
    return file([fused("RotaryEmbedding", ["x", "p", "cos", "sin"], **settings)], given)


ONE, FOUR = np.array(1.0, np.float32), random(8, 2)
FLAT = [node("Squeeze", ["x", "first"], ["k"])]
FIRST = {"first": np.array([0])}
CONTRADICTIONS: dict[str, tuple[Callable[[], Any], str]] = {
    "heads": (
        lambda: file([fused("Attention", ["x", "w", "b"], num_heads=5)], PACKED),
        "5 heads of a tensor",
    ),
    "a number as rotation": (lambda: rotation_of(ONE, ONE), r"rotations \[\] and \[\] for"),
    "no rotation": (
        lambda: rotation_of(FOUR[:, :0], FOUR[:, :0]),
        r"rotations \[8, 0\] and \[8, 0\] for \[1, 4, 12\]",
    ),
    "cosines without sines": (lambda: rotation_of(FOUR, FOUR[:4]), r"rotations \[8, 2\] and \[4, 2\]"),
    "a rotation of other entries": (
        lambda: rotation_of(FOUR, FOUR, num_heads=HEADS, rotary_embedding_dim=2),
        r"rotations \[8, 2\] of 2 entries",
    ),
    "places outside": (lambda: rotation_of(FOUR, FOUR, [2**63 - 1]), "places outside 8 stored rotations"),
    "no tensor of tokens": (
        lambda: file(
            [*FLAT, fused("RotaryEmbedding", ["k", "p", "c", "c"])], {**FIRST, "p": np.array([0]), "c": FOUR}
        ),
        r"places of int64 for \[4, 12\]",
    ),
    "keys of rank 2": (lambda: heads_of(FLAT, **FIRST), r"3 heads of a tensor \[4, 12\]"),
    "a bias of rank 0": (lambda: heads_of([node("Relu", ["x"], ["k"])], ()), r"a bias \[\] for queries"),
    "a long bias": (
        lambda: heads_of([node("Relu", ["x"], ["k"])], (37,)),
        r"a bias \[37\] for .* \[12, 12, 12\]",
    ),
    "keys of other sizes": (
        lambda: heads_of([node("MatMul", ["x", "m"], ["k"])], (24,), **stored(m=(WIDTH, 6))),
        r"queries \[1, 3, 4, 4\], keys \[1, 3, 4, 2\]",
    ),
    "three heads of queries for two of keys": (
        lambda: groups_of(num_heads=2, kv_num_heads=4),
        r"queries \[1, 2, 4, 8\], keys \[1, 4, 4, 2\]",
    ),
    "a group's rotation": (lambda: groups_of(ONE), r"rotations \[\] and \[\] for \[1, 4, 4, 4\]"),
    "few rotations": (lambda: groups_of(FOUR[:3]), "3 stored rotations for 4 places"),
    "wide rotations": (lambda: groups_of(random(8, 3)), r"rotations \[8, 3\] and \[8, 3\] for"),
    "a word for a count": (lambda: groups_of(num_heads="four"), "its num_heads is no whole number"),
    "a number for a count": (lambda: groups_of(local_window_size=2.0), "its local_window_size is no whole"),
    "a word for a number": (lambda: groups_of(scale="one"), "its scale is no number of type float"),
    "weights of other inputs": (
        lambda: attention_of(**stored(w=(6, 3 * WIDTH))),
        r"weights \[6, 36\] for \[1, 4, 12\]",
    ),
    "a bias of other size": (
        lambda: attention_of(**stored(b=(12,))),
        r"a bias \[12\] for weights \[12, 36\]",
    ),
    "numbers for other scores": (
        lambda: attention_of(**stored(n=(1, HEADS, 7, PLACES))),
        r"numbers of float32 \[1, 3, 7, 4\] for scores \[1, 3, 4, 4\]",
    ),
    "a norm of other width": (
        lambda: file([fused("SkipLayerNormalization", ["x", "x", "g"])], stored(g=(3,))),
        r"weights \[3\] for \[1, 4, 12\]",
    ),
    "a negative epsilon": (
        lambda: file([fused("SkipLayerNormalization", ["x", "x", "g"], epsilon=-1.0)], stored(g=(WIDTH,))),
        r"its epsilon is -1\.0",
    ),
    "a product of other sizes": (
        lambda: file([fused("FusedMatMul", ["x", "w"])], stored(w=(5, WIDTH))),
        r"a product of \[1, 4, 12\] and \[5, 12\]",
    ),
    "a product with a number": (
        lambda: file([fused("FusedMatMul", ["x", "w"])], {"w": ONE}),
        r"a product of \[1, 4, 12\] and \[\]",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_files_that_contradict_themselves(case: str) -> None:
    source, sentence = CONTRADICTIONS[case]
    with pytest.raises(InvalidFile, match=sentence) as caught:
        extract_onnx(source())
    assert re.match(r'com\.microsoft::\w+ "y_node": ', str(caught.value))


def test_a_fused_block_has_a_local_bound_above_its_gradients() -> None:
    places, width = 2, 4
    nodes = [
        fused("Attention", ["x", "w", "b"], ("m",), num_heads=2, unidirectional=1),
        fused("SkipLayerNormalization", ["m", "x", "g", "s"], epsilon=1e-5),
    ]
    constants = stored(w=(width, 3 * width), b=(3 * width,), g=(width,), s=(width,))
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    graph = extract_onnx(model(nodes, [1, places, width], 17, constants, opset_imports=domains))
    ball = lv.Ball(torch.randn(1, places, width, generator=torch.Generator().manual_seed(0)), 0.001, "linf")
    found = lv.audit(graph, region=ball, norm="linf", analyzers=["local"], search=Search(seconds=0.5))
    (row,) = found.rows
    assert row.upper is not None
    assert 0 < found.lower.value <= row.upper < 3 * found.lower.value


def words() -> Any:
    """Token indices [1, 4] -> an embedding "e" -> attention -> logits [1, 4, 5]."""
    nodes = [
        node("Gather", ["table", "ids"], ["e"]),
        fused("Attention", ["e", "w", "b"], ("m",), num_heads=HEADS, unidirectional=1),
        node("Add", ["e", "m"], ["s"]),
        node("MatMul", ["s", "u"], ["y"]),
    ]
    info = helper.make_tensor_value_info
    constants = {**PACKED, **stored(table=(9, WIDTH), u=(WIDTH, 5))}
    source = file(nodes, constants)
    del source.graph.input[:]
    source.graph.input.append(info("ids", TensorProto.INT64, [1, PLACES]))
    return source


def test_a_token_model_is_read_from_its_embedding_on() -> None:
    source = words()
    with pytest.raises(
        UnsupportedModel, match=r"take the tensor behind the embedding as the input, --input e \(Python"
    ):
        extract_onnx(source)
    with pytest.raises(UnsupportedModel, match='input "s" has no declared shape'):
        extract_onnx(source, input="s")
    graph = extract_onnx(source, input="e")  # rows of a stored table: their sizes are known
    assert graph.input_shape == (PLACES, WIDTH)
    assert graph.origin.part == 'tensor "e" as its input'
    ids = np.array([[3, 0, 8, 8]])
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(source.SerializeToString(), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"ids": ids})
    table = onnx.numpy_helper.to_array(next(t for t in source.graph.initializer if t.name == "table"))
    found = evaluate(graph, torch.from_numpy(table[ids]))
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)


def test_a_tensor_inside_has_the_type_and_sizes_that_the_file_notes() -> None:
    source = words()
    source.graph.value_info.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, [1, PLACES, WIDTH]))
    graph = extract_onnx(source, input="s")
    assert [n.op.kind() for n in graph.nodes] == ["Input", "Linear"]
    assert graph.input_shape == (PLACES, WIDTH)


def test_what_still_reaches_around_the_tensor_is_said() -> None:
    with pytest.raises(UnsupportedModel, match='the output also depends on "ids"'):
        extract_onnx(words(), input="m", input_shape=[PLACES, WIDTH])


@pytest.mark.parametrize("name", ["nowhere", "y"])
def test_other_names_are_no_inputs(name: str) -> None:
    with pytest.raises(UsageError, match=f'there is no input "{name}"; the model has "ids"'):
        extract_onnx(words(), input=name, input_shape=[PLACES, 5])


def test_what_is_said_of_a_part_names_it_and_is_not_checked(tmp_path: Path) -> None:
    path = tmp_path / "words.onnx"
    onnx.save(words(), path)
    ball = lv.Ball(torch.zeros(1, PLACES, WIDTH), 0.01, "l2")
    graph = lv.load(path, input="s", input_shape=[PLACES, WIDTH])
    found = lv.audit(graph, region=ball, analyzers=["product"], search=Search(seconds=0.1))
    assert found.rows[0].upper is not None
    certificate = found.rows[0].certificate
    assert certificate is not None
    assert certificate.rigour is Rigour.REAL
    assert found.to_json()["query"]["of"] == 'the model with tensor "s" as its input'
