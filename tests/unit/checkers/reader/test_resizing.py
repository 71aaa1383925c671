"""Resize to the nearest entry: the reader copies what onnxruntime copies, or refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lipverify.checkers.reader import model_of_bytes
from lipverify.errors import UnsupportedModel
from lipverify.frontends.onnx import extract_onnx
from tests.onnx_models import ints, model, node
from tests.tiers import tier

PLACES = ("asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners")
ROUNDINGS = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
SIZES = tier(3, 49)
BEFORE = range(1, 50) if SIZES > 3 else (7, 9, 21)
AFTER = range(1, SIZES + 1)


def resized(n: int, sizes: Any, place: str, rounding: str, alone: bool = False) -> Any:
    """A file that resizes n entries to each of these numbers of entries."""
    nodes = [
        node("Resize", ["x", "", "", f"s{m}"], ["y" if alone else f"y{m}"], mode="nearest",
             coordinate_transformation_mode=place, nearest_mode=rounding)
        for m in sizes
    ]  # fmt: skip
    outputs = ["y"] if alone else [f"y{m}" for m in sizes]
    return model(nodes, [1, 1, n], 19, {f"s{m}": ints(1, 1, m) for m in sizes}, outputs)


@pytest.mark.parametrize("place", PLACES)
def test_which_entries(place: str) -> None:
    """Of every pair of sizes and every mode; each output that is not refused, against onnxruntime."""
    runtime = pytest.importorskip("onnxruntime")
    from lipverify.checkers.evaluation import evaluate, shown

    read = 0
    for rounding in ROUNDINGS:
        for n in BEFORE:
            data = resized(n, AFTER, place, rounding).SerializeToString()
            found = model_of_bytes("m.onnx", data)
            if found.program is None:
                continue
            x = np.arange(n, dtype=np.float64)[None]
            ours = evaluate(found.program, x)
            session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
            theirs = session.run(None, {"x": x.astype(np.float32)[None]})
            for k, output in enumerate(found.program.outputs):
                if k not in found.refused:
                    read += 1
                    assert (shown(output.view, ours)[0] == theirs[k].reshape(-1)).all(), (rounding, n, k)
    assert read > 10


@pytest.mark.parametrize(
    ("n", "m", "place"), [(7, 1, "half_pixel"), (21, 3, "half_pixel"), (35, 5, "half_pixel")]
)
def test_what_hangs_on_a_rounding(n: int, m: int, place: str) -> None:
    """Exact arithmetic and float32 name other entries: nobody reads it. Relu ahead hid it from the comparison."""
    source = resized(n, [m], place, "floor", alone=True)
    assert "hangs on a rounding" in (model_of_bytes("m.onnx", source.SerializeToString()).reason or "")
    with pytest.raises(UnsupportedModel, match=f"from {n} to {m}, hangs on how a reader rounds"):
        extract_onnx(source)


@pytest.mark.parametrize(("n", "m"), [(9, 3), (6, 2), (3, 9), (8, 1)])
def test_common_parts_are_read(n: int, m: int) -> None:
    source = resized(n, [m], "asymmetric", "floor", alone=True)
    assert model_of_bytes("m.onnx", source.SerializeToString()).program is not None
    extract_onnx(source)


ONE_STEP = float(np.float32(5 / 3))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("n", "scale", "why"),
    [
        (3, ONE_STEP, "size hangs on a rounding"),
        (6, 1.1, "keeps the size"),
        (6, 1.0 + 2.0**-20, "keeps the size"),
    ],
)
def test_sizes_that_runtimes_see_otherwise(place: str, n: int, scale: float, why: str) -> None:
    """onnxruntime makes 5 of 3 entries where the exact product is 4.99999988, and copies 6 entries scaled by 1.1 as they are."""
    step = node("Resize", ["x", "", "s"], ["y"], mode="nearest", coordinate_transformation_mode=place)
    source = model([step], [1, 1, n], 19, {"s": np.array([1, 1, scale], np.float32)})
    assert why in (model_of_bytes("m.onnx", source.SerializeToString()).reason or "")
    with pytest.raises(UnsupportedModel, match="readers disagree"):
        extract_onnx(source)
