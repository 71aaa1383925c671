"""A model as primitive steps over flat vectors of real numbers: what a reader makes of a file, and all the kernel knows of it.

Steps are known by their place in the program, never by a name. Moving numbers (reshaping, slicing, padding, joining) is no step:
what a step reads is a list of places in the results of earlier steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lipverify.errors import NotCovered, UnreadableCertificate

Array = NDArray[Any]
MAX_SIZE = 1 << 27
"""Numbers in one result, and places in one view."""


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
    """The convolution that an affine step is, or (`adjoint`) is the adjoint of.

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
    """The function `law` (`kernel.curves`) of every entry. slopes: [size], of laws that have one for each entry."""

    law: str
    settings: tuple[tuple[str, float], ...] = ()
    slopes: Array | None = None


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
    """Steps in order, each reading earlier ones only, and the outputs of the model."""

    steps: tuple[Step, ...]
    outputs: tuple[Output, ...] = field(default=())

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


def width(view: View, steps: Sequence[Step]) -> int:
    """How many numbers the sources of a view hold together."""
    return sum(steps[s].size for s in view.sources)


def checked(step: Step, before: Sequence[Step]) -> Step:
    """The step, after everything that holds of every step has been looked at once.

    Raises:
        UnreadableCertificate: it reads what is not there, or its sizes contradict each other. NotCovered: numbers near the ends
            of float64.
    """
    views = [step.view, step.other] if isinstance(step, Product) else [step.view]
    good = type(step.size) is int and 0 < step.size <= MAX_SIZE and isinstance(step, Input) == (not before)
    for view in views:
        places, count = view.places, width(view, before) if _known(view, before) else -1
        good = (
            good and count >= 0 and places.ndim == 1 and places.dtype == np.int64 and len(places) <= MAX_SIZE
        )
        good = good and bool(((places >= -1) & (places < count)).all())
    if not good or not _shaped(step):
        raise UnreadableCertificate(f"step {len(before)} ({type(step).__name__}) does not fit together")
    return step


def _known(view: View, before: Sequence[Step]) -> bool:
    return all(type(s) is int and 0 <= s < len(before) for s in view.sources)


def _shaped(step: Step) -> bool:
    """Whether the parameters of a step have the shapes and ranges that its class states."""
    n = len(step.view.places)

    def places(groups: Array, limit: int = n) -> bool:
        return groups.dtype == np.int64 and bool(((groups >= -1) & (groups < limit)).all())

    if isinstance(step, Constant):
        return n == 0 and step.values.shape == (step.size,) and _finite(step.values)
    if isinstance(step, Affine):
        shape, index = step.kernel.shape, step.index.shape
        good = len(shape) == len(index) == 3 and shape[::2] == index[::2] and places(step.index)
        good = (
            good
            and _moderate(step.kernel)
            and math.prod((*shape[:2], index[1])) == step.size
            and step.rounded >= 0
        )
        return good and (step.offset is None or (step.offset.shape == (step.size,) and _finite(step.offset)))
    if isinstance(step, Scalar):
        settings = all(type(v) is float for _, v in step.settings)
        return (
            settings
            and n == step.size
            and (step.slopes is None or (step.slopes.shape == (n,) and _finite(step.slopes)))
        )
    if isinstance(step, Order):
        rows = step.groups.ndim == 2 and places(step.groups) and bool((step.groups >= 0).any(1).all())
        once = not step.whole or _permutation(step.groups, n)
        return rows and once and step.size == (step.groups.size if step.whole else len(step.groups))
    if isinstance(step, Reflect):
        fits = step.groups.ndim == 3 and step.groups.shape[1:] == step.vectors.shape
        most = np.abs(step.vectors).max(-1, initial=0.0) if fits else np.zeros(1)
        long = bool(((most >= 0.5) & (most <= 1.0)).all()) and _moderate(step.vectors)
        return fits and long and _permutation(step.groups, n) and step.size == n
    if isinstance(step, Implicit):
        square = step.recurrent.shape == (step.size, step.size) and step.inputs.shape == (step.size, n)
        bias = step.bias is None or (step.bias.shape == (step.size,) and _finite(step.bias))
        return square and bias and _moderate(step.recurrent) and _moderate(step.inputs)
    if isinstance(step, Product):
        return n == len(step.other.places) == step.size
    if isinstance(step, Softmax):
        return step.groups.ndim == 2 and _permutation(step.groups, n) and step.size == n
    if isinstance(step, Normalise):
        same = step.groups.ndim == 2 and step.groups.shape == step.weight.shape == step.bias.shape
        known = _moderate(step.weight) and _finite(step.bias) and 2.0**-100 < step.epsilon < 2.0**100
        return same and known and _permutation(step.groups, n) and step.size == n
    return isinstance(step, Input) and n == 0


def _finite(values: Array) -> bool:
    return values.dtype == np.float64 and bool(np.isfinite(values).all())


def _moderate(values: Array) -> bool:
    """Finite; NotCovered unless so far from the ends of float64 that no product of a few of them is lost."""
    known = np.abs(values[values != 0]) if _finite(values) else np.zeros(0)
    if not bool(((known >= 2.0**-400) & (known <= 2.0**400)).all()):
        raise NotCovered("numbers near the ends of float64 are not covered by the checker")
    return _finite(values)


def _permutation(groups: Array, count: int) -> bool:
    """Whether every place occurs once."""
    return (
        groups.dtype == np.int64
        and groups.size == count
        and np.array_equal(np.sort(groups, axis=None), np.arange(count))
    )
