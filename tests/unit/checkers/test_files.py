"""ONNX files as the checker reads them, against the reference implementation of ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from lipverify.checkers.files import Model, read_model
from lipverify.checkers.gains import prove_product
from lipverify.checkers.proofs import ending
from lipverify.checkers.steps import Scalar
from lipverify.errors import RefutedCertificate
from tests.onnx_models import model, node
from tests.unit.checkers.test_graph import signal_of

IMAGE = [1, 4, 5, 6]


def affine(rng: np.random.Generator) -> dict[str, tuple[Any, list[int]]]:
    """Models without activation, and their input shapes."""

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape)

    same = {"auto_pad": "SAME_UPPER", "strides": [2, 1]}
    lower = {"auto_pad": "SAME_LOWER", "strides": [2, 2], "dilations": [1, 2]}
    kernel, back = {"w": normal(3, 4, 3, 2)}, {"w": normal(4, 2, 3, 2), "b": normal(2)}
    around = {"strides": [2, 3], "pads": [1, 0, 0, 2], "output_padding": [1, 0]}
    sizes = {"i": np.array([1]), "rest": np.array([-1])}
    return {
        "same upper": (model([node("Conv", "xw", "y", **same)], IMAGE, constants=kernel), IMAGE),
        "same lower": (model([node("Conv", "xw", "y", **lower)], IMAGE, constants=kernel), IMAGE),
        "transposed": (model([node("ConvTranspose", "xwb", "y", **around)], IMAGE, constants=back), IMAGE),
        "dilated transposed": (
            model(
                [node("ConvTranspose", "xw", "y", dilations=[2, 1])],
                IMAGE,
                constants={"w": normal(4, 2, 2, 3)},
            ),
            IMAGE,
        ),
        "factor on the left of a vector": (
            model([node("MatMul", "wx", "y")], [5], constants={"w": normal(3, 5)}),
            [5],
        ),
        "factor on the left": (
            model([node("MatMul", "wx", "y")], [1, 5, 2], constants={"w": normal(3, 5)}),
            [1, 5, 2],
        ),
        "blocks": (model([node("DepthToSpace", "x", "y", blocksize=2, mode="DCR")], IMAGE), IMAGE),
        "blocks by column": (model([node("DepthToSpace", "x", "y", blocksize=2, mode="CRD")], IMAGE), IMAGE),
        "split": (
            model(
                [node("Split", "xs", "ab", axis=2), node("Concat", "ba", "y", axis=2)],
                IMAGE,
                constants={"s": np.array([2, 3])},
            ),
            IMAGE,
        ),
        "sizes that are computed": (
            model(
                [
                    node("Shape", "x", "s"),
                    node("Gather", "si", "n", axis=0),
                    node("Concat", ["i", "n", "rest"], "t", axis=0),
                    node("Reshape", "xt", "y"),
                ],
                IMAGE,
                constants=sizes,
            ),
            IMAGE,
        ),
        "stored tensor that is moved": (
            model(
                [node("Reshape", ["w", "t"], "v"), node("MatMul", "xv", "y")],
                [1, 6],
                constants={"w": normal(3, 2, 2), "t": np.array([6, 2])},
            ),
            [1, 6],
        ),
    }


def read(proto: Any, folder: Path) -> Model:
    path = folder / "m.onnx"
    onnx.save(proto, path)
    return read_model(path)


@pytest.mark.parametrize("name", list(affine(np.random.default_rng(0))))
def test_maps_are_those_of_the_reference(name: str, rng: np.random.Generator, tmp_path: Path) -> None:
    proto, shape = affine(rng)[name]
    known = read(proto, tmp_path)
    assert known.program is not None, known.reason
    matrix = signal_of(known.program, ending(known.program, "y")).parts[-1]
    reference = ReferenceEvaluator(proto)

    def run(x: Any) -> Any:
        return reference.run(None, {"x": x.astype(np.float32)})[0].ravel()

    zero = run(np.zeros(shape))
    for _ in range(5):
        x = rng.standard_normal(shape)
        # The reference computes in float32, sums of at most two dozen terms.
        assert run(x) - zero == pytest.approx(matrix @ x.astype(np.float32).ravel(), abs=1e-4)


def gate(middle: list[Any], constants: dict[str, Any]) -> Any:
    return model([*middle, node("Mul", "xg", "y")], [1, 3], constants=constants)


ONE, TWO = np.ones(1), np.full(1, 2.0)
ERF = [node("Mul", "xa", "e"), node("Erf", "e", "f")]
GATES = {
    "sigmoid": ("Silu", gate([node("Sigmoid", "x", "g")], {})),
    "erf": ("ErfGate", gate([*ERF, node("Add", "fo", "g")], {"a": np.array([0.7, -1.2, 3.0]), "o": ONE})),
    "erf of one scale": ("ErfGate", gate([*ERF, node("Add", "fo", "g")], {"a": np.full(1, 0.7), "o": ONE})),
    "erf plus 2": (None, gate([*ERF, node("Add", "fo", "g")], {"a": ONE, "o": TWO})),
    "tanh": (None, gate([node("Tanh", "x", "g")], {})),
    "erf of a sum": (
        None,
        gate([node("Add", "xo", "e"), node("Erf", "e", "f"), node("Add", "fo", "g")], {"o": ONE}),
    ),
    "sums of erf": (
        None,
        gate([*ERF, node("Gemm", "fwo", "g")], {"a": ONE, "w": np.ones((3, 3)), "o": np.ones(3)}),
    ),
    "sigmoid of mixed entries": (
        None,
        gate([node("Gather", "xi", "e", axis=1), node("Sigmoid", "e", "g")], {"i": np.array([1, 0, 2])}),
    ),
}


@pytest.mark.parametrize("name", list(GATES))
def test_gates_are_recognised_and_nothing_like_them(
    name: str, rng: np.random.Generator, tmp_path: Path
) -> None:
    law, proto = GATES[name]
    known = read(proto, tmp_path)
    if law is None:
        assert known.program is None
        assert "Mul" in known.reason
        return
    assert known.program is not None, known.reason
    step = known.program.steps["y"]
    assert isinstance(step, Scalar)
    assert step.law == law
    assert (step.curve is None) is (name == "erf")  # scales of its own in every entry
    x = np.repeat(np.linspace(-8, 8, 4001)[:, None], 3, 1)
    reference = ReferenceEvaluator(proto)
    y = np.stack([reference.run(None, {"x": row[None].astype(np.float32)})[0][0] for row in x]).astype(float)
    slopes = np.diff(y, axis=0) / np.diff(x, axis=0)
    assert (slopes >= step.low - 1e-3).all()
    assert (slopes <= step.high + 1e-3).all()
    # The range is not wider than it need be.
    assert slopes.max() == pytest.approx(step.high.max(), abs=2e-3)


def test_channels_around_a_transposed_convolution_are_those_of_its_own_sides(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    """Scalings before and after, with as many channels on either side: exchanged they would prove another norm."""

    weight = rng.standard_normal((3, 3, 2, 2))
    before, after = np.array([1.0, 50.0, 0.1]), np.array([7.0, 0.01, 30.0])
    proto = model(
        [node("Mul", "xa", "h"), node("ConvTranspose", "hw", "c", strides=[2, 2]), node("Mul", "cb", "y")],
        [1, 3, 4, 4],
        constants={"w": weight, "a": before.reshape(1, 3, 1, 1), "b": after.reshape(1, 3, 1, 1)},
    )
    known = read(proto, tmp_path)
    assert known.program is not None
    size = float(np.linalg.norm(signal_of(known.program, "y").parts[-1], 2))
    stage = {"steps": ["h", "c", "y"], "by": "torus", "torus": [[8, 0], [8, 0]]}
    proved = prove_product(known.program, "y", ("l2", "l2"), [stage | {"gain": (size * 1.01).hex()}])
    assert float(proved) >= size

    with pytest.raises(RefutedCertificate):
        prove_product(known.program, "y", ("l2", "l2"), [stage | {"gain": (size * 0.99).hex()}])
