"""The steps from a file to a bound, in running order: load, extract, simplify, analyze, falsify, compare.

The public verbs are short compositions of them; arguments and results are those of the command line.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lipverify import deadline, loading, memory, zoo
from lipverify.analyzers.auto import AUTO, MINUTE, Given, chosen, listed
from lipverify.analyzers.product import Product
from lipverify.analyzers.protocol import NOT_RUN, Analyzer, Compute, Report, refusal, silent
from lipverify.errors import (
    BudgetEnded,
    InternalError,
    LipverifyError,
    Refuted,
    Undecided,
    UnsupportedModel,
    UsageError,
)
from lipverify.failures import contradiction_words, failure_words, keep_certificate
from lipverify.falsify import Box, Search, falsify
from lipverify.falsify.balls import layer_gains
from lipverify.falsify.cost import seconds_of
from lipverify.ir.certificate import Witness
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Everywhere, Query, Region, misfit
from lipverify.ir.shown import above, at_most
from lipverify.joining import joined_lower, joined_rows
from lipverify.ops import Linear, Reshape
from lipverify.passes import simplify
from lipverify.propagation.magnitudes import out_of_range, refuse_lost_products
from lipverify.results import Audit, Lower, Row, tightness
from lipverify.units import Lost, results

if TYPE_CHECKING:
    from torch.nn import Module


# -- load, extract, simplify


def load(
    model: str | Path,
    *,
    arch: str | None = None,
    trust_code: bool = False,
    input_shape: Sequence[int] | None = None,
    output: int | str = 0,
    input: str | None = None,
    constants: Mapping[str, Any] | None = None,
    steps: int | None = None,
    state: str = "given",
) -> Graph:
    """A graph from an ONNX file, a network of the model zoo, or weights with an architecture.

    Args:
        model: a path, `zoo:<name>`, or a folder of the model zoo.
        arch: `FILE.py:callable` for bare weights; runs that file, so `trust_code` must be true. Or `FILE.json`, which describes
            weights of a transformer with enforced constants (docs/transformers.md) and runs nothing.
        input_shape: shape of one sample, without the batch axis; for bare weights and for ONNX inputs of open size.
        output: which output of the model, by position; of an ONNX file also by name.
        input: of an ONNX file whose output depends on several inputs, the name of the one that varies; or a tensor inside,
            such as the one behind an embedding, to begin there.
        constants: what its other inputs are fixed at: name -> a number for all entries, or an array.
        steps: the length of its sequence, where an ONNX file leaves that open.
        state: what its other real inputs without a constant are: `given` (none may be left), `zero` (fixed at 0), `free` (they
            vary too, all inputs as one vector).

    Raises:
        InvalidFile, UsageError: missing, damaged or invalid (exit 2). UnsupportedModel: no rule covers it (exit 5).
        UnsafeInput: reading it would run foreign code (exit 6). ExtractionMismatch: the graph computes something else.
    """
    path = Path(model)
    folder = zoo.resolve(model)
    if folder is None and loading.detect(loading.read_regular(path).data, path) is loading.Format.ONNX:
        if arch is not None:
            raise UsageError("an ONNX file holds its own architecture; --arch is for bare weights")
        from lipverify.frontends.onnx import extract_onnx

        # Only what this output needs: another output may be one that no rule covers.
        graph = extract_onnx(
            path,
            input_shape=input_shape,
            output=output,
            input=input,
            constants=constants,
            steps=steps,
            state=state,
        )
        return _about_output(_simplified(graph), output)
    if isinstance(output, str) or input is not None or constants:
        raise UsageError("inputs and outputs have names in ONNX files only; give the position of the output")
    if steps is not None or state != "given":
        raise UsageError(
            "--steps and --state are about inputs of ONNX files; a module has the length of its example"
        )
    return _selected(_imported(path, folder, arch, trust_code, input_shape), output)


def _imported(
    path: Path, folder: Path | None, arch: str | None, trust_code: bool, input_shape: Sequence[int] | None
) -> Graph:
    if folder is None:
        return _from_weights(path, arch, trust_code, input_shape)
    module, card = zoo.load_module(folder.name)
    weights = loading.read_regular(folder / "weights.safetensors")
    graph = extract(module, zoo.example_input(card))
    return _with_origin(graph, format="zoo", path=f"zoo:{card.name}", sha256=weights.sha256)


def _selected(graph: Graph, output: int) -> Graph:
    """One output of a graph that may have several; without others the graph keeps its digest."""
    return _about_output(graph.select(output), output) if len(graph.outputs) > 1 or output else graph


def _about_output(graph: Graph, output: int | str) -> Graph:
    """Says which part of the model the graph computes: another output than the first, inputs that are fixed."""
    named = f'output "{loading.display(output, 60)}"' if isinstance(output, str) else f"output {output}"
    parts = [f"{named} of the model"] if output else []
    fixed = graph.origin.part
    if fixed is not None:
        parts = [*(parts or ["the model"]), fixed]
    return _with_origin(graph, part=" with ".join(parts), output=output) if parts else graph


def _from_weights(path: Path, arch: str | None, trust_code: bool, input_shape: Sequence[int] | None) -> Graph:
    if arch is None:
        # A file that runs code is refused as such, before the architecture is missed.
        loading.read_state_dict(path)
        remedy = (
            "add --arch FILE.py:callable --trust-code (in Python arch=..., trust_code=True), or export ONNX"
        )
        raise UsageError(loading.sentence(path, "holds weights without an architecture", remedy))
    if arch.endswith(".json"):
        return _described(path, arch, input_shape)
    built = loading.load_weights(path, arch, trust_code)
    if input_shape is None:
        raise UsageError(
            "bare weights do not say what goes in: give --input-shape 3,32,32 for samples of that shape, in Python "
            "input_shape=(3, 32, 32)"
        )
    example = torch.zeros(2, *input_shape, dtype=_dtype(built.module))
    graph = extract(built.module, example)
    trusted = f"{loading.display_path(built.code_path)} (sha256 {built.code_sha256})"
    return _with_origin(
        graph, format="state dict", path=str(path), sha256=built.weights.sha256, trusted_code=(trusted,)
    )


def _described(path: Path, arch: str, input_shape: Sequence[int] | None) -> Graph:
    """Weights of a transformer with enforced constants, and a description of what they do not say; runs no code."""
    from lipverify.frontends.enforced import EnforcedTransformer, largest_row

    described, weights = loading.read_enforced(arch), loading.read_state_dict(path)
    found = loading.roles(described, weights.tensors)
    width = found.blocks[0]["w"].shape[0]
    if input_shape is None or len(input_shape) != 2 or input_shape[1] != width:
        raise UsageError(
            f"the model takes tokens of width {width}: give --input-shape N,{width} for N of them, in Python "
            f"input_shape=(N, {width})"
        )
    module = EnforcedTransformer(described, found, input_shape[0])
    graph = extract(module.eval(), torch.zeros(2, *input_shape, dtype=_dtype(module)))
    notes = graph.origin.notes
    if found.embed is not None:
        most = largest_row(found.embed)
        notes += (
            f"rows of embed have a root mean square of {at_most(most)}: --within {above(most)} covers them",
        )
    return _with_origin(graph, format="state dict", path=str(path), sha256=weights.sha256, notes=notes)


def _dtype(module: Module) -> torch.dtype:
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)


def _with_origin(graph: Graph, **changes: Any) -> Graph:
    return replace(graph, origin=replace(graph.origin, **changes))


def extract(module: Module, example: Tensor) -> Graph:
    """A graph from a torch module in evaluation mode.

    Args:
        example: an input batch of at least 2 samples; the batch axis is exported as a symbol.

    Raises:
        UnsupportedModel: an operator that no rule covers, training mode, control flow. ExtractionMismatch: see `load`.
    """
    from lipverify.frontends.torch_export import extract as extract_module

    return _simplified(extract_module(module, example))


def _simplified(graph: Graph) -> Graph:
    """The same function in better known operators; UnsupportedModel where float64 would lose products of its numbers."""
    graph = simplify(graph)
    refuse_lost_products(graph)
    return graph


def margin(graph: Graph, first: int, second: int) -> Graph:
    """The network whose single output is the difference of two outputs, f_first - f_second.

    Raises:
        UsageError: there are no such outputs.
    """
    size = graph.output.size
    if not (0 <= first < size and 0 <= second < size and first != second):
        raise UsageError(
            f"the margin needs two different outputs between 0 and {size - 1}, not {first} and {second}"
        )
    if len(graph.output_shape) != 1:
        graph = graph.append(Reshape((size,)), (size,), "flatten")
    row = torch.zeros(1, size, dtype=graph.dtype)
    row[0, first], row[0, second] = 1.0, -1.0
    of = graph.origin.part or "the output"
    difference = f"entry {first} minus entry {second} of {of}"
    graph = graph.append(Linear(row, None), (1,), "margin")
    return _with_origin(graph, part=difference, margin=(first, second))


# -- analyze, falsify, compare


def audit(
    graph: Graph,
    *,
    norm: str | Norm = Norm.L2,
    norm_out: str | Norm | None = None,
    region: Region | None = None,
    analyzers: Given = AUTO,
    budget: float | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    box: Box | None = None,
    hints: Tensor | None = None,
    search: Search | None = None,
    report: Report | None = None,
    scheduler: str | None = None,
) -> Audit:
    """Upper bounds by every analyzer and a lower bound with a witness.

    Args:
        norm, norm_out: at the input and at the output; with one given, both sides use it.
        region: `Everywhere` (default) or a `Ball`.
        analyzers: names, with commas or in a list, and analyzers themselves; `auto` is what the budget, or about a minute,
            buys (`Audit.choice` says what that was).
        budget: seconds for everything together.
        box, hints: where the search for the lower bound looks when the region is everywhere.
        scheduler: address of a Dask scheduler, whose workers search for bounds of some balls at a time; proofs are made here.

    What breaks inside an analyzer, a certificate that does not check, and a bound that a witness contradicts are rows without a
    bound (`Row.failed`, `Row.refuted`), and lose no other row.

    Raises:
        UsageError: a name or number that makes no sense.
    """
    started = time.monotonic()
    norm_in = Norm.parse(norm, tokens=True)
    query = Query(
        norm_in, norm_in if norm_out is None else Norm.parse(norm_out, tokens=True), region or Everywhere()
    )
    if isinstance(query.region, Ball) and (why := misfit(query.region.center, graph.input_shape)) is not None:
        raise UsageError(why)
    if missing := query.without_tokens(graph.input_shape):
        raise UnsupportedModel(missing)
    if scheduler is not None and not isinstance(query.region, Ball):
        raise UsageError("--scheduler shares out points: give --data and --radius, in Python a Ball")
    if budget is None and AUTO in listed(analyzers):
        budget = MINUTE
    end = None if budget is None else started + budget
    compute = Compute(torch.device(device), seed, end, report or silent)
    search = search or Search(seconds=10.0 if budget is None else max(0.5, min(10.0, budget / 5)))
    first: Row | None = None
    alone = all(one == Product.name or isinstance(one, Product) for one in listed(analyzers))
    if end is not None and not query.of_tokens:
        # The cheapest bound and its lower bound come first, whatever was asked: they are there when the rest is cut.
        first = _first(graph, query, compute, ALONE if alone else FIRST)
    elif scheduler is not None or _large(graph, query):
        first = _answer(Product(), graph, query, compute, None)
    if scheduler is not None:
        assert first is not None, "the product, of norms that balls are in"
        methods, choice = chosen(analyzers, [(graph, query)], budget)
        rows, lower = _shared_out(methods, graph, query, compute, search, first, scheduler)
    else:
        lower = _lower(graph, query, compute, search, box, hints, first, ALONE if alone else LOWER)
        # Asking every analyzer whether it refuses takes its time too.
        methods, choice = chosen(analyzers, [(graph, query)], budget)
        rows = _rows(methods, graph, query, compute, first)
    rows = tuple(held_against(row, graph, query, lower.witness) for row in rows)
    rows = _proved(rows, graph, query, compute)
    return Audit(graph, query, rows, lower, time.monotonic() - started, choice=choice)


FIRST, LOWER, SEARCHED, PROVED = 0.4, 0.5, 0.55, 0.875
"""Parts of what is left of a budget: the product within the first, the lower bound within the second, and usually far earlier;
what is left then is for bounds up to the third part, and for proofs, of which the smallest bound may take the last."""
ALONE = 0.75
"""The first and the second part where nothing but the product is asked: a large network needs them, its proof longer still."""
LARGE = 0.3
"""Seconds of one evaluation, as counted, from which on pairs are proved by the gains of layers."""
OWED = 2.0
"""Seconds that the lower bound may take beyond the budget, and half of it each other bound: without them there is no answer."""


SEARCHED_BYTES, CANDIDATES = 1 << 28, 100
"""What a search may hold of points of balls, and about how many points it has for each ball, in float64."""
NOT_SEARCHED = "not run: the budget ended before a pair of points was proved"
AT_ONCE = 16
"""Balls of a unit of work: a dead worker loses few, and what a network alone costs is shared by some."""


@dataclass(frozen=True)
class _Asked:
    """What all units of work need."""

    graph: Graph
    norms: tuple[Norm, Norm]
    methods: tuple[Analyzer, ...]
    device: torch.device
    seed: int
    search: Search


def _shared_out(
    methods: list[Analyzer],
    graph: Graph,
    query: Query,
    compute: Compute,
    search: Search,
    first: Row,
    scheduler: str,
) -> tuple[tuple[Row, ...], Lower]:
    """What `_rows` and `_lower` give, found by the workers of a cluster for some balls at a time. The product is known."""
    region = query.region
    assert isinstance(region, Ball)
    others = tuple(method for method in methods if method != first.method)
    asked = _Asked(graph, (query.norm_in, query.norm_out), others, compute.device, compute.seed, search)
    chunks = [region[start : start + AT_ONCE] for start in range(0, len(region), AT_ONCE)]
    end = None if compute.deadline is None else time.monotonic() + SEARCHED * compute.remaining()
    found: dict[int, tuple[tuple[Row, ...], Lower]] = {}
    units = ((chunk,) for chunk in chunks)
    for place, answer in results(_unit, asked, units, len(chunks), scheduler=scheduler, deadline=end):
        if isinstance(answer, Lost):
            answer = _without(asked, chunks[place], answer.reason, failed=True)
        found[place] = answer
        compute.report(f"points: {len(found)} of {len(chunks)} chunks", None)
    counts = [len(chunk) for chunk in chunks]
    parts = [found[place] for place in range(len(chunks))]
    joined = iter(
        [
            joined_rows(method, query, [rows[k] for rows, _ in parts], counts)
            for k, method in enumerate(others)
        ]
    )
    rows = [first if method == first.method else next(joined) for method in methods]
    return _with_product(rows, first), joined_lower([lower for _, lower in parts], counts)


def _unit(asked: _Asked, region: Ball, seconds: float | None) -> tuple[tuple[Row, ...], Lower]:
    """Some balls: the row of every analyzer, unproved, and the lower bounds."""
    if seconds is not None and seconds <= 0.0:
        return _without(asked, region, NOT_RUN, undecided=True, cut=True)
    query = Query(*asked.norms, region)
    deadline_ = None if seconds is None else time.monotonic() + seconds
    compute = Compute(asked.device, asked.seed, deadline_)
    lower = _lower(asked.graph, query, compute, asked.search, None, None, None)
    return _rows(list(asked.methods), asked.graph, query, compute, None, 1.0), lower


def _without(asked: _Asked, region: Ball, why: str, **flags: Any) -> tuple[tuple[Row, ...], Lower]:
    """The answer about balls that nobody looked at."""
    rows = tuple(Row(method, 0.0, refused=why, **flags) for method in asked.methods)
    nothing = _nothing(asked.graph, Query(*asked.norms, region), why)
    return rows, Lower(*nothing, failed=flags.get("failed", False), cut=flags.get("cut", False))


def _large(graph: Graph, query: Query) -> bool:
    """Whether pairs are proved by the gains of layers, which a product in l2 has: the exact proof would take much longer."""
    l2 = query.norm_in is query.norm_out is Norm.L2 and isinstance(query.region, Everywhere)
    return l2 and seconds_of(graph) > LARGE


def _first(graph: Graph, query: Query, compute: Compute, part: float) -> Row:
    """The row of the product, within this part of the time."""
    share = time.monotonic() + max(part * compute.remaining(), OWED / 4)
    wall = None if compute.deadline is None else max(compute.deadline, share) + OWED / 2
    return _answer(Product(), graph, query, replace(compute, deadline=share), wall)


def _lower(
    graph: Graph,
    query: Query,
    compute: Compute,
    search: Search,
    box: Box | None,
    hints: Tensor | None,
    product: Row | None,
    part: float = LOWER,
) -> Lower:
    """The lower bound, within this part of the time; 0, which is one, where the search broke or there was no time."""
    gains = None
    if product is not None and product.certificate is not None and _large(graph, query):
        gains = layer_gains(graph, product.certificate)
    end = None if compute.deadline is None else time.monotonic() + part * compute.remaining()
    wall = None if compute.deadline is None else compute.deadline + OWED
    share = replace(compute, deadline=end)
    if not isinstance(query.region, Ball) or len(query.region) <= together(graph):
        return _searched(graph, query, share, search, wall, box=box, hints=hints, gains=gains)
    return _of_many(graph, query, query.region, share, search, wall)


def together(graph: Graph) -> int:
    """Balls whose lower bounds are searched for at once. A number of the network alone: a seed decides the result."""
    return max(1, SEARCHED_BYTES // (8 * CANDIDATES * graph.input.size))


def _of_many(
    graph: Graph, query: Query, region: Ball, compute: Compute, search: Search, wall: float | None
) -> Lower:
    """The lower bounds of many balls, of some at a time: the memory is that of some, and what is proved at the end is kept.

    The first ones may take what an answer is owed, the others are not begun after the end.
    """
    at_once = together(graph)
    starts = range(0, len(region), at_once)
    chunks = ((region[start : start + at_once], start == 0) for start in starts)
    counts = [min(at_once, len(region) - start) for start in starts]

    def some(_: object, part: Ball, first: bool, seconds: float | None) -> Lower:
        asked = replace(query, region=part)
        if seconds is not None and seconds <= 0.0 and not first:
            return Lower(*_nothing(graph, asked, NOT_SEARCHED), cut=True)
        end = None if seconds is None else time.monotonic() + seconds
        effort = replace(search, seconds=search.seconds * len(part) / len(region))
        within = wall if first else compute.deadline
        return _searched(graph, asked, replace(compute.one_of(2), deadline=end), effort, within)

    found = results(some, None, chunks, len(counts), deadline=compute.deadline)
    return joined_lower((lower for _, lower in found), counts)


def _searched(
    graph: Graph, query: Query, compute: Compute, search: Search, wall: float | None, **given: Any
) -> Lower:
    """The lower bound of balls that are searched at once, or of everywhere."""
    local = isinstance(query.region, Ball)
    try:
        with deadline.within(wall):
            witness = memory.halving(lambda: falsify(graph, query, compute, search, **given))
    except BudgetEnded as error:
        return Lower(
            *_nothing(graph, query, f"not run: {error} before a pair of points was proved"), cut=True
        )
    except LipverifyError as error:
        if not isinstance(error, InternalError):
            raise
        return Lower(*_nothing(graph, query, failure_words(error)), failed=True)
    except Exception as error:
        if memory.failed(error):
            return Lower(*_nothing(graph, query, f"not run: {memory.words(error)}"), cut=True)
        return Lower(*_nothing(graph, query, failure_words(error)), failed=True)
    return Lower(witness.value if local else float(witness.value[0]), witness)


def _nothing(graph: Graph, query: Query, why: str) -> tuple[float | Tensor, Witness]:
    region = query.region
    points = (
        region.center if isinstance(region, Ball) else torch.zeros(1, *graph.input_shape, dtype=torch.float64)
    )
    value = torch.zeros(len(points), dtype=torch.float64)
    witness = Witness(value, points, "none", partner=points, note=why)
    return (value if isinstance(region, Ball) else 0.0), witness


def _rows(
    methods: list[Analyzer],
    graph: Graph,
    query: Query,
    compute: Compute,
    first: Row | None,
    searched: float = SEARCHED,
) -> tuple[Row, ...]:
    """The answers in order; what is left of the time for bounds is shared evenly by those to come, proofs have the rest.

    After an interrupt the best so far is kept and the analyzers behind it are not begun. A method that goes on after its share is
    ended soon.

    Args:
        first: the row of the product, which is there already. Where nobody asked for it, it stands at the end if for want of time
            nothing else has a bound.
        searched: the part of what is left that is for bounds.
    """
    rows: list[Row] = []
    left = len([method for method in methods if first is None or method != first.method])
    end = None if compute.deadline is None else time.monotonic() + searched * compute.remaining()
    for method in methods:
        if first is not None and method == first.method:
            rows.append(first)
            continue
        if any(row.interrupted for row in rows):
            rows.append(Row(method, 0.0, refused="interrupted before it began", stopped=True))
            continue
        started = time.monotonic()
        try:
            share = replace(compute, deadline=replace(compute, deadline=end).share(left))
            left -= 1
            wall = None
            if share.deadline is not None and compute.deadline is not None:
                # Certifying takes a little longer at times than was left for it, and a closed form of a second is owed.
                more = max(OWED / 2, 0.25 * share.remaining())
                wall = min(share.deadline + more, compute.deadline + OWED / 2)
            row = _answer(method, graph, query, share, wall)
            # A property of the model refuses it whatever the time.
            searched = row.certificate is not None or row.undecided
            rows.append(replace(row, hurried=searched and share.expired()))
        except KeyboardInterrupt:
            seconds = time.monotonic() - started
            rows.append(Row(method, seconds, refused="interrupted before it had a bound", stopped=True))
    return _with_product(rows, first)


def _with_product(rows: list[Row], first: Row | None) -> tuple[Row, ...]:
    """The rows, and the product behind them if for want of time nothing else has a bound."""
    bounds = any(row.certificate is not None for row in rows)
    if first is not None and first not in rows and not bounds and any(row.undecided for row in rows):
        rows.append(first)
    return tuple(rows)


def _proved(rows: tuple[Row, ...], graph: Graph, query: Query, compute: Compute) -> tuple[Row, ...]:
    """The rows, `checked` where the checker has a proof, which is looked for from the smallest bound on.

    One that its share of the time cut is tried again where the others left more than it had. After an interrupt bounds stay, as
    `real` as they were.
    """
    from lipverify.certificates.pending import ENDED, UNPROVED

    found, had = list(rows), dict[int, float]()
    places = sorted(
        (k for k, row in enumerate(rows) if row.certificate is not None), key=lambda k: tightness(rows[k])
    )
    for done, place in enumerate(places):
        row = rows[place]
        if any(found[before].stopped for before in places[:done]):
            found[place] = _unproved(row)
            continue
        try:
            compute.report(f"proof of {row.analyzer}", None)
            left = len(places) - done
            end = compute.share(left)
            if end is not None and done == 0 < left - 1:
                end = time.monotonic() + PROVED * compute.remaining()
            had[place] = float("inf") if end is None else end - time.monotonic()
            found[place] = _checked(row, graph, query, end)
        except KeyboardInterrupt:
            found[place] = _unproved(row)
    for place, seconds in had.items():
        certificate = found[place].certificate
        ended = certificate is not None and certificate.unchecked in (UNPROVED, ENDED)
        if ended and compute.remaining() > seconds and not any(row.stopped for row in found):
            try:
                compute.report(f"proof of {rows[place].analyzer}", None)
                found[place] = _checked(rows[place], graph, query, compute.deadline)
            except KeyboardInterrupt:
                found[place] = _unproved(rows[place])
    return tuple(found)


def _unproved(row: Row) -> Row:
    if row.certificate is None:
        return row
    why = "interrupted before the checker had proved it"
    return replace(row, certificate=replace(row.certificate, unchecked=why), stopped=True)


def answer(method: Analyzer, graph: Graph, query: Query, compute: Compute) -> Row:
    """One analyzer's row alone, `checked` where the checker has proved it. No witness is held against it here."""
    wall = None if compute.deadline is None else compute.deadline + 0.1 * compute.remaining()
    return _checked(_answer(method, graph, query, compute, wall), graph, query, wall)


def _answer(method: Analyzer, graph: Graph, query: Query, compute: Compute, wall: float | None) -> Row:
    """One analyzer's row. A refusal is a value, and so is what broke. wall: the moment that ends it whatever it aims at."""
    started = time.monotonic()
    certificate, reason, undecided, failed, refuted, cut = None, None, False, False, False, False
    compute.report(method.name, None)
    try:
        with deadline.within(wall):
            deadline.look()
            reason = refusal(method, graph, query)
            if reason is None:
                certificate = memory.halving(lambda: method.bound(graph, query, compute))
    except UnsupportedModel as error:
        reason = str(error)
    except BudgetEnded:
        reason, undecided, cut = NOT_RUN, True, True
    except Undecided as error:
        reason, undecided = str(error), True
    except Refuted as error:
        reason, failed, refuted = str(error), True, True
    except Exception as error:
        if isinstance(error, LipverifyError) and not isinstance(error, InternalError):
            reason = str(error)
        elif memory.failed(error):
            reason = memory.words(error)
        elif (reason := out_of_range(graph)) is None:
            reason, failed = failure_words(error), True
    return Row(
        *(method, time.monotonic() - started, certificate, reason, undecided),
        failed=failed,
        refuted=refuted,
        cut=cut,
    )


def _checked(row: Row, graph: Graph, query: Query, end: float | None = None) -> Row:
    """The row with its certificate, `checked` where the independent checker has proved it from its written form before `end`.

    Evidence that the checker covers and that does not carry the bound withdraws it; the certificate is kept for the report.
    """
    if row.certificate is None:
        return row
    from lipverify.certificates import issue
    from lipverify.certificates.pending import cut

    try:
        with deadline.within(end):
            deadline.look()
            return replace(row, certificate=issue(row.certificate, graph, query, row.method, row.seconds))
    except BudgetEnded:
        return replace(row, certificate=cut(row.certificate))
    except InternalError as error:
        reason = failure_words(error)  # names the certificate, which `issue` has kept
    except Exception as error:
        if memory.failed(error):
            return replace(row, certificate=replace(row.certificate, unchecked=memory.words(error)))
        reason = failure_words(error) + keep_certificate(row.certificate, graph, query, row.method)
    return replace(row, certificate=None, refused=reason, failed=True)


def held_against(row: Row, graph: Graph, query: Query, witness: Witness) -> Row:
    """The row, or one without a bound where the witness contradicts it."""
    if row.certificate is None or row.certificate.upper is None:
        return row
    upper = row.certificate.upper.expand_as(witness.value)
    if not bool((witness.value > upper).any()):
        return row
    worst = int((witness.value - upper).argmax())
    reason = contradiction_words(
        float(witness.value[worst]),
        float(upper[worst]),
        row.analyzer,
        worst if isinstance(query.region, Ball) else None,
        keep_certificate(row.certificate, graph, query, row.method),
    )
    return replace(row, certificate=None, refused=reason, failed=True, refuted=True)


def exit_code(result: Audit) -> int:
    """3 if a witness contradicted a bound, 1 if something broke, 130 if interrupted; else 0 if some analyzer gave a bound, 4 if
    at least one only ran out of budget, 5 if all refused."""
    if result.refuted:
        return Refuted.exit_code
    if result.failed:
        return InternalError.exit_code
    if result.interrupted:
        return 130
    if any(row.certificate is not None for row in result.rows):
        return 0
    return Undecided.exit_code if any(row.undecided for row in result.rows) else UnsupportedModel.exit_code
