"""What a result in a folder says, held against what its certificates prove: nothing better, and of nothing else.

Each kind of document has a reader. It gives the rows whose numbers are called `checked`, with what they are about: models, norms,
region. A dict that says `checked` where no reader looks is refused, as is a kind of document that has none. What cannot be
compared without the data or the search (`NOT_COMPARED`) is said.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lipverify.checkers.reader import digest_of

Verdicts = Mapping[str, Mapping[str, Any]]
"""The name of a certificate in the folder -> the document of `verify --json`, of those that are proved."""

NOT_COMPARED = (
    "lower bounds, attacks, times, sentences, names of files, outputs and features, which row of the data a point is, which "
    "entries a box of its own lets move, and numbers that are called `real` or come of a search alone (methods compared, slopes, "
    "differences of entries, labels kept but for those that a certificate names) or of a formula; curves in a comparison have no "
    "certificates"
)
Entries = Callable[[Mapping[str, Any]], list[Mapping[str, Any]]]
SIGNS = {"increasing": (1,), "decreasing": (-1,), "constant": (1, -1)}
CURVATURES = {"convex": (1,), "concave": (-1,), "affine": (1, -1)}
DEVIATION = "deviation"
RIGOURS = ("checked", "real", "solver", "statistical")
UNNAMED = "a row is `checked` and names no certificate"


@dataclass(frozen=True)
class _About:
    """What a row is about, as its document says it: models in order, norms where there are any, region."""

    models: Sequence[Any]
    norm_in: Any = None
    norm_out: Any = None
    region: Any = None


@dataclass
class _Reader:
    """A document with the verdicts; what was looked at, so that nothing that says `checked` is passed over."""

    verdicts: Verdicts
    seen: set[int] = field(default_factory=set)

    def verdict(self, named: Any) -> Mapping[str, Any] | None:
        """Of a certificate that was proved; those that are not, or are not in the folder, are told beside it."""
        return self.verdicts.get(os.path.normpath(named)) if isinstance(named, str) and named else None

    def bounds(self, row: Mapping[str, Any], about: _About, kind: str) -> Iterator[str]:
        """That the certificate of a row carries its `upper`, and is about the same. kind: a field that its kind alone has."""
        self.seen.add(id(row))
        if row.get("rigour") != "checked":
            return
        named = row.get("certificate")
        if not isinstance(named, str) or not named:
            yield UNNAMED
        found = self.verdict(named)
        if found is None or not isinstance(named, str):
            return
        if kind not in found or found.get("kind") == "derivation":
            yield f"{named} is about something else than its row"
            return
        yield from different(found, about, named)
        if not _at_least(row.get("upper"), found.get("upper")):
            yield f"it says {row.get('upper')!r} where {named} proves {found.get('upper')!r}"

    def signs(self, rows: Any, document: Mapping[str, Any], region: Any, entries: Entries) -> Iterator[str]:
        """Verdicts on entries, all of one certificate; entries: what a row is about -> as the certificate tells them."""
        named = document.get("certificate")
        found = self.verdict(named)
        self.seen |= {id(document), *map(id, _rows(rows))}
        proved = [row for row in _rows(rows) if row.get("rigour") == "checked"]
        if (proved or document.get("rigour") == "checked") and not isinstance(named, str):
            yield UNNAMED
        if document.get("rigour") == "checked" and len(proved) < len(_rows(rows)):
            yield "it is `checked` where some of its rows are not"
        if found is None:
            return
        for row in proved:
            about = _About([document.get("model")], region=_as_ball(region, _table(found.get("region"))))
            yield from different(found, about, str(named))
            wanted = entries(row)
            if not wanted or not all(entry in _rows(found.get("entries")) for entry in wanted):
                yield f"a verdict is {row.get('verdict')!r} and its certificate does not say so"


def different(found: Mapping[str, Any], about: _About, named: str) -> Iterator[str]:
    """How what a document says a number is about differs from what its certificate is about."""
    models = _models(found)
    if len(models) != len(about.models):
        yield f"it is about {len(about.models)} models where {named} is about {len(models)}"
        return
    for said, model in zip(map(_table, about.models), models, strict=True):
        if _identity(said) != _identity(model):
            yield f"its model is {_called(said)} where {named} is about {_called(model)}"
    for name in ("norm_in", "norm_out"):
        asked, known = getattr(about, name), found.get(name)
        if known is not None and asked != known:
            yield f"its query is about {asked} where {named} is about {known}"
    asked, known = _region(about.region), _proved_region(_table(found.get("region")), _table(about.region))
    if asked != known:
        yield f"its region is {asked} where {named} is about {known}"


def overstated(document: Any, verdicts: Verdicts) -> Iterator[str]:
    """Where a result calls something `checked` that its certificates do not prove."""
    reader, found = _Reader(verdicts), _table(document)
    read = READERS.get(str(found.get("schema")))
    if read is not None:
        yield from read(reader, found)
    if "_type" in found:
        yield "a statement for pipelines is not compared with certificates: keep it elsewhere, and verify the folder without it"
        return
    for table in tables(document):
        if table.get("rigour") == "checked" and id(table) not in reader.seen:
            yield "something is called `checked` that no certificate of its kind of document carries"
        if "rigour" in table and table["rigour"] not in RIGOURS:
            yield f"{str(table['rigour'])[:40]!r} is no rigour"


def rests_on(document: Any) -> Iterator[str]:
    """The certificates of what a result calls `checked`: of a table, or of what lies in it."""
    for table in tables(document):
        if isinstance(table.get("certificate"), str) and any(
            inner.get("rigour") == "checked" for inner in tables(table)
        ):
            yield os.path.normpath(table["certificate"])


def tables(document: Any) -> Iterator[dict[str, Any]]:
    """Every table in a document, from the outside inward."""
    if isinstance(document, dict):
        yield document
    inner = (
        document.values() if isinstance(document, dict) else document if isinstance(document, list) else ()
    )
    for entry in inner:
        yield from tables(entry)


def _audit(reader: _Reader, document: Mapping[str, Any]) -> Iterator[str]:
    yield from _audited(reader, document, document.get("model"), document.get("query"))


def _audited(reader: _Reader, found: Mapping[str, Any], model: Any, query: Any) -> Iterator[str]:
    asked = _table(query)
    about = _About([model], asked.get("norm_in"), asked.get("norm_out"), asked.get("region"))
    for row in _rows(found.get("results")):
        yield from reader.bounds(row, about, "norm_in")
    best, rows = found.get("best"), _rows(found.get("results"))
    if len({str(row.get("analyzer")) for row in rows}) < len(rows):
        yield "two of its rows are of one analyzer"
    if best is not None and not isinstance(best, dict):
        yield "its best constant is no table"
    elif best is not None and "upper" in best:
        named = [r.get("upper") for r in rows if r.get("analyzer") == best.get("analyzer")]
        if not any(_at_least(best["upper"], upper) for upper in named):
            yield f"its best constant {best['upper']!r} is that of no row"


def _compare(reader: _Reader, document: Mapping[str, Any]) -> Iterator[str]:
    queries, entries = _rows(document.get("queries")), _rows(document.get("models"))
    models: dict[str, Any] = {}
    for entry in entries:
        name, model = str(entry.get("name")), entry.get("model")
        models[name] = None if name in models else model
        yield from _misnamed(reader, name, model)
        for audit in _rows(entry.get("audits")):
            place = audit.get("query")
            if type(place) is not int or not 0 <= place < len(queries):
                yield "an audit is about no query"
                continue
            yield from _audited(reader, audit, model, queries[place])
    reader.seen |= {id(curve) for curve in _rows(document.get("curves"))}
    deviations = _table(document.get("deviations"))
    asked = _table(deviations.get("query"))
    for row in _rows(deviations.get("rows")):
        pair = [models.get(str(deviations.get("original"))), models.get(str(row.get("model")))]
        yield from _deviation(reader, row, _About(pair, None, asked.get("norm_out"), asked.get("region")))


def _misnamed(reader: _Reader, name: str, model: Any) -> Iterator[str]:
    """One of the files that were given, called as another of them."""
    called: dict[Any, set[Any]] = {}
    for found in reader.verdicts.values():
        for known in _models(found):
            called.setdefault(known.get("sha256"), set()).add(known.get("name"))
    own = next((names for sha256, names in called.items() if sha256 == _table(model).get("sha256")), set())
    if own and os.path.basename(name) in set().union(*called.values()) - own:
        yield f"it calls another model {name!r}"


def _deviation(reader: _Reader, row: Mapping[str, Any], about: _About) -> Iterator[str]:
    yield from reader.bounds(row, about, "differences")
    found = reader.verdict(row.get("certificate"))
    kept, labels = _table(row.get("kept")), None if found is None else found.get("labels")
    if row.get("rigour") == "checked" and isinstance(labels, list) and labels and "checked" in kept:
        share = sum(label is not None for label in labels) / len(labels)
        if not _at_least(share, kept["checked"]):
            yield f"it says that {kept['checked']!r} of the labels are kept where {row['certificate']} proves {share!r}"


def _answer(reader: _Reader, document: Mapping[str, Any]) -> Iterator[str]:
    asked, models = _table(document.get("query")), document.get("models")
    models = models if isinstance(models, list) else []
    about = _About(models, asked.get("norm_in"), asked.get("norm_out"), asked.get("region"))
    needs = _rows(document.get("needs"))
    reader.seen |= {id(document), *map(id, needs)}
    carried = [need for need in needs if isinstance(need.get("certificate"), str)]
    files = [_table(model).get("sha256") for model in models]
    for need in carried:
        found = reader.verdict(need["certificate"])
        if found is not None and not _at_least(need.get("upper"), found.get("upper")):
            yield f"it needs {need.get('upper')!r} where {need['certificate']} proves {found.get('upper')!r}"
        if found is not None and any(model.get("sha256") not in files for model in _models(found)):
            yield f"{need['certificate']} is about none of its models"
        if "differences" in (found or {}):
            yield f"{need['certificate']} is about something else than its row"
    whole = reader.verdict(document.get("certificate")) or {}
    if document.get("question") == DEVIATION or not carried or "differences" in whole:
        yield from _deviation(reader, document, about)
    # The formula of a question of another package makes its number of the constants that are proved.
    if any(need.get("rigour") == "checked" for need in needs if need not in carried):
        yield UNNAMED
    named = [one["certificate"] for one in [document, *needs] if isinstance(one.get("certificate"), str)]
    if any(reader.verdict(name) is None for name in named):
        return
    said = [found.get("statement") for found in reader.verdicts.values()]
    for sentence in document["proved"] if isinstance(document.get("proved"), list) else []:
        if sentence not in said:
            yield f"it says that the checker states {str(sentence)[:200]!r}, which no certificate here does"


def _answers(reader: _Reader, document: Mapping[str, Any]) -> Iterator[str]:
    for one in _rows(document.get("answers")):
        yield from _answer(reader, one)


def _radius(reader: _Reader, document: Mapping[str, Any]) -> Iterator[str]:
    """Certified radii: the rows that name one certificate are its points, in their order; shares are those of the rows."""
    rows = _rows(document.get("points"))
    reader.seen |= {id(document), *map(id, rows)}
    for row in rows:
        proved = row.get("rigour") == "checked"
        if proved and not isinstance(row.get("certificate"), str):
            yield UNNAMED
        if bool(row.get("checked")) != proved:
            yield "a point is called `checked` in one place and not in the other"
        if document.get("rigour") == "checked" and not proved and row.get("radius") != 0:
            yield "it is `checked` where some of its points are not"
    for named in dict.fromkeys(row["certificate"] for row in rows if isinstance(row.get("certificate"), str)):
        found = reader.verdict(named)
        if found is not None:
            yield from _points(document, named, found, [r for r in rows if r.get("certificate") == named])
    radii = [r for row in rows if (r := _number(row.get("radius"))) is not None and r > 0]

    def share(radius: Any) -> float:
        least = _number(radius)
        return 0.0 if least is None else sum(r >= least for r in radii) / max(len(rows), 1)

    curve = _table(document.get("curve"))
    at, shares = curve.get("radii"), curve.get("certified_accuracy")
    told = zip(at, shares, strict=False) if isinstance(at, list) and isinstance(shares, list) else ()
    more = [(_table(entry).get("radius"), _table(entry).get("certified"))
            for entry in _table(document.get("robust_accuracy")).values()]  # fmt: skip
    for radius, said in [*told, *more]:
        if not _at_least(share(radius), said):
            yield f"it says that {said!r} of the points are certified at {radius!r}, which its radii do not"
            return


def _several(reader: _Reader, document: Mapping[str, Any]) -> Iterator[str]:
    """Radii of several networks have no certificates in their folder, and what others prove there says nothing of them."""
    models = _rows(document.get("models"))
    reader.seen |= {id(entry) for entry in models}
    if any(model.get("rigour") == "checked" for model in models):
        yield "radii of several models have no certificates in their folder: ask for those of one model, with `radius --out`"


def _points(
    document: Mapping[str, Any],
    named: str,
    found: Mapping[str, Any],
    own: Sequence[Mapping[str, Any]],
) -> Iterator[str]:
    radii, labels = (_numbers(found.get(key)) for key in ("radius", "labels"))
    if radii is None or labels is None or len(radii) != len(own) or len(labels) != len(own):
        yield f"its points are not those of {named}"
        return
    region = {"kind": "points", "norm": document.get("norm"), "count": len(own), "box": document.get("box")}
    about = _About([document.get("model")], document.get("norm"), None, region)
    yield from different(found, about, named)
    for row, radius, label in zip(own, radii, labels, strict=True):
        said = row.get("radius") if row.get("rigour") == "checked" else row.get("proved") or 0.0
        if not _at_least(radius, said) or row.get("label") != label:
            yield f"it says radius {said!r} with label {row.get('label')!r} where {named} proves {radius!r} with {label:.0f}"


def _monotone(reader: _Reader, document: Mapping[str, Any]) -> Iterator[str]:
    query = _table(document.get("query"))

    def entries(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        signs = SIGNS.get(str(row.get("verdict")), ())
        return [{"output": query.get("output"), "input": row.get("feature"), "sign": sign} for sign in signs]

    yield from reader.signs(document.get("features"), document, query.get("region"), entries)


def _convex(reader: _Reader, document: Mapping[str, Any]) -> Iterator[str]:
    def entries(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        return [
            {"output": row.get("output"), "sign": sign}
            for sign in CURVATURES.get(str(row.get("verdict")), ())
        ]

    yield from reader.signs(document.get("outputs"), document, {"kind": "everywhere"}, entries)


READERS: Mapping[str, Callable[[_Reader, Mapping[str, Any]], Iterator[str]]] = {
    "lipverify.audit/1": _audit,
    "lipverify.compare/1": _compare,
    "lipverify.answer/1": _answer,
    "lipverify.answers/1": _answers,
    "lipverify.radius/1": _radius,
    "lipverify.compare-radii/1": _several,
    "lipverify.monotone/1": _monotone,
    "lipverify.convex/1": _convex,
}


def _models(found: Mapping[str, Any]) -> list[Any]:
    """Of a verdict, in order."""
    return [found["model"]] if "model" in found else _rows(found.get("models"))


def _identity(model: Mapping[str, Any]) -> tuple[Any, ...]:
    """File (or graph in memory), output and inputs of a model; a document of an older version says no output: it is the first."""
    sha256, margin = model.get("sha256"), model.get("margin")
    graph = model.get("graph_digest") if sha256 is None else None
    entries = list(margin) if isinstance(margin, tuple) else margin
    beside = [one.get("sha256") for one in _rows(model.get("beside"))]
    return (
        sha256,
        graph,
        _table(model.get("output")).get("index", 0),
        entries,
        _reading(model.get("reading")),
        beside,
    )


def _reading(reading: Any) -> Any:
    """Names and sizes of the inputs, and of what is fixed, with the number where it is one for all entries."""
    if reading is None:
        return None
    found = _table(reading)
    inputs = [(one.get("name"), one.get("shape")) for one in _rows(found.get("inputs"))]
    fixed = [
        (one.get("name"), one.get("shape"), _stated(one.get("value"))) for one in _rows(found.get("fixed"))
    ]
    return inputs, fixed


def _stated(value: Any) -> float | str | None:
    """A number as a result writes it, or as a certificate does: hexadecimal (0x...), or an integer."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError, OverflowError):
            # Without 0x, 0.5 would be read as five sixteenths.
            return float.fromhex(value) if "0x" in value else value
    return float(value) if isinstance(value, bool) else _number(value)


def _called(model: Mapping[str, Any]) -> str:
    sha256, _, output, margin, reading, _ = _identity(model)
    entries = "" if margin is None else f", entries {margin!r}"
    inputs = "" if reading is None else " with inputs of its own"
    return f"output {output!r}{entries} of the file with sha256 {str(sha256)[:16]}{inputs}"


def _region(region: Any) -> dict[str, Any]:
    """A region as a document tells it. Of a box its ends where they are those of every entry, else the digest of all ends."""
    found = _table(region)
    told = {key: found.get(key) for key in ("kind", "norm", "radius", "count", "most")}
    low, high = (found.get("low"), found.get("high")) if told["kind"] == "box" else _pair(found.get("box"))
    every = [found.get(key) for key in ("lows", "highs")]
    if every != [None, None]:
        low, high = every
    if found.get("moving") is not None:
        told["ends"] = [low, high]
    else:
        told["box"] = _box(low, high)
    if "ends" in found:
        told["ends"] = "stated twice"  # no document has them
    return {key: value for key, value in told.items() if value is not None}


def _proved_region(region: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    """A region of a verdict as `_region` tells the document's."""
    told = {key: region.get(key) for key in ("kind", "norm", "radius", "count", "most")}
    ends = region.get("ends")
    if document.get("moving") is not None:
        told["ends"] = ends
    elif ends is not None:
        listed = any(isinstance(document.get(key), list) for key in ("low", "lows", "highs", "high"))
        told["box"] = region.get("box") if listed or not region.get("uniform") else ends
    return {key: value for key, value in told.items() if value is not None}


def _pair(box: Any) -> tuple[Any, Any]:
    """The ends of a box that cuts balls."""
    return (box[0], box[1]) if isinstance(box, list) and len(box) == 2 else (box, box)


def _box(low: Any, high: Any) -> Any:
    """Ends as a verdict tells them: two numbers, or the digest of those of all entries."""
    if not isinstance(low, list) and not isinstance(high, list):
        return None if low is None and high is None else [low, high]
    ends = [_numbers(list(_flat(end))) for end in (low, high)]
    if ends[0] is None or ends[1] is None or len(ends[0]) != len(ends[1]):
        return "of another form"
    return digest_of(np.array(ends, np.float64))


def _as_ball(region: Any, proved: Mapping[str, Any]) -> Any:
    """A box as the ball around its middle that it cuts, where that is what was proved."""
    low, high = (np.array(_numbers(_table(region).get(end)) or [], np.float64) for end in ("low", "high"))
    if (
        _table(region).get("kind") != "box"
        or proved.get("kind") != "ball"
        or low.shape != high.shape
        or low.size == 0
    ):
        return region
    middle = np.clip(low / 2 + high / 2, low, high)
    reach = float(np.maximum(high - middle, middle - low).max())
    whole = (
        proved["norm"] == "linf"
        and proved["radius"] >= reach
        and proved["centres"] == digest_of(middle[None])
    )
    ball = {key: proved.get(key) for key in ("kind", "norm", "radius", "count")}
    return {**ball, "lows": low.tolist(), "highs": high.tolist()} if whole else region


def _table(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {}


def _rows(found: Any) -> list[dict[str, Any]]:
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def _number(found: Any) -> float | None:
    return float(found) if type(found) in (int, float) else None


def _numbers(found: Any) -> list[float] | None:
    """One number or a list of them; None: neither."""
    listed = [_number(x) for x in (found if isinstance(found, list) else [found])]
    known = [x for x in listed if x is not None]
    return known if len(known) == len(listed) else None


def _flat(found: Any) -> Iterator[Any]:
    """What is in lists in lists."""
    if not isinstance(found, list):
        yield found
        return
    for one in found:
        yield from _flat(one)


def _at_least(large: Any, small: Any) -> bool:
    """Whether every number is at least the one it is compared with, and there are as many."""
    ours, theirs = _numbers(large), _numbers(small)
    return (
        ours is not None
        and theirs is not None
        and len(ours) == len(theirs)
        and all(a >= b for a, b in zip(ours, theirs, strict=True))
    )
