"""The sandwich plot: from the lower bound up to every upper bound, on one logarithmic axis.

Horizontal places are per cent and vertical ones pixels, so that the figure fits every width at one text size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lipverify.loading.names import display
from lipverify.reporting.answers import Answers
from lipverify.reporting.axis import LogAxis, Tick
from lipverify.reporting.format import Magnitude, lower_text, upper_text

HEAD, FOOT = 30, 34
ROW, SMALL_ROW = 50, 40
MODEL_LIMIT = 28  # of a model's name
NAME_LIMIT = 20  # characters of a name in the figure; the whole name is in the table


@dataclass(frozen=True)
class Label:
    """Text in the figure: x per cent, y pixels of the baseline, anchor start, middle or end."""

    x: float
    y: float
    anchor: str
    text: str
    kind: str


@dataclass(frozen=True)
class Track:
    """One row: what is still open lies between `start` and `end`; `others` are weaker bounds of the same row."""

    y: float
    start: float
    end: float
    lower: float | None
    others: tuple[float, ...]
    kind: str


@dataclass(frozen=True)
class Plot:
    """A figure ready to be drawn, `height` pixels high and as wide as its place."""

    height: int
    tracks: tuple[Track, ...]
    labels: tuple[Label, ...]
    ticks: tuple[Tick, ...]
    axis_y: int
    gap: float | None
    lower: float | None
    title: str


def sandwich(answers: Answers) -> Plot | None:
    """The figure of an answer for the whole input space: one row for each analyzer; None without any bound."""
    if not answers.answers:
        return None
    lower = answers.lower
    low = None if lower is None else Magnitude(lower)
    axis = _axis([a.largest for a in answers.answers], [] if low is None else [low])
    labels, tracks = [], []
    start = axis.start if low is None else axis.at(low.position)
    for index, answer in enumerate(answers.answers):
        top = HEAD + index * ROW
        labels.append(Label(0.0, top + 18, "start", display(answer.analyzer, NAME_LIMIT), "name"))
        labels.append(Label(100.0, top + 18, "end", f"≤ {upper_text(answer.largest)}", "number"))
        kind = "best" if answer is answers.best else "other"
        end = axis.at(answer.largest.position)
        tracks.append(Track(top + 32, start, end, None if low is None else start, (), kind))
    if lower is not None:
        labels.append(_lower_label(start, f"lower bound ≥ {lower_text(lower)}"))
    title = f"Lower bound and {len(tracks)} upper bounds on a logarithmic axis"
    return _plot(axis, tracks, labels, ROW, None if low is None else start, title)


def sandwich_of_centres(answers: Answers, first: int) -> Plot | None:
    """The figure of a local answer: one row for each of the first centres, from its lower to its smallest upper bound."""
    if not answers.answers:
        return None
    shown = range(min(first, answers.count))
    uppers = [sorted((a.uppers[i] for a in answers.answers), key=lambda b: b.order) for i in shown]
    lows = [Magnitude(answers.lowers[i]) for i in shown] if answers.lowers else []
    axis = _axis([bound for row in uppers for bound in row], lows)
    labels, tracks = [], []
    for i in shown:
        top = HEAD // 3 + i * SMALL_ROW
        start = axis.at(lows[i].position) if lows else axis.start
        smallest, *others = (axis.at(bound.position) for bound in uppers[i])
        labels.append(Label(0.0, top + 15, "start", f"centre {i}", "name"))
        low = f"{lower_text(answers.lowers[i], 4)} to " if lows else "≤ "
        labels.append(Label(100.0, top + 15, "end", f"{low}{upper_text(uppers[i][0], 4)}", "number"))
        tracks.append(Track(top + 26, start, smallest, start if lows else None, tuple(others), "best"))
    title = f"Lower and upper bounds of {len(tracks)} centres on a logarithmic axis"
    return _plot(axis, tracks, labels, SMALL_ROW, None, title, head=HEAD // 3)


def sandwich_of_models(models: Sequence[tuple[str, Answers]]) -> Plot | None:
    """The figure of a comparison: one row for each model, from its lower to its smallest upper bound; others are marks.

    For balls a row shows the largest bounds over the centres. Models without any bound have no row; None if all have none.
    """
    shown = [(name, answers) for name, answers in models if answers.answers]
    if not shown:
        return None
    sizes = [sorted((a.largest for a in answers.answers), key=lambda b: b.order) for _, answers in shown]
    lows = [None if answers.lower is None else Magnitude(answers.lower) for _, answers in shown]
    axis = _axis([bound for row in sizes for bound in row], [low for low in lows if low is not None])
    labels, tracks = [], []
    for i, (name, answers) in enumerate(shown):
        top = HEAD // 3 + i * ROW
        low = lows[i]
        start = axis.start if low is None else axis.at(low.position)
        smallest, *others = (axis.at(bound.position) for bound in sizes[i])
        labels.append(Label(0.0, top + 15, "start", display(name, MODEL_LIMIT), "name"))
        begin = "≤ " if answers.lower is None else f"{lower_text(answers.lower, 4)} to "
        labels.append(Label(100.0, top + 15, "end", f"{begin}{upper_text(sizes[i][0], 4)}", "number"))
        known = None if low is None else start
        tracks.append(Track(top + 28, start, smallest, known, tuple(others), "best"))
    title = f"Lower and upper bounds of {len(tracks)} models on a logarithmic axis"
    return _plot(axis, tracks, labels, ROW, None, title, head=HEAD // 3)


def _axis(uppers: list[Magnitude], lowers: list[Magnitude]) -> LogAxis:
    return LogAxis.around([bound.position for bound in [*lowers, *uppers]])


def _lower_label(at: float, text: str) -> Label:
    """Beside the line, on the side with room."""
    return Label(at, 18, "start" if at < 50 else "end", text, "lower")


def _plot(
    axis: LogAxis,
    tracks: list[Track],
    labels: list[Label],
    pitch: int,
    lower: float | None,
    title: str,
    head: int = HEAD,
) -> Plot:
    axis_y = head + len(tracks) * pitch + 4
    return Plot(axis_y + FOOT, tuple(tracks), tuple(labels), axis.ticks(), axis_y, axis.gap, lower, title)
