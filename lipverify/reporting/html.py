"""The report: one HTML file that opens offline, runs nothing and loads nothing.

Everything that comes from a document goes through `display` and Jinja's escaping, and into text only: never into an
attribute, a style or an address. Places and sizes in figures are numbers computed here.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from lipverify.errors import InternalError
from lipverify.loading.names import display
from lipverify.reporting import centres, layers, words
from lipverify.reporting.answers import RIGOUR, Answer, Answers, Document, read
from lipverify.reporting.course import course
from lipverify.reporting.format import (
    Magnitude,
    count_text,
    lower_text,
    plural,
    seconds_text,
    shape_text,
    upper_text,
)
from lipverify.reporting.pairs import Pair, pair
from lipverify.reporting.places import CERTIFICATE, WITNESS
from lipverify.reporting.sandwich import sandwich, sandwich_of_centres
from lipverify.reporting.waterfall import Waterfall, waterfall

if TYPE_CHECKING:
    from jinja2 import Template

    from lipverify.ir.certificate import Witness


@dataclass(frozen=True)
class BoundRow:
    """One line of the table of bounds."""

    analyzer: str
    upper: str
    ratio: str
    rigour: str
    seconds: str
    link: str | None
    best: bool
    facts: tuple[tuple[str, str], ...]
    trace: str


@dataclass(frozen=True)
class Fall:
    """The waterfall of one analyzer."""

    analyzer: str
    reach: str
    figure: Waterfall


def render_audit(document: Document, witness: Witness | None = None) -> str:
    """The report of an audit document as one self-contained HTML file.

    Args:
        witness: the points that show the lower bound; those shaped like images are drawn.

    Raises:
        InternalError: the document holds a number that is no bound, or a lower bound above an upper bound.
    """
    answers = read(document)
    model, query = document["model"], document["query"]
    nodes = model.get("nodes") or []
    listed, left_out = layers.groups(nodes)
    return template("audit.html.j2").render(
        name=model_name(model),
        tool=tool_text(document),
        headline=words.headline(answers, query),
        meaning=words.meaning(answers, query),
        verdicts=words.verdicts(document, answers),
        made=made(document),
        digest=short_digest(model),
        verify=_verify_words(answers, model),
        shown=None if witness is None else _pair(witness),
        courses=[
            c for a in answers.answers if (c := course(a.analyzer, a.row.get("trace") or ())) is not None
        ],
        key=_key_figures(answers),
        answers=answers,
        plot=sandwich_of_centres(answers, centres.SHOWN) if answers.local else sandwich(answers),
        rows=[_bound_row(answer, answers) for answer in answers.answers],
        rigours=[(name, RIGOUR[name]) for name in RIGOUR if any(a.rigour == name for a in answers.answers)],
        lower=_lower_words(document.get("lower"), answers),
        witness=WITNESS
        if answers.lowers and (document.get("lower") or {}).get("witness") == WITNESS
        else None,
        spreads=centres.spreads(answers) if answers.local else (),
        centres=centres.centres(answers) if answers.local else (),
        centres_left_out=max(answers.count - centres.SHOWN, 0) if answers.local else 0,
        choice=words.choice(document),
        falls=falls(answers, nodes),
        model=model_facts(model),
        notes=texts(model.get("notes")),
        trusted=texts(model.get("trusted_code")),
        import_check=words.import_check_words(model.get("import_check")),
        picture=layers.picture(nodes),
        box=(layers.BOX_WIDTH, layers.BOX_HEIGHT),
        groups=listed,
        node_count=plural(len(nodes), "node"),
        nodes_left_out=left_out,
        query=display(query.get("words") or words.region_words(query["region"]), 400),
        region=words.region_words(query["region"]),
        norms=(display(query["norm_in"]), display(query["norm_out"])),
        assumptions=texts(document.get("assumptions")),
        not_covered=texts(document.get("not_covered")),
        execution=texts([document["execution"]["words"]])[0] if "execution" in document else None,
        command=None if document.get("command") is None else display(document["command"], 2000),
        environment=environment_facts(document),
    )


def made(document: Document) -> str:
    """When, and by what."""
    when = display(str(document.get("created") or ""))[:10]
    return f"{when}, {tool_text(document)}" if when else tool_text(document)


def short_digest(model: Document) -> str:
    """The beginning of the file's digest, for the foot of printed pages; empty where there is none. Nothing but digits."""
    found = str(model.get("sha256") or "")
    return found[:16] if re.fullmatch("[0-9a-f]{64}", found) else ""


def _verify_words(answers: Answers, model: Document) -> str:
    """The command that checks the best bound again, from the folder of the report; empty where there is no certificate."""
    place = None if answers.best is None else answers.best.row.get("certificate")
    if not isinstance(place, str) or not CERTIFICATE.fullmatch(place) or not model.get("path"):
        return ""
    return f"lipverify verify {place} --model {shlex.quote(model_name(model))}"


def _pair(witness: Witness) -> Pair | None:
    """Pictures of the pair with the steepest slope."""
    index = int(witness.value.argmax())
    partner = witness.partner if witness.partner is not None else None
    if partner is None or not bool((partner[index] != witness.points[index]).any()):
        return None
    return pair(witness.points[index].detach().cpu().numpy(), partner[index].detach().cpu().numpy())


@cache
def template(name: str) -> Template:
    """A template of this package."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # A template of this package only; a document never chooses one.
    loader = PackageLoader("lipverify.reporting", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)


def model_name(model: Document) -> str:
    """The name, or the last part of the path: the folders of the auditor's machine are nobody's business."""
    name = model.get("name") or os.path.basename(str(model.get("path") or "").rstrip("/"))
    return display(str(name)) if name else "a model in memory"


def tool_text(document: Document) -> str:
    """Name and version of the tool that made a document."""
    tool = document.get("tool")
    return "lipverify" if tool is None else f"{display(tool['name'], 40)} {display(tool['version'], 40)}"


def _key_figures(answers: Answers) -> list[tuple[str, str, str]]:
    """Title, number and remark of the figures at the top."""
    each = ", largest over the centres" if answers.local else ""
    figures = []
    if answers.best is not None:
        remark = f"by {answers.best.analyzer}{each}"
        figures.append(("Upper bound", upper_text(answers.best.largest), remark))
    if answers.lower is not None:
        figures.append(("Lower bound", lower_text(answers.lower), f"shown by a witness{each}"))
    if answers.best is not None and answers.lowers:
        ratio = _ratio(answers.best, answers)
        remark = "upper over lower; 1 would be exact" + (", worst centre" if answers.local else "")
        figures.append(("Ratio", ratio, remark))
    if answers.best is not None:
        figures.append(("Rigour", answers.best.rigour, RIGOUR[answers.best.rigour]))
    return figures


def _ratio(answer: Answer, answers: Answers) -> str:
    """The largest ratio over the centres, or why there is none."""
    ratios = answers.ratios(answer)
    if ratios:
        return ratios[-1]
    return "none, the lower bound is 0" if answers.lowers else "-"


def _bound_row(answer: Answer, answers: Answers) -> BoundRow:
    row = answer.row
    labels = (
        ("States", "statement"),
        ("Source", "source"),
        ("Sound when", "sound_when"),
        ("Settings", "made_by"),
    )
    facts = [(label, display(row[key], 600)) for label, key in labels if row.get(key)]
    facts += [("Assumes", text) for text in texts(row.get("assumptions"))]
    facts += [("Note", text) for text in texts(row.get("notes"))]
    if row.get("unchecked"):
        facts.append(("Not checked", texts([row["unchecked"]])[0]))
    seconds = row.get("seconds")
    place = row.get("certificate")
    return BoundRow(
        answer.analyzer,
        upper_text(answer.largest),
        _ratio(answer, answers),
        answer.rigour,
        "-" if seconds is None else seconds_text(float(seconds)),
        place if isinstance(place, str) and CERTIFICATE.fullmatch(place) else None,
        answer is answers.best,
        tuple(facts),
        _trace_words(row.get("trace") or ()),
    )


def _trace_words(trace: Any) -> str:
    """How an anytime bound fell over time: at most six moments."""
    moments = [(float(seconds), Magnitude(float(upper))) for seconds, upper in trace]
    if len(moments) > 6:
        pick = sorted({round(i * (len(moments) - 1) / 5) for i in range(6)})
        moments = [moments[i] for i in pick]
    return ", ".join(f"{upper_text(upper)} after {seconds_text(seconds)}" for seconds, upper in moments)


def _lower_words(lower: Document | None, answers: Answers) -> str:
    if lower is not None and lower.get("not_run"):
        return display(f"No lower bound: {lower.get('note') or 'not run'}.", 600)
    if lower is None or not answers.lowers:
        return "No lower bound was searched for."
    method = display(lower.get("method") or "search")
    what = "at each centre a slope" if answers.local else "a slope"
    said = f" {display(lower['note'], 600)}." if lower.get("note") else ""
    return (
        f"The lower bound is {what} that was found by {method}, and proved with every rounding accounted for. "
        f"No valid upper bound lies below it.{said}"
    )


def falls(answers: Answers, nodes: list[Document]) -> list[Fall]:
    """The waterfall of every analyzer that splits its bound into stages."""
    found = []
    for answer in answers.answers:
        figure = waterfall(answer.row.get("steps") or (), nodes)
        if figure is not None:
            found.append(Fall(answer.analyzer, upper_text(answer.largest), figure))
    return found


def model_facts(model: Document) -> list[tuple[str, str, bool]]:
    """Title, text, and whether the text is a digest."""
    facts = [("File", model_name(model), False)]
    if model.get("format"):
        facts.append(("Format", display(model["format"]), False))
    digests = (("SHA-256 of the file", "sha256"), ("Digest of the graph", "graph_digest"))
    facts += [(title, display(model[key]), True) for title, key in digests if model.get(key)]
    facts.append(("Input of one sample", shape_text(model["input_shape"]), False))
    facts.append(("Output of one sample", shape_text(model["output_shape"]), False))
    facts.append(("Parameters", count_text(int(model["parameters"])), False))
    facts.append(("Operators", words.operator_words(model["operators"]), False))
    return facts


def environment_facts(document: Document) -> list[tuple[str, str]]:
    """Versions and settings that produced the numbers."""
    facts = []
    if document.get("created"):
        facts.append(("Created", display(document["created"])))
    if document.get("seconds") is not None:
        facts.append(("Whole run", seconds_text(float(document["seconds"]))))
    for key, value in (document.get("environment") or {}).items():
        if value is None:
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise InternalError("the environment of a report holds a number that is not finite")
        facts.append((display(str(key)), display(str(value), 200)))
    return facts


def texts(texts: Any) -> list[str]:
    """Texts of a document, made fit for printing."""
    return [display(str(text), 600) for text in texts or ()]
