"""Reports in a real browser: something is visible, nothing is complained about, nothing overflows or overlaps."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lipverify.reporting.comparison import render_comparison
from lipverify.reporting.html import render_audit
from lipverify.reporting.radii import render_radii
from lipverify.reporting.radii_compared import render_radii_compared
from tests.unit.reporting import comparisons, documents, radius_documents

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

DOCUMENTS = {
    "mlp": documents.mlp(),
    "residual": documents.residual_cnn(),
    "local": documents.local(60),
    "extreme": documents.extreme(),
    "hostile": documents.hostile(),
    "exploding": documents.exploding(),
    "twelve": documents.of_bounds([1.3 * 1.35**i for i in range(11)] + [1e20], 1.0),
}

PAGES = {name: render_audit(document) for name, document in DOCUMENTS.items()}
PAGES |= {f"compare {name}": render_comparison(document) for name, document in comparisons.DOCUMENTS.items()}
PAGES["radii"] = render_radii(*radius_documents.single())
PAGES |= {f"radii of {count}": render_radii_compared(radius_documents.compared(count)) for count in (1, 9)}

# The reports sit in frames, with their own policy in force; only the page around them runs a script.
PROBE = """<!DOCTYPE html><body>%s<script>
addEventListener('load', () => {
  const found = [...document.querySelectorAll('iframe')].map(frame => {
    const page = frame.contentDocument, root = page.documentElement;
    const boxes = [...page.querySelectorAll('svg.plot')].map(plot => [...plot.querySelectorAll('text')].map(text => {
      const r = text.getBoundingClientRect();
      return [r.left, r.top, r.right, r.bottom, text.textContent];
    }));
    const fall = page.querySelector('.fall td.bar svg');
    const hidden = [...page.querySelectorAll('.bounds, .fall, .bounds td.n, .fall td.n, .headline, .key, .figure')].filter(
      e => e.scrollWidth > e.clientWidth + 1 || e.getBoundingClientRect().right > root.clientWidth).length;
    return {hidden, width: root.clientWidth, needed: root.scrollWidth, boxes,
            scripts: page.scripts.length, paper: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
            bar: fall ? fall.getBoundingClientRect().width : null};
  });
  document.body.id = 'found';
  document.body.textContent = JSON.stringify(found);
});
</script></body>"""


def browse(page: Path, *options: str, makes: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What the browser says of a page, and the file it makes. One that ends by itself, as it does where a busy machine starts its
    processes late, says nothing of the page: it is started again, twice at most, with a profile of its own."""
    assert CHROMIUM is not None
    fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    # Any request would fail here and be complained about.
    offline = ["--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking"]
    for attempt in range(3):
        profile = f"--user-data-dir={page.parent / f'profile-{attempt}'}"
        command = [CHROMIUM, *fixed, *offline, profile, *options, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
        if done.returncode == 0 and (makes is None or makes.exists()):
            return done
    pytest.fail(f"the browser ended three times with {done.returncode}: {done.stderr[-2000:]}")


def probe(folder: Path, width: int, dark: bool) -> list[dict[str, Any]]:
    frames = [
        f'<iframe style="border:0;width:{width}px;height:2000px" srcdoc="{html.escape(text)}"></iframe>'
        for text in PAGES.values()
    ]
    page = folder / "probe.html"
    page.write_text(PROBE % "".join(frames), encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    done = browse(page, "--window-size=1400,900", "--dump-dom", scheme)
    match = re.search(r'<body id="found">(.*?)</body>', done.stdout, re.DOTALL)
    assert match, done.stderr[-2000:]
    found = json.loads(html.unescape(match[1]))
    assert len(found) == len(PAGES)
    return found


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every page on a telephone, in the light scheme."""
    return probe(tmp_path_factory.mktemp("narrow"), 360, dark=False)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every page on a desk, in the dark scheme."""
    return probe(tmp_path_factory.mktemp("wide"), 1200, dark=True)


@pytest.mark.parametrize(("where", "width"), [("narrow", 360), ("wide", 1200)])
def test_nothing_overflows_and_no_labels_meet(where: str, width: int, request: pytest.FixtureRequest) -> None:
    for name, page in zip(PAGES, request.getfixturevalue(where), strict=True):
        assert page["needed"] <= page["width"] <= width, name
        assert page["hidden"] == 0, name
        assert page["scripts"] == 0
        assert page["bar"] is None or page["bar"] > 150, name
        for boxes in page["boxes"]:
            assert boxes
            for i, a in enumerate(boxes):
                assert a[0] >= 0
                assert a[2] <= page["width"], a[4]
                for b in boxes[i + 1 :]:
                    meets = min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) - max(a[1], b[1]) > 1
                    assert not meets, (name, a[4], b[4])


def test_the_dark_scheme_is_dark(narrow: list[dict[str, Any]], wide: list[dict[str, Any]]) -> None:
    def brightness(page: dict[str, Any]) -> float:
        return sum(map(int, re.findall(r"\d+", page["paper"])[:3])) / 3

    assert all(brightness(page) > 240 for page in narrow)
    assert all(brightness(page) < 40 for page in wide)


def screenshot(folder: Path, text: str) -> int:
    """The size of the picture in bytes."""
    page, picture = folder / "report.html", folder / "report.png"
    page.write_text(text, encoding="utf-8")
    done = browse(page, "--window-size=1000,1600", f"--screenshot={picture}", makes=picture)
    assert "CONSOLE" not in done.stderr
    return picture.stat().st_size


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> int:
    return screenshot(tmp_path_factory.mktemp("blank"), "<!DOCTYPE html><title>blank</title>")


@pytest.mark.parametrize(
    "name", ["mlp", "hostile", "compare two", "compare many", "compare hostile", "radii", "radii of 9"]
)
def test_a_screenshot_shows_something_and_the_console_is_silent(
    tmp_path: Path, blank: int, name: str
) -> None:
    assert screenshot(tmp_path, PAGES[name]) > 5 * blank


KEYBOARD = """<!DOCTYPE html><body><iframe style="width:900px;height:2000px" srcdoc="%s"></iframe><script>
addEventListener('load', () => {
  const page = document.querySelector('iframe').contentDocument;
  page.querySelectorAll('details').forEach(e => { e.open = true; });
  const wide = [...page.querySelectorAll('*')].filter(e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 40
    && ['auto', 'scroll'].includes(page.defaultView.getComputedStyle(e).overflowX));
  const stops = [...page.querySelectorAll('a[href], summary, [tabindex="0"]')];
  const reached = stops.filter(e => { e.focus(); return page.activeElement === e; });
  const shapes = [...page.querySelectorAll('svg.plot .point, svg.plot .curve')];
  const marks = shapes.map(e => e.getBoundingClientRect());
  document.body.id = 'found';
  document.body.textContent = JSON.stringify({
    first: stops[0].textContent, stops: stops.length, reached: reached.length,
    stuck: wide.filter(e => e.tabIndex !== 0).length,
    missed: stops.filter(e => !reached.includes(e)).map(e => e.outerHTML.slice(0, 80)),
    marks: marks.filter(r => r.width + r.height > 2).length, all: marks.length});
});
</script></body>"""


@pytest.mark.parametrize("name", ["compare two", "compare many"])
def test_everything_is_reached_by_keyboard_and_marks_are_visible(tmp_path: Path, name: str) -> None:
    page = tmp_path / "keyboard.html"
    page.write_text(KEYBOARD.replace("%s", html.escape(PAGES[name])), encoding="utf-8")
    match = re.search(r'<body id="found">(.*?)</body>', browse(page, "--dump-dom").stdout, re.DOTALL)
    assert match
    found = json.loads(html.unescape(match[1]))
    assert found["first"] == "Skip to the answer"
    assert not found["missed"]
    assert found["reached"] == found["stops"] > 5
    assert found["stuck"] == 0  # whatever scrolls sideways can be focused, so that arrow keys move it
    assert found["marks"] == found["all"] > 4


def test_the_console_would_not_be_silent_about_a_broken_policy(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    text = render_audit(DOCUMENTS["mlp"]).replace("</body>", "<script>document.title = 1</script></body>")
    page.write_text(text, encoding="utf-8")
    assert "CONSOLE" in browse(page, "--dump-dom").stderr


@pytest.mark.parametrize("name", ["residual", "compare two", "compare many"])
def test_it_prints_to_pdf(tmp_path: Path, name: str) -> None:
    page, paper = tmp_path / "report.html", tmp_path / "report.pdf"
    page.write_text(PAGES[name], encoding="utf-8")
    browse(page, f"--print-to-pdf={paper}", "--no-pdf-header-footer", makes=paper)
    data = paper.read_bytes()
    assert data.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 20
