"""Verbs that are made when they are called, nothing heavy imported before: the built-in ones, and every question."""

from __future__ import annotations

import time
from dataclasses import replace
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from lipverify.commands.shell import Outcome, Verb, command
from lipverify.errors import LipverifyError, Refuted, Undecided, UsageError, did_you_mean
from lipverify.loading.names import display
from lipverify.options import BEGAN

if TYPE_CHECKING:
    from lipverify.commands.start import Start
    from lipverify.questions.options import Options
    from lipverify.questions.question import Answer

GROUP = "lipverify.questions"
BUILT_IN = {
    "audit": (
        "lipverify.commands.audit:AUDIT",
        "Bound a model's Lipschitz constant from above and from below.",
    ),
    "radius": (
        "lipverify.commands.radius:RADIUS",
        "Certify for each point how far its input may move before the label can change.",
    ),
    "compare": ("lipverify.commands.compare:COMPARE", "Compare models and analyzers in one report."),
    "deviate": (
        "lipverify.questions.deviation:Deviation",
        "Bound how far changed copies of a network can answer differently, and whose labels are kept.",
    ),
}
"""Verb -> its `Verb` or the question's class, and the line of `lipverify --help`. Entry points of `GROUP` add others."""


def verbs() -> tuple[str, ...]:
    """Every verb that is a question, built-in ones first."""
    return (*BUILT_IN, *sorted({entry.name for entry in entry_points(group=GROUP)} - set(BUILT_IN)))


def resolve(verb: str) -> Any:
    """The `Verb`, or the class of a question. Raises UsageError for a verb that is none."""
    if verb in BUILT_IN:
        module, _, attribute = BUILT_IN[verb][0].partition(":")
        return getattr(import_module(module), attribute)
    for entry in entry_points(group=GROUP):
        if entry.name == verb:
            try:
                return entry.load()
            except Exception as error:
                package = "" if entry.dist is None else f" of the package {display(entry.dist.name, 60)}"
                raise UsageError(
                    f"the question {display(verb, 40)}{package} cannot be imported ({type(error).__name__}: "
                    f"{display(str(error), 200)}); update or uninstall that package"
                ) from error
    raise UsageError(f"there is no question {verb!r}; choose from {', '.join(verbs())}")


class Verbs(TyperGroup):
    """The group of all commands, with a command for every question."""

    def invoke(self, ctx: Any) -> Any:
        token = BEGAN.set(time.monotonic())
        try:
            return super().invoke(ctx)
        finally:
            BEGAN.reset(token)

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *verbs()]

    def resolve_command(self, ctx: Any, args: Any) -> Any:
        """As click does, with the nearest command for a word that is none."""
        near = did_you_mean(args[0], self.list_commands(ctx))
        if near and self.get_command(ctx, args[0]) is None:
            ctx.fail(f'there is no command "{display(args[0], 40)}"{near}')
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        return Later(cmd_name) if found is None and cmd_name in verbs() else found


class Later(TyperCommand):
    """A command that stands in the list of commands with its one line, and is built when it is called."""

    def __init__(self, verb: str) -> None:
        super().__init__(
            verb, help=BUILT_IN[verb][1] if verb in BUILT_IN else "A question of another package."
        )

    def built(self) -> Any:
        """The command with its options."""
        assert self.name is not None
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        found = resolve(self.name)
        verb = found if isinstance(found, Verb) else asking(found)
        app.command()(command(verb))
        found = typer.main.get_command(app)
        found.name = self.name
        return found

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        return self.built().make_context(info_name, args, parent=parent, **extra)


def asking(question: Any) -> Verb:
    """A question as a command."""
    words = (question.__doc__ or "").split("\n\n")[0]
    return Verb(question.options, lambda options, start: _asked(question, options, start), words)


def _asked(question: Any, options: Options, start: Start) -> Outcome:
    """Asks for every answer, with what is left of the time shared evenly.

    Raises:
        LipverifyError: as `pipeline.load` and `ask`.
    """
    from lipverify.commands.regions import limits
    from lipverify.commands.start import load, points_of
    from lipverify.questions.sharing import ask_all
    from lipverify.reporting.answer import print_answers, render_answers
    from lipverify.reporting.places import CERTIFICATES, WITNESS

    graphs = []
    for model in options.models:
        start.progress.start(f"reading {model}")
        graphs.append(load(options, model))
    points = points_of(options, graphs[0], start.progress)
    radius, box = limits(graphs[0], points, options.radius, options.box, options.free)
    options = replace(options, radius=radius, box=box, free=())  # type: ignore[arg-type]
    asked = list(question.asked(options, graphs, None if points is None else points.x.double()))
    if not asked:
        raise UsageError(f"this question needs another model beside {options.models[0]}")
    answers: list[Answer] = []
    given = {"device": start.device, "seed": options.seed, "report": start.progress.report}
    cluster = getattr(options, "scheduler", None)
    for answer in ask_all(asked, scheduler=cluster, budget=options.left(), **given):
        answers.append(replace(answer, command=options.command))
        if answer.interrupted:
            break
    names = [WITNESS if index == 0 else f"witness-{index + 1}.npz" for index in range(len(answers))]
    proofs = [f"{question.name}{'' if k == 0 else f'-{k + 1}'}.json" for k in range(len(answers))]
    documents = [
        answer.to_json(name, f"{CERTIFICATES}/{proof}")
        for answer, name, proof in zip(answers, names, proofs, strict=True)
    ]
    if points is not None:
        documents = [document | {"data": points.to_json()} for document in documents]
    parts = [question.sections(document) for document in documents]
    result = documents[0] if len(asked) == 1 else _several(question, documents)
    files = {}
    if start.folder is not None:
        files = {name: answer.witness_file() for name, answer in zip(names, answers, strict=True)}
        for answer, proof in zip(answers, proofs, strict=True):
            for name, issued in answer.certificates(proof.removesuffix(".json")).items():
                files |= {f"{CERTIFICATES}/{n}": data for n, data in issued.files(name).items()}
    stopped = any(answer.interrupted for answer in answers)
    failure = None if stopped else _gates(question, options, answers, documents)
    return Outcome(
        result,
        lambda _: print_answers(documents, parts),
        lambda _: render_answers(documents, parts),
        files,
        130 if stopped else 0,
        failure,
    )


def _several(question: Any, documents: list[dict[str, Any]]) -> dict[str, Any]:
    return {"schema": "lipverify.answers/1", "question": question.name, "answers": documents}


def _gates(
    question: Any, options: Options, answers: list[Answer], documents: list[dict[str, Any]]
) -> LipverifyError | None:
    """A witness beyond the limit refutes; a bound beyond it, with no such witness, decides nothing. Both fail."""
    for document in documents:
        reason = question.gate(options, document)
        if reason is not None:
            return Refuted(reason)
    limit = options.fail_above
    if limit is None:
        return None
    for answer in answers:
        if answer.shown > limit:
            return Refuted(f"a witness with the value {answer.shown} exceeds the limit {limit}")
    for answer in answers:
        if not answer.largest <= limit:
            return Undecided(
                f"the bound {answer.largest} exceeds the limit {limit}, no witness does (at most {answer.shown}): not decided; "
                "give a smaller region or a larger --budget"
            )
    return None
