"""What happens to runs that something happens to; writes faults.json and the table of README.md beside this file.

    python reports/reliability/faults.py [--every 1] [--resume]

Each command runs on two small networks. A run is ended, or its disk refuses, at each operation on its folder (or at one in so
many): what it says must be one sentence, and the run that follows must leave every file as an undisturbed run does, times aside.
Every cell is on disk when it is done; `--resume` keeps those that are there with nothing wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import torch  # noqa: E402

from lipverify.reporting.writing import OutputFolder  # noqa: E402
from tests.command import lipverify  # noqa: E402
from tests.faults import Fault, left, operations, run, run_function  # noqa: E402
from tests.onnx_models import model, node  # noqa: E402
from tests.processes import Done  # noqa: E402

VERBS = ("audit", "radius", "compare", "deviate")
Arguments = list[str | Path]
WORDS = {
    "full": "No space left on device",
    "read-only": "Read-only file system",
    "gone": "the folder is no longer there",
}


def networks(folder: Path) -> tuple[Path, Path, Path]:
    """Two networks of one architecture, and three points."""
    rng = np.random.default_rng(0)
    files = []
    for name in ("first", "second"):
        stored = {"w0": rng.standard_normal((6, 4)), "w1": rng.standard_normal((3, 6))}
        nodes = [
            node("Gemm", ["x", "w0"], ["a"], transB=1),
            node("Relu", ["a"], ["b"]),
            node("Gemm", ["b", "w1"], ["y"], transB=1),
        ]
        arrays = {key: value.astype(np.float32) for key, value in stored.items()}
        files.append(folder / f"{name}.onnx")
        onnx.save(model(nodes, ["N", 4], constants=arrays), files[-1])
    x = rng.random((3, 4)).astype(np.float32)
    points = folder / "points.npz"
    np.savez(points, x=x)
    return files[0], files[1], points


def commands(folder: Path) -> dict[str, tuple[Arguments, list[str]]]:
    first, second, points = networks(folder)
    around: Arguments = ["--data", points]
    return {
        "audit": (["audit", first, *around, "--radius", "0.1", "--analyzers", "product,local"], []),
        "radius": (["radius", first, *around, "--method", "crown", "--looks", "2"], ["--resume"]),
        "compare": (["compare", first, second, "--analyzers", "product,lipsdp-fast"], ["--resume"]),
        "deviate": (["deviate", first, second, *around, "--radius", "0.1"], []),
    }


class Matrix:
    """Rows of the table; a cell is how many moments were tried, and what went wrong at which."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every
        self.commands = commands(folder)
        self.cells: dict[str, dict[str, dict[str, Any]]] = {}
        self.whole: dict[str, dict[str, Any]] = {}
        self.counts: dict[str, int] = {}
        for verb, (arguments, _) in self.commands.items():
            # Here first: what a command imports, its forks have.
            assert lipverify(*arguments, "--out", folder / f"here-{verb}").returncode == 0
            place = folder / f"whole-{verb}"
            done = run([*arguments, "--out", place], place)
            assert done.returncode == 0, done.stderr
            self.counts[verb], self.whole[verb] = operations(done), left(place)

    def cell(self, kind: str, verb: str, moments: Iterator[str | None]) -> None:
        problems = list(moments)
        wrong = [problem for problem in problems if problem is not None]
        self.cells.setdefault(kind, {})[verb] = {"tried": len(problems), "wrong": wrong}
        print(f"{kind}, {verb}: {len(problems)} tried, {len(wrong)} wrong", *wrong[:3], flush=True)

    def moments(self, verb: str) -> range:
        return range(1, self.counts[verb] + 1, self.every)

    def goes_on(self, verb: str, out: Path) -> str | None:
        """None where another run ends as an undisturbed one does."""
        arguments, more = self.commands[verb]
        again = run([*arguments, "--out", out], out)
        if again.returncode == 2 and "--resume" in again.stderr:
            again = run([*arguments, "--out", out, *more], out)
        problem = None
        if again.returncode != 0:
            problem = f"the next run: {_error(again)}"
        elif left(out) != self.whole[verb]:
            problem = "the next run leaves other files"
        shutil.rmtree(out, ignore_errors=True)
        return problem

    def ended(self, verb: str, kind: str) -> Iterator[str | None]:
        out = self.folder / f"{kind}-{verb}"
        code = 130 if kind == "interrupt" else -signal.SIGKILL
        for at in self.moments(verb):
            done = run([*self.commands[verb][0], "--out", out], out, Fault(kind, at))
            if done.returncode not in (code, 0 if kind == "interrupt" else code):
                yield f"{at}: exit {done.returncode}, {_error(done)}"
                shutil.rmtree(out, ignore_errors=True)
                continue
            problem = self.goes_on(verb, out)
            yield None if problem is None else f"{at}: {problem}"

    def refused(self, verb: str, kind: str) -> Iterator[str | None]:
        out = self.folder / f"{kind}-{verb}"
        for at in self.moments(verb):
            done = run([*self.commands[verb][0], "--out", out], out, Fault(kind, at))
            if done.returncode == 0:  # what was left to do needs no disk
                yield (
                    None
                    if kind == "gone" or left(out) == self.whole[verb]
                    else f"{at}: ended well, with other files"
                )
                shutil.rmtree(out, ignore_errors=True)
            # A folder that cannot be made is a wrong argument.
            elif (
                done.returncode != (2 if (kind, at) == ("read-only", 1) else 1)
                or WORDS[kind] not in _error(done)
                or "internal" in _error(done)
            ):
                yield f"{at}: {_error(done)}"
                shutil.rmtree(out, ignore_errors=True)
            else:
                problem = self.goes_on(verb, out)
                yield None if problem is None else f"{at}: {problem}"

    def real_disk(self, verb: str) -> Iterator[str | None]:
        """A file system of memory that is too small, where this user may mount one."""
        for size in (8, 24, 64):
            with small_disk(self.folder / f"disk-{verb}", size) as disk:
                if disk is None:
                    return
                out = disk / "out"
                done = run([*self.commands[verb][0], "--out", out], out)
                if done.returncode == 0:
                    yield None if left(out) == self.whole[verb] else f"{size} KiB: other files"
                else:
                    fine = (
                        done.returncode == 1
                        and WORDS["full"] in _error(done)
                        and "internal" not in _error(done)
                    )
                    yield (
                        None if fine and not (out / "result.json").exists() else f"{size} KiB: {_error(done)}"
                    )

    def largest_file(self, verb: str) -> Iterator[str | None]:
        """`ulimit -f`: no file may grow beyond so many bytes."""
        for size in (200, 2000, 20_000):
            out = self.folder / f"fsize-{verb}"
            done = run_function(
                self.program(verb, out, lambda n=size: resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))), out
            )
            yield self.in_words(done, f"{size} bytes")
            shutil.rmtree(out, ignore_errors=True)

    def little_memory(self, verb: str) -> Iterator[str | None]:
        """`ulimit -v`: a little more than the process has when it begins."""
        for extra in (1, 16, 256):
            out = self.folder / f"memory-{verb}"

            def limit(extra: int = extra) -> None:
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                size = pages * resource.getpagesize() + extra * 2**20
                resource.setrlimit(resource.RLIMIT_AS, (size, size))

            done = run_function(self.program(verb, out, limit), out)
            yield self.in_words(done, f"{extra} MiB")
            shutil.rmtree(out, ignore_errors=True)

    def clock_steps(self, verb: str) -> Iterator[str | None]:
        """The clock on the wall jumps by a day, forth and back, whenever somebody looks at it."""
        out = self.folder / f"clock-{verb}"

        def step() -> None:
            real, jumps = time.time, iter(lambda: None, 0)
            state = {"sign": 1.0}

            def jumping() -> float:
                next(jumps)
                state["sign"] *= -1.0
                return real() + state["sign"] * 86_400.0

            time.time = jumping

        done = run_function(self.program(verb, out, step), out)
        yield (
            None if done.returncode == 0 and left(out) == self.whole[verb] else _error(done) or "other files"
        )

    def two_runs(self, verb: str) -> Iterator[str | None]:
        out = self.folder / f"two-{verb}"
        with OutputFolder(out):
            done = run([*self.commands[verb][0], "--out", out], out)
        yield None if done.returncode == 2 and "another run is writing to" in done.stderr else _error(done)

    def dead_worker(self, verb: str) -> Iterator[str | None]:
        """The first process of two is killed when it is there: the other units are answered, and nothing is wrong."""
        if verb not in ("radius", "compare"):
            return
        out = self.folder / f"worker-{verb}"
        done = self.with_workers(verb, out, signal.SIGKILL)
        if done.returncode not in (0, 1) or not (out / "result.json").exists():
            yield f"exit {done.returncode}, {_error(done)}"
            return
        (out / "result.json").unlink()
        yield self.goes_on(verb, out)

    def hung_worker(self, verb: str) -> Iterator[str | None]:
        """The first process of two is stopped: its unit ends a minute after its time, the others are answered."""
        if verb not in ("radius", "compare"):
            return
        out = self.folder / f"hung-{verb}"
        done = self.with_workers(verb, out, signal.SIGSTOP, "--budget", "8s")
        written = (out / "result.json").exists()
        yield None if done.returncode in (0, 1, 4) and written else f"exit {done.returncode}, {_error(done)}"

    def with_workers(self, verb: str, out: Path, number: signal.Signals, *more: str) -> Done:
        """The command in two processes, the first of which gets the signal."""
        command = [
            sys.executable,
            "-m",
            "lipverify",
            *map(str, self.commands[verb][0]),
            "--jobs",
            "2",
            *more,
            "--out",
            str(out),
        ]
        running = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        killer = threading.Thread(target=_signal_a_worker, args=(running, number))
        killer.start()
        _, stderr = running.communicate(timeout=600)
        killer.join()
        return Done(running.returncode, "", stderr)

    def program(self, verb: str, out: Path, before: Callable[[], Any]) -> Callable[[], object]:
        def act() -> object:
            from lipverify.cli import main

            sys.argv = ["lipverify", *map(str, self.commands[verb][0]), "--out", str(out)]
            before()
            return main()

        return act

    def in_words(self, done: Done, when: str) -> str | None:
        """A limit may be enough; else it is said in one sentence, without a traceback."""
        if done.returncode == 0 or (
            done.returncode in (1, 2, 4, 5, 6) and _error(done) and "internal" not in _error(done)
        ):
            return None
        return f"{when}: exit {done.returncode}, {_error(done)}"


def _signal_a_worker(running: subprocess.Popen[str], number: signal.Signals) -> None:
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    while running.poll() is None:
        for child in children.read_text().split() if children.exists() else []:
            try:
                words = Path(f"/proc/{child}/cmdline").read_bytes()
                if b"spawn_main" in words:
                    os.kill(int(child), number)
                    return
            except OSError:
                pass
        time.sleep(0.01)


def _error(done: Done) -> str:
    lines = [line for line in done.stderr.splitlines() if line and not line.startswith("operations: ")]
    found = [line for line in lines if line.startswith("error: ")]
    return (found or lines or [""])[-1][:200]


@contextmanager
def small_disk(place: Path, kib: int) -> Iterator[Path | None]:
    place.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "none", str(place)], capture_output=True, check=False
    )
    try:
        yield place if mounted.returncode == 0 else None
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", str(place)], check=True)


ROWS: dict[str, Callable[[Matrix, str], Iterator[str | None]]] = {
    "killed before an operation on the folder": lambda m, v: m.ended(v, "kill"),
    "killed in the middle of a write": lambda m, v: m.ended(v, "torn"),
    "Ctrl-C": lambda m, v: m.ended(v, "interrupt"),
    "the disk is full from an operation on": lambda m, v: m.refused(v, "full"),
    "the folder becomes read-only": lambda m, v: m.refused(v, "read-only"),
    "the folder vanishes": lambda m, v: m.refused(v, "gone"),
    "a disk of 8, 24, 64 KiB": Matrix.real_disk,
    "`ulimit -f`: 200, 2,000, 20,000 bytes": Matrix.largest_file,
    "`ulimit -v`: 1, 16, 256 MiB more": Matrix.little_memory,
    "the clock jumps by days": Matrix.clock_steps,
    "two runs on one folder": Matrix.two_runs,
    "a worker is killed (`--jobs 2`)": Matrix.dead_worker,
    "a worker is stopped (`--jobs 2`)": Matrix.hung_worker,
}


HEAD = """# Faults

Written by `python reports/reliability/faults.py` (`make reliability`), here at one operation in {every}. A cell is the number of
moments tried; where a run was ended, the next one (with `--resume` where it is asked for) left every file as an undisturbed run
does, byte for byte, times aside; where the disk refused, the run said so in one sentence and the next one did the same. What
went wrong is in bold.
"""


PROMISES = (
    "Whether budgets of time and memory are kept, on every network of the sibling folder `shared/checkpoints`: "
    "[promises.md](promises.md). What a cluster gains: [cluster.md](cluster.md). Large models and many "
    "points: [large.md](large.md)."
)


def readme(document: dict[str, Any]) -> str:
    lines = [
        HEAD.format(every=document["every"]),
        "| what happens | " + " | ".join(f"`{verb}`" for verb in VERBS) + " |",
        "|---|" + "---:|" * len(VERBS),
    ]
    for kind, cells in document["matrix"].items():
        shown = []
        for verb in VERBS:
            cell = cells[verb]
            bad = f"**{len(cell['wrong'])} wrong of {cell['tried']}**"
            shown.append("" if not cell["tried"] else bad if cell["wrong"] else str(cell["tried"]))
        lines.append(f"| {kind} | " + " | ".join(shown) + " |")
    return "\n".join([*lines, "", PROMISES, ""])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=int, default=1, help="try one operation in so many")
    parser.add_argument(
        "--resume", action="store_true", help="keep the cells that are there, where none is wrong"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    written = HERE / "faults.json"
    before = json.loads(written.read_text()) if arguments.resume and written.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        matrix = Matrix(Path(folder), arguments.every)
        document = {
            "schema": "lipverify.faults/1",
            "every": arguments.every,
            "operations": matrix.counts,
            "matrix": matrix.cells,
        }
        # Another number of operations is another command: none of its cells is this one's.
        same = {
            verb: before.get("every") == arguments.every and before["operations"].get(verb) == count
            for verb, count in matrix.counts.items()
        }
        for kind, row in ROWS.items():
            for verb in VERBS:
                known = before["matrix"].get(kind, {}).get(verb) if same[verb] else None
                if known is not None and not known["wrong"]:
                    matrix.cells.setdefault(kind, {})[verb] = known
                    continue
                matrix.cell(kind, verb, row(matrix, verb))
                written.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    written.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (HERE / "README.md").write_text(readme(document), encoding="utf-8")
    return int(any(cell["wrong"] for cells in matrix.cells.values() for cell in cells.values()))


if __name__ == "__main__":
    sys.exit(main())
