"""What is asked of every point, and what is answered."""

from __future__ import annotations

import base64
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipverify.errors import UsageError, did_you_mean
from lipverify.ir.norm import Norm
from lipverify.robustness.attack import Attack, Box
from lipverify.robustness.carried import Carried
from lipverify.robustness.smoothing.settings import Smoothing

METHODS = ("auto", "global", "local", "crown", "alpha-crown", "branching", "lirpa", "smoothing")
PARTS = {
    "auto": ("global", "crown", "alpha-crown", "local", "branching"),
    "global": ("global",),
    "local": ("local",),
    "crown": ("crown",),
    "alpha-crown": ("alpha-crown",),
    "branching": ("branching",),
    "lirpa": ("lirpa",),
    "smoothing": ("smoothing",),
}
"""What each method consists of."""
EUCLIDEAN = ("global", "crown", "local")
"""Of `auto` in l2: constants of balls by semidefinite programs reach farther there than searched planes and signs."""


@dataclass(frozen=True)
class Plan:
    """The question: one norm and one method for all points. Two plans that are equal give equal numbers.

    box: limits of every input coordinate; perturbations stay inside. looks: balls that `local`, `crown`, `alpha-crown` and
    `auto` may look at for each point in linf; shells: balls that get constants by semidefinite programs, in l2. leaves,
    harder_looks: parts of a ball for `branching`, and how many balls it looks at, where no time is given. resolution: relative
    width at which a bisection ends. seconds: for one point; None: no limit, and numbers that do not depend on the machine's
    speed.
    """

    norm: Norm
    method: str = "auto"
    box: Box | None = None
    looks: int = 16
    shells: int = 4
    leaves: int = 512
    harder_looks: int = 5
    resolution: float = 2e-3
    attack: Attack | None = field(default_factory=Attack)
    smoothing: Smoothing = field(default_factory=Smoothing)
    seed: int = 0
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.norm is Norm.L1:
            raise UsageError("radii are measured in l2 or linf")
        if self.method not in METHODS:
            near = did_you_mean(self.method, METHODS) or f"; choose {', '.join(METHODS)}"
            raise UsageError(f"unknown method {self.method!r}{near}")
        if self.method == "smoothing" and self.norm is not Norm.L2:
            raise UsageError("randomised smoothing certifies l2 radii; give --norm l2, in Python norm='l2'")
        if self.looks < 1 or not 0 < self.resolution < 1:
            raise UsageError("looks are at least 1, the resolution lies between 0 and 1")
        if self.seconds is not None and not 0.0 < self.seconds < float("inf"):
            raise UsageError(f"the seconds of a point are a positive number, not {self.seconds:g}")

    @property
    def parts(self) -> tuple[str, ...]:
        """The single methods that are asked."""
        return EUCLIDEAN if self.method == "auto" and self.norm is Norm.L2 else PARTS[self.method]

    def seconds_for_attack(self) -> float:
        """A third of the time of a point."""
        return float("inf") if self.seconds is None else self.seconds / 3

    def unfinished(self, record: Record) -> bool:
        """Whether more time could make the radius of a record larger: time ended its search, or branching can go on below an
        example."""
        if record.failed or record.predicted != record.label or self.method == "smoothing":
            return False
        gap = record.attack_radius is None or record.radius < record.attack_radius * (1.0 - self.resolution)
        return record.cut or (self.grows and record.radius > 0.0 and gap)

    @property
    def grows(self) -> bool:
        """Whether a radius is grown by branch and bound, from the trees of the ball before."""
        return self.norm is Norm.LINF and "branching" in self.parts

    def to_json(self) -> dict[str, Any]:
        """Everything that decides the numbers."""
        return {**asdict(self), "norm": str(self.norm), "box": None if self.box is None else list(self.box)}


@dataclass(frozen=True)
class Record:
    """The answer for one point. by_method holds every single method's radius; `note` says why a radius is 0."""

    index: int
    label: int
    predicted: int
    radius: float
    method: str
    attack_radius: float | None
    seconds: float
    margin: float
    by_method: dict[str, float] = field(default_factory=dict)
    attack_label: int | None = None
    note: str = ""
    statistics: dict[str, Any] = field(default_factory=dict)
    """Of smoothing: samples, counts, bounds of probabilities, confidence, seed."""
    failed: bool = False
    """Whether something broke, so that nothing is certified; `note` says what."""
    refuted: bool = False
    """Whether an adversarial example lay inside the radius, which is withdrawn."""
    cut: bool = False
    """Whether the budget ended the search for this point."""
    checked: bool = False
    """Whether the independent checker has proved the radius."""
    unchecked: str = ""
    """Why it has not, where it was asked."""
    proved: float = 0.0
    """The smaller radius that it has proved instead; 0: none."""
    example: NDArray[np.float64] | None = field(default=None, compare=False, repr=False)
    """The adversarial example [*input shape] of size `attack_radius`; beside documents, not in them."""
    carried: Carried | None = field(default=None, compare=False, repr=False)
    """What carries the radius, for its certificate; not stored."""

    def to_json(self) -> dict[str, Any]:
        """One element of `points`."""
        # Not `asdict`, which copies what is inside of inside: of 100,000 points that takes longer than some methods.
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("carried", "example")}
        plain |= {"by_method": dict(self.by_method), "statistics": dict(self.statistics)}
        flags = ("failed", "refuted", "cut", "checked", "proved")
        found = {k: v for k, v in plain.items() if v not in ("", {}) or k in ("label", "predicted")}
        found = {k: v for k, v in found.items() if v or k not in flags}
        return {"index": found.pop("index"), **found}

    def stored(self) -> dict[str, Any]:
        """`to_json` with what carries the radius and the example, for a journal."""
        carried = None if self.carried is None else self.carried.to_json()
        return {**self.to_json(), "carried": carried, "example": _written(self.example)}

    @staticmethod
    def from_json(document: dict[str, Any]) -> Record:
        """What `stored` or `to_json` wrote, but for what only a proof of this run can say."""
        document = {k: v for k, v in document.items() if k not in ("checked", "proved", "unchecked")}
        carried = document.get("carried")
        more = {"carried": None if carried is None else Carried.from_json(carried)}
        return Record(**{**document, **more, "example": _read(document.get("example"))})


def _written(example: NDArray[np.float64] | None) -> dict[str, Any] | None:
    """An array exactly, as text."""
    if example is None:
        return None
    data = np.ascontiguousarray(example, "<f8").tobytes()
    return {"shape": list(example.shape), "data": base64.b64encode(data).decode("ascii")}


def _read(written: dict[str, Any] | None) -> NDArray[np.float64] | None:
    if written is None:
        return None
    flat = np.frombuffer(base64.b64decode(written["data"]), "<f8")
    return flat.reshape(written["shape"]).astype(np.float64)
