"""Frequencies in the kernel: what is proved holds for every pattern of slopes, and no torus, image or map is taken on trust."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lipverify.checkers.kernel.language import Subject
from lipverify.checkers.kernel.program import Affine, Program, Scalar, View
from lipverify.checkers.theories.frequencies import elimination, multipliers_of, spread, waves
from lipverify.checkers.theories.frequencies.elimination import above
from lipverify.errors import NotCovered, UnreadableCertificate
from tests.unit.checkers.kernel.programs import Array, Writing, results

SAME = ((1, 1), (1, 1))


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape) / np.sqrt(np.prod(shape[2:]))


def dense(w: Writing, rows: int) -> Program:
    w.dense(normal(9, rows, w.steps[-1].size))
    return w.program()


def chain() -> tuple[Program, tuple[int, int, int], tuple[int, int]]:
    """Stride 2 behind stride 1, and a dense layer."""
    w = Writing(2 * 5 * 4)
    w.conv(normal(0, 1, 3, 2, 3, 3), (2, 5, 4), padding=SAME)
    w.scalar("Relu")
    w.conv(normal(1, 1, 2, 3, 3, 3), (3, 5, 4), (2, 2), padding=SAME)
    w.scalar("Tanh")
    return dense(w, 3), (2, 5, 4), (6, 6)


def residual() -> tuple[Program, tuple[int, int, int], tuple[int, int]]:
    """A block with a shortcut of stride 2, and one without; a scaling of channels; slopes that fall."""
    w = Writing(2 * 4 * 4)
    w.conv(normal(0, 1, 2, 2, 3, 3), (2, 4, 4), padding=SAME)
    start = w.scalar("Silu", beta=1.0)
    w.conv(normal(1, 1, 3, 2, 3, 3), (2, 4, 4), (2, 2), padding=SAME)
    w.scalar("LeakyRelu", alpha=0.1)
    first = w.conv(normal(2, 1, 3, 3, 3, 3), (3, 2, 2), padding=SAME)
    short = w.conv(normal(3, 1, 3, 2, 1, 1), (2, 4, 4), (2, 2), source=start)
    factor = np.repeat([0.5, 1.5, -1.0], 4)[:, None, None]
    other = w.put(Affine(w.view(short), 12, factor, np.arange(12)[:, None, None], None, 1))
    w.sum(first, other)
    top = w.scalar("Relu")
    w.conv(normal(4, 3, 1, 1, 3, 3), (3, 2, 2), padding=SAME)
    w.sum(top, len(w.steps) - 1)
    w.scalar("Relu")
    w.put(Affine(w.view(), 3, np.full((1, 1, 4), 0.25), np.arange(12).reshape(1, 3, 4), None, 1))
    return dense(w, 2), (2, 4, 4), (6, 6)


def windows() -> tuple[Program, tuple[int, int, int], tuple[int, int]]:
    """Convolutions of what is not 0 outside its window: a block of its own keeps it there. Dilated, and asymmetric padding."""
    w = Writing(1 * 5 * 1)
    w.conv(normal(0, 1, 2, 1, 3, 1), (1, 5, 1), padding=((1, 1), (0, 0)))
    w.conv(normal(1, 1, 2, 2, 2, 1), (2, 5, 1), dilation=(2, 1), padding=((0, 2), (0, 0)))
    w.scalar("Abs")
    return dense(w, 2), (1, 5, 1), (7, 1)


def blocks_of(program: Program, image: tuple[int, int, int], points: tuple[int, int]) -> list[int]:
    p = Subject(program).elements
    last = _last(program)
    return [x.channels for x in waves.waves_of(p, 0, p.place[last], image, points)[0][1:]]


def _last(program: Program) -> int:
    return max(k for k, step in enumerate(program.steps) if isinstance(step, Scalar))


def feasible(
    program: Program, image: tuple[int, int, int], points: tuple[int, int], shrink: float = 0.7
) -> Array:
    """R for multipliers that fall from block to block, fast enough to be feasible."""
    sizes, last = blocks_of(program, image, points), _last(program)
    for size in np.geomspace(1.0, 0.004, 24):
        channels = [size**k * np.linspace(0.3, 0.4, n) * shrink for k, n in enumerate(sizes, start=1)]
        found = spread(Subject(program), 0, last, len(program.steps) - 1, image, points, channels)
        if found is not None:
            return found
    raise AssertionError("none is feasible")


NETWORKS = (chain, residual, windows)
Made = Callable[[], tuple[Program, tuple[int, int, int], tuple[int, int]]]


def jacobian(program: Program, x: Array) -> Array:
    """By central differences."""
    n, h = program.steps[0].size, 1e-6
    return np.stack([(results(program.steps, x + h * e)[-1] - results(program.steps, x - h * e)[-1])[0] / (2 * h)
                     for e in np.eye(n)], -1)  # fmt: skip


@pytest.mark.parametrize("made", NETWORKS)
def test_differences_are_the_factor_times_what_is_no_longer_than_the_input(made: Made) -> None:
    program, image, points = made()
    factor = feasible(program, image, points)
    rng, most = np.random.default_rng(0), 0.0
    for size in rng.choice([0.1, 1.0, 10.0], 60):
        x = size * rng.standard_normal((1, program.steps[0].size))
        most = max(most, float(np.linalg.norm(np.linalg.solve(factor, jacobian(program, x)), 2)))
    assert 0.02 < most <= 1.0 + 1e-6


def test_linear_networks_are_known_exactly_up_to_what_the_torus_adds() -> None:
    """RR' is W(I + what is outside)W': on a network without neurons it is WW' itself."""
    w = Writing(6)
    w.dense(normal(0, 3, 6))
    factor = spread(Subject(w.program()), 0, 0, 1, (2, 3, 1), (3, 1), [])
    assert factor is not None
    matrix = w.steps[1].kernel[0]  # type: ignore[attr-defined]
    np.testing.assert_allclose(factor @ factor.T, matrix @ matrix.T, rtol=1e-11, atol=1e-11)


def test_a_larger_torus_is_as_valid() -> None:
    program, image, points = chain()
    for more in (2, 4):
        larger = feasible(program, image, (points[0] + more, points[1] + 2 * more))
        x = np.random.default_rng(1).standard_normal((1, program.steps[0].size))
        assert np.linalg.norm(np.linalg.solve(larger, jacobian(program, x)), 2) <= 1.0 + 1e-6


@pytest.mark.parametrize("points", [(5, 6), (6, 5), (4, 4), (7, 6)])
def test_a_torus_that_something_wraps_around_is_refused(points: tuple[int, int]) -> None:
    program, image, _ = chain()
    with pytest.raises(UnreadableCertificate, match="torus"):
        feasible(program, image, points)


def test_without_that_check_the_bound_would_be_false(monkeypatch: pytest.MonkeyPatch) -> None:
    w = Writing(2)
    w.conv(np.array([1.0, 0.0, -1.0]).reshape(1, 1, 1, 3, 1), (1, 2, 1), padding=((1, 1), (0, 0)))
    w.scalar("Relu")
    w.dense(np.eye(2))
    program, given = w.program(), [np.array([1e8])]
    with pytest.raises(UnreadableCertificate, match="wrap around"):
        spread(Subject(program), 0, 2, 3, (1, 2, 1), (2, 1), given)
    monkeypatch.setattr(waves, "need", lambda *_: None)
    factor = spread(Subject(program), 0, 2, 3, (1, 2, 1), (2, 1), given)
    assert factor is not None
    assert np.abs(factor).max() < 1e-3  # the network is 1-Lipschitz and no less


def test_a_value_that_is_cut_to_its_window_is_a_block_of_its_own() -> None:
    program, image, points = windows()
    assert blocks_of(program, image, points) == [2, 2]
    program, image, points = chain()
    assert blocks_of(program, image, points) == [3, 2]


def test_infeasible_multipliers_give_nothing() -> None:
    program, image, points = chain()
    for factor in (10.0, 1e6):
        given = [factor * np.ones(n) for n in blocks_of(program, image, points)]
        assert spread(Subject(program), 0, 4, 5, image, points, given) is None


def moved(program: Program, step: int, places: Array) -> Program:
    """A program in which a step reads other places."""
    steps = list(program.steps)
    steps[step] = Affine(View(steps[step].view.sources, places), steps[step].size, steps[step].kernel,  # type: ignore[attr-defined]
                         steps[step].index, None, 0, steps[step].lattice)  # type: ignore[attr-defined] # fmt: skip
    return Program(tuple(steps))


@pytest.mark.parametrize("swap", [(0, 1), (7, 31)])
def test_a_map_that_is_not_the_same_everywhere_has_no_form(swap: tuple[int, int]) -> None:
    program, image, points = chain()
    places = program.steps[3].view.places.copy()
    places[list(swap)] = places[list(swap[::-1])]
    with pytest.raises(NotCovered, match="differs between positions"):
        feasible(moved(program, 3, places), image, points)
    places[swap[0]] = -1
    with pytest.raises(NotCovered, match="differs between positions"):
        feasible(moved(program, 3, places), image, points)


def test_scalings_within_a_channel_have_no_form() -> None:
    w = Writing(4)
    w.put(Affine(w.view(), 4, np.array([1.0, 1.0, 1.0, 2.0])[:, None, None], np.arange(4)[:, None, None]))
    w.scalar("Relu")
    with pytest.raises(NotCovered, match="within a channel"):
        feasible(dense(w, 2), (1, 4, 1), (4, 1))
    assert feasible(w.program(), (4, 1, 1), (1, 1)).shape == (2, 2)


def test_other_images_are_refused() -> None:
    program, _, points = chain()
    for image in ((2, 5, 5), (1, 5, 4)):
        with pytest.raises(UnreadableCertificate, match="an image"):
            feasible(program, image, points)
    with pytest.raises(NotCovered):
        feasible(program, (4, 5, 2), (6, 6))


def test_a_convolution_of_padding_alone_is_refused() -> None:
    """None of its taps reads a number: an error of division, where it is no convolution."""
    w = Writing(3)
    w.conv(np.ones((1, 1, 1, 1, 1)), (1, 3, 1), (1, 3), padding=((0, 0), (2, 0)))
    w.scalar("Tanh")
    with pytest.raises(NotCovered, match="padding alone"):
        feasible(dense(w, 2), (1, 3, 1), (12, 12))


def test_products_and_maxima_over_positions_are_not_covered() -> None:
    w = Writing(4)
    first = w.scalar("Tanh")
    w.product(first, 0)
    w.scalar("Relu")
    with pytest.raises(NotCovered):
        feasible(dense(w, 2), (1, 4, 1), (4, 1))


def test_above_is_above_and_near() -> None:
    rng = np.random.default_rng(3)
    for size in (1.0, 1e-9, 1e9):
        half = rng.standard_normal((2, 3, 5, 5)) + 1j * rng.standard_normal((2, 3, 5, 5))
        d = np.exp(3 * rng.standard_normal(5))
        a = size * d[:, None] * (half @ np.swapaxes(half.conj(), -1, -2) + 0.1 * np.eye(5)) * d
        b = rng.standard_normal((2, 3, 5, 4)) + 1j * rng.standard_normal((2, 3, 5, 4))
        b *= np.exp(2 * rng.standard_normal(4))
        found = above(a, b)
        assert found is not None
        exact = np.swapaxes(b.conj(), -1, -2) @ np.linalg.solve(a, b)
        scale = 1 / np.sqrt(np.einsum("...ii->...i", exact).real)
        gap = scale[..., None] * (found - exact) * scale[..., None, :]
        eigenvalues = np.linalg.eigvalsh((gap + np.swapaxes(gap.conj(), -1, -2)) / 2)
        assert eigenvalues.min() > -1e-12
        assert eigenvalues.max() < 1e-7


def test_above_refuses_what_is_not_definite() -> None:
    b = np.ones((1, 2, 1), dtype=complex)
    for a in (
        [[1.0, 2.0], [2.0, 1.0]],
        [[1.0, 1.0], [1.0, 1.0]],
        [[0.0, 0.0], [0.0, 1.0]],
        [[np.nan, 0.0], [0.0, 1.0]],
    ):
        assert above(np.array([a], dtype=complex), b) is None


def test_multipliers_near_the_ends_of_float64_are_refused() -> None:
    from lipverify.checkers.kernel.language import Scope

    program, *_ = chain()
    for value in (1e-300, 1e300):
        scope = Scope(Subject(program), {"m": np.array([1.0, value])}, 0)
        with pytest.raises(NotCovered, match="ends of float64"):
            multipliers_of(scope, "m")


@pytest.mark.parametrize("points", [(1, 1), (1, 4), (3, 4), (0, 4)], ids=str)
def test_a_torus_that_the_coarsest_scale_does_not_divide_is_refused(points: tuple[int, int]) -> None:
    """It ended in a division by zero, or stood for a smaller one."""
    program, image, torus = chain()
    p = Subject(program).elements
    blocks, value = waves.waves_of(p, 0, p.place[4], image, torus)
    wanted = waves.read_by(p, p.place[4], p.place[5], value)
    with pytest.raises(NotCovered, match="does not divide"):
        elimination.Spread(points, blocks, wanted)


def test_activations_read_all_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four channels two are read, with slopes of their own: dealt out over all four, the second one's 100 was .001."""
    w = Writing(4)
    w.conv(np.ones((1, 4, 1, 1, 1)), (1, 2, 2))
    w.put(Scalar(View((1,), np.arange(8)), 8, "PRelu", (), np.repeat([0.001, 100.0], 4)))
    w.conv(np.array([0.0, 1.0]).reshape(1, 1, 2, 1, 1), (2, 2, 2))
    program, image = dense(w, 1), (1, 2, 2)
    with pytest.raises(NotCovered, match="moved numbers"):
        blocks_of(program, image, (2, 2))
    # Without that check a factor 50 times too small was believed.
    monkeypatch.setattr(waves, "covered", lambda *_: None)
    p = Subject(program).elements
    blocks, value = waves.waves_of(p, 0, 3, image, (2, 2))
    wanted = waves.read_by(p, 3, 4, value)
    found = elimination.Spread((2, 2), blocks, wanted).factor([np.full(4, 0.4)])
    assert found is not None
    slope = jacobian(program, np.full((1, 4), -1.0))
    assert float(np.linalg.norm(np.linalg.solve(found, slope), 2)) > 20
