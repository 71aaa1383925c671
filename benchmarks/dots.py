"""One plot for all benchmarks: seconds (logarithmic) of every method on every row, with its bound relative to ours."""

from __future__ import annotations

from typing import Any

import numpy as np


def number(value: float | None, digits: int = 6) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def dots(rows: list[dict[str, Any]], colours: dict[str, str], seconds: str, caption: str) -> str:
    """SVG. rows: `network` (label), `methods` (name -> `upper` and the time under `seconds`), `bound_ratio` (name -> number);
    colours: method -> colour, in the order of the legend."""
    left, right, top, step = 170, 60, 50, 34
    low, high, width = -4, 3, 680
    height = top + step * len(rows) + 50

    def across(value: float) -> float:
        return left + (min(max(np.log10(value), low), high) - low) / (high - low) * width

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + right} {height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for power in range(low, high + 1):
        x = across(10.0**power)
        parts.append(f'<line x1="{x:.1f}" y1="{top - 8}" x2="{x:.1f}" y2="{height - 45}" stroke="#dddddd"/>')
        label = f"{10.0**power:g} s"
        parts.append(f'<text x="{x:.1f}" y="{height - 28}" text-anchor="middle">{label}</text>')
    for place, (method, colour) in enumerate(colours.items()):
        x = left + 115 * place
        parts.append(
            f'<circle cx="{x}" cy="18" r="5" fill="{colour}"/><text x="{x + 10}" y="22">{method}</text>'
        )
    for index, row in enumerate(rows):
        y = top + step * index + 10
        parts.append(f'<text x="{left - 12}" y="{y + 4}" text-anchor="end">{row["network"]}</text>')
        for method, colour in colours.items():
            found = row["methods"].get(method, {})
            if seconds not in found:
                continue
            x = across(found[seconds])
            title = f"{method}: {found[seconds]:.3g} s, bound {number(found.get('upper'))}"
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y}" r="5" fill="{colour}"><title>{title}</title></circle>'
            )
            ratio = row["bound_ratio"].get(method)
            # Labels of 1.0000 would only cover each other.
            if ratio is not None and abs(ratio - 1.0) > 5e-4:
                shown = f"{ratio:.4f}" if 0.9 < ratio < 1.1 else f"{ratio:.3g}"
                parts.append(
                    f'<text x="{x:.1f}" y="{y - 8}" text-anchor="middle" font-size="9" fill="#555555">{shown}</text>'
                )
    parts.append(f'<text x="{left}" y="{height - 8}" fill="#555555">{caption}</text></svg>')
    return "\n".join(parts) + "\n"
