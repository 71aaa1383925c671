"""What is printed at a terminal, and what a long command says meanwhile."""

from __future__ import annotations

import io
import re

import pytest

from lipverify.reporting import terminal
from tests.unit.reporting import documents


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(document: documents.Document) -> str:
    out = io.StringIO()
    terminal.print_audit(document, out)
    return out.getvalue()


def test_the_table_shows_upper_lower_ratio_rigour_and_time() -> None:
    text = printed(documents.mlp())
    row = next(line for line in text.splitlines() if line.startswith("lipsdp"))
    assert row.split() == ["lipsdp", "9.72001", "4.87999", "1.99181", "checked", "21.0", "s"]
    assert "local refused: needs a ball: give --data and --radius" in text


def test_what_was_decided_while_the_model_was_read_is_said() -> None:
    """Weights that are computed from stored numbers are those of the file's types: the real ones may be far away."""
    document = documents.mlp()
    document["model"]["notes"] = [
        "operations on stored numbers alone were carried out in the file's own types"
    ]
    assert "model: operations on stored numbers alone" in " ".join(printed(document).split())


def test_a_refused_model_has_no_table_but_reasons() -> None:
    text = printed(documents.refused())
    assert "No analyzer gave an upper bound" in text
    assert "rigour" not in text
    assert text.count("refused: unbounded") == 2


def test_a_local_answer_shows_the_largest_values() -> None:
    text = printed(documents.local())
    document = documents.local()
    row = next(line for line in text.splitlines() if line.startswith("lirpa")).split()
    assert float(row[1]) == pytest.approx(max(document["results"][2]["upper"]), rel=1e-5)
    pairs = zip(document["results"][2]["upper"], document["lower"]["value"], strict=True)
    assert float(row[3]) == pytest.approx(max(upper / lower for upper, lower in pairs), rel=1e-5)
    assert "over 20 centres" in text


def test_bounds_beyond_float64_and_zero_are_printed() -> None:
    text = printed(documents.extreme())
    assert "10^312.41" in text
    assert not re.search(r"\b(inf|nan)\b", text, re.IGNORECASE)


def test_hostile_names_are_neither_markup_nor_escape_codes() -> None:
    text = printed(documents.hostile())
    assert "\x1b" not in text
    assert "<script>alert(1)</script> refused" in text
    out = io.StringIO()
    document = documents.hostile()
    nodes = document["model"]["nodes"]
    terminal.print_inspection({"model": document["model"], "nodes": nodes, "analyzers": {"a": "[b]x"}}, out)
    assert not re.search("[\u202a-\u202e\x00-\x09\x0b-\x1f\x7f]", out.getvalue())
    assert "[bold red]markup[/]" in out.getvalue()
    assert "a refuses: [b]x" in out.getvalue()


def test_an_inspection_lists_layers_and_analyzers() -> None:
    document = documents.mlp()
    out = io.StringIO()
    analyzers = {"product": None, "local": "needs a ball"}
    terminal.print_inspection(
        {"model": document["model"], "nodes": document["model"]["nodes"], "analyzers": analyzers}, out
    )
    text = out.getvalue()
    assert re.search(r"fc1 +Linear +256 +act0 +65,792", text)
    assert "product can answer" in text
    assert "local refuses: needs a ball" in text


def test_progress_elsewhere_is_a_few_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now)
    out = io.StringIO()
    with terminal.Progress(file=out) as progress:
        progress.start("reading [red]net\x1b[2J")
        for done in range(1000):
            progress.update(done, 1000)
        now += 60.0
        progress.update(999, 1000, best=9.72)
        progress.report("product", 48.0)
        now += 60.0
        progress.report("lower bound", 4.88)
    assert out.getvalue().splitlines() == [
        "reading [red]net\\x1b[2J",
        "reading [red]net\\x1b[2J: 999 of 1,000, at most 9.72001 so far",
        "lower bound, at least 4.87999 so far",
    ]


def test_quiet_progress_says_nothing() -> None:
    out = Terminal()
    with terminal.Progress(quiet=True, file=out) as progress:
        progress.start("reading")
        progress.update(1, 2)
        progress.report("x", 1.0)
    assert out.getvalue() == ""


def test_progress_at_a_terminal_is_live_and_shows_the_best_bound() -> None:
    out = Terminal()
    with terminal.Progress(file=out) as progress:
        progress.start("lipsdp")
        progress.update(3, 10, best=9.72)
        assert progress._bar is not None
        progress._bar.refresh()
        assert "lipsdp: 3 of 10, at most 9.72001 so far" in out.getvalue()
        progress.report("[bold]x[/]\x1b]0;owned\x07", None)
        progress._bar.refresh()
        assert "[bold]x[/]\\x1b]0;owned\\x07" in out.getvalue()
    progress.finish()
    assert progress._bar is None
