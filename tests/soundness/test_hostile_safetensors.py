"""Safetensors files that are damaged or built to exhaust a parser (rows 8 and 9 of the threat table)."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lipverify import loading
from lipverify.errors import LipverifyError

from .hostile import put, refused


def safetensors(header: str | bytes, body: bytes = b"", length: int | None = None) -> bytes:
    text = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(shape: str = "[1]", start: Any = 0, stop: Any = 4, dtype: str = '"F32"') -> str:
    return f'{{"dtype": {dtype}, "shape": {shape}, "data_offsets": [{start}, {stop}]}}'


FOUR = bytes(4)
BAD_SAFETENSORS = {
    "header 2^63": safetensors("{}", length=1 << 63),
    "header 10^9": safetensors("{}", length=10**9),
    "header past the end": safetensors("{}", length=3),
    "negative size": safetensors(f'{{"w": {entry("[-1]")}}}', FOUR),
    "two negative sizes": safetensors(f'{{"w": {entry("[-1, -1]")}}}', FOUR),
    "bool size": safetensors(f'{{"w": {entry("[true]")}}}', FOUR),
    "float size": safetensors(f'{{"w": {entry("[1.0]")}}}', FOUR),
    "overflowing shape": safetensors(f'{{"w": {entry("[4294967296, 4294967296]")}}}', FOUR),
    "too many axes": safetensors(f'{{"w": {entry("[" + ",".join("1" * 17) + "]")}}}', FOUR),
    "overlap": safetensors(f'{{"a": {entry()}, "b": {entry()}}}', FOUR),
    "gap": safetensors(f'{{"a": {entry()}, "b": {entry("[1]", 8, 12)}}}', bytes(12)),
    "trailing bytes": safetensors(f'{{"a": {entry()}}}', bytes(5)),
    "too short": safetensors(f'{{"a": {entry()}}}', bytes(3)),
    "offsets backwards": safetensors(f'{{"a": {entry("[1]", 4, 0)}}}', FOUR),
    "bool offsets": safetensors(f'{{"a": {entry("[]", "false", "true", chr(34) + "U8" + chr(34))}}}', b"1"),
    "no dtype": safetensors('{"a": {"shape": [1], "data_offsets": [0, 4]}}', FOUR),
    "unknown field": safetensors(
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "x": 1}}', FOUR
    ),
    "dtype number": safetensors(f'{{"a": {entry(dtype="7")}}}', FOUR),
    "list": safetensors("[]"),
    "list in object": safetensors('{"a": []}'),
    "metadata not text": safetensors('{"__metadata__": {"a": 1}}'),
    "duplicate key": safetensors(f'{{"a": {entry()}, "a": {entry()}}}', FOUR),
    "duplicate field": safetensors(
        '{"a": {"dtype": "F32", "dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', FOUR
    ),
    "5000 digits": safetensors(f'{{"w": {entry("[" + "9" * 5000 + "]")}}}', FOUR),
    "NaN constant": safetensors(f'{{"w": {entry("[NaN]")}}}', FOUR),
    "invalid UTF-8": safetensors(b'{"\xff\xfe": 1}'),
    "bool tensor of 2": safetensors(
        f'{{"w": {entry("[4]", dtype=chr(34) + "BOOL" + chr(34))}}}', b"\2\0\1\1"
    ),
}


@pytest.mark.parametrize("name", BAD_SAFETENSORS)
def test_bad_safetensors(name: str, tmp_path: Path) -> None:
    data = BAD_SAFETENSORS[name]
    for read in (loading.read_safetensors, loading.read_state_dict):
        refused(2, read, put(tmp_path / "w.safetensors", data))
    best = min(timed(loading.parse_safetensors, data, "w.safetensors") for _ in range(5))
    assert best < 0.002


def timed(call: Callable[..., Any], *args: Any) -> float:
    start = time.process_time()
    with pytest.raises(LipverifyError):
        call(*args)
    return time.process_time() - start


def test_deep_json(tmp_path: Path) -> None:
    for header in ("[" * 900_000, '{"a":' * 300_000, '{"w": ' + "[" * 900_000):
        refused(2, loading.read_safetensors, put(tmp_path / "w.safetensors", safetensors(header)))


def test_unsupported_element_type(tmp_path: Path) -> None:
    data = safetensors(f'{{"w": {entry("[4]", dtype=chr(34) + "F8_E4M3" + chr(34))}}}', FOUR)
    assert "F8_E4M3" in refused(5, loading.read_safetensors, put(tmp_path / "w.safetensors", data))
