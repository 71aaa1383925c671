"""The page of a derivation: the sentence, the number, what went in, and where it is from."""

from __future__ import annotations

from lipverify.loading.names import display
from lipverify.reporting.answers import Document
from lipverify.reporting.html import environment_facts, template, tool_text

Row = tuple[str, str, str]


def render_derived(document: Document, side: str, rigour: str, claims: dict[str, str]) -> str:
    """The page as one self-contained HTML file. claims: of constants with a certificate, what that says."""
    truth = "never below the truth" if side == "upper" else "never above the truth"
    return template("facts.html.j2").render(
        about="What a certified constant answers",
        title=display(document["rule"]),
        key=[("Value", f"{document['value']:.6g}", truth), ("Rigour", rigour, "the least of what went in")],
        statement=display(document["statement"], 4000),
        heading="What went in",
        head=("Number", "Value", "Where it is from"),
        rows=[row for name, found in document["numbers"].items() for row in _rows(name, found, claims)],
        note="Stated numbers are assumptions, which the sentence repeats, or what a search found, of which the rule checks what "
        "has to hold.",
        environment=environment_facts(document),
        tool=tool_text(document),
    )


def _rows(name: str, found: object, claims: dict[str, str]) -> list[Row]:
    if isinstance(found, list) and any(isinstance(one, dict) for one in found):
        return [_row(f"{name} {i}", f"{name}-{i}", one, claims) for i, one in enumerate(found)]
    return [_row(name, name, found, claims)]


def _row(title: str, label: str, found: object, claims: dict[str, str]) -> Row:
    if isinstance(found, dict) and "computed" in found:
        return display(title), _text(found["computed"]), "computed by the checker, of the certified network"
    if isinstance(found, dict):
        return display(title), _text(found["upper_hex"]), display(claims.get(label, "certified"), 600)
    return display(title), _text(found), "stated"


def _text(found: object) -> str:
    if isinstance(found, list):
        return f"[{', '.join(_text(one) for one in found)}]"
    return f"{float.fromhex(found):.6g}" if isinstance(found, str) else str(found)
