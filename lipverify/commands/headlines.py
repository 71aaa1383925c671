"""The numbers of a report against what its certificates prove: a result in a folder says nothing better than they do."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Verdicts = Mapping[str, Mapping[str, Any]]
"""The name of a certificate in the folder -> the document of `verify --json`, of those that are proved."""


def overstated(document: Any, verdicts: Verdicts) -> Iterator[str]:
    """Where a result says that a number is `checked` and its certificate proves less, or none is named.

    Compared are constants, certified radii with their labels, the best one, and the norms of a query; certificates that are not
    proved speak for themselves.
    """
    if isinstance(document, list):
        for entry in document:
            yield from overstated(entry, verdicts)
        return
    if not isinstance(document, dict):
        return
    results, points = (_rows(document, key) for key in ("results", "points"))
    for row in [*results, *points]:
        if row.get("rigour") == "checked" and not isinstance(row.get("certificate"), str):
            yield "a row is `checked` and names no certificate"
    yield from _best(document, results)
    yield from _radii(points, verdicts)
    for row in [document, *results]:
        proved = _proved(row, verdicts)
        if proved is None or row.get("rigour") != "checked" or "upper" not in row:
            continue
        if not _at_least(row["upper"], proved.get("upper")):
            yield f"it says {row['upper']!r} where {row['certificate']} proves {proved.get('upper')!r}"
        query = document.get("query")
        for norm in ("norm_in", "norm_out"):
            said = query.get(norm) if isinstance(query, dict) else None
            if isinstance(said, str) and proved.get(norm) not in (None, said):
                yield f"its query is about {said} where {row['certificate']} is about {proved[norm]}"
    for entry in document.values():
        yield from overstated(entry, verdicts)


def _proved(row: Mapping[str, Any], verdicts: Verdicts) -> Mapping[str, Any] | None:
    named = row.get("certificate")
    return verdicts.get(os.path.normpath(named)) if isinstance(named, str) and named else None


def _best(document: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The best constant is that of one of the rows."""
    best = document.get("best")
    if isinstance(best, dict) and "upper" in best and results:
        named = [row.get("upper") for row in results if row.get("analyzer") == best.get("analyzer")]
        if not any(_at_least(best["upper"], upper) for upper in named):
            yield f"its best constant {best['upper']!r} is that of no row"


def _radii(rows: Sequence[Mapping[str, Any]], verdicts: Verdicts) -> Iterator[str]:
    """Certified radii: the rows that name one certificate are its points, in their order."""
    for named in dict.fromkeys(row["certificate"] for row in rows if isinstance(row.get("certificate"), str)):
        own = [row for row in rows if row.get("certificate") == named]
        proved = _proved(own[0], verdicts)
        if proved is None:
            continue
        radii, labels = (_numbers(proved.get(key)) for key in ("radius", "labels"))
        if radii is None or labels is None or len(radii) != len(own) or len(labels) != len(own):
            yield f"its points are not those of {named}"
            continue
        for row, radius, label in zip(own, radii, labels, strict=True):
            said = row.get("radius") if row.get("rigour") == "checked" else row.get("proved") or 0.0
            if not _at_least(radius, said) or row.get("label") != label:
                yield f"it says radius {said!r} with label {row.get('label')!r} where {named} proves {radius!r} with {label:.0f}"


def _rows(document: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = document.get(key)
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def _numbers(found: Any) -> list[float] | None:
    """One number or a list of them; None: neither."""
    listed = found if isinstance(found, list) else [found]
    return [float(x) for x in listed] if all(type(x) in (int, float) for x in listed) else None


def _at_least(large: Any, small: Any) -> bool:
    """Whether every number is at least the one it is compared with, and there are as many."""
    ours, theirs = _numbers(large), _numbers(small)
    return (
        ours is not None
        and theirs is not None
        and len(ours) == len(theirs)
        and all(a >= b for a, b in zip(ours, theirs, strict=True))
    )
