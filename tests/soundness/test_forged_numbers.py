"""Theorems at the ends of their conditions: large arguments, rounded weights."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest

from lipverify.checkers.kernel import Program, Subject, parse_steps, prove
from lipverify.checkers.kernel.arithmetic import interpolated
from lipverify.checkers.kernel.curves import LAWS, Lines, curve
from lipverify.checkers.kernel.gains import chain_gains, kernel_of
from lipverify.checkers.kernel.program import Affine, Implicit, Lattice, View, same
from lipverify.checkers.kernel.ranges import Chain, Ranges
from lipverify.checkers.kernel.signals import INPUT, Signal
from lipverify.checkers.norms import Norm
from lipverify.checkers.reader import read_model
from lipverify.checkers.reader.building import Builder, Stored, stored
from lipverify.checkers.reader.calls import Call
from lipverify.checkers.reader.operators import run
from lipverify.checkers.theories.signs import bent
from lipverify.checkers.theories.tokens import constant_of
from lipverify.errors import NotCovered, RefutedCertificate, UnreadableCertificate
from tests.soundness.test_forged import array, network, node
from tests.unit.checkers.kernel.programs import Writing, ball

PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")


@pytest.mark.parametrize("law", ["Sin", "Cos"])
def test_a_sine_far_from_0(law: str) -> None:
    """Where float64 knows no multiple of pi well, a slope of 1 was missed: 0.76 was proved near 3e15."""
    f, covered = curve(law, (), None), 0
    for exponent in range(1, 16):
        for k in (10**exponent, 3 * 10**exponent + 1):
            with localcontext() as context:
                context.prec = 60
                turn = float(PI * k + (PI / 2 if law == "Cos" else 0))
            apart = 2 * math.ulp(turn)
            try:
                low, high = f.slopes(np.array([turn - apart]), np.array([turn + apart]))
            except NotCovered:
                assert exponent > 5
                continue
            covered += 1
            assert max(-low[0], high[0]) >= 1.0 - 1e-30
    assert covered >= 10


def test_weights_that_are_rounded_in_a_convolution() -> None:
    """The roundings behind folded weights count on a torus as they do in a matrix."""
    taps, padding = np.ones((1, 1, 1, 1)), ((0, 0),)
    for rounded, least in ((0, 1.0), (1 << 33, 1.0 + (1 << 33) * 2.0**-53)):
        w = Writing(4)
        lattice = Lattice(taps, (1, 4), (1,), (1,), padding, False)
        step = Affine(w.view(), 4, taps[:, :, 0], np.arange(4)[None, :, None], None, rounded, lattice)
        assert kernel_of([step])[1] == pytest.approx(rounded * 2.0**-53)
        for torus in (None, [(8, 0)]):
            assert chain_gains([step], least * (1 - 1e-9), torus, False) is None
            assert chain_gains([step], least * (1 + 1e-5), torus, False) is not None


@pytest.mark.parametrize("tail", [0, 200])
def test_errors_of_many_rounded_steps_are_multiplied(tail: int) -> None:
    """Where c x - x cancels, errors are all there is: every later factor c makes them larger, and they were added up."""
    rounded = 1 << 32
    count, one = (1 << 53, np.ones((1, 1, 1)))
    real = Fraction(count + rounded, count)  # a number that is 1 and so many roundings
    w = Writing(1)
    w.put(Affine(w.view(), 1, np.array([[[1.0, -1.0]]]), np.zeros((1, 1, 2), np.int64), None, rounded))
    for _ in range(tail):
        w.put(Affine(w.view(), 1, one, np.zeros((1, 1, 1), np.int64), None, rounded))
    program, truth = w.program(), 2 * (real - 1) * real**tail
    token = Norm("token-l2", 1)
    assert constant_of(program, None, (token, token)) >= truth
    chain = [s for s in program.steps if isinstance(s, Affine)]
    assert chain_gains(chain, float(truth) * (1 - 1e-9), None, False) is None
    subject = Subject(program, [ball(np.zeros(1), 1.0, "linf")])
    ranges = Ranges(subject.elements, subject.regions[0], ())
    assert ranges.chain.ranges(ranges.output)[1][-1] >= float(truth)


def test_scalings_of_rounded_numbers_on_a_torus() -> None:
    """500 of them: a sum of their errors is 3 % where their product is 3.1 %."""
    rounded, tail, taps = 1 << 38, 500, np.ones((1, 1, 1, 1))
    w = Writing(2)
    lattice = Lattice(taps, (1, 2), (1,), (1,), ((0, 0),), False)
    chain = [Affine(w.view(), 2, taps[:, :, 0], np.arange(2)[None, :, None], None, rounded, lattice)]
    for _ in range(tail):
        chain.append(replace(chain[0], lattice=None))
    with pytest.raises(NotCovered, match="too many to control"):
        kernel_of(chain)
    few = chain[:2]
    assert kernel_of(few)[1] >= (1 + rounded * 2.0**-53) ** 2 - 1


def test_integers_of_32_bits_times_a_scale_are_rounded() -> None:
    """33 bits times 24 are more than float64 holds."""
    scale = stored(np.array(1.0 + 2.0**-23, np.float32))
    for kind, rounded in ((np.int32, 1), (np.int8, 0)):
        p = Builder((1, 1), np.dtype("<f4"), 0)
        q = stored(np.array([np.iinfo(kind).max], kind))
        (found,) = run(p, Call(p, "DequantizeLinear", 13, [q, scale], {}, 1))
        assert isinstance(found, Stored)
        assert found.rounded == rounded


def _sliced(folder: Path) -> Program:
    """Four channels times 100, 100, .001, .001, of which a convolution reads the first two, and of these the second."""
    taps = np.zeros((1, 2, 3), np.float32)
    taps[0, 1] = 0.3, 0.5, 0.2
    nodes = [
        node("Mul", ["x", "s"], ["a"]),
        node("Slice", ["a", "start", "end", "axis"], ["b"]),
        node("Conv", ["b", "w"], ["y"], pads=[1, 1]),
    ]
    stored = [
        array("s", np.array([100.0, 100.0, 0.001, 0.001]).reshape(1, 4, 1)),
        array("w", taps),
        *(array(name, [value], np.int64) for name, value in (("start", 0), ("end", 2), ("axis", 1))),
    ]
    program = read_model(network(folder / "m.onnx", nodes, stored, [1, 4, 5], [("y", [1, 1, 5])])).program
    assert program is not None
    return program


def test_a_scaling_of_more_channels_than_a_convolution_reads(tmp_path: Path) -> None:
    """On a torus its factors were dealt out to the channels that are read: .0011 was proved for a slope of 90."""
    program = _sliced(tmp_path)
    chain = [k for k, step in enumerate(program.steps) if isinstance(step, Affine)][:2]
    for limit, torus in ((0.0011, [[8, 0]]), (0.0011, None), (200.0, None)):
        subject = Subject(program)
        gain = {"step": "gain", "chain": chain, "torus": torus, "limit": limit.hex()}
        steps = parse_steps([gain], {}, subject)
        if limit > 1:
            assert prove(steps, subject)
        else:
            with pytest.raises((RefutedCertificate, UnreadableCertificate)):
                prove(steps, subject)


def test_rounded_numbers_are_equal_to_none(tmp_path: Path) -> None:
    """Two products that round to one float64 are two functions: a deviation of 0 was taken for granted."""
    n, programs = 2**23 + 12345, []
    for name, factors in (("f", (n + 7, n, n - 7)), ("g", (n + 5, n + 3, n - 8))):
        nodes = [
            node("Mul", ["a", "b"], ["ab"]),
            node("Mul", ["ab", "c"], ["w"]),
            node("Mul", ["x", "w"], ["y"]),
        ]
        stored = [array(letter, [[value]]) for letter, value in zip("abc", factors, strict=True)]
        path = network(tmp_path / f"{name}.onnx", nodes, stored, [1, 1], [("y", [1, 1])])
        programs.append(read_model(path).program)
    f, g = programs
    assert f is not None
    assert g is not None
    kernels = [step.kernel for p in (f, g) for step in p.steps if isinstance(step, Affine)]
    assert np.array_equal(*kernels)
    assert math.prod((n + 7, n, n - 7)) - math.prod((n + 5, n + 3, n - 8)) == 120
    assert not same(f.steps, g.steps)
    assert same(f.steps[:1], g.steps[:1])


def test_a_bound_that_overflows_says_nothing() -> None:
    """Neither NaN, of which Python's `max` makes 0, nor minus infinity is a bound."""
    chain = Chain(ball(np.zeros(1), 1.0))
    huge, one = np.full(1, 2.0**99), np.ones(1)
    lines = Lines(huge, -one, huge, -one, -one, one)
    v = Signal({INPUT: np.eye(1)})
    for _ in range(12):
        v = Signal({chain.put(v, lines, reads=(-one, one)): np.eye(1)})
    with np.errstate(all="ignore"):
        found = chain.largest(Signal({11: np.full((1, 1), 2.0**60)}))
    assert found[0] >= 2.0**60 * 0.99


def test_small_sums_in_a_product_of_sums() -> None:
    """Root of row sum times column sum: the product underflowed to 0 where both are 2^-540."""
    values = np.full((2, 2), 2.0**-540)
    assert interpolated(values) >= 2.0**-539


def test_the_offset_of_a_scale_of_64_bits_is_rounded() -> None:
    """Zero point times scale is a product of 53 bits and 8."""
    for kind, rounded in ((np.float64, 1), (np.float32, 0)):
        p = Builder((1, 1), np.dtype(kind), 0)
        scale, zero = stored(np.array(0.1, kind)), stored(np.array(77, np.int8))
        (q,) = run(p, Call(p, "QuantizeLinear", 13, [p.input, scale, zero], {}, 1))
        run(p, Call(p, "DequantizeLinear", 13, [q, scale, zero], {}, 1))
        step = p.steps[-1]
        assert isinstance(step, Affine)
        assert step.rounded == rounded


SMALL = 2.0**-358
"""Whose third power is 2^-1074, the least number of float64."""


def test_a_gate_whose_cubic_is_lost_near_0(tmp_path: Path) -> None:
    """x (1 + tanh(s x + (a x)^3)): of a^3 / s^3 = 2/3 float64 makes 1/2, and 2.40 was proved for a slope of 2.43."""
    s = float(np.nextafter(1.5000001 ** (1 / 3), 2.0)) * SMALL
    nodes = [node("Mul", ["x", "a"], ["h"]), node("Mul", ["h", "h"], ["h2"]), node("Mul", ["h2", "h"], ["h3"]),
             node("Mul", ["x", "s"], ["z"]), node("Add", ["z", "h3"], ["t"]), node("Tanh", ["t"], ["u"]),
             node("Add", ["u", "one"], ["v"]), node("Mul", ["x", "v"], ["y"])]  # fmt: skip
    given = [array(name, [value], np.float64) for name, value in (("a", SMALL), ("s", s), ("one", 1.0))]
    model = read_model(
        network(tmp_path / "m.onnx", nodes, given, [1, 1], [("y", None)], onnx.TensorProto.DOUBLE)
    )
    if model.program is None:
        return
    program = model.program.ending(0)
    product = {
        "step": "product",
        "start": 0,
        "end": len(program.steps) - 1,
        "gains": [],
        "norms": ["l2", "l2"],
    }
    steps = [product | {"limit": (2.4009).hex()}]
    with pytest.raises((NotCovered, RefutedCertificate)):
        prove(parse_steps(steps, {}, Subject(program, [])), Subject(program, []))


@pytest.mark.parametrize("size", [1e-200, 1e200])
@pytest.mark.parametrize("law", LAWS)
def test_settings_near_the_ends_of_float64(law: str, size: float) -> None:
    """gamma alpha = -1e-400 is no 0 for a Selu that falls; as little for any other product of settings."""
    asked: dict[str, float] = {}
    LAWS[law](lambda key, default: asked.setdefault(key, default))
    for key in asked if law != "Clip" else ():
        with pytest.raises(NotCovered, match="near the ends"):
            curve(law, ((key, size),), None)


@pytest.mark.parametrize("op", ["Log", "Reciprocal", "Sqrt"])
def test_nothing_times_a_number_that_may_not_be(op: str, tmp_path: Path) -> None:
    """x + 0 sqrt(x) was convex everywhere; it has no value below 0."""
    nodes = [node(op, ["x"], ["l"]), node("Mul", ["l", "z"], ["m"]), node("Add", ["x", "m"], ["y"])]
    model = read_model(network(tmp_path / "m.onnx", nodes, [array("z", [[0.0]])], [1, 1], [("y", None)]))
    assert model.program is not None
    subject = Subject(model.program.ending(0), [])
    for sign in (1, -1):
        with pytest.raises(NotCovered, match="functions of positive numbers"):
            prove(parse_steps([{"step": "convex", "row": 0, "sign": sign}], {}, subject), subject)


def test_nothing_times_an_implicit_layer() -> None:
    """Nobody has shown that it has a solution."""
    w = Writing(1)
    w.steps.append(Implicit(w.view(), 1, np.full((1, 1), 2.0), np.ones((1, 1)), None, "Relu"))
    w.steps.append(Affine(View((1,), np.arange(1)), 1, np.zeros((1, 1, 1)), np.zeros((1, 1, 1), np.int64)))
    with pytest.raises(NotCovered, match="implicit layers"):
        bent(Program(tuple(w.steps)))


@pytest.mark.parametrize("kind", ["jacobian", "multipliers"])
def test_a_window_of_one_entry_is_no_whole_image(kind: str, tmp_path: Path) -> None:
    """maxpool(x; window 1, stride 2) + 1000 x_1 is 1001 x_1, of which 1.42 was proved."""
    nodes = [node("MaxPool", ["x"], ["p"], kernel_shape=[1, 1], strides=[1, 2]), node("MatMul", ["x", "w"], ["q"]),
             node("Add", ["p", "q"], ["y"])]  # fmt: skip
    model = read_model(
        network(tmp_path / "m.onnx", nodes, [array("w", [[1000.0], [0.0]])], [1, 1, 1, 2], [("y", None)])
    )
    assert model.program is not None
    subject = Subject(model.program.ending(0), [])
    more = {} if kind == "jacobian" else {"wider": None, "blocks": [], "weights": None}
    step = {
        "step": kind,
        "start": 0,
        "end": len(subject.program.steps) - 1,
        "ranges": None,
        "rows": [0, 1],
        "norms": ["l2", "l2"],
    }
    prove(parse_steps([step | more | {"limit": (1001.001).hex()}], {}, subject), subject)
    with pytest.raises(RefutedCertificate):
        prove(parse_steps([step | more | {"limit": (1000.9).hex()}], {}, subject), subject)
