"""The last look at a program: steps that no output reads are dropped."""

from __future__ import annotations

from dataclasses import replace

from lipverify.checkers.kernel.program import Output, Product, Program, Step, View, checked


def views_of(step: Step) -> list[View]:
    return [step.view, step.other] if isinstance(step, Product) else [step.view]


def finished(program: Program) -> Program:
    """The same outputs from the steps they read, in the same order."""
    needed = {0} | {s for output in program.outputs for s in output.view.sources}
    for k in range(len(program.steps) - 1, 0, -1):
        if k in needed:
            needed |= {s for view in views_of(program.steps[k]) for s in view.sources}
    place = {old: new for new, old in enumerate(sorted(needed))}
    steps: list[Step] = []
    for old in sorted(needed):
        step = program.steps[old]
        step = replace(step, view=_moved(step.view, place))
        if isinstance(step, Product):
            step = replace(step, other=_moved(step.other, place))
        steps.append(checked(step, steps))
    outputs = tuple(Output(o.name, _moved(o.view, place), o.shape) for o in program.outputs)
    return Program(tuple(steps), outputs)


def _moved(view: View, place: dict[int, int]) -> View:
    return View(tuple(place[s] for s in view.sources), view.places)
