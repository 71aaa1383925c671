"""The verb `verify`: one certificate, or every certificate of a report, against the model files they name."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipverify.commands.headlines import NOT_COMPARED, READERS, overstated, rests_on, tables
from lipverify.commands.shell import Json, print_json
from lipverify.errors import (
    BudgetEnded,
    LipverifyError,
    OtherModel,
    Refuted,
    Undecided,
    UnreadableCertificate,
    UsageError,
)
from lipverify.ir.norm import Norm
from lipverify.loading.arguments import parse_box, parse_margin, parse_radius
from lipverify.loading.names import display, display_path

if TYPE_CHECKING:
    from lipverify.checkers import Expectation, Model

SCHEMA = "lipverify.verify/1"
GRAVITY = (0, Undecided.exit_code, UnreadableCertificate.exit_code, Refuted.exit_code)
"""Exit codes of single certificates, the gravest last: that is the one of a report."""


def verify(
    certificate: Annotated[
        Path,
        typer.Argument(help="certificate.json, its arrays beside it; or the folder of a report: all in it"),
    ],
    model: Annotated[
        list[str],
        typer.Option(
            help="the model file, or zoo:<name>; once for each model, of a deviation the original first; of a derivation also "
            "NAME=FILE: expect its constant NAME to be of this file"
        ),
    ] = [],  # noqa: B006 (typer copies it)
    norm: Annotated[str | None, typer.Option(help="expect this norm at the input, and at the output")] = None,
    norm_out: Annotated[
        str | None, typer.Option(help="expect this norm at the output, of a deviation also pairs")
    ] = None,
    radius: Annotated[
        str | None, typer.Option(help="expect balls of this radius, or certified radii of at least it")
    ] = None,
    everywhere: Annotated[
        bool, typer.Option("--everywhere", help="expect a claim about all inputs, not one over balls")
    ] = False,
    box: Annotated[
        str | None, typer.Option(help="LO,HI: expect the region to be cut by this input box")
    ] = None,
    output: Annotated[int | None, typer.Option(help="expect a claim about this output of the model")] = None,
    margin: Annotated[str | None, typer.Option(help="A,B: expect the difference of two outputs")] = None,
    at_most: Annotated[float | None, typer.Option(help="expect no claimed constant above this")] = None,
    varying: Annotated[
        list[str], typer.Option("--input", help="expect this input to vary, and no other that is not named")
    ] = [],  # noqa: B006 (typer copies it)
    fixed: Annotated[
        list[str],
        typer.Option(
            "--constant",
            metavar="NAME=VALUE",
            help="expect this number, or these, to stand for an input, and no other to be fixed that is not named",
        ),
    ] = [],  # noqa: B006
    exact: Annotated[
        bool, typer.Option("--exact", help="matrices in integers alone, for networks small enough")
    ] = False,
    seconds: Annotated[
        float, typer.Option(help="give a certificate up after so many processor seconds", min=0)
    ] = float("inf"),
    seed: Annotated[
        int | None,
        typer.Option(help="of the inputs on which model and program are compared; default: a new one", min=0),
    ] = None,
    as_json: Json = False,
) -> None:
    """Prove a certificate again: numpy alone, no torch, no solver, nothing of the analyzers.

    Exit code 3 where the evidence does not carry the claim, or the claim is another one than expected; 4 where the certificate
    says itself that it is not proved, the folder holds none, or the time is over; 7 where it is unreadable or for another model.
    Of a report the gravest.
    """
    from lipverify import checkers
    from lipverify.memory import keep_freed

    keep_freed()
    if not model and os.path.exists(certificate):
        named = _about(certificate)
        if named or os.path.isdir(certificate) or not _is_derivation(_document(certificate)):
            given = " ".join(f"--model {name}" for name in named) or "--model FILE"
            raise UsageError(f"{display_path(certificate)} is about files that have to be given: add {given}")
    if at_most is not None and math.isnan(at_most):
        raise UsageError("--at-most takes a number, not nan")
    expected = checkers.Expectation(
        norm_in=_norm(norm),
        norm_out=norm_out if norm_out == "pairs" else _norm(norm_out) or _norm(norm),
        radius=None if radius is None else parse_radius(radius),
        output=output,
        margin=None if margin is None else parse_margin(margin),
        at_most=at_most,
        box=None if box is None else parse_box(box),
        varying=frozenset(varying) or None,
        fixed=_fixed(fixed) or None,
        everywhere=everywhere,
    )
    if not os.path.isdir(certificate):  # False for a name too long to exist, too
        if _is_derivation(_document(certificate)):
            _derivation(certificate, model, expected, exact, seconds, seed, as_json)
            return
        answer = _proved(certificate, [_file(name) for name in model], expected, exact, seconds, seed)
        if as_json:
            print_json(answer.document)
        elif answer.error is None:
            typer.echo(f"valid: {answer.document['claim']} ({answer.document['seconds']:.2f} s)")
        if answer.error is not None:
            kind, said = type(answer.error), str(answer.error)
            names = " and ".join(model)
            raise kind(f"{display_path(certificate)} is not proved for {names}: {said}") from answer.error
        return
    answers, carried = _report(certificate, [_file(name) for name in model], expected, exact, seconds, seed)
    worst = max((answer.code for answer in answers), key=GRAVITY.index)
    if as_json:
        documents = [{"certificate": a.name, "exit_code": a.code, **a.document} for a in answers]
        results = [{"result": name, "not_compared": NOT_COMPARED} for name in carried]
        print_json({"schema": SCHEMA, "valid": worst == 0, "certificates": documents, "results": results})
    else:
        for answer in answers:
            typer.echo(answer.line)
        for name in carried:
            said = "it calls nothing `checked` that these certificates do not prove"
            typer.echo(f"carried: {name}: {said}; not compared: {NOT_COMPARED}")
    if worst:
        raise typer.Exit(worst)


def _fixed(texts: Sequence[str]) -> dict[str, Any]:
    from lipverify.loading.numpy_archive import read_npy
    from lipverify.options import parse_constants

    stated = parse_constants(texts).items()
    return {name: read_npy(value) if isinstance(value, Path) else value for name, value in stated}


@dataclass(frozen=True)
class _Answer:
    """What became of one certificate: the document of a verdict, or of a refusal with its error."""

    name: str
    document: dict[str, Any]
    error: LipverifyError | None = None

    @property
    def code(self) -> int:
        return 0 if self.error is None else self.error.exit_code

    @property
    def line(self) -> str:
        """One line about it."""
        said = {
            0: "valid",
            Undecided.exit_code: "nothing to prove",
            UnreadableCertificate.exit_code: "unreadable",
        }
        if isinstance(self.error, BudgetEnded):
            said[self.error.exit_code] = "not decided"
        if isinstance(self.error, OtherModel):
            said[self.error.exit_code] = "of another model"
        why = self.document["claim"] if self.error is None else self.document["reason"]
        why = why.removesuffix(": nothing to prove here")  # the line begins with it
        stated = self.document.get("stated")
        why += f"; constants taken as stated, not proved: {', '.join(stated)}" if stated else ""
        return f"{said.get(self.code, 'not proved')}: {self.name}: {why}"


def _proved(
    path: Path,
    model: Sequence[Path | Model],
    expected: Expectation,
    exact: bool,
    seconds: float,
    seed: int | None,
) -> _Answer:
    from lipverify import checkers

    try:
        found = checkers.verify_file(path, model, exact, expected, seconds, seed)
    except (Refuted, Undecided, UnreadableCertificate) as error:
        return _refused(path, error)
    return _Answer(display_path(path), found.to_json())


def _report(
    folder: Path, files: Sequence[Path], expected: Expectation, exact: bool, seconds: float, seed: int | None
) -> tuple[list[_Answer], list[str]]:
    """Every certificate of a folder and of `certificates` in it, against the model file it names by its digest.

    Returns also which of its other documents say nothing better.
    """
    from lipverify import checkers

    beside, inside = ({p: _document(p) for p in _json_files(f)} for f in (folder, folder / "certificates"))
    found = {p: document for p, document in beside.items() if _is_certificate(document)} | inside
    if not found:
        lost = sorted({name for document in beside.values() for name in _named(document)})
        why = (
            "there is nothing to prove: `checked` rows of a report have one, and the others say there why not"
        )
        if lost:
            some = ", ".join(map(display, lost[:4]))
            why = f"and its results name {len(lost)}: {some}{', ...' if len(lost) > 4 else ''}"
        raise Undecided(f"{display_path(folder)} holds no certificates, {why}")
    read = checkers.read_models(files, seconds)
    models = {(known.sha256, known.beside): known for known in read}
    answers, met = [], set()
    for path, document in found.items():
        if _is_derivation(document):
            answers.append(_followed(path, list(models.values()), expected, exact, seconds, seed))
            continue
        # In the order in which they are given; one of them in any case: the checker itself says what is wrong.
        named = sorted(list(models).index(named) for named in checkers.named_models(path) if named in models)
        given = [list(models.values())[k] for k in named or [0]]
        met |= {(known.sha256, known.beside) for known in given} if named else set()
        answers.append(_proved(path, given, expected, exact, seconds, seed))
    for file, known in zip(files, read, strict=True):
        if (known.sha256, known.beside) not in met:
            answers.append(_refused(file, Undecided(f"no certificate of {display_path(folder)} is about it")))
    results = [document for path, document in beside.items() if path not in found]
    for name in sorted({name for document in results for name in _named(document)}):
        if os.path.isabs(name) or folder / os.path.normpath(name) not in found:
            missing = Undecided(
                "a result in the folder names this certificate, which is not among those of the folder"
            )
            answers.append(_refused(folder / name, missing))
    proved = {
        os.path.relpath(p, folder): a.document
        for p, a in zip(found, answers, strict=False)
        if a.error is None
    }
    carried = []
    for path, document in beside.items():
        if path not in found:
            said = sorted(set(overstated(document, proved)))
            answers += [_refused(path, Refuted(reason)) for reason in said]
            whole = _schema(document) in READERS and proved.keys() >= set(rests_on(document))
            carried += [display_path(path)] if whole and not said else []
    return answers, carried


def _refused(path: Path, error: LipverifyError) -> _Answer:
    return _Answer(display_path(path), {"schema": SCHEMA, "valid": False, "reason": str(error)}, error)


def _followed(
    path: Path,
    models: Sequence[Path | Model],
    expected: Expectation,
    exact: bool,
    seconds: float,
    seed: int | None,
    roles: Mapping[str, Path] | None = None,
) -> _Answer:
    """What became of a derivation: what follows from certified constants, with every certificate that it names."""
    from lipverify.checkers.derivations import verify_derivation

    try:
        if not _of_derivations(expected):
            raise Refuted("it is a derivation, of which only --at-most can be expected")
        found = verify_derivation(path, models, expected.at_most, exact, seconds, seed, roles)
    except (Refuted, Undecided, UnreadableCertificate) as error:
        return _refused(path, error)
    return _Answer(display_path(path), found.to_json())


def _of_derivations(expected: Expectation) -> bool:
    """Whether nothing is expected that a derivation does not say."""
    return expected == type(expected)(at_most=expected.at_most)


def _derivation(
    path: Path,
    models: Sequence[str],
    expected: Expectation,
    exact: bool,
    seconds: float,
    seed: int | None,
    as_json: bool,
) -> None:
    """Prints what became of one derivation."""
    if not _of_derivations(expected):
        raise UsageError("of a derivation only --at-most can be expected; norms and regions are its rule's")
    roles = dict(role for model in models if (role := _role(model)) is not None)
    files = [_file(model) for model in models if _role(model) is None]
    answer = _followed(path, files, expected, exact, seconds, seed, roles)
    found = answer.document
    if as_json:
        print_json(found)
    elif answer.error is None:
        stated = ", ".join(found["stated"]) or "none"
        typer.echo(f"valid: {found['claim']}; constants taken as stated: {stated} ({found['seconds']:.2f} s)")
        for use in found["certificates"]:
            place = "" if use["place"] is None else f" {use['place']}"
            typer.echo(
                f"  {use['number']}{place} is from {display_path(path.parent / use['certificate'])}: {use['claim']}"
            )
    if answer.error is not None:
        raise type(answer.error)(f"{answer.name} is not proved: {answer.error}") from answer.error


def _role(model: str) -> tuple[str, Path] | None:
    """The constant and the file of `NAME=FILE`; None where it is the name of a file."""
    name, equals, file = model.partition("=")
    return (name, _file(file)) if equals and not os.path.exists(model) else None


def _document(path: Path) -> Any:
    """What a JSON file says, read as the checker reads it; None where that refuses it, or it cannot be read."""
    from lipverify.checkers.reader import MAX_CERTIFICATE, parse_json, read_bytes

    try:
        return parse_json(read_bytes(path, MAX_CERTIFICATE))
    except (LipverifyError, OSError, ValueError, RecursionError):
        return None


def _about(path: Path) -> list[str]:
    """The names that certificates give to their models: of one, of those of a folder, or that a derivation rests on."""
    folder = path if os.path.isdir(path) else path.parent
    files = [*_json_files(folder / "certificates"), *_json_files(folder)] if folder == path else [path]
    documents = [_document(file) for file in files]
    rested = [name for d in documents if _is_derivation(d) for name in _named(d)]
    documents += [_document(folder / name) for name in rested if os.path.basename(name) == name]
    found = [
        model.get("name")
        for document in documents
        if isinstance(document, dict) and isinstance(document.get("models"), list)
        for model in document["models"]
        if isinstance(model, dict)
    ]
    return [display(name) for name in dict.fromkeys(name for name in found if isinstance(name, str))]


def _schema(document: Any) -> str | None:
    """The schema that a file says it has; None where it cannot be read, or is no document."""
    return str(document.get("schema")) if isinstance(document, dict) else None


def _json_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() == ".json")


def _is_certificate(document: Any) -> bool:
    """Whether a file of a report is meant as a certificate or a derivation; damaged ones are: they are not passed over."""
    schema = _schema(document)
    return schema is None or schema.lower().startswith(("lipverify.certificate/", "lipverify.derivation/"))


def _is_derivation(document: Any) -> bool:
    return (_schema(document) or "").startswith("lipverify.derivation/")


def _named(document: Any) -> Iterator[str]:
    """The certificates that a result names, by their files."""
    for table in tables(document):
        if isinstance(named := table.get("certificate"), str) and named:
            yield named


def _file(model: str) -> Path:
    from lipverify.zoo.location import WEIGHTS, resolve

    folder = resolve(model)
    path = Path(model) if folder is None else folder / WEIGHTS
    if not os.path.exists(path):
        raise UsageError(f"{display_path(path)} does not exist")
    return path


def _norm(name: str | None) -> str | None:
    return None if name is None else str(Norm.parse(name, tokens=True))
