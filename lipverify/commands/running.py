"""A question from the command line to its folder: load, ask, write, show, gates."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from lipverify.commands.options import print_json, say_report
from lipverify.errors import Refuted, Undecided, UsageError
from lipverify.questions.asking import ask
from lipverify.questions.options import Options
from lipverify.questions.question import Answer
from lipverify.reporting.answer import print_answers, render_answers
from lipverify.reporting.places import REPORT, RESULT, WITNESS
from lipverify.reporting.writing import document_bytes
from lipverify.start import begun


def run(question: Any, options: Options, as_json: bool) -> int:
    """Asks, writes the folder, prints; the exit code.

    Raises:
        LipverifyError: as `pipeline.load` and `ask`. Refuted, Undecided: a gate fails, after everything is written.
    """
    answers: list[Answer] = []
    with begun(options) as start:
        graphs = []
        for model in options.models:
            start.progress.start(f"reading {model}")
            graphs.append(options.load(model))
        points = options.points()
        if points is not None:
            points.require(graphs[0])
        asked = list(question.asked(options, graphs, None if points is None else points.x.double()))
        if not asked:
            raise UsageError(f"this question needs another model beside {options.models[0]}")
        deadline = None if options.budget is None else time.monotonic() + options.budget
        for place, one in enumerate(asked):
            share = None if deadline is None else max(deadline - time.monotonic(), 0.0) / (len(asked) - place)
            answer = ask(
                one, budget=share, device=start.device, seed=options.seed, report=start.progress.report
            )
            answers.append(replace(answer, command=options.command))
            if answer.interrupted:
                break
        start.progress.finish()
        names = [WITNESS if index == 0 else f"witness-{index + 1}.npz" for index in range(len(answers))]
        documents = [answer.to_json(name) for answer, name in zip(answers, names, strict=True)]
        parts = [question.sections(document) for document in documents]
        result = documents[0] if len(asked) == 1 else _several(question, documents)
        if start.folder is not None:
            files = {name: answer.witness_file() for name, answer in zip(names, answers, strict=True)}
            files[REPORT] = render_answers(documents, parts).encode("utf-8")
            files[RESULT] = document_bytes(result)
            start.folder.write(files)
    if as_json:
        print_json(result)
    else:
        print_answers(documents, parts)
        say_report(options.out)
    if any(answer.interrupted for answer in answers):
        return 130
    _gates(question, options, answers, documents)
    return 0


def _several(question: Any, documents: list[dict[str, Any]]) -> dict[str, Any]:
    return {"schema": "lipverify.answers/1", "question": question.name, "answers": documents}


def _gates(question: Any, options: Options, answers: list[Answer], documents: list[dict[str, Any]]) -> None:
    """A witness beyond the limit refutes; a bound beyond it, with no such witness, decides nothing. Both fail."""
    for document in documents:
        reason = question.gate(options, document)
        if reason is not None:
            raise Refuted(reason)
    limit = options.fail_above
    if limit is None:
        return
    for answer in answers:
        if answer.shown > limit:
            raise Refuted(f"a witness with the value {answer.shown} exceeds the limit {limit}")
    for answer in answers:
        if not answer.largest <= limit:
            raise Undecided(
                f"the bound {answer.largest} exceeds the limit {limit}, no witness does (at most {answer.shown}): not decided; "
                "give a smaller region or a larger --budget"
            )
