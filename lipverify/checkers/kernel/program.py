"""A model as primitive steps over flat vectors of real numbers: what a reader makes of a file, and all the kernel knows of it.

Steps are known by their place in the program, never by a name. Moving numbers (reshaping, slicing, padding, joining) is no step:
what a step reads is a list of places in the results of earlier steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lipverify.errors import NotCovered, UnreadableCertificate

Array = NDArray[Any]
MAX_SIZE = 1 << 27
"""Numbers in one result, and places in one view."""
MOST_ROUNDINGS = 1 << 40
"""Behind the numbers of one step: beyond that nothing is said of them (`arithmetic.gamma`)."""


class View(NamedTuple):
    """The numbers at `places` [n] of the joined results of `sources`; -1 is the number 0."""

    sources: tuple[int, ...]
    places: Array


@dataclass(frozen=True)
class Step:
    """A vector of `size` numbers, computed from what `view` shows."""

    view: View
    size: int

    @property
    def reads(self) -> tuple[int, ...]:
        return self.view.sources


@dataclass(frozen=True)
class Input(Step):
    """The input of the program: step 0, and only that."""


@dataclass(frozen=True)
class Constant(Step):
    """Stored numbers. values: [size]."""

    values: Array


class Lattice(NamedTuple):
    """The convolution that an affine step is, or (`adjoint`) is the adjoint of; `checked` compares them entry by entry.

    weight: [groups, out, in, *taps]; image: [channels, *axes] of what the convolution reads; padding: pairs for every axis.
    """

    weight: Array
    image: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    adjoint: bool


@dataclass(frozen=True)
class Affine(Step):
    """y[g, o, p] = sum_t kernel[g, o, t] x[index[g, p, t]] + offset, index -1 the number 0.

    kernel: [groups, out, terms]; index: [groups, positions, terms]; offset: [size] or None. The real entries behind `kernel` are
    within gamma(rounded) of it, relatively.
    """

    kernel: Array
    index: Array
    offset: Array | None = None
    rounded: int = 0
    lattice: Lattice | None = None


@dataclass(frozen=True)
class Scalar(Step):
    """The function `law` (`kernel.curves`) of every entry. slopes: [size], of laws that have one for each entry.

    rounded: 1 where the real numbers behind the settings are one rounding away, which every curve allows for.
    """

    law: str
    settings: tuple[tuple[str, float], ...] = ()
    slopes: Array | None = None
    rounded: int = 0


@dataclass(frozen=True)
class Order(Step):
    """groups: [n, count] of places in the view, -1 for none. The maximum of each, or (`whole`) each in ascending order."""

    groups: Array
    whole: bool


@dataclass(frozen=True)
class Reflect(Step):
    """Groups x [runs, groups, length] of places by w [groups, length], |w|_inf in [1/2, 1]: x + 2 w relu(-w'x) / |w|^2."""

    groups: Array
    vectors: Array


@dataclass(frozen=True)
class Implicit(Step):
    """The z with z = phi(W z + U x + b), phi the function `law`. recurrent: W [n, n]; inputs: U [n, m]; bias: b [n] or None."""

    recurrent: Array
    inputs: Array
    bias: Array | None
    law: str
    settings: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Product(Step):
    """Entry by entry, what `view` shows times what `other` shows."""

    other: View

    @property
    def reads(self) -> tuple[int, ...]:
        return (*self.view.sources, *self.other.sources)


@dataclass(frozen=True)
class Softmax(Step):
    """groups: [n, count] of places in the view: exp(x_i) / sum exp(x_j) of each, in the order of `groups`."""

    groups: Array


@dataclass(frozen=True)
class Normalise(Step):
    """weight * (x - mean) / sqrt(mean of squares + epsilon) + bias of each group; `centred` False: no mean is taken off.

    groups: [n, count] of places in the view; weight, bias: [n, count]; results in the order of `groups`.
    """

    groups: Array
    weight: Array
    bias: Array
    epsilon: float
    centred: bool


class Output(NamedTuple):
    """One output of a model: its name in the file, its numbers, its shape without the batch axis."""

    name: str
    view: View
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """Steps in order, each reading earlier ones only, and the outputs of the model.

    shape: of the input in the model, its last axis the width of tokens; () where nobody asks for it.
    """

    steps: tuple[Step, ...]
    outputs: tuple[Output, ...] = field(default=())
    shape: tuple[int, ...] = ()

    def ending(self, output: int, margin: tuple[int, int] | None = None) -> Program:
        """The program whose last step is the output, or the difference of two of its entries.

        Raises:
            UnreadableCertificate: there is no such output or entry.
        """
        if not 0 <= output < len(self.outputs):
            raise UnreadableCertificate(f"there is no output {output}")
        view = self.outputs[output].view
        kernel, places = np.ones((1, 1, 1)), np.arange(len(view.places))[None, :, None]
        if margin is not None:
            if not all(0 <= k < len(view.places) for k in margin) or margin[0] == margin[1]:
                raise UnreadableCertificate("there is no such margin")
            kernel, places = np.array([[[1.0, -1.0]]]), np.array([[list(margin)]])
        size = places.shape[1]
        step = Affine(view, size, kernel, places)
        return replace(self, steps=(*self.steps, checked(step, self.steps)))

    def beside(self, other: Program) -> Program:
        """f of this program and g of the other one, of the same input: f, then g, then f - g.

        Raises:
            UnreadableCertificate: inputs or results of different sizes.
        """
        n, count = self.steps[-1].size, len(self.steps)
        alike = self.steps[0].size == other.steps[0].size and other.steps[-1].size == n
        if not alike:
            raise UnreadableCertificate("two models of different inputs or outputs")

        def moved(view: View) -> View:
            return view._replace(sources=tuple(s + count - 1 if s else 0 for s in view.sources))

        steps = list(self.steps)
        for step in other.steps[1:]:
            step = replace(step, view=moved(step.view))
            steps.append(replace(step, other=moved(step.other)) if isinstance(step, Product) else step)
        own, none = np.arange(n), np.full(n, -1)
        index = np.array([[own, none], [own + n, none], [own, own + n]]).swapaxes(1, 2)
        kernel = np.array([[[1.0, 1.0]], [[1.0, 1.0]], [[1.0, -1.0]]])
        view = View((count - 1, len(steps) - 1), np.arange(2 * n))
        return Program((*steps, checked(Affine(view, 3 * n, kernel, index), steps)))


def same(one: Any, other: Any) -> bool:
    """Whether two steps, or two parts of steps, are equal, number for number, and so compute one function.

    Steps of rounded numbers are equal to none: the real numbers behind them may be others.
    """
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        alike = isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and one.dtype == other.dtype
        return alike and np.array_equal(one, other)
    if type(one) is not type(other) or getattr(one, "rounded", False):
        return False
    if isinstance(one, Step):
        return all(same(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))
    if isinstance(one, tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def views_of(step: Step) -> list[View]:
    """What a step reads: one view, or the two of a product."""
    return [step.view, step.other] if isinstance(step, Product) else [step.view]


def sizes_of(view: View, steps: Sequence[Step]) -> list[int]:
    """How many numbers each source of a view holds."""
    return [steps[s].size for s in view.sources]


def by_source(view: View, sizes: Sequence[int]) -> Iterator[tuple[int, Array, Array]]:
    """For every source of a view of which something is read: where in the view, and which of its numbers; -1 belongs to none.

    sizes: of the sources.
    Takes as long as the view, whatever its sources hold: one entry of a large result costs one.
    """
    if len(view.sources) == 1 and bool((view.places >= 0).all()):
        yield view.sources[0], np.arange(len(view.places)), view.places
        return
    ends = np.cumsum(sizes)
    owner = np.where(view.places < 0, -1, np.searchsorted(ends, view.places, side="right"))
    order = np.argsort(owner, kind="stable")
    cuts = np.searchsorted(owner[order], np.arange(len(ends) + 1))
    for k, source in enumerate(view.sources):
        at = order[cuts[k] : cuts[k + 1]]
        if len(at):
            yield source, at, view.places[at] - (ends[k] - sizes[k])


def width(view: View, steps: Sequence[Step]) -> int:
    """How many numbers the sources of a view hold together."""
    return sum(sizes_of(view, steps))


def checked(step: Step, before: Sequence[Step]) -> Step:
    """The step, after everything that holds of every step has been looked at once.

    Raises:
        UnreadableCertificate: it reads what is not there, or its sizes contradict each other. NotCovered: numbers near the ends
            of float64.
    """
    views = views_of(step)
    good = type(step.size) is int and 0 < step.size <= MAX_SIZE and isinstance(step, Input) == (not before)
    for view in views:
        there = all(type(s) is int and 0 <= s < len(before) for s in view.sources)
        good = good and there and view.places.ndim == 1 and len(view.places) <= MAX_SIZE
        good = good and _places(view.places, width(view, before))
    if not good or not _shaped(step, len(step.view.places), step.size):
        raise UnreadableCertificate(f"step {len(before)} ({type(step).__name__}) does not fit together")
    return step


def _shaped(step: Step, n: int, size: int) -> bool:
    """Whether the parameters of a step that reads n numbers have the shapes and ranges that its class states."""
    if isinstance(step, Constant):
        return n == 0 and _numbers(step.values, (size,))
    if isinstance(step, Affine):
        index, kernel = step.index, step.kernel
        fits = index.ndim == kernel.ndim == 3 and kernel.shape[::2] == index.shape[::2] and _places(index, n)
        made = math.prod((*kernel.shape[:2], *index.shape[1:2]))
        fits = fits and made == size and 0 <= step.rounded < MOST_ROUNDINGS
        fits = fits and _numbers(kernel, kernel.shape, True) and _numbers(step.offset, (size,))
        return fits and (step.lattice is None or _convolves(step, step.lattice, n))
    if isinstance(step, Scalar):
        told = all(type(v) is float for _, v in step.settings) and 0 <= step.rounded <= 1
        return n == size and told and _numbers(step.slopes, (n,), True)
    if isinstance(step, Implicit):
        stored = _numbers(step.recurrent, (size, size), True) and _numbers(step.inputs, (size, n), True)
        return stored and _numbers(step.bias, (size,))
    if isinstance(step, Product):
        return n == len(step.other.places) == size
    if isinstance(step, Order) and not step.whole:
        rows = step.groups.ndim == 2 and len(step.groups) == size and _places(step.groups, n)
        return rows and bool((step.groups >= 0).any(1).all())
    if isinstance(step, Order | Reflect | Softmax | Normalise):
        # Every place once.
        groups = step.groups
        once = _places(groups, n) and np.array_equal(np.sort(groups, axis=None), np.arange(n)) and n == size
        if isinstance(step, Reflect):
            most = np.abs(step.vectors).max(-1, initial=0.0)
            long = bool(((most >= 0.5) & (most <= 1.0)).all())
            return once and groups.ndim == 3 and long and _numbers(step.vectors, groups.shape[1:], True)
        if isinstance(step, Normalise):
            once = once and _numbers(step.weight, groups.shape, True) and _numbers(step.bias, groups.shape)
            once = once and 2.0**-100 < step.epsilon < 2.0**100
        return once and groups.ndim == 2
    return isinstance(step, Input) and n == 0


def _convolves(step: Affine, lattice: Lattice, n: int) -> bool:
    """Whether the map is the convolution of its lattice, entry by entry, or (`adjoint`) the adjoint of that."""
    weight, image, stride, dilation, padding, adjoint = lattice
    groups, out, inner, *taps = weight.shape
    axes = list(zip(image[1:], taps, stride, dilation, padding, strict=True))
    windows = [(size + a + b - d * (t - 1) - 1) // s + 1 for size, t, s, d, (a, b) in axes]
    positions, extents = (image[1:], windows) if adjoint else (windows, image[1:])
    kernel, lead = (np.swapaxes(weight, 1, 2), out) if adjoint else (weight, inner)
    kernel = np.flip(kernel, tuple(range(3, weight.ndim))) if adjoint else kernel
    made, whole = (groups, math.prod(positions), lead * math.prod(taps)), math.prod(extents)
    fits = image[0] == groups * inner and n == groups * lead * whole and step.index.shape == made
    if not fits or not np.array_equal(kernel.reshape(groups, -1, made[2]), step.kernel):
        return False
    # Which entry of its channel every position reads for every tap: [positions, taps], -1 for none.
    entry = np.zeros((1, 1), np.int64)
    for count, extent, (_, t, s, d, (before, _)) in zip(positions, extents, axes, strict=True):
        p = np.arange(count)[:, None]
        if adjoint:
            place, rest = np.divmod(p + before - d * np.arange(t)[::-1], s)
            place[rest != 0] = -1
        else:
            place = p * s - before + d * np.arange(t)
        there = (entry[:, None, :, None] >= 0) & ((place >= 0) & (place < extent))[:, None]
        joint = np.where(there, entry[:, None, :, None] * extent + place[:, None], -1)
        entry = joint.reshape(len(entry) * count, -1)
    index = step.index.reshape(groups, len(entry), lead, -1)
    return all(
        np.array_equal(index[g, :, c], np.where(entry >= 0, entry + (g * lead + c) * whole, -1))
        for g, c in np.ndindex(groups, lead)
    )


def _places(places: Array, count: int) -> bool:
    return places.dtype == np.int64 and bool(((places >= -1) & (places < count)).all())


def _numbers(values: Array | None, shape: tuple[int, ...], factors: bool = False) -> bool:
    """Finite float64 of this shape, or none; NotCovered where factors are so large or small that products of a few are lost."""
    if values is None:
        return True
    good = values.dtype == np.float64 and values.shape == shape and bool(np.isfinite(values).all())
    known = np.abs(values[values != 0]) if good and factors else np.ones(1)
    if not bool(((known >= 2.0**-400) & (known <= 2.0**400)).all()):
        raise NotCovered("numbers near the ends of float64 are not covered by the checker")
    return good
