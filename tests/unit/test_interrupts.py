"""Ctrl-C while the checker proves: bounds that were found are kept, as `real` as they were, and the run says so."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import pytest
import typer

import lipverify as lv
from lipverify import __main__, cli, ops
from lipverify.falsify import Search
from lipverify.ir.certificate import Rigour
from lipverify.pipeline import exit_code
from lipverify.results import tightness
from tests.interrupts import Stop
from tests.networks import chain, tensor


@pytest.mark.parametrize("stage", ["product", "lipsdp-fast"])
def test_an_interrupt_of_a_proof_keeps_the_bounds(stage: str, rng: np.random.Generator) -> None:
    names = ["product", "lipsdp-fast", "lipsdp"]
    graph = chain([tensor(rng, 8, 5), tensor(rng, 3, 8)], ops.ReLU())
    search = Search(seconds=0.1)
    whole = lv.audit(graph, analyzers=names, search=search)
    stopped = lv.audit(graph, analyzers=names, search=search, report=Stop(f"proof of {stage}", 1))
    order = sorted(whole.rows, key=tightness)  # the smallest bound is proved first
    before = [row.analyzer for row in order][: [row.analyzer for row in order].index(stage)]
    assert before
    assert exit_code(whole) == 0
    assert exit_code(stopped) == 130
    for row, known in zip(stopped.rows, whole.rows, strict=True):
        assert row.certificate is not None
        assert known.certificate is not None
        # A proof may raise a bound by its rounding.
        assert row.upper == pytest.approx(known.upper, rel=1e-6)
        if row.analyzer in before:
            assert row.certificate.rigour is Rigour.CHECKED
        else:
            assert row.certificate.rigour is Rigour.REAL
            assert row.certificate.issued is None
            assert "interrupted" in row.certificate.unchecked


def _interrupted(*given: object, **named: object) -> None:
    raise KeyboardInterrupt


def test_a_second_interrupt_while_the_first_is_told_ends_with_the_same_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cli, "app", _interrupted)
    monkeypatch.setattr(typer, "echo", _interrupted)
    with pytest.raises(SystemExit) as end:
        cli.main([])
    assert end.value.code == 130


def test_an_interrupt_while_modules_are_imported_has_its_code_and_its_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupting:
        def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
            if name == "lipverify.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "lipverify.cli")
    monkeypatch.delattr(lv, "cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    with pytest.raises(SystemExit) as end:
        __main__.main()
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"
