"""Other people's settings: none changes a number or breaks a call, and each is there again afterwards."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import localcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify.cli import main
from tests.settings_numbers import network, numbers, points, write
from tests.tiers import long

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "net.onnx"
    write(path)
    return str(path)


@pytest.fixture(scope="module")
def plain(file: str) -> dict[str, Any]:
    found = numbers(file)
    assert found["rigour"] == ["checked"] * 4
    return found


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def threads() -> Iterator[None]:
    torch.set_num_threads(3)
    try:
        yield
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)


@contextmanager
def short_products() -> Iterator[None]:
    torch.set_float32_matmul_precision("medium")
    try:
        yield
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@contextmanager
def flushed() -> Iterator[None]:
    smallest = torch.tensor([2.0**-1022], dtype=torch.float64)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormal numbers")
    try:
        yield
        assert float(smallest * 0.5) == 0.0
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield
        assert torch.is_inference_mode_enabled()


@contextmanager
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield
        assert not torch.is_grad_enabled()


@contextmanager
def autocast() -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield
        assert torch.is_autocast_enabled("cpu")


@contextmanager
def raising() -> Iterator[None]:
    with np.errstate(all="raise"):
        yield
        assert set(np.geterr().values()) == {"raise"}


@contextmanager
def few_decimals() -> Iterator[None]:
    with localcontext() as context:
        context.prec = 2
        yield


@contextmanager
def seeded() -> Iterator[None]:
    state = torch.get_rng_state()
    torch.manual_seed(123)
    before = torch.get_rng_state()
    try:
        yield
        assert torch.equal(torch.get_rng_state(), before)
    finally:
        torch.set_rng_state(state)


def together(*settings: Any) -> Any:
    """Several that have nothing to do with each other, at once: none may change a number, so neither may all of them."""

    @contextmanager
    def all_of_them() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for setting in settings:
                stack.enter_context(setting())
            yield

    all_of_them.__name__ = " and ".join(setting.__name__ for setting in settings)
    return all_of_them


SETTINGS = (
    *(default_dtype, default_device, inference, no_grad, autocast, flushed),
    together(deterministic, threads, short_products),
    together(raising, few_decimals, seeded),
)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.__name__)
def test_no_setting_changes_a_number(setting: Any, file: str, plain: dict[str, Any]) -> None:
    with setting():
        found = numbers(file)
    assert found == plain


@contextmanager
def comma(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of somebody who writes 0,5; skipped where the system cannot make one."""
    if shutil.which("localedef") is None:
        pytest.skip("no localedef to make a locale with decimal commas")
    made = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "UTF-8", str(folder / "de_DE.UTF-8")],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("the system has no sources of the locale de_DE")
    yield {"LOCPATH": str(folder), "LC_ALL": "de_DE.UTF-8"}


def started(file: str, *flags: str, cwd: str | Path = ROOT, **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, *flags, "-m", "tests.settings_numbers", file],
        capture_output=True,
        timeout=300,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.usefixtures("whole_search")
def test_a_locale_with_decimal_commas_and_warnings_as_errors(file: str, tmp_path: Path) -> None:
    with comma(tmp_path) as environment:
        assert started(file, "-W", "error", **environment) == {**numbers(file), "decimal point": ","}


@long("compiles torch once more, without its asserts")
@pytest.mark.usefixtures("whole_search")
def test_no_docstrings_and_no_asserts(file: str) -> None:
    assert started(file, "-OO") == {**numbers(file), "decimal point": "."}


@long("starts Python once more")
@pytest.mark.usefixtures("whole_search")
def test_a_folder_that_cannot_be_written_and_ascii_alone(file: str) -> None:
    """/proc takes no files, not even from root; there is no home and the terminal knows ASCII."""
    nowhere = {
        "HOME": "/proc/none",
        "LC_ALL": "C",
        "PYTHONIOENCODING": "ascii",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    assert started(file, cwd="/proc", **nowhere) == {**numbers(file), "decimal point": "."}


def test_a_terminal_of_ascii_gets_every_line(file: str) -> None:
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True) for _ in range(2)]
    words = ["lipverify", "audit", file, "--budget", "5s", "--analyzers", "product,lipsdp"]
    with (
        contextlib.redirect_stdout(streams[0]),
        contextlib.redirect_stderr(streams[1]),
        mock.patch.object(sys, "argv", words),
        pytest.raises(SystemExit) as end,
    ):
        main()
    out, errors = (stream.buffer.getvalue() for stream in streams)  # type: ignore[attr-defined]
    assert not end.value.code, errors
    assert b"lipsdp" in out


def test_weights_made_in_inference_mode_are_read() -> None:
    plain = lv.extract(network(), points()).digest
    with torch.inference_mode():
        assert lv.extract(network(), points()).digest == plain
        made = network()
    assert lv.extract(made, torch.from_numpy(points())).digest == plain
