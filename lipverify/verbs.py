"""The public verbs: what people hold is taken (`taking`), what they have set is put aside (`settings`), then the verb runs."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

from lipverify import (
    certificates,
    comparison,
    convexity,
    derived,
    execution,
    interpreter,
    monotonicity,
    pipeline,
    propagation,
    questions,
    robustness,
    taking,
)
from lipverify.analyzers.auto import listed
from lipverify.certificates.format import Issued
from lipverify.checkers import Expectation
from lipverify.comparison.cache import Cache
from lipverify.errors import InvalidFile, UsageError, did_you_mean
from lipverify.falsify import Search
from lipverify.ir.certificate import Certificate
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball
from lipverify.ir.taking import number, numbers, pair, real, shown, whole
from lipverify.loading import read_points
from lipverify.loading.names import sentence
from lipverify.monotonicity.branching import Settings
from lipverify.questions import deviation as deviations
from lipverify.results import Audit
from lipverify.robustness.journal import Journal
from lipverify.settings import ordinary

R = TypeVar("R")
Take = Callable[[Any], Any]
_EXAMPLE = inspect.Parameter("example", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="Any")


def verb(
    function: Callable[..., R],
    models: Sequence[str] = (),
    points: Sequence[str] = (),
    several: str | None = None,
    /,
    **takes: Take,
) -> Callable[..., R]:
    """A public verb from the function that does the work.

    Args:
        models: its parameters that are networks; several: one that is any number of them. With these it takes `example`
            too, a batch of inputs for torch modules.
        points: parameters that are inputs of the first network.
        takes: for other parameters by name what makes of anything what the function wants; a default is not taken.

    The verb raises UsageError for arguments that it does not have, and for values that stand for nothing it knows.
    """
    signature = inspect.signature(function)
    ours = signature
    if models or several:
        *others, last = signature.parameters.values()
        behind = [_EXAMPLE, last] if last.kind is last.VAR_KEYWORD else [last, _EXAMPLE]
        ours = signature.replace(parameters=[*others, *behind])

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> R:
        with ordinary():
            bound = _bound(function.__name__, ours, args, kwargs)
            given = bound.arguments
            example = given.pop("example", None) if ours is not signature else None
            for name, take in takes.items():
                if name in given:
                    given[name] = take(given[name])
            if "x" in points:
                _read_points(given, models[0])
            example = _example(given) if example is None else example
            for name in models:
                given[name] = taking.model(given[name], example, name)
            if several is not None:
                given[several] = taking.models(given[several], example)
            for name in points:
                needed = signature.parameters[name].default is inspect.Parameter.empty
                if needed or given.get(name) is not None:
                    given[name] = taking.points(given[name], given[models[0]], name)
            plain = inspect.BoundArguments(signature, given)
            return function(*plain.args, **plain.kwargs)

    called.__signature__ = ours  # type: ignore[attr-defined]
    return called


def _read_points(given: dict[str, Any], model: str) -> None:
    """A file of points, read as --data is, brings its labels."""
    if isinstance(given.get("x"), str | os.PathLike):
        shape = classes = None
        if not isinstance(given[model], nn.Module):
            given[model] = taking.model(given[model], None, model)
            shape, classes = given[model].input_shape, given[model].output.size
        stored = read_points(Path(taking.path(given["x"], "x")), None, shape, classes)
        given["x"] = stored.x
        if given.get("y") is None:
            given["y"] = None if stored.y is None else stored.y.tolist()


def _bound(
    name: str, signature: inspect.Signature, args: Any, kwargs: Mapping[str, Any]
) -> inspect.BoundArguments:
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        names = [p.name for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        unknown = [given for given in kwargs if given not in names]
        if unknown and "unexpected" in str(error):
            near = did_you_mean(unknown[0], names) or f"; there are {', '.join(names)}"
            raise UsageError(f'{name} has no argument "{unknown[0]}"{near}') from None
        raise UsageError(f"{name}: {error}; it takes {', '.join(names)}") from None


def _example(given: Mapping[str, Any]) -> Any:
    """The points or centres that a verb is asked about: they are inputs, so a torch module is exported with them."""
    if given.get("x") is not None:
        return given["x"]
    asked = given.get("region", given.get("ball"))
    several = asked if isinstance(asked, list | tuple) else [asked]
    return next((one.center for one in several if isinstance(one, Ball)), None)


def _whole(name: str) -> Take:
    return lambda given: whole(given, name)


def _maybe(take: Take) -> Take:
    return lambda given: None if given is None else take(given)


def _word(name: str) -> Take:
    return lambda given: taking.word(given, name)


def _box(given: Any) -> Any:
    return None if given is None else pair(given, "box")


def _ends(given: Any) -> Any:
    return None if given is None else pair(given, "box", number)


def _several(take: Take) -> Take:
    return lambda given: [take(one) for one in given] if isinstance(given, list | tuple) else take(given)


def _norms(given: Any) -> Any:
    words = [w.strip() for w in given.split(",")] if isinstance(given, str) else given
    return _several(Norm.parse)(words)


def _norm(given: Any) -> Norm:
    return Norm.parse(given, tokens=True)


def _outputs(given: Any) -> list[int]:
    found = numbers(list(given) if isinstance(given, range) else given, "outputs").flatten()
    if not bool(found.isfinite().all() and (found == found.round()).all()):
        raise UsageError(f"outputs must be entries of the output, whole numbers, not {shown(given)}")
    return [int(entry) for entry in found.tolist()]


def _output(given: Any) -> int | str:
    return given if isinstance(given, str) else whole(given, "output")


def _shape(given: Any) -> tuple[int, ...]:
    if not isinstance(given, list | tuple | np.ndarray) or (
        isinstance(given, np.ndarray) and given.ndim != 1
    ):
        raise UsageError(f"input_shape must be sizes like (3, 32, 32), not {shown(given)}")
    sizes = tuple(whole(size, "a size of input_shape") for size in given)
    if any(size < 1 for size in sizes):
        raise UsageError(f"input_shape takes sizes of at least 1, not {list(sizes)}")
    return sizes


def _constants(given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise UsageError(f"constants must be a mapping from names of inputs to values, not {shown(given)}")
    return {_word("the name of an input")(name): value for name, value in given.items()}


def _names(given: Any) -> list[str]:
    if isinstance(given, str):
        given = [name.strip() for name in given.split(",")]
    if not isinstance(given, list | tuple):
        raise UsageError(f"names must be words in a list, not {shown(given)}")
    return [_word("a name")(name) for name in given]


def _features(given: Any) -> Any:
    def one(feature: Any) -> int | str:
        return feature if isinstance(feature, str) else whole(feature, "a feature")

    return _several(one)(given)


def _question(given: Any) -> Any:
    if isinstance(given, type) or not all(
        hasattr(given, part) for part in ("formula", "facts", "subjects", "search")
    ):
        raise UsageError(f"question must be one like lv.Deviation(f, g, region), not {shown(given)}")
    return given


def _known(given: Any) -> Any:
    """A constant: a number, or what proves one."""
    return given if isinstance(given, Audit | Certificate) else number(given, "a constant")


def _policy(given: Any) -> Any:
    if isinstance(given, nn.Module):
        raise UsageError("policy is a torch module: give lv.extract(policy, example)")
    if isinstance(given, tuple) and len(given) == 2:
        low, high = (
            numbers(one, f"the {side} end of a sector").numpy()
            for one, side in zip(given, ("lower", "upper"), strict=True)
        )
        return low, high
    return (
        taking.model(given, None, "policy") if isinstance(given, Graph | str | os.PathLike) else _known(given)
    )


def _matrix(name: str) -> Take:
    return lambda given: numbers(given, name).numpy()


def _curvature(given: Any) -> list[Any]:
    if not isinstance(given, list | tuple) and not (isinstance(given, np.ndarray) and given.ndim):
        raise UsageError(
            f"curvature must be a list with a number, or a pair, for every player, not {shown(given)}"
        )
    pairs = (len(one) == 2 if isinstance(one, list | tuple) else None for one in given)
    return [
        (number(one[0], "a shift"), _known(one[1])) if pair else _known(one)
        for one, pair in zip(given, pairs, strict=True)
    ]


def _couplings(given: Any) -> list[list[Any]]:
    rows = (
        list(given)
        if isinstance(given, list | tuple) or (isinstance(given, np.ndarray) and given.ndim == 2)
        else []
    )
    if not rows or not all(isinstance(row, list | tuple | np.ndarray) for row in rows):
        raise UsageError(f"couplings must be rows of constants, one for every player, not {shown(given)}")
    return [[_known(one) for one in row] for row in rows]


def _model_or_path(given: Any) -> Any:
    if isinstance(given, list | tuple):  # a claim about two models
        return [_model_or_path(each) for each in given]
    if isinstance(given, Graph):
        return given
    path = certificates.model_path(str(taking.path(given, "the model")))
    if not path.exists():
        raise InvalidFile(sentence(path, "no such file"))
    return given


def _certificate(given: Any) -> Any:
    return given if isinstance(given, Certificate | Issued) else taking.path(given, "the certificate")


_RUN: dict[str, Take] = {
    "budget": taking.seconds,
    "device": taking.device,
    "seed": _whole("seed"),
    "report": partial(taking.called, what="report"),
}

load = verb(
    pipeline.load,
    model=partial(taking.path, what="the model"),
    arch=_maybe(lambda given: str(taking.path(given, "arch"))),
    trust_code=partial(taking.truth, what="trust_code"),
    input_shape=_maybe(_shape),
    output=_output,
    input=_maybe(_word("input")),
    constants=_maybe(_constants),
    steps=_maybe(_whole("steps")),
    state=_word("state"),
)


def _extract(module: nn.Module, example: Tensor) -> Graph:
    if not isinstance(module, nn.Module):
        raise UsageError(f"extract takes a torch module, not {shown(module)}; lv.load reads files")
    return pipeline.extract(module, taking.batch(module, example))


_extract.__doc__, _extract.__name__ = pipeline.extract.__doc__, "extract"
extract = verb(_extract)
margin = verb(pipeline.margin, ("graph",), first=_whole("first"), second=_whole("second"))


def _evaluate(graph: Graph, x: Tensor) -> Tensor:
    x = real(x, "x") if isinstance(x, Tensor) else numbers(x, "x").to(graph.dtype)
    x = x if x.is_floating_point() else x.to(graph.dtype)
    return interpreter.evaluate(graph.to(dtype=x.dtype, device=x.device), x)


_evaluate.__doc__, _evaluate.__name__ = interpreter.evaluate.__doc__, "evaluate"
evaluate = verb(_evaluate, ("graph",))
audit = verb(
    pipeline.audit,
    ("graph",),
    ("hints",),
    norm=_norm,
    norm_out=_maybe(_norm),
    region=taking.region,
    analyzers=listed,
    box=_box,
    search=taking.of_kind(Search, "search"),
    scheduler=_maybe(_word("scheduler")),
    **_RUN,
)
bounds = verb(
    propagation.bounds,
    ("graph",),
    ball=taking.ball,
    method=_word("method"),
    device=taking.device,
    memory=_maybe(_whole("memory")),
    at_once=_maybe(_whole("at_once")),
    within=taking.of_kind(Mapping, "within"),
    precision=_word("precision"),
    expired=partial(taking.called, what="expired"),
)
radii = verb(
    robustness.radii,
    ("graph",),
    ("x",),
    y=taking.labels,
    norm=Norm.parse,
    method=_word("method"),
    box=_ends,
    plan=taking.of_kind(robustness.Plan, "plan"),
    jobs=_whole("jobs"),
    scheduler=_maybe(_word("scheduler")),
    journal=taking.of_kind(Journal, "journal"),
    advance=partial(taking.called, what="advance"),
    proofs=partial(taking.truth, what="proofs"),
    **_RUN,
)
compare = verb(
    comparison.compare,
    (),
    (),
    "models",
    norm=_norms,
    norm_out=_maybe(Norm.parse),
    region=_several(taking.region),
    analyzers=listed,
    box=_box,
    hints=_maybe(partial(numbers, what="hints")),
    jobs=_whole("jobs"),
    scheduler=_maybe(_word("scheduler")),
    cache=taking.of_kind(Cache, "cache"),
    advance=partial(taking.called, what="advance"),
    since=_maybe(partial(number, what="since")),
    **_RUN,
)
monotone = verb(
    monotonicity.monotone,
    ("graph",),
    region=taking.box_or_ball,
    features=_maybe(_features),
    output=_maybe(_whole("output")),
    names=_maybe(_names),
    settings=taking.of_kind(Settings, "settings"),
    **_RUN,
)
convex = verb(convexity.convex, ("graph",), outputs=_maybe(_outputs), seed=_whole("seed"))
ask = verb(questions.ask, question=_question, **_RUN)
deviation = verb(
    deviations.deviation,
    ("f", "g"),
    ("x",),
    region=taking.ball,
    norm_out=_word("norm_out"),
    scheduler=_maybe(_word("scheduler")),
)
execution_error = verb(execution.execution_error, ("graph",), box=partial(pair, what="box", end=number))
verify = verb(
    certificates.verify,
    certificate=_certificate,
    model=_several(_model_or_path),
    exact=partial(taking.truth, what="exact"),
    expected=taking.of_kind(Expectation, "expected"),
)
closed_loop = verb(
    derived.closed_loop,
    policy=_policy,
    dynamics=_matrix("dynamics"),
    control=_matrix("control"),
    gain=_maybe(_matrix("gain")),
    radius=_maybe(partial(number, what="radius")),
    remainder=_maybe(partial(number, what="remainder")),
    direction=_maybe(_matrix("direction")),
    analyzers=_maybe(listed),
)
game = verb(
    derived.game,
    curvature=_curvature,
    couplings=_couplings,
    weights=_maybe(lambda given: numbers(given, "weights").flatten().tolist()),
)
sensitivity = verb(
    derived.sensitivity,
    ("graph",),
    reach=partial(number, what="reach"),
    loss=lambda given: given if isinstance(given, str) else number(given, "loss"),
    neighbours=_word("neighbours"),
    analyzers=listed,
)
