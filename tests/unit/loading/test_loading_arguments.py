"""Numbers that people type."""

import pytest

from lipverify.errors import UsageError
from lipverify.loading import parse_box, parse_duration, parse_margin, parse_radius


@pytest.mark.parametrize(
    ("text", "radius"),
    [
        ("0.03", 0.03),
        ("8/255", 8 / 255),
        (" 1e-3 ", 1e-3),
        (".5", 0.5),
        ("2", 2.0),
        ("0.5 / 3", 0.5 / 3),
        ("3.", 3.0),
    ],
)
def test_radius(text: str, radius: float) -> None:
    assert parse_radius(text) == radius


def test_radius_hints_at_the_comma() -> None:
    with pytest.raises(UsageError, match="decimal point, not a comma"):
        parse_radius("0,03")


@pytest.mark.parametrize("text", ["2e-308", "5e-324/2", "1/1e9999", "1e309"])
def test_radius_that_float64_cannot_hold(text: str) -> None:
    with pytest.raises(UsageError):
        parse_radius(text)


@pytest.mark.parametrize(
    ("text", "box"), [("0,1", (0.0, 1.0)), ("-1, 1.5", (-1.0, 1.5)), ("-2e1,-1", (-20.0, -1.0))]
)
def test_box(text: str, box: tuple[float, float]) -> None:
    assert parse_box(text) == box


@pytest.mark.parametrize("text", ["1,0", "1,1", "0", "0,1,2", "nan,1", "0,inf", "a,b", "", "0;1", "-1e999,1"])
def test_no_box(text: str) -> None:
    with pytest.raises(UsageError):
        parse_box(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *[
            ("90", 90),
            ("90s", 90),
            ("10m", 600),
            ("1h30m", 5400),
            ("500ms", 0.5),
            ("1.5h", 5400),
            ("1d", 86400),
        ],
        *[("60", 60), ("1:30", 90), ("1:00:05", 3605), ("2 minutes", 120), ("1 min 30 sec", 90)],
        *[("1 Hour", 3600), ("0.5 m", 30)],
    ],
)
def test_duration(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *["", "0", "-1s", "10x", "1h30", "s", "inf", "nan", "1e3", "1,5h", "9" * 400],
        *["1:3", "1:60", "0:00", "2 fortnights", "1 2", "1:30m"],
    ],
)
def test_no_duration(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)


def test_margin() -> None:
    assert parse_margin("3,5") == (3, 5)
    for text in ("3", "3,3", "-1,2", "a,b", "1,2,3", "1.0,2", ""):
        with pytest.raises(UsageError):
            parse_margin(text)
