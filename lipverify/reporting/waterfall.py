"""Where a bound is spent: one bar for each stage, from the constant that enters it to the constant that leaves it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lipverify.loading.names import display
from lipverify.reporting.answers import Document
from lipverify.reporting.axis import LogAxis, Tick
from lipverify.reporting.format import Magnitude, factor_text, plural, upper_text

SHOWN = 24  # rows of the figure; longer networks are folded between their largest stages
LISTED = 2000  # stages in the full list
_NOTHING = 1e-9  # a change of the logarithm that is nothing to look at


@dataclass(frozen=True)
class Stage:
    """One stage of a bound: decimal logarithms of the constant before and after it; None means zero."""

    names: tuple[str, ...]
    operators: str
    before: float | None
    after: float | None
    gain: float | None
    note: str

    @property
    def change(self) -> float:
        """How much the logarithm grows in this stage; infinite where a zero begins."""
        if self.before is None:
            return 0.0
        return -math.inf if self.after is None else self.after - self.before


@dataclass(frozen=True)
class Bar:
    """One row of the figure; places in per cent. `kind` is up, down or still."""

    title: str
    detail: str
    left: float
    width: float
    kind: str
    factor: str
    reach: str
    note: str


@dataclass(frozen=True)
class Waterfall:
    """The figure, and the full list where the figure folds stages together."""

    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    stages: tuple[Bar, ...]
    left_out: int

    @property
    def folded(self) -> bool:
        """Whether the figure shows less than the list."""
        return len(self.stages) + self.left_out > len(self.bars)


def waterfall(steps: Sequence[Document], nodes: Sequence[Document]) -> Waterfall | None:
    """The figure of one analyzer's steps; None without steps."""
    stages = read_stages(steps, nodes)
    if not stages:
        return None
    axis = LogAxis.around([position for s in stages for position in (s.before, s.after)])
    bars = tuple(_group_bar(group, axis) for group in fold(stages))
    listed = tuple(_group_bar((stage,), axis) for stage in stages[:LISTED])
    return Waterfall(bars, axis.ticks(), listed, max(len(stages) - LISTED, 0))


def read_stages(steps: Sequence[Document], nodes: Sequence[Document]) -> list[Stage]:
    """The stages with the constant that enters each: the largest one among the stages it reads from."""
    inputs = {node["name"]: tuple(node["inputs"]) for node in nodes}
    operators = {node["name"]: node["op"] for node in nodes}
    reached: dict[str, float | None] = {}
    stages: list[Stage] = []
    previous: float | None = 0.0
    for step in steps:
        names = tuple(step["nodes"])
        after = _logarithm(step["log10_reach"])
        sources = [name for node in names for name in inputs.get(node, ()) if name in reached]
        entering = (
            [reached[name] for name in sources]
            if sources
            else [0.0 if names and names[0] in inputs else previous]
        )
        before = max(entering, key=lambda value: -math.inf if value is None else value)
        words = " + ".join(display(operators[name]) for name in names[:4] if name in operators)
        if len(names) > 4:
            words += f" + {len(names) - 4} more"
        stages.append(Stage(names, words, before, after, step.get("gain"), step.get("note") or ""))
        reached.update(dict.fromkeys(names, after))
        previous = after
    return stages


def fold(stages: Sequence[Stage], shown: int = SHOWN) -> list[tuple[Stage, ...]]:
    """At most `shown` groups of consecutive stages; the stages that change the bound most stand alone."""
    if len(stages) <= shown:
        return [(stage,) for stage in stages]
    # k stages alone leave at most k + 1 folded runs between them.
    alone = (shown - 1) // 2
    largest = sorted(range(len(stages)), key=lambda i: -abs(stages[i].change))[:alone]
    kept = {i for i in largest if abs(stages[i].change) > _NOTHING}
    groups: list[list[Stage]] = []
    for i, stage in enumerate(stages):
        if i in kept or i - 1 in kept or not groups:
            groups.append([stage])
        else:
            groups[-1].append(stage)
    return [tuple(group) for group in groups]


def _group_bar(group: tuple[Stage, ...], axis: LogAxis) -> Bar:
    first, last = group[0], group[-1]
    start, end = axis.at(first.before), axis.at(last.after)
    change = 0.0 if first.before is None else (-1.0 if last.after is None else last.after - first.before)
    kind = "still" if abs(change) <= _NOTHING else "up" if change > 0 else "down"
    if len(group) == 1:
        title = display(first.names[-1], 60) if first.names else "stage"
        detail = first.operators
        factor = _factor(first)
    else:
        title = plural(len(group), "stage")
        detail = (
            f"{display(first.names[0], 28)} to {display(last.names[-1], 28)}"
            if first.names and last.names
            else ""
        )
        factor = _power_of(change, "together ")
    note = display(first.note, 200) if len(group) == 1 else ""
    return Bar(title, detail, min(start, end), abs(end - start), kind, factor, _reach(last.after), note)


def _factor(stage: Stage) -> str:
    if stage.gain is not None:
        return factor_text(Magnitude(stage.gain).value or 0.0)
    if stage.before is None or stage.after is None:
        return "× 0" if stage.after is None else "-"
    return _power_of(stage.change, "in effect ")


def _power_of(change: float, words: str) -> str:
    if abs(change) <= _NOTHING:
        return f"{words}× 1"
    if abs(change) > 300:
        return f"{words}× {upper_text(Magnitude(log10=change))}"
    return words + factor_text(10.0**change)


def _reach(after: float | None) -> str:
    if after is None:
        return "0"
    if abs(after) > 300:
        return upper_text(Magnitude(log10=after), 4)
    # A hair up: the power of a rounded logarithm must not fall below the constant that it stands for.
    return upper_text(Magnitude(10.0**after * (1 + 1e-12)), 4)


def _logarithm(value: float | None) -> float | None:
    return None if value is None else Magnitude(log10=float(value)).log10
