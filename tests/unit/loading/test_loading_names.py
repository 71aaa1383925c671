"""Names from files, as they reach a terminal."""

import pytest

from lipverify.loading import display, display_path, sentence


def test_plain_names_stay() -> None:
    assert display("layer1.0.conv/weight:0 (copy)") == "layer1.0.conv/weight:0 (copy)"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b[2J", "\\x1b[2J"),
        ("a\r\nb", "a\\x0d\\x0ab"),
        ("\u202eevil", "\\u202eevil"),
        ("\0", "\\x00"),
        ("é", "\\xe9"),
        ("\U0001f600", "\\U0001f600"),
        ("\ud800", "\\ud800"),
        ("\\x1b", "\\\\x1b"),
        (b"\xff", "\\udcff"),
    ],
)
def test_escapes(name: str | bytes, shown: str) -> None:
    assert display(name) == shown


def test_long_names_are_cut_and_stay_apart() -> None:
    first, second = display("x" * 1_000_000 + "1"), display("x" * 1_000_000 + "2")
    assert len(first) == len(second) == 80
    assert first != second
    assert first.startswith("xxxx")
    # An escape is never cut in two.
    assert (
        display("\u202e" * 100, limit=40).removesuffix(display("\u202e" * 100, limit=40)[-12:])
        == "\\u202e" * 4
    )
    assert display("x" * 80) == "x" * 80


def test_paths_and_sentences() -> None:
    assert display_path("net.onnx") == "net.onnx"
    assert display_path("/very/long/" * 10 + "net.onnx") == "net.onnx"
    assert sentence("net.onnx", "is empty") == "net.onnx: is empty"
    assert sentence("net.onnx", "is empty", "export it again") == "net.onnx: is empty; export it again"
