"""Time and memory of a check are bounded by the sizes of its files: bombs are refused before anything large is made."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from lipverify import checkers
from lipverify.checkers.kernel import Region, Subject, account, arithmetic, parse_steps, prove
from lipverify.checkers.kernel.account import Account, spending
from lipverify.checkers.kernel.program import Affine, Lattice
from lipverify.checkers.reader import architecture, building, read_bytes, read_model
from lipverify.checkers.regions import Ball, region_of
from lipverify.cli import app
from lipverify.errors import BudgetEnded, NotCovered, UnreadableCertificate, UsageError
from tests.soundness.forged import Case, cases
from tests.unit.checkers.kernel.programs import Writing, ball

HUGE = (2.0**90).hex()
L2 = ["l2", "l2"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accounts of two million numbers and a fraction of a second."""
    monkeypatch.setattr(account, "NUMBERS", 1 << 21)
    monkeypatch.setattr(account, "OPERATIONS", 1 << 28)


def copied(count: int, inputs: int = 1) -> Writing:
    """One stored number makes `count` of an input: what a padding or an expansion does."""
    w = Writing(inputs)
    w.put(Affine(w.view(), count, np.ones((1, 1, 1)), np.zeros((1, count, 1), np.int64)))
    return w


def case(w: Writing, *regions: Region) -> Case:
    program = w.program()
    return Case("bomb", program, list(regions) or [ball(np.zeros(program.steps[0].size), 1.0)])


def wide_input() -> Case:
    c = case(Writing(1 << 20))
    c.ranges()
    return c


def many_neurons() -> Case:
    w = copied(1 << 18)
    w.scalar("Relu")
    c = case(w)
    c.ranges()
    return c


def many_differences() -> Case:
    w = copied(1 << 16)
    w.scalar("Tanh")
    c = case(w)
    c.add("jacobian", start=0, end=c.last, ranges=None, rows=c.rows(), norms=L2, limit=HUGE)
    return c


def large_matrix() -> Case:
    w = copied(4000)
    w.scalar("Tanh")
    c = case(w)
    c.arrays["d"] = np.ones(4000)
    c.add("multipliers", start=0, end=c.last, ranges=None, wider=None, blocks=["d"], weights=None, rows=[0, 1], norms=L2,
          limit=HUGE)  # fmt: skip
    return c


def dense_gain() -> Case:
    """Two maps of one number each, repeated: their product has a matrix."""
    n = 1 << 14
    w = Writing(n)
    for _ in range(2):
        w.put(Affine(w.view(), n, np.ones((1, 1, 1)), np.arange(n)[None, :, None]))
    c = case(w)
    c.add("gain", chain=[1, 2], torus=None, limit=HUGE)
    return c


def convolution(taps: int, stride: int, channels: int = 1) -> Case:
    size = taps + stride
    w = Writing(channels * size)
    kernel = np.ones((1, channels, channels, taps))
    lattice = Lattice(kernel, (channels, size), (stride,), (1,), ((0, 0),), False)
    places = (
        np.arange(2)[:, None, None] * stride + size * np.arange(channels)[:, None] + np.arange(taps)
    ).reshape(2, -1)
    index = np.where(places < channels * size, places, -1)[None]
    w.put(Affine(w.view(), 2 * channels, kernel.reshape(1, channels, -1), index, None, 0, lattice))
    return case(w)


def wide_stride() -> Case:
    c = convolution(1, 1 << 20)
    c.add("gain", chain=[1], torus=[[1 << 15, 0]], limit=HUGE)
    return c


def fine_torus() -> Case:
    c = convolution(1 << 13, 1)
    c.add("gain", chain=[1], torus=[[1 << 15, 0]], limit=HUGE)
    return c


def many_products() -> Case:
    w = Writing(1)
    for _ in range(1500):
        w.put(Affine(w.view(), 1, np.ones((1, 1, 1)), np.zeros((1, 1, 1), np.int64)))
    c = case(w)
    for _ in range(1500):
        c.add("product", start=0, end=c.last, gains=[], norms=L2, limit=HUGE)
    return c


def many_signs() -> Case:
    """Each step looks at all layers."""
    w = Writing(1)
    for _ in range(300):
        w.scalar("Relu")
    c = case(w)
    for _ in range(3000):
        c.add("sign", ranges=None, row=0, input=0, sign=1)
    return c


def many_ranges() -> Case:
    """All of them are kept until the last step."""
    w = Writing(200)
    w.dense(np.ones((200, 200)))
    w.scalar("Relu")
    w.dense(np.ones((1, 200)))
    c = case(w)
    for _ in range(200):
        c.ranges()
    for k in range(200):
        c.add("jacobian", start=0, end=c.last, ranges=k, rows=[0, 1], norms=L2, limit=HUGE)
    return c


def many_conditions() -> Case:
    w = Writing(1)
    for _ in range(200):
        w.scalar("Relu")
    c = case(w)
    c.ranges(0, *[[-1, 0, (0.0).hex(), "above"]] * 20_000)
    return c


def smooth_lines() -> Case:
    w = copied(1 << 10)
    w.scalar("Gelu")
    w.dense(np.ones((1, 1 << 10)))
    c = case(w)
    for _ in range(100):
        c.ranges()
    return c


def doubling(limit: float) -> Case:
    """Every step squares the constant of the step before."""
    c = case(copied(1))
    c.add("product", start=0, end=0, gains=[], norms=L2, limit=limit.hex())
    for k in range(40):
        c.add("compose", first=k, second=k)
    return c


def steep(factor: float) -> Case:
    w = Writing(1)
    for _ in range(2000):
        w.put(Affine(w.view(), 1, np.full((1, 1, 1), factor), np.zeros((1, 1, 1), np.int64)))
    c = case(w)
    c.add("product", start=0, end=c.last, gains=[], norms=["l1", "linf"], limit=HUGE)
    return c


def many_names() -> Case:
    """A step that is read and never proved, with the same array under 5,000 places of a list."""
    w = Writing(1)
    w.scalar("Relu")
    c = case(w)
    c.arrays["a"] = np.ones(1 << 14)
    c.add(
        "frequencies",
        start=0,
        last=0,
        through=0,
        end=0,
        image=[1],
        torus=[1],
        channels=["a"] * 5000,
        blocks=[],
        limit=HUGE,
    )
    return c


LARGE: list[Callable[[], Case]] = [wide_input, many_neurons, many_differences, large_matrix, dense_gain, wide_stride, fine_torus,
                                   many_ranges]  # fmt: skip
LONG: list[Callable[[], Case]] = [many_products, many_signs, many_conditions, smooth_lines, many_names]


def peak(run: Callable[[], object]) -> int:
    """Bytes that a call held at once."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def proved(c: Case, own: Account, exact: bool = False) -> None:
    subject = Subject(c.program, c.regions, exact)
    with spending(own):
        prove(parse_steps(c.document, c.arrays, subject), subject)


@pytest.mark.parametrize("bomb", LARGE, ids=lambda make: make.__name__)
@pytest.mark.usefixtures("small")
def test_what_asks_for_much_memory_is_refused_before_it_is_made(bomb: Callable[[], Case]) -> None:
    c = bomb()

    def refused() -> None:
        with pytest.raises(NotCovered, match=r"more (memory|operations) than files of 0 bytes may"):
            proved(c, Account())

    assert peak(refused) < 1e8


@pytest.mark.parametrize("bomb", LONG, ids=lambda make: make.__name__)
@pytest.mark.usefixtures("small")
def test_what_asks_for_much_time_is_refused(bomb: Callable[[], Case]) -> None:
    c, own = bomb(), Account()
    started = time.process_time()
    with pytest.raises(NotCovered, match="more operations than files of 0 bytes may"):
        proved(c, own)
    assert time.process_time() - started < 20


@pytest.mark.parametrize(
    "bomb", [partial(doubling, 2.0**1000), partial(steep, 2.0**100)], ids=["doubling", "steep"]
)
def test_constants_do_not_grow_without_end(bomb: Callable[[], Case]) -> None:
    """Exact numbers have a mantissa of 192 bits, and exponents are bounded too: one of 2^(1000 2^k) took all time and memory."""

    def refused() -> None:
        with pytest.raises(NotCovered, match="a constant above 2\\^65536 is not covered"):
            proved(bomb(), Account())

    assert peak(refused) < 1e8


def test_a_constant_of_many_small_factors_is_rounded_up() -> None:
    c = steep(2.0**-100)
    started = time.process_time()
    proved(c, Account())
    assert time.process_time() - started < 20
    assert arithmetic.trimmed(Fraction(1, 1 << 70_000)) == Fraction(1, 1 << (1 << 16))


@pytest.mark.usefixtures("small")
def test_exact_integers_are_counted_as_what_they_take() -> None:
    w = Writing(600)
    w.dense(np.ldexp(1.0, np.arange(-300, 300))[None] * np.ones((600, 1)))
    c = case(w)
    c.add("gain", chain=[1], torus=None, limit=HUGE)
    with pytest.raises(NotCovered, match="more memory than files"):
        proved(c, Account(), True)


def test_what_is_counted_is_what_is_made() -> None:
    """Numbers of an account hold all that honest proofs take, buffers of a fixed size aside."""
    for c in cases()[::3]:
        own, left = Account(), list[int]()
        own.expired = lambda own=own, left=left: bool(left.append(own.numbers))  # type: ignore[misc, func-returns-value]
        before = own.numbers
        held = peak(lambda c=c, own=own: proved(c, own))  # type: ignore[misc]
        taken = before - min(left)
        assert held < 8 * taken + 4e6, (c.name, held, taken)


def test_time_ends_a_check() -> None:
    with pytest.raises(BudgetEnded, match="the time for checking is over"):
        proved(cases()[0], Account(lambda: True))


@pytest.mark.usefixtures("small")
def test_regions_are_counted() -> None:
    centres = np.zeros((1, 10_000))

    def made() -> None:
        with spending(Account()):
            [region_of(Ball("linf", 1.0, 0, False), centres, None) for _ in range(1 << 16)]

    def refused() -> None:
        with pytest.raises(NotCovered, match="more memory"):
            made()

    assert peak(refused) < 1e8


def test_a_tensor_of_many_names_is_counted_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "ROOM", 1 << 20)
    node = {"op": "Relu", "inputs": ["x"], "output": "y", "given": {}}
    document = {"input": "x", "shape": [1, 6], "nodes": [node], "outputs": ["y"]}
    stored = np.zeros(1 << 18, np.float32)

    def checked() -> None:
        with pytest.raises(NotCovered, match="too large"):
            architecture(document, {f"t{k}": stored for k in range(10_000)})

    assert peak(checked) < 3e8


def test_more_bytes_allow_more() -> None:
    some, more = Account(), Account()
    more.read(1000)
    assert more.numbers - some.numbers == 1000 * account.NUMBERS_PER_BYTE
    assert more.operations - some.operations == 1000 * account.OPERATIONS_PER_BYTE
    more.read(1000, letters=True)
    assert more.operations - some.operations == 1000 * (
        account.OPERATIONS_PER_BYTE + account.OPERATIONS_PER_LETTER
    )


def test_paths_that_are_none(tmp_path: Path) -> None:
    """A name that is too long, of a certificate, a sidecar or a model, is one sentence."""
    long = tmp_path / ("n" * 300)
    with pytest.raises(UsageError, match="does not exist"):
        checkers.verify_file(long, long)
    for arguments in (
        [str(long), "--model", "zoo:cancer-gelu"],
        [str(tmp_path / "c.json"), "--model", str(long)],
    ):
        (tmp_path / "c.json").write_text("{}")
        result = CliRunner().invoke(app, ["verify", *arguments])
        assert isinstance(result.exception, UsageError), result.exception
    with pytest.raises(UnreadableCertificate, match="a file cannot be read"):
        checkers.check(lambda: read_bytes(tmp_path / "gone", 10), lambda _: b"", lambda: read_model(long))
