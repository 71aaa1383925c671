"""LipSDP over frequencies on convolutional networks, and products of large ones; writes the tables beside this file.

    python reports/frequencies/build.py [--only NAME ...]

Every row is a process of its own on one thread, for its seconds of the processor and its memory. Rows are kept in result.json;
one that is there is made again only where `--only` names it. Networks come from `networks.py`, but one from the folder
`shared/checkpoints` beside this checkout, whose rows are left as they are without it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OVAL = HERE.parents[2] / "shared" / "checkpoints" / "oval-cifar-base" / "cifar_base_kw.onnx"
Row = dict[str, Any]


def said(row: Row) -> None:
    """A line of standard output, the last of which counts: what is known of a row when it is ended."""
    row = {**row, "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    rounded = {k: round(v, 4) if isinstance(v, float) and v < 1e4 else v for k, v in row.items()}
    print(json.dumps(rounded), flush=True)


def over_frequencies(seconds: float, block: bool = False) -> Callable[[Path], Row]:
    """The product, the closed form, multipliers that are searched for (counted seconds; 0: none), the checker; and the block
    system.
    """

    def made(path: Path) -> Row:
        import lipverify as lv
        from lipverify.analyzers.lipsdp.analyzer import LipSDP
        from lipverify.analyzers.lipsdp.frequencies import analyzer as frequencies
        from lipverify.analyzers.product import Product
        from lipverify.analyzers.protocol import Compute
        from lipverify.certificates.issuing import issue
        from lipverify.ir.region import Query

        frequencies.SECONDS = seconds
        graph, query, method = lv.load(path), Query(), frequencies.LipSDPFrequencies()
        product = Product().bound(graph, query, Compute())
        started = time.process_time()
        closed = frequencies.bound_frequencies(method, graph, query, Compute(), searched=False)
        first = time.process_time() - started
        started = time.process_time()
        # Without a search what is found is the closed form, which is not made again.
        found = method.bound(graph, query, Compute()) if seconds else closed
        searched = time.process_time() - started
        row = {"product": float(product.upper), "closed": float(closed.upper), "closed_seconds": first,
               "frequencies": float(found.upper), "seconds": searched, "rigour": str(found.rigour),
               "proof_seconds": 0.0, "unchecked": "the checker has not ended"}  # fmt: skip
        said(row)
        started = time.process_time()
        proved = issue(found, graph, query, method, 0.0)
        row |= {"frequencies": float(proved.upper), "rigour": str(proved.rigour),
                "proof_seconds": time.process_time() - started, "unchecked": proved.unchecked}  # fmt: skip
        if block:
            started = time.process_time()
            row["block"] = float(LipSDP().bound(graph, query, Compute()).upper)
            row["block_seconds"] = time.process_time() - started
        return row

    return made


def products(path: Path) -> Row:
    """The product with its certificate and a witness."""
    import lipverify as lv

    started = time.process_time()
    graph = lv.load(path)
    loaded = time.process_time() - started
    result = lv.audit(graph, analyzers=["product"], seed=0)
    certificate = result.certificates["product"]
    return {"log10_product": certificate.log10_upper if certificate.upper is None else float(certificate.upper.log10()),
            "rigour": str(certificate.rigour), "unchecked": certificate.unchecked, "witness": float(result.lower.value),
            "loading_seconds": loaded, "seconds": time.process_time() - started}  # fmt: skip


def on_a_device(path: Path) -> Row:
    """How often methods wait for a device: the one that is pretended in the tests."""
    sys.path.insert(0, str(HERE.parents[1]))
    from tests.unit.analyzers.lipsdp.test_frequencies import GRAPHS
    from tests.unit.analyzers.test_pretended_device import METHODS, on_the_device, waits

    few, more = (waits(GRAPHS["plain"](), n) for n in (5, 15))
    found = {name: on_the_device(name)[2] for name in METHODS}
    return {"each evaluation over frequencies": (more - few) / 10,
            **{name: f"{device.waits} of {device.launches}" for name, device in found.items()}}  # fmt: skip


ROWS: dict[str, tuple[str, Callable[[Path], Row]]] = {
    "oval-cifar-base": ("oval", over_frequencies(5.0, True)),
    "four-8-16": ("four-8-16", over_frequencies(5.0, True)),
    "four-16-16": ("four-16-16", over_frequencies(5.0, True)),
    "sixteen": ("sixteen", over_frequencies(60.0)),
    "resnet18-32": ("resnet18-32", over_frequencies(0.0)),
    "product resnet18-32": ("resnet18-32", products),
    "product resnet18-224": ("resnet18-224", products),
    "product vgg16-224": ("vgg16-224", products),
    "device": ("", on_a_device),
}


def one(name: str) -> None:
    """A row, in this process."""
    sys.path.insert(0, str(HERE))
    import torch
    from networks import written

    torch.set_num_threads(1)
    network, make = ROWS[name]
    with tempfile.TemporaryDirectory() as folder:
        said(make(OVAL if network in ("oval", "") else written(network, Path(folder))))


def page(rows: dict[str, Row]) -> str:
    """README.md."""
    lines = [
        "# Convolutional networks over frequencies",
        "",
        "One command makes this page: `python reports/frequencies/build.py`. Seconds are those of the processor, on one thread.",
        "Networks have random weights (`networks.py`), but oval-cifar-base. *Frequencies*: one multiplier a channel,",
        "`lipsdp:frequencies`; *block*: one a neuron, `lipsdp` with what it takes.",
        "",
        "| network | product | closed form (s) | frequencies (s) | proof (s) | block (s) | over block | peak GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in (name for name in ROWS if name in rows and "frequencies" in rows[name]):
        r = rows[name]
        block = f"{r['block']:.4g} ({r['block_seconds']:.0f})" if "block" in r else ""
        over = f"{100 * (r['frequencies'] / r['block'] - 1):.1f} %" if "block" in r else ""
        lines.append(
            f"| {name} | {r['product']:.4g} | {r['closed']:.4g} ({r['closed_seconds']:.1f}) | "
            f"{r['frequencies']:.4g} ({r['seconds']:.1f}) | "
            f"{r['rigour']} ({r['proof_seconds']:.1f}) | {block} | {over} | {r['peak_gib']:.1f} |"
        )
    large = [name for name in ROWS if name in rows and "log10_product" in rows[name]]
    if large:
        lines += ["", "Products with their certificate and a witness, on large networks:", ""]
        lines += [
            "| network | log10 of the product | witness | rigour | loading (s) | all (s) | peak GiB |",
            "|---|---|---|---|---|---|---|",
        ]
    for name in large:
        r = rows[name]
        lines.append(
            f"| {name.removeprefix('product ')} | {r['log10_product']:.2f} | {r['witness']:.4g} | {r['rigour']} | "
            f"{r['loading_seconds']:.1f} | {r['seconds']:.1f} | {r['peak_gib']:.1f} |"
        )
    if "device" in rows and "error" not in rows["device"]:
        lines += [
            "",
            "Times that the program waits for a device that is pretended (`tests/pretended.py`), of so many operators there:",
            "",
        ]
        lines += [f"- {name}: {value}" for name, value in rows["device"].items() if name != "peak_gib"]
    failed = [(name, said) for name in ROWS if name in rows
              for said in (rows[name].get("error") or rows[name].get("unchecked"),) if said]  # fmt: skip
    return "\n".join([*lines, *(f"\n{name}: {said}" for name, said in failed), ""])


def _output(name: str) -> str:
    """What a row prints, in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--row", name], capture_output=True, text=True, check=False,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    if done.returncode and not done.stdout.strip():
        return json.dumps({"error": (done.stderr.strip().splitlines() or ["killed"])[-1][:200]})
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--given", type=Path, help="of one row: what a run with --row has printed")
    parser.add_argument("--row", help="one row alone, as lines of JSON, of which the last one counts")
    asked = parser.parse_args()
    if asked.row:
        one(asked.row)
        return
    result = HERE / "result.json"
    rows = json.loads(result.read_text()) if result.exists() else {}
    for name, (network, _) in ROWS.items():
        wanted = name in asked.only if asked.only else name not in rows
        if not wanted or (network == "oval" and not OVAL.exists()):
            continue
        lines = asked.given.read_text() if asked.given else _output(name)
        rows[name] = json.loads((lines.strip() or '{"error": "killed"}').splitlines()[-1])
        print(name, rows[name], flush=True)
        result.write_text(json.dumps({k: rows[k] for k in ROWS if k in rows}, indent=1) + "\n")
        (HERE / "README.md").write_text(page(rows))
    (HERE / "README.md").write_text(page(rows))


if __name__ == "__main__":
    main()
