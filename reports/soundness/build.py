"""Writes mutants, forged, readers, networks, models, pairs, attention and costs (.json) beside this file: how changed
certificates and forged proofs fare, changed model files as the checker reads them against runtimes, random
networks against witnesses, random ONNX models against samples, differences of random pairs against samples, random networks of
attention against Jacobians, what rigour costs.

    python reports/soundness/build.py [--mutants 2000] [--forged 20000] [--readers 100000] [--networks 10000] [--models 20000]
        [--first-model 0] [--again] [--pairs 10000] [--first-pair 0] [--attention 2000] [--first-attention 0] [--processes 2]
        [--no-costs]

Twenty thousand forged proofs take five minutes of one processor, a hundred thousand changed files ten, ten thousand networks
half an hour, six thousand models as long, two thousand networks of attention too; networks.json is written after every thousand,
models.json, pairs.json and attention.json after every hundred. Pairs, or networks of attention, from a seed other than 0 are
added to those of their file, which ends right before them; models from another seed are a run of their own beside the others.
`--again` asks the models anew of which models.json tells a fault.
Networks of the model zoo always; third-party networks where the folder shared/checkpoints lies beside the checkout.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

import lipverify as lv  # noqa: E402
from lipverify import ops, zoo  # noqa: E402
from lipverify.analyzers import registry  # noqa: E402
from lipverify.analyzers.protocol import Compute  # noqa: E402
from lipverify.certificates import issue, verify  # noqa: E402
from lipverify.documents import environment  # noqa: E402
from lipverify.errors import LipverifyError  # noqa: E402
from lipverify.ir.norm import Norm  # noqa: E402
from lipverify.ir.region import Query  # noqa: E402
from tests.networks import chain  # noqa: E402
from tests.soundness import certified, mutants, readers  # noqa: E402
from tests.soundness.attention import Attended, attend  # noqa: E402
from tests.soundness.forged import hunt  # noqa: E402
from tests.soundness.held import Held, hold  # noqa: E402
from tests.soundness.pairs import MISTAKES, Outcome, fuzz, noticed, rounding_noticed  # noqa: E402
from tests.soundness.search import Found, search  # noqa: E402

LARGE = ("cifar-resnet20.onnx", "cifar-resnet2b.onnx", "kw-mnist-cnn.onnx")
"""Of these the product, LipSDP of one and a ball of another: all else takes longer than a table of costs is worth."""
THIRD_PARTY = (
    "converted/cifar-resnet20.onnx",
    "converted/cifar-resnet2b.onnx",
    "converted/kw-mnist-cnn.onnx",
    "converted/mnist-fc3-pth.onnx",
    "converted/mnist-nor-mlp.onnx",
    "mnist-mlp-3x50/mnist_relu_3_50.onnx",
    "mnist-sigmoid-2x5/mnist2x5_sigmoid.onnx",
)


def changed(count: int) -> dict[str, Any]:
    """Changed certificates by kind; none may be accepted."""
    started = time.monotonic()
    made: Counter[str] = Counter()
    accepted = []
    with tempfile.TemporaryDirectory() as folder:
        for mutant in mutants.mutants(certified.subjects(Path(folder)), count, seed=0):
            made[mutant.kind] += 1
            if mutant.accepted():
                accepted.append(mutants.describe(mutant))
    return {
        "made": sum(made.values()),
        "kinds": dict(made),
        "accepted": accepted,
        "seconds": time.monotonic() - started,
    }


def forged(count: int) -> dict[str, Any]:
    """Proofs with other evidence, from the grammar of proofs: what the kernel accepts has to be true."""
    started = time.monotonic()
    found = hunt(count)
    example = None if found.example is None else repr(found.example)[:2000]
    return {"made": found.tried, "accepted": found.accepted, "false": found.false, "example": example,
            "seconds": time.monotonic() - started}  # fmt: skip


def files_changed(count: int) -> dict[str, Any]:
    """Changed model files, seeds 0, 1, ...: what the reader takes and a runtime runs has to be the same function."""
    found = readers.run(count)
    return {
        "made": found.made,
        "read": found.accepted,
        "compared": found.compared,
        "overflows": found.overflows,
        "different": found.wrong,
        "kinds": dict(found.kinds.most_common()),
        "not_run": dict(found.unable.most_common()),
        "seconds": found.seconds,
    }


def priced(model: str, graph: lv.Graph, name: str, query: Query) -> dict[str, Any]:
    """One analyzer on one network: what the proof adds to the bound, and how many processor seconds the parts take."""
    analyzer = registry.resolve(name)
    row: dict[str, Any] = {"model": Path(model).name, "analyzer": name, "norm": str(query.norm_in)}
    if isinstance(query.region, lv.Ball):
        row["balls"] = f"{len(query.region)} x {query.region.norm} {query.region.radius:g}"
    reason = analyzer.reject(graph, query)
    if reason is not None:
        return row | {"refused": reason}
    started = time.process_time()
    bound = analyzer.bound(graph, query, Compute(deadline=time.monotonic() + 60))
    solved = time.process_time() - started
    found = issue(bound, graph, query, analyzer, solved)
    assert bound.upper is not None
    assert found.upper is not None
    row |= {"upper": found.upper.tolist(), "rigour": str(found.rigour), "solve_seconds": solved}
    if found.issued is None:
        return row | {"unchecked": found.unchecked}
    started = time.process_time()
    verify(found, model if graph.origin.sha256 else graph)
    return row | {
        "relative_cost": float((found.upper / bound.upper).max()) - 1,
        "check_seconds": time.process_time() - started,
        "kilobytes": sum(map(len, found.issued.files("c.json").values())) // 1024,
    }


Counted = TypeVar("Counted", Attended, Found, Held, Outcome)
Resumed = TypeVar("Resumed", Attended, Outcome)


def searched(
    question: Callable[[Iterable[int]], Counted],
    total: Counted,
    count: int,
    processes: int,
    step: int,
    first: int = 0,
) -> Iterator[dict[str, Any]]:
    """Random networks or models of the seeds `first`, ...: what was found so far, after every `step` and at the end."""
    started = time.monotonic()
    blocks = [range(start, min(start + 50, first + count)) for start in range(first, first + count, 50)]
    # Networks this small gain nothing from threads, which only take the processor from each other.
    with ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for done, found in enumerate(pool.map(question, blocks), start=1):
            total = total + found
            if done * 50 % step == 0 or done == len(blocks):
                seeds = [0, blocks[done - 1].stop - 1]
                yield {**total.to_json(), "seeds": seeds, "seconds": time.monotonic() - started}


def before(name: str, key: str, kind: type[Resumed], first: int) -> Resumed:
    """What a file says of the seeds 0 to `first` - 1.

    Raises:
        SystemExit: it is about others.
    """
    if first == 0:
        return kind()
    document = json.loads((Path(__file__).parent / f"{name}.json").read_text())[key]
    if document.get("seeds") != [0, first - 1]:
        raise SystemExit(
            f"{name}.json is about the seeds {document.get('seeds')}; it has to end at {first - 1}"
        )
    return kind.from_json(document)


def models_with(document: dict[str, Any]) -> dict[str, Any]:
    """The runs of models.json with this one: it takes the place of the one with the same first seed.

    A run is `random_models` where it begins with seed 0, and one of `later_runs` otherwise.
    """
    known = _known_models()
    if document["seeds"][0] == 0:
        return known | {"random_models": document}
    others = [run for run in known.get("later_runs", []) if run["seeds"][0] != document["seeds"][0]]
    return known | {"later_runs": sorted([*others, document], key=lambda run: run["seeds"][0])}


def _known_models() -> dict[str, Any]:
    """The runs that models.json holds."""
    path = Path(__file__).parent / "models.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    return {name: known[name] for name in ("random_models", "later_runs") if name in known}


def asked_again(document: dict[str, Any]) -> dict[str, Any]:
    """models.json after a mend: its faults are those that the models they were found on show today, the others are `mended`."""
    before = [words for kind in ("wrong", "errors") for words in document[kind]]
    today = hold(sorted(set(map(_seed, before))))
    left = set(map(_seed, (*today.wrong, *today.errors)))
    mended = [words for words in before if _seed(words) not in left]
    return document | {
        "wrong": today.wrong,
        "errors": today.errors,
        "mended": document.get("mended", []) + mended,
    }


def _seed(words: str) -> int:
    """Of a sentence of `Held`, which begins with it."""
    return int(words.split()[1])


def he_network(widths: tuple[int, ...]) -> lv.Graph:
    """N(0, 2 / fan-in), layer by layer, with ReLU: the network of the same name in benchmarks/lipsdp.py."""
    r = np.random.default_rng(0)
    weights = [r.standard_normal((m, n)) * np.sqrt(2.0 / n) for n, m in itertools.pairwise(widths)]
    return chain([torch.from_numpy(w) for w in weights], ops.ReLU())


def costs(analyzers: tuple[str, ...]) -> list[dict[str, Any]]:
    """The price of rigour on a random network, the model zoo and third-party networks: for the whole space and for balls."""
    folder = ROOT.parent / "shared" / "checkpoints"
    models = [f"zoo:{name}" for name in zoo.names()]
    models += [str(folder / m) for m in THIRD_PARTY if (folder / m).exists()]
    rows = []
    for model in ("he-64-200x3-10", *models):
        graph = he_network((64, 200, 200, 200, 10)) if model.startswith("he-") else lv.load(model)
        asked = [(name, Query()) for name in analyzers]
        centres = torch.tensor(np.random.default_rng(0).random((2, *graph.input_shape)))
        asked += [("local", Query(Norm.LINF, Norm.LINF, lv.Ball(centres, 0.01, "linf")))]
        asked += [("lipsdp", Query(region=lv.Ball(centres, 0.1, "l2")))]
        if Path(model).name in LARGE:
            asked = [("product", Query())]
            if "kw-mnist" in model:
                asked.append(("lipsdp", Query()))
            elif "resnet2b" in model:
                one = torch.from_numpy(
                    np.random.default_rng(0).integers(64, 192, (1, *graph.input_shape)) / 255
                )
                asked.append(("local", Query(Norm.LINF, Norm.LINF, lv.Ball(one, 0.2 / 255, "linf"))))
        for name, query in asked:
            try:
                rows.append(priced(model, graph, name, query))
            except LipverifyError as error:
                rows.append({"model": Path(model).name, "analyzer": name, "refused": str(error)})
            print(rows[-1], file=sys.stderr)
    return rows


def main() -> None:
    """Writes the files; the exit code is 1 when a changed certificate was accepted, or a proof or bound was wrong."""
    options = argparse.ArgumentParser()
    options.add_argument("--mutants", type=int, default=2000, help="0: leave mutants.json as it is")
    options.add_argument("--forged", type=int, default=20_000, help="0: leave forged.json as it is")
    options.add_argument("--readers", type=int, default=100_000, help="0: leave readers.json as it is")
    options.add_argument("--networks", type=int, default=10_000, help="0: leave networks.json as it is")
    options.add_argument("--models", type=int, default=20_000, help="0: leave models.json as it is")
    options.add_argument(
        "--again", action="store_true", help="ask the models again of which models.json says a fault"
    )
    options.add_argument("--pairs", type=int, default=10_000, help="0: leave pairs.json as it is")
    options.add_argument("--attention", type=int, default=2000, help="0: leave attention.json as it is")
    options.add_argument("--first-model", type=int, default=0, help="seed of the first model of this run")
    options.add_argument("--first-pair", type=int, default=0, help="seed of the first pair of this run")
    options.add_argument(
        "--first-attention", type=int, default=0, help="seed of the first network of attention of this run"
    )
    options.add_argument(
        "--processes",
        type=int,
        default=2,
        help="for networks.json, models.json, pairs.json and attention.json",
    )
    options.add_argument("--no-costs", action="store_true", help="leave costs.json as it is")
    options.add_argument("--analyzers", default="product,lipsdp", help="for costs.json")
    given = options.parse_args()
    torch.set_num_threads(1)
    bad = 0
    if given.mutants:
        document = changed(given.mutants)
        bad += len(document["accepted"])
        _write("mutants", {"changed_certificates": document})
    if given.forged:
        document = forged(given.forged)
        bad += document["false"]
        _write("forged", {"forged_proofs": document})
    if given.readers:
        document = files_changed(given.readers)
        bad += len(document["different"])
        _write("readers", {"changed_files": document})
    if given.networks:
        document = {"wrong": []}
        for document in searched(search, Found(), given.networks, given.processes, 1000):
            _write("networks", {"random_networks": document})
            print(document["networks"], "networks,", len(document["wrong"]), "wrong", file=sys.stderr)
        bad += len(document["wrong"])
    if given.models:
        document = {"wrong": [], "errors": []}
        first = given.first_model
        for document in searched(hold, Held(), given.models, given.processes, 100, first):
            _write("models", models_with(document | {"seeds": [first, document["seeds"][1]]}))
            faults = len(document["wrong"]), len(document["errors"])
            print(document["models"], "models, {} wrong, {} errors".format(*faults), file=sys.stderr)
        bad += len(document["wrong"]) + len(document["errors"])
    if given.again:
        document = asked_again(_known_models()["random_models"])
        _write("models", _known_models() | {"random_models": document})
        bad += len(document["wrong"]) + len(document["errors"])
    if given.pairs:
        seen: dict[str, Any] = {mistake: noticed(mistake) for mistake in MISTAKES}
        mistakes = {
            mistake: f"found at seed {seed}" if seed is not None else "not found"
            for mistake, seed in seen.items()
        }
        mistakes["rounding of W_f - W_g is left out, 1e8 beside 1e-8"] = (
            "found" if rounding_noticed() else "not found"
        )
        document = {"wrong": []}
        first = given.first_pair
        start = before("pairs", "random_pairs", Outcome, first)
        for document in searched(fuzz, start, given.pairs, given.processes, 100, first):
            del document["seconds"]  # of one run of several
            _write("pairs", {"random_pairs": document, "planted_mistakes": mistakes})
            print(document["pairs"], "pairs,", len(document["wrong"]), "wrong", file=sys.stderr)
        bad += len(document["wrong"]) + list(mistakes.values()).count("not found")
    if given.attention:
        document = {"wrong": [], "errors": []}
        first = given.first_attention
        known = before("attention", "random_networks_of_attention", Attended, first)
        for document in searched(attend, known, given.attention, given.processes, 100, first):
            del document["seconds"]  # of one run of several
            _write("attention", {"random_networks_of_attention": document})
            faults = len(document["wrong"]), len(document["errors"])
            print(
                document["networks"],
                "networks of attention, {} wrong, {} errors".format(*faults),
                file=sys.stderr,
            )
        bad += len(document["wrong"]) + len(document["errors"])
    if not given.no_costs:
        _write("costs", {"cost_of_rigour": costs(tuple(given.analyzers.split(",")))})
    sys.exit(1 if bad else 0)


def _write(name: str, document: dict[str, Any]) -> None:
    whole = {"schema": "lipverify.soundness/1", **document, "environment": environment()}
    (Path(__file__).parent / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
