"""What a person at a terminal sees: the table of an audit, the layers of a model, the progress of a long run."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from lipverify.loading.names import display, display_path
from lipverify.reporting.answers import Answer, Answers, Document, read
from lipverify.reporting.format import (
    Magnitude,
    count_text,
    plural,
    seconds_text,
    shape_text,
    upper_text,
)
from lipverify.reporting.format import lower_text as lower_number
from lipverify.reporting.words import choice, headline, import_check_words, operator_words, verdicts

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

LOWER_STAGE = "lower bound"
"""The stage whose running best is a lower bound; of every other stage it is an upper bound."""
_LINE_EVERY = 5.0  # seconds between two lines of progress where there is no terminal


def print_audit(document: Document, file: TextIO | None = None) -> None:
    """The answers of an audit as a table: upper, lower, ratio, rigour, time; refused rows with their reasons."""
    from rich.table import Table
    from rich.text import Text

    answers = read(document)
    console = console_for(file)
    console.print(Text(headline(answers, document["query"]), style="bold"))
    for said, holds in verdicts(document, answers):
        console.print(Text(said, style="" if holds else "yellow"))
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("analyzer", overflow="fold")
    for title in ("upper", "lower", "ratio"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("rigour", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    for answer in answers.answers:
        style = "bold" if answer is answers.best else ""
        table.add_row(*(Text(cell, style=style) for cell in _cells(answer, answers)))
    if answers.answers:
        console.print(table)
    if answers.local:
        console.print(
            Text(f"each column shows its largest value over {plural(answers.count, 'centre')}", style="dim")
        )
    for answer in answers.answers:
        for note in answer.row.get("notes", ()):
            console.print(Text(f"{answer.analyzer}: {display(note, 600)}", style="dim"))
        if answer.row.get("unchecked"):
            said = f"{answer.analyzer}: {answer.rigour}, not checked: {display(answer.row['unchecked'], 600)}"
            console.print(Text(said, style="dim"))
    if (document.get("lower") or {}).get("note"):
        console.print(Text(f"lower bound: {display(document['lower']['note'], 600)}", style="dim"))
    if "execution" in document:
        console.print(Text(f"execution: {display(document['execution']['words'], 600)}", style="dim"))
    for note in document["model"].get("notes", ()):
        console.print(Text(f"model: {display(note, 600)}", style="dim"))
    for refusal in answers.refusals:
        style = "red" if refusal.failed else "yellow"
        console.print(Text.assemble((f"{refusal.analyzer} {refusal.verb}: ", style), refusal.reason))
    for said in choice(document):
        console.print(Text(said, style="dim"))


def _cells(answer: Answer, answers: Answers) -> tuple[str, ...]:
    lower = "-" if answers.lower is None else lower_number(answers.lower)
    ratio = next(reversed(answers.ratios(answer)), "-")
    seconds = answer.row.get("seconds")
    time_text = "-" if seconds is None else seconds_text(seconds)
    return answer.analyzer, upper_text(answer.largest), lower, ratio, answer.rigour, time_text


def print_inspection(document: Document, file: TextIO | None = None) -> None:
    """A model's identity, its layers, and which analyzers can answer for it."""
    from rich.table import Table
    from rich.text import Text

    console, model = console_for(file), document["model"]
    path = "a module in memory" if model.get("path") is None else display_path(model["path"])
    console.print(Text(path, style="bold"))
    size = f"{shape_text(model['input_shape'])} to {shape_text(model['output_shape'])}"
    console.print(Text(f"{size}, {plural(int(model['parameters']), 'parameter')}"))
    console.print(Text(operator_words(model["operators"])))
    console.print(Text(import_check_words(model.get("import_check"))))
    for note in model.get("notes", ()):
        console.print(Text(display(note, 400), style="yellow"))
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for title in ("node", "operator", "shape", "inputs"):
        table.add_column(title, overflow="fold")
    table.add_column("parameters", justify="right")
    for node in document["nodes"]:
        inputs = ", ".join(display(name, 40) for name in node["inputs"])
        shape, parameters = shape_text(node["shape"]), int(node.get("parameters", 0))
        cells = (display(node["name"], 60), display(node["op"]), shape, inputs)
        table.add_row(*map(Text, cells), Text(count_text(parameters) if parameters else ""))
    console.print(table)
    around = document.get("around_points", {})
    for name, reason in document["analyzers"].items():
        if reason is None:
            console.print(Text.assemble((display(name), "green"), " can answer"))
        elif name in around and around[name] is None:
            console.print(
                Text.assemble((display(name), "green"), " can answer around points (--data, --radius)")
            )
        else:
            said = around[name] if name in around and reason.startswith("needs a ball") else reason
            console.print(Text.assemble((display(name), "yellow"), f" refuses: {display(said, 600)}"))


class Progress:
    """What a long command is doing: one live line on a terminal, plain lines elsewhere: none when quiet, all when verbose.

    Everything goes to standard error. A context manager; leaving it clears the live line.
    """

    def __init__(self, quiet: bool = False, file: TextIO | None = None, verbose: bool = False) -> None:
        self.file = sys.stderr if file is None else file
        self.quiet = quiet
        self.verbose = verbose and not quiet
        self.live = not quiet and not verbose and self.file.isatty()
        self._until: float | None = None
        self._begun = 0.0
        self._bar: Bar | None = None
        self._task: Any = None
        self._stage = ""
        self._last_line = float("-inf")

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()

    def limit(self, seconds: float) -> None:
        """Everything is to end in so many seconds: from now on the time left is shown."""
        self._until = time.monotonic() + seconds

    def start(self, stage: str) -> None:
        """Begins a stage."""
        self._stage, self._begun = display(stage, 100), time.monotonic()
        if self.live:
            self._draw(total=None, done=0, best=None)
        elif not self.quiet:
            self._line(self._stage)

    def update(self, done: int, total: int, best: float | None = None) -> None:
        """How much of the stage is done, and the best bound so far."""
        if self.live:
            self._draw(total=total, done=done, best=best)
        elif self._is_due():
            self._line(
                f"{self._stage}: {count_text(done)} of {count_text(total)}{_best_words(best, self._stage)}"
                + self._left(done, total)
            )

    def report(self, stage: str, best: float | None) -> None:
        """The callback of analyzers: what is being computed, and the best bound so far where there is one."""
        self._stage = display(stage, 100)
        if self.live:
            self._draw(total=None, done=0, best=best)
        elif self._is_due():
            self._line(self._stage + _best_words(best, self._stage) + self._left())

    def note(self, text: str) -> None:
        """A line that stays, above what is being done."""
        if self._bar is not None:
            self._bar.console.print(display(text, 300), markup=False)
        elif not self.quiet:
            self._line(display(text, 300))

    def finish(self) -> None:
        """Ends the display; may be called more than once."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _is_due(self) -> bool:
        return not self.quiet and (self.verbose or time.monotonic() - self._last_line >= _LINE_EVERY)

    def _left(self, done: int = 0, total: int = 0) -> str:
        """The time that is left, of a limit or as the count goes on; nothing where nobody knows."""
        now = time.monotonic()
        if self._until is not None:
            return (
                f", {max(self._until - now, 0.0):.0f} s left" if self._until > now else ", its time is over"
            )
        seconds = (now - self._begun) / done * (total - done) if done else 0.0
        return f", about {seconds_text(seconds)} left" if seconds >= 1.0 else ""

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        print(text, file=self.file, flush=True)

    def _draw(self, total: int | None, done: int, best: float | None) -> None:
        if self._bar is None:
            self._bar, self._task = _live_bar(self.file)
        count = f": {count_text(done)} of {count_text(total)}" if total else ""
        text = self._stage + count + _best_words(best, self._stage) + self._left(done, total or 0)
        self._bar.update(self._task, description=text, total=total, completed=done)


def _live_bar(file: TextIO) -> tuple[Bar, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(file=file, highlight=False)
    # Markup is off: the text may hold a layer name.
    text = TextColumn("{task.description}", markup=False)
    bar = Bar(SpinnerColumn(), text, BarColumn(20), TimeElapsedColumn(), console=console, transient=True)
    bar.start()
    return bar, bar.add_task("", total=None)


def _best_words(best: float | None, stage: str) -> str:
    if best is None:
        return ""
    if stage == LOWER_STAGE:
        return f", at least {lower_number(best)} so far"
    return f", at most {upper_text(Magnitude(best))} so far"


def console_for(file: TextIO | None) -> Console:
    """Where text for people goes: standard output unless told otherwise."""
    from rich.console import Console

    return Console(file=sys.stdout if file is None else file, highlight=False, soft_wrap=False)
