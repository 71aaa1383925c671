"""Where a bound is spent: one bar for each stage, from the constant that enters it to the constant that leaves it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lipverify.loading.names import display
from lipverify.reporting.answers import Document
from lipverify.reporting.axis import LogAxis, Tick
from lipverify.reporting.format import Magnitude, factor_text, plural, upper_text

SHOWN = 24  # rows of the figure; longer networks are folded between their largest stages
LISTED = 2000  # stages in the full list
_TELLING = 0.05  # share of the largest change from which a stage stands alone in a folded figure
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
    closes: bool
    """Whether everything computed later depends on the earlier network only through this stage."""


@dataclass(frozen=True)
class Bar:
    """One row of the figure; places in per cent. `kind` is up, down or still."""

    title: str
    detail: str
    left: float
    width: float
    kind: str
    factor: str
    effective: bool
    """Whether the factor is reached over entering constant: the stage has no single gain of its own."""
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
    by_name = {node["name"]: node for node in nodes}
    closing = _closing(steps, by_name)
    reached: dict[str, float | None] = {}
    stages: list[Stage] = []
    previous: float | None = 0.0
    for step, closes in zip(steps, closing, strict=True):
        names = tuple(step["nodes"])
        after = _logarithm(step["log10_reach"])
        known = [name for name in names if name in by_name]
        sources = [name for own in known for name in by_name[own]["inputs"] if name in reached]
        # Without a stage before it, a stage reads the input; without a graph, stages form a chain.
        entering = [reached[name] for name in sources] or [0.0 if known else previous]
        before = max(entering, key=lambda value: -math.inf if value is None else value)
        operators = " + ".join(display(by_name[name]["op"]) for name in known[:4])
        if len(known) > 4:
            operators += f" + {len(known) - 4} more"
        stages.append(
            Stage(names, operators, before, after, step.get("gain"), step.get("note") or "", closes)
        )
        reached.update(dict.fromkeys(names, after))
        previous = after
    return stages


def _closing(steps: Sequence[Document], by_name: Mapping[str, Document]) -> list[bool]:
    """For every stage whether no earlier stage and no input is read after it."""
    place = {name: i for i, step in enumerate(steps) for name in step["nodes"]}
    last_use = [0] * (len(steps) + 1)  # by stage; the last entry is the input's
    for name, i in place.items():
        for source in by_name[name]["inputs"] if name in by_name else ():
            if source in place:
                last_use[place[source]] = max(last_use[place[source]], i)
            elif source in by_name and not by_name[source]["inputs"] and by_name[source]["op"] == "Input":
                last_use[-1] = max(last_use[-1], i)
    open_until = last_use[-1]
    found = []
    for i in range(len(steps)):
        found.append(open_until <= i)
        open_until = max(open_until, last_use[i])
    return found


def fold(stages: Sequence[Stage], shown: int = SHOWN) -> list[tuple[Stage, ...]]:
    """At most `shown` groups of consecutive stages; those that change the bound most stand alone.

    A group ends only where everything later depends on the network through its last stage alone: there the constants
    that enter and leave it have a meaning, whatever paths run inside.
    """
    if len(stages) <= shown:
        return [(stage,) for stage in stages]
    blocks: list[list[Stage]] = [[]]
    for stage in stages:
        blocks[-1].append(stage)
        if stage.closes:
            blocks.append([])
    blocks = [block for block in blocks if block]
    if len(blocks) <= shown:
        return [tuple(block) for block in blocks]
    # k blocks alone leave at most k + 1 folded runs between them.
    sizes = [abs(_change(block)) for block in blocks]
    largest = sorted(range(len(blocks)), key=lambda i: -sizes[i])[: (shown - 1) // 2]
    alone = {i for i in largest if sizes[i] > max(_NOTHING, _TELLING * max(sizes))}
    groups: list[list[Stage]] = []
    for i, block in enumerate(blocks):
        if i in alone or i - 1 in alone or not groups:
            groups.append(list(block))
        else:
            groups[-1].extend(block)
    return [tuple(group) for group in groups]


def _change(group: Sequence[Stage]) -> float:
    """How much the logarithm grows from the first to the last stage; infinite where a zero begins."""
    before, after = group[0].before, group[-1].after
    if before is None:
        return 0.0
    return -math.inf if after is None else after - before


def _group_bar(group: tuple[Stage, ...], axis: LogAxis) -> Bar:
    first, last = group[0], group[-1]
    start, end = axis.at(first.before), axis.at(last.after)
    change = _change(group)
    kind = "still" if abs(change) <= _NOTHING else "up" if change > 0 else "down"
    if len(group) == 1:
        title = display(first.names[-1], 60) if first.names else "stage"
        detail, note = first.operators, display(first.note, 200)
    else:
        title, note = plural(len(group), "stage"), ""
        ends = [display(name, 28) for name in (*first.names[:1], *last.names[-1:])]
        detail = " to ".join(ends)
    factor, effective = _factor(change, first.gain if len(group) == 1 else None)
    left, width = min(start, end), round(abs(end - start), 3)
    return Bar(title, detail, left, width, kind, factor, effective, _reach(last.after), note)


def _factor(change: float, gain: float | None) -> tuple[str, bool]:
    """The stage's own gain where it has one, otherwise what it does to the constant, and which of the two it is."""
    if gain is not None:
        return factor_text(Magnitude(gain).value or 0.0), False
    if math.isinf(change):
        return "×\u00a00", True
    if abs(change) <= _NOTHING:
        return "×\u00a01", True
    if abs(change) > 300:
        return f"×\u00a0{upper_text(Magnitude(log10=change))}", True
    return factor_text(10.0**change), True


def _reach(after: float | None) -> str:
    if after is None:
        return "0"
    if abs(after) > 300:
        return upper_text(Magnitude(log10=after))
    # A hair up: the power of a rounded logarithm must not fall below the constant that it stands for.
    return upper_text(Magnitude(10.0**after * (1 + 1e-12)))


def _logarithm(value: float | None) -> float | None:
    return None if value is None else Magnitude(log10=float(value)).log10
