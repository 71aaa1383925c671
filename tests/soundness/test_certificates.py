"""No changed certificate is accepted, and nothing a certificate file can hold ends in anything but a refusal."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from lipverify import checkers
from lipverify.checkers import claims, envelope
from lipverify.checkers.kernel import arithmetic, gains, ranges, theorems
from lipverify.checkers.kernel.program import Program
from lipverify.checkers.reader import agreement
from lipverify.checkers.reader.agreement import Agreement
from lipverify.checkers.reader.openings import Around
from lipverify.errors import LipverifyError, UnreadableCertificate
from tests.clocks import within
from tests.command import lipverify
from tests.soundness import certified, mutants
from tests.tiers import FULL, tier

COUNT = tier(44, 2000)
_RANGES = ranges.Chain.ranges


@pytest.fixture(autouse=True)
def _compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed certificate is about a file that was read once: what a runtime says of it does not hang on the certificate.

    Another program, another file and other regions are compared anew. Programs are kept, so that no address is used again.
    """
    agreed: dict[object, tuple[object, Agreement]] = {}

    def agree(data: bytes, program: Program, seed: int | None, apart: float | None, reading: object,
              regions: Sequence[Around]) -> Agreement:  # fmt: skip
        asked = [part.tobytes() for region in regions for part in region]
        key = (hashlib.sha256(data).digest(), id(program), seed, id(reading), *asked)
        if key not in agreed:
            agreed[key] = (program, reading), agreement.agree(data, program, seed, apart, reading, regions)
        return agreed[key][1]

    monkeypatch.setattr(envelope, "agree", agree)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> list[certified.Subject]:
    return certified.subjects(tmp_path_factory.mktemp("networks"), leaves=tier(10, 24))


def test_changed_certificates_are_refused(subjects: list[certified.Subject]) -> None:
    kinds: Counter[str] = Counter()
    for mutant in mutants.mutants(subjects, COUNT, seed=1):
        kinds[mutant.kind] += 1
        assert not mutant.accepted(), mutants.describe(mutant)
    assert len(kinds) == len(mutants._KINDS)


def test_unchanged_certificates_are_accepted(subjects: list[certified.Subject]) -> None:
    for subject in subjects:
        verdict = subject.issued.check(subject.model)
        assert verdict.binding == "file"
        assert verdict.upper == subject.issued.document["claim"]["upper"]


@pytest.mark.parametrize(
    ("where", "name", "broken", "kind"),
    [
        (arithmetic, "norms_at_most", lambda *_: True, "smaller limits"),
        (arithmetic, "positive_definite", lambda *_, **__: True, "multipliers"),
        (envelope, "claim_of", lambda table, _: claims._constant(table), "stronger text"),
        (gains, "product_constant", lambda *_: 0, "smaller limits"),
        (theorems, "jacobian_limit", lambda *_: 0.0, "smaller limits"),
        (theorems, "shown", lambda *_: None, "slopes"),
        (ranges.Chain, "ranges", lambda chain, x, *kinds: (sum(_RANGES(chain, x, *kinds)) / 2,) * 2, "balls"),
    ],
)
def test_the_changes_would_find_a_broken_checker(
    subjects: list[certified.Subject],
    where: object,
    name: str,
    broken: object,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(where, name, broken)
    assert any(mutant.accepted() for mutant in mutants.mutants(subjects, 60, seed=2, only=kind))


MALFORMED = [
    b"",
    b"7 bytes",
    b"[]",
    b"{}",
    b"null",
    b'"text"',
    b"[" * 200_000,
    b'{"a":' * 50_000,
    b'{"schema": 1e999999999}',
    b'{"schema": ' + b"9" * 5000 + b"}",
    b'{"schema": NaN}',
    b'{"schema": "lipverify.certificate/2", "schema": "lipverify.certificate/2"}',
    b'{"schema": "lipverify.certificate/1"}',
    b'{"schema": "lipverify.certificate/2"}',
    b"\xff\xfe{}",
    b"\x80\x04\x95",
    b"\x00" * 100_000,
]


@pytest.mark.parametrize("data", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_certificates_are_unreadable_at_once(
    data: bytes, subjects: list[certified.Subject]
) -> None:
    with within(1), pytest.raises(UnreadableCertificate):
        checkers.check(lambda: data, lambda name: b"", lambda: subjects[0].model)


@pytest.mark.parametrize("which", [1, 4])
def test_any_value_in_any_place_is_refused_or_changes_nothing(
    subjects: list[certified.Subject], which: int
) -> None:
    """Every leaf of a certificate, replaced by values of every type; in `make test` by one of twelve, another at each leaf."""
    subject = subjects[which]
    whole = json.loads(subject.issued.files("certificate.json")["certificate.json"])
    idle = {"analyzer", "assumptions", "not_covered", "environment", "times", "import_check"}
    told = {("models", 0, "name"), ("models", 0, "format"), ("models", 0, "graph_digest")}
    values: list[object] = [None, True, -1, 1 << 40, 0.5, "", "x", [], {}, [[]], "0x1p+0", [1] * 20]
    arrays = subject.issued.arrays or b""
    for number, path in enumerate(_places(whole)):
        if path[0] in idle or tuple(path[:3]) in told:
            continue
        for value in values if FULL else values[number % 12 :: 12]:
            document = json.loads(json.dumps(whole))
            place = document
            for key in path[:-1]:
                place = place[key]
            if place[path[-1]] == value:
                continue
            place[path[-1]] = value
            mutant = mutants.Mutant("value", subject, json.dumps(document).encode(), arrays, subject.model)
            assert not mutant.accepted(), f"{path} = {value!r}"


def _places(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [place for key, part in inner for place in _places(part, (*path, key))]
    return found + ([path] if path else [])


def test_the_command_ends_with_the_right_code_and_one_line(
    subjects: list[certified.Subject], tmp_path: Path
) -> None:
    model = certified.dense_network(tmp_path / "net.onnx", seed=0)
    other = certified.dense_network(tmp_path / "other.onnx", seed=1)
    good = tmp_path / "good.json"
    subjects[1].issued.save(good)
    text = good.read_text()
    cases = {
        "good": (text, model, 0),
        "lower": (text.replace(subjects[1].issued.document["claim"]["upper_decimal"], "0.5"), model, 3),
        "other": (text, other, 7),
        "cut": (text[: len(text) // 2], model, 7),
        "hostile": ('{"\x1b[2J": 1}', model, 7),
    }
    for name, (content, file, code) in cases.items():
        path = tmp_path / f"{name}.json"
        path.write_text(content)
        done = lipverify("verify", path, "--model", file, "--json")
        assert done.returncode == code, (name, done.stdout, done.stderr)
        document = json.loads(done.stdout)
        assert document["schema"] == "lipverify.verify/1"
        assert document["valid"] is (code == 0)
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) <= 1
        assert "\x1b" not in done.stderr
    missing = lipverify("verify", tmp_path / "none.json", "--model", model)
    assert missing.returncode == 2


def test_a_sidecar_elsewhere_is_never_opened(subjects: list[certified.Subject]) -> None:
    document = json.loads(subjects[1].issued.files("c.json")["c.json"])
    for name in ("../x.safetensors", "/etc/passwd", "/dev/zero.safetensors", "a/b.safetensors", "..", ""):
        document["sidecar"]["name"] = name
        with pytest.raises(LipverifyError):
            checkers.check(
                lambda: json.dumps(document).encode(),
                lambda name: pytest.fail(f"{name} was opened"),
                lambda: subjects[1].model,
            )
