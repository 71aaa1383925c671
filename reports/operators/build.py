"""ONNX's own operator cases: how many are read, with the numbers that the case expects, and why each of the others is refused.

    python reports/operators/build.py [--only PART]

Each case is an operator with tensors and what it gives. One float tensor is the input, the others are stored in the file; the
first two float tensors of a case take turns. The files keep the operator sets that the cases are written for. Every refusal has
to be one of `REASONS`, whose last column was written by hand with the case in front of us; one that is not there, and a case that
is read with other numbers, ends the run with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

import lipverify as lv

HERE = Path(__file__).resolve().parent
FLOATS = (np.float32, np.float64)
JUMPS = "Yes: two inputs on either side of a step differ by a whole step afterwards."
REASONS = {
    r"jumps, so it is not continuous": JUMPS,
    r"jumps by \S+ at its threshold|jumps at its threshold": "Yes: the value above the threshold is not the one below it.",
    r"chooses between branches by a comparison": "Yes: the two branches differ where they meet.",
    r"a row of its input is -infinity throughout": "Yes: the mask leaves nothing to attend to. Softmax is 0/0 there; what "
    "Attention makes of it is said of the newest sets alone.",
    r"its input \d+ depends on the graph's input and its input \d+ is stored": "Yes: weights, scales or sizes vary, and the "
    "tensor that they are for is stored.",
    r"its scales depends on the graph's input": "Yes: the size of the output would depend on the input.",
    r"samples at positions that depend on the graph's input": "Yes: the positions are the input (GridSample, RoiAlign), or the "
    "mode is the maximum of samples (RoiAlign).",
    r"operators of this domain are not covered": "Yes: training steps and previews, which no runtime here computes.",
    r"the output depends on no input": "Yes: the log-probabilities of a loss do not depend on its weights.",
    r"holds NaN": "Yes: one of the stored tensors of the case holds NaN.",
    r"maps numbers to categories, which jumps|it jumps at every split": JUMPS,
    r"is random; export in evaluation mode": "Yes.",
    r"normalises with the statistics of the batch": "Yes: `training_mode` is 1.",
    r"readers disagree": "Yes: onnxruntime and the evaluator of onnx were asked, and give different tensors.",
    r"the form of operator set 8 is not covered": "Yes: Scan had a batch axis then.",
    r"joins several computed entries in one place": "Yes: two updates have the same place.",
    r"takes an empty slice": "Yes: the output has no entries.",
    r"raises entries to more than": "Yes: every entry has another stored exponent.",
    r"raises stored numbers that are not positive": "Yes: the first stored number is negative or 0.",
    r"is no tensor; export a model that takes one tensor": "Yes: its type is `optional(tensor)`.",
    r"^Det .*this operator is not covered": "Yes: a polynomial of degree n in the entries, without a rule.",
}
"""What a refusal says (a regular expression) -> whether it is true, found by hand."""


def cases(part: str) -> Iterator[tuple[str, onnx.ModelProto, np.ndarray, int, np.ndarray]]:
    """(name, model of one input, the input, index of the output, the output) of every case of floating-point numbers."""
    from onnx.backend.test.case.node import collect_testcases

    for case in collect_testcases(None):
        given, wanted = case.data_sets[0]
        if part not in case.name or not all(isinstance(a, np.ndarray) for a in given):
            continue
        outputs = [k for k, a in enumerate(wanted) if isinstance(a, np.ndarray) and a.dtype in FLOATS]
        free = [k for k, a in enumerate(given) if a.dtype in FLOATS and a.size] if outputs else []
        values = case.model.graph.input
        for place in free[:2]:
            model = onnx.ModelProto()
            model.CopyFrom(case.model)
            del model.graph.input[:]
            model.graph.input.append(values[place])
            for k, (value, array) in enumerate(zip(values, given, strict=False)):
                if k != place:
                    model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
            name = f"{case.name.removeprefix('test_')} ({values[place].name})"
            yield name, model, given[place], outputs[0], wanted[outputs[0]]


def asked(path: Path, x: np.ndarray, output: int, wanted: np.ndarray) -> dict[str, str]:
    """What became of a case: {"said": ...} where it is refused, {"different": ...} where its numbers are others, else {}."""
    try:
        graph = lv.load(path, output=output)
    except lv.LipverifyError as error:
        return {"said": str(error).replace(str(path), "FILE")}
    batch = torch.from_numpy(np.ascontiguousarray(x)).to(graph.dtype)
    found = np.ravel(lv.evaluate(graph, batch.reshape(-1, *graph.input_shape)))
    expected = np.ravel(wanted).astype(np.float64)
    same = found.shape == expected.shape and np.allclose(found, expected, 2e-3, 1e-4, equal_nan=True)
    return {} if same else {"different": f"{found[:6]} where {expected[:6]} is expected"}


def reason(said: str) -> str | None:
    """The one of `REASONS` that a sentence is."""
    return next((pattern for pattern in REASONS if re.search(pattern, said)), None)


def readme(document: dict[str, Any]) -> str:
    """The report as Markdown."""
    refused: dict[str, str] = document["refused"]
    lines = [
        "# Operators of ONNX",
        "",
        f"Written by `python reports/operators/build.py`, onnx {document['onnx']}. Of {document['cases']} cases (an operator "
        f"with one float tensor as the input and the others stored) {document['read']} are read, each with the numbers that the "
        f"case expects; {len(refused)} are refused. Whether the reason is true was looked at by hand.",
        "",
        "| refused | what is said, for example | is it true? | cases |",
        "|---:|---|---|---|",
    ]
    groups: dict[str, list[str]] = {}
    for name, said in refused.items():
        groups.setdefault(reason(said) or "", []).append(name)
    for pattern, names in sorted(groups.items(), key=lambda pair: -len(pair[1])):
        example = re.sub(r" \(the first axis of the input is fixed.*", "", refused[names[0]]).replace(
            "|", "\\|"
        )
        shown = ", ".join(f"`{name}`" for name in names[:4]) + (", ..." if len(names) > 4 else "")
        lines.append(
            f"| {len(names)} | {example[:240]} | {REASONS.get(pattern, '**not looked at**')} | {shown} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name holds this; nothing is written then")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    refused, different, count = {}, {}, 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.onnx"
        for name, model, x, output, wanted in cases(options.only):
            count += 1
            onnx.save(model, path)
            found = asked(path, x, output, wanted)
            if "said" in found:
                refused[name] = found["said"]
            elif found:
                different[name] = found["different"]
    document = {
        "schema": "lipverify.operators/1",
        "onnx": onnx.__version__,
        "cases": count,
        "read": count - len(refused) - len(different),
        "refused": refused,
    }
    if not options.only:
        (HERE / "result.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        (HERE / "README.md").write_text(readme(document), encoding="utf-8")
    unknown = {name: said for name, said in refused.items() if reason(said) is None}
    for title, rows in (("DIFFERENT", different), ("NOT LOOKED AT", unknown)):
        for name, said in rows.items():
            print(f"{title} {name}: {said}")
    print(f"{document['read']} of {count} cases are read, {len(refused)} refused, {len(different)} different")
    return 1 if different or unknown else 0


if __name__ == "__main__":
    sys.exit(main())
