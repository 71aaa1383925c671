"""Draws docs/report.svg, the picture of the README, from the committed comparison. `--check` only compares.

python docs/picture.py [--check]
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from lipverify.reporting.comparison import sandwiches
from lipverify.reporting.html import template

ROOT = Path(__file__).resolve().parents[1]
SOURCE, TARGET = ROOT / "reports" / "compare" / "result.json", ROOT / "docs" / "report.svg"
WIDTH, MARGIN = 760, 24
TITLE = "From the lower bound that was found to the best certified upper bound; small marks are weaker bounds (l2)"


def picture() -> str:
    """The sandwich of the first question as a file of its own, light or dark as its place."""
    plot = sandwiches(json.loads(SOURCE.read_text(encoding="utf-8")))[0]
    assert plot is not None, "the comparison holds no bound"
    figure = str(template("figures.html.j2").module.sandwich(plot))  # type: ignore[attr-defined]
    found = re.search(r"<svg.*</svg>", figure, re.DOTALL)
    assert found is not None, "the template holds a figure"
    style = template("style.css").render()
    inner = found[0].replace('width="100%"', f'x="{MARGIN}" y="44" width="{WIDTH - 2 * MARGIN}"')
    height = plot.height + 60
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">\n'
        f"<style>\n{style}\nsvg text {{ font-family: system-ui, sans-serif; }}\n</style>\n"
        f'<rect width="{WIDTH}" height="{height}" style="fill: var(--paper)"/>\n'
        f'<text x="{MARGIN}" y="26" class="tick">{TITLE}</text>\n{inner}\n</svg>\n'
    )


def main() -> int:
    """Writes the picture, or says that it is out of date."""
    text = picture()
    if "--check" in sys.argv:
        if TARGET.read_text(encoding="utf-8") != text:
            print("docs/report.svg is out of date; run python docs/picture.py")
            return 1
        return 0
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
